//! The worker's part from the guest on: frames are taken from the transmit ring, judged, and put where
//! they belong: into the batch for the underlay, into a lane, or where they wait for their destination.

use std::mem;

use virtio_queue::Queue;

use super::{BUDGET, Progress, Worker};
use crate::capture::Verdict::{Announced, Forwarded, Held, Passed};
use crate::capture::{self, Observed};
use crate::guest::MODERN_HEADER_LEN;
use crate::guest::ring::RingView;
use crate::guest::transmit::{self, TransmitFrame};
use crate::local::ends::Limits;
use crate::local::lanes::Written;
use crate::metrics::VifCounter;
use crate::offload::LEAD_LEN;
use crate::offload::header::{self, Request};
use crate::port::guard::exit::Exit;
use crate::port::throttle::{Allowance, Cost, Direction};
use crate::port::tx::Verdict;
use crate::sys::iovec::{Gather, IoVec};
use crate::time::Instant;
use crate::tunnel::endpoint::Resolved;
use crate::tunnel::outgoing::scatter;
use crate::tunnel::outgoing::{AddressBytes, Batch, Lead, Route};
use crate::underlay::Underlay;
use crate::vhost_user::vring::{GuestMemory, RingError};
use crate::wire::{encap, frame};

/// Frames of one batch at most, and bytes after which it is large enough.
pub(super) const BATCH_FRAMES: usize = 256;
const BATCH_BYTES: usize = 256 << 10;
/// Longest frame that is looked into for an announcement of its sender, in bytes.
const ANNOUNCEMENT_LEN: usize = 128;
const _: () = assert!(transmit::MAX_PIECES <= scatter::MAX_PIECES);

