//! Handshake messages, by which two hosts agree on keys for a vnet.
//!
//! Each is one UDP datagram between the hosts' VARP addresses (port [`super::varp::PORT`]). The
//! first two octets distinguish them from VARP.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +---------------+---------------+---------------+---------------+
//! |   'V' 0x56    |   'K' 0x4B    |  version = 2  |     type      |  0
//! +---------------+---------------+---------------+---------------+
//! |                          vnet id (32)                         |  4
//! +---------------------------------------------------------------+
//! |                          key id (32)                          |  8
//! +---------------------------------------------------------------+
//! |   sender's number of the session (32; 19 used); COOKIE: token | 12
//! +---------------------------------------------------------------+
//! |   receiver's number of the session; INIT: token, or 0         | 16
//! +---------------------------------------------------------------+
//! |  body, by type ...                                            | 20
//! +---------------------------------------------------------------+
//! |  first MAC (128) of all octets before it, with the vnet's key |
//! +---------------------------------------------------------------+
//! |  second MAC (128), only in INIT: zero, or made with a cookie  |
//! +---------------------------------------------------------------+
//!
//! type  name      from       body (bytes)
//!    1  INIT      initiator  initiator's name (22), 0 (2), ephemeral key (32),
//!                            sealed {time ms (8), number (4), flags (4), additions, zeros: 660}, tag (16)
//!    2  RESPONSE  responder  ephemeral key (32), sealed {number (4), flags (4), additions}, tag (16)
//!    3  CONFIRM   initiator  additions, MAC with a key of the session (16)
//!    4  ACK       responder  MAC with a key of the session (16)
//!    5  COOKIE    responder  cookie (16), first MAC of the INIT that it answers (16)
//!
//! token: a word chosen by the responder, or 0, that an INIT with a cookie's MAC repeats
//! flags: 1 the sender has instructions for AES; receivers ignore all others
//! ```
//!
//! The name ([`super::name`]) is that of a host, with port 0. [`payload`] has the sealed parts, and
//! the additions, which hold a credential and extensions. The MAC in CONFIRM and ACK covers all
//! octets before it.
//!
//! An INIT is always as long as the longest message, so that no answer is longer than its question,
//! and hosts do not amplify traffic.

pub mod payload;
#[cfg(test)]
mod tests;

use std::ops::RangeInclusive;

use self::payload::{
    Additions, INIT_PAYLOAD_LEN, MAX_ADDITIONS_LEN, MIN_ADDITIONS_LEN, RESPONSE_FIXED_LEN,
};
use super::name::{self, Name};
use super::reader::Reader;
use super::{ParseError, VnetId};

/// The first two bytes.
pub const MAGIC: [u8; 2] = *b"VK";
/// Version of the format.
pub const VERSION: u8 = 2;
/// Length of what all begin with, in bytes.
pub const HEADER_LEN: usize = 20;
/// Length of a MAC, in bytes.
pub const MAC_LEN: usize = 16;
/// Length of an ephemeral public key, in bytes.
pub const EPHEMERAL_LEN: usize = 32;
/// Length of the tag after the sealed bytes.
const TAG_LEN: usize = 16;
/// Length of the name in an INIT with the zeros behind it, in bytes.
const NAME_LEN: usize = name::LEN.next_multiple_of(4);
/// Length of an INIT's Noise message, in bytes.
pub const INIT_NOISE_LEN: usize = EPHEMERAL_LEN + INIT_PAYLOAD_LEN + TAG_LEN;
/// Length of a RESPONSE's Noise message without additions, in bytes.
const RESPONSE_NOISE_LEN: usize = EPHEMERAL_LEN + RESPONSE_FIXED_LEN + TAG_LEN;
/// The longest message, in bytes: an INIT.
pub const MAX_LEN: usize = HEADER_LEN + NAME_LEN + INIT_NOISE_LEN + 2 * MAC_LEN;

