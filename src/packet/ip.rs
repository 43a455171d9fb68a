//! IPv4 and IPv6 headers, and all that is before the transport header.

use std::net::IpAddr;

use super::ethernet::Ethernet;
use super::extension::{Extension, ExtensionSet, Extensions};
use super::protocol::ether_type;
use super::{Reason, Stop, field};

const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
/// Fields of IPv4: more fragments follow; the offset; no router may fragment the packet.
const MORE_FRAGMENTS: u16 = 0x2000;
const FRAGMENT_OFFSET: u16 = 0x1fff;
const DONT_FRAGMENT: u16 = 0x4000;

/// Version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IpVersion {
    /// RFC 791.
    V4,
    /// RFC 8200.
    V6,
}

/// Where a packet ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lengths {
    /// Where its length field says.
    Fields,
    /// There, or with its frame if the field is 0: drivers may leave it 0 in a frame that is to be
    /// cut.
    FieldsUnlessZero,
    /// With its frame, which is to be cut. Drivers differ in the lengths that they write into such
    /// a frame.
    Frame,
}

/// Whether a packet is whole: the flags and the offset of IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment(u16);

impl Fragment {
    /// It is no fragment.
    pub const NOT: Self = Self(0);

    /// From the field of IPv6's fragment header. A whole packet with such a header (an atomic fragment,
    /// RFC 6946) counts as a first fragment.
    pub(super) const fn of_header(field: u16) -> Self {
        Self(field >> 3 | MORE_FRAGMENTS)
    }

    /// Whether it is a fragment, with the beginning or without.
    #[inline]
    pub const fn is_any(self) -> bool {
        self.0 & (FRAGMENT_OFFSET | MORE_FRAGMENTS) != 0
    }

    /// Whether the beginning is in another fragment. What follows the headers then is a part of
    /// the payload.
    #[inline]
    pub const fn is_later(self) -> bool {
        self.0 & FRAGMENT_OFFSET != 0
    }

    const fn must_not_be(self) -> bool {
        self.0 & DONT_FRAGMENT != 0
    }
}

/// The headers of an IP packet in a frame. Offsets are in bytes from the frame's beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Version of IP.
    pub version: IpVersion,
    /// Where the IP header begins.
    pub network_at: usize,
    /// Where the packet ends. It can be behind the bytes that were read, and is within the frame.
    pub end: usize,
    /// Protocol of what begins at `transport_at`.
    pub protocol: u8,
    /// Where all IP headers end. The transport header begins there, except in a later fragment.
    pub transport_at: usize,
    /// Whether the packet is whole.
    pub fragment: Fragment,
    /// Kinds of extension headers that were read, and whether the IPv4 header has options.
    pub extensions: ExtensionSet,
    /// Where the address of the final destination is, which checksums cover (RFC 8200, 8.1): in the
    /// IP header, or in the routing header of a packet that is on its way. `None` if that header is
    /// of an unknown type, or too short.
    pub final_destination_at: Option<usize>,
}

impl Packet {
    /// Reads the headers of a frame of `total_len` bytes that begins with `frame`.
    ///
    /// # Errors
    /// Where the walk ended, and why.
    #[inline]
    pub fn parse(frame: &[u8], total_len: usize, lengths: Lengths) -> Result<Self, Stop> {
        let frame = frame.get(..total_len).unwrap_or(frame);
        Self::parse_in(frame, &Ethernet::parse(frame)?, total_len, lengths)
    }

    /// The same behind an Ethernet header that was read from this frame.
    ///
    /// # Errors
    /// Where the walk ended, and why.
    #[inline(always)]
    pub fn parse_in(
        frame: &[u8],
        ethernet: &Ethernet,
        total_len: usize,
        lengths: Lengths,
    ) -> Result<Self, Stop> {
        let at = ethernet.payload_at;
        match ethernet.ether_type {
            ether_type::IPV4 => ipv4(frame, at, total_len, lengths),
            ether_type::IPV6 => ipv6(frame, at, total_len, lengths),
            _ => Err(Stop { at, reason: Reason::NotIp }),
        }
    }

