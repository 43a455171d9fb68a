//! Lanes join the data path: what varpd says of them, and frames out of them for the guest.

use std::os::fd::OwnedFd;
use std::time::Duration;

use virtio_queue::Queue;

use super::{Progress, Worker};
use crate::guest::frames::Outcome;
use crate::guest::receiving::ReceiveRing;
use crate::local::ends::{LaneOffer, Local, Read, Sink};
use crate::metrics::VifCounter;
use crate::time::Instant;
use crate::underlay::Underlay;
use crate::vhost_user::vring::{GuestMemory, RingError};

/// A vif whose lane ended is asked for again after so long: it may be back.
const ASK_AGAIN: Duration = Duration::from_secs(6);

impl<U: Underlay> Worker<U> {
    /// The way to other vifs of this host.
    pub fn local(&self) -> &Local {
        &self.local
    }

    /// The way to other vifs of this host, to be changed.
    pub fn local_mut(&mut self) -> &mut Local {
        &mut self.local
    }

    /// Takes a lane, given its memory and its socket.
    pub fn open_lane(&mut self, offer: LaneOffer, fds: [OwnedFd; 2], now: Instant) {
        if self.local.open(offer, fds, now) && !offer.is_read {
            self.tunnel.hand_over(offer.lane, offer.addr);
        }
    }

    /// Hears the lanes whose event has this number. True if the transmit ring is to be looked at
    /// again; then follows [`Worker::receive_lanes`].
    pub fn lanes_rung(&mut self, event: u16, now: Instant) -> bool {
        for addr in self.local.rung(event) {
            self.tunnel.neighbors_mut().confirm_from(addr, now + ASK_AGAIN);
        }
        self.local.is_stalled()
    }

    /// The same when the timer of lanes has expired.
    pub fn lanes_timed_out(&mut self) -> bool {
        self.local.timed_out();
        self.local.is_stalled()
    }

    /// Delivers what is in the lanes, one turn for each, behind what was read from
    /// sockets before.
    ///
    /// # Errors
    /// The ring is broken and must be stopped.
    pub fn receive_lanes(
        &mut self,
        queue: &mut Queue,
        memory: &GuestMemory,
        now: Instant,
    ) -> Result<Progress, RingError> {
        if self.tunnel.is_halted() {
            self.drop_local();
        }
        let mut ring = ReceiveRing::new(queue, memory)?;
        let outcome = self.deliver_incoming(&mut ring, now)?;
        if outcome != Outcome::All {
            return Ok(outcome.into());
        }
        let mut allowance = self.throttle.incoming.open(now);
        let (residents, max_frame) = (self.tunnel.residents(), self.tunnel.max_frame());
        let mut sink = Sink { guest: &mut self.guest, ring: &mut ring, residents, max_frame };
        let read = self.local.read(&mut sink, &mut allowance, now);
        if self.throttle.incoming.close(allowance) {
            self.counters.inc(VifCounter::rx_throttled);
        }
        Ok(match read? {
            Read::Done => Progress::Idle,
            Read::More => Progress::More,
            Read::Stuck(outcome) => outcome.into(),
        })
    }

    /// Drops what lanes have brought a halted NIC.
    pub(super) fn drop_local(&mut self) {
        self.local.drop_taken(VifCounter::rx_drop_policy);
        self.local.drop_waiting(VifCounter::rx_drop_policy);
    }
}
