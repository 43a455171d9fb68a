//! The project's own programs.

use std::ffi::OsString;
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::netns::Host;
use super::process::Process;
use super::wait_until;

/// Time that a program may take to start.
const START: Duration = Duration::from_secs(20);

/// Directory of the programs under test.
pub(crate) fn programs() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_varpd")).parent().expect("a directory")
}

/// A host's mapper.
pub(crate) struct Varpd {
    /// The running program.
    pub(crate) process: Process,
    name: String,
    namespace: Vec<String>,
    directory: PathBuf,
    /// Where it is to be, as arguments.
    place: [String; 2],
    pub(crate) config: PathBuf,
    /// Its control socket.
    pub(crate) socket: PathBuf,
}

impl Varpd {
    /// Starts varpd on a host with one of the host's addresses; waits until it listens.
    pub(crate) fn start(host: &Host, address: IpAddr, directory: &Path) -> Self {
        Self::start_with(host, address, "", directory)
    }

    /// The same with a configuration, in the form of its file.
    pub(crate) fn start_with(host: &Host, address: IpAddr, config: &str, directory: &Path) -> Self {
        Self::start_at(host, at(address), config, directory)
    }

    /// The same on the host's interface, whatever its address is.
    pub(crate) fn start_on(host: &Host, interface: &str, config: &str, directory: &Path) -> Self {
        let place = ["--underlay".to_owned(), interface.to_owned()];
        Self::start_at(host, place, config, directory)
    }

    fn start_at(host: &Host, place: [String; 2], config: &str, directory: &Path) -> Self {
        let name = format!("varpd-{}", host.name);
        let socket = directory.join(format!("{name}.sock"));
        let command = host.command(env!("CARGO_BIN_EXE_varpd"));
        let arguments = command.get_args().map(|arg| arg.to_string_lossy().into_owned());
        let namespace: Vec<String> = arguments.collect();
        let file = directory.join(format!("{name}.toml"));
        std::fs::write(&file, config).expect("a configuration file");
        let mut command = varpd_command(&namespace, &place, &socket, &file);
        let process = Process::start(&name, directory, &mut command);
        let directory = directory.to_owned();
        let mut varpd = Self { process, name, namespace, directory, place, config: file, socket };
        varpd.wait_listening();
        varpd
    }

    /// Kills it (SIGKILL).
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// Has it forget what it has resolved: `vnet flush`.
    pub(crate) fn flush(&self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vnet"));
        let output = command.arg("--socket").arg(&self.socket).arg("flush").output();
        assert!(output.expect("the vnet command").status.success(), "{}: vnet flush", self.name);
    }

    /// Starts it again, after it was killed; waits until it listens.
    pub(crate) fn start_again(&mut self) {
        let Self { namespace, place, socket, config, .. } = self;
        let mut command = varpd_command(namespace, place, socket, config);
        self.process = Process::start(&self.name, &self.directory, &mut command);
        self.wait_listening();
    }

    /// The same with another address of the host.
    pub(crate) fn start_again_at(&mut self, address: IpAddr) {
        self.place = at(address);
        self.start_again();
    }

    /// A socket file may be left from one that was killed: it listens when it answers.
    fn wait_listening(&mut self) {
        let name = self.name.clone();
        wait_until(&format!("{name} listens"), START, || {
            self.process.assert_running();
            self.try_show("vnets").is_some()
        });
    }

    /// What `vnet -j show TABLE` prints. On a busy machine varpd may answer too late: then it is asked
    /// again.
    pub(crate) fn show(&self, table: &str) -> Value {
        let mut shown = None;
        wait_until(&format!("{}: vnet -j show {table}", self.name), START, || {
            shown = self.try_show(table);
            shown.is_some()
        });
        shown.expect("it was waited for")
    }

    fn try_show(&self, table: &str) -> Option<Value> {
        let output = Command::new(env!("CARGO_BIN_EXE_vnet"))
            .arg("--socket")
            .arg(&self.socket)
            .args(["-j", "show", table])
            .output()
            .expect("the vnet command");
        output.status.success().then(|| serde_json::from_slice(&output.stdout).expect("JSON"))
    }
}

fn at(address: IpAddr) -> [String; 2] {
    ["--address".to_owned(), address.to_string()]
}

