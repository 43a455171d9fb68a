//! Anti-spoofing: which source addresses a guest may use in IP, ARP and neighbour discovery, and
//! which roles it must not play.
//!
//! A vif with a list of addresses (`--allow-ip`) sends from no others: a frame passes only if
//! every part of it that names its sender was understood and is on the list. What can't be understood
//! is dropped, so that there is nothing to hide behind. Without a list nothing is looked at.
//!
//! | In a frame | Passes if |
//! |---|---|
//! | VLAN tags, tags for priority (VLAN 0) | at most two, and what is behind them passes |
//! | LLC, SNAP, any protocol but those below | never |
//! | IPv4 | the source is on the list; without an address: DHCP client, IGMP report |
//! | IPv6 | the source is on the list or the link-local address made of the MAC (RFC 4291, appendix A); without an address: neighbour solicitation, router solicitation, MLD report |
//! | ARP (RFC 826) | it names the frame's source MAC, and a sender on the list; or none, if it asks for one on the list (a probe, RFC 5227) |
//! | RARP (RFC 903) | it names that MAC and no address that is not on the list |
//! | neighbour discovery (RFC 4861) | it names no other MAC, and is no fragment (RFC 6980); an advertisement, or a solicitation without a source (RFC 4862, 5.4): for a target that may be a source |
//! | from a DHCP or DHCPv6 server's port or to a client's, router advertisement, redirect, IGMP or MLD query, multicast router advertisement (RFC 4286), PIM | never |
//! | a first fragment | it holds all headers (RFC 7112) |
//! | a checksum that is left to us, or to the receiver | it is behind all that was looked at |
//!
//! A protocol version with no address on the list does not pass at all. No group address, nor the
//! unspecified one, is on a list, whatever its prefixes are. The frame's MAC addresses are not
//! looked at here: the source is stamped, whatever the guest wrote, and is what "the MAC" is above.
//!
//! [`exit`] has the frames' beginnings copied before they are checked, and sends the copies.

#![forbid(unsafe_code)]
#![warn(clippy::indexing_slicing)]
#![cfg_attr(not(test), warn(clippy::cast_possible_truncation))]

pub mod exit;
mod ipv6;
mod prefix;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use prefix::Prefix;

use crate::metrics::VifCounter;
use crate::wire::Mac;
use crate::wire::frame::ADDRESSES_LEN;

/// Most VLAN tags that are looked behind.
const MAX_TAGS: usize = 2;
const ARP_LEN: usize = 28;
const ARP_REQUEST: u16 = 1;
const ARP_REPLY: u16 = 2;
const ICMP: u8 = 1;
const IGMP: u8 = 2;
const UDP: u8 = 17;
const BOOTP_SERVER: u16 = 67;
const BOOTP_CLIENT: u16 = 68;
/// Types of ICMP (RFC 792, RFC 1256) and IGMP (RFC 3376) that only routers send.
const ICMP_REDIRECT: u8 = 5;
const ICMP_ROUTER_ADVERTISEMENT: u8 = 9;
const IGMP_QUERY: u8 = 0x11;
/// Advertisement of multicast router discovery (RFC 4286): what bridges and switches send all groups to,
/// as they do to where a query or PIM comes from.
const IGMP_ROUTER_ADVERTISEMENT: u8 = 0x30;
/// Multicast routers among themselves (RFC 7761).
const PIM: u8 = 103;
/// More fragments follow.
const MORE_FRAGMENTS: u16 = 0x2000;
/// In units of 8 bytes.
const FRAGMENT_OFFSET: u16 = 0x1fff;

/// What is wrong with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offence {
    /// It names a sender that the guest is not.
    Address,
    /// It plays a server or router.
    Role,
    /// It can't be checked: another protocol, or headers that are cut, nested or contradict.
    Opaque,
}

impl Offence {
    /// The name of the drop.
    pub const fn counter(self) -> VifCounter {
        match self {
            Self::Address => VifCounter::tx_drop_guard_address,
            Self::Role => VifCounter::tx_drop_guard_role,
            Self::Opaque => VifCounter::tx_drop_guard_opaque,
        }
    }
}

