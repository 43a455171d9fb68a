//! Bundles: many small frames in one datagram (flag B of [`crate::wire::encap`]).
//!
//! Behind the encapsulation header comes, instead of one frame, a run of entries up to the end of
//! the datagram:
//!
//! ```text
//!  0                   1
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5
//! +-+-----------------------------+
//! |C|  length (15)                |   C: the frame's transport checksum is partial
//! +-+-----------------------------+
//! |  the frame ...                    length 0 (and C 0): all that follows is padding
//! ```
//!
//! Padding makes all datagrams of one UDP_SEGMENT call equally long. A single octet of it is too
//! short for an entry: it must be 0. Entries are not aligned.

use super::envelope::Envelope;

/// Length of what precedes each frame, in bytes.
pub const ENTRY_LEN: usize = 2;
/// Longest frame in a bundle, in bytes.
pub const MAX_FRAME_LEN: usize = 0x7fff;
/// Shortest: an Ethernet header. It bounds the entries of a datagram.
pub const MIN_FRAME_LEN: usize = crate::wire::frame::HEADER_LEN;

const PARTIAL: u16 = 0x8000;

/// A frame in a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The frame.
    pub frame: &'a [u8],
    /// Whether its transport checksum is partial (C).
    pub is_partial: bool,
}

/// What is wrong with a bundle. The entries before it are good, what follows is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BundleFault {
    /// A single octet that is neither padding nor an entry.
    Octet,
    /// C is set on padding.
    Padding,
    /// A frame shorter than an Ethernet header.
    Short,
    /// An entry that is longer than what is left.
    Truncated,
}

/// The entries of a bundle, in order. Ends after a fault.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    rest: &'a [u8],
}

impl<'a> Entries<'a> {
    /// Reads what follows the encapsulation header.
    pub const fn new(payload: &'a [u8]) -> Self {
        Self { rest: payload }
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, BundleFault>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = std::mem::take(&mut self.rest);
        let Some((entry, rest)) = rest.split_first_chunk::<ENTRY_LEN>() else {
            return match rest {
                [] | [0] => None,
                _ => Some(Err(BundleFault::Octet)),
            };
        };
        let entry = u16::from_be_bytes(*entry);
        let is_partial = entry & PARTIAL != 0;
        let len = usize::from(entry & !PARTIAL);
        Some(match rest.split_at_checked(len) {
            _ if len == 0 && is_partial => Err(BundleFault::Padding),
            _ if len == 0 => return None,
            _ if len < MIN_FRAME_LEN => Err(BundleFault::Short),
            None => Err(BundleFault::Truncated),
            Some((frame, rest)) => {
                self.rest = rest;
                Ok(Entry { frame, is_partial })
            }
        })
    }
}

impl std::iter::FusedIterator for Entries<'_> {}

/// How much one call to the kernel takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest datagram, in bytes, with what precedes its entries.
    pub datagram: usize,
    /// Most datagrams.
    pub datagrams: usize,
    /// Longest sum of all, in bytes, with what surrounds them; as far as the buffer has that room.
    pub total: usize,
    /// What surrounds each.
    pub envelope: Envelope,
}

/// Writes bundles into a buffer: datagrams one behind the other, all of one length except the last,
/// which is shorter or equal.
#[derive(Debug)]
pub struct Packer<'b> {
    buffer: &'b mut [u8],
    /// What every datagram begins with.
    prefix: &'b [u8],
    limits: Limits,
    /// Length of all datagrams but the last; settled when the first is full.
    size: Option<usize>,
    /// Where the datagram being written begins; in front of what surrounds it.
    start: usize,
    /// Where it ends so far.
    end: usize,
    datagrams: usize,
    frames: usize,
}

/// What was packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packed {
    /// Length of all datagrams together with what surrounds them, in bytes: as much of the buffer is to be sent.
    pub len: usize,
    /// Length of each but the last, in bytes, with what surrounds it.
    pub size: usize,
    /// How many datagrams.
    pub datagrams: usize,
    /// How many frames are in them.
    pub frames: usize,
}

