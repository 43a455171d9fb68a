//! A pair of sockets by which two processes that share memory wake each other, one end each.
//!
//! An eventfd would cost a third, but both sides share its one open file, with its flags and its
//! counter: the other process could make it blocking, fill it, and so block this process in a
//! write(2) forever. Each side owns its end of a socket pair, no call on it blocks
//! (`MSG_DONTWAIT`), and it shows that the other process is gone.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};

/// Bytes read at a time. One is sent per wake-up; more of them mean no more than one.
const CHUNK: usize = 64;

/// One end.
#[derive(Debug)]
pub struct Doorbell(OwnedFd);

/// The state of the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Nothing.
    Silence,
    /// The other side has rung.
    Ring,
    /// The other side has closed its end.
    End,
}

impl Doorbell {
    /// Two connected ends.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        Ok(socketpair(AddressFamily::Unix, SockType::Stream, None, flags)?)
    }

    /// An end, wherever it came from: to a descriptor that is no such socket, the other end is
    /// closed.
    pub fn new(end: OwnedFd) -> Self {
        Self(end)
    }

    /// Wakes the other side.
    pub fn ring(&self) {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        // Full: it has been rung often enough. Closed: that is seen when it is listened to.
        let _ = send(self.0.as_raw_fd(), &[1], flags);
    }

    /// Forgets rings that were heard; reads a bounded number of them.
    pub fn hear(&self) -> Heard {
        let mut bytes = [0; CHUNK];
        match recv(self.0.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => Heard::End,
            Ok(_) => Heard::Ring,
            Err(Errno::EAGAIN | Errno::EINTR) => Heard::Silence,
            Err(_) => Heard::End,
        }
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{FcntlArg, OFlag, fcntl};

    fn pair() -> (Doorbell, Doorbell) {
        let (a, b) = Doorbell::pair().unwrap();
        (Doorbell::new(a), Doorbell::new(b))
    }

    #[test]
    fn rings_both_ways_and_tells_the_end() {
        let (a, b) = pair();
        assert_eq!((a.hear(), b.hear()), (Heard::Silence, Heard::Silence));
        a.ring();
        a.ring();
        assert_eq!((a.hear(), b.hear()), (Heard::Silence, Heard::Ring));
        assert_eq!(b.hear(), Heard::Silence, "two are one");
        b.ring();
        assert_eq!(a.hear(), Heard::Ring);
        drop(b);
        a.ring();
        assert_eq!(a.hear(), Heard::End);
    }

    #[test]
    fn nobody_can_make_it_block() {
        let (a, b) = pair();
        for end in [&a, &b] {
            fcntl(end, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
            assert_eq!(end.hear(), Heard::Silence);
        }
        for _ in 0..100_000 {
            a.ring();
        }
        assert_eq!(b.hear(), Heard::Ring);
    }

    #[test]
    fn another_descriptor_is_an_end() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let bell = Doorbell::new(file.into());
        bell.ring();
        assert_eq!(bell.hear(), Heard::End);
    }
}
