//! What is measured: this project's programs, the kernel's bridge and tunnel, and those over
//! WireGuard, each with four
//! stations. Stations 1 and 3 send and ask, 2 and 4 receive and reply.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use vnet::wire::esp;

use crate::board::Board;
use crate::frames::{Flow, Offload};
use crate::process::{Process, Station};
use crate::station::{Attachment, Setup};
use crate::topology::{Host, Hosts, Link};
use crate::wireguard::{self, Tunnel};

/// Bytes that each encapsulation adds on IPv4: Ethernet, IP, UDP and a header of 8 bytes.
const OVERHEAD: usize = 50;
/// Bytes of the outer IPv4 and UDP headers.
const IP_UDP: usize = 28;
/// The key of secured vnets.
const KEY: &str = "7d1fe09c4b8a35d26e0817f3a9c45b6dd2903eb17a64f85c0be3976821dcaf40";
/// What the backends of [`Kind::Polling`] are given for `--busy-poll`, in microseconds.
const BUSY_POLL: &str = "50";
/// Where the programs under test are.
const VARPD: &str = env!("CARGO_BIN_EXE_varpd");
const BACKEND: &str = env!("CARGO_BIN_EXE_vhost-user-vnet");

/// Which of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// `vhost-user-vnet` and varpd.
    Vnet,
    /// The same with `--busy-poll`.
    #[serde(rename = "vnet-poll")]
    Polling,
    /// The same on a vnet whose datagrams are authenticated.
    #[serde(rename = "vnet-auth")]
    Auth,
    /// The same on a vnet whose datagrams are encrypted.
    #[serde(rename = "vnet-conf")]
    Conf,
    /// Taps, bridges, and between hosts VXLAN.
    Kernel,
    /// The same over the kernel's WireGuard.
    WireGuard,
    /// The same over `wireguard-go`.
    #[serde(rename = "wireguard-go")]
    WireGuardGo,
}

/// All of them, in the order of their turns.
pub(crate) const KINDS: [Kind; 7] = [
    Kind::Vnet,
    Kind::Polling,
    Kind::Auth,
    Kind::Conf,
    Kind::Kernel,
    Kind::WireGuard,
    Kind::WireGuardGo,
];

impl Kind {
    /// As it is called in tables and files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Vnet => "vnet",
            Self::Polling => "vnet-poll",
            Self::Auth => "vnet-auth",
            Self::Conf => "vnet-conf",
            Self::Kernel => "kernel",
            Self::WireGuard => "wireguard",
            Self::WireGuardGo => "wireguard-go",
        }
    }

    /// UDP port of the subject's varpds: those of two subjects share hosts.
    fn port(self) -> u16 {
        1798 + self as u16
    }

    /// The policy of its vnet, if that is secured.
    fn policy(self) -> Option<&'static str> {
        match self {
            Self::Auth => Some("auth"),
            Self::Conf => Some("conf"),
            _ => None,
        }
    }

    /// MTU of packets in the subject's tunnel, below that of the guests, for one of the underlay.
    fn tunnel_mtu(self, mtu: usize) -> usize {
        match self {
            Self::Vnet | Self::Polling | Self::Kernel => mtu,
            // ESP stands between the UDP header and that of the encapsulation.
            Self::Auth | Self::Conf => esp::payload_room(mtu - IP_UDP) + IP_UDP,
            Self::WireGuard | Self::WireGuardGo => {
                (mtu - wireguard::OVERHEAD) / wireguard::ALIGNMENT * wireguard::ALIGNMENT
            }
        }
    }

    /// MTU of the guests, for one of the underlay.
    pub(crate) fn guest_mtu(self, mtu: usize) -> usize {
        self.tunnel_mtu(mtu) - OVERHEAD
    }
}

/// Where the stations are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Place {
    /// 1 and 3 on host a, 2 and 4 on host b.
    Across,
    /// All on host a.
    Same,
}

/// What a set of cases runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Conditions {
    pub(crate) place: Place,
    /// MTU of the underlay, in bytes.
    pub(crate) mtu: usize,
    pub(crate) link: Link,
    pub(crate) queue_pairs: usize,
}

impl Conditions {
    fn host<'a>(&self, hosts: &'a Hosts, station: u8) -> &'a Host {
        if self.place == Place::Across && station.is_multiple_of(2) { &hosts.b } else { &hosts.a }
    }
}

/// A subject that runs. Two links: stations 1 to 2, and 3 to 4.
pub(crate) struct Subject {
    pub(crate) kind: Kind,
    pub(crate) conditions: Conditions,
    /// By number, from 1 at place 0.
    pub(crate) stations: Vec<Station>,
    pub(crate) boards: Vec<(PathBuf, Board)>,
    pub(crate) programs: Vec<Process>,
    _tunnel: Option<Tunnel>,
    /// Frames torn so far, see [`crate::lane::Lane::torn`].
    pub(crate) torn: u64,
    next_port: u16,
}

