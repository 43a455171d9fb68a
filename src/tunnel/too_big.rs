//! The answer to a frame that is too long for its path: what a router would say.
//!
//! TCP is cut to fit, whoever is to blame (see [`crate::tunnel::outgoing`]). For other packets that must
//! not be fragmented the sender is told which length does fit: ICMP "fragmentation needed"
//! (RFC 792, RFC 1191) for IPv4 with DF, ICMPv6 "packet too big" (RFC 4443, 3.2) for IPv6. The
//! answer seems to come from the packet's destination; it stays within the vnet and is seen by
//! nobody but the guest that sent the packet.

#![forbid(unsafe_code)]
#![warn(clippy::indexing_slicing)]
#![cfg_attr(not(test), warn(clippy::cast_possible_truncation))]

use std::net::IpAddr;

use etherparse::PacketBuilder;
use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::{Icmpv4Type, Icmpv6Type};

use crate::packet::discovery::REDIRECT;
use crate::packet::{Ethernet, Lengths, Packet, protocol, transport};
use crate::tunnel::pmtu_feedback::Flow;
use crate::wire::Mac;
use crate::wire::frame::{ADDRESSES_LEN, HEADER_LEN};
use crate::wire::name::is_host;

/// How much of an IPv4 packet comes back, in bytes: its header and enough of its data.
const QUOTED: usize = 128;
/// TTL or hop limit of the answer.
const HOPS: u8 = 64;

/// The least MTU of IPv6, in bytes (RFC 8200, section 5): its hosts rely on it, and do not heed a
/// message that says less.
const MIN_MTU_V6: usize = 1280;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The frame for the sender.
    pub frame: Vec<u8>,
    /// Source and destination of the packet that was too long.
    pub flow: Flow,
}

/// The ICMP message for the sender of a frame of `len` bytes that begins with `lead`: its path takes frames of
/// at most `max_frame` bytes. `None` if no answer is due: the frame is not IP, routers may fragment the packet,
/// every path of IPv6 must take it, it is an ICMP error, a group is its source or destination, or its headers
/// can't be read to their end.
pub fn answer(lead: &[u8], len: usize, max_frame: usize) -> Option<Answer> {
    let lead = lead.get(..len).unwrap_or(lead);
    let ethernet = Ethernet::parse(lead).ok()?;
    let packet = Packet::parse_in(lead, &ethernet, len, Lengths::FieldsUnlessZero).ok()?;
    let mtu = max_frame.checked_sub(packet.network_at)?;
    let bytes = lead.get(packet.network_at..)?;
    let quote = bytes.get(..bytes.len().min(QUOTED))?;
    let (to, from) = lead.get(..ADDRESSES_LEN)?.split_at(6);
    let (to, from): ([u8; 6], [u8; 6]) = (to.try_into().ok()?, from.try_into().ok()?);
    let flow = (packet.source(lead)?, packet.destination(lead)?);
    if Mac(to).is_group() || !is_due(lead, &packet, flow) {
        return None;
    }
    let builder = PacketBuilder::ethernet2(to, from);
    let mut frame = Vec::with_capacity(HEADER_LEN + 48 + QUOTED);
    match flow {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let next_hop_mtu = u16::try_from(mtu).ok()?;
            let what = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu };
            builder
                .ipv4(destination.octets(), source.octets(), HOPS)
                .icmpv4(Icmpv4Type::DestinationUnreachable(what))
                .write(&mut frame, quote)
                .ok()?;
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            if packet.end - packet.network_at <= MIN_MTU_V6 {
                return None;
            }
            let mtu = u32::try_from(mtu.max(MIN_MTU_V6)).ok()?;
            builder
                .ipv6(destination.octets(), source.octets(), HOPS)
                .icmpv6(Icmpv6Type::PacketTooBig { mtu })
                .write(&mut frame, quote)
                .ok()?;
        }
        _ => return None,
    }
    // The answer comes back on the VLAN that the packet was on.
    let tags = lead.get(ADDRESSES_LEN..packet.network_at - 2)?;
    frame.splice(ADDRESSES_LEN..ADDRESSES_LEN, tags.iter().copied());
    Some(Answer { frame, flow })
}

