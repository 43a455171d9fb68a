//! Scattered messages: headers are staged, payload stays in guest memory until the kernel reads it.
//!
//! ```text
//!  buffer:       | header 1 | header 2 | header 3 |
//!                     |          |          |
//!  message:      header 1, payload 1, header 2, payload 2, header 3, payload 3
//!                              |                    |                     |
//!  guest memory:           | payload 1 | payload 2 | payload 3 |
//! ```
//!
//! That spares a copy and costs the kernel a piece of memory to look up for each datagram, so it
//! pays for long ones only. It is possible only where no checksum is ours to complete, and nothing to
//! be sealed: that would have to be done to bytes that the guest can still change.

use std::ops::Range;

use super::{Batch, Begins, Outgoing, Route, Staged, Stager, Step, is_large, leaves_partial};
use crate::offload::envelope::Envelope;
use crate::offload::gso::Cut;
use crate::offload::header::Request;
use crate::sys::iovec::{Gather, IoVec};
use crate::sys::mmsg::{MAX_PARTS, MAX_SEGMENTS};
use crate::wire::encap::{self, Flags};
use crate::wire::{Capabilities, frame};

/// Least payload, in bytes, of datagrams that are scattered.
///
/// What scattering costs the sender against staging, in processor time (`cargo bench --bench
/// sending`: 62 kB of payload in segments, over veth, Linux 6.18, on a machine that was not idle):
///
/// | Guest memory in use, link | 1448 | 2000 | 3000 | 4000 | 5000 | 6000 | 7500 | 8848 |
/// |---|---|---|---|---|---|---|---|---|
/// | 4 MiB, takes segments whole | +5 % | +5 % | +4 % | -7 % | -3 % | -8 % | -5 % | -10 % |
/// | 32 MiB, takes segments whole | +13 % | +9 % | -1 % | -12 % | -8 % | -19 % | -8 % | -10 % |
/// | 4 MiB, segments cut by the kernel | -8 % | +6 % | +3 % | -7 % | -9 % | -11 % | -16 % | -15 % |
pub const FROM: usize = 3500;

/// Most pieces of memory of a frame.
pub const MAX_PIECES: usize = 512;
/// A segment has a header and its share of the frame's pieces, of which it may begin one and end
/// another.
const _: () = assert!(2 * MAX_SEGMENTS + MAX_PIECES <= MAX_PARTS);

/// A datagram of a scattered message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scattered {
    /// Its beginning, in the buffer.
    header: Range<usize>,
    /// The frame, in the batch, that the rest is from.
    frame: usize,
    /// The rest, in the frame.
    payload: Range<usize>,
}

impl Stager {
    /// Whether a whole frame is to be scattered.
    pub(super) fn scatters(&self, frame: &Outgoing) -> bool {
        let is_finished = frame.request == Request::Plain || leaves_partial(frame);
        is_finished
            && self.envelope == Envelope::Bare
            && frame.len - frame::ADDRESSES_LEN >= self.scatter_from
    }

    /// Whether the segments of a frame are.
    pub(super) fn scatters_segments(&self, frame: &Outgoing, cut: &Cut) -> bool {
        cut.size() >= self.scatter_from
            && self.envelope == Envelope::Bare
            && frame.route.capabilities.contains(Capabilities::PARTIAL_CHECKSUM)
    }

    /// Stages a message of these segments of a frame.
    pub(super) fn scatter_segments(
        &mut self,
        batch: &Batch<'_>,
        cut: &Cut,
        segments: Range<usize>,
        begins: Begins,
    ) -> Option<()> {
        let at = begins.first;
        let route = batch.frames.get(at)?.route;
        let encap = self.header(Flags::PARTIAL_CHECKSUM);
        let first = self.scattered.len();
        let mut start = self.used;
        for index in segments {
            let end = start + encap::LEN + cut.header_len();
            let place = self.buffer.get_mut(start..end)?;
            let (head, headers) = place.split_first_chunk_mut()?;
            *head = encap;
            cut.write_header(index, headers)?;
            let payload = cut.payload(index);
            self.scattered.push(Scattered { header: start..end, frame: at, payload });
            start = end;
        }
        self.push_scattered(route, first, start, begins);
        Some(())
    }

