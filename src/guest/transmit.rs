//! Frames from the guest: a chain of the transmit ring, checked, with the beginning of its frame copied.

use std::ops::Range;

use super::ring::{Access, RingView};
use super::{MODERN_HEADER_LEN, Malformed};
use crate::sys::iovec::{Gather, IoVec};
use crate::wire::frame;

/// Most pieces of memory in a frame.
pub const MAX_PIECES: usize = 512;

/// Length of the beginning of a frame that is copied with its virtio-net header, in bytes: enough
/// for the headers of TCP over IPv6, and with the virtio-net header a round number.
pub const SHORT_LEAD: usize = 128 - MODERN_HEADER_LEN;

/// What the guest wants sent: the copied beginning of a frame, and where all of it is. One serves
/// for frame after frame: it is not moved about, and not cleared.
#[derive(Clone, Debug)]
pub struct TransmitFrame {
    /// Up to [`MODERN_HEADER_LEN`] the virtio-net header, right-aligned; behind it the frame.
    head: [u8; MODERN_HEADER_LEN + SHORT_LEAD],
    /// Length of the whole frame, in bytes.
    pub len: usize,
    /// The pieces that hold the virtio-net header and the frame.
    pub pieces: Range<usize>,
    /// Where the frame begins in them: behind the virtio-net header.
    pub skip: usize,
}

impl TransmitFrame {
    /// Nothing yet.
    pub const EMPTY: Self =
        Self { head: [0; MODERN_HEADER_LEN + SHORT_LEAD], len: 0, pieces: 0..0, skip: 0 };

    /// Copies the beginning of what pieces hold: a virtio-net header of `header_len` bytes and a
    /// frame of which there is an Ethernet header at least. `None` if there is not.
    pub fn read(
        &mut self,
        of: &[IoVec<'_>],
        total: usize,
        header_len: usize,
        pieces: Range<usize>,
    ) -> Option<()> {
        let len = total.checked_sub(header_len).filter(|len| *len >= frame::HEADER_LEN)?;
        let start = MODERN_HEADER_LEN.checked_sub(header_len)?;
        let end = MODERN_HEADER_LEN + len.min(SHORT_LEAD);
        Gather::new(of, 0).copy_to(self.head.get_mut(start..end)?).then_some(())?;
        self.len = len;
        self.pieces = pieces;
        self.skip = header_len;
        Some(())
    }

    /// The virtio-net header, as long as the driver's.
    pub fn header(&self) -> &[u8] {
        self.head.get(MODERN_HEADER_LEN - self.skip..MODERN_HEADER_LEN).unwrap_or_default()
    }

    /// The frame's beginning: decisions are made from it.
    pub fn lead(&self) -> &[u8] {
        let end = MODERN_HEADER_LEN + self.len.min(SHORT_LEAD);
        self.head.get(MODERN_HEADER_LEN..end).unwrap_or_default()
    }

    /// The frame's Ethernet header.
    pub fn ethernet(&self) -> &[u8; frame::HEADER_LEN] {
        const { assert!(SHORT_LEAD >= frame::HEADER_LEN) };
        let [_, _, _, _, _, _, _, _, _, _, _, _, lead @ ..] = &self.head;
        lead.first_chunk().expect("longer than an Ethernet header")
    }
}

/// Reads the transmit chain that begins with `head` into `frame`. Its pieces are appended to `pieces`; on a
/// fault, nothing is.
///
/// # Errors
/// The fault; the chain is used up either way.
pub fn read_frame<'m: 'b, 'b>(
    ring: &mut RingView<'_, 'm>,
    head: u16,
    header_len: usize,
    pieces: &mut Vec<IoVec<'b>>,
    frame: &mut TransmitFrame,
) -> Result<(), Malformed> {
    let start = pieces.len();
    let read = gather(ring, head, header_len, pieces, frame);
    if read.is_err() {
        pieces.truncate(start);
    }
    read
}

fn gather<'m: 'b, 'b>(
    ring: &mut RingView<'_, 'm>,
    head: u16,
    header_len: usize,
    pieces: &mut Vec<IoVec<'b>>,
    frame: &mut TransmitFrame,
) -> Result<(), Malformed> {
    let start = pieces.len();
    let mut total = 0;
    ring.walk(head, Access::Read, |piece| {
        total += piece.len();
        pieces.push(IoVec::from_guest(&piece));
        let fits = total <= header_len + frame::MAX_LEN && pieces.len() - start <= MAX_PIECES;
        fits.then_some(()).ok_or(Malformed)
    })?;
    let range = start..pieces.len();
    let pieces = pieces.get(start..).unwrap_or_default();
    frame.read(pieces, total, header_len, range).ok_or(Malformed)
}
