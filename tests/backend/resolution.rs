//! Frames to somebody whose place is not yet known, or who does not exist.
//!
//! ```text
//!     guest 1                guest 2
//!         |                     |
//!       host a                host b
//! ```

use vnet::metrics::VifCounter;
use vnet::sys::clock;

use crate::nic::{LEN, Nic, frame, mac, vif};
use crate::support::netns::Family;
use crate::support::{step, wait_until};
use crate::{Net, SOON};

/// Frames that wait for one destination at most.
const PARKED: u32 = vnet::tunnel::unresolved::MAX_FRAMES_PER_MAC as u32;
/// Timers with which an unanswered resolution ends after 0.2 s, and is not tried again for 60 s.
const HASTY: &str = "[timers]\nreply-timeout = 0.1\ntries = 2\nearly-retries = []\n\
                     negative-lifetime = 60\n";
/// A MAC that nobody has.
const NOBODY: [u8; 6] = mac(99);

/// Shows as many frames to the device at once.
fn send_at_once(nic: &mut Nic, to: [u8; 6], count: u32) {
    for n in 0..count {
        nic.queue_frame(&frame(to, nic.mac(), n, LEN));
    }
    nic.driver.flush(0);
    nic.wait_sent();
}

#[test]
fn the_first_frame_arrives() {
    let Some(net) = Net::new("the first frames to a guest not known yet", 2) else { return };
    let mut one = Nic::start("g1", vif(42, 1), &net.varpds[0]);
    let mut two = Nic::start("g2", vif(42, 2), &net.varpds[1]);
    let begin = clock::mono();
    one.send(mac(2), 7);
    assert_eq!(two.receive(mac(1)), 7);
    step(&format!("the first frame took {:?}, with resolution", clock::mono() - begin));
    assert_eq!(one.counters(&net.varpds[0]).get(VifCounter::tx_parked), 1);

    // As many as may wait, from a guest that knows nobody yet: all, in order.
    let mut three = Nic::start("g3", vif(42, 3), &net.varpds[0]);
    send_at_once(&mut three, mac(2), PARKED);
    for n in 0..PARKED {
        assert_eq!(two.receive(mac(3)), n);
    }
    let counters = three.counters(&net.varpds[0]);
    assert_eq!(counters.get(VifCounter::tx_parked), u64::from(PARKED));
    assert_eq!(counters.get(VifCounter::tx_frames), u64::from(PARKED));
    assert_eq!(counters.sum("tx_drop_"), 0);

    // And from another, more than may wait: the first ones, in order, and the rest is counted.
    let mut four = Nic::start("g4", vif(42, 4), &net.varpds[0]);
    send_at_once(&mut four, mac(2), PARKED + 36);
    for n in 0..PARKED {
        assert_eq!(two.receive(mac(4)), n);
    }
    four.send(mac(2), 1000);
    assert_eq!(two.receive(mac(4)), 1000);
    let counters = four.counters(&net.varpds[0]);
    assert_eq!(counters.get(VifCounter::tx_drop_park_full), 36);
    assert_eq!(counters.sum("tx_drop_"), 36);
    assert_eq!(counters.get(VifCounter::tx_frames), u64::from(PARKED) + 1);
}

#[test]
fn frames_to_nobody_are_dropped_and_counted() {
    let what = "frames to a MAC that nobody has";
    let Some(net) = Net::with(what, 2, Family::V4, HASTY) else { return };
    let mut one = Nic::start("g1", vif(42, 1), &net.varpds[0]);
    let mut two = Nic::start("g2", vif(42, 2), &net.varpds[1]);
    send_at_once(&mut one, NOBODY, 100);
    let begin = clock::mono();
    wait_until("nobody answers", SOON, || {
        let counters = one.counters(&net.varpds[0]);
        counters.get(VifCounter::tx_drop_unresolved) == u64::from(PARKED)
    });
    step(&format!("given up after {:?}", clock::mono() - begin));
    let counters = one.counters(&net.varpds[0]);
    assert_eq!(counters.get(VifCounter::tx_drop_park_full), u64::from(100 - PARKED));
    // For a while nobody is asked again.
    send_at_once(&mut one, NOBODY, 10);
    let counters = one.counters(&net.varpds[0]);
    assert_eq!(counters.get(VifCounter::tx_drop_unresolved), u64::from(PARKED) + 10);
    assert_eq!(counters.sum("tx_drop_"), 110);
    assert_eq!(counters.get(VifCounter::tx_frames), 0, "an unknown MAC is not flooded");

    // Who comes after all is found at once: it announces itself.
    let mut late = Nic::start("g99", vif(42, 99), &net.varpds[1]);
    wait_until("the announcement is heard", SOON, || {
        one.send(NOBODY, 5);
        late.try_receive(mac(1), std::time::Duration::ZERO) == Some(5)
    });
    two.assert_silent();
}

#[test]
fn frames_do_not_wait_for_ever() {
    let Some(net) = Net::new("frames whose resolution takes too long", 1) else { return };
    let mut one = Nic::start("g1", vif(42, 1), &net.varpds[0]);
    send_at_once(&mut one, NOBODY, 3);
    let begin = clock::mono();
    wait_until("they have waited long enough", SOON, || {
        one.counters(&net.varpds[0]).get(VifCounter::tx_drop_park_expired) == 3
    });
    step(&format!("waited for {:?}", clock::mono() - begin));
    assert_eq!(one.counters(&net.varpds[0]).sum("tx_drop_"), 3);
}
