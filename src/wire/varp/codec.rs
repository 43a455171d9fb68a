//! Parses and emits VARP messages.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{
    ABSENT, ANNOUNCE, Author, Body, CORRECTION, CRITICAL_FLAGS, Claim, FLAG_LEARNT, FLAG_REFRESH,
    FLAG_RELAYED, FLAG_WIDE, FLAGS_OFFSET, LEN, MAGIC, Message, REPLY, REQUEST, TAG_HMAC_128,
    TAG_LEN, TAG_NONE, TAGGED_LEN, Tag, VERSION,
};
use crate::wire::name::{Realm, is_host};
use crate::wire::reader::Reader;
use crate::wire::{
    Capabilities, CareOf, EncapKinds, Longest, Mac, ParseError, Stamp, VifKey, VnetId,
};

const FAMILY_NONE: u8 = 0;
const FAMILY_IPV4: u8 = 4;
const FAMILY_IPV6: u8 = 6;

impl Message {
    /// The message in a whole datagram.
    ///
    /// # Errors
    /// [`ParseError::TagKind`] and [`ParseError::Critical`] for what a later version may have
    /// added, [`ParseError::Version`] for another version of the format, and what is malformed by
    /// its name.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut rest = Reader::new(bytes);
        if rest.array::<2>().map_err(|_| ParseError::Truncated)? != MAGIC {
            return Err(ParseError::Magic);
        }
        if rest.u8()? != VERSION {
            return Err(ParseError::Version);
        }
        let opcode = rest.u8()?;
        let flags = Flags::parse(opcode, rest.u16()?)?;
        let (tag_kind, extension_words) = (rest.u8()?, rest.u8()?);
        let fields = rest.fields(opcode)?;
        rest.extensions(extension_words)?;
        let tag = rest.tag(tag_kind)?;
        rest.end()?;
        Ok(Self {
            key: fields.key,
            author: fields.author,
            nonce: fields.nonce,
            wide: flags.wide,
            relayed: flags.relayed,
            body: body(opcode, &flags, &fields)?,
            tag,
        })
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
        let claim = self.body.claim();
        debug_assert!(claim.is_none_or(|claim| claim.realm == self.author.realm), "one realm");
        let (coa, lifetime_ms) = match self.body {
            Body::Request { asker, .. } => (Some(asker), 0),
            Body::Reply { claim, lifetime_ms }
            | Body::Announce { claim, lifetime_ms }
            | Body::Correction { claim, lifetime_ms } => (Some(claim.coa), lifetime_ms),
            Body::Absent => (None, 0),
        };
        let own_mac = claim.and_then(|claim| claim.behind).unwrap_or(Mac([0; 6]));
        out.reserve(self.len());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[VERSION, self.body.opcode()]);
        out.extend_from_slice(&self.flags().to_be_bytes());
        out.extend_from_slice(&[if self.tag.is_some() { TAG_HMAC_128 } else { TAG_NONE }, 0]);
        out.extend_from_slice(&self.key.vnet.get().to_be_bytes());
        out.extend_from_slice(&self.key.mac.0);
        out.extend_from_slice(&coa.map_or(0, |coa| coa.longest.number()).to_be_bytes());
        out.extend_from_slice(&own_mac.0);
        out.extend_from_slice(&coa.map_or(0, |coa| coa.capabilities.0).to_be_bytes());
        out.extend_from_slice(&claim.map_or(0, |claim| claim.stamp.0).to_be_bytes());
        out.extend_from_slice(&self.nonce.to_be_bytes());
        out.extend_from_slice(&lifetime_ms.to_be_bytes());
        out.extend_from_slice(&self.author.realm.0.to_be_bytes());
        emit_endpoint(out, coa.map(|coa| coa.addr), coa.map_or(0, |coa| coa.kinds.0));
        emit_endpoint(out, Some(self.author.addr), 0);
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
        let learnt = self.body.claim().is_some_and(|claim| !claim.is_own());
        let bit = |set, flag| if set { flag } else { 0 };
        bit(self.wide, FLAG_WIDE)
            | bit(refresh, FLAG_REFRESH)
            | bit(self.relayed, FLAG_RELAYED)
            | bit(learnt, FLAG_LEARNT)
    }
}

