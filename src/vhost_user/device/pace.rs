//! Decides whether a worker polls for the next frame for some time, or sleeps at once.
//!
//! Polling costs processor time; sleeping costs a wake-up when the next frame arrives. So polling
//! pays only if the next frame arrives soon. The decision uses the past:
//!
//! * The moving average of the gaps between the end of work and the next frame. If it is longer
//!   than two wake-ups, or than a poll lasts, the worker does not poll. A gap counts as at
//!   most [`LONGEST`], so that seven frames in quick succession are enough after any pause.
//! * The success of polls. After two unsuccessful polls in a row the worker sleeps without polling
//!   2 times, then 4, up to [`MOST_SKIPPED`], until a poll succeeds. The numbers are even, so that
//!   of gaps that alternate (a request, its reply) it does not always try the same one.
//! * Other work for the processor. After such work the worker does not poll for some time, from
//!   [`MIN_PAUSE`] to [`MAX_PAUSE`], twice as long each time that this happens soon again.

#![forbid(unsafe_code)]

use std::time::Duration;

use crate::time::Instant;

/// What a wake-up costs those who wait for the frame: the median of request and reply between two
/// processes that sleep for each other, where both that look need 7 us.
const WAKE_UP: Duration = Duration::from_micros(50);
/// Longer gaps count as this one.
const LONGEST: Duration = Duration::from_micros(400);
/// Weight of the average so far, to one of the newest gap.
const MEMORY: u32 = 3;
/// Rests without a look between two tries, when all have been in vain.
const MOST_SKIPPED: u32 = 64;

/// First pause after others have wanted the processor, and the longest.
const MIN_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// How frames have come to a worker, and whether it paid to look for them.
#[derive(Debug)]
pub(super) struct Pace {
    /// Longest look.
    most: Duration,
    average: Duration,
    /// When the work was done.
    resting_since: Option<Instant>,
    is_looking: bool,
    /// Looks in vain in a row.
    in_vain: u32,
    /// Rests to come without a look.
    skip: u32,
    /// Length of the last pause, and its end.
    pause: Duration,
    pause_ends: Instant,
}

impl Pace {
    /// That of a worker which looks for at most so long.
    pub(super) fn new(most: Duration) -> Self {
        let average = LONGEST;
        Self {
            most,
            average,
            resting_since: None,
            is_looking: false,
            in_vain: 0,
            skip: 0,
            pause: Duration::ZERO,
            pause_ends: Instant::ZERO,
        }
    }

    /// Frames have come, at `now`. Returns whether a look has paid.
    pub(super) fn frames_came(&mut self, now: Instant) -> bool {
        if let Some(since) = self.resting_since.take() {
            let gap = (now - since).min(LONGEST);
            self.average = (self.average * MEMORY + gap) / (MEMORY + 1);
        }
        let has_paid = std::mem::take(&mut self.is_looking);
        if has_paid {
            (self.in_vain, self.skip) = (0, 0);
        }
        has_paid
    }

    /// The work is done, at `now`. Until when to look for more, if at all.
    pub(super) fn rest(&mut self, now: Instant) -> Option<Instant> {
        self.resting_since = Some(now);
        // A gap that ended with a wake-up has that in it.
        if now < self.pause_ends || self.average > (self.most + WAKE_UP).min(2 * WAKE_UP) {
            return None;
        }
        if let Some(left) = self.skip.checked_sub(1) {
            self.skip = left;
            return None;
        }
        self.is_looking = true;
        Some(now + self.most)
    }

    /// No frame came while it was looked for.
    pub(super) fn looked_in_vain(&mut self) {
        self.is_looking = false;
        self.in_vain = self.in_vain.saturating_add(1);
        if self.in_vain > 1 {
            self.skip = 1_u32.checked_shl(self.in_vain - 1).unwrap_or(0);
            if !(1..=MOST_SKIPPED).contains(&self.skip) {
                self.skip = MOST_SKIPPED;
            }
        }
    }

    /// Others wanted the processor, as of `now`.
    pub(super) fn crowded(&mut self, now: Instant) {
        self.is_looking = false;
        let is_soon = now < self.pause_ends + self.pause;
        self.pause = if is_soon { (2 * self.pause).min(MAX_PAUSE) } else { MIN_PAUSE };
        self.pause_ends = now + self.pause;
    }

