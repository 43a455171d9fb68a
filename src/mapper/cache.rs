//! The bounded cache of remote vifs: their places, or that no host answered.
//!
//! Limits are fair between vnets. A vnet at its limit makes room among its own entries, those
//! nearest to their end first. If the whole cache is full, a vnet that has its share (the whole
//! divided by the vnets present) does the same; a vnet with less takes room from the largest. So
//! each vnet keeps its share, whatever the guests of another do.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeBounds;
use std::time::Duration;

use super::config::Limits;
use super::interest::Interest;
use super::moves::Moves;
use super::rivals::Rival;
use crate::time::Instant;
use crate::wire::varp::Claim;
use crate::wire::{Mac, Stamp, VifKey, VnetId};

/// The knowledge about a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// The vif's owner.
    At {
        /// Its claim.
        claim: Claim,
        /// Of the question that was answered last: an answer that comes late still counts.
        nonce: u64,
        /// How long the claim could be believed when it was last confirmed.
        lifetime: Duration,
    },
    /// No host answered.
    Nobody,
}

/// One entry.
#[derive(Debug)]
pub(super) struct Entry {
    /// An owner stays one until the entry is taken out; changed by [`Cache::set_known`] only.
    pub(super) known: Known,
    /// Since when this is known.
    pub(super) since: Instant,
    /// Until when; changed by [`Cache::extend`] only.
    pub(super) expires: Instant,
    /// Who was told.
    pub(super) interest: Interest,
    /// When the owner changed.
    pub(super) moves: Moves,
    /// When the users were last told of a move.
    pub(super) told: Instant,
    /// When they will be told of one that was held back.
    pub(super) overdue: Option<Instant>,
    /// When a host with an older claim was last corrected.
    pub(super) corrected: Option<Instant>,
    /// When the owner changed last.
    pub(super) moved_at: Option<Instant>,
    /// A learnt claim, while an own one holds.
    pub(super) rival: Option<Rival>,
    /// The stamp of the own claim that was given up for the learnt one which holds.
    pub(super) disclaimed: Option<Stamp>,
    /// When the owner's host was last asked because of a contradiction.
    pub(super) doubted: Option<Instant>,
}

impl Entry {
    pub(super) fn new(known: Known, now: Instant, lifetime: Duration, interest: Interest) -> Self {
        Self {
            known,
            since: now,
            expires: now + lifetime,
            interest,
            moves: Moves::default(),
            told: now,
            overdue: None,
            corrected: None,
            moved_at: None,
            rival: None,
            disclaimed: None,
            doubted: None,
        }
    }

    /// The owner's claim, if there is an owner.
    pub(super) fn claim(&self) -> Option<Claim> {
        match self.known {
            Known::At { claim, .. } => Some(claim),
            Known::Nobody => None,
        }
    }
}

/// What became of an insertion.
#[derive(Debug)]
pub(super) enum Stored {
    /// There was room.
    Free,
    /// Another entry made room.
    Evicted(VifKey, Box<Entry>),
    /// There was no room, and nothing may make any.
    Refused,
}

/// The cache.
#[derive(Debug, Default)]
pub(super) struct Cache {
    entries: BTreeMap<VifKey, Entry>,
    /// The entries of each vnet in the order of their ends. No vnet in it is empty.
    by_vnet: BTreeMap<VnetId, BTreeSet<(Instant, Mac)>>,
    /// How many entries of each vnet name an owner.
    known: BTreeMap<VnetId, usize>,
    /// The MACs that are behind each vif.
    behind: BTreeSet<(VifKey, Mac)>,
}

impl Cache {
    pub(super) fn get(&self, key: &VifKey) -> Option<&Entry> {
        self.entries.get(key)
    }

    pub(super) fn get_mut(&mut self, key: &VifKey) -> Option<&mut Entry> {
        self.entries.get_mut(key)
    }

    /// The entries whose keys are in this range.
    pub(super) fn range(
        &self,
        keys: impl RangeBounds<VifKey>,
    ) -> impl Iterator<Item = (&VifKey, &Entry)> {
        self.entries.range(keys)
    }

