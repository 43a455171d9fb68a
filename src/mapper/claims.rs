//! Claims of local vifs: made, announced, contended, lost.

use std::time::Duration;

use super::clock::Clock;
use super::mappings::mapping;
use super::notes::Note;
use super::pending::Stage;
use super::timers::Timer;
use super::vifs::{Own, Why};
use super::{Destination, Event, LocalVif, Mapper, MapperCounter, Notice};
use crate::time::{Instant, Now};
use crate::wire::varp::{Body, Claim, Message};
use crate::wire::{Stamp, VifKey, VnetId};

/// The least time between two announcements that answer unproven corrections of one vif.
const CHALLENGE_INTERVAL: Duration = Duration::from_secs(1);
/// The least time between two messages that tell a host that it has won a vif that runs here, too, or that it has it again.
const CONTEST_INTERVAL: Duration = Duration::from_millis(200);
/// Repeats of an announcement before this make up for loss while somebody waits for a guest that arrives.
const EARLY: Duration = Duration::from_millis(50);
/// However it is configured, nothing periodic floods the group.
const LEAST_INTERVAL: Duration = Duration::from_secs(1);

impl Mapper {
    /// The vif's rings run now, or stopped. When they start the vif is claimed: with a new stamp,
    /// since the guest has arrived; or with the stamp of the claim made before a restart of varpd
    /// (`prior`, for the same care-of address), since nothing happened. The answer is
    /// [`Notice::Claimed`] or, where a newer claim is known, [`Notice::Lost`].
    pub fn set_active(&mut self, vif: LocalVif, active: bool, prior: Option<Stamp>, now: Now) {
        let was_in_doubt = self.vifs.get_mut(vif).is_some_and(|v| std::mem::take(&mut v.in_doubt));
        if !active {
            self.deactivate(vif, now);
            return;
        }
        if was_in_doubt && self.vifs.get(vif).is_some_and(|v| v.active && v.own.is_none()) {
            self.watch(vif, now.mono + self.config.lifetime);
        }
        let Some(started) = self.vifs.get_mut(vif).filter(|v| !v.active) else { return };
        started.active = true;
        let (vnet, is_learnt) = (started.key.vnet, started.behind.is_some());
        let prior = prior.filter(|&stamp| stamp != Stamp(0));
        let stamp = match prior {
            Some(prior) => self.clocks.of(vnet).resume(prior, now.wall_ms),
            None => self.tick(vnet, now),
        };
        match prior {
            Some(_) => self.claim_key(vif, stamp, Why::Resumed, now),
            None if is_learnt => self.claim_learnt(vif, stamp, now),
            None => self.claim_key(vif, stamp, Why::Arrived, now),
        }
    }

    /// The guest says that it is here (SEND_RARP, gratuitous ARP): its claim is announced again.
    /// A vif that runs but has lost its key takes it back, unless that happens too often. One behind
    /// a vif was seen again, and is claimed now or soon.
    pub fn announce(&mut self, vif: LocalVif, now: Now) {
        let Some(present) = self.vifs.get(vif).filter(|v| v.active) else { return };
        let (vnet, is_learnt) = (present.key.vnet, present.behind.is_some());
        if present.own.is_some() {
            self.restart_series(vif, now);
        } else if is_learnt {
            let stamp = self.tick(vnet, now);
            self.claim_learnt(vif, stamp, now);
        } else if self.may_reclaim(vif, now.mono) {
            let stamp = self.tick(vnet, now);
            self.claim_key(vif, stamp, Why::Again, now);
        }
    }

    /// Counts a claim of a vif that was not away meanwhile. MACs behind vifs move as they like.
    fn may_reclaim(&mut self, vif: LocalVif, now: Instant) -> bool {
        let (limit, window) = (self.config.damping_moves, self.config.damping_window);
        let Some(state) = self.vifs.get_mut(vif) else { return false };
        if state.behind.is_some() {
            return true;
        }
        let key = state.key;
        let damped = state.moves.damped(now, limit, window);
        if damped {
            self.count(MapperCounter::damped_claims);
            self.event(Event::Damped { key });
        } else {
            state.moves.record(now, limit);
        }
        !damped
    }

