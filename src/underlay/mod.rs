//! The underlay as the data path sees it: batches of messages out, batches in.
//!
//! A queue pair of a vif has one [`Underlay`] of its own. It holds sockets that varpd opened: the
//! vif's own (its address is the vif's care-of address), for the first pair that of the group,
//! filtered by vnet id, and if there are several pairs one to send from (see [`steering`]).

pub mod sockets;
pub mod steering;
pub mod udp;

use std::io;
use std::os::fd::RawFd;

use crate::sys::mmsg::{Message, ReceiveBatch};

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

    /// What to poll for datagrams at `port`, if this queue pair receives there.
    fn descriptor(&self, port: Port) -> Option<RawFd>;
}

#[cfg(test)]
pub(crate) mod memory {
    //! Two underlays back to back, for tests of the data path without sockets.

    use super::*;
    use std::collections::VecDeque;
    use std::net::SocketAddr;

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
    }

    impl Underlay for MemoryUnderlay {
        fn send(&mut self, messages: &[Message<'_>]) -> io::Result<usize> {
            if let Some(error) = self.failures.pop_front() {
                return Err(error);
            }
            for message in messages {
                let mut bytes = Vec::new();
                message.parts.iter().for_each(|part| part.append_to(&mut bytes));
                self.messages += 1;
                let size = if message.segment == 0 { bytes.len() } else { message.segment.into() };
                self.sent.extend(bytes.chunks(size).map(|bytes| (message.to, bytes.to_vec())));
            }
            Ok(messages.len())
        }

        fn receive(&mut self, port: Port, batch: &mut ReceiveBatch) -> io::Result<()> {
            let queue = match port {
                Port::Own => &mut self.own,
                Port::Group => &mut self.group,
            };
            batch.clear();
            if queue.is_empty() {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            for (from, bytes) in queue.drain(..queue.len().min(8)) {
                batch.push(from, &bytes, bytes.len());
            }
            Ok(())
        }

        fn descriptor(&self, _: Port) -> Option<RawFd> {
            None
        }
    }
}
