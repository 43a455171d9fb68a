//! Chooses the host's place on the underlay (its interface and address) from the configuration and
//! the existing interfaces, and chooses again when these change.
//!
//! varpd keeps its address as long as any interface that is up has it. When the address is gone,
//! varpd chooses as at its start, and never changes the address family: IPv4, or IPv6 if
//! configured. It uses a link-local address only if the configuration names it.

#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::net::IpAddr;

use thiserror::Error;

use crate::config::Config;

/// The reason for which there is no place on the underlay. The messages list the available
/// interfaces and addresses.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SiteError {
    /// No interface of this name, not yet or by mistake.
    #[error("no interface '{name}' (there are: {choices})")]
    NoInterface {
        /// The name.
        name: String,
        /// Interfaces and addresses.
        choices: String,
    },
    /// The interface is down.
    #[error("interface '{0}' is down")]
    Down(String),
    /// The interface has no address of the family.
    #[error("interface '{name}' has no {family} address{hint}")]
    NoAddress {
        /// The interface.
        name: String,
        /// The address family.
        family: &'static str,
        /// Its other addresses, and the option that selects them.
        hint: String,
    },
    /// No interface has the address.
    #[error("no interface has the address {address} (there are: {choices})")]
    NotOurs {
        /// The address.
        address: IpAddr,
        /// Interfaces and addresses.
        choices: String,
    },
    /// The configuration names no interface or address, and there is no suitable one.
    #[error("no interface that is up has an {family} address (there are: {choices})")]
    Nothing {
        /// The missing address's family.
        family: &'static str,
        /// Interfaces and addresses.
        choices: String,
    },
    /// The configuration names no interface or address, and there are several suitable ones.
    #[error(
        "which interface is the underlay? Say --underlay IFACE or --address IP (there are: {choices})"
    )]
    Ambiguous {
        /// Interfaces and addresses.
        choices: String,
    },
    /// Group and underlay have different address families.
    #[error("group {group} does not fit an {family} underlay: choose another one{hint}")]
    Family {
        /// The group.
        group: IpAddr,
        /// The underlay's family.
        family: &'static str,
        /// Another remedy.
        hint: &'static str,
    },
}

impl SiteError {
    /// Whether an interface or address that appears later can solve the problem.
    pub fn may_pass(&self) -> bool {
        !matches!(self, Self::Ambiguous { .. } | Self::Family { .. })
    }
}

/// A network interface of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// The index of the bridge, bond or the like that it is a port of.
    pub master: Option<u32>,
    /// It is administratively up.
    pub up: bool,
    /// A loopback interface.
    pub loopback: bool,
    /// It has a default route of the main table, IPv4 or IPv6.
    pub default_route: bool,
    /// Its usable addresses, the best first.
    pub addresses: Vec<IpAddr>,
}

/// The host's place on the underlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Name of the interface that has the address.
    pub interface: String,
    /// Its index.
    pub index: u32,
    /// The address.
    pub address: IpAddr,
}

impl Place {
    /// An address of an interface.
    pub fn of(interface: &Interface, address: IpAddr) -> Self {
        Self { interface: interface.name.clone(), index: interface.index, address }
    }
}

/// The reaction to a possible change of interfaces or addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// No change.
    Keep,
    /// The interface has another name.
    Rename(Place),
    /// The address is on another interface, or on one that was deleted and made again: varpd must
    /// join its groups there.
    Rejoin(Place),
    /// The host has another address.
    Move(Place),
    /// There is no address.
    Wait(SiteError),
}

/// The step for a host at `place`. `was_deleted`: its interface was deleted, even if there is one
/// with the same index again.
pub(super) fn follow(
    config: &Config,
    place: &Place,
    was_deleted: bool,
    interfaces: &[Interface],
) -> Step {
    let has = |i: &&Interface| i.up && i.addresses.contains(&place.address);
    let choice = choose(config, interfaces);
    let same = interfaces.iter().find(|i| i.index == place.index).filter(has);
    if let Some(same) = same.filter(|same| !is_stopgap(config, same, &choice)) {
        let now = Place::of(same, place.address);
        return match was_deleted {
            true => rejoin(now),
            false if now == *place => Step::Keep,
            false => Step::Rename(now),
        };
    }
    match choice {
        Ok((interface, address)) if address == place.address => {
            rejoin(Place::of(interface, address))
        }
        Ok((interface, address)) => Step::Move(Place::of(interface, address)),
        Err(why) => match interfaces.iter().filter(|i| !i.loopback).find(has) {
            Some(holder) => rejoin(Place::of(holder, place.address)),
            None => Step::Wait(why),
        },
    }
}

/// Sockets at a link-local address are bound to its interface as well.
fn rejoin(place: Place) -> Step {
    match place.address {
        IpAddr::V6(a) if a.is_unicast_link_local() => Step::Move(place),
        _ => Step::Rejoin(place),
    }
}

