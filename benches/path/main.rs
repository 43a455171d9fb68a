//! What a worker spends on a frame in user space: rings on one side, an underlay that costs nothing
//! on the other.
//!
//! `cargo bench --bench path` prints the least nanoseconds per frame of many rounds, which other
//! load on the machine hardly changes. `valgrind --tool=callgrind` on the program that `--no-run` names
//! counts instructions: those of a round are the difference of two runs that are some rounds apart.
//! `benches/run` measures what the kernel and the guest's processor add.
//!
//! Arguments: the number of rounds, and the cases by their names as printed (`"1400 sending"`). Each case
//! is a kind of frame ([`FRAMES`]) on one way ([`WAYS`]), in a worker of its own.

mod ring;

use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use etherparse::PacketBuilder;
use vnet::guest::HeaderLayout;
use vnet::lane;
use vnet::local::ends::LaneOffer;
use vnet::metrics::{VifCounter, VifCounters};
use vnet::offload::features::Offloads;
use vnet::offload::header::Header;
use vnet::offload::layout::Layout;
use vnet::policy::{Level, Suite};
use vnet::port::guard::Prefix;
use vnet::port::tx::SourceMac;
use vnet::port::worker::Worker;
use vnet::secret::Secret;
use vnet::security::sadb::sender_key;
use vnet::sys::clock;
use vnet::sys::doorbell::Doorbell;
use vnet::sys::mmsg::{Message, ReceiveBatch};
use vnet::time::Instant;
use vnet::tunnel::endpoint::Place;
use vnet::tunnel::protect::Protection;
use vnet::tunnel::rx::Receiver;
use vnet::underlay::{Port, Underlay};
use vnet::wire::esp::Spi;
use vnet::wire::{Capabilities, CareOf, EncapKinds, Longest, Mac, VifKey, VnetId};

use ring::{Driver, VIRTIO_LEN};

const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);
const PEER: Mac = Mac([2, 0, 0, 0, 0, 2]);
const CAPABLE: Capabilities =
    Capabilities(Capabilities::PARTIAL_CHECKSUM.0 | Capabilities::BUNDLE.0);
const ROUNDS: usize = 2000;

/// Keeps what is sent the first time, and hands it over again and again.
#[derive(Default)]
struct Loop {
    kept: Vec<(Vec<u8>, usize)>,
    is_recording: bool,
    is_full: bool,
}

