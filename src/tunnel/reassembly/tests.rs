use super::*;
use proptest::prelude::*;
use proptest::sample::Index;

const AT: Instant = Instant::from_millis(10_000);

fn sender(n: u16) -> SocketAddr {
    ([192, 0, 2, 1], 1024 + n).into()
}

fn piece(id: u32, offset: usize, is_last: bool, bytes: &[u8]) -> Piece<'_> {
    Piece { id, offset, is_last, bytes }
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(31) ^ (at >> 8) as u8 ^ seed).collect()
}

fn add(reassembly: &mut Reassembly, piece: &Piece<'_>) -> Option<Vec<u8>> {
    reassembly.add(sender(0), Flags::NONE, piece, AT)
}

#[test]
fn the_order_does_not_matter_and_copies_are_ignored() {
    let whole = pattern(300, 0);
    let cut = |n: usize| piece(1, 100 * n, n == 2, &whole[100 * n..100 * (n + 1)]);
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let mut reassembly = Reassembly::default();
        assert_eq!(add(&mut reassembly, &cut(order[0])), None);
        assert_eq!(add(&mut reassembly, &cut(order[0])), None, "again");
        assert_eq!(add(&mut reassembly, &cut(order[1])), None);
        assert_eq!(add(&mut reassembly, &cut(order[2])), Some(whole.clone()), "{order:?}");
        assert!(reassembly.is_empty() && reassembly.bytes == 0);
        assert_eq!(reassembly.take_dropped(), 1, "the copy");
        assert_eq!(reassembly.take_dropped(), 0);
    }
    let mut reassembly = Reassembly::default();
    assert_eq!(add(&mut reassembly, &piece(1, 0, true, b"alone")), Some(b"alone".to_vec()));
}

#[test]
fn frames_of_different_senders_ids_and_flags_never_mix() {
    let mut reassembly = Reassembly::default();
    let (first, last) = (piece(1, 0, false, b"one "), piece(1, 4, true, b"two"));
    assert_eq!(reassembly.add(sender(0), Flags::NONE, &first, AT), None);
    assert_eq!(reassembly.add(sender(1), Flags::NONE, &last, AT), None);
    assert_eq!(reassembly.add(sender(0), Flags::PARTIAL_CHECKSUM, &last, AT), None);
    assert_eq!(reassembly.add(sender(0), Flags::NONE, &Piece { id: 2, ..last }, AT), None);
    let whole = reassembly.add(sender(0), Flags::NONE, &last, AT);
    assert_eq!(whole, Some(b"one two".to_vec()));
    let whole = reassembly.add(sender(1), Flags::NONE, &piece(1, 0, false, b"six "), AT);
    assert_eq!(whole, Some(b"six two".to_vec()));
}

