//! varpd as it is run: real processes on hosts that are network namespaces, their sockets, and
//! backends that this test plays.
//!
//! ```text
//!   this test:  backends, operators, liars
//!        | control sockets (the file system is shared)     | vifs' UDP sockets, received over them
//!   +----v----+             +---------+                    v
//!   | varpd a |   host a    | varpd b |   host b      belong to the hosts' namespaces
//!   +----+----+             +----+----+
//!      eth0                    eth0        192.0.2.1, .2   2001:db8::1, ::2
//!        |                       |
//!   [== to-a ================= to-b ==]    the underlay
//! ```

#![expect(clippy::unwrap_used, reason = "a failed test may panic")]

mod admission;
mod foreign;
mod forgeries;
#[path = "../support/forging.rs"]
mod forging;
mod hostile;
mod hosts;
mod keys;
mod learning;
mod migration;
mod monitor;
mod opener;
mod operator;
mod operators;
mod peer;
mod port;
#[path = "../support/random.rs"]
mod random;
mod registration;
mod resolution;
mod startup;
#[expect(dead_code, reason = "other tests use the rest")]
#[path = "../support/mod.rs"]
mod support;
mod waiting;

use std::fs::Permissions;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::MutexGuard;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use vnet::wire::{Mac, VifKey, VnetId};

use support::netns::{Family, Host, Underlay};
use support::process::Process;
use support::{can_make_hosts, take_turn, wait_until};

/// For everything that should take milliseconds.
const SOON: Duration = Duration::from_secs(10);
const BOTH: [Family; 2] = [Family::V4, Family::V6];
/// Timers with which an unanswered resolution ends after 0.2 s.
const HASTY: &str = "[timers]\nreply-timeout = 0.1\ntries = 2\nearly-retries = []\n";

/// Two hosts and a directory for their files.
struct Net {
    underlay: Underlay,
    dir: TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Net {
    /// `None`, having said so, where it can't be made.
    fn new(test: &str) -> Option<Self> {
        if !can_make_hosts(test) {
            return None;
        }
        let turn = take_turn();
        let dir = tempfile::tempdir().unwrap();
        // Other users are to reach the control sockets.
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        Some(Self { underlay: Underlay::new(2, 1400), dir, _turn: turn })
    }

    fn a(&self) -> &Host {
        self.underlay.host(0)
    }

    fn b(&self) -> &Host {
        self.underlay.host(1)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A varpd on a host, with what else its configuration says.
    fn varpd(&self, host: &Host, family: Family, config: &str) -> Varpd {
        self.varpd_at(host, host.address(family), config)
    }

    /// The same, at one of the host's addresses.
    fn varpd_at(&self, host: &Host, address: IpAddr, config: &str) -> Varpd {
        self.varpd_where(host, &format!("address = '{address}'"), config)
    }

    /// The same, at whatever IPv4 address the host's interface has.
    fn varpd_on(&self, host: &Host, interface: &str, config: &str) -> Varpd {
        self.varpd_where(host, &format!("underlay = '{interface}'"), config)
    }

    fn varpd_where(&self, host: &Host, place: &str, config: &str) -> Varpd {
        let name = format!("varpd-{}", host.name);
        let (socket, file) =
            (self.path(&format!("{name}.sock")), self.path(&format!("{name}.toml")));
        let head = format!("socket = '{}'\nsocket-mode = '0666'\n{place}\n", socket.display());
        std::fs::write(&file, head + config).unwrap();
        let mut command = host.command(env!("CARGO_BIN_EXE_varpd"));
        command.args(["-v", "--config"]).arg(&file);
        let mut varpd = Varpd { process: spawn(&name, self, &mut command), command, name, socket };
        varpd.wait_ready();
        varpd
    }
}

fn spawn(name: &str, net: &Net, command: &mut Command) -> Process {
    let _ = std::fs::remove_file(net.path(&format!("{name}.log")));
    Process::start(name, net.dir.path(), command)
}

/// A running varpd.
struct Varpd {
    process: Process,
    command: Command,
    name: String,
    socket: PathBuf,
}

impl Varpd {
    fn wait_ready(&mut self) {
        let (process, name) = (&mut self.process, &self.name);
        wait_until(&format!("{name} is ready"), SOON, || {
            process.assert_running();
            process.log().contains("varpd: ready")
        });
    }

    /// Kills it and starts another in its place.
    fn restart(&mut self, net: &Net) {
        self.process.kill();
        self.process = spawn(&self.name, net, &mut self.command);
        self.wait_ready();
    }

    /// A table as JSON.
    fn show(&self, table: &str) -> Vec<Value> {
        let output = vnet(&self.socket, &["-j", "show", table]);
        assert!(output.status.success(), "{output:?}");
        let value: Value = serde_json::from_slice(&output.stdout).unwrap();
        value.as_array().unwrap().clone()
    }

    /// One of varpd's own counters.
    fn counter(&self, name: &str) -> u64 {
        let rows = self.show("stats");
        let row = rows.iter().find(|row| row["vnet"].is_null() && row["counter"] == name);
        row.unwrap_or_else(|| panic!("no counter {name}"))["value"].as_u64().unwrap()
    }

    fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.process.pid())).unwrap().count()
    }
}

/// Runs the operator's command.
fn vnet(socket: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vnet"));
    command.arg("--socket").arg(socket).args(args).output().unwrap()
}

fn vnet_id(id: u32) -> VnetId {
    VnetId::new(id).unwrap()
}

fn mac(last: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0, 0, last])
}

/// The vif on vnet 42 with this last octet.
fn key(last: u8) -> VifKey {
    VifKey { vnet: vnet_id(42), mac: mac(last) }
}
