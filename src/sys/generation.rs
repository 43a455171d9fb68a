//! Detects that this virtual machine was restored from a snapshot, or cloned.
//!
//! A hypervisor reports this by the VM generation id (vmgenid, an ACPI or device-tree device), and
//! Linux 6.10 and later by a uevent of that device with `NEW_VMGENID=1`. Clocks do not show it,
//! because they continue where they were.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::sockopt::RcvBuf;
use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, setsockopt,
    socket,
};

/// The netlink group of the kernel's own events (`udevd` uses another).
const KERNEL_GROUP: u32 = 1;
/// Buffer for an event: the kernel's UEVENT_BUFFER_SIZE, and its header.
const ROOM: usize = 4096;
/// Room for events that wait, in bytes: hundreds of devices may come at once.
const BUFFER: usize = 1 << 20;
/// Events read at a time.
const BUDGET: usize = 64;

/// The contents of the kernel's events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum News {
    /// No change.
    Nothing,
    /// Events were lost: the generation may have changed.
    Lost,
    /// The generation has changed.
    Changed,
}

/// The kernel's events.
#[derive(Debug)]
pub struct Generation(OwnedFd);

impl Generation {
    /// Listens from now on.
    ///
    /// # Errors
    /// There are no such sockets.
    pub fn listen() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let protocol = SockProtocol::NetlinkKObjectUEvent;
        let fd = socket(AddressFamily::Netlink, SockType::Datagram, flags, protocol)?;
        setsockopt(&fd, RcvBuf, &BUFFER)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_GROUP))?;
        Ok(Self(fd))
    }

    /// Reads waiting events.
    pub fn news(&self) -> News {
        let mut buffer = [0; ROOM];
        // The descriptor does not block.
        news(|| {
            let (len, from) = recvfrom::<NetlinkAddr>(self.0.as_raw_fd(), &mut buffer)?;
            // Port 0 is the kernel: processes with the right to send to the group have others.
            let is_kernels = from.is_some_and(|from| from.pid() == 0);
            Ok(is_kernels && is_new(buffer.get(..len).unwrap_or_default()))
        })
    }
}

/// The news in the events that `next` reads: whether each reports a new generation.
fn news(mut next: impl FnMut() -> nix::Result<bool>) -> News {
    let mut news = News::Nothing;
    for _ in 0..BUDGET {
        news = news.max(match next() {
            Ok(true) => News::Changed,
            Ok(false) | Err(Errno::EINTR) => News::Nothing,
            // Too many waited. One that was lost may have been the one that matters.
            Err(Errno::ENOBUFS) => News::Lost,
            Err(_) => break,
        });
    }
    news
}

impl AsFd for Generation {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Whether an event (`ACTION@PATH`, then `NAME=VALUE`, each terminated by a zero) reports a new
/// generation.
fn is_new(event: &[u8]) -> bool {
    let mut lines = event.split(|byte| *byte == 0);
    lines.next().is_some_and(|first| first.starts_with(b"change@"))
        && lines.any(|line| line == b"NEW_VMGENID=1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_change_of_the_generation_counts() {
        let event: &[u8] = b"change@/devices/platform/QEMUVGID:00\0ACTION=change\0\
            DEVPATH=/devices/platform/QEMUVGID:00\0SUBSYSTEM=platform\0NEW_VMGENID=1\0\
            DRIVER=vmgenid\0SEQNUM=1234\0";
        assert!(is_new(event));
        let other: &[u8] = b"change@/devices/x\0ACTION=change\0SYNTH_ARG_NEW_VMGENID=1\0";
        for event in [other, b"add@/devices/x\0NEW_VMGENID=1\0", b"", b"change@/NEW_VMGENID=1"] {
            assert!(!is_new(event));
        }
    }

    #[test]
    fn an_event_that_was_lost_may_have_been_a_change() {
        let heard = |mut events: Vec<nix::Result<bool>>| {
            events.reverse();
            news(|| events.pop().unwrap_or(Err(Errno::EAGAIN)))
        };
        assert_eq!(heard(vec![Ok(false), Ok(false)]), News::Nothing);
        assert_eq!(heard(vec![Ok(true), Err(Errno::ENOBUFS), Ok(false)]), News::Changed);
        assert_eq!(heard(vec![Ok(false), Err(Errno::ENOBUFS), Ok(false)]), News::Lost);
        assert_eq!(heard(vec![Err(Errno::EINTR), Ok(true)]), News::Changed, "after a signal");
        assert_eq!(heard(vec![Err(Errno::EAGAIN), Ok(true)]), News::Nothing, "nothing waits");
    }

    #[test]
    fn without_news_nothing_has_changed() {
        let Ok(generation) = Generation::listen() else { return };
        assert_eq!(generation.news(), News::Nothing);
    }
}
