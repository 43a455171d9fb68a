//! Echo and trace: they show whether datagrams pass between two care-of addresses, how long they
//! take, and how long they may be.
//!
//! A message follows an encapsulation header with flag O, on secured vnets inside ESP. It passes
//! the same sockets, ports, keys and filters as frames between the two care-of addresses, and so
//! shows the state of their path. Hosts ask and answer; no message goes to a guest or comes from
//! one.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +---------------------------------------------------------------+
//! |                    the encapsulation header                   |
//! |                         with O alone                          |
//! +---------------+---------------+---------------+---------------+
//! |     type      |  key number   |     slots     |     hops      |  0
//! +---------------+---------------+---------------+---------------+
//! |     longest datagram (16)     |     question's length (16)    |  4
//! +-------------------------------+-------------------------------+
//! |                          nonce (64)                           |  8
//! |                                                               |
//! +---------------------------------------------------------------+
//! |           asked at, microseconds since 1970 (64)              | 16
//! |                                                               |
//! +---------------------------------------------------------------+
//! |           arrived at, microseconds since 1970 (64)            | 24
//! |                                                               |
//! +---------------------------------------------------------------+
//! |           answered at, microseconds since 1970 (64)           | 32
//! |                                                               |
//! +---------------------------------------------------------------+
//! |  HMAC (128), only with a key number                           | 40
//! +---------------------------------------------------------------+
//! |  slots times: a relay, or zeros                               |
//! |       its name (176), MBZ (16)                                |
//! |       passed at, microseconds since 1970 (64)                 |
//! +---------------------------------------------------------------+
//! |  questions only: zeros, up to the length that is tried ...    |
//! +---------------------------------------------------------------+
//!
//! type  name
//!    1  question
//!    2  answer
//! ```
//!
//! * `slots`, `hops`: the number of entries for relays on the way there and back, at most 16, and
//!   the number of entries that relays have filled.
//! * `longest datagram`: the longest IP packet that the sender's vif accepts; 0 if the sender does
//!   not know it, else at least 552.
//! * `question's length`: the length of the question as it arrived, in octets from the type on; 0
//!   in a question.
//! * `nonce`: random, not 0; the answer repeats it.
//! * `asked at`: the time by the clock of the host that asks; the answer repeats it.
//! * `arrived at`, `answered at`: times by the clock of the host that answers; 0 in a question. The
//!   round trip is the time from the question's departure to the answer's arrival, less the time
//!   between these two.
//! * `key number`, HMAC: only a trace has them. HMAC-SHA-256, cut to 128 bits, with
//!   [`Segment::trace`] of the segment key of this number, over octets 0 to 39 with type taken as
//!   1, and with hops, longest datagram, question's length, arrived at and answered at taken as 0.
//!   The answer repeats both. A message without a key number has no slots.
//!
//! An answer goes to the source of its question, through the socket at which that arrived. It has
//! the question's slots and no zeros after them: it is never longer than the question. The zeros
//! test whether a datagram of that length arrives. A vif answers at most 10 questions a second from
//! each source and 100 in total; it drops and counts more. A host accepts an answer only if it
//! repeats the nonce of an open question.
//!
//! A relay that forwards a trace fills the first free slot, if the HMAC is right with a segment key
//! that the relay holds. It forwards all other messages unchanged. The HMAC does not cover the
//! slots: receivers trust each relay about its own place on the path. A relay cannot look into ESP
//! and fills no slot there.

use std::net::Ipv4Addr;

use super::name::{self, Name};
use super::reader::Reader;
use super::{Longest, ParseError};
#[cfg(doc)]
use crate::security::segment::Segment;

/// Length of a message without key number, slots and zeros, in bytes.
pub const LEN: usize = 40;
/// Length of the HMAC, in bytes.
pub const HMAC_LEN: usize = 16;
/// Length of a slot, in bytes.
pub const SLOT_LEN: usize = name::LEN + 2 + 8;
/// Number of slots at most.
pub const MAX_SLOTS: usize = 16;

const QUESTION: u8 = 1;
const ANSWER: u8 = 2;

/// The HMAC of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// Number of the segment key; not 0.
    pub key_number: u8,
    /// The HMAC, not checked.
    pub hmac: [u8; HMAC_LEN],
}

/// A relay on the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The relay.
    pub relay: Name,
    /// When it passed the message on, microseconds since 1970.
    pub passed_us: u64,
}

/// What only questions or only answers have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// Asks for an answer.
    Question {
        /// Number of zeros at the end, in bytes.
        padding: usize,
    },
    /// Answers a question.
    Answer {
        /// Length of the question as it arrived, in bytes.
        question_len: u16,
        /// When it arrived, microseconds since 1970.
        arrived_us: u64,
        /// When the answer was made, microseconds since 1970.
        answered_us: u64,
    },
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The longest IP packet that the sender's vif takes, in bytes; 0: unknown.
    pub longest: u16,
    /// Ties the answer to its question.
    pub nonce: u64,
    /// When the question was made, microseconds since 1970.
    pub asked_us: u64,
    /// Makes it a trace.
    pub proof: Option<Proof>,
    /// Number of slots for relays.
    pub slots: u8,
    /// The relays in them.
    pub hops: Vec<Hop>,
    /// The rest.
    pub body: Body,
}

