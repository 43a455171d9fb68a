//! What comes to varpd's own address and port is sorted by the kernel, each class to a socket of its
//! own, so that a flood of one class takes no room from the others.
//!
//! ```text
//!  class      what                                            who can flood it
//!  answer     VARP: reply, correction, absent                 who knows the format
//!  handshake  RESPONSE, CONFIRM, ACK, COOKIE;                 who knows the format
//!             INIT with the token of its address              who receives at that address
//!  question   VARP: request, announcement, another version    who knows the format
//!  hello      HELLO, LIST, also of another version            who knows the format
//!  newcomer   other INITs; handshakes of another version      who knows the format
//!  (none)     all else: wrong magic, version, type, length    anybody; dropped by the kernel
//! ```
//!
//! The sockets share the port (`SO_REUSEPORT`), and a classic BPF program chooses among them. It sees a
//! datagram from its payload on. A program can't drop what is of no class, so that goes to one more
//! socket whose filter lets nothing pass.
//!
//! Nothing depends on a message having come by the right socket: what it is, is looked at again. There
//! is no check of the vnet here: a host is asked, and answers, for vifs of vnets that have left it.

#![forbid(unsafe_code)]

use std::net::IpAddr;

use super::bpf::{
    IP_HEADER, JUMP_ABOVE, JUMP_AT_LEAST, JUMP_EQUAL, JUMP_EQUAL_X, LOAD_B, LOAD_H, LOAD_LEN,
    LOAD_W, MULTIPLY, RETURN, SHIFT_RIGHT, X_CONSTANT, X_FROM_A, XOR_X,
};
use crate::security::handshake::token::{LAST_SHIFT, Mixing, SHIFT, TokenKey};
use crate::sys::sockopt::Instruction;
use crate::wire::{handshake, hello, varp};

/// A class of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// VARP that answers.
    Answer,
    /// Of a handshake with a host that is known to receive at its address, or says to be.
    Handshake,
    /// VARP that asks, and VARP of another version.
    Question,
    /// A handshake's first message, and any of another version.
    Newcomer,
    /// HELLO and LIST.
    Hello,
}

impl Class {
    /// All, in the order in which their sockets are bound.
    pub const ALL: [Self; 5] =
        [Self::Answer, Self::Handshake, Self::Question, Self::Newcomer, Self::Hello];

    /// The place of its socket.
    const fn place(self) -> u32 {
        self as u32
    }
}

/// The place of the socket for what is of no class.
const NONE: u32 = Class::ALL.len() as u32;

/// Where the source address is.
const V4_SOURCE: u32 = IP_HEADER + 12;
const V6_SOURCE: u32 = IP_HEADER + 8;

/// The program for the sockets of [`Class::ALL`] and one more, bound to `address` in that order.
pub fn program(address: IpAddr, key: TokenKey) -> Vec<Instruction> {
    let varp = varp_part();
    let skip = u8::try_from(varp.len()).unwrap_or(u8::MAX);
    let mut program = vec![
        // What is shorter than this fails at the first load behind it, which chooses the first socket;
        // longer messages are measured below.
        (LOAD_LEN, 0, 0, 0),
        (JUMP_AT_LEAST, 1, 0, handshake::HEADER_LEN as u32),
        (RETURN, 0, 0, NONE),
        (LOAD_H, 0, 0, 0),
        (JUMP_EQUAL, 0, skip, magic(varp::MAGIC)),
    ];
    program.extend(varp);
    program.extend(hello_part());
    program.extend(require(magic(handshake::MAGIC)));
    // A message of another version waits with newcomers: its sender is to be named.
    program.extend([
        (LOAD_B, 0, 0, handshake::VERSION_OFFSET as u32),
        (JUMP_EQUAL, 1, 0, handshake::VERSION.into()),
        (RETURN, 0, 0, Class::Newcomer.place()),
    ]);
    program.extend(handshake_part(address, key));
    program
}

