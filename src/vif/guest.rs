//! The trust boundary: descriptor chains, which the guest writes, become frames or named faults.
//!
//! Whatever the guest does to its memory while we look, three things hold. Every access is checked
//! against the guest's regions. What decisions are made from is copied once, first. A chain whose
//! links are broken, looped, or point outside is a fault, never a short frame (see
//! [`super::ring::chain`]).

use std::ops::Range;

use super::ring::{Access, BrokenChain, Piece, RingView};
use crate::sys::iovec::IoVec;
use crate::vhost_user::vring::RingError;
use crate::wire::frame;

/// Length of the virtio-net header of a modern driver, in bytes (virtio 1.2, 5.1.6).
pub const MODERN_HEADER_LEN: usize = 12;
/// Length of it for a legacy driver without mergeable buffers (virtio 1.2, 5.1.6.1).
pub const LEGACY_HEADER_LEN: usize = 10;

/// Longest frame taken from or given to a guest, in bytes: what fits a UDP datagram behind our
/// header.
pub const MAX_FRAME_LEN: usize = 65_507 - crate::wire::encap::LEN;
/// Most pieces of memory in a frame; the kernel takes 1,024 per datagram (UIO_MAXIOV).
const MAX_PIECES: usize = 512;

/// Why a chain is not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainFault {
    /// A link is broken or looped, a descriptor points outside of memory or into the wrong
    /// direction, there are too many of them, or the frame is shorter or longer than any frame.
    Malformed,
    /// The virtio-net header asks for an offload that was not negotiated.
    Header,
}

impl From<BrokenChain> for ChainFault {
    fn from(_: BrokenChain) -> Self {
        Self::Malformed
    }
}

/// What the guest wants sent: the copied beginning of a frame, and where the rest is.
#[derive(Clone, Debug)]
pub struct TransmitFrame {
    /// The Ethernet header, copied: decisions are made from it and its addresses leave from it.
    pub lead: [u8; frame::HEADER_LEN],
    /// Length of the whole frame, in bytes.
    pub len: usize,
    /// The pieces that hold what follows the two addresses.
    pub rest: Range<usize>,
}

/// Reads the transmit chain that begins with `head`. The pieces of the frame's rest are appended
/// to `pieces`; on a fault, nothing is.
///
/// # Errors
/// The fault; the chain is used up either way.
pub fn read_frame<'m>(
    ring: &mut RingView<'_, 'm>,
    head: u16,
    header_len: usize,
    pieces: &mut Vec<IoVec<'m>>,
) -> Result<TransmitFrame, ChainFault> {
    let start = pieces.len();
    let frame = gather(ring, head, header_len, pieces);
    if frame.is_err() {
        pieces.truncate(start);
    }
    frame
}

/// The longest part of a chain that is copied: virtio-net header and Ethernet header.
const LEAD_ROOM: usize = MODERN_HEADER_LEN + frame::HEADER_LEN;

fn gather<'m>(
    ring: &mut RingView<'_, 'm>,
    head: u16,
    header_len: usize,
    pieces: &mut Vec<IoVec<'m>>,
) -> Result<TransmitFrame, ChainFault> {
    let start = pieces.len();
    let lead_len = header_len + frame::HEADER_LEN;
    let body_from = header_len + frame::ADDRESSES_LEN;
    let mut lead = [0; LEAD_ROOM];
    let mut total = 0usize;
    ring.walk(head, Access::Read, |piece| {
        if let Some(room) = lead.get_mut(total..lead_len) {
            piece.copy_to(room);
        }
        let skip = body_from.saturating_sub(total).min(piece.len());
        total += piece.len();
        let body = piece.offset(skip).map_err(|_| ChainFault::Malformed)?;
        if !body.is_empty() {
            pieces.push(IoVec::from_guest(&body));
        }
        let fits = total <= header_len + MAX_FRAME_LEN && pieces.len() - start <= MAX_PIECES;
        fits.then_some(()).ok_or(ChainFault::Malformed)
    })?;
    if total < lead_len {
        return Err(ChainFault::Malformed);
    }
    let (header, lead) = lead[..lead_len].split_at(header_len);
    check_header(header)?;
    let mut copied = [0; frame::HEADER_LEN];
    copied.copy_from_slice(lead);
    Ok(TransmitFrame { lead: copied, len: total - header_len, rest: start..pieces.len() })
}

