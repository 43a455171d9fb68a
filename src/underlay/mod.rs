//! The underlay as the data path sees it: batches of messages out, batches in.
//!
//! A queue pair of a vif has one [`Underlay`] of its own. It holds sockets that varpd opened: the
//! vif's own (its address is the vif's care-of address), for the first pair that of the group,
//! filtered by vnet id, and if there are several pairs one to send from (see [`steering`]).
//!
//! | File | What |
//! |---|---|
//! | [`sockets`] | opens the sockets of vifs and of varpd, and filters what they receive |
//! | `bpf` | opcodes of the programs that filter and sort in the kernel |
//! | [`classes`] | sorts what comes to varpd, so that floods of one kind spare the others |
//! | [`udp`] | the underlay over UDP |
//! | [`groups`] | the sockets of the groups that a vif listens at |
//! | [`steering`] | which queue pair gets a datagram |
//! | [`segmentation`] | where the kernel may be asked to cut messages into datagrams |
//! | [`probe`] | whether this kernel does so without damage |

mod bpf;
pub mod classes;
pub mod groups;
pub mod opener;
pub mod probe;
pub mod segmentation;
pub mod sockets;
pub mod steering;
pub mod udp;

use std::io;
use std::os::fd::RawFd;

use crate::sys::error_queue::Report;
use crate::sys::mmsg::{Message, ReceiveBatch};
use crate::sys::train::{Arrived, IoVecMut, Train};

/// Through which of a vif's sockets a datagram arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// The vif's care-of address.
    Own,
    /// The group.
    Group,
}

