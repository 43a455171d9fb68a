//! Chooses the host's place on the underlay from what it's told and the interfaces there are.

use std::fmt::Write as _;
use std::net::IpAddr;

use thiserror::Error;

use crate::config::Config;
use crate::sys::link::Interface;

/// Why there is no place on the underlay. Each says what there is to choose from.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum SiteError {
    /// Named by mistake.
    #[error("no interface '{name}' (there are: {choices})")]
    NoInterface {
        /// The name.
        name: String,
        /// Interfaces and addresses.
        choices: String,
    },
    /// Not up.
    #[error("interface '{0}' is down")]
    Down(String),
    /// Nothing to send from.
    #[error("interface '{0}' has no IP address")]
    NoAddress(String),
    /// No interface has it.
    #[error("no interface has the address {address} (there are: {choices})")]
    NotOurs {
        /// The address.
        address: IpAddr,
        /// Interfaces and addresses.
        choices: String,
    },
    /// Nothing was named, and there's nothing that is obviously meant.
    #[error(
        "which interface is the underlay? Say --underlay IFACE or --address IP (there are: {choices})"
    )]
    Ambiguous {
        /// Interfaces and addresses.
        choices: String,
    },
    /// Group and address are of different families.
    #[error(
        "group {group} does not fit the underlay address {address}: one is IPv4, the other IPv6"
    )]
    Family {
        /// The group.
        group: IpAddr,
        /// The address.
        address: IpAddr,
    },
}

/// The address that varpd and its vifs use, and the interface that has it.
pub(super) fn choose<'a>(
    config: &Config,
    interfaces: &'a [Interface],
) -> Result<(&'a Interface, IpAddr), SiteError> {
    let (interface, address) = match (&config.underlay, config.address) {
        (_, Some(address)) => {
            let owner = interfaces.iter().find(|i| i.addresses.contains(&address));
            let choices = || choices(interfaces);
            let owner = owner.ok_or_else(|| SiteError::NotOurs { address, choices: choices() })?;
            (owner, address)
        }
        (Some(name), None) => {
            let named = interfaces.iter().find(|i| i.name == *name).ok_or_else(|| {
                SiteError::NoInterface { name: name.clone(), choices: choices(interfaces) }
            })?;
            let address = best(named, config.ipv6).ok_or_else(|| no_address(named))?;
            (named, address)
        }
        (None, None) => the_obvious(config.ipv6, interfaces)
            .ok_or_else(|| SiteError::Ambiguous { choices: choices(interfaces) })?,
    };
    if !interface.up {
        return Err(SiteError::Down(interface.name.clone()));
    }
    let groups = config.vnet_groups().into_values();
    for group in groups.chain([config.main_group(address)]) {
        if group.is_ipv4() != address.is_ipv4() {
            return Err(SiteError::Family { group, address });
        }
    }
    Ok((interface, address))
}

/// The only interface with a global address, or of several the only one with a default route.
fn the_obvious(ipv6: bool, interfaces: &[Interface]) -> Option<(&Interface, IpAddr)> {
    let global = |i: &&Interface| i.up && !i.loopback && i.addresses.iter().any(is_global);
    let candidates: Vec<&Interface> = interfaces.iter().filter(global).collect();
    let routed: Vec<&Interface> = candidates.iter().copied().filter(|i| i.default_route).collect();
    let interface = match (candidates.as_slice(), routed.as_slice()) {
        ([only], _) | (_, [only]) => *only,
        _ => return None,
    };
    Some((interface, best(interface, ipv6)?))
}

/// The first global address of the preferred family, then of the other, then any.
fn best(interface: &Interface, ipv6: bool) -> Option<IpAddr> {
    let all = || interface.addresses.iter().copied();
    let global = || all().filter(is_global);
    global().find(|a| a.is_ipv6() == ipv6).or_else(|| global().next()).or_else(|| {
        let preferred = all().find(|a| a.is_ipv6() == ipv6);
        preferred.or_else(|| all().next())
    })
}

fn no_address(interface: &Interface) -> SiteError {
    // An interface that is down loses its IPv6 addresses: that's the better complaint.
    let name = interface.name.clone();
    if interface.up { SiteError::NoAddress(name) } else { SiteError::Down(name) }
}

fn is_global(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => !a.is_loopback() && !a.is_link_local() && !a.is_unspecified(),
        IpAddr::V6(a) => !a.is_loopback() && !a.is_unicast_link_local() && !a.is_unspecified(),
    }
}

