//! The data path against a driver of twenty lines, without a device or sockets.

mod direct;
mod echo;
mod forwarding;
mod limits;
mod messages;
mod offloads;
mod policy;
mod sealed;
mod secured;
mod sending;

use std::io;
use std::mem;
use std::net::SocketAddr;

mod paths;

use super::*;
use crate::guest::MODERN_HEADER_LEN;
use crate::guest::receiving::ATTEMPTS;
use crate::offload::bundle::Entries;
use crate::offload::features::Offloads;
use crate::offload::header::Header;
use crate::offload::layout::Layout;
use crate::offload::packets::{Packet, assert_complete};
use crate::sys::mmsg::RECEIVE_BATCH;
use crate::tunnel::neighbors::Question;
use crate::tunnel::protect::Protection;
use crate::tunnel::rx::Receiver;
use crate::tunnel::too_big::told_mtu;
use crate::underlay::memory::MemoryUnderlay;
use crate::vhost_user::vring::GuestMemory;
use crate::wire::{Capabilities, EncapKinds, Longest, VifKey, VnetId};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PEER: [u8; 6] = [2, 0, 0, 0, 0, 2];
const SIZE: u16 = 16;
const MERGEABLE: HeaderLayout = HeaderLayout { len: MODERN_HEADER_LEN, mergeable: true };
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// A split ring at a fixed place in memory, written as a driver writes it.
struct Driver {
    memory: GuestMemory,
    queue: Queue,
    base: u64,
    data: u64,
    descriptors: u16,
}

impl Driver {
    fn new() -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap();
        let base = 0x1000;
        let mut queue = Queue::new(SIZE).unwrap();
        queue.try_set_desc_table_address(GuestAddress(base)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(base + 0x1000)).unwrap();
        queue.try_set_used_ring_address(GuestAddress(base + 0x2000)).unwrap();
        queue.set_ready(true);
        Self { memory, queue, base, data: 0x10000, descriptors: 0 }
    }

    fn write<T: vm_memory::ByteValued>(&self, value: T, at: u64) {
        self.memory.write_obj(value, GuestAddress(at)).unwrap();
    }

    /// Adds a chain of buffers, each of a length and with flags besides NEXT; returns addresses.
    fn offer(&mut self, buffers: &[(&[u8], usize, u16)]) -> Vec<u64> {
        let head = self.descriptors;
        let mut addresses = Vec::new();
        for (at, (bytes, len, flags)) in buffers.iter().enumerate() {
            let is_last = at + 1 == buffers.len();
            let index = self.descriptors % SIZE;
            let entry = self.base + 16 * u64::from(index);
            self.memory.write_slice(bytes, GuestAddress(self.data)).unwrap();
            self.write(self.data, entry);
            self.write(*len as u32, entry + 8);
            self.write(flags | if is_last { 0 } else { NEXT }, entry + 12);
            self.write((index + 1) % SIZE, entry + 14);
            addresses.push(self.data);
            self.data += 0x1000;
            self.descriptors += 1;
        }
        let avail = self.base + 0x1000;
        let index: u16 = self.memory.read_obj(GuestAddress(avail + 2)).unwrap();
        self.write(head % SIZE, avail + 4 + 2 * u64::from(index % SIZE));
        self.write(index.wrapping_add(1), avail + 2);
        addresses
    }

    fn offer_frame(&mut self, frame: &[u8]) {
        let mut bytes = vec![0; MODERN_HEADER_LEN];
        bytes.extend(frame);
        self.offer(&[(&bytes, bytes.len(), 0)]);
    }

    /// Used entries: (head, length).
    fn used(&self) -> Vec<(u32, u32)> {
        let used = self.base + 0x2000;
        let index: u16 = self.memory.read_obj(GuestAddress(used + 2)).unwrap();
        let entry = |i: u16| {
            let at = used + 4 + 8 * u64::from(i % SIZE);
            let head = self.memory.read_obj(GuestAddress(at)).unwrap();
            (head, self.memory.read_obj(GuestAddress(at + 4)).unwrap())
        };
        (0..index).map(entry).collect()
    }

    fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }
}

