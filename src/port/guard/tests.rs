//! Frames are built with etherparse, and every bypass is one that has been used somewhere.

use etherparse::{Icmpv6Type, IpNumber, PacketBuilder};
use proptest::prelude::*;

use super::*;
use Offence::{Address, Opaque, Role};

const OWN: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
const OTHER: [u8; 6] = [0x52, 0x54, 0, 0, 0, 2];
const V4: [u8; 4] = [10, 0, 0, 1];
const FOREIGN_V4: [u8; 4] = [10, 0, 0, 2];

fn v6(text: &str) -> [u8; 16] {
    text.parse::<Ipv6Addr>().unwrap().octets()
}

fn guard() -> Guard {
    let allowed = ["10.0.0.1", "2001:db8:1::/64"];
    Guard::new(allowed.map(|text| text.parse().unwrap()).to_vec())
}

fn check(frame: &[u8]) -> Result<(), Offence> {
    guard().check(Mac(OWN), frame, frame.len()).map(drop)
}

fn udp4(source: [u8; 4], from: u16, to: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(OWN, OTHER).ipv4(source, [255; 4], 64).udp(from, to);
    builder.write(&mut frame, &[0; 20]).unwrap();
    frame
}

fn udp6(source: &str, from: u16, to: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder =
        PacketBuilder::ethernet2(OWN, OTHER).ipv6(v6(source), v6("ff02::1"), 64).udp(from, to);
    builder.write(&mut frame, &[0; 20]).unwrap();
    frame
}

/// ICMPv6 of any type and body.
fn icmp6(source: &str, kind: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let kind = Icmpv6Type::Unknown { type_u8: kind, code_u8: 0, bytes5to8: [0; 4] };
    let builder = PacketBuilder::ethernet2(OWN, OTHER).ipv6(v6(source), v6("ff02::1"), 255);
    builder.icmpv6(kind).write(&mut frame, body).unwrap();
    frame
}

/// Target and a link-layer address option.
fn discovery(target: &str, option: u8, mac: [u8; 6]) -> Vec<u8> {
    [&v6(target)[..], &[option, 1], &mac].concat()
}

fn arp(op: u8, mac: [u8; 6], sender: [u8; 4]) -> Vec<u8> {
    arp_for([10, 0, 0, 9], op, mac, sender)
}

fn arp_for(target: [u8; 4], op: u8, mac: [u8; 6], sender: [u8; 4]) -> Vec<u8> {
    let mut frame =
        [&[0xff; 6][..], &OWN, &[8, 6, 0, 1, 8, 0, 6, 4, 0, op], &mac, &sender].concat();
    frame.extend([0; 6]);
    frame.extend(target);
    frame
}

/// IPv4 of any protocol.
fn ip4(source: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(OWN, OTHER).ipv4(source, [224, 0, 0, 1], 64);
    builder.write(&mut frame, IpNumber(protocol), payload).unwrap();
    frame
}

/// Puts bytes behind the MAC addresses.
fn tagged(frame: &[u8], tags: &[u8]) -> Vec<u8> {
    [&frame[..12], tags, &frame[12..]].concat()
}

/// Puts extension headers between IPv6 header and what follows: (own number, bytes from the third).
fn extended(frame: &[u8], headers: &[(u8, &[u8])]) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    let mut chain = Vec::new();
    let last = bytes[20];
    for (at, (_, body)) in headers.iter().enumerate() {
        chain.push(headers.get(at + 1).map_or(last, |next| next.0));
        chain.extend_from_slice(body);
    }
    bytes[20] = headers[0].0;
    let len = u16::from_be_bytes([bytes[18], bytes[19]]) + chain.len() as u16;
    bytes[18..20].copy_from_slice(&len.to_be_bytes());
    bytes.splice(54..54, chain);
    bytes
}