    /// Looking ended for a reason that says nothing about frames.
    pub(super) fn interrupted(&mut self) {
        self.is_looking = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_micros(50);
    const WORK: Duration = Duration::from_micros(3);

    /// A worker whose frames come as the gaps say, and what became of it.
    struct Worker {
        pace: Pace,
        now: Instant,
        paid: usize,
        in_vain: usize,
    }

    impl Worker {
        fn new() -> Self {
            Self { pace: Pace::new(MOST), now: Instant::ZERO, paid: 0, in_vain: 0 }
        }

        /// Frames with such gaps. One that is slept through ends with a wake-up.
        fn serve(&mut self, gaps: impl IntoIterator<Item = u64>) -> &mut Self {
            for gap in gaps.into_iter().map(Duration::from_micros) {
                self.now += WORK;
                let until = self.pace.rest(self.now);
                let came = self.now + gap;
                let is_seen = until.is_some_and(|until| came < until);
                if until.is_some() && !is_seen {
                    self.pace.looked_in_vain();
                    self.in_vain += 1;
                }
                self.now = if is_seen { came } else { came + WAKE_UP / 2 };
                assert_eq!(self.pace.frames_came(self.now), is_seen);
                self.paid += usize::from(is_seen);
            }
            self
        }

        fn outcome(&mut self) -> (usize, usize) {
            (std::mem::take(&mut self.paid), std::mem::take(&mut self.in_vain))
        }
    }

    fn always(gap: u64, times: usize) -> impl Iterator<Item = u64> {
        std::iter::repeat_n(gap, times)
    }

    #[test]
    fn a_slow_flow_is_never_looked_for() {
        for gap in [150, 300, 1_000, 1_000_000] {
            assert_eq!(Worker::new().serve(always(gap, 1000)).outcome(), (0, 0), "{gap} us");
        }
    }

    #[test]
    fn a_quick_flow_is_looked_for_after_a_few_frames() {
        for gap in [0, 5, 30, 49] {
            let (paid, in_vain) = Worker::new().serve(always(gap, 1000)).outcome();
            assert!(paid >= 990 && in_vain == 0, "{gap} us: {paid} paid, {in_vain} in vain");
        }
    }

    #[test]
    fn a_pause_costs_one_look() {
        let mut worker = Worker::new();
        worker.serve(always(10, 20)).outcome();
        let (_, in_vain) = worker.serve([3_600_000_000]).outcome();
        assert_eq!(in_vain, 1);
        assert_eq!(worker.serve(always(1_000_000, 100)).outcome(), (0, 0), "chatter");
        let (paid, in_vain) = worker.serve(always(10, 20)).outcome();
        assert!(paid >= 12 && in_vain == 0, "{paid} of a new burst");
    }

    #[test]
    fn frames_that_come_just_too_late_are_given_up() {
        let (paid, in_vain) = Worker::new().serve(always(60, 10_000)).outcome();
        assert_eq!(paid, 0);
        assert!((100..200).contains(&in_vain), "{in_vain} looks in vain among 10000 frames");
    }

    /// Both gaps of a round trip: one that a look bridges, one that it does not.
    #[test]
    fn every_other_look_may_be_in_vain() {
        let gaps = [20, 70].into_iter().cycle().take(1000);
        let (paid, in_vain) = Worker::new().serve(gaps).outcome();
        assert!(paid >= 490, "{paid} of 500 paid, {in_vain} in vain");
    }

    /// As soon as a look pays again, each is tried again.
    #[test]
    fn who_had_given_up_comes_back() {
        let mut worker = Worker::new();
        worker.serve(always(60, 10_000)).outcome();
        let (paid, in_vain) = worker.serve(always(20, 200)).outcome();
        assert!(paid >= 200 - MOST_SKIPPED as usize - 10, "{paid} paid, {in_vain} in vain");
        let gaps = [20, 70].into_iter().cycle();
        worker.serve(always(60, 10_000)).outcome();
        let (paid, _) = worker.serve(gaps.take(1000)).outcome();
        assert!(paid >= 400, "{paid} of 500");
    }

    #[test]
    fn an_interrupted_look_counts_for_nothing() {
        let mut worker = Worker::new();
        worker.serve(always(10, 20)).outcome();
        for _ in 0..10 {
            assert!(worker.pace.rest(worker.now).is_some());
            worker.pace.interrupted();
        }
        assert!(!worker.pace.frames_came(worker.now), "nobody looked");
    }

    /// Serves a quick flow until the first look; how long that took.
    fn until_look(worker: &mut Worker) -> Duration {
        let begin = worker.now;
        while worker.serve([10]).outcome() == (0, 0) {}
        worker.now - begin
    }

    #[test]
    fn a_crowd_is_let_through() {
        let mut worker = Worker::new();
        worker.serve(always(10, 20)).outcome();
        for pause in [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000] {
            let pause = Duration::from_millis(pause);
            worker.pace.crowded(worker.now);
            let took = until_look(&mut worker);
            assert!(took >= pause && took < pause + 2 * WAKE_UP, "{took:?} for {pause:?}");
        }
        worker.serve([10_000_000]);
        worker.serve(always(10, 20)).outcome();
        worker.pace.crowded(worker.now);
        assert!(until_look(&mut worker) < MIN_PAUSE + 2 * WAKE_UP, "there was peace for long");
    }

    #[test]
    fn a_look_has_its_end() {
        let mut worker = Worker::new();
        worker.serve(always(10, 20));
        assert_eq!(worker.pace.rest(worker.now), Some(worker.now + MOST));
    }
}
