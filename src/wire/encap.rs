//! The encapsulation header, between the outer UDP header and a guest's frame.
//!
//! EtherIP (RFC 3378) has a version nibble of 3 and two octets; this is its form with version 4,
//! widened for a 32-bit vnet id:
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-------+---------------+-+-+-+-+-------------------------------+
//! | Ver=4 | reserved, MBZ |O|F|B|C|  reserved, MBZ                |
//! +-------+---------------+-+-+-+-+-------------------------------+
//! |                          vnet id                              |
//! +---------------------------------------------------------------+
//! |  the whole Ethernet frame, without FCS ...
//! ```
//!
//! * `C`: the inner L4 checksum is partial (virtio's NEEDS_CSUM).
//! * `B`: a bundle of frames instead of one.
//! * `F`: a fragment of a frame or bundle that exceeds the path MTU, see [`super::fragment`].
//! * `O`: no frame but a message of [`super::echo`].
//!
//! C and B exclude each other (in a bundle each frame has a C of its own); F stands alone or with
//! one of them, O alone. A sender sets a flag only towards a care-of address whose [`Capabilities`]
//! name it.
//!
//! The first octet identifies the kind of a datagram: a first nibble of 4 is this header, a first
//! bit of 1 is an ESP SPI (receivers choose SPIs that way), and all other datagrams are of another
//! kind.

use std::net::IpAddr;

use super::{Capabilities, ParseError, VnetId};

/// Length of the header, in bytes.
pub const LEN: usize = 8;
/// The version, in the first nibble.
pub const VERSION: u8 = 4;
/// Where the version is: in the upper four bits of this byte.
pub const VERSION_OFFSET: usize = 0;
/// Where a kernel filter finds the vnet id (four bytes).
pub const VNET_OFFSET: usize = 4;

/// Length of the IP and UDP headers in front of this one, in bytes, towards such an address: 20 or
/// 40, and 8. With this header and the inner Ethernet header they make the tunnel's overhead of 50
/// or 70.
pub const fn outer_len(to: IpAddr) -> usize {
    match to {
        IpAddr::V4(_) => 28,
        IpAddr::V6(_) => 48,
    }
}

/// Flags of a datagram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flags(u16);

impl Flags {
    /// A whole frame with nothing special about it.
    pub const NONE: Self = Self(0);
    /// Flag C.
    pub const PARTIAL_CHECKSUM: Self = Self(1);
    /// Flag B.
    pub const BUNDLE: Self = Self(2);
    /// Flag F.
    pub const FRAGMENT: Self = Self(4);
    /// Flag O.
    pub const ECHO: Self = Self(8);
    const KNOWN: u16 = 15;

    /// These and others.
    pub const fn with(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    /// These but not others.
    pub const fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    /// Whether all of `others` are set.
    pub const fn contains(self, others: Self) -> bool {
        self.0 & others.0 == others.0
    }

    /// Whether a receiver with these capabilities understands all flags that are set.
    pub const fn understood_by(self, capabilities: Capabilities) -> bool {
        self.0 & !capabilities.0 == 0
    }
}

/// The header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// How the rest of the datagram is to be read.
    pub flags: Flags,
    /// The vnet that the frame is on.
    pub vnet: VnetId,
}

impl Header {
    /// A header for one whole frame.
    pub const fn plain(vnet: VnetId) -> Self {
        Self { flags: Flags::NONE, vnet }
    }

    /// The header's bytes.
    pub const fn emit(&self) -> [u8; LEN] {
        let [f0, f1] = self.flags.0.to_be_bytes();
        let [v0, v1, v2, v3] = self.vnet.get().to_be_bytes();
        [VERSION << 4 | f0, f1, 0, 0, v0, v1, v2, v3]
    }

