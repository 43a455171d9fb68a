//! What is measured: this project's programs, and the kernel's bridge and tunnel, each with four
//! stations. Stations 1 and 3 send and ask, 2 and 4 receive and reply.

use std::io;
use std::path::{Path, PathBuf};

use crate::board::Board;
use crate::frames::{Flow, Offload};
use crate::process::{Process, Station};
use crate::station::{Attachment, Setup};
use crate::topology::{Host, Hosts, Link};

/// Bytes that each encapsulation adds on IPv4: Ethernet, IP, UDP and a header of 8 bytes.
const OVERHEAD: usize = 50;
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
    /// Taps, bridges, and between hosts VXLAN.
    Kernel,
}

impl Kind {
    /// As it is called in tables and files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Vnet => "vnet",
            Self::Polling => "vnet-poll",
            Self::Kernel => "kernel",
        }
    }

    /// UDP port of the subject's varpds: those of two subjects share hosts.
    fn port(self) -> u16 {
        if self == Self::Polling { 1799 } else { 1798 }
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
    /// MTU of the guests.
    pub(crate) fn inner_mtu(&self) -> usize {
        self.mtu - OVERHEAD
    }

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
        let mut programs = Vec::new();
        let attachments = match kind {
            Kind::Vnet | Kind::Polling => {
                start_vnet(kind, conditions, hosts, &directory, &mut programs)?
            }
            Kind::Kernel => start_kernel(conditions, hosts)?,
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
        Ok(Self { kind, conditions, stations, boards, programs, torn: 0, next_port: 5000 })
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

fn start_kernel(conditions: Conditions, hosts: &Hosts) -> io::Result<Vec<Attachment>> {
    let mtu = conditions.inner_mtu();
    hosts.a.add_bridge(mtu)?;
    if conditions.place == Place::Across {
        hosts.b.add_bridge(mtu)?;
        hosts.a.add_vxlan(&hosts.b, mtu)?;
        hosts.b.add_vxlan(&hosts.a, mtu)?;
    }
    let mut attachments = Vec::new();
    for station in 1..=4 {
        let name = format!("tap{station}");
        conditions.host(hosts, station).add_tap(&name, mtu, conditions.queue_pairs)?;
        attachments.push(Attachment::Tap(name));
    }
    Ok(attachments)
}
