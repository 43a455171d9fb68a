//! What guests say: numbered frames of several forms, by turns, whose every byte follows from who says
//! it to whom, its number and its length.

use etherparse::{Ethernet2Header, IpHeaders, Ipv4Header, Ipv6Header, PacketBuilder, ip_number};

use crate::nic::{BROADCAST, ETHER_TYPE};

/// Where guests say something to all: broadcast, an IPv4 and an IPv6 group (RFC 1112, RFC 2464).
const GROUPS: [[u8; 6]; 3] = [BROADCAST, [0x01, 0x00, 0x5e, 1, 2, 3], [0x33, 0x33, 0, 0, 0, 0xfb]];
/// IPv6 packets that are longer are answered rather than taken on a narrow path (RFC 8200, 5).
const LONGEST_IPV6: usize = 14 + 1280;
/// A VLAN tag (IEEE 802.1Q): priority 1, VLAN 5.
const TAG: [u8; 4] = [0x81, 0x00, 0x20, 0x05];

/// What a frame with a number is.
enum Form {
    Plain,
    Tagged,
    Ipv4,
    Ipv6,
}

impl Form {
    fn of(number: u32) -> Self {
        match number % 4 {
            0 => Self::Plain,
            1 => Self::Tagged,
            2 => Self::Ipv4,
            _ => Self::Ipv6,
        }
    }

    /// Where its number is, in bytes from its begin.
    const fn number_at(&self) -> usize {
        match self {
            Self::Plain => 14,
            Self::Tagged => 18,
            Self::Ipv4 => 14 + 20 + 8,
            Self::Ipv6 => 14 + 40 + 8,
        }
    }
}

/// The group to which a frame goes that is for all.
pub(super) fn group(number: u32) -> [u8; 6] {
    GROUPS[(number / 4 % 3) as usize]
}

/// A frame of about this length.
pub(super) fn frame(to: [u8; 6], from: [u8; 6], number: u32, len: usize) -> Vec<u8> {
    let form = Form::of(number);
    let addresses = [to, from].concat();
    let at = form.number_at();
    let len = len.max(at + 4);
    let said = |len: usize| {
        let mut said = number.to_be_bytes().to_vec();
        said.resize(len - at, number as u8);
        said
    };
    let datagram = |ip: IpHeaders, len: usize| {
        let ethernet =
            Ethernet2Header { source: from, destination: to, ..Ethernet2Header::default() };
        let builder = PacketBuilder::ethernet2(ethernet.source, ethernet.destination);
        let mut bytes = Vec::new();
        builder.ip(ip).udp(1000, 2000).write(&mut bytes, &said(len)).expect("a short packet");
        bytes
    };
    match form {
        Form::Plain => [addresses, ETHER_TYPE.to_vec(), said(len)].concat(),
        Form::Tagged => [addresses, TAG.to_vec(), ETHER_TYPE.to_vec(), said(len)].concat(),
        Form::Ipv4 => {
            let ends = [[10, 0, from[4], from[5]], [10, 0, to[4], to[5]]];
            let mut header =
                Ipv4Header::new(0, 64, ip_number::UDP, ends[0], ends[1]).expect("no length yet");
            // Nobody may answer that it is too long.
            header.dont_fragment = false;
            datagram(IpHeaders::Ipv4(header, Default::default()), len)
        }
        Form::Ipv6 => {
            let address = |mac: [u8; 6]| {
                let mut address = [0xfd; 16];
                address[10..].copy_from_slice(&mac);
                address
            };
            let header = Ipv6Header {
                next_header: ip_number::UDP,
                hop_limit: 64,
                source: address(from),
                destination: address(to),
                ..Ipv6Header::default()
            };
            datagram(IpHeaders::Ipv6(header, Default::default()), len.min(LONGEST_IPV6))
        }
    }
}

/// The number in a frame, which is yet to be compared with the whole that it should be.
pub(super) fn number(frame: &[u8]) -> u32 {
    let form = match (frame[12], frame[13]) {
        (0x81, 0x00) => Form::Tagged,
        (0x08, 0x00) => Form::Ipv4,
        (0x86, 0xdd) => Form::Ipv6,
        _ => Form::Plain,
    };
    let at = form.number_at();
    u32::from_be_bytes(frame[at..at + 4].try_into().expect("4 bytes"))
}
