//! The classic BPF filters of sockets: which datagrams each of them receives.

use std::io;

use socket2::{SockFilter, Socket};

use super::super::bpf::{AND, JUMP_EQUAL, JUMP_SET, LOAD_B, LOAD_H, LOAD_W, PAYLOAD, RETURN};
use super::vnet_search;
use crate::sys::sockopt::Instruction;
use crate::wire::{VnetId, encap, esp, hello, varp};

/// A filter passes the whole datagram, or drops it.
pub(super) const WHOLE: u32 = u32::MAX;
/// See [`WHOLE`].
pub(super) const NOTHING: u32 = 0;

/// Passes nothing.
pub(super) fn nothing_filter() -> [Instruction; 1] {
    [(RETURN, 0, 0, NOTHING)]
}

/// Passes hello, and VARP about these vnets, which are in ascending order, in at most `most`
/// instructions; if that is too few, VARP about some vnets between them as well. Messages of other
/// versions pass, so that varpd can name their sender.
///
/// No rule of the mapper needs messages to the group about a vnet that has no vif here, live or
/// kept: it has no claim to defend, no mapping to keep, and a clock only while it has vifs. Its
/// next vif passes the filter before it claims its MAC. After the last vif of a vnet is forgotten,
/// the host no longer hears where that vif went, and answers the host that asks it alone with
/// "absent", upon which that host asks the group.
pub(super) fn varp_filter(vnets: &[VnetId], most: usize) -> Vec<Instruction> {
    let mut filter = vec![
        (LOAD_H, 0, 0, PAYLOAD),
        (JUMP_EQUAL, 0, 1, u16::from_be_bytes(hello::MAGIC).into()),
        (RETURN, 0, 0, WHOLE),
        (JUMP_EQUAL, 1, 0, u16::from_be_bytes(varp::MAGIC).into()),
        (RETURN, 0, 0, NOTHING),
        (LOAD_B, 0, 0, PAYLOAD + varp::VERSION_OFFSET as u32),
        (JUMP_EQUAL, 1, 0, varp::VERSION.into()),
        (RETURN, 0, 0, WHOLE),
        (LOAD_W, 0, 0, PAYLOAD + varp::VNET_OFFSET as u32),
    ];
    let room = most.saturating_sub(filter.len());
    filter.extend(vnet_search::program(vnets, room));
    filter
}

/// Passes beacons: hello, of type HELLO, with flag B.
pub(super) fn beacon_filter() -> [Instruction; 8] {
    [
        (LOAD_H, 0, 0, PAYLOAD),
        (JUMP_EQUAL, 0, 5, u16::from_be_bytes(hello::MAGIC).into()),
        (LOAD_B, 0, 0, PAYLOAD + hello::TYPE_OFFSET as u32),
        (JUMP_EQUAL, 0, 3, hello::HELLO.into()),
        (LOAD_H, 0, 0, PAYLOAD + hello::FLAGS_OFFSET as u32),
        (JUMP_SET, 0, 1, hello::Flags::BEACON.0.into()),
        (RETURN, 0, 0, WHOLE),
        (RETURN, 0, 0, NOTHING),
    ]
}

/// Passes tunnelled frames of one vnet, and ESP whose SPI, the first 32 bits, has the upper half of
/// its group frames.
pub(super) fn vnet_filter(vnet: VnetId) -> [Instruction; 9] {
    [
        (LOAD_B, 0, 0, PAYLOAD + encap::VERSION_OFFSET as u32),
        (AND, 0, 0, 0xf0),
        (JUMP_EQUAL, 0, 2, (encap::VERSION << 4) as u32),
        (LOAD_W, 0, 0, PAYLOAD + encap::VNET_OFFSET as u32),
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
