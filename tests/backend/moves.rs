//! A guest that migrates: its rings stop on one host and start on another.
//!
//! ```text
//!     guest 1            guest 2  ----------->  guest 2
//!         |                 |                      |
//!       host a            host b                 host c
//! ```

use std::collections::BTreeSet;
use std::time::Duration;

use vnet::metrics::VifCounter;
use vnet::sys::clock;

use crate::driver::{Control, Driver};
use crate::injection::Attacker;
use crate::nic::{LEN, Nic, frame, mac, vif};
use crate::support::vnet::{Backend, Listener};
use crate::support::{step, wait_until};
use crate::{Net, SOON};

/// Traffic has to follow within this time.
const LIMIT: Duration = Duration::from_secs(1);
/// Between two frames of the stream.
const INTERVAL: Duration = Duration::from_millis(1);
/// As many as are followed at once: a vif that moves more often within minutes is damped.
const MOVES: u32 = 4;

/// A frame that does not come for so long is lost.
const STRAGGLING: Duration = Duration::from_millis(500);

/// Whether these numbers are two rising sequences, merged, and none is there twice.
fn is_two_in_order(numbers: &[u32]) -> bool {
    let each = numbers.iter().collect::<BTreeSet<_>>();
    if each.len() < numbers.len() {
        return false;
    }
    let (mut ahead, mut behind) = (None, None);
    numbers.iter().all(|&n| {
        let place = if ahead < Some(n) { &mut ahead } else { &mut behind };
        let is_in_order = *place < Some(n);
        *place = Some(n);
        is_in_order
    })
}

/// The backend of guest 2 on the other host waits, connected, as QEMU's does during the migration.
fn prepare(name: &str, net: &Net, host: usize) -> Nic {
    let guest = vif(42, 2);
    let backend = Backend::start(name, guest, Listener::Backend, &net.varpds[host]);
    let control = Control::connect(&backend.socket).unwrap();
    let mut driver = Driver::new(control, Nic::options());
    driver.negotiate().unwrap();
    Nic { driver, backend, vif: guest }
}

#[test]
fn traffic_follows_a_guest_that_moves() {
    let Some(net) = Net::new("a guest that moves between hosts", 3) else { return };
    let mut one = Nic::start("g1", vif(42, 1), &net.varpds[0]);
    let mut here = Nic::start("g2-0", vif(42, 2), &net.varpds[1]);
    let mut number = 0;
    let mut longest = Duration::ZERO;
    let mut lost = 0;
    for n in 1..=MOVES {
        let host = 1 + n as usize % 2;
        let mut there = prepare(&format!("g2-{n}"), &net, host);
        let mut last = 0;
        for _ in 0..50 {
            one.send(mac(2), number);
            last = here.receive(mac(1));
            assert_eq!(last, number);
            number += 1;
        }
        let begin = clock::mono();
        here.driver.stop_ring(0).unwrap();
        here.driver.stop_ring(1).unwrap();
        there.driver.start().unwrap();
        let first = loop {
            one.send(mac(2), number);
            number += 1;
            if let Some(first) = there.try_receive(mac(1), INTERVAL) {
                break first;
            }
            assert!(clock::mono() - begin < SOON, "traffic follows");
        };
        let gap = clock::mono() - begin;
        assert!(gap < LIMIT, "traffic followed only after {gap:?}");
        longest = longest.max(gap);
        // All that come now come here, once. What waited at the old place comes by way of it, and what is sent
        // when the new one is known overtakes it; each of the two keeps its order.
        let mut came = vec![first];
        while came.len() < (number - last - 1) as usize {
            let Some(next) = there.try_receive(mac(1), STRAGGLING) else { break };
            came.push(next);
        }
        assert!(is_two_in_order(&came), "{came:?}");
        assert!(came.iter().all(|n| (last + 1..number).contains(n)), "{came:?}");
        let oldest = *came.iter().min().expect("the first");
        assert_eq!(
            came.len(),
            (number - oldest) as usize,
            "none is lost from the first on: {came:?}"
        );
        lost += oldest - last - 1;
        // And the other way.
        there.send(mac(1), n);
        assert_eq!(one.receive(mac(2)), n);
        here = there;
    }
    assert_eq!(one.counters(&net.varpds[0]).sum("tx_drop_"), 0);
    assert_eq!(one.counters(&net.varpds[0]).get(VifCounter::tx_frames), u64::from(number));
    step(&format!("{MOVES} moves: unreached for at most {longest:?}, {lost} frames lost"));
}

