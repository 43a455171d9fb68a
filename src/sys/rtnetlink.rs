//! The interfaces, addresses and default routes of this network namespace, and word of their changes, from
//! the kernel (rtnetlink(7)).
//!
//! What has changed is not read out of the kernel's messages: they say that it is time to look again, and a
//! look lists everything. So a message that is lost (`ENOBUFS`) or comes late does no harm.

mod listing;
mod message;

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, send,
    setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};

use listing::Listing;
use message::{Part, parts};

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Of the bridge, bond or the like that it is a port of.
    pub master: Option<u32>,
    /// Administratively up.
    pub up: bool,
    /// A loopback interface.
    pub loopback: bool,
    /// Can carry multicast.
    pub multicast: bool,
    /// Holds a default route of the main table, IPv4 or IPv6.
    pub default_route: bool,
    /// Its addresses that can be used now, in the order in which the kernel lists them, but those that are
    /// temporary, secondary or deprecated last.
    pub addresses: Vec<IpAddr>,
}

/// What has been heard of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// Something that is listed may have changed.
    pub any: bool,
    /// The interface that was asked about has been deleted, or may have been. One with the same index
    /// may be there by now.
    pub is_deleted: bool,
}

/// How long the kernel may take for a part of a list, in seconds.
const PATIENCE: i64 = 1;
/// Lists that changed while the kernel made them are asked for again as often.
const TRIES: usize = 5;
/// Longest message of the kernel's (NLMSG_GOODSIZE is less).
const ROOM: usize = 64 << 10;
/// Messages read at once.
const BUDGET: usize = 256;

/// A connection to the kernel's routing sockets.
#[derive(Debug)]
pub struct Rtnetlink {
    query: OwnedFd,
    events: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Rtnetlink {
    /// Opens it, before the process is confined. `with_routes`: changes of routes are news, too.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(with_routes: bool) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let open = |flags| {
            socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)
        };
        let query = open(flags)?;
        bind(query.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        setsockopt(&query, ReceiveTimeout, &TimeVal::seconds(PATIENCE))?;
        let events = open(flags | SockFlag::SOCK_NONBLOCK)?;
        let mut groups = libc::RTMGRP_LINK | libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR;
        if with_routes {
            groups |= libc::RTMGRP_IPV4_ROUTE | libc::RTMGRP_IPV6_ROUTE;
        }
        bind(events.as_raw_fd(), &NetlinkAddr::new(0, groups.cast_unsigned()))?;
        Ok(Self { query, events, sequence: 0, buffer: vec![0; ROOM] })
    }

    /// All interfaces, by index; their default routes only if asked for, since a router has many routes.
    ///
    /// # Errors
    /// The kernel's, or it does not answer in time.
    pub fn interfaces(&mut self, with_routes: bool) -> io::Result<Vec<Interface>> {
        let mut requests = vec![message::links as fn(u32) -> Vec<u8>, message::addresses];
        if with_routes {
            requests.push(message::routes);
        }
        for _ in 0..TRIES {
            let mut listing = Listing::default();
            let mut is_whole = true;
            for request in &requests {
                is_whole &= self.list(*request, &mut listing)?;
            }
            if is_whole {
                return Ok(listing.into_interfaces());
            }
        }
        Err(io::Error::other("the interfaces change too fast to be listed"))
    }

    /// Asks for a list; false if it changed while the kernel made it.
    fn list(&mut self, request: fn(u32) -> Vec<u8>, listing: &mut Listing) -> io::Result<bool> {
        self.sequence = self.sequence.wrapping_add(1);
        send(self.query.as_raw_fd(), &request(self.sequence), MsgFlags::empty())?;
        let mut is_whole = true;
        loop {
            let Some(len) = receive(&self.query, &mut self.buffer)? else { continue };
            let bytes = self.buffer.get(..len).unwrap_or_default();
            for part in parts(bytes).filter(|part| part.sequence == self.sequence) {
                is_whole &= !part.is_interrupted();
                match part.kind {
                    message::DONE => return Ok(is_whole),
                    message::ERROR => return Err(part.error()),
                    _ => listing.take(&part),
                }
            }
        }
    }

    /// Reads what has been heard; `about` is the index of the interface whose deletion matters.
    pub fn news(&mut self, about: u32) -> News {
        let mut news = News::default();
        for _ in 0..BUDGET {
            match receive(&self.events, &mut self.buffer) {
                Ok(Some(len)) => {
                    let bytes = self.buffer.get(..len).unwrap_or_default();
                    news.any = true;
                    news.is_deleted |= parts(bytes).any(|part: Part<'_>| part.deletes(about));
                }
                Ok(None) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return news,
                // Something was lost (ENOBUFS).
                Err(_) => news = News { any: true, is_deleted: true },
            }
        }
        news
    }
}

/// A message's length; `None` if it is not the kernel's.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    match recvfrom::<NetlinkAddr>(socket.as_raw_fd(), buffer) {
        Ok((len, Some(from))) if from.pid() == 0 => Ok(Some(len)),
        Ok(_) | Err(Errno::EINTR) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

impl AsFd for Rtnetlink {
    /// Readable when there is news.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_listed() {
        let mut rtnetlink = Rtnetlink::open(true).unwrap();
        for with_routes in [false, true] {
            let list = rtnetlink.interfaces(with_routes).unwrap();
            let lo = list.iter().find(|interface| interface.name == "lo").unwrap();
            assert!(lo.loopback && !lo.default_route);
            assert!(!lo.up || lo.addresses.contains(&IpAddr::from([127, 0, 0, 1])));
        }
        assert_eq!(rtnetlink.news(1), News::default(), "nothing has happened");
    }
}
