//! Paths between hosts that are narrower than the hosts' links, and change while they are used.
//!
//! ```text
//!     guest 1      guest 2
//!        |            |
//!      host a - r1 -- r2 - host b         the link between the routers is the narrow one,
//!                                         see support/routed.rs
//! ```

use std::sync::MutexGuard;
use std::time::Duration;

use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::{Icmpv4Type, SlicedPacket, TransportSlice};
use tempfile::TempDir;
use vnet::metrics::VifCounter;

use crate::driver::{Control, Driver, HEADER_LEN, Layout, Options};
use crate::injection::Attacker;
use crate::nic::{Nic, frame, mac, vif};
use crate::rig::hang_up;
use crate::support::netns::{Family, Underlay};
use crate::support::routed::Routed;
use crate::support::vnet::Varpd;
use crate::support::{can_make_hosts, step, take_turn, wait_until};
use crate::{Counters, QUIET, SOON};

/// MTU of all links to begin with.
const WIDE: u32 = 1500;
/// MTU of the link in the middle later: the least that IPv6 allows.
const NARROW: u32 = 1280;
/// Payload of a large TCP frame.
const CHUNK: usize = 60_000;
/// Large frames in each direction, with a path that becomes narrow in the middle.
const CHUNKS: u32 = 60;
/// Features of a driver that leaves checksums and segmentation to the device (virtio 1.2, 5.1.3).
const F_CSUM: u64 = 1;
const F_HOST_TSO4: u64 = 1 << 11;

