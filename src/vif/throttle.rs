//! A vif's rate limits, as its workers keep them.
//!
//! Out and in are shaped by backpressure: while a bucket is empty, frames stay where they are, in
//! the guest's transmit ring (its queueing discipline sees that, and is fair among its flows) or in
//! the socket's buffer (the kernel counts what no longer fits). Nothing waits in a handler: the
//! worker is woken by a timer when a millisecond's worth has come together. Group frames beyond
//! their own limit are dropped, so that a storm of them does not hold up unicast.
//!
//! The buckets are the vif's, shared by the workers of its queue pairs without a lock. A worker takes
//! credit for some frames at a time and gives back what it did not use. If there is none it books
//! the next millisecond's worth and waits until that is earned: so those that wait are served in
//! turn, and what one's last frame was too long it pays back itself.
//!
//! What counts is the guest's frame, from its destination address on: Ethernet header and payload
//! without FCS, as in `tx_bytes` and `rx_bytes`. A large frame that is cut counts once, as the guest
//! sent it, but for each frame that it is cut into [`LEAST_SEGMENT`] at least: of tiny ones nearly all
//! is headers. One that was merged counts as the guest gets it. To groups each frame counts that leaves.
//! Frames that are dropped are not charged.

#![forbid(unsafe_code)]

use std::fmt;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use crate::limiter::units::{Rate, Size};
use crate::limiter::{Bucket, Limit};
use crate::time::Instant;

/// Default burst of a direction: little enough for 2 % in any second.
const BURST_TIME: Duration = Duration::from_millis(15);
/// The same of group frames, which come in bunches: answers to a router's question, a host that
/// looks for its neighbours.
const GROUP_BURST_TIME: Duration = Duration::from_millis(100);
/// How long frames may wait in the sockets for credit. A TCP sender far away needs this much room to
/// keep up the rate; more would only delay all that comes behind.
const WAITING_TIME: Duration = Duration::from_millis(100);
/// Least room in the sockets, in bytes, however low the rate.
const LEAST_WAITING_ROOM: u64 = 256 << 10;
/// How long what was taken from the sockets may wait.
const READ_AHEAD_TIME: Duration = Duration::from_millis(20);
/// A frame of the usual size, in bytes: a burst has room for it.
const USUAL_FRAME: u64 = 1518;
/// A burst of group frames has room for some, in bytes and in frames.
const LEAST_GROUP_BURST: u64 = 16 << 10;
const LEAST_GROUP_FRAMES: u64 = 32;
/// Credit is taken for so many bits at a time.
const CHUNK: u64 = 64 << 13;
/// A worker that finds no credit books what the rate yields in this time,
const PORTION_TIME: Duration = Duration::from_millis(1);
/// or this many bytes if that is more, but less than a frame of the usual size: then one passes, not
/// two.
const LEAST_PORTION: u64 = 1 << 10;

/// What a frame that a large one is cut into counts at least, in bytes.
pub const LEAST_SEGMENT: usize = 128;

/// What a frame is charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    frames: u64,
    /// In bytes.
    len: usize,
}

impl Cost {
    /// Of a frame of `len` bytes that leaves in so many.
    pub fn new(len: usize, segments: usize) -> Self {
        match segments {
            0 | 1 => Self { frames: 1, len },
            _ => Self { frames: segments as u64, len: len.max(segments * LEAST_SEGMENT) },
        }
    }
}

/// A vif's limits as they are asked for; none by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// From the guest.
    pub rate_out: Option<Rate>,
    /// To the guest.
    pub rate_in: Option<Rate>,
    /// What may pass at once in each of the two.
    pub burst: Option<Size>,
    /// Of frames from the guest, those to groups.
    pub group_rate: Option<Rate>,
    /// What of those may pass at once.
    pub group_burst: Option<Size>,
    /// Frames to groups per second.
    pub group_frames: Option<u32>,
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rates = [("out", self.rate_out), ("in", self.rate_in), ("to groups", self.group_rate)];
        let rates = rates.into_iter().filter_map(|(name, rate)| Some(format!("{name} {}", rate?)));
        let frames = self.group_frames.map(|frames| format!("to groups {frames} frames/s"));
        f.write_str(&rates.chain(frames).collect::<Vec<_>>().join(", "))
    }
}

/// Towards whom frames pass.
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
}

