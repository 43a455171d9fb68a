//! Trains of long segments go straight into the guest's buffers, and whatever is in them, the guest gets
//! what it gets the usual way, and nothing else is ever left in its memory.

use std::collections::VecDeque;

use proptest::prelude::*;
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::*;
use crate::offload::gso::Cut;
use crate::policy::Level;
use crate::port::throttle::Limits;
use crate::security::inbound::Inbound;
use crate::sys::error_queue::Report;
use crate::tunnel::protect::Protection;
use crate::underlay::memory::Meddle;
use crate::vhost_user::dirty::{self, Log};

/// Length of each of the guest's buffers.
const BUFFER: usize = 0x1000;
/// Where in a datagram the IP header begins.
const NETWORK: usize = 8 + 14;
/// Where the TCP header does, behind IPv4.
const TRANSPORT: usize = NETWORK + 20;

/// The datagrams of a large frame for the guest.
fn train(packet: &Packet, size: u16) -> Vec<Vec<u8>> {
    let mut frame = packet.build_partial();
    frame[..6].copy_from_slice(&OWN);
    frame[6..12].copy_from_slice(&PEER);
    let layout = Layout::parse_gso(&frame, frame.len()).unwrap();
    let cut = Cut::new(&frame, &layout, size, 65_550).unwrap();
    let segment = |index| {
        let mut headers = vec![0; cut.header_len()];
        cut.write_header(index, &mut headers).unwrap();
        [&[0x40, 1, 0, 0, 0, 0, 0, 42], &headers[..], &frame[cut.payload(index)]].concat()
    };
    (0..cut.count()).map(segment).collect()
}

/// The frames that one for the guest was made of, without what merging makes anew: the transport's checksum, and the
/// identification of packets that are never fragmented, which has no meaning (RFC 6864, section 4.1). Two such packets with
/// one identification may become one frame, whose segments then have successive ones.
fn segments(header: &[u8], frame: &[u8]) -> Vec<Vec<u8>> {
    let size = u16::from_le_bytes([header[4], header[5]]);
    let Ok(layout) = Layout::parse_gso(frame, frame.len()) else { return vec![frame.to_vec()] };
    let without = |mut headers: Vec<u8>, payload: &[u8]| {
        let at = layout.checksum_at();
        headers[at..at + 2].fill(0);
        let ip = layout.network_at;
        let is_atomic = headers[ip] >> 4 == 4 && headers[ip + 6] & 0x40 != 0;
        if is_atomic {
            headers[ip + 4..ip + 6].fill(0);
            headers[ip + 10..ip + 12].fill(0);
        }
        [&headers, payload].concat()
    };
    if header[1] == 0 {
        return vec![without(frame.to_vec(), &[])];
    }
    let cut = Cut::new(frame, &layout, size, 65_550).unwrap();
    let segment = |index| {
        let mut headers = vec![0; cut.header_len()];
        cut.write_header(index, &mut headers).unwrap();
        without(headers, &frame[cut.payload(index)])
    };
    (0..cut.count()).map(segment).collect()
}

/// A guest that sees all that is ever left in its memory.
struct Guest {
    driver: Driver,
    seen: u16,
    buffers: VecDeque<u64>,
}

impl Guest {
    fn new() -> Self {
        Self { driver: Driver::new(), seen: 0, buffers: VecDeque::new() }
    }

    /// Adds buffers until there are so many.
    fn offer(&mut self, count: usize) {
        while self.buffers.len() < count {
            if self.driver.data >= 0x30_0000 {
                self.driver.data = 0x1_0000;
            }
            self.buffers.extend(self.driver.offer(&[(&[], BUFFER, WRITE)]));
        }
    }

