//! The interfaces, addresses and default routes of this network namespace, and notifications of
//! their changes, from the kernel (rtnetlink(7)).
//!
//! A notification only causes a new listing of everything; its contents are not used. So a
//! notification that is lost (`ENOBUFS`) or late does no harm.
//!
//! Not a crate for netlink. netlink-packet-route (0.34.0: with netlink-packet-core two more crates,
//! 53,000 lines with their tests) would replace `message` and the offsets in `listing`, some 150
//! lines of safe code. It decodes all attributes of a message, and fails for the whole message if
//! one of them is not as it expects: an interface of a newer kernel would be missing. This module
//! reads the attributes that it uses, and passes over all others. The rest would stay: the timeout,
//! lists that change while the kernel makes them (NLM_F_DUMP_INTR), strict requests, and sockets
//! that are open before the program confines itself. netlink-sys opens sockets as nix does, which
//! is in use anyway. neli (0.7.5) brings more than 25 crates, most of them for its macros.

mod listing;
mod message;

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, send,
    setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};

use listing::Listing;
use message::{Part, parts};

use super::{clock, sockopt};

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
    /// Its addresses that can be used now, in the order in which the kernel lists them, but those
    /// that are temporary, secondary or deprecated last.
    pub addresses: Vec<IpAddr>,
}

/// Notified changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// Something that is listed may have changed.
    pub any: bool,
    /// The interface that was asked about has been deleted, or may have been. One with the same
    /// index may be there by now.
    pub is_deleted: bool,
}

/// How long the kernel may take for a part of a list, in seconds.
const PATIENCE: i64 = 1;
/// `NETLINK_GET_STRICT_CHK` of linux/netlink.h (Linux 4.20): the kernel lists only what a request
/// says.
const STRICT: (libc::c_int, libc::c_int) = (libc::SOL_NETLINK, 12);
/// A list that changed while the kernel made it is asked for again as often.
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
    took: Duration,
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
        // An older kernel lists more, which is passed over.
        let _ = sockopt::set(&query, STRICT, 1);
        let events = open(flags | SockFlag::SOCK_NONBLOCK)?;
        let mut groups = libc::RTMGRP_LINK | libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR;
        if with_routes {
            groups |= libc::RTMGRP_IPV4_ROUTE | libc::RTMGRP_IPV6_ROUTE;
        }
        bind(events.as_raw_fd(), &NetlinkAddr::new(0, groups.cast_unsigned()))?;
        Ok(Self { query, events, sequence: 0, buffer: vec![0; ROOM], took: Duration::ZERO })
    }

    /// All interfaces, by index; their default routes only if asked for, since a router has many
    /// routes.
    ///
    /// # Errors
    /// The kernel's, or it does not answer in time.
    pub fn interfaces(&mut self, with_routes: bool) -> io::Result<Vec<Interface>> {
        let mut requests = vec![message::links as fn(u32) -> Vec<u8>, message::addresses];
        if with_routes {
            requests.extend([message::routes_v4 as fn(u32) -> Vec<u8>, message::routes_v6]);
        }
        let began = clock::mono();
        let mut listing = Listing::default();
        let listed = requests.into_iter().try_for_each(|request| self.list(request, &mut listing));
        self.took = clock::mono().saturating_since(began);
        listed.map(|()| listing.into_interfaces())
    }

    /// The duration of the last call of [`Self::interfaces`]: long on a router with many routes.
    pub fn took(&self) -> Duration {
        self.took
    }

    /// Adds a list, which did not change while the kernel made it.
    fn list(&mut self, request: fn(u32) -> Vec<u8>, listing: &mut Listing) -> io::Result<()> {
        for _ in 0..TRIES {
            let before = listing.clone();
            if self.ask(request, |part| listing.take(part))? {
                return Ok(());
            }
            *listing = before;
        }
        Err(io::Error::other("the interfaces change too fast to be listed"))
    }

    /// Asks for a list; false if it changed while the kernel made it.
    fn ask(
        &mut self,
        request: fn(u32) -> Vec<u8>,
        mut take: impl FnMut(&Part<'_>),
    ) -> io::Result<bool> {
        self.sequence = self.sequence.wrapping_add(1);
        send(self.query.as_raw_fd(), &request(self.sequence), MsgFlags::empty())?;
        let mut is_whole = true;
        loop {
            let Some(len) = receive(&self.query, &mut self.buffer)? else { continue };
            let bytes = self.buffer.get(..len).unwrap_or_default();
            for part in parts(bytes).filter(|part| part.sequence == self.sequence) {
                is_whole &= !part.is_interrupted();
                match (part.kind, part.error()) {
                    // No route was ever in the main table.
                    (message::DONE | message::ERROR, 0 | libc::ENOENT) => return Ok(is_whole),
                    (message::DONE | message::ERROR, error) => {
                        return Err(io::Error::from_raw_os_error(error));
                    }
                    _ => take(&part),
                }
            }
        }
    }

    /// Reads notifications; `about` is the index of the interface whose deletion matters.
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

    /// A host has routes of the table local for each address. A kernel before 4.20 lists them, too.
    #[test]
    fn the_kernel_lists_only_routes_that_may_be_default_routes() {
        let mut rtnetlink = Rtnetlink::open(true).unwrap();
        let mut count = |request| {
            let mut routes = Vec::new();
            let is_route = |part: &Part<'_>| part.kind == message::NEW_ROUTE;
            let kept = |part: &Part<'_>| part.body.get(4..8).map(<[u8]>::to_vec);
            let mut take = |part: &Part<'_>| routes.extend(kept(part).filter(|_| is_route(part)));
            assert!(rtnetlink.ask(request, &mut take).is_ok());
            routes
        };
        let routes = [count(message::routes_v4), count(message::routes_v6)].concat();
        let of_main =
            |route: &Vec<u8>| (route[0], route[3]) == (libc::RT_TABLE_MAIN, libc::RTN_UNICAST);
        assert!(routes.iter().all(of_main), "{routes:?}");
    }
}
