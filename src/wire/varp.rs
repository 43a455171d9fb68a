//! VARP messages: which care-of address a vif has.
//!
//! One UDP datagram each, to the group or to a host's VARP address, both on port [`PORT`]. The
//! fixed part is always [`LEN`] bytes, so that a reply is never longer than what it answers; a
//! message with an authentication tag is [`TAGGED_LEN`] bytes. The first nibble (5) sets it apart
//! from the encapsulation header (4) and from ESP (first bit 1) on the same port.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +---------------+---------------+---------------+---------------+
//! |   'V' 0x56    |   'A' 0x41    |  version = 1  |    opcode     |  0
//! +---------------+-------+-+-+-+-+---------------+---------------+
//! |      flags (12), MBZ  |A|L|R|W|  tag length   |      MBZ      |  4
//! +-----------------------+-+-+-+-+---------------+---------------+
//! |                          vnet id (32)                         |  8
//! +---------------------------------------------------------------+
//! |                                                               | 12
//! |           MAC (48)            +-------------------------------+
//! |                               |           MBZ (16)            | 16
//! +-------------------------------+-------------------------------+
//! |                          stamp (64)                           | 20
//! |                                                               |
//! +---------------------------------------------------------------+
//! |                          nonce (64)                           | 28
//! |                                                               |
//! +---------------------------------------------------------------+
//! |                   lifetime, milliseconds (32)                 | 36
//! +---------------+---------------+-------------------------------+
//! |  CoA: family  |  encap kinds  |             port              | 40
//! +---------------+---------------+-------------------------------+
//! |         capabilities          |           MBZ (16)            | 44
//! +-------------------------------+-------------------------------+
//! |                     CoA: IP address (128)                     | 48
//! |                     (IPv4: 32 bits, then zeros)               |
//! +---------------+---------------+-------------------------------+
//! | reply: family |      MBZ      |             port              | 64
//! +---------------+---------------+-------------------------------+
//! |                   reply-to: IP address (128)                  | 68
//! |                                                               |
//! +---------------------------------------------------------------+
//! |       key id (32), only with flag A                           | 84
//! +---------------------------------------------------------------+
//! |       time, milliseconds since 1970 (64), only with flag A     | 88
//! |                                                               |
//! +---------------------------------------------------------------+
//! |       authentication tag (128), only with flag A              | 96
//! +---------------------------------------------------------------+
//! ```
//!
//! | Opcode | Sent to | Says | Stamp, lifetime | CoA | Reply-to | Nonce |
//! |---|---|---|---|---|---|---|
//! | 1 request | group, or a host (flag R) | who owns (vnet, MAC)? | 0 | the asker's | set | new |
//! | 2 reply | the request's reply-to | I do | set | the owner's | 0 | the request's |
//! | 3 announce | group | I do, as of now | set | the owner's | 0 | new for each claim |
//! | 4 correction | a host | somebody has a newer claim | set | the newer owner's | 0 | of the message that it answers, or 0 |
//! | 5 absent | the request's reply-to | I do not (answers only R) | 0 | 0 | 0 | the request's |
//!
//! Flags: W (wide, requests and announces): may be carried to other segments. R (refresh,
//! requests): by unicast, to confirm what is known. L (relayed): was carried here from another
//! segment, so the sender's address is not the owner's; never carried a second time. W and L are
//! reserved for relays between segments, of which there are none yet. A: key id, time and tag
//! follow, tag length is 16 (else 0). The tag covers the sender's address (128 bits) and all bytes
//! before the tag, with flag L taken as 0. Here it is only structure: it is handed up, and checked
//! where the keys are ([`crate::security::membership`]).
//!
//! Families are 4 and 6, 0 where the field is not used (then the rest of the field is 0 as well).
//! Unknown capability and kind bits are kept, since they are how later versions add things;
//! everything else that is not defined here is refused.

use std::cmp::Ordering;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::reader::Reader;
use super::{Capabilities, CareOf, EncapKinds, Mac, ParseError, Stamp, VifKey, VnetId};

