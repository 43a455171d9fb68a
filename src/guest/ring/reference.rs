//! The same verdicts by another way: the crate's iterators and the memory's own look-ups, one access
//! at a time. Slow, and what [`super::differential`] holds the fast path against.

use virtio_queue::{DescriptorChain, Error as QueueError, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::guest::deliver::Delivery;
use crate::guest::{HeaderLayout, Malformed};
use crate::vhost_user::vring::GuestMemory;
use crate::wire::frame;

/// The frame of a transmit chain, without its header.
pub(super) fn read_frame(
    memory: &GuestMemory,
    chain: DescriptorChain<&GuestMemory>,
    header_len: usize,
) -> Result<Vec<u8>, Malformed> {
    let mut bytes = Vec::new();
    let mut ended = false;
    let mut pieces = 0;
    for descriptor in chain {
        ended = !descriptor.has_next();
        let (start, len) = (bytes.len(), descriptor.len() as usize);
        if descriptor.is_write_only() || start + len > header_len + frame::MAX_LEN {
            return Err(Malformed);
        }
        bytes.resize(start + len, 0);
        let read = memory.read_slice(&mut bytes[start..], descriptor.addr());
        read.map_err(|_| Malformed)?;
        pieces += memory.get_slices(descriptor.addr(), len).count();
    }
    if !ended || pieces > 512 || bytes.len() < header_len + 14 {
        return Err(Malformed);
    }
    Ok(bytes.split_off(header_len))
}

struct Buffer {
    head: u16,
    len: usize,
}

/// Delivers a frame and publishes it at once.
pub(super) fn deliver(
    queue: &mut Queue,
    memory: &GuestMemory,
    frame: &[u8],
    layout: HeaderLayout,
) -> Result<Delivery, QueueError> {
    let wanted = layout.len + frame.len();
    let position = queue.next_avail();
    let size = queue.size();
    let (mut buffers, mut pieces, mut room) = (Vec::new(), Vec::new(), 0);
    let mut chains = queue.iter(memory)?;
    while room < wanted {
        let Some(chain) = chains.next() else { break };
        let head = chain.head_index();
        if head >= size {
            return Err(QueueError::InvalidDescriptorIndex);
        }
        let Ok(len) = writable(memory, chain, &mut pieces) else {
            for Buffer { head, .. } in buffers {
                queue.add_used(memory, head, 0)?;
            }
            queue.add_used(memory, head, 0)?;
            return Ok(Delivery::BadChain);
        };
        room += len;
        buffers.push(Buffer { head, len });
        if !layout.mergeable {
            break;
        }
    }
    if room >= wanted {
        let mut bytes = vec![0; layout.len];
        if layout.len == 12 {
            bytes[10..].copy_from_slice(&(buffers.len() as u16).to_le_bytes());
        }
        bytes.extend(frame);
        let mut rest = &bytes[..];
        for (address, len) in pieces {
            let (now, later) = rest.split_at(rest.len().min(len));
            memory.write_slice(now, address).unwrap();
            rest = later;
        }
        let mut left = wanted;
        for buffer in buffers {
            let used = buffer.len.min(left);
            left -= used;
            queue.add_used(memory, buffer.head, used as u32)?;
        }
        return Ok(Delivery::Done);
    }
    let seen = queue.next_avail();
    queue.set_next_avail(position);
    let too_long = buffers.len() >= if layout.mergeable { size.into() } else { 1 };
    Ok(if too_long { Delivery::TooLong } else { Delivery::NoBuffers { seen } })
}

fn writable(
    memory: &GuestMemory,
    chain: DescriptorChain<&GuestMemory>,
    pieces: &mut Vec<(GuestAddress, usize)>,
) -> Result<usize, Malformed> {
    let mut len = 0;
    let mut ended = false;
    for descriptor in chain {
        ended = !descriptor.has_next();
        let (address, piece) = (descriptor.addr(), descriptor.len() as usize);
        if !descriptor.is_write_only() || !memory.check_range(address, piece) {
            return Err(Malformed);
        }
        len += piece;
        pieces.push((address, piece));
    }
    if ended && len > 0 { Ok(len) } else { Err(Malformed) }
}

/// Asks for a kick beyond `seen`; whether the driver is there already.
pub(super) fn notify_beyond(queue: &mut Queue, memory: &GuestMemory, seen: u16) -> bool {
    let position = queue.next_avail();
    queue.set_next_avail(seen);
    let has_more = queue.enable_notification(memory).unwrap();
    queue.set_next_avail(position);
    has_more
}
