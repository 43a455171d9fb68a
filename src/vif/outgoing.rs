//! Frames become datagrams: staged in one buffer, and given to the kernel in as few messages as
//! will do.
//!
//! A frame goes one of three ways, told by what the guest asked for and what stands beside it in
//! the batch. Order among frames to one place is kept: a message is closed as soon as the next
//! frame does not continue it, and no frame waits for another to come.
//!
//! | Way | Frames | Message |
//! |---|---|---|
//! | segments | a large one that the guest wants cut | its segments, a datagram each |
//! | bundle | small ones to one place, side by side | datagrams full of them (flag B) |
//! | single | others; runs of one length to one place share a message | a datagram each |
//!
//! The buffer is filled straight from guest memory and reused for each batch, so it stays in the
//! level-2 cache: the copy is also where checksums are completed.

use std::net::SocketAddr;
use std::ops::Range;

use crate::metrics::VifCounter;
use crate::offload::bundle::{ENTRY_LEN, Limits, Packer};
use crate::offload::checksum::{self, Sum};
use crate::offload::gso::{Cut, CutFault};
use crate::offload::header::Request;
use crate::offload::layout::Layout;
use crate::offload::{LEAD_LEN, bundle};
use crate::sys::iovec::{self, Gather, IoVec};
use crate::sys::mmsg::{MAX_MESSAGE_LEN, MAX_SEGMENTS};
use crate::wire::encap::{self, Flags, Header};
use crate::wire::{Capabilities, VnetId, frame};

/// Room for staged datagrams: a few messages, and little enough for a level-2 cache.
const ROOM: usize = 4 << 16;

/// Destination and source of a frame, as they leave.
pub type AddressBytes = [u8; frame::ADDRESSES_LEN];

/// Where a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Care-of address, or group.
    pub to: SocketAddr,
    /// Whether it is the group.
    pub is_group: bool,
    /// What all receivers there understand.
    pub capabilities: Capabilities,
}

/// A frame on its way out.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// Where to.
    pub route: Route,
    /// What leaves instead of the frame's own addresses.
    pub addresses: AddressBytes,
    /// What the guest wants done.
    pub request: Request,
    /// Length of the frame, in bytes.
    pub len: usize,
    /// Its bytes, among [`Batch::pieces`].
    pub pieces: Range<usize>,
    /// Where it begins in its pieces: they also hold the virtio-net header.
    pub skip: usize,
    /// Its beginning, among [`Batch::leads`], if it has to be cut.
    pub lead: Option<usize>,
}

/// The beginning of a frame, copied before it was looked at.
pub type Lead = [u8; LEAD_LEN];

/// Frames of one turn.
#[derive(Debug, Default)]
pub struct Batch<'m> {
    /// The frames, in order.
    pub frames: Vec<Outgoing>,
    /// What their bytes are made of.
    pub pieces: Vec<IoVec<'m>>,
    /// Beginnings of those that have to be cut.
    pub leads: Vec<Lead>,
}

impl<'m> Batch<'m> {
    /// The same lists, empty, for pieces of another turn.
    pub fn recycle<'n>(mut self) -> Batch<'n> {
        self.frames.clear();
        self.leads.clear();
        Batch { frames: self.frames, pieces: iovec::recycle(self.pieces), leads: self.leads }
    }

    /// Reads a frame from an offset on.
    pub fn gather(&self, frame: &Outgoing, from: usize) -> Gather<'_, 'm> {
        let pieces = self.pieces.get(frame.pieces.clone()).unwrap_or_default();
        Gather::new(pieces, frame.skip + from)
    }

    /// A frame's copied beginning, if it was kept.
    pub fn lead(&self, frame: &Outgoing) -> Option<&[u8]> {
        let lead = self.leads.get(frame.lead?)?;
        lead.get(..frame.len.min(LEAD_LEN))
    }
}

/// A message that is ready to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Staged {
    /// Where to.
    pub route: Route,
    /// Its bytes in [`Stager::bytes`].
    pub range: Range<usize>,
    /// Length of each datagram but the last; 0 if there is only one.
    pub segment: u16,
    /// Frames of the guest that begin in it.
    pub frames: u64,
    /// Bytes of those frames, as the guest sent them.
    pub frame_bytes: u64,
}

impl Staged {
    /// How many datagrams it is.
    pub fn datagrams(&self) -> usize {
        match usize::from(self.segment) {
            0 => 1,
            segment => self.range.len().div_ceil(segment),
        }
    }
}

/// What became of the frames at the front of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// So many are staged.
    Done(usize),
    /// There is no more room: send what is staged, then go on.
    Full,
    /// The first is dropped.
    Refused(VifCounter),
}

/// The staging buffer.
#[derive(Debug)]
pub struct Stager {
    vnet: VnetId,
    buffer: Vec<u8>,
    used: usize,
    staged: Vec<Staged>,
    /// The next segment of the frame at the front, if some of it are staged already.
    segment: usize,
}

