//! A split virtqueue as its driver sees it, without allocation or needless looks at shared memory.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::driver::{GUEST_BASE, raw_descriptor};
use crate::memory::Shared;

/// A ring with an event index. Offsets count from the start of guest memory.
pub(crate) struct Ring {
    memory: Arc<Shared>,
    pub(crate) size: u16,
    pub(crate) table: usize,
    pub(crate) avail: usize,
    pub(crate) used: usize,
    next_avail: u16,
    exposed: u16,
    last_used: u16,
    /// The used index as it was last seen.
    used_seen: u16,
    pub(crate) kick: EventFd,
    pub(crate) call: EventFd,
}

impl Ring {
    /// Length of the three parts, in bytes.
    pub(crate) const fn len(size: u16) -> usize {
        let size = size as usize;
        16 * size + (6 + 2 * size).next_multiple_of(128) + (6 + 8 * size).next_multiple_of(128)
    }

    pub(crate) fn new(memory: Arc<Shared>, size: u16, at: usize) -> Self {
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).expect("an eventfd");
        let avail = at + 16 * usize::from(size);
        let used = avail + (6 + 2 * usize::from(size)).next_multiple_of(128);
        let (kick, call) = (event(), event());
        Self {
            memory,
            size,
            table: at,
            avail,
            used,
            next_avail: 0,
            exposed: 0,
            last_used: 0,
            used_seen: 0,
            kick,
            call,
        }
    }

    /// Writes a descriptor of memory at `offset`.
    pub(crate) fn describe(&self, slot: u16, offset: usize, len: usize, flags: u16, next: u16) {
        let raw = raw_descriptor(GUEST_BASE + offset as u64, len as u32, flags, next);
        self.memory.write(self.table + 16 * usize::from(slot), &raw);
    }

    /// Adds a chain; [`Ring::expose`] shows it to the device.
    pub(crate) fn offer(&mut self, head: u16) {
        let slot = usize::from(self.next_avail % self.size);
        self.memory.u16(self.avail + 4 + 2 * slot).store(head, Ordering::Relaxed);
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Shows offered chains to the device and kicks it if it wants that.
    pub(crate) fn expose(&mut self) {
        let (old, new) = (self.exposed, self.next_avail);
        if old == new {
            return;
        }
        self.memory.u16(self.avail + 2).store(new, Ordering::Release);
        self.exposed = new;
        fence(Ordering::SeqCst);
        let event = self.memory.u16(self.used + 4 + 8 * usize::from(self.size));
        let event = event.load(Ordering::Relaxed);
        if new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old) {
            self.kick.write(1).expect("a kick");
        }
    }

    /// Takes a used chain: its head and length.
    pub(crate) fn take_used(&mut self) -> Option<(u16, usize)> {
        if self.last_used == self.used_seen {
            self.used_seen = self.memory.u16(self.used + 2).load(Ordering::Acquire);
            if self.last_used == self.used_seen {
                return None;
            }
        }
        let at = self.used + 4 + 8 * usize::from(self.last_used % self.size);
        let head = self.memory.u32(at).load(Ordering::Relaxed);
        let len = self.memory.u32(at + 4).load(Ordering::Relaxed);
        self.last_used = self.last_used.wrapping_add(1);
        Some((u16::try_from(head).expect("a head"), len as usize))
    }

    /// Asks to be called when `more` further chains are used; false if they are already.
    pub(crate) fn arm(&self, more: u16) -> bool {
        let wanted = self.last_used.wrapping_add(more);
        let event = self.avail + 4 + 2 * usize::from(self.size);
        self.memory.u16(event).store(wanted.wrapping_sub(1), Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let used = self.memory.u16(self.used + 2).load(Ordering::Acquire);
        used.wrapping_sub(self.last_used) < more
    }

    /// Waits for a call, as cheaply as a tap is waited for.
    pub(crate) fn wait(&self, timeout: Duration) {
        // SAFETY: the descriptor is open as long as `self` lives.
        let call = unsafe { BorrowedFd::borrow_raw(self.call.as_raw_fd()) };
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        if poll(&mut [PollFd::new(call, PollFlags::POLLIN)], timeout).is_ok_and(|n| n > 0) {
            let _ = self.call.read();
        }
    }

    /// The descriptors that the device is given: kick and call.
    pub(crate) fn fds(&self) -> (i32, i32) {
        (self.kick.as_raw_fd(), self.call.as_raw_fd())
    }
}
