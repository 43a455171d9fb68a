//! Reads a ring's index without its lock, for a worker that has told the driver not to kick.

use std::sync::atomic::Ordering;

use virtio_bindings::bindings::virtio_ring::VRING_USED_F_NO_NOTIFY;
use virtio_queue::QueueT;
use vm_memory::{Address, Bytes, GuestAddress};

use super::{MemoryGuard, Ring, RingError};

/// Where the driver of a ring shows that it has added chains. It outlives the loan of the ring:
/// what it sees of a ring that was stopped meanwhile means nothing, and does no harm.
pub(in crate::vhost_user) struct Watch {
    memory: MemoryGuard,
    index: GuestAddress,
    seen: u16,
}

impl Watch {
    /// Whether there are chains that were not taken.
    pub(in crate::vhost_user) fn sees_more(&self) -> bool {
        let index = self.memory.load::<u16>(self.index, Ordering::Acquire);
        index.is_ok_and(|index| u16::from_le(index) != self.seen)
    }
}

impl Ring<'_> {
    /// Tells the driver that its kicks are not needed, until they are asked for again; meanwhile
    /// the ring is to be watched.
    ///
    /// # Errors
    /// The ring is not in memory.
    pub(in crate::vhost_user) fn watch(&mut self, memory: MemoryGuard) -> Result<Watch, RingError> {
        let queue = self.queue();
        let seen = queue.next_avail();
        let (offset, value) = if queue.event_idx_enabled() {
            // It kicks when its index passes this one, which it has long done (VIRTIO 1.2, 2.7.10).
            (4 + 8 * u64::from(queue.size()), seen.wrapping_sub(1))
        } else {
            (0, NO_NOTIFY)
        };
        let unmapped = |name, base| move || RingError::Unmapped(name, base);
        let (used, avail) = (queue.used_ring(), queue.avail_ring());
        GuestAddress(used)
            .checked_add(offset)
            .and_then(|at| memory.store(value.to_le(), at, Ordering::Relaxed).ok())
            .ok_or_else(unmapped("used ring", used))?;
        let index = GuestAddress(avail).checked_add(2);
        let index = index.ok_or_else(unmapped("available ring", avail))?;
        Ok(Watch { memory, index, seen })
    }
}

/// In the used ring's flags: no kicks, please.
#[expect(clippy::cast_possible_truncation, reason = "it is 1")]
const NO_NOTIFY: u16 = VRING_USED_F_NO_NOTIFY as u16;