/// The UDP port, of hosts and of the group.
pub const PORT: u16 = 1798;
/// The IPv4 group used unless configured otherwise.
pub const GROUP: Ipv4Addr = Ipv4Addr::new(224, 10, 0, 1);
/// The first two bytes.
pub const MAGIC: [u8; 2] = *b"VA";
/// The first nibble, which no other format on the port begins with.
pub const FIRST_NIBBLE: u8 = MAGIC[0] >> 4;
/// Version of the format.
pub const VERSION: u8 = 1;
/// Length of a message without a tag, in bytes.
pub const LEN: usize = 84;
/// Length of a message with key id, time and tag, in bytes.
pub const TAGGED_LEN: usize = LEN + KEY_ID_LEN + TIME_LEN + TAG_LEN;
/// Length of the tag, in bytes.
pub const TAG_LEN: usize = 16;

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
/// Flag A.
pub const FLAG_TAGGED: u16 = 8;

const KEY_ID_LEN: usize = 4;
const TIME_LEN: usize = 8;
const KNOWN_FLAGS: u16 = FLAG_WIDE | FLAG_REFRESH | FLAG_RELAYED | FLAG_TAGGED;
const FAMILY_NONE: u8 = 0;
const FAMILY_IPV4: u8 = 4;
const FAMILY_IPV6: u8 = 6;

/// That a vif is behind a care-of address, since a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Orders the claims to one vif.
    pub stamp: Stamp,
    /// Where the vif is; its address and port name the owner.
    pub coa: CareOf,
}

impl Claim {
    /// The order of claims to one vif: the higher stamp wins; equal stamps of different owners
    /// (two hosts in the same millisecond) are ordered by the owners' family, IP address and port
    /// as numbers, so that everybody picks the same one. `Equal` means the same claim.
    pub fn order(&self, other: &Self) -> Ordering {
        self.stamp.cmp(&other.stamp).then_with(|| self.owner().cmp(&other.owner()))
    }

    /// Whether this claim wins over `other`.
    pub fn beats(&self, other: &Self) -> bool {
        self.order(other) == Ordering::Greater
    }

    /// Whether both name the same owner.
    pub fn same_owner(&self, other: &Self) -> bool {
        self.owner() == other.owner()
    }

    /// `IpAddr` orders IPv4 below IPv6 and then by octets, as the wire format would.
    fn owner(&self) -> (IpAddr, u16) {
        (self.coa.addr.ip(), self.coa.addr.port())
    }
}

/// Key id, time and authentication tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Which key made the tag.
    pub key_id: u32,
    /// When the sender made it, milliseconds since 1970; each of its messages has another.
    pub time_ms: u64,
    /// The tag.
    pub tag: [u8; TAG_LEN],
}

/// What a message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// Who owns the vif?
    Request {
        /// Where the asking vif is.
        asker: CareOf,
        /// Where the reply is to be sent.
        reply_to: SocketAddr,
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
        /// Somebody's claim.
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
    /// Ties an answer to what it answers; only a [`Body::Correction`] may have 0.
    pub nonce: u64,
    /// To be carried to other segments (flag W); only in requests and announces.
    pub wide: bool,
    /// Was carried here from another segment (flag L).
    pub relayed: bool,
    /// What it says.
    pub body: Body,
    /// Key id, time and tag (flag A), not checked.
    pub tag: Option<Tag>,
}