fn worker() -> Worker<MemoryUnderlay> {
    let receiver = Receiver {
        key: VifKey { vnet: VnetId::new(42).unwrap(), mac: Mac(OWN) },
        own: addr(1),
        capabilities: Capabilities::NONE,
    };
    let place = Place { receiver, group: addr(1798), max_datagram: 1472 };
    let counters = Arc::new(VifCounters::default());
    Worker::new(place, SourceMac::Stamp, counters, MemoryUnderlay::default())
}

fn addr(port: u16) -> SocketAddr {
    ([192, 0, 2, 1], port).into()
}

fn coa(port: u16) -> CareOf {
    CareOf {
        addr: addr(port),
        kinds: EncapKinds::UDP,
        capabilities: Capabilities::NONE,
        longest: Longest::UNKNOWN,
    }
}

fn frame(to: [u8; 6], from: [u8; 6], payload: &[u8]) -> Vec<u8> {
    [&to[..], &from[..], &[8, 0], payload].concat()
}

fn encapsulated_frame(to: [u8; 6], from: [u8; 6], payload: &[u8]) -> Vec<u8> {
    [&[0x40, 0, 0, 0, 0, 0, 0, 42][..], &frame(to, from, payload)].concat()
}

fn transmit(worker: &mut Worker<MemoryUnderlay>, driver: &mut Driver) {
    let Driver { queue, memory, .. } = driver;
    let progress = worker.transmit(queue, memory, Instant::ZERO).unwrap();
    assert_eq!(progress, Progress::Idle);
}

fn receive(worker: &mut Worker<MemoryUnderlay>, driver: &mut Driver) {
    let Driver { queue, memory, .. } = driver;
    worker.receive(Port::Own, queue, memory, Instant::ZERO).unwrap();
}

fn learn(worker: &mut Worker<MemoryUnderlay>, mac: [u8; 6], port: u16) {
    let lifetime = Duration::from_secs(30);
    worker.handle_mapping(Mac(mac), coa(port), lifetime, Instant::ZERO);
}

#[test]
fn a_frame_leaves_stamped_whatever_its_pieces() {
    let (mut worker, mut driver) = (worker(), Driver::new());
    learn(&mut worker, PEER, 7);
    let sent = frame(PEER, PEER, b"payload");
    let bytes = [&[0; MODERN_HEADER_LEN][..], &sent].concat();
    for cut in 1..bytes.len() {
        let mut driver = Driver::new();
        let (a, b) = bytes.split_at(cut);
        driver.offer(&[(a, a.len(), 0), (b, b.len(), 0)]);
        transmit(&mut worker, &mut driver);
        let (to, datagram) = worker.tunnel.underlay_mut().sent.pop().unwrap();
        assert_eq!(to, addr(7));
        assert_eq!(datagram, encapsulated_frame(PEER, OWN, b"payload"), "cut at {cut}");
        assert_eq!(driver.used(), [(0, 0)]);
    }
    let one_byte_each: Vec<(&[u8], usize, u16)> =
        bytes.chunks(3).map(|b| (b, b.len(), 0)).collect();
    driver.offer(&one_byte_each);
    transmit(&mut worker, &mut driver);
    assert_eq!(
        worker.tunnel.underlay_mut().sent.pop().unwrap().1,
        encapsulated_frame(PEER, OWN, b"payload")
    );
    assert_eq!(worker.counters.get(VifCounter::tx_stamped), bytes.len() as u64);
}

#[test]
fn frames_wait_for_resolution_and_leave_in_order() {
    let (mut worker, mut driver) = (worker(), Driver::new());
    for n in 0..3 {
        driver.offer_frame(&frame(PEER, OWN, &[n]));
    }
    transmit(&mut worker, &mut driver);
    assert!(worker.tunnel.underlay().sent.is_empty());
    assert_eq!(driver.used().len(), 3, "the guest has its buffers back");
    assert!(worker.wants_attention());
    let questions: Vec<Question> = worker.tunnel.questions().collect();
    assert_eq!(questions, [Question { mac: Mac(PEER), refresh: false }]);
    learn(&mut worker, PEER, 7);
    let expected: Vec<_> = (0..3).map(|n| (addr(7), encapsulated_frame(PEER, OWN, &[n]))).collect();
    assert_eq!(worker.tunnel.underlay().sent, expected);
    assert_eq!(worker.counters.get(VifCounter::tx_parked), 3);
    assert_eq!(worker.counters.get(VifCounter::tx_frames), 3);
}

