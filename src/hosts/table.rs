//! The other hosts and their vnets, in bounded memory.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Bound::{Excluded, Unbounded};
use std::time::Duration;

use super::own::digest_of;
use crate::limiter::TokenBucket;
use crate::security::membership::Seen;
use crate::time::Instant;
use crate::wire::VnetId;
use crate::wire::hello::{Entry, Flags, List, Release};
use crate::wire::name::Name;

/// Limit on hosts.
pub(super) const MAX_HOSTS: usize = 4096;
/// Limits on the entries of one host, and of all together.
pub(super) const MAX_ENTRIES_PER_HOST: usize = 4096;
pub(super) const MAX_ENTRIES: usize = 65_536;
/// Time for which an entry with a right tag is believed although LISTs without one contradict it: a host that has left
/// the vnet sends such LISTs, and so does a forger. Meanwhile this host asks that host, whose answer proves its entries.
const LINGERS: Duration = Duration::from_secs(600);
/// Limit on answers to one host: per second, and burst.
const ANSWERS: (u32, u32) = (1, 4);

/// The contents of a host's last HELLO.
#[derive(Clone, Copy, Debug)]
pub(super) struct Said {
    pub(super) release: Release,
    pub(super) vifs: u32,
    pub(super) digest: u64,
    pub(super) generation: u32,
    pub(super) group: Option<SocketAddr>,
}

/// A vnet of a host.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    /// The entry in the host's last LIST.
    pub(super) entry: Entry,
    pub(super) time_ms: u64,
    pub(super) generation: u32,
    /// Whether the host's last LIST of that range contains it.
    pub(super) listed: bool,
    /// The last entry with a right tag.
    pub(super) proof: Option<Proved>,
}

/// The contents of an entry with a right tag.
#[derive(Clone, Copy, Debug)]
pub(super) struct Proved {
    pub(super) longest: u16,
    pub(super) time_ms: u64,
    /// Time until which it is believed.
    pub(super) until: Instant,
    /// An earlier end, if LISTs without a right tag omit or contradict it.
    latest: Instant,
}

impl Proved {
    pub(super) fn new(longest: u16, time_ms: u64, until: Instant, now: Instant) -> Self {
        Self { longest, time_ms, until, latest: now + LINGERS }
    }
}

impl Held {
    /// Whether the entry in the host's last LIST has a right tag.
    pub(super) fn is_proved(&self) -> bool {
        self.proof.is_some_and(|proof| proof.time_ms == self.time_ms)
    }

    /// Whether the proved entry agrees with the host's last LIST.
    fn is_settled(&self) -> bool {
        self.proof.is_none() || self.listed && self.is_proved()
    }
}

/// A host.
#[derive(Debug)]
pub(super) struct Host {
    /// `None` if only entries with right tags are known.
    pub(super) said: Option<Said>,
    pub(super) addr: SocketAddr,
    pub(super) by_group: Option<Instant>,
    pub(super) by_unicast: Option<Instant>,
    /// By how many milliseconds its clock is ahead of this host's.
    pub(super) ahead_ms: i64,
    /// Whether it says that it hears this host by multicast.
    pub(super) hears: Option<bool>,
    /// Time until which it counts as present.
    pub(super) until: Instant,
    pub(super) seen: Seen,
    /// The time of its last answer to a question of this host; 0 before the first.
    pub(super) answered_ms: u64,
    pub(super) entries: BTreeMap<VnetId, Held>,
    /// Of those that are listed.
    pub(super) digest: u64,
    /// Whether some of its entries found no room.
    pub(super) is_cut: bool,
    /// The nonce of its last HELLO to this host, and the nonce that this host repeated in its last question.
    pub(super) nonce: u64,
    pub(super) asked_with: u64,
    /// Time of the next question for its list, and number of questions in vain.
    pub(super) ask_at: Option<Instant>,
    pub(super) asked: u32,
    pub(super) answers: TokenBucket,
    /// Whether this host has sent it a nonce.
    pub(super) has_nonce: bool,
}

