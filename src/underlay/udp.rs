//! The underlay over UDP: a datagram per frame.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use super::{Port, Underlay};
use crate::sys::mmsg::{self, Datagram, ReceiveBatch};

/// The two sockets of a queue pair. They arrive open, bound and filtered.
#[derive(Debug)]
pub struct UdpUnderlay {
    own: OwnedFd,
    group: OwnedFd,
}

impl UdpUnderlay {
    /// An underlay over these sockets, both non-blocking or not.
    pub fn new(own: OwnedFd, group: OwnedFd) -> Self {
        Self { own, group }
    }

    fn socket(&self, port: Port) -> &OwnedFd {
        match port {
            Port::Own => &self.own,
            Port::Group => &self.group,
        }
    }
}

impl Underlay for UdpUnderlay {
    fn send(&mut self, datagrams: &[Datagram<'_>]) -> io::Result<usize> {
        mmsg::send(self.own.as_fd(), datagrams)
    }

    fn receive(&mut self, port: Port, batch: &mut ReceiveBatch) -> io::Result<()> {
        batch.receive(self.socket(port).as_fd())
    }

    fn descriptor(&self, port: Port) -> RawFd {
        self.socket(port).as_raw_fd()
    }
}