/// Sends and receives for one queue pair. No call blocks.
pub trait Underlay: Send {
    /// Sends in order; returns how many messages, from the first, were taken.
    ///
    /// # Errors
    /// Why the *first* was not taken. The caller decides about it and goes on with the rest.
    fn send(&mut self, messages: &[Message<'_>]) -> io::Result<usize>;

    /// Receives what waits at `port`, up to a batch.
    ///
    /// # Errors
    /// `WouldBlock` when nothing waits.
    fn receive(&mut self, port: Port, batch: &mut ReceiveBatch) -> io::Result<()>;

    /// Looks at what [`Underlay::receive`] would give first, and copies its beginning to `head`.
    ///
    /// # Errors
    /// `WouldBlock` when nothing waits.
    fn peek(&mut self, _port: Port, _head: &mut [u8]) -> io::Result<Train> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Receives one message into pieces of memory.
    ///
    /// # Errors
    /// `WouldBlock` when nothing waits.
    fn take(&mut self, _port: Port, _parts: &mut [IoVecMut<'_>]) -> io::Result<Arrived> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Takes the next report about datagrams that were sent. While there are any, the descriptor of
    /// [`Port::Own`] polls as in error, or that of the socket to send from if there is one.
    fn take_report(&mut self) -> Option<Report> {
        None
    }

    /// What to poll for datagrams at `port`, if this queue pair receives there.
    fn descriptor(&self, port: Port) -> Option<RawFd>;

    /// Whether the last datagram of a message has to be shorter than the others (see [`probe`]).
    fn needs_short_ends(&self) -> bool {
        false
    }
}

#[cfg(test)]
pub(crate) mod memory {
    //! Two underlays back to back, for tests of the data path without sockets.

    use super::*;
    use crate::sys::mmsg::{MAX_MESSAGE_LEN, RECEIVE_BATCH};
    use std::collections::VecDeque;
    use std::net::SocketAddr;

    /// What somebody does to datagrams that wait.
    pub(crate) type Meddle = fn(&mut VecDeque<(SocketAddr, Vec<u8>)>);

    /// An underlay whose ends the test holds.
    #[derive(Debug, Default)]
    pub(crate) struct MemoryUnderlay {
        /// The datagrams that were sent.
        pub(crate) sent: Vec<(SocketAddr, Vec<u8>)>,
        /// In how many messages.
        pub(crate) messages: usize,
        /// What arrives next, by port.
        pub(crate) own: VecDeque<(SocketAddr, Vec<u8>)>,
        pub(crate) group: VecDeque<(SocketAddr, Vec<u8>)>,
        /// Errors of the coming sends, each for one datagram.
        pub(crate) failures: VecDeque<io::Error>,
        /// Longest datagram that passes, if there is a limit: others fail, and a report follows as
        /// from the kernel, unless the message has many.
        pub(crate) max_datagram: Option<usize>,
        /// What is reported next.
        pub(crate) reports: VecDeque<Report>,
        /// The error that a message meets.
        pub(crate) refuse: Option<fn(&Message<'_>) -> Option<i32>>,
        /// How often messages were handed over.
        pub(crate) calls: usize,
        /// How often something was asked for.
        pub(crate) asked: usize,
        /// Whether datagrams of one length arrive as one message (UDP_GRO).
        pub(crate) makes_trains: bool,
        /// How often the next message was looked at.
        pub(crate) peeks: usize,
        /// What happens between a look at a message and its receipt.
        pub(crate) meddle: Option<Meddle>,
        /// Errors of the coming calls that take a message.
        pub(crate) take_failures: VecDeque<io::Error>,
    }

    impl Underlay for MemoryUnderlay {
        fn send(&mut self, messages: &[Message<'_>]) -> io::Result<usize> {
            if let Some(error) = self.failures.pop_front() {
                return Err(error);
            }
            self.calls += 1;
            for (taken, message) in messages.iter().enumerate() {
                match self.refuse.and_then(|refuse| refuse(message)) {
                    Some(errno) if taken == 0 => return Err(io::Error::from_raw_os_error(errno)),
                    Some(_) => return Ok(taken),
                    None => {}
                }
                let mut bytes = Vec::new();
                message.parts.iter().for_each(|part| part.append_to(&mut bytes));
                if let Err(error) = self.check_len(message, bytes.len()) {
                    return if taken == 0 { Err(error) } else { Ok(taken) };
                }
                self.messages += 1;
                let size = if message.segment == 0 { bytes.len() } else { message.segment.into() };
                self.sent.extend(bytes.chunks(size).map(|bytes| (message.to, bytes.to_vec())));
            }
            Ok(messages.len())
        }

        fn receive(&mut self, port: Port, batch: &mut ReceiveBatch) -> io::Result<()> {
            self.asked += 1;
            let queue = match port {
                Port::Own => &mut self.own,
                Port::Group => &mut self.group,
            };
            batch.clear();
            if queue.is_empty() {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let makes_trains = self.makes_trains;
            while batch.len() < RECEIVE_BATCH
                && let Some((from, bytes, segment)) = next(queue, makes_trains)
            {
                batch.push(from, &bytes, segment);
            }
            Ok(())
        }

        fn peek(&mut self, port: Port, head: &mut [u8]) -> io::Result<Train> {
            self.peeks += 1;
            let mut queue = self.queue(port).clone();
            let (from, bytes, segment) =
                next(&mut queue, self.makes_trains).ok_or(io::ErrorKind::WouldBlock)?;
            IoVecMut::from_slice(head).fill(&bytes);
            Ok(Train { from, len: bytes.len(), segment })
        }

        fn take(&mut self, port: Port, parts: &mut [IoVecMut<'_>]) -> io::Result<Arrived> {
            if let Some(error) = self.take_failures.pop_front() {
                return Err(error);
            }
            let makes_trains = self.makes_trains;
            let meddle = self.meddle;
            let queue = self.queue(port);
            meddle.into_iter().for_each(|meddle| meddle(queue));
            let (from, bytes, segment) =
                next(queue, makes_trains).ok_or(io::ErrorKind::WouldBlock)?;
            let mut rest = bytes.as_slice();
            parts.iter_mut().for_each(|part| rest = part.fill(rest));
            Ok((Train { from, len: bytes.len(), segment }, None))
        }

        fn take_report(&mut self) -> Option<Report> {
            self.reports.pop_front()
        }

        fn descriptor(&self, _: Port) -> Option<RawFd> {
            None
        }
    }

    /// The next message: a datagram, or as many as the kernel makes one of (see net/ipv4/udp_offload.c):
    /// of one sender and length, but the last, which may be shorter.
    fn next(
        queue: &mut VecDeque<(SocketAddr, Vec<u8>)>,
        makes_trains: bool,
    ) -> Option<(SocketAddr, Vec<u8>, usize)> {
        let (from, mut bytes) = queue.pop_front()?;
        let segment = bytes.len();
        let mut last = segment;
        while makes_trains
            && last == segment
            && bytes.len() < 64 * segment
            && let Some((sender, more)) = queue.front()
            && *sender == from
            && (1..=segment).contains(&more.len())
            && bytes.len() + more.len() <= MAX_MESSAGE_LEN
        {
            last = more.len();
            bytes.extend_from_slice(more);
            queue.pop_front();
        }
        Some((from, bytes, segment))
    }

    impl MemoryUnderlay {
        fn queue(&mut self, port: Port) -> &mut VecDeque<(SocketAddr, Vec<u8>)> {
            match port {
                Port::Own => &mut self.own,
                Port::Group => &mut self.group,
            }
        }

        /// What the kernel does about datagrams that are longer than their route takes.
        fn check_len(&mut self, message: &Message<'_>, len: usize) -> io::Result<()> {
            let segment = usize::from(message.segment);
            let datagram = if segment == 0 { len } else { segment.min(len) };
            let Some(max) = self.max_datagram.filter(|max| datagram > *max) else { return Ok(()) };
            if segment == 0 {
                let mtu = u32::try_from(max + 28).unwrap();
                let (to, errno) = (message.to.ip(), libc::EMSGSIZE);
                self.reports.push_back(Report { to, errno, mtu, is_local: true });
            }
            Err(io::Error::from_raw_os_error(libc::EMSGSIZE))
        }
    }
}
