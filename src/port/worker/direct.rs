//! The worker's part for trains of long segments: the kernel copies them straight into the guest's
//! buffers. The theory is told in [`crate::port::direct`].

use std::io;
use std::mem;

use super::Worker;
use crate::guest::frames::Handed;
use crate::guest::receiving::ReceiveRing;
use crate::metrics::VifCounter;
use crate::offload::gro::Merged;
use crate::port::direct::{HEAD_LEN, Hunch, Plan};
use crate::sys::mmsg::{MAX_PARTS, RECEIVE_BATCH};
use crate::sys::train::{IoVecMut, Train};
use crate::time::Instant;
use crate::tunnel::incoming::Home;
use crate::underlay::{Port, Underlay};
use crate::vhost_user::vring::RingError;
use crate::wire::encap;

/// What a worker keeps for this.
#[derive(Debug)]
pub(super) struct Direct {
    /// Whether to look.
    pub(super) hunch: Hunch,
    /// The beginning of the message that was looked at.
    head: [u8; HEAD_LEN],
    /// The headers of the message that was received.
    headers: Vec<u8>,
}

impl Default for Direct {
    fn default() -> Self {
        Self { hunch: Hunch::default(), head: [0; HEAD_LEN], headers: Vec::new() }
    }
}

/// How receiving this way ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Course {
    /// Nothing waits in the socket.
    Emptied,
    /// It was a batch's worth, or what is left of a message waits to be delivered.
    Again,
    /// What waits is to be received the usual way.
    Usual,
    /// The guest has no buffers for what waits; it kicks when it has.
    Starved,
}

impl<U: Underlay> Worker<U> {
    /// Delivers the trains that wait at `port` as long as they are what was foreseen, up to a batch.
    /// Nothing may wait to be delivered.
    ///
    /// # Errors
    /// The ring is broken and must be stopped.
    pub(super) fn receive_direct(
        &mut self,
        port: Port,
        ring: &mut ReceiveRing<'_, '_>,
        now: Instant,
    ) -> Result<Course, RingError> {
        let is_limited = self.throttle.read_ahead().is_some();
        if port != Port::Own
            || !self.direct.hunch.is_on()
            || is_limited
            || self.tunnel.is_secured()
            || self.tunnel.is_halted()
            // Who looks at frames is to see all of them whole.
            || self.guest.is_observed()
        {
            return Ok(Course::Usual);
        }
        let mut course = Ok(Course::Again);
        for _ in 0..RECEIVE_BATCH {
            course = self.receive_train(ring, now);
            if !matches!(course, Ok(Course::Again)) || !self.tunnel.incoming().is_empty() {
                break;
            }
        }
        // The guest sees what was delivered also when the ring turns out to be broken after it.
        self.guest.publish(ring)?;
        course
    }

    fn receive_train(
        &mut self,
        ring: &mut ReceiveRing<'_, '_>,
        now: Instant,
    ) -> Result<Course, RingError> {
        let plan = match self.look(now) {
            Ok(plan) => plan,
            Err(course) => return Ok(course),
        };
        match self.guest.reserve(ring, plan.frame_len())? {
            Handed::Done => {}
            Handed::Starved => return Ok(Course::Starved),
            Handed::Interrupted => return Ok(Course::Usual),
            Handed::TooLong => {
                self.direct.hunch.failed();
                return Ok(Course::Usual);
            }
        }
        let Some(arrived) = self.take_into_room(&plan, ring) else {
            self.direct.hunch.failed();
            ring.release();
            return Ok(Course::Usual);
        };
        match arrived {
            Ok(train) => {
                self.settle(&plan, train, ring, now)?;
                Ok(Course::Again)
            }
            Err(error) => {
                ring.room(self.payload_at(&plan)).clear(plan.payload_len(usize::MAX));
                ring.release();
                self.heed_failure(&error, now);
                Ok(Course::Usual)
            }
        }
    }

    /// A message that was foreseen could not be received. What it was about datagrams that were sent before
    /// is told by their reports.
    fn heed_failure(&mut self, error: &io::Error, now: Instant) {
        if error.kind() != io::ErrorKind::WouldBlock && !self.tunnel.handle_reports(now) {
            self.direct.hunch.failed();
            self.tunnel.complain("cannot receive into the guest's buffers", error, now);
        }
    }