impl Message {
    /// The message in a whole datagram.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut rest = Reader::new(bytes);
        if rest.array::<2>().map_err(|_| ParseError::Truncated)? != MAGIC {
            return Err(ParseError::Magic);
        }
        if rest.u8()? != VERSION {
            return Err(ParseError::Version);
        }
        let opcode = rest.u8()?;
        let flags = Flags::parse(opcode, rest.u16()?, rest.u8()?)?;
        rest.zero::<1>()?;
        let vnet = VnetId::new(rest.u32()?).ok_or(ParseError::Value)?;
        let mac = Mac(rest.array()?);
        if !mac.is_individual() {
            return Err(ParseError::Value);
        }
        rest.zero::<2>()?;
        let stamp = Stamp(rest.u64()?);
        let nonce = rest.u64()?;
        if nonce == 0 && opcode != CORRECTION {
            return Err(ParseError::Value);
        }
        let lifetime_ms = rest.u32()?;
        let coa = rest.optional_care_of()?;
        let reply_to = rest.endpoint()?;
        let body = body(opcode, flags.refresh, stamp, lifetime_ms, coa, reply_to)?;
        let tag = match flags.tagged {
            true => Some(Tag { key_id: rest.u32()?, time_ms: rest.u64()?, tag: rest.array()? }),
            false => None,
        };
        rest.end()?;
        let (wide, relayed) = (flags.wide, flags.relayed);
        Ok(Self { key: VifKey { vnet, mac }, nonce, wide, relayed, body, tag })
    }

    /// Length of the message, in bytes.
    pub const fn len(&self) -> usize {
        if self.tag.is_some() { TAGGED_LEN } else { LEN }
    }

    /// Never: a message has a fixed part.
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// Appends the message to `out`.
    pub fn emit(&self, out: &mut Vec<u8>) {
        out.reserve(self.len());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[VERSION, self.body.opcode()]);
        out.extend_from_slice(&self.flags().to_be_bytes());
        out.extend_from_slice(&[if self.tag.is_some() { 16 } else { 0 }, 0]);
        out.extend_from_slice(&self.key.vnet.get().to_be_bytes());
        out.extend_from_slice(&self.key.mac.0);
        out.extend_from_slice(&[0; 2]);
        let (stamp, lifetime_ms, coa, reply_to) = match self.body {
            Body::Request { asker, reply_to, .. } => (Stamp(0), 0, Some(asker), Some(reply_to)),
            Body::Reply { claim, lifetime_ms }
            | Body::Announce { claim, lifetime_ms }
            | Body::Correction { claim, lifetime_ms } => {
                (claim.stamp, lifetime_ms, Some(claim.coa), None)
            }
            Body::Absent => (Stamp(0), 0, None, None),
        };
        out.extend_from_slice(&stamp.0.to_be_bytes());
        out.extend_from_slice(&self.nonce.to_be_bytes());
        out.extend_from_slice(&lifetime_ms.to_be_bytes());
        emit_care_of(out, coa);
        emit_endpoint(out, reply_to, 0);
        emit_address(out, reply_to);
        if let Some(tag) = self.tag {
            out.extend_from_slice(&tag.key_id.to_be_bytes());
            out.extend_from_slice(&tag.time_ms.to_be_bytes());
            out.extend_from_slice(&tag.tag);
        }
    }

    /// The message as a datagram.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.len());
        self.emit(&mut out);
        out
    }

    fn flags(&self) -> u16 {
        let refresh = matches!(self.body, Body::Request { refresh: true, .. });
        let bit = |set, flag| if set { flag } else { 0 };
        bit(self.wide, FLAG_WIDE)
            | bit(refresh, FLAG_REFRESH)
            | bit(self.relayed, FLAG_RELAYED)
            | bit(self.tag.is_some(), FLAG_TAGGED)
    }
}

/// The flags, checked against the opcode.
struct Flags {
    wide: bool,
    refresh: bool,
    relayed: bool,
    tagged: bool,
}

impl Flags {
    fn parse(opcode: u8, bits: u16, tag_len: u8) -> Result<Self, ParseError> {
        let allowed = match opcode {
            REQUEST => KNOWN_FLAGS,
            ANNOUNCE => KNOWN_FLAGS & !FLAG_REFRESH,
            REPLY | CORRECTION | ABSENT => FLAG_RELAYED | FLAG_TAGGED,
            _ => return Err(ParseError::Type),
        };
        if bits & !allowed != 0 {
            return Err(ParseError::Reserved);
        }
        let set = |flag| bits & flag != 0;
        let tagged = set(FLAG_TAGGED);
        if usize::from(tag_len) != if tagged { TAG_LEN } else { 0 } {
            return Err(ParseError::Value);
        }
        let (wide, refresh, relayed) = (set(FLAG_WIDE), set(FLAG_REFRESH), set(FLAG_RELAYED));
        Ok(Self { wide, refresh, relayed, tagged })
    }
}

/// What the opcode makes of the fields; those that it does not use must be zero.
fn body(
    opcode: u8,
    refresh: bool,
    stamp: Stamp,
    lifetime_ms: u32,
    coa: Option<CareOf>,
    reply_to: Option<SocketAddr>,
) -> Result<Body, ParseError> {
    let unclaimed = stamp == Stamp(0) && lifetime_ms == 0;
    match opcode {
        REQUEST if !unclaimed => Err(ParseError::Reserved),
        REQUEST => {
            let (Some(asker), Some(reply_to)) = (coa, reply_to) else {
                return Err(ParseError::Value);
            };
            Ok(Body::Request { asker, reply_to, refresh })
        }
        ABSENT if !unclaimed || coa.is_some() || reply_to.is_some() => Err(ParseError::Reserved),
        ABSENT => Ok(Body::Absent),
        _ if reply_to.is_some() => Err(ParseError::Reserved),
        _ => {
            let coa = coa.filter(|_| stamp != Stamp(0) && lifetime_ms != 0);
            let claim = Claim { stamp, coa: coa.ok_or(ParseError::Value)? };
            match opcode {
                REPLY => Ok(Body::Reply { claim, lifetime_ms }),
                ANNOUNCE => Ok(Body::Announce { claim, lifetime_ms }),
                CORRECTION => Ok(Body::Correction { claim, lifetime_ms }),
                _ => Err(ParseError::Type),
            }
        }
    }
}

