//! The sealed parts of handshake messages, and the additions: a host's credential, and extensions.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +---------------------------------------------------------------+
//! |  INIT: time, ms since 1970 (64)                               |
//! |                                                               |
//! +---------------------------------------------------------------+
//! |  sender's number of the session (32)                          |
//! +---------------------------------------------------------------+
//! |  flags (32)                                                   |
//! +---------------+---------------+-------------------------------+ --
//! | words (8)     |  kind (8)     |  length (16), at most 512     |  | additions
//! +---------------+---------------+-------------------------------+  |
//! |  credential ...                                               |  |
//! |                       zeros, up to the end of the word        |  |
//! +---------------------------------------------------------------+  |
//! |  extensions (their length: words), 32 at most ..                    |  |
//! +---------------------------------------------------------------+ --
//! |  INIT: zeros, up to 660 bytes in all                          |
//! +---------------------------------------------------------------+
//! ```
//!
//! * `kind`, `length`: those of the credential, which can prove more about a host than that it
//!   holds the vnet's key. Kind 0 means that there is no credential, and has length 0; no other
//!   kind is defined yet. A receiver that requires no credential ignores kinds that it does not
//!   know.
//! * `words`: length of the extensions ([`crate::wire::extension`]). None is defined yet.
//!
//! A credential with a signature signs Noise's handshake hash: in RESPONSE the hash after the INIT,
//! in CONFIRM the hash after the RESPONSE. The credential in the INIT can only announce one.

use crate::wire::ParseError;
use crate::wire::extension::Extensions;
use crate::wire::reader::Reader;

/// Longest credential, in bytes.
pub const MAX_CREDENTIAL_LEN: usize = 512;
/// Most words of extensions.
const MAX_WORDS: u8 = 32;
/// Length of a word, in bytes.
const WORD: usize = 4;
/// Length of additions without credential and extensions, in bytes.
pub const MIN_ADDITIONS_LEN: usize = WORD;
/// Length of the longest additions, in bytes.
pub const MAX_ADDITIONS_LEN: usize =
    MIN_ADDITIONS_LEN + MAX_CREDENTIAL_LEN + MAX_WORDS as usize * WORD;
/// Length of what precedes the additions in an INIT, in bytes.
const INIT_FIXED_LEN: usize = 16;
/// Length of what precedes the additions in a RESPONSE, in bytes.
pub(super) const RESPONSE_FIXED_LEN: usize = 8;
/// Length of what an INIT seals, in bytes.
pub const INIT_PAYLOAD_LEN: usize = INIT_FIXED_LEN + MAX_ADDITIONS_LEN;

/// Flag: the sender has instructions for AES.
pub const FLAG_AES: u32 = 1;

/// Says who a host is, beside its holding the vnet's key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Credential<'a> {
    kind: u8,
    value: &'a [u8],
}

impl<'a> Credential<'a> {
    /// None.
    pub const NONE: Self = Self { kind: 0, value: &[] };

    /// One of a kind. `None` if it is too long, or of kind 0 and not empty.
    pub const fn new(kind: u8, value: &'a [u8]) -> Option<Self> {
        let is_one = value.len() <= MAX_CREDENTIAL_LEN && (kind != 0 || value.is_empty());
        if is_one { Some(Self { kind, value }) } else { None }
    }

    /// Its kind; 0 is none.
    pub const fn kind(&self) -> u8 {
        self.kind
    }

    /// Its bytes.
    pub const fn value(&self) -> &'a [u8] {
        self.value
    }
}

/// Credential and extensions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Additions<'a> {
    /// The sender's.
    pub credential: Credential<'a>,
    /// At most 128 bytes; more are not emitted.
    pub extensions: Extensions<'a>,
}

impl<'a> Additions<'a> {
    /// None.
    pub const NONE: Self = Self { credential: Credential::NONE, extensions: Extensions::NONE };

    /// Appends the bytes.
    pub fn emit(&self, out: &mut Vec<u8>) {
        let Credential { kind, value } = self.credential;
        let words = u8::try_from(self.extensions.words()).ok().filter(|words| *words <= MAX_WORDS);
        let [high, low] = u16::try_from(value.len()).unwrap_or(u16::MAX).to_be_bytes();
        out.extend_from_slice(&[words.unwrap_or(0), kind, high, low]);
        out.extend_from_slice(value);
        out.extend_from_slice(zeros_behind(value.len()));
        if words.is_some() {
            out.extend_from_slice(self.extensions.bytes());
        }
    }

    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, ParseError> {
        let (words, kind, len) = (reader.u8()?, reader.u8()?, usize::from(reader.u16()?));
        if words > MAX_WORDS || len > MAX_CREDENTIAL_LEN {
            return Err(ParseError::Value);
        }
        let credential = Credential::new(kind, reader.bytes(len)?).ok_or(ParseError::Value)?;
        let zeros = zeros_behind(len);
        if reader.bytes(zeros.len())? != zeros {
            return Err(ParseError::Reserved);
        }
        Ok(Self { credential, extensions: reader.extensions(words)? })
    }
}

/// What fills the last word of a credential of this length.
fn zeros_behind(len: usize) -> &'static [u8] {
    match len % WORD {
        1 => &[0; 3],
        2 => &[0; 2],
        3 => &[0; 1],
        _ => &[],
    }
}

/// What an INIT seals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Init<'a> {
    /// The initiator's clock, milliseconds since 1970.
    pub time_ms: u64,
    /// The initiator's number of the session.
    pub number: u32,
    /// See [`FLAG_AES`].
    pub flags: u32,
    /// The initiator's.
    pub additions: Additions<'a>,
}

impl<'a> Init<'a> {
    /// The bytes.
    pub fn emit(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(INIT_PAYLOAD_LEN);
        out.extend_from_slice(&self.time_ms.to_be_bytes());
        out.extend_from_slice(&self.number.to_be_bytes());
        out.extend_from_slice(&self.flags.to_be_bytes());
        self.additions.emit(&mut out);
        out.resize(INIT_PAYLOAD_LEN, 0);
        out
    }

    /// Parses the opened bytes.
    ///
    /// # Errors
    /// The fault.
    pub fn parse(bytes: &'a [u8; INIT_PAYLOAD_LEN]) -> Result<Self, ParseError> {
        let mut reader = Reader::new(bytes);
        let (time_ms, number, flags) = (reader.u64()?, reader.u32()?, reader.u32()?);
        let additions = Additions::read(&mut reader)?;
        if reader.rest().iter().any(|zero| *zero != 0) {
            return Err(ParseError::Reserved);
        }
        Ok(Self { time_ms, number, flags, additions })
    }
}

/// The sealed part of a RESPONSE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response<'a> {
    /// The responder's number of the session.
    pub number: u32,
    /// See [`FLAG_AES`].
    pub flags: u32,
    /// The responder's.
    pub additions: Additions<'a>,
}

impl<'a> Response<'a> {
    /// The bytes.
    pub fn emit(&self) -> Vec<u8> {
        let mut out = self.number.to_be_bytes().to_vec();
        out.extend_from_slice(&self.flags.to_be_bytes());
        self.additions.emit(&mut out);
        out
    }

    /// Parses the opened bytes.
    ///
    /// # Errors
    /// The fault.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let mut reader = Reader::new(bytes);
        let (number, flags) = (reader.u32()?, reader.u32()?);
        let additions = Additions::read(&mut reader)?;
        reader.end()?;
        Ok(Self { number, flags, additions })
    }
}