    /// Takes the frames that were delivered. Everywhere else in the buffers there are zeros.
    fn take(&mut self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let used = self.driver.base + 0x2000;
        let index: u16 = self.driver.memory.read_obj(GuestAddress(used + 2)).unwrap();
        let mut frames: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let mut missing = 0;
        while self.seen != index {
            let entry = used + 4 + 8 * u64::from(self.seen % SIZE);
            let len: u32 = self.driver.memory.read_obj(GuestAddress(entry + 4)).unwrap();
            self.seen = self.seen.wrapping_add(1);
            let at = self.buffers.pop_front().unwrap();
            let bytes = self.driver.read(at, BUFFER);
            let (bytes, rest) = bytes.split_at(len as usize);
            assert!(rest.iter().all(|byte| *byte == 0), "behind a frame");
            self.driver.memory.write_slice(&[0; BUFFER], GuestAddress(at)).unwrap();
            if missing == 0 {
                missing = u16::from_le_bytes([bytes[10], bytes[11]]);
                frames.push((bytes[..12].to_vec(), bytes[12..].to_vec()));
            } else {
                frames.last_mut().unwrap().1.extend(bytes);
            }
            missing -= 1;
        }
        assert_eq!(missing, 0);
        for at in &self.buffers {
            let bytes = self.driver.read(*at, BUFFER);
            assert!(bytes.iter().all(|byte| *byte == 0), "in a buffer that is available");
        }
        frames
    }

    fn take_segments(&mut self) -> Vec<Vec<u8>> {
        self.take().iter().flat_map(|(header, frame)| segments(header, frame)).collect()
    }
}

/// A worker and its guest; with trains, or with datagrams that come one by one.
struct Bed {
    worker: Worker<MemoryUnderlay>,
    guest: Guest,
}

impl Bed {
    fn new(makes_trains: bool) -> Self {
        let mut worker = offloading_worker(CAPABLE);
        worker.tunnel.underlay_mut().makes_trains = makes_trains;
        let mut bed = Self { worker, guest: Guest::new() };
        bed.arrive(train(&Packet::tcp(8000), 4000));
        assert_eq!(bed.pump(16).len(), 2);
        assert!(bed.worker.direct.hunch.is_on(), "in the middle of a stream");
        bed
    }

    fn arrive(&mut self, datagrams: Vec<Vec<u8>>) {
        self.worker
            .tunnel
            .underlay_mut()
            .own
            .extend(datagrams.into_iter().map(|datagram| (addr(9), datagram)));
    }

    /// Delivers all that waits, to a guest that has so many buffers at a time.
    fn pump(&mut self, buffers: usize) -> Vec<Vec<u8>> {
        let mut segments = Vec::new();
        let mut idle = 0;
        while idle < 2 {
            // At last a guest has as many as it can.
            self.guest.offer(if idle == 0 { buffers } else { usize::from(SIZE) });
            let Driver { queue, memory, .. } = &mut self.guest.driver;
            self.worker.retry(queue, memory, Instant::ZERO).unwrap();
            if !self.worker.is_blocked() {
                receive(&mut self.worker, &mut self.guest.driver);
            }
            let more = self.guest.take_segments();
            idle = if more.is_empty() { idle + 1 } else { 0 };
            segments.extend(more);
        }
        assert!(
            self.worker.tunnel.underlay().own.is_empty()
                && self.worker.tunnel.incoming_mut().is_empty()
        );
        segments
    }

    fn count(&self, counter: VifCounter) -> u64 {
        self.worker.counters.get(counter)
    }

    /// Counters that do not depend on the way that frames took.
    fn drops(&self) -> Vec<(&'static str, u64)> {
        let counters = self.worker.counters.readings();
        counters.filter(|r| r.name.starts_with("rx_drop")).map(|r| (r.name, r.value)).collect()
    }
}

