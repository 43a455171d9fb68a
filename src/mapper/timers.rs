//! Deadlines in one ordered set, so that setting, cancelling and finding the next take time
//! logarithmic in the number of timers.
//!
//! The owner of a timer keeps its deadline and passes it back to cancel the timer. So the set
//! contains only live timers, and the tables that use it bound its size.

use std::collections::BTreeSet;

use super::LocalVif;
use crate::time::Instant;
use crate::wire::VifKey;

/// What happens at a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// The next request of a resolution, or its failure.
    Request(VifKey),
    /// The next announcement of a local vif's claim.
    Announce(LocalVif),
    /// The end of a cached mapping.
    Expire(VifKey),
    /// Users of a damped mapping are told about its last move.
    Damped(VifKey),
    /// The owner of a mapping is asked whether a learnt claim to its MAC is right.
    Rival(VifKey),
    /// A MAC behind a local vif is claimed.
    Claim(LocalVif),
    /// Vifs that were here are told where their key is now.
    Left(VifKey),
    /// The end of a forwarding note.
    Note(VifKey),
    /// A local vif that has lost its key asks whether anybody has it. The last, so that a mapping
    /// which ends at the same moment is no longer there.
    Watch(LocalVif),
}

/// All timers of a mapper.
#[derive(Debug, Default)]
pub(super) struct Timers(BTreeSet<(Instant, Timer)>);

impl Timers {
    /// Sets a timer; its owner remembers `at`.
    pub(super) fn set(&mut self, at: Instant, timer: Timer) {
        self.0.insert((at, timer));
    }

    /// Cancels a timer that was set for `at`.
    pub(super) fn cancel(&mut self, at: Instant, timer: Timer) {
        self.0.remove(&(at, timer));
    }

    /// The earliest deadline.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.first().map(|&(at, _)| at)
    }

    /// Removes and returns the earliest timer that is due.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<Timer> {
        if self.next()? > now {
            return None;
        }
        self.0.pop_first().map(|(_, timer)| timer)
    }

    /// How many are set.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}