    /// What begins behind the IP headers, as far as it is in `frame`, which was parsed.
    pub fn payload<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        frame.get(self.transport_at..self.end.min(frame.len())).unwrap_or_default()
    }

    /// The source address in the IP header.
    pub fn source(&self, frame: &[u8]) -> Option<IpAddr> {
        self.address(frame, 12, 8)
    }

    /// The destination address in the IP header.
    pub fn destination(&self, frame: &[u8]) -> Option<IpAddr> {
        self.address(frame, 16, 24)
    }

    fn address(&self, frame: &[u8], v4_at: usize, v6_at: usize) -> Option<IpAddr> {
        match self.version {
            IpVersion::V4 => field::read::<4>(frame, self.network_at + v4_at).map(IpAddr::from),
            IpVersion::V6 => field::read::<16>(frame, self.network_at + v6_at).map(IpAddr::from),
        }
    }

    /// Whether routers must not fragment the packet. Those of IPv6 never do.
    pub const fn must_not_be_fragmented(&self) -> bool {
        matches!(self.version, IpVersion::V6) || self.fragment.must_not_be()
    }

    /// The extension headers of an IPv6 packet, to be read again.
    pub fn extension_headers<'a>(&self, frame: &'a [u8]) -> Extensions<'a> {
        let first = field::u8_at(frame, self.network_at + 6).unwrap_or_default();
        Extensions::new(frame, IpVersion::V6, first, self.network_at + IPV6_LEN, self.end)
    }
}

/// The end of a packet whose header begins at `at`, and whose length field counts from `base` on.
#[inline]
fn end(base: usize, len: [u8; 2], total_len: usize, lengths: Lengths) -> usize {
    let len = usize::from(u16::from_be_bytes(len));
    match lengths {
        Lengths::Frame => total_len,
        Lengths::FieldsUnlessZero if len == 0 => total_len,
        Lengths::Fields | Lengths::FieldsUnlessZero => base + len,
    }
}

#[inline(always)]
fn ipv4(frame: &[u8], at: usize, total_len: usize, lengths: Lengths) -> Result<Packet, Stop> {
    let header: [u8; IPV4_LEN] = field::read(frame, at).ok_or(Stop::truncated(at))?;
    let [version, _, len0, len1, _, _, fragment0, fragment1, _, protocol, ..] = header;
    let header_len = usize::from(version & 0xf) * 4;
    if version >> 4 != 4 || header_len < IPV4_LEN {
        return Err(Stop::malformed(at));
    }
    let end = end(at, [len0, len1], total_len, lengths);
    let transport_at = at + header_len;
    if end > total_len || end < transport_at {
        return Err(Stop::malformed(at));
    }
    if transport_at > frame.len() {
        return Err(Stop::truncated(at));
    }
    let fragment = Fragment(u16::from_be_bytes([fragment0, fragment1]));
    let extensions =
        if header_len > IPV4_LEN { ExtensionSet::IPV4_OPTIONS } else { ExtensionSet::NONE };
    let packet = Packet {
        version: IpVersion::V4,
        network_at: at,
        end,
        protocol,
        transport_at,
        fragment,
        extensions,
        final_destination_at: Some(at + 16),
    };
    if protocol == Extension::AUTHENTICATION && !fragment.is_later() {
        return Ok(Packet { fragment, ..walk(frame, packet)? });
    }
    Ok(packet)
}

#[inline(always)]
fn ipv6(frame: &[u8], at: usize, total_len: usize, lengths: Lengths) -> Result<Packet, Stop> {
    let header: [u8; IPV6_LEN] = field::read(frame, at).ok_or(Stop::truncated(at))?;
    let [version, _, _, _, len0, len1, protocol, ..] = header;
    let transport_at = at + IPV6_LEN;
    let end = end(transport_at, [len0, len1], total_len, lengths);
    if version >> 4 != 6 || end > total_len || end < transport_at {
        return Err(Stop::malformed(at));
    }
    let packet = Packet {
        version: IpVersion::V6,
        network_at: at,
        end,
        protocol,
        transport_at,
        fragment: Fragment::NOT,
        extensions: ExtensionSet::NONE,
        final_destination_at: Some(at + 24),
    };
    if Extension::of(protocol, IpVersion::V6).is_some() { walk(frame, packet) } else { Ok(packet) }
}

/// Steps over the extension headers of a packet.
#[inline(never)]
fn walk(frame: &[u8], mut packet: Packet) -> Result<Packet, Stop> {
    let Packet { version, protocol, transport_at, end, .. } = packet;
    let mut headers = Extensions::new(frame, version, protocol, transport_at, end);
    while let Some(header) = headers.read()? {
        packet.extensions = packet.extensions.with(header.kind);
        if header.is_on_its_way() {
            packet.final_destination_at = header.final_destination();
        }
    }
    packet.protocol = headers.protocol();
    packet.transport_at = headers.at();
    packet.fragment = headers.fragment();
    Ok(packet)
}
