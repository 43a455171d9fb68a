//! The multicast group of a vnet's frames.
//!
//! With a group for each vnet, hosts and switches receive only the broadcasts of vnets that they
//! have. The address of the group follows from the vnet id, so it needs no configuration or
//! agreement:
//!
//! ```text
//! IPv6: ff15::, the last 32 bits are id | 0x80000000
//!
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +---------------+-------+-------+-------------------------------+
//! |      ff       |flags 1|scope 5|               0               |
//! +---------------+-------+-------+-------------------------------+
//! |                               0                               |
//! |                               0                               |
//! +-+-------------------------------------------------------------+
//! |1|                low 31 bits of the vnet id                   |
//! +-+-------------------------------------------------------------+
//!
//! IPv4: out of 239.192.0.0/14
//!
//! +---------------+-----------+-----------------------------------+
//! |      239      |192 (6 bit)|      low 18 bits of the vnet id   |
//! +---------------+-----------+-----------------------------------+
//! ```
//!
//! The top bit of an IPv6 group id means that a host chose it (RFC 3307, section 4.3); flags and
//! scope mean that it is transient and site-local (RFC 4291, section 2.7). 239.192.0.0/14 is the
//! organization-local scope of IPv4 (RFC 2365, section 6.2).
//!
//! Vnets whose ids have these bits in common share a group; receivers check the vnet id of each
//! frame in any case. VARP and hello use one group for all vnets: by default 224.10.0.1, which is
//! no vnet's, or ff15::e00a:1, which is also that of vnets 0x600a0001 and 0xe00a0001.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::VnetId;

/// The range of IPv4 groups, and the bits of the id that fit in.
const V4: u32 = u32::from_be_bytes([239, 192, 0, 0]);
const V4_BITS: u32 = (1 << 18) - 1;
/// The IPv6 groups, and the bit of those that hosts choose.
const V6: u128 = 0xff15 << 112;
const CHOSEN_BY_HOST: u32 = 1 << 31;

/// The vnet's group in the address family of an address.
pub fn of_vnet(vnet: VnetId, family: IpAddr) -> IpAddr {
    match family {
        IpAddr::V4(_) => Ipv4Addr::from(V4 | vnet.get() & V4_BITS).into(),
        IpAddr::V6(_) => Ipv6Addr::from(V6 | u128::from(vnet.get() | CHOSEN_BY_HOST)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn groups(id: u32) -> (IpAddr, IpAddr) {
        let vnet = VnetId::new(id).unwrap();
        let family = |ip: &str| ip.parse().unwrap();
        (of_vnet(vnet, family("192.0.2.1")), of_vnet(vnet, family("2001:db8::1")))
    }

    #[test]
    fn committed_vectors() {
        for (id, v4, v6) in [
            (2, "239.192.0.2", "ff15::8000:2"),
            (0x0002_a5c3, "239.194.165.195", "ff15::8002:a5c3"),
            (0x0003_ffff, "239.195.255.255", "ff15::8003:ffff"),
            (0x0004_0002, "239.192.0.2", "ff15::8004:2"),
            (u32::MAX, "239.195.255.255", "ff15::ffff:ffff"),
        ] {
            assert_eq!(groups(id), (v4.parse().unwrap(), v6.parse().unwrap()), "{id:#x}");
        }
    }

    proptest! {
        #[test]
        fn a_group_is_of_the_range_that_is_meant_for_it(id in 1..=u32::MAX) {
            let (v4, v6) = groups(id);
            prop_assert!(v4.is_multicast() && v6.is_multicast());
            let IpAddr::V4(v4) = v4 else { panic!("of another family") };
            prop_assert!((0xefc0_0000..0xefc4_0000).contains(&u32::from(v4)));
            prop_assert_ne!(v4, crate::wire::varp::GROUP);
            let IpAddr::V6(v6) = v6 else { panic!("of another family") };
            prop_assert_eq!(&v6.segments()[..6], &[0xff15, 0, 0, 0, 0, 0]);
            prop_assert!(v6.segments()[6] & 0x8000 != 0);
        }
    }
}
