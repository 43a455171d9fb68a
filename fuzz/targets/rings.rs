//! Descriptor chains of a guest that changes its memory while the device works: whatever is in the
//! rings, the data path ends, sends nothing but frames with the vif's own MAC, and writes nothing
//! outside of the buffers and rings that it was given.

use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vnet::guest::HeaderLayout;
use vnet::metrics::VifCounters;
use vnet::offload::features::Offloads;
use vnet::port::tx::SourceMac;
use vnet::port::worker::Worker;
use vnet::sys::mmsg::{Message, ReceiveBatch};
use vnet::time::Instant;
use vnet::tunnel::endpoint::Place;
use vnet::tunnel::rx::Receiver;
use vnet::underlay::{Port, Underlay};
use vnet::vhost_user::vring::GuestMemory;
use vnet::wire::{Capabilities, CareOf, EncapKinds, Longest, Mac, VifKey, VnetId};

use super::Input;

const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const PEER: Mac = Mac([2, 0, 0, 0, 0, 2]);
/// Guest memory: small, so that addresses in the input hit it.
const MEMORY: usize = 64 << 10;
const QUEUE_SIZE: u16 = 16;
/// Where the rings are: transmit, then receive. A descriptor table, an available and a used ring.
const RINGS: [[u64; 3]; 2] = [[0, 0x100, 0x180], [0x400, 0x500, 0x580]];
const MAX_DATAGRAM: usize = 1472;

/// Changes guest memory whenever the worker makes a system call, as a guest on another processor.
struct Changing<'a> {
    memory: GuestMemory,
    changes: Input<'a>,
}

impl Changing<'_> {
    fn change(&mut self) {
        for _ in 0..self.changes.u8() % 4 {
            let at = GuestAddress(u64::from(self.changes.u16()) % MEMORY as u64);
            let _ = self.memory.write_obj(self.changes.u8(), at);
        }
    }
}

impl Underlay for Changing<'_> {
    fn send(&mut self, messages: &[Message<'_>]) -> io::Result<usize> {
        for message in messages {
            let mut bytes = Vec::new();
            message.parts.iter().for_each(|part| part.append_to(&mut bytes));
            let size = if message.segment == 0 { bytes.len() } else { message.segment.into() };
            for datagram in bytes.chunks(size.max(1)) {
                assert!(datagram.len() <= MAX_DATAGRAM);
                assert_eq!(datagram[..8], [0x40, 0, 0, 0, 0, 0, 0, 42]);
                assert_eq!(datagram[14..20], MAC.0, "stamped");
            }
        }
        self.change();
        Ok(messages.len())
    }

    fn receive(&mut self, _: Port, batch: &mut ReceiveBatch) -> io::Result<()> {
        batch.clear();
        self.change();
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn descriptor(&self, _: Port) -> Option<RawFd> {
        None
    }
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Input(data);
    let features = input.u64();
    let rings = input.take(0x600);
    let len = input.u16().into();
    let buffers = input.take(len);
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("memory");
    memory.write_slice(rings, GuestAddress(0)).expect("rings in memory");
    let room = buffers.len().min(MEMORY - 0x800);
    memory.write_slice(&buffers[..room], GuestAddress(0x800)).expect("buffers in memory");
    let mut worker = worker(Changing { memory: memory.clone(), changes: input });
    let layout = HeaderLayout { len: 12, mergeable: features & 1 != 0 };
    worker.set_features(layout, Offloads::from_features(features));
    let [mut tx, mut rx] = RINGS.map(queue);
    let now = Instant::ZERO;
    worker.handle_mapping(PEER, coa(), Duration::from_secs(30), now);
    for _ in 0..4 {
        let sent = worker.transmit(&mut tx, &memory, now);
        let answered = worker.answer(&mut rx, &memory);
        let received = worker.retry(&mut rx, &memory, now);
        if sent.is_err() || answered.is_err() || received.is_err() {
            break;
        }
    }
}

fn queue([table, available, used]: [u64; 3]) -> Queue {
    let mut queue = Queue::new(QUEUE_SIZE).expect("a size");
    queue.try_set_desc_table_address(GuestAddress(table)).expect("aligned");
    queue.try_set_avail_ring_address(GuestAddress(available)).expect("aligned");
    queue.try_set_used_ring_address(GuestAddress(used)).expect("aligned");
    queue.set_ready(true);
    queue
}

fn address(port: u16) -> SocketAddr {
    ([192, 0, 2, 1], port).into()
}

fn coa() -> CareOf {
    CareOf {
        addr: address(5000),
        kinds: EncapKinds::UDP,
        capabilities: Capabilities::NONE,
        longest: Longest::UNKNOWN,
    }
}

fn worker(underlay: Changing<'_>) -> Worker<Changing<'_>> {
    let key = VifKey { vnet: VnetId::new(42).expect("not 0"), mac: MAC };
    let receiver = Receiver { key, own: address(4000), capabilities: Capabilities::NONE };
    let place = Place { receiver, group: address(1798), max_datagram: MAX_DATAGRAM };
    Worker::new(place, SourceMac::Stamp, Arc::new(VifCounters::default()), underlay)
}