/// Two hosts behind routers. Fields are dropped in this order.
struct Net {
    varpds: Vec<Varpd>,
    routed: Routed,
    underlay: Underlay,
    _directory: TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Net {
    fn new(test: &str, family: Family) -> Option<Self> {
        if !can_make_hosts(test) {
            return None;
        }
        let turn = take_turn();
        step(test);
        let directory = tempfile::tempdir().unwrap();
        let underlay = Underlay::new(2, WIDE);
        let routed = Routed::between(&underlay, WIDE);
        let start = |n: usize| {
            let host = underlay.host(n);
            Varpd::start(host, host.address(family), directory.path())
        };
        let varpds = vec![start(0), start(1)];
        Some(Self { varpds, routed, underlay, _directory: directory, _turn: turn })
    }

    fn counters(&self, host: usize) -> Counters {
        Counters::of(&self.varpds[host], vif(42, host as u8 + 1))
    }

    /// Guests 1 and 2, whose drivers leave segmentation to the device.
    fn guests(&self) -> [Nic; 2] {
        let options = || Options {
            layout: Layout::One,
            queue_size: 64,
            tx_buffer: 66_000,
            rx_buffer: 4096,
            ..Options::default()
        };
        let mut guests = [0, 1].map(|n: usize| {
            let vif = vif(42, n as u8 + 1);
            let mut nic =
                Nic::start_with(&format!("g{}", n + 1), vif, &self.varpds[n], options(), &[]);
            // Once more, with more features.
            hang_up(&nic.driver);
            let control = Control::connect(&nic.backend.socket).unwrap();
            let mut driver = Driver::new(control, options());
            driver.negotiate().unwrap();
            driver.features |= F_CSUM | F_HOST_TSO4;
            driver.start().unwrap();
            nic.driver = driver;
            nic
        });
        let [one, two] = &mut guests;
        one.introduce(two);
        guests
    }
}

/// Ethernet, IPv4 without options.
fn ipv4(from: u8, protocol: u8, dont_fragment: bool, payload: &[u8]) -> Vec<u8> {
    let to = 3 - from;
    let len = 20 + payload.len() as u16;
    let mut header = [
        &[0x45, 0][..],
        &len.to_be_bytes(),
        &[0, 1, u8::from(dont_fragment) << 6, 0, 64, protocol, 0, 0],
        &[10, 0, 0, from, 10, 0, 0, to],
    ]
    .concat();
    let words = header.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let sum = words.sum::<u32>();
    let sum = !((sum >> 16) + (sum & 0xffff)) as u16;
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [&mac(to)[..], &mac(from), &[8, 0], &header, payload].concat()
}

/// UDP, without a checksum.
fn udp(from: u8, dont_fragment: bool, len: usize, seed: u8) -> Vec<u8> {
    let data = (0..len).map(|at| (at as u8).wrapping_mul(7) ^ seed);
    let length = (8 + len as u16).to_be_bytes();
    let datagram = [0x30, 0x39, 0x30, 0x3a].into_iter().chain(length).chain([0, 0]).chain(data);
    ipv4(from, 17, dont_fragment, &datagram.collect::<Vec<u8>>())
}

/// A large TCP frame, and the virtio-net header that asks for segments.
fn tcp(from: u8, sequence: u32) -> ([u8; HEADER_LEN], Vec<u8>) {
    let start = [&[0x30, 0x39, 0, 80][..], &sequence.to_be_bytes(), &[0, 0, 0, 1]].concat();
    let rest = [0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0];
    let data = (0..CHUNK).map(|at| byte(sequence, at));
    let segment = start.into_iter().chain(rest).chain(data).collect::<Vec<u8>>();
    // NEEDS_CSUM, TCPV4; headers of 54 bytes, segments of 1410; the checksum 16 behind byte 34.
    let header = [1, 1, 54, 0, 0x82, 0x05, 34, 0, 16, 0, 0, 0];
    (header, ipv4(from, 6, true, &segment))
}

fn byte(sequence: u32, at: usize) -> u8 {
    (sequence as usize + at).wrapping_mul(31).to_be_bytes()[6]
}

/// Sends the bytes behind `sequence` until all have arrived, as TCP does; returns how often.
fn deliver(sender: &mut Nic, receiver: &mut Nic, sequence: u32) -> u32 {
    let mut arrived = vec![false; CHUNK];
    for tries in 1..20 {
        let (header, frame) = tcp(sender.vif.mac, sequence);
        assert!(sender.driver.wait_room(0, SOON));
        assert!(sender.driver.queue_packet(0, &header, &frame));
        sender.driver.flush(0);
        while arrived.contains(&false) {
            let Some(frame) = receiver.driver.recv_frame(QUIET) else { break };
            take_segment(&frame, sequence, &mut arrived);
        }
        if !arrived.contains(&false) {
            return tries;
        }
    }
    panic!("the bytes behind {sequence} do not arrive")
}

/// Notes which of the bytes behind `sequence` are in a frame.
fn take_segment(frame: &[u8], sequence: u32, arrived: &mut [bool]) {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(TransportSlice::Tcp(tcp)) = packet.transport else { return };
    // What was sent again for an earlier chunk comes late.
    let Some(offset) = tcp.sequence_number().checked_sub(sequence) else { return };
    let start = offset as usize;
    for (at, value) in (start..).zip(tcp.payload()) {
        assert_eq!(*value, byte(sequence, at), "byte {at} behind {sequence}");
        arrived[at] = true;
    }
}

#[test]
fn a_path_that_shrinks_and_grows_on_ipv4() {
    let Some(net) = Net::new("a path that shrinks, IPv4", Family::V4) else { return };
    assert_shrinks_and_grows(&net, Family::V4);
}

#[test]
fn a_path_that_shrinks_and_grows_on_ipv6() {
    let Some(net) = Net::new("a path that shrinks, IPv6", Family::V6) else { return };
    assert_shrinks_and_grows(&net, Family::V6);
}

/// What an ICMP message says of the path.
fn told_mtu(frame: &[u8]) -> Option<u32> {
    let Some(TransportSlice::Icmpv4(icmp)) = SlicedPacket::from_ethernet(frame).unwrap().transport
    else {
        return None;
    };
    match icmp.icmp_type() {
        Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded {
            next_hop_mtu,
        }) => Some(next_hop_mtu.into()),
        _ => None,
    }
}

fn assert_shrinks_and_grows(net: &Net, family: Family) {
    let overhead = if family == Family::V4 { 28 } else { 48 };
    let mut guests = net.guests();
    let mut tries = [0; 2];
    for n in 0..CHUNKS {
        if n == CHUNKS / 2 {
            assert_eq!(tries, [CHUNKS / 2; 2], "all at once as long as nothing changes");
            net.routed.narrow(NARROW);
        }
        for from in [0, 1] {
            let [one, two] = &mut guests;
            let (sender, receiver) = if from == 0 { (one, two) } else { (two, one) };
            tries[from] += deliver(sender, receiver, n * CHUNK as u32);
        }
    }
    step(&format!("{tries:?} tries for {CHUNKS} large frames of {CHUNK} bytes each way"));
    // What was under way is lost, and nothing after it.
    assert!(tries.iter().all(|tries| (CHUNKS + 1..=CHUNKS + 2).contains(tries)), "{tries:?}");
    assert!(net.routed.told(family) >= 2);
    for host in [0, 1] {
        let counters = net.counters(host);
        assert_eq!(counters.get(VifCounter::path_mtu_changes), 1);
        assert_eq!(counters.sum("tx_drop_"), 0, "{counters:?}");
        let log = guests[host].backend.process.log();
        assert!(log.contains("is 1280 bytes"), "{log}");
    }

    assert_long_frames_pass(net, &mut guests, NARROW - overhead - 8 - 14);
    assert_eq!(net.routed.ip_fragments(&net.underlay), 0, "nothing was ever fragmented by IP");
    assert_grows(net, &mut guests);
}

