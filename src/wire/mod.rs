//! Every format that leaves a process: on the underlay and on the control socket.
//!
//! One file per format, each with its bit diagram; `vnet(7)` shows the same diagrams to operators.
//! All numbers are in network byte order. Parsers accept bytes from any sender: they never panic,
//! never allocate more than the length of the input requires, and name the fault in a
//! [`ParseError`].
//!
//! | File | Format |
//! |---|---|
//! | [`encap`] | the header in front of every tunnelled frame |
//! | [`fragment`] | fragments of frames that exceed the path MTU |
//! | [`frame`] | the Ethernet header of guests' frames |
//! | [`name`] | names of hosts and vifs, which the following formats use |
//! | [`extension`] | additions to messages without a new version |
//! | [`varp`] | VARP messages between hosts |
//! | [`trailer`] | the addition of a relay to a VARP message |
//! | [`hello`] | announcements of hosts and relays |
//! | [`handshake`] | handshakes by which hosts agree on keys |
//! | [`esp`] | protected datagrams |
//! | [`echo`] | echo and trace between care-of addresses |
//! | [`relayed`] | group frames that a relay carries |
//! | [`group`] | multicast groups of vnets |
//! | [`control`] | messages between a host's own processes |
//!
//! [`crate::lane::handover`] has one more format: a bundle without frames, which precedes the first
//! frame through a lane.

#![forbid(unsafe_code)]
#![warn(clippy::indexing_slicing)]
#![cfg_attr(not(test), warn(clippy::cast_possible_truncation))]

pub mod control;
pub mod echo;
pub mod encap;
pub mod esp;
pub mod extension;
pub mod fragment;
pub mod frame;
pub mod group;
pub mod handshake;
pub mod hello;
pub mod name;
mod reader;
pub mod relayed;
pub mod trailer;
pub mod varp;
#[cfg(test)]
mod vectors;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use thiserror::Error;

/// Why bytes are not a message. Each is a named drop where the bytes came from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ParseError {
    /// Fewer bytes than the format's fixed part, or than a length field promises.
    #[error("truncated")]
    Truncated,
    /// More bytes than the format has room for.
    #[error("trailing bytes")]
    Trailing,
    /// Not this format at all (magic number or first nibble).
    #[error("not this format")]
    Magic,
    /// A version that this program does not speak.
    #[error("unknown version")]
    Version,
    /// A type, opcode or kind that is not defined.
    #[error("unknown type")]
    Type,
    /// A flag is set that is not defined, or a must-be-zero field is not zero.
    #[error("reserved bits set")]
    Reserved,
    /// A tag of a kind that is not known.
    #[error("unknown kind of tag")]
    TagKind,
    /// A field holds a value that its definition excludes.
    #[error("invalid value")]
    Value,
    /// A critical extension that this program does not know.
    #[error("unknown critical extension")]
    Critical,
}

/// Identifies a vnet: 32 bits, never 0.
///
/// Id 1 is the physical network, which is never encapsulated; see [`VnetId::is_physical`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VnetId(u32);

impl VnetId {
    /// The lowest id.
    pub const MIN: Self = Self(1);
    /// The highest id.
    pub const MAX: Self = Self(u32::MAX);
    /// The physical network. It is a vnet among others, and stands for no other value.
    pub const PHYSICAL: Self = Self(1);

    /// The id with this number; `None` for 0, which is invalid.
    pub const fn new(id: u32) -> Option<Self> {
        if id == 0 { None } else { Some(Self(id)) }
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Whether this is the physical network (id 1), whose frames are never encapsulated.
    pub const fn is_physical(self) -> bool {
        self.0 == Self::PHYSICAL.0
    }
}

impl fmt::Display for VnetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for VnetId {
    type Err = String;

    /// Decimal, or hexadecimal with a leading `0x`.
    fn from_str(s: &str) -> Result<Self, String> {
        let number = match s.strip_prefix("0x").or_else(|| s.strip_prefix("0X")) {
            Some(hex) => u32::from_str_radix(hex, 16),
            None => s.parse(),
        };
        let number = number.map_err(|_| {
            format!("'{s}' is not a vnet id: a number from 1 to 4294967295, decimal or 0x hex")
        })?;
        Self::new(number).ok_or_else(|| "vnet id 0 is invalid".to_owned())
    }
}

/// An Ethernet (EUI-48) address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The broadcast address.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Whether the address names a group (broadcast or multicast; IEEE 802-2014, 8.2.2: the I/G
    /// bit).
    pub const fn is_group(self) -> bool {
        let [first, ..] = self.0;
        first & 1 != 0
    }

