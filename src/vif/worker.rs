//! One queue pair's data path: everything that its frames need, and nothing shared with another's.
//!
//! ```text
//!            guest memory                                                   underlay
//!   tx ring ---> guest::read_frame ---> tx::judge --- outgoing::Stager ---> sendmmsg, UDP_SEGMENT
//!                 (checks, copies         |  ^         (copies while
//!                  the headers)           |  |          it cuts or bundles)
//!                                         |  neighbors (answers)
//!                                   park: frames that wait
//!
//!   rx ring <--- guest::Deliverer <--- gro::Merger <--- incoming <--------- recvmmsg, UDP_GRO
//!                 (one copy)                             (rx::Receiver accepts,
//!                                                        or names the drop)
//! ```
//!
//! What goes to another vif of this host, or comes from one, takes a shorter way: see
//! [`crate::lane`] and [`super::lanes`].
//!
//! A worker outlives the connections of its frontend: it keeps sockets, what it has learnt and the
//! frames that wait, while QEMU comes and goes.

mod local;
mod receive;
#[cfg(test)]
mod tests;
mod transmit;

pub use local::LaneOffer;
use local::Tally;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::arrival::Unpacked;
use super::guest::{HeaderLayout, MODERN_HEADER_LEN};
use super::incoming::Incoming;
use super::lanes::Lanes;
use super::neighbors::{Lookup, Neighbors, Question};
use super::outgoing::{Batch, Stager};
use super::park::Park;
use super::rx::Receiver;
use super::tx::SourceMac;
use crate::metrics::{VifCounter, VifCounters};
use crate::offload::features::Offloads;
use crate::offload::gro::Merger;
use crate::time::Instant;
use crate::underlay::{Port, Underlay};
use crate::wire::{CareOf, Mac, Stamp};

/// Batches handled for one wake-up before other events get their turn.
const BUDGET: usize = 8;
/// Received frames that one delivered frame is made of at most.
const MERGED_FRAMES: usize = 64;
/// Longest frame that is given to a guest: what its drivers have room for when they accept TSO.
const MERGED_LEN: usize = 65_550;
/// Batches of old messages that are dropped when rings start: more than a socket holds.
const DISCARD_BATCHES: usize = 4096;
/// What arrived while the rings stood still for longer than this is not delivered any more.
const STALE_AFTER: Duration = Duration::from_secs(1);
/// A failing system call is logged no more often than this.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);

/// What is left to do after a wake-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing: the guest or the kernel will wake us.
    Idle,
    /// More waits; others get their turn first.
    More,
}

/// What a queue pair is to the underlay.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Who receives.
    pub receiver: Receiver,
    /// Where group frames go.
    pub group: SocketAddr,
    /// Longest datagram (UDP payload) that the underlay's link takes, in bytes.
    pub max_datagram: usize,
}

/// The data path of one queue pair.
#[derive(Debug)]
pub struct Worker<U> {
    place: Place,
    source_mac: SourceMac,
    counters: Arc<VifCounters>,
    underlay: U,
    neighbors: Neighbors,
    park: Park,
    layout: HeaderLayout,
    offloads: Offloads,
    merger: Merger,
    stopped_at: Option<Instant>,
    starved: bool,
    announcement_seen: bool,
    stager: Stager,
    batch: Batch<'static>,
    incoming: Incoming,
    /// Frames of ours for the guest: answers to what it sent.
    answers: Vec<Vec<u8>>,
    overflow: u32,
    complain_after: Instant,
    lanes: Lanes,
    /// Frames out of a lane that the guest does not accept as they were.
    unpacked: Unpacked,
    sent_locally: Tally,
    received_locally: Tally,
}

impl<U: Underlay> Worker<U> {
    /// A worker at `place`, whose frames leave through `underlay`.
    pub fn new(
        place: Place,
        source_mac: SourceMac,
        counters: Arc<VifCounters>,
        underlay: U,
    ) -> Self {
        let offloads = Offloads::NONE;
        Self {
            place,
            source_mac,
            counters,
            underlay,
            neighbors: Neighbors::default(),
            park: Park::default(),
            layout: HeaderLayout { len: MODERN_HEADER_LEN, mergeable: false },
            offloads,
            merger: Merger::new(offloads, MERGED_FRAMES, MERGED_LEN),
            stopped_at: None,
            starved: false,
            announcement_seen: false,
            stager: Stager::new(place.receiver.key.vnet),
            batch: Batch::default(),
            incoming: Incoming::default(),
            answers: Vec::new(),
            overflow: 0,
            complain_after: Instant::ZERO,
            lanes: Lanes::default(),
            unpacked: Unpacked::default(),
            sent_locally: Tally::default(),
            received_locally: Tally::default(),
        }
    }

