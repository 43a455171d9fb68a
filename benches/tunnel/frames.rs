//! The frames: a stream in TCP segments, or numbered UDP datagrams, each with a virtio-net header.
//!
//! There is no TCP behind the segments, only its form, so that whatever cuts and merges segments on
//! the way does so. A datagram begins with its number (8 bytes), the pattern follows.

use crate::pattern::{self, Pattern, fold};

/// Length of `struct virtio_net_hdr_v1`.
pub(crate) const VIRTIO_LEN: usize = 12;
pub(crate) const ETHERNET_LEN: usize = 14;
pub(crate) const IP_LEN: usize = 20;
pub(crate) const TCP_LEN: usize = 20;
pub(crate) const UDP_LEN: usize = 8;
pub(crate) const NUMBER_LEN: usize = 8;
/// Where the transport header begins in a frame (the `csum_start` of a virtio-net header).
pub(crate) const TRANSPORT: usize = ETHERNET_LEN + IP_LEN;
/// Room for all headers of a packet.
pub(crate) const HEAD_ROOM: usize = VIRTIO_LEN + TRANSPORT + TCP_LEN + 2;

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const CHECKSUM_AT_TCP: usize = 16;
pub(crate) const CHECKSUM_AT_UDP: usize = 6;

/// Flags of a virtio-net header (virtio 1.2, 5.1.6).
pub(crate) const NEEDS_CSUM: u8 = 1;
pub(crate) const DATA_VALID: u8 = 2;
/// GSO types.
pub(crate) const GSO_NONE: u8 = 0;
pub(crate) const GSO_TCPV4: u8 = 1;
pub(crate) const GSO_UDP_L4: u8 = 5;

/// Bytes of IP and TCP headers in each segment.
pub(crate) const TCP_HEADERS: usize = IP_LEN + TCP_LEN;
/// Frames with less than this cannot carry their number.
pub(crate) const SHORTEST_DATAGRAM: usize = TRANSPORT + UDP_LEN + NUMBER_LEN;

/// One direction between two stations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Flow {
    /// Numbers of the stations; addresses are made from them.
    pub(crate) from: u8,
    pub(crate) to: u8,
    /// Destination port: tells flows and measurements apart.
    pub(crate) port: u16,
}

impl Flow {
    pub(crate) fn mac(station: u8) -> [u8; 6] {
        [0x52, 0x54, 0, 0, 0, station]
    }

    fn ip(station: u8) -> [u8; 4] {
        [10, 0, 0, station]
    }

    /// The MAC address of a station as text.
    pub(crate) fn mac_text(station: u8) -> String {
        format!("52:54:00:00:00:{station:02x}")
    }

    /// The way back.
    pub(crate) fn back(self) -> Self {
        Self { from: self.to, to: self.from, port: self.port }
    }
}

/// What the link below a sender takes off its hands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Offload {
    /// Transport checksums may be left to the receiver (VIRTIO_NET_F_CSUM).
    pub(crate) checksum: bool,
    /// TCP segments may be longer than the MTU (VIRTIO_NET_F_HOST_TSO4).
    pub(crate) tso: bool,
}

/// What a flow is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) enum Load {
    /// A stream in segments that are as long as the link allows, at this MTU in bytes.
    Stream { mtu: usize },
    /// Datagrams in frames of this many bytes (without FCS).
    Datagrams { frame: usize },
}

/// A packet that is ready to be sent.
pub(crate) struct Packet<'a> {
    /// All headers, with the virtio-net header in front.
    pub(crate) head: &'a [u8],
    /// The rest, as a stretch of the pattern.
    pub(crate) place: usize,
    pub(crate) len: usize,
}

/// Makes the packets of a flow, one after the other.
pub(crate) struct Packets {
    head: [u8; HEAD_ROOM],
    head_len: usize,
    /// Place of the stream position or number in the head, and of the checksum.
    number_at: usize,
    checksum_at: usize,
    /// Sum of everything that is the same in all packets; none if checksums are offloaded.
    sum: Option<u64>,
    body: usize,
    is_stream: bool,
    /// Bytes of the stream, or datagrams, so far.
    position: u64,
}

impl Packets {
    pub(crate) fn new(flow: Flow, load: Load, offload: Offload) -> Self {
        match load {
            Load::Stream { mtu } => Self::stream(flow, mtu - TCP_HEADERS, offload),
            Load::Datagrams { frame } => Self::datagrams(flow, frame, offload),
        }
    }

    fn stream(flow: Flow, mss: usize, offload: Offload) -> Self {
        let segments = if offload.tso { (0xffff - TCP_HEADERS) / mss } else { 1 };
        let body = segments * mss;
        let mut head = head(flow, TCP, TCP_LEN + body);
        let tcp = VIRTIO_LEN + TRANSPORT;
        head[tcp + 11] = 1; // acknowledges byte 1, of the handshake
        head[tcp + 12] = 5 << 4; // length in words
        head[tcp + 13] = 0x10; // ACK
        head[tcp + 14] = 0x40; // window
        if segments > 1 {
            head[1] = GSO_TCPV4;
            head[2..4].copy_from_slice(&((TRANSPORT + TCP_LEN) as u16).to_le_bytes());
            head[4..6].copy_from_slice(&(mss as u16).to_le_bytes());
        }
        let mut packets = Self {
            head,
            head_len: tcp + TCP_LEN,
            number_at: tcp + 4,
            checksum_at: tcp + CHECKSUM_AT_TCP,
            sum: None,
            body,
            is_stream: true,
            position: 0,
        };
        packets.prepare_checksum(TCP, TCP_LEN, CHECKSUM_AT_TCP, offload);
        packets
    }

