//! Handshake messages: how two hosts agree on keys for a vnet.
//!
//! One UDP datagram each, between the hosts' VARP addresses (port [`super::varp::PORT`]). The first
//! two octets set them apart from VARP.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +---------------+---------------+---------------+---------------+
//! |   'V' 0x56    |   'K' 0x4B    |  version = 1  |     type      |  0
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
//! |  first MAC (128): of all before it, by all who hold the key   |
//! +---------------------------------------------------------------+
//! |  second MAC (128), only in INIT: zero, or made with a cookie  |
//! +---------------------------------------------------------------+
//!
//! type  name      from       body (bytes)
//!    1  INIT      initiator  ephemeral key (32), sealed {time ms (64), number (32), flags (32)},
//!                            tag (16)
//!    2  RESPONSE  responder  ephemeral key (32), sealed {number (32), flags (32)}, tag (16)
//!    3  CONFIRM   initiator  MAC with a key of the session (16)
//!    4  ACK       responder  MAC with a key of the session (16)
//!    5  COOKIE    responder  cookie (16), first MAC of the INIT that it answers (16)
//!
//! token: a word of the responder's, 0 for none, that an INIT with a cookie's MAC repeats
//! flags: 1 the sender has instructions for AES; all others are ignored
//! ```
//!
//! Each type has one length, and no answer is longer than an INIT, so that nobody's traffic is
//! multiplied. Flags that are not known are how later versions add things.

use super::{ParseError, VnetId};

/// The first two bytes.
pub const MAGIC: [u8; 2] = *b"VK";
/// Version of the format.
pub const VERSION: u8 = 1;
/// Length of what all begin with, in bytes.
pub const HEADER_LEN: usize = 20;
/// Length of a MAC, in bytes.
pub const MAC_LEN: usize = 16;
/// Length of an ephemeral public key, in bytes.
pub const EPHEMERAL_LEN: usize = 32;
/// Length of what an INIT seals, in bytes.
pub const INIT_PAYLOAD_LEN: usize = 16;
/// Length of what a RESPONSE seals, in bytes.
pub const RESPONSE_PAYLOAD_LEN: usize = 8;
/// Length of an INIT's Noise message, in bytes.
pub const INIT_NOISE_LEN: usize = EPHEMERAL_LEN + INIT_PAYLOAD_LEN + 16;
/// Length of a RESPONSE's Noise message, in bytes.
pub const RESPONSE_NOISE_LEN: usize = EPHEMERAL_LEN + RESPONSE_PAYLOAD_LEN + 16;
/// The longest message, in bytes: an INIT.
pub const MAX_LEN: usize = HEADER_LEN + INIT_NOISE_LEN + 2 * MAC_LEN;

/// Where a kernel filter finds the type (one byte).
pub const KIND_OFFSET: usize = 3;
/// Where a kernel filter finds an INIT's token (four bytes).
pub const TOKEN_OFFSET: usize = 16;

/// Flag: the sender has instructions for AES.
pub const FLAG_AES: u32 = 1;

/// What a message is.
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

    /// Length of its body, in bytes.
    pub const fn body_len(self) -> usize {
        match self {
            Self::Init => INIT_NOISE_LEN,
            Self::Response => RESPONSE_NOISE_LEN,
            Self::Confirm | Self::Ack => MAC_LEN,
            Self::Cookie => 2 * MAC_LEN,
        }
    }

    /// Length of the message, in bytes.
    pub const fn message_len(self) -> usize {
        let macs = if matches!(self, Self::Init) { 2 } else { 1 };
        HEADER_LEN + self.body_len() + macs * MAC_LEN
    }
}

/// What all messages begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the message is.
    pub kind: Kind,
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
    /// The bytes.
    pub fn emit(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let start = u32::from_be_bytes([MAGIC[0], MAGIC[1], VERSION, self.kind.code()]);
        let words = [start, self.vnet.get(), self.key_id, self.sender, self.receiver];
        for (place, word) in bytes.chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_be_bytes());
        }
        bytes
    }
}