#[test]
fn frames_nobody_answers_for_are_counted() {
    let (mut worker, mut driver) = (worker(), Driver::new());
    driver.offer_frame(&frame(PEER, OWN, b""));
    transmit(&mut worker, &mut driver);
    worker.tunnel.handle_unresolved(Mac(PEER), Duration::from_secs(1), Instant::ZERO);
    driver.offer_frame(&frame(PEER, OWN, b""));
    transmit(&mut worker, &mut driver);
    assert_eq!(worker.counters.get(VifCounter::tx_drop_unresolved), 2);

    driver.offer_frame(&frame([2, 0, 0, 0, 0, 9], OWN, b""));
    transmit(&mut worker, &mut driver);
    let deadline = worker.poll_timeout().unwrap();
    worker.handle_timeout(deadline);
    assert_eq!(worker.counters.get(VifCounter::tx_drop_park_expired), 1);
    assert_eq!(worker.poll_timeout(), None);
}

#[test]
fn what_the_kernel_refuses_is_counted_by_reason_and_the_rest_goes_on() {
    let cases = [
        (libc::EMSGSIZE, VifCounter::tx_drop_too_big, 1),
        (libc::ENETUNREACH, VifCounter::tx_drop_unreachable, 1),
        (libc::EPERM, VifCounter::tx_drop_error, 1),
        (libc::EAGAIN, VifCounter::tx_drop_backpressure, 3),
    ];
    for (errno, counter, dropped) in cases {
        let (mut worker, mut driver) = (worker(), Driver::new());
        learn(&mut worker, PEER, 7);
        worker.tunnel.underlay_mut().failures.push_back(io::Error::from_raw_os_error(errno));
        // Each longer than the one before: three messages.
        for len in 1..=3 {
            driver.offer_frame(&frame(PEER, OWN, &vec![0; len]));
        }
        transmit(&mut worker, &mut driver);
        assert_eq!(worker.counters.get(counter), dropped, "{errno}");
        assert_eq!(worker.counters.get(VifCounter::tx_frames), 3 - dropped);
    }
}

#[test]
fn a_chain_that_is_no_frame_is_counted_and_given_back() {
    let (mut worker, mut driver) = (worker(), Driver::new());
    let whole = [&[0; MODERN_HEADER_LEN][..], &frame([0xff; 6], OWN, b"")].concat();
    driver.offer(&[(&whole, whole.len() - 1, 0)]);
    driver.offer(&[(&whole, 0, 0)]);
    driver.offer(&[(&whole, whole.len(), WRITE)]);
    driver.offer(&[(&whole, u32::MAX as usize, 0)]);
    driver.offer(&[(&whole, MODERN_HEADER_LEN + crate::wire::frame::MAX_LEN + 1, 0)]);
    transmit(&mut worker, &mut driver);
    assert_eq!(worker.counters.get(VifCounter::tx_drop_malformed), 5);
    let mut asks_for_tso = whole.clone();
    asks_for_tso[1] = 1;
    driver.offer(&[(&asks_for_tso, whole.len(), 0)]);
    let mut asks_for_checksum = whole.clone();
    asks_for_checksum[0] = 1;
    driver.offer(&[(&asks_for_checksum, whole.len(), 0)]);
    driver.offer(&[(&whole, whole.len(), 0)]);
    transmit(&mut worker, &mut driver);
    assert_eq!(worker.counters.get(VifCounter::tx_drop_header), 2);
    assert_eq!(worker.tunnel.underlay().sent.len(), 1, "the good one behind them still leaves");
    assert_eq!(driver.used().len(), 8);
}

