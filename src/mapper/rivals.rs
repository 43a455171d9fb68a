//! Learnt claims against own ones: a guest cannot take another guest's MAC by sending from it.
//!
//! | Host that hears a learnt claim to a MAC | Action |
//! |---|---|
//! | the owner of the own claim | it corrects the claimant, and announces its claim, at most once a second |
//! | a host with the own claim in its cache | it waits 100 to 300 ms for that announcement. Without it, it asks the owner, at most once a second. It accepts the learnt claim when the owner answers that the vif is absent, or does not answer three times |
//! | any other host | it treats the learnt claim like any other claim |
//!
//! Only the owner's host corrects the claimant: a cache cannot know whether the owner still has the
//! vif. If hosts have given up an own claim for a learnt one, it wins again only if it is made
//! anew, with a higher stamp; its host does so when a correction shows that another host follows
//! the learnt one.

use std::time::Duration;

use super::learnt::REFUSED_HOLD;
use super::timers::Timer;
use super::vifs::Why;
use super::{LocalVif, Mapper, MapperCounter, Notice};
use crate::time::{Instant, Now};
use crate::wire::VifKey;
use crate::wire::varp::Claim;

/// Least time that a cache waits for the owner to announce its claim.
const PATIENCE: Duration = Duration::from_millis(100);
/// Longest random addition to that time, so that not all caches ask at once.
const JITTER: Duration = Duration::from_millis(200);
/// The least time between two questions to the owner of a MAC, and between two claims that defend one.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);
/// Questions to an owner that does not answer.
pub(super) const QUESTIONS: u32 = 3;

/// A learnt claim to a MAC whose own claim is cached.
#[derive(Debug)]
pub(super) struct Rival {
    pub(super) claim: Claim,
    lifetime: Duration,
    /// When the owner is asked, if it has not announced its claim by then.
    pub(super) ask_at: Instant,
}

impl Mapper {
    /// Somebody claims a MAC behind a vif that has a vif of its own elsewhere.
    pub(super) fn hear_rival(
        &mut self,
        key: VifKey,
        claim: Claim,
        lifetime: Duration,
        now: Instant,
    ) {
        self.count(MapperCounter::rx_rivals);
        let jitter = self.nonces.below(u64::try_from(JITTER.as_micros()).unwrap_or(u64::MAX));
        let is_asked = self.pending.get(&key).is_some();
        let Some(entry) = self.cache.get_mut(&key) else { return };
        if let Some(rival) = &mut entry.rival {
            if claim.beats(&rival.claim) {
                (rival.claim, rival.lifetime) = (claim, lifetime);
            }
            if is_asked || rival.ask_at > now {
                return;
            }
        }
        let patient = now + PATIENCE + Duration::from_micros(jitter);
        let ask_at = entry.doubted.map_or(patient, |asked| patient.max(asked + INTERVAL));
        entry.rival = Some(Rival { claim, lifetime, ask_at });
        self.timers.set(ask_at, Timer::Rival(key));
    }

    /// The owner has not announced its claim: it is asked.
    pub(super) fn rival_due(&mut self, key: VifKey, now: Now) {
        if self.doubt_mapping(key, now) {
            return;
        }
        let again = now.mono + INTERVAL;
        let can_ask = self.any_asker(key.vnet).is_some();
        let Some(entry) = self.cache.get_mut(&key) else { return };
        match &mut entry.rival {
            Some(rival) if can_ask => {
                rival.ask_at = again;
                self.timers.set(again, Timer::Rival(key));
            }
            _ => entry.rival = None,
        }
    }

    /// Whether the owner of a cached mapping is being asked because of a learnt claim.
    pub(super) fn is_contested(&self, key: &VifKey) -> bool {
        let has_rival = self.cache.get(key).is_some_and(|entry| entry.rival.is_some());
        has_rival || self.waiting_for_owner(*key).is_some()
    }

    /// A vif's owner has said that it is there: learnt claims to its MAC are void.
    pub(super) fn owner_is_there(&mut self, key: VifKey) {
        self.drop_rival(&key);
        while let Some(vif) = self.waiting_for_owner(key) {
            self.unwant(vif);
            self.refuse(vif);
        }
    }

    fn drop_rival(&mut self, key: &VifKey) -> Option<Rival> {
        let rival = self.cache.get_mut(key)?.rival.take()?;
        self.timers.cancel(rival.ask_at, Timer::Rival(*key));
        Some(rival)
    }

    /// A vif's owner is not there any more, as far as can be seen: a learnt claim to its MAC holds from
    /// now on, if there is one. False if not.
    pub(super) fn yield_to_rival(&mut self, key: VifKey, now: Now) -> bool {
        if let Some(vif) = self.waiting_for_owner(key) {
            let stamp = self.unwant(vif).map(|wanted| wanted.stamp).unwrap_or_default();
            self.drop_rival(&key);
            self.own_key(vif, stamp, Why::Arrived, now);
            return true;
        }
        let Some(rival) = self.drop_rival(&key) else { return false };
        self.give_up_own(key, rival.claim, rival.lifetime, now);
        true
    }

    /// The cached own claim to a MAC is given up for a learnt one.
    pub(super) fn give_up_own(&mut self, key: VifKey, learnt: Claim, lifetime: Duration, now: Now) {
        self.drop_rival(&key);
        let disclaimed = self.cached_claim(&key).filter(Claim::is_own).map(|own| own.stamp);
        self.found(key, learnt, lifetime, now);
        if let Some(entry) = self.cache.get_mut(&key) {
            entry.disclaimed = disclaimed;
        }
    }

    /// Whether an own claim was given up for the learnt one that is cached.
    pub(super) fn is_disclaimed(&self, key: &VifKey, claim: &Claim) -> bool {
        let given_up = self.cache.get(key).and_then(|entry| entry.disclaimed);
        claim.is_own() && given_up.is_some_and(|stamp| claim.stamp <= stamp)
    }

    /// A learnt claim to the MAC of a vif of this host. `is_believed`: by somebody who answered the
    /// vif's announcement with it.
    pub(super) fn defend(&mut self, vif: LocalVif, is_believed: bool, now: Now) {
        let Some(state) = self.vifs.get(vif) else { return };
        let lately = |at| now.mono.saturating_since(at) < INTERVAL;
        let is_new = state.own.as_ref().is_some_and(|own| lately(own.since));
        if is_believed && state.runs() && !is_new {
            self.reclaim(vif, now);
        } else {
            self.challenge(vif, now.mono);
        }
    }

    /// The MAC behind a vif is the own one of another.
    pub(super) fn refuse(&mut self, vif: LocalVif) {
        self.count(MapperCounter::refused_learnt);
        self.notify(vif, Notice::Refused { hold: REFUSED_HOLD });
    }
}
