//! One virtqueue, lent to the data path for the length of a wake-up.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{Ordering, fence};

use log::Level;
use vhost_user_backend::VringStateMutGuard;
use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend};

use super::{FAULT, MemoryGuard, Own, RingError, SharedMemory, UNCHECKED, Vring};
use crate::vhost_user::complaints;

/// Kicks after which a ring that is still untouched makes one suspect memory that is not shared.
const SUSPICIOUS_KICKS: u32 = 3;

/// One virtqueue, lent to the data path for the length of a wake-up. While it lives, the frontend
/// can neither change nor stop the ring.
pub struct Ring<'a> {
    pub(super) state: <Vring as VringStateMutGuard<'a, SharedMemory>>::G,
    pub(super) own: &'a Own,
}

impl Ring<'_> {
    /// The ring's state: addresses, size and indices.
    pub fn queue(&self) -> &Queue {
        self.state.get_queue()
    }

    /// The ring's state, to take chains from and return them to.
    pub fn queue_mut(&mut self) -> &mut Queue {
        self.state.get_queue_mut()
    }

    /// Whether frames may pass: started, enabled and not malformed.
    pub fn is_running(&self) -> bool {
        self.queue().ready() && self.state.is_enabled() && !self.is_failed()
    }

    /// Whether the ring was stopped because it is malformed.
    pub fn is_failed(&self) -> bool {
        self.own.is(FAULT)
    }

    /// Stops this ring because what the driver wrote can't be obeyed; signals its error descriptor
    /// and says why, once, and not too often a minute. It runs again after the frontend has reset
    /// it.
    pub fn stop_with_error(&mut self, why: &RingError) {
        if self.own.fail() {
            let kind = "a ring is stopped until the guest resets it: ";
            complaints::log(Level::Warn, kind, format_args!("{why}"));
        }
    }

    /// Signals the driver that buffers were used since the last call, if it wants to know.
    /// Call it once per batch.
    ///
    /// # Errors
    /// The used event or the flags can't be read: the ring is not in memory.
    pub fn notify_if_needed(&mut self, memory: &MemoryGuard) -> Result<(), RingError> {
        let old = self.own.notified.load(Ordering::Relaxed);
        let new = self.queue().next_used();
        if new == old {
            return Ok(());
        }
        // The driver must see the used index before this reads whether it wants a call
        // (VIRTIO 1.2, 2.7.10.1).
        fence(Ordering::SeqCst);
        let wanted = if self.queue().event_idx_enabled() {
            let event = self.load_avail(memory, self.used_event_offset())?;
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            u32::from(self.load_avail(memory, 0)?) & VRING_AVAIL_F_NO_INTERRUPT == 0
        };
        self.own.notified.store(new, Ordering::Relaxed);
        if wanted && let Err(error) = self.state.signal_used_queue() {
            // EAGAIN: the counter is full, the driver has a call pending anyway.
            log::debug!("can't signal a ring's call descriptor: {error}");
        }
        Ok(())
    }

    /// Asks the driver for kicks again. True if buffers arrived meanwhile: look once more.
    ///
    /// # Errors
    /// The ring is not in memory.
    pub fn enable_kicks(&mut self, memory: &MemoryGuard) -> Result<bool, RingError> {
        Ok(self.queue_mut().enable_notification(&**memory)?)
    }

    /// Tells the driver that kicks are not needed while the device is looking anyway.
    ///
    /// # Errors
    /// The ring is not in memory.
    pub fn disable_kicks(&mut self, memory: &MemoryGuard) -> Result<(), RingError> {
        Ok(self.queue_mut().disable_notification(&**memory)?)
    }

    /// Whether addresses or size changed since [`Ring::check`] last found them good.
    pub(in crate::vhost_user) fn is_unchecked(&self) -> bool {
        self.own.is(UNCHECKED)
    }

    /// Whether the three parts of the ring lie within guest memory.
    pub(in crate::vhost_user) fn check(&mut self, memory: &MemoryGuard) -> Result<(), RingError> {
        let queue = self.queue();
        let size = usize::from(queue.size());
        let parts = [
            ("descriptor table", queue.desc_table(), 16 * size),
            ("available ring", queue.avail_ring(), 6 + 2 * size),
            ("used ring", queue.used_ring(), 6 + 8 * size),
        ];
        for (name, address, len) in parts {
            if !GuestMemoryBackend::check_range(&**memory, GuestAddress(address), len) {
                return Err(RingError::Unmapped(name, address));
            }
        }
        self.own.set(UNCHECKED, false);
        Ok(())
    }

    /// Whether it was kicked since it started.
    pub(in crate::vhost_user) fn was_kicked(&self) -> bool {
        self.own.kicks.load(Ordering::Relaxed) > 0
    }

    /// Whether it was kicked more often than one that is filled later.
    pub(in crate::vhost_user) fn is_kicked_on(&self) -> bool {
        self.own.kicks.load(Ordering::Relaxed) >= SUSPICIOUS_KICKS
    }

    /// Whether nobody has used the ring, as far as can be seen here.
    pub(in crate::vhost_user) fn looks_untouched(&self, memory: &MemoryGuard) -> bool {
        let head = memory.read_obj::<[u64; 2]>(GuestAddress(self.queue().desc_table()));
        let index = self.load_avail(memory, 2);
        self.queue().next_avail() == 0
            && index.is_ok_and(|i| i == 0)
            && head.is_ok_and(|h| h == [0; 2])
    }

    pub(in crate::vhost_user) fn kick_descriptor(&self) -> Option<RawFd> {
        self.state.get_kick().as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Offset of `used_event`, behind the available ring's entries.
    fn used_event_offset(&self) -> u64 {
        4 + 2 * u64::from(self.queue().size())
    }

    fn load_avail(&self, memory: &MemoryGuard, offset: u64) -> Result<u16, RingError> {
        let base = self.queue().avail_ring();
        let unmapped = RingError::Unmapped("available ring", base);
        let Some(address) = GuestAddress(base).checked_add(offset) else { return Err(unmapped) };
        memory.load(address, Ordering::Relaxed).map(u16::from_le).map_err(|_| unmapped)
    }
}
