//! ESP (RFC 4303) directly after the UDP header: the format of a protected datagram.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-+-------------------------------------------------------------+
//! |1|         security parameters index (SPI), 31 bits            |  0
//! +-+-------------------------------------------------------------+
//! |        sequence number (low half of a 64-bit number)          |  4
//! +---------------------------------------------------------------+
//! |               initialisation vector (IV), 64 bits             |  8
//! |                                                               |
//! +---------------------------------------------------------------+ --
//! |  the encapsulation header and all behind it (encap.rs) ...    | 16
//! |                                                               |  | encrypted (conf),
//! |               +-----------------------------------------------+  | only authenticated
//! |               | padding 1, 2, 3 (0 to 3 bytes)                |  | (auth)
//! +---------------+---------------+---------------+---------------+  |
//! |                               |  pad length   | next hdr = 97 |  |
//! +-------------------------------+---------------+---------------+ --
//! |              integrity check value (ICV), 128 bits            |
//! |                                                               |
//! +---------------------------------------------------------------+
//! ```
//!
//! In RFC 3948, IKE and ESP share a port because an SPI is never 0. Here the first bit of an SPI is
//! always 1, unlike that of encapsulation headers (first nibble 4) and VARP messages (5). The next
//! header is 97, EtherIP: the packet protects a whole datagram of [`super::encap`], which holds one
//! frame, a bundle or a fragment. AES-GCM (RFC 4106), GMAC (RFC 4543) and ChaCha20-Poly1305 (RFC
//! 7634) have this one layout.
//!
//! The SPI of a vif's own port is `1 | session (19) | index (12)`: the receiver's number of the
//! session between two hosts, and the sender's number among those that use it. The SPI at the group
//! is `1 | vnet id, folded (15) | salt (16)`, and the IV is `start (32) | random xor number (32)`:
//! the second in which the sender started, and a random number of the sender xor the sequence
//! number. [`crate::security::group`] explains why.

use super::{ParseError, VnetId};

/// Length of SPI, sequence number and IV, in bytes.
pub const HEAD_LEN: usize = 16;
/// Length of the integrity check value, in bytes.
pub const ICV_LEN: usize = 16;
/// Length of pad length and next header, in bytes.
pub const TRAILER_LEN: usize = 2;
/// What ESP aligns its payload, padding and trailer to, in bytes.
pub const ALIGNMENT: usize = 4;
/// Next header: EtherIP (RFC 3378).
pub const NEXT_HEADER: u8 = 97;
/// Shortest packet: an empty payload, padded.
pub const MIN_LEN: usize = HEAD_LEN + ALIGNMENT + ICV_LEN;

/// The first bit of every SPI.
pub const SPI_BIT: u32 = 1 << 31;
/// Senders that one session tells apart.
pub const INDICES: u32 = 1 << 12;
/// Number of different sessions in SPIs.
pub const SESSIONS: u32 = 1 << 19;

/// A security parameters index, by which a receiver finds the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Spi(pub u32);

impl Spi {
    /// The SPI of a sender in a session; numbers beyond their range are cut.
    pub const fn of(session: u32, index: u32) -> Self {
        Self(SPI_BIT | (session & (SESSIONS - 1)) << 12 | (index & (INDICES - 1)))
    }

    /// The session's number.
    pub const fn session(self) -> u32 {
        self.0 >> 12 & (SESSIONS - 1)
    }

    /// The sender's number in its session.
    pub const fn index(self) -> u32 {
        self.0 & (INDICES - 1)
    }

    /// The SPI of group frames of a vnet.
    pub const fn of_group(vnet: VnetId, salt: u16) -> Self {
        Self(group_prefix(vnet) | salt as u32)
    }

    /// Whether it can be that of group frames of a vnet. Other vnets may have the same 15 bits; a
    /// kernel filter that looks at them only spares most of the wake-ups.
    pub const fn is_of_group(self, vnet: VnetId) -> bool {
        self.0 & 0xffff_0000 == group_prefix(vnet)
    }
}

