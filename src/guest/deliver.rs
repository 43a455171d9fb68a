//! Frames for the guest: written into the buffers that it has made available.

use vm_memory::bitmap::Bitmap;

use super::ring::{Access, Piece, RingView};
use super::{HeaderLayout, Malformed};
use crate::offload::header;
use crate::sys::iovec::IoVec;
use crate::vhost_user::vring::RingError;

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