#[test]
fn a_train_goes_straight_into_the_guests_buffers() {
    for (is_v6, is_udp) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut bed = Bed::new(true);
        let packet = Packet { is_v6, is_udp, ..Packet::tcp(30_000) };
        bed.arrive(train(&packet, 4000));
        bed.guest.offer(16);
        receive(&mut bed.worker, &mut bed.guest.driver);
        let delivered = bed.guest.take();
        let mut original = packet.build_partial();
        original[..12].copy_from_slice(&[OWN, PEER].concat());
        let layout = Layout::parse(&original, original.len()).unwrap();
        let header = Header::merged(&layout, 4000, false).emit(8);
        assert_eq!(delivered.len(), 1);
        assert_eq!(delivered[0].0, header);
        assert!(delivered[0].1 == original, "v6: {is_v6}, UDP: {is_udp}");
        assert_eq!(bed.count(VifCounter::rx_direct_frames), 1);
        assert_eq!(bed.count(VifCounter::rx_frames), 2);
        let first = u64::try_from(8 + Packet::tcp(8000).build().len() - 8).unwrap();
        assert_eq!(bed.count(VifCounter::rx_bytes), first + original.len() as u64);
        assert_eq!(
            bed.worker.tunnel.underlay().asked,
            1,
            "only the first was received the usual way"
        );
        assert_eq!(bed.guest.buffers.len(), 8, "those that were not needed stay available");
    }
}

#[test]
fn buffers_of_any_length_are_filled() {
    let mut bed = Bed::new(true);
    bed.guest.take();
    let packet = Packet::tcp(9000);
    let mut expected = packet.build_partial();
    expected[..12].copy_from_slice(&[OWN, PEER].concat());
    // What is left of the first ones: another guest.
    let mut driver = Driver::new();
    let lens = [5, 40, 60, 3000, 1, 4096, 4096, 100];
    let buffers: Vec<_> = lens.iter().map(|len| (&[][..], *len, WRITE)).collect();
    let places = driver.offer(&buffers);
    bed.arrive(train(&packet, 4000));
    receive(&mut bed.worker, &mut driver);
    assert_eq!(driver.used(), [(0, 12 + expected.len() as u32)]);
    let all: Vec<u8> =
        places.iter().zip(lens).flat_map(|(at, len)| driver.read(*at, len)).collect();
    assert!(all[12..12 + expected.len()] == expected);
    assert!(all[12 + expected.len()..].iter().all(|byte| *byte == 0));
    assert_eq!(bed.count(VifCounter::rx_direct_frames), 1);
}

#[test]
fn pages_that_the_kernel_wrote_to_are_told_to_the_log() {
    let mut bed = Bed::new(true);
    let file = nix::sys::memfd::memfd_create(c"log", nix::sys::memfd::MFdFlags::MFD_CLOEXEC);
    let file = std::fs::File::from(file.unwrap());
    file.set_len(4096).unwrap();
    let log = Arc::new(Log::map(file.into(), 4096, 0).unwrap());
    dirty::attach(&bed.guest.driver.memory, Some(&log));
    bed.guest.offer(16);
    let places: Vec<u64> = bed.guest.buffers.iter().copied().collect();
    bed.arrive(train(&Packet::tcp(20_000), 4000));
    receive(&mut bed.worker, &mut bed.guest.driver);
    assert_eq!(bed.count(VifCounter::rx_direct_frames), 1);
    // The guest has 20,000 bytes and their headers in pages of 4096.
    let is_marked = |at: &u64| {
        let region = bed.guest.driver.memory.find_region(GuestAddress(*at)).unwrap();
        region.bitmap().dirty_at(usize::try_from(*at).unwrap())
    };
    let marked: Vec<bool> = places.iter().map(is_marked).collect();
    assert_eq!(marked, [[true; 5].as_slice(), &[false; 11]].concat());
}

/// What can be wrong with a datagram in the middle of a train.
#[derive(Clone, Copy, Debug)]
enum Wrong {
    Vnet,
    Version,
    Flags(u8),
    Destination([u8; 6]),
    Source,
    Sequence,
    TcpFlags(u8),
    Port,
}

