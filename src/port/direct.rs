//! Large segments straight into the guest: what the next message will be, and whether to ask.
//!
//! Theory of operation. A bulk stream comes in *trains*: one message (UDP_GRO) of up to 64 segments of
//! one flow. The usual way copies each twice, out of the kernel into memory of ours and from there to the
//! guest. Where segments are long, it pays to look at the beginning of the message first (MSG_PEEK), to
//! foresee the rest from it, and to have the kernel copy each part to where it belongs:
//!
//! ```text
//!  message:      | header 1 | payload 1 | header 2 | payload 2 | header 3 | payload 3 |
//!                     |          |           |          |           |          |
//!  our memory:   | header 1 | header 2 | header 3 |     |                      |
//!                                |                      |                      |
//!  the guest's:  | room for one header | payload 1 | payload 2 | payload 3 |
//! ```
//!
//! What was foreseen is then verified, header by header in our memory, by those who judge frames on the
//! usual way: [`Receiver::accept`](crate::tunnel::rx::Receiver::accept) and [`Merger::merge`]. From the first
//! datagram on that is not as foreseen, all go the usual way: they are copied back from the guest's
//! memory, and zeros are written where they were. The guest can change its memory at any time, so also
//! then it can change no header that was foreseen, and nothing that is not given back to itself: frames
//! for a MAC that has left never come this way ([`Plan::foresee`]).
//!
//! **Nothing but frames for this vif reaches its guest's memory**, not even for a moment in a buffer that
//! it has made available. The first datagram is judged before a byte of the message goes there. The others
//! came from the same socket to the vif's own port, as the kernel merges nothing else and only that port
//! is read so. A backend sends frames of one vif, on one vnet, from a socket that no other has: what
//! follows a frame for this vif in a message is of the same vnet and was sent to this vif, too. If it is
//! no such frame its sender is broken or hostile, and could as well have put the same bytes into a frame
//! for this vif: nobody learns from them what their sender did not tell him. On vnets where senders
//! are authenticated nothing goes this way, as what they receive has to be opened first.
//!
//! A look is a system call more. It is made only in the middle of a stream ([`Hunch`]), and one that was
//! in vain ends that until the usual way has met another long frame. Where received frames are limited
//! to a rate there is nothing to gain, and none is made.

#![forbid(unsafe_code)]
#![warn(clippy::indexing_slicing)]
#![cfg_attr(not(test), warn(clippy::cast_possible_truncation))]

use crate::offload::LEAD_LEN;
use crate::offload::gro::{Merged, Merger, Received};
use crate::sys::train::Train;
use crate::tunnel::incoming::Home;
use crate::tunnel::rx::{Addressee, Payload};
use crate::underlay::Port;
use crate::wire::encap;

/// How much of a message is looked at, in bytes: the headers of its first datagram.
pub const HEAD_LEN: usize = encap::LEN + LEAD_LEN;
/// Most datagrams of a train: what Linux makes one of at most.
pub const MAX_DATAGRAMS: usize = 64;
/// Least payload of a datagram, in bytes, from which this way is taken.
///
/// Microseconds to get some 62 kB out of a socket into 4 MiB of guest buffers, 4 KiB each, in datagrams
/// of a length (over loopback, Linux 6.18, on a machine that was not idle):
///
/// | Datagrams | 1472 | 2922 | 4022 | 8922 |
/// |---|---|---|---|---|
/// | received, then copied | 9.2 | 8.9 | 8.7 | 7.3 |
/// | looked at, received into the guest | 7.1 | 6.3 | 6.3 | 4.8 |
///
/// At an MTU of 1500 it is of no use nevertheless: there 64 KiB come in two messages, which the usual way
/// makes one frame of and this one two. Over the whole path that costs 0.37 s of processor time a GB instead
/// of 0.35; at 9000 it is 0.27 instead of 0.30, and 0.31 instead of 0.34 where the kernel has to cut.
pub const FROM: usize = 3500;
/// A train that was not as foreseen stops looks for so many long frames; the next one for twice as many.
const PAUSE: u32 = 8;
/// Most doublings of that.
const MAX_DOUBLINGS: u32 = 10;

/// What a message will be, judged from its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The message.
    train: Train,
    /// Length of the headers of each datagram, in bytes, that of the encapsulation included.
    header: usize,
}

