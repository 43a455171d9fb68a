//! The trailer that a relay appends to a VARP message (flag L of [`super::varp`]).
//!
//! A relay carries a message unchanged, with its tag, from one segment to another. The trailer
//! names the relay and, if the relay is a proxy, the address at which the receiver reaches the vif
//! and its host.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +---------------------------------------------------------------+
//! |             the VARP message, with its tag if it has one      |
//! +-------------------------------+---------------+---------------+
//! |    locator's UDP port (16)    |  key number   |     hops      |  0
//! +-------------------------------+---------------+---------------+
//! |                  locator's IP address (128), or 0             |  4
//! |                                                               |
//! +-------------------------------+---------------+---------------+
//! |       control port (16)       |   ext words   |      MBZ      | 20
//! +-------------------------------+---------------+---------------+
//! |                       relay's random id (64)                  | 24
//! |                                                               |
//! +---------------------------------------------------------------+
//! |              time, microseconds since 1970 (64)               | 32
//! |                                                               |
//! +---------------------------------------------------------------+
//! |  extensions (ext words * 32) ...                              | 40
//! +---------------------------------------------------------------+
//! |  HMAC (128) with the segment key                              |
//! +---------------------------------------------------------------+
//! ```
//!
//! * `locator`: the address and port at which the receiver reaches the vif of the CoA. All 0 in the
//!   trailer of a transparent relay: then the receiver uses the CoA. IPv4 as ::ffff:a.b.c.d. The
//!   CoA remains the name.
//! * `control port`: the UDP port at the locator's address for VARP and handshakes with the vif's
//!   host; 0 if and only if there is no locator.
//! * `hops`: number of relays that have carried the message, 1 to 4.
//! * `id`: the id of the relay on the sender's segment, which draws a new one at each start.
//! * `time`: the time by that relay's clock; no two messages have the same time.
//! * `key number`: the number of the segment key, 1 to 255. The HMAC (SHA-256, cut to 128 bits,
//!   key: [`Segment::trailer`]) covers the whole datagram before it: message, tag and trailer.
//!
//! A receiver accepts each (id, time) once, among the last 64 times of the id and within 90 s of
//! its clock. It drops a trailer with a wrong HMAC. Without a segment key it accepts only trailers
//! from the address of a configured relay. A host without relays drops and counts each message with
//! flag L.

use std::net::{Ipv6Addr, SocketAddr};

use super::ParseError;
use super::extension::Extensions;
use super::name::{is_host, mapped};
use super::reader::Reader;
#[cfg(doc)]
use crate::security::segment::Segment;

/// Length of a trailer without extensions, in bytes.
pub const LEN: usize = 40 + HMAC_LEN;
/// Length of the HMAC, in bytes.
pub const HMAC_LEN: usize = 16;
/// Relays that carry a message at most.
pub const MAX_HOPS: u8 = 4;

/// Where a vif and its host are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Locator {
    /// The vif.
    pub addr: SocketAddr,
    /// The port of VARP and handshakes at the same address.
    pub control_port: u16,
}

/// A trailer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trailer<'a> {
    /// `None` behind a transparent relay.
    pub locator: Option<Locator>,
    /// Number of relays that have carried the message.
    pub hops: u8,
    /// Number of the segment key.
    pub key_number: u8,
    /// The first relay's id.
    pub origin: u64,
    /// When it took the message, microseconds since 1970.
    pub time_us: u64,
    /// Extensions.
    pub extensions: Extensions<'a>,
    /// The HMAC, not checked.
    pub hmac: [u8; HMAC_LEN],
}

impl<'a> Trailer<'a> {
    /// The trailer that is all of what stands behind a VARP message.
    ///
    /// # Errors
    /// The fault.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let mut rest = Reader::new(bytes);
        let port = rest.u16()?;
        let (key_number, hops) = (rest.u8()?, rest.u8()?);
        let ip = Ipv6Addr::from(rest.array::<16>()?);
        let (control_port, words) = (rest.u16()?, rest.u8()?);
        rest.zero::<1>()?;
        let (origin, time_us) = (rest.u64()?, rest.u64()?);
        let extensions = rest.extensions(words)?;
        let hmac = rest.array()?;
        rest.end()?;
        if key_number == 0 || !(1..=MAX_HOPS).contains(&hops) {
            return Err(ParseError::Value);
        }
        let locator = match (ip.to_canonical(), port, control_port) {
            (ip, 0, 0) if ip.is_unspecified() && ip.is_ipv6() => None,
            (ip, port, control_port) if is_host(ip) && port != 0 && control_port != 0 => {
                Some(Locator { addr: SocketAddr::new(ip, port), control_port })
            }
            _ => return Err(ParseError::Value),
        };
        Ok(Self { locator, hops, key_number, origin, time_us, extensions, hmac })
    }

    /// Length of the trailer, in bytes.
    pub const fn len(&self) -> usize {
        LEN + self.extensions.bytes().len()
    }

    /// Never: a trailer has a fixed part.
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// Appends the trailer to `out`, behind the message.
    ///
    /// # Panics
    /// When the extensions take more than 255 words.
    pub fn emit(&self, out: &mut Vec<u8>) {
        let words = u8::try_from(self.extensions.words());
        assert!(words.is_ok(), "extensions of {:?} words", self.extensions.words());
        let addr = self.locator.map(|locator| locator.addr);
        let ip = addr.map_or(Ipv6Addr::UNSPECIFIED, |addr| mapped(addr.ip()));
        let control_port = self.locator.map_or(0, |locator| locator.control_port);
        out.extend_from_slice(&addr.map_or(0, |addr| addr.port()).to_be_bytes());
        out.extend_from_slice(&[self.key_number, self.hops]);
        out.extend_from_slice(&ip.octets());
        out.extend_from_slice(&control_port.to_be_bytes());
        out.extend_from_slice(&[words.unwrap_or(u8::MAX), 0]);
        out.extend_from_slice(&self.origin.to_be_bytes());
        out.extend_from_slice(&self.time_us.to_be_bytes());
        out.extend_from_slice(self.extensions.bytes());
        out.extend_from_slice(&self.hmac);
    }

    /// The trailer's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.len());
        self.emit(&mut out);
        out
    }
}