/// A checked view of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// The header.
    pub header: Header,
    /// What the first MAC covers.
    pub covered: &'a [u8],
    /// By type.
    pub body: &'a [u8],
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
    /// What is wrong; a message has exactly the length of its type.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let (header, _) = bytes.split_first_chunk::<HEADER_LEN>().ok_or(ParseError::Truncated)?;
        let [m0, m1, version, code, words @ ..] = *header;
        if [m0, m1] != MAGIC {
            return Err(ParseError::Magic);
        }
        if version != VERSION {
            return Err(ParseError::Version);
        }
        let kind =
            Kind::ALL.into_iter().find(|kind| kind.code() == code).ok_or(ParseError::Type)?;
        match bytes.len() {
            len if len < kind.message_len() => return Err(ParseError::Truncated),
            len if len > kind.message_len() => return Err(ParseError::Trailing),
            _ => {}
        }
        let mut words = words
            .chunks_exact(4)
            .map(|word| word.iter().fold(0_u32, |number, byte| number << 8 | u32::from(*byte)));
        let mut next = || words.next().ok_or(ParseError::Truncated);
        let vnet = VnetId::new(next()?).ok_or(ParseError::Value)?;
        let header = Header { kind, vnet, key_id: next()?, sender: next()?, receiver: next()? };
        let covered = bytes.get(..HEADER_LEN + kind.body_len()).ok_or(ParseError::Truncated)?;
        let body = covered.get(HEADER_LEN..).ok_or(ParseError::Truncated)?;
        let macs = bytes.get(covered.len()..).ok_or(ParseError::Truncated)?;
        let (first_mac, rest) = macs.split_first_chunk().ok_or(ParseError::Truncated)?;
        Ok(Self { header, covered, body, first_mac, second_mac: rest.first_chunk() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(kind: Kind) -> Header {
        let vnet = VnetId::new(42).unwrap();
        Header { kind, vnet, key_id: 0x0102_0304, sender: 5, receiver: 6 }
    }

    fn message(kind: Kind) -> Vec<u8> {
        let mut bytes = header(kind).emit().to_vec();
        bytes.resize(kind.message_len(), 9);
        bytes
    }

    #[test]
    fn committed_vector() {
        let bytes = [86, 75, 1, 3, 0, 0, 0, 42, 1, 2, 3, 4, 0, 0, 0, 5, 0, 0, 0, 6];
        assert_eq!(header(Kind::Confirm).emit(), bytes);
        for kind in Kind::ALL {
            let bytes = message(kind);
            let parsed = Message::parse(&bytes).unwrap();
            assert_eq!(parsed.header, header(kind));
            assert_eq!(parsed.body.len(), kind.body_len());
            assert_eq!(parsed.second_mac.is_some(), kind == Kind::Init);
            assert!(Message::is_one(&bytes));
        }
    }

    #[test]
    fn no_answer_is_longer_than_what_it_answers() {
        assert!(Kind::ALL.iter().all(|kind| kind.message_len() <= Kind::Init.message_len()));
        assert_eq!(Kind::Init.message_len(), MAX_LEN);
        assert!(Kind::Ack.message_len() <= Kind::Confirm.message_len());
    }

    #[test]
    fn lengths_are_exact_and_faults_named() {
        for kind in Kind::ALL {
            let bytes = message(kind);
            for len in 0..bytes.len() {
                assert_eq!(Message::parse(&bytes[..len]), Err(ParseError::Truncated));
            }
            let longer = [&bytes[..], &[0]].concat();
            assert_eq!(Message::parse(&longer), Err(ParseError::Trailing));
        }
        let with = |at: usize, value| {
            let mut bytes = message(Kind::Ack);
            bytes[at] = value;
            Message::parse(&bytes).unwrap_err()
        };
        assert_eq!(with(1, 0x41), ParseError::Magic);
        assert_eq!(with(2, 2), ParseError::Version);
        assert_eq!(with(3, 6), ParseError::Type);
        assert_eq!(with(7, 0), ParseError::Value);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Message::parse(&[&MAGIC[..], &[VERSION], &bytes].concat());
        }
    }
}