impl Plan {
    /// What the message will be that begins with `head`, if it is for this vif alone and worth it.
    pub fn foresee(
        train: Train,
        head: &[u8],
        home: &Home<'_>,
        merger: &mut Merger,
    ) -> Option<Self> {
        let is_long = train.segment > FROM && (2..=MAX_DATAGRAMS).contains(&train.datagrams());
        if !is_long || !home.moved.is_empty() {
            return None;
        }
        let Ok(Payload::Frame(entry)) = home.receiver.accept(Port::Own, train.from, head) else {
            return None;
        };
        let is_here = match home.receiver.accept_frame(Port::Own, entry.frame).ok()? {
            Addressee::Vif => true,
            Addressee::Other(_) => home.takes_unknown,
            Addressee::Group => false,
        };
        // Checksums of others would have to be verified, over bytes that the guest can change.
        if !is_here || !entry.is_partial {
            return None;
        }
        let frame = Received::beginning(entry.frame, train.segment - encap::LEN);
        let header = encap::LEN + merger.begins_run(&frame)?;
        (train.segment >= header + FROM).then_some(Self { train, header })
    }

    /// The message.
    pub fn train(&self) -> Train {
        self.train
    }

    /// Header and payload of each datagram, in bytes.
    pub fn datagrams(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let Self { train: Train { len, segment, .. }, header } = *self;
        (0..len).step_by(segment).map(move |at| {
            let datagram = segment.min(len - at);
            (header.min(datagram), datagram.saturating_sub(header))
        })
    }

    /// Length of all headers, in bytes.
    pub fn headers_len(&self) -> usize {
        self.datagrams().map(|(header, _)| header).sum()
    }

    /// Length of the frame's own headers, in bytes, behind which all payload follows.
    pub fn frame_header(&self) -> usize {
        self.header - encap::LEN
    }

    /// Payload of the first so many datagrams, in bytes.
    pub fn payload_len(&self, datagrams: usize) -> usize {
        self.datagrams().take(datagrams).map(|(_, payload)| payload).sum()
    }

    /// Room for one frame of all datagrams, in bytes.
    pub fn frame_len(&self) -> usize {
        self.frame_header() + self.payload_len(MAX_DATAGRAMS)
    }

    /// The headers of each datagram, given those of all.
    pub fn headers<'h>(&self, headers: &'h [u8]) -> impl Iterator<Item = &'h [u8]> + use<'h> {
        headers.chunks(self.header)
    }

    /// What is to be delivered of the message that was received, given its headers, and the beginning that
    /// was foreseen from: one frame, made of as many datagrams from the first on as are what was
    /// foreseen. `None` if the first is not.
    pub fn verify<'m>(
        &self,
        train: Train,
        headers: &[u8],
        head: &[u8],
        merger: &'m mut Merger,
    ) -> Option<Merged<'m>> {
        let first = headers.get(..self.header)?;
        if train != self.train || !head.starts_with(first) {
            return None;
        }
        let (encapsulation, _) = first.split_at_checked(encap::LEN)?;
        let mut datagrams: [(&[u8], usize); MAX_DATAGRAMS] = [(&[], 0); MAX_DATAGRAMS];
        let all = self.headers(headers).zip(self.datagrams());
        for (place, (headers, (header, payload))) in datagrams.iter_mut().zip(all) {
            *place = (headers, header + payload);
        }
        let frame = |n: usize| {
            let (headers, len) = datagrams.get(n)?;
            let headers = headers.strip_prefix(encapsulation)?;
            Some(Received::beginning(headers, len - encap::LEN))
        };
        merger.merge(frame)?.ok()
    }
}

/// Whether the next message is likely to be a train of long segments.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hunch {
    is_on: bool,
    /// Long frames that are still to come before it is trusted again.
    pause: u32,
    /// How often in a row a train was not as foreseen.
    failures: u32,
}

impl Hunch {
    /// Whether to look.
    pub fn is_on(&self) -> bool {
        self.is_on
    }

    /// A frame of so many bytes of payload was merged, of so many datagrams, that came the usual way.
    pub fn merged(&mut self, payload: usize, datagrams: usize) {
        if datagrams > 1 && payload / datagrams >= FROM {
            self.is_on = self.pause == 0;
            self.pause = self.pause.saturating_sub(1);
        }
    }

    /// A look was in vain: the next message is something else.
    pub fn missed(&mut self) {
        self.is_on = false;
    }

    /// A train was as foreseen.
    pub fn came_true(&mut self) {
        self.failures = 0;
    }

    /// A train was not as foreseen, which costs more than a look.
    pub fn failed(&mut self) {
        self.is_on = false;
        self.pause = PAUSE << self.failures;
        self.failures = (self.failures + 1).min(MAX_DOUBLINGS);
    }
}

#[cfg(test)]
mod tests;
