//! From the guest to the underlay: a worker's half for what its guest sends.

use std::io;
use std::mem;

use virtio_queue::Queue;

use super::{BUDGET, Progress, Worker};
use crate::metrics::VifCounter;
use crate::offload::LEAD_LEN;
use crate::offload::header::Request;
use crate::sys::iovec::{Gather, IoVec};
use crate::sys::mmsg::{BATCH, Message};
use crate::time::Instant;
use crate::underlay::Underlay;
use crate::vhost_user::vring::{GuestMemory, RingError};
use crate::vif::guest::{self, MODERN_HEADER_LEN, TransmitFrame};
use crate::vif::lanes::Written;
use crate::vif::outgoing::{AddressBytes, Batch, Outgoing, Route, Staged, Stager, Step};
use crate::vif::ring::RingView;
use crate::vif::too_big;
use crate::vif::tx::{self, SourceMac, Verdict};
use crate::wire::{Capabilities, CareOf, encap, frame};

/// Frames of one batch at most, and bytes after which it is large enough.
const BATCH_FRAMES: usize = 256;
const BATCH_BYTES: usize = 256 << 10;
/// Answers to the guest that wait at most; more say nothing new.
const MAX_ANSWERS: usize = 16;
/// Longest frame that is looked into for an announcement of its sender, in bytes.
const ANNOUNCEMENT_LEN: usize = 128;

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
            if self.lanes.is_stalled() {
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
        let mut batch = mem::take(&mut self.batch).recycle();
        self.lanes.begin_batch();
        let taken = self.take_batch(ring, &mut batch, now);
        self.send(&batch, now);
        self.publish_local();
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
            let position = ring.position();
            let Some(head) = ring.pop()? else { break };
            match guest::read_frame(ring, head, self.layout.len, &mut batch.pieces) {
                Ok(frame) => {
                    bytes += frame.len;
                    if !self.dispatch(frame, batch, now) {
                        ring.rewind_to(position);
                        break;
                    }
                }
                Err(guest::Malformed) => self.counters.inc(VifCounter::tx_drop_malformed),
            }
            ring.push_used(head, 0)?;
            taken += 1;
        }
        Ok(taken)
    }

    /// Judges a frame and puts it where it belongs; its pieces stay only if it leaves with the batch.
    /// False if it has to stay in the ring for a while.
    fn dispatch(&mut self, frame: TransmitFrame, batch: &mut Batch<'_>, now: Instant) -> bool {
        let key = self.place.receiver.key;
        let judged = tx::judge(key, self.source_mac, &frame.ethernet, &mut self.neighbors, now);
        if judged.is_stamped && self.source_mac == SourceMac::Stamp {
            self.counters.inc(VifCounter::tx_stamped);
        }
        let start = frame.pieces.start;
        let outgoing = match judged.verdict {
            Verdict::Unicast(coa) if self.lanes.lead_to(coa.addr) => {
                let when = (true, now);
                return self.dispatch_local(frame, judged.addresses, to_vif(coa), batch, when);
            }
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
        true
    }

    /// The same for a frame to a vif of this host, which goes through a lane unless that just ended.
    fn dispatch_local(
        &mut self,
        frame: TransmitFrame,
        addresses: AddressBytes,
        route: Route,
        batch: &mut Batch<'_>,
        (can_wait, now): (bool, Instant),
    ) -> bool {
        let (pieces, leads) = (frame.pieces.start, batch.leads.len());
        let outgoing = match self.prepare_uncut(&frame, addresses, route) {
            Some(outgoing) => outgoing,
            None => self.prepare(frame, addresses, route, batch),
        };
        let written = match &outgoing {
            Ok(outgoing) => self.write_local(outgoing, batch, can_wait, now),
            Err(counter) => Err(*counter),
        };
        match (written, outgoing) {
            (Ok(Written::NoLane), Ok(outgoing)) => {
                batch.frames.push(outgoing);
                return true;
            }
            (Ok(Written::Dropped), _) => self.counters.inc(VifCounter::tx_drop_backpressure),
            (Err(counter), outgoing) => {
                self.counters.inc(counter);
                if let (VifCounter::tx_drop_too_big, Ok(outgoing)) = (counter, outgoing) {
                    self.answer_too_big(batch, &outgoing);
                }
            }
            _ => {}
        }
        batch.pieces.truncate(pieces);
        batch.leads.truncate(leads);
        written != Ok(Written::Wait)
    }

    fn to_group(&self) -> Route {
        let capabilities = Capabilities::NONE;
        Route { to: self.place.group, is_group: true, capabilities }
    }

    /// The same as [`Worker::prepare`] for a frame that goes as it is, and whose checksum is left to
    /// whoever gets it: its headers need not be looked at. `None` for others.
    fn prepare_uncut(
        &self,
        frame: &TransmitFrame,
        addresses: AddressBytes,
        route: Route,
    ) -> Option<Result<Outgoing, VifCounter>> {
        let TransmitFrame { header, len, ref pieces, skip, .. } = *frame;
        if encap::LEN + len > self.place.max_datagram {
            return None;
        }
        let request = Request::parse_uncut(&header, len, self.offloads)?;
        let (pieces, lead) = (pieces.clone(), None);
        let outgoing = |request| Outgoing { route, addresses, request, len, pieces, skip, lead };
        Some(request.map(outgoing).map_err(|_| VifCounter::tx_drop_header))
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

    /// Sends frames that have waited for their destination, which is now known.
    pub(super) fn send_parked(&mut self, frames: &[Vec<u8>], coa: CareOf, now: Instant) {
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
            if self.lanes.lead_to(coa.addr) {
                self.dispatch_local(parked, *addresses, to_vif(coa), &mut batch, (false, now));
                continue;
            }
            match self.prepare(parked, *addresses, to_vif(coa), &mut batch) {
                Ok(frame) => batch.frames.push(frame),
                Err(counter) => self.counters.inc(counter),
            }
        }
        self.send(&batch, now);
        self.publish_local();
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
                    if let (VifCounter::tx_drop_too_big, Some(frame)) =
                        (counter, batch.frames.get(at))
                    {
                        self.answer_too_big(batch, frame);
                    }
                    at += 1;
                }
            }
        }
        self.flush(now);
    }

    /// Tells the guest, as a router would, what does fit.
    fn answer_too_big(&mut self, batch: &Batch<'_>, frame: &Outgoing) {
        let max_frame = self.place.max_datagram.saturating_sub(encap::LEN);
        let answer = batch.lead(frame).and_then(|lead| too_big::answer(lead, max_frame));
        if let Some(answer) = answer
            && self.answers.len() < MAX_ANSWERS
        {
            self.answers.push(answer);
        }
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

fn to_vif(coa: CareOf) -> Route {
    Route { to: coa.addr, is_group: false, capabilities: coa.capabilities }
}
