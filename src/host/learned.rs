//! MACs behind vifs: a backend started with `--learn` registers the MACs that its guest, a bridge
//! or a router, sends from. To the mapper each is a vif of its own at the same care-of address.
//!
//! varpd holds these MACs as long as the vif's rings run. It remembers a MAC that a newer claim has
//! moved elsewhere for a while, and claims it again when the guest sends from it again. It refuses
//! a MAC that is the own MAC of another vif.
//!
//! All users share the room for these MACs. When the room is full, the user with most MACs yields
//! one to a user with fewer, so that no user can displace those who have fewer.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::mapper::{Bridge, LocalVif, Notice};
use crate::metrics::VarpdCounter;
use crate::time::{Instant, Now};
use crate::wire::control::Event;
use crate::wire::{CareOf, Mac, Stamp, VifKey};

use super::Host;

/// Time for which a backend must not register a refused MAC again, in milliseconds.
const HOLD_MS: u32 = 30_000;
/// Time for which varpd remembers a MAC that is elsewhere.
const MEMORY: Duration = Duration::from_secs(180);

/// A MAC behind a vif.
#[derive(Clone, Copy, Debug)]
pub(super) struct Learned {
    /// The vif.
    pub(super) vif: LocalVif,
    pub(super) mac: Mac,
    /// The user of the vif's backend.
    pub(super) uid: u32,
    /// The stamp of its claim, if it is here.
    pub(super) stamp: Option<Stamp>,
    /// Time at which varpd forgets it, if it is elsewhere.
    pub(super) until: Option<Instant>,
    /// Start of its present state, in milliseconds since 1970.
    pub(super) since_ms: u64,
}

/// All MACs behind vifs, by their number at the mapper.
#[derive(Debug, Default)]
pub(super) struct LearnedTable {
    macs: BTreeMap<LocalVif, Learned>,
    by_vif: BTreeMap<(LocalVif, Mac), LocalVif>,
    /// The MACs of each user, the oldest first.
    by_user: BTreeMap<u32, BTreeSet<LocalVif>>,
    /// The MACs that are elsewhere, by the time at which varpd forgets them.
    ends: BTreeSet<(Instant, LocalVif)>,
}

impl LearnedTable {
    /// The MACs behind a vif.
    pub(super) fn of(&self, vif: LocalVif) -> impl Iterator<Item = (LocalVif, &Learned)> {
        let all = (vif, Mac([0; 6]))..=(vif, Mac([0xff; 6]));
        self.by_vif.range(all).filter_map(|(_, id)| Some((*id, self.macs.get(id)?)))
    }

    fn insert(&mut self, id: LocalVif, learned: Learned) {
        self.by_vif.insert((learned.vif, learned.mac), id);
        self.by_user.entry(learned.uid).or_default().insert(id);
        self.macs.insert(id, learned);
    }

    fn remove(&mut self, id: LocalVif) -> Option<Learned> {
        let learned = self.macs.remove(&id)?;
        self.by_vif.remove(&(learned.vif, learned.mac));
        if let Some(all) = self.by_user.get_mut(&learned.uid) {
            all.remove(&id);
            if all.is_empty() {
                self.by_user.remove(&learned.uid);
            }
        }
        if let Some(until) = learned.until {
            self.ends.remove(&(until, id));
        }
        Some(learned)
    }

    /// Changes the state of a MAC: claimed with `stamp`, or elsewhere and forgotten at `until`.
    fn change(
        &mut self,
        id: LocalVif,
        stamp: Option<Stamp>,
        until: Option<Instant>,
        now: Now,
    ) -> Option<(LocalVif, Mac)> {
        let learned = self.macs.get_mut(&id)?;
        if let Some(before) = std::mem::replace(&mut learned.until, until) {
            self.ends.remove(&(before, id));
        }
        self.ends.extend(until.map(|until| (until, id)));
        (learned.stamp, learned.since_ms) = (stamp, now.wall_ms);
        Some((learned.vif, learned.mac))
    }

    fn find(&self, vif: LocalVif, mac: Mac) -> Option<LocalVif> {
        self.by_vif.get(&(vif, mac)).copied()
    }

    /// The MAC behind a vif that has been elsewhere for longest.
    fn oldest_lost(&self, vif: LocalVif) -> Option<LocalVif> {
        let lost = self.of(vif).filter_map(|(id, learned)| Some((learned.until?, id)));
        lost.min().map(|(_, id)| id)
    }

    /// The MAC to drop so that this user gets room: the oldest of the user who has most, if that
    /// user still has no fewer than this one afterwards.
    fn beyond_share(&self, uid: u32) -> Option<LocalVif> {
        let own = self.by_user.get(&uid).map_or(0, BTreeSet::len);
        let most = self.by_user.values().max_by_key(|all| all.len())?;
        most.first().copied().filter(|_| most.len() > own + 1)
    }