fn varpd_command(
    namespace: &[String],
    place: &[String; 2],
    socket: &Path,
    config: &Path,
) -> Command {
    let mut command = Command::new("ip");
    command.args(namespace).args(place);
    command.arg("--socket").arg(socket).arg("--config").arg(config);
    command
}

/// Which vif a NIC is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Vif {
    /// The vnet.
    pub(crate) vnet: u32,
    /// The last octet of its MAC, 52:54:00:00:00:XX.
    pub(crate) mac: u8,
}

impl Vif {
    /// The MAC address as text.
    pub(crate) fn mac(self) -> String {
        format!("52:54:00:00:00:{:02x}", self.mac)
    }

    /// The MAC address as it is in frames.
    pub(crate) fn mac_bytes(self) -> [u8; 6] {
        [0x52, 0x54, 0, 0, 0, self.mac]
    }
}

/// Which side listens on the vhost-user socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listener {
    /// The backend ("server mode"): it is started first.
    Backend,
    /// QEMU ("client mode").
    Qemu,
}

/// One NIC's backend.
pub(crate) struct Backend {
    /// The running program.
    pub(crate) process: Process,
    /// The vhost-user socket.
    pub(crate) socket: PathBuf,
    /// Who listens on it.
    pub(crate) listener: Listener,
    /// The vif that it serves.
    pub(crate) vif: Vif,
    name: String,
    arguments: Vec<OsString>,
    directory: PathBuf,
}

impl Backend {
    /// Starts the backend of a NIC on the host of `varpd`; if it is to listen, waits until it does.
    pub(crate) fn start(name: &str, vif: Vif, listener: Listener, varpd: &Varpd) -> Self {
        Self::start_with(name, vif, listener, varpd, &[])
    }

    /// The same with further arguments.
    pub(crate) fn start_with(
        name: &str,
        vif: Vif,
        listener: Listener,
        varpd: &Varpd,
        further: &[&str],
    ) -> Self {
        let directory = varpd.directory.clone();
        let socket = directory.join(format!("{name}.sock"));
        let mut arguments: Vec<OsString> = vec!["--socket-path".into(), socket.clone().into()];
        arguments.extend(["--varpd".into(), varpd.socket.clone().into()]);
        arguments.extend(["--vnet", &vif.vnet.to_string(), "--mac", &vif.mac()].map(Into::into));
        if listener == Listener::Qemu {
            arguments.push("--client".into());
        }
        arguments.extend(further.iter().map(Into::into));
        let process = spawn_backend(name, &arguments, &directory);
        let name = name.to_owned();
        let mut backend = Self { process, socket, listener, vif, name, arguments, directory };
        backend.wait_listening();
        backend
    }

    /// Starts it again, after it was killed or has ended.
    pub(crate) fn start_again(&mut self) {
        self.process = spawn_backend(&self.name, &self.arguments, &self.directory);
        self.wait_listening();
    }

    fn wait_listening(&mut self) {
        if self.listener == Listener::Qemu {
            return;
        }
        wait_until(&format!("the backend {} listens", self.name), START, || {
            self.process.assert_running();
            // The file may be left from one that was killed. The backend takes a connection on
            // which nothing is said for a look whether it listens.
            UnixStream::connect(&self.socket).is_ok()
        });
    }
}

/// A test that fails says what its vifs counted: most losses have a name.
impl Drop for Backend {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let counted = self.counted().unwrap_or_default();
            println!("--- what {} counted: {}", self.name, counted.join(", "));
        }
    }
}

impl Backend {
    /// Its counters that are not zero, if its varpd still says them.
    fn counted(&self) -> Option<Vec<String>> {
        let socket = self.arguments.iter().skip_while(|argument| *argument != "--varpd").nth(1)?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_vnet"));
        let output = command.arg("--socket").arg(socket).args(["-j", "show", "stats"]).output();
        let rows: Value = serde_json::from_slice(&output.ok()?.stdout).ok()?;
        let vif = self.vif;
        let is_its = |row: &&Value| row["vnet"] == vif.vnet && row["mac"] == vif.mac();
        let own = |row: &&Value| is_its(row) && row["value"] != 0;
        let own = rows.as_array()?.iter().filter(own);
        Some(own.map(|row| format!("{} {}", row["counter"], row["value"])).collect())
    }
}

fn spawn_backend(name: &str, arguments: &[OsString], directory: &Path) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-user-vnet"));
    command.args(arguments);
    Process::start(&format!("backend-{name}"), directory, &mut command)
}
