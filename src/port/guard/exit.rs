//! Applies the guard to a guest's frames so that what was checked is what leaves: a frame's beginning is
//! copied out of the guest's reach, checked there, and the copy is sent in place of the original.
//!
//! ```text
//!  guest memory:   | virtio-net header, headers, payload ...        |    the guest writes at any time
//!                        | copied once    |
//!                        v                |
//!  our memory:     | virtio-net header, headers, .. |    |          read when the frame is sent
//!                        | checked                       |
//!                        v                               v
//!  the frame's pieces:   [ our copy ]          [ the rest in guest memory ]
//! ```
//!
//! So whichever way a frame takes, whether it is staged, scattered, cut, parked, or written into a lane,
//! reads these bytes from our copy, and none of them has to know about it.

#![forbid(unsafe_code)]

use std::cell::{Cell, OnceCell};

use super::{Guard, Offence, Prefix};
use crate::guest::MODERN_HEADER_LEN;
use crate::guest::transmit::{MAX_PIECES, TransmitFrame};
use crate::offload::LEAD_LEN;
use crate::offload::header;
use crate::port::tx::{Judged, Verdict};
use crate::sys::iovec::{Gather, IoVec};
use crate::sys::mmsg::{MAX_PARTS, MAX_SEGMENTS};
use crate::wire::Mac;

/// A virtio-net header at full length, right-aligned, and the beginning of a frame.
type Copied = [u8; MODERN_HEADER_LEN + LEAD_LEN];

/// The copy is one piece more, which a message of segments has room for.
const _: () = assert!(2 * MAX_SEGMENTS + MAX_PIECES < MAX_PARTS);

/// What the frames of a guest with a list of addresses pass before they leave: the guard, and the
/// copies of the frames of one batch.
#[derive(Debug)]
pub struct Exit {
    guard: Guard,
    copies: Box<[OnceCell<Copied>]>,
    used: Cell<usize>,
}

impl Exit {
    /// For batches of at most so many frames.
    pub fn new(allowed: Vec<Prefix>, frames: usize) -> Self {
        let copies = (0..frames).map(|_| OnceCell::new()).collect();
        Self { guard: Guard::new(allowed), copies, used: Cell::new(0) }
    }

    /// The batch has left; nothing borrows its copies any more.
    pub fn clear(&mut self) {
        let used = self.used.take();
        self.copies.iter_mut().take(used).for_each(|copy| *copy = OnceCell::new());
    }

    /// Drops a frame that may not leave: its verdict says so. The pieces of one that may, which
    /// are the last of `pieces`, begin with a copy of what was checked from now on.
    pub fn judge<'b>(
        &'b self,
        judged: &mut Judged,
        frame: &mut TransmitFrame,
        pieces: &mut Vec<IoVec<'b>>,
    ) {
        if matches!(judged.verdict, Verdict::Drop(_)) {
            return;
        }
        let [.., a, b, c, d, e, f] = judged.addresses;
        if let Err(offence) = self.admit(Mac([a, b, c, d, e, f]), frame, pieces) {
            judged.verdict = Verdict::Drop(offence.counter());
        }
    }

    fn admit<'b>(
        &'b self,
        source: Mac,
        frame: &mut TransmitFrame,
        pieces: &mut Vec<IoVec<'b>>,
    ) -> Result<(), Offence> {
        let start = frame.pieces.start;
        let copy = self.copy(frame, pieces.get(start..).unwrap_or_default());
        let copy = copy.ok_or(Offence::Opaque)?;
        let lead = copy.get(frame.skip..).unwrap_or_default();
        let fixed_len = self.guard.check(source, lead, frame.len)?;
        // Where the sum is stored, it replaces what was checked.
        if header::checksum_at(frame.header()).is_some_and(|at| at < fixed_len) {
            return Err(Offence::Opaque);
        }
        replace_front(pieces, start, copy);
        frame.pieces = start..pieces.len();
        Ok(())
    }

    /// Copies the beginning of a frame, with its virtio-net header. What was copied with the frame
    /// is not copied again: others have made decisions from it.
    fn copy(&self, frame: &TransmitFrame, pieces: &[IoVec<'_>]) -> Option<&[u8]> {
        let slot = self.copies.get(self.used.get())?;
        let start = MODERN_HEADER_LEN.checked_sub(frame.skip)?;
        let end = MODERN_HEADER_LEN + frame.len.min(LEAD_LEN);
        let mut bytes: Copied = [0; MODERN_HEADER_LEN + LEAD_LEN];
        let place = bytes.get_mut(start..end)?;
        let (header, place) = place.split_at_mut_checked(frame.skip)?;
        header.copy_from_slice(frame.header());
        let (known, rest) = place.split_at_mut_checked(frame.lead().len())?;
        known.copy_from_slice(frame.lead());
        let from = frame.skip + known.len();
        Gather::new(pieces, from).copy_to(rest).then_some(())?;
        self.used.set(self.used.get() + 1);
        slot.get_or_init(|| bytes).get(start..end)
    }
}