/// The first 16 bits of the SPIs of a vnet's group frames.
pub const fn group_prefix(vnet: VnetId) -> u32 {
    let id = vnet.get();
    let folded = (id ^ id >> 15 ^ id >> 30) & 0x7fff;
    SPI_BIT | folded << 16
}

/// A start of a sender to the group, as the IVs of its packets show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// When it began, by the sender's clock: seconds since 1970.
    pub second: u32,
    /// The sender's random number.
    pub random: u32,
}

impl Start {
    /// The IV of the packet with a sequence number.
    pub const fn iv(self, sequence: u32) -> [u8; 8] {
        let [t0, t1, t2, t3] = self.second.to_be_bytes();
        let [r0, r1, r2, r3] = (self.random ^ sequence).to_be_bytes();
        [t0, t1, t2, t3, r0, r1, r2, r3]
    }
}

/// What precedes the protected part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Which key.
    pub spi: Spi,
    /// Low half of the sequence number.
    pub sequence: u32,
    /// Makes the nonce, together with the key's salt.
    pub iv: [u8; 8],
}

impl Head {
    /// The bytes.
    pub const fn emit(&self) -> [u8; HEAD_LEN] {
        let [s0, s1, s2, s3] = self.spi.0.to_be_bytes();
        let [n0, n1, n2, n3] = self.sequence.to_be_bytes();
        let [i0, i1, i2, i3, i4, i5, i6, i7] = self.iv;
        [s0, s1, s2, s3, n0, n1, n2, n3, i0, i1, i2, i3, i4, i5, i6, i7]
    }

    /// The start of its sender, if it is a packet to the group.
    pub const fn start(&self) -> Start {
        let [t0, t1, t2, t3, r0, r1, r2, r3] = self.iv;
        let random = u32::from_be_bytes([r0, r1, r2, r3]) ^ self.sequence;
        Start { second: u32::from_be_bytes([t0, t1, t2, t3]), random }
    }

    /// Reads the head of a packet.
    ///
    /// # Errors
    /// `Magic` when the first bit is not that of an SPI of ours, `Truncated` for fewer bytes than
    /// the shortest packet, `Value` for a length that ESP's alignment excludes.
    pub fn parse(packet: &[u8]) -> Result<Self, ParseError> {
        let (head, rest) = packet.split_first_chunk::<HEAD_LEN>().ok_or(ParseError::Truncated)?;
        let [s0, s1, s2, s3, n0, n1, n2, n3, iv @ ..] = *head;
        let spi = Spi(u32::from_be_bytes([s0, s1, s2, s3]));
        if spi.0 & SPI_BIT == 0 {
            return Err(ParseError::Magic);
        }
        if packet.len() < MIN_LEN {
            return Err(ParseError::Truncated);
        }
        if !rest.len().is_multiple_of(ALIGNMENT) {
            return Err(ParseError::Value);
        }
        Ok(Self { spi, sequence: u32::from_be_bytes([n0, n1, n2, n3]), iv })
    }
}

/// Padding of a payload of this length, in bytes: 0 to 3.
#[inline]
pub const fn padding(payload_len: usize) -> usize {
    (payload_len + TRAILER_LEN).wrapping_neg() % ALIGNMENT
}

/// Padding 1, 2, 3 ... of a payload of this length (RFC 4303, 2.4), the padding's length, the next
/// header.
#[inline]
const fn trailer(payload_len: usize) -> &'static [u8] {
    match padding(payload_len) {
        0 => &[0, NEXT_HEADER],
        1 => &[1, 1, NEXT_HEADER],
        2 => &[1, 2, 2, NEXT_HEADER],
        _ => &[1, 2, 3, 3, NEXT_HEADER],
    }
}

/// Writes the trailer of a payload of this length to the beginning of `to`, as far as there is
/// room.
#[inline]
pub fn write_trailer(to: &mut [u8], payload_len: usize) {
    let trailer = trailer(payload_len);
    if let Some(place) = to.get_mut(..trailer.len()) {
        place.copy_from_slice(trailer);
    }
}