impl Stager {
    /// For frames of one vnet.
    pub fn new(vnet: VnetId) -> Self {
        Self { vnet, buffer: vec![0; ROOM], used: 0, staged: Vec::new(), segment: 0 }
    }

    /// Stands in while another is lent; has room for nothing.
    pub const fn empty() -> Self {
        let vnet = VnetId::PHYSICAL;
        Self { vnet, buffer: Vec::new(), used: 0, staged: Vec::new(), segment: 0 }
    }

    /// What is ready to be sent.
    pub fn staged(&self) -> &[Staged] {
        &self.staged
    }

    /// The bytes of a message.
    pub fn bytes(&self, staged: &Staged) -> &[u8] {
        self.buffer.get(staged.range.clone()).unwrap_or_default()
    }

    /// What was staged has been sent.
    pub fn clear(&mut self) {
        self.used = 0;
        self.staged.clear();
    }

    /// Stages the frame at `at` and perhaps more behind it. `max_datagram` is the longest datagram
    /// that its path takes.
    pub fn stage(&mut self, batch: &Batch<'_>, at: usize, max_datagram: usize) -> Step {
        let Some(frame) = batch.frames.get(at) else { return Step::Done(1) };
        let max_frame = max_datagram.saturating_sub(encap::LEN);
        if let Request::Segment { layout, size } = &frame.request {
            let lead = batch.lead(frame).unwrap_or_default();
            return match Cut::new(lead, layout, *size, max_frame) {
                Ok(cut) => self.stage_segments(batch, frame, &cut),
                Err(fault) => Step::Refused(refusal(fault)),
            };
        }
        if frame.len > max_frame {
            return match cut_plain(batch, frame, max_frame) {
                Some(cut) => self.stage_segments(batch, frame, &cut),
                None => Step::Refused(VifCounter::tx_drop_too_big),
            };
        }
        let run = batch.frames.get(at..).unwrap_or_default();
        let bundle = bundle_len(run, max_datagram);
        if bundle > 1 {
            self.stage_bundle(batch, run.get(..bundle).unwrap_or_default(), max_datagram)
        } else {
            self.stage_singles(batch, run, max_datagram)
        }
    }

    fn room(&self) -> usize {
        (self.buffer.len() - self.used).min(MAX_MESSAGE_LEN)
    }

    fn push(&mut self, route: Route, len: usize, segment: usize, frames: u64, bytes: usize) {
        let range = self.used..self.used + len;
        let segment = if segment < len { u16::try_from(segment).unwrap_or(0) } else { 0 };
        self.used += len;
        let frame_bytes = bytes as u64;
        self.staged.push(Staged { route, range, segment, frames, frame_bytes });
    }

    /// Stages the segments of one frame: all of them, or as many as there is room for.
    fn stage_segments(&mut self, batch: &Batch<'_>, frame: &Outgoing, cut: &Cut) -> Step {
        let size = encap::LEN + cut.header_len() + cut.size();
        while self.segment < cut.count() {
            let count = (self.room() / size).min(MAX_SEGMENTS).min(cut.count() - self.segment);
            let segments = self.segment..self.segment + count;
            if count == 0 {
                return Step::Full;
            }
            let Some(len) = self.write_segments(batch, frame, cut, segments.clone()) else {
                self.segment = 0;
                return Step::Refused(VifCounter::tx_drop_header);
            };
            let is_first = self.segment == 0;
            let bytes = if is_first { frame.len } else { 0 };
            self.push(frame.route, len, size, u64::from(is_first), bytes);
            self.segment = segments.end;
        }
        self.segment = 0;
        Step::Done(1)
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
        let mut at = self.used;
        for index in segments {
            let payload_len = cut.payload(index).len();
            let len = encap::LEN + cut.header_len() + payload_len;
            let datagram = self.buffer.get_mut(at..at + len)?;
            let (head, rest) = datagram.split_first_chunk_mut::<{ encap::LEN }>()?;
            *head = encap;
            let (headers, data) = rest.split_at_mut_checked(cut.header_len())?;
            cut.write_header(index, headers)?;
            payload.copy_to(data).then_some(())?;
            if !is_partial {
                cut.complete(headers, Sum::of(data))?;
            }
            at += len;
        }
        Some(at - self.used)
    }

    /// Stages frames in bundles; as many as there is room for.
    fn stage_bundle(&mut self, batch: &Batch<'_>, run: &[Outgoing], max_datagram: usize) -> Step {
        let Some(Outgoing { route, .. }) = run.first() else { return Step::Done(1) };
        let room = self.room();
        let prefix = self.header(Flags::BUNDLE);
        let limits = Limits { datagram: max_datagram, datagrams: MAX_SEGMENTS, total: room };
        let buffer = self.buffer.get_mut(self.used..).unwrap_or_default();
        let mut packer = Packer::new(buffer, &prefix, limits);
        let mut bytes = 0;
        for frame in run {
            let is_partial = leaves_partial(frame);
            let Some(place) = packer.reserve(frame.len, is_partial) else { break };
            fill(batch, frame, place);
            bytes += frame.len;
        }
        let packed = packer.finish();
        if packed.frames == 0 {
            return Step::Full;
        }
        self.push(*route, packed.len, packed.size, packed.frames as u64, bytes);
        Step::Done(packed.frames)
    }

