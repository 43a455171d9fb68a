//! Which queue pair gets a datagram: the sender's queue pair decides, so that flows stay on one.
//!
//! ```text
//!     sender                                              receiver
//!     pair 0 ── from port ...0 ──┐                    ┌── pair 0
//!     pair 1 ── from port ...1 ──┼── care-of address ─┼── pair 1    pair = (port mod 16
//!     pair 2 ── from port ...2 ──┘    (one port)      └── pair 2            + host) mod pairs
//! ```
//!
//! The sockets of a vif's queue pairs share one port (`SO_REUSEPORT`), and the kernel would choose
//! among them by a hash of addresses and ports. If all of a vif left from its care-of address, that
//! hash would be the same for all its flows. What is inside a datagram can't decide either: a bundle,
//! or a run of datagrams that the kernel has put together (UDP_GRO), holds frames of many flows. But
//! a guest keeps a flow on one of its queue pairs, so the pair is what flows have in common.
//!
//! Therefore a vif with several pairs sends unicast frames from a socket of its own for each, at a
//! port whose last four bits are the pair's number; receivers do not care where datagrams are from.
//! The underlay's routers and NICs, which spread by addresses and ports, see several flows instead of
//! one. Group frames leave from the care-of address all the same, by which the sender knows its own.
//!
//! A classic BPF program at the receiving sockets (`SO_ATTACH_REUSEPORT_CBPF`, which needs no
//! privilege) then spreads a sender's pairs over the own ones, in turn. The sender's host is added so
//! that the first pairs of many do not meet in one. Vifs with one pair send from their care-of
//! address and are spread by chance. Only pairs that run count: a guest need not use all that it is
//! offered (its firmware never does), and what came to the others would wait in vain.

#![forbid(unsafe_code)]

use std::net::IpAddr;

use super::bpf::{
    ADD_X, AND, IP_HEADER, JUMP_EQUAL, LOAD_H, LOAD_H_AT_X, MODULO, RETURN, STORE, X_HEADER_LEN,
    X_LOAD,
};
use crate::sys::sockopt::Instruction;
use crate::wire::control::MAX_QUEUE_PAIRS;

/// Ports of a vif's pairs differ in as many values of their last bits: there are 16 pairs at most.
pub const PAIRS: u16 = MAX_QUEUE_PAIRS as u16;

/// Half words (16 bits) of the IP header that matter: of the source address, the last.
const V4_SOURCE: u32 = IP_HEADER + 14;
const V6_SOURCE: u32 = IP_HEADER + 22;
/// Length of the IPv6 header, behind which the source port is: what comes here has no others.
const V6_LEN: u32 = 40;

/// The program for sockets that were bound to `address` in the order of their pairs; bit n of
/// `running`: pair n runs. `None` if none does.
pub fn program(address: IpAddr, running: u64) -> Option<Vec<Instruction>> {
    let pairs: Vec<u32> = (0..u32::from(PAIRS)).filter(|pair| running >> pair & 1 == 1).collect();
    let (last, others) = pairs.split_last()?;
    let mut program = match address {
        IpAddr::V4(_) => vec![(X_HEADER_LEN, 0, 0, IP_HEADER), (LOAD_H_AT_X, 0, 0, IP_HEADER)],
        IpAddr::V6(_) => vec![(LOAD_H, 0, 0, IP_HEADER + V6_LEN)],
    };
    let source = if address.is_ipv4() { V4_SOURCE } else { V6_SOURCE };
    program.extend([
        (AND, 0, 0, u32::from(PAIRS) - 1),
        (STORE, 0, 0, 0),
        (LOAD_H, 0, 0, source),
        (X_LOAD, 0, 0, 0),
        (ADD_X, 0, 0, 0),
        (MODULO, 0, 0, u32::try_from(pairs.len()).unwrap_or(1)),
    ]);
    for (turn, pair) in (0..).zip(others) {
        program.extend([(JUMP_EQUAL, 0, 1, turn), (RETURN, 0, 0, *pair)]);
    }
    program.push((RETURN, 0, 0, *last));
    Some(program)
}

/// Whether a socket at `port` is one to send from for a pair.
pub fn suits(port: u16, pair: u8) -> bool {
    port % PAIRS == u16::from(pair)
}
