//! Changes of the knowledge about remote vifs, and the notices of them.

use std::time::Duration;

use super::cache::{Entry, Known, Stored};
use super::interest::Interest;
use super::moves::{LEARNT_WINDOW, TELL_INTERVAL};
use super::notes::Note;
use super::pending::Pending;
use super::timers::Timer;
use super::{Event, Mapper, MapperCounter, Notice};
use crate::time::{Instant, Now};
use crate::wire::varp::Claim;
use crate::wire::{Mac, Stamp, VifKey, VnetId};

impl Mapper {
    /// Forgets cached mappings: all, those of a vnet, those of a MAC. Their users are told.
    /// Returns how many there were.
    pub fn flush(&mut self, vnet: Option<VnetId>, mac: Option<Mac>) -> usize {
        let mut keys = self.cache.keys(vnet);
        keys.retain(|key| mac.is_none_or(|mac| mac == key.mac));
        for key in &keys {
            if let Some(entry) = self.forget(key) {
                self.notify_all(*key, &entry.interest, Notice::Invalidate { mac: key.mac });
            }
        }
        keys.len()
    }

    /// The newest claim to a remote vif, where one is cached.
    pub(super) fn cached_claim(&self, key: &VifKey) -> Option<Claim> {
        self.cache.get(key)?.claim()
    }

    /// Takes an entry out, with its timers.
    pub(super) fn forget(&mut self, key: &VifKey) -> Option<Entry> {
        let entry = self.cache.remove(key)?;
        self.cancel_entry(key, &entry);
        Some(entry)
    }

    fn cancel_entry(&mut self, key: &VifKey, entry: &Entry) {
        self.timers.cancel(entry.expires, Timer::Expire(*key));
        if let Some(at) = entry.overdue {
            self.timers.cancel(at, Timer::Damped(*key));
        }
        if let Some(rival) = &entry.rival {
            self.timers.cancel(rival.ask_at, Timer::Rival(*key));
        }
    }

    /// Puts in an entry for a key that has none.
    pub(super) fn store(&mut self, key: VifKey, entry: Entry) {
        let expires = entry.expires;
        let positive = entry.claim().is_some();
        match self.cache.insert(key, entry, &self.config.limits) {
            Stored::Free => self.timers.set(expires, Timer::Expire(key)),
            Stored::Evicted(victim, evicted) => {
                self.timers.set(expires, Timer::Expire(key));
                self.cancel_entry(&victim, &evicted);
                self.count(MapperCounter::evicted);
                self.event(Event::Evicted { key: victim });
                let notice = Notice::Invalidate { mac: victim.mac };
                self.notify_all(victim, &evicted.interest, notice);
            }
            Stored::Refused if positive => self.count(MapperCounter::uncached),
            Stored::Refused => {}
        }
    }

    /// The lifetime of an entry ended. Silent: the copies that users have end now as well.
    pub(super) fn expire(&mut self, key: VifKey) {
        if let Some(entry) = self.forget(&key).filter(|entry| entry.claim().is_some()) {
            self.count(MapperCounter::expired);
            self.event(Event::Expired { key });
            if let Some((bridge, stamp)) = behind(&entry) {
                self.pending.lose_with(key, bridge, stamp);
            }
            // Who saw a move held back still has the old mapping, and must not keep it.
            if entry.overdue.is_some() {
                self.notify_all(key, &entry.interest, Notice::Invalidate { mac: key.mac });
            }
        }
    }

    /// The owner is found, by an answer or an announcement: those who wait and those who were told
    /// something else hear of it.
    pub(super) fn found(&mut self, key: VifKey, claim: Claim, lifetime: Duration, now: Now) {
        // A vif that runs here and had lost its key to another vif yields to no MAC behind one.
        if !claim.is_own() && self.abandoned(key, now) {
            return;
        }
        self.judge_place(key, claim);
        let pending = self.end_pending(&key);
        let answered = pending.as_ref().map(|p| p.nonce);
        let waiters = pending.map(|p| p.waiters).unwrap_or_default();
        let notice = mapping(key, claim, lifetime);
        if self.cached_claim(&key).is_some() {
            let bound = self.config.limits.interest;
            let users = self.update(key, claim, answered, lifetime, now);
            self.notify_all(key, &waiters.clone().without(&users.unwrap_or_default()), notice);
            if let Some(entry) = self.cache.get_mut(&key) {
                entry.interest.merge(waiters, bound);
            }
            return;
        }
        let mut interest = self.forget(&key).map(|entry| entry.interest).unwrap_or_default();
        interest.merge(waiters, self.config.limits.interest);
        self.count(MapperCounter::resolved);
        self.event(Event::Resolved { key, claim });
        self.notify_all(key, &interest, notice);
        self.remember(key, claim, answered, lifetime, interest, now.mono);
    }

    /// Shows it if a vif is, since now, where no frame can be sent. It is there all the same: its users
    /// hear so, and drop what is for it.
    pub(super) fn judge_place(&mut self, key: VifKey, claim: Claim) {
        let is_new = self.cached_claim(&key).is_none_or(|known| known.coa != claim.coa);
        if let Some(why) = claim.coa.usable_from(self.own.addr.ip()).err().filter(|_| is_new) {
            self.count(MapperCounter::rx_unusable);
            self.event(Event::Unusable { key, claim, why });
        }
    }

    /// Puts in a mapping for a key that has none.
    pub(super) fn remember(
        &mut self,
        key: VifKey,
        claim: Claim,
        answered: Option<u64>,
        lifetime: Duration,
        interest: Interest,
        now: Instant,
    ) {
        let nonce = answered.unwrap_or_else(|| self.nonces.next());
        let known = Known::At { claim, nonce, lifetime };
        self.store(key, Entry::new(known, now, lifetime, interest));
    }

