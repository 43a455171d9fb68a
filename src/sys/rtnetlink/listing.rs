//! Combines the kernel's lists of interfaces, addresses and routes.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Interface;
use super::message::{LINK_LEN, NEW_ADDRESS, NEW_LINK, NEW_ROUTE, Part, u16_at, u32_at};

/// Lengths of `struct ifaddrmsg` and `struct rtmsg`.
const ADDRESS_LEN: usize = 8;
const ROUTE_LEN: usize = 12;
/// Length of `struct rtnexthop`, and the offset of its interface index.
const NEXT_HOP_LEN: usize = 8;
const NEXT_HOP_INDEX: usize = 4;
/// `IFA_FLAGS` of linux/if_addr.h: the flags with room for more than eight.
const IFA_FLAGS: u16 = 8;

/// The kernel's lists so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Listing {
    links: BTreeMap<u32, Interface>,
    /// By interface, in order of preference.
    addresses: BTreeMap<u32, Vec<(bool, IpAddr)>>,
    routed: BTreeSet<u32>,
}

impl Listing {
    /// Adds a message; ignores unknown ones.
    pub(super) fn take(&mut self, part: &Part<'_>) {
        // None: the message is too short or irrelevant.
        let _ = match part.kind {
            NEW_LINK => self.take_link(part),
            NEW_ADDRESS => self.take_address(part),
            NEW_ROUTE => self.take_route(part),
            _ => None,
        };
    }

    fn take_link(&mut self, part: &Part<'_>) -> Option<()> {
        let (index, flags) = (u32_at(part.body, 4)?, u32_at(part.body, 8)?);
        let has = |flag: i32| flags & flag.cast_unsigned() != 0;
        let (mut name, mut master) = (None, None);
        for (kind, value) in part.attributes(LINK_LEN) {
            match kind {
                libc::IFLA_IFNAME => name = Some(text(value)),
                libc::IFLA_MASTER => master = u32_at(value, 0),
                _ => {}
            }
        }
        let interface = Interface {
            name: name?,
            index,
            master,
            up: has(libc::IFF_UP),
            loopback: has(libc::IFF_LOOPBACK),
            multicast: has(libc::IFF_MULTICAST),
            default_route: false,
            addresses: Vec::new(),
        };
        self.links.insert(index, interface);
        Some(())
    }

    fn take_address(&mut self, part: &Part<'_>) -> Option<()> {
        let family = *part.body.first()?;
        let mut flags = u32::from(*part.body.get(2)?);
        let index = u32_at(part.body, 4)?;
        // On a point-to-point link, IFA_ADDRESS is the address of the other end.
        let (mut local, mut other) = (None, None);
        for (kind, value) in part.attributes(ADDRESS_LEN) {
            match kind {
                libc::IFA_LOCAL => local = address(family, value),
                libc::IFA_ADDRESS => other = address(family, value),
                IFA_FLAGS => flags = u32_at(value, 0)?,
                _ => {}
            }
        }
        let is_v6 = i32::from(family) == libc::AF_INET6;
        let has = |flag: u32| flags & flag != 0;
        // Tentative: unusable until duplicate address detection has finished.
        let is_unsure = has(libc::IFA_F_TENTATIVE) && !has(libc::IFA_F_OPTIMISTIC);
        if is_v6 && (is_unsure || has(libc::IFA_F_DADFAILED)) {
            return None;
        }
        // The same bit marks secondary IPv4 and temporary IPv6 addresses.
        let is_last = has(libc::IFA_F_SECONDARY) || has(libc::IFA_F_DEPRECATED);
        self.addresses.entry(index).or_default().push((is_last, local.or(other)?));
        Some(())
    }

    fn take_route(&mut self, part: &Part<'_>) -> Option<()> {
        let (to_len, table, kind) = (part.body.get(1)?, part.body.get(4)?, part.body.get(7)?);
        let mut table = u32::from(*table);
        let mut ways = Vec::new();
        for (attribute, value) in part.attributes(ROUTE_LEN) {
            match attribute {
                libc::RTA_TABLE => table = u32_at(value, 0)?,
                libc::RTA_OIF => ways.extend(u32_at(value, 0)),
                libc::RTA_MULTIPATH => ways.extend(next_hops(value)),
                _ => {}
            }
        }
        let is_default =
            *to_len == 0 && *kind == libc::RTN_UNICAST && table == u32::from(libc::RT_TABLE_MAIN);
        self.routed.extend(ways.into_iter().filter(|_| is_default));
        Some(())
    }