#[test]
fn an_arriving_frame_fills_as_many_buffers_as_it_takes() {
    let (mut worker, mut driver) = (worker(), Driver::new());
    worker.set_features(MERGEABLE, Offloads::NONE);
    let payload: Vec<u8> = (0..200).collect();
    let arrived = frame(OWN, PEER, &payload);
    worker.tunnel.underlay_mut().own.push_back((addr(9), encapsulated_frame(OWN, PEER, &payload)));
    let mut addresses = driver.offer(&[(&[], 5, WRITE), (&[], 95, WRITE)]);
    addresses.extend(driver.offer(&[(&[], 100, WRITE)]));
    addresses.extend(driver.offer(&[(&[], 100, WRITE)]));
    receive(&mut worker, &mut driver);
    assert_eq!(driver.used(), [(0, 100), (2, 100), (3, 26)]);
    let lens = [5, 95, 100, 26];
    let bytes: Vec<u8> =
        addresses.iter().zip(lens).flat_map(|(&at, len)| driver.read(at, len)).collect();
    let header = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0];
    assert_eq!(bytes, [&header[..], &arrived].concat());
    assert_eq!(worker.counters.get(VifCounter::rx_frames), 1);
    assert_eq!(worker.counters.get(VifCounter::rx_bytes), arrived.len() as u64);
}

#[test]
fn a_socket_that_gave_less_than_a_batch_is_not_asked_again() {
    for (waiting, asked) in [(0, 1), (1, 1), (RECEIVE_BATCH - 1, 1), (RECEIVE_BATCH, 2)] {
        let (mut worker, mut driver) = (worker(), Driver::new());
        let datagram = encapsulated_frame(OWN, PEER, b"");
        worker.tunnel.underlay_mut().own.extend((0..waiting).map(|_| (addr(9), datagram.clone())));
        (0..SIZE).for_each(|_| drop(driver.offer(&[(&[], 100, WRITE)])));
        receive(&mut worker, &mut driver);
        assert_eq!(worker.counters.get(VifCounter::rx_frames), waiting as u64);
        assert_eq!(worker.tunnel.underlay().asked, asked, "{waiting} datagrams");
    }
}

#[test]
fn frames_without_buffers_wait_and_are_delivered_in_order() {
    let (mut worker, mut driver) = (worker(), Driver::new());
    worker.set_features(MERGEABLE, Offloads::NONE);
    for n in 0..3 {
        worker
            .tunnel
            .underlay_mut()
            .own
            .push_back((addr(9), encapsulated_frame(OWN, PEER, &[n; 50])));
    }
    driver.offer(&[(&[], 40, WRITE)]);
    receive(&mut worker, &mut driver);
    assert!(worker.is_blocked());
    assert_eq!(driver.used(), [], "a frame that does not fit is not begun");
    let mut addresses = Vec::new();
    for _ in 0..5 {
        addresses.extend(driver.offer(&[(&[], 40, WRITE)]));
    }
    let Driver { queue, memory, .. } = &mut driver;
    worker.retry(queue, memory, Instant::ZERO).unwrap();
    assert!(!worker.is_blocked());
    assert_eq!(driver.used().len(), 6);
    assert_eq!(worker.counters.get(VifCounter::rx_frames), 3);
    // The second buffer of each frame holds bytes 28.. of it, its payload from 14 on.
    for n in 0..3 {
        let second = addresses[2 * n as usize];
        assert_eq!(driver.read(second, 36), [n; 36]);
    }
}

#[test]
fn without_mergeable_buffers_a_frame_fits_one_chain_or_is_dropped() {
    let (mut worker, mut driver) = (worker(), Driver::new());
    worker.tunnel.underlay_mut().own.push_back((addr(9), encapsulated_frame(OWN, PEER, &[1; 100])));
    worker.tunnel.underlay_mut().own.push_back((addr(9), encapsulated_frame(OWN, PEER, &[2; 10])));
    driver.offer(&[(&[], 60, WRITE)]);
    driver.offer(&[(&[], 60, WRITE)]);
    receive(&mut worker, &mut driver);
    assert_eq!(worker.counters.get(VifCounter::rx_drop_no_buffer), 1);
    assert_eq!(driver.used(), [(0, 36)], "the small one took the first buffer");
}