    /// Makes the vif the owner of its key, unless a newer claim is known.
    pub(super) fn claim_key(&mut self, vif: LocalVif, stamp: Stamp, why: Why, now: Now) {
        let Some(state) = self.vifs.get(vif) else { return };
        let (key, claim) = (state.key, state.claim_at(stamp));
        let mut stamp = stamp;
        let rival = self.vifs.owner_claim(&key);
        let known = rival.map(|(_, theirs)| theirs).or_else(|| self.cached_claim(&key));
        if let Some(theirs) = known.filter(|theirs| outranks(theirs, &claim, now.wall_ms)) {
            if !theirs.same_owner(&claim) {
                self.count(MapperCounter::losses);
                self.tell_lost(vif, theirs);
                self.watch(vif, now.mono + self.config.lifetime);
                return;
            }
            stamp = self.tick(key.vnet, now);
        }
        self.own_key(vif, stamp, why, now);
    }

    /// Makes the vif the owner of its key, whatever else is known.
    pub(super) fn own_key(&mut self, vif: LocalVif, stamp: Stamp, why: Why, now: Now) {
        let Some(state) = self.vifs.get(vif) else { return };
        let (key, claim) = (state.key, state.claim_at(stamp));
        let rival = self.vifs.owner_claim(&key);
        let mut interest = match rival {
            Some((rival, ours)) => {
                let own = self.end_own(rival);
                if rival != vif {
                    self.lost(rival, ours, claim, now);
                    if ours.is_own() && claim.is_own() {
                        self.cede_along(rival, claim, self.config.lifetime, now);
                    }
                }
                own.map(|own| own.interest).unwrap_or_default()
            }
            None => self.forget(&key).map(|entry| entry.interest).unwrap_or_default(),
        };
        if let Some(pending) = self.end_pending(&key) {
            interest.merge(pending.waiters, self.config.limits.interest);
        }
        if rival.is_none_or(|(rival, _)| rival == vif) {
            self.drop_note(&key);
        }
        self.count(MapperCounter::claims);
        self.event(Event::Claimed { key, claim });
        self.notify(vif, Notice::Claimed { stamp: claim.stamp });
        self.notify_all(key, &interest, mapping(key, claim, self.config.lifetime));
        let nonce = self.nonces.next();
        self.unwatch(vif);
        self.vifs.set_owner(vif, Own { interest, ..Own::new(claim.stamp, nonce, now.mono, why) });
        if claim.is_own() {
            self.owner_is_there(key);
        }
        self.carry_along(key, claim, now);
        self.restart_series(vif, now);
    }

    /// A vif's claim was beaten. A MAC behind a vif that is another's own is behind it no more.
    fn tell_lost(&mut self, vif: LocalVif, theirs: Claim) {
        let is_learnt = self.vifs.get(vif).is_some_and(|state| state.behind.is_some());
        if is_learnt && theirs.is_own() {
            self.refuse(vif);
        } else {
            self.notify(vif, Notice::Lost { stamp: theirs.stamp, coa: theirs.coa });
        }
    }

    /// The rings stopped: the vif owns nothing, and whoever asks its host is told so.
    pub(super) fn deactivate(&mut self, vif: LocalVif, now: Now) {
        let Some(state) = self.vifs.get_mut(vif) else { return };
        state.active = false;
        state.moves = super::Moves::default();
        let (key, claim) = (state.key, state.claim());
        self.unwatch(vif);
        self.unwant(vif);
        let (Some(ours), Some(own)) = (claim, self.end_own(vif)) else { return };
        self.note(key, ours, None, now.mono);
        self.notify_all(key, &own.interest, Notice::Invalidate { mac: key.mac });
        if !self.abandoned(key, now) && own.contested.is_some() {
            // Another host has a guest with this MAC, which is to get the frames from now on.
            self.ask_for(vif, now);
        }
    }

