//! A vif's rate limits, as its workers keep them.
//!
//! Both directions are shaped by backpressure: while a bucket is empty, frames stay in
//! the guest's transmit ring (where the guest's queueing discipline is fair among its flows) or in
//! the socket's buffer (whose overflow the kernel counts). Handlers never block: a timer wakes
//! the worker when a millisecond's worth of credit is available. Group frames beyond
//! their own limit are dropped, so that a broadcast storm does not delay unicast.
//!
//! The workers of a vif's queue pairs share its buckets without a lock. A worker takes
//! credit for some frames at a time and returns the unused part. If there is none, it books
//! the next millisecond's worth and waits until that is earned. So waiting workers take
//! turns, and each pays back the excess of its own last frame.
//!
//! A frame counts with its Ethernet header and payload, without FCS, as in `tx_bytes` and `rx_bytes`, plus
//! `--rate-overhead` (such as the tunnel's headers), but with at least [`LEAST_FRAME`], the
//! cost of the shortest frame on the underlay. A large frame that is segmented counts once, as the guest
//! sent it, but with at least this minimum, and with the overhead, for each frame that it becomes. A merged frame counts as the
//! guest receives it. Limits of group frames count each frame that leaves. Dropped frames do not count.

#![forbid(unsafe_code)]

use std::fmt;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use crate::guest::frames::Pace;
use crate::limiter::units::{Rate, Size};
use crate::limiter::{Bucket, Limit};
use crate::time::Instant;

/// Default burst of a direction: small enough for an accuracy of 2 % within any second.
const BURST_TIME: Duration = Duration::from_millis(15);
/// The same of group frames, which come in bunches: answers to a router's question, a host that
/// looks for its neighbours.
const GROUP_BURST_TIME: Duration = Duration::from_millis(100);
/// How long frames may wait in the sockets for credit. A TCP sender far away needs this much room to
/// keep up the rate; more would only delay all that comes behind.
const WAITING_TIME: Duration = Duration::from_millis(100);
/// Least room in the sockets, in bytes, however low the rate.
const LEAST_WAITING_ROOM: u64 = 256 << 10;
/// How long frames that were taken from the sockets may wait.
const READ_AHEAD_TIME: Duration = Duration::from_millis(20);
/// A frame of the usual size, in bytes: a burst has room for it.
const USUAL_FRAME: u64 = 1518;
/// A burst of group frames has room for some, in bytes and in frames.
const LEAST_GROUP_BURST: u64 = 16 << 10;
const LEAST_GROUP_FRAMES: u64 = 32;
/// Credit that a worker takes at a time, in bits.
const CHUNK: u64 = 64 << 13;
/// A worker that finds no credit books what the rate yields in this time,
const PORTION_TIME: Duration = Duration::from_millis(1);
/// or this many bytes if that is more, but less than a frame of the usual size: then one passes, not
/// two.
const LEAST_PORTION: u64 = 1 << 10;

/// Least burst under a limit on frames.
const LEAST_FRAMES: u64 = 32;
/// Credit that a worker takes at a time, in frames.
const FRAMES_CHUNK: u64 = 64;

/// Minimum that a frame counts, in bytes: the length of the shortest frame on the underlay, with Ethernet, IPv4, UDP and
/// the tunnel's header.
pub const LEAST_FRAME: usize = 128;

/// The cost of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    frames: u64,
    /// In bytes.
    len: usize,
}

impl Cost {
    /// Of a frame of `len` bytes that leaves in so many.
    pub fn new(len: usize, segments: usize) -> Self {
        let segments = segments.max(1);
        Self { frames: segments as u64, len: len.max(segments * LEAST_FRAME) }
    }
}

/// The requested limits of a vif; none by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// From the guest.
    pub rate_out: Option<Rate>,
    /// To the guest.
    pub rate_in: Option<Rate>,
    /// Frames from the guest per second.
    pub frames_out: Option<u32>,
    /// Bytes to add to each frame.
    pub overhead: u16,
    /// Burst of these two, in bytes.
    pub burst: Option<Size>,
    /// Group frames from the guest.
    pub group_rate: Option<Rate>,
    /// Burst of these, in bytes.
    pub group_burst: Option<Size>,
    /// Frames to groups per second.
    pub group_frames: Option<u32>,
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rates = [("out", self.rate_out), ("in", self.rate_in), ("to groups", self.group_rate)];
        let rates = rates.into_iter().filter_map(|(name, rate)| Some(format!("{name} {}", rate?)));
        let frames = [("out", self.frames_out), ("to groups", self.group_frames)];
        let frames =
            frames.into_iter().filter_map(|(name, n)| Some(format!("{name} {} frames/s", n?)));
        let overhead = (self.overhead > 0).then(|| format!("{} bytes more a frame", self.overhead));
        f.write_str(&rates.chain(frames).chain(overhead).collect::<Vec<_>>().join(", "))
    }
}

