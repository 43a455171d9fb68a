//! Two hosts whose packets to each other cross routers, on a path whose width can change.
//!
//! ```text
//!     host a    192.0.2.1            host b    192.0.2.2     see netns.rs; 2001:db8::1, ::2
//!      | eth0     | path              | path     | eth0
//!      |        [router 1]--mid--[router 2]      |           unicast
//!      +----------------- switch ----------------+           multicast: VARP, groups
//! ```
//!
//! Multicast needs no router that way. The link in the middle is the narrow one: routers know it, the
//! hosts have to be told by ICMP.

use std::process::Command;

use super::netns::{Family, Namespace, Underlay};

/// The routers. Deleted when dropped.
pub(crate) struct Routed {
    routers: [Namespace; 2],
}

impl Routed {
    /// Leads what two hosts send to each other over routers, whose links have an MTU of `mtu` bytes.
    pub(crate) fn between(underlay: &Underlay, mtu: u32) -> Self {
        let name = |n: u8| format!("{}-router-{n}", underlay.prefix);
        let routed = Self { routers: [1, 2].map(|n| Namespace::new(name(n))) };
        let [one, two] = &routed.routers;
        one.ip(&format!(
            "link add mid mtu {mtu} type veth peer name mid mtu {mtu} netns {}",
            two.name
        ));
        for (n, router) in (0..).zip(&routed.routers) {
            routed.join(n, router, underlay, mtu);
        }
        routed
    }

    /// Joins a router to its host, and tells both where to send what.
    fn join(&self, n: usize, router: &Namespace, underlay: &Underlay, mtu: u32) {
        let (near, far) = (underlay.host(n), underlay.host(1 - n));
        let inner = &near.namespace.name;
        router.ip(&format!(
            "link add host mtu {mtu} type veth peer name path mtu {mtu} netns {inner}"
        ));
        run(router, "sysctl", "-qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        // Between: 198.51.100.0/30 and so on, each with a link of its own.
        for (number, at, link, own) in
            [(n, &near.namespace, "path", 1), (n, router, "host", 2), (2, router, "mid", 1 + n)]
        {
            at.ip(&format!("address add 198.51.100.{}/30 dev {link}", 4 * number + own));
            at.ip(&format!("address add 2001:db8:f{number}::{own}/64 dev {link} nodad"));
            at.ip(&format!("link set {link} up"));
        }
        let (near_link, other) = (4 * n, 2 - n);
        near.namespace.ip(&format!("route add {}/32 via 198.51.100.{}", far.ipv4, near_link + 2));
        near.namespace.ip(&format!("-6 route add {}/128 via 2001:db8:f{n}::2", far.ipv6));
        router.ip(&format!("route add {}/32 via 198.51.100.{}", near.ipv4, near_link + 1));
        router.ip(&format!("-6 route add {}/128 via 2001:db8:f{n}::1", near.ipv6));
        router.ip(&format!("route add {}/32 via 198.51.100.{}", far.ipv4, 8 + other));
        router.ip(&format!("-6 route add {}/128 via 2001:db8:f2::{other}", far.ipv6));
    }

    /// From now on the path takes packets of `mtu` bytes; nobody is told before one is longer.
    pub(crate) fn narrow(&self, mtu: u32) {
        self.routers.iter().for_each(|router| router.ip(&format!("link set mid mtu {mtu}")));
    }

    /// From now on the hosts themselves know that the path takes packets of `mtu` bytes: it is in their
    /// routing tables.
    pub(crate) fn tell_hosts(&self, underlay: &Underlay, mtu: u32) {
        for n in [0, 1] {
            let (near, far) = (underlay.host(n), underlay.host(1 - n));
            let (to, to_v6) = (far.ipv4, far.ipv6);
            let via = 4 * n + 2;
            let near = &near.namespace;
            near.ip(&format!("route replace {to}/32 via 198.51.100.{via} mtu {mtu}"));
            near.ip(&format!("-6 route replace {to_v6}/128 via 2001:db8:f{n}::2 mtu {mtu}"));
        }
    }

    /// The path is wide again, and the hosts' kernels forget what they were told: after ten minutes
    /// otherwise.
    pub(crate) fn widen(&self, underlay: &Underlay, mtu: u32) {
        self.narrow(mtu);
        for n in [0, 1] {
            let host = &underlay.host(n).namespace;
            host.ip("route flush cache");
            host.ip("-6 route flush cache");
        }
    }

    /// How many packets routers have cut or could not, and hosts put together: 0 where every packet
    /// forbids it (DF).
    pub(crate) fn ip_fragments(&self, underlay: &Underlay) -> u64 {
        let hosts = [0, 1].map(|n| &underlay.host(n).namespace);
        let count = |namespace: &Namespace| {
            let v4 = run(namespace, "cat", "/proc/net/snmp");
            let v6 = run(namespace, "cat", "/proc/net/snmp6");
            sum_v4(&v4, &["ReasmReqds", "FragOKs", "FragCreates"])
                + sum_v6(&v6, &["Ip6ReasmReqds", "Ip6FragOKs", "Ip6FragCreates"])
        };
        self.routers.iter().chain(hosts).map(count).sum()
    }

    /// How many packets were too long for a router, which told their sender so.
    pub(crate) fn told(&self, family: Family) -> u64 {
        let count = |router: &Namespace| match family {
            Family::V4 => sum_v4(&run(router, "cat", "/proc/net/snmp"), &["FragFails"]),
            Family::V6 => sum_v6(&run(router, "cat", "/proc/net/snmp6"), &["Icmp6OutPktTooBigs"]),
        };
        self.routers.iter().map(count).sum()
    }
}

fn run(namespace: &Namespace, program: &str, arguments: &str) -> String {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &namespace.name, program]).args(arguments.split(' '));
    let output = command.output().expect("an ip command");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Counters of IPv4 in the form of /proc/net/snmp: a line of names, then one of numbers.
fn sum_v4(table: &str, names: &[&str]) -> u64 {
    let mut lines = table.lines().filter(|line| line.starts_with("Ip: "));
    let columns =
        lines.next().expect("names").split(' ').zip(lines.next().expect("numbers").split(' '));
    let wanted = columns.filter(|(name, _)| names.contains(name));
    wanted.map(|(_, number)| number.parse::<u64>().expect("a number")).sum()
}

/// The same of IPv6 in the form of /proc/net/snmp6: a line each.
fn sum_v6(table: &str, names: &[&str]) -> u64 {
    let rows = table.lines().filter_map(|line| line.split_once(char::is_whitespace));
    let wanted = rows.filter(|(name, _)| names.contains(name));
    wanted.map(|(_, number)| number.trim().parse::<u64>().expect("a number")).sum()
}
