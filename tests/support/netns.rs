//! Several hosts on one machine.
//!
//! ```text
//!     host a            host b            host c         network namespaces
//!      eth0              eth0              eth0          192.0.2.1, .2, .3    2001:db8::1, ::2, ::3
//!        |                 |                 |           veth pairs
//!     [== to-a ========= to-b ============ to-c ==]      the underlay: a bridge in its own namespace
//! ```
//!
//! The underlay is a plain switch: it carries multicast to all hosts, and nothing is lost on it.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sched::{CloneFlags, setns};

/// Hosts joined by an underlay; all namespaces are deleted when it is dropped.
pub(crate) struct Underlay {
    switch: Namespace,
    hosts: Vec<Host>,
    mtu: u32,
    /// What the names of all its namespaces begin with.
    pub(super) prefix: String,
}

/// A host: a namespace with one interface, `eth0`.
pub(crate) struct Host {
    /// Its letter, a, b, ...
    pub(crate) name: String,
    /// Its IPv4 address on the underlay.
    pub(crate) ipv4: Ipv4Addr,
    /// Its IPv6 address on the underlay.
    pub(crate) ipv6: Ipv6Addr,
    pub(super) namespace: Namespace,
}

impl Underlay {
    /// Makes an underlay with `hosts` hosts and an MTU of `mtu` bytes.
    pub(crate) fn new(hosts: u8, mtu: u32) -> Self {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("vnet-test-{}-{serial}", std::process::id());
        let switch = Namespace::new(format!("{prefix}-underlay"));
        let bridge = "link add bridge mtu MTU type bridge forward_delay 0 mcast_snooping 0";
        switch.ip(&bridge.replace("MTU", &mtu.to_string()));
        switch.ip("link set bridge up");
        let mut underlay = Self { switch, hosts: Vec::new(), mtu, prefix };
        for number in 1..=hosts {
            underlay.add_host(number);
        }
        underlay
    }

    fn add_host(&mut self, number: u8) {
        let name = char::from(b'a' + number - 1).to_string();
        let namespace = self.namespace(&name);
        let ipv4 = Ipv4Addr::new(192, 0, 2, number);
        let ipv6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into());
        self.plug_in(&name, &namespace.name);
        namespace.ip(&format!("address add {ipv4}/24 dev eth0"));
        namespace.ip(&format!("address add {ipv6}/64 dev eth0 nodad"));
        namespace.ip("link set eth0 up");
        self.hosts.push(Host { name, ipv4, ipv6, namespace });
    }

    /// Makes a host's interface, which has no address and is down.
    fn plug_in(&self, name: &str, namespace: &str) {
        let mtu = self.mtu;
        self.switch.ip(&format!(
            "link add to-{name} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {namespace}"
        ));
        self.switch.ip(&format!("link set to-{name} master bridge up"));
    }

    /// Deletes the interface of a host.
    pub(crate) fn unplug(&self, number: usize) {
        self.switch.ip(&format!("link delete to-{}", self.hosts[number].name));
    }

    /// Makes an interface for a host that has none: it has another index and another MAC address, no
    /// address, and is down.
    pub(crate) fn plug_in_again(&self, number: usize) {
        let host = &self.hosts[number];
        self.plug_in(&host.name, &host.namespace.name);
    }

    /// Changes the MTU of the underlay and of all hosts on it, in bytes.
    pub(crate) fn set_mtu(&self, mtu: u32) {
        for host in &self.hosts {
            host.namespace.ip(&format!("link set eth0 mtu {mtu}"));
            self.switch.ip(&format!("link set to-{} mtu {mtu}", host.name));
        }
        self.switch.ip(&format!("link set bridge mtu {mtu}"));
    }

    /// A further namespace, which is not on the underlay.
    pub(crate) fn namespace(&self, name: &str) -> Namespace {
        Namespace::new(format!("{}-{name}", self.prefix))
    }

    /// From now on, one in ten of the packets that a host sends is lost, at random.
    ///
    /// A classic BPF filter picks them, which reads a random number where there would be packet data
    /// at SKF_AD_OFF + SKF_AD_RANDOM (linux/filter.h); they leave by an interface that leads nowhere.
    pub(crate) fn lose_a_tenth(&self) {
        const PICK: &str = "4,32 0 0 4294963256,53 0 1 429496730,6 0 0 0,6 0 0 4294967295";
        for host in &self.hosts {
            let inside = &host.namespace;
            inside.ip("link add hole type veth peer name bottom");
            inside.ip("link set hole up");
            inside.tc(&["qdisc", "add", "dev", "eth0", "clsact"]);
            let filter = ["filter", "add", "dev", "eth0", "egress", "bpf", "bytecode", PICK];
            let action = ["action", "mirred", "egress", "redirect", "dev", "hole"];
            inside.tc(&[&filter[..], &action].concat());
        }
    }

    /// The namespace of the switch: whoever listens there hears all that hosts say to each other.
    pub(crate) fn switch(&self) -> &Namespace {
        &self.switch
    }

    /// The host with this number, from 0.
    pub(crate) fn host(&self, number: usize) -> &Host {
        &self.hosts[number]
    }
}

impl Host {
    /// A command that runs `program` on the host.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace.name, program]);
        command
    }

    /// Runs `ip` there.
    pub(crate) fn ip(&self, arguments: &str) {
        self.namespace.ip(arguments);
    }

    /// Moves the calling thread there: sockets that it opens from now on are the host's.
    pub(crate) fn enter(&self) {
        self.namespace.enter();
    }

    /// What its namespace is called.
    pub(crate) fn namespace(&self) -> &str {
        &self.namespace.name
    }

    /// Its address of one family.
    pub(crate) fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.ipv4.into(),
            Family::V6 => self.ipv6.into(),
        }
    }
}

/// IP version of the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// A network namespace, deleted when it is dropped.
pub(crate) struct Namespace {
    pub(super) name: String,
}

impl Namespace {
    pub(super) fn new(name: String) -> Self {
        ip(&["netns", "add", &name]);
        let namespace = Self { name };
        namespace.ip("link set lo up");
        namespace
    }

    /// What others call it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` inside.
    pub(crate) fn ip(&self, arguments: &str) {
        ip_inside(&self.name, arguments);
    }

    fn tc(&self, arguments: &[&str]) {
        run("tc", &[&["-n", &self.name], arguments].concat());
    }

    /// Moves the calling thread into it: sockets that it opens from now on are inside.
    pub(crate) fn enter(&self) {
        enter(&self.name);
    }
}

/// Runs `ip` inside the namespace of this name.
pub(crate) fn ip_inside(namespace: &str, arguments: &str) {
    let inside = ["-n", namespace];
    ip(&inside.into_iter().chain(arguments.split(' ')).collect::<Vec<_>>());
}

/// Moves the calling thread into the namespace of this name.
pub(crate) fn enter(name: &str) {
    let path = format!("/run/netns/{name}");
    let file = File::open(&path).expect("the namespace has a name");
    setns(file, CloneFlags::CLONE_NEWNET).expect("root may enter it");
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // What fails here has failed the test before.
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).output();
    }
}

fn ip(arguments: &[&str]) {
    run("ip", arguments);
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().expect(program);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {error}", arguments.join(" "));
}
