//! Resolution: questions of local vifs, and the requests to other hosts.

use super::along::VOUCH_TIMEOUT;
use super::cache::{Entry, Known};
use super::interest::Interest;
use super::mappings::{behind, mapping};
use super::pending::{Pending, Stage};
use super::rivals::{INTERVAL, QUESTIONS};
use super::timers::Timer;
use super::{Destination, Event, LocalVif, Mapper, MapperCounter, Notice};
use crate::time::Now;
use crate::wire::varp::{Author, Body, Claim};
use crate::wire::{CareOf, Mac, VifKey, VnetId};

impl Mapper {
    /// A local vif asks for a MAC on its vnet. It is told [`Notice::Mapping`] or
    /// [`Notice::Unresolved`], at once or when the answer is there. With `refresh` it says that it
    /// uses a mapping that ends soon: the owner is asked to confirm, and the mapping holds
    /// meanwhile.
    pub fn resolve(&mut self, vif: LocalVif, mac: Mac, refresh: bool, now: Now) {
        let Some(asking) = self.vifs.get(vif) else { return };
        let (key, asker) = (VifKey { vnet: asking.key.vnet, mac }, asking.coa);
        self.count(MapperCounter::resolves);
        if !mac.is_individual() {
            let hold = self.config.negative_lifetime;
            self.notify(vif, Notice::Unresolved { mac, hold });
            return;
        }
        if self.answer_locally(vif, key, now) || self.answer_cached(vif, key, asker, refresh, now) {
            return;
        }
        let bound = self.config.limits.interest;
        if let Some(pending) = self.pending.get_mut(&key) {
            pending.waiters.add(vif, bound);
            self.count(MapperCounter::resolve_shared);
            return;
        }
        if self.may_ask(vif, key) && self.may_ask_now(vif, now) {
            self.begin(vif, key, asker, Stage::Ask, now);
        } else {
            let hold = self.config.limit_hold;
            self.notify(vif, Notice::Unresolved { mac, hold });
        }
    }

    /// A vif of this host owns the key.
    fn answer_locally(&mut self, vif: LocalVif, key: VifKey, now: Now) -> bool {
        let Some((owner, claim)) = self.vifs.owner_claim(&key) else { return false };
        let bound = self.config.limits.interest;
        if let Some(own) = self.vifs.get_mut(owner).and_then(|v| v.own.as_mut()) {
            own.interest.add(vif, bound);
        }
        self.count(MapperCounter::resolve_local);
        self.notify(vif, mapping(key, claim, self.config.lifetime));
        if self.vifs.get(owner).is_some_and(|owner| owner.in_doubt) {
            self.doubt(owner, now);
        }
        true
    }

    /// Something is known. A mapping that ends soon is confirmed, whoever asks; one that is to be
    /// confirmed is not repeated until it is.
    fn answer_cached(
        &mut self,
        vif: LocalVif,
        key: VifKey,
        asker: CareOf,
        refresh: bool,
        now: Now,
    ) -> bool {
        let bound = self.config.limits.interest;
        let Some(entry) = self.cache.get_mut(&key) else { return false };
        entry.interest.add(vif, bound);
        let remaining = entry.expires.saturating_since(now.mono);
        let Known::At { claim, lifetime, .. } = entry.known else {
            self.count(MapperCounter::resolve_negative);
            self.notify(vif, Notice::Unresolved { mac: key.mac, hold: remaining });
            return true;
        };
        let soon = remaining <= lifetime * self.config.refresh_below_percent / 100;
        if soon && self.confirm(vif, key, asker, claim, now) {
            // This host itself has the vif that the MAC is behind: the asking vif has been told already.
            let is_told = self.pending.get(&key).is_none();
            if refresh || is_told {
                return true;
            }
        }
        self.count(MapperCounter::resolve_cached);
        self.notify(vif, mapping(key, claim, remaining));
        true
    }

    /// Asks the owner's host to confirm a mapping, unless that is being done; false if a limit
    /// forbids it.
    pub(super) fn confirm(
        &mut self,
        vif: LocalVif,
        key: VifKey,
        asker: CareOf,
        claim: Claim,
        now: Now,
    ) -> bool {
        if let Some(pending) = self.pending.get_mut(&key) {
            pending.waiters.add(vif, self.config.limits.interest);
            return true;
        }
        let may = self.may_ask(vif, key);
        if may {
            self.count(MapperCounter::refreshes);
            self.begin(vif, key, asker, self.whom_to_ask(key, claim), now);
            if let Some(bridge) = claim.behind.map(|mac| VifKey { mac, ..key }) {
                self.vouch_here(bridge, now);
            }
        }
        may
    }