    /// The interfaces, by index.
    pub(super) fn into_interfaces(mut self) -> Vec<Interface> {
        let mut interfaces: Vec<Interface> = self.links.into_values().collect();
        for interface in &mut interfaces {
            let mut addresses = self.addresses.remove(&interface.index).unwrap_or_default();
            addresses.sort_by_key(|(is_last, _)| *is_last);
            interface.addresses = addresses.into_iter().map(|(_, address)| address).collect();
            interface.default_route = self.routed.contains(&interface.index);
        }
        interfaces
    }
}

/// The interfaces of a route's next hops.
fn next_hops(mut bytes: &[u8]) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let len = usize::from(u16_at(bytes, 0)?);
        let index = u32_at(bytes, NEXT_HOP_INDEX)?;
        bytes = bytes.get(len.max(NEXT_HOP_LEN)..).unwrap_or_default();
        Some(index)
    })
}

fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(value.get(..end).unwrap_or_default()).into_owned()
}

fn address(family: u8, value: &[u8]) -> Option<IpAddr> {
    match i32::from(family) {
        libc::AF_INET => Some(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?).into()),
        libc::AF_INET6 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::{attributes, parts};
    use super::*;

    /// A message of this kind.
    fn message(kind: u16, fixed: &[u8], attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = fixed.to_vec();
        for (kind, value) in attributes {
            body.extend(u16::try_from(4 + value.len()).unwrap().to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(*value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        let mut bytes = u32::try_from(16 + body.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(body);
        bytes
    }

    fn link(index: u32, name: &str, flags: i32, master: Option<u32>) -> Vec<u8> {
        let mut fixed = vec![0; 4];
        fixed.extend(index.to_ne_bytes());
        fixed.extend(flags.to_ne_bytes());
        fixed.extend([0; 4]);
        let name = [name.as_bytes(), &[0]].concat();
        let master = master.map(u32::to_ne_bytes);
        let mut attributes = vec![(libc::IFLA_IFNAME, name.as_slice())];
        attributes.extend(master.iter().map(|m| (libc::IFLA_MASTER, m.as_slice())));
        message(NEW_LINK, &fixed, &attributes)
    }

    fn with_address(index: u32, flags: u32, attributes: &[(u16, &str)]) -> Vec<u8> {
        let octets = |text: &str| match text.parse().unwrap() {
            IpAddr::V4(a) => a.octets().to_vec(),
            IpAddr::V6(a) => a.octets().to_vec(),
        };
        let values: Vec<_> = attributes.iter().map(|(kind, text)| (*kind, octets(text))).collect();
        let is_v6 = values[0].1.len() == 16;
        let family = if is_v6 { libc::AF_INET6 } else { libc::AF_INET };
        let mut fixed = vec![u8::try_from(family).unwrap(), 24, 0, 0];
        fixed.extend(index.to_ne_bytes());
        let flags = flags.to_ne_bytes();
        let mut all: Vec<_> = values.iter().map(|(kind, v)| (*kind, v.as_slice())).collect();
        all.push((IFA_FLAGS, &flags));
        message(NEW_ADDRESS, &fixed, &all)
    }

    fn route(to_len: u8, table: u8, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let fixed = [2, to_len, 0, 0, table, 0, 0, libc::RTN_UNICAST, 0, 0, 0, 0];
        message(NEW_ROUTE, &fixed, attributes)
    }

    fn listed(messages: &[Vec<u8>]) -> Vec<Interface> {
        let mut listing = Listing::default();
        let bytes = messages.concat();
        parts(&bytes).for_each(|part| listing.take(&part));
        listing.into_interfaces()
    }

    #[test]
    fn what_the_kernel_lists_is_put_together() {
        let up = libc::IFF_UP | libc::IFF_MULTICAST;
        let hops = [8_u16.to_ne_bytes(), [0; 2], [7, 0], [0; 2]].concat();
        let all = listed(&[
            link(1, "lo", libc::IFF_UP | libc::IFF_LOOPBACK, None),
            link(2, "eth0", up, Some(5)),
            link(5, "br0", up, None),
            link(7, "ppp0", 0, None),
            with_address(5, 0, &[(libc::IFA_ADDRESS, "192.0.2.1"), (libc::IFA_LOCAL, "192.0.2.1")]),
            with_address(7, 0, &[(libc::IFA_ADDRESS, "10.0.0.9"), (libc::IFA_LOCAL, "10.0.0.1")]),
            with_address(9, 0, &[(libc::IFA_LOCAL, "10.0.0.2")]),
            route(0, libc::RT_TABLE_MAIN, &[(libc::RTA_OIF, &5_u32.to_ne_bytes())]),
            route(24, libc::RT_TABLE_MAIN, &[(libc::RTA_OIF, &2_u32.to_ne_bytes())]),
            route(0, 10, &[(libc::RTA_OIF, &1_u32.to_ne_bytes())]),
            route(0, libc::RT_TABLE_MAIN, &[(libc::RTA_MULTIPATH, &hops)]),
        ]);
        let names: Vec<&str> = all.iter().map(|i| i.name.as_str()).collect();
        assert_eq!(names, ["lo", "eth0", "br0", "ppp0"]);
        assert!(all[0].loopback && !all[0].multicast && all[1].multicast && all[1].up);
        assert_eq!((all[1].master, all[2].master), (Some(5), None));
        assert_eq!(all[2].addresses, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(all[3].addresses, ["10.0.0.1".parse::<IpAddr>().unwrap()], "its own end");
        let routed: Vec<bool> = all.iter().map(|i| i.default_route).collect();
        assert_eq!(routed, [false, false, true, true]);
    }

    #[test]
    fn only_addresses_that_can_be_used_are_listed_the_lasting_ones_first() {
        let address = |flags, text| with_address(2, flags, &[(libc::IFA_ADDRESS, text)]);
        let all = listed(&[
            link(2, "eth0", libc::IFF_UP, None),
            address(libc::IFA_F_TENTATIVE, "2001:db8::1"),
            address(libc::IFA_F_DADFAILED, "2001:db8::2"),
            address(libc::IFA_F_TEMPORARY, "2001:db8::3"),
            address(libc::IFA_F_DEPRECATED, "2001:db8::4"),
            address(libc::IFA_F_TENTATIVE | libc::IFA_F_OPTIMISTIC, "2001:db8::5"),
            address(0, "2001:db8::6"),
        ]);
        let texts: Vec<String> = all[0].addresses.iter().map(IpAddr::to_string).collect();
        assert_eq!(texts, ["2001:db8::5", "2001:db8::6", "2001:db8::3", "2001:db8::4"]);
    }

    #[test]
    fn garbage_is_left_out() {
        for len in 0..40 {
            let mut short = link(2, "eth0", 0, None);
            short.truncate(len);
            assert_eq!(listed(&[short]), []);
        }
        assert_eq!(attributes(&[3, 0, 0, 0]).count(), 0, "shorter than its own header");
        assert_eq!(next_hops(&[0; 8]).count(), 1, "no endless loop");
    }

    #[test]
    fn the_end_of_an_interface_is_told_from_that_of_a_bridges_port() {
        let gone = |family: u8, index: u32| {
            let mut fixed = vec![family, 0, 0, 0];
            fixed.extend(index.to_ne_bytes());
            fixed.extend([0; 8]);
            message(libc::RTM_DELLINK, &fixed, &[])
        };
        let deletes = |bytes: &[u8]| parts(bytes).any(|part| part.deletes(7));
        assert!(deletes(&gone(0, 7)) && !deletes(&gone(0, 8)));
        assert!(!deletes(&gone(u8::try_from(libc::AF_BRIDGE).unwrap(), 7)));
        assert!(!deletes(&link(7, "eth0", 0, None)));
    }
}