/// A header of 8 bytes with padding.
const PAD: &[u8] = &[0, 1, 4, 0, 0, 0, 0];
/// A fragment header: first of several, and a later one.
const FIRST: &[u8] = &[0, 0, 1, 0, 0, 0, 7];
const LATER: &[u8] = &[0, 0, 8, 0, 0, 0, 7];

#[test]
fn own_addresses_pass_and_others_do_not() {
    assert_eq!(check(&udp4(V4, 1000, 53)), Ok(()));
    assert_eq!(check(&udp4(FOREIGN_V4, 1000, 53)), Err(Address));
    assert_eq!(check(&udp6("2001:db8:1::7", 1000, 53)), Ok(()));
    assert_eq!(check(&udp6("2001:db8:2::7", 1000, 53)), Err(Address));
    assert_eq!(check(&udp6("fe80::5054:ff:fe00:1", 1000, 53)), Ok(()));
    assert_eq!(check(&udp6("fe80::5054:ff:fe00:2", 1000, 53)), Err(Address));
}

#[test]
fn a_version_without_an_address_does_not_pass() {
    let only = |text: &str, frame: &[u8]| {
        Guard::new(vec![text.parse().unwrap()]).check(Mac(OWN), frame, frame.len()).map(drop)
    };
    let (v4, v6) = (udp4([0; 4], 68, 67), udp6("fe80::5054:ff:fe00:1", 546, 547));
    assert_eq!(only("10.0.0.1", &v4), Ok(()));
    assert_eq!(only("10.0.0.1", &v6), Err(Address));
    assert_eq!(only("2001:db8::1", &v6), Ok(()));
    assert_eq!(only("2001:db8::1", &v4), Err(Address));
    let probe = arp_for(V4, 1, OWN, [0; 4]);
    assert_eq!(only("2001:db8::1", &probe), Err(Address));
}

#[test]
fn a_guest_without_an_address_can_get_one() {
    assert_eq!(check(&udp4([0; 4], 68, 67)), Ok(()));
    assert_eq!(check(&udp4([0; 4], 1000, 67)), Err(Address));
    assert_eq!(check(&arp_for(V4, 1, OWN, [0; 4])), Ok(()), "probe");
    assert_eq!(check(&arp_for(FOREIGN_V4, 1, OWN, [0; 4])), Err(Address), "keeps its owner away");
    assert_eq!(check(&arp_for(V4, 2, OWN, [0; 4])), Err(Address));
    assert_eq!(check(&icmp6("::", 135, &v6("2001:db8:1::7"))), Ok(()));
    assert_eq!(check(&icmp6("::", 135, &v6("fe80::5054:ff:fe00:1"))), Ok(()));
    assert_eq!(
        check(&icmp6("::", 135, &v6("2001:db8:2::1"))),
        Err(Address),
        "keeps its owner away"
    );
    assert_eq!(check(&icmp6("::", 133, &[])), Ok(()));
    assert_eq!(check(&icmp6("::", 143, &[0; 4])), Ok(()));
    assert_eq!(check(&icmp6("::", 128, &[0; 4])), Err(Address), "echo request");
    assert_eq!(check(&udp6("::", 546, 547)), Err(Address));
}

