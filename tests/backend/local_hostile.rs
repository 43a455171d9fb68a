//! A process on the same host that is a vif, gets lanes as one, and breaks their rules.
//!
//! ```text
//!     guest 1        guest 2        the attacker: vif 3, registered by this test,
//!        |              |               |         which writes what it likes to lanes
//!      host a ----------+---------------+
//! ```

use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::Duration;

use etherparse::PacketBuilder;
use vnet::lane::{Reader, Writer};
use vnet::metrics::VifCounter;
use vnet::offload::features::Offloads;
use vnet::policy::Floor;
use vnet::sys::iovec::{Gather, IoVec};
use vnet::sys::seqpacket::Connection;
use vnet::sys::shared_memory::SharedMemory;
use vnet::wire::control::{Event, Features, MAX_LEN, Request};
use vnet::wire::{Capabilities, Mac, VifKey, VnetId};

use crate::driver::Options;
use crate::nic::{Nic, frame, mac, vif};
use crate::support::netns::Family;
use crate::support::vnet::Varpd;
use crate::support::{step, wait_until};
use crate::{Net, SOON};

/// A vif without a guest.
struct Attacker {
    varpd: Connection,
    _sockets: Vec<OwnedFd>,
}

/// A lane that it was given.
struct Lane {
    number: u32,
    is_read: bool,
    memory: OwnedFd,
    bell: OwnedFd,
}

impl Lane {
    fn writer(&self) -> Writer {
        Writer::new(self.memory.try_clone().unwrap(), self.bell.try_clone().unwrap()).unwrap()
    }

    fn map(&self) -> SharedMemory {
        SharedMemory::map(self.memory.try_clone().unwrap(), |_| true).unwrap()
    }
}

impl Attacker {
    fn register(varpd: &Varpd, features: Features) -> Self {
        Self::register_as(3, varpd, features)
    }

    fn register_as(last: u8, varpd: &Varpd, features: Features) -> Self {
        let connection = Connection::open(&varpd.socket).unwrap();
        let key = VifKey { vnet: VnetId::new(42).unwrap(), mac: Mac(mac(last)) };
        let (active, stamp, learn, floor) = (true, None, 0, Floor::default());
        let capabilities = Capabilities::NONE;
        let register =
            Request::Register { key, capabilities, queue_pairs: 1, active, stamp, learn, floor };
        let mut this = Self { varpd: connection, _sockets: Vec::new() };
        this.tell(&Request::Hello { features, software: "a test".into() });
        assert!(matches!(this.next(), Some((Event::Hello { .. }, _))));
        this.tell(&register);
        let (event, sockets) = this.next().expect("an answer");
        assert!(matches!(event, Event::Registered { .. }), "{event:?}");
        this._sockets = sockets;
        this
    }

    fn tell(&self, request: &Request) {
        self.varpd.send(&request.emit(), &[]).unwrap();
    }

    fn next(&self) -> Option<(Event, Vec<OwnedFd>)> {
        if !self.varpd.wait_readable(Duration::from_secs(1)).unwrap() {
            return None;
        }
        let mut buffer = vec![0; MAX_LEN];
        let got = self.varpd.recv(&mut buffer).unwrap();
        Some((Event::parse(&buffer[..got.len]).unwrap(), got.fds))
    }

    /// Asks for a MAC until it is told where that is; returns the lanes that came before.
    fn ask(&self, whose: u8) -> Vec<Lane> {
        self.tell(&Request::Resolve { mac: Mac(mac(whose)), refresh: false });
        let mut lanes = Vec::new();
        loop {
            let (event, fds) = self.next().expect("varpd answers");
            match event {
                Event::Lane { lane, is_read, .. } => {
                    let [memory, bell] = <[OwnedFd; 2]>::try_from(fds).unwrap();
                    lanes.push(Lane { number: lane, is_read, memory, bell });
                }
                Event::Mapping { mac: found, .. } if found == Mac(mac(whose)) => return lanes,
                _ => {}
            }
        }
    }

    /// A lane to a vif, as soon as varpd gives one again.
    fn lane_to(&self, whose: u8) -> Lane {
        let mut found = None;
        wait_until("a lane", SOON, || {
            found = self.ask(whose).into_iter().find(|lane| !lane.is_read);
            found.is_some()
        });
        found.unwrap()
    }