/// Where the payload ends in the opened protected part of a packet, if its trailer is right.
pub fn payload_len(body: &[u8]) -> Option<usize> {
    let (rest, [pad_len, _]) = body.split_last_chunk::<TRAILER_LEN>()?;
    let len = rest.len().checked_sub((*pad_len).into())?;
    (body.get(len..) == Some(trailer(len))).then_some(len)
}

/// Length of the packet that protects a payload of this length. Never shorter for a longer payload,
/// so datagrams of one size stay so, and a shorter last one stays the shortest.
#[inline]
pub const fn sealed_len(payload_len: usize) -> usize {
    HEAD_LEN + payload_len + padding(payload_len) + TRAILER_LEN + ICV_LEN
}

/// Longest payload whose packet is no longer than `max_packet`; 0 if there is none.
pub const fn payload_room(max_packet: usize) -> usize {
    let aligned = max_packet.saturating_sub(HEAD_LEN + ICV_LEN) / ALIGNMENT * ALIGNMENT;
    aligned.saturating_sub(TRAILER_LEN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vnet(id: u32) -> VnetId {
        VnetId::new(id).unwrap()
    }

    #[test]
    fn committed_vector() {
        let head = Head { spi: Spi::of(3, 5), sequence: 0x0102_0304, iv: [9; 8] };
        let bytes = [0x80, 0, 0x30, 5, 1, 2, 3, 4, 9, 9, 9, 9, 9, 9, 9, 9];
        assert_eq!(head.emit(), bytes);
        let packet = [&bytes[..], &[0; 20]].concat();
        assert_eq!(Head::parse(&packet), Ok(head));
        for len in 0..packet.len() {
            assert_eq!(Head::parse(&packet[..len]), Err(ParseError::Truncated));
        }
        assert_eq!(Head::parse(&[&packet[..], &[0]].concat()), Err(ParseError::Value));
        let plain = [&[0x40][..], &packet[1..]].concat();
        assert_eq!(Head::parse(&plain), Err(ParseError::Magic));
    }

    #[test]
    fn the_iv_of_a_group_packet_shows_its_start() {
        let start = Start { second: 0x6955_b900, random: 0xa0b0_c0d0 };
        assert_eq!(start.iv(0x0102_0304), [0x69, 0x55, 0xb9, 0, 0xa1, 0xb2, 0xc3, 0xd4]);
        for sequence in [0, 1, 0x0102_0304, u32::MAX] {
            let head = Head { spi: Spi(SPI_BIT), sequence, iv: start.iv(sequence) };
            assert_eq!(head.start(), start);
        }
    }

    #[test]
    fn group_spis_tell_vnets_apart() {
        for id in [1, 42, 0x7fff, 0x8000, u32::MAX] {
            let spi = Spi::of_group(vnet(id), 0xffff);
            assert!(spi.0 & SPI_BIT != 0 && spi.is_of_group(vnet(id)));
        }
        assert!(!Spi::of_group(vnet(42), 0).is_of_group(vnet(43)));
        assert!(!Spi::of_group(vnet(42), 0).is_of_group(vnet(42 << 15 | 1)));
    }

    proptest! {
        #[test]
        fn spis_keep_their_parts(session in 0..SESSIONS, index in 0..INDICES) {
            let spi = Spi::of(session, index);
            prop_assert_eq!((spi.session(), spi.index()), (session, index));
            prop_assert!(spi.0 & SPI_BIT != 0);
        }

        #[test]
        fn what_has_room_fits_and_one_more_does_not(max in MIN_LEN..70_000usize) {
            let room = payload_room(max);
            prop_assert!(sealed_len(room) <= max);
            prop_assert!(sealed_len(room + 1) > max);
            prop_assert_eq!((sealed_len(room) - HEAD_LEN) % ALIGNMENT, 0);
        }

        #[test]
        fn lengths_keep_their_order(a in 0..3000usize, b in 0..3000usize) {
            prop_assert_eq!(sealed_len(a.min(b)), sealed_len(a).min(sealed_len(b)));
        }
    }
}
