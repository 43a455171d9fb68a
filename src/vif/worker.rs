//! One queue pair's data path: everything that its frames need, and nothing shared with another's.
//!
//! ```text
//!            guest memory                                                underlay
//!   tx ring ---> guest::read_frame ---> tx::judge --- unicast, group ---> sendmmsg
//!                 (checks, copies         |  ^                            straight from
//!                  the addresses)         |  | neighbors (answers)        guest memory
//!                                   park: frames that wait
//!
//!   rx ring <--- guest::Deliverer <--- rx::Receiver::accept <------------ recvmmsg
//!                 (one copy)             (drops, named)                   into own memory
//! ```
//!
//! A worker outlives the connections of its frontend: it keeps sockets, what it has learnt and the
//! frames that wait, while QEMU comes and goes.

use std::io;
use std::mem;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use virtio_queue::Queue;

use super::guest::{self, ChainFault, Deliverer, Delivery, HeaderLayout, MODERN_HEADER_LEN};
use super::neighbors::{Lookup, Neighbors, Question};
use super::park::Park;
use super::ring::RingView;
use super::rx::Receiver;
use super::tx::{self, Head, SourceMac, Verdict};
use crate::metrics::{VifCounter, VifCounters};
use crate::sys::iovec::{self, IoVec};
use crate::sys::mmsg::{BATCH, Datagram, ReceiveBatch};
use crate::time::Instant;
use crate::underlay::{Port, Underlay};
use crate::vhost_user::vring::{GuestMemory, RingError};
use crate::wire::{CareOf, Mac, Stamp, encap, frame};

/// Batches handled for one wake-up before other events get their turn.
const BUDGET: usize = 8;
/// Times that a batch may go back to a receive ring without a frame delivered, before others get
/// their turn: a guest that adds useless chains as fast as they are given back must not hold us.
const ATTEMPTS: usize = 16;
/// Longest frame that is looked into for an announcement of its sender, in bytes.
const ANNOUNCEMENT_LEN: usize = 128;
/// Batches of old datagrams that are dropped when rings start: more than a socket holds.
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

/// How delivering ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Nothing is left to deliver.
    All,
    /// The guest has no buffers for the rest, and kicks when it has.
    Starved,
    /// The guest keeps adding chains that no frame fits.
    Interrupted,
}

impl From<Outcome> for Progress {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::All | Outcome::Starved => Self::Idle,
            Outcome::Interrupted => Self::More,
        }
    }
}

/// A frame on its way out.
#[derive(Debug)]
struct Outgoing {
    head: Head,
    to: SocketAddr,
    rest: Range<usize>,
    len: usize,
    is_group: bool,
}

/// The data path of one queue pair.
#[derive(Debug)]
pub struct Worker<U> {
    receiver: Receiver,
    source_mac: SourceMac,
    group: SocketAddr,
    counters: Arc<VifCounters>,
    underlay: U,
    neighbors: Neighbors,
    park: Park,
    layout: HeaderLayout,
    stopped_at: Option<Instant>,
    starved: bool,
    announcement_seen: bool,
    // Reused from batch to batch.
    outgoing: Vec<Outgoing>,
    pieces: Vec<IoVec<'static>>,
    parts: Vec<IoVec<'static>>,
    incoming: ReceiveBatch,
    incoming_port: Port,
    overflow: u32,
    complain_after: Instant,
}

impl<U: Underlay> Worker<U> {
    /// A worker for `receiver`, whose frames leave through `underlay`.
    pub fn new(
        receiver: Receiver,
        source_mac: SourceMac,
        group: SocketAddr,
        counters: Arc<VifCounters>,
        underlay: U,
    ) -> Self {
        Self {
            receiver,
            source_mac,
            group,
            counters,
            underlay,
            neighbors: Neighbors::default(),
            park: Park::default(),
            layout: HeaderLayout { len: MODERN_HEADER_LEN, mergeable: false },
            stopped_at: None,
            starved: false,
            announcement_seen: false,
            outgoing: Vec::with_capacity(BATCH),
            pieces: Vec::new(),
            parts: Vec::new(),
            incoming: ReceiveBatch::default(),
            incoming_port: Port::Own,
            overflow: 0,
            complain_after: Instant::ZERO,
        }
    }

    /// The sockets.
    pub fn underlay(&self) -> &U {
        &self.underlay
    }

    /// Other sockets, and with them perhaps another care-of address (varpd's configuration changed).
    pub fn replace_underlay(&mut self, underlay: U, own: SocketAddr, group: SocketAddr) {
        self.underlay = underlay;
        self.receiver.own = own;
        self.group = group;
        self.incoming.clear();
        self.overflow = 0;
    }

