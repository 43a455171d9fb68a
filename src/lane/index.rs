//! The arithmetic of a lane: each side checks the numbers that it has read.
//!
//! This module accesses no memory: the caller reads and writes; these types compute the positions,
//! and refuse impossible numbers. Indices are multiples of [`ALIGN`] and wrap at 2^32; the capacity
//! is a power of two.

#![forbid(unsafe_code)]

use super::Lie;
use crate::offload::header;
use crate::wire::frame;

/// Entries begin at multiples of this.
pub const ALIGN: u32 = 16;
/// Length of what precedes each frame, in bytes.
pub const ENTRY_LEN: usize = 4 + header::LEN;
/// In place of a length: the rest of the ring, up to its end, is skipped.
const SKIP: u32 = u32::MAX;

/// What precedes a frame.
pub type EntryBytes = [u8; ENTRY_LEN];
/// A virtio-net header.
pub type HeaderBytes = [u8; header::LEN];

/// How much of the ring a frame takes, in bytes; `None` if no such frame is allowed.
fn span(len: usize) -> Option<u32> {
    if !(frame::HEADER_LEN..=frame::MAX_LEN).contains(&len) {
        return None;
    }
    u32::try_from(ENTRY_LEN + len).ok()?.checked_next_multiple_of(ALIGN)
}

/// Whether an index is one that an honest side can have.
fn is_aligned(index: u32) -> bool {
    index.is_multiple_of(ALIGN)
}

/// What precedes a frame of this length.
pub fn entry(len: usize, header: &HeaderBytes) -> EntryBytes {
    let mut bytes = [0; ENTRY_LEN];
    let (number, rest) = bytes.split_at_mut(4);
    // Longer frames have no place: see `span`.
    number.copy_from_slice(&u32::try_from(len).unwrap_or(SKIP).to_ne_bytes());
    rest.copy_from_slice(header);
    bytes
}

/// What stands where the rest of the ring is skipped.
pub const fn skip() -> [u8; 4] {
    SKIP.to_ne_bytes()
}

/// Where an entry is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Offset in the ring.
    pub at: usize,
    /// Where [`skip`] is to be written before, if the entry does not fit behind the last one.
    pub skip_at: Option<usize>,
    /// How far the head moves.
    span: u32,
}

/// The writer's side.
#[derive(Clone, Copy, Debug)]
pub struct Tracks {
    capacity: u32,
    head: u32,
    tail: u32,
}

impl Tracks {
    /// At the beginning of a ring of this capacity.
    pub const fn new(capacity: u32) -> Self {
        Self { capacity, head: 0, tail: 0 }
    }

    /// Where the next entry will be.
    pub const fn head(&self) -> u32 {
        self.head
    }

    /// Bytes that the reader has not taken, as far as is known.
    pub const fn used(&self) -> u32 {
        self.head.wrapping_sub(self.tail)
    }

    /// Takes note of the reader's index.
    ///
    /// # Errors
    /// It is beyond the written entries, or went back.
    pub fn see_tail(&mut self, tail: u32) -> Result<(), Lie> {
        if tail.wrapping_sub(self.tail) > self.used() || !is_aligned(tail) {
            return Err(Lie);
        }
        self.tail = tail;
        Ok(())
    }

    /// Where a frame of this length goes; `None` if there is no room as far as is known.
    pub fn place(&self, len: usize) -> Option<Place> {
        let span = span(len)?;
        let at = self.head & (self.capacity - 1);
        let to_end = self.capacity - at;
        let skipped = if span > to_end { to_end } else { 0 };
        let needed = skipped.checked_add(span)?;
        if needed > self.capacity - self.used() {
            return None;
        }
        let offset = |at: u32| usize::try_from(at).ok();
        let skip_at = if skipped > 0 { offset(at) } else { None };
        let at = if skipped > 0 { 0 } else { offset(at)? };
        Some(Place { at, skip_at, span: needed })
    }

    /// The entry is written.
    pub fn commit(&mut self, place: Place) {
        self.head = self.head.wrapping_add(place.span);
    }
}

/// An entry that is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Offset of the frame in the ring.
    pub at: usize,
    /// Its length, in bytes.
    pub len: usize,
    /// Its virtio-net header, unchecked.
    pub header: HeaderBytes,
    span: u32,
}

/// The reader's side.
#[derive(Clone, Copy, Debug)]
pub struct Cursor {
    capacity: u32,
    tail: u32,
    head: u32,
}

impl Cursor {
    /// At the beginning of a ring of this capacity.
    pub const fn new(capacity: u32) -> Self {
        Self { capacity, tail: 0, head: 0 }
    }

    /// Where the next entry is.
    pub const fn tail(&self) -> u32 {
        self.tail
    }

    /// Bytes that were written and not taken, as far as is known.
    pub const fn known(&self) -> u32 {
        self.head.wrapping_sub(self.tail)
    }

    /// The next contiguous written bytes: offset in the ring, and length in bytes.
    pub fn piece(&self) -> (usize, usize) {
        let at = self.tail & (self.capacity - 1);
        let len = self.known().min(self.capacity - at);
        // 32 bits fit.
        (usize::try_from(at).unwrap_or(0), usize::try_from(len).unwrap_or(0))
    }

    /// Takes note of the writer's index.
    ///
    /// # Errors
    /// It is more than a ring ahead, or went back.
    pub fn see_head(&mut self, head: u32) -> Result<(), Lie> {
        let ahead = head.wrapping_sub(self.tail);
        if ahead > self.capacity || ahead < self.known() || !is_aligned(head) {
            return Err(Lie);
        }
        self.head = head;
        Ok(())
    }

    /// The next entry, if there is one as far as is known. `read` gets what an entry begins with,
    /// given its index and its offset in the ring; if it can't, there is none for now.
    ///
    /// # Errors
    /// Its length is not that of a frame, or leads beyond the written entries or the end of the
    /// ring.
    pub fn next(
        &mut self,
        read: impl Fn(u32, usize) -> Option<EntryBytes>,
    ) -> Result<Option<Found>, Lie> {
        loop {
            let known = self.known();
            if known == 0 {
                return Ok(None);
            }
            let at = self.tail & (self.capacity - 1);
            let to_end = self.capacity - at;
            let offset = usize::try_from(at).map_err(|_| Lie)?;
            let Some([l0, l1, l2, l3, header @ ..]) = read(self.tail, offset) else {
                return Ok(None);
            };
            let len = u32::from_ne_bytes([l0, l1, l2, l3]);
            if len == SKIP && to_end < known {
                self.tail = self.tail.wrapping_add(to_end);
                continue;
            }
            let len = usize::try_from(len).map_err(|_| Lie)?;
            let span = span(len).filter(|span| *span <= known.min(to_end)).ok_or(Lie)?;
            return Ok(Some(Found { at: offset + ENTRY_LEN, len, header, span }));
        }
    }

    /// The entry was read.
    pub fn take(&mut self, found: &Found) {
        self.tail = self.tail.wrapping_add(found.span);
    }
}
