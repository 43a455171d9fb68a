//! A split virtqueue, fast: its three parts as checked slices, its index published once per batch.
//!
//! A [`RingView`] is made at the start of a wake-up, from the queue's state and the memory that is
//! in force then, and serves all of its frames (VIRTIO 1.2, 2.7). What it takes is a loan: a view
//! that is dropped leaves the queue as the last [`RingView::publish`] left it.
//!
//! ```text
//!   pop ──► head ──► walk: pieces of memory ──► use them ──► push_used ──┐
//!    ▲                                                          │ next   │ after the batch
//!    └──────────────────────────────────────────────────────────┘        ▼
//!    rewind_to: chains that were not used after all                   publish
//! ```
//!
//! The crate's own path costs several times as much: it looks up a region for each access and
//! stores the used index for each chain. Verdicts are the crate's, with those of [`chain`] on top.
//! All accesses go through [`Piece`], which checks bounds and marks what it writes as dirty. Looking
//! at the descriptors of a batch ahead does not pay: with a driver on another processor, 53 ns for a
//! chain instead of 46.

pub mod chain;

use std::sync::atomic::{Ordering, fence};

use virtio_bindings::bindings::virtio_ring::VRING_USED_F_NO_NOTIFY;
use virtio_queue::{Error as QueueError, Queue, QueueT};
use vm_memory::{Bytes, VolatileMemory};

pub use self::chain::{Access, BrokenChain, Piece};
use self::chain::{Links, Regions};
use crate::vhost_user::vring::{GuestMemory, RingError};

/// Bytes of the available and used ring before their entries: flags and index.
const ENTRIES: usize = 4;
/// Where the index is.
const INDEX: usize = 2;

/// A queue and the memory it is in, for the length of a wake-up.
#[derive(Debug)]
pub struct RingView<'q, 'm> {
    queue: &'q mut Queue,
    regions: Regions<'m>,
    table: Piece<'m>,
    avail: Piece<'m>,
    used: Piece<'m>,
    size: u16,
    /// The next chain to take.
    position: u16,
    /// Up to where chains are known to be available.
    known: u16,
    /// The next used entry to write; the queue knows up to where they are published.
    next_used: u16,
}

impl<'q, 'm> RingView<'q, 'm> {
    /// A view of `queue`, of which each part lies in one region of `memory`.
    ///
    /// # Errors
    /// The queue is not ready, or a part of it is outside of memory.
    pub fn new(queue: &'q mut Queue, memory: &'m GuestMemory) -> Result<Self, RingError> {
        if !queue.ready() || queue.avail_ring() == 0 {
            return Err(QueueError::QueueNotReady.into());
        }
        if !queue.size().is_power_of_two() {
            return Err(RingError::Size(queue.size()));
        }
        let count = usize::from(queue.size());
        let mut regions = Regions::new(memory);
        let mut part = |name, address, len| {
            regions.slice(address, len).ok_or(RingError::Unmapped(name, address))
        };
        Ok(Self {
            avail: part("available ring", queue.avail_ring(), 6 + 2 * count)?,
            used: part("used ring", queue.used_ring(), 6 + 8 * count)?,
            table: part("descriptor table", queue.desc_table(), 16 * count)?,
            regions,
            size: queue.size(),
            position: queue.next_avail(),
            known: queue.next_avail(),
            next_used: queue.next_used(),
            queue,
        })
    }

    /// Takes the next chain: its head, to be given to [`RingView::walk`]. While used entries wait
    /// to be published, the driver is not asked for more chains than were known before.
    ///
    /// # Errors
    /// The available index jumped or went back, or the head is beyond the table.
    #[inline]
    pub fn pop(&mut self) -> Result<Option<u16>, RingError> {
        if self.position == self.known && (self.has_staged() || !self.look()?) {
            return Ok(None);
        }
        let entry = self.avail.get_ref::<u16>(ENTRIES + 2 * self.slot(self.position));
        let head = u16::from_le(entry.map_err(|_| self.avail_unmapped())?.load());
        if head >= self.size {
            return Err(QueueError::InvalidDescriptorIndex.into());
        }
        self.position = self.position.wrapping_add(1);
        Ok(Some(head))
    }

    /// Reads how far chains are available; whether there are more than were known.
    fn look(&mut self) -> Result<bool, RingError> {
        // Acquire: what the driver wrote before the index is seen after it.
        let index = self.load_avail(INDEX, Ordering::Acquire)?;
        let first = self.queue.next_avail();
        let available = index.wrapping_sub(first);
        if available > self.size || available < self.known.wrapping_sub(first) {
            return Err(QueueError::InvalidAvailRingIndex.into());
        }
        self.known = index;
        Ok(self.position != self.known)
    }

