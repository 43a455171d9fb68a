//! The hybrid logical clock for the stamps of claims.
//!
//! A stamp is max(wall clock in ms, highest stamp seen + 1). So a new claim is above every claim
//! that its host has seen, whatever the clocks show: clocks that differ by an hour, or run
//! backwards, are harmless.
//!
//! The drawback of "the highest wins" is a stamp that no host can beat: one message with stamp
//! 2^64-1, sent by a broken or hostile host, would own a vif forever, and would move every clock
//! that follows it to the end of its range. Therefore a stamp more than [`MAX_AHEAD`] above the
//! local wall clock is *implausible*: it never moves the clock and never beats a plausible claim.
//! The reference is the wall clock and not the highest stamp seen, so that a series of messages
//! cannot raise it step by step. The mapper still accepts an implausible claim as the answer to a
//! question while it knows no other, so that a host whose own clock is days behind remains usable.
//!
//! If the wall clock was wrong by more than a day and is set back, the hybrid clock's own value
//! becomes implausible; the hybrid clock then returns to the wall clock.
//!
//! A host whose wall clock was never set (before [`SANE_WALL`]: no battery, no NTP yet) has no
//! reference. It follows its peers, up to [`CEILING`].
//!
//! Each vnet has a clock of its own ([`Clocks`]): a member of one vnet, or any host on the segment
//! of one without keys, cannot move the stamps of another.

use std::collections::BTreeMap;

use crate::wire::{Stamp, VnetId};

/// How far above the wall clock a stamp may lie, in milliseconds: one day. Much more than clocks
/// that anybody looks after differ by, and a hijack by a forged stamp ends when it has passed.
const MAX_AHEAD: u64 = 24 * 60 * 60 * 1000;
/// A wall clock before 2024-01-01T00:00Z was never set.
const SANE_WALL: u64 = 1_704_067_200_000;
/// The highest stamp that is ever plausible: 2^43 ms, in the year 2248.
const CEILING: u64 = 1 << 43;

/// Clocks kept at most of vnets that have left this host.
const MOST_KEPT: usize = 1024;

/// The clocks of a mapper.
#[derive(Debug, Default)]
pub(super) struct Clocks {
    /// Of vnets that have vifs here.
    clocks: BTreeMap<VnetId, Clock>,
    /// Of vnets that have left, and whose clock was ahead of the wall clock.
    left: BTreeMap<VnetId, Clock>,
}

impl Clocks {
    /// The first vif of a vnet has come.
    pub(super) fn begin(&mut self, vnet: VnetId) {
        let clock = self.left.remove(&vnet).unwrap_or_default();
        self.clocks.insert(vnet, clock);
    }

    /// The last vif of a vnet has gone. Its next claims must be above its last ones.
    pub(super) fn end(&mut self, vnet: VnetId, wall_ms: u64) {
        let Some(clock) = self.clocks.remove(&vnet) else { return };
        if self.left.len() >= MOST_KEPT {
            self.left.retain(|_, clock| clock.highest > wall_ms);
        }
        if clock.highest > wall_ms && self.left.len() < MOST_KEPT {
            self.left.insert(vnet, clock);
        }
    }

    /// The clock of a vnet that has vifs here.
    pub(super) fn of(&mut self, vnet: VnetId) -> &mut Clock {
        self.clocks.entry(vnet).or_default()
    }
}

/// The clock of one vnet.
#[derive(Debug, Default)]
pub(super) struct Clock {
    highest: u64,
}

impl Clock {
    /// Whether the stamp can be that of an honest host.
    pub(super) fn plausible(stamp: Stamp, wall_ms: u64) -> bool {
        let limit = if wall_ms < SANE_WALL { CEILING } else { wall_ms.saturating_add(MAX_AHEAD) };
        stamp.0 <= limit
    }

    /// Takes in a peer's stamp; false if it is implausible.
    pub(super) fn observe(&mut self, stamp: Stamp, wall_ms: u64) -> bool {
        self.settle(wall_ms);
        let plausible = Self::plausible(stamp, wall_ms);
        if plausible {
            self.highest = self.highest.max(stamp.0);
        }
        plausible
    }

    /// A stamp for a new claim, above all that were seen.
    pub(super) fn tick(&mut self, wall_ms: u64) -> Stamp {
        self.settle(wall_ms);
        self.highest = wall_ms.max(self.highest.saturating_add(1));
        Stamp(self.highest)
    }