impl Host {
    fn new(addr: SocketAddr, until: Instant) -> Self {
        let (per_second, burst) = ANSWERS;
        Self {
            said: None,
            addr,
            by_group: None,
            by_unicast: None,
            ahead_ms: 0,
            hears: None,
            until,
            seen: Seen::default(),
            answered_ms: 0,
            entries: BTreeMap::new(),
            digest: digest_of(std::iter::empty()),
            is_cut: false,
            nonce: 0,
            asked_with: 0,
            ask_at: None,
            asked: 0,
            answers: TokenBucket::new(per_second, burst),
            has_nonce: false,
        }
    }

    /// The flag that tells it whether it was heard by group.
    pub(super) const fn heard(&self) -> Flags {
        if self.by_group.is_some() { Flags::HEARD } else { Flags::NONE }
    }

    /// Whether its list differs from the one that this host knows.
    pub(super) fn lacks_list(&self) -> bool {
        !self.is_cut && self.said.is_some_and(|said| said.digest != self.digest)
    }

    /// Whether this host has to ask it for its list.
    pub(super) fn wants_list(&self) -> bool {
        self.lacks_list() || self.entries.values().any(|held| !held.is_settled())
    }

    /// The longest datagram that it takes on a vnet, by its entry with a right tag, or by any entry if `takes_all`.
    pub(super) fn takes(&self, vnet: VnetId, takes_all: bool) -> Option<u16> {
        let held = self.entries.get(&vnet)?;
        let proved = held.proof.map(|proof| proof.longest);
        let said = proved.or_else(|| (takes_all && held.listed).then_some(held.entry.longest));
        said.filter(|longest| *longest != 0)
    }

    /// Time until which an entry with a right tag is believed, if there is one.
    pub(super) fn proved_until(&self) -> Option<Instant> {
        self.entries.values().filter_map(|held| Some(held.proof?.until)).max()
    }

    /// Renews its lifetime to what its HELLO says, and that of its entries with right tags to at least as much.
    pub(super) fn stay(&mut self, until: Instant) {
        for held in self.entries.values_mut() {
            let is_settled = held.is_settled();
            if let Some(proof) = &mut held.proof {
                let until = if is_settled { until } else { until.min(proof.latest) };
                proof.until = proof.until.max(until);
            }
        }
        self.until = self.proved_until().map_or(until, |proved| proved.max(until));
    }

    fn redigest(&mut self) {
        let listed = self.entries.values().filter(|held| held.listed);
        self.digest = digest_of(listed.map(|held| &held.entry));
    }
}

/// All hosts.
#[derive(Debug, Default)]
pub(super) struct Table {
    hosts: BTreeMap<Name, Host>,
    /// Number of entries of all hosts.
    entries: usize,
    /// Time of the next end or question, or earlier.
    next: Option<Instant>,
}

impl Table {
    pub(super) fn len(&self) -> usize {
        self.hosts.len()
    }

    #[cfg(test)]
    pub(super) fn entries(&self) -> usize {
        self.entries
    }

    pub(super) fn get(&self, name: Name) -> Option<&Host> {
        self.hosts.get(&name)
    }

    pub(super) fn get_mut(&mut self, name: Name) -> Option<&mut Host> {
        self.hosts.get_mut(&name)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Name, &Host)> {
        self.hosts.iter().map(|(name, host)| (*name, host))
    }

    /// The first host after a name.
    pub(super) fn after(&self, name: Name) -> Option<Name> {
        self.hosts.range((Excluded(name), Unbounded)).next().map(|(name, _)| *name)
    }

    /// Number of hosts after a name.
    pub(super) fn count_after(&self, name: Name) -> u32 {
        let behind = self.hosts.range((Excluded(name), Unbounded)).count();
        u32::try_from(behind).unwrap_or(u32::MAX)
    }

    /// A host's record, which is made if there is none; `None` if there is no room. A host that has proved an entry
    /// takes the place of one that has not.
    pub(super) fn enter(
        &mut self,
        name: Name,
        addr: SocketAddr,
        until: Instant,
        is_proved: bool,
    ) -> Option<&mut Host> {
        let is_new = !self.hosts.contains_key(&name);
        if is_new && self.hosts.len() >= MAX_HOSTS {
            let mut unproved = self.hosts.iter().filter(|(_, host)| host.proved_until().is_none());
            let first = unproved.next().map(|(name, _)| *name).filter(|_| is_proved)?;
            self.remove(first);
        }
        if is_new {
            self.due(until);
        }
        Some(self.hosts.entry(name).or_insert_with(|| Host::new(addr, until)))
    }

