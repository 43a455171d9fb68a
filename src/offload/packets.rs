//! Frames for tests: built here, judged by etherparse, so that no mistake agrees with itself.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::layout::Layout;

/// What is in a frame. Addresses and ports are always the same.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    /// Ethernet types of VLAN tags, outermost first.
    pub(crate) tags: Vec<u16>,
    pub(crate) is_v6: bool,
    pub(crate) is_udp: bool,
    /// Four bytes each (IPv4), or a destination options header of eight bytes each (IPv6).
    pub(crate) ip_options: usize,
    pub(crate) tcp_options: Vec<u8>,
    pub(crate) tcp_flags: u8,
    pub(crate) sequence: u32,
    pub(crate) identification: u16,
    pub(crate) dont_fragment: bool,
    pub(crate) payload: Vec<u8>,
}

/// The TCP options of an established connection of Linux: two NOPs, a time stamp.
pub(crate) const TIMESTAMP: [u8; 12] = [1, 1, 8, 10, 0, 1, 2, 3, 0, 4, 5, 6];

impl Packet {
    /// TCP over IPv4 with ACK, as a super-frame of so many bytes of payload.
    pub(crate) fn tcp(payload_len: usize) -> Self {
        Self {
            tags: vec![],
            is_v6: false,
            is_udp: false,
            ip_options: 0,
            tcp_options: TIMESTAMP.to_vec(),
            tcp_flags: 0x10,
            sequence: 0xffff_f000,
            identification: 0xfffe,
            dont_fragment: true,
            payload: pattern(payload_len),
        }
    }

    /// UDP over IPv4.
    pub(crate) fn udp(payload_len: usize) -> Self {
        Self { is_udp: true, ..Self::tcp(payload_len) }
    }

    /// The frame with complete checksums.
    pub(crate) fn build(&self) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        for (at, tag) in (100u16..).zip(&self.tags) {
            frame.extend(tag.to_be_bytes());
            frame.extend(at.to_be_bytes());
        }
        frame.extend(if self.is_v6 { [0x86, 0xdd] } else { [8, 0] });
        let transport = self.transport();
        if self.is_v6 {
            self.ipv6(&mut frame, &transport)
        } else {
            self.ipv4(&mut frame, &transport)
        }
        frame.extend(transport);
        set_checksums(&mut frame);
        frame
    }

    /// The same with a partial transport checksum.
    pub(crate) fn build_partial(&self) -> Vec<u8> {
        let mut frame = self.build();
        make_partial(&mut frame);
        frame
    }

    fn transport(&self) -> Vec<u8> {
        let mut bytes = vec![0x30, 0x39, 0xd4, 0x31];
        if self.is_udp {
            let len = u16::try_from(8 + self.payload.len()).unwrap();
            bytes.extend(len.to_be_bytes());
            bytes.extend([0, 0]);
        } else {
            bytes.extend(self.sequence.to_be_bytes());
            bytes.extend([1, 2, 3, 4]);
            bytes.push(u8::try_from((20 + self.tcp_options.len()) * 4).unwrap());
            bytes.extend([self.tcp_flags, 0x12, 0x34, 0, 0, 0, 0]);
            bytes.extend(&self.tcp_options);
        }
        bytes.extend(&self.payload);
        bytes
    }

    fn protocol(&self) -> u8 {
        if self.is_udp { 17 } else { 6 }
    }

    fn ipv4(&self, frame: &mut Vec<u8>, transport: &[u8]) {
        let header_len = 20 + 4 * self.ip_options;
        frame.extend([0x40 | u8::try_from(header_len / 4).unwrap(), 0x02]);
        frame.extend(u16::try_from(header_len + transport.len()).unwrap().to_be_bytes());
        frame.extend(self.identification.to_be_bytes());
        frame.extend([u8::from(self.dont_fragment) << 6, 0, 64, self.protocol(), 0, 0]);
        frame.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([1].repeat(4 * self.ip_options));
    }

    fn ipv6(&self, frame: &mut Vec<u8>, transport: &[u8]) {
        let extension_len = 8 * self.ip_options;
        frame.extend([0x60, 0x21, 0x23, 0x45]);
        frame.extend(u16::try_from(extension_len + transport.len()).unwrap().to_be_bytes());
        frame.extend([if extension_len > 0 { 60 } else { self.protocol() }, 64]);
        frame.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        frame.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        if extension_len > 0 {
            frame.extend([self.protocol(), u8::try_from(self.ip_options - 1).unwrap()]);
            // A PadN option over all the rest (RFC 8200, 4.2).
            frame.extend([1, u8::try_from(extension_len - 4).unwrap()]);
            frame.extend([0].repeat(extension_len - 4));
        }
    }
}

