//! Token buckets limit the number of bits, or frames, that may pass.
//!
//! A [`Bucket`] fills at a rate up to its burst. Each frame that passes takes credit out of it.
//! While it is empty, frames wait or are dropped, as its user decides. Threads can share it. It
//! consists of one number, the credit spent:
//!
//! ```text
//!   earned(now) = rate * now           the credit since the clock's origin
//!   level       = earned - spent       at most the burst: the excess is lost
//! ```
//!
//! A bucket computes the earned credit anew from the clock each time, so nothing is rounded twice
//! and nothing drifts. All numbers are modulo 2^64.
//!
//! While a bucket is empty, a caller can book credit: the level falls below zero at once, and the
//! caller may use the booked credit when the level is back at zero. Bookings are served in their
//! order.
//!
//! A frame passes as soon as the level is above zero, and takes its whole cost: the level may fall
//! below zero by one frame (of each thread), which is paid back before the next. So a burst need
//! not have room for the largest frame. In any interval, no more passes than the rate yields, plus
//! the burst and one frame.
//!
//! The caller chooses the unit of a cost: bits for [`Limit::bits`], frames for [`Limit::frames`].

#![forbid(unsafe_code)]

pub(crate) mod repeat;
mod tokens;
pub mod units;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::time::Instant;
pub(crate) use tokens::TokenBucket;
use units::{Rate, Size};

/// Microseconds in a second: the clock's resolution.
const MICROS: u64 = 1_000_000;
/// The least burst, as time at the rate: a thread that waits for credit wakes up some tenths of a
/// millisecond late, and what flows over meanwhile is lost.
const MIN_BURST_TIME: Duration = Duration::from_millis(2);
/// More than all threads together can owe for their last frames, in bits: 16 of them, for a frame
/// that is cut into 8192 of 128 bytes. They never book more than the rate yields in a second.
const MAX_OVERDRAFT: u64 = 1 << 28;

/// A rate and how much of it may pass at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Bits or frames per second, 1 to 10^12.
    per_second: u64,
    /// Bits or frames, at least 1.
    burst: u64,
}

impl Limit {
    /// Bits per second. Without a burst it is what the rate yields in `time`, but one frame of
    /// `least` bytes at least.
    ///
    /// # Errors
    /// The burst is too small to keep up the rate: the least that is enough.
    pub fn bits(rate: Rate, burst: Option<Size>, time: Duration, least: u64) -> Result<Self, Size> {
        let per_second = rate.bits_per_second();
        let smallest = yield_of(per_second, MIN_BURST_TIME).div_ceil(8).max(1);
        let burst = match burst {
            Some(burst) if burst.bytes() < smallest => return Err(Size::from_bytes(smallest)),
            Some(burst) => burst.bytes() * 8,
            None => yield_of(per_second, time).max(8 * least),
        };
        Ok(Self { per_second, burst })
    }

    /// Frames per second, and as many at once as that is in `time`, but `least` at least.
    pub fn frames(per_second: u32, time: Duration, least: u64) -> Self {
        let per_second = u64::from(per_second).max(1);
        Self { per_second, burst: yield_of(per_second, time).max(least).max(1) }
    }

    /// Bits or frames that may pass at once.
    pub fn burst(self) -> u64 {
        self.burst
    }

    /// The credit that the rate yields in some milliseconds.
    pub fn yields(self, time: Duration) -> u64 {
        yield_of(self.per_second, time)
    }
}

fn yield_of(per_second: u64, time: Duration) -> u64 {
    per_second.saturating_mul(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)) / 1000
}

/// How full a bucket is.
enum Level {
    /// Not more than its burst.
    Credit(u64),
    /// Below zero.
    Debt(u64),
}

/// A token bucket, full at the clock's origin.
///
/// ```
/// use std::time::Duration;
/// use vnet::limiter::{Bucket, Limit};
/// use vnet::time::Instant;
///
/// // 100 frames a second, 10 at once.
/// let bucket = Bucket::new(Limit::frames(100, Duration::from_millis(100), 1));
/// let now = Instant::from_millis(5000);
/// assert_eq!((0..20).filter(|_| bucket.admit(1, now)).count(), 10);
/// assert!(bucket.admit(1, now + Duration::from_millis(10)));
/// ```
#[derive(Debug)]
pub struct Bucket {
    limit: Limit,
    /// Of what has been earned, what has been taken or has flowed over.
    spent: AtomicU64,
    /// More than can be owed: a debt beyond it means that the bucket has been left alone for so
    /// long that the numbers have come round, or that the clock was set back.
    most_owed: u64,
}

impl Bucket {
    /// A full bucket.
    pub fn new(limit: Limit) -> Self {
        let spent = AtomicU64::new(0_u64.wrapping_sub(limit.burst));
        Self { limit, spent, most_owed: limit.per_second + limit.burst + MAX_OVERDRAFT }
    }

    /// Its rate and size.
    pub fn limit(&self) -> Limit {
        self.limit
    }

    /// Takes up to `most` of the credit; 0 if there is none. The loan is ended by
    /// [`Bucket::settle`].
    pub fn lease(&self, most: u64, now: Instant) -> u64 {
        self.update(now, |credit| credit.min(most))
    }

    /// Ends a loan: returns unused credit, and charges credit used beyond it.
    pub fn settle(&self, leased: u64, used: u64) {
        self.spent.fetch_add(used.wrapping_sub(leased), Ordering::Relaxed);
    }

    /// Charges `cost` if there is any credit; false if not.
    pub fn admit(&self, cost: u64, now: Instant) -> bool {
        self.update(now, |_| cost) != 0
    }

    /// Takes what `wanted` says of the credit, which it is asked for only if there is some.
    fn update(&self, now: Instant, wanted: impl Fn(u64) -> u64) -> u64 {
        let mut spent = self.spent.load(Ordering::Relaxed);
        loop {
            let Level::Credit(credit @ 1..) = self.level(spent, now) else { return 0 };
            let taken = wanted(credit);
            // What flowed over is spent, too.
            let after = self.earned(now).wrapping_sub(credit).wrapping_add(taken);
            let order = Ordering::Relaxed;
            match self.spent.compare_exchange_weak(spent, after, order, order) {
                Ok(_) => return taken,
                Err(changed) => spent = changed,
            }
        }
    }

    /// Takes `amount` that may not be there yet; returns when it is earned.
    pub fn book(&self, amount: u64, now: Instant) -> Instant {
        let spent = self.spent.fetch_add(amount, Ordering::Relaxed).wrapping_add(amount);
        let Level::Debt(debt) = self.level(spent, now) else { return now };
        let micros = (u128::from(debt) * u128::from(MICROS)).div_ceil(self.limit.per_second.into());
        now + Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
    }

    fn level(&self, spent: u64, now: Instant) -> Level {
        let earned = self.earned(now);
        match spent.wrapping_sub(earned) {
            0 => Level::Credit(0),
            debt if debt <= self.most_owed => Level::Debt(debt),
            _ => Level::Credit(earned.wrapping_sub(spent).min(self.limit.burst)),
        }
    }

    /// Modulo 2^64; the product of rate and part of a second is below 2^60.
    fn earned(&self, now: Instant) -> u64 {
        let (seconds, part) = (now.as_micros() / MICROS, now.as_micros() % MICROS);
        let whole = self.limit.per_second.wrapping_mul(seconds);
        whole.wrapping_add(self.limit.per_second * part / MICROS)
    }
}

#[cfg(test)]
mod tests;