/// No offload is offered to guests, so flags and GSO type must say so (virtio 1.2, 5.1.6.2.1).
fn check_header(header: &[u8]) -> Result<(), ChainFault> {
    match header {
        [0, 0, ..] => Ok(()),
        _ => Err(ChainFault::Header),
    }
}

/// What became of a frame for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// It is in the guest's buffers, and they are given back.
    Done,
    /// The guest has not offered enough buffers; it has offered those up to this avail index.
    NoBuffers {
        /// The avail index that was seen.
        seen: u16,
    },
    /// One buffer must hold the frame (no mergeable buffers) and is too small; it stays available.
    TooLong,
    /// A chain that can't be written to was given back to the guest, and with it those before it;
    /// the frame can be tried again.
    BadChain,
}

/// One receive chain taken from the ring.
#[derive(Debug)]
struct Buffer {
    head: u16,
    len: usize,
}

/// How the virtio-net header in front of received frames looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderLayout {
    /// Its length, in bytes.
    pub len: usize,
    /// Whether a frame may continue in further chains (VIRTIO_NET_F_MRG_RXBUF).
    pub mergeable: bool,
}

/// Writes the frames of one wake-up into the guest's receive ring. Holds reused lists only.
#[derive(Debug, Default)]
pub struct Deliverer<'m> {
    buffers: Vec<Buffer>,
    pieces: Vec<Piece<'m>>,
}

impl<'m> Deliverer<'m> {
    /// Delivers one frame: virtio-net header and frame go into one chain, or with mergeable
    /// buffers into as many as it takes. The guest sees it after [`RingView::publish`].
    ///
    /// # Errors
    /// The ring itself is broken (its indices or heads): the queue must be stopped.
    pub fn deliver(
        &mut self,
        ring: &mut RingView<'_, 'm>,
        frame: &[u8],
        layout: HeaderLayout,
    ) -> Result<Delivery, RingError> {
        self.buffers.clear();
        self.pieces.clear();
        let wanted = layout.len + frame.len();
        let position = ring.position();
        let mut room = 0;
        while room < wanted {
            let Some(head) = ring.pop()? else { break };
            let Ok(len) = self.add_room(ring, head) else {
                // Chains are given back in the order in which they came: the good ones before the
                // bad one go with it.
                self.give_back(ring, 0)?;
                ring.push_used(head, 0)?;
                return Ok(Delivery::BadChain);
            };
            room += len;
            self.buffers.push(Buffer { head, len });
            if !layout.mergeable {
                break;
            }
        }
        if room >= wanted {
            self.write(frame, layout);
            return self.give_back(ring, wanted).map(|()| Delivery::Done);
        }
        let seen = ring.position();
        ring.rewind_to(position);
        if !layout.mergeable && !self.buffers.is_empty() {
            return Ok(Delivery::TooLong);
        }
        Ok(Delivery::NoBuffers { seen })
    }

    /// Adds the pieces of a receive chain; returns how many bytes fit.
    fn add_room(&mut self, ring: &mut RingView<'_, 'm>, head: u16) -> Result<usize, ChainFault> {
        let mut len = 0;
        ring.walk(head, Access::Write, |piece| {
            len += piece.len();
            self.pieces.push(piece);
            Ok::<_, ChainFault>(())
        })?;
        if len == 0 { Err(ChainFault::Malformed) } else { Ok(len) }
    }

    /// Copies header and frame, piece by piece.
    fn write(&self, frame: &[u8], layout: HeaderLayout) {
        let mut header = [0; MODERN_HEADER_LEN];
        if let Some(field) = header.last_chunk_mut::<2>() {
            *field = u16::try_from(self.buffers.len()).unwrap_or(u16::MAX).to_le_bytes();
        }
        let mut parts = [header.get(..layout.len).unwrap_or_default(), frame];
        for piece in &self.pieces {
            let mut at = 0;
            for part in &mut parts {
                let Ok(room) = piece.offset(at) else { break };
                let (now, later) = part.split_at(part.len().min(room.len()));
                room.copy_from(now);
                *part = later;
                at += now.len();
            }
        }
    }

    /// Gives the chains back, the first of them with `left` bytes written.
    fn give_back(&self, ring: &mut RingView<'_, 'm>, mut left: usize) -> Result<(), RingError> {
        for buffer in &self.buffers {
            let used = buffer.len.min(left);
            left -= used;
            ring.push_used(buffer.head, u32::try_from(used).unwrap_or(u32::MAX))?;
        }
        Ok(())
    }
}
