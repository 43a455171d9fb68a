use super::super::packets::{self, Packet, packets};
use super::*;
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;

fn parse(frame: &[u8]) -> Result<Layout, Opaque> {
    Layout::parse(frame, frame.len())
}

/// The same from etherparse: where transport header and payload begin, where the packet ends.
fn reference(frame: &[u8]) -> Option<(Transport, usize, usize, usize)> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let at = |slice: &[u8]| slice.as_ptr().addr() - frame.as_ptr().addr();
    let ip_payload = match packet.net.as_ref()? {
        NetSlice::Ipv4(ip) => ip.payload(),
        NetSlice::Ipv6(ip) => ip.payload(),
        NetSlice::Arp(_) => return None,
    };
    let end = at(ip_payload.payload) + ip_payload.payload.len();
    match packet.transport? {
        TransportSlice::Tcp(tcp) => Some((Transport::Tcp, at(tcp.slice()), at(tcp.payload()), end)),
        TransportSlice::Udp(udp) => {
            Some((Transport::Udp, at(udp.slice()), at(udp.slice()) + 8, end))
        }
        _ => None,
    }
}

fn summary(layout: Layout) -> (Transport, usize, usize, usize) {
    (layout.transport, layout.transport_at, layout.payload_at, layout.end)
}

#[test]
fn a_plain_frame() {
    let frame = Packet::tcp(100).build();
    let layout = parse(&frame).unwrap();
    assert_eq!(summary(layout), (Transport::Tcp, 34, 66, 166));
    assert_eq!((layout.version, layout.network_at), (IpVersion::V4, 14));
    assert_eq!(layout.checksum_at(), 50);
    assert!(!layout.has_ip_options);
    assert_eq!(layout.payload_len(), 100);
}

#[test]
fn padding_of_short_frames_is_not_payload() {
    let mut frame = Packet { tcp_options: vec![], ..Packet::tcp(1) }.build();
    frame.resize(60, 0);
    assert_eq!(summary(parse(&frame).unwrap()), (Transport::Tcp, 34, 54, 55));
}

#[test]
fn what_is_opaque_and_why() {
    let frame = Packet::tcp(10).build();
    let changed = |at: usize, value: u8| {
        let mut frame = frame.clone();
        frame[at] = value;
        parse(&frame).unwrap_err()
    };
    assert_eq!(changed(13, 6), Opaque::NotIp);
    assert_eq!(changed(20, 0x20), Opaque::Fragment, "more fragments");
    assert_eq!(changed(21, 1), Opaque::Fragment, "offset");
    assert_eq!(changed(23, 1), Opaque::NotTransport);
    assert_eq!(changed(14, 0x65), Opaque::Malformed, "version");
    assert_eq!(changed(14, 0x44), Opaque::Malformed, "header length");
    assert_eq!(changed(17, 77), Opaque::Malformed, "longer than the frame");
    assert_eq!(changed(17, 19), Opaque::Malformed, "shorter than its header");
    assert_eq!(changed(46, 0x40), Opaque::Malformed, "TCP header length");
    assert_eq!(changed(46, 0xf0), Opaque::Malformed, "TCP header longer than the packet");
    let three_tags = Packet { tags: vec![0x8100, 0x8100], ..Packet::tcp(1) };
    let mut frame = three_tags.build();
    frame.splice(12..12, [0x81, 0, 0, 1]);
    assert_eq!(parse(&frame), Err(Opaque::NotIp));
}

/// Linux cuts no frames behind these.
#[test]
fn tags_from_before_802_1ad_are_opaque() {
    for tags in [vec![0x8100], vec![0x88a8, 0x8100]] {
        let mut frame = Packet { tags, ..Packet::tcp(10) }.build();
        for (first, second) in [(0x91, 0), (0x92, 0), (0x93, 0)] {
            frame[12..14].copy_from_slice(&[first, second]);
            assert_eq!(parse(&frame), Err(Opaque::NotIp));
        }
    }
}

#[test]
fn ipv6_fragments_and_unknown_headers_are_opaque() {
    let packet = Packet { is_v6: true, ip_options: 1, ..Packet::tcp(10) };
    let mut frame = packet.build();
    assert!(parse(&frame).unwrap().has_ip_options);
    frame[20] = 44;
    assert_eq!(parse(&frame), Err(Opaque::Fragment));
    frame[20] = 51;
    assert_eq!(parse(&frame), Err(Opaque::Malformed), "an authentication header is longer");
    let mut frame = Packet { is_v6: true, ip_options: 2, ..Packet::tcp(10) }.build();
    (frame[20], frame[55]) = (51, 2);
    assert_eq!(parse(&frame), Err(Opaque::NotTransport), "authentication header");
}

