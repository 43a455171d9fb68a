//! The care-of addresses of the vif's peers, which the backend has learnt from varpd, one entry per MAC.
//!
//! Theory of operation. An entry is in one of three states:
//!
//! | State | Frames | Ends by |
//! |---|---|---|
//! | resolving | wait, bounded | varpd's answer |
//! | resolved | go to the care-of address | its lifetime, unless it is refreshed |
//! | resolved, unusable | are dropped: no frame can be sent to the care-of address | likewise |
//! | unresolved | are dropped | a short hold time, or an announcement |
//!
//! Using an entry in the last third of its lifetime asks varpd, once, to refresh it, so that an
//! established flow never waits. While varpd is away no entry expires: the backend continues with the
//! known addresses, and repeats pending resolutions when varpd is back.
//!
//! The latest event of varpd counts, whatever the stamps: varpd compares claims, and knows which of them
//! are implausible ([`crate::mapper`]).

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::time::Instant;
use crate::wire::{CareOf, Mac};

/// Limit on entries of one queue pair. Beyond it, new destinations are not resolved until old entries expire.
pub const MAX_ENTRIES: usize = 16_384;
/// Limit on entries that are being resolved, which a guest that sends to random addresses can occupy.
pub const MAX_RESOLVING: usize = 256;
/// How long entries that expired while varpd was away remain usable after its return.
const GRACE: Duration = Duration::from_secs(5);
/// Least time between two searches of a full table for expired entries.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug)]
enum State {
    Resolving,
    Resolved {
        coa: CareOf,
        /// Whether frames can be sent there.
        is_usable: bool,
        expires: Instant,
        refresh_from: Instant,
        asked: bool,
    },
    Unresolved {
        until: Instant,
    },
}

/// The decision about a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Send it there.
    To(CareOf),
    /// Let it wait: resolution is in progress.
    Wait,
    /// Drop it: no host has answered for the MAC.
    Unresolved,
    /// Drop it: the MAC's care-of address is unusable.
    Unusable,
    /// Drop it: the table is full.
    Full,
}

/// A request to varpd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// The MAC.
    pub mac: Mac,
    /// Whether the entry exists and needs confirmation.
    pub refresh: bool,
}

/// The result of the last lookup, valid for a while: consecutive frames often have the same destination.
#[derive(Clone, Copy, Debug)]
struct Recent {
    mac: Mac,
    coa: CareOf,
    until: Instant,
}

/// The table.
///
/// ```
/// use std::time::Duration;
/// use vnet::time::Instant;
/// use vnet::tunnel::neighbors::{Lookup, Neighbors};
/// use vnet::wire::{Capabilities, CareOf, EncapKinds, Longest, Mac};
///
/// let (now, mac) = (Instant::ZERO, Mac([2, 0, 0, 0, 0, 1]));
/// let mut neighbors = Neighbors::default();
/// assert_eq!(neighbors.lookup(mac, now), Lookup::Wait);
/// let question = neighbors.questions().next().unwrap();
/// assert_eq!((question.mac, question.refresh), (mac, false));
///
/// // varpd answers.
/// let coa = CareOf {
///     addr: "192.0.2.2:40000".parse().unwrap(),
///     kinds: EncapKinds::UDP,
///     capabilities: Capabilities::NONE,
///     longest: Longest::UNKNOWN,
/// };
/// let own = "192.0.2.1".parse().unwrap();
/// neighbors.handle_mapping(mac, coa, own, Duration::from_secs(30), now);
/// assert_eq!(neighbors.lookup(mac, now), Lookup::To(coa));
/// ```
#[derive(Debug, Default)]
pub struct Neighbors {
    entries: HashMap<Mac, State>,
    recent: Option<Recent>,
    resolving: usize,
    questions: Vec<Question>,
    varpd_away: bool,
    swept: Instant,
}

impl Neighbors {
    #[inline]
    /// The decision about a frame to `mac`. May leave a request in [`Neighbors::questions`].
    pub fn lookup(&mut self, mac: Mac, now: Instant) -> Lookup {
        if let Some(recent) = self.recent
            && recent.mac == mac
            && now < recent.until
        {
            return Lookup::To(recent.coa);
        }
        self.look_up(mac, now)
    }

