//! The Ethernet frames of guests: only as much of them as a wire may look at.
//!
//! A vnet carries any frame whatever is in it; what is read here are the two addresses, and whether
//! a frame says that its sender has arrived somewhere (gratuitous ARP, RARP, unsolicited neighbour
//! advertisement).

use etherparse::{ArpHardwareId, ArpOperation, EtherType, Ethernet2HeaderSlice, SlicedPacket};
use etherparse::{LinkExtSlice, NetSlice, TransportSlice};

use super::{Mac, ParseError};

/// Length of an Ethernet header without VLAN tags, in bytes: the shortest frame carried.
pub const HEADER_LEN: usize = 14;
/// Longest frame that is taken from a guest, in bytes: an IP packet of the largest size, with an
/// Ethernet header and two VLAN tags.
pub const MAX_LEN: usize = 65_535 + HEADER_LEN + 8;
/// Length of the two addresses, in bytes.
pub const ADDRESSES_LEN: usize = 12;

/// EtherType of MAC control frames (IEEE 802.3 annex 31A): PAUSE and its kin act on one link and
/// are never forwarded.
const MAC_CONTROL: EtherType = EtherType(0x8808);
/// EtherType of RARP (RFC 903).
const RARP: EtherType = EtherType(0x8035);

/// The fixed part of a frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Whom the frame is for.
    pub destination: Mac,
    /// Who says to have sent it.
    pub source: Mac,
    /// Whether it is a MAC control frame, which a wire's end keeps to itself.
    pub is_mac_control: bool,
}

impl Addresses {
    /// Reads the header of `frame`, of which only the first [`HEADER_LEN`] bytes need be there.
    ///
    /// # Errors
    /// `Truncated` for a shorter one.
    pub fn parse(frame: &[u8]) -> Result<Self, ParseError> {
        let header = Ethernet2HeaderSlice::from_slice(frame).map_err(|_| ParseError::Truncated)?;
        Ok(Self {
            destination: Mac(header.destination()),
            source: Mac(header.source()),
            is_mac_control: header.ether_type() == MAC_CONTROL,
        })
    }
}

/// Whether a group frame announces its sender: a gratuitous ARP (RFC 5227: sender and target
/// protocol address are equal), any RARP request, or an unsolicited neighbour advertisement
/// (RFC 4861, 7.2.6: sent to all nodes).
pub fn announces_sender(frame: &[u8]) -> bool {
    let Ok(packet) = SlicedPacket::from_ethernet(frame) else {
        return is_rarp(frame);
    };
    match packet.net {
        Some(NetSlice::Arp(arp)) => {
            arp.hw_addr_type() == ArpHardwareId::ETHERNET
                && matches!(arp.operation(), ArpOperation::REQUEST | ArpOperation::REPLY)
                && arp.sender_protocol_addr() == arp.target_protocol_addr()
        }
        Some(NetSlice::Ipv6(ref ip)) => {
            let destination = ip.header().destination_addr();
            let is_advertisement = matches!(&packet.transport,
                Some(TransportSlice::Icmpv6(icmp)) if icmp.type_u8() == 136);
            is_advertisement && destination.is_multicast()
        }
        None => {
            packet.link_exts.iter().all(|ext| matches!(ext, LinkExtSlice::Vlan(_)))
                && is_rarp(frame)
        }
        Some(NetSlice::Ipv4(_)) => false,
    }
}

fn is_rarp(frame: &[u8]) -> bool {
    Ethernet2HeaderSlice::from_slice(frame).is_ok_and(|header| header.ether_type() == RARP)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(destination: [u8; 6], ether_type: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = destination.to_vec();
        bytes.extend([0x52, 0x54, 0, 0, 0, 1]);
        bytes.extend(ether_type.to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    fn arp(sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
        let mut payload = vec![0, 1, 8, 0, 6, 4, 0, 1, 0x52, 0x54, 0, 0, 0, 1];
        payload.extend(sender);
        payload.extend([0; 6]);
        payload.extend(target);
        frame([0xff; 6], 0x0806, &payload)
    }

    #[test]
    fn reads_addresses() {
        let bytes = frame([1, 0x80, 0xc2, 0, 0, 1], 0x8808, &[]);
        let addresses = Addresses::parse(&bytes).unwrap();
        assert_eq!(addresses.destination, "01:80:c2:00:00:01".parse().unwrap());
        assert_eq!(addresses.source, "52:54:00:00:00:01".parse().unwrap());
        assert!(addresses.is_mac_control);
        for len in 0..HEADER_LEN {
            assert_eq!(Addresses::parse(&bytes[..len]), Err(ParseError::Truncated));
        }
    }

    #[test]
    fn gratuitous_arp_announces_and_a_question_does_not() {
        assert!(announces_sender(&arp([10, 0, 0, 1], [10, 0, 0, 1])));
        assert!(!announces_sender(&arp([10, 0, 0, 1], [10, 0, 0, 2])));
    }

    #[test]
    fn rarp_announces() {
        assert!(announces_sender(&frame([0xff; 6], 0x8035, &[0; 28])));
        assert!(!announces_sender(&frame([0xff; 6], 0x88cc, &[0; 28])));
    }

    #[test]
    fn unsolicited_neighbour_advertisement_announces() {
        let mut payload = vec![0x60, 0, 0, 0, 0, 24, 58, 255];
        payload.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        payload.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        payload.extend([136, 0, 0, 0, 0x20, 0, 0, 0]);
        payload.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert!(announces_sender(&frame([0x33, 0x33, 0, 0, 0, 1], 0x86dd, &payload)));
        payload[40] = 135;
        assert!(!announces_sender(&frame([0x33, 0x33, 0, 0, 0, 1], 0x86dd, &payload)));
    }

    #[test]
    fn no_truncation_or_mutation_of_a_vector_panics() {
        let vector = arp([10, 0, 0, 1], [10, 0, 0, 1]);
        for len in 0..vector.len() {
            assert!(!announces_sender(&vector[..len]), "cut at {len}");
        }
        for at in 0..vector.len() {
            for value in 0..=255 {
                let mut bytes = vector.clone();
                bytes[at] = value;
                announces_sender(&bytes);
                Addresses::parse(&bytes).unwrap();
            }
        }
    }
}
