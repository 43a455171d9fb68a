//! The trust boundary: descriptor chains, which the guest writes, become frames or named faults.
//!
//! Whatever the guest does to its memory while we look, three things hold. Every access is checked
//! against the guest's regions. What decisions are made from is copied once, first. A chain whose
//! links are broken, looped, or point outside is a fault, never a short frame (see
//! [`super::ring::chain`]).

use std::ops::Range;

use vm_memory::bitmap::Bitmap;

use super::ring::{Access, BrokenChain, Piece, RingView};
use crate::offload::header;
use crate::sys::iovec::{Gather, IoVec};
use crate::vhost_user::vring::RingError;
use crate::wire::frame;

/// Length of the virtio-net header of a modern driver, in bytes (virtio 1.2, 5.1.6).
pub const MODERN_HEADER_LEN: usize = header::LEN;
/// Length of it for a legacy driver without mergeable buffers (virtio 1.2, 5.1.6.1).
pub const LEGACY_HEADER_LEN: usize = header::LEGACY_LEN;

/// Most pieces of memory in a frame.
pub const MAX_PIECES: usize = 512;

/// A chain that is not a frame: a link is broken or looped, a descriptor points outside of memory
/// or into the wrong direction, there are too many of them, or the frame is shorter or longer than
/// any frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl From<BrokenChain> for Malformed {
    fn from(_: BrokenChain) -> Self {
        Self
    }
}

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

/// What became of a frame for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// It is in the guest's buffers, and they are given back.
    Done,
    /// The guest has not offered enough buffers; it has offered those up to this avail index.
    NoBuffers {
        /// The avail index that was seen.
        seen: u16,
    },
    /// One buffer must hold the frame (no mergeable buffers) and is too small, or a whole ring of
    /// them is; they stay available.
    TooLong,
    /// A chain that can't be written to was given back to the guest, and with it those before it;
    /// the frame can be tried again.
    BadChain,
}

/// One receive chain taken from the ring.
#[derive(Debug)]
struct Buffer {
    head: u16,
    len: usize,
}

/// How the virtio-net header in front of received frames looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderLayout {
    /// Its length, in bytes.
    pub len: usize,
    /// Whether a frame may continue in further chains (VIRTIO_NET_F_MRG_RXBUF).
    pub mergeable: bool,
}

/// What became of a wish for room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reservation {
    /// There is as much as was wanted.
    Made,
    /// There is not; nothing is reserved.
    Failed(Delivery),
}

/// Writes the frames of one wake-up into the guest's receive ring. Holds reused lists only.
#[derive(Debug, Default)]
pub struct Deliverer<'m> {
    buffers: Vec<Buffer>,
    pieces: Vec<Piece<'m>>,
    /// Where in the ring the buffers begin.
    position: u16,
}