/// Where a vif is, by its host's varpd.
fn place(net: &Net, host: usize) -> String {
    let rows = net.varpds[host].show("vifs");
    let row = rows.as_array().unwrap().iter().find(|row| row["mac"] == vif(42, 2).mac());
    row.unwrap()["coa"].as_str().unwrap().to_owned()
}

/// A stranger, whom no announcement reaches, goes on sending to where the guest was: its frames
/// follow the guest, each once, while the backend there lives; and its host is told.
#[test]
fn late_frames_follow_a_guest_that_moved() {
    const FRAMES: u32 = 500;
    let Some(net) = Net::new("late frames for a guest that moved", 3) else { return };
    let mut here = Nic::start("g2-0", vif(42, 2), &net.varpds[1]);
    let stranger = Attacker::register(&net.varpds[0]).socket;
    let old: std::net::SocketAddr = place(&net, 1).parse().unwrap();
    let late = |number: u32| {
        let header = [0x40, 0, 0, 0, 0, 0, 0, 42];
        stranger
            .send_to(&[&header[..], &frame(mac(2), mac(7), number, LEN)].concat(), old)
            .unwrap();
    };
    late(0);
    assert_eq!(here.receive(mac(7)), 0);
    let mut there = prepare("g2-1", &net, 2);
    here.driver.stop_ring(0).unwrap();
    here.driver.stop_ring(1).unwrap();
    here.wait_state("registered", &net.varpds[1]);
    // Sent while the guest runs nowhere: they wait at its old place.
    late(1);
    there.driver.start().unwrap();
    there.wait_state("active", &net.varpds[2]);
    for number in 2..FRAMES {
        late(number);
    }
    for number in 1..FRAMES {
        assert_eq!(there.receive(mac(7)), number, "each once, in order");
    }
    there.assert_silent();
    here.assert_silent();
    let counters = here.counters(&net.varpds[1]);
    assert_eq!(counters.get(VifCounter::tx_forwarded), u64::from(FRAMES) - 1);
    assert_eq!(counters.sum("rx_drop_"), 0);
    let is_corrected = |row: &serde_json::Value| {
        row["counter"] == "tx_corrections" && row["value"].as_u64() > Some(0)
    };
    wait_until("the stranger's host is told", SOON, || {
        net.varpds[1].show("stats").as_array().unwrap().iter().any(is_corrected)
    });
    // Back: the old place is home again, and what the other one gets is sent on here.
    there.driver.stop_ring(0).unwrap();
    there.driver.stop_ring(1).unwrap();
    here.reconnect();
    here.wait_state("active", &net.varpds[1]);
    late(FRAMES);
    assert_eq!(here.receive(mac(7)), FRAMES);
    there.assert_silent();
    step(&format!("{} late frames followed the guest, each once", FRAMES - 1));
}

/// A guest whose host's backend was killed, claim and sockets kept, and that is started elsewhere:
/// it is found with its first frame or announcement, not when what others know of it has expired.
#[test]
fn a_guest_that_starts_elsewhere_is_found_at_once() {
    let Some(net) = Net::new("a guest that is started on another host", 3) else { return };
    let mut one = Nic::start("g1", vif(42, 1), &net.varpds[0]);
    let mut here = Nic::start("g2-0", vif(42, 2), &net.varpds[1]);
    one.introduce(&mut here);
    drop(here);
    let begin = clock::mono();
    let mut there = Nic::start("g2-1", vif(42, 2), &net.varpds[2]);
    let started = clock::mono();
    one.send(mac(2), 7);
    assert_eq!(there.receive(mac(1)), 7);
    assert!(clock::mono() - started < LIMIT);
    there.send(mac(1), 8);
    assert_eq!(one.receive(mac(2)), 8);
    step(&format!("started elsewhere and reached {:?} after it was killed", clock::mono() - begin));
}
