//! Two hosts on one machine, and the cable between them.
//!
//! ```text
//!         host a                                         host b             network namespaces
//!   backends, varpd    eth0 ===== veth pair ===== eth0   backends, varpd    192.0.2.1, 192.0.2.2
//!
//!   tap1  tap3                                           tap2  tap4         the comparator
//!     \   /                                                \   /
//!      br0 -- vxlan0 (VNI 42, over eth0) === vxlan0 -- br0                  with the hosts apart
//!
//!      br0 -- vxlan0 (over wg) -- wg == eth0 == wg -- vxlan0 -- br0         beside secured vnets
//!
//!   tap1  tap2  tap3  tap4                                                  on the same host
//!     \     \    /    /
//!          -- br0 --
//! ```

use std::io;
use std::process::Command;

/// Whether the link takes large segments or has them cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Link {
    /// A veth pair as it is: segments go across whole, as with a network card that cuts them.
    Whole,
    /// The kernel cuts everything to the MTU before it goes across, and merges what arrives.
    Cut,
}

/// The hosts; their namespaces are deleted when it is dropped.
pub(crate) struct Hosts {
    pub(crate) a: Host,
    pub(crate) b: Host,
}

/// A host: a network namespace.
pub(crate) struct Host {
    pub(crate) name: char,
    /// Its address on the underlay.
    pub(crate) address: &'static str,
    namespace: String,
}

impl Hosts {
    /// Two hosts joined by a cable with an MTU of `mtu` bytes. `prefix` begins their names.
    pub(crate) fn new(prefix: &str, mtu: usize, link: Link) -> io::Result<Self> {
        let a = Host::new(prefix, 'a', "192.0.2.1")?;
        let b = Host::new(prefix, 'b', "192.0.2.2")?;
        let other = &b.namespace;
        a.ip(&format!("link add eth0 mtu {mtu} type veth peer name eth0 mtu {mtu} netns {other}"))?;
        for host in [&a, &b] {
            host.ip(&format!("address add {}/24 dev eth0", host.address))?;
            host.ip("link set eth0 up")?;
            if link == Link::Cut {
                host.run("ethtool", "-K eth0 tso off tx-udp-segmentation off")?;
                host.run("ethtool", "-K eth0 tx-udp_tnl-segmentation off")?;
                host.run("ethtool", "-K eth0 tx-udp_tnl-csum-segmentation off")?;
                host.run("ethtool", "-K eth0 gro on rx-udp-gro-forwarding on")?;
            }
        }
        Ok(Self { a, b })
    }
}

impl Host {
    fn new(prefix: &str, name: char, address: &'static str) -> io::Result<Self> {
        let namespace = format!("{prefix}-{name}");
        run(Command::new("ip").args(["netns", "add", &namespace]))?;
        let host = Self { name, address, namespace };
        // No chatter of IPv6 on bridges and taps beside what is measured.
        for scope in ["all", "default"] {
            host.run("sysctl", &format!("-qw net.ipv6.conf.{scope}.disable_ipv6=1"))?;
        }
        host.ip("link set lo up")?;
        Ok(host)
    }

    /// A command that runs `program` on the host.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace, program]);
        command
    }

    pub(crate) fn run(&self, program: &str, arguments: &str) -> io::Result<()> {
        run(self.command(program).args(arguments.split(' ')))
    }

    pub(crate) fn ip(&self, arguments: &str) -> io::Result<()> {
        run(Command::new("ip").args(["-n", &self.namespace]).args(arguments.split(' ')))
    }

    /// A bridge with an MTU of `mtu` bytes.
    pub(crate) fn add_bridge(&self, mtu: usize) -> io::Result<()> {
        self.ip(&format!("link add br0 mtu {mtu} type bridge forward_delay 0 mcast_snooping 0"))?;
        self.ip("link set br0 up")
    }

    /// A tunnel over `device`, from one address to another, on the bridge.
    pub(crate) fn add_vxlan(
        &self,
        device: &str,
        (local, remote): (&str, &str),
        mtu: usize,
    ) -> io::Result<()> {
        let ends = format!("local {local} remote {remote} dev {device}");
        self.ip(&format!("link add vxlan0 mtu {mtu} type vxlan id 42 dstport 4789 {ends}"))?;
        self.ip("link set vxlan0 master br0 up")
    }

    /// A tap on the bridge, that stays without anybody who has it open.
    pub(crate) fn add_tap(&self, name: &str, mtu: usize, pairs: usize) -> io::Result<()> {
        let many = if pairs > 1 { " multi_queue" } else { "" };
        self.ip(&format!("tuntap add dev {name} mode tap vnet_hdr{many}"))?;
        self.ip(&format!("link set {name} mtu {mtu} txqueuelen 10000 master br0 up"))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // What fails here has failed the run before.
        let _ = Command::new("ip").args(["netns", "delete", &self.namespace]).output();
    }
}

fn run(command: &mut Command) -> io::Result<()> {
    output(command).map(drop)
}

/// What a command prints; one that fails is an error.
pub(crate) fn output(command: &mut Command) -> io::Result<String> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let error = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{command:?}: {}", error.trim())))
}
