//! Frames become datagrams: staged in one buffer, and given to the kernel in as few messages as
//! will do.
//!
//! A frame goes one of four ways, told by what the guest asked for and what stands beside it in
//! the batch. Order among frames to one place is kept: a message is closed as soon as the next
//! frame does not continue it, and no frame waits for another to come.
//!
//! | Way | Frames | Message |
//! |---|---|---|
//! | segments | a large one that the guest wants cut | its segments, a datagram each |
//! | bundle | small ones to one place, side by side | datagrams full of them (flag B) |
//! | single | others; runs of one length to one place share a message | a datagram each |
//! | [`pieces`] | one that is longer than the path and can't be cut | a datagram per piece (flag F) |
//!
//! The buffer is filled straight from guest memory and reused for each batch, so it stays in the
//! level-2 cache: the copy is also where checksums are completed. Where none has to be and datagrams
//! are long, only headers are staged, and the kernel reads the rest in guest memory ([`scatter`]). On
//! a secured vnet all is staged, with room around each datagram ([`crate::offload::envelope`]) for what
//! protects it, and sealed there.

mod batch;
pub mod pieces;
pub mod scatter;
mod segments;

use std::mem;
use std::ops::Range;

pub use self::batch::{AddressBytes, Batch, Lead, Outgoing, Route};
use self::scatter::Scattered;
pub(crate) use self::segments::{cut_plain, refusal};
use crate::metrics::VifCounter;
use crate::offload::bundle::{self, ENTRY_LEN, Limits, Packer};
use crate::offload::checksum;
use crate::offload::envelope::Envelope;
use crate::offload::gso::Cut;
use crate::offload::header::Request;
use crate::sys::iovec::IoVec;
use crate::sys::mmsg::{MAX_MESSAGE_LEN, MAX_SEGMENTS};
use crate::wire::encap::{self, Flags, Header};
use crate::wire::{Capabilities, VnetId, frame};

/// Room for staged datagrams: a few messages, and little enough for a level-2 cache.
const ROOM: usize = 5 << 16;

/// Length of the datagram that ends a message where one has to be shorter than the others, in
/// bytes: half of theirs within these bounds.
const MIN_SHORT_END: usize = 64;
const MAX_SHORT_END: usize = 1024;

/// A message that is ready to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Staged {
    /// Where to.
    pub route: Route,
    /// Its bytes in the buffer, or its headers if it is scattered.
    range: Range<usize>,
    /// Its datagrams in the stager's list of those whose payload stays in guest memory; all or none.
    scattered: Range<usize>,
    /// Whether its datagrams have room around them, to be sealed.
    pub is_sealed: bool,
    /// How many datagrams it is.
    pub datagrams: usize,
    /// Length of each datagram but the last; 0 if there is only one.
    pub segment: u16,
    /// The first frame that begins in it, in the batch; the one that it continues if none does.
    first: usize,
    /// Frames of the guest that begin in it, which stand side by side in the batch.
    pub frames: u64,
    /// Bytes of those frames, as the guest sent them.
    pub frame_bytes: u64,
}

impl Staged {
    /// The frames of the batch that begin in it.
    pub fn begun<'b>(&self, batch: &'b Batch<'_>) -> &'b [Outgoing] {
        let count = usize::try_from(self.frames).unwrap_or(usize::MAX);
        batch.frames.get(self.first..self.first.saturating_add(count)).unwrap_or_default()
    }

    /// The same, or the one that it continues if none does.
    pub fn begun_or_continued<'b>(&self, batch: &'b Batch<'_>) -> &'b [Outgoing] {
        match self.frames {
            0 => batch.frames.get(self.first..=self.first).unwrap_or_default(),
            _ => self.begun(batch),
        }
    }