/// Direction of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the guest.
    Out,
    /// To the guest.
    In,
}

/// The limits of a vif in one worker. Clones share the buckets.
#[derive(Clone, Debug, Default)]
pub struct Throttle {
    /// From the guest.
    pub out: Gate,
    /// To the guest.
    pub incoming: Gate,
    group_bits: Option<Arc<Bucket>>,
    group_frames: Option<Arc<Bucket>>,
    /// What each frame counts besides its own bytes.
    overhead: u64,
}

impl Throttle {
    /// With full buckets.
    ///
    /// # Errors
    /// A burst is too small for its rate; the text names a sufficient one.
    pub fn new(limits: &Limits) -> Result<Self, String> {
        let bucket = |rate: Option<Rate>, name, burst, time, least| {
            let Some(rate) = rate else { return Ok(None) };
            match Limit::bits(rate, burst, time, least) {
                Ok(limit) => Ok(Some(Arc::new(Bucket::new(limit)))),
                Err(least) => Err(format!(
                    "{name} is too small to keep up {rate}: {least} bytes is the least"
                )),
            }
        };
        let gate = |rate| bucket(rate, "--burst", limits.burst, BURST_TIME, USUAL_FRAME);
        let (time, least) = (GROUP_BURST_TIME, LEAST_GROUP_BURST);
        let frames = |limit| Limit::frames(limit, GROUP_BURST_TIME, LEAST_GROUP_FRAMES);
        let frames_out = limits
            .frames_out
            .map(|limit| Arc::new(Bucket::new(Limit::frames(limit, BURST_TIME, LEAST_FRAMES))));
        let overhead = u64::from(limits.overhead);
        Ok(Self {
            out: Gate::new(gate(limits.rate_out)?, frames_out, overhead),
            incoming: Gate::new(gate(limits.rate_in)?, None, overhead),
            overhead,
            group_bits: bucket(
                limits.group_rate,
                "--group-burst",
                limits.group_burst,
                time,
                least,
            )?,
            group_frames: limits.group_frames.map(|limit| Arc::new(Bucket::new(frames(limit)))),
        })
    }

    /// Whether it needs a timer.
    pub fn needs_timer(&self) -> bool {
        self.out.is_limited() || self.incoming.is_limited()
    }

    /// Whether a group frame may leave; charged if so.
    pub fn admits_group(&self, cost: Cost, now: Instant) -> bool {
        let admits = |bucket: &Option<Arc<Bucket>>, cost| {
            bucket.as_ref().is_none_or(|bucket| bucket.admit(cost, now))
        };
        admits(&self.group_frames, cost.frames)
            && admits(&self.group_bits, bits(cost.len) + 8 * self.overhead * cost.frames)
    }

    /// When to try a gate again.
    pub fn poll_timeout(&self) -> Option<Instant> {
        [self.out.until(), self.incoming.until()].into_iter().flatten().min()
    }

    /// Whether frames that the gate of a direction has held back may pass now.
    pub fn is_due(&self, direction: Direction, now: Instant) -> bool {
        self.gate(direction).until().is_some_and(|until| until <= now)
    }

    /// Whether frames of a direction wait for credit.
    pub fn holds(&self, direction: Direction) -> bool {
        self.gate(direction).until().is_some()
    }

    /// Bytes that may wait for credit in the socket of each of so many queue pairs; `None`: as many
    /// as there is room for.
    pub fn waiting_room(&self, queue_pairs: usize) -> Option<u64> {
        let limit = self.incoming.bits.bucket.as_ref()?.limit();
        Some((limit.yields(WAITING_TIME) / 8 / queue_pairs as u64).max(LEAST_WAITING_ROOM))
    }

    /// Bytes to be taken from a socket at a time; `None`: as many as may be.
    pub fn read_ahead(&self) -> Option<u64> {
        Some(self.incoming.bits.bucket.as_ref()?.limit().yields(READ_AHEAD_TIME) / 8)
    }

    /// Handles the start or stop of rings: gates hold no frames back any more.
    pub fn reset(&mut self) {
        for gate in [&mut self.out, &mut self.incoming] {
            gate.reset();
        }
    }

    fn gate(&self, direction: Direction) -> &Gate {
        match direction {
            Direction::Out => &self.out,
            Direction::In => &self.incoming,
        }
    }
}

fn bits(len: usize) -> u64 {
    8 * len as u64
}

/// One direction in one worker: frames pass while both meters let them.
#[derive(Clone, Debug, Default)]
pub struct Gate {
    bits: Meter,
    frames: Meter,
    /// What each frame counts besides its own bytes.
    overhead: u64,
}

/// One limit of a direction in one worker.
#[derive(Clone, Debug, Default)]
struct Meter {
    bucket: Option<Arc<Bucket>>,
    /// Credit is taken for so much at a time,
    chunk: u64,
    /// and booked for so much at least.
    least_portion: u64,
    /// While frames are held back: when what is booked may be used.
    until: Option<Instant>,
    /// Credit that is taken already, for then.
    booked: u64,
    /// What has passed beyond the credit and is paid back first: less than a frame.
    owed: u64,
}