    /// A cached mapping is confirmed, or has a newer claim. Returns its users if they were told now.
    pub(super) fn update(
        &mut self,
        key: VifKey,
        claim: Claim,
        answered: Option<u64>,
        lifetime: Duration,
        now: Now,
    ) -> Option<Interest> {
        let Some(Known::At { claim: old, nonce, .. }) = self.cache.get(&key).map(|e| e.known)
        else {
            return None;
        };
        let known = Known::At { claim, nonce: answered.unwrap_or(nonce), lifetime };
        self.cache.set_known(&key, known);
        let entry = self.cache.get_mut(&key)?;
        entry.since = now.mono;
        entry.disclaimed = entry.disclaimed.filter(|_| !claim.is_own());
        let moved = old.coa != claim.coa;
        if moved {
            entry.moved_at = Some(now.mono);
            entry.moves.record(now.mono, self.config.damping_moves);
        }
        if claim.is_own() {
            self.owner_is_there(key);
        }
        self.set_expiry(key, now.mono + lifetime);
        if !moved {
            return None;
        }
        self.count(MapperCounter::moved);
        self.event(Event::Moved { key, from: old, to: claim });
        self.tell(key, now.mono)
    }

    /// Moves the end of an entry.
    fn set_expiry(&mut self, key: VifKey, at: Instant) {
        let Some(entry) = self.cache.get(&key) else { return };
        self.timers.cancel(entry.expires, Timer::Expire(key));
        self.timers.set(at, Timer::Expire(key));
        self.cache.extend(&key, at);
    }

    /// Tells the users of a mapping that it moved, now or, where it moves all the time, later. Returns those that were
    /// told.
    fn tell(&mut self, key: VifKey, now: Instant) -> Option<Interest> {
        let limit = self.config.damping_moves;
        let entry = self.cache.get_mut(&key)?;
        let is_own = entry.claim().is_some_and(|claim| claim.is_own());
        let (window, interval) = match is_own {
            true => (self.config.damping_window, self.config.damped_interval),
            false => (LEARNT_WINDOW, TELL_INTERVAL),
        };
        let early = now.saturating_since(entry.told) < interval;
        if entry.moves.damped(now, limit, window) && early {
            if entry.overdue.is_none() {
                let at = entry.told + interval;
                entry.overdue = Some(at);
                self.timers.set(at, Timer::Damped(key));
                self.count(MapperCounter::damped_moves);
                if is_own {
                    self.event(Event::Damped { key });
                }
            }
            return None;
        }
        entry.told = now;
        if let Some(at) = entry.overdue.take() {
            self.timers.cancel(at, Timer::Damped(key));
        }
        let remaining = entry.expires.saturating_since(now);
        let (claim, users) = (entry.claim()?, entry.interest.clone());
        self.notify_all(key, &users, mapping(key, claim, remaining));
        Some(users)
    }

    /// The time that a move was held back has passed.
    pub(super) fn tell_late(&mut self, key: VifKey, now: Now) {
        if let Some(entry) = self.cache.get_mut(&key) {
            entry.overdue = None;
            self.tell(key, now.mono);
        }
    }

    /// Removes a resolution, with its timer and its counts.
    pub(super) fn end_pending(&mut self, key: &VifKey) -> Option<Pending> {
        let pending = self.pending.remove(key)?;
        self.timers.cancel(pending.due, Timer::Request(*key));
        if let Some(payer) = self.vifs.get_mut(pending.payer) {
            payer.asking = payer.asking.saturating_sub(1);
        }
        Some(pending)
    }

    /// Remembers a vif that is not owned here any more.
    pub(super) fn note(&mut self, key: VifKey, ours: Claim, moved: Option<Claim>, now: Instant) {
        self.drop_note(&key);
        if self.notes.len() >= self.config.limits.notes {
            let Some(oldest) = self.notes.oldest() else { return };
            self.drop_note(&oldest);
        }
        let until = now + self.config.lifetime;
        self.notes.insert(key, Note::new(ours, moved, now, until));
        self.timers.set(until, Timer::Note(key));
    }

    /// A vif that was here has moved on.
    pub(super) fn note_move(&mut self, key: VifKey, to: Claim, now: Instant) {
        let until = now + self.config.lifetime;
        let Some(note) = self.notes.get_mut(&key) else { return };
        (note.moved, note.moved_at) = (Some(to), Some(now));
        let before = std::mem::replace(&mut note.until, until);
        self.timers.cancel(before, Timer::Note(key));
        self.timers.set(until, Timer::Note(key));
    }

    /// Forgets that a vif was here.
    pub(super) fn drop_note(&mut self, key: &VifKey) {
        if let Some(note) = self.notes.remove(key) {
            self.timers.cancel(note.until, Timer::Note(*key));
            if let Some(at) = note.overdue {
                self.timers.cancel(at, Timer::Left(*key));
            }
        }
    }
}

/// The vif that a mapping's MAC is behind, and the stamp of the mapping.
pub(super) fn behind(entry: &Entry) -> Option<(Mac, Stamp)> {
    let claim = entry.claim()?;
    Some((claim.behind?, claim.stamp))
}

/// The notice to the users of a mapping.
pub(super) fn mapping(key: VifKey, claim: Claim, lifetime: Duration) -> Notice {
    Notice::Mapping { mac: key.mac, coa: claim.coa, stamp: claim.stamp, lifetime }
}
