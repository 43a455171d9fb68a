//! A guest that offers sound buffers and looks at what it gets, and what arrives for it: no target, but
//! what some of them need.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vnet::guest::HeaderLayout;
use vnet::offload::features::Offloads;
use vnet::sys::mmsg::{Message, ReceiveBatch};
use vnet::sys::train::{self, IoVecMut, Train};
use vnet::underlay::{Port, Underlay};
use vnet::vhost_user::vring::GuestMemory;
use vnet::wire::Mac;

use super::Input;

const QUEUE_SIZE: u16 = 16;
/// Where the ring is: a descriptor table, an available and a used ring.
const RING: [u64; 3] = [0, 0x100, 0x180];
const BUFFERS: u64 = 0x400;
/// Bytes between two buffers, and behind what is written to one, which stay zero.
const GUARD: usize = 64;
/// Lengths of buffers: less than a frame, a frame, a page, the longest frame with its header.
const LENS: [usize; 4] = [60, 1530, 4096, 65_562];
/// A descriptor that the device may write to.
const WRITE: u16 = 2;
/// Bits and types of a virtio-net header (virtio 1.2, 5.1.6).
const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const ECN: u8 = 0x80;

/// An underlay from which comes what the target puts in, and where nothing goes.
#[derive(Default)]
pub(crate) struct Arrivals(pub(crate) VecDeque<Arrived>);

/// A message: at which port, from where, its bytes, and the length of each datagram but the last.
pub(crate) struct Arrived {
    pub(crate) port: Port,
    pub(crate) from: SocketAddr,
    pub(crate) bytes: Vec<u8>,
    pub(crate) segment: usize,
}

impl Arrived {
    fn train(&self) -> Train {
        Train { from: self.from, len: self.bytes.len(), segment: self.segment }
    }
}

