//! The rules for IPv6: all headers are walked, none may hide another.

use std::net::Ipv6Addr;

use super::{Offence, Sender, UDP, ports};

/// Most extension headers that are walked; Linux sends no more than three.
const MAX_EXTENSIONS: usize = 8;
const HEADER_LEN: usize = 40;
/// In a fragment header: the offset, in units of 8 bytes, above three other bits.
const FRAGMENT_OFFSET: u16 = 0xfff8;
const DHCPV6_CLIENT: u16 = 546;
const DHCPV6_SERVER: u16 = 547;

/// Next header numbers (IANA).
mod next {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const AUTHENTICATION: u8 = 51;
    pub(super) const ICMPV6: u8 = 58;
    pub(super) const DESTINATION: u8 = 60;
    pub(super) const MOBILITY: u8 = 135;
    pub(super) const HIP: u8 = 139;
    pub(super) const SHIM6: u8 = 140;
}

/// Types of ICMPv6 (RFC 4861, RFC 2710, RFC 3810, RFC 4286).
mod icmp {
    pub(super) const MLD_QUERY: u8 = 130;
    pub(super) const MLD_REPORT: u8 = 131;
    pub(super) const MLD_DONE: u8 = 132;
    pub(super) const ROUTER_SOLICITATION: u8 = 133;
    pub(super) const ROUTER_ADVERTISEMENT: u8 = 134;
    pub(super) const NEIGHBOUR_SOLICITATION: u8 = 135;
    pub(super) const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    pub(super) const REDIRECT: u8 = 137;
    pub(super) const MLDV2_REPORT: u8 = 143;
    pub(super) const MULTICAST_ROUTER_ADVERTISEMENT: u8 = 151;
}

/// Destination options: padding of one byte (RFC 8200, 4.2), and that of a mobile node.
const PAD_1: u8 = 0;
const HOME_ADDRESS: u8 = 0xc9;

/// Options of neighbour discovery that name a link-layer address.
const SOURCE_LINK_LAYER: u8 = 1;
const TARGET_LINK_LAYER: u8 = 2;

/// What is behind all extension headers.
struct Upper<'a> {
    protocol: u8,
    /// As much of it as is known. Of a later fragment, what it begins with.
    bytes: &'a [u8],
    is_fragment: bool,
    is_first: bool,
}

/// Checks an IPv6 packet of which `packet` is known.
pub(super) fn check(
    sender: &Sender<'_>,
    packet: &[u8],
    total_len: usize,
) -> Result<usize, Offence> {
    let fixed: &[u8; HEADER_LEN] = packet.first_chunk().ok_or(Offence::Opaque)?;
    let len = usize::from(u16::from_be_bytes([fixed[4], fixed[5]]));
    if fixed[0] >> 4 != 6 || HEADER_LEN + len > total_len {
        return Err(Offence::Opaque);
    }
    if sender.allowed.iter().all(super::Prefix::is_v4) {
        return Err(Offence::Address);
    }
    let source: &[u8; 16] = fixed[8..].first_chunk().ok_or(Offence::Opaque)?;
    let source = Ipv6Addr::from(*source);
    // A length of 0 is that of a super-frame, written anew when it is cut.
    let is_cut = HEADER_LEN + len > packet.len();
    let end = if len == 0 { packet.len() } else { packet.len().min(HEADER_LEN + len) };
    let packet = packet.get(..end).ok_or(Offence::Opaque)?;
    let upper = upper(fixed[6], packet.get(HEADER_LEN..).ok_or(Offence::Opaque)?)?;
    let above = match upper {
        Upper { is_first: false, .. } => super::Upper::PLAIN,
        Upper { protocol: super::PIM, .. } => return Err(Offence::Role),
        Upper { protocol: next::ICMPV6, .. } => check_icmp(sender, source, &upper, is_cut)?,
        Upper { protocol: UDP, bytes, .. } => match ports(bytes).ok_or(Offence::Opaque)? {
            // Clients do not care which port an answer comes from.
            (DHCPV6_SERVER, _) | (_, DHCPV6_CLIENT) => return Err(Offence::Role),
            _ => super::Upper { looked_at: 4, needs_no_source: false },
        },
        _ => super::Upper::PLAIN,
    };
    if is_own(sender, source) || source.is_unspecified() && above.needs_no_source {
        Ok(end - upper.bytes.len() + above.looked_at)
    } else {
        Err(Offence::Address)
    }
}

fn is_own(sender: &Sender<'_>, address: Ipv6Addr) -> bool {
    sender.allows(address) || address == sender.link_local()
}

