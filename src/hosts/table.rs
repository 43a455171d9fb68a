//! The hosts that were heard, and their vnets. Bounded.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Bound::{Excluded, Unbounded};
use std::time::Duration;

use super::own::digest_of;
use crate::limiter::TokenBucket;
use crate::security::membership::Seen;
use crate::time::Instant;
use crate::wire::VnetId;
use crate::wire::hello::{Entry, List, Release};
use crate::wire::name::Name;

/// Hosts at most.
pub(super) const MAX_HOSTS: usize = 4096;
/// Entries of one host, and of all.
pub(super) const MAX_ENTRIES_PER_HOST: usize = 4096;
pub(super) const MAX_ENTRIES: usize = 65_536;
/// How long an entry with a right tag is believed although LISTs without one say something else: a host that has left
/// the vnet says so like this, and so does a liar. Meanwhile the host is asked, whose answer proves what it has.
const LINGERS: Duration = Duration::from_secs(600);
/// Answers to one host a second, and at once.
const ANSWERS: (u32, u32) = (1, 4);

/// What the last HELLO of a host said.
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
    /// As the host's last LIST has it.
    pub(super) entry: Entry,
    pub(super) time_ms: u64,
    pub(super) generation: u32,
    /// Whether the host's last LIST of that range has it.
    pub(super) listed: bool,
    /// The last entry with a right tag.
    pub(super) proof: Option<Proved>,
}

/// What an entry with a right tag says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Proved {
    pub(super) longest: u16,
    pub(super) time_ms: u64,
    /// How long it is believed.
    pub(super) until: Instant,
    /// And no longer if LISTs without a right tag leave the vnet out, or say something else of it.
    latest: Instant,
}

impl Proved {
    pub(super) fn new(longest: u16, time_ms: u64, until: Instant, now: Instant) -> Self {
        Self { longest, time_ms, until, latest: now + LINGERS }
    }
}

impl Held {
    /// Whether what is proved is also what the host's last LIST says.
    fn is_settled(&self) -> bool {
        self.proof.is_none_or(|proof| self.listed && proof.time_ms == self.time_ms)
    }
}

/// A host.
#[derive(Debug)]
pub(super) struct Host {
    /// Nothing if only entries with right tags are known.
    pub(super) said: Option<Said>,
    pub(super) addr: SocketAddr,
    pub(super) by_group: Option<Instant>,
    pub(super) by_unicast: Option<Instant>,
    /// How far its clock is ahead of this host's.
    pub(super) ahead_ms: i64,
    /// Whether it says that it hears this host by group.
    pub(super) hears: Option<bool>,
    /// How long it is taken as present.
    pub(super) until: Instant,
    pub(super) seen: Seen,
    pub(super) entries: BTreeMap<VnetId, Held>,
    /// Of those that are listed.
    pub(super) digest: u64,
    /// There was no room for all its entries.
    pub(super) is_cut: bool,
    /// The nonce of its last HELLO to this host, and the one that was repeated when it was last asked.
    pub(super) nonce: u64,
    pub(super) asked_with: u64,
    /// When it is asked for its list, and how often it was in vain.
    pub(super) ask_at: Option<Instant>,
    pub(super) asked: u32,
    pub(super) answers: TokenBucket,
    /// It was sent a nonce.
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

    /// Whether its list is another than the one that is known.
    pub(super) fn lacks_list(&self) -> bool {
        !self.is_cut && self.said.is_some_and(|said| said.digest != self.digest)
    }

    /// Whether it is to be asked for its list.
    pub(super) fn wants_list(&self) -> bool {
        self.lacks_list() || self.entries.values().any(|held| !held.is_settled())
    }

    /// The longest datagram that it takes on a vnet, by its entry with a right tag; or by any, if `takes_all`.
    pub(super) fn takes(&self, vnet: VnetId, takes_all: bool) -> Option<u16> {
        let held = self.entries.get(&vnet)?;
        let proved = held.proof.map(|proof| proof.longest);
        let said = proved.or_else(|| (takes_all && held.listed).then_some(held.entry.longest));
        said.filter(|longest| *longest != 0)
    }

    /// How long an entry with a right tag is believed, if there is one.
    pub(super) fn proved_until(&self) -> Option<Instant> {
        self.entries.values().filter_map(|held| Some(held.proof?.until)).max()
    }

    /// It is as present as it says; entries with right tags are believed for as long as that, or longer.
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

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Table {
    hosts: BTreeMap<Name, Host>,
    /// Entries of all hosts.
    entries: usize,
    /// When something is due: an end, or a question; early rather than late.
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

    /// The first host behind a name.
    pub(super) fn after(&self, name: Name) -> Option<Name> {
        self.hosts.range((Excluded(name), Unbounded)).next().map(|(name, _)| *name)
    }

    /// How many there are behind a name.
    pub(super) fn count_after(&self, name: Name) -> u32 {
        let behind = self.hosts.range((Excluded(name), Unbounded)).count();
        u32::try_from(behind).unwrap_or(u32::MAX)
    }

    /// A host, which is new if it was not known; `None` if there is no room. A host that has proved something
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

    /// A host is gone.
    pub(super) fn remove(&mut self, name: Name) {
        if let Some(host) = self.hosts.remove(&name) {
            self.entries -= host.entries.len();
        }
    }

    /// Enters a LIST: `is_fresh` says whether its time is one that was not received before, `proved` which of
    /// its entries have right tags. Returns how many entries had no room.
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

    /// Something is due then.
    pub(super) fn due(&mut self, at: Instant) {
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }

    /// When something may be due.
    pub(super) const fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Ends what is over. Returns the hosts that are gone, those to be asked, and the vnets that proofs have ended
    /// for.
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

    /// Finds anew when something is due.
    pub(super) fn settle(&mut self) {
        let ends = |host: &Host| {
            let proofs = host.entries.values().filter_map(|held| Some(held.proof?.until));
            proofs.chain([host.until]).chain(host.ask_at).min()
        };
        self.next = self.hosts.values().filter_map(ends).min();
    }
}

/// What a look at all hosts found.
#[derive(Debug, Default)]
pub(super) struct Swept {
    pub(super) gone: Vec<Name>,
    pub(super) ask: Vec<Name>,
    pub(super) vnets: Vec<VnetId>,
}