const WRONG: [Wrong; 13] = [
    Wrong::Vnet,
    Wrong::Version,
    Wrong::Flags(0),
    Wrong::Flags(2),
    Wrong::Flags(4),
    Wrong::Flags(3),
    Wrong::Destination([0xff; 6]),
    Wrong::Destination([2, 0, 0, 0, 0, 7]),
    Wrong::Source,
    Wrong::Sequence,
    Wrong::TcpFlags(0x02),
    Wrong::TcpFlags(0x08),
    Wrong::Port,
];

fn spoil(datagram: &mut [u8], wrong: Wrong) {
    match wrong {
        Wrong::Vnet => datagram[7] = 43,
        Wrong::Version => datagram[0] = 0x50,
        Wrong::Flags(flags) => datagram[1] = flags,
        Wrong::Destination(mac) => datagram[8..14].copy_from_slice(&mac),
        Wrong::Source => datagram[14..20].copy_from_slice(&OWN),
        Wrong::Sequence => datagram[TRANSPORT + 6] ^= 1,
        Wrong::TcpFlags(flags) => datagram[TRANSPORT + 13] |= flags,
        Wrong::Port => datagram[TRANSPORT + 1] ^= 1,
    }
}

/// Both ways give the guest the same segments, and count the same drops.
fn assert_alike(batches: &[Vec<Vec<u8>>], buffers: usize) -> Bed {
    let (mut direct, mut usual) = (Bed::new(true), Bed::new(false));
    for batch in batches {
        direct.arrive(batch.clone());
        usual.arrive(batch.clone());
        let (got, expected) = (direct.pump(buffers), usual.pump(buffers));
        assert_eq!(got.len(), expected.len());
        assert!(got == expected, "other bytes");
        assert_eq!(direct.drops(), usual.drops());
    }
    assert_eq!(usual.count(VifCounter::rx_direct_frames), 0);
    direct
}

#[test]
fn what_is_not_as_foreseen_comes_right_nevertheless() {
    for wrong in WRONG {
        for at in 1..5 {
            let mut datagrams = train(&Packet::tcp(20_000), 4000);
            spoil(&mut datagrams[at], wrong);
            let bed = assert_alike(&[datagrams], 16);
            assert_eq!(bed.count(VifCounter::rx_direct_frames), 1, "{wrong:?} at {at}");
        }
        let mut datagrams = train(&Packet::tcp(20_000), 4000);
        spoil(&mut datagrams[0], wrong);
        let bed = assert_alike(&[datagrams], 16);
        // PSH in the first ends its frame, a port is as good as another.
        let is_fine = matches!(wrong, Wrong::Port | Wrong::Sequence);
        assert_eq!(bed.count(VifCounter::rx_direct_frames), u64::from(is_fine), "{wrong:?}");
        assert_eq!(bed.count(VifCounter::rx_direct_missed), u64::from(!is_fine), "{wrong:?}");
    }
}

#[test]
fn a_stream_that_keeps_deceiving_is_received_the_usual_way() {
    let mut bed = Bed::new(true);
    for _ in 0..200 {
        let mut datagrams = train(&Packet::tcp(16_000), 4000);
        spoil(&mut datagrams[2], Wrong::Port);
        bed.arrive(datagrams);
        bed.pump(16);
    }
    let tried = bed.count(VifCounter::rx_direct_frames);
    assert!((2..10).contains(&tried), "{tried}");
}

/// Some kernels need a datagram behind each message that is shorter than the others, and holds nothing.
#[test]
fn a_short_end_is_no_deception() {
    let mut bed = Bed::new(true);
    for n in 1..=20 {
        let mut datagrams = train(&Packet::tcp(16_000), 4000);
        datagrams.push([&[0x40, 2, 0, 0, 0, 0, 0, 42][..], &[0; 100]].concat());
        bed.arrive(datagrams);
        assert_eq!(bed.pump(16).len(), 4);
        assert_eq!(bed.count(VifCounter::rx_direct_frames), n);
    }
    assert!(bed.drops().iter().all(|(_, count)| *count == 0));
}

