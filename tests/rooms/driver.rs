//! A driver with a ring each way, in memory that it shares with the guest side.

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vnet::guest::MODERN_HEADER_LEN;
use vnet::vhost_user::vring::GuestMemory;

const SIZE: u16 = 16;
/// Offsets in a ring's memory.
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
/// Where rings and their buffers begin.
const TX: u64 = 0x10000;
const RX: u64 = 0x20000;
const BUFFERS: u64 = 0x4000;
/// Length of a buffer, in bytes.
const BUFFER: u64 = 0x800;
const WRITE: u16 = 2;

pub(crate) struct Driver {
    pub(crate) memory: GuestMemory,
    pub(crate) tx: Queue,
    pub(crate) rx: Queue,
    offered: [u16; 2],
    seen: u16,
}

impl Driver {
    pub(crate) fn new() -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("memory");
        let queue = |base| {
            let mut queue = Queue::new(SIZE).expect("a queue");
            queue.try_set_desc_table_address(GuestAddress(base)).expect("aligned");
            queue.try_set_avail_ring_address(GuestAddress(base + AVAIL)).expect("aligned");
            queue.try_set_used_ring_address(GuestAddress(base + USED)).expect("aligned");
            queue.set_ready(true);
            queue
        };
        Self { memory, tx: queue(TX), rx: queue(RX), offered: [0; 2], seen: 0 }
    }

    fn write<T: vm_memory::ByteValued>(&self, value: T, at: u64) {
        self.memory.write_obj(value, GuestAddress(at)).expect("in memory");
    }

    fn offer(&mut self, ring: u64, len: usize, flags: u16) -> u64 {
        let index = self.offered[usize::from(ring == RX)];
        let slot = u64::from(index % SIZE);
        let buffer = ring + BUFFERS + slot * BUFFER;
        self.write(buffer, ring + 16 * slot);
        self.write(u32::try_from(len).expect("short"), ring + 16 * slot + 8);
        self.write(flags, ring + 16 * slot + 12);
        self.write(index % SIZE, ring + AVAIL + 4 + 2 * slot);
        self.write(index.wrapping_add(1), ring + AVAIL + 2);
        self.offered[usize::from(ring == RX)] = index.wrapping_add(1);
        buffer
    }

    /// Has a frame sent, without offloads.
    pub(crate) fn send(&mut self, frame: &[u8]) {
        let bytes = [&[0; MODERN_HEADER_LEN][..], frame].concat();
        let buffer = self.offer(TX, bytes.len(), 0);
        self.memory.write_slice(&bytes, GuestAddress(buffer)).expect("in memory");
    }

    /// Makes a receive buffer available.
    pub(crate) fn add_buffer(&mut self) {
        self.offer(RX, BUFFER as usize, WRITE);
    }

    /// The frames that the device has put into receive buffers since the last call.
    pub(crate) fn received(&mut self) -> Vec<Vec<u8>> {
        let end: u16 = self.memory.read_obj(GuestAddress(RX + USED + 2)).expect("in memory");
        let mut frames = Vec::new();
        while self.seen != end {
            let entry = RX + USED + 4 + 8 * u64::from(self.seen % SIZE);
            let head: u32 = self.memory.read_obj(GuestAddress(entry)).expect("in memory");
            let len: u32 = self.memory.read_obj(GuestAddress(entry + 4)).expect("in memory");
            let mut bytes = vec![0; len as usize];
            let buffer = RX + BUFFERS + u64::from(head) * BUFFER;
            self.memory.read_slice(&mut bytes, GuestAddress(buffer)).expect("in memory");
            frames.push(bytes.split_off(MODERN_HEADER_LEN));
            self.seen = self.seen.wrapping_add(1);
        }
        frames
    }
}
