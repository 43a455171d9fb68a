//! VARP messages: resolution of vifs to care-of addresses.
//!
//! Each is one UDP datagram, to the group or to a host's VARP address, both on port [`PORT`]. The
//! fixed part is always [`LEN`] bytes, so that a reply is never longer than its request; extensions
//! and a tag may follow. The first nibble (5) distinguishes a message from the encapsulation header
//! (4) and from ESP (first bit 1) on the same port.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +---------------+---------------+---------------+---------------+
//! |   'V' 0x56    |   'A' 0x41    |  version = 2  |    opcode     |  0
//! +-------+-------+-------+-+-+-+-+---------------+---------------+
//! |crit(4)|  spare (8)    |K|L|R|W|   tag kind    |  ext. words   |  4
//! +-------+---------------+-+-+-+-+---------------+---------------+
//! |                          vnet id (32)                         |  8
//! +---------------------------------------------------------------+
//! |                                                               | 12
//! |           MAC (48)            +-------------------------------+
//! |                               |   CoA: longest datagram (16)  | 16
//! +-------------------------------+-------------------------------+
//! |                                                               | 20
//! | own MAC (48), only with flag K+-------------------------------+
//! |                               |     CoA: capabilities (16)    | 24
//! +-------------------------------+-------------------------------+
//! |                          stamp (64)                           | 28
//! |                                                               |
//! +---------------------------------------------------------------+
//! |                          nonce (64)                           | 36
//! |                                                               |
//! +---------------------------------------------------------------+
//! |                   lifetime, milliseconds (32)                 | 44
//! +---------------------------------------------------------------+
//! |                          realm (32)                           | 48
//! +---------------+---------------+-------------------------------+
//! |  CoA: family  |  encap kinds  |             port              | 52
//! +---------------+---------------+-------------------------------+
//! |                     CoA: IP address (128)                     | 56
//! |                     (IPv4: 32 bits, then zeros)               |
//! +---------------+---------------+-------------------------------+
//! | author: family|      MBZ      |             port              | 72
//! +---------------+---------------+-------------------------------+
//! |                    author: IP address (128)                   | 76
//! |                     (IPv4: 32 bits, then zeros)               |
//! +---------------------------------------------------------------+
//! |        extensions, as many words as octet 7 says ...          | 92
//! +---------------------------------------------------------------+
//! |       key id (32), only with tag kind 1                       |  + 0
//! +---------------------------------------------------------------+
//! |       time, milliseconds since 1970 (64), only with kind 1    |  + 4
//! |                                                               |
//! +---------------------------------------------------------------+
//! |       HMAC-SHA-256, cut to 128 bits, only with kind 1         |  + 12
//! +---------------------------------------------------------------+
//! ```
//!
//! | Opcode | Sent to | Meaning | Stamp, lifetime | CoA | Nonce |
//! |---|---|---|---|---|---|
//! | 1 request | group, or a host (flag R) | which host owns (vnet, MAC)? | 0 | the asking vif's | new |
//! | 2 reply | the request's author | the author owns it | set | the owner's | the request's |
//! | 3 announce | group | the author owns it from now on | set | the owner's | new for each claim |
//! | 4 correction | a host | there is a newer claim | set | the newer owner's | of the message that it answers, or 0 |
//! | 5 absent | the request's author | the author does not own it (answers only R) | 0 | 0 | the request's |
//!
//! **Author.** Every message names the host that made it: realm, IP address, and the UDP port at
//! which it accepts answers. Realm and address are the host's [`Name`]. The realm is also that of
//! the claim.
//!
//! **Flags.** W (wide, requests and announces): relays may carry the message to other segments. R
//! (refresh, requests): sent by unicast, to confirm a mapping. L (relayed): a relay carried the
//! message from another segment, so the sender is not the author; no relay carries it a second
//! time. W and L are reserved for relays between segments, of which there are none yet. K (learnt;
//! replies, announces, corrections): the MAC is behind a vif, whose own MAC is in the message; see
//! [`Claim`]. Of the other flags the upper four are critical: receivers drop a message with one of
//! them. They ignore the other eight.
//!
//! **Longest datagram.** The longest IP packet that the CoA's host accepts from its link, in octets
//! with the IP header; 0 if unknown. Any other value below 552 (IPv4) or 1280 (IPv6) is malformed.
//!
//! **Tag.** The kind determines which tag follows and its length; 0 is none, 1 that of the diagram.
//! The tag covers all bytes before the HMAC, among them the author's name, with flag L taken as 0.
//! This module only parses it: [`crate::security::membership`], which has the keys, checks it. The
//! parser refuses unknown kinds.
//!
//! **Extensions** ([`super::extension`]) are covered by the tag. None is defined yet: receivers
//! skip those that are not critical.
//!
//! Families are 4 and 6, or 0 if the field is not used (then the other fields of the CoA are 0 as
//! well). Parsers keep unknown capability and kind bits, because later versions add features by
//! them; they refuse everything else that is not defined here.