impl<'m> Deliverer<'m> {
    /// Delivers one frame, made of `parts`: virtio-net header and frame go into one chain, or with
    /// mergeable buffers into as many as it takes. The guest sees it after [`RingView::publish`].
    ///
    /// # Errors
    /// The ring itself is broken (its indices or heads): the queue must be stopped.
    pub fn deliver(
        &mut self,
        ring: &mut RingView<'_, 'm>,
        header: &header::Header,
        parts: &[IoVec<'_>],
        layout: HeaderLayout,
    ) -> Result<Delivery, RingError> {
        let wanted = layout.len + parts.iter().map(|part| part.len()).sum::<usize>();
        if let Reservation::Failed(why) = self.take_chains(ring, wanted, layout)? {
            return Ok(why);
        }
        let count = u16::try_from(self.buffers.len()).unwrap_or(u16::MAX);
        self.write(header.emit(count).get(..layout.len).unwrap_or_default(), parts);
        self.give_back(ring, wanted).map(|()| Delivery::Done)
    }

    /// Reserves room for a virtio-net header and a frame of up to `len` bytes; `None` if that succeeds.
    /// Until [`Deliverer::commit`] or [`Deliverer::release`] follows, nothing else may be done with the
    /// ring.
    ///
    /// # Errors
    /// The ring itself is broken.
    pub fn reserve(
        &mut self,
        ring: &mut RingView<'_, 'm>,
        len: usize,
        layout: HeaderLayout,
    ) -> Result<Option<Delivery>, RingError> {
        Ok(match self.take_chains(ring, layout.len + len, layout)? {
            Reservation::Made => None,
            Reservation::Failed(why) => Some(why),
        })
    }

    /// The room that is reserved, from an offset on.
    pub fn room(&self, offset: usize) -> Room<'_, 'm> {
        let mut room = Room { pieces: &self.pieces, offset: 0 };
        room.next(offset, |_| ());
        room
    }

    /// Delivers a frame of `len` bytes in the room that was reserved: writes the virtio-net header and the
    /// `head` of the frame; the rest of it is there. Buffers that are not needed stay available.
    ///
    /// # Errors
    /// The ring itself is broken.
    pub fn commit(
        &mut self,
        ring: &mut RingView<'_, 'm>,
        header: &header::Header,
        head: &[u8],
        len: usize,
        layout: HeaderLayout,
    ) -> Result<(), RingError> {
        let wanted = layout.len + len;
        let mut left = wanted;
        let needed = self.buffers.iter().take_while(|buffer| {
            let is_needed = left > 0;
            left = left.saturating_sub(buffer.len);
            is_needed
        });
        let count = needed.count();
        self.buffers.truncate(count);
        let count = u16::try_from(count).unwrap_or(u16::MAX);
        let header = header.emit(count);
        self.write(header.get(..layout.len).unwrap_or_default(), &[IoVec::from_slice(head)]);
        ring.rewind_to(self.position.wrapping_add(count));
        self.give_back(ring, wanted)
    }

    /// The buffers that were reserved are available again.
    pub fn release(&mut self, ring: &mut RingView<'_, 'm>) {
        ring.rewind_to(self.position);
    }

    /// Takes chains until there is as much room as is wanted.
    fn take_chains(
        &mut self,
        ring: &mut RingView<'_, 'm>,
        wanted: usize,
        layout: HeaderLayout,
    ) -> Result<Reservation, RingError> {
        self.buffers.clear();
        self.pieces.clear();
        self.position = ring.position();
        let mut room = 0;
        while room < wanted {
            let Some(head) = ring.pop()? else { break };
            let Ok(len) = self.add_room(ring, head) else {
                // Chains are given back in the order in which they came: the good ones before the
                // bad one go with it.
                self.give_back(ring, 0)?;
                ring.push_used(head, 0)?;
                return Ok(Reservation::Failed(Delivery::BadChain));
            };
            room += len;
            self.buffers.push(Buffer { head, len });
            if !layout.mergeable {
                break;
            }
        }
        if room >= wanted {
            return Ok(Reservation::Made);
        }
        let seen = ring.position();
        ring.rewind_to(self.position);
        // More than a whole ring of buffers will never be there.
        let most = if layout.mergeable { usize::from(ring.size()) } else { 1 };
        let is_too_long = self.buffers.len() >= most;
        let why = if is_too_long { Delivery::TooLong } else { Delivery::NoBuffers { seen } };
        Ok(Reservation::Failed(why))
    }

    /// Adds the pieces of a receive chain; returns how many bytes fit.
    fn add_room(&mut self, ring: &mut RingView<'_, 'm>, head: u16) -> Result<usize, Malformed> {
        let mut len = 0;
        ring.walk(head, Access::Write, |piece| {
            len += piece.len();
            self.pieces.push(piece);
            Ok::<_, Malformed>(())
        })?;
        if len == 0 { Err(Malformed) } else { Ok(len) }
    }

    /// Copies header and parts, piece by piece.
    fn write(&self, header: &[u8], parts: &[IoVec<'_>]) {
        let mut part = IoVec::from_slice(header);
        let mut parts = parts.iter();
        for piece in &self.pieces {
            let mut at = 0;
            while at < piece.len() {
                if part.is_empty() {
                    let Some(next) = parts.next() else { return };
                    part = *next;
                    continue;
                }
                let Ok(room) = piece.offset(at) else { break };
                let copied = part.copy_to_slice(room);
                part = part.skip(copied);
                at += copied;
            }
        }
    }

    /// Gives the chains back, the first of them with `left` bytes written.
    fn give_back(&self, ring: &mut RingView<'_, 'm>, mut left: usize) -> Result<(), RingError> {
        for buffer in &self.buffers {
            let used = buffer.len.min(left);
            left -= used;
            ring.push_used(buffer.head, u32::try_from(used).unwrap_or(u32::MAX))?;
        }
        Ok(())
    }
}

/// Room that is reserved in a guest's buffers, in order.
#[derive(Clone, Debug)]
pub struct Room<'d, 'm> {
    pieces: &'d [Piece<'m>],
    offset: usize,
}

impl<'m> Room<'_, 'm> {
    /// Calls `each` for the memory of the next `len` bytes.
    pub fn next(&mut self, mut len: usize, mut each: impl FnMut(Piece<'m>)) {
        while len > 0 {
            let Some(piece) = self.pieces.first() else { return };
            let count = len.min(piece.len() - self.offset);
            if let Ok(part) = piece.subslice(self.offset, count) {
                each(part);
            }
            len -= count;
            self.offset += count;
            if self.offset == piece.len() {
                self.pieces = self.pieces.get(1..).unwrap_or_default();
                self.offset = 0;
            }
        }
    }

    /// Tells that the next `len` bytes were written to by others than us: the kernel does not tell the
    /// log of a migration.
    pub fn mark_written(mut self, len: usize) {
        self.next(len, |piece| piece.bitmap().mark_dirty(0, piece.len()));
    }

    /// Appends a copy of the next `len` bytes to `to`.
    pub fn append_to(&mut self, len: usize, to: &mut Vec<u8>) {
        self.next(len, |piece| IoVec::from_guest(&piece).append_to(to));
    }

    /// Writes zeros to the next `len` bytes.
    pub fn clear(mut self, len: usize) {
        const ZEROS: [u8; 4096] = [0; 4096];
        self.next(len, |piece| {
            for at in (0..piece.len()).step_by(ZEROS.len()) {
                // Copies as much as there is room for.
                piece.offset(at).into_iter().for_each(|rest| rest.copy_from(&ZEROS));
            }
        });
    }
}