/// Where a kernel filter finds the version (one byte).
pub const VERSION_OFFSET: usize = 2;
/// Where a kernel filter finds the type (one byte).
pub const KIND_OFFSET: usize = 3;
/// Where a kernel filter finds an INIT's token (four bytes).
pub const TOKEN_OFFSET: usize = 16;

/// The type of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Begins a handshake.
    Init,
    /// Answers it.
    Response,
    /// Proves that the initiator is there now.
    Confirm,
    /// Says that the confirmation arrived.
    Ack,
    /// Asks the initiator to prove first that it receives at its address.
    Cookie,
}

impl Kind {
    /// All.
    pub const ALL: [Self; 5] = [Self::Init, Self::Response, Self::Confirm, Self::Ack, Self::Cookie];

    /// Its number in messages.
    pub const fn code(self) -> u8 {
        match self {
            Self::Init => 1,
            Self::Response => 2,
            Self::Confirm => 3,
            Self::Ack => 4,
            Self::Cookie => 5,
        }
    }

    /// Lengths that its body can have, in bytes.
    const fn body_lens(self) -> RangeInclusive<usize> {
        let (min, max) = (MIN_ADDITIONS_LEN, MAX_ADDITIONS_LEN);
        match self {
            Self::Init => NAME_LEN + INIT_NOISE_LEN..=NAME_LEN + INIT_NOISE_LEN,
            Self::Response => RESPONSE_NOISE_LEN + min..=RESPONSE_NOISE_LEN + max,
            Self::Confirm => MAC_LEN + min..=MAC_LEN + max,
            Self::Ack => MAC_LEN..=MAC_LEN,
            Self::Cookie => 2 * MAC_LEN..=2 * MAC_LEN,
        }
    }

    /// Length of the MACs behind its body, in bytes.
    const fn macs_len(self) -> usize {
        if matches!(self, Self::Init) { 2 * MAC_LEN } else { MAC_LEN }
    }

    /// Lengths that the message can have, in bytes.
    pub const fn message_lens(self) -> RangeInclusive<usize> {
        let (body, others) = (self.body_lens(), HEADER_LEN + self.macs_len());
        *body.start() + others..=*body.end() + others
    }
}

/// What all messages begin with, beside their type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// For which vnet.
    pub vnet: VnetId,
    /// Which of the vnet's keys.
    pub key_id: u32,
    /// The session's number at the sender; in a COOKIE a token.
    pub sender: u32,
    /// The session's number at the receiver; in an INIT the token that came with its cookie, or 0.
    pub receiver: u32,
}

impl Header {
    /// The bytes, in a message of this type.
    pub fn emit(&self, kind: Kind) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let start = u32::from_be_bytes([MAGIC[0], MAGIC[1], VERSION, kind.code()]);
        let words = [start, self.vnet.get(), self.key_id, self.sender, self.receiver];
        for (place, word) in bytes.chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_be_bytes());
        }
        bytes
    }
}

/// The contents of a message, by type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body<'a> {
    /// See [`Kind::Init`].
    Init {
        /// The initiator.
        name: Name,
        /// Noise's first message; it seals a [`payload::Init`].
        noise: &'a [u8; INIT_NOISE_LEN],
    },
    /// See [`Kind::Response`].
    Response {
        /// Noise's second message; it seals a [`payload::Response`].
        noise: &'a [u8],
    },
    /// See [`Kind::Confirm`].
    Confirm {
        /// The initiator's.
        additions: Additions<'a>,
        /// Of all before it, with a key of the session.
        mac: &'a [u8; MAC_LEN],
    },
    /// See [`Kind::Ack`].
    Ack {
        /// Of all before it, with a key of the session.
        mac: &'a [u8; MAC_LEN],
    },
    /// See [`Kind::Cookie`].
    Cookie {
        /// The cookie.
        cookie: &'a [u8; MAC_LEN],
        /// The first MAC of the INIT that it answers.
        init_mac: &'a [u8; MAC_LEN],
    },
}