#[test]
fn a_chain_of_extension_headers_has_an_end() {
    let packet = Packet { is_v6: true, is_udp: true, payload: vec![60; 200], ..Packet::tcp(0) };
    let mut frame = packet.build();
    frame[20] = 60;
    frame[54..].fill(0);
    (54..frame.len()).step_by(8).for_each(|at| frame[at] = 60);
    assert_eq!(parse(&frame), Err(Opaque::NotTransport));
}

#[test]
fn the_pseudo_header_of_a_routed_packet_names_its_final_destination() {
    let packet = Packet { is_v6: true, ip_options: 3, ..Packet::tcp(10) };
    let direct = packet.build();
    let layout = parse(&direct).unwrap();
    let expected = layout.pseudo_header(&direct, 52).fold();
    let mut routed = direct.clone();
    // Segment routing with one segment left: the list holds the final destination.
    routed[20] = 43;
    routed[54..62].copy_from_slice(&[6, 2, 4, 1, 0, 0, 0, 0]);
    routed.copy_within(38..54, 62);
    routed[53] = 0x99;
    let layout = parse(&routed).unwrap();
    assert_eq!(layout.pseudo_header(&routed, 52).fold(), expected);
    routed[56] = 0;
    assert_eq!(parse(&routed), Err(Opaque::NotTransport), "a type that is not known");
    routed[57] = 0;
    assert!(parse(&routed).is_ok(), "but it has been routed already");
}

#[test]
fn length_fields_of_a_frame_to_be_cut_mean_nothing() {
    for packet in
        [Packet::tcp(3000), Packet::udp(3000), Packet { is_v6: true, ..Packet::udp(3000) }]
    {
        let mut frame = packet.build();
        let expected = parse(&frame).unwrap();
        let network = if packet.is_v6 { 18 } else { 16 };
        packets::put(&mut frame, network, 0);
        assert_eq!(Layout::parse_gso(&frame[..256], frame.len()), Ok(expected));
        assert!(parse(&frame).is_err());
    }
}

fn assert_agrees(frame: &[u8]) {
    match (parse(frame), reference(frame)) {
        (Ok(layout), Some(expected)) => assert_eq!(summary(layout), expected),
        (Ok(layout), None) => panic!("etherparse does not see {layout:?} in {frame:02x?}"),
        // etherparse also looks behind atomic fragments, authentication headers and more tags, and
        // at UDP that is shorter than its packet.
        (Err(_), _) => {}
    }
}

proptest! {
    #[test]
    fn agrees_with_etherparse(packet in packets(300), padding in 0usize..20) {
        let mut frame = packet.build();
        let end = frame.len();
        let expected = reference(&frame).unwrap();
        prop_assert_eq!(summary(parse(&frame).unwrap()), expected);
        frame.resize(end + padding, 0);
        prop_assert_eq!(summary(parse(&frame).unwrap()), expected);
        // The beginning is enough.
        let lead = &frame[..frame.len().min(256)];
        prop_assert_eq!(summary(Layout::parse(lead, frame.len()).unwrap()), expected);
    }

    #[test]
    fn a_lead_that_is_too_short_is_named(packet in packets(300), cut in 0usize..256) {
        let frame = packet.build();
        let layout = parse(&frame).unwrap();
        let cut = cut.min(frame.len());
        let found = Layout::parse(&frame[..cut], frame.len());
        prop_assert_eq!(found, if cut < layout.payload_at { Err(Opaque::Truncated) } else { Ok(layout) });
        let gso = Layout::parse_gso(&frame[..cut], frame.len());
        prop_assert_eq!(gso, found);
    }

    #[test]
    fn truncations_and_mutations_agree_with_etherparse(
        packet in packets(40), at in 0usize..120, value: u8, len in 0usize..200,
    ) {
        let mut frame = packet.build();
        let at = at.min(frame.len() - 1);
        frame[at] = value;
        assert_agrees(&frame);
        frame.truncate(len);
        assert_agrees(&frame);
    }

    #[test]
    fn noise_never_gives_offsets_outside(mut frame in prop::collection::vec(any::<u8>(), 0..200),
                                         kind in 0usize..3, total in 0usize..70_000) {
        if let Some(field) = frame.get_mut(12..15) {
            field.copy_from_slice(&[[8, 0, 0x45], [0x86, 0xdd, 0x60], [0x81, 0, 0]][kind]);
        }
        let both = [Layout::parse(&frame, total), Layout::parse_gso(&frame, total)];
        for layout in both.into_iter().flatten() {
            prop_assert!(layout.network_at < layout.transport_at);
            prop_assert!(layout.transport_at < layout.payload_at);
            prop_assert!(layout.payload_at <= frame.len().min(layout.end));
            prop_assert!(layout.end <= total);
        }
    }
}