/// The part of a datagram with a trailer that the HMAC covers: all but the HMAC.
pub fn covered(datagram: &[u8]) -> &[u8] {
    datagram.split_last_chunk::<HMAC_LEN>().map_or(&[], |(covered, _)| covered)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    use crate::wire::extension::{self, Extension};
    use crate::wire::vectors::{self, unhex};
    use proptest::prelude::*;

    const TRANSPARENT: &str = include_str!("../../tests/vectors/trailer/transparent.hex");
    const PROXY: &str = include_str!("../../tests/vectors/trailer/proxy.hex");
    /// Type 0x0102 with one octet.
    const EXTENSIONS: [u8; 8] = [1, 2, 0, 1, 9, 0, 0, 0];

    fn transparent() -> Trailer<'static> {
        Trailer {
            locator: None,
            hops: 1,
            key_number: 1,
            origin: 0x1122_3344_5566_7788,
            time_us: 0x0102_0304_0506_0708,
            extensions: Extensions::NONE,
            hmac: *b"0123456789abcdef",
        }
    }

    fn proxy() -> Trailer<'static> {
        let addr = "198.51.100.7:49152".parse().unwrap();
        Trailer {
            locator: Some(Locator { addr, control_port: 49_153 }),
            hops: 4,
            key_number: 255,
            extensions: Extensions::parse(&EXTENSIONS, &[]).unwrap(),
            ..transparent()
        }
    }

    fn emitted_again(bytes: &[u8]) -> Result<Vec<u8>, ParseError> {
        Trailer::parse(bytes).map(|trailer| trailer.to_bytes())
    }

    #[test]
    fn vectors_mean_what_they_say_and_are_emitted_again() {
        for (text, trailer) in [(TRANSPARENT, transparent()), (PROXY, proxy())] {
            let bytes = unhex(text);
            assert_eq!(Trailer::parse(&bytes), Ok(trailer));
            assert_eq!(trailer.len(), bytes.len());
            vectors::cut_and_changed(&bytes, emitted_again);
            let longer = [&bytes[..], &[0]].concat();
            assert_eq!(Trailer::parse(&longer), Err(ParseError::Trailing));
            assert_eq!(covered(&bytes), &bytes[..bytes.len() - 16]);
        }
        assert!(covered(&[1; 15]).is_empty());
    }

    #[test]
    fn what_is_not_defined_is_refused_by_name() {
        let with = |changes: &[(usize, u8)]| {
            let mut bytes = proxy().to_bytes();
            changes.iter().for_each(|(at, value)| bytes[*at] = *value);
            Trailer::parse(&bytes).unwrap_err()
        };
        assert_eq!(with(&[(2, 0)]), ParseError::Value, "no key");
        assert_eq!(with(&[(3, 0)]), ParseError::Value, "no hop");
        assert_eq!(with(&[(3, 5)]), ParseError::Value, "too many hops");
        assert_eq!(with(&[(0, 0), (1, 0)]), ParseError::Value, "a locator without a port");
        assert_eq!(with(&[(20, 0), (21, 0)]), ParseError::Value, "without a control port");
        assert_eq!(with(&[(16, 224)]), ParseError::Value, "a group as a locator");
        assert_eq!(with(&[(23, 1)]), ParseError::Reserved);
        assert_eq!(with(&[(40, 0x80)]), ParseError::Critical);
        let mut half = transparent().to_bytes();
        half[21] = 1;
        assert_eq!(Trailer::parse(&half), Err(ParseError::Value), "a port without a locator");
    }

    prop_compose! {
        fn any_locator()(v6 in any::<bool>(), bits in any::<u128>(), port in 1..=u16::MAX,
                         control_port in 1..=u16::MAX) -> Locator {
            let [a, .., b, c, d] = bits.to_be_bytes();
            // 2000::/3, so that the address is neither multicast nor mapped.
            let ip = match v6 {
                true => Ipv6Addr::from((bits >> 3) | (1 << 125)).into(),
                false => IpAddr::from([a % 223 + 1, b, c, d]),
            };
            Locator { addr: SocketAddr::new(ip, port), control_port }
        }
    }

    proptest! {
        #[test]
        fn what_is_emitted_is_parsed(
            locator in prop::option::of(any_locator()), hops in 1..=MAX_HOPS, key_number in 1..=u8::MAX,
            origin: u64, time_us: u64, hmac: [u8; 16],
            value in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let list = extension::emit(&[Extension { kind: 7, value: &value }]);
            let extensions = Extensions::parse(&list, &[]).unwrap();
            let trailer = Trailer { locator, hops, key_number, origin, time_us, extensions, hmac };
            let bytes = trailer.to_bytes();
            prop_assert_eq!(Trailer::parse(&bytes), Ok(trailer));
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..90)) {
            if let Ok(trailer) = Trailer::parse(&bytes) {
                prop_assert_eq!(trailer.to_bytes(), bytes);
            }
        }
    }
}