    /// The lane that another vif was given to this one.
    fn lane_from_another(&self) -> Lane {
        loop {
            let (event, fds) = self.next().expect("a lane from another vif");
            if let Event::Lane { lane, is_read: true, .. } = event {
                let [memory, bell] = <[OwnedFd; 2]>::try_from(fds).unwrap();
                return Lane { number: lane, is_read: true, memory, bell };
            }
        }
    }
}

fn failed(nic: &Nic, net: &Net) -> u64 {
    nic.counters(&net.varpds[0]).get(VifCounter::lanes_failed)
}

/// Frames pass between the guests, as before.
fn assert_unharmed(one: &mut Nic, two: &mut Nic) {
    one.introduce(two);
    one.assert_silent();
    two.assert_silent();
}

fn start(test: &str) -> Option<(Net, Nic, Nic)> {
    let net = Net::with(test, 1, Family::V4, "")?;
    let one = Nic::start("g1", vif(42, 1), &net.varpds[0]);
    let two = Nic::start("g2", vif(42, 2), &net.varpds[0]);
    Some((net, one, two))
}

const LANES: Features = Features::LANES;

/// Puts nonsense where the numbers of a lane are.
type Lie = fn(&SharedMemory);

/// Offsets as drawn in `vnet::lane`: head, and the first entry's length.
const HEAD: usize = 0;
const FIRST: usize = 4096;

fn store(memory: &SharedMemory, at: usize, value: u32) {
    memory.word(at).unwrap().store(value, std::sync::atomic::Ordering::SeqCst);
}

fn tell_lie(lane: &Lane, lie: Lie) {
    let bell = vnet::sys::doorbell::Doorbell::new(lane.bell.try_clone().unwrap());
    lie(&lane.map());
    bell.ring();
}

#[test]
fn a_writer_that_lies_harms_only_itself() {
    let Some((net, mut one, mut two)) = start("lies in indices and lengths") else { return };
    assert_unharmed(&mut one, &mut two);
    let lies: [(&str, Lie); 5] = [
        ("a head far ahead", |m| store(m, HEAD, 1 << 30)),
        ("a head between entries", |m| store(m, HEAD, 7)),
        ("no length", |m| store(m, HEAD, 4096)),
        ("a length beyond what is there", |m| {
            store(m, FIRST, 60_000);
            store(m, HEAD, 4096);
        }),
        ("a length beyond all frames", |m| {
            store(m, FIRST, 1 << 20);
            store(m, HEAD, 1 << 20);
        }),
    ];
    // Who has lied once is not given another lane at once; there are others.
    let attackers = [3, 4, 5, 6, 7].map(|n| Attacker::register_as(n, &net.varpds[0], LANES));
    for (n, ((name, lie), attacker)) in (1..).zip(lies.into_iter().zip(&attackers)) {
        tell_lie(&attacker.lane_to(1), lie);
        wait_until(name, SOON, || failed(&one, &net) == n);
        step(name);
        assert_unharmed(&mut one, &mut two);
    }
    tell_lie(&attackers[0].lane_to(1), lies[1].1);
    wait_until("who lies again", SOON, || failed(&one, &net) == 6);
    assert_unharmed(&mut one, &mut two);
    assert_eq!(failed(&two, &net), 0);
}