impl Throttle {
    /// With full buckets.
    ///
    /// # Errors
    /// Which burst is too small for its rate, and what would be enough, in words.
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
        Ok(Self {
            out: Gate::new(gate(limits.rate_out)?),
            incoming: Gate::new(gate(limits.rate_in)?),
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
        self.out.bucket.is_some() || self.incoming.bucket.is_some()
    }

    /// Whether a group frame may leave; charged if so.
    pub fn admits_group(&self, cost: Cost, now: Instant) -> bool {
        let admits = |bucket: &Option<Arc<Bucket>>, cost| {
            bucket.as_ref().is_none_or(|bucket| bucket.admit(cost, now))
        };
        admits(&self.group_frames, cost.frames) && admits(&self.group_bits, bits(cost.len))
    }

    /// When a gate is to be tried again.
    pub fn poll_timeout(&self) -> Option<Instant> {
        [self.out.until, self.incoming.until].into_iter().flatten().min()
    }

    /// Whether the gate of a direction has held frames back that may pass now.
    pub fn is_due(&self, direction: Direction, now: Instant) -> bool {
        self.gate(direction).until.is_some_and(|until| until <= now)
    }

    /// Whether frames of a direction wait for credit.
    pub fn holds(&self, direction: Direction) -> bool {
        self.gate(direction).until.is_some()
    }

    /// Bytes that may wait for credit in the socket of each of so many queue pairs; `None`: as many
    /// as there is room for.
    pub fn waiting_room(&self, queue_pairs: usize) -> Option<u64> {
        let limit = self.incoming.bucket.as_ref()?.limit();
        Some((limit.yields(WAITING_TIME) / 8 / queue_pairs as u64).max(LEAST_WAITING_ROOM))
    }

    /// Bytes to be taken from a socket at a time; `None`: as many as may be.
    pub fn read_ahead(&self) -> Option<u64> {
        Some(self.incoming.bucket.as_ref()?.limit().yields(READ_AHEAD_TIME) / 8)
    }

    /// Rings have started or stopped: nothing is held back any more.
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

/// One direction in one worker.
#[derive(Clone, Debug, Default)]
pub struct Gate {
    bucket: Option<Arc<Bucket>>,
    /// While frames are held back: when what is booked may be used.
    until: Option<Instant>,
    /// Credit that is taken already, for then.
    booked: u64,
    /// What has passed beyond the credit and is paid back first: less than a frame.
    owed: u64,
}

/// What a worker may let pass in one go.
#[derive(Debug)]
pub struct Allowance {
    bucket: Option<Arc<Bucket>>,
    now: Instant,
    leased: u64,
    used: u64,
    is_held: bool,
    /// Something has passed, or nothing was held back before.
    is_news: bool,
}

impl Gate {
    fn new(bucket: Option<Arc<Bucket>>) -> Self {
        Self { bucket, ..Self::default() }
    }

    /// Begins to let frames pass.
    pub fn open(&mut self, now: Instant) -> Allowance {
        let is_news = self.until.is_none();
        let (bucket, mut leased, mut used) = (self.bucket.clone(), 0, 0);
        if bucket.is_none() {
            leased = u64::MAX;
        } else if self.until.is_none_or(|until| until <= now) {
            self.until = None;
            leased = mem::take(&mut self.booked);
            used = mem::take(&mut self.owed);
        }
        Allowance { bucket, now, leased, used, is_held: self.until.is_some(), is_news }
    }

    /// Ends what [`Gate::open`] began; true if frames are held back that were not before.
    pub fn close(&mut self, allowance: Allowance) -> bool {
        let Allowance { bucket: Some(bucket), now, leased, used, is_held, is_news } = allowance
        else {
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
        self.booked = bucket.limit().yields(PORTION_TIME).max(8 * LEAST_PORTION);
        self.until = Some(bucket.book(self.booked, now));
        is_news
    }

    /// Nothing is held back any more.
    fn reset(&mut self) {
        if let Some(bucket) = &self.bucket {
            bucket.settle(mem::take(&mut self.booked), mem::take(&mut self.owed));
        }
        self.until = None;
    }
}

impl Allowance {
    /// Whether one more frame may pass; if not, it is held back.
    pub fn admits(&mut self) -> bool {
        if self.used >= self.leased
            && !self.is_held
            && let Some(bucket) = &self.bucket
        {
            self.leased += bucket.lease(CHUNK, self.now);
            self.is_held = self.used >= self.leased;
        }
        !self.is_held
    }

    /// A frame from the guest has passed.
    pub fn charge_cost(&mut self, cost: Cost) {
        self.charge(cost.len);
    }

    /// A frame of `len` bytes has passed.
    pub fn charge(&mut self, len: usize) {
        self.used += bits(len);
        self.is_news |= len > 0;
    }
}

#[cfg(test)]
mod tests;
