//! Random chains, valid and hostile, through the fast path and the reference: the same verdicts,
//! the same bytes, the same rings afterwards.
//!
//! ```text
//!   0                      0x2_0000       0x3_0000      0x5_0000    0x5_8000      far away
//!   |  buffers, tables ...  |  ... adjoin  |  not there  |  buffers  |  not there  |  the ring  |
//!   +------ region --------+--- region ---+             +-- region -+             +-- region --+
//! ```
//!
//! No buffer lies in the ring: there, the moment at which used entries are written would show.
//! Two things the fast path refuses and the crate allows are not generated: an indirect descriptor
//! with a next one, and more than [`super::chain::MAX_LINKS`] descriptors in a table.

use std::collections::BTreeMap;

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::reference;
use super::*;
use crate::guest::deliver::{Deliverer, Delivery};
use crate::guest::transmit::{self, TransmitFrame};
use crate::guest::{HeaderLayout, Malformed};
use crate::offload::header::Header;
use crate::sys::iovec::{Gather, IoVec};

/// Chains in an ordinary run; `VNET_RING_CHAINS` asks for another number.
const CHAINS: usize = 1_000_000;

const REGIONS: [(GuestAddress, usize); 4] = [
    (GuestAddress(0), 0x2_0000),
    (GuestAddress(0x2_0000), 0x1_0000),
    (GuestAddress(0x5_0000), 0x8000),
    (GuestAddress(TABLE), 0x4000),
];
const TABLE: u64 = 0x1d87_65a9_0000;
const AVAIL: u64 = TABLE + 0x1000;
const USED: u64 = TABLE + 0x2000;
const MAX_SIZE: u16 = 128;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Marsaglia's xorshift: the same numbers for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// From 0 to `end` - 1.
    fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 16) % end
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn address(&mut self) -> u64 {
        let near = |random: &mut Self, at: u64| at - 40 + random.below(80);
        match self.below(24) {
            0 => near(self, 0x3_0000),
            1 => near(self, 0x5_8000),
            2 => near(self, 0x5_0000),
            3..=5 => near(self, 0x2_0000),
            6..=8 => 0x5_0000 + self.below(0x7000),
            9 if self.one_in(4) => self.next(),
            9 if self.one_in(4) => u64::MAX - self.below(100),
            _ => self.below(0x2_4000),
        }
    }

    fn len(&mut self) -> u32 {
        let len = match self.below(40) {
            0 => 0,
            1 => self.below(0x1_2000),
            2 if self.one_in(4) => self.next(),
            2 if self.one_in(4) => u64::from(u32::MAX),
            3..=8 => 8 + self.below(20),
            9..=14 => 1500 + self.below(100),
            _ => self.below(300),
        };
        len as u32
    }

    /// A descriptor at `index` of a table of `len`: address, length, flags, next.
    fn descriptor(&mut self, index: u16, len: u16, write: bool) -> (u64, u32, u16, u16) {
        let direction = if write != self.one_in(60) { WRITE } else { 0 };
        let next = match self.below(40) {
            0 => index,
            1 => self.next() as u16,
            2 => len,
            3..=5 => self.below(u64::from(len).max(1)) as u16,
            _ => index.wrapping_add(1),
        };
        let link = if self.below(5) < 2 { NEXT } else { 0 };
        (self.address(), self.len(), direction | link, next)
    }
}

/// One of two copies of the same guest.
struct Bed {
    memory: GuestMemory,
    queue: Queue,
}

impl Bed {
    fn new() -> Self {
        let memory = GuestMemory::from_ranges(&REGIONS).unwrap();
        let mut queue = Queue::new(MAX_SIZE).unwrap();
        queue.try_set_desc_table_address(GuestAddress(TABLE)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(AVAIL)).unwrap();
        queue.try_set_used_ring_address(GuestAddress(USED)).unwrap();
        queue.set_ready(true);
        Self { memory, queue }
    }

    /// Reads a region into a buffer that is long enough.
    fn read<'b>(&self, region: usize, buffer: &'b mut [u8]) -> &'b [u8] {
        let (start, len) = REGIONS[region];
        self.memory.read_slice(&mut buffer[..len], start).unwrap();
        &buffer[..len]
    }
}

/// The two, and what has become of their chains.
struct Pair {
    random: Random,
    slow: Bed,
    fast: Bed,
    outcomes: BTreeMap<&'static str, usize>,
    chains: usize,
    /// Where regions are compared, each as long as the longest.
    buffers: [Vec<u8>; 2],
}