/// Whether datagrams can be sent to the address. An IPv4-mapped IPv6 address is refused: it would
/// be a second spelling of an IPv4 one.
fn is_host(ip: IpAddr) -> bool {
    let reachable = !ip.is_unspecified() && !ip.is_multicast();
    match ip {
        IpAddr::V4(v4) => reachable && !v4.is_broadcast(),
        IpAddr::V6(v6) => reachable && v6.to_ipv4_mapped().is_none(),
    }
}

fn emit_care_of(out: &mut Vec<u8>, coa: Option<CareOf>) {
    emit_endpoint(out, coa.map(|c| c.addr), coa.map_or(0, |c| c.kinds.0));
    out.extend_from_slice(&coa.map_or(0, |c| c.capabilities.0).to_be_bytes());
    out.extend_from_slice(&[0; 2]);
    emit_address(out, coa.map(|c| c.addr));
}

fn emit_endpoint(out: &mut Vec<u8>, addr: Option<SocketAddr>, kinds: u8) {
    let family = match addr {
        None => FAMILY_NONE,
        Some(SocketAddr::V4(_)) => FAMILY_IPV4,
        Some(SocketAddr::V6(_)) => FAMILY_IPV6,
    };
    out.extend_from_slice(&[family, kinds]);
    out.extend_from_slice(&addr.map_or(0, |a| a.port()).to_be_bytes());
}

fn emit_address(out: &mut Vec<u8>, addr: Option<SocketAddr>) {
    match addr.map(|a| a.ip()) {
        None => out.extend_from_slice(&[0; 16]),
        Some(IpAddr::V4(v4)) => {
            out.extend_from_slice(&v4.octets());
            out.extend_from_slice(&[0; 12]);
        }
        Some(IpAddr::V6(v6)) => out.extend_from_slice(&v6.octets()),
    }
}

impl Reader<'_> {
    /// The CoA; `None` if the field is not used.
    fn optional_care_of(&mut self) -> Result<Option<CareOf>, ParseError> {
        let (family, kinds, port) = (self.u8()?, EncapKinds(self.u8()?), self.u16()?);
        let capabilities = Capabilities(self.u16()?);
        self.zero::<2>()?;
        let Some(ip) = self.address(family)? else {
            let unused = kinds.0 == 0 && port == 0 && capabilities == Capabilities::NONE;
            return if unused { Ok(None) } else { Err(ParseError::Reserved) };
        };
        let udp = kinds.contains(EncapKinds::UDP);
        if !(udp || kinds.contains(EncapKinds::ETHERIP)) || udp == (port == 0) {
            return Err(ParseError::Value);
        }
        Ok(Some(CareOf { addr: SocketAddr::new(ip, port), kinds, capabilities }))
    }

    /// The reply-to address; `None` if the field is not used.
    fn endpoint(&mut self) -> Result<Option<SocketAddr>, ParseError> {
        let family = self.u8()?;
        self.zero::<1>()?;
        let port = self.u16()?;
        match self.address(family)? {
            Some(_) if port == 0 => Err(ParseError::Value),
            Some(ip) => Ok(Some(SocketAddr::new(ip, port))),
            None if port != 0 => Err(ParseError::Reserved),
            None => Ok(None),
        }
    }

    fn address(&mut self, family: u8) -> Result<Option<IpAddr>, ParseError> {
        let bytes: [u8; 16] = self.array()?;
        let ip = match (family, bytes) {
            (FAMILY_NONE, bytes) if bytes == [0; 16] => return Ok(None),
            (FAMILY_NONE, _) => return Err(ParseError::Reserved),
            (FAMILY_IPV4, [a, b, c, d, rest @ ..]) if rest == [0; 12] => {
                IpAddr::V4(Ipv4Addr::new(a, b, c, d))
            }
            (FAMILY_IPV4, _) => return Err(ParseError::Reserved),
            (FAMILY_IPV6, bytes) => IpAddr::V6(Ipv6Addr::from(bytes)),
            _ => return Err(ParseError::Type),
        };
        if is_host(ip) { Ok(Some(ip)) } else { Err(ParseError::Value) }
    }
}

#[cfg(test)]
mod tests;