/// VARP: the version, the length, the opcode. Messages of other versions wait with questions: their sender
/// is to be named.
fn varp_part() -> Vec<Instruction> {
    let mut part = vec![
        (LOAD_B, 0, 0, varp::VERSION_OFFSET as u32),
        (JUMP_EQUAL, 1, 0, varp::VERSION.into()),
        (RETURN, 0, 0, Class::Question.place()),
    ];
    part.extend([
        (LOAD_LEN, 0, 0, 0),
        (JUMP_ABOVE, 1, 0, varp::MAX_LEN as u32),
        (JUMP_AT_LEAST, 1, 0, varp::LEN as u32),
        (RETURN, 0, 0, NONE),
        (LOAD_B, 0, 0, varp::OPCODE_OFFSET as u32),
    ]);
    for (opcodes, class) in [
        (&[varp::REPLY, varp::CORRECTION, varp::ABSENT][..], Class::Answer),
        (&[varp::REQUEST, varp::ANNOUNCE], Class::Question),
    ] {
        part.extend(opcodes.iter().flat_map(|opcode| choose((*opcode).into(), class.place())));
    }
    part.push((RETURN, 0, 0, NONE));
    part
}

/// Hello: the greatest length.
fn hello_part() -> [Instruction; 5] {
    [
        (JUMP_EQUAL, 0, 4, magic(hello::MAGIC)),
        (LOAD_LEN, 0, 0, 0),
        (JUMP_ABOVE, 1, 0, hello::MAX_LEN as u32),
        (RETURN, 0, 0, Class::Hello.place()),
        (RETURN, 0, 0, NONE),
    ]
}

/// Handshakes: the lengths that each type can have; an INIT is looked at more closely.
fn handshake_part(address: IpAddr, key: TokenKey) -> Vec<Instruction> {
    let mut part = Vec::new();
    for kind in handshake::Kind::ALL.into_iter().filter(|kind| *kind != handshake::Kind::Init) {
        let lens = kind.message_lens();
        part.extend([
            (LOAD_B, 0, 0, handshake::KIND_OFFSET as u32),
            (JUMP_EQUAL, 0, 5, kind.code().into()),
            (LOAD_LEN, 0, 0, 0),
            (JUMP_AT_LEAST, 0, 2, *lens.start() as u32),
            (JUMP_ABOVE, 1, 0, *lens.end() as u32),
            (RETURN, 0, 0, Class::Handshake.place()),
            (RETURN, 0, 0, NONE),
        ]);
    }
    part.push((LOAD_B, 0, 0, handshake::KIND_OFFSET as u32));
    part.extend(require(handshake::Kind::Init.code().into()));
    part.push((LOAD_LEN, 0, 0, 0));
    part.extend(require(handshake::MAX_LEN as u32));
    part.push((LOAD_W, 0, 0, handshake::TOKEN_OFFSET as u32));
    part.extend(choose(0, Class::Newcomer.place()));
    part.extend(token_part(address, key.mixing()));
    part.extend([
        (LOAD_W, 0, 0, handshake::TOKEN_OFFSET as u32),
        (JUMP_EQUAL_X, 0, 1, 0),
        (RETURN, 0, 0, Class::Handshake.place()),
        (RETURN, 0, 0, Class::Newcomer.place()),
    ]);
    part
}

/// X becomes the token of the source address, as [`TokenKey::token`] computes it.
fn token_part(address: IpAddr, Mixing { start, each, last }: Mixing) -> Vec<Instruction> {
    let words = match address {
        IpAddr::V4(_) => V4_SOURCE..V4_SOURCE + 4,
        IpAddr::V6(_) => V6_SOURCE..V6_SOURCE + 16,
    };
    let mix = |factor, shift| {
        [
            (MULTIPLY, 0, 0, factor),
            (X_FROM_A, 0, 0, 0),
            (SHIFT_RIGHT, 0, 0, shift),
            (XOR_X, 0, 0, 0),
            (X_FROM_A, 0, 0, 0),
        ]
    };
    let mut part = vec![(X_CONSTANT, 0, 0, start)];
    for offset in words.step_by(4) {
        part.extend([(LOAD_W, 0, 0, offset), (XOR_X, 0, 0, 0)]);
        part.extend(mix(each, SHIFT));
    }
    part.extend(mix(last, LAST_SHIFT));
    part
}

/// What is not equal is of no class.
fn require(value: u32) -> [Instruction; 2] {
    [(JUMP_EQUAL, 1, 0, value), (RETURN, 0, 0, NONE)]
}

/// What is equal goes there.
fn choose(value: u32, place: u32) -> [Instruction; 2] {
    [(JUMP_EQUAL, 0, 1, value), (RETURN, 0, 0, place)]
}

fn magic(magic: [u8; 2]) -> u32 {
    u16::from_be_bytes(magic).into()
}
