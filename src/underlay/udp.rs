//! The underlay over UDP.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use super::{Port, Underlay, probe};
use crate::sys::error_queue::{self, Report};
use crate::sys::mmsg::{self, Message, ReceiveBatch};
use crate::sys::sockopt;

/// The sockets of a queue pair. They arrive open, bound and filtered.
#[derive(Debug)]
pub struct UdpUnderlay {
    own: OwnedFd,
    group: Option<OwnedFd>,
}

impl UdpUnderlay {
    /// An underlay over these sockets. One queue pair of a vif has the group socket.
    pub fn new(own: OwnedFd, group: Option<OwnedFd>) -> Self {
        for socket in [Some(&own), group.as_ref()].into_iter().flatten() {
            if let Err(error) = mmsg::enable_gro(socket.as_fd()) {
                log::info!("the kernel hands over datagrams one by one: no UDP_GRO ({error})");
            }
        }
        if let Err(error) = error_queue::enable(own.as_fd()) {
            log::warn!("path MTUs are not learnt: the kernel does not report errors ({error})");
        }
        Self { own, group }
    }

    /// The sockets, group socket first.
    pub fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.group.iter().chain([&self.own]).map(AsFd::as_fd)
    }

    /// Lets no more than so many bytes wait at each port, the kernel's overhead for each message
    /// included; a smaller buffer is kept.
    ///
    /// # Errors
    /// The kernel's.
    pub fn bound_receive_buffers(&self, bytes: u64) -> io::Result<()> {
        // The kernel doubles what it is asked for, to have room for its own overhead.
        let wanted = i32::try_from(bytes / 2).unwrap_or(i32::MAX);
        for socket in self.sockets() {
            if sockopt::get(&socket, sockopt::RCVBUF)? / 2 > wanted {
                sockopt::set(&socket, sockopt::RCVBUF, wanted)?;
            }
        }
        Ok(())
    }

    fn socket(&self, port: Port) -> Option<BorrowedFd<'_>> {
        match port {
            Port::Own => Some(self.own.as_fd()),
            Port::Group => self.group.as_ref().map(AsFd::as_fd),
        }
    }
}

impl Underlay for UdpUnderlay {
    fn send(&mut self, messages: &[Message<'_>]) -> io::Result<usize> {
        mmsg::send(self.own.as_fd(), messages)
    }

    fn receive(&mut self, port: Port, batch: &mut ReceiveBatch) -> io::Result<()> {
        match self.socket(port) {
            Some(socket) => batch.receive(socket),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn take_report(&mut self) -> Option<Report> {
        error_queue::take(self.own.as_fd())
    }

    fn descriptor(&self, port: Port) -> Option<RawFd> {
        self.socket(port).map(|socket| socket.as_raw_fd())
    }

    fn needs_short_ends(&self) -> bool {
        probe::needs_short_ends()
    }
}