/// Frames that can't be cut, longer than the path, which takes IP packets of `inner` bytes.
fn assert_long_frames_pass(net: &Net, guests: &mut [Nic; 2], inner: u32) {
    step("frames that can't be cut, longer than the path");
    let [one, two] = guests;
    let not_ip = frame(mac(2), mac(1), 7, 1414);
    let may_be_fragmented = udp(1, false, 1400, 1);
    let whole = [&not_ip, &may_be_fragmented];
    for frame in whole {
        one.send_frame(frame);
        assert!(two.driver.recv_frame(SOON).as_ref() == Some(frame), "whole");
    }
    let before = net.counters(0).get(VifCounter::tx_fragmented);
    let long = udp(1, true, 1400, 2);
    one.send_frame(&long);
    let answer = one.driver.recv_frame(SOON).expect("an answer");
    assert_eq!(told_mtu(&answer), Some(inner));
    assert_eq!(net.counters(0).get(VifCounter::tx_fragmented), before);
    // A guest that goes on all the same.
    wait_until("what its sender does not make shorter is carried", SOON, || {
        one.send_frame(&long);
        two.driver.recv_frame(Duration::from_millis(50)).as_ref() == Some(&long)
    });
    let fits = udp(1, true, inner as usize - 28, 3);
    one.send_frame(&fits);
    wait_until("what fits arrives", SOON, || two.driver.recv_frame(SOON).as_ref() == Some(&fits));
    let (sent, arrived) = (net.counters(0), net.counters(1));
    assert_eq!(sent.get(VifCounter::tx_fragmented), arrived.get(VifCounter::rx_reassembled));
    assert_eq!(arrived.sum("rx_drop_") - arrived.get(VifCounter::rx_drop_own), 0, "{arrived:?}");
}

fn assert_grows(net: &Net, guests: &mut [Nic; 2]) {
    step("the path grows again");
    net.routed.widen(&net.underlay, WIDE);
    let [one, two] = guests;
    let long = udp(1, false, 1400, 4);
    wait_until("frames leave whole again", Duration::from_secs(30), || {
        let before = net.counters(0).get(VifCounter::tx_fragmented);
        one.send_frame(&long);
        assert!(two.driver.recv_frame(SOON).as_ref() == Some(&long), "never lost");
        net.counters(0).get(VifCounter::tx_fragmented) == before
    });
}

/// The kernel refuses what is too long before it leaves, so nothing is lost at all.
#[test]
fn a_routing_table_that_knows_better_costs_nothing() {
    for family in [Family::V4, Family::V6] {
        let what = format!("an MTU in the routing table, {family:?}");
        let Some(net) = Net::new(&what, family) else { return };
        let mut guests = net.guests();
        net.routed.tell_hosts(&net.underlay, NARROW);
        let [one, two] = &mut guests;
        for n in 0..10 {
            assert_eq!(deliver(one, two, n * CHUNK as u32), 1, "at once");
            assert_eq!(deliver(two, one, n * CHUNK as u32), 1, "at once");
        }
        assert_eq!(net.routed.told(family), 0, "nobody had to be told");
        for host in [0, 1] {
            let counters = net.counters(host);
            assert_eq!(counters.get(VifCounter::path_mtu_changes), 1);
            assert!(counters.get(VifCounter::tx_fragmented) > 0, "the first, already cut");
            assert_eq!(counters.sum("tx_drop_"), 0, "{counters:?}");
        }
    }
}

/// ICMP errors make a socket poll as long as they are not read.
#[test]
fn errors_that_come_back_are_counted_and_keep_nobody_awake() {
    let Some(mut net) = Net::new("a peer that is gone", Family::V4) else { return };
    let [mut one, two] = net.guests();
    // Its varpd would keep the socket for a successor.
    net.varpds[1].kill();
    drop(two);
    // Nothing is sent meanwhile: it is the error that wakes the backend.
    for n in 1..=2 {
        one.send(mac(2), n);
        wait_until("a datagram comes back", SOON, || {
            net.counters(0).get(VifCounter::path_errors) == u64::from(n)
        });
    }
    one.wait_sent();
    let counters = net.counters(0);
    assert_eq!(counters.sum("tx_drop_"), 0, "{counters:?}");
    let ticks = one.backend.process.cpu_ticks();
    let frame = one.driver.recv_frame(QUIET);
    assert_eq!(frame, None);
    let used = one.backend.process.cpu_ticks() - ticks;
    assert!(used <= 3, "{used} ticks of the processor while there is nothing to do");
}

