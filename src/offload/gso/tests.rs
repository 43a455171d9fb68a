use super::super::layout::Opaque;
use super::super::packets::{self, Packet, TIMESTAMP, packets, put, u16_at};
use super::*;
use proptest::prelude::*;

fn layout_of(frame: &[u8]) -> Layout {
    Layout::parse_gso(&frame[..frame.len().min(LEAD_LEN)], frame.len()).unwrap()
}

fn cut(frame: &[u8], size: u16, max_frame: usize) -> Result<Cut, CutFault> {
    Cut::new(&frame[..frame.len().min(LEAD_LEN)], &layout_of(frame), size, max_frame)
}

/// All segments, with partial checksums.
fn segments(cut: &Cut, frame: &[u8]) -> Vec<Vec<u8>> {
    (0..cut.count())
        .map(|index| {
            let mut segment = vec![0xee; LEAD_LEN];
            let len = cut.write_header(index, &mut segment).unwrap();
            assert_eq!(len, cut.header_len());
            segment.truncate(len);
            segment.extend(&frame[cut.payload(index)]);
            segment
        })
        .collect()
}

fn complete(cut: &Cut, segment: &mut [u8]) {
    let (headers, payload) = segment.split_at_mut(cut.header_len());
    cut.complete(headers, Sum::of(payload)).unwrap();
}

fn flags(segment: &[u8]) -> u8 {
    segment[layout_of(segment).transport_at + 13]
}

#[test]
fn sequence_and_identification_count_up_and_wrap() {
    let frame = Packet::tcp(0x2001).build_partial();
    let cut = cut(&frame, 0x1000, 9000).unwrap();
    let segments = segments(&cut, &frame);
    let fields: Vec<(u32, u16, usize)> =
        segments.iter().map(|s| (field::u32_at(s, 38).unwrap(), u16_at(s, 18), s.len())).collect();
    let expected = [(0xffff_f000, 0xfffe, 66 + 0x1000), (0, 0xffff, 66 + 0x1000), (0x1000, 0, 67)];
    assert_eq!(fields, expected);
}

#[test]
fn flags_go_where_they_belong() {
    let frame = Packet { tcp_flags: 0xd9, ..Packet::tcp(3000) }.build_partial();
    let cut_small = cut(&frame, 1000, 9000).unwrap();
    let found: Vec<u8> = segments(&cut_small, &frame).iter().map(|s| flags(s)).collect();
    assert_eq!(found, [0xd0, 0x50, 0x59], "CWR first; FIN and PSH last; ACK and ECE in all");
    let cut_large = cut(&frame, 4000, 9000).unwrap();
    assert_eq!(segments(&cut_large, &frame), [frame], "one segment is the frame itself");
}

#[test]
fn the_path_bounds_segments_of_tcp_and_not_datagrams() {
    let frame = Packet::tcp(5000).build_partial();
    let found = cut(&frame, 1448, 1000).unwrap();
    assert_eq!((found.size(), found.count()), (1000 - 66, 6));
    assert_eq!(cut(&frame, 1448, 67).unwrap().count(), 5000);
    assert_eq!(cut(&frame, 1448, 66).unwrap_err(), CutFault::Path);
    assert_eq!(cut(&frame, 1448, 0).unwrap_err(), CutFault::Path);
    let frame = Packet::udp(5000).build_partial();
    assert_eq!(cut(&frame, 1448, 1000).unwrap_err(), CutFault::Path);
    assert_eq!(cut(&frame, 1448, 1448 + 42).unwrap().count(), 4);
    let one = Packet::udp(100).build_partial();
    assert_eq!(cut(&one, 1448, 1000).unwrap().count(), 1, "a single short datagram fits");
}

#[test]
fn what_can_not_be_cut() {
    for flag in [SYN, RST, URG] {
        let packet = Packet { tcp_flags: 0x10 | flag, ..Packet::tcp(2000) };
        let frame = packet.build_partial();
        assert_eq!(cut(&frame, 1448, 9000).unwrap_err(), CutFault::Indivisible);
        assert_eq!(segments(&cut(&frame, 2000, 9000).unwrap(), &frame), [frame]);
    }
    let frame = Packet::tcp(9000).build_partial();
    assert_eq!(cut(&frame, 1, 9000).unwrap_err(), CutFault::TooMany);
    let layout = layout_of(&frame);
    assert_eq!(Cut::new(&frame[..65], &layout, 9, 9000).unwrap_err(), CutFault::Headers);
}

#[test]
fn a_plain_frame_is_cut_unless_it_is_signed_or_udp() {
    let plain = |packet: Packet| {
        let frame = packet.build();
        let layout = Layout::parse(&frame, frame.len()).unwrap();
        Cut::plain(&frame, &layout, 1000).map(|cut| cut.count())
    };
    assert_eq!(plain(Packet::tcp(1400)), Ok(2));
    assert_eq!(plain(Packet::udp(1400)), Err(CutFault::Indivisible));
    for signature in [19, 29] {
        let mut options = TIMESTAMP.to_vec();
        options.extend([signature, 18]);
        options.extend([0; 18]);
        assert_eq!(
            plain(Packet { tcp_options: options, ..Packet::tcp(1400) }),
            Err(CutFault::Indivisible)
        );
    }
    // Not a signature: in the data of an option, behind the end of the list, or malformed.
    for options in
        [[8, 10, 19, 18, 0, 0, 0, 0, 0, 0, 1, 1], [0; 12], [8, 0, 0, 19, 0, 0, 0, 0, 0, 0, 0, 0]]
    {
        assert_eq!(plain(Packet { tcp_options: options.to_vec(), ..Packet::tcp(1400) }), Ok(2));
    }
}

