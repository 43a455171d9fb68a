//! Names of hosts and vifs: keys derive from them, tags cover them, and they decide between equal
//! stamps.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +---------------------------------------------------------------+
//! |                           realm (32)                          |  0
//! +---------------------------------------------------------------+
//! |                        IP address (128)                       |  4
//! |                  (IPv4: as ::ffff:a.b.c.d)                    |
//! |                                                               |
//! |                                                               |
//! +-------------------------------+-------------------------------+
//! |           port (16)           |                                 20
//! +-------------------------------+
//! ```
//!
//! The name of a host consists of its realm and its own IP address, with port 0. The name of a vif
//! is that of its host, with the vif's UDP port. A name identifies a host or a vif. The address to
//! which datagrams are sent is a locator: the address in the name, unless a relay stands between
//! the hosts.
//!
//! * `realm`: distinguishes private networks with equal addresses; 0 unless configured otherwise.
//! * `IP address`: neither unspecified, multicast nor broadcast.
//!
//! Names are compared by their [`LEN`] octets: by realm, then IP address, then port, as numbers.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use super::ParseError;
use super::reader::Reader;

/// Length of a name, in bytes.
pub const LEN: usize = 22;

/// Tells private networks with overlapping addresses apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Realm(pub u32);

impl fmt::Display for Realm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Realm {
    type Err = String;

    /// Decimal, or hexadecimal with a leading `0x`.
    fn from_str(s: &str) -> Result<Self, String> {
        let number = match s.strip_prefix("0x").or_else(|| s.strip_prefix("0X")) {
            Some(hex) => u32::from_str_radix(hex, 16),
            None => s.parse(),
        };
        number.map(Self).map_err(|_| {
            format!("'{s}' is not a realm: a number from 0 to 4294967295, decimal or 0x hex")
        })
    }
}

/// The name of a host or of a vif.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    // The order of the fields is that of names.
    realm: Realm,
    ip: Ipv6Addr,
    port: u16,
}

impl Name {
    /// The host with this address in a realm. An IPv4-mapped address is taken as the IPv4 one.
    pub const fn host(realm: Realm, ip: IpAddr) -> Self {
        Self::new(realm, ip, 0)
    }

    /// The vif with this care-of address in a realm.
    pub const fn vif(realm: Realm, addr: SocketAddr) -> Self {
        Self::new(realm, addr.ip(), addr.port())
    }

    const fn new(realm: Realm, ip: IpAddr, port: u16) -> Self {
        Self { realm, ip: mapped(ip), port }
    }

    /// The realm.
    pub const fn realm(&self) -> Realm {
        self.realm
    }

    /// The IP address; never an IPv4-mapped one.
    pub const fn ip(&self) -> IpAddr {
        self.ip.to_canonical()
    }

    /// The port of a vif; 0 of a host.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// IP address and port.
    pub const fn addr(&self) -> SocketAddr {
        SocketAddr::new(self.ip(), self.port)
    }

    /// The name of the vif's host, or of the host itself.
    pub const fn of_host(&self) -> Self {
        Self { port: 0, ..*self }
    }

    /// The name's octets: what keys derive from and tags cover.
    pub fn to_bytes(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        let (realm, rest) = bytes.split_at_mut(4);
        let (ip, port) = rest.split_at_mut(16);
        realm.copy_from_slice(&self.realm.0.to_be_bytes());
        ip.copy_from_slice(&self.ip.octets());
        port.copy_from_slice(&self.port.to_be_bytes());
        bytes
    }

    /// Appends the name to `out`.
    pub fn emit(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_bytes());
    }

    /// The name in these bytes, and the bytes after it.
    ///
    /// # Errors
    /// `Truncated`, or `Value` for an IP address that no host has.
    pub fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), ParseError> {
        let mut reader = Reader::new(bytes);
        Ok((reader.name()?, reader.rest()))
    }
}

impl fmt::Display for Name {
    /// `192.0.2.1`, `192.0.2.1:49152` for a vif, `7/192.0.2.1` in another realm than 0.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let realm = match self.realm {
            Realm(0) => String::new(),
            realm => format!("{realm}/"),
        };
        match self.port {
            0 => f.pad(&format!("{realm}{}", self.ip())),
            _ => f.pad(&format!("{realm}{}", self.addr())),
        }
    }
}

/// An address as it is on the wire and in keys: an IPv4 address is mapped into IPv6.
pub const fn mapped(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

/// Whether a host can have the address: it is neither unspecified, multicast nor broadcast.
///
/// An IPv4-mapped address is judged as the IPv4 one.
pub(crate) const fn is_host(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    let other = ip.is_unspecified() || ip.is_multicast();
    match ip {
        IpAddr::V4(v4) => !other && !v4.is_broadcast(),
        IpAddr::V6(_) => !other,
    }
}

/// Whether the host with the underlay address `own` can reach another host at `ip`: a loopback
/// address, or a link-local one, means the same host to both only if the underlay itself is
/// loopback, or the link.
pub fn is_reachable(ip: IpAddr, own: IpAddr) -> bool {
    let is_link_local = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let (ip, own) = (ip.to_canonical(), own.to_canonical());
    let is_of_link = !is_link_local(ip) || is_link_local(own);
    is_host(ip) && is_of_link && (!ip.is_loopback() || own.is_loopback())
}

impl Reader<'_> {
    /// A name. Port 0 makes it a host's; where only one of the two may stand the caller checks.
    pub(super) fn name(&mut self) -> Result<Name, ParseError> {
        let realm = Realm(self.u32()?);
        let ip = Ipv6Addr::from(self.array::<16>()?);
        let name = Name { realm, ip, port: self.u16()? };
        if is_host(name.ip()) { Ok(name) } else { Err(ParseError::Value) }
    }
}