/// The addresses of a vif.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    allowed: Vec<Prefix>,
}

impl Guard {
    /// A guest that may use addresses in any of the prefixes.
    pub const fn new(allowed: Vec<Prefix>) -> Self {
        Self { allowed }
    }

    /// Whether a frame of `total_len` bytes that begins with `lead`, and leaves with this source
    /// MAC, may do so. All that is looked at must be in `lead`; the caller sends these very bytes,
    /// not what the guest has there later. Returns how many of them must stay as they are: no
    /// checksum may be completed in there.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, source: Mac, lead: &[u8], total_len: usize) -> Result<usize, Offence> {
        let (ether_type, at) = payload_of(lead).ok_or(Offence::Opaque)?;
        let packet = lead.get(at..).ok_or(Offence::Opaque)?;
        let total_len = total_len.checked_sub(at).ok_or(Offence::Opaque)?;
        let sender = Sender { mac: source, allowed: &self.allowed };
        let looked_at = match ether_type {
            0x0800 => sender.check_ipv4(packet, total_len),
            0x86dd => ipv6::check(&sender, packet, total_len),
            0x0806 => sender.check_arp(packet),
            0x8035 => sender.check_rarp(packet),
            _ => Err(Offence::Opaque),
        };
        Ok(at + looked_at?)
    }
}

/// Who sends a frame. What checks a packet returns how much of it was looked at, in bytes.
struct Sender<'g> {
    mac: Mac,
    allowed: &'g [Prefix],
}

impl Sender<'_> {
    fn allows(&self, address: impl Into<IpAddr>) -> bool {
        let address = address.into();
        let is_one = !address.is_unspecified()
            && !address.is_multicast()
            && address != IpAddr::V4(Ipv4Addr::BROADCAST);
        is_one && self.allowed.iter().any(|prefix| prefix.contains(address))
    }

    /// The IPv6 link-local address that is made of the MAC.
    fn link_local(&self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.mac.0;
        Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
    }

    fn check_ipv4(&self, packet: &[u8], total_len: usize) -> Result<usize, Offence> {
        let fixed: &[u8; 20] = packet.first_chunk().ok_or(Offence::Opaque)?;
        let header_len = usize::from(fixed[0] & 15) * 4;
        let len = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
        // A super-frame's length may be anything: it is written anew when the frame is cut.
        let is_whole = header_len >= 20 && (len == 0 || header_len <= len && len <= total_len);
        if fixed[0] >> 4 != 4 || !is_whole {
            return Err(Offence::Opaque);
        }
        let end = if len == 0 { packet.len() } else { len.min(packet.len()) };
        let payload = packet.get(header_len..end).ok_or(Offence::Opaque)?;
        let source = Ipv4Addr::new(fixed[12], fixed[13], fixed[14], fixed[15]);
        let fragment = u16::from_be_bytes([fixed[6], fixed[7]]);
        let is_fragment = fragment & (FRAGMENT_OFFSET | MORE_FRAGMENTS) != 0;
        let upper = match fragment & FRAGMENT_OFFSET {
            0 => check_above_ipv4(fixed[9], payload)?,
            _ => Upper::PLAIN,
        };
        let serves = self.allowed.iter().any(Prefix::is_v4);
        let has_none = source.is_unspecified() && upper.needs_no_source && !is_fragment && serves;
        if self.allows(source) || has_none {
            Ok(header_len + upper.looked_at)
        } else {
            Err(Offence::Address)
        }
    }

    /// Hardware and protocol address of the sender, if it is ARP for IPv4 over Ethernet.
    fn named_by<'a>(&self, packet: &'a [u8]) -> Result<(&'a [u8; ARP_LEN], Ipv4Addr), Offence> {
        let arp: &[u8; ARP_LEN] = packet.first_chunk().ok_or(Offence::Opaque)?;
        if arp[..6] != [0, 1, 8, 0, 6, 4] {
            return Err(Offence::Opaque);
        }
        if arp[8..14] != self.mac.0 {
            return Err(Offence::Address);
        }
        Ok((arp, Ipv4Addr::new(arp[14], arp[15], arp[16], arp[17])))
    }

    fn check_arp(&self, packet: &[u8]) -> Result<usize, Offence> {
        let (arp, sender) = self.named_by(packet)?;
        let target = Ipv4Addr::new(arp[24], arp[25], arp[26], arp[27]);
        let is_probe = match u16::from_be_bytes([arp[6], arp[7]]) {
            // For another's address it would keep its owner from taking it (RFC 5227, 2.1.1).
            ARP_REQUEST => sender.is_unspecified() && self.allows(target),
            ARP_REPLY => false,
            _ => return Err(Offence::Opaque),
        };
        if is_probe || self.allows(sender) { Ok(ARP_LEN) } else { Err(Offence::Address) }
    }

    fn check_rarp(&self, packet: &[u8]) -> Result<usize, Offence> {
        let (arp, sender) = self.named_by(packet)?;
        let target = Ipv4Addr::new(arp[24], arp[25], arp[26], arp[27]);
        let is_own = |address: Ipv4Addr| address.is_unspecified() || self.allows(address);
        let is_honest = arp[18..24] == self.mac.0 && is_own(sender) && is_own(target);
        if is_honest { Ok(ARP_LEN) } else { Err(Offence::Address) }
    }
}

