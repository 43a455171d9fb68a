//! The trust boundary: descriptor chains, which the guest writes, become frames or named faults.
//!
//! Whatever the guest does to its memory while we look, three things hold. Every access is checked
//! against the guest's regions. What decisions are made from is copied once, first. A chain whose
//! links are broken, looped, or point outside is a fault, never a short frame: the crate's iterator
//! just ends early there, so the last descriptor seen is asked whether it meant to go on.

use std::ops::Range;

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{DescriptorChain, Error as RingError, Queue, QueueOwnedT, QueueT};
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{Bytes, GuestAddress, GuestMemory as _, Permissions};

use crate::sys::iovec::IoVec;
use crate::vhost_user::vring::GuestMemory;
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

/// Reads a transmit chain. The pieces of the frame's rest are appended to `pieces`; on a fault,
/// nothing is.
///
/// # Errors
/// The fault; the chain is used up either way.
pub fn read_frame<'m>(
    memory: &'m GuestMemory,
    chain: DescriptorChain<&'m GuestMemory>,
    header_len: usize,
    pieces: &mut Vec<IoVec<'m>>,
) -> Result<TransmitFrame, ChainFault> {
    let start = pieces.len();
    let frame = gather(memory, chain, header_len, pieces);
    if frame.is_err() {
        pieces.truncate(start);
    }
    frame
}

/// The longest part of a chain that is copied: virtio-net header and Ethernet header.
const LEAD_ROOM: usize = MODERN_HEADER_LEN + frame::HEADER_LEN;

