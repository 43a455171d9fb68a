//! Where the headers of a frame are: Ethernet, VLAN tags, IP, and TCP or UDP.
//!
//! Only what offloads need, read from the copied beginning of a frame. What they can't handle is
//! [`Opaque`]: such a frame is carried like any other, it just is not cut or merged.

use super::checksum::Sum;
use super::field;

/// Most VLAN tags that are looked behind (IEEE 802.1ad: one of the provider, one of the customer).
const MAX_VLAN_TAGS: usize = 2;
/// Most extension headers of IPv6 that are looked behind.
const MAX_EXTENSIONS: usize = 8;

const ADDRESSES_LEN: usize = 12;
const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
const TCP_LEN: usize = 20;
const UDP_LEN: usize = 8;
/// Among the flags of TCP: the congestion window was reduced (RFC 3168).
const CWR: u8 = 0x80;

/// IP version of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IpVersion {
    /// RFC 791.
    V4,
    /// RFC 8200.
    V6,
}

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
            Self::Tcp => 6,
            Self::Udp => 17,
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
    /// Neither IPv4 nor IPv6, or behind too many VLAN tags.
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

/// Whether a frame's length fields mean something.
#[derive(Clone, Copy)]
enum Lengths {
    /// They say where the packet ends.
    Fields,
    /// They are to be rewritten; the packet ends with the frame.
    Frame,
}

/// What the IP headers say.
struct Network {
    version: IpVersion,
    at: usize,
    protocol: u8,
    transport_at: usize,
    end: usize,
    has_options: bool,
    destination_at: usize,
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

