//! The rules for IPv6: no header may hide another, or name another sender.

use std::net::{IpAddr, Ipv6Addr};

use super::{Offence, Sender, Upper, protocol};
use crate::packet::discovery::{
    Discovery, NEIGHBOUR_ADVERTISEMENT, NEIGHBOUR_SOLICITATION, REDIRECT, ROUTER_ADVERTISEMENT,
    ROUTER_SOLICITATION,
};
use crate::packet::extension::{Extension, options};
use crate::packet::{IpVersion, Packet, transport};

const DHCPV6_CLIENT: u16 = 546;
const DHCPV6_SERVER: u16 = 547;

/// Types of ICMPv6 (RFC 2710, RFC 3810, RFC 4286) beside those of neighbour discovery.
mod icmp {
    pub(super) const MLD_QUERY: u8 = 130;
    pub(super) const MLD_REPORT: u8 = 131;
    pub(super) const MLD_DONE: u8 = 132;
    pub(super) const MLDV2_REPORT: u8 = 143;
    pub(super) const MULTICAST_ROUTER_ADVERTISEMENT: u8 = 151;
}

/// The destination option of a mobile node.
const HOME_ADDRESS: u8 = 0xc9;

/// Checks a packet in the frame that begins with `lead`.
pub(super) fn check(sender: &Sender<'_>, lead: &[u8], packet: &Packet) -> Result<Upper, Offence> {
    if !sender.has(IpVersion::V6) {
        return Err(Offence::Address);
    }
    let Some(IpAddr::V6(source)) = packet.source(lead) else { return Err(Offence::Opaque) };
    // A home agent's business (RFC 6275).
    if packet.extensions.contains(Extension::Mobility) || names_home(lead, packet) {
        return Err(Offence::Opaque);
    }
    let payload = packet.payload(lead);
    let upper = match packet.protocol {
        _ if packet.fragment.is_later() => Upper::PLAIN,
        protocol::ip::PIM => return Err(Offence::Role),
        protocol::ip::ICMPV6 => {
            // Of discovery, all options are to be seen.
            let is_whole = !packet.fragment.is_any() && packet.end <= lead.len();
            check_icmp(sender, source, payload, is_whole)?
        }
        protocol::ip::UDP => match transport::ports(payload).ok_or(Offence::Opaque)? {
            // Clients do not care which port an answer comes from.
            (DHCPV6_SERVER, _) | (_, DHCPV6_CLIENT) => return Err(Offence::Role),
            _ => Upper { looked_at: 4, needs_no_source: false },
        },
        _ => Upper::PLAIN,
    };
    if is_own(sender, source) || source.is_unspecified() && upper.needs_no_source {
        Ok(upper)
    } else {
        Err(Offence::Address)
    }
}

fn is_own(sender: &Sender<'_>, address: Ipv6Addr) -> bool {
    sender.allows(address) || address == sender.link_local()
}

/// Whether destination options name another sender, the home address of a mobile node (RFC 6275,
/// 6.3): its correspondent takes that for the source. Options that can't be read might.
fn names_home(lead: &[u8], packet: &Packet) -> bool {
    if !packet.extensions.contains(Extension::Destination) {
        return false;
    }
    let mut headers = packet.extension_headers(lead);
    while let Ok(Some(header)) = headers.read() {
        let names =
            |option: Option<(u8, &[u8])>| option.is_none_or(|(kind, _)| kind == HOME_ADDRESS);
        if header.kind == Extension::Destination && options(header.options(lead)).any(names) {
            return true;
        }
    }
    false
}

fn check_icmp(
    sender: &Sender<'_>,
    source: Ipv6Addr,
    message: &[u8],
    is_whole: bool,
) -> Result<Upper, Offence> {
    let kind = transport::message_type(message).ok_or(Offence::Opaque)?;
    match kind {
        ROUTER_ADVERTISEMENT
        | REDIRECT
        | icmp::MLD_QUERY
        | icmp::MULTICAST_ROUTER_ADVERTISEMENT => Err(Offence::Role),
        ROUTER_SOLICITATION | NEIGHBOUR_SOLICITATION | NEIGHBOUR_ADVERTISEMENT => {
            let discovery = Discovery::parse(message).filter(|_| is_whole);
            check_discovery(sender, source, kind, &discovery.ok_or(Offence::Opaque)?)?;
            let needs_no_source = kind != NEIGHBOUR_ADVERTISEMENT;
            Ok(Upper { looked_at: message.len(), needs_no_source })
        }
        icmp::MLD_REPORT | icmp::MLD_DONE | icmp::MLDV2_REPORT => {
            Ok(Upper { looked_at: 1, needs_no_source: true })
        }
        _ => Ok(Upper { looked_at: 1, needs_no_source: false }),
    }
}

fn check_discovery(
    sender: &Sender<'_>,
    source: Ipv6Addr,
    kind: u8,
    discovery: &Discovery<'_>,
) -> Result<(), Offence> {
    for mac in discovery.macs() {
        if mac.ok_or(Offence::Opaque)? != sender.mac.0 {
            return Err(Offence::Address);
        }
    }
    // Without a source it asks for an address to be its own, and would keep its owner from
    // taking it (RFC 4862, 5.4.3).
    let claims = kind == NEIGHBOUR_ADVERTISEMENT || source.is_unspecified();
    match discovery.target {
        Some(target) if claims && !is_own(sender, target) => Err(Offence::Address),
        _ => Ok(()),
    }
}