    /// Time at which varpd forgets the next MAC that is elsewhere.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.ends.first().map(|&(until, _)| until)
    }

    fn expired(&self, now: Instant) -> Vec<LocalVif> {
        self.ends.iter().take_while(|&&(until, _)| until <= now).map(|&(_, id)| id).collect()
    }
}

impl Host {
    /// A backend has seen its guest send from these MACs, or has registered them with an earlier
    /// varpd.
    pub(super) fn learn(&mut self, vif: LocalVif, macs: &[(Mac, Option<Stamp>)], now: Now) {
        for &(mac, stamp) in macs {
            if !self.learn_one(vif, mac, stamp, now) {
                self.counters.inc(VarpdCounter::macs_refused);
                self.tell_vif(vif, Event::Refused { mac, hold_ms: HOLD_MS });
            }
            self.drive(now);
        }
    }

    fn learn_one(&mut self, id: LocalVif, mac: Mac, stamp: Option<Stamp>, now: Now) -> bool {
        let Some(vif) = self.registry.get(id).filter(|vif| vif.active) else { return false };
        let (key, coa, peer, own) = (VifKey { mac, ..vif.key }, vif.coa, vif.peer, vif.key.mac);
        let stamp = stamp.filter(|_| vif.brings_stamps);
        // Refused: the vif's own MAC, that of a vif with running rings, and that of another user's
        // vif.
        if mac == own
            || self.registry.is_active(key)
            || self.registry.check(key, peer, now.mono).is_err()
        {
            return false;
        }
        if let Some(known) = self.learned.find(id, mac) {
            // The guest sends from it again, after a newer claim has moved it elsewhere.
            if self.mapper.claim(known).is_none() {
                self.mapper.announce(known, now);
            }
            return true;
        }
        let (count, most) = (self.learned.of(id).count(), self.most_learned(id));
        if count >= most {
            match self.learned.oldest_lost(id) {
                Some(lost) => self.drop_learned(lost, now),
                None => {
                    let beyond = u64::from(most < self.config.limits.learnt_per_vif);
                    self.counters.add(VarpdCounter::macs_beyond, beyond);
                    return false;
                }
            }
        }
        if !self.make_room_for(peer.uid, now) {
            return false;
        }
        let alias = self.registry.next_id();
        let bridge = Bridge { vif: id, mac: own };
        if self.mapper.add_learnt(alias, bridge, key, coa).is_err() {
            return false;
        }
        let since_ms = now.wall_ms;
        let learned = Learned { vif: id, mac, uid: peer.uid, stamp: None, until: None, since_ms };
        self.learned.insert(alias, learned);
        self.counters.inc(VarpdCounter::macs_learnt);
        log::debug!("{key} is behind vif {id:?} at {coa}");
        self.mapper.set_active(alias, true, stamp, now);
        true
    }

    /// Whether there is room for another MAC of this user. Drops a MAC of a user with more, if
    /// necessary.
    fn make_room_for(&mut self, uid: u32, now: Now) -> bool {
        if self.learned.macs.len() < self.config.limits.learnt {
            return true;
        }
        let Some(id) = self.learned.beyond_share(uid) else { return false };
        let Some(&Learned { vif, mac, .. }) = self.learned.macs.get(&id) else { return false };
        self.drop_learned(id, now);
        self.counters.inc(VarpdCounter::macs_refused);
        self.tell_vif(vif, Event::Refused { mac, hold_ms: HOLD_MS });
        true
    }

    /// Most MACs behind a vif: the lower of its backend's limit and the configuration's.
    fn most_learned(&self, id: LocalVif) -> usize {
        let said = self.registry.get(id).map_or(0, |vif| vif.learn.into());
        self.config.limits.learnt_per_vif.min(said)
    }

    /// A vif has another backend, which may learn fewer MACs: drops those beyond its limit.
    pub(super) fn bound_learned(&mut self, id: LocalVif, now: Now) {
        let beyond = self.learned.of(id).skip(self.most_learned(id)).map(|(learned, _)| learned);
        let beyond: Vec<LocalVif> = beyond.collect();
        beyond.into_iter().for_each(|learned| self.drop_learned(learned, now));
    }

    /// These MACs are not behind the vif any more.
    pub(super) fn forget_learned(&mut self, vif: LocalVif, macs: &[Mac], now: Now) {
        for &mac in macs {
            if let Some(id) = self.learned.find(vif, mac) {
                self.drop_learned(id, now);
            }
        }
    }

