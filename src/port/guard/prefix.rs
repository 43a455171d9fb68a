//! Addresses with a common beginning, as an operator writes them: `192.0.2.7`, `2001:db8::/64`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// All addresses that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    address: IpAddr,
    /// Number of bits that count.
    len: u8,
}

impl Prefix {
    /// Whether an address is among them. IPv4 in IPv6 is IPv6.
    #[inline]
    pub fn contains(&self, address: IpAddr) -> bool {
        // All bits at once can't be shifted out.
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let differs = own.to_bits() ^ other.to_bits();
                differs.checked_shr(32 - u32::from(self.len)).unwrap_or(0) == 0
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let differs = own.to_bits() ^ other.to_bits();
                differs.checked_shr(128 - u32::from(self.len)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }

    /// Whether they are addresses of IPv4.
    pub const fn is_v4(&self) -> bool {
        self.address.is_ipv4()
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = if self.is_v4() { 32 } else { 128 };
        match self.len {
            len if len == bits => write!(f, "{}", self.address),
            len => write!(f, "{}/{len}", self.address),
        }
    }
}

impl FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, len) = match text.split_once('/') {
            Some((address, len)) => (address, Some(len)),
            None => (text, None),
        };
        let address: IpAddr =
            address.parse().map_err(|_| format!("`{address}` is no IPv4 or IPv6 address"))?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let len = match len {
            None => bits,
            Some(len) => len
                .parse()
                .ok()
                .filter(|len| *len <= bits)
                .ok_or_else(|| format!("`{len}` is no prefix length from 0 to {bits}"))?,
        };
        let prefix = Self { address, len };
        let zero: IpAddr = match address {
            IpAddr::V4(own) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
                Ipv4Addr::from_bits(own.to_bits() & mask).into()
            }
            IpAddr::V6(own) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
                Ipv6Addr::from_bits(own.to_bits() & mask).into()
            }
        };
        if zero != address {
            // Either the address or the length is a mistake.
            return Err(format!(
                "{address} has bits beyond /{len}; did you mean {zero}/{len}, or {address}?"
            ));
        }
        // The first of a prefix that begins like a group's is a group's.
        let is_none = len == bits && address.is_unspecified();
        if is_none || address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST) {
            return Err(format!("nobody sends from {prefix}"));
        }
        if let IpAddr::V6(own) = address
            && let Some(v4) = own.to_ipv4_mapped()
        {
            return Err(format!("{address} is IPv4 in disguise; did you mean {v4}?"));
        }
        Ok(prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contains(prefix: &str, address: &str) -> bool {
        prefix.parse::<Prefix>().unwrap().contains(address.parse().unwrap())
    }

    #[test]
    fn a_prefix_has_what_begins_with_it() {
        assert!(contains("192.0.2.7", "192.0.2.7"));
        assert!(!contains("192.0.2.7", "192.0.2.6"));
        assert!(contains("192.0.2.0/25", "192.0.2.127"));
        assert!(!contains("192.0.2.0/25", "192.0.2.128"));
        assert!(contains("0.0.0.0/0", "255.255.255.255"));
        assert!(!contains("0.0.0.0/0", "::"));
        assert!(contains("::/0", "ffff::"));
        assert!(contains("2001:db8::/64", "2001:db8::1:2"));
        assert!(!contains("2001:db8::/64", "2001:db8:0:1::"));
        assert!(!contains("::/0", "10.0.0.1"));
    }

    #[test]
    fn mistakes_are_explained() {
        let why = |text: &str| text.parse::<Prefix>().unwrap_err();
        assert_eq!(why("10.0.0"), "`10.0.0` is no IPv4 or IPv6 address");
        assert_eq!(why("10.0.0.0/33"), "`33` is no prefix length from 0 to 32");
        assert_eq!(why("::/129"), "`129` is no prefix length from 0 to 128");
        assert_eq!(why("::/"), "`` is no prefix length from 0 to 128");
        assert_eq!(
            why("10.0.0.1/24"),
            "10.0.0.1 has bits beyond /24; did you mean 10.0.0.0/24, or 10.0.0.1?"
        );
        assert_eq!(why("0.0.0.0"), "nobody sends from 0.0.0.0");
        assert_eq!(why("::"), "nobody sends from ::");
        assert_eq!(why("255.255.255.255"), "nobody sends from 255.255.255.255");
        assert_eq!(why("224.0.0.0/4"), "nobody sends from 224.0.0.0/4");
        assert_eq!(why("ff02::1"), "nobody sends from ff02::1");
        assert_eq!(
            why("::ffff:10.0.0.1"),
            "::ffff:10.0.0.1 is IPv4 in disguise; did you mean 10.0.0.1?"
        );
    }

    #[test]
    fn a_prefix_is_shown_as_it_is_written() {
        for text in
            ["192.0.2.7", "192.0.2.0/24", "0.0.0.0/0", "2001:db8::7", "2001:db8::/64", "::/0"]
        {
            assert_eq!(text.parse::<Prefix>().unwrap().to_string(), text);
        }
    }
}