/// Credit of a worker for one batch.
#[derive(Debug)]
pub struct Allowance {
    bits: Share,
    frames: Share,
    overhead: u64,
}

/// Credit of one meter.
#[derive(Debug)]
struct Share {
    bucket: Option<Arc<Bucket>>,
    chunk: u64,
    now: Instant,
    leased: u64,
    used: u64,
    is_held: bool,
    /// Something has passed, or nothing was held back before.
    is_news: bool,
}

impl Gate {
    fn new(bits: Option<Arc<Bucket>>, frames: Option<Arc<Bucket>>, overhead: u64) -> Self {
        let meter = |bucket, chunk, least_portion| Meter {
            bucket,
            chunk,
            least_portion,
            until: None,
            booked: 0,
            owed: 0,
        };
        let (bits, frames) =
            (meter(bits, CHUNK, 8 * LEAST_PORTION), meter(frames, FRAMES_CHUNK, 1));
        Self { bits, frames, overhead }
    }

    fn is_limited(&self) -> bool {
        self.bits.bucket.is_some() || self.frames.bucket.is_some()
    }

    /// While frames are held back: when they are to be tried again.
    fn until(&self) -> Option<Instant> {
        self.bits.until.max(self.frames.until)
    }

    /// Begins to let frames pass.
    pub fn open(&mut self, now: Instant) -> Allowance {
        let (bits, frames) = (self.bits.open(now), self.frames.open(now));
        Allowance { bits, frames, overhead: self.overhead }
    }

    /// Ends what [`Gate::open`] began; true if frames are held back that were not before.
    pub fn close(&mut self, allowance: Allowance) -> bool {
        let was_held = self.until().is_some();
        let bits = self.bits.close(allowance.bits);
        let frames = self.frames.close(allowance.frames);
        (bits || frames) && !was_held
    }

    /// Holds no frames back any more.
    fn reset(&mut self) {
        self.bits.reset();
        self.frames.reset();
    }
}

impl Meter {
    fn open(&mut self, now: Instant) -> Share {
        let is_news = self.until.is_none();
        let (bucket, mut leased, mut used) = (self.bucket.clone(), 0, 0);
        if bucket.is_none() {
            leased = u64::MAX;
        } else if self.until.is_none_or(|until| until <= now) {
            self.until = None;
            leased = mem::take(&mut self.booked);
            used = mem::take(&mut self.owed);
        }
        let is_held = self.until.is_some();
        Share { bucket, chunk: self.chunk, now, leased, used, is_held, is_news }
    }

    fn close(&mut self, share: Share) -> bool {
        let Share { bucket: Some(bucket), now, leased, used, is_held, is_news, .. } = share else {
            return false;
        };
        if self.until.is_some() {
            return false;
        }
        if !is_held {
            bucket.settle(leased, used);
            return false;
        }
        self.owed = used - leased;
        self.booked = bucket.limit().yields(PORTION_TIME).max(self.least_portion);
        self.until = Some(bucket.book(self.booked, now));
        is_news
    }

    fn reset(&mut self) {
        if let Some(bucket) = &self.bucket {
            bucket.settle(mem::take(&mut self.booked), mem::take(&mut self.owed));
        }
        self.until = None;
    }
}

impl Allowance {
    /// Whether one more frame may pass; if not, it is held back.
    #[inline]
    pub fn admits(&mut self) -> bool {
        self.bits.admits() && self.frames.admits()
    }

    /// A frame from the guest has passed. `cost` is asked only if there is a limit.
    #[inline]
    pub fn charge_cost(&mut self, cost: impl FnOnce() -> Cost) {
        if self.bits.bucket.is_none() && self.frames.bucket.is_none() {
            return;
        }
        let cost = cost();
        self.bits.charge(bits(cost.len) + 8 * self.overhead * cost.frames);
        self.frames.charge(cost.frames);
    }

    /// A frame of `len` bytes has passed.
    #[inline]
    pub fn charge(&mut self, len: usize) {
        if len > 0 {
            self.charge_cost(|| Cost::new(len, 1));
        }
    }
}

impl Pace for Allowance {
    #[inline]
    fn admits(&mut self) -> bool {
        Self::admits(self)
    }

    #[inline]
    fn charge(&mut self, len: usize) {
        Self::charge(self, len);
    }
}

impl Share {
    #[inline]
    fn admits(&mut self) -> bool {
        if self.used >= self.leased
            && !self.is_held
            && let Some(bucket) = &self.bucket
        {
            self.leased += bucket.lease(self.chunk, self.now);
            self.is_held = self.used >= self.leased;
        }
        !self.is_held
    }

    #[inline]
    fn charge(&mut self, amount: u64) {
        self.used += amount;
        self.is_news = true;
    }
}

#[cfg(test)]
mod tests;
