//! A hostile driver at the real program: the abuses of `support/abuse.rs`, and those of receive
//! rings.
//!
//! ```text
//!     guest 1: the abuser        guest 2: the witness, who answers each frame
//!         |                         |
//!       host a ---------------------+
//! ```

use std::cell::RefCell;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vnet::metrics::VifCounter;
use vnet::sys::clock;

use crate::abuse::{
    BAD_TRANSMIT_RINGS, bad_chains_are_returned, malformed_rings_stop, rewrite_descriptors,
};
use crate::driver::{Control, Driver, HEADER_LEN, Options, WRITE, gpa, readable};
use crate::nic::{BROADCAST, ETHER_TYPE, LEN, Nic, frame, mac, number, vif};
use crate::rig::{PATIENCE, Rig, eventually};
use crate::support::vnet::{Backend, Listener};
use crate::support::{step, wait_until};
use crate::{Counters, Net, SOON};

/// The backend that is abused, and the witness.
struct Abused {
    backend: RefCell<Backend>,
    socket: PathBuf,
    witness: RefCell<Nic>,
    net: Net,
    /// The connection of the last driver.
    last: RefCell<Option<UnixStream>>,
}

impl Abused {
    fn new(test: &str) -> Option<Self> {
        let net = Net::new(test, 1)?;
        let witness = RefCell::new(Nic::start("witness", vif(42, 2), &net.varpds[0]));
        let backend = Backend::start("abused", vif(42, 1), Listener::Backend, &net.varpds[0]);
        let socket = backend.socket.clone();
        let last = RefCell::new(None);
        Some(Self { backend: RefCell::new(backend), socket, witness, net, last })
    }

    fn counters(&self) -> Counters {
        self.net.counters(0, vif(42, 1))
    }

    /// A frame is on its way to the abuser.
    fn send_to_abuser(&self, number: u32) {
        self.witness.borrow_mut().send(mac(1), number);
    }

    /// The program has lived through it all, and serves who connects next.
    fn assert_lives(&self) {
        self.assert_alive(&mut self.connect(Options::default()));
        self.assert_calm();
    }

    /// The program runs, has not panicked, and has not said too much.
    fn assert_calm(&self) {
        let mut backend = self.backend.borrow_mut();
        backend.process.assert_running();
        let log = backend.process.log();
        assert!(!log.contains("panic"), "{log}");
        assert!(log.lines().count() < 100, "the guest cannot fill the log: {log}");
    }

    /// Connects and waits until frames pass both ways again. They do once addresses that nobody has
    /// are given up, of which only so many can be resolved at a time, and once the witness may ask
    /// again: each time that the rings stopped it had to look for the abuser anew.
    fn recover(&self) -> Driver {
        let mut driver = self.connect(Options::default());
        let mut witness = self.witness.borrow_mut();
        let (begin, mut count) = (clock::mono(), FIRST);
        let (mut out, mut back) = (FIRST, FIRST);
        wait_until("frames pass both ways", SOON, || {
            driver.send_frame(&frame(mac(2), mac(1), count, LEN));
            witness.send(mac(1), count);
            count += 1;
            out = out.max(last_of(&mut witness.driver, mac(1)));
            back = back.max(last_of(&mut driver, mac(2)));
            out > FIRST && back > FIRST
        });
        step(&format!("frames pass both ways again after {:?}", clock::mono() - begin));
        // What was sent before these arrives before them.
        driver.send_frame(&frame(mac(2), mac(1), u32::MAX, LEN));
        wait_until("the last frame out", SOON, || last_of(&mut witness.driver, mac(1)) == u32::MAX);
        driver.send_frame(&frame(BROADCAST, mac(1), u32::MAX, LEN));
        wait_until("the last one to all", SOON, || {
            last_of(&mut witness.driver, mac(1)) == u32::MAX
        });
        witness.send(mac(1), u32::MAX);
        wait_until("the last frame back", SOON, || last_of(&mut driver, mac(2)) == u32::MAX);
        drop(witness);
        driver
    }
}

/// The first number of frames that are sent to see whether frames pass.
const FIRST: u32 = 1 << 24;

