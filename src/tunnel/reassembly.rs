//! Reassembly of tunnel fragments: pieces that arrive become the frame or bundle that they were cut from
//! (flag F of [`crate::wire::encap`]).
//!
//! Theory of operation. Pieces of one frame share sender, id and flags; they wait, in any order,
//! until they are complete or [`LIFETIME`] has passed since the first. A piece that is there already
//! is ignored. One that overlaps others, or contradicts what is known of the end, ends its frame: a
//! sender never cuts a frame in two ways, so somebody lies (RFC 5722 does the same for IPv6).
//!
//! Anybody on the underlay can send pieces, so all is bounded: by sender, so that one can't drive
//! out the others' frames, and in total. Beyond a bound the oldest go. Every piece that does not
//! become part of a whole is counted.

#![forbid(unsafe_code)]
#![warn(clippy::indexing_slicing)]
#![cfg_attr(not(test), warn(clippy::cast_possible_truncation))]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use crate::time::Instant;
use crate::wire::encap::Flags;
use crate::wire::fragment::Piece;
use crate::wire::frame;

/// How long the pieces of a frame are waited for. They leave together, so what has not come after
/// the detours of one path is lost.
pub const LIFETIME: Duration = Duration::from_millis(500);
/// Pieces of one frame at most: enough for the longest on a path of 552 bytes.
pub const MAX_PIECES: usize = 256;
/// Incomplete frames of one sender at most.
pub const MAX_FRAMES_PER_SENDER: usize = 16;
/// Bytes of incomplete frames of one sender at most.
pub const MAX_BYTES_PER_SENDER: usize = 256 << 10;
/// Incomplete frames in total at most.
pub const MAX_FRAMES: usize = 256;
/// Bytes of incomplete frames in total at most.
pub const MAX_BYTES: usize = 1 << 20;

/// Where the bytes of a piece are.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// In the frame.
    offset: usize,
    /// In [`Partial::bytes`].
    at: usize,
    len: usize,
}

impl Place {
    const fn end(&self) -> usize {
        self.offset + self.len
    }
}

/// What has come of a frame.
#[derive(Debug)]
struct Partial {
    from: SocketAddr,
    id: u32,
    flags: Flags,
    since: Instant,
    /// The pieces' bytes, in the order of arrival.
    bytes: Vec<u8>,
    /// By offset; they do not overlap.
    places: Vec<Place>,
    /// Length of the whole, once the last piece is here.
    end: Option<usize>,
}

/// What a piece meant to its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Added {
    /// Others are missing.
    More,
    /// None is missing.
    Whole,
    /// It was there already.
    Again,
    /// It contradicts others.
    Lie,
}

impl Partial {
    fn add(&mut self, piece: &Piece<'_>) -> Added {
        let (offset, len) = (piece.offset, piece.bytes.len());
        let end = offset + len;
        let index = self.places.partition_point(|place| place.offset < offset);
        let next = self.places.get(index);
        let previous = index.checked_sub(1).and_then(|index| self.places.get(index));
        let is_last_known = self.end == Some(end);
        if next.is_some_and(|next| next.offset == offset && next.len == len) {
            return if piece.is_last == is_last_known { Added::Again } else { Added::Lie };
        }
        let is_lie = previous.is_some_and(|previous| previous.end() > offset)
            || next.is_some_and(|next| next.offset < end)
            || self.end.is_some_and(|known| end > known || piece.is_last)
            || piece.is_last && next.is_some()
            || self.places.len() >= MAX_PIECES;
        if is_lie {
            return Added::Lie;
        }
        if piece.is_last {
            self.end = Some(end);
        }
        self.places.insert(index, Place { offset, at: self.bytes.len(), len });
        self.bytes.extend_from_slice(piece.bytes);
        // They do not overlap and none is beyond the end.
        if self.end == Some(self.bytes.len()) { Added::Whole } else { Added::More }
    }

    fn cost(&self) -> usize {
        self.bytes.len() + self.places.len() * size_of::<Place>()
    }

    fn pieces(&self) -> u64 {
        self.places.len() as u64
    }

    /// The whole.
    fn join(self) -> Vec<u8> {
        if self.places.iter().all(|place| place.at == place.offset) {
            return self.bytes;
        }
        let piece = |place: &Place| self.bytes.get(place.at..place.at + place.len);
        self.places.iter().filter_map(piece).flatten().copied().collect()
    }
}