/// Puts `own` in place of the first bytes of what is in `pieces` from `start` on, as many as it has.
fn replace_front<'b>(pieces: &mut Vec<IoVec<'b>>, start: usize, own: &'b [u8]) {
    let (mut covered, mut at) = (own.len(), start);
    while let Some(piece) = pieces.get_mut(at) {
        if covered < piece.len() {
            *piece = piece.skip(covered);
            break;
        }
        covered -= piece.len();
        at += 1;
    }
    pieces.splice(start..at, [IoVec::from_slice(own)]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::VifCounter;
    use crate::tunnel::outgoing::AddressBytes;
    use etherparse::PacketBuilder;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

    const OWN: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
    const PEER: [u8; 6] = [0x52, 0x54, 0, 0, 0, 2];
    /// Where a frame's pieces are in memory: far apart.
    const STEP: usize = 0x1000;

    /// The memory of a guest, in which it writes when it likes.
    struct Guest(GuestMemoryMmap);

    impl Guest {
        /// With these bytes, cut into pieces of these lengths; the last is as long as it has to be.
        fn new(bytes: &[u8], lens: &[usize]) -> (Self, Vec<(usize, usize)>) {
            let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 64 * STEP)]).unwrap();
            let (mut places, mut left) = (Vec::new(), bytes);
            for (n, len) in lens.iter().copied().chain([usize::MAX]).enumerate() {
                let (piece, rest) = left.split_at(len.min(left.len()));
                memory.write_slice(piece, GuestAddress((n * STEP) as u64)).unwrap();
                places.push((n * STEP, piece.len()));
                left = rest;
            }
            (Self(memory), places)
        }

        fn pieces(&self, places: &[(usize, usize)]) -> Vec<IoVec<'_>> {
            let piece = |(at, len): &(usize, usize)| {
                IoVec::from_guest(&self.0.get_slice(GuestAddress(*at as u64), *len).unwrap())
            };
            places.iter().map(piece).collect()
        }

        /// Overwrites all that it has.
        fn flip(&self, places: &[(usize, usize)]) {
            for (at, len) in places {
                self.0.write_slice(&vec![0xff; *len], GuestAddress(*at as u64)).unwrap();
            }
        }
    }

    fn exit() -> Exit {
        Exit::new(vec!["10.0.0.1".parse().unwrap()], 2)
    }

    /// A virtio-net header of so many bytes, and a UDP frame from this address.
    fn packet(header: &[u8], source: [u8; 4], payload_len: usize) -> Vec<u8> {
        let mut bytes = header.to_vec();
        let builder = PacketBuilder::ethernet2(OWN, PEER).ipv4(source, [10, 0, 0, 9], 64);
        let payload: Vec<u8> = (0..payload_len).map(|n| n as u8).collect();
        builder.udp(1000, 2000).write(&mut bytes, &payload).unwrap();
        bytes
    }

    fn judged() -> Judged {
        let addresses: AddressBytes = [PEER, OWN].concat().try_into().unwrap();
        Judged { addresses, verdict: Verdict::Group, is_stamped: false }
    }

    /// Reads a frame and judges it; others' pieces are before its own.
    fn judge<'b>(
        exit: &'b Exit,
        bytes: &[u8],
        header_len: usize,
        pieces: &mut Vec<IoVec<'b>>,
    ) -> (Verdict, TransmitFrame) {
        let (mut frame, mut judged) = (TransmitFrame::EMPTY, judged());
        let own = pieces.clone();
        pieces.insert(0, IoVec::from_slice(b"another's"));
        frame.read(&own, bytes.len(), header_len, 1..pieces.len()).unwrap();
        exit.judge(&mut judged, &mut frame, pieces);
        (judged.verdict, frame)
    }

    fn sent(frame: &TransmitFrame, pieces: &[IoVec<'_>]) -> Vec<u8> {
        let mut bytes = vec![0; frame.skip + frame.len];
        assert!(Gather::new(&pieces[frame.pieces.clone()], 0).copy_to(&mut bytes));
        bytes
    }

    #[test]
    fn however_a_frame_is_cut_its_beginning_is_ours_and_the_rest_the_guests() {
        let cuts: &[&[usize]] =
            &[&[], &[12], &[1, 0, 20], &[12, 14, 20, 8], &[267], &[268], &[269], &[268, 1], &[300]];
        for (cut, len) in cuts.iter().flat_map(|cut| [1000, 226, 227, 0].map(|len| (cut, len))) {
            let bytes = packet(&[0; 12], [10, 0, 0, 1], len);
            let (guest, places) = Guest::new(&bytes, cut);
            let (exit, mut pieces) = (exit(), guest.pieces(&places));
            let (verdict, frame) = judge(&exit, &bytes, 12, &mut pieces);
            assert_eq!(verdict, Verdict::Group, "{cut:?} {len}");
            assert_eq!(frame.pieces, 1..pieces.len());
            assert_eq!(sent(&frame, &pieces), bytes, "{cut:?} {len}");
            guest.flip(&places);
            let fixed_len = bytes.len().min(12 + LEAD_LEN);
            let flipped = sent(&frame, &pieces);
            assert_eq!(flipped[..fixed_len], bytes[..fixed_len], "{cut:?} {len}");
            assert!(flipped[fixed_len..].iter().all(|byte| *byte == 0xff), "{cut:?} {len}");
        }
    }

    #[test]
    fn a_short_virtio_header_moves_nothing() {
        let bytes = packet(&[0; 10], [10, 0, 0, 1], 500);
        let (guest, places) = Guest::new(&bytes, &[10, 40]);
        let (exit, mut pieces) = (exit(), guest.pieces(&places));
        let (verdict, frame) = judge(&exit, &bytes, 10, &mut pieces);
        assert_eq!((verdict, frame.skip), (Verdict::Group, 10));
        assert_eq!(sent(&frame, &pieces), bytes);
    }

    #[test]
    fn no_checksum_is_stored_where_the_sender_is_named() {
        let with_place = |start: u16, offset: u16| {
            let mut header = [0; 12];
            header[0] = 1;
            header[6..8].copy_from_slice(&start.to_le_bytes());
            header[8..10].copy_from_slice(&offset.to_le_bytes());
            let bytes = packet(&header, [10, 0, 0, 1], 100);
            let (guest, places) = Guest::new(&bytes, &[]);
            let (exit, mut pieces) = (exit(), guest.pieces(&places));
            judge(&exit, &bytes, 12, &mut pieces).0
        };
        let opaque = Verdict::Drop(VifCounter::tx_drop_guard_opaque);
        for at in 0..38 {
            assert_eq!(with_place(at, 0), opaque, "{at}");
            assert_eq!(with_place(0, at), opaque, "{at}");
        }
        assert_eq!(with_place(34, 6), Verdict::Group, "UDP's own");
        assert_eq!(with_place(60, 6), Verdict::Group, "that of what is in a tunnel");
    }

    #[test]
    fn a_foreign_sender_is_dropped_and_there_are_copies_for_a_batch() {
        let mut exit = exit();
        for _ in 0..2 {
            let (good, bad) = ([10, 0, 0, 1], [10, 0, 0, 2]);
            let full = Verdict::Drop(VifCounter::tx_drop_guard_opaque);
            let foreign = Verdict::Drop(VifCounter::tx_drop_guard_address);
            for (source, verdict) in [(bad, foreign), (good, Verdict::Group), (good, full)] {
                let bytes = packet(&[0; 12], source, 20);
                let (guest, places) = Guest::new(&bytes, &[]);
                let mut pieces = guest.pieces(&places);
                assert_eq!(judge(&exit, &bytes, 12, &mut pieces).0, verdict);
            }
            exit.clear();
        }
    }
}
