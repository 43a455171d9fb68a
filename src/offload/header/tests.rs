use super::super::packets::{Packet, packets};
use super::*;
use proptest::prelude::*;

fn header(flags: u8, gso_type: u8, gso_size: u16, start: u16, offset: u16) -> Vec<u8> {
    let mut bytes = vec![flags, gso_type, 0xab, 0xcd];
    for word in [gso_size, start, offset, 0] {
        bytes.extend(word.to_le_bytes());
    }
    bytes
}

/// What Linux writes for a super-frame.
fn gso_header(gso_type: u8, size: u16, frame: &[u8]) -> Vec<u8> {
    let layout = Layout::parse(frame, frame.len()).unwrap();
    let offset = layout.transport.checksum_offset();
    header(1, gso_type, size, layout.transport_at as u16, offset as u16)
}

fn parse(header: &[u8], frame: &[u8], offloads: Offloads) -> Result<Request, HeaderFault> {
    Request::parse(header, &frame[..frame.len().min(256)], frame.len(), offloads)
}

#[test]
fn what_is_not_cut_is_told_without_the_frame() {
    let header = |flags, gso_type, start: u8| [flags, gso_type, 0, 0, 0, 0, start, 0, 16, 0, 0, 0];
    let parse = |header: [u8; 12]| Request::parse_uncut(&header, 60, Offloads::ALL);
    assert_eq!(parse(header(0, 0, 0)), Some(Ok(Request::Plain)));
    let place = PartialChecksum { start: 34, offset: 16 };
    assert_eq!(parse(header(1, 0, 34)), Some(Ok(Request::Checksum { place, is_transport: false })));
    assert_eq!(parse(header(1, 0, 43)), Some(Err(HeaderFault::ChecksumPlace)));
    assert_eq!(parse(header(1, 0, 13)), Some(Err(HeaderFault::ChecksumPlace)));
    let without = Request::parse_uncut(&header(1, 0, 34), 60, Offloads::NONE);
    assert_eq!(without, Some(Err(HeaderFault::ChecksumNotNegotiated)));
    assert_eq!(parse(header(1, 1, 34)), None, "to be cut");
    assert_eq!(parse(header(0, 9, 34)), None, "or nonsense");
}

#[test]
fn a_plain_frame_asks_for_nothing() {
    let frame = Packet::tcp(10).build();
    for offloads in [Offloads::NONE, Offloads::ALL] {
        assert_eq!(parse(&[0; 12], &frame, offloads), Ok(Request::Plain));
        assert_eq!(parse(&[0; 10], &frame, offloads), Ok(Request::Plain));
        // Flags that a device does not know are ignored, and fields that no flag speaks of.
        assert_eq!(parse(&header(!1, 0, 9, 9999, 9999), &frame, offloads), Ok(Request::Plain));
    }
    for len in 0..10 {
        assert_eq!(parse(&[0; 12][..len], &frame, Offloads::ALL), Err(HeaderFault::Truncated));
    }
}

#[test]
fn a_partial_checksum_in_its_usual_place() {
    let frame = Packet::udp(10).build_partial();
    let header = header(1, 0, 0, 34, 6);
    let place = PartialChecksum { start: 34, offset: 6 };
    assert_eq!(
        parse(&header, &frame, Offloads::ALL),
        Ok(Request::Checksum { place, is_transport: true })
    );
    assert_eq!(
        parse(&header[..10], &frame, Offloads::CSUM),
        Ok(Request::Checksum { place, is_transport: true })
    );
    let fault = HeaderFault::ChecksumNotNegotiated;
    assert_eq!(parse(&header, &frame, Offloads::NONE), Err(fault));
}

#[test]
fn without_all_of_the_headers_the_checksum_is_ours_to_complete() {
    let frame = Packet::tcp(300).build_partial();
    let header = header(1, 0, 0, 34, 16);
    let place = PartialChecksum { start: 34, offset: 16 };
    for len in 0..100 {
        let found = Request::parse_whole(&header, &frame[..len], frame.len(), Offloads::ALL);
        assert_eq!(found, Ok(Request::Checksum { place, is_transport: len >= 66 }), "{len}");
    }
}

