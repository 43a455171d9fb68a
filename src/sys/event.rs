//! Waiting for many descriptors at once (epoll, level-triggered).
//!
//! Each descriptor is known by a token of the caller's choice, so that a loop is one `match` over
//! an enum made from it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Most that [`ready_in`] fetches.
const READY_AT_ONCE: usize = 8;

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Something to read, or the peer is gone.
    Read,
    /// Also room to write.
    ReadWrite,
}

/// A descriptor that is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// As given to [`Poller::add`].
    pub token: u64,
    /// Reading makes progress (data, end of stream or an error to fetch).
    pub readable: bool,
    /// Writing makes progress.
    pub writable: bool,
}

/// A set of descriptors to wait for.
#[derive(Debug)]
pub struct Poller {
    epoll: Epoll,
    events: Vec<EpollEvent>,
}

impl Poller {
    /// An empty set; at most `turn` descriptors are reported by one [`wait`](Self::wait), in
    /// rotation, so that none is starved.
    pub fn new(turn: usize) -> io::Result<Self> {
        Ok(Self { epoll: Epoll::new()?, events: vec![EpollEvent::default(); turn.max(1)] })
    }

    /// Adds a descriptor. It leaves the set when its last duplicate is closed.
    pub fn add(&self, fd: &impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        self.control(ControlOperation::Add, fd, token, interest)
    }

    /// Changes the events for which the set waits at a descriptor.
    pub fn change(&self, fd: &impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        self.control(ControlOperation::Modify, fd, token, interest)
    }

    /// Takes a descriptor out of the set.
    pub fn remove(&self, fd: &impl AsFd) -> io::Result<()> {
        self.control(ControlOperation::Delete, fd, 0, Interest::Read)
    }

    /// Waits until a descriptor is ready or `timeout` (`None`: for ever) is over, at a resolution
    /// of a millisecond, rounded up. A signal may end the wait early.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<Vec<Ready>> {
        let millis =
            timeout.map_or(-1, |t| i32::try_from(t.as_micros().div_ceil(1000)).unwrap_or(i32::MAX));
        let n = match self.epoll.wait(millis, &mut self.events) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
            n => n?,
        };
        Ok(self.events.iter().take(n).map(ready).collect())
    }

    fn control(
        &self,
        operation: ControlOperation,
        fd: &impl AsFd,
        token: u64,
        interest: Interest,
    ) -> io::Result<()> {
        let set = match interest {
            Interest::Read => EventSet::IN | EventSet::READ_HANG_UP,
            Interest::ReadWrite => EventSet::IN | EventSet::READ_HANG_UP | EventSet::OUT,
        };
        self.epoll.ctl(operation, fd.as_fd().as_raw_fd(), EpollEvent::new(set, token))
    }
}

/// Fetches the tokens of what is ready in an epoll set of somebody else's, without waiting and
/// without taking anything away (level-triggered); returns how many.
///
/// # Errors
/// `set` is no epoll descriptor.
pub fn ready_in(set: &impl AsRawFd, tokens: &mut [u64]) -> io::Result<usize> {
    let mut events = [const { libc::epoll_event { events: 0, u64: 0 } }; READY_AT_ONCE];
    let room = tokens.len().min(READY_AT_ONCE) as libc::c_int;
    // SAFETY: there is room for as many events as are asked for.
    let count = unsafe { libc::epoll_wait(set.as_raw_fd(), events.as_mut_ptr(), room, 0) };
    let Ok(count) = usize::try_from(count) else {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::Interrupted { Ok(0) } else { Err(error) };
    };
    for (token, event) in tokens.iter_mut().zip(&events).take(count) {
        *token = event.u64;
    }
    Ok(count)
}

impl AsRawFd for Poller {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

impl AsFd for Poller {
    /// Readable when one of the set is ready: sets can be in sets.
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the set is borrowed, which owns it.
        unsafe { BorrowedFd::borrow_raw(self.epoll.as_raw_fd()) }
    }
}

fn ready(event: &EpollEvent) -> Ready {
    let set = event.event_set();
    let gone = EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR;
    Ready {
        token: event.data(),
        readable: set.intersects(EventSet::IN | gone),
        writable: set.intersects(EventSet::OUT | EventSet::ERROR),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn reports_what_is_ready_under_its_token() {
        let (mut a, b) = UnixStream::pair().unwrap();
        let mut poller = Poller::new(4).unwrap();
        poller.add(&b, 7, Interest::Read).unwrap();
        assert_eq!(poller.wait(Some(Duration::ZERO)).unwrap(), []);
        a.write_all(b"x").unwrap();
        let want = Ready { token: 7, readable: true, writable: false };
        assert_eq!(poller.wait(None).unwrap(), [want]);
        poller.change(&b, 8, Interest::ReadWrite).unwrap();
        let want = Ready { token: 8, readable: true, writable: true };
        assert_eq!(poller.wait(None).unwrap(), [want]);
        let mut tokens = [0; 4];
        assert_eq!(ready_in(&poller.epoll, &mut tokens).unwrap(), 1);
        assert_eq!(ready_in(&poller.epoll, &mut tokens).unwrap(), 1, "it is still there");
        assert_eq!(tokens[0], 8);
        poller.remove(&b).unwrap();
        assert_eq!(ready_in(&poller.epoll, &mut tokens).unwrap(), 0);
        assert!(ready_in(&b, &mut tokens).is_err());
        assert_eq!(poller.wait(Some(Duration::ZERO)).unwrap(), []);
    }

    #[test]
    fn a_closed_peer_is_readable() {
        let (a, b) = UnixStream::pair().unwrap();
        let mut poller = Poller::new(4).unwrap();
        poller.add(&b, 1, Interest::Read).unwrap();
        drop(a);
        assert!(poller.wait(None).unwrap()[0].readable);
    }
}
