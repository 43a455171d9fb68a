//! The ends of a queue pair's lanes: frames of this guest go in, and those of other vifs of the host come
//! out.

mod read;
mod write;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;

use super::arrived::Arrived;
use super::lanes::{Handovers, Lanes};
use super::unpacked::Unpacked;
use crate::metrics::{VifCounter, VifCounters};
use crate::quiet::Quiet;
use crate::sys::event_share::EventShare;
use crate::time::Instant;
pub use read::{Read, Sink};
pub use write::Limits;

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

/// The lanes of a queue pair, and the frames that are under way between them and the guest.
#[derive(Debug)]
pub struct Local {
    counters: Arc<VifCounters>,
    lanes: Lanes,
    /// Short frames out of a lane that wait for the guest.
    arrived: Arrived,
    /// Frames out of a lane that the guest does not accept as they were.
    unpacked: Unpacked,
    /// Frames written into lanes, not yet counted.
    sent: Tally,
    /// About lanes that cannot be opened.
    quiet: Quiet,
}

impl Local {
    /// Without lanes.
    pub fn new(counters: Arc<VifCounters>) -> Self {
        Self {
            counters,
            lanes: Lanes::default(),
            arrived: Arrived::default(),
            unpacked: Unpacked::default(),
            sent: Tally::default(),
            quiet: Quiet::new(1),
        }
    }

    /// Makes lanes possible.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn prepare(&mut self, handovers: Arc<Handovers>) -> io::Result<()> {
        self.lanes.prepare(handovers)
    }

    /// Readable when [`Local::timed_out`] is to be called.
    pub fn descriptor(&self) -> Option<RawFd> {
        self.lanes.descriptor()
    }

    /// Takes a lane, given its memory and its socket. Returns whether that succeeded.
    pub fn open(&mut self, offer: LaneOffer, fds: [OwnedFd; 2], now: Instant) -> bool {
        let LaneOffer { lane, is_read, addr } = offer;
        let opened = match is_read {
            true => self.lanes.open_reader(lane, addr, fds),
            false => self.lanes.open_writer(lane, addr, fds, now),
        };
        match &opened {
            Ok(()) => {
                self.counters.inc(VifCounter::lanes_opened);
                log::debug!("lane {lane} {} {addr}", if is_read { "from" } else { "to" });
            }
            Err(error) => {
                let level = self.quiet.level(now);
                log::log!(level, "cannot open a lane: {error} (logged at most once a minute)");
                self.lanes.end(lane);
            }
        }
        opened.is_ok()
    }

    /// A lane is to come to its end.
    pub fn close(&mut self, lane: u32, now: Instant) {
        self.lanes.close(lane, now);
    }

    /// Whether lanes have ended since the last call of [`Local::take_ended`].
    pub fn has_ended(&self) -> bool {
        self.lanes.has_ended()
    }

    /// Takes the lanes that have ended.
    pub fn take_ended(&mut self) -> impl Iterator<Item = u32> + '_ {
        self.lanes.take_ended()
    }

    /// From now on the worker waits on lanes in this set, or (its rings stand still) not at all.
    pub fn share(&mut self, share: Option<Arc<EventShare>>) {
        self.lanes.share(share);
    }

    /// Hears the lanes whose event has this number. Returns the addresses to which lanes led whose readers
    /// have ended. Then follow [`Local::is_stalled`] and [`Local::read`].
    pub fn rung(&mut self, event: u16) -> Vec<SocketAddr> {
        self.lanes.rung(event, &self.counters)
    }

    /// The same when the timer of lanes has expired.
    pub fn timed_out(&mut self) {
        self.lanes.timed_out();
    }

    /// Whether a frame waits in the guest's ring for room in its lane.
    pub fn is_stalled(&self) -> bool {
        self.lanes.is_stalled()
    }

    /// The guest's rings stopped: no frame waits any more.
    pub fn handle_rings_stopped(&mut self) {
        self.lanes.forget_stall();
        self.drop_taken(VifCounter::rx_drop_no_ring);
    }

    /// Whether there are lanes that may have frames.
    pub fn has_readers(&self) -> bool {
        self.lanes.has_readers()
    }

    /// Whether a lane waits for datagrams that were sent before its frames.
    pub fn has_shut(&self) -> bool {
        self.lanes.has_shut()
    }

    /// Notes a handover that has arrived: all datagrams before it are delivered.
    pub fn note_handover(&self, from: SocketAddr, lane: u32) {
        self.lanes.note_handover(from, lane);
    }

    /// Ends lanes whose time is over.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.lanes.handle_timeout(now);
    }

    /// When [`Local::handle_timeout`] is to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.lanes.poll_timeout()
    }
}

/// Frames and their bytes, before they are counted.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    frames: u64,
    bytes: u64,
}

impl Tally {
    fn add(&mut self, len: usize) {
        self.frames += 1;
        self.bytes += len as u64;
    }
}
