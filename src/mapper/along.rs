//! MACs behind a vif follow it: when a bridge migrates, one announcement makes all MACs behind it
//! reachable.
//!
//! | Host that receives a newer claim of a vif | MACs behind that vif |
//! |---|---|
//! | it has mappings of them in its cache | they are at the vif's new place |
//! | it had mappings, and asks all hosts for them because their host has lost the vif | the same |
//! | the vif was on it, and it claims the MACs | these claims end: the MACs are at the vif's new place |
//! | the vif was on it, and the MACs' claims ended with the vif's rings | they are at the vif's new place, also for local vifs |
//!
//! The vif's new host does not know a MAC until it has sent something. Until then it answers a
//! request to confirm the MAC with an absent. The host that uses the mapping then asks it for the
//! vif as well, and all hosts for the MAC, once: the MAC may be behind another vif by now. If the
//! vif is there, the mapping holds.

use std::time::Duration;

use super::claims::outranks;
use super::mappings::mapping;
use super::pending::Stage;
use super::timers::Timer;
use super::vifs::Vif;
use super::{Event, LocalVif, Mapper, MapperCounter};
use crate::time::Now;
use crate::wire::VifKey;
use crate::wire::varp::Claim;

/// Time that the host of a vif has to confirm it, for the MACs behind it. Longer than the retries of that
/// question take.
pub(super) const VOUCH_TIMEOUT: Duration = Duration::from_secs(2);

impl Mapper {
    /// A vif has a newer claim.
    pub(super) fn carry_along(&mut self, bridge: VifKey, claim: Claim, now: Now) {
        if !claim.is_own() {
            return;
        }
        self.carry_notes(bridge, claim, now);
        for key in self.cache.behind(bridge) {
            let Some(entry) = self.cache.get(&key) else { continue };
            let remaining = entry.expires.saturating_since(now.mono);
            let is_older =
                |known: &Claim| known.stamp < claim.stamp && known.coa.addr != claim.coa.addr;
            if let Some(known) = entry.claim().filter(is_older) {
                let carried = Claim { behind: known.behind, ..claim };
                self.count(MapperCounter::carried);
                self.found(key, carried, remaining, now);
            }
        }
        for (key, lost) in self.pending.lost_with(bridge) {
            if lost < claim.stamp && self.cached_claim(&key).is_none() {
                self.count(MapperCounter::carried);
                let carried = Claim { behind: Some(bridge.mac), ..claim };
                self.found(key, carried, self.config.lifetime, now);
            }
        }
    }

    /// The same for MACs that were behind a vif of this host, whose rings have stopped.
    fn carry_notes(&mut self, bridge: VifKey, claim: Claim, now: Now) {
        let gone = self.notes.behind(bridge).filter(|(_, note)| note.moved.is_none());
        let gone: Vec<(VifKey, Claim)> = gone.map(|(key, note)| (*key, note.ours)).collect();
        for (key, ours) in gone {
            let is_elsewhere = self.vifs.owner(&key).is_some() || self.cached_claim(&key).is_some();
            if is_elsewhere || claim.stamp <= ours.stamp || claim.coa.addr == ours.coa.addr {
                continue;
            }
            let theirs = Claim { behind: ours.behind, ..claim };
            self.count(MapperCounter::carried);
            self.note(key, ours, Some(theirs), now.mono);
            self.event(Event::Lost { key, ours, theirs });
            self.found(key, theirs, self.config.lifetime, now);
        }
    }