/// Walks the extension headers.
fn upper(mut protocol: u8, mut bytes: &[u8]) -> Result<Upper<'_>, Offence> {
    let mut is_fragment = false;
    for _ in 0..=MAX_EXTENSIONS {
        let len = match protocol {
            // A home agent's business (RFC 6275).
            next::MOBILITY => return Err(Offence::Opaque),
            next::DESTINATION if names_home(bytes)? => return Err(Offence::Opaque),
            next::HOP_BY_HOP | next::ROUTING | next::DESTINATION | next::HIP | next::SHIM6 => {
                8 * (1 + usize::from(*bytes.get(1).ok_or(Offence::Opaque)?))
            }
            next::AUTHENTICATION => 4 * (2 + usize::from(*bytes.get(1).ok_or(Offence::Opaque)?)),
            next::FRAGMENT if is_fragment => return Err(Offence::Opaque),
            next::FRAGMENT => {
                is_fragment = true;
                let header: &[u8; 8] = bytes.first_chunk().ok_or(Offence::Opaque)?;
                if u16::from_be_bytes([header[2], header[3]]) & FRAGMENT_OFFSET != 0 {
                    let (protocol, bytes) = (header[0], bytes.get(8..).unwrap_or_default());
                    return Ok(Upper { protocol, bytes, is_fragment, is_first: false });
                }
                8
            }
            _ => return Ok(Upper { protocol, bytes, is_fragment, is_first: true }),
        };
        protocol = *bytes.first().ok_or(Offence::Opaque)?;
        bytes = bytes.get(len..).ok_or(Offence::Opaque)?;
    }
    Err(Offence::Opaque)
}

/// Whether destination options name another sender, the home address of a mobile node (RFC 6275,
/// 6.3): its correspondent takes that for the source.
fn names_home(header: &[u8]) -> Result<bool, Offence> {
    let len = 8 * (1 + usize::from(*header.get(1).ok_or(Offence::Opaque)?));
    let mut options = header.get(2..len).ok_or(Offence::Opaque)?;
    while let Some((&kind, rest)) = options.split_first() {
        if kind == PAD_1 {
            options = rest;
            continue;
        }
        if kind == HOME_ADDRESS {
            return Ok(true);
        }
        let (&len, rest) = rest.split_first().ok_or(Offence::Opaque)?;
        options = rest.get(usize::from(len)..).ok_or(Offence::Opaque)?;
    }
    Ok(false)
}

fn check_icmp(
    sender: &Sender<'_>,
    source: Ipv6Addr,
    upper: &Upper<'_>,
    is_cut: bool,
) -> Result<super::Upper, Offence> {
    let message = upper.bytes;
    let kind = *message.first().ok_or(Offence::Opaque)?;
    let is_discovery = (icmp::ROUTER_SOLICITATION..=icmp::REDIRECT).contains(&kind);
    if matches!(
        kind,
        icmp::ROUTER_ADVERTISEMENT
            | icmp::REDIRECT
            | icmp::MLD_QUERY
            | icmp::MULTICAST_ROUTER_ADVERTISEMENT
    ) {
        return Err(Offence::Role);
    }
    // All of its options are to be seen.
    if is_discovery && (upper.is_fragment || is_cut) {
        return Err(Offence::Opaque);
    }
    let of_discovery = super::Upper {
        looked_at: message.len(),
        needs_no_source: kind != icmp::NEIGHBOUR_ADVERTISEMENT,
    };
    match kind {
        icmp::ROUTER_SOLICITATION => {
            check_options(sender, message.get(8..).ok_or(Offence::Opaque)?)?;
            Ok(of_discovery)
        }
        icmp::NEIGHBOUR_SOLICITATION | icmp::NEIGHBOUR_ADVERTISEMENT => {
            check_options(sender, message.get(24..).ok_or(Offence::Opaque)?)?;
            let target: &[u8; 16] =
                message.get(8..).and_then(<[u8]>::first_chunk).ok_or(Offence::Opaque)?;
            // Without a source it asks for an address to be its own, and would keep its owner from
            // taking it (RFC 4862, 5.4.3).
            let claims = kind == icmp::NEIGHBOUR_ADVERTISEMENT || source.is_unspecified();
            if claims && !is_own(sender, Ipv6Addr::from(*target)) {
                return Err(Offence::Address);
            }
            Ok(of_discovery)
        }
        icmp::MLD_REPORT | icmp::MLD_DONE | icmp::MLDV2_REPORT => {
            Ok(super::Upper { looked_at: 1, needs_no_source: true })
        }
        _ => Ok(super::Upper { looked_at: 1, needs_no_source: false }),
    }
}

/// Every link-layer address named must be the guest's own.
fn check_options(sender: &Sender<'_>, mut options: &[u8]) -> Result<(), Offence> {
    while let &[kind, units, ..] = options {
        let len = 8 * usize::from(units);
        if len == 0 {
            return Err(Offence::Opaque);
        }
        let option = options.get(..len).ok_or(Offence::Opaque)?;
        let names_other = option.get(2..8) != Some(&sender.mac.0[..]);
        if matches!(kind, SOURCE_LINK_LAYER | TARGET_LINK_LAYER) && names_other {
            return Err(Offence::Address);
        }
        options = options.get(len..).unwrap_or_default();
    }
    if options.is_empty() { Ok(()) } else { Err(Offence::Opaque) }
}