/// The highest number among the well-formed frames from a sender that have arrived by now.
fn last_of(driver: &mut Driver, from: [u8; 6]) -> u32 {
    let frames = std::iter::from_fn(|| driver.recv_frame(Duration::ZERO));
    let whole = frames.filter(|f| f.len() == LEN && f[6..12] == from && f[12..14] == ETHER_TYPE);
    whole.map(|frame| number(&frame, from)).max().unwrap_or(0)
}

/// Exchanges the two addresses.
fn turned(frame: &[u8]) -> Vec<u8> {
    [&frame[6..12], &frame[..6], &frame[12..]].concat()
}

impl Rig for Abused {
    fn path(&self) -> &Path {
        &self.socket
    }

    /// The one before is hung up: the backend serves the next only then.
    fn connect(&self, options: Options) -> Driver {
        let control = Control::connect(&self.socket).unwrap();
        let stream = control.socket.try_clone().unwrap();
        if let Some(last) = self.last.replace(Some(stream)) {
            // Fails if the backend has closed it already.
            let _ = last.shutdown(Shutdown::Both);
        }
        let mut driver = Driver::new(control, options);
        driver.negotiate().and_then(|()| driver.start()).unwrap();
        driver
    }

    /// There and back.
    fn pass(&self, driver: &mut Driver, frame: &[u8]) -> Option<Vec<u8>> {
        let mut witness = self.witness.borrow_mut();
        driver.send_frame(frame);
        let seen = witness.driver.recv_frame(PATIENCE)?;
        assert!(seen == frame, "the witness has seen what was sent");
        witness.send_frame(&turned(&seen));
        driver.recv_frame(PATIENCE).map(|frame| turned(&frame))
    }

    fn ring_failures(&self) -> u64 {
        self.counters().get(VifCounter::ring_errors)
    }

    fn malformed(&self) -> u64 {
        self.counters().get(VifCounter::tx_drop_malformed)
    }
}

#[test]
fn bad_chains_are_dropped_and_counted() {
    let Some(rig) = Abused::new("bad transmit chains") else { return };
    let mut count = 0;
    for event_idx in [true, false] {
        let mut driver = rig.connect(Options { event_idx, ..Options::default() });
        count += bad_chains_are_returned(&rig, &mut driver);
    }
    assert_eq!(rig.malformed(), count as u64);
    assert_eq!(rig.ring_failures(), 0);
    rig.assert_lives();
    step(&format!("{count} bad chains"));
}

/// What is in a virtio-net header that was not negotiated.
#[test]
fn headers_that_ask_for_offloads_are_dropped_and_counted() {
    let Some(rig) = Abused::new("virtio-net headers with offloads") else { return };
    let mut driver = rig.connect(Options::default());
    let sent = frame(mac(2), mac(1), 1, LEN);
    for (count, (at, value)) in (1..).zip([(0, 1), (0, 0xff), (1, 1), (1, 3), (1, 0x80)]) {
        let mut header = [0; HEADER_LEN];
        header[at] = value;
        assert!(driver.queue_packet(0, &header, &sent));
        driver.flush(0);
        rig.assert_alive(&mut driver);
        assert_eq!(rig.counters().get(VifCounter::tx_drop_header), count);
    }
    assert_eq!(rig.malformed(), 0);
    rig.assert_lives();
}

#[test]
fn malformed_transmit_rings_stop_until_they_are_reset() {
    let Some(rig) = Abused::new("malformed transmit rings") else { return };
    let mut driver = rig.connect(Options::default());
    malformed_rings_stop(&rig, &mut driver, BAD_TRANSMIT_RINGS);
    assert_eq!(rig.ring_failures(), BAD_TRANSMIT_RINGS.len() as u64);
    rig.assert_lives();
}