/// The address of the first guest's vif.
fn care_of(varpd: &Varpd) -> std::net::SocketAddr {
    let vifs = varpd.show("vifs");
    let row = vifs.as_array().unwrap().iter().find(|row| row["vnet"] == 42).unwrap();
    row["coa"].as_str().unwrap().trim_start_matches("udp:").parse().unwrap()
}

/// A piece of a frame for vnet 42.
fn piece(id: u32, offset: u32, is_last: bool, bytes: &[u8]) -> Vec<u8> {
    let word = offset | if is_last { 0x8000_0000 } else { 0 };
    let header = [0x40, 4, 0, 0, 0, 0, 0, 42];
    [&header[..], &id.to_be_bytes(), &word.to_be_bytes(), bytes].concat()
}

/// Sends so many pieces, not faster than the victim reads them.
fn flood(net: &Net, attacker: &Attacker, count: u64, make: impl Fn(u32) -> Vec<u8>) {
    const WINDOW: u64 = 500;
    /// Pieces of one sender that may wait, and are counted when they are given up.
    const WAITING: u64 = 16 * 256;
    let to = care_of(&net.varpds[0]);
    let settled = || {
        let counters = net.counters(0);
        counters.get(VifCounter::rx_drop_fragment) + counters.get(VifCounter::rx_drop_overflow)
    };
    let before = settled();
    for n in 0..count {
        attacker.send(&make(n as u32), to);
        if n % WINDOW == WINDOW - 1 {
            wait_until("pieces are taken", SOON, || settled() - before + WAITING >= n);
        }
    }
    wait_until("every piece is accounted for", SOON, || settled() - before == count);
}

#[test]
fn hostile_pieces_are_bounded_and_counted() {
    let Some(net) = Net::new("hostile pieces", Family::V4) else { return };
    let [mut one, mut two] = net.guests();
    let attacker = Attacker::register(&net.varpds[1]);
    let kib = one.backend.process.private_kib();
    let long = vec![7; 1400];
    let ten = [1; 10];
    step("frames that never end");
    flood(&net, &attacker, 20_000, |n| piece(n, 1400, false, &long));
    flood(&net, &attacker, 5_000, |n| piece(1, 2 * (n % 30_000), false, &ten[..1]));
    step("ends without a beginning, and lies about the offset");
    flood(&net, &attacker, 5_000, |n| piece(n, 60_000, true, &long));
    flood(&net, &attacker, 5_000, |n| piece(n, 0x00ff_ffff - n, n % 2 == 0, &long));
    step("pieces that overlap, come twice, or end twice");
    flood(&net, &attacker, 5_000, |n| piece(n / 2, 5 * (n % 2), false, &ten));
    flood(&net, &attacker, 5_000, |n| piece(n / 9, 10, false, &ten));
    flood(&net, &attacker, 5_000, |n| piece(n / 3, 10 + 10 * (n % 3), true, &ten));
    let counters = net.counters(0);
    assert_eq!(counters.get(VifCounter::rx_reassembled), 0);
    assert_eq!(counters.get(VifCounter::rx_drop_overflow), 0);
    let grown = one.backend.process.private_kib().saturating_sub(kib);
    step(&format!("50000 pieces; the backend has grown by {grown} KiB"));
    assert!(grown < 2048, "{grown} KiB");
    one.driver.control.sync().unwrap();
    one.assert_silent();

    step("what is for the vif does arrive, between lies about the same id");
    net.routed.narrow(NARROW);
    let frame = udp(2, false, 1400, 9);
    let to = care_of(&net.varpds[0]);
    let (start, end) = frame.split_at(700);
    for bytes in [piece(5, 0, false, start), piece(5, 700, true, end)] {
        attacker.send(&bytes, to);
    }
    assert!(one.driver.recv_frame(SOON).as_ref() == Some(&frame));
    // Teaches the path; the first is lost.
    two.send_frame(&frame);
    wait_until("a frame arrives in pieces", SOON, || {
        attacker.send(&piece(0, 0, false, &ten), to);
        two.send_frame(&frame);
        one.driver.recv_frame(Duration::from_millis(100)).as_ref() == Some(&frame)
    });
    assert!(net.counters(0).get(VifCounter::rx_reassembled) >= 2);
}
