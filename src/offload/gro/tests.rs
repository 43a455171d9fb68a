use super::super::gso::Cut;
use super::super::packets::{self, Packet, packets, put, set_checksums};
use super::*;
use proptest::prelude::*;

const MAX_LEN: usize = 65_550;

/// What a guest receives.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Delivered {
    header: Header,
    frame: Vec<u8>,
    frames: usize,
}

fn deliver(merger: &mut Merger, frames: &[Received<'_>]) -> Vec<Delivered> {
    let mut delivered = vec![];
    let mut at = 0;
    while let Some(merged) = merger.merge(|index| frames.get(at + index).copied()) {
        let merged = merged.unwrap();
        let mut frame = merged.head.to_vec();
        let parts = &frames[at..at + merged.frames];
        parts.iter().for_each(|part| frame.extend(merged.payload_of(part)));
        at += merged.frames;
        delivered.push(Delivered { header: merged.header, frame, frames: merged.frames });
    }
    assert_eq!(at, frames.len(), "nothing is left behind");
    delivered
}

fn merge_with(offloads: Offloads, frames: &[Vec<u8>], is_partial: bool) -> Vec<Delivered> {
    let received: Vec<_> = frames.iter().map(|bytes| Received::whole(bytes, is_partial)).collect();
    deliver(&mut Merger::new(offloads, 256, MAX_LEN), &received)
}

fn merge(frames: &[Vec<u8>], is_partial: bool) -> Vec<Delivered> {
    merge_with(Offloads::ALL, frames, is_partial)
}

fn counts(delivered: &[Delivered]) -> Vec<usize> {
    delivered.iter().map(|d| d.frames).collect()
}

/// The segments of a packet; complete or partial.
fn segments(packet: &Packet, size: u16, is_partial: bool) -> Vec<Vec<u8>> {
    let frame = packet.build_partial();
    let layout = Layout::parse_gso(&frame, frame.len()).unwrap();
    let cut = Cut::new(&frame, &layout, size, MAX_LEN).unwrap();
    (0..cut.count())
        .map(|index| {
            let mut segment = vec![0; cut.header_len()];
            cut.write_header(index, &mut segment).unwrap();
            let payload = &frame[cut.payload(index)];
            if !is_partial {
                cut.complete(&mut segment, Sum::of(payload)).unwrap();
            }
            segment.extend(payload);
            segment
        })
        .collect()
}

fn four() -> Vec<Vec<u8>> {
    segments(&Packet::tcp(3500), 1000, false)
}

fn without(feature: Offloads) -> Offloads {
    Offloads::from_features(Offloads::ALL.bits() & !feature.bits())
}

#[test]
fn segments_of_each_kind_become_what_they_were() {
    for is_partial in [false, true] {
        for (is_v6, is_udp) in [(false, false), (true, false), (false, true), (true, true)] {
            let packet = Packet { is_v6, is_udp, ..Packet::tcp(3500) };
            let delivered = merge(&segments(&packet, 1000, is_partial), is_partial);
            let frame = packet.build_partial();
            let layout = Layout::parse(&frame, frame.len()).unwrap();
            let header = Header::merged(&layout, 1000, false);
            assert_eq!(delivered, [Delivered { header, frame, frames: 4 }]);
        }
    }
}

#[test]
fn push_ends_a_run_and_is_kept() {
    let mut frames = segments(&Packet { tcp_flags: 0x18, ..Packet::tcp(3000) }, 1000, true);
    let more = Packet {
        sequence: 0xffff_f000u32.wrapping_add(3000),
        identification: 1,
        ..Packet::tcp(2000)
    };
    frames.extend(segments(&more, 1000, true));
    let delivered = merge(&frames, true);
    assert_eq!(counts(&delivered), [3, 2]);
    assert_eq!(delivered[0].frame, Packet { tcp_flags: 0x18, ..Packet::tcp(3000) }.build_partial());
    assert_eq!(delivered[1].frame, more.build_partial());
}

#[test]
fn a_short_segment_ends_a_run_and_a_longer_one_begins_one() {
    let frames = segments(&Packet::tcp(2500), 1000, true);
    let more = Packet {
        sequence: 0xffff_f000u32.wrapping_add(2500),
        identification: 1,
        ..Packet::tcp(2800)
    };
    let all = [frames.clone(), segments(&more, 1400, true)].concat();
    assert_eq!(counts(&merge(&all, true)), [3, 2]);
    let short = Packet { payload: packets::pattern(1000), ..more };
    let all = [frames, segments(&short, 500, true)].concat();
    assert_eq!(counts(&merge(&all, true)), [3, 2], "as short as the last");
}

#[test]
fn any_header_byte_that_differs_keeps_frames_apart() {
    let frames = segments(&Packet::tcp(2000), 1000, true);
    // Checksums follow what changed, so that they are not the reason.
    for at in (0..66).filter(|at| ![16, 17, 24, 25, 50, 51].contains(at)) {
        // Version, lengths, fragment bits and protocol would make another kind of frame of it.
        if [12, 13, 14, 20, 21, 23, 46].contains(&at) {
            continue;
        }
        let mut changed = frames.clone();
        changed[1][at] ^= 2;
        set_checksums(&mut changed[1]);
        packets::make_partial(&mut changed[1]);
        let delivered = merge(&changed, true);
        assert_eq!(counts(&delivered), [1, 1], "byte {at}");
        assert_eq!(delivered[0].frame, changed[0]);
        assert_eq!(delivered[1].frame, changed[1]);
    }
    assert_eq!(counts(&merge(&frames, true)), [2]);
}

#[test]
fn frames_of_another_kind_keep_runs_apart() {
    let frames = segments(&Packet::tcp(2000), 1000, true);
    let others = [
        Packet { is_v6: true, ..Packet::tcp(1000) },
        Packet { tags: vec![0x8100], ..Packet::tcp(1000) },
        Packet { ip_options: 1, ..Packet::tcp(1000) },
        Packet { dont_fragment: false, ..Packet::tcp(1000) },
        Packet { tcp_options: vec![], ..Packet::tcp(1000) },
        Packet::udp(1000),
        Packet::tcp(0),
    ];
    for other in others {
        let other = Packet { sequence: 0xffff_f000 + 1000, identification: 0xffff, ..other };
        let mixed = [frames[0].clone(), other.build_partial(), frames[1].clone()];
        let delivered = merge(&mixed, true);
        assert_eq!(counts(&delivered), [1, 1, 1], "{other:?}");
        assert!(delivered.iter().zip(&mixed).all(|(d, frame)| d.frame == *frame));
    }
}

#[test]
fn only_plain_flags_merge() {
    for flag in [0x01, 0x02, 0x04, 0x20] {
        for at in 0..2 {
            let mut frames = segments(&Packet::tcp(2000), 1000, true);
            frames[at][47] |= flag;
            assert_eq!(counts(&merge(&frames, true)), [1, 1], "flag {flag:#x} in {at}");
        }
    }
    let mut frames = segments(&Packet::tcp(2000), 1000, true);
    frames.iter_mut().for_each(|frame| frame[47] = 0x08);
    assert_eq!(counts(&merge(&frames, true)), [1, 1], "no ACK");
    frames.iter_mut().for_each(|frame| frame[47] = 0x50);
    assert_eq!(counts(&merge(&frames, true)), [2], "ECE in all");
    frames.iter_mut().for_each(|frame| frame[46] |= 1);
    assert_eq!(counts(&merge(&frames, true)), [1, 1], "a reserved bit");
}

#[test]
fn congestion_window_reduced_needs_its_feature() {
    let packet = Packet { tcp_flags: 0x90, ..Packet::tcp(3000) };
    let frames = segments(&packet, 1000, true);
    let delivered = merge(&frames, true);
    assert_eq!(counts(&delivered), [3]);
    assert_eq!(delivered[0].frame, packet.build_partial());
    assert_eq!(delivered[0].header.emit(1)[1], 0x81);
    let delivered = merge_with(without(Offloads::GUEST_ECN), &frames, true);
    assert_eq!(counts(&delivered), [1, 2]);
    let mut late = frames;
    late[0][47] = 0x10;
    late[1][47] = 0x90;
    assert_eq!(counts(&merge(&late, true)), [1, 2], "CWR begins another");
}

#[test]
fn identification_counts_up_or_stays_where_it_means_nothing() {
    let with_ids = |dont_fragment: bool, ids: [u16; 3]| {
        let packet = Packet { dont_fragment, ..Packet::tcp(3000) };
        let mut frames = segments(&packet, 1000, false);
        for (frame, id) in frames.iter_mut().zip(ids) {
            put(frame, 18, id);
            set_checksums(frame);
        }
        counts(&merge(&frames, false))
    };
    assert_eq!(with_ids(true, [7, 8, 9]), [3]);
    assert_eq!(with_ids(false, [0xffff, 0, 1]), [3]);
    assert_eq!(with_ids(true, [7, 7, 7]), [3]);
    assert_eq!(with_ids(false, [7, 7, 7]), [1, 1, 1]);
    assert_eq!(with_ids(true, [7, 7, 8]), [2, 1]);
    assert_eq!(with_ids(true, [7, 8, 8]), [2, 1]);
    assert_eq!(with_ids(true, [7, 9, 11]), [1, 1, 1]);
}

#[test]
fn wrong_checksums_are_never_hidden() {
    for at in 0..4 {
        // Of the payload.
        let mut frames = four();
        *frames[at].last_mut().unwrap() ^= 1;
        let delivered = merge(&frames, false);
        let alone = delivered.iter().find(|d| d.frame == frames[at]).expect("as it came");
        assert_eq!(alone.header, Header::PLAIN);
        // Of the IPv4 header.
        let mut frames = four();
        frames[at][24] ^= 1;
        let delivered = merge(&frames, false);
        assert!(delivered.iter().any(|d| d.frame == frames[at]));
    }
    let mut frames = four();
    *frames[1].last_mut().unwrap() ^= 1;
    let delivered = merge(&frames, false);
    assert_eq!(counts(&delivered), [1, 1, 2]);
    assert_eq!(delivered[0].header, Header::VERIFIED, "it was looked at and found right");
}

#[test]
fn datagrams_without_a_checksum_stay_alone() {
    let mut frames = segments(&Packet::udp(3000), 1000, false);
    frames.iter_mut().for_each(|frame| put(frame, 40, 0));
    let delivered = merge(&frames, false);
    assert_eq!(counts(&delivered), [1, 1, 1]);
    assert!(delivered.iter().all(|d| d.header == Header::PLAIN));
}

#[test]
fn an_absent_checksum_is_not_mistaken_for_a_right_one() {
    let mut frames = segments(&Packet::udp(3000), 1000, false);
    for frame in &mut frames {
        // Data whose sum is right with a checksum of 0.
        frame[42..44].fill(0);
        let (_, missing) = packets::right_checksums(frame);
        put(frame, 42, missing);
        put(frame, 40, 0);
    }
    assert_eq!(counts(&merge(&frames, false)), [1, 1, 1]);
}

#[test]
fn partial_and_complete_may_mix() {
    let complete = four();
    let partial = segments(&Packet::tcp(3500), 1000, true);
    let received = [
        Received::whole(&complete[0], false),
        Received::whole(&partial[1], true),
        Received::whole(&complete[2], false),
        Received::whole(&partial[3], true),
    ];
    let delivered = deliver(&mut Merger::new(Offloads::ALL, 256, MAX_LEN), &received);
    assert_eq!(counts(&delivered), [4]);
    assert_eq!(delivered[0].frame, Packet::tcp(3500).build_partial());
}

#[test]
fn a_guest_gets_only_what_it_negotiated() {
    for (packet, feature) in [
        (Packet::tcp(3000), Offloads::GUEST_TSO4),
        (Packet { is_v6: true, ..Packet::tcp(3000) }, Offloads::GUEST_TSO6),
        (Packet::udp(3000), Offloads::GUEST_USO4),
        (Packet { is_v6: true, ..Packet::udp(3000) }, Offloads::GUEST_USO6),
    ] {
        let frames = segments(&packet, 1000, true);
        let delivered = merge_with(without(feature), &frames, true);
        assert_eq!(counts(&delivered), [1, 1, 1]);
        let layout = Layout::parse(&frames[0], frames[0].len()).unwrap();
        for (d, frame) in delivered.iter().zip(&frames) {
            assert_eq!((&d.frame, d.header), (frame, Header::partial(&layout)));
        }
        assert_eq!(counts(&merge_with(feature, &frames, true)), [1, 1, 1], "needs GUEST_CSUM");
        // One that knows no partial checksums gets complete ones.
        let delivered = merge_with(Offloads::NONE, &frames, true);
        let complete = segments(&packet, 1000, false);
        for (d, frame) in delivered.iter().zip(&complete) {
            assert_eq!((&d.frame, d.header), (frame, Header::PLAIN));
        }
        assert_eq!(merge_with(Offloads::NONE, &complete, false), delivered);
    }
}

#[test]
fn partial_without_transport_header_is_a_fault_and_only_that_frame() {
    let mut bad = four().remove(0);
    bad[23] = 1;
    let good = segments(&Packet::tcp(3500), 1000, true).remove(0);
    for offloads in [Offloads::ALL, Offloads::NONE] {
        let mut merger = Merger::new(offloads, 256, MAX_LEN);
        let frames = [Received::whole(&bad, true), Received::whole(&good, true)];
        let fault = merger.merge(|index| frames.get(index).copied());
        assert_eq!(fault.map(|r| r.unwrap_err()), Some(PartialFault));
        assert_eq!(deliver(&mut merger, &frames[1..]).len(), 1);
        let complete = [Received::whole(&bad, false)];
        let delivered = deliver(&mut merger, &complete);
        assert_eq!((&delivered[0].frame, delivered[0].header), (&bad, Header::PLAIN));
    }
}

#[test]
fn padded_frames_stay_alone_and_whole() {
    let mut frames = segments(&Packet { tcp_options: vec![], ..Packet::tcp(3) }, 1, true);
    frames.iter_mut().for_each(|frame| frame.resize(60, 0));
    let delivered = merge(&frames, true);
    assert_eq!(counts(&delivered), [1, 1, 1]);
    assert!(delivered.iter().zip(&frames).all(|(d, frame)| d.frame == *frame));
    let mut frames = segments(&Packet { tcp_options: vec![], ..Packet::tcp(3) }, 1, true);
    frames[0].resize(60, 0);
    assert_eq!(counts(&merge(&frames, true)), [1, 2], "only the first is padded");
}

#[test]
fn limits_hold() {
    let frames = segments(&Packet::tcp(10_000), 100, true);
    let received: Vec<_> = frames.iter().map(|bytes| Received::whole(bytes, true)).collect();
    let delivered = deliver(&mut Merger::new(Offloads::ALL, 40, MAX_LEN), &received);
    assert_eq!(counts(&delivered), [40, 40, 20]);
    let delivered = deliver(&mut Merger::new(Offloads::ALL, 256, 3000), &received);
    assert!(delivered.iter().all(|d| d.frame.len() <= 3000 && d.frames <= 29));
    assert_eq!(delivered[0].frames, 29);
    let datagrams = segments(&Packet::udp(10_000), 100, true);
    assert_eq!(counts(&merge(&datagrams, true)), [64, 36]);
    // IP's own limit.
    let size = 1448;
    let first = segments(&Packet::tcp(40 * size), 1448, true);
    let next = Packet {
        sequence: 0xffff_f000u32.wrapping_add(40 * 1448),
        identification: 0xfffeu16.wrapping_add(40),
        ..Packet::tcp(10 * size)
    };
    let frames = [first, segments(&next, 1448, true)].concat();
    let received: Vec<_> = frames.iter().map(|bytes| Received::whole(bytes, true)).collect();
    let delivered = deliver(&mut Merger::new(Offloads::ALL, 256, usize::MAX), &received);
    assert_eq!(counts(&delivered), [45, 5]);
    assert!(delivered[0].frame.len() <= 14 + 65_535);
}

#[test]
fn nothing_waits_nothing_is_delivered() {
    let mut merger = Merger::new(Offloads::ALL, 256, MAX_LEN);
    assert!(merger.merge(|_| None).is_none());
}

proptest! {
    #[test]
    fn cutting_and_merging_gives_the_original(mut packet in packets(20_000), size in 100u16..3000, is_partial: bool) {
        packet.ip_options = 0;
        packet.tcp_flags &= !0x01;
        if packet.is_udp {
            packet.payload.truncate(usize::from(size) * 64);
        }
        let delivered = merge(&segments(&packet, size, is_partial), is_partial);
        prop_assert_eq!(delivered.len(), 1);
        let original = packet.build_partial();
        if delivered[0].frames == 1 {
            prop_assert_eq!(&delivered[0].frame, &if is_partial { original } else { packet.build() });
        } else {
            prop_assert_eq!(&delivered[0].frame, &original);
            let layout = Layout::parse(&original, original.len()).unwrap();
            let has_cwr = !packet.is_udp && packet.tcp_flags & 0x80 != 0;
            prop_assert_eq!(delivered[0].header, Header::merged(&layout, size, has_cwr));
        }
    }

    #[test]
    fn whatever_comes_is_delivered_in_order_and_completely(
        all in prop::collection::vec((packets(5000), 300u16..2000, any::<bool>()), 1..5),
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0usize..80, any::<u8>()), 0..6),
        offloads: u64,
    ) {
        let mut frames: Vec<(Vec<u8>, bool)> = all.iter()
            .flat_map(|(packet, size, partial)| {
                segments(packet, *size, *partial).into_iter().map(|segment| (segment, *partial))
            })
            .collect();
        for (which, at, value) in changes {
            let at_frame = which.index(frames.len());
            let frame = &mut frames[at_frame].0;
            let at = at.min(frame.len() - 1);
            frame[at] = value;
        }
        let received: Vec<Received<'_>> = frames.iter()
            .map(|(bytes, is_partial)| Received::whole(bytes, *is_partial))
            .collect();
        let mut merger = Merger::new(Offloads::from_features(offloads), 256, MAX_LEN);
        let mut at = 0;
        while let Some(result) = merger.merge(|index| received.get(at + index).copied()) {
            let Ok(merged) = result else {
                prop_assert!(received[at].is_partial);
                at += 1;
                continue;
            };
            prop_assert!(merged.frames >= 1);
            let parts = &received[at..at + merged.frames];
            if merged.frames > 1 {
                // Cutting it again gives every part back, with right checksums.
                let mut whole = merged.head.to_vec();
                parts.iter().for_each(|part| whole.extend(merged.payload_of(part)));
                let layout = Layout::parse(&whole, whole.len()).unwrap();
                let size = u16::try_from(merged.payload_of(&parts[0]).len()).unwrap();
                let cut = Cut::new(&whole, &layout, size, MAX_LEN).unwrap();
                prop_assert_eq!(cut.count(), parts.len());
                for (index, part) in parts.iter().enumerate() {
                    let mut headers = vec![0; cut.header_len()];
                    cut.write_header(index, &mut headers).unwrap();
                    prop_assert_eq!(&whole[cut.payload(index)], merged.payload_of(part));
                    if !part.is_partial {
                        cut.complete(&mut headers, Sum::of(merged.payload_of(part))).unwrap();
                        prop_assert_eq!(&headers[..], &part.bytes[..cut.header_len()]);
                    }
                }
            } else if merged.head.is_empty() {
                prop_assert_eq!(merged.payload_of(&parts[0]), parts[0].bytes);
            }
            at += merged.frames;
        }
        prop_assert_eq!(at, received.len());
    }
}
