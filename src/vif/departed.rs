//! Where MACs have gone that were here: their late frames are sent on, and those who sent them are
//! reported, so that they learn the new place.
//!
//! Theory of operation. A MAC leaves when varpd says that a newer claim has beaten that of this vif.
//! From then on nothing that comes for it is delivered here. For one lifetime of a mapping, frames
//! are sent on to the claim's care-of address; afterwards nobody can believe any more that the MAC
//! is here, and they are dropped. The MAC is back when varpd says so, or the guest's rings start.
//!
//! No frame runs in a circle, though the header counts no hops:
//!
//! * A place sends on only towards a claim that varpd ranks above every claim made there itself, so
//!   the claims rise with each step of a frame's way, and no place comes twice. A place that makes a
//!   new claim stops sending on first (its rings start), or with the claim.
//! * What comes from a place that the MAC is known to have been at was sent on already and is not
//!   sent on again; nor is what comes from another host than its own sender is known to be on. So
//!   nothing goes back to where it came from, also while two hosts each think the other has the MAC.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use crate::limiter::repeat;
use crate::time::Instant;
use crate::wire::{CareOf, Mac};

/// MACs remembered at most.
pub const MAX_DEPARTED: usize = 1024;
/// Senders remembered at most.
const MAX_SENDERS: usize = 256;
/// Earlier places of a MAC that are remembered at most.
const MAX_EARLIER: usize = 8;

/// Where a MAC went.
#[derive(Clone, Debug)]
struct Departure {
    coa: CareOf,
    /// Whether frames can be sent there.
    is_usable: bool,
    /// Until when its frames are sent on.
    until: Instant,
    /// Where it went before, newest last.
    earlier: Vec<SocketAddr>,
}

/// What to do with a frame for a MAC that has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Send it on.
    Forward(CareOf),
    /// Drop it.
    Drop,
}

/// Somebody who doesn't know yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LateSender {
    /// The MAC that has left.
    pub mac: Mac,
    /// Who sent a frame to it.
    pub from: SocketAddr,
}

/// All MACs that have left.
#[derive(Debug, Default)]
pub struct Departures {
    entries: HashMap<Mac, Departure>,
    /// When each was last reported, and how often so far.
    seen: HashMap<LateSender, (Instant, u32)>,
    unreported: Vec<LateSender>,
}

impl Departures {
    /// A newer claim has beaten that of the vif at `own`: the MAC is there now. Its frames are sent on
    /// until then. The last word of varpd holds: see [`super::neighbors`].
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
        self.entries.insert(mac, Departure { coa, is_usable, until, earlier });
    }

    /// The MAC is here (again).
    pub fn remove(&mut self, mac: Mac) {
        self.entries.remove(&mac);
        self.seen.retain(|late, _| late.mac != mac);
    }

    /// Forgets MACs whose time is over, but for `own`: until it is back, nothing for it is delivered.
    pub fn sweep(&mut self, own: Mac, now: Instant) {
        self.entries.retain(|&mac, departure| mac == own || now < departure.until);
    }

    /// Whether a MAC has left.
    pub fn has_left(&self, mac: Mac) -> bool {
        self.entries.contains_key(&mac)
    }

    /// Whether nothing has left.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Until when frames are sent on, if any are.
    pub fn forwards_until(&self, now: Instant) -> Option<Instant> {
        let usable = self.entries.values().filter(|departure| departure.is_usable);
        usable.map(|departure| departure.until).filter(|&until| now < until).max()
    }

    /// What to do with a frame to `mac` that came `from` there; `None` if the MAC has not left.
    /// `sender`: where its own sender is, as far as is known.
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
            // Any message to it may be lost: soon again, and then once a second.
            if now.saturating_since(*at) >= repeat::wait(*times) {
                (*at, *times) = (now, *times + 1);
                self.unreported.push(late);
            }
            return;
        }
        if self.seen.len() >= MAX_SENDERS {
            self.seen.retain(|_, (at, _)| now.saturating_since(*at) < repeat::LONGEST);
        }
        // More than so many in a second: they are told in a later one.
        if self.seen.len() < MAX_SENDERS {
            self.seen.insert(late, (now, 1));
            self.unreported.push(late);
        }
    }

    /// Whether there is somebody to be told.
    pub fn has_senders(&self) -> bool {
        !self.unreported.is_empty()
    }

    /// Takes those who are to be told.
    pub fn senders(&mut self) -> impl Iterator<Item = LateSender> + '_ {
        self.unreported.drain(..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Capabilities, EncapKinds};

    const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const OTHER: Mac = Mac([2, 0, 0, 0, 0, 2]);

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn addr(host: u8) -> SocketAddr {
        ([192, 0, 2, host], 4000).into()
    }

    fn coa(host: u8) -> CareOf {
        CareOf { addr: addr(host), kinds: EncapKinds::UDP, capabilities: Capabilities::NONE }
    }

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    fn departed() -> Departures {
        let mut departures = Departures::default();
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
        let report = |d: &mut Departures| d.senders().collect::<Vec<_>>();
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
        let mut d = Departures::default();
        for n in 0..3000_u64 {
            let [.., a, b] = n.to_be_bytes();
            d.insert(Mac([2, 1, 0, 0, a, b]), coa(2), HERE, at(1000 + n));
        }
        assert_eq!(d.entries.len(), MAX_DEPARTED);
        d.sweep(OWN, at(4500));
        assert!(d.is_empty());
    }
}