    /// Splits a datagram with this header into header and payload.
    ///
    /// # Errors
    /// `Version` when the first nibble is not 4, `Truncated` for fewer than [`LEN`] bytes,
    /// `Reserved` for undefined flags or reserved bits, `Value` for vnet id 0.
    pub fn parse(datagram: &[u8]) -> Result<(Self, &[u8]), ParseError> {
        let (header, payload) = datagram.split_first_chunk::<LEN>().ok_or(ParseError::Truncated)?;
        let [f0, f1, r0, r1, v0, v1, v2, v3] = *header;
        if f0 >> 4 != VERSION {
            return Err(ParseError::Version);
        }
        let flags = u16::from_be_bytes([f0 & 0xf, f1]);
        if flags & !Flags::KNOWN != 0 || r0 != 0 || r1 != 0 {
            return Err(ParseError::Reserved);
        }
        let vnet = VnetId::new(u32::from_be_bytes([v0, v1, v2, v3])).ok_or(ParseError::Value)?;
        Ok((Self { flags: Flags(flags), vnet }, payload))
    }
}

/// The kind of a datagram, by its first octet alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// This header.
    Plain,
    /// ESP: the first bit of its SPI is 1.
    Protected,
    /// Neither, or empty.
    Unknown,
}

impl Kind {
    /// Looks at the first octet.
    pub fn of(datagram: &[u8]) -> Self {
        match datagram.first() {
            Some(octet) if octet >> 4 == VERSION => Self::Plain,
            Some(octet) if octet & 0x80 != 0 => Self::Protected,
            _ => Self::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const VECTOR: &[u8] = &[0x40, 0, 0, 0, 0, 0, 0, 42, 0xde, 0xad];

    #[test]
    fn committed_vector() {
        let (header, payload) = Header::parse(VECTOR).unwrap();
        assert_eq!(header, Header::plain(VnetId::new(42).unwrap()));
        assert_eq!(payload, [0xde, 0xad]);
        assert_eq!(header.emit(), VECTOR[..LEN]);
        assert_eq!(Kind::of(VECTOR), Kind::Plain);
    }

    #[test]
    fn every_truncation_is_named() {
        for len in 0..LEN {
            assert_eq!(Header::parse(&VECTOR[..len]), Err(ParseError::Truncated));
        }
    }

    #[test]
    fn every_mutation_is_refused_or_means_what_it_says() {
        for at in 0..LEN {
            for value in 0..=255 {
                let mut bytes = VECTOR.to_vec();
                bytes[at] = value;
                match Header::parse(&bytes) {
                    Ok((header, _)) => assert_eq!(header.emit(), bytes[..LEN]),
                    Err(error) => assert!(
                        matches!(
                            error,
                            ParseError::Version | ParseError::Reserved | ParseError::Value
                        ),
                        "{error:?}"
                    ),
                }
            }
        }
    }

    #[test]
    fn first_octet_tells_kinds_apart() {
        assert_eq!(Kind::of(&[]), Kind::Unknown);
        assert_eq!(Kind::of(&[0x30, 0]), Kind::Unknown, "EtherIP proper");
        assert_eq!(Kind::of(&[0x56, 0x41]), Kind::Unknown, "VARP");
        assert_eq!(Kind::of(&[0x80]), Kind::Protected);
        assert_eq!(Kind::of(&[0xff]), Kind::Protected);
    }

    #[test]
    fn a_plain_receiver_understands_no_flag() {
        let understood = |flags| Flags(flags).understood_by(Capabilities::NONE);
        assert!(understood(0));
        assert!(!understood(1) && !understood(2) && !understood(4));
        assert!(Flags::BUNDLE.understood_by(Capabilities::BUNDLE));
    }

    proptest! {
        #[test]
        fn round_trip(flags in 0u16..16, id in 1u32.., payload: Vec<u8>) {
            let header = Header { flags: Flags(flags), vnet: VnetId::new(id).unwrap() };
            let mut bytes = header.emit().to_vec();
            bytes.extend(&payload);
            prop_assert_eq!(Header::parse(&bytes), Ok((header, &payload[..])));
        }
    }
}