    /// The sockets.
    pub fn underlay(&self) -> &U {
        &self.underlay
    }

    /// Other sockets, at another place (varpd's configuration changed).
    pub fn replace_underlay(&mut self, underlay: U, place: Place) {
        self.underlay = underlay;
        self.place = place;
        self.incoming.clear();
        self.overflow = 0;
    }

    /// What the driver acknowledged, from now on.
    pub fn set_features(&mut self, layout: HeaderLayout, offloads: Offloads) {
        self.layout = layout;
        self.offloads = offloads;
        self.merger = Merger::new(offloads, MERGED_FRAMES, MERGED_LEN);
    }

    /// The rings run, or no longer do. What arrived while they stood still for long is dropped,
    /// not delivered late.
    pub fn set_running(&mut self, running: bool, now: Instant) {
        self.starved = false;
        if running {
            let stopped_at = self.stopped_at.take();
            if stopped_at.is_some_and(|at| now - at > STALE_AFTER) {
                self.discard(Port::Own, now);
                self.discard(Port::Group, now);
                self.discard_lanes();
            }
        } else {
            self.stopped_at = Some(now);
            self.drop_incoming();
            self.drop_unpacked();
            self.lanes.forget_stall();
        }
    }

    /// Reads and drops what waits at `port`, for a bounded number of batches.
    fn discard(&mut self, port: Port, now: Instant) {
        for _ in 0..DISCARD_BATCHES {
            if !self.fill(port, now) {
                break;
            }
            self.drop_incoming();
        }
    }

    fn drop_incoming(&mut self) {
        self.counters.add(VifCounter::rx_drop_no_ring, self.incoming.len() as u64);
        for (from, lane) in self.incoming.take_handovers() {
            self.lanes.note_handover(from, lane);
        }
        self.incoming.clear();
    }

    /// Whether frames were read that wait for the guest's receive buffers: sockets need not be
    /// polled until the guest has added some.
    pub fn is_starved(&self) -> bool {
        self.starved
    }

    fn complain(&mut self, what: &str, error: &io::Error, now: Instant) {
        if now >= self.complain_after {
            log::warn!("{what}: {error} (logged at most once a minute)");
            self.complain_after = now + COMPLAINT_INTERVAL;
        }
    }

    /// Takes the questions that frames have raised.
    pub fn questions(&mut self) -> impl Iterator<Item = Question> + '_ {
        self.neighbors.questions()
    }

    /// Whether the control side has something to do: questions, or a guest that announced itself.
    pub fn wants_attention(&self) -> bool {
        self.neighbors.has_questions() || self.announcement_seen || self.lanes.has_ended()
    }

    /// Whether the guest has announced itself since the last call (gratuitous ARP and the like).
    pub fn take_announcement(&mut self) -> bool {
        std::mem::take(&mut self.announcement_seen)
    }

    /// A destination was found, or has moved: frames that wait for it leave now, in order.
    pub fn handle_mapping(
        &mut self,
        mac: Mac,
        coa: CareOf,
        stamp: Stamp,
        lifetime: Duration,
        now: Instant,
    ) {
        self.neighbors.handle_mapping(mac, coa, stamp, lifetime, now);
        let frames = self.park.take(mac);
        if let Lookup::To(coa) = self.neighbors.lookup(mac, now) {
            self.send_parked(&frames, coa, now);
        } else {
            self.counters.add(VifCounter::tx_drop_unresolved, frames.len() as u64);
        }
    }

    /// Nobody answers for `mac`: frames that wait for it are dropped, new ones for a short while.
    pub fn handle_unresolved(&mut self, mac: Mac, hold: Duration, now: Instant) {
        self.neighbors.handle_unresolved(mac, hold, now);
        let dropped = self.park.take(mac).len();
        self.counters.add(VifCounter::tx_drop_unresolved, dropped as u64);
    }

    /// What was known of `mac` no longer holds.
    pub fn handle_invalidate(&mut self, mac: Mac) {
        self.neighbors.handle_invalidate(mac);
    }

    /// varpd is gone.
    pub fn varpd_left(&mut self) {
        self.neighbors.varpd_left();
    }

    /// varpd is there again.
    pub fn varpd_returned(&mut self, now: Instant) {
        self.neighbors.varpd_returned(now);
    }

    /// Drops frames that have waited too long; ends lanes whose time is over.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.lanes.handle_timeout(now);
        let mut abandoned = Vec::new();
        let expired = self.park.expire(now, &mut abandoned);
        self.counters.add(VifCounter::tx_drop_park_expired, expired);
        for mac in abandoned {
            self.neighbors.give_up(mac);
        }
    }

    /// When [`Worker::handle_timeout`] is to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.park.poll_timeout().into_iter().chain(self.lanes.poll_timeout()).min()
    }
}
