//! Known senders of group frames, and the candidate keys for the next start of each.
//!
//! A sender starts anew every half minute, with a key that a receiver has to derive before it can
//! check whether a packet is authentic. Without a limit, forged packets could make a receiver
//! derive keys all the time. So there are two budgets:
//!
//! * For a known sender (by care-of address, SPI and random number), the receiver expects the next
//!   start within half a minute around now, by the sender's clock as known from its last starts.
//!   For each second of that span it derives the key once, and keeps it as a candidate until the
//!   second is over. So a budget of one key for each second is enough, however many packets an
//!   attacker forges. Each sender has its own candidates and its own budget: packets in the name of
//!   one cost the others nothing.
//! * All other senders share a budget ([`STRANGERS_PER_SECOND`]). If a flood exhausts it, the
//!   receiver accepts new senders late, but not known ones.

use std::collections::{BTreeMap, HashMap};

use super::{RESTART, SenderId, StartId, tolerance};
use crate::limiter::TokenBucket;
use crate::secret::SaKey;
use crate::time::Instant;

/// Packets a second of senders that are not known for which keys are derived, and at once.
pub const STRANGERS_PER_SECOND: u32 = 1000;
/// Starts a second of one known sender for which keys are derived, and at once: one comes with each
/// second, and all of the window below when it has started.
const STARTS_PER_SECOND: u32 = 2;
const STARTS_AT_ONCE: u32 = 40;
/// How far, in seconds, the next start of a known sender may be before what its clock shows at
/// least, and behind it: its last start may have been heard late.
const BEFORE: i64 = 2;
const BEHIND: i64 = RESTART.as_secs().cast_signed() + 2;

/// The knowledge about a sender.
#[derive(Debug)]
struct Known {
    /// Its last start that was proved.
    newest: u32,
    /// What its clock is ahead of this host's at least, in seconds.
    ahead: i64,
    /// Starts for which keys are derived.
    budget: TokenBucket,
    /// The keys of starts that are expected, by second: those of the vnet's group keys in their
    /// order. As many as the window has seconds.
    candidates: BTreeMap<u32, Vec<SaKey>>,
}

impl Known {
    /// Whether its clock may show this start now.
    fn expects(&self, start: u32, wall: u32) -> bool {
        is_expected(start, wall, self.ahead)
    }
}

/// Whether a clock that is `ahead` of this host's may show this start now.
fn is_expected(start: u32, wall: u32, ahead: i64) -> bool {
    (-BEFORE..=BEHIND).contains(&(i64::from(start) - i64::from(wall) - ahead))
}

/// Whose budget a packet of a start that was not proved is charged to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Charge {
    /// Nobody's: it is tried with keys that are there.
    Candidate,
    /// That of its sender, which is known: the keys are to be kept.
    Known,
    /// That of all strangers.
    Stranger,
    /// There is no budget left: it is dropped.
    Nothing,
}

/// The senders that are known.
#[derive(Debug)]
pub(super) struct Senders {
    known: HashMap<SenderId, Known>,
    strangers: TokenBucket,
}

impl Default for Senders {
    fn default() -> Self {
        Self {
            known: HashMap::new(),
            strangers: TokenBucket::new(STRANGERS_PER_SECOND, STRANGERS_PER_SECOND),
        }
    }
}

impl Senders {
    /// Charges a packet of a start that was not proved; `wall` is this host's time in seconds.
    pub(super) fn charge(&mut self, id: StartId, wall: u32, now: Instant) -> Charge {
        if let Some(known) = self.known.get_mut(&id.sender)
            && id.second > known.newest
            && known.expects(id.second, wall)
        {
            return match known.candidates.contains_key(&id.second) {
                true => Charge::Candidate,
                false if known.budget.take(now) => Charge::Known,
                false => Charge::Nothing,
            };
        }
        if self.strangers.take(now) { Charge::Stranger } else { Charge::Nothing }
    }

    /// The keys of a candidate.
    pub(super) fn candidate(&self, id: StartId) -> Option<&[SaKey]> {
        self.known.get(&id.sender)?.candidates.get(&id.second).map(Vec::as_slice)
    }

    /// Keeps the keys of a start of a known sender. Those of its starts that are expected no more
    /// go.
    pub(super) fn keep(&mut self, id: StartId, keys: Vec<SaKey>, wall: u32) {
        let Some(Known { candidates, ahead, .. }) = self.known.get_mut(&id.sender) else { return };
        candidates.retain(|second, _| is_expected(*second, wall, *ahead));
        candidates.insert(id.second, keys);
    }

    /// A start was proved. Candidates of its sender up to this one have had their time.
    pub(super) fn prove(&mut self, StartId { second, sender }: StartId, wall: u32) {
        let ahead = i64::from(second) - i64::from(wall);
        let known = self.known.entry(sender).or_insert_with(|| Known {
            newest: second,
            ahead,
            budget: TokenBucket::new(STARTS_PER_SECOND, STARTS_AT_ONCE),
            candidates: BTreeMap::new(),
        });
        // A start is over by half a minute later; whoever is heard at once shows best how late it
        // is there.
        known.ahead = if known.expects(second, wall) { known.ahead.max(ahead) } else { ahead };
        // A clock that was far ahead was set right: later starts of before are not to be waited
        // for.
        let is_set_back = known.newest > wall.saturating_add(tolerance());
        known.newest = if is_set_back { second } else { known.newest.max(second) };
        let (newest, ahead) = (known.newest, known.ahead);
        known.candidates.retain(|second, _| *second > newest && is_expected(*second, wall, ahead));
    }

    /// Forgets senders whose last start is not among those that are `kept`.
    pub(super) fn forget(&mut self, kept: impl Fn(&StartId) -> bool) {
        self.known.retain(|&sender, known| kept(&StartId { second: known.newest, sender }));
    }

    /// Forgets all candidates: the vnet's keys are others.
    pub(super) fn forget_candidates(&mut self) {
        self.known.values_mut().for_each(|known| known.candidates.clear());
    }

    /// No limit on strangers.
    #[cfg(test)]
    pub(super) fn unlimited(&mut self) {
        self.strangers = TokenBucket::new(1_000_000, 1_000_000);
    }

    /// How many candidates there are.
    #[cfg(test)]
    pub(super) fn candidates_len(&self) -> usize {
        self.known.values().map(|known| known.candidates.len()).sum()
    }
}
