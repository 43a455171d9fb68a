//! Writing to lanes.

use std::net::SocketAddr;
use std::time::Duration;

use super::Lanes;
use crate::lane::index::HeaderBytes;
use crate::lane::{Lie, Refused, Writer};
use crate::metrics::{VifCounter, VifCounters};
use crate::sys::iovec::Gather;
use crate::time::Instant;
use crate::tunnel::outgoing::AddressBytes;

/// How long a frame waits for room in its lane at most: longer than its reader is kept from a busy
/// processor as a rule.
pub const MAX_WAIT: Duration = Duration::from_millis(20);
/// So many bytes have to be read from a lane before a frame waits for it again.
const PROGRESS: u32 = 1 << 18;

/// A frame that is to be written.
#[derive(Clone, Copy, Debug)]
pub struct LocalFrame<'p, 'm> {
    /// Its virtio-net header.
    pub header: HeaderBytes,
    /// Its addresses, as they leave.
    pub addresses: AddressBytes,
    /// Its length, in bytes.
    pub len: usize,
    /// What is behind its addresses.
    pub rest: Gather<'p, 'm>,
    /// Whether it can stay in the guest's ring for a while.
    pub can_wait: bool,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It is in the lane; the reader sees it after [`Lanes::publish`].
    Done,
    /// It stays where it is, and with it those behind it, until [`Lanes::rung`] or [`Lanes::timed_out`].
    Wait,
    /// There is no room.
    Dropped,
    /// There is no lane to there (any more).
    NoLane,
}

/// A lane that frames are written to.
#[derive(Debug)]
pub(super) struct Outbound {
    pub(super) id: u32,
    pub(super) to: SocketAddr,
    pub(super) writer: Writer,
    /// No more than what it takes until it is empty; and no longer than until then.
    pub(super) closing: Option<Instant>,
    /// Takes its place.
    pub(super) successor: Option<(u32, Writer)>,
    /// Where the reader was when a frame last waited for it.
    pub(super) waited_at: Option<u32>,
}

impl Outbound {
    /// Its writer, and that of the lane that takes its place.
    pub(super) fn writers(&self) -> impl Iterator<Item = &Writer> {
        std::iter::once(&self.writer).chain(self.successor.iter().map(|(_, writer)| writer))
    }
}

/// A frame waits for room.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stall {
    pub(super) lane: u32,
    until: Instant,
}

impl Lanes {
    /// Whether there is a lane to there.
    pub fn lead_to(&mut self, to: SocketAddr) -> bool {
        self.find(to).is_some()
    }

    fn find(&mut self, to: SocketAddr) -> Option<usize> {
        if self.writers.get(self.recent).is_some_and(|lane| lane.to == to) {
            return Some(self.recent);
        }
        self.recent = self.writers.iter().position(|lane| lane.to == to)?;
        Some(self.recent)
    }

    /// Writes a frame to the lane to there.
    pub fn write(
        &mut self,
        to: SocketAddr,
        frame: &LocalFrame<'_, '_>,
        now: Instant,
        counters: &VifCounters,
    ) -> Written {
        let Some(n) = self.find(to) else { return Written::NoLane };
        let result = self.try_write(n, frame, now);
        match result {
            Ok(Written::NoLane) => {
                // Closed and replaced by nothing, or by a new one.
                if self.lead_to(to) {
                    return self.write(to, frame, now, counters);
                }
                Written::NoLane
            }
            Ok(outcome) => outcome,
            Err(Lie) => {
                self.fail_writer(n, now, counters);
                Written::NoLane
            }
        }
    }

    fn try_write(
        &mut self,
        n: usize,
        frame: &LocalFrame<'_, '_>,
        now: Instant,
    ) -> Result<Written, Lie> {
        let LocalFrame { header, addresses, len, rest, can_wait } = frame;
        let Some(lane) = self.writers.get_mut(n) else { return Ok(Written::NoLane) };
        if lane.closing.is_some() {
            lane.writer.publish();
            if lane.writer.wait_until_drained()? || !can_wait || !self.wait(n, now) {
                self.replace(n);
                return Ok(Written::NoLane);
            }
            return Ok(Written::Wait);
        }
        for _ in 0..2 {
            match lane.writer.write(header, addresses, *len, *rest) {
                Ok(()) => {
                    self.stall = None;
                    return Ok(Written::Done);
                }
                Err(Refused::Lie) => return Err(Lie),
                Err(Refused::Full) => {
                    lane.writer.publish();
                    if lane.writer.wait_for_room(*len)? {
                        break;
                    }
                }
            }
        }
        Ok(if *can_wait && self.wait(n, now) { Written::Wait } else { Written::Dropped })
    }

    /// Whether a frame waits for room in the n-th lane; it does not if it has done so for too long.
    fn wait(&mut self, n: usize, now: Instant) -> bool {
        let (Some(lane), Some(timer)) = (self.writers.get_mut(n), &self.timer) else {
            return false;
        };
        if let Some(stall) = self.stall
            && stall.lane == lane.id
        {
            self.is_stalled = now < stall.until;
            if !self.is_stalled {
                self.stall = None;
            }
            return self.is_stalled;
        }
        let tail = lane.writer.tail();
        if lane.waited_at.is_some_and(|at| tail.wrapping_sub(at) < PROGRESS) {
            return false;
        }
        lane.waited_at = Some(tail);
        if timer.set(Some(MAX_WAIT)).is_err() {
            return false;
        }
        self.stall = Some(Stall { lane: lane.id, until: now + MAX_WAIT });
        self.is_stalled = true;
        true
    }

    /// Whether a frame waits in the guest's ring since [`Lanes::begin_batch`].
    pub fn is_stalled(&self) -> bool {
        self.is_stalled
    }

    /// The frames in the guest's ring are looked at again, from the first.
    pub fn begin_batch(&mut self) {
        self.is_stalled = false;
    }

    /// Lets readers see what was written, and wakes those that sleep.
    pub fn publish(&mut self) {
        self.writers.iter_mut().for_each(|lane| lane.writer.publish());
    }

    /// A closing lane is done with: its successor takes over, if it has one. Whether it was removed.
    pub(super) fn replace(&mut self, n: usize) -> bool {
        let Some(lane) = self.writers.get_mut(n) else { return false };
        if self.stall.is_some_and(|stall| stall.lane == lane.id) {
            self.stall = None;
        }
        match lane.successor.take() {
            Some((id, writer)) => {
                (lane.id, lane.writer) = (id, writer);
                (lane.closing, lane.waited_at) = (None, None);
                false
            }
            None => {
                self.writers.swap_remove(n);
                true
            }
        }
    }

    fn fail_writer(&mut self, n: usize, now: Instant, counters: &VifCounters) {
        if let Some(lane) = self.writers.get(n) {
            counters.inc(VifCounter::lanes_failed);
            log::log!(self.quiet.level(now), "the lane to {} is closed: {Lie}", lane.to);
        }
        self.end_writer(n, counters);
    }

    /// The reader is of no use any more: what it had not taken is lost.
    pub(super) fn end_writer(&mut self, n: usize, counters: &VifCounters) {
        if let Some(lane) = self.writers.get_mut(n) {
            counters.add(VifCounter::tx_drop_lane, lane.writer.left());
            self.ended.push(lane.id);
            self.replace(n);
        }
    }
}
