//! Relayed group frames: a relay carries them from the group of one segment to that of another.
//!
//! A relay sends a UDP datagram to the vnet's group, or to a vif that no group reaches. It
//! contains, unchanged, a datagram that a vif sent to its group: an encapsulation header and a
//! frame, or ESP. The first two octets distinguish it from all other datagrams on the same port.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +---------------+---------------+---------------+---------------+
//! |   'V' 0x56    |   'R' 0x52    |  version = 1  |   type = 1    |  0
//! +---------------+---------------+-------+-------+---------------+
//! |   flags (8)   |     hops      | part  | parts |  key number   |  4
//! +---------------+---------------+-------+-------+---------------+
//! |                          vnet id (32)                         |  8
//! +---------------------------------------------------------------+
//! |                       origin's random id (64)                 | 12
//! |                                                               |
//! +---------------------------------------------------------------+
//! |              time, microseconds since 1970 (64)               | 20
//! |                                                               |
//! +---------------------------------------------------------------+
//! |           sender's name (176): realm, IP address, port        | 28
//! |                                                               |
//! |                               +---------------+---------------+
//! |                               |   ext words   |      MBZ      | 48
//! +-------------------------------+---------------+---------------+
//! |  HMAC (128)                                                   | 52
//! |                                                               |
//! +---------------------------------------------------------------+
//! |  extensions (ext words * 32) ...                              | 68
//! +---------------------------------------------------------------+
//! |  the datagram, or a part of it, at least one octet ...        |
//! +---------------------------------------------------------------+
//! ```
//!
//! * `flags`: none is defined. A receiver refuses unknown flags of the lower four bits (0x0f) and
//!   ignores the upper.
//! * `hops`: the number of relays that have carried the frame, 1 to 4.
//! * `part`, `parts`: a datagram that is too long with this header travels in 2 to 15 parts, any
//!   other in one. Joined in order from part 0, the parts are the datagram. All parts of a datagram
//!   have the same time.
//! * `vnet id`: at the same offset as in VARP, for filters.
//! * `origin`: the relay on the sender's segment; it draws a new id at each start.
//! * `time`: the time by that relay's clock; no two datagrams have the same time.
//! * `sender's name`: the name of the vif that sent the frame. A vif recognises its own frames by
//!   it, and the key of a sealed group frame derives from it.
//! * `key number`: the number of the segment key, 1 to 255. The key of the HMAC (SHA-256, cut to
//!   128 bits) is [`Segment::frames`], which derives from the segment key and the vnet id: a
//!   receiver on one vnet can neither check nor make those of another. The HMAC covers the octets
//!   before it and those after it.
//!
//! A receiver accepts each (origin, time, part) once, among the last 64 times of the origin and
//! within 90 s of its clock. It discards the parts of a datagram that is not complete within a
//! second. It drops a datagram if it has received one with the same sender and bytes from another
//! origin within the last 2 s: two relays can carry the same segment for a moment. Relays carry
//! such a datagram further only on links that are made for it. Hosts without relays drop and count
//! it.

use super::extension::Extensions;
use super::name::Name;
use super::reader::Reader;
use super::{ParseError, VnetId};
#[cfg(doc)]
use crate::security::segment::Segment;

/// The first two bytes.
pub const MAGIC: [u8; 2] = *b"VR";
/// Version of the format.
pub const VERSION: u8 = 1;
/// Length of what stands in front of the datagram without extensions, in bytes.
pub const LEN: usize = HMAC_OFFSET + HMAC_LEN;
/// Length of the HMAC, in bytes.
pub const HMAC_LEN: usize = 16;
/// Relays that carry a frame at most.
pub const MAX_HOPS: u8 = 4;
/// Parts of a datagram at most.
pub const MAX_PARTS: u8 = 15;

/// Where a kernel filter finds the vnet id (four bytes).
pub const VNET_OFFSET: usize = 8;

const HMAC_OFFSET: usize = 52;
const GROUP_FRAME: u8 = 1;
const CRITICAL_FLAGS: u8 = 0x0f;

