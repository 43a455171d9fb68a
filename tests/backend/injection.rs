//! Datagrams that are not for the vif, from somebody who can send to its port and to its group.
//!
//! ```text
//!     guest 1 on vnet 42   guest 2 on vnet 43       the attacker: a vif on vnet 99 that sends
//!         |                   |                       |           what it likes from its socket
//!       host a ---------------+                     host b
//! ```

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};

use vnet::metrics::VifCounter;
use vnet::policy::Floor;
use vnet::sys::seqpacket::Connection;
use vnet::wire::control::{Event, Features, MAX_LEN, Request};
use vnet::wire::{Capabilities, Mac, VifKey, VnetId};

use crate::nic::{BROADCAST, Nic, mac, vif};
use crate::support::vnet::Varpd;
use crate::support::{step, wait_until};
use crate::{Counters, Net, SOON};

/// Datagrams for another vnet.
const MANY: u64 = 1_000_000;
/// Datagrams of each other kind.
const SOME: u64 = 10_000;
/// Datagrams that may be on their way at a time: they fit the vif's socket buffer.
const WINDOW: u64 = 16_384;
/// Datagrams between two looks at the counters.
const BURST: u64 = 8192;

/// The attacker's registration, and the socket that came with it.
pub(crate) struct Attacker {
    pub(crate) socket: UdpSocket,
    group: SocketAddr,
    _registration: Connection,
}

impl Attacker {
    pub(crate) fn register(varpd: &Varpd) -> Self {
        let varpd = Connection::open(&varpd.socket).unwrap();
        let key = VifKey { vnet: VnetId::new(99).unwrap(), mac: Mac(mac(66)) };
        let capabilities = Capabilities::NONE;
        let (active, stamp, learn, floor) = (true, None, 0, Floor::default());
        let register =
            Request::Register { key, capabilities, queue_pairs: 1, active, stamp, learn, floor };
        let hello = Request::Hello { features: Features::NONE, software: "a test".into() };
        let mut buffer = vec![0; MAX_LEN];
        let mut say = |request: Request| {
            varpd.send(&request.emit(), &[]).unwrap();
            assert!(varpd.wait_readable(SOON).unwrap());
            let got = varpd.recv(&mut buffer).unwrap();
            (Event::parse(&buffer[..got.len]).unwrap(), got.fds)
        };
        assert!(matches!(say(hello).0, Event::Hello { .. }));
        let (Event::Registered { group, .. }, mut fds) = say(register) else {
            panic!("the attacker's own vif is a legal one")
        };
        let socket = UdpSocket::from(fds.pop().unwrap());
        socket.set_nonblocking(false).unwrap();
        Self { socket, group, _registration: varpd }
    }

    /// Sends a datagram.
    pub(crate) fn send(&self, datagram: &[u8], to: SocketAddr) {
        self.socket.send_to(datagram, to).unwrap();
    }
}

/// A tunnelled frame.
fn datagram(vnet: u32, to: [u8; 6], from: [u8; 6]) -> Vec<u8> {
    let header = [&[0x40, 0, 0, 0][..], &vnet.to_be_bytes()].concat();
    [&header[..], &to, &from, &[0x08, 0, 1, 2, 3, 4]].concat()
}

/// The same with an octet of the header changed.
fn altered(at: usize, value: u8) -> Vec<u8> {
    let mut datagram = good();
    datagram[at] = value;
    datagram
}

/// What would be delivered, from a peer.
fn good() -> Vec<u8> {
    datagram(42, mac(1), mac(7))
}

/// A kind of datagram: its name, how it is counted, the n-th of its kind, how many, whether it goes
/// to the group.
struct Kind {
    name: &'static str,
    counter: VifCounter,
    make: fn(u64) -> Vec<u8>,
    count: u64,
    to_group: bool,
}

const fn some(name: &'static str, counter: VifCounter, make: fn(u64) -> Vec<u8>) -> Kind {
    Kind { name, counter, make, count: SOME, to_group: false }
}

/// Vnets that are not 42: a neighbour's, none, the physical one, and 42 in other places of the id.
const FOREIGN_VNETS: [u32; 8] = [43, 0, 1, 41, 42 << 8, 42 << 24, 0x8000_002a, u32::MAX];