impl Underlay for Loop {
    fn send(&mut self, messages: &[Message<'_>]) -> io::Result<usize> {
        if self.is_recording {
            for message in messages {
                let mut bytes = Vec::new();
                message.parts.iter().for_each(|part| part.append_to(&mut bytes));
                let segment = usize::from(message.segment);
                let segment = if segment == 0 { bytes.len() } else { segment };
                self.kept.push((bytes, segment));
            }
        }
        Ok(messages.len())
    }

    fn receive(&mut self, _: Port, batch: &mut ReceiveBatch) -> io::Result<()> {
        if !std::mem::take(&mut self.is_full) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        // Once: it stays where it was received.
        if batch.is_empty() {
            for (bytes, segment) in &self.kept {
                assert!(batch.push(addr(2), bytes, *segment), "room for a batch");
            }
        }
        Ok(())
    }

    fn descriptor(&self, _: Port) -> Option<RawFd> {
        None
    }
}

fn addr(host: u8) -> SocketAddr {
    ([192, 0, 2, host], 4000).into()
}

fn worker(own: Mac, peer: Mac, underlay: Loop) -> (Worker<Loop>, Arc<VifCounters>) {
    let vnet = VnetId::new(42).expect("an id");
    let key = VifKey { vnet, mac: own };
    let receiver = Receiver { key, own: addr(1), capabilities: CAPABLE };
    let place = Place { receiver, group: addr(9), max_datagram: 1472 };
    let counters = Arc::new(VifCounters::default());
    let mut worker = Worker::new(place, SourceMac::Stamp, counters.clone(), underlay);
    worker.set_features(HeaderLayout { len: VIRTIO_LEN, mergeable: true }, Offloads::ALL);
    let coa = CareOf {
        addr: addr(2),
        kinds: EncapKinds::UDP,
        capabilities: CAPABLE,
        longest: Longest::UNKNOWN,
    };
    let lifetime = Duration::from_secs(1 << 20);
    worker.handle_mapping(peer, coa, lifetime, Instant::ZERO);
    (worker, counters)
}

/// A kind of frame that a guest sends, again and again.
struct Kind {
    name: &'static str,
    /// Its length, in bytes, virtio-net header not included.
    len: usize,
    /// The size of the segments that it is to be cut into: then it is TCP, else UDP.
    segment: Option<u16>,
    /// Whether it has an IEEE 802.1Q tag.
    is_tagged: bool,
    /// Lengths of its first descriptors, that of the virtio-net header included; the rest has one.
    pieces: &'static [usize],
    /// Frames of a round.
    count: u16,
}

const FRAMES: [Kind; 5] = [
    Kind { name: "64", len: 64, segment: None, is_tagged: false, pieces: &[], count: 256 },
    Kind {
        name: "1400",
        len: 1400,
        segment: None,
        is_tagged: false,
        pieces: &[12 + 42],
        count: 128,
    },
    Kind {
        name: "1400 tagged",
        len: 1400,
        segment: None,
        is_tagged: true,
        pieces: &[12 + 46],
        count: 128,
    },
    Kind {
        name: "TSO",
        len: 62_000,
        segment: Some(1398),
        is_tagged: false,
        pieces: &[12 + 54, 32 << 10],
        count: 4,
    },
    Kind {
        name: "TSO tagged",
        len: 62_000,
        segment: Some(1394),
        is_tagged: true,
        pieces: &[12 + 58, 32 << 10],
        count: 4,
    },
];

/// Measures a way that a frame can go, in so many rounds; returns nanoseconds per frame.
type Measure = fn(&Kind, usize) -> f64;

const WAYS: [(&str, Measure); 5] = [
    ("sending", |kind, rounds| send(kind, rounds, Guest::Trusted, None)),
    ("guarded", |kind, rounds| send(kind, rounds, Guest::KeptToAddresses, None)),
    ("sealed", |kind, rounds| send(kind, rounds, Guest::Trusted, protection())),
    ("receiving", receive),
    ("lane", through_lane),
];

impl Kind {
    /// Its bytes, with a virtio-net header: its checksum is partial.
    fn build(&self) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2(OWN.0, PEER.0);
        let (from, to) = ([10, 0, 0, 1], [10, 0, 0, 2]);
        let (builder, tag_len) = if self.is_tagged {
            (builder.single_vlan(7u16.try_into().expect("a VLAN")).ipv4(from, to, 64), 4)
        } else {
            (builder.ipv4(from, to, 64), 0)
        };
        let mut frame = Vec::new();
        let payload = |header| vec![7; self.len - tag_len - header];
        let written = match self.segment {
            Some(_) => builder.tcp(1000, 2000, 1, 65_535).ack(1).write(&mut frame, &payload(54)),
            None => builder.udp(1000, 2000).write(&mut frame, &payload(42)),
        };
        written.expect("a frame");
        frame[..6].copy_from_slice(&PEER.0);
        frame[6..12].copy_from_slice(&OWN.0);
        let layout = Layout::parse(&frame, frame.len()).expect("headers");
        // The sum of the pseudo-header: what a partial checksum's field holds.
        let partial = layout.pseudo_header(&frame, frame.len() - layout.transport_at).fold();
        let at = layout.checksum_at();
        frame[at..at + 2].copy_from_slice(&partial.to_be_bytes());
        let header = match self.segment {
            Some(size) => Header::merged(&layout, size, false),
            None => Header::partial(&layout),
        };
        [&header.emit(0)[..], &frame].concat()
    }

    /// A driver that sends it.
    fn driver(&self) -> Driver {
        let mut driver = Driver::new();
        driver.fill_tx(&self.build(), self.pieces, self.count);
        driver
    }
}

/// Whether the guest is kept to a list of addresses.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Guest {
    Trusted,
    KeptToAddresses,
}

/// The least time of a step, in nanoseconds; `again` comes between steps.
fn least<S>(
    rounds: usize,
    state: &mut S,
    again: impl Fn(&mut S),
    mut step: impl FnMut(&mut S),
) -> f64 {
    let mut least = f64::MAX;
    // The clock counts microseconds.
    const AT_ONCE: usize = 16;
    for _ in 0..rounds / AT_ONCE {
        let mut spent = Duration::ZERO;
        for _ in 0..AT_ONCE {
            again(state);
            let begin = clock::mono();
            step(state);
            spent += clock::mono() - begin;
        }
        least = least.min(spent.as_nanos() as f64 / AT_ONCE as f64);
    }
    least
}

/// Keys for what is sent to the peer on a secured vnet.
fn protection() -> Option<Protection> {
    let vnet = VnetId::new(42).expect("an id");
    let mut protection = Protection::of_vif(vnet, Level::Conf)()?;
    let key = sender_key(&Secret::new([5; 32]), 0);
    let lifetime = Duration::from_secs(1 << 20);
    let outbound = protection.outbound_mut();
    outbound.insert(addr(2), Spi::of(1, 0), Suite::AesGcm, &key, lifetime, Instant::ZERO);
    Some(protection)
}