/// Bytes that tell where they are from.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at ^ at >> 8).to_be_bytes()[7]).collect()
}

/// The right checksums of a frame, by etherparse: of the IPv4 header, if it is that, and of the
/// transport header, which is never 0.
pub(crate) fn right_checksums(frame: &[u8]) -> (Option<u16>, u16) {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let net = packet.net.unwrap();
    let (ipv4, transport) = match (&net, packet.transport.unwrap()) {
        (NetSlice::Ipv4(ip), TransportSlice::Tcp(tcp)) => {
            let header = ip.header();
            let checksum = tcp.calc_checksum_ipv4(header.source(), header.destination());
            (Some(header.to_header().calc_header_checksum()), checksum.unwrap())
        }
        (NetSlice::Ipv6(ip), TransportSlice::Tcp(tcp)) => {
            let header = ip.header();
            (None, tcp.calc_checksum_ipv6(header.source(), header.destination()).unwrap())
        }
        (NetSlice::Ipv4(ip), TransportSlice::Udp(udp)) => {
            let header = ip.header().to_header();
            let checksum = udp.to_header().calc_checksum_ipv4(&header, udp.payload());
            (Some(header.calc_header_checksum()), checksum.unwrap())
        }
        (NetSlice::Ipv6(ip), TransportSlice::Udp(udp)) => {
            let header = ip.header().to_header();
            (None, udp.to_header().calc_checksum_ipv6(&header, udp.payload()).unwrap())
        }
        other => panic!("not a packet of ours: {other:?}"),
    };
    // etherparse has 0 for TCP, where both forms of zero mean the same.
    (ipv4, if transport == 0 { 0xffff } else { transport })
}

/// Asserts that a frame has right lengths and complete checksums.
pub(crate) fn assert_complete(frame: &[u8]) {
    let layout = Layout::parse(frame, frame.len()).unwrap();
    assert_eq!(layout.end, frame.len());
    let (ipv4, transport) = right_checksums(frame);
    if let Some(right) = ipv4 {
        assert_eq!(u16_at(frame, layout.network_at + 10), right, "IPv4 checksum");
    }
    assert_eq!(u16_at(frame, layout.checksum_at()), transport, "transport checksum");
}

/// Sets the right checksums.
pub(crate) fn set_checksums(frame: &mut [u8]) {
    let layout = Layout::parse(frame, frame.len()).unwrap();
    let (ipv4, transport) = right_checksums(frame);
    if let Some(right) = ipv4 {
        put(frame, layout.network_at + 10, right);
    }
    put(frame, layout.checksum_at(), transport);
}

/// Replaces the transport checksum with the sum of the pseudo-header, worked out from the right
/// checksum: what it covers beside the pseudo-header is taken away.
pub(crate) fn make_partial(frame: &mut [u8]) {
    let layout = Layout::parse(frame, frame.len()).unwrap();
    let (_, right) = right_checksums(frame);
    put(frame, layout.checksum_at(), 0);
    let rest = frame[layout.transport_at..]
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum::<u32>();
    let rest = u16::try_from(rest % 0xffff).unwrap();
    // Of the two forms of zero, a sum of anything but zeros has this one.
    let partial = match (u32::from(!right) + u32::from(!rest)) % 0xffff {
        0 => 0xffff,
        partial => partial,
    };
    put(frame, layout.checksum_at(), u16::try_from(partial).unwrap());
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(bytes[at..at + 2].try_into().unwrap())
}

pub(crate) fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

prop_compose! {
    /// Any packet with up to so many bytes of payload; TCP flags are among ACK, PSH, FIN, ECE, CWR.
    pub(crate) fn packets(max_payload: usize)(
        tags in prop::collection::vec(prop_oneof![Just(0x8100u16), Just(0x88a8)], 0..3),
        is_v6: bool,
        is_udp: bool,
        ip_options in prop_oneof![3 => Just(0usize), 1 => 1usize..4],
        tcp_options in prop_oneof![Just(vec![]), Just(TIMESTAMP.to_vec()), Just(vec![1; 40])],
        flag_bits in 0u8..16,
        sequence: u32,
        identification: u16,
        dont_fragment: bool,
        payload_len in 0..=max_payload,
        salt: u8,
    ) -> Packet {
        let flag = |bit: u8, value: u8| if flag_bits & bit != 0 { value } else { 0 };
        let tcp_flags = 0x10 | flag(1, 0x08) | flag(2, 0x01) | flag(4, 0x40) | flag(8, 0x80);
        let payload = pattern(payload_len).into_iter().map(|byte| byte ^ salt).collect();
        Packet {
            tags, is_v6, is_udp, ip_options, tcp_options, tcp_flags,
            sequence, identification, dont_fragment, payload,
        }
    }
}