fn gather<'m>(
    memory: &'m GuestMemory,
    chain: DescriptorChain<&'m GuestMemory>,
    header_len: usize,
    pieces: &mut Vec<IoVec<'m>>,
) -> Result<TransmitFrame, ChainFault> {
    let start = pieces.len();
    let lead_len = header_len + frame::HEADER_LEN;
    let body_from = header_len + frame::ADDRESSES_LEN;
    let mut lead = [0; LEAD_ROOM];
    let mut total = 0usize;
    let mut links = Links::default();
    for descriptor in chain {
        links.follow(&descriptor);
        if descriptor.is_write_only() {
            return Err(ChainFault::Malformed);
        }
        let len = usize::try_from(descriptor.len()).map_err(|_| ChainFault::Malformed)?;
        if total + len > header_len + MAX_FRAME_LEN {
            return Err(ChainFault::Malformed);
        }
        let slices = memory
            .get_slices(descriptor.addr(), len, Permissions::Read)
            .and_then(GuestMemorySliceIterator::stop_on_error)
            .map_err(|_| ChainFault::Malformed)?;
        let end = total + len;
        for slice in slices {
            if let Some(room) = lead.get_mut(total..lead_len) {
                slice.copy_to(room);
            }
            let skip = body_from.saturating_sub(total).min(slice.len());
            total += slice.len();
            let body = slice.offset(skip).map_err(|_| ChainFault::Malformed)?;
            if !body.is_empty() {
                pieces.push(IoVec::from_guest(&body));
            }
        }
        if total != end || pieces.len() - start > MAX_PIECES {
            return Err(ChainFault::Malformed);
        }
    }
    if !links.ended || total < lead_len {
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

/// Follows the links of a chain to tell its end from a place where the iterator gave up.
#[derive(Debug, Default)]
struct Links {
    ended: bool,
}

impl Links {
    fn follow(&mut self, descriptor: &Descriptor) {
        self.ended = !descriptor.has_next();
    }
}

/// What became of a frame for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// It is in the guest's buffers, and they are marked used.
    Done,
    /// The guest has not offered enough buffers; it has offered those up to this avail index.
    NoBuffers {
        /// The avail index that was seen.
        seen: u16,
    },
    /// One buffer must hold the frame (no mergeable buffers) and is too small, or a whole ring of
    /// them is; they stay available.
    TooLong,
    /// A chain that can't be written to was given back to the guest, and what was taken before it
    /// for the same frame; the frame can be tried again.
    BadChain,
}

/// One receive chain taken from the ring.
#[derive(Debug)]
struct Buffer {
    head: u16,
    len: usize,
}

/// Writes frames into the guest's receive ring. Holds reused lists only.
#[derive(Debug, Default)]
pub struct Deliverer {
    buffers: Vec<Buffer>,
    pieces: Vec<(GuestAddress, usize)>,
}

impl Deliverer {
    /// Delivers one frame: virtio-net header and frame go into one chain, or with mergeable
    /// buffers into as many as it takes.
    ///
    /// # Errors
    /// The ring itself is broken (its addresses or indices): the queue must be stopped.
    pub fn deliver(
        &mut self,
        queue: &mut Queue,
        memory: &GuestMemory,
        frame: &[u8],
        layout: HeaderLayout,
    ) -> Result<Delivery, RingError> {
        self.buffers.clear();
        self.pieces.clear();
        let wanted = layout.len + frame.len();
        let position = queue.next_avail();
        let mut room = 0;
        let mut chains = queue.iter(memory)?;
        while room < wanted {
            let Some(chain) = chains.next() else { break };
            let head = chain.head_index();
            let Ok(buffer) = writable(memory, chain, &mut self.pieces) else {
                // Chains go back in their order, so those before it go back empty, too. If they
                // were kept the bad one would be found again and again.
                for buffer in &self.buffers {
                    queue.add_used(memory, buffer.head, 0)?;
                }
                queue.add_used(memory, head, 0)?;
                return Ok(Delivery::BadChain);
            };
            room += buffer.len;
            self.buffers.push(buffer);
            if !layout.mergeable {
                break;
            }
        }
        if room >= wanted {
            self.write(memory, frame, layout).map_err(RingError::GuestMemory)?;
            return self.publish(queue, memory, wanted).map(|()| Delivery::Done);
        }
        let seen = queue.next_avail();
        queue.set_next_avail(position);
        // More than a whole ring of buffers will never be there.
        let most = if layout.mergeable { usize::from(queue.size()) } else { 1 };
        if self.buffers.len() >= most {
            return Ok(Delivery::TooLong);
        }
        Ok(Delivery::NoBuffers { seen })
    }

    /// Copies header and frame, piece by piece.
    fn write(
        &self,
        memory: &GuestMemory,
        frame: &[u8],
        layout: HeaderLayout,
    ) -> Result<(), vm_memory::GuestMemoryError> {
        let mut header = [0; MODERN_HEADER_LEN];
        if let Some(field) = header.last_chunk_mut::<2>() {
            *field = u16::try_from(self.buffers.len()).unwrap_or(u16::MAX).to_le_bytes();
        }
        let mut parts = [header.get(..layout.len).unwrap_or_default(), frame];
        for &(mut address, mut len) in &self.pieces {
            for part in &mut parts {
                let count = part.len().min(len);
                let (now, later) = part.split_at(count);
                memory.write_slice(now, address)?;
                *part = later;
                len -= count;
                address.0 += count as u64;
            }
        }
        Ok(())
    }

    fn publish(
        &self,
        queue: &mut Queue,
        memory: &GuestMemory,
        mut left: usize,
    ) -> Result<(), RingError> {
        for buffer in &self.buffers {
            let used = buffer.len.min(left);
            left -= used;
            queue.add_used(memory, buffer.head, u32::try_from(used).unwrap_or(u32::MAX))?;
        }
        Ok(())
    }
}

/// How the virtio-net header in front of received frames looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderLayout {
    /// Its length, in bytes.
    pub len: usize,
    /// Whether a frame may continue in further chains (VIRTIO_NET_F_MRG_RXBUF).
    pub mergeable: bool,
}

/// Checks a receive chain and appends its pieces.
fn writable(
    memory: &GuestMemory,
    chain: DescriptorChain<&GuestMemory>,
    pieces: &mut Vec<(GuestAddress, usize)>,
) -> Result<Buffer, ChainFault> {
    let head = chain.head_index();
    let start = pieces.len();
    let mut len = 0usize;
    let mut links = Links::default();
    for descriptor in chain {
        links.follow(&descriptor);
        let piece = usize::try_from(descriptor.len()).map_err(|_| ChainFault::Malformed)?;
        let is_usable = descriptor.is_write_only()
            && memory.check_range(descriptor.addr(), piece, Permissions::Write);
        if !is_usable {
            pieces.truncate(start);
            return Err(ChainFault::Malformed);
        }
        len = len.saturating_add(piece);
        pieces.push((descriptor.addr(), piece));
    }
    if !links.ended || len == 0 {
        pieces.truncate(start);
        return Err(ChainFault::Malformed);
    }
    Ok(Buffer { head, len })
}

/// Asks the guest to notify when its avail index passes `seen`. Returns whether it already has.
///
/// # Errors
/// The ring is broken.
pub fn notify_beyond(
    queue: &mut Queue,
    memory: &GuestMemory,
    seen: u16,
) -> Result<bool, RingError> {
    let position = queue.next_avail();
    queue.set_next_avail(seen);
    let has_more = queue.enable_notification(memory);
    queue.set_next_avail(position);
    has_more
}