/// What the protocol above IP is about.
struct Upper {
    /// How much of its header was looked at, in bytes.
    looked_at: usize,
    /// Whether it is for a host that has no address yet.
    needs_no_source: bool,
}

impl Upper {
    /// Not looked at.
    const PLAIN: Self = Self { looked_at: 0, needs_no_source: false };
}

/// Checks what begins above an IPv4 header.
fn check_above_ipv4(protocol: u8, payload: &[u8]) -> Result<Upper, Offence> {
    match protocol {
        // A first fragment without ports would let the next one choose.
        UDP => match ports(payload).ok_or(Offence::Opaque)? {
            // Clients do not care which port an answer comes from.
            (BOOTP_SERVER, _) | (_, BOOTP_CLIENT) => Err(Offence::Role),
            ports => {
                let needs_no_source = ports == (BOOTP_CLIENT, BOOTP_SERVER);
                Ok(Upper { looked_at: 4, needs_no_source })
            }
        },
        ICMP | IGMP => {
            let kind = *payload.first().ok_or(Offence::Opaque)?;
            match (protocol, kind) {
                (ICMP, ICMP_REDIRECT | ICMP_ROUTER_ADVERTISEMENT)
                | (IGMP, IGMP_QUERY | IGMP_ROUTER_ADVERTISEMENT) => Err(Offence::Role),
                _ => Ok(Upper { looked_at: 1, needs_no_source: protocol == IGMP }),
            }
        }
        PIM => Err(Offence::Role),
        _ => Ok(Upper::PLAIN),
    }
}

/// The ether type behind all VLAN tags, and where its payload begins.
fn payload_of(lead: &[u8]) -> Option<(u16, usize)> {
    for tags in 0..=MAX_TAGS {
        let at = ADDRESSES_LEN + 4 * tags;
        let ether_type = u16::from_be_bytes(*lead.get(at..)?.first_chunk()?);
        match ether_type {
            // IEEE 802.1Q, 802.1ad, and what was used before it.
            0x8100 | 0x88a8 | 0x9100 | 0x9200 | 0x9300 => {}
            // A length: LLC follows, and perhaps SNAP with an ether type of its own.
            0..0x600 => return None,
            _ => return Some((ether_type, at + 2)),
        }
    }
    None
}

/// Source and destination port.
fn ports(transport: &[u8]) -> Option<(u16, u16)> {
    let &[a, b, c, d] = transport.first_chunk()?;
    Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}