    fn look_up(&mut self, mac: Mac, now: Instant) -> Lookup {
        match self.entries.get_mut(&mac) {
            Some(State::Resolved { coa, is_usable, expires, refresh_from, asked })
                if now < *expires || self.varpd_away =>
            {
                if now >= *refresh_from && !*asked {
                    *asked = true;
                    self.questions.push(Question { mac, refresh: true });
                }
                if !*is_usable {
                    return Lookup::Unusable;
                }
                let until = if *asked { *expires } else { *refresh_from };
                self.recent = Some(Recent { mac, coa: *coa, until });
                Lookup::To(*coa)
            }
            Some(State::Resolving) => Lookup::Wait,
            Some(State::Unresolved { until }) if now < *until => Lookup::Unresolved,
            _ => self.start_resolving(mac, now),
        }
    }

    fn start_resolving(&mut self, mac: Mac, now: Instant) -> Lookup {
        if self.entries.len() >= MAX_ENTRIES && !self.entries.contains_key(&mac) {
            self.sweep(now);
        }
        if self.resolving >= MAX_RESOLVING || self.entries.len() >= MAX_ENTRIES {
            return Lookup::Full;
        }
        self.set(mac, State::Resolving);
        self.questions.push(Question { mac, refresh: false });
        Lookup::Wait
    }

    fn sweep(&mut self, now: Instant) {
        if now - self.swept < SWEEP_INTERVAL {
            return;
        }
        self.swept = now;
        let away = self.varpd_away;
        self.entries.retain(|_, state| match state {
            State::Resolving => true,
            State::Resolved { expires, .. } => now < *expires || away,
            State::Unresolved { until } => now < *until,
        });
    }

    fn set(&mut self, mac: Mac, state: State) {
        self.recent = None;
        let is_resolving = matches!(state, State::Resolving);
        let was = self.entries.insert(mac, state);
        self.resolving += usize::from(is_resolving);
        self.resolving -= usize::from(matches!(was, Some(State::Resolving)));
    }