    /// The stamp of a claim that was made before this mapper started. It is kept as it is: it may
    /// be above the wall clock because of stamps that the earlier mapper had seen, and a lower one
    /// would lose to those. An implausible one is replaced by now.
    pub(super) fn resume(&mut self, prior: Stamp, wall_ms: u64) -> Stamp {
        if self.observe(prior, wall_ms) { prior } else { Stamp(wall_ms.max(self.highest).max(1)) }
    }

    fn settle(&mut self, wall_ms: u64) {
        if !Self::plausible(Stamp(self.highest), wall_ms) {
            self.highest = wall_ms;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_767_225_600_000;
    const HOUR: u64 = 3_600_000;

    fn vnet(id: u32) -> VnetId {
        VnetId::new(id).unwrap()
    }

    #[test]
    fn a_vnet_that_returns_has_stamps_above_its_earlier_ones() {
        let mut clocks = Clocks::default();
        clocks.begin(vnet(7));
        clocks.of(vnet(7)).observe(Stamp(NOW + HOUR), NOW);
        clocks.end(vnet(7), NOW);
        clocks.begin(vnet(7));
        assert_eq!(clocks.of(vnet(7)).tick(NOW), Stamp(NOW + HOUR + 1));
    }

    #[test]
    fn vnets_that_come_and_go_leave_a_bounded_number_of_clocks() {
        let mut clocks = Clocks::default();
        for id in (2..5000).chain(2..5000) {
            clocks.begin(vnet(id));
            clocks.of(vnet(id)).observe(Stamp(NOW + HOUR), NOW);
            clocks.end(vnet(id), NOW);
        }
        assert_eq!((clocks.clocks.len(), clocks.left.len()), (0, MOST_KEPT));
        clocks.begin(vnet(9000));
        clocks.end(vnet(9000), NOW);
        assert_eq!(clocks.left.len(), MOST_KEPT, "one that is not ahead is not kept");
        // When they are not ahead any more, they make room for one that is.
        let later = NOW + 2 * HOUR;
        clocks.begin(vnet(9000));
        clocks.of(vnet(9000)).observe(Stamp(later + HOUR), later);
        clocks.end(vnet(9000), later);
        assert_eq!(clocks.left.keys().copied().collect::<Vec<_>>(), [vnet(9000)]);
    }

    #[test]
    fn stamps_follow_the_wall_clock_and_never_repeat() {
        let mut clock = Clock::default();
        assert_eq!(clock.tick(NOW), Stamp(NOW));
        assert_eq!(clock.tick(NOW), Stamp(NOW + 1));
        assert_eq!(clock.tick(NOW - HOUR), Stamp(NOW + 2), "a clock set back");
        assert_eq!(clock.tick(NOW + 50), Stamp(NOW + 50));
    }

    #[test]
    fn a_peer_an_hour_ahead_is_beaten() {
        let mut clock = Clock::default();
        assert!(clock.observe(Stamp(NOW + HOUR), NOW));
        assert_eq!(clock.tick(NOW), Stamp(NOW + HOUR + 1));
    }

    #[test]
    fn an_absurd_stamp_drags_nothing_however_often_it_comes() {
        let mut clock = Clock::default();
        for _ in 0..10 {
            assert!(!clock.observe(Stamp(u64::MAX), NOW));
            let edge = clock.tick(NOW).0.max(NOW) + MAX_AHEAD + 1;
            assert!(!clock.observe(Stamp(edge), NOW));
        }
        assert!(clock.tick(NOW).0 < NOW + 100);
    }

    #[test]
    fn a_clock_that_was_a_year_ahead_recovers() {
        let mut clock = Clock::default();
        clock.tick(NOW + 365 * 24 * HOUR);
        assert_eq!(clock.tick(NOW), Stamp(NOW + 1));
    }

    #[test]
    fn a_clock_that_was_never_set_follows_its_peers_below_the_ceiling() {
        let mut clock = Clock::default();
        assert!(clock.observe(Stamp(NOW), 5000));
        assert!(!clock.observe(Stamp(u64::MAX), 5000));
        assert_eq!(clock.tick(5001), Stamp(NOW + 1));
    }

    #[test]
    fn a_resumed_stamp_is_kept_unless_it_is_absurd() {
        let mut clock = Clock::default();
        assert_eq!(clock.resume(Stamp(NOW - HOUR), NOW), Stamp(NOW - HOUR));
        assert_eq!(clock.resume(Stamp(u64::MAX), NOW), Stamp(NOW));
        assert_eq!(clock.resume(Stamp(NOW + HOUR), NOW), Stamp(NOW + HOUR));
        assert_eq!(clock.tick(NOW), Stamp(NOW + HOUR + 1));
    }
}
