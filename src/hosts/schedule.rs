//! The times of HELLOs to the group.
//!
//! | Reason | Time |
//! |---|---|
//! | no change | every max(30 s, hosts / 10 s), up to half more or less, at random |
//! | this host starts, or its list or address has changed | after 0, 0.3 and 1 s; the next such change waits until max(2 s, hosts / 100 s) after the last |
//! | a HELLO of a new host, or with another generation | after at most max(1 s, hosts / 20 s), at random, and at least max(3 s, hosts / 20 s) after the last HELLO |
//!
//! So the hosts of a segment together send about 10 HELLOs a second, whatever their number, also
//! after all of them have started at once; and up to 20 while they greet new hosts. Of 1000 hosts
//! with three vifs each, every host receives 10 HELLOs, 10 announcements, 2 questions or answers
//! and at most 2 beacons a second.

use std::time::Duration;

use crate::nonce::Nonces as Random;
use crate::time::Instant;

/// Interval on a small segment.
const LEAST_INTERVAL: Duration = Duration::from_secs(30);
/// Interval per host on a large segment: all hosts together send 10 HELLOs a second.
const PER_HOST: Duration = Duration::from_millis(100);
/// Number of intervals after which a host that is not heard counts as gone.
const INTERVALS: u32 = 4;
/// Times of HELLOs after a change.
const REPEATS: [Duration; 3] =
    [Duration::ZERO, Duration::from_millis(300), Duration::from_millis(1000)];
/// Least time between the HELLOs of two changes; on a large segment, per host.
const LEAST_PAUSE: Duration = Duration::from_secs(2);
const PAUSE_PER_HOST: Duration = Duration::from_millis(10);
/// Longest time until a newcomer is greeted, and least time after the last HELLO, on a small segment.
const LEAST_GREETING: Duration = Duration::from_secs(1);
const LEAST_GAP: Duration = Duration::from_secs(3);
/// Both per host on a large segment.
const GREETING_PER_HOST: Duration = Duration::from_millis(50);

/// The lifetime on a small segment.
pub(super) const LEAST_LIFETIME: Duration =
    Duration::from_secs(LEAST_INTERVAL.as_secs() * INTERVALS as u64);
/// Limit on the lifetime that a host can claim for itself: the lifetime on a segment of 4,500 hosts.
pub(super) const LONGEST_LIFETIME: Duration = Duration::from_secs(1800);

/// The interval of each host's HELLOs on a segment with this number of hosts.
pub(super) fn interval(hosts: u32) -> Duration {
    LEAST_INTERVAL.max(PER_HOST * hosts)
}

/// The time for which a host counts as present without being heard, on a segment with this number of hosts.
pub(super) fn lifetime(hosts: u32) -> Duration {
    interval(hosts) * INTERVALS
}

/// A random time below a bound.
pub(super) fn within(bound: Duration, random: &mut Random) -> Duration {
    Duration::from_micros(random.below(u64::try_from(bound.as_micros()).unwrap_or(u64::MAX)))
}

/// The times of this host's HELLOs to the group.
#[derive(Debug)]
pub(super) struct Schedule {
    /// The next HELLO without a change.
    regular: Instant,
    /// HELLOs because of changes, ascending.
    changes: Vec<Instant>,
    /// The first HELLO of the last change.
    changed: Option<Instant>,
    last: Option<Instant>,
}

impl Schedule {
    /// The schedule of a host that starts.
    pub(super) fn new(now: Instant) -> Self {
        let mut new =
            Self { regular: now + LEAST_INTERVAL, changes: Vec::new(), changed: None, last: None };
        new.change(1, now);
        new
    }

    /// Plans HELLOs because their contents have changed.
    pub(super) fn change(&mut self, hosts: u32, now: Instant) {
        let first = match self.changed {
            // That HELLO will contain this change, too.
            Some(first) if self.changes.contains(&first) => return,
            Some(last) => now.max(last + LEAST_PAUSE.max(PAUSE_PER_HOST * hosts)),
            None => now,
        };
        self.changed = Some(first);
        self.changes.extend(REPEATS.map(|after| first + after));
        self.changes.sort();
    }

    /// Plans a HELLO because a new host was heard.
    pub(super) fn greet(&mut self, hosts: u32, random: &mut Random, now: Instant) {
        let many = GREETING_PER_HOST * hosts;
        let window = LEAST_GREETING.max(many);
        let earliest = self.last.map_or(now, |last| last + LEAST_GAP.max(many));
        self.regular = self.regular.min(earliest.max(now + within(window, random)));
    }

    /// Time of the next HELLO.
    pub(super) fn due(&self) -> Instant {
        self.changes.first().map_or(self.regular, |first| self.regular.min(*first))
    }

    /// A HELLO was sent: plans the next.
    pub(super) fn sent(&mut self, hosts: u32, random: &mut Random, now: Instant) {
        self.changes.retain(|at| *at > now);
        self.last = Some(now);
        let interval = interval(hosts);
        self.regular = now + interval / 2 + within(interval, random);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(ms: u64) -> Instant {
        Instant::from_millis(1_000_000 + ms)
    }

    fn run(schedule: &mut Schedule, hosts: u32, random: &mut Random, until: Instant) -> Vec<u64> {
        let mut sent = Vec::new();
        while schedule.due() < until {
            let now = schedule.due();
            schedule.sent(hosts, random, now);
            sent.push((now - at(0)).as_millis() as u64);
        }
        sent
    }

    #[test]
    fn a_change_is_told_three_times_and_then_every_interval() {
        let mut random = Random::new([1; 16]);
        let mut schedule = Schedule::new(at(0));
        assert_eq!(run(&mut schedule, 2, &mut random, at(20_000)), [0, 300, 1000]);
        let later = run(&mut schedule, 2, &mut random, at(3_600_000));
        assert!((100..=140).contains(&later.len()), "{later:?}");
        assert!(later.windows(2).all(|two| (15_000..45_000).contains(&(two[1] - two[0]))));
    }

    #[test]
    fn changes_without_end_are_told_within_a_bound() {
        let mut random = Random::new([1; 16]);
        let mut schedule = Schedule::new(at(0));
        let mut sent = 0;
        for ms in (0..60_000).step_by(10) {
            schedule.change(2, at(ms));
            sent += run(&mut schedule, 2, &mut random, at(ms + 1)).len();
        }
        assert!((80..=95).contains(&sent), "{sent}");
    }

    #[test]
    fn newcomers_without_end_cause_no_more_than_twenty_hellos_a_second() {
        for hosts in [10, 1000] {
            let mut random = Random::new([1; 16]);
            let mut schedule = Schedule::new(at(0));
            run(&mut schedule, hosts, &mut random, at(2000));
            let mut sent = 0;
            for ms in (2000..302_000).step_by(100) {
                schedule.greet(hosts, &mut random, at(ms));
                sent += run(&mut schedule, hosts, &mut random, at(ms + 1)).len();
            }
            let most = 300 / (LEAST_GAP.max(GREETING_PER_HOST * hosts)).as_secs() as usize + 1;
            assert!(sent <= most && sent > 4, "{sent} of {hosts}");
        }
        let mut schedule = Schedule::new(at(0));
        let mut random = Random::new([1; 16]);
        run(&mut schedule, 2, &mut random, at(2000));
        schedule.greet(2, &mut random, at(10_000));
        assert!(schedule.due() < at(10_000) + SECOND, "a newcomer need not wait");
    }

    #[test]
    fn a_host_is_gone_after_four_intervals() {
        assert_eq!(lifetime(2), SECOND * 120);
        assert_eq!(interval(1000), SECOND * 100);
    }
}
