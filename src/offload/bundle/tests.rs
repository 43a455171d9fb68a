use super::*;
use crate::wire::esp::{HEAD_LEN, ICV_LEN, payload_len};
use proptest::prelude::*;

const PREFIX: [u8; 8] = [0x40, 2, 0, 0, 0, 0, 0, 42];

fn limits(datagram: usize) -> Limits {
    Limits { datagram, datagrams: 64, total: 65_507, envelope: Envelope::Bare }
}

/// Two frames, the second partial, and three octets of padding.
fn vector() -> Vec<u8> {
    let mut bytes = vec![0, 14];
    bytes.extend([0xaa; 14]);
    bytes.extend([0x80, 15]);
    bytes.extend([0xbb; 15]);
    bytes.extend([0, 0, 0]);
    bytes
}

fn read(payload: &[u8]) -> Result<Vec<(Vec<u8>, bool)>, BundleFault> {
    Entries::new(payload).map(|e| e.map(|e| (e.frame.to_vec(), e.is_partial))).collect()
}

/// Packs frames as a sender would: a new call when one is full.
fn pack(frames: &[(Vec<u8>, bool)], limits: Limits) -> Vec<(Packed, Vec<u8>)> {
    let mut calls = vec![];
    let mut rest = frames;
    while !rest.is_empty() {
        // Old contents must not leak into padding.
        let mut buffer = vec![0x5a; limits.total];
        let mut packer = Packer::new(&mut buffer, &PREFIX, limits);
        let mut count = 0;
        for (frame, is_partial) in rest {
            let Some(room) = packer.reserve(frame.len(), *is_partial) else { break };
            room.copy_from_slice(frame);
            count += 1;
        }
        assert!(count > 0, "a frame that fits no datagram");
        rest = &rest[count..];
        let packed = packer.finish();
        assert_eq!(packed.frames, count);
        buffer.truncate(packed.len);
        calls.push((packed, buffer));
    }
    calls
}

/// A datagram without what surrounds it.
fn inside(packet: &[u8], envelope: Envelope) -> &[u8] {
    match envelope {
        Envelope::Bare => packet,
        Envelope::Sealed => {
            let body = &packet[HEAD_LEN..packet.len() - ICV_LEN];
            &body[..payload_len(body).unwrap()]
        }
    }
}

/// The frames in what was packed, and the checks that hold for every call.
fn unpack(calls: &[(Packed, Vec<u8>)], limits: Limits) -> Vec<(Vec<u8>, bool)> {
    let mut frames = vec![];
    for (packed, bytes) in calls {
        let datagrams: Vec<&[u8]> = bytes.chunks(packed.size).collect();
        assert_eq!(datagrams.len(), packed.datagrams);
        assert!(packed.size <= limits.envelope.len_of(limits.datagram));
        assert!(packed.datagrams <= limits.datagrams && packed.len <= limits.total);
        for packet in datagrams {
            let datagram = inside(packet, limits.envelope);
            let (prefix, payload) = datagram.split_at(8);
            assert_eq!(prefix, PREFIX);
            let entries = read(payload).unwrap();
            assert!(!entries.is_empty());
            frames.extend(entries);
        }
    }
    frames
}

#[test]
fn committed_vector() {
    let expected = vec![(vec![0xaa; 14], false), (vec![0xbb; 15], true)];
    assert_eq!(read(&vector()), Ok(expected));
    assert_eq!(read(&[]), Ok(vec![]));
    assert_eq!(read(&[0]), Ok(vec![]));
    assert_eq!(read(&[0, 0, 9, 9]), Ok(vec![]), "padding is not looked at");
}

#[test]
fn every_fault_has_a_name_and_ends_the_bundle() {
    let cases = [
        (&[7][..], BundleFault::Octet),
        (&[0x80, 0], BundleFault::Padding),
        (&[0, 13, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], BundleFault::Short),
        (&[0, 14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], BundleFault::Truncated),
        (&[0xff, 0xff, 0], BundleFault::Truncated),
    ];
    for (bytes, fault) in cases {
        assert_eq!(read(bytes), Err(fault));
        let mut bundle = vector()[..33].to_vec();
        bundle.extend(bytes);
        let mut entries = Entries::new(&bundle);
        assert!(entries.by_ref().take(2).all(|entry| entry.is_ok()), "what came before is good");
        assert_eq!(entries.next(), Some(Err(fault)));
        assert_eq!(entries.next(), None);
    }
}

