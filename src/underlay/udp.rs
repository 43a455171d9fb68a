//! The underlay over UDP.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use socket2::SockRef;

use super::groups::Groups;
use super::{Port, Underlay, probe, steering};
use crate::sys::error_queue::{self, Report};
use crate::sys::mmsg::{self, Message, ReceiveBatch};
use crate::sys::sockopt;
use crate::sys::train::{self, Arrived, IoVecMut, Train};

/// The sockets of a queue pair. They arrive open, bound and filtered.
#[derive(Debug)]
pub struct UdpUnderlay {
    own: OwnedFd,
    /// Of one queue pair of a vif; the others have none.
    groups: Groups,
    /// What unicast leaves from, if not from `own`.
    sender: Option<OwnedFd>,
}

impl UdpUnderlay {
    /// An underlay over these sockets. One queue pair of a vif has the group sockets; each of several
    /// has one to send from.
    pub fn new(own: OwnedFd, groups: Groups, sender: Option<OwnedFd>) -> Self {
        merge_received(&own);
        if let Err(error) = error_queue::enable(sender.as_ref().unwrap_or(&own).as_fd()) {
            log::warn!("cannot learn path MTUs: the kernel does not report ICMP errors ({error})");
        }
        Self { own, groups, sender }
    }

    /// Listens at other groups from now on. Returns what it listened at before.
    pub fn replace_groups(&mut self, groups: Groups) -> Groups {
        std::mem::replace(&mut self.groups, groups)
    }

    /// Number of group sockets.
    pub fn group_count(&self) -> usize {
        self.groups.sockets().count()
    }

    /// The socket that unicast leaves from, if that is not the own.
    pub fn sender(&self) -> Option<BorrowedFd<'_>> {
        self.sender.as_ref().map(AsFd::as_fd)
    }

    /// Lets the kernel choose among the pairs that run (bit n: pair n), for all that share the port.
    ///
    /// # Errors
    /// The kernel's; it then chooses by a hash among all.
    pub fn steer(&self, running: u64) -> io::Result<()> {
        let address = SockRef::from(&self.own).local_addr()?.as_socket();
        let address = address.ok_or(io::ErrorKind::InvalidInput)?.ip();
        match steering::program(address, running) {
            Some(program) => sockopt::attach_reuseport(&self.own, &program),
            None => Ok(()),
        }
    }

    /// The sockets that receive, group sockets first.
    pub fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.groups.sockets().chain([self.own.as_fd()])
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

    /// Where trains are looked for. At groups they are not: frames of many senders come there.
    fn trains(&self, port: Port) -> io::Result<BorrowedFd<'_>> {
        match port {
            Port::Own => Ok(self.own.as_fd()),
            Port::Group => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

/// Datagrams of a flow arrive as one, where the kernel can.
pub(super) fn merge_received(socket: &OwnedFd) {
    if let Err(error) = mmsg::enable_gro(socket.as_fd()) {
        log::info!(
            "the kernel does not merge received datagrams (UDP_GRO: {error}): receiving takes more processor time"
        );
    }
}

impl Underlay for UdpUnderlay {
    fn send(&mut self, messages: &[Message<'_>]) -> io::Result<usize> {
        let Some(sender) = &self.sender else { return mmsg::send(self.own.as_fd(), messages) };
        // Receivers know the group frames of a vif by its care-of address.
        let is_group = |message: &&Message<'_>| message.to.ip().is_multicast();
        let of_group = messages.iter().take_while(is_group).count();
        let of_unicast = messages.iter().take_while(|message| !is_group(message)).count();
        let run = messages.get(..of_group.max(of_unicast)).unwrap_or_default();
        mmsg::send(if of_group > 0 { self.own.as_fd() } else { sender.as_fd() }, run)
    }

    fn receive(&mut self, port: Port, batch: &mut ReceiveBatch) -> io::Result<()> {
        match port {
            Port::Own => batch.receive(self.own.as_fd()),
            Port::Group => self.groups.receive(batch),
        }
    }

    fn peek(&mut self, port: Port, head: &mut [u8]) -> io::Result<Train> {
        train::peek(self.trains(port)?, head)
    }

    fn take(&mut self, port: Port, parts: &mut [IoVecMut<'_>]) -> io::Result<Arrived> {
        train::take(self.trains(port)?, parts)
    }

    fn take_report(&mut self) -> Option<Report> {
        let Some(sender) = &self.sender else { return error_queue::take(self.own.as_fd()) };
        let report = error_queue::take(sender.as_fd());
        if report.is_none() {
            // Nobody receives here, who would be told of an error that did not fit the queue.
            let _ = SockRef::from(sender).take_error();
        }
        report
    }

    fn descriptor(&self, port: Port) -> Option<RawFd> {
        match port {
            Port::Own => Some(self.own.as_raw_fd()),
            Port::Group => self.groups.descriptor(),
        }
    }

    fn needs_short_ends(&self) -> bool {
        probe::needs_short_ends()
    }
}