impl<'a> Body<'a> {
    /// The type of the message.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Init { .. } => Kind::Init,
            Self::Response { .. } => Kind::Response,
            Self::Confirm { .. } => Kind::Confirm,
            Self::Ack { .. } => Kind::Ack,
            Self::Cookie { .. } => Kind::Cookie,
        }
    }

    /// Appends the bytes.
    pub fn emit(&self, out: &mut Vec<u8>) {
        match self {
            Self::Init { name, noise } => {
                name.emit(out);
                out.extend_from_slice(&[0; NAME_LEN - name::LEN]);
                out.extend_from_slice(*noise);
            }
            Self::Response { noise } => out.extend_from_slice(noise),
            Self::Confirm { additions, mac } => {
                additions.emit(out);
                out.extend_from_slice(*mac);
            }
            Self::Ack { mac } => out.extend_from_slice(*mac),
            Self::Cookie { cookie, init_mac } => {
                out.extend_from_slice(*cookie);
                out.extend_from_slice(*init_mac);
            }
        }
    }

    fn parse(kind: Kind, bytes: &'a [u8]) -> Result<Self, ParseError> {
        let mut reader = Reader::new(bytes);
        let body = match kind {
            Kind::Init => {
                let name = reader.name()?;
                if name.port() != 0 {
                    return Err(ParseError::Value);
                }
                reader.zero::<{ NAME_LEN - name::LEN }>()?;
                Self::Init { name, noise: reader.chunk()? }
            }
            Kind::Response => return Ok(Self::Response { noise: bytes }),
            Kind::Confirm => {
                Self::Confirm { additions: Additions::read(&mut reader)?, mac: reader.chunk()? }
            }
            Kind::Ack => Self::Ack { mac: reader.chunk()? },
            Kind::Cookie => Self::Cookie { cookie: reader.chunk()?, init_mac: reader.chunk()? },
        };
        reader.end()?;
        Ok(body)
    }
}

/// A checked view of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// The header.
    pub header: Header,
    /// Its contents.
    pub body: Body<'a>,
    /// The bytes that the first MAC covers.
    pub covered: &'a [u8],
    /// The first MAC.
    pub first_mac: &'a [u8; MAC_LEN],
    /// The second MAC, in an INIT.
    pub second_mac: Option<&'a [u8; MAC_LEN]>,
}

impl<'a> Message<'a> {
    /// Whether a datagram claims to be one of these.
    pub fn is_one(datagram: &[u8]) -> bool {
        datagram.starts_with(&MAGIC)
    }

    /// Views a datagram.
    ///
    /// # Errors
    /// The fault.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let (kind, header) = parse_header(bytes)?;
        let lens = kind.message_lens();
        match bytes.len() {
            len if len < *lens.start() => return Err(ParseError::Truncated),
            len if len > *lens.end() => return Err(ParseError::Trailing),
            _ => {}
        }
        let end = bytes.len() - kind.macs_len();
        let (covered, macs) = bytes.split_at_checked(end).ok_or(ParseError::Truncated)?;
        let body = Body::parse(kind, covered.get(HEADER_LEN..).unwrap_or_default())?;
        let (first_mac, rest) = macs.split_first_chunk().ok_or(ParseError::Truncated)?;
        Ok(Self { header, body, covered, first_mac, second_mac: rest.first_chunk() })
    }
}

fn parse_header(bytes: &[u8]) -> Result<(Kind, Header), ParseError> {
    let mut reader = Reader::new(bytes);
    if reader.array()? != MAGIC {
        return Err(ParseError::Magic);
    }
    if reader.u8()? != VERSION {
        return Err(ParseError::Version);
    }
    let code = reader.u8()?;
    let kind = Kind::ALL.into_iter().find(|kind| kind.code() == code).ok_or(ParseError::Type)?;
    let vnet = VnetId::new(reader.u32()?).ok_or(ParseError::Value)?;
    let (key_id, sender, receiver) = (reader.u32()?, reader.u32()?, reader.u32()?);
    Ok((kind, Header { vnet, key_id, sender, receiver }))
}