    /// Calls `each` for the memory of a chain, in order; an error of it ends the walk.
    ///
    /// # Errors
    /// The chain is broken (see [`chain`]), perhaps only after some pieces; or what `each` says.
    #[inline]
    pub fn walk<E: From<BrokenChain>>(
        &mut self,
        head: u16,
        access: Access,
        each: impl FnMut(Piece<'m>) -> Result<(), E>,
    ) -> Result<(), E> {
        Links::new(&self.table, self.size, head).walk(&mut self.regions, access, each)
    }

    /// Most chains that can be available at a time.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The available index of the next chain to take.
    pub fn position(&self) -> u16 {
        self.position
    }

    /// Goes back to where [`RingView::position`] was: the chains taken since are available again.
    pub fn rewind_to(&mut self, position: u16) {
        self.position = position;
    }

    /// Gives a chain back, of which `len` bytes were written; the driver sees it after
    /// [`RingView::publish`].
    ///
    /// # Errors
    /// The used ring is not in memory.
    #[inline]
    pub fn push_used(&mut self, head: u16, len: u32) -> Result<(), RingError> {
        let slot = self.slot(self.next_used);
        let entry = u64::from(head) | u64::from(len) << 32;
        let place = self.used.get_ref::<u64>(ENTRIES + 8 * slot);
        place.map_err(|_| self.used_unmapped())?.store(entry.to_le());
        self.next_used = self.next_used.wrapping_add(1);
        Ok(())
    }

    /// Lets the driver see what was given back; what was taken stays taken.
    ///
    /// # Errors
    /// The used ring is not in memory.
    pub fn publish(&mut self) -> Result<(), RingError> {
        self.queue.set_next_avail(self.position);
        if self.has_staged() {
            self.queue.set_next_used(self.next_used);
            // Release: the driver sees the entries, and what is in the buffers, before the index.
            self.store_used(INDEX, self.next_used, Ordering::Release)?;
        }
        Ok(())
    }

    /// Whether used entries wait to be published.
    fn has_staged(&self) -> bool {
        self.next_used != self.queue.next_used()
    }

    /// Tells the driver that kicks are not needed while the device is looking anyway.
    ///
    /// # Errors
    /// The used ring is not in memory.
    pub fn disable_kicks(&mut self) -> Result<(), RingError> {
        if self.queue.event_idx_enabled() {
            return Ok(()); // After one kick, none comes until it is asked for again.
        }
        self.store_used(0, NO_NOTIFY, Ordering::Relaxed)
    }

    /// Asks the driver for a kick when it adds chains. True if there are some already.
    ///
    /// # Errors
    /// The ring is not in memory.
    pub fn enable_kicks(&mut self) -> Result<bool, RingError> {
        self.enable_kicks_beyond(self.position)
    }

    /// Asks the driver for a kick when its available index passes `seen`. True if it already has.
    ///
    /// # Errors
    /// The ring is not in memory.
    pub fn enable_kicks_beyond(&mut self, seen: u16) -> Result<bool, RingError> {
        if self.queue.event_idx_enabled() {
            let event = ENTRIES + 8 * usize::from(self.size);
            self.store_used(event, seen, Ordering::Relaxed)?;
        } else {
            self.store_used(0, 0, Ordering::Relaxed)?;
        }
        // The driver adds chains, then reads whether to kick; here it is the other way round
        // (VIRTIO 1.2, 2.7.10.1).
        fence(Ordering::SeqCst);
        Ok(self.load_avail(INDEX, Ordering::Relaxed)? != seen)
    }

    /// The entry that an index means; sizes are powers of two.
    fn slot(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }

    fn load_avail(&self, offset: usize, order: Ordering) -> Result<u16, RingError> {
        self.avail.load(offset, order).map(u16::from_le).map_err(|_| self.avail_unmapped())
    }

    fn store_used(&self, offset: usize, value: u16, order: Ordering) -> Result<(), RingError> {
        self.used.store(value.to_le(), offset, order).map_err(|_| self.used_unmapped())
    }

    #[cold]
    fn avail_unmapped(&self) -> RingError {
        RingError::Unmapped("available ring", self.queue.avail_ring())
    }

    #[cold]
    fn used_unmapped(&self) -> RingError {
        RingError::Unmapped("used ring", self.queue.used_ring())
    }
}

/// In the used ring's flags: no kicks, please.
#[expect(clippy::cast_possible_truncation, reason = "it is 1")]
const NO_NOTIFY: u16 = VRING_USED_F_NO_NOTIFY as u16;

#[cfg(test)]
mod differential;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