/// The bytes of a tagged message that its tag covers: all before the tag, as they came, with flag L
/// cleared. `None` for bytes that have no room for a tag.
pub fn covered(message: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = message.get(..message.len().checked_sub(TAG_LEN)?)?.to_vec();
    let flags = bytes.get_mut(FLAGS_OFFSET..)?.first_chunk_mut::<2>()?;
    *flags = (u16::from_be_bytes(*flags) & !FLAG_RELAYED).to_be_bytes();
    Some(bytes)
}

/// Whether a datagram is a message with flag L, whatever else is in it. Behind it stands a trailer
/// ([`super::super::trailer`]).
pub fn is_relayed(datagram: &[u8]) -> bool {
    let flags = datagram.get(FLAGS_OFFSET..).and_then(<[u8]>::first_chunk);
    datagram.starts_with(&[MAGIC[0], MAGIC[1], VERSION])
        && flags.is_some_and(|flags| u16::from_be_bytes(*flags) & FLAG_RELAYED != 0)
}

/// The flags, checked against the opcode.
struct Flags {
    wide: bool,
    refresh: bool,
    relayed: bool,
    learnt: bool,
}

impl Flags {
    fn parse(opcode: u8, bits: u16) -> Result<Self, ParseError> {
        let excluded = match opcode {
            REQUEST => FLAG_LEARNT,
            ANNOUNCE => FLAG_REFRESH,
            REPLY | CORRECTION => FLAG_REFRESH | FLAG_WIDE,
            ABSENT => FLAG_REFRESH | FLAG_WIDE | FLAG_LEARNT,
            _ => return Err(ParseError::Type),
        };
        if bits & CRITICAL_FLAGS != 0 {
            return Err(ParseError::Critical);
        }
        if bits & excluded != 0 {
            return Err(ParseError::Reserved);
        }
        let set = |flag| bits & flag != 0;
        Ok(Self {
            wide: set(FLAG_WIDE),
            refresh: set(FLAG_REFRESH),
            relayed: set(FLAG_RELAYED),
            learnt: set(FLAG_LEARNT),
        })
    }
}

/// The fields of the fixed part, each checked for itself.
struct Fields {
    key: VifKey,
    author: Author,
    own_mac: Mac,
    stamp: Stamp,
    nonce: u64,
    lifetime_ms: u32,
    coa: Option<CareOf>,
}

/// The fields as the opcode uses them; those that it does not use must be zero.
fn body(opcode: u8, flags: &Flags, fields: &Fields) -> Result<Body, ParseError> {
    let &Fields { key, author, own_mac, stamp, lifetime_ms, coa, .. } = fields;
    let behind = match flags.learnt {
        false if own_mac != Mac([0; 6]) => return Err(ParseError::Reserved),
        false => None,
        true if !own_mac.is_individual() || own_mac == key.mac => return Err(ParseError::Value),
        true => Some(own_mac),
    };
    if matches!(opcode, REQUEST | ABSENT) {
        let is_claim = stamp != Stamp(0) || lifetime_ms != 0;
        return match coa {
            _ if is_claim => Err(ParseError::Reserved),
            Some(asker) if opcode == REQUEST => Ok(Body::Request { asker, refresh: flags.refresh }),
            None if opcode == REQUEST => Err(ParseError::Value),
            Some(_) => Err(ParseError::Reserved),
            None => Ok(Body::Absent),
        };
    }
    let coa = coa.filter(|_| stamp != Stamp(0) && lifetime_ms != 0).ok_or(ParseError::Value)?;
    let claim = Claim { stamp, coa, realm: author.realm, behind };
    match opcode {
        REPLY => Ok(Body::Reply { claim, lifetime_ms }),
        ANNOUNCE => Ok(Body::Announce { claim, lifetime_ms }),
        CORRECTION => Ok(Body::Correction { claim, lifetime_ms }),
        _ => Err(ParseError::Type),
    }
}