/// A relayed datagram, or a part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relayed<'a> {
    /// Flags; none is defined.
    pub flags: u8,
    /// Number of relays that have carried it.
    pub hops: u8,
    /// Which part it is, from 0.
    pub part: u8,
    /// Number of parts.
    pub parts: u8,
    /// Number of the segment key.
    pub key_number: u8,
    /// The vnet.
    pub vnet: VnetId,
    /// The first relay's id.
    pub origin: u64,
    /// When it took the datagram, microseconds since 1970.
    pub time_us: u64,
    /// The vif that sent it.
    pub sender: Name,
    /// The HMAC, not checked.
    pub hmac: [u8; HMAC_LEN],
    /// Extensions.
    pub extensions: Extensions<'a>,
    /// The datagram, or the part of it.
    pub bytes: &'a [u8],
}

impl<'a> Relayed<'a> {
    /// Whether a datagram claims to be one of these.
    pub fn is_one(datagram: &[u8]) -> bool {
        datagram.starts_with(&MAGIC)
    }

    /// Views a whole datagram.
    ///
    /// # Errors
    /// The fault.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let mut rest = Reader::new(bytes);
        if rest.array::<2>()? != MAGIC {
            return Err(ParseError::Magic);
        }
        if rest.u8()? != VERSION {
            return Err(ParseError::Version);
        }
        if rest.u8()? != GROUP_FRAME {
            return Err(ParseError::Type);
        }
        let (flags, hops, both, key_number) = (rest.u8()?, rest.u8()?, rest.u8()?, rest.u8()?);
        if flags & CRITICAL_FLAGS != 0 {
            return Err(ParseError::Reserved);
        }
        let (part, parts) = (both >> 4, both & 0xf);
        if part >= parts || key_number == 0 || !(1..=MAX_HOPS).contains(&hops) {
            return Err(ParseError::Value);
        }
        let vnet = VnetId::new(rest.u32()?).ok_or(ParseError::Value)?;
        let (origin, time_us, sender) = (rest.u64()?, rest.u64()?, rest.name()?);
        if sender.port() == 0 {
            return Err(ParseError::Value);
        }
        let words = rest.u8()?;
        rest.zero::<1>()?;
        let hmac = rest.array()?;
        let extensions = rest.extensions(words)?;
        let bytes = rest.rest();
        if bytes.is_empty() {
            return Err(ParseError::Truncated);
        }
        Ok(Self {
            flags,
            hops,
            part,
            parts,
            key_number,
            vnet,
            origin,
            time_us,
            sender,
            hmac,
            extensions,
            bytes,
        })
    }

    /// Length of the whole, in bytes.
    pub const fn len(&self) -> usize {
        LEN + self.extensions.bytes().len() + self.bytes.len()
    }

    /// Never: it has a fixed part.
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// Appends the whole to `out`.
    ///
    /// # Panics
    /// When the extensions take more than 255 words.
    pub fn emit(&self, out: &mut Vec<u8>) {
        let words = u8::try_from(self.extensions.words());
        assert!(words.is_ok(), "extensions of {:?} words", self.extensions.words());
        out.reserve(self.len());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[VERSION, GROUP_FRAME, self.flags, self.hops]);
        out.extend_from_slice(&[self.part << 4 | self.parts & 0xf, self.key_number]);
        out.extend_from_slice(&self.vnet.get().to_be_bytes());
        out.extend_from_slice(&self.origin.to_be_bytes());
        out.extend_from_slice(&self.time_us.to_be_bytes());
        self.sender.emit(out);
        out.extend_from_slice(&[words.unwrap_or(u8::MAX), 0]);
        out.extend_from_slice(&self.hmac);
        out.extend_from_slice(self.extensions.bytes());
        out.extend_from_slice(self.bytes);
    }

    /// The whole as a datagram.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.len());
        self.emit(&mut out);
        out
    }
}