/// Whether a packet that is too long is answered (RFC 1122, 3.2.2; RFC 4443, 2.4 e).
fn is_due(lead: &[u8], packet: &Packet, (source, destination): Flow) -> bool {
    packet.must_not_be_fragmented()
        && !packet.fragment.is_later()
        && is_host(source)
        && is_host(destination)
        && !is_icmp_error(packet.protocol, packet.payload(lead))
}

/// Errors are not answered with errors, nor are redirects.
fn is_icmp_error(protocol: u8, payload: &[u8]) -> bool {
    match (protocol, transport::message_type(payload)) {
        (protocol::ip::ICMP, Some(kind)) => !matches!(kind, 0 | 8 | 13 | 14),
        (protocol::ip::ICMPV6, Some(kind)) => kind & 0x80 == 0 || kind == REDIRECT,
        (protocol::ip::ICMP | protocol::ip::ICMPV6, None) => true,
        _ => false,
    }
}

/// Whether a frame is such an answer, for tests.
#[cfg(test)]
pub(crate) fn told_mtu(frame: &[u8]) -> Option<u32> {
    use etherparse::{SlicedPacket, TransportSlice};
    match SlicedPacket::from_ethernet(frame).ok()?.transport? {
        TransportSlice::Icmpv4(icmp) => match icmp.icmp_type() {
            Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded {
                next_hop_mtu,
            }) => Some(next_hop_mtu.into()),
            _ => None,
        },
        TransportSlice::Icmpv6(icmp) => match icmp.icmp_type() {
            Icmpv6Type::PacketTooBig { mtu } => Some(mtu),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offload::packets::{Packet, assert_complete};

    /// Length of the frames.
    const LEN: usize = 3000;

    fn lead(packet: &Packet) -> Vec<u8> {
        let mut frame = packet.build();
        frame.truncate(256);
        frame
    }

    fn answer(lead: &[u8], max_frame: usize) -> Option<Answer> {
        super::answer(lead, LEN, max_frame)
    }

    fn udp() -> Packet {
        Packet { dont_fragment: true, ..Packet::udp(2000) }
    }

    #[test]
    fn the_sender_is_told_what_fits() {
        let sent = lead(&udp());
        let Answer { frame: answer, flow } = answer(&sent, 1464).unwrap();
        assert_eq!(flow, ([10, 0, 0, 1].into(), [10, 0, 0, 2].into()));
        assert_eq!(told_mtu(&answer), Some(1450));
        assert_eq!(answer[..6], sent[6..12], "to the sender");
        assert_eq!(answer[6..12], sent[..6], "as if from the destination");
        assert_eq!(answer[26..30], sent[30..34]);
        assert_eq!(answer[30..34], sent[26..30]);
        assert_eq!(answer[14 + 20 + 8..], sent[14..14 + QUOTED], "quotes the packet");
        assert_checksums(&answer);
    }

    /// Receivers verify both checksums.
    fn assert_checksums(frame: &[u8]) {
        use crate::offload::checksum::Sum;
        assert!(Sum::of(&frame[14..34]).is_valid());
        assert!(Sum::of(&frame[34..]).is_valid());
    }

    #[test]
    fn ipv6_is_told_too_and_vlan_tags_come_back() {
        for tags in [vec![], vec![0x8100], vec![0x88a8, 0x8100]] {
            let len = 4 * tags.len();
            let packet = Packet { is_v6: true, tags, ..udp() };
            let sent = lead(&packet);
            let answer = answer(&sent, 1464).unwrap().frame;
            assert_eq!(told_mtu(&answer), Some(1450 - len as u32));
            assert_eq!(answer[12..14 + len], sent[12..14 + len]);
        }
    }

    /// A path of an underlay of 1280 bytes has no room for that; such packets travel in pieces.
    #[test]
    fn nobody_is_told_that_ipv6_has_less_than_1280() {
        let sent = lead(&Packet { is_v6: true, ..udp() });
        let answered = answer(&sent, 1232).unwrap();
        assert_eq!(told_mtu(&answered.frame), Some(1280));
        let exact = Packet { is_v6: true, payload: vec![0; 1280 - 48], ..udp() };
        assert_eq!(answer(&lead(&exact), 1232), None);
    }

    #[test]
    fn no_answer_where_none_is_due() {
        let may_be_fragmented = lead(&Packet { dont_fragment: false, ..udp() });
        assert_eq!(answer(&may_be_fragmented, 1464), None);
        let mut not_ip = lead(&udp());
        not_ip[12..14].copy_from_slice(&[0x88, 0xcc]);
        assert_eq!(answer(&not_ip, 1464), None);
        let mut to_all = lead(&udp());
        to_all[30..34].fill(0xff);
        assert_eq!(answer(&to_all, 1464), None);
        let mut to_all_macs = lead(&udp());
        to_all_macs[..6].fill(0xff);
        assert_eq!(answer(&to_all_macs, 1464), None, "RFC 1122, 3.2.2");
        let mut error = lead(&udp());
        error[23] = 1;
        error[34] = 3;
        assert_eq!(answer(&error, 1464), None, "an ICMP error");
        error[34] = 8;
        assert!(answer(&error, 1464).is_some(), "an echo request");
    }

    /// Puts a header of destination options before the payload of an IPv6 packet.
    fn extended(mut frame: Vec<u8>) -> Vec<u8> {
        let next = std::mem::replace(&mut frame[20], 60);
        frame.splice(54..54, [next, 0, 1, 4, 0, 0, 0, 0]);
        frame
    }

    #[test]
    fn an_error_behind_extension_headers_is_not_answered() {
        let plain = lead(&Packet { is_v6: true, ..udp() });
        assert!(answer(&extended(plain.clone()), 1464).is_some());
        let mut error = plain;
        (error[20], error[54]) = (58, 2);
        assert_eq!(answer(&error, 1464), None);
        assert_eq!(answer(&extended(error.clone()), 1464), None);
        error[54] = REDIRECT;
        assert_eq!(answer(&error, 1464), None, "RFC 4443, 2.4 (e.2)");
        error[54] = 128;
        assert!(answer(&extended(error), 1464).is_some(), "an echo request");
    }

    #[test]
    fn the_version_of_a_packet_is_that_of_its_type() {
        let mut frame = lead(&udp());
        frame[12..14].copy_from_slice(&[0x86, 0xdd]);
        assert_eq!(answer(&frame, 1464), None);
    }

    #[test]
    fn a_packet_without_a_single_source_is_not_answered() {
        for source in [[0; 4], [224, 0, 0, 1], [255; 4]] {
            let mut frame = lead(&udp());
            frame[26..30].copy_from_slice(&source);
            assert_eq!(answer(&frame, 1464), None, "{source:?}");
        }
    }

    #[test]
    fn a_super_frame_is_answered_whatever_its_length_field() {
        let mut frame = lead(&Packet { is_v6: true, ..udp() });
        frame[18..20].fill(0);
        assert_eq!(told_mtu(&answer(&frame, 1464).unwrap().frame), Some(1450));
    }

    #[test]
    fn the_answer_comes_back_behind_old_tags() {
        let mut sent = lead(&Packet { tags: vec![0x88a8, 0x8100], ..udp() });
        sent[12..14].copy_from_slice(&[0x91, 0]);
        let answer = answer(&sent, 1464).unwrap().frame;
        assert_eq!(answer[12..22], sent[12..22]);
    }

    #[test]
    fn no_truncation_or_mutation_panics() {
        for packet in [udp(), Packet { is_v6: true, tags: vec![0x8100], ..udp() }] {
            let sent = lead(&packet);
            (0..sent.len()).for_each(|len| drop(answer(&sent[..len], 1464)));
            for at in 0..80 {
                for value in 0..=255 {
                    let mut bytes = sent.clone();
                    bytes[at] = value;
                    if let Some(answer) = answer(&bytes, 1464) {
                        assert!(answer.frame.len() <= 14 + 8 + 48 + QUOTED);
                    }
                }
            }
            assert_complete(&packet.build());
        }
    }
}
