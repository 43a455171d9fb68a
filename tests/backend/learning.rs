//! A bridge in a guest: other MACs are behind its NIC.
//!
//! ```text
//!   one, two: behind the bridges
//!         |
//!     guest 1, a bridge     guest 2, a bridge     guest 3
//!         |                     |                    |
//!       host a                host b ----------------+
//! ```

use vnet::metrics::VifCounter;

use crate::nic::{BROADCAST, LEN, Nic, frame, mac, number, vif};
use crate::support::vnet::Varpd;
use crate::support::{step, wait_until};
use crate::{Net, SOON};

const ONE: [u8; 6] = mac(101);
const TWO: [u8; 6] = mac(102);

fn bridge(name: &str, last: u8, varpd: &Varpd) -> Nic {
    Nic::start_with(name, vif(42, last), varpd, Nic::options(), &["--learn=2"])
}

/// The next frame's destination and number.
fn receive(nic: &mut Nic, from: [u8; 6]) -> ([u8; 6], u32) {
    let frame = nic.driver.recv_frame(SOON).expect("a frame arrives");
    (frame[..6].try_into().unwrap(), number(&frame, from))
}

fn is_shown(varpd: &Varpd, of: [u8; 6], state: &str) -> bool {
    let [.., last] = of;
    let mac = vif(42, last).mac();
    let rows = varpd.show("vifs");
    rows.as_array().unwrap().iter().any(|row| row["mac"] == mac && row["state"] == state)
}

#[test]
fn who_is_behind_a_bridge_is_reached_there_and_followed_to_another() {
    let Some(mut net) = Net::new("MACs behind bridges in guests", 2) else { return };
    let mut bridges = [bridge("g1", 1, &net.varpds[0]), bridge("g2", 2, &net.varpds[1])];
    let mut user = Nic::start("g3", vif(42, 3), &net.varpds[1]);
    // Its first frame, to all: the source stays, and is learnt.
    bridges[0].send_frame(&frame(BROADCAST, ONE, 1, LEN));
    assert_eq!(user.receive(ONE), 1);
    assert_eq!(bridges[1].receive(ONE), 1);
    for n in 2..100 {
        user.send(ONE, n);
        assert_eq!(receive(&mut bridges[0], mac(3)), (ONE, n));
        bridges[0].send_frame(&frame(mac(3), ONE, n, LEN));
        assert_eq!(user.receive(ONE), n);
    }
    // It moves behind the other bridge, and is followed with its first frame there.
    bridges[1].send_frame(&frame(BROADCAST, ONE, 100, LEN));
    assert_eq!(user.receive(ONE), 100);
    assert_eq!(bridges[0].receive(ONE), 100);
    wait_until("it has moved", SOON, || is_shown(&net.varpds[0], ONE, "lost"));
    for n in 101..200 {
        user.send(ONE, n);
        assert_eq!(receive(&mut bridges[1], mac(3)), (ONE, n));
    }
    bridges[0].assert_silent();
    // varpd restarts: it is still there.
    net.varpds[1].kill();
    net.varpds[1].start_again();
    wait_until("it is registered again", SOON, || is_shown(&net.varpds[1], ONE, "learnt"));
    user.send(ONE, 200);
    assert_eq!(receive(&mut bridges[1], mac(3)), (ONE, 200));
    step("two bridges, one MAC behind them, which was followed from one to the other");
}

/// One frame with another guest's source address would take that guest's frames, on other hosts, too.
#[test]
fn a_guests_own_mac_is_not_taken_by_a_frame_of_a_guest_that_learns() {
    let Some(net) = Net::new("another guest's own MAC behind a bridge", 3) else { return };
    let mut bridge = bridge("g1", 1, &net.varpds[0]);
    let mut victim = Nic::start("g2", vif(42, 2), &net.varpds[1]);
    let mut user = Nic::start("g3", vif(42, 3), &net.varpds[2]);
    victim.introduce(&mut user);
    for n in 1..100 {
        bridge.send_frame(&frame(BROADCAST, mac(2), n, LEN));
        user.send(mac(2), 1000 + n);
        // What the forger sends to all arrives as well, in whatever order.
        let numbers = std::iter::from_fn(|| victim.next_frame(SOON));
        let is_users = |frame: &Vec<u8>| frame[6..12] == mac(3);
        let own = numbers.into_iter().find(is_users).expect("the user's frame");
        assert_eq!(number(&own, mac(3)), 1000 + n);
    }
    let own = [&net.varpds[1], &net.varpds[2]].map(|varpd| is_shown(varpd, mac(2), "lost"));
    assert_eq!(own, [false, false]);
}

#[test]
fn no_more_than_the_bound_is_learnt() {
    let Some(net) = Net::new("the bound of MACs behind a bridge", 1) else { return };
    let mut bridge = bridge("g1", 1, &net.varpds[0]);
    let mut user = Nic::start("g3", vif(42, 3), &net.varpds[0]);
    for (n, source) in [(1, ONE), (2, TWO)] {
        bridge.send_frame(&frame(BROADCAST, source, n, LEN));
        assert_eq!(user.receive(source), n);
    }
    for n in 0..1000 {
        bridge.send_frame(&frame(BROADCAST, mac((n % 90) as u8 + 110), n, LEN));
        assert_eq!(user.receive(mac(1)), n, "stamped");
    }
    let counters = || bridge.counters(&net.varpds[0]);
    wait_until("the MACs beyond the bound are counted", SOON, || {
        counters().get(VifCounter::macs_refused) >= 90
    });
    let counters = counters();
    assert_eq!(counters.get(VifCounter::macs_learnt), 2);
    assert_eq!(counters.get(VifCounter::tx_stamped), 1000);
    let rows = net.varpds[0].show("vifs");
    assert_eq!(rows.as_array().unwrap().len(), 4);
}