    /// Number of owners known on a vnet.
    pub(super) fn known_on(&self, vnet: VnetId) -> usize {
        self.known.get(&vnet).copied().unwrap_or(0)
    }

    /// Number of entries.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    fn vnet_len(&self, vnet: VnetId) -> usize {
        self.by_vnet.get(&vnet).map_or(0, BTreeSet::len)
    }

    /// The keys of a vnet, or all.
    pub(super) fn keys(&self, vnet: Option<VnetId>) -> Vec<VifKey> {
        let low = VifKey { vnet: vnet.unwrap_or(VnetId::MIN), mac: Mac([0; 6]) };
        let all = self.entries.range(low..).map(|(key, _)| *key);
        all.take_while(|key| vnet.is_none_or(|v| v == key.vnet)).collect()
    }

    /// Puts in an entry for a key that has none. A negative entry never makes another go.
    pub(super) fn insert(&mut self, key: VifKey, entry: Entry, limits: &Limits) -> Stored {
        let full = self.vnet_len(key.vnet) >= limits.entries_per_vnet
            || self.entries.len() >= limits.entries;
        let evicted = match full {
            true if entry.known == Known::Nobody => return Stored::Refused,
            true => match self.victim(key.vnet, limits).and_then(|k| Some((k, self.remove(&k)?))) {
                Some(evicted) => Some(evicted),
                None => return Stored::Refused,
            },
            false => None,
        };
        self.by_vnet.entry(key.vnet).or_default().insert((entry.expires, key.mac));
        if entry.claim().is_some() {
            *self.known.entry(key.vnet).or_default() += 1;
        }
        self.behind.extend(bridge(key.vnet, &entry).map(|bridge| (bridge, key.mac)));
        self.entries.insert(key, entry);
        evicted.map_or(Stored::Free, |(key, entry)| Stored::Evicted(key, Box::new(entry)))
    }

    /// Which entry makes room for one of `vnet`.
    fn victim(&self, vnet: VnetId, limits: &Limits) -> Option<VifKey> {
        let own = self.vnet_len(vnet);
        let vnets = self.by_vnet.len() + usize::from(own == 0);
        let has_share = own >= limits.entries_per_vnet || own >= limits.entries / vnets.max(1);
        let from = if has_share && own > 0 {
            vnet
        } else {
            *self.by_vnet.iter().max_by_key(|(_, set)| set.len())?.0
        };
        let &(_, mac) = self.by_vnet.get(&from)?.first()?;
        Some(VifKey { vnet: from, mac })
    }

    /// Takes an entry out.
    pub(super) fn remove(&mut self, key: &VifKey) -> Option<Entry> {
        let entry = self.entries.remove(key)?;
        if let Some(bridge) = bridge(key.vnet, &entry) {
            self.behind.remove(&(bridge, key.mac));
        }
        if entry.claim().is_some()
            && let Some(known) = self.known.get_mut(&key.vnet)
        {
            *known -= 1;
            if *known == 0 {
                self.known.remove(&key.vnet);
            }
        }
        if let Some(set) = self.by_vnet.get_mut(&key.vnet) {
            set.remove(&(entry.expires, key.mac));
            if set.is_empty() {
                self.by_vnet.remove(&key.vnet);
            }
        }
        Some(entry)
    }

    /// Changes what is known of an owner. Who was nobody can't become one.
    pub(super) fn set_known(&mut self, key: &VifKey, known: Known) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        if let Some(bridge) = bridge(key.vnet, entry) {
            self.behind.remove(&(bridge, key.mac));
        }
        entry.known = known;
        self.behind.extend(bridge(key.vnet, entry).map(|bridge| (bridge, key.mac)));
    }

    /// The MACs that are behind a vif.
    pub(super) fn behind(&self, bridge: VifKey) -> Vec<VifKey> {
        let all = (bridge, Mac([0; 6]))..=(bridge, Mac([0xff; 6]));
        self.behind.range(all).map(|(_, mac)| VifKey { mac: *mac, ..bridge }).collect()
    }

    /// Moves the end of an entry.
    pub(super) fn extend(&mut self, key: &VifKey, expires: Instant) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        if let Some(set) = self.by_vnet.get_mut(&key.vnet) {
            set.remove(&(entry.expires, key.mac));
            set.insert((expires, key.mac));
        }
        entry.expires = expires;
    }
}

