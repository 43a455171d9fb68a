//! Classic BPF: opcodes and offsets of the programs by which the kernel filters and sorts
//! datagrams.
//!
//! The numbers are those of linux/bpf_common.h and linux/filter.h. A program consists of
//! [`Instruction`]s: opcode, the number of instructions to skip if a condition holds, the same if
//! it does not, and a constant (k). A is the accumulator, X the index register.
//!
//! [`Instruction`]: crate::sys::sockopt::Instruction

#![forbid(unsafe_code)]

/// The longest program that the kernel takes (BPF_MAXINSNS), in instructions.
pub(super) const MOST_INSTRUCTIONS: usize = 4096;

/// Offset of the payload in the filter of a UDP socket, which sees a datagram from its UDP header
/// on.
pub(super) const PAYLOAD: u32 = 8;
/// Offsets from here on are counted from the IP header (SKF_NET_OFF).
pub(super) const IP_HEADER: u32 = 0xfff0_0000;

/// A = the byte at offset k. A load past the end of a datagram ends the program with 0.
pub(super) const LOAD_B: u16 = 0x30;
/// A = the half word (16 bits) at offset k.
pub(super) const LOAD_H: u16 = 0x28;
/// A = the half word at offset X + k.
pub(super) const LOAD_H_AT_X: u16 = 0x48;
/// A = the word (32 bits) at offset k.
pub(super) const LOAD_W: u16 = 0x20;
/// A = the length of what the program sees.
pub(super) const LOAD_LEN: u16 = 0x80;
/// X = k.
pub(super) const X_CONSTANT: u16 = 0x01;
/// X = A.
pub(super) const X_FROM_A: u16 = 0x07;
/// X = scratch word k.
pub(super) const X_LOAD: u16 = 0x61;
/// X = the length of the IPv4 header at offset k.
pub(super) const X_HEADER_LEN: u16 = 0xb1;
/// Scratch word k = A.
pub(super) const STORE: u16 = 0x02;

/// A = A & k.
pub(super) const AND: u16 = 0x54;
/// A = A + X.
pub(super) const ADD_X: u16 = 0x0c;
/// A = A ^ X.
pub(super) const XOR_X: u16 = 0xac;
/// A = A * k.
pub(super) const MULTIPLY: u16 = 0x24;
/// A = A % k.
pub(super) const MODULO: u16 = 0x94;
/// A = A >> k.
pub(super) const SHIFT_RIGHT: u16 = 0x74;

/// Skips k instructions: other jumps skip 255 at most.
pub(super) const JUMP: u16 = 0x05;
/// Whether A > k.
pub(super) const JUMP_ABOVE: u16 = 0x25;
/// Whether A >= k.
pub(super) const JUMP_AT_LEAST: u16 = 0x35;
/// Whether A = k.
pub(super) const JUMP_EQUAL: u16 = 0x15;
/// Whether A = X.
pub(super) const JUMP_EQUAL_X: u16 = 0x1d;
/// Whether A has a bit of k.
pub(super) const JUMP_SET: u16 = 0x45;
/// Ends the program: a filter passes that many bytes of a datagram, what sorts names the socket.
pub(super) const RETURN: u16 = 0x06;