impl Pair {
    fn new(seed: u64) -> Self {
        let (slow, fast) = (Bed::new(), Bed::new());
        let longest = REGIONS.iter().map(|(_, len)| *len).max().unwrap();
        let (random, outcomes) = (Random(seed), BTreeMap::new());
        Self {
            random,
            slow,
            fast,
            outcomes,
            chains: 0,
            buffers: [(); 2].map(|()| vec![0; longest]),
        }
    }

    fn write(&self, bytes: &[u8], at: u64) {
        for bed in [&self.slow, &self.fast] {
            // What the generator places outside of memory is not written.
            let _ = bed.memory.write_slice(bytes, GuestAddress(at));
        }
    }

    fn write_descriptor(&self, table: u64, index: u16, parts: (u64, u32, u16, u16)) {
        let (address, len, flags, next) = parts;
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.write(&bytes, table.wrapping_add(16 * u64::from(index)));
    }

    /// Another ring: size, notifications, a new table, and chains on offer.
    fn renew(&mut self, write: bool) {
        let size = 1 << self.random.below(8);
        let event_idx = self.random.one_in(2);
        let index = self.random.next() as u16;
        for queue in [&mut self.slow.queue, &mut self.fast.queue] {
            queue.set_size(size);
            queue.set_event_idx(event_idx);
            queue.set_next_avail(index);
            queue.set_next_used(index);
        }
        for slot in 0..size {
            let (mut address, mut len, mut flags, next) = self.random.descriptor(slot, size, write);
            if self.random.one_in(6) {
                (address, len) = self.write_table(write);
                flags = INDIRECT | flags & WRITE;
            }
            self.write_descriptor(TABLE, slot, (address, len, flags, next));
            if !write && flags & INDIRECT == 0 && !self.random.one_in(8) {
                // Most begin with a header that asks for nothing.
                self.write(&[0; 2], address);
            }
        }
        let offered = match self.random.below(200) {
            0 => size + 1 + self.random.below(100) as u16,
            1 => self.random.next() as u16,
            _ => self.random.below(u64::from(size) + 1) as u16,
        };
        for slot in 0..size {
            let is_wild = self.random.one_in(1000);
            let head = if is_wild { self.random.next() } else { self.random.below(size.into()) };
            self.write(&(head as u16).to_le_bytes(), AVAIL + 4 + 2 * u64::from(slot));
        }
        self.write(&index.wrapping_add(offered).to_le_bytes(), AVAIL + 2);
    }

    /// An indirect table somewhere; returns its address and the length it is said to have.
    fn write_table(&mut self, write: bool) -> (u64, u32) {
        let address = self.random.address();
        let count = self.random.below(9) as u16;
        for index in 0..count {
            let mut parts = self.random.descriptor(index, count, write);
            if self.random.one_in(50) {
                parts.2 |= INDIRECT;
            }
            self.write_descriptor(address, index, parts);
            if index == 0 && !write {
                self.write(&[0; 2], parts.0);
            }
        }
        let len = 16 * u32::from(count);
        match self.random.below(30) {
            0 => (address, len + 1 + self.random.below(15) as u32),
            1 => (address, self.random.len()),
            2 => (address, 16 * (0xffff + self.random.below(2) as u32)),
            _ => (address, len),
        }
    }

    fn count(&mut self, outcome: &'static str) {
        self.chains += 1;
        *self.outcomes.entry(outcome).or_default() += 1;
    }

    /// Both queues and all of what may have been written are the same.
    fn assert_same(&mut self, has_failed: bool) {
        let indices = |queue: &Queue| (queue.next_avail(), queue.next_used());
        if !has_failed {
            assert_eq!(indices(&self.fast.queue), indices(&self.slow.queue));
        }
        let [fast, slow] = &mut self.buffers;
        for region in 0..REGIONS.len() {
            let is_same = self.fast.read(region, fast) == self.slow.read(region, slow);
            assert!(is_same, "region {region}");
        }
    }

    fn transmit(&mut self) {
        let header_len = if self.random.one_in(2) { 12 } else { 10 };
        let (expected, slow_fails) = transmit_slowly(&mut self.slow, header_len);
        let (found, fast_fails) = transmit_fast(&mut self.fast, header_len);
        assert_eq!(fast_fails, slow_fails);
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.into_iter().zip(expected) {
            assert!(found == expected, "{:?} is not {:?}", outline(&found), outline(&expected));
            self.count(match found {
                Ok(_) => "sent",
                Err(Malformed) => "malformed",
            });
        }
        if fast_fails {
            self.count("broken");
        }
        self.assert_same(fast_fails);
    }