/// Whether to move to another interface: the configuration names none, and the other one has the
/// default route.
fn is_stopgap(
    config: &Config,
    here: &Interface,
    choice: &Result<(&Interface, IpAddr), SiteError>,
) -> bool {
    let is_named = config.underlay.is_some() || config.address.is_some();
    let leads_out = |(i, _): &(&Interface, IpAddr)| i.default_route && i.index != here.index;
    !is_named && !here.default_route && choice.as_ref().is_ok_and(leads_out)
}

/// The address that varpd and its vifs use, and the interface that has it.
pub fn choose<'a>(
    config: &Config,
    interfaces: &'a [Interface],
) -> Result<(&'a Interface, IpAddr), SiteError> {
    check_groups(config)?;
    match (&config.underlay, config.address) {
        (_, Some(address)) => with_address(address, interfaces),
        (Some(name), None) => named(name, config.ipv6, interfaces),
        (None, None) => the_obvious(config.ipv6, interfaces),
    }
}

fn check_groups(config: &Config) -> Result<(), SiteError> {
    let ipv6 = config.address.map_or(config.ipv6, |address| address.is_ipv6());
    let groups = config.vnet_groups().into_values();
    let groups = groups.chain(config.group.map(|group| group.0));
    match groups.into_iter().find(|group| group.is_ipv6() != ipv6) {
        Some(group) => {
            let can_ask = !ipv6 && config.address.is_none();
            let hint = if can_ask { ", or say --ipv6" } else { "" };
            Err(SiteError::Family { group, family: family(ipv6), hint })
        }
        None => Ok(()),
    }
}

fn with_address(
    address: IpAddr,
    interfaces: &[Interface],
) -> Result<(&Interface, IpAddr), SiteError> {
    let has = |i: &&Interface| i.addresses.contains(&address);
    let owner = interfaces.iter().filter(|i| i.up).find(has);
    match (owner, interfaces.iter().find(has)) {
        (Some(owner), _) => Ok((owner, address)),
        (None, Some(owner)) => Err(SiteError::Down(owner.name.clone())),
        (None, None) => Err(SiteError::NotOurs { address, choices: choices(interfaces) }),
    }
}

/// A port of a bridge or bond has no addresses of its own; those of the bridge or bond count.
fn named<'a>(
    name: &str,
    ipv6: bool,
    interfaces: &'a [Interface],
) -> Result<(&'a Interface, IpAddr), SiteError> {
    let named = interfaces.iter().find(|i| i.name == name).ok_or_else(|| {
        SiteError::NoInterface { name: name.to_owned(), choices: choices(interfaces) }
    })?;
    let master = interfaces.iter().find(|i| Some(i.index) == named.master);
    let found = [Some(named), master].into_iter().flatten().filter(|i| i.up);
    let mut found = found.filter_map(|i| Some((i, best(i, ipv6)?)));
    found.next().ok_or_else(|| match named.up {
        true => no_address(named, ipv6),
        // An interface that is down loses its IPv6 addresses; "is down" is the better message.
        false => SiteError::Down(named.name.clone()),
    })
}

/// The only interface with a global address, or the only one of several with a default route.
fn the_obvious(ipv6: bool, interfaces: &[Interface]) -> Result<(&Interface, IpAddr), SiteError> {
    let usable = interfaces.iter().filter(|i| i.up && !i.loopback);
    let candidates: Vec<_> = usable.filter_map(|i| Some((i, best(i, ipv6)?))).collect();
    let routed: Vec<_> = candidates.iter().copied().filter(|(i, _)| i.default_route).collect();
    match (candidates.as_slice(), routed.as_slice()) {
        ([only], _) | (_, [only]) => Ok(*only),
        ([], _) => Err(SiteError::Nothing { family: family(ipv6), choices: choices(interfaces) }),
        _ => Err(SiteError::Ambiguous { choices: choices(interfaces) }),
    }
}

/// The first global address of the family.
fn best(interface: &Interface, ipv6: bool) -> Option<IpAddr> {
    interface.addresses.iter().copied().find(|a| a.is_ipv6() == ipv6 && is_global(a))
}

fn no_address(interface: &Interface, ipv6: bool) -> SiteError {
    let other = best(interface, !ipv6);
    let hint = match (other, interface.addresses.first()) {
        (Some(other), _) if ipv6 => format!(" (without --ipv6: {other})"),
        (Some(other), _) => format!(" (with --ipv6: {other})"),
        (None, Some(local)) => format!(" (only for one link: --address {local})"),
        (None, None) => String::new(),
    };
    SiteError::NoAddress { name: interface.name.clone(), family: family(ipv6), hint }
}

const fn family(ipv6: bool) -> &'static str {
    if ipv6 { "IPv6" } else { "IPv4" }
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
mod tests;
