//! Several queue pairs, and guests that are slow to give receive buffers.
//!
//! ```text
//!     guest 1                guest 2: two queue pairs, or a slow driver
//!         |                     |
//!       host a                host b
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use vnet::metrics::VifCounter;

use crate::driver::Options;
use crate::nic::{BROADCAST, Nic, frame, mac, number, vif};
use crate::support::{step, wait_until};
use crate::{Net, QUIET, SOON};

#[test]
fn frames_pass_on_all_queue_pairs_once() {
    let Some(net) = Net::new("two queue pairs", 2) else { return };
    // Datagrams are spread by their sender: with four, both pairs get some in 7 of 8 runs, and
    // what is asked of them holds in any case.
    let senders: Vec<Nic> =
        (11..15).map(|n| Nic::start(&format!("g{n}"), vif(42, n), &net.varpds[0])).collect();
    let options = Options { pairs: 2, ..Nic::options() };
    let further = ["--queue-pairs", "2"];
    let mut wide = Nic::start_with("wide", vif(42, 2), &net.varpds[1], options, &further);
    let mut senders = senders;
    both_pairs_send(&mut wide, &mut senders);
    both_pairs_receive(&mut wide, &mut senders);
    let counters = wide.counters(&net.varpds[1]);
    assert_eq!(counters.sum("tx_drop_"), 0);
    let own = counters.get(VifCounter::rx_drop_own);
    assert_eq!((counters.sum("rx_drop_"), own), (200, 200), "{counters:?}");
}

/// A thousand frames on each pair to one guest, and a hundred to all.
fn both_pairs_send(wide: &mut Nic, others: &mut [Nic]) {
    let mut arrived = BTreeMap::new();
    for n in 0..1100 {
        let to = if n < 1000 { mac(11) } else { BROADCAST };
        for pair in 0..2 {
            let sent = frame(to, mac(2), 10_000 * pair as u32 + n, 100);
            wait_until("room in the ring", SOON, || wide.driver.queue_frame(pair, &sent));
            wide.driver.flush(pair);
            *arrived.entry(others[0].receive(mac(2))).or_insert(0) += 1;
        }
    }
    let expected = (0..2).flat_map(|pair| (0..1100).map(move |n| (10_000 * pair + n, 1)));
    assert_eq!(arrived, expected.collect(), "each frame of each pair, once");
    for nic in &mut others[1..] {
        for n in 0..200 {
            let pair = n % 2;
            assert_eq!(nic.receive(mac(2)), 10_000 * pair + 1000 + n / 2);
        }
    }
    others.iter_mut().for_each(Nic::assert_silent);
}

/// Five hundred frames of each sender, and a hundred to all, arrive once and in order; a sender's
/// own always on the same pair.
fn both_pairs_receive(wide: &mut Nic, senders: &mut [Nic]) {
    let mut used = [0; 2];
    for sender in senders.iter_mut() {
        for (frames, to) in [(0..500, mac(2)), (500..600, BROADCAST)] {
            sender.send(to, frames.start);
            let (pair, first) = receive_on_any(wide, sender.mac());
            assert_eq!(first, frames.start);
            for n in frames.start + 1..frames.end {
                sender.send(to, n);
                let (_, got) = wide.driver.recv_packet(pair, SOON).expect("on the same pair");
                assert_eq!(number(&got, sender.mac()), n);
            }
            used[pair] += frames.len();
        }
    }
    assert!(receive_now(wide).is_none());
    step(&format!("frames received on the pairs: {used:?}"));
}

/// The frame that waits on one of two pairs, if there is one.
pub(crate) fn receive_now(nic: &mut Nic) -> Option<(usize, Vec<u8>)> {
    (0..2).find_map(|pair| Some((pair, nic.driver.recv_packet(pair, Duration::ZERO)?.1)))
}

fn receive_on_any(nic: &mut Nic, from: [u8; 6]) -> (usize, u32) {
    let mut found = None;
    wait_until("a frame on any pair", SOON, || {
        found = receive_now(nic);
        found.is_some()
    });
    let (pair, frame) = found.unwrap();
    (pair, number(&frame, from))
}

/// Frames that wait while the guest has no buffers: as many as the socket buffer holds.
#[test]
fn a_slow_guest_gets_frames_in_order_and_losses_are_counted() {
    let Some(net) = Net::new("a slow guest", 2) else { return };
    let mut sender = Nic::start("g1", vif(42, 1), &net.varpds[0]);
    let options = Options { queue_size: 64, ..Nic::options() };
    let mut slow = Nic::start_with("g2", vif(42, 2), &net.varpds[1], options, &[]);

    // A thousand wait behind a ring of 64 buffers, and none is lost.
    sender.introduce(&mut slow);
    for n in 0..1000 {
        sender.send(mac(2), n);
    }
    for n in 0..1000 {
        assert_eq!(slow.receive(mac(1)), n);
    }
    slow.assert_silent();
    assert_eq!(slow.counters(&net.varpds[1]).sum("rx_drop_"), 0);

    // More than the socket buffer holds: the first ones arrive, and the rest is counted.
    const FRAMES: u32 = 60_000;
    for n in 0..FRAMES {
        sender.send_frame(&frame(mac(2), mac(1), n, 1400));
    }
    sender.wait_sent();
    let left = sender.counters(&net.varpds[0]);
    assert_eq!(left.get(VifCounter::tx_frames), 1001 + u64::from(FRAMES), "{left:?}");
    let (mut arrived, mut next) = (0_u32, 0);
    let mut sent = FRAMES;
    // The kernel tells of its drops with the next message, so later frames are sent until one of
    // them has arrived. What it counts are messages, of which each may hold many frames.
    wait_until("a frame that was sent later has arrived", SOON, || {
        while let Some(n) = slow.try_receive(mac(1), Duration::ZERO) {
            assert!(n >= next, "in order: {n} after {next}");
            (arrived, next) = (arrived + 1, n + 1);
        }
        let done = next > FRAMES;
        if !done {
            sender.send(mac(2), sent);
            sent += 1;
        }
        done
    });
    while let Some(n) = slow.try_receive(mac(1), QUIET) {
        assert!(n >= next, "in order: {n} after {next}");
        (arrived, next) = (arrived + 1, n + 1);
    }
    let counters = slow.counters(&net.varpds[1]);
    let lost = counters.get(VifCounter::rx_drop_overflow);
    assert!(arrived < sent, "the buffer was too large for this test");
    assert!(lost > 0 && u64::from(arrived) + lost <= u64::from(sent), "{arrived} {lost} {sent}");
    assert_eq!(counters.sum("rx_drop_"), lost, "{counters:?}");
    assert_eq!(counters.get(VifCounter::rx_frames), 1001 + u64::from(arrived));
    step(&format!(
        "of {sent} frames {arrived} arrived in order, {lost} messages are counted as lost"
    ));
}