impl Message {
    /// Parses the bytes after the encapsulation header.
    ///
    /// # Errors
    /// The fault.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut rest = Reader::new(bytes);
        let code = rest.u8()?;
        let (key_number, slots, hops) = (rest.u8()?, rest.u8()?, rest.u8()?);
        if ![QUESTION, ANSWER].contains(&code) {
            return Err(ParseError::Type);
        }
        if usize::from(slots) > MAX_SLOTS || hops > slots || (slots != 0 && key_number == 0) {
            return Err(ParseError::Value);
        }
        let (longest, question_len) = (rest.u16()?, rest.u16()?);
        let (nonce, asked_us) = (rest.u64()?, rest.u64()?);
        let (arrived_us, answered_us) = (rest.u64()?, rest.u64()?);
        if nonce == 0 || (longest != 0 && longest < Longest::least(Ipv4Addr::LOCALHOST.into())) {
            return Err(ParseError::Value);
        }
        let proof = match key_number {
            0 => None,
            key_number => Some(Proof { key_number, hmac: rest.array()? }),
        };
        let hops = rest.slots(slots.into(), hops.into())?;
        let body = match code {
            QUESTION if (question_len, arrived_us, answered_us) != (0, 0, 0) => {
                return Err(ParseError::Reserved);
            }
            QUESTION => Body::Question { padding: rest.padding()? },
            _ => {
                rest.end()?;
                if usize::from(question_len) < bytes.len() {
                    return Err(ParseError::Value);
                }
                Body::Answer { question_len, arrived_us, answered_us }
            }
        };
        Ok(Self { longest, nonce, asked_us, proof, slots, hops, body })
    }

    /// Length of the message, in bytes.
    pub fn len(&self) -> usize {
        let padding = match self.body {
            Body::Question { padding } => padding,
            Body::Answer { .. } => 0,
        };
        let hmac = if self.proof.is_some() { HMAC_LEN } else { 0 };
        LEN + hmac + usize::from(self.slots) * SLOT_LEN + padding
    }

    /// Never: a message has a fixed part.
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// The answer to a question that arrived and is answered at these times; `None` if this is an
    /// answer.
    pub fn answer(&self, longest: u16, arrived_us: u64, answered_us: u64) -> Option<Self> {
        let Body::Question { .. } = self.body else { return None };
        let question_len = u16::try_from(self.len()).ok()?;
        let body = Body::Answer { question_len, arrived_us, answered_us };
        Some(Self { longest, body, ..self.clone() })
    }

    /// A relay enters itself; false if no slot is free.
    #[must_use]
    pub fn enter(&mut self, hop: Hop) -> bool {
        let has_room = self.hops.len() < self.slots.into();
        if has_room {
            self.hops.push(hop);
        }
        has_room
    }

    /// Appends the message to `out`.
    ///
    /// # Panics
    /// When it has more hops than slots, or more than [`MAX_SLOTS`] of them.
    pub fn emit(&self, out: &mut Vec<u8>) {
        let slots = usize::from(self.slots);
        assert!(self.hops.len() <= slots && slots <= MAX_SLOTS, "{slots} slots");
        let end = out.len() + self.len();
        let (code, question_len, arrived_us, answered_us) = match self.body {
            Body::Question { .. } => (QUESTION, 0, 0, 0),
            Body::Answer { question_len, arrived_us, answered_us } => {
                (ANSWER, question_len, arrived_us, answered_us)
            }
        };
        let key_number = self.proof.map_or(0, |proof| proof.key_number);
        let hops = u8::try_from(self.hops.len()).unwrap_or(self.slots);
        out.extend_from_slice(&[code, key_number, self.slots, hops]);
        out.extend_from_slice(&self.longest.to_be_bytes());
        out.extend_from_slice(&question_len.to_be_bytes());
        for number in [self.nonce, self.asked_us, arrived_us, answered_us] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        out.extend(self.proof.iter().flat_map(|proof| proof.hmac));
        for hop in &self.hops {
            hop.relay.emit(out);
            out.extend_from_slice(&[0; 2]);
            out.extend_from_slice(&hop.passed_us.to_be_bytes());
        }
        // Free slots, and the padding of a question.
        out.resize(end, 0);
    }

    /// The message's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.len());
        self.emit(&mut out);
        out
    }

    /// The bytes that the HMAC of a trace covers.
    pub fn covered(&self) -> [u8; LEN] {
        let body = Body::Question { padding: 0 };
        let question = Self { longest: 0, hops: Vec::new(), body, ..self.clone() };
        question.to_bytes().first_chunk().copied().unwrap_or([0; LEN])
    }
}

impl Reader<'_> {
    fn slots(&mut self, slots: usize, hops: usize) -> Result<Vec<Hop>, ParseError> {
        let mut entered = Vec::with_capacity(hops);
        for _ in 0..hops {
            let relay = self.name()?;
            self.zero::<2>()?;
            if relay.port() != 0 {
                return Err(ParseError::Value);
            }
            entered.push(Hop { relay, passed_us: self.u64()? });
        }
        for _ in hops..slots {
            self.zero::<SLOT_LEN>()?;
        }
        Ok(entered)
    }

    /// The rest, which is zeros.
    fn padding(&mut self) -> Result<usize, ParseError> {
        let zeros = self.rest();
        if zeros.iter().any(|zero| *zero != 0) {
            return Err(ParseError::Reserved);
        }
        Ok(zeros.len())
    }
}

#[cfg(test)]
mod tests;
