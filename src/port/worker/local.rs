//! The worker's part for lanes: frames from and to other vifs of this host.

mod into_guest;
mod out;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use super::Worker;
use crate::local::lanes::Handovers;
use crate::metrics::VifCounter;
use crate::sys::event_share::EventShare;
use crate::time::Instant;
use crate::underlay::Underlay;

/// A vif whose lane ended is asked for again after so long: it may be back.
const ASK_AGAIN: Duration = Duration::from_secs(6);

/// A lane that varpd has made.
#[derive(Clone, Copy, Debug)]
pub struct LaneOffer {
    /// Its number.
    pub lane: u32,
    /// Whether it is to be read from; otherwise it is to be written to.
    pub is_read: bool,
    /// Where the vif at its other end is reached.
    pub addr: SocketAddr,
}

impl<U: Underlay> Worker<U> {
    /// Makes lanes possible.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn prepare_lanes(&mut self, handovers: Arc<Handovers>) -> io::Result<()> {
        self.lanes.prepare(handovers)
    }

    /// Readable when [`Worker::lanes_timed_out`] is to be called.
    pub fn lanes_descriptor(&self) -> Option<RawFd> {
        self.lanes.descriptor()
    }

    /// Takes a lane, given its memory and its socket.
    pub fn open_lane(&mut self, offer: LaneOffer, fds: [OwnedFd; 2], now: Instant) {
        let LaneOffer { lane, is_read, addr } = offer;
        let opened = match is_read {
            true => self.lanes.open_reader(lane, addr, fds),
            false => self.lanes.open_writer(lane, addr, fds, now),
        };
        match opened {
            Ok(()) => {
                self.counters.inc(VifCounter::lanes_opened);
                log::debug!("lane {lane} {} {addr}", if is_read { "from" } else { "to" });
                if !is_read {
                    self.tunnel.hand_over(lane, addr);
                }
            }
            Err(error) => {
                self.tunnel.complain("cannot open a lane", &error, now);
                self.lanes.end(lane);
            }
        }
    }

    /// A lane is to come to its end.
    pub fn close_lane(&mut self, lane: u32, now: Instant) {
        self.lanes.close(lane, now);
    }

    /// Lanes that have ended here since the last call.
    pub fn lanes_ended(&mut self) -> impl Iterator<Item = u32> + '_ {
        self.lanes.take_ended()
    }

    /// From now on the worker waits on lanes in this set, or (its rings stand still) not at all.
    pub fn share_events(&mut self, share: Option<Arc<EventShare>>) {
        self.lanes.share(share);
    }

    /// Hears the lanes whose event has this number. True if the transmit ring is to be looked at
    /// again; then follows [`Worker::receive_lanes`].
    pub fn lanes_rung(&mut self, event: u16, now: Instant) -> bool {
        for addr in self.lanes.rung(event, &self.counters) {
            self.tunnel.neighbors_mut().confirm_from(addr, now + ASK_AGAIN);
        }
        self.lanes.is_stalled()
    }

    /// The same when the timer of lanes has expired.
    pub fn lanes_timed_out(&mut self) -> bool {
        self.lanes.timed_out();
        self.lanes.is_stalled()
    }

    /// Whether there are lanes that may have frames.
    pub fn has_lanes(&self) -> bool {
        self.lanes.has_readers()
    }

    /// Whether a lane waits for what comes by UDP.
    pub fn has_shut_lanes(&self) -> bool {
        self.lanes.has_shut()
    }

    /// Drops what waits in the lanes and what was taken from them; it counts as `counter`.
    pub(super) fn drop_local(&mut self, counter: VifCounter) {
        self.drop_unpacked(counter);
        self.discard_lanes(counter);
    }
}

/// Frames and their bytes, before they are counted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    frames: u64,
    bytes: u64,
}

impl Tally {
    fn add(&mut self, len: usize) {
        self.frames += 1;
        self.bytes += len as u64;
    }
}
