//! When the keys of a secured vnet end by themselves.
//!
//! As long as varpd is there it ends and replaces them. When it is away for long, a backend that goes on would
//! seal with the same keys for ever, and open what was recorded long ago with keys that somebody may have got hold
//! of since. So each session ends at an age that varpd told with its keys, and the keys of group frames when varpd
//! has been away for as long. The operator is warned twice before that.

#![forbid(unsafe_code)]

use std::time::Duration;

use crate::time::Instant;

/// The warnings come when these parts of the time are left.
const WARNINGS: [u32; 2] = [2, 24];
/// How often sessions are looked at.
const LOOK: Duration = Duration::from_secs(60);

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Sessions may have reached their hard end.
    EndOld,
    /// Warn: varpd has been away for so long, and so much time is left.
    Warn {
        /// How long varpd has been away.
        away: Duration,
        /// How long the keys still serve.
        left: Duration,
    },
    /// The keys of group frames end, and the rest with them.
    EndAll {
        /// How long varpd has been away.
        away: Duration,
    },
}

/// The clock of a vif's keys.
#[derive(Debug, Default)]
pub struct KeyEnds {
    /// For how long varpd may be away; there are keys.
    hold: Option<Duration>,
    away_since: Option<Instant>,
    /// How many warnings were given since.
    warned: usize,
    /// When to look at sessions next; none while there is no key.
    look_at: Option<Instant>,
}

impl KeyEnds {
    /// Keys have come, which end when varpd has been away for so long.
    pub fn handle_keys(&mut self, hold: Duration, now: Instant) {
        self.hold = Some(hold);
        self.look_at.get_or_insert(now + LOOK);
    }

    /// varpd is gone.
    pub fn handle_left(&mut self, now: Instant) {
        self.away_since.get_or_insert(now);
    }

    /// varpd is back.
    pub fn handle_returned(&mut self) {
        // Its keys follow, if the vnet is still secured.
        *self = Self::default();
    }

    /// What is due; to be called again until there is nothing.
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

/// A time for people: in hours, or minutes if it is short.
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
            ends.handle_returned();
            ends.handle_keys(HOUR * 48, at(start + 47));
            assert_eq!(run(&mut ends, at(start + 47), at(start + 99)), []);
        }
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