#[test]
fn another_message_than_the_one_that_was_looked_at_is_judged_anew() {
    let other_vnet: Meddle = |queue| queue.iter_mut().for_each(|(_, d)| d[7] = 43);
    let other_sender: Meddle = |queue| queue.iter_mut().for_each(|(from, _)| *from = addr(10));
    let longer: Meddle = |queue| {
        let more = queue[0].clone();
        queue.push_front(more);
    };
    let shorter: Meddle = |queue| drop(queue.pop_front());
    let gone: Meddle = VecDeque::clear;
    let cases = [
        (other_vnet, 0, VifCounter::rx_drop_vnet, 5),
        (other_sender, 5, VifCounter::rx_drop_vnet, 0),
        (longer, 0, VifCounter::rx_drop_truncated, 1),
        (shorter, 4, VifCounter::rx_drop_truncated, 0),
        (gone, 0, VifCounter::rx_drop_truncated, 0),
    ];
    for (n, (meddle, delivered, counter, dropped)) in cases.into_iter().enumerate() {
        let mut bed = Bed::new(true);
        bed.arrive(train(&Packet::tcp(20_000), 4000));
        bed.worker.tunnel.underlay_mut().meddle = Some(meddle);
        assert_eq!(bed.pump(16).len(), delivered, "case {n}");
        assert_eq!(bed.count(counter), dropped, "case {n}");
        assert_eq!(bed.count(VifCounter::rx_direct_frames), 0, "case {n}");
        assert!(bed.worker.tunnel.underlay().peeks > 0);
    }
}

#[test]
fn a_message_that_cannot_be_taken_so_is_received_the_usual_way() {
    let to = addr(9).ip();
    let report = Report { to, errno: libc::ECONNREFUSED, mtu: 0, is_local: false };
    // Of a datagram that was sent, and a real one.
    for (errno, report) in [(libc::ECONNREFUSED, Some(report)), (libc::EFAULT, None)] {
        let mut bed = Bed::new(true);
        bed.worker
            .tunnel
            .underlay_mut()
            .take_failures
            .push_back(io::Error::from_raw_os_error(errno));
        let is_told = report.is_some();
        bed.worker.tunnel.underlay_mut().reports.extend(report);
        bed.arrive(train(&Packet::tcp(20_000), 4000));
        assert_eq!(bed.pump(16).len(), 5);
        assert_eq!(bed.worker.direct.hunch.is_on(), is_told, "{errno}");
        bed.arrive(train(&Packet::tcp(20_000), 4000));
        assert_eq!(bed.pump(16).len(), 5);
        assert_eq!(bed.count(VifCounter::rx_direct_frames), u64::from(is_told), "{errno}");
    }
}

#[test]
fn a_guest_without_buffers_finds_all_when_it_has_some() {
    let mut bed = Bed::new(true);
    bed.guest = Guest::new();
    bed.guest.offer(2);
    bed.arrive(train(&Packet::tcp(20_000), 4000));
    receive(&mut bed.worker, &mut bed.guest.driver);
    assert!(bed.worker.is_blocked());
    assert_eq!(bed.worker.tunnel.underlay().own.len(), 5, "it waits in the socket");
    assert_eq!(bed.pump(16).len(), 5);
    assert_eq!(bed.count(VifCounter::rx_direct_frames), 1);
}

#[test]
fn only_a_stream_in_long_segments_is_looked_at() {
    let mut worker = offloading_worker(CAPABLE);
    worker.tunnel.underlay_mut().makes_trains = true;
    let mut bed = Bed { worker, guest: Guest::new() };
    let small = encapsulated_frame(OWN, PEER, &[7; 50]);
    for _ in 0..20 {
        bed.arrive(vec![small.clone(); 30]);
        bed.arrive(train(&Packet::tcp(20_000), 1400));
        bed.pump(16);
    }
    assert_eq!(bed.worker.tunnel.underlay().peeks, 0);
    let mut bed = Bed::new(true);
    let before = bed.worker.tunnel.underlay().peeks;
    for _ in 0..20 {
        bed.arrive(vec![small.clone()]);
        bed.pump(16);
    }
    assert_eq!(bed.count(VifCounter::rx_direct_missed), 1);
    assert_eq!(bed.worker.tunnel.underlay().peeks, before + 1, "once in vain");
}