    /// The host of a mapping; none if that is this host, to which a MAC behind a vif has come along.
    fn whom_to_ask(&self, key: VifKey, claim: Claim) -> Stage {
        let bridge = claim.behind.map(|mac| VifKey { mac, ..key });
        let here = bridge.and_then(|bridge| self.vifs.owner_claim(&bridge));
        match here.filter(|(_, here)| here.coa.addr == claim.coa.addr) {
            Some(_) => Stage::Vouch,
            None => Stage::Confirm(self.varp_address(claim.coa.addr.ip())),
        }
    }

    /// Somebody who can't be believed says that a cached mapping is wrong: its owner's host is asked to
    /// confirm it, at most once a second. False if it is not asked.
    pub(super) fn doubt_mapping(&mut self, key: VifKey, now: Now) -> bool {
        let Some((vif, asker)) = self.any_asker(key.vnet) else { return false };
        let Some(entry) = self.cache.get_mut(&key) else { return false };
        let Some(claim) = entry.claim() else { return false };
        let lately = |at| now.mono.saturating_since(at) < INTERVAL;
        if entry.doubted.is_some_and(lately) {
            return self.pending.get(&key).is_some();
        }
        entry.doubted = Some(now.mono);
        self.confirm(vif, key, asker, claim, now)
    }

    /// A vif of the vnet that runs, to ask on its behalf.
    pub(super) fn any_asker(&self, vnet: VnetId) -> Option<(LocalVif, CareOf)> {
        self.vifs.on_vnet(vnet).find_map(|vif| {
            let state = self.vifs.get(vif).filter(|state| state.runs())?;
            Some((vif, state.coa))
        })
    }

    /// Whether there is room for another resolution: of all, of the vnet, of the vif.
    pub(super) fn may_ask(&self, vif: LocalVif, key: VifKey) -> bool {
        let limits = &self.config.limits;
        let asking = self.vifs.get(vif).map_or(usize::MAX, |v| v.asking);
        let room = self.pending.len() < limits.pending
            && self.pending.vnet_len(key.vnet) < limits.pending_per_vnet
            && asking < limits.pending_per_vif;
        if !room {
            self.count(MapperCounter::limit_pending);
        }
        room
    }

    /// Whether the vif has not begun too many of late. Confirmations do not count: there are no
    /// more of them than mappings in use.
    fn may_ask_now(&mut self, vif: LocalVif, now: Now) -> bool {
        let may = self.vifs.get_mut(vif).is_some_and(|v| v.bucket.take(now.mono));
        if !may {
            self.count(MapperCounter::limit_rate);
        }
        may
    }

    /// Begins a resolution with its first request.
    pub(super) fn begin(
        &mut self,
        payer: LocalVif,
        key: VifKey,
        asker: CareOf,
        stage: Stage,
        now: Now,
    ) {
        let mut waiters = Interest::default();
        waiters.add(payer, self.config.limits.interest);
        let nonce = self.nonces.next();
        let (since, due) = (now.mono, now.mono);
        self.pending.insert(
            key,
            Pending { stage, sent: 0, nonce, since, due, waiters, payer, asker, lost: None },
        );
        // It was here, behind a vif that may be on its way to another host.
        if let Some(note) = self.notes.get(&key).filter(|note| note.moved.is_none())
            && let Some(bridge) = note.ours.behind
        {
            self.pending.lose_with(key, bridge, note.ours.stamp);
        }
        if let Some(vif) = self.vifs.get_mut(payer) {
            vif.asking += 1;
        }
        self.request_due(key, now);
    }