    fn read(lead: &[u8], total_len: usize, lengths: Lengths) -> Result<Self, Opaque> {
        let lead = lead.get(..total_len).unwrap_or(lead);
        let (ether_type, at) = ethernet(lead).ok_or(Opaque::Truncated)?;
        let network = match ether_type {
            0x0800 => ipv4(lead, at, total_len, lengths)?,
            0x86dd => ipv6(lead, at, total_len, lengths)?,
            _ => return Err(Opaque::NotIp),
        };
        let room = network.end.checked_sub(network.transport_at).ok_or(Opaque::Malformed)?;
        let header = lead.get(network.transport_at..).ok_or(Opaque::Truncated)?;
        let (transport, header_len) = match network.protocol {
            6 => (Transport::Tcp, tcp_len(header, room)?),
            17 => (Transport::Udp, udp_len(header, room, lengths)?),
            _ => return Err(Opaque::NotTransport),
        };
        let payload_at = network.transport_at + header_len;
        if payload_at > network.end {
            return Err(Opaque::Malformed);
        }
        if payload_at > lead.len() {
            return Err(Opaque::Truncated);
        }
        Ok(Self {
            version: network.version,
            transport,
            network_at: network.at,
            transport_at: network.transport_at,
            payload_at,
            end: network.end,
            has_ip_options: network.has_options,
            destination_at: network.destination_at,
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

/// The type behind VLAN tags, and where what it names begins.
fn ethernet(lead: &[u8]) -> Option<(u16, usize)> {
    let mut at = ADDRESSES_LEN;
    let mut ether_type = field::u16_at(lead, at)?;
    for _ in 0..MAX_VLAN_TAGS {
        if !matches!(ether_type, 0x8100 | 0x88a8) {
            break;
        }
        at += 4;
        ether_type = field::u16_at(lead, at)?;
    }
    Some((ether_type, at + 2))
}

fn ipv4(lead: &[u8], at: usize, total_len: usize, lengths: Lengths) -> Result<Network, Opaque> {
    let header: [u8; IPV4_LEN] = field::read(lead, at).ok_or(Opaque::Truncated)?;
    let [version, _, len0, len1, _, _, fragment0, fragment1, _, protocol, ..] = header;
    let header_len = usize::from(version & 0xf) * 4;
    if version >> 4 != 4 || header_len < IPV4_LEN {
        return Err(Opaque::Malformed);
    }
    let end = match lengths {
        Lengths::Fields => at + usize::from(u16::from_be_bytes([len0, len1])),
        Lengths::Frame => total_len,
    };
    if end > total_len || end < at + header_len {
        return Err(Opaque::Malformed);
    }
    // More fragments, or an offset (RFC 791, 3.1).
    if u16::from_be_bytes([fragment0, fragment1]) & 0x3fff != 0 {
        return Err(Opaque::Fragment);
    }
    Ok(Network {
        version: IpVersion::V4,
        at,
        protocol,
        transport_at: at + header_len,
        end,
        has_options: header_len > IPV4_LEN,
        destination_at: at + 16,
    })
}

fn ipv6(lead: &[u8], at: usize, total_len: usize, lengths: Lengths) -> Result<Network, Opaque> {
    let header: [u8; IPV6_LEN] = field::read(lead, at).ok_or(Opaque::Truncated)?;
    let [version, _, _, _, len0, len1, protocol, ..] = header;
    if version >> 4 != 6 {
        return Err(Opaque::Malformed);
    }
    let end = match lengths {
        Lengths::Fields => at + IPV6_LEN + usize::from(u16::from_be_bytes([len0, len1])),
        Lengths::Frame => total_len,
    };
    if end > total_len || end < at + IPV6_LEN {
        return Err(Opaque::Malformed);
    }
    let mut network = Network {
        version: IpVersion::V6,
        at,
        protocol,
        transport_at: at + IPV6_LEN,
        end,
        has_options: false,
        destination_at: at + 24,
    };
    for _ in 0..MAX_EXTENSIONS {
        if !skip_extension(lead, &mut network)? {
            return Ok(network);
        }
    }
    Err(Opaque::NotTransport)
}

/// Steps over an extension header (RFC 8200, 4); false when there is none.
fn skip_extension(lead: &[u8], network: &mut Network) -> Result<bool, Opaque> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const DESTINATION: u8 = 60;
    match network.protocol {
        HOP_BY_HOP | ROUTING | DESTINATION => {}
        FRAGMENT => return Err(Opaque::Fragment),
        _ => return Ok(false),
    }
    let at = network.transport_at;
    let [next, len, kind, left] = field::read(lead, at).ok_or(Opaque::Truncated)?;
    let len = 8 + usize::from(len) * 8;
    if at + len > network.end {
        return Err(Opaque::Malformed);
    }
    if at + len > lead.len() {
        return Err(Opaque::Truncated);
    }
    if network.protocol == ROUTING && left != 0 {
        network.destination_at = final_destination(at, len, kind)?;
    }
    network.protocol = next;
    network.transport_at = at + len;
    network.has_options = true;
    Ok(true)
}

/// The address in a routing header that the packet ends up at, which is the one in the
/// pseudo-header (RFC 8200, 8.1).
fn final_destination(at: usize, len: usize, kind: u8) -> Result<usize, Opaque> {
    match kind {
        _ if len < 24 => Err(Opaque::Malformed),
        // Mobile IPv6 (RFC 6275, 6.4) has one address, segment routing (RFC 8754, 2) the last first.
        2 | 4 => Ok(at + 8),
        _ => Err(Opaque::NotTransport),
    }
}

fn tcp_len(header: &[u8], room: usize) -> Result<usize, Opaque> {
    if room < TCP_LEN {
        return Err(Opaque::Malformed);
    }
    let data_offset = field::u8_at(header, 12).ok_or(Opaque::Truncated)?;
    match usize::from(data_offset >> 4) * 4 {
        len if len < TCP_LEN => Err(Opaque::Malformed),
        len => Ok(len),
    }
}

fn udp_len(header: &[u8], room: usize, lengths: Lengths) -> Result<usize, Opaque> {
    if room < UDP_LEN {
        return Err(Opaque::Malformed);
    }
    let len = field::u16_at(header, 4).ok_or(Opaque::Truncated)?;
    match lengths {
        Lengths::Fields if usize::from(len) != room => Err(Opaque::Malformed),
        _ => Ok(UDP_LEN),
    }
}

#[cfg(test)]
mod tests;
