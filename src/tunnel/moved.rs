//! MACs that have moved from here: the backend forwards their late frames and reports the senders of these,
//! so that they learn the new place.
//!
//! Theory of operation. A MAC departs when varpd reports a claim newer than that of this vif.
//! From then on the backend delivers no frames for it to the guest. For one lifetime of a mapping, it
//! forwards frames to the claim's care-of address. After that no host can still have a mapping to
//! here, and it drops them. The MAC returns when varpd says so, or when the guest's rings start.
//!
//! Frames never loop, although the header has no hop count:
//!
//! * A place forwards only towards a claim that varpd ranks above every claim made at that place, so
//!   claims rise along a frame's path, and no place occurs twice. A place that makes a
//!   new claim stops forwarding before that (its rings start), or with the claim.
//! * A frame that comes from a place where the MAC has been was forwarded before, and so was one that
//!   comes from another host than its sender is known to be on. Neither is forwarded again. So
//!   no frame returns to where it came from, even while two hosts each think that the other has the MAC.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use crate::limiter::repeat;
use crate::time::Instant;
use crate::wire::{CareOf, Mac};

/// Limit on remembered MACs.
pub const MAX_DEPARTED: usize = 1024;
/// Limit on remembered senders.
const MAX_SENDERS: usize = 256;
/// Limit on remembered earlier places of a MAC.
const MAX_EARLIER: usize = 8;

/// The new place of a MAC.
#[derive(Clone, Debug)]
struct MovedMac {
    coa: CareOf,
    /// Whether frames can be sent there.
    is_usable: bool,
    /// End of forwarding.
    until: Instant,
    /// Its earlier places, newest last.
    earlier: Vec<SocketAddr>,
}

/// The decision about a frame for a departed MAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Forward it.
    Forward(CareOf),
    /// Drop it.
    Drop,
}

/// A sender that does not know the new place yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LateSender {
    /// The departed MAC.
    pub mac: Mac,
    /// The sender of a frame to it.
    pub from: SocketAddr,
}

/// All departed MACs.
#[derive(Debug, Default)]
pub struct MovedMacs {
    entries: HashMap<Mac, MovedMac>,
    /// The time of each one's last report, and the number of reports.
    seen: HashMap<LateSender, (Instant, u32)>,
    unreported: Vec<LateSender>,
}

impl MovedMacs {
    /// Handles a claim newer than that of the vif at `own`: forwards the MAC's frames to its care-of address for a
    /// while. The latest event of varpd counts: see [`crate::tunnel::neighbors`].
    pub fn insert(&mut self, mac: Mac, coa: CareOf, own: IpAddr, until: Instant) {
        if self.entries.len() >= MAX_DEPARTED && !self.entries.contains_key(&mac) {
            let first = self.entries.iter().min_by_key(|(_, known)| known.until);
            if let Some(first) = first.map(|(&mac, _)| mac) {
                self.entries.remove(&first);
            }
        }
        let mut earlier = Vec::new();
        if let Some(known) = self.entries.remove(&mac) {
            earlier = known.earlier;
            earlier.retain(|&place| place != coa.addr && place != known.coa.addr);
            if known.coa.addr != coa.addr {
                earlier.push(known.coa.addr);
            }
            earlier.drain(..earlier.len().saturating_sub(MAX_EARLIER));
        }
        let is_usable = coa.usable_from(own).is_ok();
        self.entries.insert(mac, MovedMac { coa, is_usable, until, earlier });
    }

    /// Handles the return of the MAC.
    pub fn remove(&mut self, mac: Mac) {
        self.entries.remove(&mac);
        self.seen.retain(|late, _| late.mac != mac);
    }

    /// Forgets MACs whose time is over, except `own`, for which the backend delivers nothing until it is back.
    pub fn sweep(&mut self, own: Mac, now: Instant) {
        self.entries.retain(|&mac, departure| mac == own || now < departure.until);
    }

    /// Whether a MAC has departed.
    pub fn has_left(&self, mac: Mac) -> bool {
        self.entries.contains_key(&mac)
    }

    /// Whether no MAC has departed.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The latest end of forwarding, if any.
    pub fn forwards_until(&self, now: Instant) -> Option<Instant> {
        let usable = self.entries.values().filter(|departure| departure.is_usable);
        usable.map(|departure| departure.until).filter(|&until| now < until).max()
    }

    /// The decision about a frame to `mac` that came from `from`; `None` if the MAC has not departed.
    /// `sender`: the place of its sender, if known.
    pub fn judge(
        &mut self,
        mac: Mac,
        from: SocketAddr,
        sender: Option<SocketAddr>,
        now: Instant,
    ) -> Option<Verdict> {
        let departure = self.entries.get(&mac)?;
        if now >= departure.until {
            return Some(Verdict::Drop);
        }
        let coa = departure.coa;
        let was_there = from == coa.addr || departure.earlier.contains(&from);
        // A vif with several queue pairs sends from other ports than that of its own address.
        let is_direct = !was_there && sender.is_none_or(|sender| sender.ip() == from.ip());
        let is_sent_on = is_direct && departure.is_usable;
        self.report(LateSender { mac, from }, now);
        Some(if is_sent_on { Verdict::Forward(coa) } else { Verdict::Drop })
    }

