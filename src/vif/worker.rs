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
//! A worker outlives the connections of its frontend: it keeps sockets, what it has learnt and the
//! frames that wait, while QEMU comes and goes.

use std::io;
use std::mem;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use virtio_queue::Queue;

use super::guest::{self, Deliverer, Delivery, HeaderLayout, MODERN_HEADER_LEN, TransmitFrame};
use super::incoming::Incoming;
use super::neighbors::{Lookup, Neighbors, Question};
use super::outgoing::{AddressBytes, Batch, Outgoing, Route, Staged, Stager, Step};
use super::park::Park;
use super::ring::RingView;
use super::rx::Receiver;
use super::tx::{self, SourceMac, Verdict};
use crate::metrics::{VifCounter, VifCounters};
use crate::offload::LEAD_LEN;
use crate::offload::features::Offloads;
use crate::offload::gro::Merger;
use crate::offload::header::Request;
use crate::sys::iovec::{Gather, IoVec};
use crate::sys::mmsg::{BATCH, Message};
use crate::time::Instant;
use crate::underlay::{Port, Underlay};
use crate::vhost_user::vring::{GuestMemory, RingError};
use crate::wire::{Capabilities, CareOf, Mac, Stamp, encap, frame};

/// Batches handled for one wake-up before other events get their turn.
const BUDGET: usize = 8;
/// Frames of one batch at most, and bytes after which it is large enough.
const BATCH_FRAMES: usize = 256;
const BATCH_BYTES: usize = 256 << 10;
/// Received frames that one delivered frame is made of at most.
const MERGED_FRAMES: usize = 64;
/// Longest frame that is given to a guest: what its drivers have room for when they accept TSO.
const MERGED_LEN: usize = 65_550;
/// Times that a batch may go back to a receive ring without a frame delivered, before others get
/// their turn: a guest that adds useless chains as fast as they are given back must not hold us.
const ATTEMPTS: usize = 16;
/// Longest frame that is looked into for an announcement of its sender, in bytes.
const ANNOUNCEMENT_LEN: usize = 128;
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
    overflow: u32,
    complain_after: Instant,
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
        self.place.receiver.own = own;
        self.place.group = group;
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
        let mut batch = mem::take(&mut self.batch).recycle();
        let taken = self.take_batch(ring, &mut batch, now);
        self.send(&batch, now);
        self.batch = batch.recycle();
        ring.publish()?;
        taken
    }

    /// Takes frames from the ring until the batch is full or there are no more.
    fn take_batch<'m>(
        &mut self,
        ring: &mut RingView<'_, 'm>,
        batch: &mut Batch<'m>,
        now: Instant,
    ) -> Result<usize, RingError> {
        let (mut taken, mut bytes) = (0, 0);
        while taken < BATCH_FRAMES && bytes < BATCH_BYTES {
            let Some(head) = ring.pop()? else { break };
            match guest::read_frame(ring, head, self.layout.len, &mut batch.pieces) {
                Ok(frame) => {
                    bytes += frame.len;
                    self.dispatch(frame, batch, now);
                }
                Err(guest::Malformed) => self.counters.inc(VifCounter::tx_drop_malformed),
            }
            ring.push_used(head, 0)?;
            taken += 1;
        }
        Ok(taken)
    }

    /// Judges a frame and puts it where it belongs; its pieces stay only if it leaves now.
    fn dispatch(&mut self, frame: TransmitFrame, batch: &mut Batch<'_>, now: Instant) {
        let key = self.place.receiver.key;
        let judged = tx::judge(key, self.source_mac, &frame.ethernet, &mut self.neighbors, now);
        if judged.is_stamped && self.source_mac == SourceMac::Stamp {
            self.counters.inc(VifCounter::tx_stamped);
        }
        let start = frame.pieces.start;
        let outgoing = match judged.verdict {
            Verdict::Unicast(coa) => self.prepare(frame, judged.addresses, to_vif(coa), batch),
            Verdict::Group => {
                self.look_for_announcement(&frame, batch);
                self.prepare(frame, judged.addresses, self.to_group(), batch)
            }
            Verdict::Wait(mac) => {
                let parked = parked(&frame, judged.addresses, batch);
                Err(match self.park.push(mac, parked, now) {
                    Ok(()) => VifCounter::tx_parked,
                    Err(_) => VifCounter::tx_drop_park_full,
                })
            }
            Verdict::Drop(counter) => Err(counter),
        };
        match outgoing {
            Ok(outgoing) => batch.frames.push(outgoing),
            Err(counter) => {
                self.counters.inc(counter);
                batch.pieces.truncate(start);
            }
        }
    }

    fn to_group(&self) -> Route {
        let capabilities = Capabilities::NONE;
        Route { to: self.place.group, is_group: true, capabilities }
    }

    /// Looks at what the guest wants done to a frame; copies its headers first if anything.
    fn prepare(
        &self,
        frame: TransmitFrame,
        addresses: AddressBytes,
        route: Route,
        batch: &mut Batch<'_>,
    ) -> Result<Outgoing, VifCounter> {
        let TransmitFrame { header, len, pieces, skip, .. } = frame;
        let fits = encap::LEN + len <= self.place.max_datagram;
        let mut outgoing =
            Outgoing { route, addresses, request: Request::Plain, len, pieces, skip, lead: None };
        let [flags, gso_type, ..] = header;
        if flags == 0 && gso_type == 0 && fits {
            return Ok(outgoing);
        }
        let mut lead = [0; LEAD_LEN];
        let copied = lead.get_mut(..len.min(LEAD_LEN)).unwrap_or_default();
        batch.gather(&outgoing, 0).copy_to(copied);
        if let Some(place) = copied.first_chunk_mut() {
            *place = addresses;
        }
        outgoing.request = Request::parse(&header, copied, len, self.offloads)
            .map_err(|_| VifCounter::tx_drop_header)?;
        if !fits || matches!(outgoing.request, Request::Segment { .. }) {
            outgoing.lead = Some(batch.leads.len());
            batch.leads.push(lead);
        }
        Ok(outgoing)
    }

    fn look_for_announcement(&mut self, frame: &TransmitFrame, batch: &Batch<'_>) {
        let mut copy = [0; ANNOUNCEMENT_LEN];
        let pieces = batch.pieces.get(frame.pieces.clone()).unwrap_or_default();
        if let Some(copy) = copy.get_mut(..frame.len) {
            Gather::new(pieces, frame.skip).copy_to(copy);
            self.announcement_seen |= frame::announces_sender(copy);
        }
    }

    /// Sends a batch in order.
    fn send(&mut self, batch: &Batch<'_>, now: Instant) {
        let mut at = 0;
        while at < batch.frames.len() {
            match self.stager.stage(batch, at, self.place.max_datagram) {
                Step::Done(count) => at += count,
                Step::Full if !self.stager.staged().is_empty() => self.flush(now),
                // Larger than the empty buffer.
                Step::Full => {
                    self.counters.inc(VifCounter::tx_drop_too_big);
                    at += 1;
                }
                Step::Refused(counter) => {
                    self.counters.inc(counter);
                    at += 1;
                }
            }
        }
        self.flush(now);
    }

    /// Sends what is staged. What the kernel refuses is counted by reason and the next one tried.
    fn flush(&mut self, now: Instant) {
        let stager = mem::replace(&mut self.stager, Stager::empty());
        for batch in stager.staged().chunks(BATCH) {
            let mut parts = [const { IoVec::EMPTY }; BATCH];
            for (staged, part) in batch.iter().zip(&mut parts) {
                *part = IoVec::from_slice(stager.bytes(staged));
            }
            let mut messages = [Message { to: self.place.group, parts: &[], segment: 0 }; BATCH];
            for ((staged, part), message) in batch.iter().zip(&parts).zip(&mut messages) {
                let (to, segment) = (staged.route.to, staged.segment);
                *message = Message { to, parts: std::slice::from_ref(part), segment };
            }
            self.send_messages(batch, messages.get(..batch.len()).unwrap_or_default(), now);
        }
        self.stager = stager;
        self.stager.clear();
    }

    fn send_messages(&mut self, mut staged: &[Staged], mut messages: &[Message<'_>], now: Instant) {
        while let [first, ..] = messages {
            let settled = match self.underlay.send(messages) {
                Ok(count) => {
                    staged.iter().take(count).for_each(|staged| self.count_sent(staged));
                    count
                }
                Err(error) if first.segment != 0 && is_segmentation_refused(&error) => {
                    self.complain(
                        "the kernel refuses UDP_SEGMENT; sending one by one",
                        &error,
                        now,
                    );
                    self.send_one_by_one(staged.first(), first, now);
                    1
                }
                Err(error) => self.count_refused(&error, staged, now),
            };
            // At least one is settled in each round, whatever the kernel answers.
            let settled = settled.clamp(1, messages.len());
            staged = staged.get(settled..).unwrap_or_default();
            messages = messages.get(settled..).unwrap_or_default();
        }
    }

    /// The datagrams of a message each by itself: slow, but it works everywhere.
    fn send_one_by_one(&mut self, staged: Option<&Staged>, message: &Message<'_>, now: Instant) {
        let (Some(staged), [bytes]) = (staged, message.parts) else { return };
        let segment = usize::from(message.segment).max(1);
        let mut is_first = true;
        for start in (0..bytes.len()).step_by(segment) {
            let part = bytes.skip(start).first(segment);
            let datagram = Message { parts: std::slice::from_ref(&part), segment: 0, ..*message };
            // The frames of the message are counted with its first datagram.
            let one = Staged {
                range: 0..part.len(),
                segment: 0,
                frames: if is_first { staged.frames } else { 0 },
                frame_bytes: if is_first { staged.frame_bytes } else { 0 },
                ..staged.clone()
            };
            is_first = false;
            match self.underlay.send(&[datagram]) {
                Ok(_) => self.count_sent(&one),
                Err(error) => drop(self.count_refused(&error, &[one], now)),
            }
        }
    }

    fn count_sent(&self, staged: &Staged) {
        let counters = &self.counters;
        counters.add(VifCounter::tx_frames, staged.frames);
        counters.add(VifCounter::tx_bytes, staged.frame_bytes);
        counters.add(VifCounter::tx_datagrams, staged.datagrams() as u64);
        if staged.route.is_group {
            counters.add(VifCounter::tx_group_frames, staged.frames);
        }
    }

    /// Counts what an error says of the first of the messages; returns how many it settles.
    fn count_refused(&mut self, error: &io::Error, waiting: &[Staged], now: Instant) -> usize {
        let (counter, settled) = match error.raw_os_error() {
            Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => {
                (VifCounter::tx_drop_backpressure, waiting.len())
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
        // The rest of a large frame whose beginning has left counts as a frame lost.
        let lost = waiting.iter().take(settled).map(|staged| staged.frames.max(1)).sum();
        self.counters.add(counter, lost);
        settled
    }

    fn complain(&mut self, what: &str, error: &io::Error, now: Instant) {
        if now >= self.complain_after {
            log::warn!("{what}: {error} (logged at most once a minute)");
            self.complain_after = now + COMPLAINT_INTERVAL;
        }
    }

    // ---- to the guest --------------------------------------------------------------------------

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
        let Self { incoming, underlay, place, counters, .. } = self;
        if let Err(error) = incoming.fill(port, underlay, &place.receiver, counters) {
            if error.kind() != io::ErrorKind::WouldBlock {
                self.complain("cannot receive from the underlay", &error, now);
            }
            return false;
        }
        if let (Port::Own, Some(overflow)) = (port, self.incoming.take_overflow()) {
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
        let mut most = usize::MAX;
        let Self { incoming, merger, counters, layout, .. } = self;
        let mut deliverer = Deliverer::default();
        while let Some(merged) = merger.merge(|n| if n < most { incoming.get(n) } else { None }) {
            let Ok(merged) = merged else {
                counters.inc(VifCounter::rx_drop_checksum);
                incoming.take(1);
                continue;
            };
            let payload =
                |n| incoming.get(n).map_or(&[] as &[u8], |frame| merged.payload_of(&frame));
            let (header, count) = (&merged.header, merged.frames);
            let (delivery, len) = if count == 1 {
                let parts = [merged.head, payload(0)];
                (deliverer.deliver(ring, header, &parts, *layout)?, total_len(&parts))
            } else {
                let payloads = (0..count).map(payload);
                let parts: Vec<&[u8]> = std::iter::once(merged.head).chain(payloads).collect();
                (deliverer.deliver(ring, header, &parts, *layout)?, total_len(&parts))
            };
            match delivery {
                Delivery::Done => {
                    counters.inc(VifCounter::rx_frames);
                    counters.add(VifCounter::rx_bytes, len);
                    counters.add(VifCounter::rx_group_frames, incoming.is_group().into());
                    incoming.take(count);
                }
                // The guest's whole ring holds less: not merged, the frames may fit.
                Delivery::TooLong if count > 1 => most = 1,
                Delivery::TooLong => {
                    counters.add(VifCounter::rx_drop_no_buffer, count as u64);
                    incoming.take(count);
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
            self.send_parked(&frames, coa, now);
        } else {
            self.counters.add(VifCounter::tx_drop_unresolved, frames.len() as u64);
        }
    }

    fn send_parked(&mut self, frames: &[Vec<u8>], coa: CareOf, now: Instant) {
        let mut batch = Batch::default();
        for bytes in frames {
            let Some((header, frame)) = bytes.split_first_chunk() else { continue };
            let Some(ethernet) = frame.first_chunk() else { continue };
            let Some(addresses) = frame.first_chunk() else { continue };
            let at = batch.pieces.len();
            batch.pieces.push(IoVec::from_slice(bytes));
            let pieces = at..at + 1;
            let (header, ethernet, len) = (*header, *ethernet, frame.len());
            let parked = TransmitFrame { header, ethernet, len, pieces, skip: header.len() };
            match self.prepare(parked, *addresses, to_vif(coa), &mut batch) {
                Ok(frame) => batch.frames.push(frame),
                Err(counter) => self.counters.inc(counter),
            }
        }
        self.send(&batch, now);
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

fn to_vif(coa: CareOf) -> Route {
    Route { to: coa.addr, is_group: false, capabilities: coa.capabilities }
}

/// A frame to wait: its virtio-net header at full length, and its bytes with our addresses.
fn parked(frame: &TransmitFrame, addresses: AddressBytes, batch: &Batch<'_>) -> Vec<u8> {
    let mut bytes = vec![0; MODERN_HEADER_LEN + frame.len];
    let pieces = batch.pieces.get(frame.pieces.clone()).unwrap_or_default();
    if let Some((header, rest)) = bytes.split_first_chunk_mut() {
        *header = frame.header;
        Gather::new(pieces, frame.skip).copy_to(rest);
        if let Some(place) = rest.first_chunk_mut() {
            *place = addresses;
        }
    }
    bytes
}

/// Whether the kernel or the link can't cut a message into datagrams (udp(7)): no checksum offload
/// on the link, segments too long for it, too many of them.
fn is_segmentation_refused(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE))
}

fn total_len(parts: &[&[u8]]) -> u64 {
    parts.iter().map(|part| part.len() as u64).sum()
}

#[cfg(test)]
mod tests;
