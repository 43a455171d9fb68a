//! What a worker spends on a frame in user space: rings on one side, an underlay that costs nothing
//! on the other.
//!
//! `cargo bench --bench path` prints the least nanoseconds per frame of many rounds, which other
//! load on the machine hardly changes. `valgrind --tool=callgrind` on the program that it names with
//! `--no-run` counts instructions: those of a round are the difference of two runs that are some rounds
//! apart. Arguments: the number of rounds, and the cases. `benches/run` measures what the kernel and
//! the guest's processor add.

mod ring;

use std::cell::RefCell;
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

/// A frame of `len` bytes with its virtio-net header: UDP, or TCP to be cut.
fn frame(len: usize, segment: Option<u16>) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(OWN.0, PEER.0).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
    let mut frame = Vec::new();
    let written = match segment {
        Some(_) => {
            let mut tcp = builder.tcp(1000, 2000, 1, 65_535);
            tcp = tcp.ack(1);
            tcp.write(&mut frame, &vec![7; len - 54])
        }
        None => builder.udp(1000, 2000).write(&mut frame, &vec![7; len - 42]),
    };
    written.expect("a frame");
    frame[..6].copy_from_slice(&PEER.0);
    frame[6..12].copy_from_slice(&OWN.0);
    let layout = Layout::parse(&frame, frame.len()).expect("headers");
    // The sum of the pseudo-header: what a partial checksum's field holds.
    let partial = layout.pseudo_header(&frame, frame.len() - layout.transport_at).fold();
    let at = layout.checksum_at();
    frame[at..at + 2].copy_from_slice(&partial.to_be_bytes());
    let header = match segment {
        Some(size) => Header::merged(&layout, size, false),
        None => Header::partial(&layout),
    };
    [&header.emit(0)[..], &frame].concat()
}

/// The least time of a step, in nanoseconds; `again` comes between steps.
fn least(rounds: usize, mut again: impl FnMut(), mut step: impl FnMut()) -> f64 {
    let mut least = f64::MAX;
    // The clock counts microseconds.
    const AT_ONCE: usize = 16;
    for _ in 0..rounds / AT_ONCE {
        let mut spent = Duration::ZERO;
        for _ in 0..AT_ONCE {
            again();
            let begin = clock::mono();
            step();
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

/// Sends batches of frames over a vnet, sealed or not.
fn send(driver: &RefCell<Driver>, rounds: usize, count: u16, is_secured: bool) -> f64 {
    let (mut sender, counters) = worker(OWN, PEER, Loop::default());
    sender.tunnel_mut().set_protection(if is_secured { protection() } else { None });
    let sent = least(
        rounds,
        || driver.borrow_mut().offer_tx(count),
        || {
            let Driver { tx, memory, .. } = &mut *driver.borrow_mut();
            sender.transmit(tx, memory, Instant::ZERO).expect("a sound ring");
        },
    );
    assert!(counters.get(VifCounter::tx_frames) >= u64::from(count), "frames leave");
    sent
}

fn measure(name: &str, rounds: usize, bytes: &[u8], pieces: &[usize], count: u16) {
    let mut driver = Driver::new();
    driver.fill_tx(bytes, pieces, count);
    let (mut sender, counters) = worker(OWN, PEER, Loop { is_recording: true, ..Loop::default() });
    let transmit = |sender: &mut Worker<Loop>, driver: &mut Driver| {
        driver.offer_tx(count);
        let Driver { tx, memory, .. } = driver;
        sender.transmit(tx, memory, Instant::ZERO).expect("a sound ring");
    };
    transmit(&mut sender, &mut driver);
    assert_eq!(counters.get(VifCounter::tx_frames), u64::from(count), "{name}");
    let kept = sender.tunnel().underlay().kept.clone();
    let driver = RefCell::new(driver);
    let [sent, sealed] = [false, true].map(|sealed| send(&driver, rounds, count, sealed));
    let received = receive(name, rounds, kept, count);
    let each = |time: f64| time / f64::from(count);
    let (sent, sealed, received) = (each(sent), each(sealed), each(received));
    println!(
        "{name:12} sending {sent:7.1} ns, sealed {sealed:7.1} ns, receiving {received:7.1} ns"
    );
}

fn receive(name: &str, rounds: usize, kept: Vec<(Vec<u8>, usize)>, count: u16) -> f64 {
    let mut driver = Driver::new();
    driver.fill_rx();
    let (worker, counters) = worker(PEER, OWN, Loop { kept, is_full: true, ..Loop::default() });
    let worker = RefCell::new(worker);
    let mut step = |worker: &mut Worker<Loop>| {
        let Driver { rx, memory, .. } = &mut driver;
        worker.receive(Port::Own, rx, memory, Instant::ZERO).expect("a sound ring");
        driver.offer_rx();
    };
    step(&mut worker.borrow_mut());
    assert!(counters.get(VifCounter::rx_frames) > 0, "{name}");
    assert!(counters.get(VifCounter::rx_bytes) >= u64::from(count) * 20, "{name}");
    let mut underlay = || {
        let mut worker = worker.borrow_mut();
        worker.tunnel_mut().underlay_mut().is_full = true;
    };
    least(rounds, &mut underlay, || step(&mut worker.borrow_mut()))
}

/// What a frame costs through a lane: its writer, and its reader.
fn through_lane(name: &str, rounds: usize, bytes: &[u8], pieces: &[usize], count: u16) {
    const ID: u32 = 1;
    let (mut from, mut to) = (Driver::new(), Driver::new());
    from.fill_tx(bytes, pieces, count);
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
    let each = least(
        rounds,
        || (),
        || {
            from.offer_tx(count);
            writer.transmit(&mut from.tx, &from.memory, now).expect("a sound ring");
            reader.lanes_rung(u16::try_from(ID).expect("small"), now);
            reader.receive_lanes(&mut to.rx, &to.memory, now).expect("a sound ring");
            to.offer_rx();
            now += Duration::from_millis(100);
        },
    ) / f64::from(count);
    assert!(counters.get(VifCounter::rx_local_frames) > 0, "{name}");
    println!("{name:12} through a lane {each:7.1} ns");
}

fn main() {
    let arguments = std::env::args().skip(1).filter(|text| !text.starts_with('-'));
    let arguments: Vec<String> = arguments.collect();
    let rounds = arguments.first().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS);
    let wanted = arguments.get(1..).unwrap_or_default();
    let (short, long) = (frame(64, None), frame(1400, None));
    let large = frame(62_000, Some(1398));
    let cases: [(&str, &[u8], &[usize], u16); 3] = [
        ("64", &short, &[], 256),
        ("1400", &long, &[12 + 42], 128),
        ("64 KiB TSO", &large, &[12 + 54, 32 << 10], 4),
    ];
    for (name, bytes, pieces, count) in cases {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            measure(name, rounds, bytes, pieces, count);
        }
        let lane = format!("lane {name}");
        if wanted.is_empty() || wanted.contains(&lane) {
            through_lane(&lane, rounds, bytes, pieces, count);
        }
    }
}
