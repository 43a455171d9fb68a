//! The walk over a guest's headers: what is found is within the frame, bytes that are missing
//! change no result but to "truncated", and all that read it see the same headers.

use std::net::{IpAddr, Ipv6Addr};

use vnet::offload::layout::Layout;
use vnet::packet::arp::Arp;
use vnet::packet::discovery::Discovery;
use vnet::packet::extension::{ExtensionSet, options};
use vnet::packet::{Ethernet, IpVersion, Lengths, Packet, Reason};
use vnet::port::guard::Guard;
use vnet::wire::Mac;

use super::Input;

/// The link-local address that is made from the guest's MAC.
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, 1);
const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
/// The addresses that the guard lets pass; IPv6 is a /64.
const OWN_V4: [u8; 4] = [10, 0, 0, 1];
const OWN_V6: [u8; 8] = [0xfd, 0, 0, 0, 0, 0, 0, 1];

pub(crate) fn run(data: &[u8]) {
    let mut input = Input(data);
    let known = usize::from(input.u16());
    let frame = input.0;
    let lead = &frame[..known.min(frame.len())];
    for lengths in [Lengths::Fields, Lengths::FieldsUnlessZero, Lengths::Frame] {
        let whole = Packet::parse(frame, frame.len(), lengths);
        let part = Packet::parse(lead, frame.len(), lengths);
        match (whole, part) {
            (Ok(whole), Ok(part)) => assert_eq!(whole, part),
            (Ok(whole), Err(stop)) => {
                assert!(stop.reason == Reason::Truncated && stop.at < whole.transport_at);
            }
            (Err(whole), Err(part)) if part.reason == Reason::Truncated => {
                assert!(part.at <= whole.at);
            }
            (whole, part) => assert_eq!(whole.err(), part.err()),
        }
        if let Ok(packet) = part {
            check_packet(lead, frame.len(), &packet);
        }
    }
    check_offloads(lead, frame.len());
    check_guard(lead, frame.len());
}

fn check_packet(lead: &[u8], total_len: usize, packet: &Packet) {
    assert!(packet.network_at < packet.transport_at && packet.end <= total_len);
    assert!(packet.transport_at <= packet.end.min(lead.len()));
    assert_eq!(packet.payload(lead).len(), packet.end.min(lead.len()) - packet.transport_at);
    if packet.version == IpVersion::V6 {
        let (mut headers, mut at) = (packet.extension_headers(lead), packet.network_at + 40);
        let mut kinds = ExtensionSet::NONE;
        while let Ok(Some(header)) = headers.read() {
            assert_eq!(header.at, at, "headers follow each other");
            (at, kinds) = (at + header.len, kinds.with(header.kind));
            let data: usize =
                options(header.options(lead)).flatten().map(|(_, data)| data.len()).sum();
            assert!(data < header.len);
        }
        assert_eq!((at, kinds), (packet.transport_at, packet.extensions));
    }
    if let Some(discovery) = Discovery::parse(packet.payload(lead)) {
        assert!(discovery.macs().count() <= lead.len() / 8 + 1);
    }
}

/// What can be cut or merged has the headers that were found.
fn check_offloads(lead: &[u8], total_len: usize) {
    if let Ok(layout) = Layout::parse(lead, total_len) {
        let packet = Packet::parse(lead, total_len, Lengths::Fields).expect("headers");
        assert!(!packet.fragment.is_any());
        assert_eq!(
            (layout.network_at, layout.transport_at),
            (packet.network_at, packet.transport_at)
        );
        assert_eq!((layout.version, layout.end), (packet.version, packet.end));
        assert!(layout.transport_at < layout.payload_at && layout.payload_at <= layout.end);
    }
}

/// What passes the guard names the guest.
fn check_guard(lead: &[u8], total_len: usize) {
    let allowed = ["10.0.0.1", "fd00:0:0:1::/64"].map(|text| text.parse().expect("a prefix"));
    let Ok(fixed_len) = Guard::new(allowed.to_vec()).check(MAC, lead, total_len) else { return };
    assert!(fixed_len <= lead.len().min(total_len));
    let lead = &lead[..lead.len().min(total_len)];
    let ethernet = Ethernet::parse(lead).expect("a header");
    match Packet::parse(lead, total_len, Lengths::FieldsUnlessZero)
        .map(|packet| packet.source(lead))
    {
        Ok(Some(IpAddr::V4(source))) => {
            assert!(source.is_unspecified() || source.octets() == OWN_V4)
        }
        Ok(Some(IpAddr::V6(source))) => {
            let is_own = source.octets()[..8] == OWN_V6 || source == LINK_LOCAL;
            assert!(source.is_unspecified() || is_own);
        }
        _ => {
            let message = Arp::parse(&lead[ethernet.payload_at..]).expect("ARP or RARP");
            assert_eq!(message.sender_mac, MAC.0);
        }
    }
}