    /// How received frames are to be laid out, from now on.
    pub fn set_layout(&mut self, layout: HeaderLayout) {
        self.layout = layout;
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
            }
        } else {
            self.stopped_at = Some(now);
            self.drop_incoming();
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
        self.incoming.clear();
    }

    /// Whether frames were read that wait for the guest's receive buffers: sockets need not be
    /// polled until the guest has added some.
    pub fn is_starved(&self) -> bool {
        self.starved
    }

    // ---- from the guest ------------------------------------------------------------------------

    /// Sends what waits in the transmit ring, and gives the buffers back.
    ///
    /// # Errors
    /// The ring is broken and must be stopped.
    pub fn transmit(
        &mut self,
        queue: &mut Queue,
        memory: &GuestMemory,
        now: Instant,
    ) -> Result<Progress, RingError> {
        let mut ring = RingView::new(queue, memory)?;
        for _ in 0..BUDGET {
            ring.disable_kicks()?;
            let is_empty = self.transmit_batch(&mut ring, now)? == 0;
            if is_empty && !ring.enable_kicks()? {
                return Ok(Progress::Idle);
            }
        }
        Ok(Progress::More)
    }

    /// Sends one batch; returns how many chains it took. What was taken before an error of the ring
    /// leaves, too.
    fn transmit_batch(
        &mut self,
        ring: &mut RingView<'_, '_>,
        now: Instant,
    ) -> Result<usize, RingError> {
        let mut pieces = iovec::recycle(mem::take(&mut self.pieces));
        self.outgoing.clear();
        let taken = self.take_batch(ring, &mut pieces, now);
        let outgoing = mem::take(&mut self.outgoing);
        self.send(&outgoing, &pieces, now);
        self.outgoing = outgoing;
        self.pieces = iovec::recycle(pieces);
        ring.publish()?;
        taken
    }

    /// Takes frames from the ring until the batch is full or there are no more.
    fn take_batch<'m>(
        &mut self,
        ring: &mut RingView<'_, 'm>,
        pieces: &mut Vec<IoVec<'m>>,
        now: Instant,
    ) -> Result<usize, RingError> {
        for taken in 0..BATCH {
            let Some(head) = ring.pop()? else { return Ok(taken) };
            match guest::read_frame(ring, head, self.layout.len, pieces) {
                Ok(frame) => self.dispatch(frame, pieces, now),
                Err(ChainFault::Malformed) => self.counters.inc(VifCounter::tx_drop_malformed),
                Err(ChainFault::Header) => self.counters.inc(VifCounter::tx_drop_header),
            }
            ring.push_used(head, 0)?;
        }
        Ok(BATCH)
    }

    /// Judges a frame and puts it where it belongs; its pieces stay only if it leaves now.
    fn dispatch(&mut self, frame: guest::TransmitFrame, pieces: &mut Vec<IoVec<'_>>, now: Instant) {
        let judged =
            tx::judge(self.receiver.key, self.source_mac, &frame.lead, &mut self.neighbors, now);
        let counters = &self.counters;
        if judged.is_stamped && self.source_mac == SourceMac::Stamp {
            counters.inc(VifCounter::tx_stamped);
        }
        let (to, is_group) = match judged.verdict {
            Verdict::Unicast(coa) => (coa.addr, false),
            Verdict::Group => (self.group, true),
            Verdict::Wait(mac) => {
                let parked = self.park.push(mac, copy_of(&judged.head, pieces, &frame.rest), now);
                counters.inc(match parked {
                    Ok(()) => VifCounter::tx_parked,
                    Err(_) => VifCounter::tx_drop_park_full,
                });
                pieces.truncate(frame.rest.start);
                return;
            }
            Verdict::Drop(counter) => {
                counters.inc(counter);
                pieces.truncate(frame.rest.start);
                return;
            }
        };
        if is_group && frame.len <= ANNOUNCEMENT_LEN {
            let copy = copy_of(&judged.head, pieces, &frame.rest);
            self.announcement_seen |= frame::announces_sender(encapsulated(&copy));
        }
        let Range { start, end } = frame.rest;
        let outgoing =
            Outgoing { head: judged.head, to, rest: start..end, len: frame.len, is_group };
        self.outgoing.push(outgoing);
    }

    /// Sends in order; a frame that the kernel refuses is counted by reason and the next one tried.
    fn send(&mut self, outgoing: &[Outgoing], pieces: &[IoVec<'_>], now: Instant) {
        let mut parts = iovec::recycle(mem::take(&mut self.parts));
        for frame in outgoing {
            parts.push(IoVec::from_slice(&frame.head));
            parts.extend_from_slice(pieces.get(frame.rest.clone()).unwrap_or_default());
        }
        let mut left: &[IoVec<'_>] = &parts;
        for batch in outgoing.chunks(BATCH) {
            let mut datagrams = [Datagram { to: self.group, parts: &[] }; BATCH];
            for (frame, datagram) in batch.iter().zip(&mut datagrams) {
                let (parts, later) = left.split_at(1 + frame.rest.len());
                *datagram = Datagram { to: frame.to, parts };
                left = later;
            }
            let (datagrams, _) = datagrams.split_at(batch.len());
            self.send_batch(batch, datagrams, now);
        }
        self.parts = iovec::recycle(parts);
    }

    fn send_batch(
        &mut self,
        mut frames: &[Outgoing],
        mut datagrams: &[Datagram<'_>],
        now: Instant,
    ) {
        while !frames.is_empty() {
            let count = match self.underlay.send(datagrams) {
                Ok(count) => {
                    self.count_sent(frames.get(..count).unwrap_or_default());
                    count
                }
                Err(error) => self.count_refused(&error, frames.len(), now),
            };
            // At least one is settled in each round, whatever the kernel answers.
            let settled = count.clamp(1, frames.len());
            frames = frames.get(settled..).unwrap_or_default();
            datagrams = datagrams.get(settled..).unwrap_or_default();
        }
    }

    fn count_sent(&self, frames: &[Outgoing]) {
        let counters = &self.counters;
        counters.add(VifCounter::tx_frames, frames.len() as u64);
        counters.add(VifCounter::tx_bytes, frames.iter().map(|f| f.len as u64).sum());
        let groups = frames.iter().filter(|f| f.is_group).count();
        counters.add(VifCounter::tx_group_frames, groups as u64);
    }

    /// Counts what an error says of the first of `waiting` frames; returns how many it settles.
    fn count_refused(&mut self, error: &io::Error, waiting: usize, now: Instant) -> usize {
        let (counter, settled) = match error.raw_os_error() {
            Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => {
                (VifCounter::tx_drop_backpressure, waiting)
            }
            Some(libc::EMSGSIZE) => (VifCounter::tx_drop_too_big, 1),
            Some(
                libc::ENETUNREACH
                | libc::EHOSTUNREACH
                | libc::ENETDOWN
                | libc::ECONNREFUSED
                | libc::EADDRNOTAVAIL,
            ) => (VifCounter::tx_drop_unreachable, 1),
            _ => {
                self.complain("cannot send to the underlay", error, now);
                (VifCounter::tx_drop_error, 1)
            }
        };
        self.counters.add(counter, settled as u64);
        settled
    }

    fn complain(&mut self, what: &str, error: &io::Error, now: Instant) {
        if now >= self.complain_after {
            log::warn!("{what}: {error} (logged at most once a minute)");
            self.complain_after = now + COMPLAINT_INTERVAL;
        }
    }

    // ---- to the guest --------------------------------------------------------------------------

    /// Delivers what arrived at `port`, for a bounded number of batches. [`Progress::More`] asks for
    /// [`Worker::retry`].
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
        let mut ring = RingView::new(queue, memory)?;
        for _ in 0..BUDGET {
            let outcome = self.deliver_incoming(&mut ring)?;
            if outcome != Outcome::All || !self.fill(port, now) {
                return Ok(outcome.into());
            }
        }
        self.deliver_incoming(&mut ring).map(Progress::from)
    }

    /// Delivers frames that were read before but not delivered.
    ///
    /// # Errors
    /// The ring is broken and must be stopped.
    pub fn retry(
        &mut self,
        queue: &mut Queue,
        memory: &GuestMemory,
    ) -> Result<Progress, RingError> {
        let mut ring = RingView::new(queue, memory)?;
        self.deliver_incoming(&mut ring).map(Progress::from)
    }

    /// Reads the next batch from a socket; false when nothing waits.
    fn fill(&mut self, port: Port, now: Instant) -> bool {
        if let Err(error) = self.underlay.receive(port, &mut self.incoming) {
            if error.kind() != io::ErrorKind::WouldBlock {
                self.complain("cannot receive from the underlay", &error, now);
            }
            return false;
        }
        self.incoming_port = port;
        if let (Port::Own, Some(overflow)) = (port, self.incoming.overflow.take()) {
            // The kernel's counter wraps at 32 bits. The group socket's also counts what its
            // filter turned away, so only that of the own socket says anything.
            let lost = overflow.wrapping_sub(mem::replace(&mut self.overflow, overflow));
            self.counters.add(VifCounter::rx_drop_overflow, u64::from(lost));
        }
        true
    }

    /// Delivers what was read. The guest sees what was delivered also when the ring turns out to be
    /// broken after it.
    fn deliver_incoming(&mut self, ring: &mut RingView<'_, '_>) -> Result<Outcome, RingError> {
        let outcome = self.deliver_batch(ring);
        ring.publish()?;
        self.starved = matches!(outcome, Ok(Outcome::Starved));
        outcome
    }

    fn deliver_batch(&mut self, ring: &mut RingView<'_, '_>) -> Result<Outcome, RingError> {
        let mut attempts = 0;
        let mut deliverer = Deliverer::default();
        while let Some(received) = self.incoming.peek() {
            let accepted = self.receiver.accept(self.incoming_port, received.from, received.bytes);
            let counters = &self.counters;
            let accepted = match accepted {
                Ok(accepted) => accepted,
                Err(counter) => {
                    counters.inc(counter);
                    self.incoming.take();
                    continue;
                }
            };
            match deliverer.deliver(ring, accepted.frame, self.layout)? {
                Delivery::Done => {
                    counters.inc(VifCounter::rx_frames);
                    counters.add(VifCounter::rx_bytes, accepted.frame.len() as u64);
                    counters.add(VifCounter::rx_group_frames, accepted.is_group.into());
                    self.incoming.take();
                }
                Delivery::TooLong => {
                    counters.inc(VifCounter::rx_drop_no_buffer);
                    self.incoming.take();
                }
                Delivery::BadChain => {
                    counters.inc(VifCounter::rx_drop_malformed);
                    attempts += 1;
                }
                Delivery::NoBuffers { seen } => {
                    ring.publish()?;
                    if !ring.enable_kicks_beyond(seen)? {
                        return Ok(Outcome::Starved);
                    }
                    attempts += 1;
                }
            }
            if attempts == ATTEMPTS {
                return Ok(Outcome::Interrupted);
            }
        }
        Ok(Outcome::All)
    }

    // ---- from varpd ----------------------------------------------------------------------------

    /// Takes the questions that frames have raised.
    pub fn questions(&mut self) -> impl Iterator<Item = Question> + '_ {
        self.neighbors.questions()
    }

    /// Whether the control side has something to do: questions, or a guest that announced itself.
    pub fn wants_attention(&self) -> bool {
        self.neighbors.has_questions() || self.announcement_seen
    }

    /// Whether the guest has announced itself since the last call (gratuitous ARP and the like).
    pub fn take_announcement(&mut self) -> bool {
        mem::take(&mut self.announcement_seen)
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
            self.send_parked(&frames, coa.addr, now);
        } else {
            self.counters.add(VifCounter::tx_drop_unresolved, frames.len() as u64);
        }
    }

    fn send_parked(&mut self, frames: &[Vec<u8>], to: SocketAddr, now: Instant) {
        let heads_and_rests =
            || frames.iter().filter_map(|f| f.split_first_chunk::<{ size_of::<Head>() }>());
        let pieces: Vec<IoVec<'_>> =
            heads_and_rests().map(|(_, rest)| IoVec::from_slice(rest)).collect();
        let outgoing: Vec<Outgoing> = heads_and_rests()
            .enumerate()
            .map(|(at, (head, rest))| Outgoing {
                head: *head,
                to,
                rest: at..at + 1,
                len: frame::ADDRESSES_LEN + rest.len(),
                is_group: false,
            })
            .collect();
        self.send(&outgoing, &pieces, now);
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

    /// Drops frames that have waited too long.
    pub fn handle_timeout(&mut self, now: Instant) {
        let mut abandoned = Vec::new();
        let expired = self.park.expire(now, &mut abandoned);
        self.counters.add(VifCounter::tx_drop_park_expired, expired);
        for mac in abandoned {
            self.neighbors.give_up(mac);
        }
    }

    /// When [`Worker::handle_timeout`] is to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.park.poll_timeout()
    }
}

/// The datagram that a frame becomes, copied.
fn copy_of(head: &Head, pieces: &[IoVec<'_>], rest: &Range<usize>) -> Vec<u8> {
    let pieces = pieces.get(rest.clone()).unwrap_or_default();
    let len = head.len() + pieces.iter().map(IoVec::len).sum::<usize>();
    let mut copy = Vec::with_capacity(len);
    copy.extend_from_slice(head);
    pieces.iter().for_each(|piece| piece.append_to(&mut copy));
    copy
}

/// The frame in a datagram of ours.
fn encapsulated(datagram: &[u8]) -> &[u8] {
    datagram.get(encap::LEN..).unwrap_or_default()
}

#[cfg(test)]
mod tests;