    /// Stages the frame at `at`, and with it those behind it that can be datagrams of one message:
    /// to the same place, as long, and scattered too; a shorter one is the last.
    pub(super) fn scatter_singles(
        &mut self,
        batch: &Batch<'_>,
        at: usize,
        max_datagram: usize,
    ) -> Step {
        let run = batch.frames.get(at..).unwrap_or_default();
        let Some(Outgoing { route, len, .. }) = run.first() else { return Step::Done(1) };
        let size = encap::LEN + len;
        let most = self.most_segments(route).min(self.room() / HEADER_LEN);
        let most = most.min((self.max_message() / size).max(1));
        let (mut parts, mut end, mut bytes, mut last) = (0, self.used, 0, *len);
        let first = self.scattered.len();
        for (index, frame) in run.iter().enumerate().take(most) {
            parts += 1 + frame.pieces.len();
            let is_alike = frame.route == *route
                && frame.len <= *len
                && last == *len
                && self.scatters(frame)
                && !is_large(frame, max_datagram)
                && parts < MAX_PARTS;
            if !is_alike {
                break;
            }
            let header = end..end + HEADER_LEN;
            let Some(()) = self.write_single(frame, header.clone()) else { break };
            end = header.end;
            last = frame.len;
            bytes += frame.len;
            let payload = frame::ADDRESSES_LEN..frame.len;
            self.scattered.push(Scattered { header, frame: at + index, payload });
        }
        let count = self.scattered.len() - first;
        if count == 0 {
            return Step::Full;
        }
        let begins = Begins { first: at, frames: count as u64, bytes };
        self.push_scattered(*route, first, end, begins);
        Step::Done(count)
    }

    fn write_single(&mut self, frame: &Outgoing, at: Range<usize>) -> Option<()> {
        let is_partial = leaves_partial(frame);
        let flags = if is_partial { Flags::PARTIAL_CHECKSUM } else { Flags::NONE };
        let encap = self.header(flags);
        let (head, addresses) = self.buffer.get_mut(at)?.split_first_chunk_mut()?;
        *head = encap;
        *addresses.first_chunk_mut()? = frame.addresses;
        Some(())
    }

    /// Adds a message of the datagrams from `first` on, whose headers end at `end`.
    fn push_scattered(&mut self, route: Route, first: usize, mut end: usize, begins: Begins) {
        let len = |datagram: &Scattered| datagram.header.len() + datagram.payload.len();
        let mut lens = self.scattered.get(first..).unwrap_or_default().iter().map(len);
        let segment = lens.next().unwrap_or(0);
        if self.short_ends && lens.next_back() == Some(segment) {
            let header = end..end + self.write_short_end(end, segment);
            end = header.end;
            self.scattered.push(Scattered { header, frame: 0, payload: 0..0 });
        }
        let scattered = first..self.scattered.len();
        let datagrams = scattered.len();
        let segment = if datagrams > 1 { u16::try_from(segment).unwrap_or(0) } else { 0 };
        let range = self.used..end;
        self.used = end;
        self.staged.push(Staged {
            route,
            range,
            scattered,
            is_sealed: false,
            datagrams,
            segment,
            first: begins.first,
            frames: begins.frames,
            frame_bytes: begins.bytes as u64,
        });
    }

    /// Appends header and payload of each datagram in turn.
    pub(super) fn scattered_parts<'s>(
        &'s self,
        staged: &Staged,
        batch: &'s Batch<'_>,
        to: &mut Vec<IoVec<'s>>,
    ) {
        // Segments of one frame follow each other in its pieces.
        let mut reader: Option<(usize, usize, Gather<'s, 's>)> = None;
        for datagram in self.scattered.get(staged.scattered.clone()).unwrap_or_default() {
            to.push(IoVec::from_slice(self.bytes(datagram.header.clone())));
            let Scattered { frame, payload, .. } = datagram;
            let mut gather = match reader.take() {
                Some((same, at, gather)) if (same, at) == (*frame, payload.start) => gather,
                _ => match batch.frames.get(*frame) {
                    Some(frame) => batch.gather(frame, payload.start),
                    None => continue,
                },
            };
            // The pieces were measured when the frame was read.
            let is_whole = gather.lend(payload.len(), to);
            debug_assert!(is_whole, "a frame is as long as its pieces");
            reader = Some((*frame, payload.end, gather));
        }
    }
}

/// What is staged of a whole frame: the encapsulation header and the addresses.
const HEADER_LEN: usize = encap::LEN + frame::ADDRESSES_LEN;