    /// Delivers pieces of `content` until there is no more room.
    fn receive(&mut self, content: &[u8]) {
        let layout = match self.random.below(4) {
            0 => HeaderLayout { len: 10, mergeable: false },
            1 => HeaderLayout { len: 12, mergeable: false },
            _ => HeaderLayout { len: 12, mergeable: true },
        };
        let mut ring = RingView::new(&mut self.fast.queue, &self.fast.memory).unwrap();
        let mut deliverer = Deliverer::default();
        let mut has_failed = false;
        let mut deliveries = Vec::new();
        for _ in 0..1000 {
            let most = if self.random.one_in(20) { 0xfff0 } else { 400 };
            let start = self.random.below(16) as usize;
            let frame = &content[start..start + 14 + self.random.below(most - 14) as usize];
            let Bed { queue, memory } = &mut self.slow;
            let expected = reference::deliver(queue, memory, frame, layout).ok();
            let parts = [&frame[..9], &frame[9..]].map(IoVec::from_slice);
            let found = deliverer.deliver(&mut ring, &Header::PLAIN, &parts, layout).ok();
            assert_eq!(found, expected);
            deliveries.push(found);
            if let Some(Delivery::NoBuffers { seen }) = found {
                ring.publish().unwrap();
                let more = ring.enable_kicks_beyond(seen).unwrap();
                assert_eq!(more, reference::notify_beyond(queue, memory, seen));
                assert!(!more);
                break;
            }
            has_failed = found.is_none();
            if has_failed || (found == Some(Delivery::TooLong) && self.random.one_in(4)) {
                break;
            }
        }
        ring.publish().unwrap();
        for delivery in deliveries {
            let name = match delivery {
                Some(Delivery::NoBuffers { .. }) => "no buffers",
                Some(Delivery::TooLong) => "too long",
                Some(Delivery::BadChain) => "bad chain",
                Some(Delivery::Done) => "done",
                None => "broken",
            };
            self.count(name);
        }
        self.assert_same(has_failed);
    }
}

/// The frame of each chain, or its fault; and whether the ring is broken.
type Sent = (Vec<Result<Vec<u8>, Malformed>>, bool);

fn outline(sent: &Result<Vec<u8>, Malformed>) -> Result<usize, Malformed> {
    sent.as_ref().map(Vec::len).map_err(|&fault| fault)
}

fn transmit_slowly(bed: &mut Bed, header_len: usize) -> Sent {
    let Bed { queue, memory } = bed;
    queue.disable_notification(memory).unwrap();
    let Ok(chains) = queue.iter(&*memory) else { return (Vec::new(), true) };
    let chains: Vec<_> = chains.collect();
    let mut sent = Vec::new();
    for chain in chains {
        let head = chain.head_index();
        let frame = reference::read_frame(memory, chain, header_len);
        if queue.add_used(memory, head, 0).is_err() {
            return (sent, true);
        }
        sent.push(frame);
    }
    assert!(!queue.enable_notification(memory).unwrap());
    (sent, false)
}

fn transmit_fast(bed: &mut Bed, header_len: usize) -> Sent {
    let mut ring = RingView::new(&mut bed.queue, &bed.memory).unwrap();
    ring.disable_kicks().unwrap();
    let mut sent = Vec::new();
    let mut pieces = Vec::new();
    let has_failed = loop {
        let head = match ring.pop() {
            Ok(Some(head)) => head,
            Ok(None) => break false,
            Err(_) => break true,
        };
        let mut frame = TransmitFrame::EMPTY;
        let read = transmit::read_frame(&mut ring, head, header_len, &mut pieces, &mut frame);
        sent.push(read.map(|()| {
            let mut bytes = vec![0; frame.len];
            assert!(Gather::new(&pieces[frame.pieces.clone()], frame.skip).copy_to(&mut bytes));
            assert_eq!(bytes[..14], *frame.ethernet());
            bytes
        }));
        ring.push_used(head, 0).unwrap();
    };
    ring.publish().unwrap();
    if !has_failed {
        assert!(!ring.enable_kicks().unwrap());
    }
    (sent, has_failed)
}

#[test]
fn random_chains_fare_as_in_the_reference() {
    let chains = std::env::var("VNET_RING_CHAINS").ok().and_then(|text| text.parse().ok());
    let chains = chains.unwrap_or(CHAINS);
    let content: Vec<u8> = (0..0x1_0000).map(|n: u32| (n * 7 + n / 256) as u8).collect();
    let mut pair = Pair::new(0x2545_f491_4f6c_dd1d);
    for (start, _) in REGIONS {
        pair.write(&content[..0x4000], start.0);
    }
    while pair.chains < chains {
        let write = pair.random.one_in(2);
        pair.renew(write);
        if write { pair.receive(&content) } else { pair.transmit() }
    }
    assert_eq!(pair.outcomes.len(), 7, "{:?}", pair.outcomes);
    for (name, count) in pair.outcomes {
        assert!(count >= chains / 2000, "{count} times {name} is too seldom to mean anything");
    }
}