#[test]
fn nobody_plays_server_or_router() {
    assert_eq!(check(&udp4(V4, 67, 68)), Err(Role));
    assert_eq!(check(&udp6("2001:db8:1::7", 547, 546)), Err(Role));
    // Clients do not look at the port that an answer comes from.
    assert_eq!(check(&udp4(V4, 1000, 68)), Err(Role));
    assert_eq!(check(&udp6("2001:db8:1::7", 1000, 546)), Err(Role));
    for (protocol, kind) in [(1, 5), (1, 9), (2, 0x11), (2, 0x30)] {
        assert_eq!(check(&ip4(V4, protocol, &[kind; 8])), Err(Role));
        assert_eq!(check(&ip4([0; 4], protocol, &[kind; 8])), Err(Role));
        assert_eq!(check(&ip4(V4, protocol, &[])), Err(Opaque));
    }
    assert_eq!(check(&ip4([0; 4], 2, &[0x22; 8])), Ok(()), "an IGMP report");
    assert_eq!(check(&ip4([0; 4], 1, &[8; 8])), Err(Address), "an echo request");
    for kind in [130, 134, 137, 151] {
        assert_eq!(check(&icmp6("fe80::5054:ff:fe00:1", kind, &[0; 40])), Err(Role));
    }
    // Bridges send all groups to where PIM comes from.
    assert_eq!(check(&ip4(V4, 103, &[0x20; 8])), Err(Role));
    let mut pim = icmp6("fe80::5054:ff:fe00:1", 0x20, &[0; 8]);
    pim[14 + 6] = 103;
    assert_eq!(check(&pim), Err(Role));
    assert_eq!(check(&udp4(V4, 68, 67)), Ok(()), "a client renews");
}

#[test]
fn arp_names_the_guest() {
    assert_eq!(check(&arp(1, OWN, V4)), Ok(()));
    assert_eq!(check(&arp(2, OWN, V4)), Ok(()));
    assert_eq!(check(&arp(2, OWN, FOREIGN_V4)), Err(Address));
    assert_eq!(check(&arp(2, OTHER, V4)), Err(Address));
    assert_eq!(check(&arp(3, OWN, V4)), Err(Opaque));
    let mut rarp = arp(3, OWN, [0; 4]);
    rarp[13] = 0x35;
    rarp[12] = 0x80;
    assert_eq!(check(&rarp), Err(Address), "for another's MAC, to another's address");
    rarp[32..38].copy_from_slice(&OWN);
    rarp[38..42].copy_from_slice(&[0; 4]);
    assert_eq!(check(&rarp), Ok(()));
}

#[test]
fn neighbour_discovery_names_the_guest() {
    let from = "2001:db8:1::7";
    assert_eq!(check(&icmp6(from, 136, &discovery(from, 2, OWN))), Ok(()));
    assert_eq!(check(&icmp6(from, 136, &discovery(from, 2, OTHER))), Err(Address));
    assert_eq!(check(&icmp6(from, 136, &discovery("2001:db8:2::1", 2, OWN))), Err(Address));
    assert_eq!(check(&icmp6(from, 135, &discovery("2001:db8:2::1", 1, OWN))), Ok(()));
    assert_eq!(check(&icmp6(from, 135, &discovery("2001:db8:2::1", 1, OTHER))), Err(Address));
    assert_eq!(check(&icmp6(from, 133, &[&[1, 1][..], &OTHER].concat())), Err(Address));
    let mut endless = discovery(from, 2, OWN);
    endless[17] = 0;
    assert_eq!(check(&icmp6(from, 136, &endless)), Err(Opaque));
}

#[test]
fn tags_hide_nothing() {
    let (good, bad) = (udp4(V4, 1000, 53), udp4(FOREIGN_V4, 1000, 53));
    let zero = [0x81, 0, 0, 0];
    let old = [0x91, 0, 0, 7, 0x93, 0, 0, 7];
    for tags in [&zero[..], &[0x88, 0xa8, 0, 7], &[0x81, 0, 0, 0, 0x81, 0, 0, 7], &old] {
        assert_eq!(check(&tagged(&good, tags)), Ok(()));
        assert_eq!(check(&tagged(&bad, tags)), Err(Address));
    }
    for frame in [&good, &bad] {
        assert_eq!(check(&tagged(frame, &zero.repeat(3))), Err(Opaque));
        assert_eq!(check(&tagged(frame, &zero.repeat(9))), Err(Opaque));
        // LLC and SNAP, with a VLAN tag before it or without, length right or wrong.
        let snap = [0, 56, 0xaa, 0xaa, 3, 0, 0, 0];
        assert_eq!(check(&tagged(frame, &snap)), Err(Opaque));
        assert_eq!(check(&tagged(frame, &[&zero[..], &snap].concat())), Err(Opaque));
        assert_eq!(check(&tagged(frame, &[0, 0, 0xaa, 0xaa, 3, 0, 0, 0])), Err(Opaque));
        // PPPoE session, MPLS, EtherIP-like nesting: other protocols.
        for kind in [[0x88, 0x64], [0x88, 0x47], [0x65, 0x58], [0x88, 0xb5]] {
            assert_eq!(check(&tagged(frame, &kind)), Err(Opaque));
        }
    }
}