#[test]
fn nothing_goes_straight_that_has_to_be_looked_into_or_held_back() {
    let arrive = |bed: &mut Bed| {
        bed.arrive(train(&Packet::tcp(20_000), 4000));
        bed.pump(16).len()
    };
    let mut departed = Bed::new(true);
    let until = Duration::from_secs(30);
    departed.worker.depart(Mac([2, 0, 0, 0, 0, 8]), coa(5), until, Instant::ZERO);
    assert_eq!(arrive(&mut departed), 5);
    let mut limited = Bed::new(true);
    let limits = Limits { rate_in: Some("10gbit".parse().unwrap()), ..Limits::default() };
    limited.worker = limited.worker.with_throttle(Throttle::new(&limits).unwrap());
    assert_eq!(arrive(&mut limited), 5);
    let mut secured = Bed::new(true);
    let inbound = Inbound::new(VnetId::new(42).unwrap(), Level::Auth);
    secured.worker.tunnel.set_protection(Some(Protection::new(Arc::new(inbound))));
    assert_eq!(arrive(&mut secured), 0);
    assert_eq!(secured.count(VifCounter::rx_drop_plaintext), 5);
    for bed in [departed, limited, secured] {
        assert_eq!(bed.count(VifCounter::rx_direct_frames), 0);
    }
}

/// Datagrams that may come one behind the other from one sender.
#[derive(Clone, Debug)]
enum Kind {
    /// A large frame in segments of a size, one of which may be spoilt.
    Train { packet: Packet, size: u16, spoilt: Option<(prop::sample::Index, Wrong)> },
    /// A frame by itself.
    Small(usize),
}

fn kind() -> impl Strategy<Value = Kind> {
    let size = prop_oneof![3 => Just(4000_u16), 1 => Just(3600), 1 => Just(8000), 1 => Just(1400)];
    let packet = (1_usize..30_000, any::<bool>(), any::<bool>(), any::<u32>()).prop_map(
        |(len, is_v6, is_udp, sequence)| {
            let is_v6 = is_v6 && len % 3 == 0;
            let is_udp = is_udp && len % 5 == 0;
            Packet { is_v6, is_udp, sequence, ..Packet::tcp(len) }
        },
    );
    let wrong = prop::sample::select(&WRONG[..]);
    let spoilt = prop::option::weighted(0.4, (any::<prop::sample::Index>(), wrong));
    prop_oneof![
        6 => (packet, size, spoilt)
            .prop_map(|(packet, size, spoilt)| Kind::Train { packet, size, spoilt }),
        1 => (0_usize..200).prop_map(Kind::Small),
    ]
}

fn datagrams(kind: &Kind) -> Vec<Vec<u8>> {
    match kind {
        Kind::Small(len) => vec![encapsulated_frame(OWN, PEER, &vec![9; *len])],
        Kind::Train { packet, size, spoilt } => {
            let mut datagrams = train(packet, *size);
            if let Some((index, wrong)) = spoilt {
                let at = index.index(datagrams.len());
                spoil(&mut datagrams[at], *wrong);
            }
            datagrams
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn whatever_comes_the_guest_gets_what_it_gets_the_usual_way(
        batches in prop::collection::vec(prop::collection::vec(kind(), 1..6), 1..5),
        buffers in 1_usize..=16,
    ) {
        let clean = vec![train(&Packet::tcp(12_000), 4000)];
        let batches = batches.iter().map(|kinds| kinds.iter().flat_map(datagrams).collect());
        let batches: Vec<_> = clean.into_iter().chain(batches).collect();
        let bed = assert_alike(&batches, buffers);
        prop_assert!(bed.count(VifCounter::rx_direct_frames) > 0);
    }
}
