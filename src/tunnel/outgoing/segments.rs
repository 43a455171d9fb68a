//! A large frame leaves as its segments, a datagram each.

use std::ops::Range;

use super::{Batch, Begins, Outgoing, Stager, Step};
use crate::metrics::VifCounter;
use crate::offload::checksum::Sum;
use crate::offload::gso::{Cut, CutFault};
use crate::offload::layout::Layout;
use crate::sys::mmsg::MAX_MESSAGE_LEN;
use crate::wire::Capabilities;
use crate::wire::encap::{self, Flags};

impl Stager {
    /// Stages the segments of one frame: all of them, or as many as there is room for.
    pub(super) fn stage_cut(&mut self, batch: &Batch<'_>, at: usize, cut: &Cut) -> Step {
        let Some(frame) = batch.frames.get(at) else { return Step::Done(1) };
        let is_scattered = self.scatters_segments(frame, cut);
        let size = self.envelope.len_of(encap::LEN + cut.header_len() + cut.size());
        let staged_size = if is_scattered { encap::LEN + cut.header_len() } else { size };
        while self.segment < cut.count() {
            let room = (self.room() / staged_size).min(self.max_message() / size);
            let most = room.min(self.most_segments(&frame.route));
            let most =
                if is_scattered { most } else { self.continues(at, frame, size).unwrap_or(most) };
            let count = most.min(cut.count() - self.segment);
            let segments = self.segment..self.segment + count;
            if count == 0 {
                return Step::Full;
            }
            let is_first = self.segment == 0;
            let bytes = if is_first { frame.len } else { 0 };
            let begins = Begins { first: at, frames: u64::from(is_first), bytes };
            let done = if is_scattered {
                self.scatter_segments(batch, cut, segments.clone(), begins)
            } else {
                self.stage_segments(batch, frame, cut, segments.clone(), begins)
            };
            if done.is_none() {
                self.segment = 0;
                return Step::Refused(VifCounter::tx_drop_header);
            }
            self.segment = segments.end;
        }
        self.segment = 0;
        Step::Done(1)
    }

    fn stage_segments(
        &mut self,
        batch: &Batch<'_>,
        frame: &Outgoing,
        cut: &Cut,
        segments: Range<usize>,
        begins: Begins,
    ) -> Option<()> {
        let size = self.envelope.len_of(encap::LEN + cut.header_len() + cut.size());
        let is_continued = self.continues(begins.first, frame, size).is_some();
        let len = self.write_segments(batch, frame, cut, segments)?;
        match self.staged.last_mut() {
            Some(last) if is_continued => {
                last.range.end += len;
                last.datagrams = last.range.len().div_ceil(size);
                last.segment = u16::try_from(size).unwrap_or(0);
                if last.frames == 0 {
                    last.first = begins.first;
                }
                last.frames += begins.frames;
                last.frame_bytes += begins.bytes as u64;
                self.used += len;
            }
            _ => self.push(frame.route, len, size, begins),
        }
        Some(())
    }

    /// How many datagrams of this size the message that was staged last takes in addition, if any.
    ///
    /// A message holds fewer segments than a frame of 64 KiB has, since each has headers of its own
    /// there: of frames that follow each other, as those of a TCP flow do, the rest of one and the
    /// beginning of the next share a message.
    fn continues(&self, at: usize, frame: &Outgoing, size: usize) -> Option<usize> {
        let last = self.staged.last()?;
        let is_next =
            self.segment > 0 || last.frames == 0 || last.first + last.frames as usize == at;
        let is_open = last.route == frame.route
            && is_next
            && last.scattered.is_empty()
            && last.range.len() == last.datagrams * size
            // Its datagrams are of this length one by one, not on average: where the kernel cuts the
            // message, a header of ours begins, and nothing that the guest wrote.
            && (last.datagrams == 1 || usize::from(last.segment) == size)
            && !self.short_ends;
        let most = (MAX_MESSAGE_LEN / size).min(self.most_segments(&frame.route));
        let room = (self.buffer.len() - self.used) / size;
        let more = most.saturating_sub(last.datagrams).min(room);
        (is_open && more > 0).then_some(more)
    }

    fn write_segments(
        &mut self,
        batch: &Batch<'_>,
        frame: &Outgoing,
        cut: &Cut,
        segments: Range<usize>,
    ) -> Option<usize> {
        let is_partial = frame.route.capabilities.contains(Capabilities::PARTIAL_CHECKSUM);
        let encap = self.header(if is_partial { Flags::PARTIAL_CHECKSUM } else { Flags::NONE });
        let mut payload = batch.gather(frame, cut.payload(segments.start).start);
        let envelope = self.envelope;
        let mut at = self.used;
        for index in segments {
            let payload_len = cut.payload(index).len();
            let len = encap::LEN + cut.header_len() + payload_len;
            let datagram = envelope.place(&mut self.buffer, at, len)?;
            let (head, rest) = datagram.split_first_chunk_mut::<{ encap::LEN }>()?;
            *head = encap;
            let (headers, data) = rest.split_at_mut_checked(cut.header_len())?;
            cut.write_header(index, headers)?;
            payload.copy_to(data).then_some(())?;
            if !is_partial {
                cut.complete(headers, Sum::of(data))?;
            }
            at += envelope.len_of(len);
        }
        Some(at - self.used)
    }
}

/// A TCP frame that is too long for its path can still be cut, as its sender's next try would be.
pub(crate) fn cut_plain(batch: &Batch<'_>, frame: &Outgoing, max_frame: usize) -> Option<Cut> {
    let lead = batch.lead(frame)?;
    let layout = Layout::parse(lead, frame.len).ok()?;
    Cut::plain(lead, &layout, max_frame).ok()
}

pub(crate) fn refusal(fault: CutFault) -> VifCounter {
    match fault {
        CutFault::Path => VifCounter::tx_drop_too_big,
        CutFault::Headers | CutFault::Indivisible | CutFault::TooMany => VifCounter::tx_drop_header,
    }
}