impl<U: Underlay> Worker<U> {
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
            if self.throttle.holds(Direction::Out) {
                return Ok(Progress::Idle); // Without kicks: a timer wakes us.
            }
            if self.local.is_stalled() {
                return Ok(Progress::Idle); // There is room soon, or the time is over.
            }
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
        let exit = self.identity.lend_exit();
        let mut batch = mem::take(&mut self.batch).recycle();
        self.local.begin_batch();
        let mut allowance = self.throttle.out.open(now);
        let taken = self.take_batch(ring, &mut batch, exit.as_deref(), &mut allowance, now);
        if self.throttle.out.close(allowance) {
            self.counters.inc(VifCounter::tx_throttled);
        }
        self.tunnel.send(&batch, now);
        self.local.publish();
        self.batch = batch.recycle();
        self.identity.take_back(exit);
        ring.publish()?;
        taken
    }

    /// Takes frames from the ring until the batch is full, there are no more, or the rest must wait.
    fn take_batch<'m: 'b, 'b>(
        &mut self,
        ring: &mut RingView<'_, 'm>,
        batch: &mut Batch<'b>,
        exit: Option<&'b Exit>,
        allowance: &mut Allowance,
        now: Instant,
    ) -> Result<usize, RingError> {
        let (mut taken, mut bytes) = (0, 0);
        let mut frame = TransmitFrame::EMPTY;
        while taken < BATCH_FRAMES && bytes < BATCH_BYTES {
            let position = ring.position();
            let Some(head) = ring.pop()? else { break };
            if !allowance.admits() {
                ring.rewind_to(position);
                break;
            }
            if self.guest.read(ring, head, &mut batch.pieces, &mut frame).is_ok() {
                bytes += frame.len;
                let Some(charged) = self.dispatch(&mut frame, batch, exit, now) else {
                    ring.rewind_to(position);
                    break;
                };
                if charged > 0 {
                    allowance.charge_cost(|| cost_of(&frame));
                }
            }
            ring.push_used(head, 0)?;
            taken += 1;
        }
        Ok(taken)
    }

    /// Judges a frame and puts it where it belongs; its pieces stay only if it leaves with the batch.
    /// Returns its length, or 0 if it was dropped; `None` if it has to stay in the ring for a while.
    #[inline]
    fn dispatch<'b>(
        &mut self,
        frame: &mut TransmitFrame,
        batch: &mut Batch<'b>,
        exit: Option<&'b Exit>,
        now: Instant,
    ) -> Option<usize> {
        if self.tunnel.is_halted() {
            let verdict = capture::Verdict::Dropped(VifCounter::tx_drop_policy);
            return self.conclude(frame, None, Some(verdict), batch);
        }
        let key = self.tunnel.place().receiver.key;
        let Self { identity, tunnel, counters, .. } = self;
        let mut judged = identity.judge(key, frame, tunnel.neighbors_mut(), counters, now);
        if let Some(exit) = exit {
            exit.judge(&mut judged, frame, &mut batch.pieces);
        }
        let addresses = judged.addresses;
        let prepared = match judged.verdict {
            Verdict::Unicast(coa) if self.local.leads_to(coa.addr) => {
                let route = Route::to_vif(coa);
                let verdict = self.dispatch_local(frame, addresses, route, batch, true, now);
                return self.conclude(frame, Some(addresses), verdict, batch);
            }
            Verdict::Unicast(coa) => self.prepare(frame, addresses, Route::to_vif(coa), batch, now),
            Verdict::Group if !self.throttle.admits_group(cost_of(frame), now) => {
                Err(VifCounter::tx_drop_group_rate)
            }
            Verdict::Group => {
                self.look_for_announcement(frame, batch);
                self.prepare(frame, addresses, self.tunnel.to_group(), batch, now)
            }
            Verdict::Wait(mac) => {
                let parked = parked(frame, addresses, batch);
                let held = self.tunnel.hold(mac, parked, now);
                let verdict = held.map_or_else(capture::Verdict::Dropped, |()| Held);
                return self.conclude(frame, Some(addresses), Some(verdict), batch);
            }
            Verdict::Drop(counter) => Err(counter),
        };
        match prepared {
            // The endpoint shows and counts it.
            Ok(()) => Some(frame.len),
            Err(counter) => {
                let verdict = capture::Verdict::Dropped(counter);
                self.conclude(frame, Some(addresses), Some(verdict), batch)
            }
        }
    }

    /// Shows a frame at the door towards the wire and counts it, unless it leaves with the batch (then the
    /// endpoint does), or stays in the ring (`None`). Returns as [`Worker::dispatch`] does.
    fn conclude(
        &self,
        frame: &TransmitFrame,
        addresses: Option<AddressBytes>,
        verdict: Option<capture::Verdict>,
        batch: &mut Batch<'_>,
    ) -> Option<usize> {
        if verdict == Some(Passed) {
            return Some(frame.len);
        }
        if let Some(verdict) = verdict
            && self.tunnel.door_to_wire().is_open()
        {
            self.show(frame, addresses, verdict, batch);
        }
        batch.pieces.truncate(frame.pieces.start);
        match verdict? {
            Passed | Forwarded | Announced | capture::Verdict::Local => Some(frame.len),
            Held => {
                self.counters.inc(VifCounter::tx_parked);
                Some(frame.len)
            }
            capture::Verdict::Dropped(counter) => {
                self.counters.inc(counter);
                Some(0)
            }
        }
    }

    #[cold]
    fn show(
        &self,
        frame: &TransmitFrame,
        addresses: Option<AddressBytes>,
        verdict: capture::Verdict,
        batch: &Batch<'_>,
    ) {
        let parts = batch.pieces.get(frame.pieces.clone()).unwrap_or_default();
        // A frame that is dropped is shown with the addresses that the guest wrote.
        let is_dropped = matches!(verdict, capture::Verdict::Dropped(_));
        let addresses = addresses.filter(|_| !is_dropped);
        let addresses = addresses.as_ref().map_or(&[][..], |addresses| addresses.as_slice());
        let (skip, len) = (frame.skip, frame.len);
        self.tunnel.door_to_wire().show(|| Observed { parts, skip, len, addresses, verdict });
    }

    /// Prepares a frame to a vif of this host, which goes through a lane unless that just ended.
    /// `can_wait`: whether the frame may stay in the ring if the lane is full.
    fn dispatch_local(
        &mut self,
        frame: &TransmitFrame,
        addresses: AddressBytes,
        route: Route,
        batch: &mut Batch<'_>,
        can_wait: bool,
        now: Instant,
    ) -> Option<capture::Verdict> {
        let leads = batch.leads.len();
        let prepared = match self.prepare_uncut(frame, addresses, route, batch) {
            Some(prepared) => prepared,
            None => self.prepare(frame, addresses, route, batch, now),
        };
        if let Err(counter) = prepared {
            return Some(capture::Verdict::Dropped(counter));
        }
        let outgoing = batch.frames.last()?;
        let max_frame = self.tunnel.max_frame();
        let limits = Limits { max_frame, feedback: self.tunnel.feedback_mut(), can_wait };
        let verdict = match self.local.write(outgoing, batch, limits, now) {
            // It leaves with the batch.
            Ok(Written::NoLane) => return Some(Passed),
            Ok(Written::Done) => Some(capture::Verdict::Local),
            Ok(Written::Wait) => None,
            Ok(Written::Dropped) => {
                Some(capture::Verdict::Dropped(VifCounter::tx_drop_backpressure))
            }
            Err(counter) => Some(capture::Verdict::Dropped(counter)),
        };
        batch.frames.pop();
        batch.leads.truncate(leads);
        verdict
    }

    /// The same as [`Worker::prepare`] for a frame that goes as it is, and whose checksum is left to
    /// whoever gets it: its headers need not be looked at. `None` for others.
    fn prepare_uncut(
        &self,
        frame: &TransmitFrame,
        addresses: AddressBytes,
        route: Route,
        batch: &mut Batch<'_>,
    ) -> Option<Result<(), VifCounter>> {
        if frame.len > self.tunnel.max_frame() {
            return None;
        }
        let request = Request::parse_uncut(frame.header(), frame.len, self.guest.offloads())?;
        let done = request.map(|request| add(batch, frame, addresses, route, request, None));
        Some(done.map_err(|_| VifCounter::tx_drop_header))
    }

    /// Looks at what the guest wants done to a frame and adds it to the batch; copies all of its
    /// headers if it is to be cut.
    #[inline]
    fn prepare(
        &self,
        frame: &TransmitFrame,
        addresses: AddressBytes,
        route: Route,
        batch: &mut Batch<'_>,
        now: Instant,
    ) -> Result<(), VifCounter> {
        let fits = encap::LEN + frame.len <= self.tunnel.max_datagram(&route, now);
        let [flags, gso_type, ..] = *frame.header() else {
            return Err(VifCounter::tx_drop_header);
        };
        let is_refused = |_| VifCounter::tx_drop_header;
        let (mut request, mut lead) = (Request::Plain, None);
        if gso_type != 0 || !fits {
            let copied = whole_lead(frame, addresses, batch);
            let known = copied.get(..frame.len).unwrap_or(&copied);
            request = Request::parse(frame.header(), known, frame.len, self.guest.offloads())
                .map_err(is_refused)?;
            lead = Some(batch.leads.len());
            batch.leads.push(copied);
        } else if flags != 0 {
            let known = frame.lead();
            request = Request::parse_whole(frame.header(), known, frame.len, self.guest.offloads())
                .map_err(is_refused)?;
        }
        add(batch, frame, addresses, route, request, lead);
        Ok(())
    }

    fn look_for_announcement(&mut self, frame: &TransmitFrame, batch: &Batch<'_>) {
        let mut copy = [0; ANNOUNCEMENT_LEN];
        let pieces = batch.pieces.get(frame.pieces.clone()).unwrap_or_default();
        if let Some(copy) = copy.get_mut(..frame.len) {
            Gather::new(pieces, frame.skip).copy_to(copy);
            if frame::announces_sender(copy) {
                self.presence.note_announcement();
            }
        }
    }

    /// Sends frames that have waited for their destination, which is now known.
    pub(super) fn send_resolved(&mut self, resolved: &Resolved, now: Instant) {
        let Resolved { coa, ref frames } = *resolved;
        let mut batch = Batch::default();
        for bytes in frames {
            let at = batch.pieces.len();
            let piece = IoVec::from_slice(bytes);
            let mut parked = TransmitFrame::EMPTY;
            let read = parked.read(&[piece], bytes.len(), MODERN_HEADER_LEN, at..at + 1);
            let Some(()) = read else { continue };
            let Some(&addresses) = parked.ethernet().first_chunk() else { continue };
            let route = Route::to_vif(coa);
            batch.pieces.push(piece);
            let verdict = if self.local.leads_to(coa.addr) {
                self.dispatch_local(&parked, addresses, route, &mut batch, false, now)
            } else {
                let prepared = self.prepare(&parked, addresses, route, &mut batch, now);
                Some(prepared.map_or_else(capture::Verdict::Dropped, |()| Passed))
            };
            self.conclude(&parked, Some(addresses), verdict, &mut batch);
        }
        self.tunnel.send(&batch, now);
        self.local.publish();
    }
}