    /// Ends a vif's ownership, with its announcements.
    pub(super) fn end_own(&mut self, vif: LocalVif) -> Option<Own> {
        let own = self.vifs.take_own(vif)?;
        if let Some(due) = own.due {
            self.timers.cancel(due, Timer::Announce(vif));
        }
        Some(own)
    }

    /// A claim was beaten: its vif is told, and the new place is noted.
    pub(super) fn lost(&mut self, vif: LocalVif, ours: Claim, theirs: Claim, now: Now) {
        let Some(state) = self.vifs.get(vif) else { return };
        let (key, conflict) = (state.key, state.runs());
        self.count(MapperCounter::losses);
        if conflict {
            self.count(MapperCounter::conflicts);
            self.event(Event::Conflict { key, ours, theirs, ours_wins: false });
        }
        self.event(Event::Lost { key, ours, theirs });
        self.tell_lost(vif, theirs);
        self.note(key, ours, Some(theirs), now.mono);
        self.watch(vif, now.mono + self.config.lifetime);
    }

    /// Sets when a vif that has lost its key asks for it.
    fn watch(&mut self, vif: LocalVif, at: Instant) {
        self.unwatch(vif);
        if self.config.announce_interval.is_zero() {
            return;
        }
        if let Some(state) = self.vifs.get_mut(vif).filter(|v| v.runs()) {
            state.watch = Some(at);
            self.timers.set(at, Timer::Watch(vif));
        }
    }

    fn unwatch(&mut self, vif: LocalVif) {
        if let Some(at) = self.vifs.get_mut(vif).and_then(|v| v.watch.take()) {
            self.timers.cancel(at, Timer::Watch(vif));
        }
    }

    /// A vif that has lost its key asks whether anybody has it; a mapping in the cache is proof
    /// enough. [`Mapper::abandoned`] is what happens if nobody answers.
    pub(super) fn watch_due(&mut self, vif: LocalVif, now: Now) {
        let Some(key) = self.vifs.get(vif).map(|state| state.key) else { return };
        self.unwatch(vif);
        if let Some(next) = self.next_interval(now.mono) {
            self.watch(vif, next);
        }
        let is_elsewhere = self.cached_claim(&key).is_some_and(|claim| claim.is_own());
        if self.vifs.owner(&key).is_none() && !is_elsewhere {
            self.ask_for(vif, now);
        }
    }

    /// Asks everybody who has the vif's key, unless that is being asked or a limit forbids it.
    pub(super) fn ask_for(&mut self, vif: LocalVif, now: Now) {
        let Some(state) = self.vifs.get(vif) else { return };
        let (key, asker) = (state.key, state.coa);
        if self.pending.get(&key).is_none() && self.may_ask(vif, key) {
            self.begin(vif, key, asker, Stage::Ask, now);
        }
    }

    /// The vif's backend has ended. It may be back in a moment, so its claim stands; but its guest may
    /// as well have been started elsewhere, and been announced while this host was cut off. So
    /// everybody is asked, now and whenever a vif of this host asks for it, until
    /// [`Mapper::set_active`] says how things are; if it runs on this very host as well, it takes the key
    /// back without a question. A vif that has lost its key, before or since, takes
    /// it back no more.
    pub fn doubt(&mut self, vif: LocalVif, now: Now) {
        let Some(state) = self.vifs.get_mut(vif) else { return };
        state.in_doubt = true;
        if state.own.is_none() {
            self.unwatch(vif);
            return;
        }
        let key = state.key;
        if !self.abandoned(key, now) {
            self.ask_for(vif, now);
        }
    }

    /// Nobody answers for a key. If a vif here runs and had lost it, it takes it back.
    pub(super) fn abandoned(&mut self, key: VifKey, now: Now) -> bool {
        let Some(vif) = self.vifs.running(key) else { return false };
        let may = self.may_reclaim(vif, now.mono);
        if may {
            let stamp = self.tick(key.vnet, now);
            self.claim_key(vif, stamp, Why::Again, now);
        }
        may
    }

