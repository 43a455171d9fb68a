//! Frames that are longer than their path and can't be cut leave in pieces (flag F).

use std::ops::Range;

use crate::offload::fragment::Split;
use crate::offload::gso::Cut;
use crate::offload::header::Request;
use crate::wire::Capabilities;
use crate::wire::encap::{Flags, Header};
use crate::wire::fragment::Piece;

use super::{Batch, Begins, Outgoing, Route, Stager, Step, fill, leaves_partial, refusal};
use crate::metrics::VifCounter;

/// Whether all receivers at a destination put pieces together; those of a group do.
pub fn takes_pieces(route: &Route) -> bool {
    route.capabilities.contains(Capabilities::FRAGMENT)
}

/// Numbers of frames that leave in pieces.
#[derive(Clone, Copy, Debug, Default)]
pub struct FrameIds {
    next: u32,
}

impl From<u32> for FrameIds {
    fn from(next: u32) -> Self {
        Self { next }
    }
}

impl FrameIds {
    /// The next.
    pub fn take(&mut self) -> u32 {
        let id = self.next;
        self.next = id.wrapping_add(1);
        id
    }
}

/// A datagram's payload on its way into pieces, and whose it is.
struct Whole<'a> {
    route: Route,
    flags: Flags,
    bytes: &'a [u8],
    begins: Begins,
}

impl Stager {
    /// Stages the frame at `at`, which [`Stager::stage`] found too long, in pieces.
    pub fn stage_pieces(
        &mut self,
        batch: &Batch<'_>,
        at: usize,
        max_datagram: usize,
        ids: &mut FrameIds,
    ) -> Step {
        let Some(frame) = batch.frames.get(at) else { return Step::Done(1) };
        if !takes_pieces(&frame.route) {
            return Step::Refused(VifCounter::tx_drop_too_big);
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        let step = match &frame.request {
            Request::Segment { layout, size } => {
                let lead = batch.lead(frame).unwrap_or_default();
                match Cut::new(lead, layout, *size, usize::MAX) {
                    Ok(cut) => {
                        let mut push = |stager: &mut Self, whole: &Whole<'_>| {
                            stager.push_pieces(whole, max_datagram, ids)
                        };
                        self.stage_segment_pieces(batch, at, &cut, &mut scratch, &mut push)
                    }
                    Err(fault) => Step::Refused(refusal(fault)),
                }
            }
            Request::Plain | Request::Checksum { .. } => {
                scratch.resize(frame.len, 0);
                fill(batch, frame, &mut scratch);
                let is_partial = leaves_partial(frame);
                let flags = if is_partial { Flags::PARTIAL_CHECKSUM } else { Flags::NONE };
                let begins = Begins { first: at, frames: 1, bytes: frame.len };
                let whole = Whole { route: frame.route, flags, bytes: &scratch, begins };
                self.push_pieces(&whole, max_datagram, ids)
            }
        };
        self.scratch = scratch;
        step
    }

    /// Stages the segments of a frame whose segments are longer than the path: those of UDP, which
    /// must stay whole.
    fn stage_segment_pieces(
        &mut self,
        batch: &Batch<'_>,
        at: usize,
        cut: &Cut,
        scratch: &mut Vec<u8>,
        push: &mut dyn FnMut(&mut Self, &Whole<'_>) -> Step,
    ) -> Step {
        let Some(frame) = batch.frames.get(at) else { return Step::Done(1) };
        while self.segment < cut.count() {
            let index = self.segment;
            let Some(flags) = write_segment(batch, frame, cut, index, scratch) else {
                self.segment = 0;
                return Step::Refused(VifCounter::tx_drop_header);
            };
            let is_first = index == 0;
            let whole = Whole {
                route: frame.route,
                flags,
                bytes: scratch,
                begins: Begins {
                    first: at,
                    frames: u64::from(is_first),
                    bytes: if is_first { frame.len } else { 0 },
                },
            };
            match push(self, &whole) {
                Step::Done(_) => self.segment += 1,
                Step::Full => return Step::Full,
                Step::Refused(counter) => {
                    self.segment = 0;
                    return Step::Refused(counter);
                }
            }
        }
        self.segment = 0;
        Step::Done(1)
    }

    /// Stages all pieces of a datagram, or none for want of room.
    fn push_pieces(&mut self, whole: &Whole<'_>, max_datagram: usize, ids: &mut FrameIds) -> Step {
        let Some(split) = Split::new(whole.bytes.len(), max_datagram) else {
            return Step::Refused(VifCounter::tx_drop_too_big);
        };
        let envelope = self.envelope;
        let lens = |pieces: Range<usize>| {
            pieces.map(|piece| envelope.len_of(split.datagrams_len(&(piece..piece + 1))))
        };
        let size = envelope.len_of(split.datagram());
        let most = (self.max_message() / size).min(self.most_segments(&whole.route)).max(1);
        let ends = split.count().div_ceil(most) * self.short_end();
        if lens(0..split.count()).sum::<usize>() + ends > self.buffer.len() - self.used {
            return Step::Full;
        }
        let header = Header { flags: whole.flags, vnet: self.vnet };
        let piece = Piece { id: ids.take(), offset: 0, is_last: true, bytes: whole.bytes };
        let mut start = 0;
        while start < split.count() {
            let pieces = start..(start + most).min(split.count());
            let mut len = 0;
            for one in pieces.clone() {
                let one = one..one + 1;
                let datagram_len = split.datagrams_len(&one);
                let place = envelope.place(&mut self.buffer, self.used + len, datagram_len);
                let done = place.and_then(|place| split.write(header, &piece, one, place));
                if done.is_none() {
                    return Step::Refused(VifCounter::tx_drop_too_big);
                }
                len += envelope.len_of(datagram_len);
            }
            let is_first = start == 0;
            let rest = Begins { frames: 0, bytes: 0, ..whole.begins };
            let begins = if is_first { whole.begins } else { rest };
            self.push(whole.route, len, size, begins);
            start = pieces.end;
        }
        Step::Done(1)
    }
}

/// Writes a segment; returns its flags.
fn write_segment(
    batch: &Batch<'_>,
    frame: &Outgoing,
    cut: &Cut,
    index: usize,
    to: &mut Vec<u8>,
) -> Option<Flags> {
    let payload = cut.payload(index);
    to.resize(cut.header_len() + payload.len(), 0);
    let (headers, data) = to.split_at_mut_checked(cut.header_len())?;
    cut.write_header(index, headers)?;
    batch.gather(frame, payload.start).copy_to(data).then_some(())?;
    if frame.route.capabilities.contains(Capabilities::PARTIAL_CHECKSUM) {
        return Some(Flags::PARTIAL_CHECKSUM);
    }
    cut.complete(headers, crate::offload::checksum::Sum::of(data))?;
    Some(Flags::NONE)
}

/// What a staged datagram is, so that it can be split: its header, and what follows it as the only
/// piece, or the piece that it is already.
pub fn reopen<'d>(datagram: &'d [u8], ids: &mut FrameIds) -> Option<(Header, Piece<'d>)> {
    let (header, bytes) = Header::parse(datagram).ok()?;
    if header.flags.contains(Flags::FRAGMENT) {
        return Piece::parse(bytes).ok().map(|piece| (header, piece));
    }
    Some((header, Piece { id: ids.take(), offset: 0, is_last: true, bytes }))
}
