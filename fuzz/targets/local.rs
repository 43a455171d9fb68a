//! Frames out of a lane whose writer lies, on their way into a guest: whatever they and their virtio-net
//! headers say, the guest gets frames for it with headers that it has agreed to, in its buffers and
//! nowhere else.

use std::net::SocketAddr;
use std::sync::Arc;

use vnet::guest::HeaderLayout;
use vnet::local::ends::LaneOffer;
use vnet::local::lanes::Handovers;
use vnet::metrics::{VifCounter, VifCounters};
use vnet::offload::features::Offloads;
use vnet::port::tx::SourceMac;
use vnet::port::worker::Worker;
use vnet::time::Instant;
use vnet::tunnel::endpoint::Place;
use vnet::tunnel::rx::Receiver;
use vnet::wire::{Capabilities, Mac, VifKey, VnetId};

use super::Input;
use super::guest::{Arrivals, Guest};
use super::lanes::Shared;

const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const LANE: u32 = 1;
/// Numbers of lanes as small as that are those of their events.
const LANE_EVENT: u16 = 1;

pub(crate) fn run(data: &[u8]) {
    let mut input = Input(data);
    let features = input.u64();
    let offloads = Offloads::from_features(features);
    let layout = HeaderLayout { len: 12, mergeable: features & 1 != 0 };
    let mut guest = Guest::new(&mut input);
    let counters = Arc::new(VifCounters::default());
    let key = VifKey { vnet: VnetId::new(42).expect("not 0"), mac: MAC };
    let own = SocketAddr::from(([192, 0, 2, 1], 4000));
    let receiver = Receiver { key, own, capabilities: Capabilities::NONE };
    let place = Place { receiver, group: own, max_datagram: 1472 };
    let mut worker =
        Worker::new(place, SourceMac::Stamp, Arc::clone(&counters), Arrivals::default());
    worker.set_features(layout, offloads);
    worker.local_mut().prepare(Arc::new(Handovers::default())).expect("descriptors");
    let now = Instant::from_millis(1000);
    Shared::lend(|shared| {
        let offer = LaneOffer { lane: LANE, is_read: true, addr: ([192, 0, 2, 2], 4000).into() };
        worker.open_lane(offer, shared.side(1), now);
        let mut head = 0;
        while !input.0.is_empty() && counters.get(VifCounter::lanes_failed) == 0 {
            head = put(shared, head, &mut input);
            guest.offer(&mut input);
            shared.ring(0);
            let _ = worker.lanes_rung(LANE_EVENT, now);
            // Long after the handover should have come.
            let _ = worker.receive_lanes(&mut guest.queue, &guest.memory, now);
            let later = Instant::from_millis(2000);
            let received = worker.receive_lanes(&mut guest.queue, &guest.memory, later);
            assert!(received.is_ok(), "the guest's ring is sound");
            guest.check(layout, offloads, MAC);
        }
    });
}

/// Writes an entry, or anything, and moves the head; returns where it should be next.
fn put(shared: &Shared, head: u32, input: &mut Input<'_>) -> u32 {
    let what = input.u8();
    let header = input.take(12);
    let frame = input.chunk().unwrap_or_default();
    // Longer than the input by a repetition of its end.
    let more = if what & 0x40 != 0 { usize::from(input.u16()) } else { 0 };
    let len = match what & 0x30 {
        0x30 => usize::from(input.u16()) * 2,
        _ => frame.len() + more,
    };
    let mut entry = u32::try_from(len).expect("17 bits").to_ne_bytes().to_vec();
    entry.extend_from_slice(header);
    entry.resize(16, 0);
    entry.extend_from_slice(frame);
    shared.write(head as usize, &entry);
    let span = u32::try_from((16 + len).next_multiple_of(16)).expect("17 bits");
    let next = head.wrapping_add(span);
    let claimed = if what & 0x0f == 0x0f { u32::from(input.u16()) * 16 } else { next };
    shared.store(super::lanes::HEAD, claimed);
    next
}
