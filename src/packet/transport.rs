//! The beginning of what IP carries: lengths of TCP and UDP headers, ports, types of ICMP messages.

use super::{Reason, field};

/// Shortest TCP header, in bytes.
const TCP_LEN: usize = 20;
/// Length of a UDP header, in bytes.
pub const UDP_LEN: usize = 8;

/// Length of the TCP header that begins with `header`, of a packet that has `room` for it, in
/// bytes.
///
/// # Errors
/// It is truncated or malformed.
#[inline]
pub fn tcp_len(header: &[u8], room: usize) -> Result<usize, Reason> {
    if room < TCP_LEN {
        return Err(Reason::Malformed);
    }
    let data_offset = field::u8_at(header, 12).ok_or(Reason::Truncated)?;
    match usize::from(data_offset >> 4) * 4 {
        len if len < TCP_LEN || len > room => Err(Reason::Malformed),
        len => Ok(len),
    }
}

/// The length field of the UDP header that begins with `header`, of a packet that has `room` for
/// it, in bytes.
///
/// # Errors
/// It is truncated, or its packet too short.
#[inline]
pub fn udp_datagram_len(header: &[u8], room: usize) -> Result<usize, Reason> {
    if room < UDP_LEN {
        return Err(Reason::Malformed);
    }
    field::u16_at(header, 4).map(usize::from).ok_or(Reason::Truncated)
}

/// Source and destination port of TCP, UDP or SCTP.
pub fn ports(header: &[u8]) -> Option<(u16, u16)> {
    Some((field::u16_at(header, 0)?, field::u16_at(header, 2)?))
}

/// Type of an ICMP, ICMPv6 or IGMP message.
pub fn message_type(message: &[u8]) -> Option<u8> {
    field::u8_at(message, 0)
}
