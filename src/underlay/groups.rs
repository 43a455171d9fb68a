//! The group sockets of a vif, as one source of datagrams.
//!
//! Usually there is one. While the hosts of a vnet go from one group to another a vif listens at both,
//! through a socket for each: the kernel hands a socket that is bound to a group what is sent to that
//! group and nothing else.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use super::udp::merge_received;
use crate::sys::event::{Interest, Poller};
use crate::sys::mmsg::ReceiveBatch;

/// Groups of a vif at most.
pub const MOST: usize = crate::wire::control::MAX_GROUPS;

/// The sockets; none at most queue pairs.
#[derive(Debug, Default)]
pub struct Groups {
    sockets: Vec<OwnedFd>,
    /// Waits for several, so that there is one descriptor to poll however many they are.
    poller: Option<Poller>,
    /// Which is read next.
    next: usize,
}

impl Groups {
    /// Over these sockets, which arrive open, bound and filtered.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn new(sockets: Vec<OwnedFd>) -> io::Result<Self> {
        let poller = match sockets.len() {
            0 | 1 => None,
            several => {
                let poller = Poller::new(several)?;
                sockets.iter().try_for_each(|socket| poller.add(socket, 0, Interest::Read))?;
                Some(poller)
            }
        };
        sockets.iter().for_each(merge_received);
        Ok(Self { sockets, poller, next: 0 })
    }

    /// The sockets.
    pub fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sockets.iter().map(AsFd::as_fd)
    }

    /// What to poll for datagrams, if there is a socket.
    pub fn descriptor(&self) -> Option<RawFd> {
        match &self.poller {
            Some(poller) => Some(poller.as_raw_fd()),
            None => self.sockets.first().map(AsRawFd::as_raw_fd),
        }
    }

    /// Receives what waits at one of them; each has its turn, so that a flood at one leaves the other heard.
    ///
    /// # Errors
    /// `WouldBlock` when nothing waits at any.
    pub fn receive(&mut self, batch: &mut ReceiveBatch) -> io::Result<()> {
        for _ in 0..self.sockets.len() {
            let socket = self.sockets.get(self.next);
            self.next = (self.next + 1) % self.sockets.len();
            let Some(socket) = socket else { break };
            match batch.receive(socket.as_fd()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                received => return received,
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{SocketAddr, UdpSocket};

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    fn sockets(count: usize) -> (Vec<SocketAddr>, Groups) {
        let open = |_| {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.set_nonblocking(true).unwrap();
            (socket.local_addr().unwrap(), OwnedFd::from(socket))
        };
        let (addresses, sockets) = (0..count).map(open).unzip();
        (addresses, Groups::new(sockets).unwrap())
    }

    fn is_readable(groups: &Groups) -> bool {
        let descriptor = groups.poller.as_ref().map(AsFd::as_fd).or(groups.sockets().next());
        let mut fds = [PollFd::new(descriptor.unwrap(), PollFlags::POLLIN)];
        assert_eq!(groups.descriptor(), descriptor.map(|fd| fd.as_raw_fd()));
        poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
    }

    fn read(groups: &mut Groups) -> Vec<Vec<u8>> {
        let mut batch = ReceiveBatch::default();
        let mut all = Vec::new();
        while groups.receive(&mut batch).is_ok() {
            all.extend((0..batch.len()).map(|n| batch.get(n).unwrap().bytes.to_vec()));
        }
        all
    }

    #[test]
    fn what_comes_to_any_group_is_read_and_polled_for() {
        for count in [1, 2] {
            let (addresses, mut groups) = sockets(count);
            let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
            for (n, to) in (0_u8..).zip(&addresses) {
                assert!(read(&mut groups).is_empty());
                sender.send_to(&[n], to).unwrap();
                assert!(is_readable(&groups), "socket {n} of {count}");
                assert_eq!(read(&mut groups), [[n]]);
                assert!(!is_readable(&groups));
            }
        }
    }

    #[test]
    fn a_flood_at_one_group_leaves_the_other_heard() {
        let (addresses, mut groups) = sockets(2);
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        // More than is read at once.
        for _ in 0..100 {
            sender.send_to(&[0], addresses[0]).unwrap();
        }
        sender.send_to(&[1], addresses[1]).unwrap();
        let mut batch = ReceiveBatch::default();
        let mut firsts = Vec::new();
        for _ in 0..2 {
            groups.receive(&mut batch).unwrap();
            firsts.push(batch.get(0).unwrap().bytes[0]);
        }
        assert_eq!(firsts, [0, 1]);
    }

    #[test]
    fn without_sockets_nothing_comes() {
        let mut none = Groups::default();
        assert_eq!(none.descriptor(), None);
        assert!(read(&mut none).is_empty());
    }
}
