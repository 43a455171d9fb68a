//! Lanes carry frames from one vif to another of the same host, through memory that both backends
//! map.
//!
//! # Theory of operation
//!
//! A lane is a ring with one writer and one reader, from a queue pair of one vif to a queue pair of
//! another on the same vnet. varpd makes it when the first asks for the second's address. It passes
//! each side the memory (a memfd of fixed length) and one end of a pair of sockets, by which the
//! sides wake each other (see [`crate::sys::doorbell`]). Neither side maps the other's guest: the
//! writer copies a frame from its guest into the lane, and the reader from the lane into its guest.
//! Frames keep the offloads that the sending guest requested: a large TCP frame is neither cut nor
//! merged, and a partial checksum stays partial, if the receiving guest accepts that.
//!
//! ```text
//! byte      0  head: position of the next entry to write (32)           written by the writer
//!         128  tail: position of the next entry to read (32),           written by the reader
//!              taken: number of frames read (32)
//!         256  the reader sleeps (32)                                   set by the reader
//!         384  the writer waits for room (32)                           set by the writer
//!        4096  entries, in a ring of a power of two of bytes
//!
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +---------------------------------------------------------------+
//! |  length of the frame in bytes, or 2^32-1: go on at the start  |   an entry begins at a multiple
//! +---------------------------------------------------------------+   of 16 bytes and does not
//! |                                                               |   cross the end of the ring;
//! +  the frame's virtio-net header, 12 bytes                      +   what is left there is
//! |                                                               |   skipped
//! +---------------------------------------------------------------+
//! |  the frame ...
//! ```
//!
//! Numbers are in the byte order of the host. Indices count bytes since the beginning and wrap at
//! 2^32. Each side keeps its own index, and reads the other's only when it has used up all entries
//! that it knows of.
//!
//! **Neither side trusts the other.** The other process can write anything, at any time. A side
//! reads every number once, into its own memory, and checks it ([`index`]); it does the same with
//! the headers of a frame before it decides by them; it only copies payload bytes. A process that
//! breaks the rules loses the lane ([`Lie`]), and its frames use loopback UDP again. If a reader
//! stops reading, its lane fills; the writer then waits for a bounded time, and drops and counts
//! further frames (see [`crate::local::lanes`]).
//!
//! **Waking.** Before a side waits, it sets its flag in memory and then looks once more; the other
//! side writes its index first and then reads the flag. At least one of the two sees the other's
//! write (both have a sequentially consistent fence between their write and their read), so no
//! wake-up is lost. While both are busy, neither wakes the other.
//!
//! **Order.** From UDP to a lane: the writer sends a last datagram by UDP, the *handover*
//! ([`handover`]), and then writes to the lane. The reader does not read the lane until it has
//! received the handover and delivered all earlier datagrams, or, if the handover was lost, until a
//! short time has passed. From a lane to UDP: the writer returns to UDP only when the reader has
//! taken all frames, or is gone. So the frames of one flow never overtake each other.
//!
//! | File | Contents |
//! |---|---|
//! | `writer`, `reader` | the side of a lane that writes frames, and the side that reads them |
//! | [`index`] | checks of the numbers that a side has read |
//! | [`handover`] | the last datagram by UDP before frames use a lane |

pub mod handover;
pub mod index;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use thiserror::Error;

use crate::sys::shared_memory::SharedMemory;
use index::ALIGN;

pub use reader::{Entry, Reader, SHORT};
pub use writer::{Refused, Writer};

/// The size of the ring that varpd makes, in bytes: sixteen of the largest frames, and little
/// enough to stay in a level-2 cache.
pub const CAPACITY: usize = 1 << 20;
/// Smallest and largest ring that is accepted, in bytes.
const CAPACITIES: std::ops::RangeInclusive<usize> = 1 << 18..=1 << 24;

/// Offsets in the memory, as drawn above.
const HEAD: usize = 0;
const TAIL: usize = 128;
const TAKEN: usize = 132;
const SLEEPS: usize = 256;
const WAITS: usize = 384;
const ENTRIES: usize = 4096;

/// The other side has broken the rules: an index or a length that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the process at the other end of a lane broke its rules")]
pub struct Lie;

/// Memory for a new lane, to be sent to both sides.
///
/// # Errors
/// No descriptors or memory left.
pub fn create() -> io::Result<OwnedFd> {
    create_with(CAPACITY)
}

/// The same with a ring of `capacity` bytes. The reader is asleep at first, so bytes that the writer
/// has written before it begins wake it.
fn create_with(capacity: usize) -> io::Result<OwnedFd> {
    let memory = SharedMemory::create(ENTRIES + capacity)?;
    let map = SharedMemory::map(memory.try_clone()?, |_| true)?;
    if let Some(sleeps) = map.word(SLEEPS) {
        sleeps.store(1, Ordering::Relaxed);
    }
    Ok(memory)
}

/// Maps the memory of a lane; returns it with the capacity of its ring.
fn map(file: OwnedFd) -> io::Result<(SharedMemory, u32)> {
    let capacity = |len: usize| {
        let ring = len.checked_sub(ENTRIES).filter(|ring| CAPACITIES.contains(ring))?;
        u32::try_from(ring).ok().filter(|ring| ring.is_power_of_two() && ring % ALIGN == 0)
    };
    let memory = SharedMemory::map(file, |len| capacity(len).is_some())?;
    let capacity = capacity(memory.len()).unwrap_or_default();
    Ok((memory, capacity))
}
