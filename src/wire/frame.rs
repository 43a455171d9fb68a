//! The Ethernet frames of guests, as far as the tunnel reads them.
//!
//! A vnet carries any frame, whatever its contents. This module reads only the two addresses, and
//! detects frames by which a guest announces itself (gratuitous ARP, RARP, unsolicited neighbour
//! advertisement).

use super::{Mac, ParseError};
use crate::packet::arp::{self, Arp};
use crate::packet::discovery::NEIGHBOUR_ADVERTISEMENT;
use crate::packet::ethernet::{MAX_TAGS, TAG_LEN};
use crate::packet::protocol::{self, ether_type};
use crate::packet::{Ethernet, Lengths, Packet, transport};

pub use crate::packet::ethernet::{ADDRESSES_LEN, HEADER_LEN};

/// Longest frame that a backend accepts from a guest, in bytes: an IP packet of the largest size,
/// with an Ethernet header and two VLAN tags.
pub const MAX_LEN: usize = 65_535 + HEADER_LEN + MAX_TAGS * TAG_LEN;

/// The fixed part of a frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The destination.
    pub destination: Mac,
    /// The source. The sender may have forged it.
    pub source: Mac,
    /// Whether it is a MAC control frame, which never leaves its link.
    pub is_mac_control: bool,
}

impl Addresses {
    /// Reads the header of `frame`, of which only the first [`HEADER_LEN`] bytes need be there.
    ///
    /// # Errors
    /// `Truncated` for a shorter one.
    pub fn parse(frame: &[u8]) -> Result<Self, ParseError> {
        let header: &[u8; HEADER_LEN] = frame.first_chunk().ok_or(ParseError::Truncated)?;
        let [t0, t1, t2, t3, t4, t5, f0, f1, f2, f3, f4, f5, kind @ ..] = *header;
        Ok(Self {
            destination: Mac([t0, t1, t2, t3, t4, t5]),
            source: Mac([f0, f1, f2, f3, f4, f5]),
            is_mac_control: u16::from_be_bytes(kind) == ether_type::MAC_CONTROL,
        })
    }
}

/// Whether a group frame announces its sender: a gratuitous ARP (RFC 5227: sender and target
/// protocol address are equal), any RARP request, or an unsolicited neighbour advertisement
/// (RFC 4861, 7.2.6: sent to all nodes); on any VLAN.
pub fn announces_sender(frame: &[u8]) -> bool {
    let Ok(ethernet) = Ethernet::parse(frame) else { return false };
    match ethernet.ether_type {
        ether_type::RARP => true,
        ether_type::ARP => {
            let payload = frame.get(ethernet.payload_at..).unwrap_or_default();
            Arp::parse(payload).is_some_and(|message| {
                matches!(message.operation, arp::REQUEST | arp::REPLY)
                    && message.sender == message.target
            })
        }
        ether_type::IPV6 => {
            let packet = Packet::parse_in(frame, &ethernet, frame.len(), Lengths::Fields);
            packet.is_ok_and(|packet| is_unsolicited(frame, &packet))
        }
        _ => false,
    }
}

/// Whether a packet is an unsolicited neighbour advertisement. They are never fragmented (RFC
/// 6980).
fn is_unsolicited(frame: &[u8], packet: &Packet) -> bool {
    packet.protocol == protocol::ip::ICMPV6
        && !packet.fragment.is_any()
        && transport::message_type(packet.payload(frame)) == Some(NEIGHBOUR_ADVERTISEMENT)
        && packet.destination(frame).is_some_and(|destination| destination.is_multicast())
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
    fn announcements_on_a_vlan_are_seen() {
        let rarp = frame([0xff; 6], 0x8035, &[0; 28]);
        for announcement in [rarp, arp([10, 0, 0, 1], [10, 0, 0, 1])] {
            for tags in [&[0x81, 0, 0, 7][..], &[0x88, 0xa8, 0, 1, 0x81, 0, 0, 7]] {
                let mut tagged = announcement.clone();
                tagged.splice(12..12, tags.iter().copied());
                assert!(announces_sender(&tagged), "{tagged:02x?}");
            }
        }
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
