//! Which of a vif's sockets a descriptor is. Sockets come with control messages, and each says
//! itself what it is:
//!
//! | Socket | Known by |
//! |---|---|
//! | of a group | its address, which is the group's (getsockname(2)); its filter says for which vnet |
//! | of a queue pair, at the vif's own address | its token, which names the pair |
//! | of a queue pair, to send from | its token, likewise |
//!
//! varpd, who opens the sockets, leaves the token with the kernel, as the time for which a send
//! waits (`SO_SNDTIMEO`, socket(7)). The sockets never block, so that the option has no effect. The
//! token stays with the socket, whoever holds descriptors of it, also while varpd is restarted.
//! Neither side depends on the order of descriptors: the kernel steers datagrams by the order in
//! which a vif's sockets were bound ([`crate::underlay::steering`]), so that a pair with another
//! pair's socket would wait in vain.
//!
//! A token only tells sockets apart. varpd also checks the sockets that a backend brings:
//! [`super::Opener::adopt`].

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use socket2::Socket;
use thiserror::Error;

use super::local_address;
use crate::wire::control::MAX_QUEUE_PAIRS;

/// What a socket of a queue pair is for, and of which pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// At the vif's own address.
    Own(u8),
    /// To send from.
    Sender(u8),
}

/// A token is a number of seconds: the pair's number plus one of these.
const OWN: u64 = 100;
const SENDER: u64 = 200;

impl Role {
    const fn token(self) -> Duration {
        match self {
            Self::Own(pair) => Duration::from_secs(OWN + pair as u64),
            Self::Sender(pair) => Duration::from_secs(SENDER + pair as u64),
        }
    }

    fn of(token: Duration) -> Option<Self> {
        let pairs = 0..MAX_QUEUE_PAIRS;
        let mut roles = pairs.flat_map(|pair| [Self::Own(pair), Self::Sender(pair)]);
        roles.find(|role| role.token() == token)
    }
}

/// Gives a socket its token.
pub(super) fn mark(socket: &Socket, role: Role) -> io::Result<()> {
    socket.set_write_timeout(Some(role.token()))
}

/// Sockets of a vif, those of queue pairs in the order of these.
#[derive(Debug, Default)]
pub struct Sorted {
    /// Those of groups.
    pub groups: Vec<Socket>,
    /// Those at the vif's own address, one for each pair.
    pub own: Vec<Socket>,
    /// Those to send from, one for each pair if there are several.
    pub senders: Vec<Socket>,
}

/// Why descriptors are not the sockets of a vif.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SortError {
    /// Not a socket, or one without a token.
    #[error("a descriptor is none of the vif's sockets")]
    Foreign,
    /// Of a queue pair that the vif has not, or twice.
    #[error("the sockets of queue pairs are not one each")]
    Pairs,
}

/// Sorts the sockets of a vif that has `queue_pairs` queue pairs. They may come in any order.
///
/// # Errors
/// They are not those of a vif.
pub fn sort(fds: Vec<OwnedFd>, queue_pairs: u8) -> Result<Sorted, SortError> {
    let mut groups = Vec::new();
    let mut pairs: Vec<(Role, Socket)> = Vec::new();
    for socket in fds.into_iter().map(Socket::from) {
        let address = local_address(&socket).map_err(|_| SortError::Foreign)?;
        if address.ip().is_multicast() {
            groups.push(socket);
            continue;
        }
        let token = socket.write_timeout().ok().flatten().ok_or(SortError::Foreign)?;
        let role = Role::of(token).ok_or(SortError::Foreign)?;
        pairs.push((role, socket));
    }
    let mut take = |role| {
        let found = pairs.iter().position(|(is, _)| *is == role).ok_or(SortError::Pairs)?;
        Ok(pairs.swap_remove(found).1)
    };
    let own = (0..queue_pairs).map(|pair| take(Role::Own(pair))).collect::<Result<_, _>>()?;
    let several = (0..queue_pairs).filter(|_| queue_pairs > 1);
    let senders = several.map(|pair| take(Role::Sender(pair))).collect::<Result<_, _>>()?;
    if pairs.is_empty() { Ok(Sorted { groups, own, senders }) } else { Err(SortError::Pairs) }
}
