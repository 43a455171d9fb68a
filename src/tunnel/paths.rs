//! Path MTUs by destination, as the kernel reports them (RFC 1191, RFC 8201).
//!
//! The kernel learns them: an ICMP "fragmentation needed" or "packet too big" that quotes a
//! datagram of one of its sockets lowers the MTU of its route to that host, for ten minutes
//! (`net.ipv4.route.mtu_expires`, RFC 1191 section 6.3), and it refuses longer datagrams with
//! EMSGSIZE. The same applies to an MTU in the routing table or of an interface. This module has a
//! copy, so that the endpoint cuts frames to the right length at once. It forgets the copy after
//! [`LIFETIME`]: then the endpoint asks the kernel again by sending, which costs only the time,
//! since a datagram that it refuses leaves in pieces instead. So a path that has grown again is
//! used within that time after the kernel has noticed.
//!
//! Without a router on the way, no such message exists: a packet that is longer than the MTU of the
//! other host's interface on the same link is lost silently. So each host announces the longest
//! packet that it accepts ([`Longest`]), and a path starts at the smaller value of both ends.
//!
//! A forged ICMP message (the kernel accepts only those that quote an open port's datagram) can
//! only make packets short, down to the floors below.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::time::Instant;
use crate::wire::{Longest, encap};

/// Hosts that are remembered at most. Only what was sent to can be in the table.
pub const MAX_ENTRIES: usize = 1024;
/// How long the kernel's word is taken for granted.
pub const LIFETIME: Duration = Duration::from_secs(10);
/// No path of IPv4 is believed to be smaller: Linux's own floor (`net.ipv4.route.min_pmtu`).
const MIN_V4: u32 = 552;
/// No link of IPv6 is smaller (RFC 8200, section 5).
const MIN_V6: u32 = 1280;

/// Who says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The kernel, of its own route.
    Kernel,
    /// A router, or somebody who forges its ICMP: can only lower what is known.
    Router,
}

#[derive(Clone, Copy, Debug)]
struct Path {
    mtu: u32,
    until: Instant,
}

/// The table of one queue pair.
#[derive(Debug, Default)]
pub struct Paths {
    /// Also what is over, so that the same news is not new again.
    entries: HashMap<IpAddr, Path>,
}

impl Paths {
    /// The longest datagram (UDP payload) towards a host, in bytes, `link` being the longest that
    /// the link takes.
    pub fn max_datagram(&self, to: IpAddr, link: usize, now: Instant) -> usize {
        if self.entries.is_empty() {
            return link;
        }
        let known = self.entries.get(&to).filter(|path| now < path.until);
        known.map_or(link, |path| link.min(payload(to, path.mtu)))
    }

    /// Packets of `mtu` bytes are the longest on the path to `to`. Returns the MTU that is now
    /// known, if it was another before or none.
    pub fn learn(&mut self, to: IpAddr, mtu: u32, source: Source, now: Instant) -> Option<u32> {
        let mut mtu = mtu.max(if to.is_ipv4() { MIN_V4 } else { MIN_V6 });
        let known = self.entries.get(&to).copied();
        if source == Source::Router
            && let Some(path) = known.filter(|path| now < path.until)
        {
            mtu = mtu.min(path.mtu);
        }
        if known.is_none() && self.entries.len() >= MAX_ENTRIES {
            self.make_room();
        }
        self.entries.insert(to, Path { mtu, until: now + LIFETIME });
        (known.map(|path| path.mtu) != Some(mtu)).then_some(mtu)
    }

    /// Forgets the oldest half.
    fn make_room(&mut self) {
        let mut ages: Vec<Instant> = self.entries.values().map(|path| path.until).collect();
        let (_, middle, _) = ages.select_nth_unstable(MAX_ENTRIES / 2);
        let middle = *middle;
        self.entries.retain(|_, path| path.until > middle);
    }
}

/// An MTU for a path that does not take a datagram of `len` bytes, if nothing else is known: the
/// next smaller of those that are usual (after RFC 1191, section 7.1). `None` where none can be
/// smaller.
pub fn guess(to: IpAddr, len: usize) -> Option<u32> {
    const USUAL: [u32; 9] = [8950, 4352, 2002, 1492, 1450, 1400, 1280, 1006, MIN_V4];
    let least = if to.is_ipv4() { MIN_V4 } else { MIN_V6 };
    USUAL.into_iter().filter(|mtu| *mtu >= least).find(|mtu| payload(to, *mtu) < len)
}

