//! Detects that this virtual machine was restored from a snapshot, or cloned.
//!
//! A hypervisor reports this by the VM generation id (vmgenid, an ACPI or device-tree device), and Linux 6.10 and
//! later by a uevent of that device with `NEW_VMGENID=1`. Clocks do not show it, because they continue
//! where they were.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, socket,
};

/// The netlink group of the kernel's own events (`udevd` uses another).
const KERNEL_GROUP: u32 = 1;
/// Buffer for an event: the kernel's UEVENT_BUFFER_SIZE, and its header.
const ROOM: usize = 4096;
/// Events read at a time.
const BUDGET: usize = 64;

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
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_GROUP))?;
        Ok(Self(fd))
    }

    /// Reads waiting events; true if one reports a new generation.
    pub fn has_changed(&self) -> bool {
        let mut has_changed = false;
        let mut buffer = [0; ROOM];
        for _ in 0..BUDGET {
            // The descriptor does not block.
            let received = recvfrom::<NetlinkAddr>(self.0.as_raw_fd(), &mut buffer);
            let Ok((len, from)) = received else { break };
            // Port 0 is the kernel: processes with the right to send to the group have others.
            let is_kernels = from.is_some_and(|from| from.pid() == 0);
            has_changed |= is_kernels && is_new(buffer.get(..len).unwrap_or_default());
        }
        has_changed
    }
}

impl AsFd for Generation {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Whether an event (`ACTION@PATH`, then `NAME=VALUE`, each terminated by a zero) reports a new generation.
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
    fn without_news_nothing_has_changed() {
        let Ok(generation) = Generation::listen() else { return };
        assert!(!generation.has_changed());
    }
}
