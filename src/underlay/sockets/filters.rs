//! The classic BPF filters of sockets: which datagrams each of them receives.
//!
//! A UDP socket's filter sees a datagram from its UDP header on, so the payload starts at offset 8.

use std::io;

use socket2::{SockFilter, Socket};

use crate::sys::sockopt::Instruction;
use crate::wire::{VnetId, esp, hello, varp};

/// Offset of the payload from the UDP header.
const PAYLOAD: u32 = 8;
/// Load a byte, half word (16 bits), word (32 bits) at an absolute offset; past the end the datagram
/// is dropped.
const LOAD_B: u16 = 0x30;
const LOAD_H: u16 = 0x28;
const LOAD_W: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_SET: u16 = 0x45;
pub(super) const RETURN: u16 = 0x06;
pub(super) const WHOLE: u32 = u32::MAX;
/// Vnets that are looked for one by one; jumps reach no further than 255 instructions.
pub(super) const MOST_VNETS: u8 = 200;
const NOTHING: u32 = 0;

/// Passes nothing.
pub(super) fn nothing_filter() -> [Instruction; 1] {
    [(RETURN, 0, 0, NOTHING)]
}

/// Passes hello, and VARP: requests about these vnets, or about all if they are too many, and all else. Whoever has no
/// vif on a vnet has no answer to a request that was sent to all. Messages of other versions pass, so that
/// varpd can name their sender.
pub(super) fn varp_filter(vnets: &[VnetId]) -> Vec<Instruction> {
    let mut filter = vec![
        (LOAD_H, 0, 0, PAYLOAD),
        (JUMP_EQUAL, 0, 1, u16::from_be_bytes(hello::MAGIC).into()),
        (RETURN, 0, 0, WHOLE),
        (JUMP_EQUAL, 1, 0, u16::from_be_bytes(varp::MAGIC).into()),
        (RETURN, 0, 0, NOTHING),
        (LOAD_B, 0, 0, PAYLOAD + varp::VERSION_OFFSET as u32),
        (JUMP_EQUAL, 1, 0, varp::VERSION.into()),
        (RETURN, 0, 0, WHOLE),
    ];
    if let Some(count) = u8::try_from(vnets.len()).ok().filter(|count| *count <= MOST_VNETS) {
        filter.extend([
            (LOAD_B, 0, 0, PAYLOAD + varp::OPCODE_OFFSET as u32),
            (JUMP_EQUAL, 0, count + 2, varp::REQUEST.into()),
            (LOAD_W, 0, 0, PAYLOAD + varp::VNET_OFFSET as u32),
        ]);
        let ways = (1..=count).rev().zip(vnets);
        filter.extend(ways.map(|(to_pass, vnet)| (JUMP_EQUAL, to_pass, 0, vnet.get())));
        filter.push((RETURN, 0, 0, NOTHING));
    }
    filter.push((RETURN, 0, 0, WHOLE));
    filter
}

/// Passes beacons: hello (16 bits at offset 0), of type HELLO (offset 3), with flag B (in the lower octet of the
/// flags, offset 5).
pub(super) fn beacon_filter() -> [Instruction; 8] {
    [
        (LOAD_H, 0, 0, PAYLOAD),
        (JUMP_EQUAL, 0, 5, u16::from_be_bytes(hello::MAGIC).into()),
        (LOAD_B, 0, 0, PAYLOAD + 3),
        (JUMP_EQUAL, 0, 3, hello::HELLO.into()),
        (LOAD_B, 0, 0, PAYLOAD + 5),
        (JUMP_SET, 0, 1, hello::Flags::BEACON.0.into()),
        (RETURN, 0, 0, WHOLE),
        (RETURN, 0, 0, NOTHING),
    ]
}

/// Passes tunnelled frames (first nibble 4) of one vnet (32 bits at offset 4), and ESP whose SPI is that of its
/// group frames (16 bits at offset 0).
pub(super) fn vnet_filter(vnet: VnetId) -> [Instruction; 9] {
    [
        (LOAD_B, 0, 0, PAYLOAD),
        (AND, 0, 0, 0xf0),
        (JUMP_EQUAL, 0, 2, 0x40),
        (LOAD_W, 0, 0, PAYLOAD + 4),
        (JUMP_EQUAL, 2, 3, vnet.get()),
        (LOAD_H, 0, 0, PAYLOAD),
        (JUMP_EQUAL, 0, 1, esp::group_prefix(vnet) >> 16),
        (RETURN, 0, 0, WHOLE),
        (RETURN, 0, 0, NOTHING),
    ]
}

/// Gives a socket a filter in place of the one that it has.
///
/// # Errors
/// The system's: the filter is locked, for example.
pub(super) fn attach_filter(socket: &Socket, filter: &[Instruction]) -> io::Result<()> {
    let instruction = |&(code, jt, jf, k): &Instruction| SockFilter::new(code, jt, jf, k);
    socket.attach_filter(&filter.iter().map(instruction).collect::<Vec<_>>())
}