    /// The same for MACs behind a vif of this host that has just been beaten.
    pub(super) fn cede_along(
        &mut self,
        bridge: LocalVif,
        claim: Claim,
        lifetime: Duration,
        now: Now,
    ) {
        let Some(key) = self.vifs.get(bridge).map(|state| state.key) else { return };
        let is_behind = |vif: &LocalVif| {
            let behind = self.vifs.get(*vif).and_then(|state| state.behind);
            behind.is_some_and(|behind| behind.vif == bridge)
        };
        let behind: Vec<LocalVif> = self.vifs.on_vnet(key.vnet).filter(is_behind).collect();
        for vif in behind {
            self.unwant(vif);
            let Some(ours) = self.vifs.get(vif).and_then(Vif::claim) else { continue };
            let theirs = Claim { behind: ours.behind, ..claim };
            if outranks(&theirs, &ours, now.wall_ms) {
                self.count(MapperCounter::carried);
                self.cede(vif, theirs, lifetime, now);
            }
        }
    }

    /// The host of a mapping says that it has not the MAC. True if that is behind a vif, for which the
    /// host is asked now.
    pub(super) fn ask_for_bridge(&mut self, key: VifKey, now: Now) -> bool {
        let Some(claim) = self.cached_claim(&key) else { return false };
        let Some(bridge) = claim.behind.map(|mac| VifKey { mac, ..key }) else { return false };
        let Some(pending) = self.pending.get_mut(&key) else { return false };
        let (payer, asker) = (pending.payer, pending.asker);
        (pending.stage, pending.sent) = (Stage::Vouch, 0);
        self.request_due(key, now);
        let is_asked =
            self.vouch_here(bridge, now) || self.confirm(payer, bridge, asker, claim, now);
        if let (false, Some(pending)) = (is_asked, self.pending.get(&key)) {
            self.timers.cancel(pending.due, Timer::Request(key));
        }
        is_asked
    }

    /// The vif is here: no question is needed.
    pub(super) fn vouch_here(&mut self, bridge: VifKey, now: Now) -> bool {
        let Some((_, claim)) = self.vifs.owner_claim(&bridge) else { return false };
        self.vouch(bridge, claim, self.config.lifetime, now);
        true
    }

    /// A vif is at this place: so are the MACs behind it whose mappings depend on that.
    pub(super) fn vouch(&mut self, bridge: VifKey, claim: Claim, lifetime: Duration, now: Now) {
        for key in self.depending_on(bridge) {
            let known = self.cached_claim(&key);
            if let Some(known) = known.filter(|known| known.coa.addr == claim.coa.addr) {
                self.found(key, known, lifetime, now);
            }
        }
    }

    /// A vif is not where it was: nor are the MACs behind it whose mappings depend on that.
    pub(super) fn vouch_no_more(&mut self, bridge: VifKey, now: Now) {
        for key in self.depending_on(bridge) {
            if let Some(due) = self.pending.get(&key).map(|pending| pending.due) {
                self.timers.cancel(due, Timer::Request(key));
                self.not_there(key, now);
            }
        }
    }

    /// The MACs behind a vif whose mappings hold if its own does.
    fn depending_on(&self, bridge: VifKey) -> Vec<VifKey> {
        let depends = |key: &VifKey| self.pending.get(key).is_some_and(|p| p.stage == Stage::Vouch);
        self.cache.behind(bridge).into_iter().filter(depends).collect()
    }

    /// Ends a claim of this host that was beaten; those who use the key follow.
    pub(super) fn cede(&mut self, vif: LocalVif, theirs: Claim, lifetime: Duration, now: Now) {
        let Some((key, ours)) = self.vifs.get(vif).and_then(|v| Some((v.key, v.claim()?))) else {
            return;
        };
        let mut interest = self.end_own(vif).map(|own| own.interest).unwrap_or_default();
        if let Some(doubt) = self.end_pending(&key) {
            interest.merge(doubt.waiters, self.config.limits.interest);
        }
        self.lost(vif, ours, theirs, now);
        self.judge_place(key, theirs);
        self.notify_all(key, &interest, mapping(key, theirs, lifetime));
        self.remember(key, theirs, None, lifetime, interest, now.mono);
        if ours.is_own() && theirs.is_own() {
            self.cede_along(vif, theirs, lifetime, now);
        }
    }
}