#[test]
fn frames_in_a_lane_are_judged_as_any() {
    let Some((net, mut one, mut two)) = start("bad frames in a lane") else { return };
    let attacker = Attacker::register(&net.varpds[0], LANES);
    let lane = attacker.lane_to(1);
    // The length is sealed.
    for len in [0, 4096, 1 << 22] {
        assert!(File::from(lane.memory.try_clone().unwrap()).set_len(len).is_err());
    }
    let mut writer = lane.writer();
    let mut write = |header: [u8; 12], bytes: &[u8]| {
        let piece = [IoVec::from_slice(bytes)];
        let addresses = bytes[..12].try_into().unwrap();
        writer.write(&header, &addresses, bytes.len(), Gather::new(&piece, 12)).unwrap();
    };
    let good = frame(mac(1), mac(3), 1, 60);
    let none = [0; 12];
    // To another; from the vif itself; from a group.
    write(none, &frame(mac(2), mac(3), 1, 60));
    write(none, &frame(mac(1), mac(1), 1, 60));
    write(none, &frame(mac(1), [0xff; 6], 1, 60));
    // Checksums and segments that are not there.
    let header = |flags, gso, size: u8, start: u8, offset: u8| {
        [flags, gso, 0, 0, size, 0, start, 0, offset, 0, 0, 0]
    };
    write(header(1, 0, 0, 60, 0), &good);
    write(header(1, 0, 0, 2, 0), &good);
    write(header(1, 1, 100, 34, 16), &good);
    write(header(0, 1, 100, 34, 16), &good);
    write(header(1, 7, 100, 34, 16), &good);
    write(none, &frame(mac(1), mac(3), 2, 60));
    writer.publish();
    assert_eq!(one.receive(mac(3)), 2, "only the good one arrives");
    one.assert_silent();
    let counters = one.counters(&net.varpds[0]);
    let drops = [
        (VifCounter::rx_drop_destination, 1),
        (VifCounter::rx_drop_source, 2),
        (VifCounter::rx_drop_lane, 5),
    ];
    for (counter, count) in drops {
        assert_eq!(counters.get(counter), count, "{counters:?}");
    }
    assert_eq!(counters.sum("rx_drop_"), 8);
    assert_eq!(counters.get(VifCounter::lanes_failed), 0);
    assert_unharmed(&mut one, &mut two);
}

/// Ethernet, IPv4, TCP.
const HEADERS: usize = 54;

/// A TCP frame whose sender wants it cut into segments of one byte.
fn in_tiny_segments(to: u8, from: u8, payload: usize) -> ([u8; 12], Vec<u8>) {
    let builder = PacketBuilder::ethernet2(mac(from), mac(to));
    let builder = builder.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).tcp(1000, 2000, 1, 1000).ack(1);
    let mut bytes = Vec::new();
    builder.write(&mut bytes, &vec![7; payload]).unwrap();
    // NEEDS_CSUM; TCPv4; hdr_len; gso_size 1; csum_start; csum_offset.
    ([1, 1, HEADERS as u8, 0, 1, 0, 34, 0, 16, 0, 0, 0], bytes)
}

/// A few bytes in a lane are not to be a thousand frames of work for its reader.
#[test]
fn frames_in_tiny_segments_are_cut_by_who_sends_them() {
    let Some(net) = Net::with("tiny segments through lanes", 1, Family::V4, "") else { return };
    let offloads = Offloads::CSUM.bits() | Offloads::HOST_TSO4.bits();
    let options = Options { tx_buffer: 66_000, offloads, ..Nic::options() };
    let mut one = Nic::start_with("g1", vif(42, 1), &net.varpds[0], options, &[]);
    let mut two = Nic::start("g2", vif(42, 2), &net.varpds[0]);
    assert_unharmed(&mut one, &mut two);
    let attacker = Attacker::register(&net.varpds[0], LANES);
    step("what an attacker leaves to a reader is dropped");
    let mut writer = attacker.lane_to(1).writer();
    let (header, bytes) = in_tiny_segments(1, 3, 1000);
    let piece = [IoVec::from_slice(&bytes)];
    let addresses = bytes[..12].try_into().unwrap();
    writer.write(&header, &addresses, bytes.len(), Gather::new(&piece, 12)).unwrap();
    writer.publish();
    wait_until("it is dropped", SOON, || {
        one.counters(&net.varpds[0]).get(VifCounter::rx_drop_lane) == 1
    });
    one.assert_silent();
    step("what a guest wants cut its own backend cuts");
    one.send(mac(3), 0);
    let lane = attacker.lane_from_another();
    let mut reader = Reader::new(lane.memory, lane.bell).unwrap();
    let (header, bytes) = in_tiny_segments(3, 1, 1000);
    assert!(one.driver.queue_packet(0, &header, &bytes));
    one.driver.flush(0);
    let mut segments = 0;
    wait_until("all segments are there", SOON, || {
        while let Some(entry) = reader.peek().unwrap() {
            assert_eq!(entry.header()[..10], [0; 10], "nothing is left to do");
            segments += usize::from(entry.len() == HEADERS + 1);
            reader.take(&entry);
        }
        reader.publish();
        segments == 1000
    });
    assert_unharmed(&mut one, &mut two);
}

