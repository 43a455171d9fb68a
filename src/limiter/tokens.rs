//! A bucket of tokens for rare events, with a single owner.

use std::time::Duration;

use crate::time::Instant;

/// Lets through `burst` at once and `per_second` in the long run.
///
/// Kept as the time at which the bucket will be full again (the generic cell rate algorithm of
/// ITU-T I.371), so an idle bucket costs nothing.
#[derive(Debug)]
pub(crate) struct TokenBucket {
    interval: Duration,
    depth: Duration,
    full_at: Instant,
}

impl TokenBucket {
    pub(crate) fn new(per_second: u32, burst: u32) -> Self {
        let interval = Duration::from_secs(1) / per_second.max(1);
        Self { interval, depth: interval * burst.max(1), full_at: Instant::ZERO }
    }

    /// Takes a token, if there is one.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        self.take_within(self.depth, now)
    }

    /// Takes a token if few were taken of late: seven eighths of them stay.
    pub(crate) fn take_if_idle(&mut self, now: Instant) -> bool {
        self.take_within(self.depth / 8, now)
    }

    /// Whether all tokens are there.
    pub(crate) fn is_full(&self, now: Instant) -> bool {
        self.full_at <= now
    }

    fn take_within(&mut self, depth: Duration, now: Instant) -> bool {
        let taken = self.full_at.max(now) + self.interval;
        let fits = taken.saturating_since(now) <= depth;
        if fits {
            self.full_at = taken;
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_of_a_bucket_is_left_for_others() {
        let (mut bucket, now) = (TokenBucket::new(10, 32), Instant::from_millis(1000));
        assert_eq!((0..20).filter(|_| bucket.take_if_idle(now)).count(), 4);
        assert_eq!((0..60).filter(|_| bucket.take(now)).count(), 28);
        assert!(!bucket.take_if_idle(now));
    }

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
}