impl Underlay for Arrivals {
    fn send(&mut self, messages: &[Message<'_>]) -> io::Result<usize> {
        Ok(messages.len())
    }

    fn receive(&mut self, port: Port, batch: &mut ReceiveBatch) -> io::Result<()> {
        batch.clear();
        while let Some(next) = self.0.front().filter(|next| next.port == port)
            && batch.push(next.from, &next.bytes, next.segment)
        {
            self.0.pop_front();
        }
        if batch.is_empty() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    }

    fn peek(&mut self, port: Port, head: &mut [u8]) -> io::Result<Train> {
        let next = self.0.front().filter(|next| next.port == port);
        let next = next.ok_or(io::ErrorKind::WouldBlock)?;
        IoVecMut::from_slice(head).fill(&next.bytes);
        Ok(next.train())
    }

    fn take(&mut self, port: Port, parts: &mut [IoVecMut<'_>]) -> io::Result<train::Arrived> {
        if self.0.front().is_none_or(|next| next.port != port) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let next = self.0.pop_front().ok_or(io::ErrorKind::WouldBlock)?;
        let mut rest = next.bytes.as_slice();
        parts.iter_mut().for_each(|part| rest = part.fill(rest));
        Ok((next.train(), None))
    }

    fn descriptor(&self, _: Port) -> Option<RawFd> {
        None
    }
}

pub(crate) struct Guest {
    pub(crate) memory: GuestMemory,
    pub(crate) queue: Queue,
    /// Length of each buffer.
    len: usize,
    /// Descriptors that the device has, in order.
    offered: VecDeque<u16>,
    /// Descriptors that it has not.
    free: VecDeque<u16>,
    available: u16,
    used: u16,
}

impl Guest {
    /// With no buffers yet; the input says how long they will be.
    pub(crate) fn new(input: &mut Input<'_>) -> Self {
        let len = LENS[usize::from(input.u8()) % LENS.len()];
        let room = (len + GUARD) * usize::from(QUEUE_SIZE);
        let size = (usize::try_from(BUFFERS).expect("little") + room).next_multiple_of(4096);
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), size)]).expect("memory");
        let mut queue = Queue::new(QUEUE_SIZE).expect("a size");
        let [table, available, used] = RING.map(GuestAddress);
        queue.try_set_desc_table_address(table).expect("aligned");
        queue.try_set_avail_ring_address(available).expect("aligned");
        queue.try_set_used_ring_address(used).expect("aligned");
        queue.set_ready(true);
        let (offered, free) = (VecDeque::new(), (0..QUEUE_SIZE).collect());
        Self { memory, queue, len, offered, free, available: 0, used: 0 }
    }

    fn buffer(&self, descriptor: u16) -> GuestAddress {
        let at = (self.len + GUARD) * usize::from(descriptor);
        GuestAddress(BUFFERS + at as u64)
    }

    /// Offers as many buffers as the input says, if there are so many.
    pub(crate) fn offer(&mut self, input: &mut Input<'_>) {
        for _ in 0..input.u8() % 32 {
            let Some(descriptor) = self.free.pop_front() else { break };
            let mut raw = self.buffer(descriptor).0.to_le_bytes().to_vec();
            raw.extend(u32::try_from(self.len).expect("17 bits").to_le_bytes());
            raw.extend([WRITE, 0].map(u16::to_le_bytes).concat());
            let place = GuestAddress(RING[0] + 16 * u64::from(descriptor));
            self.memory.write_slice(&raw, place).expect("within memory");
            let slot = u64::from(self.available % QUEUE_SIZE);
            let place = GuestAddress(RING[1] + 4 + 2 * slot);
            self.memory.write_obj(descriptor, place).expect("within memory");
            self.available = self.available.wrapping_add(1);
            self.offered.push_back(descriptor);
        }
        let index = GuestAddress(RING[1] + 2);
        self.memory.write_obj(self.available, index).expect("within memory");
    }

    /// Takes what the device has given back and checks it; returns how many frames there were.
    pub(crate) fn check(&mut self, layout: HeaderLayout, offloads: Offloads, mac: Mac) -> usize {
        let index: u16 = self.memory.read_obj(GuestAddress(RING[2] + 2)).expect("within memory");
        let mut frames = 0;
        while self.used != index {
            let mut bytes = self.take();
            let announced = bytes.get(10..12).map_or(1, |n| u16::from_le_bytes([n[0], n[1]]));
            assert!(layout.mergeable || announced == 1);
            for _ in 1..announced {
                assert_ne!(self.used, index, "all parts of a frame are given at once");
                bytes.extend(self.take());
            }
            let (header, frame) = bytes.split_at(layout.len);
            check_frame(header, frame, offloads, mac);
            frames += 1;
        }
        // Those that come next are as they were offered.
        for descriptor in self.offered.iter().take(2) {
            let mut bytes = vec![0; self.len];
            self.memory.read_slice(&mut bytes, self.buffer(*descriptor)).expect("within memory");
            assert!(bytes.iter().all(|byte| *byte == 0), "written to what is not given back");
        }
        frames
    }

    /// The next buffer that was given back, up to its length.
    fn take(&mut self) -> Vec<u8> {
        let place = GuestAddress(RING[2] + 4 + 8 * u64::from(self.used % QUEUE_SIZE));
        let [id, len]: [u32; 2] = self.memory.read_obj(place).expect("within memory");
        let descriptor = self.offered.pop_front().expect("no more than was offered");
        assert_eq!(id, u32::from(descriptor), "in order");
        let len = usize::try_from(len).expect("32 bits");
        assert!((1..=self.len).contains(&len));
        let mut bytes = vec![0; len + GUARD];
        self.memory.read_slice(&mut bytes, self.buffer(descriptor)).expect("within memory");
        assert!(bytes[len..].iter().all(|byte| *byte == 0), "written beyond what was said");
        bytes.truncate(len);
        self.memory.write_slice(&vec![0; len], self.buffer(descriptor)).expect("within memory");
        self.free.push_back(descriptor);
        self.used = self.used.wrapping_add(1);
        bytes
    }
}

/// A frame is for the guest, and its header says no more than the driver has agreed to.
fn check_frame(header: &[u8], frame: &[u8], offloads: Offloads, mac: Mac) {
    assert!(frame.len() >= 14);
    let (destination, source) = (&frame[..6], &frame[6..12]);
    assert!(destination == mac.0 || destination[0] & 1 == 1, "for the vif or a group");
    assert!(source != mac.0 && source[0] & 1 == 0, "from somebody else");
    let word = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let (flags, kind, size) = (header[0], header[1], word(4));
    assert_eq!(flags & !(NEEDS_CSUM | DATA_VALID), 0);
    if flags & NEEDS_CSUM != 0 {
        assert!(offloads.has(Offloads::GUEST_CSUM));
        assert!(word(6) + word(8) + 2 <= frame.len(), "a checksum is within its frame");
    }
    if kind != 0 {
        assert!(size > 0 && flags & NEEDS_CSUM != 0);
        assert!(kind & ECN == 0 || offloads.has(Offloads::GUEST_ECN));
        assert!(match kind & !ECN {
            1 => offloads.has(Offloads::GUEST_TSO4),
            4 => offloads.has(Offloads::GUEST_TSO6),
            5 => offloads.has(Offloads::GUEST_USO4) || offloads.has(Offloads::GUEST_USO6),
            other => panic!("a frame of type {other}"),
        });
    }
}
