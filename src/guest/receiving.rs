//! Frames into the receive ring: attempts to deliver them, and their counting.

use std::sync::Arc;

use virtio_queue::Queue;

use super::HeaderLayout;
use super::deliver::{Deliverer, Delivery, Room};
use super::frames::{Frames, GuestFrame, Handed, Origin};
use super::ring::RingView;
use crate::capture::{Door, Observed, Verdict};
use crate::metrics::{VifCounter, VifCounters};
use crate::sys::iovec::IoVec;
use crate::vhost_user::vring::{GuestMemory, RingError};

/// Limit on the times that a wake-up looks at the receive ring again without a frame delivered: a guest
/// that adds useless chains as fast as it gets them back must not hold up others.
pub const ATTEMPTS: usize = 16;

/// The receive ring, for the length of a wake-up.
#[derive(Debug)]
pub struct ReceiveRing<'q, 'm> {
    pub(super) ring: RingView<'q, 'm>,
    pub(super) deliverer: Deliverer<'m>,
    pub(super) attempts: usize,
}

impl<'q, 'm> ReceiveRing<'q, 'm> {
    /// A view of `queue`.
    ///
    /// # Errors
    /// See [`RingView::new`].
    pub fn new(queue: &'q mut Queue, memory: &'m GuestMemory) -> Result<Self, RingError> {
        let ring = RingView::new(queue, memory)?;
        Ok(Self { ring, deliverer: Deliverer::default(), attempts: 0 })
    }

    /// The room that [`super::side::GuestSide::reserve`] made, from an offset on.
    pub fn room(&self, offset: usize) -> Room<'_, 'm> {
        self.deliverer.room(offset)
    }

    /// The reserved buffers are available again.
    pub fn release(&mut self) {
        self.deliverer.release(&mut self.ring);
    }
}

/// Delivered frames that the counters do not have yet.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    frames: u64,
    bytes: u64,
    group_frames: u64,
    local_frames: u64,
    pub(super) direct_frames: u64,
    answers: u64,
}

impl Tally {
    #[inline]
    pub(super) fn add(&mut self, origin: Origin, len: usize, is_group: bool) {
        match origin {
            Origin::Tunnel => {}
            Origin::Lane => self.local_frames += 1,
            Origin::Host => {
                self.answers += 1;
                return;
            }
        }
        self.frames += 1;
        self.bytes += len as u64;
        self.group_frames += u64::from(is_group);
    }
}

/// The receiving half: apart from the merger, whose frames it delivers.
#[derive(Debug)]
pub(super) struct Receiving {
    pub(super) counters: Arc<VifCounters>,
    pub(super) layout: HeaderLayout,
    pub(super) tally: Tally,
    pub(super) is_starved: bool,
    /// Frames for the guest are shown here.
    pub(super) door: Door,
}

impl Receiving {
    #[inline]
    pub(super) fn deliver(
        &mut self,
        ring: &mut ReceiveRing<'_, '_>,
        frame: &GuestFrame<'_, '_>,
    ) -> Result<Handed, RingError> {
        let GuestFrame { header, parts, origin, is_group } = *frame;
        while ring.attempts < ATTEMPTS {
            match ring.deliverer.deliver(&mut ring.ring, header, parts, self.layout)? {
                Delivery::Done => {
                    self.tally.add(origin, total_len(parts), is_group);
                    self.door.show(|| Observed::whole(parts, Verdict::Passed));
                    return Ok(Handed::Done);
                }
                failure => match self.note(ring, failure)? {
                    Handed::Interrupted => ring.attempts += 1,
                    handed => return Ok(handed),
                },
            }
        }
        Ok(Handed::Interrupted)
    }

    pub(super) fn refuse(&self, parts: &[IoVec<'_>], counter: VifCounter) {
        self.counters.inc(counter);
        self.door.show(|| Observed::whole(parts, Verdict::Dropped(counter)));
    }

    #[cold]
    pub(super) fn refuse_first(&self, frames: &mut impl Frames, counter: VifCounter) {
        let first = frames.get(0);
        self.refuse(&[IoVec::from_slice(first.map_or(&[], |frame| frame.bytes()))], counter);
        frames.dropped(1);
    }

    /// A delivery failed: whether it is worth another try ([`Handed::Interrupted`]).
    pub(super) fn note(
        &mut self,
        ring: &mut ReceiveRing<'_, '_>,
        failure: Delivery,
    ) -> Result<Handed, RingError> {
        Ok(match failure {
            Delivery::Done => Handed::Done,
            Delivery::TooLong => Handed::TooLong,
            Delivery::BadChain => {
                self.counters.inc(VifCounter::rx_drop_malformed);
                Handed::Interrupted
            }
            Delivery::NoBuffers { seen } => {
                ring.ring.publish()?;
                if ring.ring.enable_kicks_beyond(seen)? {
                    Handed::Interrupted
                } else {
                    self.is_starved = true;
                    Handed::Starved
                }
            }
        })
    }

    pub(super) fn count(&mut self) {
        let Tally { frames, bytes, group_frames, local_frames, direct_frames, answers } =
            std::mem::take(&mut self.tally);
        let counters = &self.counters;
        if frames > 0 {
            counters.add(VifCounter::rx_frames, frames);
            counters.add(VifCounter::rx_bytes, bytes);
            counters.add(VifCounter::rx_group_frames, group_frames);
            counters.add(VifCounter::rx_local_frames, local_frames);
            counters.add(VifCounter::rx_direct_frames, direct_frames);
        }
        if answers > 0 {
            counters.add(VifCounter::rx_answers, answers);
        }
    }
}

pub(super) fn total_len(parts: &[IoVec<'_>]) -> usize {
    parts.iter().map(IoVec::len).sum()
}
