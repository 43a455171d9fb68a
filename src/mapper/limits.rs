//! Rates: a token bucket, and the count of moves that makes a vif damped.

use std::collections::VecDeque;
use std::time::Duration;

use crate::time::Instant;

/// Lets through `burst` at once and `per_second` in the long run.
///
/// Kept as the time at which the bucket will be full again (the generic cell rate algorithm of
/// ITU-T I.371), so an idle bucket costs nothing.
#[derive(Debug)]
pub(super) struct TokenBucket {
    interval: Duration,
    depth: Duration,
    full_at: Instant,
}

impl TokenBucket {
    pub(super) fn new(per_second: u32, burst: u32) -> Self {
        let interval = Duration::from_secs(1) / per_second.max(1);
        Self { interval, depth: interval * burst.max(1), full_at: Instant::ZERO }
    }

    /// Takes a token, if there is one.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let taken = self.full_at.max(now) + self.interval;
        let fits = taken.saturating_since(now) <= self.depth;
        if fits {
            self.full_at = taken;
        }
        fits
    }
}

/// When a vif moved, as far back as matters.
#[derive(Debug, Default)]
pub(super) struct Moves(VecDeque<Instant>);

impl Moves {
    /// Notes a move, of which at most `limit` are kept.
    pub(super) fn record(&mut self, now: Instant, limit: usize) {
        self.0.push_back(now);
        while self.0.len() > limit {
            self.0.pop_front();
        }
    }

    /// Whether there were `limit` moves within the last `window`.
    pub(super) fn damped(&self, now: Instant, limit: usize, window: Duration) -> bool {
        let recent = self.0.iter().filter(|&&at| now.saturating_since(at) < window).count();
        limit > 0 && recent >= limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let mut bucket = TokenBucket::new(10, 5);
        let mut now = Instant::from_millis(1000);
        assert_eq!((0..20).filter(|_| bucket.take(now)).count(), 5);
        let mut taken = 0;
        for _ in 0..2000 {
            now += Duration::from_millis(1);
            taken += usize::from(bucket.take(now));
        }
        assert_eq!(taken, 20);
    }

    #[test]
    fn moves_are_damped_in_their_window_only() {
        let (limit, window) = (5, Duration::from_secs(180));
        let mut moves = Moves::default();
        for second in 0..5 {
            assert!(!moves.damped(Instant::from_millis(second * 1000), limit, window));
            moves.record(Instant::from_millis(second * 1000), limit);
        }
        assert!(moves.damped(Instant::from_millis(5000), limit, window));
        assert!(moves.damped(Instant::from_millis(179_000), limit, window));
        assert!(!moves.damped(Instant::from_millis(180_000), limit, window));
    }
}