    /// As messages of at most so many datagrams. Frames count where they begin, as far as that is known:
    /// spread evenly.
    pub fn split(&self, datagrams: usize) -> Vec<Self> {
        let most = datagrams.max(1);
        let total = self.datagrams as u64;
        // Of something that there is `all` of, what begins in the first `count` datagrams.
        let share = |all: u64, count: usize| (all * count as u64).div_ceil(total.max(1));
        let starts = (0..self.datagrams).step_by(most);
        let message = |start: usize| {
            let datagrams = most.min(self.datagrams - start);
            let begins = |all| share(all, start + datagrams) - share(all, start);
            let frames = begins(self.frames);
            let before = usize::try_from(share(self.frames, start)).unwrap_or(usize::MAX);
            let first = self.first + if frames > 0 { before } else { before.saturating_sub(1) };
            Self {
                range: 0..0,
                scattered: 0..0,
                datagrams,
                first,
                segment: if datagrams > 1 { self.segment } else { 0 },
                frames,
                // Of a frame that is many datagrams, all counts with the first.
                frame_bytes: if self.frames > 1 {
                    begins(self.frame_bytes)
                } else {
                    self.frame_bytes * frames
                },
                ..self.clone()
            }
        };
        starts.map(message).collect()
    }
}

/// Counts frames that are lost: each once, however many of its messages are.
#[derive(Clone, Copy, Debug, Default)]
pub struct Losses {
    /// The frame that the last message ended in was counted.
    is_counted: bool,
}

impl Losses {
    /// The next message has left.
    pub fn sent(&mut self, staged: &Staged) {
        self.is_counted &= staged.frames == 0;
    }

    /// The next message has not: returns how many frames are lost with it. The rest of a frame whose
    /// beginning has left is one.
    pub fn lost(&mut self, staged: &Staged) -> u64 {
        let is_counted = mem::replace(&mut self.is_counted, true);
        if staged.frames == 0 { u64::from(!is_counted) } else { staged.frames }
    }
}

/// The frames of a batch that begin in a message.
#[derive(Clone, Copy, Debug)]
struct Begins {
    /// The first of them; the one that the message continues if there are none.
    first: usize,
    frames: u64,
    /// Their length, in bytes.
    bytes: usize,
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
    scattered: Vec<Scattered>,
    /// The next segment of the frame at the front, if some of it are staged already.
    segment: usize,
    /// The longest datagram for that frame: what it was cut for when its beginning was staged.
    cut_for: usize,
    /// A frame that is about to leave in pieces.
    scratch: Vec<u8>,
    max_segments: usize,
    scatter_from: usize,
    short_ends: bool,
    envelope: Envelope,
}

impl Stager {
    /// For frames of one vnet.
    pub fn new(vnet: VnetId) -> Self {
        Self { buffer: vec![0; ROOM], ..Self::empty(vnet) }
    }

    /// Stands in while another is lent; has room for nothing.
    pub const fn empty(vnet: VnetId) -> Self {
        Self {
            vnet,
            buffer: Vec::new(),
            used: 0,
            staged: Vec::new(),
            scattered: Vec::new(),
            scratch: Vec::new(),
            segment: 0,
            cut_for: 0,
            max_segments: MAX_SEGMENTS,
            scatter_from: scatter::FROM,
            short_ends: false,
            envelope: Envelope::Bare,
        }
    }

    /// What surrounds datagrams that are staged from now on.
    pub fn set_envelope(&mut self, envelope: Envelope) {
        self.envelope = envelope;
    }

    /// Most datagrams in a message from now on; at least 1.
    pub fn limit_segments(&mut self, most: usize) {
        self.max_segments = most.clamp(1, MAX_SEGMENTS);
    }

    /// Least payload, in bytes, of datagrams that are scattered, instead of [`scatter::FROM`].
    pub fn scatter_from(&mut self, len: usize) {
        self.scatter_from = len;
    }

    /// Whether the last datagram of each message has to be shorter than the others (see
    /// [`crate::underlay::probe`]).
    pub fn set_short_ends(&mut self, short_ends: bool) {
        self.short_ends = short_ends;
    }

    /// What is ready to be sent.
    pub fn staged(&self) -> &[Staged] {
        &self.staged
    }