/// What is done to receive buffers: address, length and flags for each slot, in memory of a length;
/// and how many of a ring's are bad then.
type BadBuffers = (&'static str, fn(u16, u64) -> (u64, u32, u16), u64);

const BAD_BUFFERS: &[BadBuffers] = &[
    ("buffers to be read", |_, _| (gpa(0), 2048, 0), 256),
    ("buffers outside memory", |_, _| (gpa(1 << 40), 2048, WRITE), 256),
    ("buffers without room", |_, _| (gpa(0), 0, WRITE), 256),
    ("buffers across the end of memory", |_, len| (gpa(len - 100), 2048, WRITE), 256),
    ("buffers at the end of the address space", |_, _| (u64::MAX - 100, 2048, WRITE), 256),
    // The frame needs two: each good one goes back with the bad one behind it.
    ("good and bad buffers in turns", |slot, _| (gpa(0), 64, WRITE * (1 - slot % 2)), 128),
];

/// Receive chains that cannot be written to: all are returned empty and counted, and the frame that
/// found them is delivered into the next good one.
#[test]
fn bad_receive_chains_are_returned_and_counted() {
    let Some(rig) = Abused::new("bad receive chains") else { return };
    let mut driver = rig.connect(Options::default());
    let mut total = 0;
    for (number, (name, buffer, bad)) in (1..).zip(BAD_BUFFERS) {
        rig.assert_alive(&mut driver);
        // So that the device takes slot 0 next.
        driver.reset().unwrap();
        let rx = &mut driver.pairs[0].rx;
        for slot in 0..rx.size {
            let (address, len, flags) = buffer(slot, driver.memory.len() as u64);
            rx.descriptor(slot, address, len, flags, 0);
        }
        rig.send_to_abuser(number);
        for _ in 0..rx.size {
            let (_, len) = rx.wait_used(PATIENCE).expect(name);
            assert_eq!(len, 0, "{name}: nothing is written");
        }
        // Good ones at last.
        driver.fill_rx(0);
        let got = driver.recv_frame(PATIENCE).expect(name);
        assert_eq!(self::number(&got, mac(2)), number);
        total += bad;
        let dropped = rig.counters().get(VifCounter::rx_drop_malformed);
        assert_eq!(dropped, total, "{name}: all are counted");
    }
    assert_eq!(rig.ring_failures(), 0);
    rig.assert_lives();
}

/// A receive index that jumps: noticed with the next frame, which is delivered after the reset.
#[test]
fn a_malformed_receive_ring_stops_until_it_is_reset() {
    let Some(rig) = Abused::new("a malformed receive ring") else { return };
    let mut driver = rig.connect(Options::default());
    for count in 1..=3 {
        rig.assert_alive(&mut driver);
        let rx = &mut driver.pairs[0].rx;
        rx.next_avail = rx.next_avail.wrapping_add(rx.size + 1);
        rx.expose();
        rig.send_to_abuser(count);
        assert!(readable(&driver.pairs[0].rx.err, PATIENCE), "the error is signalled");
        eventually("it is counted", || rig.ring_failures() == u64::from(count));
        driver.reset().unwrap();
        // What waited is delivered or, having been read already, counted.
        rig.send_to_abuser(1000 + count);
        wait_until("a frame arrives after the reset", SOON, || {
            let got = driver.recv_frame(Duration::ZERO);
            got.is_some_and(|got| number(&got, mac(2)) == 1000 + count)
        });
    }
    let counters = rig.counters();
    let sent = rig.witness.borrow().counters(&rig.net.varpds[0]).get(VifCounter::tx_frames);
    let settled = counters.get(VifCounter::rx_frames) + counters.get(VifCounter::rx_drop_no_ring);
    assert_eq!(settled, sent, "{counters:?}");
    rig.assert_lives();
}

#[test]
fn descriptors_that_change_meanwhile_do_no_harm() {
    let Some(rig) = Abused::new("descriptors that are rewritten meanwhile") else { return };
    let mut driver = rig.connect(Nic::options());
    let mut sent = 0;
    let rounds = std::thread::scope(|scope| {
        let rewriting = scope.spawn(|| rewrite_descriptors(&mut driver, Duration::from_secs(3)));
        while !rewriting.is_finished() {
            rig.send_to_abuser(sent);
            sent += 1;
            std::thread::park_timeout(Duration::from_micros(100));
        }
        rewriting.join().unwrap()
    });
    let counters = rig.counters();
    step(&format!(
        "rings offered {rounds} times, {sent} frames to them: tx {:?}, rx {:?}, {} ring errors",
        counters.starting_with("tx_"),
        counters.starting_with("rx_"),
        rig.ring_failures()
    ));
    assert!(rounds > 100, "{rounds} rounds are too few to mean anything");
    assert!(counters.get(VifCounter::tx_drop_malformed) > 0);
    assert!(counters.get(VifCounter::rx_drop_malformed) > 0);
    driver = rig.recover();
    rig.assert_alive(&mut driver);
    rig.assert_calm();
}
