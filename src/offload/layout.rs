//! Where the headers of a frame are, for offloads.
//!
//! [`crate::packet`] walks the headers; this decides which of the frames that it understands can be
//! cut and merged: whole packets of TCP or UDP, without headers that protect them against changes.
//! All others are [`Opaque`]: they are carried as they are.

use super::checksum::Sum;
use crate::packet::extension::{Extension, ExtensionSet};
use crate::packet::{
    Ethernet, IpVersion, Lengths, Packet, Reason, Stop, field, protocol, transport,
};

/// Among the flags of TCP: the congestion window was reduced (RFC 3168).
const CWR: u8 = 0x80;

/// Headers that segments of a frame may have as well.
const DIVISIBLE: ExtensionSet = ExtensionSet::IPV4_OPTIONS
    .with(Extension::HopByHop)
    .with(Extension::Routing)
    .with(Extension::Destination);

/// Transport protocol of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
}

impl Transport {
    /// IANA's number.
    pub const fn protocol(self) -> u8 {
        match self {
            Self::Tcp => protocol::ip::TCP,
            Self::Udp => protocol::ip::UDP,
        }
    }

    /// Where the checksum is in the header, in bytes.
    pub const fn checksum_offset(self) -> usize {
        match self {
            Self::Tcp => 16,
            Self::Udp => 6,
        }
    }
}

/// Why a frame has no headers that offloads understand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opaque {
    /// The headers are longer than the frame, or than the part that was copied.
    Truncated,
    /// Neither IPv4 nor IPv6, or behind VLAN tags that offloads do not look behind.
    NotIp,
    /// A fragment: its transport header is incomplete or somewhere else.
    Fragment,
    /// Neither TCP nor UDP, or behind a header that hides it.
    NotTransport,
    /// Versions or lengths contradict each other.
    Malformed,
}

/// Offsets of the headers in a frame, in bytes; all are within the frame and the bytes given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Version of IP.
    pub version: IpVersion,
    /// Protocol above it.
    pub transport: Transport,
    /// Where the IP header begins.
    pub network_at: usize,
    /// Where the transport header begins.
    pub transport_at: usize,
    /// Where the payload begins: the length of all headers.
    pub payload_at: usize,
    /// Where the IP packet ends; behind it is padding of short Ethernet frames.
    pub end: usize,
    /// Whether the IP header has options (v4), or extension headers follow it (v6).
    pub has_ip_options: bool,
    /// Where the final destination is, which the pseudo-header is made from.
    destination_at: usize,
}

impl From<Reason> for Opaque {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::Truncated => Self::Truncated,
            Reason::NotIp => Self::NotIp,
            Reason::Malformed => Self::Malformed,
            Reason::TooManyExtensions => Self::NotTransport,
        }
    }
}

impl From<Stop> for Opaque {
    fn from(stop: Stop) -> Self {
        stop.reason.into()
    }
}

impl Layout {
    /// Whether the frame, which begins with `lead`, is a TCP segment with CWR set.
    pub fn has_cwr(&self, lead: &[u8]) -> bool {
        self.transport == Transport::Tcp
            && field::u8_at(lead, self.transport_at + 13).is_some_and(|flags| flags & CWR != 0)
    }

    /// Reads the headers of a frame of `total_len` bytes that begins with `lead`.
    ///
    /// # Errors
    /// Why there is nothing for offloads in it.
    pub fn parse(lead: &[u8], total_len: usize) -> Result<Self, Opaque> {
        Self::read(lead, total_len, Lengths::Fields)
    }

    /// The same for a frame that is to be segmented. What drivers write into its length fields
    /// differs (some leave them 0), and nobody needs them: the packet ends with the frame.
    ///
    /// # Errors
    /// As above.
    pub fn parse_gso(lead: &[u8], total_len: usize) -> Result<Self, Opaque> {
        Self::read(lead, total_len, Lengths::Frame)
    }

    /// As [`Layout::parse`], where the caller reads: it needs only some of what is found.
    #[inline(always)]
    pub(super) fn read(lead: &[u8], total_len: usize, lengths: Lengths) -> Result<Self, Opaque> {
        let lead = lead.get(..total_len).unwrap_or(lead);
        let ethernet = Ethernet::parse(lead)?;
        if ethernet.has_old_tags {
            return Err(Opaque::NotIp);
        }
        let packet = Packet::parse_in(lead, &ethernet, total_len, lengths)?;
        let Packet { version, network_at, transport_at, end, extensions, .. } = packet;
        if packet.fragment.is_any() {
            return Err(Opaque::Fragment);
        }
        let has_ip_options = extensions != ExtensionSet::NONE;
        if has_ip_options && !extensions.is_within(DIVISIBLE) {
            return Err(Opaque::NotTransport);
        }
        let destination_at = packet.final_destination_at.ok_or(Opaque::NotTransport)?;
        let header = lead.get(transport_at..).ok_or(Opaque::Truncated)?;
        let room = end - transport_at;
        let (transport, header_len) = match packet.protocol {
            protocol::ip::TCP => (Transport::Tcp, transport::tcp_len(header, room)?),
            protocol::ip::UDP => {
                let len = transport::udp_datagram_len(header, room)?;
                if lengths == Lengths::Fields && len != room {
                    return Err(Opaque::Malformed);
                }
                (Transport::Udp, transport::UDP_LEN)
            }
            _ => return Err(Opaque::NotTransport),
        };
        let payload_at = transport_at + header_len;
        if payload_at > lead.len() {
            return Err(Opaque::Truncated);
        }
        Ok(Self {
            version,
            transport,
            network_at,
            transport_at,
            payload_at,
            end,
            has_ip_options,
            destination_at,
        })
    }

    /// Where the transport checksum is in the frame.
    pub const fn checksum_at(&self) -> usize {
        self.transport_at + self.transport.checksum_offset()
    }

    /// Length of the payload, in bytes.
    pub const fn payload_len(&self) -> usize {
        self.end - self.payload_at
    }

    /// The same headers of a frame of another length.
    pub(super) const fn with_end(mut self, end: usize) -> Self {
        self.end = end;
        self
    }

    /// The sum of the pseudo-header for a transport header and payload of `len` bytes. `lead` is
    /// what was parsed.
    pub fn pseudo_header(&self, lead: &[u8], len: usize) -> Sum {
        let (source, address_len) = match self.version {
            IpVersion::V4 => (self.network_at + 12, 4),
            IpVersion::V6 => (self.network_at + 8, 16),
        };
        let address = |at: usize| lead.get(at..at + address_len).unwrap_or_default();
        let destination = address(self.destination_at);
        Sum::pseudo_header(address(source), destination, self.transport.protocol(), len)
    }
}

#[cfg(test)]
mod tests;
