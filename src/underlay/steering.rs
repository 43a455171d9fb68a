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

use crate::sys::sockopt::Instruction;

/// Ports of a vif's pairs differ in as many values of their last bits: there are 16 pairs at most.
pub const PAIRS: u16 = 16;

/// `SKF_NET_OFF` (linux/filter.h): offsets from here on are counted from the IP header.
const IP: u32 = 0xfff0_0000;
/// Half words (16 bits) of the IP header that matter: of the source address, the last.
const V4_SOURCE: u32 = IP + 14;
const V6_SOURCE: u32 = IP + 22;
/// Length of the IPv6 header, behind which the source port is: what comes here has no others.
const V6_LEN: u32 = 40;

/// Loads a half word at a fixed offset, or at one plus X.
const LOAD_H: u16 = 0x28;
const LOAD_H_AT_X: u16 = 0x48;
/// X becomes the length of the IPv4 header.
const X_HEADER_LEN: u16 = 0xb1;
/// To and from a scratch word.
const STORE: u16 = 0x02;
const X_LOAD: u16 = 0x61;
const AND: u16 = 0x54;
const ADD_X: u16 = 0x0c;
const MODULO: u16 = 0x94;
const JUMP_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

/// The program for sockets that were bound to `address` in the order of their pairs; bit n of
/// `running`: pair n runs. `None` if none does.
pub fn program(address: IpAddr, running: u64) -> Option<Vec<Instruction>> {
    let pairs: Vec<u32> = (0..u32::from(PAIRS)).filter(|pair| running >> pair & 1 == 1).collect();
    let (last, others) = pairs.split_last()?;
    let mut program = match address {
        IpAddr::V4(_) => vec![(X_HEADER_LEN, 0, 0, IP), (LOAD_H_AT_X, 0, 0, IP)],
        IpAddr::V6(_) => vec![(LOAD_H, 0, 0, IP + V6_LEN)],
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