    fn datagrams(flow: Flow, frame: usize, offload: Offload) -> Self {
        let body = frame - SHORTEST_DATAGRAM;
        let mut head = head(flow, UDP, UDP_LEN + NUMBER_LEN + body);
        let udp = VIRTIO_LEN + TRANSPORT;
        let len = (UDP_LEN + NUMBER_LEN + body) as u16;
        head[udp + 4..udp + 6].copy_from_slice(&len.to_be_bytes());
        let mut packets = Self {
            head,
            head_len: udp + UDP_LEN + NUMBER_LEN,
            number_at: udp + UDP_LEN,
            checksum_at: udp + CHECKSUM_AT_UDP,
            sum: None,
            body,
            is_stream: false,
            position: 0,
        };
        packets.prepare_checksum(UDP, UDP_LEN + NUMBER_LEN, CHECKSUM_AT_UDP, offload);
        packets
    }

    /// Either what all full checksums have in common is summed up once, or the sum of the pseudo
    /// header is written, for whoever completes it.
    fn prepare_checksum(&mut self, protocol: u8, transport: usize, field: usize, offload: Offload) {
        let ip = &self.head[VIRTIO_LEN + ETHERNET_LEN..VIRTIO_LEN + TRANSPORT];
        let pseudo = pseudo_sum(ip, protocol, transport + self.body);
        if offload.checksum {
            self.head[0] = NEEDS_CSUM;
            self.head[6..8].copy_from_slice(&(TRANSPORT as u16).to_le_bytes());
            self.head[8..10].copy_from_slice(&(field as u16).to_le_bytes());
            let partial = fold(pseudo).to_be_bytes();
            self.head[self.checksum_at..self.checksum_at + 2].copy_from_slice(&partial);
        } else {
            let start = VIRTIO_LEN + TRANSPORT;
            self.sum = Some(pseudo + pattern::sum(&self.head[start..start + transport]));
        }
    }

    /// Bytes of the stream, or datagrams, that were made so far.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// How far one packet moves the position.
    pub(crate) fn step(&self) -> u64 {
        if self.is_stream { self.body as u64 } else { 1 }
    }

    /// Length of a frame, in bytes.
    pub(crate) fn frame_len(&self) -> usize {
        self.head_len - VIRTIO_LEN + self.body
    }

    /// The next packet; it stays the next one until [`Packets::sent`].
    pub(crate) fn next(&mut self, pattern: &Pattern) -> Packet<'_> {
        let number = self.position.to_be_bytes();
        let (number, place) = if self.is_stream {
            (&number[4..], Pattern::place(self.position))
        } else {
            (&number[..], datagram_place(self.position))
        };
        self.head[self.number_at..self.number_at + number.len()].copy_from_slice(number);
        let sum = pattern::sum(number);
        if let Some(fixed) = self.sum {
            let checksum = !fold(fixed + sum + pattern.sum(place, self.body));
            // Zero would mean that there is none (RFC 768).
            let checksum = if checksum == 0 && !self.is_stream { 0xffff } else { checksum };
            self.head[self.checksum_at..self.checksum_at + 2]
                .copy_from_slice(&checksum.to_be_bytes());
        }
        Packet { head: &self.head[..self.head_len], place, len: self.body }
    }

    /// Goes on at another position.
    pub(crate) fn seek(&mut self, position: u64) {
        self.position = position;
    }

    /// The next packet was sent.
    pub(crate) fn sent(&mut self) {
        self.position += self.step();
    }
}

/// Where the body of a datagram is in the pattern.
pub(crate) fn datagram_place(number: u64) -> usize {
    Pattern::place(number.wrapping_mul(2))
}

/// Ethernet and IPv4 headers for `len` bytes of transport header and payload, and the ports.
fn head(flow: Flow, protocol: u8, len: usize) -> [u8; HEAD_ROOM] {
    let mut head = [0; HEAD_ROOM];
    let frame = &mut head[VIRTIO_LEN..];
    frame[..6].copy_from_slice(&Flow::mac(flow.to));
    frame[6..12].copy_from_slice(&Flow::mac(flow.from));
    frame[12..14].copy_from_slice(&[8, 0]);
    let ip = &mut frame[ETHERNET_LEN..];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&((IP_LEN + len) as u16).to_be_bytes());
    ip[6] = 0x40; // don't fragment
    ip[8] = 64;
    ip[9] = protocol;
    ip[12..16].copy_from_slice(&Flow::ip(flow.from));
    ip[16..20].copy_from_slice(&Flow::ip(flow.to));
    let checksum = !fold(pattern::sum(&ip[..IP_LEN]));
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    ip[IP_LEN..IP_LEN + 2].copy_from_slice(&40_000_u16.to_be_bytes());
    ip[IP_LEN + 2..IP_LEN + 4].copy_from_slice(&flow.port.to_be_bytes());
    head
}

pub(crate) fn pseudo_sum(ip: &[u8], protocol: u8, len: usize) -> u64 {
    pattern::sum(&ip[12..20]) + u64::from(protocol) + len as u64
}