    /// Sends the next request of a resolution, or goes on to its next stage, or gives it up. Its
    /// timer is not set.
    pub(super) fn request_due(&mut self, key: VifKey, now: Now) {
        let is_contested = self.is_contested(&key);
        let runs_here = self.vifs.running(key).is_some();
        let Some(pending) = self.pending.get_mut(&key) else { return };
        pending.sent += 1;
        let (wait, to, wide) = match pending.stage {
            Stage::Confirm(host) => {
                let is_over = is_contested && pending.sent > QUESTIONS;
                let wait = self.config.unicast_wait(pending.sent).filter(|_| !is_over);
                (wait, Destination::Unicast(host), false)
            }
            Stage::Vouch => {
                let wait = (pending.sent == 1).then_some(VOUCH_TIMEOUT);
                (wait, Destination::Group, false)
            }
            Stage::Ask => {
                let wide = pending.sent > self.config.local_sends;
                // Frames are lost until the vif here takes its key back.
                let wait = match runs_here {
                    true => self.config.short_group_wait(pending.sent),
                    false => self.config.group_wait(pending.sent),
                };
                (wait, Destination::Group, wide)
            }
        };
        match (wait, pending.stage) {
            (Some(wait), stage) => {
                pending.due = now.mono + wait;
                self.timers.set(pending.due, Timer::Request(key));
                let refresh = matches!(stage, Stage::Confirm(_));
                let (asker, nonce) = (pending.asker, pending.nonce);
                let body = Body::Request { asker, refresh };
                self.send(to, key, nonce, wide, body);
            }
            (None, Stage::Confirm(_)) => {
                self.count(MapperCounter::refresh_failed);
                if !self.yield_to_rival(key, now) {
                    self.ask_everybody(key, now);
                }
            }
            (None, Stage::Vouch) => self.not_there(key, now),
            (None, Stage::Ask) => self.give_up(key, now),
        }
    }

    /// A confirmation has failed: on to asking everybody.
    fn ask_everybody(&mut self, key: VifKey, now: Now) {
        if let Some(pending) = self.pending.get_mut(&key) {
            pending.stage = Stage::Ask;
            pending.sent = 0;
            self.request_due(key, now);
        }
    }

    /// The host that was asked to confirm says that the vif is not there. What is known is void at
    /// once; frames sent there would be lost.
    pub(super) fn disclaimed(&mut self, key: VifKey, by: Author, nonce: u64, now: Now) -> bool {
        let ip = by.addr.ip();
        let asked = |p: &&mut Pending| {
            p.nonce == nonce && matches!(p.stage, Stage::Confirm(host) if host.ip() == ip)
        };
        let Some(due) = self.pending.get_mut(&key).filter(asked).map(|p| p.due) else {
            return false;
        };
        self.timers.cancel(due, Timer::Request(key));
        self.count(MapperCounter::refresh_failed);
        if self.yield_to_rival(key, now) || self.ask_for_bridge(key, now) {
            return true;
        }
        self.vouch_no_more(key, now);
        self.not_there(key, now);
        true
    }

    /// A MAC is not where it was: frames sent there would be lost. Everybody is asked.
    pub(super) fn not_there(&mut self, key: VifKey, now: Now) {
        if let Some(entry) = self.forget(&key) {
            self.notify_all(key, &entry.interest, Notice::Invalidate { mac: key.mac });
            let bound = self.config.limits.interest;
            let lost = behind(&entry);
            if let Some(pending) = self.pending.get_mut(&key) {
                pending.waiters.merge(entry.interest, bound);
            }
            if let Some((bridge, stamp)) = lost {
                self.pending.lose_with(key, bridge, stamp);
            }
        }
        self.ask_everybody(key, now);
    }

    /// Nobody answered.
    fn give_up(&mut self, key: VifKey, now: Now) {
        if self.vifs.owner(&key).is_some() {
            // It was only in doubt: nobody else has it.
            self.end_pending(&key);
            return;
        }
        if self.abandoned(key, now) || self.yield_to_rival(key, now) {
            return;
        }
        let Some(pending) = self.end_pending(&key) else { return };
        let (mac, hold) = (key.mac, self.config.negative_lifetime);
        self.count(MapperCounter::unresolved);
        self.event(Event::Unresolved { key });
        let mut interest = self.forget(&key).map(|entry| entry.interest).unwrap_or_default();
        self.notify_all(key, &interest, Notice::Invalidate { mac });
        self.notify_all(key, &pending.waiters, Notice::Unresolved { mac, hold });
        interest.merge(pending.waiters, self.config.limits.interest);
        self.store(key, Entry::new(Known::Nobody, now.mono, hold, interest));
    }
}
