//! A guest that sends under other addresses than its own.
//!
//! ```text
//!     guest 1, says to be anybody    guest 2       guest 3       all on vnet 42
//!         |                            |              |
//!       host a ------------------------+            host b
//! ```

use vnet::metrics::VifCounter;

use crate::nic::{BROADCAST, LEN, Nic, frame, mac, vif};
use crate::support::{step, wait_until};
use crate::{Net, SOON};

/// Frames with a foreign source that are sent.
const FRAMES: u32 = 1_000_000;
/// Of these, as many at a time: less than a receive ring has buffers.
const BATCH: u32 = 125;

/// A source that is not the sender's: made up, a neighbour's, nearly its own, none, a group.
fn foreign(number: u32) -> [u8; 6] {
    let [a, b, c, d] = number.wrapping_mul(2_654_435_761).to_be_bytes();
    match number % 8 {
        0 => mac(2),
        1 => mac(3),
        2 => [0x52, 0x54, 0, 0, 1, 1],
        3 => [0; 6],
        4 => BROADCAST,
        5 => [0x53, 0x54, 0, 0, 0, 1],
        _ => [0x02, a, b, c, d, 7],
    }
}

/// One of 16 to all, a third of the others to guest 3.
fn destination(number: u32) -> [u8; 6] {
    match number % 16 {
        0 => BROADCAST,
        n if n % 3 == 0 => mac(3),
        _ => mac(2),
    }
}

fn is_for(number: u32, to: [u8; 6]) -> bool {
    let destination = destination(number);
    destination == to || destination == BROADCAST
}

/// Guest 1 sends all frames; returns which arrived at guests 2 and 3.
fn send_all(liar: &mut Nic, others: &mut [Nic; 2]) -> [Vec<bool>; 2] {
    let mut arrived = [(); 2].map(|()| vec![false; FRAMES as usize]);
    for first in (0..FRAMES).step_by(BATCH as usize) {
        for n in first..first + BATCH {
            liar.queue_frame(&frame(destination(n), foreign(n), n, LEN));
        }
        liar.driver.flush(0);
        for (nic, arrived) in others.iter_mut().zip(&mut arrived) {
            let expected = (first..first + BATCH).filter(|&n| is_for(n, nic.mac())).count();
            for _ in 0..expected {
                // Checks the sender, too.
                let slot = &mut arrived[nic.receive(mac(1)) as usize];
                assert!(!*slot, "nothing arrives twice");
                *slot = true;
            }
        }
    }
    arrived
}

#[test]
fn foreign_sources_are_stamped() {
    let Some(net) = Net::new("10^6 frames with a foreign source, stamped", 2) else { return };
    let mut liar = Nic::start("g1", vif(42, 1), &net.varpds[0]);
    let mut others =
        [2, 3].map(|n| Nic::start(&format!("g{n}"), vif(42, n), &net.varpds[usize::from(n) - 2]));
    // More frames come at once than may wait for resolution.
    others.iter_mut().for_each(|other| liar.introduce(other));
    let arrived = send_all(&mut liar, &mut others);
    for (nic, arrived) in others.iter_mut().zip(&arrived) {
        nic.assert_silent();
        let to_it = |n: &u32| is_for(*n, nic.mac());
        assert!((0..FRAMES).all(|n| arrived[n as usize] == to_it(&n)), "all that were sent to it");
        let count = (0..FRAMES).filter(to_it).count() as u64;
        step(&format!("{:?} received {count} frames, all from 52:54:00:00:00:01", nic.vif));
    }
    let counters = liar.counters(&net.varpds[0]);
    assert_eq!(counters.get(VifCounter::tx_stamped), u64::from(FRAMES));
    assert_eq!(counters.get(VifCounter::tx_frames), u64::from(FRAMES) + 2);
    assert_eq!(counters.sum("tx_drop_"), 0, "{counters:?}");
    for (nic, varpd) in others.iter().zip(&net.varpds) {
        assert_eq!(nic.counters(varpd).sum("rx_drop_"), 0);
    }
}

#[test]
fn foreign_sources_are_dropped() {
    let Some(net) = Net::new("10^6 frames with a foreign source, dropped", 2) else { return };
    let further = ["--source-mac=drop"];
    let mut liar = Nic::start_with("g1", vif(42, 1), &net.varpds[0], Nic::options(), &further);
    let mut others =
        [2, 3].map(|n| Nic::start(&format!("g{n}"), vif(42, n), &net.varpds[usize::from(n) - 2]));
    for n in 0..FRAMES {
        liar.queue_frame(&frame(destination(n), foreign(n), n, LEN));
        if n % BATCH == BATCH - 1 {
            liar.driver.flush(0);
        }
    }
    // Under its own name it is heard, and before that nothing was.
    liar.send(mac(2), 7);
    liar.send(mac(3), 8);
    liar.send(BROADCAST, 9);
    for (nic, numbers) in others.iter_mut().zip([[7, 9], [8, 9]]) {
        // The group has a socket of its own, so either may come first.
        let mut got = [(); 2].map(|()| nic.receive(mac(1)));
        got.sort_unstable();
        assert_eq!(got, numbers);
        nic.assert_silent();
    }
    wait_until("all are counted", SOON, || {
        let counters = liar.counters(&net.varpds[0]);
        counters.get(VifCounter::tx_frames) == 3
    });
    let counters = liar.counters(&net.varpds[0]);
    assert_eq!(counters.get(VifCounter::tx_drop_source), u64::from(FRAMES));
    assert_eq!(counters.sum("tx_drop_"), u64::from(FRAMES), "{counters:?}");
    assert_eq!(counters.get(VifCounter::tx_stamped), 0);
    for (nic, varpd) in others.iter().zip(&net.varpds) {
        let counters = nic.counters(varpd);
        assert_eq!(counters.get(VifCounter::rx_frames), 2);
        assert_eq!(counters.sum("rx_drop_"), 0);
    }
    step(&format!("{FRAMES} frames dropped and counted, none received"));
}