#[test]
fn padding_of_a_plain_frame_is_left_out() {
    let mut frame = Packet::tcp(10).build();
    let expected = frame.clone();
    frame.extend([0; 7]);
    let layout = Layout::parse(&frame, frame.len()).unwrap();
    let cut = Cut::plain(&frame, &layout, 1000).unwrap();
    let mut segment = segments(&cut, &frame).remove(0);
    complete(&cut, &mut segment);
    assert_eq!(segment, expected);
}

#[test]
fn beyond_the_last_segment_is_nothing() {
    let frame = Packet::tcp(3000).build_partial();
    let cut = cut(&frame, 1000, 9000).unwrap();
    let mut out = [0; LEAD_LEN];
    for index in [3, 4, usize::MAX] {
        assert_eq!(cut.write_header(index, &mut out), None);
        assert!(cut.payload(index).is_empty());
    }
    assert_eq!(cut.write_header(0, &mut out[..65]), None, "too little room");
    assert_eq!(cut.write_header(0, &mut out[..66]), Some(66));
    assert_eq!(cut.complete(&mut out[..65], Sum::ZERO), None);
}

#[test]
fn no_payload_is_one_segment() {
    let frame = Packet::tcp(0).build_partial();
    assert_eq!(segments(&cut(&frame, 1000, 9000).unwrap(), &frame), [frame]);
}

#[test]
fn length_fields_of_zero_are_filled_in() {
    let good = Packet::tcp(3000).build_partial();
    let mut frame = good.clone();
    put(&mut frame, 16, 0);
    put(&mut frame, 24, 0);
    put(&mut frame, 50, 0);
    assert_eq!(Layout::parse(&frame, frame.len()), Err(Opaque::Malformed));
    let expected = segments(&cut(&good, 1000, 9000).unwrap(), &good);
    assert_eq!(segments(&cut(&frame, 1000, 9000).unwrap(), &frame), expected);
}

proptest! {
    #[test]
    fn segments_are_whole_frames_that_make_up_the_original(
        packet in packets(20_000), size in 200u16..3000, room in 200usize..4000,
    ) {
        let frame = packet.build_partial();
        let layout = layout_of(&frame);
        let cut = match cut(&frame, size, layout.payload_at + room) {
            Ok(cut) => cut,
            Err(fault) => {
                prop_assert_eq!(fault, CutFault::Path);
                prop_assert!(packet.is_udp && usize::from(size) > room);
                return Ok(());
            }
        };
        let mut segments = segments(&cut, &frame);
        let (last, others) = segments.split_last().unwrap();
        let full = layout.payload_at + cut.size();
        prop_assert!(others.iter().all(|segment| segment.len() == full));
        prop_assert!(last.len() <= full);
        prop_assert!(full <= layout.payload_at + room);
        let payload: Vec<u8> = segments.iter().flat_map(|s| &s[layout.payload_at..]).copied().collect();
        prop_assert_eq!(&payload, &packet.payload);
        for segment in &mut segments {
            // The partial checksum is what a guest would have written.
            let mut partial = segment.clone();
            packets::make_partial(&mut partial);
            let at = layout.checksum_at();
            prop_assert_eq!(u16_at(segment, at), u16_at(&partial, at));
            complete(&cut, segment);
            packets::assert_complete(segment);
            // Headers differ only in what segmentation changes.
            prop_assert_eq!(&segment[..layout.network_at], &frame[..layout.network_at]);
            prop_assert_eq!(&segment[layout.transport_at..layout.transport_at + 4],
                            &frame[layout.transport_at..layout.transport_at + 4]);
        }
    }

    #[test]
    fn a_checksum_can_be_completed_from_pieces(packet in packets(3000), at in 0usize..1500) {
        let frame = packet.build_partial();
        let cut = cut(&frame, 1500, 9000).unwrap();
        for index in 0..cut.count() {
            let payload = &frame[cut.payload(index)];
            let (first, second) = payload.split_at(at.min(payload.len()));
            let mut sum = Sum::of(first);
            sum.append(Sum::of(second));
            let mut segment = vec![0; cut.header_len()];
            cut.write_header(index, &mut segment).unwrap();
            cut.complete(&mut segment, sum).unwrap();
            segment.extend(payload);
            packets::assert_complete(&segment);
        }
    }

    #[test]
    fn nothing_that_parses_makes_it_panic(mut frame in prop::collection::vec(any::<u8>(), 60..400),
                                          v6: bool, udp: bool, size: u16, max_frame in 0usize..2000,
                                          total in 0usize..70_000) {
        frame[12..15].copy_from_slice(if v6 { &[0x86, 0xdd, 0x60] } else { &[8, 0, 0x45] });
        frame[if v6 { 20 } else { 23 }] = if udp { 17 } else { 6 };
        if !v6 { frame[20] &= 0x40; frame[21] = 0; }
        if let Ok(layout) = Layout::parse_gso(&frame, total)
            && let Ok(cut) = Cut::new(&frame, &layout, size, max_frame) {
            let mut out = [0; LEAD_LEN];
            let mut at = layout.payload_at;
            for index in 0..cut.count() {
                prop_assert_eq!(cut.write_header(index, &mut out), Some(layout.payload_at));
                prop_assert_eq!(cut.payload(index).start, at);
                at = cut.payload(index).end;
            }
            prop_assert_eq!(at, total);
        }
    }
}
