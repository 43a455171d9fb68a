//! A driver without a device: rings whose descriptors stay as they are and are offered again.

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vnet::vhost_user::vring::GuestMemory;

pub(crate) const VIRTIO_LEN: usize = 12;

const SIZE: u16 = 1024;
const RX_BUFFER: u64 = 4096;
/// A ring's table, available and used ring, and the room between rings, in bytes.
const AVAIL: u64 = 0x4000;
const USED: u64 = 0x5000;
const RING: u64 = 0x8000;
/// Where buffers begin.
const DATA: u64 = 0x10000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

pub(crate) struct Driver {
    pub(crate) memory: GuestMemory,
    pub(crate) tx: Queue,
    pub(crate) rx: Queue,
    tx_avail: u16,
    rx_avail: u16,
}

impl Driver {
    pub(crate) fn new() -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 16 << 20)]).expect("memory");
        let queue = |base| {
            let mut queue = Queue::new(SIZE).expect("a queue");
            queue.try_set_desc_table_address(GuestAddress(base)).expect("aligned");
            queue.try_set_avail_ring_address(GuestAddress(base + AVAIL)).expect("aligned");
            queue.try_set_used_ring_address(GuestAddress(base + USED)).expect("aligned");
            queue.set_ready(true);
            queue
        };
        let (tx, rx) = (queue(0), queue(RING));
        Self { memory, tx, rx, tx_avail: 0, rx_avail: 0 }
    }

    fn describe(&self, ring: u64, slot: u16, at: u64, len: usize, flags: u16) {
        let entry = ring + 16 * u64::from(slot);
        let write = |value: u64, at| self.memory.write_obj(value, GuestAddress(at));
        let rest = len as u64 | u64::from(flags) << 32 | u64::from(slot + 1) << 48;
        write(at, entry).and_then(|()| write(rest, entry + 8)).expect("in memory");
    }

    /// Writes `count` copies of a frame, each in pieces of these lengths and a last one, and puts
    /// their heads into the available ring.
    pub(crate) fn fill_tx(&mut self, bytes: &[u8], pieces: &[usize], count: u16) {
        let (mut slot, mut at) = (0, DATA);
        let mut heads = Vec::new();
        for _ in 0..count {
            heads.push(slot);
            self.memory.write_slice(bytes, GuestAddress(at)).expect("in memory");
            let mut left = bytes.len();
            for &len in pieces {
                self.describe(0, slot, at, len, NEXT);
                (slot, at, left) = (slot + 1, at + len as u64, left - len);
            }
            self.describe(0, slot, at, left, 0);
            (slot, at) = (slot + 1, (at + left as u64).next_multiple_of(64));
        }
        self.set_heads(0, &heads);
    }

    /// Fills the receive ring.
    pub(crate) fn fill_rx(&mut self) {
        for slot in 0..SIZE {
            let at = DATA + u64::from(slot) * RX_BUFFER;
            self.describe(RING, slot, at, RX_BUFFER as usize, WRITE);
        }
        self.set_heads(RING, &(0..SIZE).collect::<Vec<u16>>());
        self.set_avail(RING, SIZE);
        self.rx_avail = SIZE;
    }

    /// The same heads again and again: as many as divide the ring.
    fn set_heads(&self, ring: u64, heads: &[u16]) {
        for (slot, head) in (0..u64::from(SIZE)).zip(heads.iter().cycle()) {
            self.memory
                .write_obj(*head, GuestAddress(ring + AVAIL + 4 + 2 * slot))
                .expect("in memory");
        }
    }

    fn set_avail(&self, ring: u64, index: u16) {
        self.memory.write_obj(index, GuestAddress(ring + AVAIL + 2)).expect("in memory");
    }

    /// Offers so many frames.
    pub(crate) fn offer_tx(&mut self, count: u16) {
        self.tx_avail = self.tx_avail.wrapping_add(count);
        self.set_avail(0, self.tx_avail);
    }

    /// Offers again what was used.
    pub(crate) fn offer_rx(&mut self) {
        let used: u16 = self.memory.read_obj(GuestAddress(RING + USED + 2)).expect("in memory");
        self.rx_avail = used.wrapping_add(SIZE);
        self.set_avail(RING, self.rx_avail);
    }
}