    /// A claim from elsewhere for a key that is owned here. `confirmed`: it answers our own
    /// announcement, and then was when its owner confirmed it. Returns our claim if that is the
    /// newer one.
    pub(super) fn contend(
        &mut self,
        key: VifKey,
        theirs: Claim,
        confirmed: Option<Instant>,
        lifetime: Duration,
        now: Now,
    ) -> Option<Claim> {
        let (vif, ours) = self.vifs.owner_claim(&key)?;
        if ours.is_own() && !theirs.is_own() {
            self.defend(vif, confirmed.is_some(), now);
            self.contested(vif, key, ours, theirs, now.mono);
            return Some(ours).filter(|_| confirmed.is_none());
        }
        if !outranks(&theirs, &ours, now.wall_ms) {
            // A copy of our own claim is no news, nor is one that our clock says can't be.
            let older = ours.beats(&theirs) && !ours.same_owner(&theirs);
            if older && confirmed.is_none() {
                self.contested(vif, key, ours, theirs, now.mono);
            }
            return older.then_some(ours);
        }
        if theirs.owner().of_host() == self.own.name() {
            // An earlier life of this host, whose clock has been set back since.
            if self.may_reclaim(vif, now.mono) {
                self.reclaim(vif, now);
            }
            return None;
        }
        let state = self.vifs.get(vif)?;
        let own = state.own.as_ref()?;
        let is_of_a_kind = ours.is_own() == theirs.is_own();
        // A MAC behind a vif may have moved on since: only a claim from before ours is due to a clock.
        let grace = if ours.is_own() { self.config.reclaim_grace } else { Duration::ZERO };
        let until = own.since + grace;
        let is_fresh = own.why == Why::Arrived && !state.in_doubt && is_of_a_kind;
        if is_fresh && confirmed.is_some_and(|at| at <= until) {
            self.reclaim(vif, now);
            return None;
        }
        self.cede(vif, theirs, lifetime, now);
        None
    }

    /// Somebody else still has an older claim to a vif: shown if it has been here for a while.
    fn contested(&mut self, vif: LocalVif, key: VifKey, ours: Claim, theirs: Claim, now: Instant) {
        let own = self.vifs.get(vif).and_then(|state| state.own.as_ref());
        if own.is_some_and(|own| now.saturating_since(own.since) >= self.config.reclaim_grace) {
            self.show_rival(vif, key, ours, theirs, now);
        }
    }

    /// Shows once in a lifetime that a vif runs elsewhere, too, under an older claim.
    pub(super) fn show_rival(
        &mut self,
        vif: LocalVif,
        key: VifKey,
        ours: Claim,
        theirs: Claim,
        now: Instant,
    ) {
        let interval = self.config.lifetime;
        let Some(state) = self.vifs.get_mut(vif).filter(|state| state.behind.is_none()) else {
            return;
        };
        let Some(own) = state.own.as_mut() else { return };
        let lately = |at| now.saturating_since(at) < interval;
        if own.contested.is_some_and(lately) {
            return;
        }
        own.contested = Some(now);
        self.count(MapperCounter::conflicts);
        self.event(Event::Conflict { key, ours, theirs, ours_wins: true });
    }

    /// A vif that runs here has lost its key to `theirs`, which was announced just now: its host is told
    /// of our claim, which it beats, since nobody else would tell it that there are two.
    pub(super) fn contest(&mut self, heard: &Message, theirs: Claim, now: Instant) {
        let key = heard.key;
        if self.vifs.running(key).is_none() {
            return;
        }
        let Some(note) = self.notes.get_mut(&key).filter(|note| note.moved == Some(theirs)) else {
            return;
        };
        let ours = note.ours;
        let lately = |at| now.saturating_since(at) < CONTEST_INTERVAL;
        if note.contested.is_some_and(lately) || theirs.same_owner(&ours) {
            return;
        }
        note.contested = Some(now);
        if !self.corrections.take(now) {
            self.count(MapperCounter::limit_corrections);
            return;
        }
        let body = Body::Correction { claim: ours, lifetime_ms: self.lifetime_ms() };
        let to = Destination::Unicast(heard.author.addr);
        self.send(to, key, heard.nonce, false, body);
    }

