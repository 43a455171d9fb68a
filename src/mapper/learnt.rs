//! Claims of MACs behind local vifs.
//!
//! Such a MAC may move any number of times: a bridge is connected elsewhere, a virtual router
//! (VRRP) fails over and back. Receivers follow each newer claim at once. The claimant waits: it
//! makes its claim [`MOVE_INTERVAL`] after the last move that it knew of when its guest sent, and
//! never drops it. The stamp is the time of the guest's frame and not that of the claim, so that of
//! several waiting claimants the one wins whose guest sent last. A backend that has lost a MAC
//! claims it again at its guest's next frame from it.
//!
//! Before this host claims a MAC that is the own MAC of another vif, it asks that vif's host
//! ([`super::rivals`]).

use std::time::Duration;

use super::rivals::INTERVAL;
use super::timers::Timer;
use super::vifs::{Wanted, Why};
use super::{LocalVif, Mapper, MapperCounter};
use crate::time::{Instant, Now};
use crate::wire::{Stamp, VifKey};

/// The least time between two moves of a MAC behind vifs, as far as its claimants know.
const MOVE_INTERVAL: Duration = Duration::from_secs(1);
/// Time for which a backend does not ask again for a MAC that is another vif's own.
pub(super) const REFUSED_HOLD: Duration = INTERVAL;
/// Longest wait for the owner of a MAC, before the claim is decided again.
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
        if self.asks_owner(vif, key, stamp, now) {
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

    /// Before a MAC is claimed that is known to be another vif's own, that vif's host is asked. False if it
    /// is none.
    fn asks_owner(&mut self, vif: LocalVif, key: VifKey, stamp: Stamp, now: Now) -> bool {
        let has_owner = self.cached_claim(&key).is_some_and(|claim| claim.is_own());
        if has_owner && self.doubt_mapping(key, now) {
            self.want(vif, stamp, now.mono + OWNER_TIMEOUT, true);
        } else if has_owner {
            self.refuse(vif);
        }
        has_owner
    }

    fn want(&mut self, vif: LocalVif, stamp: Stamp, due: Instant, asks_owner: bool) {
        if let Some(state) = self.vifs.get_mut(vif) {
            state.wanted = Some(Wanted { stamp, due, asks_owner });
            self.timers.set(due, Timer::Claim(vif));
        }
    }

    /// Drops a planned claim, or makes it now.
    pub(super) fn unwant(&mut self, vif: LocalVif) -> Option<Wanted> {
        let wanted = self.vifs.get_mut(vif)?.wanted.take()?;
        self.timers.cancel(wanted.due, Timer::Claim(vif));
        Some(wanted)
    }

    /// The time of a claim that was put off has come. It is not put off again, also if the MAC has moved
    /// meanwhile: of many that wait, the guest that was heard last would be the last to have it.
    pub(super) fn claim_due(&mut self, vif: LocalVif, now: Now) {
        let Some(Wanted { stamp, asks_owner, .. }) = self.unwant(vif) else { return };
        let Some(key) = self.vifs.get(vif).map(|state| state.key) else { return };
        if asks_owner {
            self.claim_learnt(vif, stamp, now);
        } else if !self.asks_owner(vif, key, stamp, now) {
            self.claim_key(vif, stamp, Why::Arrived, now);
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
}