impl<'b> Packer<'b> {
    /// Packs into `buffer`; each datagram begins with `prefix` (the encapsulation header).
    pub fn new(buffer: &'b mut [u8], prefix: &'b [u8], limits: Limits) -> Self {
        let total = limits.total.min(buffer.len());
        let limits = Limits { datagram: limits.datagram.min(total), total, ..limits };
        Self { buffer, prefix, limits, size: None, start: 0, end: 0, datagrams: 0, frames: 0 }
    }

    /// Appends an entry and returns the place of its frame, for the caller to fill. `None`, and
    /// nothing is changed, when it does not fit: send what is packed, and begin anew; a frame that
    /// does not fit then is no frame for a bundle.
    pub fn reserve(&mut self, len: usize, is_partial: bool) -> Option<&mut [u8]> {
        if !(MIN_FRAME_LEN..=MAX_FRAME_LEN).contains(&len) {
            return None;
        }
        let entry_len = ENTRY_LEN + len;
        let max = self.size.unwrap_or(self.limits.datagram);
        let used = self.used();
        if self.datagrams == 0 || used + entry_len > max {
            self.open(entry_len)?;
        } else if self.start + self.limits.envelope.len_of(used + entry_len) > self.limits.total {
            return None;
        }
        let at = self.end;
        let entry = u16::try_from(len).ok()? | if is_partial { PARTIAL } else { 0 };
        let place = self.buffer.get_mut(at..at + entry_len)?;
        let (head, frame) = place.split_first_chunk_mut::<ENTRY_LEN>()?;
        *head = entry.to_be_bytes();
        self.end = at + entry_len;
        self.frames += 1;
        Some(frame)
    }

    /// Pads the datagram being written and begins the next, if an entry of this length fits there.
    fn open(&mut self, entry_len: usize) -> Option<()> {
        let used = self.used();
        let envelope = self.limits.envelope;
        let needed = self.prefix.len() + entry_len;
        // The first full datagram is the measure for all if what did not fit into it would fit an
        // empty one: frames of one length, the usual case, then need no padding at all.
        let size = match self.size {
            Some(size) => size,
            None if self.datagrams > 0 && needed <= used => used,
            None => self.limits.datagram,
        };
        let start = if self.datagrams == 0 { 0 } else { self.start + envelope.len_of(size) };
        let fits = needed <= size
            && self.datagrams < self.limits.datagrams
            && start + envelope.len_of(needed) <= self.limits.total;
        if !fits {
            return None;
        }
        if self.datagrams > 0 {
            self.buffer.get_mut(self.end..self.end + size - used)?.fill(0);
            envelope.close(self.buffer.get_mut(self.start..start)?, size);
            self.size = Some(size);
        }
        let at = start + envelope.head();
        let end = at + self.prefix.len();
        self.buffer.get_mut(at..end)?.copy_from_slice(self.prefix);
        (self.start, self.end) = (start, end);
        self.datagrams += 1;
        Some(())
    }

    /// Length of the datagram being written, in bytes; 0 if there is none.
    #[inline]
    fn used(&self) -> usize {
        self.end.saturating_sub(self.start + self.limits.envelope.head())
    }

    /// Ends packing; nothing was packed if there are no frames.
    pub fn finish(self) -> Packed {
        let (datagrams, frames, used) = (self.datagrams, self.frames, self.used());
        let envelope = self.limits.envelope;
        if datagrams == 0 {
            return Packed { len: 0, size: 0, datagrams, frames };
        }
        let (len, size) = (self.start + envelope.len_of(used), self.size.unwrap_or(used));
        envelope.close(self.buffer.get_mut(self.start..len).unwrap_or_default(), used);
        Packed { len, size: envelope.len_of(size), datagrams, frames }
    }
}

#[cfg(test)]
mod tests;