    /// Stages a frame in a datagram of its own, and with it those behind it that go to the same
    /// place and are as long; a shorter one is the last.
    fn stage_singles(&mut self, batch: &Batch<'_>, run: &[Outgoing], max_datagram: usize) -> Step {
        let Some(first) = run.first() else { return Step::Done(1) };
        let size = encap::LEN + first.len;
        if size > self.room() {
            return Step::Full;
        }
        let most = (self.room() / size).min(if first.route.is_group { 1 } else { MAX_SEGMENTS });
        let (mut len, mut count, mut bytes) = (0, 0, 0);
        for frame in run.get(..run.len().min(most)).unwrap_or_default() {
            let is_alike = frame.route == first.route
                && frame.len <= first.len
                && !is_large(frame, max_datagram)
                && len == count * size;
            if !is_alike {
                break;
            }
            let is_partial = leaves_partial(frame);
            let flags = if is_partial { Flags::PARTIAL_CHECKSUM } else { Flags::NONE };
            let encap = self.header(flags);
            let at = self.used + len;
            let end = at + encap::LEN + frame.len;
            let Some(place) = self.buffer.get_mut(at..end) else { break };
            let Some((head, place)) = place.split_first_chunk_mut() else { break };
            *head = encap;
            fill(batch, frame, place);
            len += encap::LEN + frame.len;
            count += 1;
            bytes += frame.len;
        }
        self.push(first.route, len, size, count as u64, bytes);
        Step::Done(count)
    }

    fn header(&self, flags: Flags) -> [u8; encap::LEN] {
        Header { flags, vnet: self.vnet }.emit()
    }
}

/// Whether a frame has to be cut.
fn is_large(frame: &Outgoing, max_datagram: usize) -> bool {
    matches!(frame.request, Request::Segment { .. }) || encap::LEN + frame.len > max_datagram
}

/// How many frames at the front of a run may share bundles: to one place that takes them, and so
/// short that at least two fit a datagram.
fn bundle_len(run: &[Outgoing], max_datagram: usize) -> usize {
    let Some(Outgoing { route, .. }) = run.first() else { return 0 };
    let is_capable = route.capabilities.contains(Capabilities::BUNDLE) && !route.is_group;
    if !is_capable {
        return 0;
    }
    let max_len = (max_datagram.saturating_sub(encap::LEN) / 2).saturating_sub(ENTRY_LEN);
    let fits = |frame: &&Outgoing| {
        frame.route == *route
            && (bundle::MIN_FRAME_LEN..=max_len).contains(&frame.len)
            && !matches!(frame.request, Request::Segment { .. })
    };
    run.iter().take_while(fits).count()
}

/// Whether the receiver is left to complete the checksum.
fn leaves_partial(frame: &Outgoing) -> bool {
    matches!(frame.request, Request::Checksum { layout: Some(_), .. })
        && frame.route.capabilities.contains(Capabilities::PARTIAL_CHECKSUM)
}

/// Writes a whole frame into its place, with our addresses; completes its checksum if the receiver
/// is not left to.
fn fill(batch: &Batch<'_>, frame: &Outgoing, place: &mut [u8]) {
    let Some((addresses, rest)) = place.split_first_chunk_mut() else { return };
    *addresses = frame.addresses;
    // The pieces were measured when the frame was read.
    let is_whole = batch.gather(frame, frame::ADDRESSES_LEN).copy_to(rest);
    debug_assert!(is_whole, "a frame is as long as its pieces");
    if let Request::Checksum { place: sum, .. } = &frame.request
        && !leaves_partial(frame)
    {
        // In bounds: the place was checked against the frame's length.
        let _ = checksum::complete(place, sum.start, sum.offset);
    }
}

/// A TCP frame that is too long for its path can still be cut, as its sender's next try would be.
pub(super) fn cut_plain(batch: &Batch<'_>, frame: &Outgoing, max_frame: usize) -> Option<Cut> {
    let lead = batch.lead(frame)?;
    let layout = Layout::parse(lead, frame.len).ok()?;
    Cut::plain(lead, &layout, max_frame).ok()
}

pub(super) fn refusal(fault: CutFault) -> VifCounter {
    match fault {
        CutFault::Path => VifCounter::tx_drop_too_big,
        CutFault::Headers | CutFault::Indivisible | CutFault::TooMany => VifCounter::tx_drop_header,
    }
}