#[test]
fn every_truncation_of_the_vector() {
    let vector = vector();
    for len in 0..vector.len() {
        let expected = match len {
            0 | 16 | 33.. => Ok(()),
            // The first octet of a length of less than 256 looks like padding.
            1 => Ok(()),
            17 => Err(BundleFault::Octet),
            _ => Err(BundleFault::Truncated),
        };
        assert_eq!(read(&vector[..len]).map(drop), expected, "cut at {len}");
    }
}

#[test]
fn every_mutation_of_the_vector() {
    let vector = vector();
    for at in 0..vector.len() {
        for value in 0..=255 {
            let mut bytes = vector.clone();
            bytes[at] = value;
            let mut total = 0;
            for entry in Entries::new(&bytes).flatten() {
                total += ENTRY_LEN + entry.frame.len();
            }
            assert!(total <= bytes.len());
        }
    }
}

#[test]
fn frames_of_one_length_need_no_padding() {
    let frames = vec![(vec![1; 64], true); 100];
    let calls = pack(&frames, limits(1440));
    assert_eq!(calls.len(), 1);
    let packed = calls[0].0;
    assert_eq!((packed.size, packed.datagrams), (8 + 21 * 66, 5));
    assert_eq!(packed.len, 5 * 8 + 100 * 66);
    assert_eq!(unpack(&calls, limits(1440)), frames);
}

#[test]
fn a_longer_frame_makes_padding() {
    let frames = vec![(vec![1; 60], false), (vec![2; 1400], true), (vec![3; 60], false)];
    let calls = pack(&frames, limits(1440));
    let packed = calls[0].0;
    assert_eq!((packed.size, packed.datagrams, packed.len), (1440, 3, 2 * 1440 + 70));
    assert!(calls[0].1[70..1440].iter().all(|octet| *octet == 0), "padding is clean");
    assert_eq!(unpack(&calls, limits(1440)), frames);
}

#[test]
fn a_single_octet_of_padding() {
    let max = 8 + 16 + 16 + 1;
    let frames = [vec![(vec![1; 14], false); 2], vec![(vec![2; 31], false); 2]].concat();
    let calls = pack(&frames, limits(max));
    assert_eq!((calls[0].0.size, calls[0].0.datagrams), (41, 3));
    assert_eq!(unpack(&calls, limits(max)), frames);
}

#[test]
fn what_does_not_fit_changes_nothing() {
    let mut buffer = [0; 100];
    let mut packer = Packer::new(&mut buffer, &PREFIX, limits(60));
    for len in [0, 13, 51, 100, MAX_FRAME_LEN + 1, usize::MAX] {
        assert!(packer.reserve(len, false).is_none(), "{len}");
    }
    assert!(packer.reserve(50, false).is_some());
    assert!(packer.reserve(31, false).is_none(), "beyond the buffer");
    assert!(packer.reserve(30, false).is_some());
    assert!(packer.reserve(14, false).is_none(), "the buffer is full");
    let packed = packer.finish();
    assert_eq!(packed, Packed { len: 100, size: 60, datagrams: 2, frames: 2 });
    let (datagram, datagrams, total) = (usize::MAX, usize::MAX, usize::MAX);
    let endless = Limits { datagram, datagrams, total, envelope: Envelope::Bare };
    let mut packer = Packer::new(&mut buffer, &PREFIX, endless);
    assert!(packer.reserve(90, false).is_some());
    assert!(packer.reserve(14, false).is_none(), "the buffer is the limit");
    assert_eq!(packer.finish().len, 100);
    let nothing = Packer::new(&mut buffer, &PREFIX, limits(60)).finish();
    assert_eq!((nothing.len, nothing.datagrams, nothing.frames), (0, 0, 0));
}

proptest! {
    #[test]
    fn what_is_packed_is_unpacked(
        frames in prop::collection::vec(
            (prop::collection::vec(any::<u8>(), 14..300), any::<bool>()), 1..200),
        datagram in 310usize..3000, datagrams in 1usize..70, total in 3050usize..65_507,
        envelope in prop::sample::select(vec![Envelope::Bare, Envelope::Sealed]),
    ) {
        let limits = Limits { datagram, datagrams, total, envelope };
        let calls = pack(&frames, limits);
        prop_assert_eq!(unpack(&calls, limits), frames);
    }

    #[test]
    fn noise_is_read_within_bounds(bytes in prop::collection::vec(0u8..40, 0..500)) {
        let mut used = 0;
        for entry in Entries::new(&bytes) {
            match entry {
                Ok(entry) => used += ENTRY_LEN + entry.frame.len(),
                Err(_) => used += 1,
            }
        }
        prop_assert!(used <= bytes.len());
    }
}
