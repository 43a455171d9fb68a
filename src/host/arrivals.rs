//! Limits the rate at which a user registers vifs. Each registration opens sockets, and all hosts
//! hear the announcement of a vif whose guest runs. A user's loop must not keep the segment busy.

use std::collections::BTreeMap;

use crate::limiter::TokenBucket;
use crate::time::Instant;

/// Number of buckets from which on a new user's registration first removes full buckets.
const FEW: usize = 64;

/// One bucket per user except root.
#[derive(Debug)]
pub(super) struct Arrivals {
    per_second: u32,
    burst: u32,
    by_user: BTreeMap<u32, TokenBucket>,
}

impl Arrivals {
    /// Each user may register `burst` vifs at once, and `per_second` in the long run.
    pub(super) fn new(per_second: u32, burst: usize) -> Self {
        let burst = u32::try_from(burst).unwrap_or(u32::MAX);
        Self { per_second, burst, by_user: BTreeMap::new() }
    }

    /// Whether a user may register another vif now; if so, counts it.
    pub(super) fn take(&mut self, uid: u32, now: Instant) -> bool {
        if uid == 0 {
            return true;
        }
        if self.by_user.len() >= FEW && !self.by_user.contains_key(&uid) {
            self.by_user.retain(|_, bucket| !bucket.is_full(now));
        }
        let (per_second, burst) = (self.per_second, self.burst);
        let new = || TokenBucket::new(per_second, burst);
        self.by_user.entry(uid).or_insert_with(new).take(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    #[test]
    fn each_user_has_a_burst_and_a_rate_and_root_has_neither() {
        let mut arrivals = Arrivals::new(10, 3);
        for uid in [1000, 1001] {
            assert_eq!((0..9).filter(|_| arrivals.take(uid, at(1000))).count(), 3);
            assert_eq!((0..9).filter(|_| arrivals.take(uid, at(1100))).count(), 1);
        }
        assert!((0..999).all(|_| arrivals.take(0, at(1000))));
    }

    #[test]
    fn users_that_have_been_quiet_are_forgotten() {
        let mut arrivals = Arrivals::new(10, 3);
        for uid in 1..10_000 {
            assert!(arrivals.take(uid, at(u64::from(uid) * 1000)));
        }
        assert!(arrivals.by_user.len() <= FEW, "{}", arrivals.by_user.len());
    }
}