    /// Whether the address can be a vif's own: individual and not all zero.
    pub fn is_individual(self) -> bool {
        !self.is_group() && self.0 != [0; 6]
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        f.pad(&format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}"))
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Mac {
    type Err = String;

    /// Six two-digit hexadecimal octets separated by colons.
    fn from_str(s: &str) -> Result<Self, String> {
        let wrong = || format!("'{s}' is not a MAC address like 52:54:00:12:34:56");
        let mut octets = [0; 6];
        let mut parts = s.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(wrong)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() {
            return Err(wrong());
        }
        Ok(Self(octets))
    }
}

/// Orders claims to one (vnet, MAC): a hybrid logical clock, max(wall clock ms, highest seen + 1).
///
/// The higher stamp wins everywhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp(pub u64);

/// How frames may be put on the underlay towards a care-of address; a set of bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EncapKinds(pub u8);

impl EncapKinds {
    /// The header of [`encap`] in UDP.
    pub const UDP: Self = Self(1);
    /// The same header directly over IP protocol 97.
    pub const ETHERIP: Self = Self(2);

    /// Whether all kinds in `other` are in this set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// The capabilities of a vif's receiver beyond a plain frame in a datagram; a set of bits that
/// mirror the flags of [`encap`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Capabilities(pub u16);

impl Capabilities {
    /// Nothing but plain frames.
    pub const NONE: Self = Self(0);
    /// Frames with a partial L4 checksum (flag C).
    pub const PARTIAL_CHECKSUM: Self = Self(1);
    /// Bundles of frames (flag B).
    pub const BUNDLE: Self = Self(2);
    /// Tunnel fragments (flag F).
    pub const FRAGMENT: Self = Self(4);
    /// Echo and trace (flag O).
    pub const ECHO: Self = Self(8);

    /// Whether all capabilities in `other` are in this set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// This set and all in `other`.
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// The longest IP packet that a host takes at a care-of address, in bytes with the IP header.
///
/// Where two hosts on one link have interfaces of different MTU, nothing on the way says that a
/// packet is too long; so each host tells its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Longest(u16);

impl Longest {
    /// The host did not say.
    pub const UNKNOWN: Self = Self(0);

    /// What every host at such an address takes: Linux's own floor of IPv4 paths, and the least MTU
    /// of IPv6 (RFC 8200, section 5).
    pub const fn least(ip: IpAddr) -> u16 {
        match ip {
            IpAddr::V4(_) => 552,
            IpAddr::V6(_) => 1280,
        }
    }

    /// From the field of a message about a host at `ip`; `None` for less than every host takes.
    pub const fn new(number: u16, ip: IpAddr) -> Option<Self> {
        if number != 0 && number < Self::least(ip) { None } else { Some(Self(number)) }
    }

    /// Of a host at `ip`, whose interface has this MTU.
    pub fn of_mtu(mtu: u32, ip: IpAddr) -> Self {
        Self::new(u16::try_from(mtu).unwrap_or(u16::MAX), ip).unwrap_or(Self::UNKNOWN)
    }

    /// The field of a message.
    pub const fn number(self) -> u16 {
        self.0
    }

    /// The length, if the host said it.
    pub fn known(self) -> Option<u32> {
        Some(self.0.into()).filter(|len| *len != 0)
    }
}

/// A care-of address: where a vif is reached on the underlay, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CareOf {
    /// IP address and UDP port (port 0 where only protocol 97 is spoken). Flow label and scope id
    /// of an IPv6 address are not carried on the wire and are zero here.
    pub addr: SocketAddr,
    /// The encapsulations that the vif's host accepts there.
    pub kinds: EncapKinds,
    /// The capabilities of the vif's receiver.
    pub capabilities: Capabilities,
    /// The longest packet that the vif's host takes.
    pub longest: Longest,
}

/// Why no frame can be sent to a care-of address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Unusable {
    /// Its host accepts no frames over UDP.
    #[error("its host accepts no frames over UDP")]
    Kinds,
    /// Port 0.
    #[error("it has no port")]
    Port,
    /// It is loopback or link-local, and this host's own underlay is not; or no host's at all.
    #[error("it is valid only on its own host or link")]
    Local,
    /// IPv4 on an underlay of IPv6, or the reverse.
    #[error("it is of another address family than this host's underlay")]
    Family,
}

impl CareOf {
    /// Whether a host with the underlay address `own` can send frames there.
    ///
    /// # Errors
    /// Why not.
    pub fn usable_from(&self, own: IpAddr) -> Result<(), Unusable> {
        let (ip, own) = (self.addr.ip(), own.to_canonical());
        if !self.kinds.contains(EncapKinds::UDP) {
            return Err(Unusable::Kinds);
        }
        if self.addr.port() == 0 {
            return Err(Unusable::Port);
        }
        if ip.is_ipv4() != own.is_ipv4() {
            return Err(Unusable::Family);
        }
        if !name::is_reachable(ip, own) {
            return Err(Unusable::Local);
        }
        Ok(())
    }
}

impl fmt::Display for CareOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.addr.to_string())
    }
}

/// A vif, as the whole system names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VifKey {
    /// The vnet that the vif is on.
    pub vnet: VnetId,
    /// Its MAC address.
    pub mac: Mac,
}

impl fmt::Display for VifKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.vnet, self.mac)
    }
}
