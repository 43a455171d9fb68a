//! Expiry of the keys of a secured vnet while varpd is away.
//!
//! While varpd runs, it ends and replaces keys. Without it, a backend would
//! seal with the same keys forever, and accept recorded packets of keys that an attacker may have obtained
//! since. So each session expires at an age that varpd sends with its keys, and group keys expire when varpd
//! has been away for as long. The backend logs two warnings before that.

#![forbid(unsafe_code)]

use std::time::Duration;

use crate::time::Instant;

/// Warnings come when the time divided by these numbers is left.
const WARNINGS: [u32; 2] = [2, 24];
/// Interval between checks of the sessions.
const LOOK: Duration = Duration::from_secs(60);

/// An action for the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Sessions may have reached their hard end.
    EndOld,
    /// Warn the operator.
    Warn {
        /// How long varpd has been away.
        away: Duration,
        /// How long the keys are still valid.
        left: Duration,
    },
    /// Group keys expire, and all others with them.
    EndAll {
        /// How long varpd has been away.
        away: Duration,
    },
}

/// The clock of a vif's keys.
#[derive(Debug, Default)]
pub struct KeyEnds {
    /// How long varpd may be away; `None` without keys.
    hold: Option<Duration>,
    away_since: Option<Instant>,
    /// Number of warnings since then.
    warned: usize,
    /// Time of the next check of sessions; `None` without keys.
    look_at: Option<Instant>,
}

impl KeyEnds {
    /// Handles new keys, which expire when varpd has been away for `hold`. varpd is back only with these: one that
    /// comes and goes without sending keys prolongs none.
    pub fn handle_keys(&mut self, hold: Duration, now: Instant) {
        (self.hold, self.away_since, self.warned) = (Some(hold), None, 0);
        self.look_at.get_or_insert(now + LOOK);
    }

    /// Handles the loss of varpd.
    pub fn handle_left(&mut self, now: Instant) {
        self.away_since.get_or_insert(now);
    }

    /// Handles the end of all keys for another reason.
    pub fn handle_dropped(&mut self) {
        *self = Self::default();
    }

    /// The next due action; call it until it returns `None`.
    pub fn handle_timeout(&mut self, now: Instant) -> Option<Step> {
        if self.look_at.is_some_and(|at| at <= now) {
            self.look_at = Some(now + LOOK);
            return Some(Step::EndOld);
        }
        let (since, hold) = (self.away_since?, self.hold?);
        let (away, end) = (now - since, since + hold);
        if end <= now {
            (self.hold, self.look_at) = (None, None);
            return Some(Step::EndAll { away });
        }
        let left = end - now;
        let due = WARNINGS.iter().filter(|part| left <= hold / **part).count();
        let is_new = due > self.warned;
        self.warned = self.warned.max(due);
        is_new.then_some(Step::Warn { away, left })
    }

    /// When [`KeyEnds::handle_timeout`] is to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let end = self.away_since.zip(self.hold).map(|(since, hold)| {
            let before = WARNINGS.get(self.warned).map_or(Duration::ZERO, |part| hold / *part);
            since + (hold - before)
        });
        end.into_iter().chain(self.look_at).min()
    }
}

/// A duration in words: in hours, or in minutes if it is short.
pub(super) fn in_words(time: Duration) -> String {
    match time.as_secs() {
        seconds if seconds >= 2 * 3600 => format!("{} hours", seconds / 3600),
        seconds => format!("{} minutes", seconds.div_ceil(60)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn at(hours: u32) -> Instant {
        Instant::ZERO + HOUR * hours
    }

    /// All steps but looks at sessions, with the hour of each, driven by its own timeouts.
    fn run(ends: &mut KeyEnds, from: Instant, until: Instant) -> Vec<(u64, Step)> {
        let mut steps = Vec::new();
        let mut now = from;
        while now <= until {
            while let Some(step) = ends.handle_timeout(now) {
                if step != Step::EndOld {
                    steps.push(((now - Instant::ZERO).as_secs() / 3600, step));
                }
            }
            let Some(next) = ends.poll_timeout() else { break };
            assert!(next > now, "it does not spin");
            now = next;
        }
        steps
    }

    #[test]
    fn keys_end_a_day_after_varpd_left_and_the_operator_hears_of_it_before() {
        let mut ends = KeyEnds::default();
        ends.handle_keys(HOUR * 24, at(0));
        assert_eq!(run(&mut ends, at(0), at(1000)), [], "varpd is there");
        ends.handle_left(at(1000));
        ends.handle_left(at(1001));
        let steps = run(&mut ends, at(1000), at(3000));
        let hours = |n: u32| HOUR * n;
        assert_eq!(
            steps,
            [
                (1012, Step::Warn { away: hours(12), left: hours(12) }),
                (1023, Step::Warn { away: hours(23), left: hours(1) }),
                (1024, Step::EndAll { away: hours(24) }),
            ]
        );
        assert_eq!(ends.poll_timeout(), None, "and that once");
    }

    #[test]
    fn a_varpd_that_comes_back_in_time_ends_nothing() {
        let mut ends = KeyEnds::default();
        ends.handle_keys(HOUR * 48, at(0));
        for start in [0, 100] {
            ends.handle_left(at(start));
            let steps = run(&mut ends, at(start), at(start + 47));
            assert_eq!(steps.len(), 2, "{steps:?}");
            ends.handle_keys(HOUR * 48, at(start + 47));
            assert_eq!(run(&mut ends, at(start + 47), at(start + 99)), []);
        }
    }

    #[test]
    fn a_varpd_that_comes_back_without_keys_prolongs_none() {
        let mut ends = KeyEnds::default();
        ends.handle_keys(HOUR * 24, at(0));
        ends.handle_left(at(0));
        for hour in 1..24 {
            assert!(!run(&mut ends, at(hour), at(hour)).iter().any(|(_, step)| is_end(step)));
            ends.handle_left(at(hour));
        }
        assert_eq!(run(&mut ends, at(24), at(24)), [(24, Step::EndAll { away: HOUR * 24 })]);
    }

    fn is_end(step: &Step) -> bool {
        matches!(step, Step::EndAll { .. })
    }

    #[test]
    fn sessions_are_looked_at_while_there_are_keys() {
        let mut ends = KeyEnds::default();
        assert_eq!((ends.poll_timeout(), ends.handle_timeout(at(9))), (None, None));
        ends.handle_left(at(9));
        assert_eq!(ends.poll_timeout(), None, "a vnet without keys");
        ends.handle_keys(HOUR * 24, at(10));
        assert_eq!(ends.poll_timeout(), Some(at(10) + LOOK));
        assert_eq!(ends.handle_timeout(at(10) + LOOK), Some(Step::EndOld));
        assert_eq!(ends.handle_timeout(at(10) + LOOK), None);
    }

    #[test]
    fn times_are_told_in_words() {
        assert_eq!(in_words(HOUR * 24), "24 hours");
        assert_eq!(in_words(HOUR), "60 minutes");
    }
}
