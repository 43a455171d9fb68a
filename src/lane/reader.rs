//! The side of a lane that reads frames.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{Ordering, fence};

use super::index::{Cursor, ENTRY_LEN, Found, HeaderBytes};
use super::{ENTRIES, HEAD, Lie, SLEEPS, TAIL, TAKEN, WAITS, map};
use crate::sys::doorbell::{Doorbell, Heard};
use crate::sys::iovec::IoVec;
use crate::sys::shared_memory::SharedMemory;

/// A frame in a lane. Its length and place are checked; its bytes may change at any time.
#[derive(Clone, Copy, Debug)]
pub struct Entry(Found);

impl Entry {
    /// Length of the frame, in bytes.
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Whether it has no bytes; never so.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its virtio-net header: copied, not checked.
    pub fn header(&self) -> &HeaderBytes {
        &self.0.header
    }
}

/// Frames up to this length are taken many at a time, in bytes.
pub const SHORT: usize = 2048;
/// So much of the ring is copied for them at a time, in bytes. One copy of many lines of the cache
/// that the writer's processor has costs far less than to go from entry to entry and wait for each.
const CHUNK: usize = 16 << 10;

/// The reader of a lane.
#[derive(Debug)]
pub struct Reader {
    memory: SharedMemory,
    doorbell: Doorbell,
    cursor: Cursor,
    capacity: u32,
    /// Frames that were taken.
    frames: u32,
}

impl Reader {
    /// Of a new lane, as asleep as it was made: the first frame rings, or has rung.
    ///
    /// # Errors
    /// The descriptors are not those of a lane.
    pub fn new(memory: OwnedFd, doorbell: OwnedFd) -> io::Result<Self> {
        let (memory, capacity) = map(memory)?;
        let doorbell = Doorbell::new(doorbell);
        Ok(Self { memory, doorbell, cursor: Cursor::new(capacity), capacity, frames: 0 })
    }

    /// The next frame, if there is one. It stays the next until it is taken.
    ///
    /// # Errors
    /// The writer has broken the rules.
    pub fn peek(&mut self) -> Result<Option<Entry>, Lie> {
        if self.cursor.known() == 0 {
            self.look()?;
        }
        let Self { memory, cursor, .. } = self;
        let found = cursor.next(|_, at| {
            let mut bytes = [0; ENTRY_LEN];
            memory.slice(ENTRIES + at, ENTRY_LEN)?.copy_to(&mut bytes);
            Some(bytes)
        });
        Ok(found?.map(Entry))
    }

    /// Copies the beginning of a frame, as it is at this moment; as many bytes as both have.
    pub fn copy(&self, entry: &Entry, to: &mut [u8]) -> usize {
        let len = entry.len().min(to.len());
        self.bytes(entry, 0).copy_to(0, to.get_mut(..len).unwrap_or_default())
    }

    /// A frame's bytes from `from` on, to be copied from.
    pub fn bytes(&self, entry: &Entry, from: usize) -> IoVec<'_> {
        let Found { at, len, .. } = entry.0;
        let slice =
            len.checked_sub(from).and_then(|len| self.memory.slice(ENTRIES + at + from, len));
        slice.map_or(IoVec::EMPTY, |slice| IoVec::from_guest(&slice))
    }

    /// Done with a frame; the writer sees it after [`Reader::publish`].
    pub fn take(&mut self, entry: &Entry) {
        self.cursor.take(&entry.0);
        self.frames = self.frames.wrapping_add(1);
    }

    /// Takes short frames that are next, as many as one copy into `to` brings. `each` is given the
    /// virtio-net header of a frame, its bytes, and where in `to` they are; it stops at one that it
    /// does not want. Returns how many were taken.
    ///
    /// # Errors
    /// The writer has broken the rules; earlier frames are taken.
    pub fn take_short(
        &mut self,
        to: &mut Vec<u8>,
        mut each: impl FnMut(&HeaderBytes, &[u8], usize) -> bool,
    ) -> Result<usize, Lie> {
        if self.cursor.known() == 0 {
            self.look()?;
        }
        let (offset, len) = self.cursor.piece();
        let len = len.min(CHUNK);
        to.resize(CHUNK, 0);
        let chunk = to.get_mut(..len).unwrap_or_default();
        if let Some(slice) = self.memory.slice(ENTRIES + offset, len) {
            slice.copy_to(chunk);
        }
        let chunk: &[u8] = chunk;
        let mut count = 0;
        loop {
            let before = self.cursor;
            let found = self.cursor.next(|_, at| {
                let at = at.checked_sub(offset)?;
                chunk.get(at..)?.first_chunk().copied()
            })?;
            // Beyond the chunk if the rest of the ring was skipped.
            let start = found.and_then(|found| found.at.checked_sub(offset));
            let frame = found.filter(|found| found.len <= SHORT).zip(start);
            let wanted = frame.and_then(|(found, start)| {
                let bytes = chunk.get(start..start + found.len)?;
                each(&found.header, bytes, start).then_some(found)
            });
            let Some(found) = wanted else {
                self.cursor = before;
                return Ok(count);
            };
            self.cursor.take(&found);
            self.frames = self.frames.wrapping_add(1);
            count += 1;
        }
    }

    fn store(&self, at: usize, value: u32, order: Ordering) {
        // All offsets are those of words in the first page.
        if let Some(word) = self.memory.word(at) {
            word.store(value, order);
        }
    }

    fn load(&self, at: usize, order: Ordering) -> u32 {
        self.memory.word(at).map_or(0, |word| word.load(order))
    }

    /// Looks how far the writer is.
    fn look(&mut self) -> Result<(), Lie> {
        // Acquire: the entries are seen after the index.
        let head = self.load(HEAD, Ordering::Acquire);
        self.cursor.see_head(head)
    }

    /// Frees the room of taken frames, and wakes the writer if it waits and half of the ring
    /// is free.
    pub fn publish(&mut self) {
        self.store(TAKEN, self.frames, Ordering::Relaxed);
        // Release: the writer overwrites copied bytes only after it.
        self.store(TAIL, self.cursor.tail(), Ordering::Release);
        fence(Ordering::SeqCst);
        if self.load(WAITS, Ordering::Relaxed) != 0
            && self.look().is_ok()
            && self.cursor.known() <= self.capacity / 2
        {
            self.store(WAITS, 0, Ordering::Relaxed);
            self.doorbell.ring();
        }
    }

    /// Says that the next frame shall ring. False, and nothing is said, if there is one already.
    ///
    /// # Errors
    /// The writer has broken the rules.
    pub fn sleep(&mut self) -> Result<bool, Lie> {
        self.store(SLEEPS, 1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.look()?;
        let is_empty = self.cursor.known() == 0;
        if !is_empty {
            self.store(SLEEPS, 0, Ordering::Relaxed);
        }
        Ok(is_empty)
    }

    /// Whether the other side has rung or is gone.
    pub fn hear(&self) -> Heard {
        self.doorbell.hear()
    }
}

impl AsFd for Reader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.doorbell.as_fd()
    }
}