#[test]
fn extension_headers_hide_nothing() {
    let router = icmp6("fe80::5054:ff:fe00:1", 134, &[0; 40]);
    let server = udp6("2001:db8:1::7", 547, 546);
    let good = udp6("2001:db8:1::7", 1000, 53);
    for headers in [&[(60, PAD)][..], &[(0, PAD), (43, PAD), (60, PAD)], &[(60, PAD); 8]] {
        assert_eq!(check(&extended(&router, headers)), Err(Role));
        assert_eq!(check(&extended(&server, headers)), Err(Role));
        assert_eq!(check(&extended(&good, headers)), Ok(()));
    }
    assert_eq!(check(&extended(&good, &[(60, PAD); 9])), Err(Opaque));
    let long = [&[31][..], &[0; 254]].concat();
    assert_eq!(check(&extended(&router, &[(60, &long)])), Err(Role));
    // As the caller hands it over: only the beginning was copied.
    let hidden = extended(&router, &[(60, &long)]);
    assert_eq!(guard().check(Mac(OWN), &hidden[..256], hidden.len()), Err(Opaque));
}

/// As it does in IPv6.
#[test]
fn an_authentication_header_hides_nothing_in_ipv4() {
    let behind = |payload: &[u8], next: u8| {
        let header = [&[next, 1][..], &[0; 10]].concat();
        check(&ip4(V4, 51, &[&header[..], payload].concat()))
    };
    assert_eq!(behind(&udp4(V4, 67, 68)[34..], 17), Err(Role));
    assert_eq!(behind(&udp4(V4, 1000, 53)[34..], 17), Ok(()));
    assert_eq!(behind(&[5; 8], 1), Err(Role), "a redirect");
    assert_eq!(behind(&[], 17), Err(Opaque), "no ports");
    assert_eq!(check(&ip4(V4, 51, &[17, 200, 0, 0, 0, 0])), Err(Opaque), "cut");
}

#[test]
fn no_other_sender_is_named_in_extension_headers() {
    let good = udp6("2001:db8:1::7", 1000, 53);
    let home = [&[2, 0xc9, 16][..], &v6("2001:db8:2::1"), &[1, 2, 0, 0]].concat();
    let other = [&[2, 0x0b, 16][..], &v6("2001:db8:2::1"), &[1, 2, 0, 0]].concat();
    let behind =
        [&[3, 0, 1, 5, 0, 0, 0, 0, 0, 0xc9, 16][..], &v6("2001:db8:2::1"), &[0; 4]].concat();
    assert_eq!(check(&extended(&good, &[(60, &other)])), Ok(()));
    assert_eq!(check(&extended(&good, &[(60, &home)])), Err(Opaque));
    assert_eq!(check(&extended(&good, &[(60, &behind)])), Err(Opaque));
    assert_eq!(check(&extended(&good, &[(0, PAD), (60, PAD), (60, &home)])), Err(Opaque));
    // An option that is longer than its header.
    assert_eq!(check(&extended(&good, &[(60, &[0, 5, 200, 0, 0, 0, 0])])), Err(Opaque));
    assert_eq!(check(&extended(&good, &[(135, PAD)])), Err(Opaque));
}