    /// Takes the requests that lookups have left since the last call.
    pub fn questions(&mut self) -> impl Iterator<Item = Question> + '_ {
        self.questions.drain(..)
    }

    /// Whether lookups have left requests.
    pub fn has_questions(&self) -> bool {
        !self.questions.is_empty()
    }

    /// Handles a mapping of `mac`, for the vif at `own`. An unrequested mapping does not make the
    /// table grow beyond its limit.
    pub fn handle_mapping(
        &mut self,
        mac: Mac,
        coa: CareOf,
        own: IpAddr,
        lifetime: Duration,
        now: Instant,
    ) {
        if self.entries.len() >= MAX_ENTRIES && !self.entries.contains_key(&mac) {
            return;
        }
        let is_usable = coa.usable_from(own).is_ok();
        let (expires, refresh_from) = (now + lifetime, now + lifetime * 2 / 3);
        let resolved = State::Resolved { coa, is_usable, expires, refresh_from, asked: false };
        self.set(mac, resolved);
    }

    /// Handles a failed resolution of `mac`.
    pub fn handle_unresolved(&mut self, mac: Mac, hold: Duration, now: Instant) {
        if self.entries.contains_key(&mac) {
            self.set(mac, State::Unresolved { until: now + hold });
        }
    }

    /// Keeps entries at an address in use, but from `at` on the next use of each asks varpd.
    pub fn confirm_from(&mut self, addr: SocketAddr, at: Instant) {
        self.recent = None;
        for state in self.entries.values_mut() {
            if let State::Resolved { coa, refresh_from, asked, .. } = state
                && coa.addr == addr
            {
                (*refresh_from, *asked) = (at, false);
            }
        }
    }

    /// Keeps only entries at such addresses.
    pub fn retain(&mut self, mut is_kept: impl FnMut(SocketAddr) -> bool) {
        self.recent = None;
        self.entries.retain(|_, state| match state {
            State::Resolved { coa, .. } => is_kept(coa.addr),
            State::Resolving | State::Unresolved { .. } => true,
        });
    }

    /// Invalidates the entry of `mac`.
    pub fn handle_invalidate(&mut self, mac: Mac) {
        self.recent = None;
        if !matches!(self.entries.get(&mac), Some(State::Resolving)) {
            self.entries.remove(&mac);
        }
    }

    /// Invalidates all entries: frames wait until varpd says again where to send them.
    pub fn invalidate_all(&mut self) {
        self.recent = None;
        self.entries.retain(|_, state| matches!(state, State::Resolving));
    }

    /// Handles a resolution of `mac` that has taken longer than any frame waits: the next frame asks again.
    pub fn give_up(&mut self, mac: Mac) {
        if matches!(self.entries.get(&mac), Some(State::Resolving)) {
            self.entries.remove(&mac);
            self.resolving -= 1;
        }
    }

    /// Handles the loss of varpd: no entry expires until it is back.
    pub fn varpd_left(&mut self) {
        self.varpd_away = true;
    }

    /// Handles the (re)connection to a varpd without knowledge of earlier requests: asks again for pending
    /// resolutions, and for each known entry at its next use, so that varpd reports its changes.
    pub fn varpd_returned(&mut self, now: Instant) {
        self.varpd_away = false;
        self.recent = None;
        self.questions.clear();
        for (&mac, state) in &mut self.entries {
            match state {
                State::Resolving => self.questions.push(Question { mac, refresh: false }),
                State::Resolved { expires, refresh_from, asked, .. } => {
                    *expires = (*expires).max(now + GRACE);
                    *refresh_from = now;
                    *asked = false;
                }
                State::Unresolved { .. } => {}
            }
        }
    }

    /// The care-of address of `mac`, if known.
    pub fn place_of(&self, mac: Mac) -> Option<SocketAddr> {
        match self.entries.get(&mac)? {
            State::Resolved { coa, .. } => Some(coa.addr),
            State::Resolving | State::Unresolved { .. } => None,
        }
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the table is empty.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Capabilities, EncapKinds, Longest};

    const LIFETIME: Duration = Duration::from_secs(30);
    const OWN: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 9));

    fn mac(n: u32) -> Mac {
        let [a, b, c, d] = n.to_be_bytes();
        Mac([2, 0, a, b, c, d])
    }

    fn coa(port: u16) -> CareOf {
        CareOf {
            addr: ([192, 0, 2, 1], port).into(),
            kinds: EncapKinds::UDP,
            capabilities: Capabilities::NONE,
            longest: Longest::UNKNOWN,
        }
    }

    fn at(secs: u64) -> Instant {
        Instant::from_millis(secs * 1000)
    }

    fn questions(neighbors: &mut Neighbors) -> Vec<(Mac, bool)> {
        neighbors.questions().map(|q| (q.mac, q.refresh)).collect()
    }

    #[test]
    fn asks_once_then_uses_the_answer() {
        let mut n = Neighbors::default();
        assert_eq!(n.lookup(mac(1), at(0)), Lookup::Wait);
        assert_eq!(n.lookup(mac(1), at(0)), Lookup::Wait);
        assert_eq!(questions(&mut n), [(mac(1), false)]);
        n.handle_mapping(mac(1), coa(7), OWN, LIFETIME, at(0));
        assert_eq!(n.lookup(mac(1), at(1)), Lookup::To(coa(7)));
        assert!(!n.has_questions());
    }

    #[test]
    fn an_entry_in_use_is_refreshed_before_it_ends_and_only_then() {
        let mut n = Neighbors::default();
        n.handle_mapping(mac(1), coa(7), OWN, LIFETIME, at(0));
        n.lookup(mac(1), at(19));
        assert_eq!(questions(&mut n), []);
        n.lookup(mac(1), at(20));
        n.lookup(mac(1), at(21));
        assert_eq!(questions(&mut n), [(mac(1), true)]);
        n.handle_mapping(mac(1), coa(7), OWN, LIFETIME, at(22));
        assert_eq!(n.lookup(mac(1), at(51)), Lookup::To(coa(7)));
        assert_eq!(n.lookup(mac(1), at(52)), Lookup::Wait, "expired");
    }

    /// A claim of a clock that was days ahead has a higher stamp than the one that replaces it.
    #[test]
    fn what_varpd_says_last_is_right() {
        let mut n = Neighbors::default();
        for port in [7, 8, 9] {
            n.handle_mapping(mac(1), coa(port), OWN, LIFETIME, at(port.into()));
            assert_eq!(n.lookup(mac(1), at(10)), Lookup::To(coa(port)));
        }
    }

    #[test]
    fn an_unusable_place_is_known_but_nothing_is_sent_there() {
        let ip: IpAddr = "2001:db8::1".parse().unwrap();
        let unusable = [
            CareOf { addr: ([192, 0, 2, 1], 0).into(), kinds: EncapKinds::ETHERIP, ..coa(7) },
            CareOf { kinds: EncapKinds::ETHERIP, ..coa(7) },
            CareOf { addr: ([192, 0, 2, 1], 0).into(), ..coa(7) },
            CareOf { addr: ([127, 0, 0, 1], 7).into(), ..coa(7) },
            CareOf { addr: (ip, 7).into(), ..coa(7) },
        ];
        for place in unusable {
            let (mut n, usable) = (Neighbors::default(), coa(8));
            n.handle_mapping(mac(1), place, OWN, LIFETIME, at(0));
            assert_eq!(n.lookup(mac(1), at(1)), Lookup::Unusable);
            assert_eq!(n.lookup(mac(1), at(21)), Lookup::Unusable);
            assert_eq!(questions(&mut n), [(mac(1), true)], "it is asked for like any other");
            n.handle_mapping(mac(1), usable, OWN, LIFETIME, at(22));
            assert_eq!(n.lookup(mac(1), at(22)), Lookup::To(usable));
        }
    }

    #[test]
    fn unresolved_holds_for_a_while_and_an_announcement_ends_it() {
        let mut n = Neighbors::default();
        n.lookup(mac(1), at(0));
        n.handle_unresolved(mac(1), Duration::from_secs(1), at(5));
        assert_eq!(n.lookup(mac(1), at(5)), Lookup::Unresolved);
        assert_eq!(n.lookup(mac(1), at(6)), Lookup::Wait);
        n.handle_unresolved(mac(1), Duration::from_secs(1), at(7));
        n.handle_mapping(mac(1), coa(7), OWN, LIFETIME, at(7));
        assert_eq!(n.lookup(mac(1), at(7)), Lookup::To(coa(7)));
    }

    #[test]
    fn nothing_ends_while_varpd_is_away() {
        let mut n = Neighbors::default();
        n.handle_mapping(mac(1), coa(7), OWN, LIFETIME, at(0));
        n.lookup(mac(2), at(0));
        n.varpd_left();
        questions(&mut n).clear();
        assert_eq!(n.lookup(mac(1), at(1000)), Lookup::To(coa(7)));
        n.varpd_returned(at(1001));
        assert_eq!(questions(&mut n), [(mac(2), false)], "what was resolving is asked again");
        assert_eq!(n.lookup(mac(1), at(1002)), Lookup::To(coa(7)));
        assert_eq!(questions(&mut n), [(mac(1), true)]);
        assert_eq!(n.lookup(mac(1), at(1006)), Lookup::Wait, "not confirmed in time");
    }

    #[test]
    fn sprayed_addresses_stay_within_bounds() {
        let mut n = Neighbors::default();
        n.handle_mapping(mac(0), coa(7), OWN, LIFETIME, at(0));
        for i in 1..100_000 {
            let looked_up = n.lookup(mac(i), at(1));
            assert_eq!(looked_up == Lookup::Wait, i as usize <= MAX_RESOLVING);
        }
        assert_eq!(questions(&mut n).len(), MAX_RESOLVING);
        for i in 1..100_000 {
            n.handle_unresolved(mac(i), Duration::from_secs(1), at(1));
            n.lookup(mac(i + MAX_RESOLVING as u32), at(1));
        }
        assert!(n.len() <= MAX_ENTRIES);
        assert_eq!(n.lookup(mac(0), at(2)), Lookup::To(coa(7)), "others keep what they have");
        assert_eq!(n.lookup(mac(1_000_000), at(3)), Lookup::Wait, "ended entries make room");
    }

    #[test]
    fn giving_up_lets_the_next_frame_ask_again() {
        let mut n = Neighbors::default();
        n.lookup(mac(1), at(0));
        questions(&mut n).clear();
        n.give_up(mac(1));
        assert!(n.is_empty());
        assert_eq!(n.lookup(mac(1), at(1)), Lookup::Wait);
        assert_eq!(questions(&mut n), [(mac(1), false)]);
    }
}