#[test]
fn a_reader_that_lies_or_reads_nothing_harms_only_itself() {
    let Some((net, mut one, mut two)) = start("a reader that lies, and one that stands still")
    else {
        return;
    };
    assert_unharmed(&mut one, &mut two);
    let attacker = Attacker::register(&net.varpds[0], LANES);
    one.send(mac(3), 0);
    let lane = attacker.lane_from_another();
    // It rings for nothing, and takes nothing: the lane is full in the end.
    let bell = vnet::sys::doorbell::Doorbell::new(lane.bell.try_clone().unwrap());
    for n in 0..3000 {
        bell.ring();
        one.queue_frame(&frame(mac(3), mac(1), n, 1000));
        if n % 100 == 0 {
            one.send(mac(2), n);
            assert_eq!(two.receive(mac(1)), n);
        }
    }
    one.driver.flush(0);
    one.wait_sent();
    wait_until("frames that find it full are dropped", SOON, || {
        one.counters(&net.varpds[0]).get(VifCounter::tx_drop_backpressure) > 0
    });
    assert_eq!(failed(&one, &net), 0);
    // It says that it has read what was never written.
    store(&lane.map(), 128, 1 << 30);
    wait_until("the lie is found out", SOON, || {
        one.send(mac(3), 1);
        failed(&one, &net) == 1
    });
    let before = one.counters(&net.varpds[0]).get(VifCounter::tx_local_frames);
    for n in 0..10 {
        one.send(mac(3), n);
    }
    one.wait_sent();
    let after = one.counters(&net.varpds[0]);
    assert_eq!(after.get(VifCounter::tx_local_frames), before, "by UDP again");
    assert_unharmed(&mut one, &mut two);
    drop(attacker);
    assert_unharmed(&mut one, &mut two);
}

/// Frames that a reader had not taken when it ended are counted.
#[test]
fn what_a_dead_reader_had_not_taken_is_counted() {
    let Some((net, mut one, mut two)) = start("a reader that ends") else { return };
    let attacker = Attacker::register(&net.varpds[0], LANES);
    one.send(mac(3), 0);
    let lane = attacker.lane_from_another();
    let mut reader = Reader::new(lane.memory, lane.bell).unwrap();
    for n in 1..10 {
        one.send(mac(3), n);
    }
    // They wait until the lane is known here, too.
    wait_until("all take the lane", SOON, || {
        one.counters(&net.varpds[0]).get(VifCounter::tx_local_frames) == 10
    });
    for _ in 0..4 {
        wait_until("a frame", SOON, || reader.peek().unwrap().is_some());
        let entry = reader.peek().unwrap().expect("a frame");
        reader.take(&entry);
    }
    reader.publish();
    drop(reader);
    wait_until("the end is seen", SOON, || {
        one.counters(&net.varpds[0]).get(VifCounter::tx_drop_lane) == 6
    });
    assert_unharmed(&mut one, &mut two);
}

#[test]
fn an_older_backend_is_never_given_a_lane() {
    let Some((net, mut one, mut two)) = start("a backend that knows no lanes") else { return };
    let old = Attacker::register(&net.varpds[0], Features::NONE);
    assert!(old.ask(1).is_empty());
    one.send(mac(3), 0);
    one.wait_sent();
    assert_unharmed(&mut one, &mut two);
    assert_eq!(one.counters(&net.varpds[0]).get(VifCounter::lanes_opened), 2, "with the other");
    // Only who has a lane can end it.
    let new = net.varpds[0].show("stats");
    old.tell(&Request::LaneClosed { lane: 0 });
    assert!(old.ask(1).is_empty());
    let lanes = |stats: &serde_json::Value| {
        let rows = stats.as_array().unwrap();
        rows.iter().find(|row| row["counter"] == "lanes_now").unwrap()["value"].as_u64()
    };
    assert_eq!(lanes(&new), lanes(&net.varpds[0].show("stats")));
}

/// A backend that ends its lanes all the time is not given new ones all the time.
#[test]
fn lanes_are_not_made_all_the_time() {
    let Some((net, mut one, mut two)) = start("a backend that closes its lanes") else { return };
    let attacker = Attacker::register(&net.varpds[0], LANES);
    let lane = attacker.lane_to(1);
    attacker.tell(&Request::LaneClosed { lane: lane.number });
    for _ in 0..100 {
        assert!(attacker.ask(1).is_empty());
    }
    assert_unharmed(&mut one, &mut two);
}