    /// A host with an older claim to a vif that has stopped here says so, and does not know yet that ours is over: it is
    /// asked for the vif, as by [`Mapper::doubt`]. False if ours was not the newer claim.
    pub(super) fn release(&mut self, key: VifKey, theirs: Claim, now: Instant) -> bool {
        let is_over = |note: &&mut Note| note.moved.is_none() && note.ours.beats(&theirs);
        let Some(note) = self.notes.get_mut(&key).filter(is_over) else { return false };
        let lately = |at| now.saturating_since(at) < CONTEST_INTERVAL;
        if note.contested.is_some_and(lately) {
            return true;
        }
        note.contested = Some(now);
        let asker = note.ours.coa;
        if !self.corrections.take(now) {
            self.count(MapperCounter::limit_corrections);
            return true;
        }
        let body = Body::Request { asker, refresh: false };
        let open = self.pending.get(&key).map(|pending| pending.nonce);
        let nonce = open.unwrap_or_else(|| self.nonces.next());
        self.send(Destination::Group, key, nonce, false, body);
        true
    }

    /// A stamp above all that were seen on the vnet.
    pub(super) fn tick(&mut self, vnet: VnetId, now: Now) -> Stamp {
        self.clocks.of(vnet).tick(now.wall_ms)
    }

    /// Claims again, above all stamps seen.
    pub(super) fn reclaim(&mut self, vif: LocalVif, now: Now) {
        let Some(vnet) = self.vifs.get(vif).map(|state| state.key.vnet) else { return };
        self.count(MapperCounter::reclaims);
        let stamp = self.tick(vnet, now);
        self.claim_key(vif, stamp, Why::Again, now);
    }

    /// A claim from elsewhere for a vif that was owned here until lately.
    pub(super) fn follow(&mut self, key: VifKey, theirs: Claim, now: Now) {
        let Some((ours, moved)) = self.notes.get(&key).map(|note| (note.ours, note.moved)) else {
            return;
        };
        // Whoever has left makes room for any newer claim, also for a learnt one.
        let is_newer = match moved {
            Some(last) => outranks(&theirs, &last, now.wall_ms),
            None => theirs.stamp > ours.stamp && Clock::plausible(theirs.stamp, now.wall_ms),
        };
        if !is_newer || theirs.same_owner(&ours) {
            return;
        }
        self.note_move(key, theirs, now.mono);
        self.event(Event::Lost { key, ours, theirs });
        self.tell_left(key, now.mono);
    }

    /// Tells the vifs that were here until lately where their key is now; the last place is told always.
    pub(super) fn tell_left(&mut self, key: VifKey, now: Instant) {
        let Some(note) = self.notes.get_mut(&key) else { return };
        let Some(theirs) = note.moved else { return };
        let overdue = note.overdue;
        match (note.say(now), overdue) {
            (Ok(()), overdue) => {
                if let Some(at) = overdue {
                    self.timers.cancel(at, Timer::Left(key));
                }
                let left: Vec<LocalVif> = self.vifs.with_key(key).collect();
                left.into_iter().for_each(|vif| self.tell_lost(vif, theirs));
            }
            (Err(due), None) => {
                note.overdue = Some(due);
                self.timers.set(due, Timer::Left(key));
                self.count(MapperCounter::damped_moves);
            }
            (Err(_), Some(_)) => {}
        }
    }

    /// Somebody who can't prove it says that our claim is beaten. An announcement makes the owner
    /// of the newer claim, or anybody who knows it, say so with the nonce in it.
    pub(super) fn challenge(&mut self, vif: LocalVif, now: Instant) {
        let Some(own) = self.vifs.get_mut(vif).and_then(|v| v.own.as_mut()) else { return };
        let lately = |at| now.saturating_since(at) < CHALLENGE_INTERVAL;
        if !own.challenged.is_some_and(lately) {
            own.challenged = Some(now);
            self.send_announcement(vif);
        }
    }