    /// Foresees what the next message will be.
    ///
    /// # Errors
    /// It is not for this way, or there is none.
    fn look(&mut self, now: Instant) -> Result<Plan, Course> {
        let Self { direct, tunnel, guest, counters, .. } = self;
        let merger = guest.merger();
        let judge = |train, head: &[u8], home: &Home<'_>| Plan::foresee(train, head, home, merger);
        let plan = tunnel.peek(&mut direct.head, now, judge).map_err(|error| {
            // Other errors, of datagrams that were sent before, are no concern of this one.
            let is_empty = error.kind() == io::ErrorKind::WouldBlock;
            if is_empty { Course::Emptied } else { Course::Usual }
        })?;
        plan.ok_or_else(|| {
            direct.hunch.missed();
            counters.inc(VifCounter::rx_direct_missed);
            Course::Usual
        })
    }

    /// Receives the message that was foreseen, its headers into our memory, its payload into the
    /// guest's; `None`, and it still waits, if that is in too many pieces.
    fn take_into_room(
        &mut self,
        plan: &Plan,
        ring: &ReceiveRing<'_, '_>,
    ) -> Option<io::Result<Train>> {
        let payload_at = self.payload_at(plan);
        let Self { direct, tunnel, .. } = self;
        direct.headers.resize(plan.headers_len(), 0);
        let mut headers = direct.headers.as_mut_slice();
        let mut room = ring.room(payload_at);
        let mut parts = Vec::with_capacity(4 * plan.train().datagrams());
        for (header, payload) in plan.datagrams() {
            let (own, rest) = mem::take(&mut headers).split_at_mut_checked(header)?;
            headers = rest;
            parts.push(IoVecMut::from_slice(own));
            room.next(payload, |piece| parts.push(IoVecMut::from_guest(&piece)));
        }
        if parts.len() > MAX_PARTS {
            return None;
        }
        let arrived = tunnel.take(&mut parts);
        ring.room(payload_at).mark_written(plan.payload_len(usize::MAX));
        Some(arrived)
    }

    /// Where in the guest's buffers the payload begins.
    fn payload_at(&self, plan: &Plan) -> usize {
        self.guest.header_len() + plan.frame_header()
    }

    /// Delivers what is as foreseen of a message that was received; the rest goes the usual way.
    fn settle(
        &mut self,
        plan: &Plan,
        train: Train,
        ring: &mut ReceiveRing<'_, '_>,
        now: Instant,
    ) -> Result<(), RingError> {
        let payload_at = self.payload_at(plan);
        let Self { direct, guest, .. } = self;
        let merged = plan.verify(train, &direct.headers, &direct.head, guest.merger());
        let frames = merged.as_ref().map_or(0, |merged| merged.frames);
        let frame = merged.map(|Merged { header, head, frames }| {
            let own = direct.headers.get(encap::LEN..).and_then(|h| h.get(..plan.frame_header()));
            let head = if frames > 1 { head } else { own.unwrap_or_default() };
            (header, head.to_vec())
        });
        let mut left = Vec::new();
        if frames < plan.train().datagrams() {
            let done = plan.payload_len(frames);
            let mut room = ring.room(payload_at + done);
            let datagrams = plan.datagrams().zip(plan.headers(&direct.headers));
            for ((_, payload), header) in datagrams.skip(frames) {
                left.extend_from_slice(header);
                room.append_to(payload, &mut left);
            }
            ring.room(payload_at + done).clear(plan.payload_len(usize::MAX) - done);
        }
        match frame {
            Some((header, head)) => {
                let len = plan.frame_header() + plan.payload_len(frames);
                guest.commit(ring, &header, &head, len)?;
            }
            None => ring.release(),
        }
        if left.is_empty() {
            direct.hunch.came_true();
        } else {
            self.put_back(train, plan, left, frames, now);
        }
        Ok(())
    }

    /// What is left of a message goes the usual way.
    fn put_back(
        &mut self,
        train: Train,
        plan: &Plan,
        mut left: Vec<u8>,
        frames: usize,
        now: Instant,
    ) {
        // A short end alone is what some kernels need.
        if plan.train().datagrams() - frames > 1 {
            self.direct.hunch.failed();
        }
        if train.len > plan.train().len {
            // Another message than the one that was foreseen, and cut: somebody else reads the socket.
            return self.counters.inc(VifCounter::rx_drop_truncated);
        }
        if frames == 0 {
            left.truncate(train.len);
        }
        self.tunnel.put(train, &left, now);
    }
}