    fn report(&mut self, late: LateSender, now: Instant) {
        if let Some((at, times)) = self.seen.get_mut(&late) {
            // A report may be lost: repeat it soon, and then once a second.
            if now.saturating_since(*at) >= repeat::wait(*times) {
                (*at, *times) = (now, *times + 1);
                self.unreported.push(late);
            }
            return;
        }
        if self.seen.len() >= MAX_SENDERS {
            self.seen.retain(|_, (at, _)| now.saturating_since(*at) < repeat::LONGEST);
        }
        // Beyond the limit per second, report in a later second.
        if self.seen.len() < MAX_SENDERS {
            self.seen.insert(late, (now, 1));
            self.unreported.push(late);
        }
    }

    /// Whether there are senders to report.
    pub fn has_senders(&self) -> bool {
        !self.unreported.is_empty()
    }

    /// Takes the senders to report.
    pub fn senders(&mut self) -> impl Iterator<Item = LateSender> + '_ {
        self.unreported.drain(..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Capabilities, EncapKinds, Longest};

    const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const OTHER: Mac = Mac([2, 0, 0, 0, 0, 2]);

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn addr(host: u8) -> SocketAddr {
        ([192, 0, 2, host], 4000).into()
    }

    fn coa(host: u8) -> CareOf {
        CareOf {
            addr: addr(host),
            kinds: EncapKinds::UDP,
            capabilities: Capabilities::NONE,
            longest: Longest::UNKNOWN,
        }
    }

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    fn departed() -> MovedMacs {
        let mut departures = MovedMacs::default();
        departures.insert(OWN, coa(2), HERE, at(30_000));
        departures
    }

    #[test]
    fn late_frames_are_sent_on_for_a_lifetime_and_never_delivered() {
        let mut d = departed();
        assert_eq!(d.judge(OTHER, addr(9), None, at(0)), None);
        assert_eq!(d.judge(OWN, addr(9), None, at(0)), Some(Verdict::Forward(coa(2))));
        assert_eq!(d.judge(OWN, addr(9), None, at(29_999)), Some(Verdict::Forward(coa(2))));
        assert_eq!(d.forwards_until(at(29_999)), Some(at(30_000)));
        assert_eq!(d.judge(OWN, addr(9), None, at(30_000)), Some(Verdict::Drop));
        assert_eq!(d.forwards_until(at(30_000)), None);
        d.sweep(OWN, at(40_000));
        assert_eq!(d.judge(OWN, addr(9), None, at(40_000)), Some(Verdict::Drop), "still away");
        d.remove(OWN);
        assert_eq!(d.judge(OWN, addr(9), None, at(40_000)), None);
    }

    #[test]
    fn nothing_is_sent_on_twice_or_back() {
        let mut d = departed();
        assert_eq!(d.judge(OWN, addr(2), None, at(0)), Some(Verdict::Drop), "back");
        assert_eq!(d.judge(OWN, addr(9), Some(addr(8)), at(0)), Some(Verdict::Drop), "not direct");
        assert_eq!(d.judge(OWN, addr(9), Some(addr(9)), at(0)), Some(Verdict::Forward(coa(2))));
        for host in 3..20 {
            d.insert(OWN, coa(host), HERE, at(30_000));
        }
        for host in 12..20 {
            assert_eq!(d.judge(OWN, addr(host), None, at(0)), Some(Verdict::Drop), "was there");
        }
        assert_eq!(d.judge(OWN, addr(30), None, at(0)), Some(Verdict::Forward(coa(19))));
    }

    #[test]
    fn what_varpd_says_last_is_where_it_is() {
        let mut d = departed();
        for host in [3, 4, 3] {
            d.insert(OWN, coa(host), HERE, at(50_000));
            assert_eq!(d.judge(OWN, addr(9), None, at(40_000)), Some(Verdict::Forward(coa(host))));
        }
    }

    #[test]
    fn nothing_is_sent_on_to_where_nothing_can_be_sent() {
        let mut d = departed();
        d.insert(OWN, CareOf { kinds: EncapKinds::ETHERIP, ..coa(3) }, HERE, at(50_000));
        assert_eq!(d.judge(OWN, addr(9), None, at(0)), Some(Verdict::Drop));
        assert!(d.has_left(OWN) && d.has_senders(), "it has left, and its sender hears so");
        assert_eq!(d.forwards_until(at(0)), None);
    }

    #[test]
    fn each_sender_is_reported_soon_again_then_once_a_second_and_not_too_many() {
        let mut d = departed();
        let report = |d: &mut MovedMacs| d.senders().collect::<Vec<_>>();
        for _ in 0..1000 {
            d.judge(OWN, addr(9), None, at(0));
        }
        assert!(d.has_senders());
        assert_eq!(report(&mut d), [LateSender { mac: OWN, from: addr(9) }]);
        let mut times = Vec::new();
        for ms in 1..3500 {
            d.judge(OWN, addr(9), None, at(ms));
            times.extend(report(&mut d).iter().map(|_| ms));
        }
        assert_eq!(times, [5, 25, 105, 425, 1425, 2425, 3425]);
        for port in 0..10_000 {
            d.judge(OWN, ([192, 0, 2, 7], port).into(), None, at(4000));
        }
        assert!(report(&mut d).len() < MAX_SENDERS);
        d.judge(OWN, addr(8), None, at(6000));
        assert_eq!(report(&mut d).len(), 1, "the old ones are forgotten");
    }

    #[test]
    fn the_table_is_bounded() {
        let mut d = MovedMacs::default();
        for n in 0..3000_u64 {
            let [.., a, b] = n.to_be_bytes();
            d.insert(Mac([2, 1, 0, 0, a, b]), coa(2), HERE, at(1000 + n));
        }
        assert_eq!(d.entries.len(), MAX_DEPARTED);
        d.sweep(OWN, at(4500));
        assert!(d.is_empty());
    }
}