#[test]
fn all_options_of_discovery_are_seen() {
    let nonces = [14, 1, 0, 0, 0, 0, 0, 0].repeat(40);
    let message = [discovery("2001:db8:1::7", 2, OWN), nonces].concat();
    let frame = icmp6("2001:db8:1::7", 136, &message);
    assert_eq!(check(&frame), Ok(()));
    // What was copied ends between two options.
    for copied in [246, 254] {
        assert_eq!(guard().check(Mac(OWN), &frame[..copied], frame.len()), Err(Opaque));
    }
}

/// Receivers read a packet of length 0 with hop-by-hop options as far as its frame goes.
#[test]
fn all_options_of_discovery_are_seen_in_a_packet_of_length_0() {
    let nonces = [14, 1, 0, 0, 0, 0, 0, 0].repeat(40);
    let message = [discovery("2001:db8:1::7", 2, OWN), nonces].concat();
    let mut frame = extended(&icmp6("2001:db8:1::7", 136, &message), &[(0, PAD)]);
    frame[18..20].fill(0);
    assert_eq!(check(&frame), Ok(()));
    for copied in [246, 254] {
        assert_eq!(guard().check(Mac(OWN), &frame[..copied], frame.len()), Err(Opaque));
    }
}

#[test]
fn fragments_hide_nothing() {
    let router = icmp6("fe80::5054:ff:fe00:1", 134, &[0; 40]);
    let neighbour = icmp6("2001:db8:1::7", 136, &discovery("2001:db8:1::7", 2, OWN));
    let good = udp6("2001:db8:1::7", 1000, 53);
    assert_eq!(check(&extended(&router, &[(44, FIRST)])), Err(Role));
    assert_eq!(check(&extended(&router, &[(44, FIRST), (60, PAD)])), Err(Role));
    assert_eq!(check(&extended(&neighbour, &[(44, FIRST)])), Err(Opaque));
    assert_eq!(check(&extended(&good, &[(44, FIRST)])), Ok(()));
    assert_eq!(check(&extended(&good, &[(44, LATER)])), Ok(()));
    assert_eq!(check(&extended(&good, &[(44, FIRST), (44, FIRST)])), Err(Opaque));
    let foreign = udp6("2001:db8:2::7", 1000, 53);
    assert_eq!(check(&extended(&foreign, &[(44, LATER)])), Err(Address));
    // A first fragment that ends within the chain (RFC 7112).
    let mut cut = extended(&router, &[(44, FIRST), (60, PAD)]);
    cut[18..20].copy_from_slice(&16_u16.to_be_bytes());
    cut.truncate(54 + 16);
    assert_eq!(check(&cut), Err(Opaque));

    let mut first = udp4(V4, 67, 68);
    first[20] = 0x20;
    assert_eq!(check(&first), Err(Role));
    // So short that the ports come with the next one.
    first[16..18].copy_from_slice(&22_u16.to_be_bytes());
    assert_eq!(check(&first), Err(Opaque));
    let mut later = udp4(V4, 67, 68);
    later[21] = 1;
    assert_eq!(check(&later), Ok(()), "what looks like ports is payload");
    let mut nameless = udp4([0; 4], 68, 67);
    nameless[20] = 0x20;
    assert_eq!(check(&nameless), Err(Address));
}

#[test]
fn options_move_the_ports_and_the_walk_follows() {
    let mut frame = udp4(V4, 67, 68);
    frame[14] = 0x46;
    frame.splice(34..34, [1; 4]);
    frame[16..18].copy_from_slice(&52_u16.to_be_bytes());
    assert_eq!(check(&frame), Err(Role));
    frame[14] = 0x44;
    assert_eq!(check(&frame), Err(Opaque));
}

#[test]
fn other_transports_need_only_the_address() {
    for number in [6, 1, 47, 132] {
        assert_eq!(check(&ip4(V4, number, &[1; 30])), Ok(()), "{number}");
        assert_eq!(check(&ip4(FOREIGN_V4, number, &[1; 30])), Err(Address), "{number}");
    }
}

