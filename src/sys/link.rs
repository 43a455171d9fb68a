//! Network interfaces of this network namespace.

use std::ffi::CString;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::{InterfaceFlags, if_nametoindex};
use socket2::{Domain, Socket, Type};

/// An interface and its addresses, in the order in which the kernel lists them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Administratively up.
    pub up: bool,
    /// A loopback interface.
    pub loopback: bool,
    /// Can carry multicast.
    pub multicast: bool,
    /// Holds a default route, IPv4 or IPv6.
    pub default_route: bool,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// All interfaces.
pub fn interfaces() -> io::Result<Vec<Interface>> {
    let defaults = default_routes();
    let mut list: Vec<Interface> = Vec::new();
    for entry in getifaddrs()? {
        let name = entry.interface_name;
        let at = match list.iter().position(|i| i.name == name) {
            Some(at) => at,
            None => {
                let Ok(index) = if_nametoindex(name.as_str()) else { continue };
                let flag = |f| entry.flags.contains(f);
                list.push(Interface {
                    index,
                    up: flag(InterfaceFlags::IFF_UP),
                    loopback: flag(InterfaceFlags::IFF_LOOPBACK),
                    multicast: flag(InterfaceFlags::IFF_MULTICAST),
                    default_route: defaults.contains(&name),
                    addresses: Vec::new(),
                    name,
                });
                list.len() - 1
            }
        };
        let v4 = entry.address.and_then(|a| a.as_sockaddr_in().map(|a| IpAddr::V4(a.ip())));
        let v6 = entry.address.and_then(|a| a.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())));
        list[at].addresses.extend(v4.or(v6));
    }
    Ok(list)
}

/// The interface's MTU in bytes, asked by SIOCGIFMTU (netdevice(7)): `/sys` may show another
/// namespace.
pub fn mtu(name: &str) -> io::Result<u32> {
    let name = CString::new(name).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_mtu: 0 },
    };
    if name.count_bytes() >= libc::IFNAMSIZ {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, &from) in request.ifr_name.iter_mut().zip(name.as_bytes()) {
        *to = from.cast_signed();
    }
    let socket = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
    // SAFETY: `request` is a live ifreq with a terminated name; the kernel writes its MTU only.
    let rc = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &raw mut request) };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the union was wholly initialised above and any bits are an int.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    u32::try_from(mtu).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Names of the interfaces with a default route. `/proc/net` is that of the process's namespace; no
/// list, no default routes.
fn default_routes() -> Vec<String> {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let mut names = default_routes_v4(&read("/proc/self/net/route"));
    names.extend(default_routes_v6(&read("/proc/self/net/ipv6_route")));
    names
}

/// Columns: name, destination, gateway, flags, reference count, use, metric, mask.
fn default_routes_v4(table: &str) -> Vec<String> {
    let rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row.get(1) == Some(&"00000000") && row.get(7) == Some(&"00000000"))
        .filter_map(|row| row.first().map(|&name| name.to_owned()))
        .collect()
}

/// Columns: destination, its length, source, its length, next hop, metric, ..., name. The kernel's
/// catch-all reject routes are on `lo`.
fn default_routes_v6(table: &str) -> Vec<String> {
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row.get(1) == Some(&"00"))
        .filter_map(|row| row.last().map(|&name| name.to_owned()))
        .filter(|name| name != "lo")
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_listed_and_has_an_mtu() {
        let list = interfaces().unwrap();
        let lo = list.iter().find(|i| i.name == "lo").unwrap();
        assert!(lo.loopback);
        assert!(mtu("lo").unwrap() >= 1280);
        assert_eq!(mtu("no-such-if").unwrap_err().raw_os_error(), Some(libc::ENODEV));
        assert!(mtu("a-name-that-is-too-long").is_err());
    }

    #[test]
    fn default_routes_are_found_in_the_kernels_tables() {
        let v4 = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\n\
                  eth0\t00000000\t0102000A\t0003\t0\t0\t0\t00000000\t0\n\
                  eth1\t0002000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\n";
        assert_eq!(default_routes_v4(v4), ["eth0"]);
        let zero = "0".repeat(32);
        let v6 = format!(
            "{zero} 00 {zero} 00 fe800000000000000000000000000001 00000400 1 0 00450003 eth2\n\
             {zero} 00 {zero} 00 {zero} ffffffff 1 0 00200200 lo\n\
             fe80{} 40 {zero} 00 {zero} 00000100 1 0 00000001 eth3\n",
            "0".repeat(28)
        );
        assert_eq!(default_routes_v6(&v6), ["eth2"]);
    }
}