    /// Removes a host.
    pub(super) fn remove(&mut self, name: Name) {
        if let Some(host) = self.hosts.remove(&name) {
            self.entries -= host.entries.len();
        }
    }

    /// Enters a LIST. `is_fresh`: its time was not received before. `proved`: which of its entries have right tags.
    /// Returns the number of entries for which there was no room.
    pub(super) fn list(
        &mut self,
        name: Name,
        (list, time_ms, generation): (&List<'_>, u64, u32),
        is_fresh: bool,
        proved: &BTreeMap<VnetId, bool>,
        now: Instant,
    ) -> usize {
        let Some(host) = self.hosts.get_mut(&name) else { return 0 };
        let others = self.entries - host.entries.len();
        if is_fresh {
            for held in host.entries.range_mut(list.first..=list.last) {
                held.1.listed = false;
            }
        }
        let mut cut = 0;
        for entry in list.entries.iter() {
            let is_proved = match proved.get(&entry.vnet) {
                // Its tag is wrong.
                Some(false) => continue,
                Some(true) => true,
                None => false,
            };
            let is_known = host.entries.contains_key(&entry.vnet);
            let count = host.entries.len();
            if !is_known && (count >= MAX_ENTRIES_PER_HOST || others + count >= MAX_ENTRIES) {
                cut += 1;
                continue;
            }
            let mut new = Held { entry, time_ms, generation, listed: true, proof: None };
            let known = host.entries.get(&entry.vnet);
            let proof = known.and_then(|held| held.proof);
            if is_proved && proof.is_none_or(|proof| proof.time_ms < time_ms) {
                new.proof = Some(Proved::new(entry.longest, time_ms, host.until, now));
            } else if is_fresh {
                new.proof = proof;
            } else {
                continue;
            }
            host.entries.insert(entry.vnet, new);
        }
        host.entries.retain(|_, held| held.listed || held.proof.is_some());
        self.entries = others + host.entries.len();
        host.is_cut |= cut > 0;
        host.redigest();
        if !host.wants_list() {
            (host.ask_at, host.asked) = (None, 0);
        }
        cut
    }

    /// Schedules an end or a question.
    pub(super) fn due(&mut self, at: Instant) {
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }

    /// Time at which something may be due.
    pub(super) const fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Removes hosts and proofs that have expired. Returns the hosts that are gone, the hosts to ask, and the vnets
    /// whose proofs have expired.
    pub(super) fn sweep(&mut self, now: Instant) -> Swept {
        let mut swept = Swept::default();
        for (name, host) in &mut self.hosts {
            for (vnet, held) in &mut host.entries {
                if held.proof.is_some_and(|proof| proof.until <= now) {
                    held.proof = None;
                    swept.vnets.push(*vnet);
                }
            }
            let before = host.entries.len();
            host.entries.retain(|_, held| held.listed || held.proof.is_some());
            self.entries -= before - host.entries.len();
            if host.until <= now {
                swept.gone.push(*name);
            } else if host.ask_at.is_some_and(|at| at <= now) {
                swept.ask.push(*name);
            }
        }
        for name in &swept.gone {
            let host = self.hosts.get(name);
            swept.vnets.extend(host.into_iter().flat_map(|host| host.entries.keys()));
            self.remove(*name);
        }
        self.next = None;
        swept
    }

    /// Computes the time of the next end or question again.
    pub(super) fn settle(&mut self) {
        let ends = |host: &Host| {
            let proofs = host.entries.values().filter_map(|held| Some(held.proof?.until));
            proofs.chain([host.until]).chain(host.ask_at).min()
        };
        self.next = self.hosts.values().filter_map(ends).min();
    }
}

/// Result of a search through all hosts.
#[derive(Debug, Default)]
pub(super) struct Swept {
    pub(super) gone: Vec<Name>,
    pub(super) ask: Vec<Name>,
    pub(super) vnets: Vec<VnetId>,
}