/// What a frame is charged: one that is to be cut counts with what it is cut into.
fn cost_of(frame: &TransmitFrame) -> Cost {
    Cost::new(frame.len, header::segments_at_most(frame.header(), frame.len))
}

/// The beginning of a frame, with our addresses.
fn whole_lead(frame: &TransmitFrame, addresses: AddressBytes, batch: &Batch<'_>) -> Lead {
    let mut lead = [0; LEAD_LEN];
    let pieces = batch.pieces.get(frame.pieces.clone()).unwrap_or_default();
    let len = frame.len.min(LEAD_LEN);
    Gather::new(pieces, frame.skip).copy_to(lead.get_mut(..len).unwrap_or_default());
    if let Some(place) = lead.first_chunk_mut() {
        *place = addresses;
    }
    lead
}

/// Adds a frame to a batch.
#[inline]
fn add(
    batch: &mut Batch<'_>,
    frame: &TransmitFrame,
    addresses: AddressBytes,
    route: Route,
    request: Request,
    lead: Option<usize>,
) {
    if let Some(outgoing) = batch.add() {
        outgoing.route = route;
        outgoing.addresses = addresses;
        outgoing.request = request;
        outgoing.len = frame.len;
        outgoing.pieces = frame.pieces.clone();
        outgoing.skip = frame.skip;
        outgoing.lead = lead;
    }
}

/// A frame to wait: its virtio-net header at full length, and its bytes with our addresses.
fn parked(frame: &TransmitFrame, addresses: AddressBytes, batch: &Batch<'_>) -> Vec<u8> {
    let mut bytes = vec![0; MODERN_HEADER_LEN + frame.len];
    let pieces = batch.pieces.get(frame.pieces.clone()).unwrap_or_default();
    if let Some((header, rest)) = bytes.split_first_chunk_mut::<MODERN_HEADER_LEN>() {
        header.iter_mut().zip(frame.header()).for_each(|(to, from)| *to = *from);
        Gather::new(pieces, frame.skip).copy_to(rest);
        if let Some(place) = rest.first_chunk_mut() {
            *place = addresses;
        }
    }
    bytes
}