fn transmit(sender: &mut Worker<Loop>, driver: &mut Driver) {
    let Driver { tx, memory, .. } = driver;
    sender.transmit(tx, memory, Instant::ZERO).expect("a sound ring");
}

/// Sends batches of frames over a vnet.
fn send(kind: &Kind, rounds: usize, guest: Guest, protection: Option<Protection>) -> f64 {
    let (mut sender, counters) = worker(OWN, PEER, Loop::default());
    if guest == Guest::KeptToAddresses {
        let allowed: [Prefix; 2] =
            ["10.0.0.0/24", "2001:db8::/64"].map(|text| text.parse().expect("a prefix"));
        sender = sender.allowing(&allowed);
    }
    sender.tunnel_mut().set_protection(protection);
    let mut driver = kind.driver();
    let again = |driver: &mut Driver| driver.offer_tx(kind.count);
    let sent = least(rounds, &mut driver, again, |driver| transmit(&mut sender, driver));
    let offered = (rounds - rounds % 16) as u64 * u64::from(kind.count);
    assert_eq!(counters.get(VifCounter::tx_frames), offered, "all leave");
    sent / f64::from(kind.count)
}

/// Receives what a worker has sent.
fn receive(kind: &Kind, rounds: usize) -> f64 {
    let (mut sender, _) = worker(OWN, PEER, Loop { is_recording: true, ..Loop::default() });
    let mut driver = kind.driver();
    driver.offer_tx(kind.count);
    transmit(&mut sender, &mut driver);
    let kept = sender.tunnel().underlay().kept.clone();

    driver = Driver::new();
    driver.fill_rx();
    let (worker, counters) = worker(PEER, OWN, Loop { kept, ..Loop::default() });
    let mut state = (worker, driver);
    let again = |(worker, _): &mut (Worker<Loop>, _)| {
        worker.tunnel_mut().underlay_mut().is_full = true;
    };
    let received = least(rounds, &mut state, again, |(worker, driver)| {
        let Driver { rx, memory, .. } = &mut *driver;
        worker.receive(Port::Own, rx, memory, Instant::ZERO).expect("a sound ring");
        driver.offer_rx();
    });
    let sent = (rounds - rounds % 16) as u64 * u64::from(kind.count);
    let bytes = counters.get(VifCounter::rx_bytes);
    assert!(bytes >= sent * kind.len as u64 * 9 / 10, "all arrive, in fewer frames where merged");
    received / f64::from(kind.count)
}

/// A frame through a lane: its writer, and its reader.
fn through_lane(kind: &Kind, rounds: usize) -> f64 {
    const ID: u32 = 1;
    let (mut from, mut to) = (kind.driver(), Driver::new());
    to.fill_rx();
    let (mut writer, _) = worker(OWN, PEER, Loop::default());
    let (mut reader, counters) = worker(PEER, OWN, Loop::default());
    let memory = lane::create().expect("memory");
    let (bell, other) = Doorbell::pair().expect("a pair");
    let shared = memory.try_clone().expect("a descriptor");
    let ends = [
        (&mut writer, false, addr(2), [shared, bell]),
        (&mut reader, true, addr(1), [memory, other]),
    ];
    for (worker, is_read, addr, descriptors) in ends {
        worker.local_mut().prepare(Arc::default()).expect("a timer");
        worker.open_lane(LaneOffer { lane: ID, is_read, addr }, descriptors, Instant::ZERO);
    }
    // Without a handover a lane opens some time after its first frame.
    let mut now = Instant::ZERO;
    let mut turn = |(): &mut ()| {
        from.offer_tx(kind.count);
        writer.transmit(&mut from.tx, &from.memory, now).expect("a sound ring");
        reader.lanes_rung(u16::try_from(ID).expect("small"), now);
        reader.receive_lanes(&mut to.rx, &to.memory, now).expect("a sound ring");
        to.offer_rx();
        now += Duration::from_millis(100);
    };
    turn(&mut ());
    turn(&mut ());
    let before = counters.get(VifCounter::rx_local_frames);
    let each = least(rounds, &mut (), |_| (), turn);
    let through = counters.get(VifCounter::rx_local_frames) - before;
    let sent = (rounds - rounds % 16) as u64 * u64::from(kind.count);
    assert_eq!(through, sent, "all go through the lane");
    each / f64::from(kind.count)
}

fn main() {
    let arguments = std::env::args().skip(1).filter(|text| !text.starts_with('-'));
    let arguments: Vec<String> = arguments.collect();
    let rounds = arguments.first().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS);
    let wanted = arguments.get(1..).unwrap_or_default();
    for kind in &FRAMES {
        for (way, measure) in WAYS {
            let name = format!("{} {way}", kind.name);
            if wanted.is_empty() || wanted.contains(&name) {
                println!("{name:22} {:8.1} ns", measure(kind, rounds));
            }
        }
    }
}