    /// Gives the MACs behind a vif the vif's new care-of address.
    pub(super) fn move_learned(&mut self, vif: LocalVif, coa: CareOf, now: Now) {
        let ids: Vec<LocalVif> = self.learned.of(vif).map(|(id, _)| id).collect();
        ids.into_iter().for_each(|id| self.mapper.move_vif(id, coa, now));
    }

    /// Drops all MACs behind a vif.
    pub(super) fn clear_learned(&mut self, vif: LocalVif, now: Now) {
        let ids: Vec<LocalVif> = self.learned.of(vif).map(|(id, _)| id).collect();
        ids.into_iter().for_each(|id| self.drop_learned(id, now));
    }

    /// Forgets MACs that have been elsewhere for too long.
    pub(super) fn expire_learned(&mut self, now: Now) {
        for id in self.learned.expired(now.mono) {
            self.drop_learned(id, now);
        }
    }

    fn drop_learned(&mut self, id: LocalVif, now: Now) {
        if self.learned.remove(id).is_some() {
            self.mapper.remove_vif(id, now);
        }
    }

    /// Tells the new backend of a vif the MACs that are claimed behind the vif.
    pub(super) fn tell_learned(&mut self, vif: LocalVif) {
        let claimed = |(_, learned): (_, &Learned)| {
            Some(Event::Claimed { mac: learned.mac, stamp: learned.stamp? })
        };
        let events: Vec<Event> = self.learned.of(vif).filter_map(claimed).collect();
        events.into_iter().for_each(|event| self.tell_vif(vif, event));
    }

    /// Handles a notice of the mapper about a MAC behind a vif.
    pub(super) fn notify_learned(&mut self, id: LocalVif, notice: Notice, now: Now) {
        if let Notice::Refused { .. } = notice {
            return self.refuse_learned(id, notice, now);
        }
        let changed = match notice {
            Notice::Claimed { stamp } => self.learned.change(id, Some(stamp), None, now),
            Notice::Lost { .. } => self.learned.change(id, None, Some(now.mono + MEMORY), now),
            // The mapper sends notices about other MACs to the vif itself.
            Notice::Mapping { .. }
            | Notice::Unresolved { .. }
            | Notice::Invalidate { .. }
            | Notice::Refused { .. } => None,
        };
        let Some((vif, mac)) = changed else { return };
        if let Notice::Lost { coa, .. } = notice {
            self.send_on(vif, mac, coa, now);
        }
        let event = notice.event(mac, self.config.timers.lifetime.duration());
        self.tell_vif(vif, event);
    }

    /// The MAC is the own MAC of another vif: drops it, and tells the backend not to register it
    /// for a while.
    fn refuse_learned(&mut self, id: LocalVif, notice: Notice, now: Now) {
        let Some(Learned { vif, mac, .. }) = self.learned.macs.get(&id).copied() else { return };
        self.drop_learned(id, now);
        self.counters.inc(VarpdCounter::macs_refused);
        let lifetime = self.config.timers.lifetime.duration();
        self.tell_vif(vif, notice.event(mac, lifetime));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: u32 = 0;
    const A: u32 = 1000;
    const B: u32 = 1001;

    fn enter(table: &mut LearnedTable, id: u64, uid: u32) {
        let mac = Mac([2, 0, 0, 0, 0, u8::try_from(id).unwrap()]);
        let learned = Learned {
            vif: LocalVif(u64::from(uid)),
            mac,
            uid,
            stamp: None,
            until: None,
            since_ms: 0,
        };
        table.insert(LocalVif(id), learned);
    }

    #[test]
    fn who_has_most_gives_up_its_oldest_to_who_has_fewer() {
        let mut table = LearnedTable::default();
        assert_eq!(table.beyond_share(A), None, "nobody has any");
        (1..=4).for_each(|id| enter(&mut table, id, A));
        assert_eq!(table.beyond_share(A), None, "nobody has more than A");
        for (id, oldest) in [(5, 1), (6, 2)] {
            assert_eq!(table.beyond_share(B), Some(LocalVif(oldest)));
            table.remove(LocalVif(oldest));
            enter(&mut table, id, B);
        }
        // Two MACs each.
        assert_eq!([A, B].map(|uid| table.beyond_share(uid)), [None; 2]);
        assert_eq!(table.beyond_share(ROOT), Some(LocalVif(5)), "a third has none");
        // A difference of one MAC is no reason to drop any: the MACs would go to and fro.
        table.remove(LocalVif(5));
        assert_eq!(table.beyond_share(B), None);
        for id in [3, 4, 6] {
            table.remove(LocalVif(id));
        }
        assert!(table.by_user.is_empty(), "nothing is left of users who have none");
    }
}
