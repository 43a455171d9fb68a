//! The worker's part towards the guest: what sockets have received is put into the receive ring.

use virtio_queue::Queue;

use super::direct::Course;
use super::{BUDGET, Progress, Worker};
use crate::guest::frames::{Frames, GuestFrame, Handed, Origin, Outcome};
use crate::guest::receiving::ReceiveRing;
use crate::metrics::VifCounter;
use crate::offload::gro::Received;
use crate::offload::header::Header;
use crate::port::direct::Hunch;
use crate::port::throttle::Allowance;
use crate::sys::iovec::IoVec;
use crate::time::Instant;
use crate::tunnel::incoming::Incoming;
use crate::underlay::{Port, Underlay};
use crate::vhost_user::vring::{GuestMemory, RingError};

impl From<Outcome> for Progress {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::All | Outcome::Starved | Outcome::Held => Self::Idle,
            Outcome::Interrupted => Self::More,
        }
    }
}

/// Frames that have arrived.
struct Arrived<'a> {
    incoming: &'a mut Incoming,
    hunch: &'a mut Hunch,
}

impl Frames for Arrived<'_> {
    fn get(&self, n: usize) -> Option<Received<'_>> {
        self.incoming.get(n)
    }

    fn first(&self) -> (Origin, bool) {
        (Origin::Tunnel, self.incoming.is_group())
    }

    fn delivered(&mut self, count: usize, len: usize) {
        let is_partial = self.incoming.get(0).is_some_and(|frame| frame.is_partial());
        if is_partial {
            self.hunch.merged(len, count);
        }
        self.incoming.take(count);
    }

    fn dropped(&mut self, count: usize) {
        self.incoming.take(count);
    }
}

impl<U: Underlay> Worker<U> {
    /// Delivers what arrived at `port`, for a bounded number of batches.
    ///
    /// # Errors
    /// The ring is broken and must be stopped.
    pub fn receive(
        &mut self,
        port: Port,
        queue: &mut Queue,
        memory: &GuestMemory,
        now: Instant,
    ) -> Result<Progress, RingError> {
        let mut ring = ReceiveRing::new(queue, memory)?;
        let mut may_hold_more = true;
        for turn in 0..BUDGET {
            let outcome = self.deliver_incoming(&mut ring, now)?;
            if outcome != Outcome::All || !may_hold_more {
                return Ok(outcome.into());
            }
            match self.receive_direct(port, &mut ring, now)? {
                Course::Usual => {}
                Course::Again => continue,
                Course::Starved => return Ok(Progress::Idle),
                Course::Emptied => return Ok(self.found_nothing(turn, now)),
            }
            if !self.tunnel.receive(port, now) {
                return Ok(self.found_nothing(turn, now));
            }
            // What comes later wakes the worker anew: the guest need not wait for a look.
            may_hold_more = self.tunnel.incoming().was_full();
        }
        self.deliver_incoming(&mut ring, now).map(Progress::from)
    }

    /// Handles a socket that is found empty, `turn` batches after the wake-up.
    fn found_nothing(&mut self, turn: usize, now: Instant) -> Progress {
        // Woken for nothing to read: reports make a socket poll, too, until they are read.
        if turn == 0 {
            self.tunnel.handle_reports(now);
        }
        Progress::Idle
    }

    /// Delivers frames that were read before but not delivered.
    ///
    /// # Errors
    /// The ring is broken and must be stopped.
    pub fn retry(
        &mut self,
        queue: &mut Queue,
        memory: &GuestMemory,
        now: Instant,
    ) -> Result<Progress, RingError> {
        let mut ring = ReceiveRing::new(queue, memory)?;
        self.deliver_incoming(&mut ring, now).map(Progress::from)
    }

    /// Whether [`Worker::answer`] has something to say to the guest.
    pub fn has_answers(&self) -> bool {
        self.tunnel.feedback().has_answers()
    }

    /// Delivers our own answers to what the guest sent, as far as there are buffers; the rest is
    /// forgotten, since the guest's next try raises it again.
    ///
    /// # Errors
    /// The ring is broken and must be stopped.
    pub fn answer(&mut self, queue: &mut Queue, memory: &GuestMemory) -> Result<(), RingError> {
        let mut ring = ReceiveRing::new(queue, memory)?;
        for answer in self.tunnel.feedback_mut().take_answers() {
            let parts = &[IoVec::from_slice(&answer)];
            let header = &Header::PLAIN;
            let answer = GuestFrame { header, parts, origin: Origin::Host, is_group: false };
            if self.guest.deliver(&mut ring, &answer)? == Handed::Starved {
                break;
            }
        }
        self.guest.publish(&mut ring)
    }

    /// Delivers what was read. The guest sees what was delivered also when the ring turns out to be
    /// broken after it.
    pub(super) fn deliver_incoming(
        &mut self,
        ring: &mut ReceiveRing<'_, '_>,
        now: Instant,
    ) -> Result<Outcome, RingError> {
        let mut allowance = self.throttle.incoming.open(now);
        let outcome = self.deliver_batch(ring, &mut allowance);
        if self.throttle.incoming.close(allowance) {
            self.counters.inc(VifCounter::rx_throttled);
        }
        self.guest.publish(ring)?;
        // All that came before a handover is delivered.
        if self.tunnel.incoming().is_empty() {
            self.take_handovers();
        }
        outcome
    }

    /// Delivers what was read from sockets, and then from lanes, as far as the limit allows.
    fn deliver_batch(
        &mut self,
        ring: &mut ReceiveRing<'_, '_>,
        allowance: &mut Allowance,
    ) -> Result<Outcome, RingError> {
        let Self { guest, tunnel, local, direct, .. } = self;
        let mut frames = Arrived { incoming: tunnel.incoming_mut(), hunch: &mut direct.hunch };
        match guest.deliver_all(ring, &mut frames, allowance)? {
            Outcome::All => local.deliver_arrived(guest, ring, allowance),
            outcome => Ok(outcome),
        }
    }
}
