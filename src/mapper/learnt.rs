//! Claims of MACs behind local vifs, and how they follow the vif that they are behind.
//!
//! Such a MAC moves as the guests' network likes: a bridge is plugged elsewhere, a virtual router (VRRP) fails
//! over and back. Receivers follow each newer claim at once. It is the claimant that waits: its claim is made
//! [`MOVE_INTERVAL`] after the last move that it knows of, and never dropped. Its stamp is that of the guest's
//! frame and not of the moment when it is made, so that of several claimants which wait the one wins whose
//! guest was heard last. A backend whose MAC is lost claims it again at its guest's next frame from it.
//!
//! Before this host claims a MAC that is known to be another vif's own, it asks that vif's host
//! ([`super::rivals`]).

use std::time::Duration;

use super::rivals::INTERVAL;
use super::timers::Timer;
use super::vifs::{Wanted, Why};
use super::{Event, LocalVif, Mapper, MapperCounter};
use crate::time::{Instant, Now};
use crate::wire::varp::Claim;
use crate::wire::{Stamp, VifKey};

/// The least time between two moves of a MAC behind vifs, as far as its claimants know.
const MOVE_INTERVAL: Duration = Duration::from_secs(1);
/// How long a backend does not ask again for a MAC that is another vif's own.
pub(super) const REFUSED_HOLD: Duration = INTERVAL;
/// How long the owner of a MAC is waited for at most before everything is looked at anew.
const OWNER_TIMEOUT: Duration = Duration::from_secs(2);

impl Mapper {
    /// Whether the claim of a MAC behind a vif is made, or will be.
    pub fn is_claiming(&self, vif: LocalVif) -> bool {
        self.vifs.get(vif).is_some_and(|state| state.own.is_some() || state.wanted.is_some())
    }

    /// A guest has sent from a MAC behind its vif: it is claimed, now or later.
    pub(super) fn claim_learnt(&mut self, vif: LocalVif, stamp: Stamp, now: Now) {
        let Some(state) = self.vifs.get_mut(vif) else { return };
        let key = state.key;
        if let Some(wanted) = &mut state.wanted {
            wanted.stamp = stamp;
            return;
        }
        let has_owner = self.cached_claim(&key).is_some_and(|claim| claim.is_own());
        if has_owner {
            if self.doubt_mapping(key, now) {
                self.want(vif, stamp, now.mono + OWNER_TIMEOUT, true);
            } else {
                self.refuse(vif);
            }
            return;
        }
        let due = self.last_move(&key).map(|at| at + MOVE_INTERVAL).filter(|at| *at > now.mono);
        match due {
            Some(due) => {
                self.count(MapperCounter::deferred_claims);
                self.want(vif, stamp, due, false);
            }
            None => self.claim_key(vif, stamp, Why::Arrived, now),
        }
    }

    fn want(&mut self, vif: LocalVif, stamp: Stamp, due: Instant, asks_owner: bool) {
        if let Some(state) = self.vifs.get_mut(vif) {
            state.wanted = Some(Wanted { stamp, due, asks_owner });
            self.timers.set(due, Timer::Claim(vif));
        }
    }

    /// A claim that was to be made is not, or is made now.
    pub(super) fn unwant(&mut self, vif: LocalVif) -> Option<Wanted> {
        let wanted = self.vifs.get_mut(vif)?.wanted.take()?;
        self.timers.cancel(wanted.due, Timer::Claim(vif));
        Some(wanted)
    }

    /// The time of a claim that was put off has come.
    pub(super) fn claim_due(&mut self, vif: LocalVif, now: Now) {
        if let Some(wanted) = self.unwant(vif) {
            self.claim_learnt(vif, wanted.stamp, now);
        }
    }

    /// A MAC behind a local vif whose claim depends on what its owner's host says.
    pub(super) fn waiting_for_owner(&self, key: VifKey) -> Option<LocalVif> {
        let asks = |vif: &LocalVif| {
            let wanted = self.vifs.get(*vif).and_then(|state| state.wanted);
            wanted.is_some_and(|wanted| wanted.asks_owner)
        };
        self.vifs.with_key(key).find(asks)
    }

    /// When a MAC last moved, as far as this host knows.
    fn last_move(&self, key: &VifKey) -> Option<Instant> {
        let left = self.notes.get(key).and_then(|note| note.moved_at);
        left.max(self.cache.get(key).and_then(|entry| entry.moved_at))
    }

    /// A vif has a newer claim: the MACs behind it have come along. So a bridge that migrates
    /// is announced once, and all that is behind it is reached at its new place.
    pub(super) fn carry_along(&mut self, bridge: VifKey, claim: Claim, now: Now) {
        if !claim.is_own() {
            return;
        }
        for key in self.cache.behind(bridge) {
            let Some(entry) = self.cache.get(&key) else { continue };
            let remaining = entry.expires.saturating_since(now.mono);
            let is_older =
                |known: &Claim| known.stamp < claim.stamp && known.coa.addr != claim.coa.addr;
            if let Some(known) = entry.claim().filter(is_older) {
                let carried = Claim { behind: known.behind, ..claim };
                self.count(MapperCounter::carried);
                self.update(key, carried, None, remaining, now);
            }
        }
        self.carry_notes(bridge, claim, now.mono);
    }

    /// The same for MACs that were behind a vif of this host, which has gone.
    fn carry_notes(&mut self, bridge: VifKey, claim: Claim, now: Instant) {
        let gone = self.notes.behind(bridge).filter(|(_, note)| note.moved.is_none());
        let gone: Vec<(VifKey, Claim)> = gone.map(|(key, note)| (*key, note.ours)).collect();
        for (key, ours) in gone {
            if self.vifs.owner(&key).is_none() && ours.stamp < claim.stamp {
                let theirs = Claim { behind: ours.behind, ..claim };
                self.note(key, ours, Some(theirs), now);
                self.event(Event::Lost { key, ours, theirs });
            }
        }
    }
}