#[test]
fn unwritable_receive_chains_are_given_back() {
    let (mut worker, mut driver) = (worker(), Driver::new());
    worker.tunnel.underlay_mut().own.push_back((addr(9), encapsulated_frame(OWN, PEER, b"")));
    driver.offer(&[(&[], 60, 0)]);
    driver.offer(&[(&[], 60, WRITE), (&[], 60, 0)]);
    driver.offer(&[(&[], u32::MAX as usize, WRITE)]);
    driver.offer(&[(&[], 60, WRITE)]);
    receive(&mut worker, &mut driver);
    assert_eq!(worker.counters.get(VifCounter::rx_drop_malformed), 3);
    assert_eq!(driver.used(), [(0, 0), (1, 0), (3, 0), (4, 26)]);
}

/// The frame is too long for the first buffer, and the second can't be written to.
#[test]
fn an_unwritable_chain_behind_a_good_one_is_given_back_with_it() {
    let (mut worker, mut driver) = (worker(), Driver::new());
    worker.set_features(MERGEABLE, Offloads::NONE);
    worker.tunnel.underlay_mut().own.push_back((addr(9), encapsulated_frame(OWN, PEER, &[1; 100])));
    driver.offer(&[(&[], 60, WRITE)]);
    driver.offer(&[(&[], 60, 0)]);
    driver.offer(&[(&[], 60, WRITE)]);
    driver.offer(&[(&[], 60, WRITE)]);
    driver.offer(&[(&[], 60, WRITE)]);
    receive(&mut worker, &mut driver);
    assert_eq!(worker.counters.get(VifCounter::rx_drop_malformed), 1);
    assert_eq!(driver.used(), [(0, 0), (1, 0), (2, 60), (3, 60), (4, 6)]);
    assert_eq!(worker.counters.get(VifCounter::rx_frames), 1);
}

#[test]
fn a_frame_longer_than_a_whole_ring_holds_up_nobody() {
    let (mut worker, mut driver) = (worker(), Driver::new());
    worker.set_features(MERGEABLE, Offloads::NONE);
    worker
        .tunnel
        .underlay_mut()
        .own
        .push_back((addr(9), encapsulated_frame(OWN, PEER, &[1; 1000])));
    worker.tunnel.underlay_mut().own.push_back((addr(9), encapsulated_frame(OWN, PEER, &[2; 10])));
    for _ in 0..SIZE {
        driver.offer(&[(&[], 60, WRITE)]);
    }
    receive(&mut worker, &mut driver);
    assert!(!worker.is_blocked());
    assert_eq!(worker.counters.get(VifCounter::rx_drop_no_buffer), 1);
    assert_eq!(driver.used(), [(0, 36)]);
}

/// So that a guest which adds useless chains as fast as it gets them back can't hold the worker.
#[test]
fn after_some_bad_chains_others_get_their_turn() {
    let (mut worker, mut driver) = (worker(), Driver::new());
    worker.tunnel.underlay_mut().own.push_back((addr(9), encapsulated_frame(OWN, PEER, b"")));
    for _ in 0..ATTEMPTS {
        driver.offer(&[(&[], 60, 0)]);
    }
    let Driver { queue, memory, .. } = &mut driver;
    let progress = worker.receive(Port::Own, queue, memory, Instant::ZERO).unwrap();
    assert_eq!(progress, Progress::More);
    assert!(!worker.is_blocked());
    assert_eq!(worker.retry(queue, memory, Instant::ZERO).unwrap(), Progress::Idle);
    assert!(worker.is_blocked());
    assert_eq!(worker.counters.get(VifCounter::rx_drop_malformed), ATTEMPTS as u64);
    driver.offer(&[(&[], 60, WRITE)]);
    let Driver { queue, memory, .. } = &mut driver;
    assert_eq!(worker.retry(queue, memory, Instant::ZERO).unwrap(), Progress::Idle);
    assert_eq!(worker.counters.get(VifCounter::rx_frames), 1, "the frame was kept");
}