/// The vif that an entry's MAC is behind, if its claim is a learnt one.
fn bridge(vnet: VnetId, entry: &Entry) -> Option<VifKey> {
    Some(VifKey { vnet, mac: entry.claim()?.behind? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::name::Realm;
    use crate::wire::{Capabilities, CareOf, EncapKinds, Longest, Stamp};

    fn key(vnet: u32, mac: u8) -> VifKey {
        VifKey { vnet: VnetId::new(vnet).unwrap(), mac: Mac([2, 0, 0, 0, 0, mac]) }
    }

    fn entry(expires_ms: u64) -> Entry {
        let coa = CareOf {
            addr: "192.0.2.1:5".parse().unwrap(),
            kinds: EncapKinds::UDP,
            capabilities: Capabilities::NONE,
            longest: Longest::UNKNOWN,
        };
        let claim = Claim { stamp: Stamp(1), coa, realm: Realm(0), behind: None };
        let lifetime = Duration::from_millis(expires_ms);
        let known = Known::At { claim, nonce: 1, lifetime };
        Entry::new(known, Instant::ZERO, lifetime, Interest::default())
    }

    fn limits(entries: usize, entries_per_vnet: usize) -> Limits {
        Limits { entries, entries_per_vnet, ..Limits::default() }
    }

    #[test]
    fn a_full_vnet_evicts_its_own_entry_nearest_to_its_end() {
        let (mut cache, limits) = (Cache::default(), limits(100, 2));
        cache.insert(key(2, 9), entry(1), &limits);
        cache.insert(key(3, 1), entry(500), &limits);
        cache.insert(key(3, 2), entry(400), &limits);
        cache.extend(&key(3, 1), Instant::from_millis(300));
        let Stored::Evicted(evicted, _) = cache.insert(key(3, 3), entry(600), &limits) else {
            panic!("something must go")
        };
        assert_eq!(evicted, key(3, 1));
        assert_eq!(cache.keys(None), [key(2, 9), key(3, 2), key(3, 3)]);
        assert_eq!(cache.keys(VnetId::new(3)), [key(3, 2), key(3, 3)]);
    }

    #[test]
    fn a_full_cache_leaves_every_vnet_its_share() {
        let (mut cache, limits) = (Cache::default(), limits(10, 10));
        for mac in 0..10 {
            cache.insert(key(2, mac), entry(1000 + u64::from(mac)), &limits);
        }
        // A vnet below its share takes from the largest ...
        for mac in 0..20 {
            cache.insert(key(3, mac), entry(1), &limits);
            assert_eq!(cache.len(), 10);
        }
        // ... until it has its share, and from then on only from itself.
        assert_eq!(cache.keys(VnetId::new(2)).len(), 5);
        assert_eq!(cache.keys(VnetId::new(3)).len(), 5);
    }

    #[test]
    fn a_negative_entry_never_evicts() {
        let (mut cache, limits) = (Cache::default(), limits(1, 1));
        let negative = || {
            Entry::new(Known::Nobody, Instant::ZERO, Duration::from_secs(1), Interest::default())
        };
        assert!(matches!(cache.insert(key(2, 1), negative(), &limits), Stored::Free));
        assert!(matches!(cache.insert(key(2, 2), negative(), &limits), Stored::Refused));
        assert!(matches!(cache.insert(key(2, 3), entry(5), &limits), Stored::Evicted(..)));
        assert!(cache.get(&key(2, 3)).is_some());
    }

    #[test]
    fn a_cache_without_room_refuses() {
        let (mut cache, limits) = (Cache::default(), limits(0, 10));
        assert!(matches!(cache.insert(key(2, 1), entry(5), &limits), Stored::Refused));
        assert_eq!(cache.len(), 0);
    }
}
