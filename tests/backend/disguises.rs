//! Frames of a guest that says to be another, or plays server or router, in all the ways to hide it.

use etherparse::{Icmpv6Type, IpNumber, PacketBuilder};
use vnet::metrics::VifCounter;

use crate::driver::HEADER_LEN;
use crate::nic::{BROADCAST, mac};

use VifCounter::{
    tx_drop_guard_address as ADDRESS, tx_drop_guard_opaque as OPAQUE, tx_drop_guard_role as ROLE,
};

/// The addresses that guest 1 has: `--allow-ip`.
pub(crate) const LIST: &str = "10.0.0.1,2001:db8:1::/64";
/// One of them, and another's.
pub(crate) const OWN: [u8; 4] = [10, 0, 0, 1];
pub(crate) const FOREIGN: [u8; 4] = [10, 0, 0, 2];
const OWN_V6: &str = "2001:db8:1::7";
const FOREIGN_V6: &str = "2001:db8:2::7";
const LINK_LOCAL: &str = "fe80::5054:ff:fe00:1";

/// A frame that must not leave.
pub(crate) struct Disguise {
    pub(crate) name: &'static str,
    /// How it is counted.
    pub(crate) counter: VifCounter,
    pub(crate) header: [u8; HEADER_LEN],
    /// To nobody yet.
    pub(crate) frame: Vec<u8>,
}

/// VLAN tags: priority only (VLAN 0), that of a provider, and one from before 802.1ad.
const ZERO: [u8; 4] = [0x81, 0, 0, 0];
const PROVIDER: [u8; 4] = [0x88, 0xa8, 0, 7];
const OLD: [u8; 4] = [0x91, 0, 0, 7];
/// LLC and SNAP in front of an ether type: a length instead of one.
const SNAP: [u8; 8] = [0, 56, 0xaa, 0xaa, 3, 0, 0, 0];
/// What follows "next header" in a destination options header of 8 bytes, in one of 256, in the
/// header of a first fragment, of an only one, and of a later one.
const PAD: &[u8] = &[0, 1, 4, 0, 0, 0, 0];
const FIRST: &[u8] = &[0, 0, 1, 0, 0, 0, 7];
const ONLY: &[u8] = &[0, 0, 0, 0, 0, 0, 7];
const LATER: &[u8] = &[0, 0, 8, 0, 0, 0, 7];
/// Numbers of extension headers.
const OPTIONS: u8 = 60;
const FRAGMENT: u8 = 44;

/// All of them.
pub(crate) fn all() -> Vec<Disguise> {
    let plain = |(name, counter, frame)| Disguise { name, counter, header: [0; HEADER_LEN], frame };
    let mut all: Vec<Disguise> =
        [links(), ipv4(), ipv6(), discovery()].into_iter().flatten().map(plain).collect();
    // The sum over what follows is to replace the source address; the guest chooses what it is.
    for (name, at) in [("a checksum in the source address", 26), ("in the ARP sender", 28)] {
        let mut header = [0; HEADER_LEN];
        (header[0], header[6], header[8]) = (1, 14, at - 14);
        let frame = if at == 26 { udp4(OWN, 1000, 2000) } else { arp(2, mac(1), OWN, OWN) };
        all.push(Disguise { name, counter: OPAQUE, header, frame });
    }
    all
}