#[test]
fn a_partial_checksum_elsewhere_is_ours_to_complete() {
    let frame = Packet::udp(100).build();
    // A tunnel of the guest's own: the inner TCP checksum.
    let place = PartialChecksum { start: 84, offset: 16 };
    let found = parse(&header(1, 0, 0, 84, 16), &frame, Offloads::ALL);
    assert_eq!(found, Ok(Request::Checksum { place, is_transport: false }));
    // Not IP at all.
    let place = PartialChecksum { start: 14, offset: 0 };
    let found = parse(&header(1, 0, 0, 14, 0), &[0; 60], Offloads::ALL);
    assert_eq!(found, Ok(Request::Checksum { place, is_transport: false }));
}

#[test]
fn a_checksum_must_be_in_the_frame_and_behind_its_addresses() {
    let frame = Packet::udp(10).build();
    let len = frame.len() as u16;
    let cases =
        [(0, 6), (13, 0), (13, 40), (len, 0), (len - 1, 0), (34, len), (u16::MAX, u16::MAX)];
    for (start, offset) in cases {
        let found = parse(&header(1, 0, 0, start, offset), &frame, Offloads::ALL);
        assert_eq!(found, Err(HeaderFault::ChecksumPlace), "{start} {offset}");
    }
    assert!(parse(&header(1, 0, 0, len - 2, 0), &frame, Offloads::ALL).is_ok());
}

#[test]
fn each_type_of_segment_needs_its_feature_and_frame() {
    let v6 = |packet: Packet| Packet { is_v6: true, ..packet };
    let tcp = Offloads::from_features;
    let cases = [
        (1, Packet::tcp(5000), Offloads::HOST_TSO4),
        (4, v6(Packet::tcp(5000)), Offloads::HOST_TSO6),
        (5, Packet::udp(5000), Offloads::HOST_USO),
        (5, v6(Packet::udp(5000)), Offloads::HOST_USO),
    ];
    for (gso_type, packet, feature) in &cases {
        let frame = packet.build_partial();
        let layout = Layout::parse(&frame, frame.len()).unwrap();
        let header = gso_header(*gso_type, 1400, &frame);
        let wanted = Request::Segment { layout, size: 1400 };
        let with = tcp(Offloads::CSUM.bits() | feature.bits());
        let without = tcp(Offloads::ALL.bits() & !feature.bits());
        assert_eq!(parse(&header, &frame, with), Ok(wanted));
        assert_eq!(parse(&header, &frame, without), Err(HeaderFault::GsoNotNegotiated));
        // Another type of frame than the header says.
        for (_, other, _) in cases.iter().filter(|(other, ..)| other != gso_type) {
            let other = other.build_partial();
            let header = gso_header(*gso_type, 1400, &other);
            assert_eq!(parse(&header, &other, Offloads::ALL), Err(HeaderFault::GsoFrame));
        }
    }
}

#[test]
fn every_lie_about_segments_has_a_name() {
    let frame = Packet::tcp(5000).build_partial();
    let fault = |header: &[u8], offloads| parse(header, &frame, offloads).unwrap_err();
    let all = Offloads::ALL;
    for undefined in [2, 3, 6, 0x20, 0x41, 0x80, 0x83, 0x85] {
        assert_eq!(fault(&header(1, undefined, 9, 34, 16), all), HeaderFault::GsoType);
    }
    assert_eq!(fault(&header(0, 1, 9, 34, 16), all), HeaderFault::GsoWithoutChecksum);
    assert_eq!(fault(&header(1, 1, 0, 34, 16), all), HeaderFault::GsoSize);
    assert_eq!(fault(&header(1, 1, 9, 36, 16), all), HeaderFault::GsoFrame);
    assert_eq!(fault(&header(1, 1, 9, 34, 6), all), HeaderFault::GsoFrame);
    let without_ecn = Offloads::from_features(all.bits() & !Offloads::HOST_ECN.bits());
    assert_eq!(fault(&header(1, 0x81, 9, 34, 16), without_ecn), HeaderFault::GsoNotNegotiated);
    assert!(parse(&header(1, 0x81, 9, 34, 16), &frame, all).is_ok());
    let lead = Request::parse(&header(1, 1, 9, 34, 16), &frame[..65], frame.len(), all);
    assert_eq!(lead, Err(HeaderFault::GsoFrame), "headers are longer than what was copied");
}