/// The longest datagram (UDP payload) that a host takes, by what it says.
pub fn room(to: IpAddr, longest: Longest) -> usize {
    longest.known().map_or(usize::MAX, |len| payload(to, len))
}

/// What a packet has room for behind IP and UDP headers.
fn payload(to: IpAddr, mtu: u32) -> usize {
    usize::try_from(mtu).unwrap_or(usize::MAX).saturating_sub(encap::outer_len(to))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: usize = 1472;
    const AT: Instant = Instant::from_millis(1000);

    fn host(n: u32) -> IpAddr {
        IpAddr::V4(n.into())
    }

    #[test]
    fn only_the_host_that_is_meant_is_concerned_and_only_for_a_while() {
        let mut paths = Paths::default();
        assert_eq!(paths.max_datagram(host(1), LINK, AT), LINK);
        assert_eq!(paths.learn(host(1), 1280, Source::Router, AT), Some(1280));
        assert_eq!(paths.max_datagram(host(1), LINK, AT), 1252);
        assert_eq!(paths.max_datagram(host(2), LINK, AT), LINK);
        assert_eq!(paths.max_datagram(host(1), LINK, AT + LIFETIME), LINK, "tried again");
        let v6: IpAddr = "2001:db8::1".parse().unwrap();
        paths.learn(v6, 1400, Source::Kernel, AT);
        assert_eq!(paths.max_datagram(v6, LINK, AT), 1352);
        paths.learn(v6, 9000, Source::Kernel, AT);
        assert_eq!(paths.max_datagram(v6, LINK, AT), LINK, "never more than the link");
    }

    #[test]
    fn a_router_only_lowers_and_not_below_the_floor() {
        let mut paths = Paths::default();
        let v6: IpAddr = "2001:db8::1".parse().unwrap();
        assert_eq!(paths.learn(host(1), 0, Source::Router, AT), Some(552));
        assert_eq!(paths.learn(v6, 68, Source::Router, AT), Some(1280));
        assert_eq!(paths.learn(host(1), 1400, Source::Router, AT), None);
        assert_eq!(paths.max_datagram(host(1), LINK, AT), 552 - 28);
        assert_eq!(paths.learn(host(1), 1400, Source::Kernel, AT), Some(1400), "it knows");
        assert_eq!(paths.learn(host(1), 1400, Source::Kernel, AT + LIFETIME * 3), None, "no news");
        let later = AT + LIFETIME * 9;
        assert_eq!(paths.learn(host(1), 1450, Source::Router, later), Some(1450), "has grown");
    }

    #[test]
    fn a_host_that_says_nothing_takes_what_the_link_takes() {
        let v6: IpAddr = "2001:db8::1".parse().unwrap();
        assert_eq!(room(host(1), Longest::UNKNOWN), usize::MAX);
        assert_eq!(room(host(1), Longest::of_mtu(1500, host(1))), LINK);
        assert_eq!(room(v6, Longest::of_mtu(1500, v6)), 1452);
        assert_eq!(room(v6, Longest::of_mtu(500, v6)), usize::MAX, "no host of IPv6 says so");
    }

    #[test]
    fn a_guess_is_always_smaller() {
        let v6: IpAddr = "2001:db8::1".parse().unwrap();
        assert_eq!(guess(host(1), 1472), Some(1492));
        assert_eq!(guess(host(1), 1422), Some(1400));
        assert_eq!(guess(host(1), 525), Some(552));
        assert_eq!(guess(host(1), 524), None);
        assert_eq!(guess(v6, 1233), Some(1280));
        assert_eq!(guess(v6, 1232), None);
    }

    #[test]
    fn the_table_is_bounded_and_forgets_the_oldest() {
        let mut paths = Paths::default();
        for n in 0..100_000 {
            paths.learn(host(n), 1280, Source::Router, AT + Duration::from_millis(n.into()));
            assert!(paths.entries.len() <= MAX_ENTRIES);
        }
        let last = AT + Duration::from_millis(100_000);
        assert_eq!(paths.max_datagram(host(99_999), LINK, last), 1252);
        assert_eq!(paths.max_datagram(host(99_000 - 1024), LINK, AT), LINK);
        // All of one age: there is room again nevertheless.
        for n in 0..10_000 {
            paths.learn(host(n), 1280, Source::Router, last);
            assert!(paths.entries.len() <= MAX_ENTRIES);
        }
    }
}