type Named = (&'static str, VifCounter, Vec<u8>);

fn links() -> Vec<Named> {
    let (own, foreign) = (udp4(OWN, 1000, 2000), udp4(FOREIGN, 1000, 2000));
    let both = |first: &[u8], second: &[u8]| [first, second].concat();
    vec![
        ("a priority tag", ADDRESS, behind(&foreign, &ZERO)),
        ("two priority tags", ADDRESS, behind(&foreign, &ZERO.repeat(2))),
        ("tags from before 802.1ad", ADDRESS, behind(&foreign, &both(&OLD, &OLD))),
        ("a provider's tag", ADDRESS, behind(&foreign, &both(&PROVIDER, &ZERO))),
        ("three tags", OPAQUE, behind(&own, &ZERO.repeat(3))),
        ("nine tags", OPAQUE, behind(&own, &ZERO.repeat(9))),
        ("SNAP", OPAQUE, behind(&foreign, &SNAP)),
        ("SNAP behind a tag", OPAQUE, behind(&foreign, &both(&ZERO, &SNAP))),
        ("SNAP of 0 bytes", OPAQUE, behind(&own, &[0, 0, 0xaa, 0xaa, 3, 0, 0, 0])),
        ("PPPoE", OPAQUE, behind(&foreign, &[0x88, 0x64, 0x11, 0, 0, 1, 0, 48])),
        ("MPLS", OPAQUE, behind(&foreign, &[0x88, 0x47, 0, 0, 0x11, 64])),
        ("a bridge within", OPAQUE, behind(&foreign, &[0x65, 0x58])),
        ("an answer to ARP for another", ADDRESS, arp(2, mac(1), FOREIGN, OWN)),
        ("gratuitous ARP for another", ADDRESS, arp(1, mac(1), FOREIGN, FOREIGN)),
        ("ARP of another", ADDRESS, arp(2, mac(2), OWN, OWN)),
        ("an ARP probe for another's", ADDRESS, arp(1, mac(1), [0; 4], FOREIGN)),
        ("ARP behind a tag", ADDRESS, behind(&arp(2, mac(1), FOREIGN, OWN), &ZERO)),
        ("InARP", OPAQUE, arp(8, mac(1), OWN, OWN)),
    ]
}

fn ipv4() -> Vec<Named> {
    let mut first = udp4(OWN, 67, 68);
    first[20] = 0x20;
    let mut short = udp4(OWN, 1000, 2000);
    (short[17], short[20]) = (22, 0x20);
    let mut later = udp4(FOREIGN, 1000, 2000);
    later[21] = 8;
    let mut optioned = udp4(OWN, 67, 68);
    (optioned[14], optioned[17]) = (0x46, optioned[17] + 4);
    optioned.splice(34..34, [1; 4]);
    let mut authentic = udp4(OWN, 67, 68);
    (authentic[17], authentic[23]) = (authentic[17] + 12, 51);
    authentic.splice(34..34, [17, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1]);
    let mut longer = udp4(OWN, 1000, 2000);
    longer[16] = 0xff;
    let icmp = |kind| {
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2(mac(1), BROADCAST).ipv4(OWN, [10, 0, 0, 2], 64);
        builder.write(&mut frame, IpNumber::ICMP, &[kind; 28]).unwrap();
        frame
    };
    vec![
        ("a foreign source", ADDRESS, udp4(FOREIGN, 1000, 2000)),
        ("no source", ADDRESS, udp4([0; 4], 1000, 2000)),
        ("a later fragment", ADDRESS, later),
        ("a DHCP server", ROLE, udp4(OWN, 67, 68)),
        ("a DHCP server at another port", ROLE, udp4(OWN, 1000, 68)),
        ("a DHCP server in fragments", ROLE, first),
        ("a DHCP server behind options", ROLE, optioned),
        ("a DHCP server behind an authentication header", ROLE, authentic),
        ("a fragment that ends in the ports", OPAQUE, short),
        ("a length beyond the frame", OPAQUE, longer),
        ("a redirect", ROLE, icmp(5)),
        ("a router's advertisement", ROLE, icmp(9)),
    ]
}

fn ipv6() -> Vec<Named> {
    let foreign = udp6(FOREIGN_V6, 1000, 2000);
    let server = udp6(OWN_V6, 547, 546);
    let long = [&[31][..], &[0; 254]].concat();
    let mut cut = extended(&server, &[(FRAGMENT, FIRST), (OPTIONS, PAD)]);
    (cut[19], cut[18]) = (16, 0);
    vec![
        ("a foreign source, IPv6", ADDRESS, foreign.clone()),
        ("another's link-local source", ADDRESS, udp6("fe80::5054:ff:fe00:2", 1000, 2000)),
        ("no source, IPv6", ADDRESS, udp6("::", 1000, 2000)),
        ("behind an options header", ADDRESS, extended(&foreign, &[(OPTIONS, PAD)])),
        ("a later fragment, IPv6", ADDRESS, extended(&foreign, &[(FRAGMENT, LATER)])),
        ("two fragment headers", OPAQUE, extended(&foreign, &[(FRAGMENT, FIRST); 2])),
        ("nine options headers", OPAQUE, extended(&udp6(OWN_V6, 1, 2), &[(OPTIONS, PAD); 9])),
        ("a long options header", OPAQUE, extended(&udp6(OWN_V6, 1, 2), &[(OPTIONS, &long)])),
        ("a fragment that ends in the headers", OPAQUE, cut),
        ("a DHCPv6 server", ROLE, server.clone()),
        ("a DHCPv6 server at another port", ROLE, udp6(OWN_V6, 1000, 546)),
        ("a DHCPv6 server behind options", ROLE, extended(&server, &[(OPTIONS, PAD); 3])),
    ]
}

fn discovery() -> Vec<Named> {
    let advertisement = |target, of| neighbour(OWN_V6, 136, target, 2, of);
    let router = icmp6(LINK_LOCAL, 134, &[0; 8]);
    vec![
        ("an advertisement of another's address", ADDRESS, advertisement(FOREIGN_V6, mac(1))),
        ("an advertisement of another MAC", ADDRESS, advertisement(OWN_V6, mac(2))),
        ("a solicitation of another MAC", ADDRESS, neighbour(OWN_V6, 135, FOREIGN_V6, 1, mac(2))),
        ("detection of another's address", ADDRESS, neighbour("::", 135, FOREIGN_V6, 1, mac(1))),
        (
            "an advertisement in fragments",
            OPAQUE,
            extended(&advertisement(OWN_V6, mac(1)), &[(FRAGMENT, ONLY)]),
        ),
        ("a router, IPv6", ROLE, router.clone()),
        ("a router behind a tag", ROLE, behind(&router, &ZERO)),
        ("a router behind options", ROLE, extended(&router, &[(OPTIONS, PAD), (OPTIONS, PAD)])),
        ("a router in a fragment", ROLE, extended(&router, &[(FRAGMENT, ONLY)])),
        (
            "a router in fragments behind options",
            ROLE,
            extended(&router, &[(FRAGMENT, FIRST), (OPTIONS, PAD)]),
        ),
        ("a redirect, IPv6", ROLE, icmp6(LINK_LOCAL, 137, &[0; 36])),
        ("an MLD query", ROLE, icmp6(LINK_LOCAL, 130, &[0; 16])),
    ]
}

fn v6(text: &str) -> [u8; 16] {
    text.parse::<std::net::Ipv6Addr>().unwrap().octets()
}

fn udp4(source: [u8; 4], from: u16, to: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(mac(1), BROADCAST).ipv4(source, [255; 4], 64);
    builder.udp(from, to).write(&mut frame, &[0; 20]).unwrap();
    frame
}

fn udp6(source: &str, from: u16, to: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(mac(1), BROADCAST).ipv6(v6(source), v6("ff02::1"), 64);
    builder.udp(from, to).write(&mut frame, &[0; 20]).unwrap();
    frame
}

fn icmp6(source: &str, type_u8: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(mac(1), BROADCAST).ipv6(v6(source), v6("ff02::1"), 255);
    let kind = Icmpv6Type::Unknown { type_u8, code_u8: 0, bytes5to8: [0; 4] };
    builder.icmpv6(kind).write(&mut frame, body).unwrap();
    frame
}

/// Neighbour discovery for a target, with an option that names a MAC.
fn neighbour(source: &str, kind: u8, target: &str, option: u8, of: [u8; 6]) -> Vec<u8> {
    icmp6(source, kind, &[&v6(target)[..], &[option, 1], &of].concat())
}

fn arp(op: u8, of: [u8; 6], sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let head = [&BROADCAST[..], &mac(1), &[8, 6, 0, 1, 8, 0, 6, 4, 0, op]].concat();
    [&head[..], &of, &sender, &[0; 6], &target].concat()
}

/// A frame with these bytes behind its addresses.
fn behind(frame: &[u8], bytes: &[u8]) -> Vec<u8> {
    [&frame[..12], bytes, &frame[12..]].concat()
}

/// A frame with extension headers, each of this kind and with these bytes behind "next header".
fn extended(frame: &[u8], headers: &[(u8, &[u8])]) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    let (mut chain, last) = (Vec::new(), bytes[20]);
    for (n, (_, body)) in headers.iter().enumerate() {
        chain.push(headers.get(n + 1).map_or(last, |next| next.0));
        chain.extend_from_slice(body);
    }
    bytes[20] = headers[0].0;
    let len = u16::from_be_bytes([bytes[18], bytes[19]]) + chain.len() as u16;
    bytes[18..20].copy_from_slice(&len.to_be_bytes());
    bytes.splice(54..54, chain);
    bytes
}
