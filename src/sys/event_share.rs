//! A share of an epoll set on which other code waits: this code adds and removes descriptors, and
//! the other code gets their events.
//!
//! A set within the set would report them, too. But a sender to a socket tells the kernel that it
//! is about to wait itself (`wake_up_interruptible_sync_poll`), so that the woken thread takes its
//! processor. A set passes this hint to a thread that waits for it, but not to an enclosing set
//! (`ep_poll_callback()`, Linux 6.18): the woken thread then runs on its previous processor, behind
//! the thread that runs there now.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

/// A share of an epoll set, whose events are numbers of 16 bits.
#[derive(Debug)]
pub struct EventShare {
    set: Epoll,
    first: u16,
}

impl EventShare {
    /// Of `set`, where the events from `first` on are ours.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn new(set: &impl AsRawFd, first: u16) -> io::Result<Self> {
        // SAFETY: this makes a descriptor, whatever the number of the other one is.
        let copy = unsafe { libc::fcntl(set.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 0) };
        if copy < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it was just made and is nobody else's.
        let copy = unsafe { OwnedFd::from_raw_fd(copy) };
        Ok(Self { set: Epoll(copy), first })
    }

    /// Adds a descriptor: when there is something to read, or its peer is gone, the set reports the
    /// event with this number, counted from our first.
    ///
    /// # Errors
    /// The kernel's: no memory, or too many watched descriptors; or there is no such event.
    pub fn add(&self, fd: &impl AsFd, number: u16) -> io::Result<()> {
        let event = self.first.checked_add(number).ok_or(io::ErrorKind::InvalidInput)?;
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
        Ok(self.set.add(fd, EpollEvent::new(flags, event.into()))?)
    }

    /// Takes a descriptor out again; it may not be there any more.
    pub fn remove(&self, fd: &impl AsFd) {
        let _ = self.set.delete(fd);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::event::ready_in;
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use vmm_sys_util::epoll::Epoll as Other;

    #[test]
    fn what_is_added_here_is_reported_there() {
        let set = Other::new().unwrap();
        let share = EventShare::new(&set, 40).unwrap();
        let (a, mut b) = UnixStream::pair().unwrap();
        share.add(&a, 2).unwrap();
        let mut events = [0; 4];
        assert_eq!(ready_in(&set, &mut events).unwrap(), 0);
        b.write_all(b"x").unwrap();
        assert_eq!(ready_in(&set, &mut events).unwrap(), 1);
        assert_eq!(events[0], 42);
        share.remove(&a);
        assert_eq!(ready_in(&set, &mut events).unwrap(), 0);
        share.remove(&a);
        drop(b);
        share.add(&a, 0).unwrap();
        assert_eq!(ready_in(&set, &mut events).unwrap(), 1);
        assert_eq!(events[0], 40);
    }

    #[test]
    fn numbers_beyond_the_last_event_and_other_descriptors_are_refused() {
        let (a, _b) = UnixStream::pair().unwrap();
        let share = EventShare::new(&Other::new().unwrap(), u16::MAX).unwrap();
        assert!(share.add(&a, 1).is_err());
        share.add(&a, 0).unwrap();
        assert!(EventShare::new(&a, 0).unwrap().add(&a, 0).is_err());
    }
}