#[test]
fn a_wide_prefix_has_no_address_that_nobody_is() {
    let any = Guard::new(["0.0.0.0/0", "::/0"].map(|text| text.parse().unwrap()).to_vec());
    let check = |frame: &[u8]| any.check(Mac(OWN), frame, frame.len()).map(drop);
    assert_eq!(check(&udp4(FOREIGN_V4, 1, 2)), Ok(()));
    for nobody in [[0; 4], [255; 4], [224, 0, 0, 1]] {
        assert_eq!(check(&udp4(nobody, 1, 2)), Err(Address));
    }
    assert_eq!(check(&udp6("2001:db8:2::7", 1, 2)), Ok(()));
    assert_eq!(check(&udp6("::", 1, 2)), Err(Address));
    assert_eq!(check(&udp6("ff02::1", 1, 2)), Err(Address));
}

#[test]
fn a_mac_behind_the_vif_speaks_for_itself() {
    let check = |source, frame: &[u8]| guard().check(Mac(source), frame, frame.len()).map(drop);
    assert_eq!(check(OTHER, &arp(1, OTHER, V4)), Ok(()));
    assert_eq!(check(OTHER, &arp(1, OWN, V4)), Err(Address));
    assert_eq!(check(OTHER, &udp6("fe80::5054:ff:fe00:2", 1, 2)), Ok(()));
    assert_eq!(check(OTHER, &udp6("fe80::5054:ff:fe00:1", 1, 2)), Err(Address));
}

#[test]
fn what_was_looked_at_is_told() {
    let fixed = |frame: &[u8]| guard().check(Mac(OWN), frame, frame.len());
    assert_eq!(fixed(&udp4(V4, 1, 2)), Ok(14 + 20 + 4), "up to the ports");
    assert_eq!(fixed(&tagged(&udp4(V4, 1, 2), &[0x81, 0, 0, 0])), Ok(18 + 20 + 4));
    assert_eq!(fixed(&ip4(V4, 6, &[0; 20])), Ok(14 + 20), "TCP's checksum is behind it");
    assert_eq!(fixed(&arp(1, OWN, V4)), Ok(14 + 28));
    assert_eq!(fixed(&udp6("2001:db8:1::7", 1, 2)), Ok(14 + 40 + 4));
    let extended = |headers: &[(u8, &[u8])]| extended(&udp6("2001:db8:1::7", 1, 2), headers);
    assert_eq!(fixed(&extended(&[(60, PAD)])), Ok(14 + 48 + 4));
    assert_eq!(fixed(&extended(&[(44, LATER)])), Ok(14 + 48));
    let neighbour = icmp6("::", 135, &discovery("2001:db8:1::7", 1, OWN));
    assert_eq!(fixed(&neighbour), Ok(neighbour.len()));
}

proptest! {
    /// Whatever a guest sends: if it passes, it names the guest, in one of the ways there are.
    #[test]
    fn no_mutation_passes_with_a_foreign_source(
        at in 0_usize..80, value in any::<u8>(), cut in 0_usize..90,
    ) {
        for mut frame in [udp4(FOREIGN_V4, 67, 68), udp6("2001:db8:2::7", 547, 546), arp(2, OTHER, FOREIGN_V4)] {
            let len = frame.len();
            frame[at % len] = value;
            frame.truncate(cut.max(14));
            if check(&frame).is_ok() {
                let names_own = match frame[12..14] {
                    [8, 0] => frame[26..30] == V4 || frame[26..30] == [0; 4],
                    [0x86, 0xdd] => frame[22..30] == v6("2001:db8:1::7")[..8] || frame[22..38] == v6("fe80::5054:ff:fe00:1") || frame[22..38] == [0; 16],
                    [8, 6] => frame[22..28] == OWN,
                    _ => false,
                };
                prop_assert!(names_own, "{frame:x?}");
            }
        }
    }
}
