//! The rules for IPv4.

use std::net::IpAddr;

use super::{Offence, Sender, Upper, protocol};
use crate::packet::{IpVersion, Packet, transport};

const BOOTP_SERVER: u16 = 67;
const BOOTP_CLIENT: u16 = 68;
/// Types of ICMP (RFC 792, RFC 1256) and IGMP (RFC 3376) that only routers send.
const ICMP_REDIRECT: u8 = 5;
const ICMP_ROUTER_ADVERTISEMENT: u8 = 9;
const IGMP_QUERY: u8 = 0x11;
/// Advertisement of multicast router discovery (RFC 4286): what bridges and switches send all
/// groups to, as they do to where a query or PIM comes from.
const IGMP_ROUTER_ADVERTISEMENT: u8 = 0x30;

/// Checks a packet in the frame that begins with `lead`.
pub(super) fn check(sender: &Sender<'_>, lead: &[u8], packet: &Packet) -> Result<Upper, Offence> {
    let source = packet.source(lead).ok_or(Offence::Opaque)?;
    let upper = if packet.fragment.is_later() {
        Upper::PLAIN
    } else {
        check_above(packet.protocol, packet.payload(lead))?
    };
    if sender.allows(source) || has_none(sender, source, packet, &upper) {
        Ok(upper)
    } else {
        Err(Offence::Address)
    }
}

/// Whether the guest may send this without an address.
fn has_none(sender: &Sender<'_>, source: IpAddr, packet: &Packet, upper: &Upper) -> bool {
    source.is_unspecified()
        && upper.needs_no_source
        && !packet.fragment.is_any()
        && sender.has(IpVersion::V4)
}

fn check_above(protocol: u8, payload: &[u8]) -> Result<Upper, Offence> {
    match protocol {
        // A first fragment without ports would let the next one choose.
        protocol::ip::UDP => match transport::ports(payload).ok_or(Offence::Opaque)? {
            // Clients do not care which port an answer comes from.
            (BOOTP_SERVER, _) | (_, BOOTP_CLIENT) => Err(Offence::Role),
            ports => {
                let needs_no_source = ports == (BOOTP_CLIENT, BOOTP_SERVER);
                Ok(Upper { looked_at: 4, needs_no_source })
            }
        },
        protocol::ip::ICMP | protocol::ip::IGMP => {
            let kind = transport::message_type(payload).ok_or(Offence::Opaque)?;
            match (protocol, kind) {
                (protocol::ip::ICMP, ICMP_REDIRECT | ICMP_ROUTER_ADVERTISEMENT)
                | (protocol::ip::IGMP, IGMP_QUERY | IGMP_ROUTER_ADVERTISEMENT) => {
                    Err(Offence::Role)
                }
                _ => Ok(Upper { looked_at: 1, needs_no_source: protocol == protocol::ip::IGMP }),
            }
        }
        protocol::ip::PIM => Err(Offence::Role),
        _ => Ok(Upper::PLAIN),
    }
}