mod codec;

use std::cmp::Ordering;
use std::net::{Ipv4Addr, SocketAddr};

use super::name::{Name, Realm};
use super::{CareOf, Mac, Stamp, VifKey};

pub use codec::{covered, is_relayed};

/// The UDP port, of hosts and of the group.
pub const PORT: u16 = 1798;
/// The IPv4 group used unless configured otherwise.
pub const GROUP: Ipv4Addr = Ipv4Addr::new(224, 10, 0, 1);
/// The first two bytes.
pub const MAGIC: [u8; 2] = *b"VA";
/// The first nibble, which no other format on the port begins with.
pub const FIRST_NIBBLE: u8 = MAGIC[0] >> 4;
/// Version of the format.
pub const VERSION: u8 = 2;
/// Length of a message without extensions and tag, in bytes.
pub const LEN: usize = 92;
/// Length of a message without extensions, with key id, time and tag, in bytes.
pub const TAGGED_LEN: usize = LEN + TRAILER_LEN;
/// Length of the longest message, in bytes.
pub const MAX_LEN: usize = TAGGED_LEN + u8::MAX as usize * 4;
/// Length of the tag, in bytes.
pub const TAG_LEN: usize = 16;

/// Where the version is (one byte), in every version of the format.
pub const VERSION_OFFSET: usize = 2;
/// Where a kernel filter finds the opcode (one byte).
pub const OPCODE_OFFSET: usize = 3;
/// Where a kernel filter finds the flags (two bytes).
pub const FLAGS_OFFSET: usize = 4;
/// Where a kernel filter finds the vnet id (four bytes).
pub const VNET_OFFSET: usize = 8;
/// Where a kernel filter finds the MAC (six bytes).
pub const MAC_OFFSET: usize = 12;

/// Opcode of [`Body::Request`].
pub const REQUEST: u8 = 1;
/// Opcode of [`Body::Reply`].
pub const REPLY: u8 = 2;
/// Opcode of [`Body::Announce`].
pub const ANNOUNCE: u8 = 3;
/// Opcode of [`Body::Correction`].
pub const CORRECTION: u8 = 4;
/// Opcode of [`Body::Absent`].
pub const ABSENT: u8 = 5;

/// Flag W.
pub const FLAG_WIDE: u16 = 1;
/// Flag R.
pub const FLAG_REFRESH: u16 = 2;
/// Flag L.
pub const FLAG_RELAYED: u16 = 4;
/// Flag K.
pub const FLAG_LEARNT: u16 = 8;
/// Flags whose meaning is not known yet, and that must not be ignored.
pub const CRITICAL_FLAGS: u16 = 0xf000;

/// Tag kind of messages without a tag.
pub const TAG_NONE: u8 = 0;
/// Tag kind of [`Tag`]: HMAC-SHA-256, cut to 128 bits.
pub const TAG_HMAC_128: u8 = 1;

/// Length of key id, time and tag.
const TRAILER_LEN: usize = 4 + 8 + TAG_LEN;

/// The host that made a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Author {
    /// Its realm.
    pub realm: Realm,
    /// Its IP address, and the UDP port at which it takes answers.
    pub addr: SocketAddr,
}

impl Author {
    /// The host's name.
    pub const fn name(&self) -> Name {
        Name::host(self.realm, self.addr.ip())
    }
}

