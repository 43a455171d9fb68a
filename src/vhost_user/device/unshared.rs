//! Detects guest memory that is not shared with the backend.
//!
//! A frontend passes the descriptor of private memory like that of shared memory. The guest then
//! writes to private copies, which the backend cannot see: the driver kicks, but its ring is empty.
//! With EVENT_IDX it kicks once per ring, and never again.
//!
//! A kick of an empty ring proves nothing, because a frontend may kick before the driver fills the
//! ring. But a guest with a running driver has already written to other memory. So the memory is
//! not shared if it contains only zeros as well, or, if its file was not empty before, if the kicks
//! continue.

use std::sync::atomic::Ordering;

use log::Level;
use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::{Device, RX, Rings, TX};
use crate::vhost_user::complaints;
use crate::vhost_user::filter::UNSHARED;
use crate::vhost_user::vring::GuestMemory;

/// Number of bytes to examine at the start of each region, where firmware and kernels are.
const LOOKED_AT: u64 = 4 << 20;
/// Number of regions to examine.
const REGIONS: usize = 4;
const PAGE: usize = 4096;

impl Device {
    /// Call it for an event before writing to the rings.
    pub(super) fn look_whether_shared(&self, event: u16, rings: &Rings<'_>) {
        if !matches!(event, RX | TX) || self.is_memory_known.load(Ordering::Relaxed) {
            return;
        }
        // A kick may have come before the other ring ran.
        let both = [&rings.rx, &rings.tx];
        if !both.iter().any(|ring| ring.was_kicked()) {
            return;
        }
        if !both.iter().all(|ring| ring.looks_untouched(rings.memory)) {
            self.is_memory_known.store(true, Ordering::Relaxed);
        } else if (is_blank(rings.memory) || both.iter().any(|ring| ring.is_kicked_on()))
            && !self.is_memory_known.swap(true, Ordering::Relaxed)
        {
            let kind = "the guest kicks but its ring stays empty here: ";
            complaints::log(Level::Error, kind, format_args!("{UNSHARED}"));
        }
    }
}

/// Whether the memory that a guest writes first contains only zeros.
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