const KINDS: &[Kind] = &[
    Kind {
        name: "another vnet",
        counter: VifCounter::rx_drop_vnet,
        make: |n| {
            datagram(FOREIGN_VNETS[n as usize % 8], [mac(1), BROADCAST][n as usize / 8 % 2], mac(7))
        },
        count: MANY,
        to_group: false,
    },
    some("version nibble", VifCounter::rx_drop_version, |n| {
        altered(0, [0x00, 0x10, 0x20, 0x30, 0x50, 0x60, 0x70, 0x45 - 0x10][n as usize % 8])
    }),
    some("ESP", VifCounter::rx_drop_protected, |n| altered(0, 0x80 | n as u8)),
    some("reserved bits", VifCounter::rx_drop_flags, |n| {
        let (at, bits): (usize, &[u8]) = [
            (0, &[0x41, 0x42, 0x44, 0x48][..]),
            (1, &[0x10, 0x18, 0x20, 0x40, 0x80]),
            (2, &[1, 0x80, 0xff]),
            (3, &[1, 0x80, 0xff]),
        ][n as usize % 4];
        altered(at, bits[n as usize / 4 % bits.len()])
    }),
    some("flags that exclude each other", VifCounter::rx_drop_flags, |n| {
        altered(1, [3, 7, 9, 10, 12, 15][n as usize % 6])
    }),
    some("flag O with what is no echo", VifCounter::rx_drop_echo, |_| altered(1, 8)),
    // Read as a piece, its offset is beyond that of any frame.
    some("flag F without a piece", VifCounter::rx_drop_fragment, |n| altered(1, 4 + n as u8 % 3)),
    some("flag C without a transport header", VifCounter::rx_drop_checksum, |_| altered(1, 1)),
    some("flag B without a bundle", VifCounter::rx_drop_bundle, |_| altered(1, 2)),
    some("truncated", VifCounter::rx_drop_truncated, |n| good()[..n as usize % 22].to_vec()),
    some("another MAC", VifCounter::rx_drop_destination, |n| {
        let [.., a, b] = n.to_be_bytes();
        datagram(42, [0x52, 0x54, 0, 1, a, b], mac(7))
    }),
    some("own or group source", VifCounter::rx_drop_source, |n| {
        datagram(42, mac(1), [mac(1), BROADCAST, [0; 6], [0x33, 0x33, 0, 0, 0, 1]][n as usize % 4])
    }),
    Kind {
        name: "individual MAC at the group",
        counter: VifCounter::rx_drop_not_group,
        make: |_| good(),
        count: SOME,
        to_group: true,
    },
];

/// What has become of datagrams so far: delivered or dropped by the program, or before it.
fn settled(counters: &Counters) -> u64 {
    counters.get(VifCounter::rx_frames) + counters.sum("rx_drop_")
}

/// Sends a kind of datagram at the pace at which they are counted; returns how many.
///
/// A datagram that found the socket buffer full is told of by the next that does not: so one is
/// sent with each look.
fn send(attacker: &Attacker, victim: SocketAddr, kind: &Kind, look: impl Fn() -> u64) -> u64 {
    let to = if kind.to_group { attacker.group } else { victim };
    let mut sent = 0;
    let send_one = |sent: &mut u64| {
        attacker.socket.send_to(&(kind.make)(*sent), to).unwrap();
        *sent += 1;
    };
    let before = look();
    while sent < kind.count {
        for _ in 0..BURST.min(kind.count - sent) {
            send_one(&mut sent);
        }
        wait_until("the backend keeps up", SOON, || {
            let room = look() - before + WINDOW > sent;
            if !room {
                send_one(&mut sent);
            }
            room
        });
    }
    wait_until("all are counted", SOON, || {
        look() - before == sent || {
            send_one(&mut sent);
            false
        }
    });
    sent
}

#[test]
fn foreign_datagrams_are_dropped_and_counted() {
    let Some(net) = Net::new("10^6 datagrams for another vnet, and others", 2) else { return };
    let mut victim = Nic::start("victim", vif(42, 1), &net.varpds[0]);
    let mut bystander = Nic::start("bystander", vif(43, 1), &net.varpds[0]);
    let attacker = Attacker::register(&net.varpds[1]);
    let vifs = net.varpds[0].show("vifs");
    let row = vifs.as_array().unwrap().iter().find(|row| row["vnet"] == 42).unwrap();
    let coa: SocketAddr = row["coa"].as_str().unwrap().trim_start_matches("udp:").parse().unwrap();

    let mut sent = BTreeMap::new();
    let (mut total, mut overflow) = (0, 0);
    for kind in KINDS {
        let look = || settled(&victim.counters(&net.varpds[0]));
        let count = send(&attacker, coa, kind, look);
        *sent.entry(kind.counter.name()).or_insert(0) += count;
        total += count;
        let counters = victim.counters(&net.varpds[0]);
        let lost = counters.get(VifCounter::rx_drop_overflow);
        step(&format!(
            "{}: {count} sent, of which the kernel dropped {}",
            kind.name,
            lost - overflow
        ));
        overflow = lost;
    }
    let counters = victim.counters(&net.varpds[0]);
    assert_eq!(counters.get(VifCounter::rx_frames), 0);
    assert_eq!(counters.sum("rx_drop_"), total, "{counters:?}");
    // All of a kind is under its name, but for what the kernel dropped.
    let mut named = counters.starting_with("rx_drop_");
    named.remove(VifCounter::rx_drop_overflow.name());
    assert!(named.keys().eq(sent.keys()), "{named:?}");
    let missing: u64 = sent.iter().map(|(name, count)| count - named[name]).sum();
    assert_eq!(missing, overflow);
    assert!(overflow < total / 100, "paced: {overflow}");
    victim.driver.control.sync().unwrap();
    victim.assert_silent();
    bystander.assert_silent();
    let counters = bystander.counters(&net.varpds[0]);
    assert_eq!((counters.sum("rx_frames"), counters.sum("rx_drop_")), (0, 0));

    // What is for the vif does arrive: only that was told apart.
    attacker.socket.send_to(&good(), coa).unwrap();
    assert_eq!(victim.driver.recv_frame(SOON).unwrap(), good()[8..]);
    step(&format!("{total} datagrams, none delivered, {overflow} of them dropped by the kernel"));
}