/// That a vif is behind a care-of address, since a moment.
///
/// There are two kinds of claims. An *own* claim says that a guest's NIC with this MAC is there. A
/// *learnt* one (flag K) says that a guest with another MAC was seen to send from this one: a
/// bridge, a router. Own claims win over learnt ones, whatever the stamps: what a guest's frames
/// say takes no other guest's MAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Orders the claims to one vif.
    pub stamp: Stamp,
    /// Where the vif is; with the realm, its address and port name the owner.
    pub coa: CareOf,
    /// The owner's realm.
    pub realm: Realm,
    /// Of a learnt claim: the own MAC of the vif that the MAC is behind.
    pub behind: Option<Mac>,
}

impl Claim {
    /// The order of claims to one vif: own claims above learnt ones, then the higher stamp; equal
    /// stamps of different owners (two hosts in the same millisecond) are ordered by the owners'
    /// names, so that everybody picks the same one. `Equal` means the same claim.
    pub fn order(&self, other: &Self) -> Ordering {
        let by_kind = self.is_own().cmp(&other.is_own());
        by_kind.then(self.stamp.cmp(&other.stamp)).then_with(|| self.owner().cmp(&other.owner()))
    }

    /// Whether this claim wins over `other`.
    pub fn beats(&self, other: &Self) -> bool {
        self.order(other) == Ordering::Greater
    }

    /// Whether it is the claim of a guest's NIC, not of a MAC behind one.
    pub const fn is_own(&self) -> bool {
        self.behind.is_none()
    }

    /// Whether both name the same owner.
    pub fn same_owner(&self, other: &Self) -> bool {
        self.owner() == other.owner()
    }

    /// The name of the vif that claims.
    pub const fn owner(&self) -> Name {
        Name::vif(self.realm, self.coa.addr)
    }
}

/// Key id, time and authentication tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Which key made the tag.
    pub key_id: u32,
    /// When the author made it, milliseconds since 1970; each of its messages has another.
    pub time_ms: u64,
    /// The tag.
    pub tag: [u8; TAG_LEN],
}

/// The contents of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// Who owns the vif?
    Request {
        /// Where the asking vif is.
        asker: CareOf,
        /// Asked by unicast, to confirm (flag R): the host answers even if it is not the owner.
        refresh: bool,
    },
    /// I own it.
    Reply {
        /// My claim.
        claim: Claim,
        /// How long it may be believed, in milliseconds.
        lifetime_ms: u32,
    },
    /// I own it, to whom it may concern.
    Announce {
        /// My claim.
        claim: Claim,
        /// How long it may be believed, in milliseconds.
        lifetime_ms: u32,
    },
    /// There is a newer claim than you know.
    Correction {
        /// Somebody's claim, of the author's realm.
        claim: Claim,
        /// How long it may still be believed, in milliseconds.
        lifetime_ms: u32,
    },
    /// I do not own it.
    Absent,
}

impl Body {
    /// The opcode on the wire.
    pub const fn opcode(&self) -> u8 {
        match self {
            Self::Request { .. } => REQUEST,
            Self::Reply { .. } => REPLY,
            Self::Announce { .. } => ANNOUNCE,
            Self::Correction { .. } => CORRECTION,
            Self::Absent => ABSENT,
        }
    }

    /// The claim in it, if it carries one.
    pub const fn claim(&self) -> Option<&Claim> {
        match self {
            Self::Reply { claim, .. }
            | Self::Announce { claim, .. }
            | Self::Correction { claim, .. } => Some(claim),
            Self::Request { .. } | Self::Absent => None,
        }
    }
}

/// A VARP message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// The vif it is about.
    pub key: VifKey,
    /// The author. A claim in the message is of the same realm.
    pub author: Author,
    /// Ties an answer to its question; only a [`Body::Correction`] may have 0.
    pub nonce: u64,
    /// To be carried to other segments (flag W); only in requests and announces.
    pub wide: bool,
    /// Was carried here from another segment (flag L).
    pub relayed: bool,
    /// Its contents.
    pub body: Body,
    /// Key id, time and tag, not checked.
    pub tag: Option<Tag>,
}

#[cfg(test)]
mod tests;
