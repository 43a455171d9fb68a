//! A bucket of tokens for what happens now and then, owned by whoever takes them.

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
        let taken = self.full_at.max(now) + self.interval;
        let fits = taken.saturating_since(now) <= self.depth;
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