impl Subject {
    pub(crate) fn start(
        kind: Kind,
        conditions: Conditions,
        hosts: &Hosts,
        directory: &Path,
    ) -> io::Result<Self> {
        let directory = directory.join(kind.name());
        std::fs::create_dir(&directory)?;
        let (mut programs, mut tunnel) = (Vec::new(), None);
        let mtu = kind.guest_mtu(conditions.mtu);
        let attachments = match kind {
            Kind::Vnet | Kind::Polling | Kind::Auth | Kind::Conf => {
                start_vnet(kind, conditions, hosts, &directory, &mut programs)?
            }
            Kind::Kernel => {
                start_kernel(conditions, hosts, mtu)?;
                add_taps(conditions, hosts, mtu)?
            }
            Kind::WireGuard | Kind::WireGuardGo => {
                let mtus = (kind.tunnel_mtu(conditions.mtu), mtu);
                tunnel = Some(wireguard::start(kind, hosts, mtus, &directory, &mut programs)?);
                add_taps(conditions, hosts, mtu)?
            }
        };
        let mut stations = Vec::new();
        for (number, attachment) in (1..).zip(attachments) {
            let setup = Setup { number, attachment, queue_pairs: conditions.queue_pairs };
            let host = conditions.host(hosts, number);
            let name = format!("station-{number}");
            stations.push(Station::start(&name, &directory, host, &setup)?);
        }
        let mut boards = Vec::new();
        for link in 1..=2 {
            let path = directory.join(format!("board-{link}"));
            let board = Board::create(&path)?;
            boards.push((path, board));
        }
        let (torn, next_port) = (0, 5000);
        let _tunnel = tunnel;
        Ok(Self { kind, conditions, stations, boards, programs, _tunnel, torn, next_port })
    }

    /// MTU of the guests.
    pub(crate) fn guest_mtu(&self) -> usize {
        self.kind.guest_mtu(self.conditions.mtu)
    }

    /// What the subject offers its guests.
    pub(crate) fn offload(&self) -> Offload {
        self.stations[0].offload
    }

    /// Flows of a link (0 or 1), on ports that were not used before: what is late from an earlier
    /// measurement is nobody's.
    pub(crate) fn flows(&mut self, link: u8, count: usize) -> Vec<Flow> {
        let from = 2 * link + 1;
        let flows = (0..count).map(|_| {
            self.next_port += 1;
            Flow { from, to: from + 1, port: self.next_port }
        });
        flows.collect()
    }

    /// Process ids of the stations.
    pub(crate) fn generators(&self) -> Vec<u32> {
        self.stations.iter().map(Station::pid).collect()
    }

    /// Process ids of the programs under test.
    pub(crate) fn tested(&self) -> Vec<u32> {
        self.programs.iter().map(Process::pid).collect()
    }
}

fn start_vnet(
    kind: Kind,
    conditions: Conditions,
    hosts: &Hosts,
    directory: &Path,
    programs: &mut Vec<Process>,
) -> io::Result<Vec<Attachment>> {
    let control = |host: &Host| directory.join(format!("varpd-{}.sock", host.name));
    let used: &[&Host] = match conditions.place {
        Place::Across => &[&hosts.a, &hosts.b],
        Place::Same => &[&hosts.a],
    };
    for host in used {
        let socket = control(host);
        let mut command = host.command(VARPD);
        command.args(["--address", host.address, "--port", &kind.port().to_string()]);
        command.arg("--socket").arg(&socket);
        if let Some(policy) = kind.policy() {
            command.arg("--config").arg(write_config(policy, directory)?);
        }
        let mut varpd = Process::start(&format!("varpd-{}", host.name), directory, &mut command)?;
        varpd.wait_socket(&socket)?;
        programs.push(varpd);
    }
    let mut attachments = Vec::new();
    for station in 1..=4 {
        let host = conditions.host(hosts, station);
        let socket = directory.join(format!("vif-{station}.sock"));
        let mut command = host.command(BACKEND);
        command.arg("--socket-path").arg(&socket).arg("--varpd").arg(control(host));
        command.args(["--vnet", "42", "--mac", &Flow::mac_text(station)]);
        command.args(["--queue-pairs", &conditions.queue_pairs.to_string()]);
        if kind == Kind::Polling {
            command.args(["--busy-poll", BUSY_POLL]);
        }
        let mut backend = Process::start(&format!("backend-{station}"), directory, &mut command)?;
        backend.wait_socket(&socket)?;
        programs.push(backend);
        attachments.push(Attachment::Backend(socket));
    }
    Ok(attachments)
}

/// Writes varpd's configuration of a secured vnet, and its key.
fn write_config(policy: &str, directory: &Path) -> io::Result<PathBuf> {
    let (config, keys) = (directory.join("varpd.toml"), directory.join("keys"));
    std::fs::create_dir_all(&keys)?;
    std::fs::set_permissions(&keys, Permissions::from_mode(0o700))?;
    let key = keys.join("vnet.key");
    std::fs::write(&key, format!("use {KEY}\n"))?;
    std::fs::set_permissions(&key, Permissions::from_mode(0o600))?;
    let text = format!("[vnet.42]\npolicy = '{policy}'\nkey-file = '{}'\n", key.display());
    std::fs::write(&config, text)?;
    Ok(config)
}

fn start_kernel(conditions: Conditions, hosts: &Hosts, mtu: usize) -> io::Result<()> {
    let Hosts { a, b } = hosts;
    a.add_bridge(mtu)?;
    if conditions.place == Place::Across {
        b.add_bridge(mtu)?;
        a.add_vxlan("eth0", (a.address, b.address), mtu)?;
        b.add_vxlan("eth0", (b.address, a.address), mtu)?;
    }
    Ok(())
}

fn add_taps(conditions: Conditions, hosts: &Hosts, mtu: usize) -> io::Result<Vec<Attachment>> {
    let mut attachments = Vec::new();
    for station in 1..=4 {
        let name = format!("tap{station}");
        conditions.host(hosts, station).add_tap(&name, mtu, conditions.queue_pairs)?;
        attachments.push(Attachment::Tap(name));
    }
    Ok(attachments)
}