#[cfg(test)]
pub(in crate::wire) mod tests {
    use super::*;
    use crate::wire::vectors::{self, unhex};
    use proptest::prelude::*;

    const HOST4: &str = include_str!("../../tests/vectors/name/host4.hex");
    const VIF6: &str = include_str!("../../tests/vectors/name/vif6.hex");

    fn host4() -> Name {
        Name::host(Realm(0), "192.0.2.1".parse().unwrap())
    }

    fn vif6() -> Name {
        Name::vif(Realm(0x0102_0304), "[2001:db8::7]:49152".parse().unwrap())
    }

    fn emitted_again(bytes: &[u8]) -> Result<Vec<u8>, ParseError> {
        let (name, rest) = Name::parse(bytes)?;
        assert!(rest.is_empty());
        Ok(name.to_bytes().to_vec())
    }

    #[test]
    fn vectors_mean_what_they_say_and_are_emitted_again() {
        for (text, name) in [(HOST4, host4()), (VIF6, vif6())] {
            let bytes = unhex(text);
            assert_eq!(bytes.len(), LEN);
            assert_eq!(Name::parse(&bytes), Ok((name, &[][..])));
            vectors::cut_and_changed(&bytes, emitted_again);
            let mut out = vec![1];
            name.emit(&mut out);
            assert_eq!(out, [&[1], &bytes[..]].concat());
        }
    }

    #[test]
    fn an_address_that_no_host_has_is_no_name() {
        for ip in ["0.0.0.0", "::", "224.10.0.1", "ff02::1", "255.255.255.255"] {
            let name = Name::host(Realm(0), ip.parse().unwrap());
            assert_eq!(Name::parse(&name.to_bytes()), Err(ParseError::Value), "{ip}");
        }
    }

    #[test]
    fn one_host_has_one_name() {
        let mapped = Name::host(Realm(0), "::ffff:192.0.2.1".parse().unwrap());
        assert_eq!(mapped, host4());
        assert_eq!(mapped.ip().to_string(), "192.0.2.1");
        assert_eq!(vif6().of_host(), Name::host(vif6().realm(), vif6().ip()));
        assert_ne!(vif6().of_host(), vif6());
        assert_ne!(host4(), Name::host(Realm(1), host4().ip()), "another realm, another host");
        assert_eq!(vif6().addr().to_string(), "[2001:db8::7]:49152");
    }

    #[test]
    fn names_are_shown_short() {
        assert_eq!(host4().to_string(), "192.0.2.1");
        assert_eq!(vif6().to_string(), "16909060/[2001:db8::7]:49152");
        assert_eq!(vif6().of_host().to_string(), "16909060/2001:db8::7");
        assert_eq!("0x10".parse(), Ok(Realm(16)));
        assert!("-1".parse::<Realm>().is_err() && "4294967296".parse::<Realm>().is_err());
    }

    pub(in crate::wire) fn any_name() -> impl Strategy<Value = Name> {
        let ip = prop_oneof![
            any::<u32>().prop_map(|bits| IpAddr::from(bits.to_be_bytes())),
            any::<u128>().prop_map(|bits| IpAddr::from(bits.to_be_bytes())),
        ];
        let name = (any::<u32>(), ip, any::<u16>());
        name.prop_filter_map("no host has it", |(realm, ip, port)| {
            is_host(ip).then(|| Name::vif(Realm(realm), SocketAddr::new(ip, port)))
        })
    }

    proptest! {
        #[test]
        fn what_is_emitted_is_parsed(name in any_name(), rest: Vec<u8>) {
            let bytes = [&name.to_bytes()[..], &rest].concat();
            prop_assert_eq!(Name::parse(&bytes), Ok((name, &rest[..])));
        }

        #[test]
        fn the_order_is_that_of_the_octets(one in any_name(), other in any_name(), same: u8) {
            // Names that have one or two fields in common.
            let alike = match same % 3 {
                0 => Name { realm: one.realm, ..other },
                1 => Name { port: other.port, ..one },
                _ => Name { ip: other.ip, ..one },
            };
            for other in [other, alike] {
                prop_assert_eq!(one.cmp(&other), one.to_bytes().cmp(&other.to_bytes()));
            }
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Ok((name, rest)) = Name::parse(&bytes) {
                prop_assert_eq!([&name.to_bytes()[..], rest].concat(), bytes);
            }
        }
    }
}
