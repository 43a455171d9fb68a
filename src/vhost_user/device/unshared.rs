//! Whether the guest's memory is shared with the backend at all.
//!
//! A frontend passes the descriptor of private memory just as that of shared memory. The guest then
//! writes to copies of its own, and nothing of that is seen here: a driver kicks, and its ring is empty.
//! With EVENT_IDX it does so once per ring, and never again.
//!
//! A kick of an empty ring alone proves nothing: a frontend may kick before the driver fills it. But a
//! guest whose driver runs has long written elsewhere. So the memory is not shared if there is nothing
//! but zeros in it as well; and, where a file is used that was not empty before, if the kicks go on.

use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::{Device, RX, Rings, TX};
use crate::vhost_user::filter::UNSHARED;
use crate::vhost_user::vring::GuestMemory;

/// How much of each region is looked at: from its start, where firmware and kernels are, in bytes.
const LOOKED_AT: u64 = 4 << 20;
/// Regions that are looked at.
const REGIONS: usize = 4;
const PAGE: usize = 4096;

impl Device {
    /// To be called for an event before anything is written to the rings.
    pub(super) fn look_whether_shared(&self, event: u16, rings: &Rings<'_>) {
        if !matches!(event, RX | TX) || self.is_memory_known.load(Ordering::Relaxed) {
            return;
        }
        // A ring may have been kicked before the other one ran.
        let both = [&rings.rx, &rings.tx];
        if !both.iter().any(|ring| ring.was_kicked()) {
            return;
        }
        if !both.iter().all(|ring| ring.looks_untouched(rings.memory)) {
            self.is_memory_known.store(true, Ordering::Relaxed);
        } else if (is_blank(rings.memory) || both.iter().any(|ring| ring.is_kicked_on()))
            && !self.is_memory_known.swap(true, Ordering::Relaxed)
        {
            log::error!("the guest kicks but its ring stays empty here: {UNSHARED}");
        }
    }
}

/// Whether nobody has written anything to where a guest's memory is written to first.
fn is_blank(memory: &GuestMemory) -> bool {
    let mut page = [0; PAGE];
    memory.iter().take(REGIONS).all(|region| {
        let looked_at = region.len().min(LOOKED_AT);
        (0..looked_at).step_by(PAGE).all(|at| {
            let len = usize::try_from(looked_at - at).map_or(PAGE, |left| left.min(PAGE));
            let Some(part) = page.get_mut(..len) else { return true };
            let read = region.read_slice(part, MemoryRegionAddress(at));
            read.is_err() || part.iter().all(|&byte| byte == 0)
        })
    })
}