/// Family, an octet of the caller's, port and address; all zero but the octet where there is none.
fn emit_endpoint(out: &mut Vec<u8>, addr: Option<SocketAddr>, octet: u8) {
    let (family, ip) = match addr.map(|addr| addr.ip()) {
        None => (FAMILY_NONE, [0; 16]),
        Some(IpAddr::V4(v4)) => {
            let mut ip = [0; 16];
            ip[..4].copy_from_slice(&v4.octets());
            (FAMILY_IPV4, ip)
        }
        Some(IpAddr::V6(v6)) => (FAMILY_IPV6, v6.octets()),
    };
    out.extend_from_slice(&[family, octet]);
    out.extend_from_slice(&addr.map_or(0, |addr| addr.port()).to_be_bytes());
    out.extend_from_slice(&ip);
}

impl Reader<'_> {
    /// From the vnet id to the author.
    fn fields(&mut self, opcode: u8) -> Result<Fields, ParseError> {
        let vnet = VnetId::new(self.u32()?).ok_or(ParseError::Value)?;
        let mac = Mac(self.array()?);
        let longest = self.u16()?;
        let own_mac = Mac(self.array()?);
        let capabilities = Capabilities(self.u16()?);
        let (stamp, nonce) = (Stamp(self.u64()?), self.u64()?);
        if !mac.is_individual() || nonce == 0 && opcode != CORRECTION {
            return Err(ParseError::Value);
        }
        let (lifetime_ms, realm) = (self.u32()?, Realm(self.u32()?));
        let coa = self.optional_care_of(capabilities, longest)?;
        let addr = self.author()?;
        let (key, author) = (VifKey { vnet, mac }, Author { realm, addr });
        Ok(Fields { key, author, own_mac, stamp, nonce, lifetime_ms, coa })
    }

    /// The CoA with what stands before it; `None` if it is not used.
    fn optional_care_of(
        &mut self,
        capabilities: Capabilities,
        longest: u16,
    ) -> Result<Option<CareOf>, ParseError> {
        let (family, kinds, port) = (self.u8()?, EncapKinds(self.u8()?), self.u16()?);
        let Some(ip) = self.address(family)? else {
            let rest = (kinds.0, port, capabilities.0, longest);
            return if rest == (0, 0, 0, 0) { Ok(None) } else { Err(ParseError::Reserved) };
        };
        let udp = kinds.contains(EncapKinds::UDP);
        if !(udp || kinds.contains(EncapKinds::ETHERIP)) || udp == (port == 0) {
            return Err(ParseError::Value);
        }
        let longest = Longest::new(longest, ip).ok_or(ParseError::Value)?;
        Ok(Some(CareOf { addr: SocketAddr::new(ip, port), kinds, capabilities, longest }))
    }

    /// The author's address and port.
    fn author(&mut self) -> Result<SocketAddr, ParseError> {
        let family = self.u8()?;
        self.zero::<1>()?;
        let port = self.u16()?;
        match self.address(family)? {
            Some(ip) if port != 0 => Ok(SocketAddr::new(ip, port)),
            _ => Err(ParseError::Value),
        }
    }

    /// A host's address. An IPv4-mapped one is refused: it would be a second spelling of an IPv4
    /// one.
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
        let is_mapped = ip.to_canonical() != ip;
        if is_host(ip) && !is_mapped { Ok(Some(ip)) } else { Err(ParseError::Value) }
    }

    /// The bytes after the extensions.
    fn tag(&mut self, kind: u8) -> Result<Option<Tag>, ParseError> {
        match kind {
            TAG_NONE => Ok(None),
            TAG_HMAC_128 => {
                let (key_id, time_ms) = (self.u32()?, self.u64()?);
                Ok(Some(Tag { key_id, time_ms, tag: self.array()? }))
            }
            _ => Err(ParseError::TagKind),
        }
    }
}
