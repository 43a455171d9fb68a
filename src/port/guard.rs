//! Anti-spoofing: which source addresses a guest may use in IP, ARP and neighbour discovery, and
//! which roles it must not play.
//!
//! A vif with a list of addresses (`--allow-ip`) sends from no others: a frame passes only if
//! every part of it that names its sender was understood and is on the list. What can't be understood
//! is dropped, so that there is nothing to hide behind. Without a list nothing is looked at.
//!
//! | In a frame | Passes if |
//! |---|---|
//! | VLAN tags ([VLAN policy](crate::packet#vlan-policy)) | at most two, and what is behind them passes |
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
//! [`crate::packet`] walks the headers, and says which VLAN tags it reads; here are only the rules.
//! [`exit`] has the frames' beginnings copied before they are checked, and sends the copies.

#![forbid(unsafe_code)]
#![warn(clippy::indexing_slicing)]
#![cfg_attr(not(test), warn(clippy::cast_possible_truncation))]

pub mod exit;
mod ipv4;
mod ipv6;
mod prefix;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use prefix::Prefix;

use crate::metrics::VifCounter;
use crate::packet::arp::{self, Arp};
use crate::packet::protocol::{self, ether_type};
use crate::packet::{Ethernet, IpVersion, Lengths, Packet, Stop};
use crate::wire::Mac;
use crate::wire::name::is_host;

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

/// What can't be read to its end can't be checked.
impl From<Stop> for Offence {
    fn from(_: Stop) -> Self {
        Self::Opaque
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
        let lead = lead.get(..total_len).unwrap_or(lead);
        let ethernet = Ethernet::parse(lead)?;
        let sender = Sender { mac: source, allowed: &self.allowed };
        let message = || Arp::parse(lead.get(ethernet.payload_at..)?);
        match ethernet.ether_type {
            ether_type::IPV4 | ether_type::IPV6 => {
                // A super-frame's length may be 0: it is written anew when the frame is cut.
                let lengths = Lengths::FieldsUnlessZero;
                let packet = Packet::parse_in(lead, &ethernet, total_len, lengths)?;
                let upper = match packet.version {
                    IpVersion::V4 => ipv4::check(&sender, lead, &packet),
                    IpVersion::V6 => ipv6::check(&sender, lead, &packet),
                };
                Ok(packet.transport_at + upper?.looked_at)
            }
            ether_type::ARP => {
                sender.check_arp(&message().ok_or(Offence::Opaque)?)?;
                Ok(ethernet.payload_at + arp::LEN)
            }
            ether_type::RARP => {
                sender.check_rarp(&message().ok_or(Offence::Opaque)?)?;
                Ok(ethernet.payload_at + arp::LEN)
            }
            _ => Err(Offence::Opaque),
        }
    }
}

/// The guest, as the sender of a frame.
struct Sender<'g> {
    mac: Mac,
    allowed: &'g [Prefix],
}

impl Sender<'_> {
    fn allows(&self, address: impl Into<IpAddr>) -> bool {
        let address = address.into();
        is_host(address) && self.allowed.iter().any(|prefix| prefix.contains(address))
    }

    /// The IPv6 link-local address that is made of the MAC.
    fn link_local(&self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.mac.0;
        Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
    }

    /// Whether any address of this version is allowed.
    fn has(&self, version: IpVersion) -> bool {
        self.allowed.iter().any(|prefix| prefix.is_v4() == (version == IpVersion::V4))
    }

    fn check_arp(&self, message: &Arp) -> Result<(), Offence> {
        if message.sender_mac != self.mac.0 {
            return Err(Offence::Address);
        }
        let is_probe = match message.operation {
            // For another's address it would keep its owner from taking it (RFC 5227, 2.1.1).
            arp::REQUEST => message.sender.is_unspecified() && self.allows(message.target),
            arp::REPLY => false,
            _ => return Err(Offence::Opaque),
        };
        if is_probe || self.allows(message.sender) { Ok(()) } else { Err(Offence::Address) }
    }

    fn check_rarp(&self, message: &Arp) -> Result<(), Offence> {
        let is_own = |address: Ipv4Addr| address.is_unspecified() || self.allows(address);
        let macs = [message.sender_mac, message.target_mac];
        let is_honest = macs == [self.mac.0; 2] && is_own(message.sender) && is_own(message.target);
        if is_honest { Ok(()) } else { Err(Offence::Address) }
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
