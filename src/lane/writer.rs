//! The side of a lane that writes frames.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{Ordering, fence};

use super::index::{self, ENTRY_LEN, HeaderBytes, Tracks};
use super::{ENTRIES, HEAD, Lie, SLEEPS, TAIL, TAKEN, WAITS, map};
use crate::sys::doorbell::{Doorbell, Heard};
use crate::sys::iovec::Gather;
use crate::sys::shared_memory::SharedMemory;
use crate::wire::frame;

/// Why a frame is not in the lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There is no room now.
    Full,
    /// The reader has broken the rules: the lane is of no use any more.
    Lie,
}

impl From<Lie> for Refused {
    fn from(_: Lie) -> Self {
        Self::Lie
    }
}

/// The writer of a lane.
#[derive(Debug)]
pub struct Writer {
    memory: SharedMemory,
    doorbell: Doorbell,
    tracks: Tracks,
    /// Frames that were written.
    frames: u32,
    /// The head that the reader can see.
    published: u32,
}

impl Writer {
    /// Of a new lane.
    ///
    /// # Errors
    /// The descriptors are not those of a lane.
    pub fn new(memory: OwnedFd, doorbell: OwnedFd) -> io::Result<Self> {
        let (memory, capacity) = map(memory)?;
        let doorbell = Doorbell::new(doorbell);
        Ok(Self { memory, doorbell, tracks: Tracks::new(capacity), frames: 0, published: 0 })
    }

    /// Writes a frame: `addresses`, and behind them what `rest` gives. The reader sees it after
    /// [`Writer::publish`].
    ///
    /// # Errors
    /// Why not.
    pub fn write(
        &mut self,
        header: &HeaderBytes,
        addresses: &[u8; frame::ADDRESSES_LEN],
        len: usize,
        mut rest: Gather<'_, '_>,
    ) -> Result<(), Refused> {
        let place = match self.tracks.place(len) {
            Some(place) => place,
            None => {
                self.look()?;
                self.tracks.place(len).ok_or(Refused::Full)?
            }
        };
        if let Some(at) = place.skip_at {
            self.put(at, &index::skip()).ok_or(Refused::Full)?;
        }
        let mut beginning = [0; ENTRY_LEN + frame::ADDRESSES_LEN];
        let (entry, to) = beginning.split_at_mut(ENTRY_LEN);
        entry.copy_from_slice(&index::entry(len, header));
        to.copy_from_slice(addresses);
        self.put(place.at, &beginning).ok_or(Refused::Full)?;
        let at = ENTRIES + place.at + beginning.len();
        let room = self.memory.slice(at, len - addresses.len());
        // The pieces were measured when the frame was read.
        let is_whole = room.is_some_and(|room| rest.copy_to_slice(&room));
        debug_assert!(is_whole, "a place is in the ring, and a frame as long as its pieces");
        self.tracks.commit(place);
        self.frames = self.frames.wrapping_add(1);
        Ok(())
    }

    /// In the ring wherever [`Tracks`] says.
    fn put(&self, at: usize, bytes: &[u8]) -> Option<()> {
        self.memory.slice(ENTRIES + at, bytes.len())?.copy_from(bytes);
        Some(())
    }

    fn load(&self, at: usize, order: Ordering) -> u32 {
        // All offsets are those of words in the first page.
        self.memory.word(at).map_or(0, |word| word.load(order))
    }

    fn store(&self, at: usize, value: u32, order: Ordering) {
        if let Some(word) = self.memory.word(at) {
            word.store(value, order);
        }
    }

    /// Looks how far the reader is.
    fn look(&mut self) -> Result<(), Lie> {
        // Acquire: this side overwrites bytes that the reader has copied only after it.
        let tail = self.load(TAIL, Ordering::Acquire);
        self.tracks.see_tail(tail)
    }

    /// Publishes the written entries to the reader, and wakes it if it sleeps.
    pub fn publish(&mut self) {
        let head = self.tracks.head();
        if head == self.published {
            return;
        }
        self.published = head;
        // Release: the reader sees the entries before the index.
        self.store(HEAD, head, Ordering::Release);
        fence(Ordering::SeqCst);
        if self.load(SLEEPS, Ordering::Relaxed) != 0 {
            self.store(SLEEPS, 0, Ordering::Relaxed);
            self.doorbell.ring();
        }
    }

    /// Asks to be woken when there is room: half of the ring. False if there is room for `len`
    /// bytes now.
    ///
    /// # Errors
    /// The reader has broken the rules.
    pub fn wait_for_room(&mut self, len: usize) -> Result<bool, Lie> {
        self.store(WAITS, 1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.look()?;
        let must_wait = self.tracks.place(len).is_none();
        if !must_wait {
            self.store(WAITS, 0, Ordering::Relaxed);
        }
        Ok(must_wait)
    }

    /// Asks to be woken as the reader goes on. True if it has taken everything.
    ///
    /// # Errors
    /// It has broken the rules.
    pub fn wait_until_drained(&mut self) -> Result<bool, Lie> {
        self.store(WAITS, 1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.is_drained()
    }

    /// Where the reader is, as far as is known.
    pub fn tail(&self) -> u32 {
        self.tracks.head().wrapping_sub(self.tracks.used())
    }

    /// Whether the reader has taken everything.
    ///
    /// # Errors
    /// It has broken the rules.
    pub fn is_drained(&mut self) -> Result<bool, Lie> {
        self.look()?;
        Ok(self.tracks.used() == 0)
    }

    /// Frames that the reader has not taken, as it says, which is all that can be known.
    pub fn left(&mut self) -> u64 {
        if self.is_drained().unwrap_or(false) {
            return 0;
        }
        let left = self.frames.wrapping_sub(self.load(TAKEN, Ordering::Relaxed));
        // No more than can be in the ring.
        u64::from(left.min(self.tracks.used() / 32))
    }

    /// Whether the other side has rung or is gone.
    pub fn hear(&self) -> Heard {
        self.doorbell.hear()
    }
}

impl AsFd for Writer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.doorbell.as_fd()
    }
}
