//! The comparator for secured vnets: a WireGuard tunnel between the hosts, that of the kernel or,
//! where it has none, `wireguard-go`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::bench_id;
use crate::process::Process;
use crate::subject::Kind;
use crate::topology::{Host, Hosts, output};

/// Bytes that WireGuard adds on IPv4: IP, UDP, a header of 16 bytes and a tag of 16.
pub(crate) const OVERHEAD: usize = 60;
/// What WireGuard pads packets to, up to its MTU: one that is a multiple wastes nothing.
pub(crate) const ALIGNMENT: usize = 16;

/// Addresses in the tunnel of hosts a and b.
const ADDRESSES: [&str; 2] = ["198.51.100.1", "198.51.100.2"];
const PORT: u16 = 51820;
/// Room for packets that wait for wireguard-go, as much as a tap has.
const QUEUE_LEN: usize = 10_000;
/// Where wireguard-go listens for `wg`: a directory that all network namespaces share.
const SOCKETS: &str = "/var/run/wireguard";

/// The tunnel that can be had here, if any. What is missing is told once.
pub(crate) fn available() -> Option<Kind> {
    static FOUND: OnceLock<Option<Kind>> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let found = find();
        if let Err(missing) = &found {
            eprintln!("skipped: WireGuard beside secured vnets: {missing}");
        }
        found.ok()
    })
}

fn find() -> Result<Kind, String> {
    let runs = |program: &str| output(Command::new(program).arg("--version"));
    runs("wg").map_err(|error| format!("there is no wg of wireguard-tools ({error})"))?;
    let name = format!("vnwg{}", bench_id());
    let add = Command::new("ip").args(["link", "add", &name, "type", "wireguard"]).output();
    if add.is_ok_and(|add| add.status.success()) {
        let _ = Command::new("ip").args(["link", "delete", &name]).output();
        return Ok(Kind::WireGuard);
    }
    match runs("wireguard-go") {
        Ok(_) => Ok(Kind::WireGuardGo),
        Err(error) => Err(format!("the kernel has none, and there is no wireguard-go ({error})")),
    }
}

/// What of a tunnel outlives its device and its process.
pub(crate) struct Tunnel {
    sockets: Vec<PathBuf>,
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        // The kernel's has none.
        self.sockets.iter().for_each(|path| drop(std::fs::remove_file(path)));
    }
}

/// Name of the device on a host, and of a socket that is nobody else's.
fn device(host: &Host) -> String {
    // At most 15 characters; benches/run knows sockets by it.
    format!("vnwg{}{}", bench_id(), host.name)
}

/// Starts a tunnel between the hosts whose packets have `mtu` bytes, and a VXLAN device on it at each
/// end, which takes frames of guests with an MTU of `guest_mtu`.
pub(crate) fn start(
    kind: Kind,
    hosts: &Hosts,
    (mtu, guest_mtu): (usize, usize),
    directory: &Path,
    programs: &mut Vec<Process>,
) -> io::Result<Tunnel> {
    let ends = [&hosts.a, &hosts.b];
    let names = ends.map(device);
    let mut tunnel = Tunnel { sockets: Vec::new() };
    let mut keys = Vec::new();
    for (host, name) in ends.into_iter().zip(&names) {
        if kind == Kind::WireGuard {
            host.ip(&format!("link add {name} type wireguard"))?;
        } else {
            let socket = Path::new(SOCKETS).join(format!("{name}.sock"));
            tunnel.sockets.push(socket.clone());
            let mut command = host.command("wireguard-go");
            command.args(["--foreground", name]).env("LOG_LEVEL", "error");
            let mut process = Process::start(name, directory, &mut command)?;
            process.wait_socket(&socket)?;
            programs.push(process);
        }
        keys.push(Key::new(&directory.join(format!("key-{}", host.name)))?);
    }
    for (own, other) in [(0, 1), (1, 0)] {
        let (host, name) = (ends[own], &names[own]);
        let peer = format!("peer {} allowed-ips {}/32", keys[other].public, ADDRESSES[other]);
        let endpoint = format!("endpoint {}:{PORT}", ends[other].address);
        let private = keys[own].private.display();
        let set = format!("set {name} listen-port {PORT} private-key {private} {peer} {endpoint}");
        host.run("wg", &set)?;
        host.ip(&format!("address add {}/24 dev {name}", ADDRESSES[own]))?;
        host.ip(&format!("link set {name} mtu {mtu} txqueuelen {QUEUE_LEN} up"))?;
        host.add_bridge(guest_mtu)?;
        host.add_vxlan(name, (ADDRESSES[own], ADDRESSES[other]), guest_mtu)?;
    }
    Ok(tunnel)
}

/// A host's key.
struct Key {
    /// The file of the private one.
    private: PathBuf,
    public: String,
}

impl Key {
    fn new(private: &Path) -> io::Result<Self> {
        let key = output(Command::new("wg").arg("genkey"))?;
        std::fs::write(private, &key)?;
        let mut command = Command::new("wg");
        command.arg("pubkey").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        // It is closed behind the line, or wg would wait for more.
        child.stdin.take().map_or(Ok(()), |mut input| input.write_all(key.as_bytes()))?;
        let public = String::from_utf8_lossy(&child.wait_with_output()?.stdout).trim().to_owned();
        Ok(Self { private: private.to_owned(), public })
    }
}