    /// Appends the bytes of a message, in order. `batch` is what it was staged from.
    pub fn parts<'s>(&'s self, staged: &Staged, batch: &'s Batch<'_>, to: &mut Vec<IoVec<'s>>) {
        if staged.scattered.is_empty() {
            to.push(IoVec::from_slice(self.bytes(staged.range.clone())));
        } else {
            self.scattered_parts(staged, batch, to);
        }
    }

    /// Seals what is staged: `seal` gets the packets of each message, and a message that it returns
    /// an error for does not leave. `done` hears what became of each.
    pub fn seal<'s, E>(
        &'s mut self,
        mut seal: impl FnMut(&Route, &mut dyn Iterator<Item = &'s mut [u8]>) -> Result<(), E>,
        mut done: impl FnMut(&Staged, Result<(), E>),
    ) {
        let mut rest = self.buffer.as_mut_slice();
        let mut at = 0;
        self.staged.retain(|staged| {
            // Messages stand in the buffer in order.
            let (_, ahead) = mem::take(&mut rest).split_at_mut(staged.range.start - at);
            let (bytes, behind) = ahead.split_at_mut(staged.range.len());
            (rest, at) = (behind, staged.range.end);
            if !staged.is_sealed {
                return true;
            }
            let size = if staged.segment == 0 { bytes.len() } else { staged.segment.into() };
            let sealed = seal(&staged.route, &mut bytes.chunks_mut(size.max(1)));
            let is_sealed = sealed.is_ok();
            done(staged, sealed);
            is_sealed
        });
    }

    fn bytes(&self, range: Range<usize>) -> &[u8] {
        self.buffer.get(range).unwrap_or_default()
    }

    /// What was staged has been sent.
    pub fn clear(&mut self) {
        self.used = 0;
        self.staged.clear();
        self.scattered.clear();
    }

    /// The frame at the front is done with, whatever became of it: if some of its segments are
    /// staged, no more of them will be.
    pub fn next_frame(&mut self) {
        self.segment = 0;
    }

    /// Stages the frame at `at` and perhaps more behind it. `max_datagram` is the longest datagram
    /// that its path takes, without what surrounds it.
    pub fn stage(&mut self, batch: &Batch<'_>, at: usize, max_datagram: usize) -> Step {
        let Some(frame) = batch.frames.get(at) else { return Step::Done(1) };
        // The path may have changed since the beginning of a frame left. Its rest is cut alike, since
        // segments are counted; what the path does not take any more leaves in pieces.
        if self.segment == 0 {
            self.cut_for = max_datagram;
        }
        let max_datagram = self.cut_for;
        let max_frame = max_datagram.saturating_sub(encap::LEN);
        if let Request::Segment { layout, size } = &frame.request {
            let lead = batch.lead(frame).unwrap_or_default();
            return match Cut::new(lead, layout, *size, max_frame) {
                Ok(cut) => self.stage_cut(batch, at, &cut),
                Err(fault) => Step::Refused(refusal(fault)),
            };
        }
        if frame.len > max_frame {
            return match cut_plain(batch, frame, max_frame) {
                Some(cut) => self.stage_cut(batch, at, &cut),
                None => Step::Refused(VifCounter::tx_drop_too_big),
            };
        }
        let run = batch.frames.get(at..).unwrap_or_default();
        let bundle = bundle_len(run, max_datagram);
        if bundle > 1 {
            self.stage_bundle(batch, at..at + bundle, max_datagram)
        } else if self.scatters(frame) {
            self.scatter_singles(batch, at, max_datagram)
        } else {
            self.stage_singles(batch, at, max_datagram)
        }
    }

    /// Bytes that a message may have now, without a short end.
    fn room(&self) -> usize {
        let free = self.buffer.len().saturating_sub(self.used).saturating_sub(self.short_end());
        free.min(self.max_message())
    }

    /// Longest message, without a short end.
    fn max_message(&self) -> usize {
        MAX_MESSAGE_LEN - self.short_end()
    }

    /// Room for the datagram that ends a message, if there has to be one.
    fn short_end(&self) -> usize {
        if self.short_ends { MAX_SHORT_END } else { 0 }
    }

    /// Most datagrams in a message to there.
    fn most_segments(&self, route: &Route) -> usize {
        if route.is_group {
            1
        } else if !self.short_ends {
            self.max_segments
        } else if route.capabilities.contains(Capabilities::BUNDLE) {
            (self.max_segments - 1).max(1)
        } else {
            1
        }
    }

    /// Adds the message that was written behind what is used; lengths are those of datagrams with
    /// what surrounds them.
    fn push(&mut self, route: Route, len: usize, segment: usize, begins: Begins) {
        let mut range = self.used..self.used + len;
        let mut datagrams = len.div_ceil(segment.max(1)).max(1);
        if self.short_ends && datagrams > 1 && len.is_multiple_of(segment) {
            let end = self.write_short_end(range.end, segment);
            range.end += end;
            datagrams += usize::from(end > 0);
        }
        self.used = range.end;
        self.staged.push(Staged {
            route,
            range,
            scattered: 0..0,
            is_sealed: self.envelope == Envelope::Sealed,
            datagrams,
            segment: if datagrams > 1 { u16::try_from(segment).unwrap_or(0) } else { 0 },
            first: begins.first,
            frames: begins.frames,
            frame_bytes: begins.bytes as u64,
        });
    }

    /// Writes a bundle of nothing but padding, that with what surrounds it is shorter than `segment`;
    /// returns its length with that.
    fn write_short_end(&mut self, at: usize, segment: usize) -> usize {
        let most = (segment / 2).clamp(MIN_SHORT_END, MAX_SHORT_END).min(segment - 1);
        let len = self.envelope.room_in(most);
        let prefix = self.header(Flags::BUNDLE);
        // There is always room: that of a message leaves it.
        let Some(place) = self.envelope.place(&mut self.buffer, at, len) else { return 0 };
        place.fill(0);
        if let Some(head) = place.first_chunk_mut() {
            *head = prefix;
        }
        self.envelope.len_of(len)
    }

    /// Stages frames in bundles; as many as there is room for.
    fn stage_bundle(
        &mut self,
        batch: &Batch<'_>,
        frames: Range<usize>,
        max_datagram: usize,
    ) -> Step {
        let first = frames.start;
        let run = batch.frames.get(frames).unwrap_or_default();
        let Some(Outgoing { route, .. }) = run.first() else { return Step::Done(1) };
        let room = self.room();
        let prefix = self.header(Flags::BUNDLE);
        let datagrams = self.most_segments(route);
        let envelope = self.envelope;
        let limits = Limits { datagram: max_datagram, datagrams, total: room, envelope };
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
        let begins = Begins { first, frames: packed.frames as u64, bytes };
        self.push(*route, packed.len, packed.size, begins);
        Step::Done(packed.frames)
    }

    /// Stages a frame in a datagram of its own, and with it those behind it that go to the same
    /// place and are as long; a shorter one is the last.
    fn stage_singles(&mut self, batch: &Batch<'_>, at: usize, max_datagram: usize) -> Step {
        let run = batch.frames.get(at..).unwrap_or_default();
        let Some(first) = run.first() else { return Step::Done(1) };
        let envelope = self.envelope;
        let size = envelope.len_of(encap::LEN + first.len);
        if size > self.room() {
            return Step::Full;
        }
        let most = (self.room() / size).min(self.most_segments(&first.route));
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
            let datagram_len = encap::LEN + frame.len;
            let place = envelope.place(&mut self.buffer, self.used + len, datagram_len);
            let Some((head, place)) = place.and_then(|place| place.split_first_chunk_mut()) else {
                break;
            };
            *head = encap;
            fill(batch, frame, place);
            len += envelope.len_of(datagram_len);
            count += 1;
            bytes += frame.len;
        }
        if count == 0 {
            return Step::Full;
        }
        self.push(first.route, len, size, Begins { first: at, frames: count as u64, bytes });
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
    matches!(frame.request, Request::Checksum { is_transport: true, .. })
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