#[test]
fn what_the_guest_is_told() {
    let frame = Packet::tcp(10).build();
    let layout = Layout::parse(&frame, frame.len()).unwrap();
    assert_eq!(Header::PLAIN.emit(1), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(Header::VERIFIED.emit(1), [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(Header::partial(&layout).emit(1), [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 1, 0]);
    let merged = Header::merged(&layout, 0x5a8, true).emit(0x102);
    assert_eq!(merged, [1, 0x81, 66, 0, 0xa8, 5, 34, 0, 16, 0, 2, 1]);
}

proptest! {
    #[test]
    fn what_we_tell_a_guest_is_what_we_would_believe(packet in packets(3000), size in 1u16.., has_cwr: bool) {
        let frame = packet.build_partial();
        let layout = Layout::parse(&frame, frame.len()).unwrap();
        let has_cwr = has_cwr && !packet.is_udp;
        let header = Header::merged(&layout, size, has_cwr).emit(1);
        prop_assert_eq!(parse(&header, &frame, Offloads::ALL), Ok(Request::Segment { layout, size }));
        let header = Header::partial(&layout).emit(1);
        let (start, offset) = (layout.transport_at, layout.transport.checksum_offset());
        let place = PartialChecksum { start, offset };
        prop_assert_eq!(parse(&header, &frame, Offloads::ALL), Ok(Request::Checksum { place, is_transport: true }));
    }

    #[test]
    fn any_header_is_refused_or_within_the_frame(bytes: [u8; 12], packet in packets(300), flags in 0u8..2,
                                                 gso_type in 0u8..6, start in 0u16..400) {
        let frame = packet.build();
        let mut likely = bytes;
        likely[0] = flags;
        likely[1] = gso_type;
        likely[6..8].copy_from_slice(&start.to_le_bytes());
        likely[8..10].copy_from_slice(&[if packet.is_udp { 6 } else { 16 }, 0]);
        for bytes in [bytes, likely] {
            match parse(&bytes, &frame, Offloads::ALL) {
                Ok(Request::Checksum { place, .. }) => {
                    prop_assert!(place.start >= 14);
                    prop_assert!(place.start + place.offset + 2 <= frame.len());
                }
                Ok(Request::Segment { layout, size }) => {
                    prop_assert!(size > 0);
                    prop_assert!(layout.payload_at <= 256 && layout.end == frame.len());
                }
                Ok(Request::Plain) => prop_assert_eq!(bytes[0] & 1, 0),
                Err(_) => {}
            }
        }
    }
}

#[test]
fn a_header_says_into_how_many_frames_one_is_cut() {
    let header = |gso_type: u8, size: u16| {
        let mut bytes = [0; LEN];
        bytes[1] = gso_type;
        bytes[4..6].copy_from_slice(&size.to_le_bytes());
        bytes
    };
    assert_eq!(segments_at_most(&header(0, 1), 65_550), 1);
    assert_eq!(segments_at_most(&header(1, 1448), 60_066), 42);
    assert_eq!(segments_at_most(&header(0x81, 0), 100), 100, "refused later");
    assert_eq!(segments_at_most(&header(5, 1), 65_550), MAX_SEGMENTS);
    assert_eq!(segments_at_most(&[1; 3], 100), 1);
}
