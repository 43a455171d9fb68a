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

/// How much is copied ahead while frames are short, in bytes. One copy of many lines of the cache that
/// the writer's processor has costs far less than to go from entry to entry and wait for each.
const AHEAD: usize = 8192;
/// How much is copied ahead behind a frame that is longer than this.
const SHORT: usize = 2048;
const LITTLE: usize = 256;

/// A private copy of what is at the front of the ring.
#[derive(Debug)]
struct Ahead {
    bytes: Box<[u8; AHEAD]>,
    /// Index of its first byte.
    start: u32,
    len: usize,
    /// How much is copied next.
    most: usize,
}

impl Ahead {
    /// What is copied of a frame of `len` bytes whose entry has this index, if all of it is.
    fn get(&self, index: u32, at: usize, len: usize) -> Option<&[u8]> {
        let start = usize::try_from(index.wrapping_sub(self.start)).ok()?.checked_add(at)?;
        let end = start.checked_add(len).filter(|end| *end <= self.len)?;
        self.bytes.get(start..end)
    }
}

/// The reader of a lane.
#[derive(Debug)]
pub struct Reader {
    memory: SharedMemory,
    doorbell: Doorbell,
    cursor: Cursor,
    capacity: u32,
    /// Frames that were taken.
    frames: u32,
    ahead: Ahead,
}

impl Reader {
    /// Of a new lane, as asleep as it was made: the first frame rings, or has rung.
    ///
    /// # Errors
    /// The descriptors are not those of a lane.
    pub fn new(memory: OwnedFd, doorbell: OwnedFd) -> io::Result<Self> {
        let (memory, capacity) = map(memory)?;
        let doorbell = Doorbell::new(doorbell);
        let ahead = Ahead { bytes: Box::new([0; AHEAD]), start: 0, len: 0, most: LITTLE };
        Ok(Self { memory, doorbell, cursor: Cursor::new(capacity), capacity, frames: 0, ahead })
    }

    /// The next frame, if there is one. It stays the next until it is taken.
    ///
    /// # Errors
    /// The writer has broken the rules.
    pub fn peek(&mut self) -> Result<Option<Entry>, Lie> {
        if self.cursor.known() == 0 {
            self.look()?;
        }
        let Self { memory, cursor, ahead, .. } = self;
        let found = cursor.next(|index, at, following| {
            if ahead.get(index, 0, ENTRY_LEN).is_none() {
                (ahead.start, ahead.len) = (index, following.min(ahead.most));
                let to = ahead.bytes.get_mut(..ahead.len).unwrap_or_default();
                if let Some(slice) = memory.slice(ENTRIES + at, ahead.len) {
                    slice.copy_to(to);
                }
            }
            let bytes = ahead.get(index, 0, ENTRY_LEN).and_then(|bytes| bytes.first_chunk());
            bytes.copied().unwrap_or([0; ENTRY_LEN])
        });
        Ok(found?.map(Entry))
    }

    /// Copies the beginning of the next frame, as it is at this moment; as many bytes as both have.
    pub fn copy(&self, entry: &Entry, to: &mut [u8]) -> usize {
        let len = entry.len().min(to.len());
        if let Some(bytes) = self.ahead.get(self.cursor.tail(), ENTRY_LEN, len) {
            to.get_mut(..len).unwrap_or_default().copy_from_slice(bytes);
            return len;
        }
        self.bytes(entry, 0).copy_to(0, to.get_mut(..len).unwrap_or_default())
    }

    /// The bytes of the next frame from `from` on, to be copied from.
    pub fn bytes(&self, entry: &Entry, from: usize) -> IoVec<'_> {
        let Found { at, len, .. } = entry.0;
        if let Some(bytes) = self.ahead.get(self.cursor.tail(), ENTRY_LEN, len) {
            return IoVec::from_slice(bytes.get(from..).unwrap_or_default());
        }
        let slice =
            len.checked_sub(from).and_then(|len| self.memory.slice(ENTRIES + at + from, len));
        slice.map_or(IoVec::EMPTY, |slice| IoVec::from_guest(&slice))
    }

    /// Done with a frame; the writer sees it after [`Reader::publish`].
    pub fn take(&mut self, entry: &Entry) {
        self.ahead.most = if entry.len() <= SHORT { AHEAD } else { LITTLE };
        self.cursor.take(&entry.0);
        self.frames = self.frames.wrapping_add(1);
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

    /// Gives the room of what was taken back, and wakes the writer if it waits and half of the ring
    /// is free.
    pub fn publish(&mut self) {
        self.store(TAKEN, self.frames, Ordering::Relaxed);
        // Release: what was copied is written over only after it.
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