fn choices(interfaces: &[Interface]) -> String {
    let mut text = String::new();
    for interface in interfaces {
        let gap = if text.is_empty() { "" } else { ", " };
        let addresses: Vec<String> = interface.addresses.iter().map(ToString::to_string).collect();
        let state = if interface.up { "" } else { " (down)" };
        // Writing to a String can't fail.
        let _ = write!(text, "{gap}{}{state} {}", interface.name, addresses.join(" "));
        text.truncate(text.trim_end().len());
    }
    if text.is_empty() { "none".into() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(name: &str, default_route: bool, addresses: &[&str]) -> Interface {
        Interface {
            name: name.into(),
            index: 1,
            up: true,
            loopback: name == "lo",
            multicast: name != "lo",
            default_route,
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        }
    }

    fn host() -> Vec<Interface> {
        vec![
            interface("lo", false, &["127.0.0.1", "::1"]),
            interface("eth0", true, &["169.254.0.9", "192.0.2.1", "fe80::1", "2001:db8::1"]),
            interface("virbr0", false, &["192.168.122.1"]),
        ]
    }

    fn picked(config: &Config, interfaces: &[Interface]) -> Result<String, String> {
        choose(config, interfaces)
            .map(|(i, a)| format!("{} {a}", i.name))
            .map_err(|e| e.to_string())
    }

    #[test]
    fn a_named_interface_gives_its_first_global_address() {
        let mut config = Config { underlay: Some("eth0".into()), ..Config::default() };
        assert_eq!(picked(&config, &host()).unwrap(), "eth0 192.0.2.1");
        config.ipv6 = true;
        assert_eq!(picked(&config, &host()).unwrap(), "eth0 2001:db8::1");
        config.underlay = Some("virbr0".into());
        assert_eq!(picked(&config, &host()).unwrap(), "virbr0 192.168.122.1");
    }

    #[test]
    fn link_local_serves_only_where_there_is_nothing_else() {
        let only = [interface("eth0", false, &["fe80::1"])];
        let config = Config { underlay: Some("eth0".into()), ..Config::default() };
        assert_eq!(picked(&config, &only).unwrap(), "eth0 fe80::1");
        let both = [interface("eth0", false, &["fe80::1", "2001:db8::1"])];
        assert_eq!(picked(&config, &both).unwrap(), "eth0 2001:db8::1");
    }

    #[test]
    fn an_address_finds_its_interface() {
        let mut config = Config { address: "192.168.122.1".parse().ok(), ..Config::default() };
        assert_eq!(picked(&config, &host()).unwrap(), "virbr0 192.168.122.1");
        config.address = "192.0.2.99".parse().ok();
        assert_eq!(
            picked(&config, &host()).unwrap_err(),
            "no interface has the address 192.0.2.99 (there are: lo 127.0.0.1 ::1, \
             eth0 169.254.0.9 192.0.2.1 fe80::1 2001:db8::1, virbr0 192.168.122.1)"
        );
    }

    #[test]
    fn without_a_name_only_the_obvious_is_taken() {
        let config = Config::default();
        assert_eq!(picked(&config, &host()).unwrap(), "eth0 192.0.2.1");
        let mut two = host();
        two[2].default_route = true;
        assert!(picked(&config, &two).unwrap_err().starts_with("which interface"));
        two.remove(1);
        assert_eq!(picked(&config, &two).unwrap(), "virbr0 192.168.122.1");
        two.truncate(1);
        assert!(picked(&config, &two).unwrap_err().contains("(there are: lo 127.0.0.1 ::1)"));
    }

    #[test]
    fn complaints_are_clear() {
        let named = |name: &str| Config { underlay: Some(name.into()), ..Config::default() };
        assert!(picked(&named("eth9"), &host()).unwrap_err().starts_with("no interface 'eth9'"));
        let mut down = host();
        down[1].up = false;
        assert_eq!(picked(&named("eth0"), &down).unwrap_err(), "interface 'eth0' is down");
        down[1].addresses.clear();
        assert_eq!(picked(&named("eth0"), &down).unwrap_err(), "interface 'eth0' is down");
        down[1].up = true;
        assert_eq!(
            picked(&named("eth0"), &down).unwrap_err(),
            "interface 'eth0' has no IP address"
        );
        let config = Config { group: "ff15::1".parse().ok(), ..named("eth0") };
        assert_eq!(
            picked(&config, &host()).unwrap_err(),
            "group ff15::1 does not fit the underlay address 192.0.2.1: \
             one is IPv4, the other IPv6"
        );
    }
}
