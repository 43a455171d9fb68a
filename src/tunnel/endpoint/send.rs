//! To the underlay: batches are staged and given to the kernel, and what it refuses is counted. Each frame is
//! shown at the door towards the wire when its fate is known.

use std::io;
use std::mem;

use super::Endpoint;
use crate::capture::{Door, Observed, Verdict};
use crate::metrics::VifCounter;
use crate::sys::iovec;
use crate::sys::mmsg::{BATCH, Message};
use crate::time::Instant;
use crate::tunnel::outgoing::{Batch, Outgoing, Staged, Stager, Step};
use crate::underlay::Underlay;

/// Times in one flush that an error of an earlier datagram is taken for that, and the call made again.
const MAX_STALE: usize = 64;

impl<U: Underlay> Endpoint<U> {
    /// Sends a batch in order.
    pub fn send(&mut self, batch: &Batch<'_>, now: Instant) {
        if self.is_halted {
            return self.refuse(&batch.frames, batch, VifCounter::tx_drop_policy);
        }
        self.segmentation.handle_timeout(now);
        let mut at = 0;
        while let Some(frame) = batch.frames.get(at) {
            let max_datagram = self.max_datagram(&frame.route, now);
            self.stager.set_envelope(self.envelope(&frame.route));
            self.stager.limit_segments(self.segmentation.most(frame.route.to.ip()));
            match self.stager.stage(batch, at, max_datagram) {
                Step::Done(count) => {
                    at += count;
                    continue;
                }
                Step::Full if !self.stager.staged().is_empty() => {
                    self.flush(batch, now);
                    continue;
                }
                // Larger than the empty buffer.
                Step::Full => self.refuse_at(at, batch, VifCounter::tx_drop_too_big),
                Step::Refused(VifCounter::tx_drop_too_big) => self.send_too_long(batch, at, now),
                Step::Refused(counter) => self.refuse_at(at, batch, counter),
            }
            self.stager.next_frame();
            at += 1;
        }
        self.flush(batch, now);
    }

    /// Sends what is staged of a batch. What the kernel refuses is counted by reason and the next one
    /// tried.
    pub(super) fn flush(&mut self, batch: &Batch<'_>, now: Instant) {
        let mut stager =
            mem::replace(&mut self.stager, Stager::empty(self.place.receiver.key.vnet));
        if let Some(protection) = &mut self.protection {
            let (counters, door) = (&self.counters, &self.to_wire);
            protection.seal(&mut stager, now, |staged, counter, lost| {
                counters.add(counter, lost);
                if lost > 0 {
                    show(door, staged.begun_or_continued(batch), batch, Verdict::Dropped(counter));
                }
            });
        }
        let mut parts = iovec::recycle(mem::take(&mut self.parts));
        for staged in stager.staged().chunks(BATCH) {
            parts.clear();
            let mut ends = [0; BATCH];
            for (staged, end) in staged.iter().zip(&mut ends) {
                stager.parts(staged, batch, &mut parts);
                *end = parts.len();
            }
            let mut messages = [Message { to: self.place.group, parts: &[], segment: 0 }; BATCH];
            let mut start = 0;
            for ((staged, end), message) in staged.iter().zip(ends).zip(&mut messages) {
                let (to, segment) = (staged.route.to, staged.segment);
                let parts = parts.get(start..end).unwrap_or_default();
                *message = Message { to, parts, segment };
                start = end;
            }
            let messages = messages.get(..staged.len()).unwrap_or_default();
            self.send_messages(staged, messages, batch, now);
        }
        self.parts = iovec::recycle(parts);
        self.stager = stager;
        self.stager.clear();
    }

    /// Sends messages in order; returns whether the first has left.
    pub(super) fn send_messages(
        &mut self,
        mut staged: &[Staged],
        mut messages: &[Message<'_>],
        batch: &Batch<'_>,
        now: Instant,
    ) -> bool {
        let (all, mut has_left, mut stale) = (messages.len(), false, 0);
        while let ([message, ..], [first, ..]) = (messages, staged) {
            let settled = match self.underlay.send(messages) {
                Ok(count) => {
                    staged.iter().take(count).for_each(|staged| self.count_sent(staged, batch));
                    has_left |= messages.len() == all;
                    count
                }
                Err(_) if stale < MAX_STALE && self.heed_reports(now).are_stale() => {
                    stale += 1;
                    continue;
                }
                Err(error) => match self.remedy(&error, first, now) {
                    Some(remedy) => {
                        self.send_again(first, message, remedy, batch, now);
                        1
                    }
                    None if self.split_refused(&error, first, message, batch, now) => 1,
                    None => self.count_refused(&error, staged, batch, now),
                },
            };
            // At least one is settled in each round, whatever the kernel answers.
            let settled = settled.clamp(1, messages.len());
            staged = staged.get(settled..).unwrap_or_default();
            messages = messages.get(settled..).unwrap_or_default();
        }
        has_left
    }

    pub(super) fn count_sent(&mut self, staged: &Staged, batch: &Batch<'_>) {
        self.losses.sent(staged);
        if self.to_wire.is_open() {
            let is_redirected = staged.route.is_redirected;
            let verdict = if is_redirected { Verdict::Forwarded } else { Verdict::Passed };
            show(&self.to_wire, staged.begun(batch), batch, verdict);
        }
        let counters = &self.counters;
        if staged.route.is_redirected {
            return counters.add(VifCounter::tx_forwarded, staged.frames);
        }
        counters.add(VifCounter::tx_frames, staged.frames);
        counters.add(VifCounter::tx_bytes, staged.frame_bytes);
        counters.add(VifCounter::tx_datagrams, staged.datagrams as u64);
        if self.segmentation.is_refused(staged.route.to.ip()) {
            counters.add(VifCounter::tx_unsegmented, staged.datagrams as u64);
        }
        if staged.route.is_group {
            counters.add(VifCounter::tx_group_frames, staged.frames);
        }
    }

    /// Counts what an error says of the first of the messages; returns how many it settles.
    pub(super) fn count_refused(
        &mut self,
        error: &io::Error,
        waiting: &[Staged],
        batch: &Batch<'_>,
        now: Instant,
    ) -> usize {
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
        for staged in waiting.iter().take(settled) {
            let lost = self.losses.lost(staged);
            self.counters.add(counter, lost);
            if lost > 0 {
                let frames = staged.begun_or_continued(batch);
                show(&self.to_wire, frames, batch, Verdict::Dropped(counter));
            }
        }
        settled
    }

    /// Counts and shows frames of a batch that can't leave.
    #[cold]
    pub(super) fn refuse(&self, frames: &[Outgoing], batch: &Batch<'_>, counter: VifCounter) {
        self.counters.add(counter, frames.len() as u64);
        show(&self.to_wire, frames, batch, Verdict::Dropped(counter));
    }

    /// The same for the frame at `at`.
    pub(super) fn refuse_at(&self, at: usize, batch: &Batch<'_>, counter: VifCounter) {
        self.refuse(batch.frames.get(at..=at).unwrap_or_default(), batch, counter);
    }
}

/// Shows frames of a batch, if somebody looks.
fn show(door: &Door, frames: &[Outgoing], batch: &Batch<'_>, verdict: Verdict) {
    if !door.is_open() {
        return;
    }
    for Outgoing { addresses, len, pieces, skip, .. } in frames {
        let parts = batch.pieces.get(pieces.clone()).unwrap_or_default();
        door.show(|| Observed { parts, skip: *skip, len: *len, addresses, verdict });
    }
}