/// The parts of a whole datagram that the HMAC covers: the bytes before it, and those after it.
pub fn covered(datagram: &[u8]) -> [&[u8]; 2] {
    let (before, rest) = datagram.split_at_checked(HMAC_OFFSET).unwrap_or_default();
    [before, rest.get(HMAC_LEN..).unwrap_or_default()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::extension::{self, Extension};
    use crate::wire::name::Realm;
    use crate::wire::vectors::{self, unhex};
    use proptest::prelude::*;

    const VECTOR: &str = include_str!("../../tests/vectors/relayed/part.hex");
    /// Type 0x0102 without a value.
    const EXTENSIONS: [u8; 4] = [1, 2, 0, 0];

    fn part() -> Relayed<'static> {
        Relayed {
            flags: 0x10,
            hops: 2,
            part: 1,
            parts: 3,
            key_number: 7,
            vnet: VnetId::new(42).unwrap(),
            origin: 0x1122_3344_5566_7788,
            time_us: 0x0102_0304_0506_0708,
            sender: Name::vif(Realm(0), "192.0.2.1:49152".parse().unwrap()),
            hmac: *b"0123456789abcdef",
            extensions: Extensions::parse(&EXTENSIONS, &[]).unwrap(),
            bytes: &[0xde, 0xad],
        }
    }

    fn emitted_again(bytes: &[u8]) -> Result<Vec<u8>, ParseError> {
        Relayed::parse(bytes).map(|relayed| relayed.to_bytes())
    }

    #[test]
    fn the_vector_means_what_it_says_and_is_emitted_again() {
        let bytes = unhex(VECTOR);
        assert_eq!(Relayed::parse(&bytes), Ok(part()));
        assert_eq!(part().to_bytes(), bytes);
        assert_eq!(part().len(), bytes.len());
        assert!(Relayed::is_one(&bytes));
        vectors::changed(&bytes, emitted_again);
        // Where the datagram is cut only its HMAC tells.
        for end in 0..bytes.len() - 1 {
            let cut = Relayed::parse(&bytes[..end]);
            assert_eq!(cut, Err(ParseError::Truncated), "cut to {end} bytes");
        }
        assert_eq!(bytes[VNET_OFFSET..VNET_OFFSET + 4], [0, 0, 0, 42]);
    }

    #[test]
    fn the_hmac_covers_all_but_itself() {
        let bytes = unhex(VECTOR);
        let [before, after] = covered(&bytes);
        assert_eq!([before, &part().hmac, after].concat(), bytes);
        assert!(covered(&[1; 20]).iter().all(|part| part.is_empty()));
    }

    #[test]
    fn what_is_not_defined_is_refused_by_name() {
        let with = |changes: &[(usize, u8)]| {
            let mut bytes = part().to_bytes();
            changes.iter().for_each(|(at, value)| bytes[*at] = *value);
            Relayed::parse(&bytes).unwrap_err()
        };
        assert_eq!(with(&[(1, 0x41)]), ParseError::Magic);
        assert_eq!(with(&[(2, 2)]), ParseError::Version);
        assert_eq!(with(&[(3, 2)]), ParseError::Type);
        assert_eq!(with(&[(4, 1)]), ParseError::Reserved, "a critical flag");
        assert_eq!(with(&[(5, 0)]), ParseError::Value, "no hop");
        assert_eq!(with(&[(5, 5)]), ParseError::Value, "too many hops");
        assert_eq!(with(&[(6, 0x33)]), ParseError::Value, "the fourth of three parts");
        assert_eq!(with(&[(7, 0)]), ParseError::Value, "no key");
        assert_eq!(with(&[(11, 0)]), ParseError::Value, "vnet 0");
        assert_eq!(with(&[(48, 0), (49, 0)]), ParseError::Value, "from a host, not a vif");
        assert_eq!(with(&[(51, 1)]), ParseError::Reserved);
        assert_eq!(with(&[(68, 0x80)]), ParseError::Critical);
    }

    proptest! {
        #[test]
        fn what_is_emitted_is_parsed(
            (flags, hops, parts) in (0..16u8, 1..=MAX_HOPS, 1..=MAX_PARTS), part: u8,
            key_number in 1..=u8::MAX, vnet in 1..=u32::MAX, (origin, time_us) in any::<(u64, u64)>(), ip: u32,
            port in 1..=u16::MAX, hmac: [u8; 16], bytes in prop::collection::vec(any::<u8>(), 1..90),
        ) {
            let ip = std::net::Ipv4Addr::from(ip % 0xdfff_ffff + 1);
            let list = extension::emit(&[Extension { kind: 7, value: &bytes }]);
            let relayed = Relayed {
                flags: flags << 4, hops, part: part % parts, parts, key_number, origin, time_us, hmac,
                vnet: VnetId::new(vnet).unwrap(),
                sender: Name::vif(Realm(origin as u32), (ip, port).into()),
                extensions: Extensions::parse(&list, &[]).unwrap(),
                bytes: &bytes,
            };
            let bytes = relayed.to_bytes();
            prop_assert_eq!(Relayed::parse(&bytes), Ok(relayed));
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
            for input in [[&MAGIC[..], &[VERSION, GROUP_FRAME], &bytes].concat(), bytes] {
                if let Ok(relayed) = Relayed::parse(&input) {
                    prop_assert_eq!(relayed.to_bytes(), input);
                }
            }
        }
    }
}
