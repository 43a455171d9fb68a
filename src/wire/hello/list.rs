//! Entries of a LIST: a vnet on which the speaker has vifs, and the speaker's settings of it.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +---------------------------------------------------------------+
//! |                         vnet id (32)                          |  0
//! +-------+-------+---------------+-------+-------+---------------+
//! | send  |accept |    cipher     | send  |listen |     flags     |  4
//! +-------+-------+---------------+-------+-------+---------------+
//! |      longest datagram (16)    |           MBZ (16)            |  8
//! +-------------------------------+-------------------------------+
//! |                  key id (32), only with flag K                | 12
//! +---------------------------------------------------------------+
//! |                  tag (128), only with flag K                  | 16
//! |                                                               |
//! +---------------------------------------------------------------+
//! ```
//!
//! * `send`, `accept` (octet 4): the policy under which the speaker sends (0 none, 1 auth, 2 conf),
//!   and the set of those that it accepts (1 none, 2 auth, 4 conf).
//! * `cipher`: the cipher of the group frames that the speaker sends: 0 none, 1 AES-GCM, 2
//!   AES-GMAC, 3 ChaCha20-Poly1305.
//! * `send`, `listen` (octet 6): the group to which the speaker sends frames (1 that of VARP, 2 one
//!   of the vnet), and the set of those at which it listens (1, 2).
//! * `flags`: K 0x01: the speaker has a key for the vnet; key id and tag follow. All others must be
//!   zero.
//! * `longest datagram`: the longest IP packet that each of the vifs accepts; 0 if that is not
//!   known, else at least 552, or 1280 if the sender's address is of IPv6.
//! * `key id`: the key with which the speaker sends.
//! * `tag`: HMAC-SHA-256, cut to 128 bits, with the vnet's hello key, over the sender's name (176),
//!   the message's time (64), its generation (32) and the entry up to the tag.
//!
//! Entries are in ascending order of vnet. Hosts show unknown codes of policy, cipher or group as
//! unknown.

use crate::wire::reader::Reader;
use crate::wire::{ParseError, VnetId};

/// Length of an entry without key id and tag, in bytes.
pub const LEN: usize = 12;
/// Length of an entry with key id and tag, in bytes.
pub const PROVED_LEN: usize = LEN + 4 + TAG_LEN;
/// Length of the tag, in bytes.
pub const TAG_LEN: usize = 16;
const FLAG_KEY: u8 = 1;

/// The one that the speaker sends, and the set of those that it accepts; 4 bits each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The code of the one that is sent.
    pub sent: u8,
    /// Those that are accepted.
    pub accepted: u8,
}

impl Choice {
    const fn octet(self) -> u8 {
        self.sent << 4 | self.accepted & 0xf
    }

    const fn of(octet: u8) -> Self {
        Self { sent: octet >> 4, accepted: octet & 0xf }
    }
}

/// Which key an entry was proved with, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// The vnet's key.
    pub key_id: u32,
    /// The tag, not checked.
    pub tag: [u8; TAG_LEN],
}

/// A vnet, as a speaker has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The vnet.
    pub vnet: VnetId,
    /// Policies by their codes.
    pub policy: Choice,
    /// The suite of group frames, or 0.
    pub cipher: u8,
    /// Groups by their codes.
    pub groups: Choice,
    /// The longest IP packet that each vif takes, in bytes; 0: unknown.
    pub longest: u16,
    /// Key id and tag, if the vnet has a key.
    pub proof: Option<Proof>,
}

impl Entry {
    /// The part that the tag and the list's digest cover: the entry without its tag.
    pub fn covered(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(PROVED_LEN);
        let flags = if self.proof.is_some() { FLAG_KEY } else { 0 };
        out.extend_from_slice(&self.vnet.get().to_be_bytes());
        out.extend_from_slice(&[self.policy.octet(), self.cipher, self.groups.octet(), flags]);
        out.extend_from_slice(&self.longest.to_be_bytes());
        out.extend_from_slice(&[0; 2]);
        if let Some(proof) = self.proof {
            out.extend_from_slice(&proof.key_id.to_be_bytes());
        }
        out
    }

    /// Appends the entry to `out`.
    pub fn emit(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.covered());
        if let Some(proof) = self.proof {
            out.extend_from_slice(&proof.tag);
        }
    }

    /// Length of the entry, in bytes.
    pub const fn len(&self) -> usize {
        if self.proof.is_some() { PROVED_LEN } else { LEN }
    }

    /// Never.
    pub const fn is_empty(&self) -> bool {
        false
    }
}

/// A checked view of entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entries<'a> {
    bytes: &'a [u8],
    count: usize,
}

impl<'a> Entries<'a> {
    /// None.
    pub const NONE: Self = Self { bytes: &[], count: 0 };

    /// Views entries that are all of `bytes`.
    ///
    /// # Errors
    /// `Truncated`, `Reserved` for a flag or field that must be zero, `Value` for vnet 0 or entries
    /// out of order.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let (mut rest, mut count, mut last) = (Reader::new(bytes), 0, None);
        while !rest.rest().is_empty() {
            rest.entry_after(&mut last)?;
            count += 1;
        }
        Ok(Self { bytes, count })
    }

    /// The bytes of these entries.
    ///
    /// # Panics
    /// When they are not in ascending order of vnet.
    pub fn emit(entries: &[Entry]) -> Vec<u8> {
        let is_ascending = entries.is_sorted_by(|one, next| one.vnet < next.vnet);
        assert!(is_ascending, "entries of a list out of order");
        let mut out = Vec::with_capacity(entries.len() * PROVED_LEN);
        entries.iter().for_each(|entry| entry.emit(&mut out));
        out
    }

    /// The bytes.
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Number of entries.
    pub const fn count(&self) -> usize {
        self.count
    }

    /// All, in ascending order of vnet.
    pub fn iter(&self) -> impl Iterator<Item = Entry> + use<'a> {
        let mut rest = Reader::new(self.bytes);
        std::iter::from_fn(move || rest.entry().ok())
    }
}

impl<'a> Reader<'a> {
    /// A list of `count` entries.
    pub(super) fn entries(&mut self, count: u16) -> Result<Entries<'a>, ParseError> {
        let (all, mut last) = (self.rest(), None);
        for _ in 0..count {
            self.entry_after(&mut last)?;
        }
        let (bytes, _) = all.split_at(all.len() - self.rest().len());
        Ok(Entries { bytes, count: count.into() })
    }

    fn entry_after(&mut self, last: &mut Option<VnetId>) -> Result<(), ParseError> {
        let entry = self.entry()?;
        if *last >= Some(entry.vnet) {
            return Err(ParseError::Value);
        }
        *last = Some(entry.vnet);
        Ok(())
    }

    fn entry(&mut self) -> Result<Entry, ParseError> {
        let vnet = VnetId::new(self.u32()?).ok_or(ParseError::Value)?;
        let (policy, cipher) = (Choice::of(self.u8()?), self.u8()?);
        let (groups, flags) = (Choice::of(self.u8()?), self.u8()?);
        let longest = self.u16()?;
        self.zero::<2>()?;
        if flags & !FLAG_KEY != 0 {
            return Err(ParseError::Reserved);
        }
        let proof = match flags & FLAG_KEY {
            0 => None,
            _ => Some(Proof { key_id: self.u32()?, tag: self.array()? }),
        };
        Ok(Entry { vnet, policy, cipher, groups, longest, proof })
    }
}