/// The incomplete frames of one queue pair.
///
/// ```
/// use vnet::time::Instant;
/// use vnet::tunnel::reassembly::{LIFETIME, Reassembly};
/// use vnet::wire::encap::Flags;
/// use vnet::wire::fragment::Piece;
///
/// let (now, from) = (Instant::ZERO, "192.0.2.2:40000".parse().unwrap());
/// let mut reassembly = Reassembly::default();
/// let end = Piece { id: 1, offset: 3, is_last: true, bytes: b"def" };
/// assert_eq!(reassembly.add(from, Flags::NONE, &end, now), None);
/// let start = Piece { id: 1, offset: 0, is_last: false, bytes: b"abc" };
/// assert_eq!(reassembly.add(from, Flags::NONE, &start, now).unwrap(), b"abcdef");
///
/// // The rest of this frame is lost.
/// reassembly.add(from, Flags::NONE, &Piece { id: 2, ..start }, now);
/// assert_eq!(reassembly.poll_timeout(), Some(now + LIFETIME));
/// reassembly.expire(now + LIFETIME);
/// assert_eq!(reassembly.take_dropped(), 1);
/// ```
#[derive(Debug, Default)]
pub struct Reassembly {
    /// In the order in which they began.
    partials: VecDeque<Partial>,
    bytes: usize,
    dropped: u64,
}

impl Reassembly {
    /// Takes in a piece; returns the whole when it is complete. `flags` are those beside F.
    pub fn add(
        &mut self,
        from: SocketAddr,
        flags: Flags,
        piece: &Piece<'_>,
        now: Instant,
    ) -> Option<Vec<u8>> {
        self.expire(now);
        if piece.bytes.is_empty() || piece.offset + piece.bytes.len() > frame::MAX_LEN {
            self.dropped += 1;
            return None;
        }
        let is_its = |p: &Partial| p.id == piece.id && p.from == from && p.flags == flags;
        let index = self.partials.iter().position(is_its).unwrap_or(self.partials.len());
        if index == self.partials.len() {
            let (bytes, places, end) = (Vec::new(), Vec::new(), None);
            let id = piece.id;
            self.partials.push_back(Partial { from, id, flags, since: now, bytes, places, end });
        }
        let partial = self.partials.get_mut(index)?;
        let before = partial.cost();
        let added = partial.add(piece);
        self.bytes += partial.cost() - before;
        match added {
            Added::More => self.keep_bounds(from),
            Added::Whole => return self.remove(index).map(Partial::join),
            Added::Again => self.dropped += 1,
            Added::Lie => {
                self.dropped += 1;
                self.abandon(index);
            }
        }
        None
    }

    /// Gives up the oldest where there are too many.
    fn keep_bounds(&mut self, from: SocketAddr) {
        loop {
            let of_sender = self.partials.iter().filter(|p| p.from == from);
            let (frames, bytes) = of_sender.fold((0, 0), |(n, sum), p| (n + 1, sum + p.cost()));
            let is_greedy = frames > MAX_FRAMES_PER_SENDER || bytes > MAX_BYTES_PER_SENDER;
            let index = if is_greedy {
                self.partials.iter().position(|p| p.from == from).unwrap_or(0)
            } else if self.partials.len() > MAX_FRAMES || self.bytes > MAX_BYTES {
                0
            } else {
                return;
            };
            self.abandon(index);
        }
    }

    fn remove(&mut self, index: usize) -> Option<Partial> {
        let partial = self.partials.remove(index)?;
        self.bytes -= partial.cost();
        Some(partial)
    }

    fn abandon(&mut self, index: usize) {
        if let Some(partial) = self.remove(index) {
            self.dropped += partial.pieces();
        }
    }

    /// Gives up what has waited too long.
    pub fn expire(&mut self, now: Instant) {
        while self.partials.front().is_some_and(|oldest| oldest.since + LIFETIME <= now) {
            self.abandon(0);
        }
    }

    /// When [`Reassembly::expire`] has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.partials.front().map(|oldest| oldest.since + LIFETIME)
    }

    /// How many pieces were dropped since the last call.
    pub fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    /// Whether no piece waits.
    pub fn is_empty(&self) -> bool {
        self.partials.is_empty()
    }
}

#[cfg(test)]
mod tests;
