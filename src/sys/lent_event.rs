//! An event whose reading end is lent to code that keeps its number and never closes it.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};
use std::sync::{Mutex, PoisonError};

use vmm_sys_util::event::{EventConsumer, EventNotifier};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// The exit event of a worker of `vhost-user-backend` 0.24.0.
///
/// `VringEpollHandler::new` takes the consumer apart with `into_raw_fd`, adds the number to its
/// epoll set and forgets it: without an owner elsewhere, one descriptor is lost per worker and
/// connection. This is that owner.
pub struct LentEvent {
    event: EventFd,
    notifier: Mutex<Option<EventNotifier>>,
}

impl LentEvent {
    /// An event that has not been raised.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn new() -> io::Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let clone = event.try_clone()?.into_raw_fd();
        // SAFETY: nobody else owns the clone.
        let notifier = unsafe { EventNotifier::from_raw_fd(clone) };
        Ok(Self { event, notifier: Mutex::new(Some(notifier)) })
    }

    /// Raises the event, for when the end that does so was lost.
    pub fn raise(&self) {
        // It fails only if the counter is full: raised, that is.
        let _ = self.event.write(1);
    }

    /// The end that is lent and the end that raises the event; `None` from the second call on.
    ///
    /// Only for the caller of `VhostUserBackend::exit_event`; the worker that it is for must be
    /// gone before `self` is dropped.
    pub fn lend(&self) -> Option<(EventConsumer, EventNotifier)> {
        let notifier = self.notifier.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        // SAFETY: the descriptor is open, and its owner `self` outlives the borrower, which, pinned
        // to the version named above, never closes it.
        let consumer = unsafe { EventConsumer::from_raw_fd(self.event.as_raw_fd()) };
        Some((consumer, notifier))
    }
}