    /// Begins the series of announcements anew.
    fn restart_series(&mut self, vif: LocalVif, now: Now) {
        let Some(own) = self.vifs.get_mut(vif).and_then(|v| v.own.as_mut()) else { return };
        if let Some(due) = own.due.take() {
            self.timers.cancel(due, Timer::Announce(vif));
        }
        (own.series, own.announced) = (now.mono, 0);
        self.announcement_due(vif, now);
    }

    /// Sends the announcement that is due, if one is, and sets the timer for the next.
    pub(super) fn announcement_due(&mut self, vif: LocalVif, now: Now) {
        let offsets = &self.config.announce_offsets;
        let Some(own) = self.vifs.get_mut(vif).and_then(|v| v.own.as_mut()) else { return };
        own.due = None;
        let first = own.announced;
        // After a late turn of the loop, one announcement stands for all that are overdue.
        while offsets.get(own.announced).is_some_and(|&at| own.series + at <= now.mono) {
            own.announced += 1;
        }
        let is_early = |at: &Duration| !at.is_zero() && *at < EARLY;
        let is_repeat =
            own.announced.checked_sub(1).and_then(|n| offsets.get(n)).is_some_and(is_early);
        while own.why == Why::Resumed && offsets.get(own.announced).is_some_and(is_early) {
            own.announced += 1;
        }
        let in_series = offsets.get(own.announced).map(|&at| own.series + at);
        let is_due = own.announced > first || first == offsets.len();
        if is_due && self.may_announce(vif, is_repeat, now.mono) {
            self.send_announcement(vif);
        }
        let next = in_series.or_else(|| self.next_interval(now.mono));
        let own = self.vifs.get_mut(vif).and_then(|v| v.own.as_mut());
        if let (Some(own), Some(at)) = (own, next) {
            own.due = Some(at);
            self.timers.set(at, Timer::Announce(vif));
        }
    }

    /// Whether a vif, with the MACs behind it, has not announced itself too often of late. A guest can
    /// make its vif do so, and every host of the segment hears it. Early repeats leave nearly all of what
    /// is possible at once to MACs that are announced for the first time.
    fn may_announce(&mut self, vif: LocalVif, is_early_repeat: bool, now: Instant) -> bool {
        let payer = self.vifs.get(vif).and_then(|v| v.behind).map_or(vif, |bridge| bridge.vif);
        let may = self.vifs.get_mut(payer).is_some_and(|payer| match is_early_repeat {
            true => payer.announcing.take_if_idle(now),
            false => payer.announcing.take(now),
        });
        if !may {
            self.count(MapperCounter::limit_announces);
        }
        may
    }

    /// When something that is done every few minutes is due next, if it is done at all.
    fn next_interval(&mut self, now: Instant) -> Option<Instant> {
        let interval = self.config.announce_interval;
        if interval.is_zero() {
            return None;
        }
        let quarter = u64::try_from(interval.as_micros() / 4).unwrap_or(u64::MAX);
        let jitter = Duration::from_micros(self.nonces.below(quarter));
        Some(now + interval.max(LEAST_INTERVAL) + jitter)
    }

    fn send_announcement(&mut self, vif: LocalVif) {
        let Some((key, claim, own)) =
            self.vifs.get(vif).and_then(|v| Some((v.key, v.claim()?, v.own.as_ref()?)))
        else {
            return;
        };
        let (nonce, lifetime_ms) = (own.nonce, self.lifetime_ms());
        let body = Body::Announce { claim, lifetime_ms };
        self.send(Destination::Group, key, nonce, true, body);
    }
}

/// Whether `a` wins over `b`: own claims above learnt ones, and among those of a kind an implausible claim
/// never beats a plausible one; see [`Clock`].
pub(super) fn outranks(a: &Claim, b: &Claim, wall_ms: u64) -> bool {
    if a.is_own() != b.is_own() {
        return a.is_own();
    }
    let plausible = |claim: &Claim| Clock::plausible(claim.stamp, wall_ms);
    match (plausible(a), plausible(b)) {
        (true, false) => true,
        (false, true) => false,
        _ => a.beats(b),
    }
}
