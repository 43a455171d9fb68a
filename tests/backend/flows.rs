//! Flows between guests with several queue pairs.
//!
//! ```text
//!     guest 1: two queue pairs       guest 2: two queue pairs
//!         |                             |
//!       host a                        host b
//! ```
//!
//! The guest keeps each flow on one of its queue pairs; it has to arrive on one, in order, and all
//! queue pairs of the receiver are to have their share.

use std::collections::BTreeMap;
use std::time::Duration;

use vnet::metrics::VifCounter;

use crate::driver::{Options, request};
use crate::nic::{Nic, frame, mac, number, vif};
use crate::support::netns::Family;
use crate::support::{step, wait_until};
use crate::{Net, SOON};

const FLOWS: u32 = 64;
/// Frames of each flow.
const FRAMES: u32 = 50;
/// Flow f has the numbers from f times this on.
const BASE: u32 = 10_000;
/// Those of one length share a message, the short ones a datagram.
const LENS: [usize; 4] = [60, 60, 1400, 700];

/// A NIC with two queue pairs.
fn wide(name: &str, number: u8, net: &Net, host: usize) -> Nic {
    let options = Options { pairs: 2, ..Nic::options() };
    let further = ["--queue-pairs", "2"];
    Nic::start_with(name, vif(42, number), &net.varpds[host], options, &further)
}

/// What has arrived: for each flow the pair, and the next number.
#[derive(Default)]
struct Arrived(BTreeMap<u32, (usize, u32)>);

impl Arrived {
    /// Takes all that is there.
    fn take(&mut self, from: [u8; 6], to: &mut Nic) {
        for pair in 0..2 {
            while let Some((_, frame)) = to.driver.recv_packet(pair, Duration::ZERO) {
                let number = number(&frame, from);
                let flow = self.0.entry(number / BASE).or_insert((pair, 0));
                assert_eq!(
                    *flow,
                    (pair, number % BASE),
                    "flow {}: its pair, in order",
                    number / BASE
                );
                flow.1 += 1;
            }
        }
    }

    /// How many flows arrived on each pair.
    fn shares(&self) -> [usize; 2] {
        [0, 1].map(|n| self.0.values().filter(|(pair, _)| *pair == n).count())
    }
}

/// All flows send all of their frames, each on the pair that it is on; the shares of the receiver's
/// pairs.
fn pass(from: &mut Nic, to: &mut Nic) -> [usize; 2] {
    let mut arrived = Arrived::default();
    for n in 0..FRAMES {
        for flow in 0..FLOWS {
            let len = LENS[(flow + n) as usize % LENS.len()];
            let sent = frame(to.mac(), from.mac(), flow * BASE + n, len);
            let pair = flow as usize % 2;
            wait_until("room in the ring", SOON, || from.driver.queue_frame(pair, &sent));
        }
        (0..2).for_each(|pair| from.driver.flush(pair));
        wait_until("all frames of a round", SOON, || {
            arrived.take(from.mac(), to);
            arrived.0.len() == FLOWS as usize && arrived.0.values().all(|(_, next)| *next > n)
        });
    }
    arrived.shares()
}

/// A frame of each flow, wherever it arrives; the shares of the receiver's pairs. They change while
/// its pairs start, each when its first kick is seen.
fn probe(from: &mut Nic, to: &mut Nic) -> [usize; 2] {
    for flow in 0..FLOWS {
        let sent = frame(to.mac(), from.mac(), flow, 60);
        wait_until("room in the ring", SOON, || from.driver.queue_frame(flow as usize % 2, &sent));
    }
    (0..2).for_each(|pair| from.driver.flush(pair));
    let mut shares = [0; 2];
    wait_until("all frames", SOON, || {
        for (pair, share) in shares.iter_mut().enumerate() {
            while to.driver.recv_packet(pair, Duration::ZERO).is_some() {
                *share += 1;
            }
        }
        shares.iter().sum::<usize>() == FLOWS as usize
    });
    shares
}

/// Stops a queue pair, as a guest does that needs fewer, or starts it again.
fn enable(nic: &mut Nic, pair: u32, on: bool) {
    for ring in [2 * pair, 2 * pair + 1] {
        nic.driver.control.set_ring(request::SET_VRING_ENABLE, ring, on.into()).unwrap();
        nic.driver.queue(ring as usize).kick();
    }
}

const HALF: [usize; 2] = [FLOWS as usize / 2; 2];

fn flows_are_spread(family: Family) {
    let what = format!("flows between guests with two queue pairs, {family:?}");
    let Some(mut net) = Net::with(&what, 2, family, "") else { return };
    let mut one = wide("g1", 1, &net, 0);
    let mut two = wide("g2", 2, &net, 1);
    for _ in 0..2 {
        assert_eq!(pass(&mut one, &mut two), HALF);
        assert_eq!(pass(&mut two, &mut one), HALF);
    }
    step("half of the flows on each pair, both ways");

    net.varpds[1].kill();
    net.varpds[1].start_again();
    two.wait_state("active", &net.varpds[1]);
    assert_eq!(pass(&mut one, &mut two), HALF);
    two.backend.process.kill();
    two.backend.start_again();
    two.reconnect();
    two.wait_state("active", &net.varpds[1]);
    wait_until("both pairs run", SOON, || probe(&mut one, &mut two) == HALF);
    assert_eq!(pass(&mut one, &mut two), HALF);
    step("the same when varpd, and then the backend, has come back");

    enable(&mut two, 1, false);
    assert_eq!(pass(&mut one, &mut two), [FLOWS as usize, 0]);
    enable(&mut two, 1, true);
    wait_until("the second pair runs", SOON, || probe(&mut one, &mut two) == HALF);
    assert_eq!(pass(&mut one, &mut two), HALF);
    step("all on the first pair while the second did not run");

    for (nic, host) in [(&one, 0), (&two, 1)] {
        let counters = nic.counters(&net.varpds[host]);
        // What announced the guest, and comes back.
        let own = counters.get(VifCounter::rx_drop_own);
        let dropped = (counters.sum("tx_drop_"), counters.sum("rx_drop_"));
        assert_eq!(dropped, (0, own), "{counters:?}");
    }
}

#[test]
fn flows_are_spread_and_stay_on_one_pair_on_ipv4() {
    flows_are_spread(Family::V4);
}

#[test]
fn flows_are_spread_and_stay_on_one_pair_on_ipv6() {
    flows_are_spread(Family::V6);
}

/// Guests with one queue pair send from their care-of addresses, and so from ports in a row here.
#[test]
fn many_guests_share_the_pairs_of_one() {
    let config = "ports = '40000-40063'\n";
    let Some(net) = Net::with("flows from many guests", 2, Family::V4, config) else { return };
    let mut two = wide("g2", 2, &net, 1);
    let mut shares = [0; 2];
    for n in 11..19 {
        let mut from = Nic::start(&format!("g{n}"), vif(42, n), &net.varpds[0]);
        let mut arrived = Arrived::default();
        for number in 0..FRAMES {
            from.send(mac(2), number);
            wait_until("the frame", SOON, || {
                arrived.take(mac(n), &mut two);
                arrived.0.get(&0).is_some_and(|(_, next)| *next == number + 1)
            });
        }
        let [first, second] = arrived.shares();
        shares = [shares[0] + first, shares[1] + second];
    }
    assert_eq!(shares, [4, 4]);
    assert_eq!(two.counters(&net.varpds[1]).get(VifCounter::rx_frames), 8 * u64::from(FRAMES));
}