#[test]
fn a_jump_of_the_avail_index_is_the_rings_end() {
    let (mut worker, mut driver) = (worker(), Driver::new());
    driver.write(SIZE + 1, driver.base + 0x1002);
    let Driver { queue, memory, .. } = &mut driver;
    assert!(worker.transmit(queue, memory, Instant::ZERO).is_err());
    worker.tunnel.underlay_mut().own.push_back((addr(9), encapsulated_frame(OWN, PEER, b"")));
    assert!(worker.receive(Port::Own, queue, memory, Instant::ZERO).is_err());
}

#[test]
fn what_came_while_the_rings_stood_still_is_not_delivered_late() {
    let (mut worker, mut driver) = (worker(), Driver::new());
    driver.offer(&[(&[], 60, WRITE)]);
    worker.set_running(false, Instant::ZERO);
    worker.tunnel.underlay_mut().own.push_back((addr(9), encapsulated_frame(OWN, PEER, b"")));
    worker.set_running(true, Instant::from_millis(5000));
    receive(&mut worker, &mut driver);
    assert_eq!(driver.used(), []);
    assert_eq!(worker.counters.get(VifCounter::rx_drop_no_ring), 1);
}

#[test]
fn a_gratuitous_arp_asks_for_an_announcement() {
    let (mut worker, mut driver) = (worker(), Driver::new());
    let arp = |target| {
        let mut frame = frame([0xff; 6], OWN, &[0, 1, 8, 0, 6, 4, 0, 1]);
        frame[12..14].copy_from_slice(&[8, 6]);
        frame.extend([&OWN[..], &[10, 0, 0, 1], &[0; 6], &[10, 0, 0, target]].concat());
        frame
    };
    driver.offer_frame(&arp(2));
    transmit(&mut worker, &mut driver);
    assert!(!worker.take_announcement());
    driver.offer_frame(&arp(1));
    transmit(&mut worker, &mut driver);
    assert!(worker.wants_attention() && worker.take_announcement());
    assert!(!worker.take_announcement(), "told once");
    assert_eq!(worker.counters.get(VifCounter::tx_group_frames), 2);
    assert_eq!(worker.tunnel.underlay().sent[0].0, addr(1798));
}

// ---- offloads: what their tests are made of ------------------------------------------------------

const CAPABLE: Capabilities =
    Capabilities(Capabilities::PARTIAL_CHECKSUM.0 | Capabilities::BUNDLE.0);

/// A worker whose guest has all offloads, and knows a peer that understands all flags or none.
fn offloading_worker(capabilities: Capabilities) -> Worker<MemoryUnderlay> {
    let mut worker = worker();
    worker.tunnel.place_mut().receiver.capabilities = CAPABLE;
    worker.set_features(MERGEABLE, Offloads::ALL);
    let coa = CareOf { capabilities, ..coa(7) };
    let lifetime = Duration::from_secs(30);
    worker.handle_mapping(Mac(PEER), coa, lifetime, Instant::ZERO);
    worker
}

/// Ethernet, IPv4, TCP with time stamps.
const TCP_HEADERS: usize = 14 + 20 + 32;

/// A TCP frame from us to the peer.
fn tcp_frame(payload: usize) -> Vec<u8> {
    let mut frame = Packet::tcp(payload).build_partial();
    frame[..6].copy_from_slice(&PEER);
    frame[6..12].copy_from_slice(&OWN);
    frame
}

fn offer_with_header(driver: &mut Driver, header: [u8; 12], frame: &[u8]) {
    let bytes = [&header[..], frame].concat();
    driver.memory.write_slice(&bytes, GuestAddress(driver.data)).unwrap();
    driver.offer(&[(&bytes, bytes.len(), 0)]);
    driver.data += bytes.len() as u64;
}

fn tso_header(frame: &[u8], size: u16) -> [u8; 12] {
    let layout = Layout::parse(frame, frame.len()).unwrap();
    Header::merged(&layout, size, false).emit(0)
}

fn partial_header(frame: &[u8]) -> [u8; 12] {
    Header::partial(&Layout::parse(frame, frame.len()).unwrap()).emit(0)
}