#[test]
fn overlaps_and_lies_about_the_end_end_the_frame() {
    let ten = [0; 10];
    let lies: [(&str, &[Piece<'_>]); 8] = [
        ("overlaps the one before", &[piece(1, 0, false, &ten), piece(1, 9, false, &ten)]),
        ("overlaps the one behind", &[piece(1, 9, false, &ten), piece(1, 0, false, &ten)]),
        ("is within another", &[piece(1, 0, false, &ten), piece(1, 1, false, b"a")]),
        ("has another within", &[piece(1, 1, false, b"a"), piece(1, 0, false, &ten)]),
        ("is beyond the end", &[piece(1, 10, true, &ten), piece(1, 20, false, &ten)]),
        ("ends before others", &[piece(1, 20, false, &ten), piece(1, 0, true, &ten)]),
        ("is a second end", &[piece(1, 20, true, &ten), piece(1, 0, true, &ten)]),
        ("becomes the end", &[piece(1, 10, false, &ten), piece(1, 10, true, &ten)]),
    ];
    for (name, pieces) in lies {
        let mut reassembly = Reassembly::default();
        for piece in pieces {
            assert_eq!(add(&mut reassembly, piece), None, "{name}");
        }
        assert!(reassembly.is_empty() && reassembly.bytes == 0, "{name}");
        assert_eq!(reassembly.take_dropped(), 2, "{name}");
    }
    let mut reassembly = Reassembly::default();
    add(&mut reassembly, &piece(1, frame::MAX_LEN - 9, true, &ten));
    add(&mut reassembly, &piece(1, crate::wire::fragment::MAX_OFFSET, true, &ten));
    assert!(reassembly.is_empty());
    assert_eq!(reassembly.take_dropped(), 2, "longer than any frame");
}

#[test]
fn what_is_not_complete_in_time_is_given_up() {
    let mut reassembly = Reassembly::default();
    assert_eq!(reassembly.poll_timeout(), None);
    add(&mut reassembly, &piece(1, 0, false, b"first"));
    let later = AT + LIFETIME / 2;
    reassembly.add(sender(0), Flags::NONE, &piece(1, 10, false, b"third"), later);
    reassembly.add(sender(0), Flags::NONE, &piece(2, 0, false, b"other"), later);
    assert_eq!(reassembly.poll_timeout(), Some(AT + LIFETIME));
    reassembly.expire(AT + LIFETIME);
    assert_eq!(reassembly.take_dropped(), 2);
    assert_eq!(reassembly.poll_timeout(), Some(later + LIFETIME));
    // Too late: it begins anew, and is given up in its turn.
    let last = piece(1, 5, true, b"last!");
    assert_eq!(reassembly.add(sender(0), Flags::NONE, &last, later + LIFETIME), None);
    reassembly.expire(later + LIFETIME * 2);
    assert_eq!(reassembly.take_dropped(), 2);
    assert!(reassembly.is_empty() && reassembly.bytes == 0);
}

fn assert_bounded(reassembly: &Reassembly) {
    assert!(reassembly.partials.len() <= MAX_FRAMES);
    assert!(reassembly.bytes <= MAX_BYTES);
    let cost: usize = reassembly.partials.iter().map(Partial::cost).sum();
    assert_eq!(reassembly.bytes, cost);
    for partial in &reassembly.partials {
        assert!(partial.places.len() <= MAX_PIECES);
        let of_sender = || reassembly.partials.iter().filter(|p| p.from == partial.from);
        assert!(of_sender().count() <= MAX_FRAMES_PER_SENDER);
        assert!(of_sender().map(Partial::cost).sum::<usize>() <= MAX_BYTES_PER_SENDER);
    }
}

#[test]
fn floods_are_bounded_and_drive_nobody_else_out() {
    let mut reassembly = Reassembly::default();
    let honest = sender(9);
    reassembly.add(honest, Flags::NONE, &piece(1, 0, false, b"a whole "), AT);
    let long = vec![0; 60_000];
    for id in 0..10_000 {
        let bytes = if id % 2 == 0 { &long[..] } else { b"a" };
        add(&mut reassembly, &piece(id, 1, false, bytes));
    }
    // Pieces of one byte, every other one.
    for n in 0..1000 {
        add(&mut reassembly, &piece(77_777, 2 * n, false, b"a"));
    }
    assert_bounded(&reassembly);
    let last = piece(1, 8, true, b"frame");
    assert_eq!(reassembly.add(honest, Flags::NONE, &last, AT), Some(b"a whole frame".to_vec()));
    for n in 0..2000 {
        reassembly.add(sender(n % 500), Flags::NONE, &piece(n.into(), 1, false, &long), AT);
        reassembly.add(sender(n), Flags::NONE, &piece(n.into(), 1, false, b"a"), AT);
        assert!(reassembly.bytes <= MAX_BYTES && reassembly.partials.len() <= MAX_FRAMES);
    }
    assert_bounded(&reassembly);
    reassembly.expire(AT + LIFETIME);
    // All but the two that became a frame.
    assert_eq!(reassembly.take_dropped(), 10_000 + 1000 + 4000);
    assert!(reassembly.is_empty() && reassembly.bytes == 0);
}

/// A frame of a random test, and how it is cut.
#[derive(Clone, Debug)]
struct Frame {
    sender: u16,
    len: usize,
    room: usize,
}

fn frames() -> impl Strategy<Value = Vec<Frame>> {
    let frame = (0u16..3, 1usize..5000, 100usize..1500).prop_map(|(sender, len, room)| Frame {
        sender,
        len,
        room,
    });
    proptest::collection::vec(frame, 1..10)
}

proptest! {
    /// Whatever is lost, doubled or late: each frame that comes out is one that was sent, and each of
    /// which no piece was lost comes out.
    #[test]
    fn frames_come_out_as_they_were_or_not_at_all(
        frames in frames(),
        order: Vec<Index>,
        lost in proptest::collection::vec(any::<Index>(), 0..5),
        doubled in proptest::collection::vec(any::<Index>(), 0..5),
    ) {
        let wholes: Vec<Vec<u8>> =
            frames.iter().enumerate().map(|(n, frame)| pattern(frame.len, n as u8)).collect();
        let mut wire: Vec<(usize, Piece<'_>)> = Vec::new();
        for (n, (frame, whole)) in frames.iter().zip(&wholes).enumerate() {
            for (index, bytes) in whole.chunks(frame.room).enumerate() {
                let offset = index * frame.room;
                let is_last = offset + bytes.len() == whole.len();
                wire.push((n, piece(n as u32, offset, is_last, bytes)));
            }
        }
        let mut is_hurt = vec![false; frames.len()];
        for index in lost {
            let (n, _) = wire.remove(index.index(wire.len()));
            is_hurt[n] = true;
            if wire.is_empty() {
                break;
            }
        }
        for index in doubled {
            if !wire.is_empty() {
                wire.push(wire[index.index(wire.len())]);
            }
        }
        for (at, index) in order.iter().enumerate().take(wire.len()) {
            let other = index.index(wire.len());
            wire.swap(at, other);
        }
        let mut reassembly = Reassembly::default();
        let mut arrived = vec![0; frames.len()];
        let mut used = 0;
        for (n, piece) in &wire {
            let from = sender(frames[*n].sender);
            if let Some(whole) = reassembly.add(from, Flags::NONE, piece, AT) {
                prop_assert!(whole == wholes[*n]);
                arrived[*n] += 1;
                used += whole.len().div_ceil(frames[*n].room);
            }
            assert_bounded(&reassembly);
        }
        for (arrived, is_hurt) in arrived.iter().zip(&is_hurt) {
            prop_assert!(*is_hurt || *arrived >= 1);
        }
        reassembly.expire(AT + LIFETIME);
        prop_assert_eq!(reassembly.take_dropped(), (wire.len() - used) as u64);
        prop_assert!(reassembly.is_empty() && reassembly.bytes == 0);
    }

    /// Bytes from anybody: nothing but bounds to be kept.
    #[test]
    fn hostile_pieces_are_bounded(
        pieces in proptest::collection::vec(
            (0u16..4, 0u32..4, 0usize..3000, any::<bool>(), 0usize..2000, 0u64..200),
            0..400,
        ),
    ) {
        let bytes = pattern(2000, 1);
        let mut reassembly = Reassembly::default();
        let mut now = AT;
        let (mut sent, mut came_out) = (0, 0);
        for (from, id, offset, is_last, len, wait) in pieces {
            now += Duration::from_millis(wait);
            sent += 1;
            let piece = piece(id, offset, is_last, &bytes[..len]);
            if let Some(whole) = reassembly.add(sender(from), Flags::NONE, &piece, now) {
                came_out += 1;
                prop_assert!(!whole.is_empty() && whole.len() <= 5000);
            }
            assert_bounded(&reassembly);
        }
        reassembly.expire(now + LIFETIME);
        prop_assert!(reassembly.take_dropped() <= sent - came_out);
        prop_assert!(reassembly.is_empty() && reassembly.bytes == 0);
    }
}
