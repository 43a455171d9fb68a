//! Guests with a real kernel, in QEMU, on hosts that are network namespaces: what the project
//! promises to the people who run guests, seen from inside the guests.
//!
//! ```text
//!     guest              guest              guest          10.0.0.x in their vnets
//!       |                  |                  |            virtio-net, vhost-user
//!     backend            backend            backend
//!       |                  |                  |
//!     varpd of host a      +-- varpd of b ----+
//!       |                  |
//!       +---- underlay ----+                               see support/netns.rs
//! ```
//!
//! Without root or QEMU, the tests are skipped and say so. One runs at a time.

#[expect(dead_code, reason = "other tests use the rest")]
#[path = "../support/mod.rs"]
mod support;

mod capture;
#[path = "../support/driver.rs"]
mod driver;
mod isolation;
mod jumbo;
mod launch;
mod migration;
mod paths;
mod ping;
mod plugging;
mod probe;
mod reach;
mod restarts;
mod secured;
mod sniffer;
mod station;
mod timing;
mod uml;
mod uso;
mod withhold;

use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use vnet::sys::clock;
use vnet::time::Instant;

use support::guest::{Guest, Nic, Qemu};
use support::netns::{Family, Underlay};
use support::vnet::{Backend, Listener, Varpd, Vif};

/// Hosts with a varpd each. Fields are dropped in this order.
struct Site {
    varpds: Vec<Varpd>,
    underlay: Underlay,
    directory: TempDir,
    /// What fits into the underlay's MTU; `None` for guests that are not told.
    guest_mtu: Option<u32>,
}

impl Site {
    fn new(hosts: u8, family: Family) -> Self {
        Self::with_mtu(hosts, family, 1500)
    }

    /// The same with another MTU of the underlay, in bytes.
    fn with_mtu(hosts: u8, family: Family, mtu: u32) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        Self::build(&vec![String::new(); hosts.into()], family, mtu, directory)
    }

    /// A host for each of these configurations of varpd, in which `DIR` stands for [`Self::path`];
    /// what they name there is made by `prepare`.
    fn prepared(configs: &[String], prepare: impl FnOnce(&Path)) -> Self {
        // Keys are kept there, too.
        let closed = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        let directory =
            tempfile::Builder::new().permissions(closed).tempdir().expect("a directory");
        prepare(directory.path());
        let inside = directory.path().display().to_string();
        let configs: Vec<String> =
            configs.iter().map(|text| text.replace("DIR", &inside)).collect();
        Self::build(&configs, Family::V4, 1500, directory)
    }

    fn build(configs: &[String], family: Family, mtu: u32, directory: TempDir) -> Self {
        let hosts = u8::try_from(configs.len()).expect("a few hosts");
        let underlay = Underlay::new(hosts, mtu);
        let start = |(number, config): (usize, &String)| {
            let host = underlay.host(number);
            Varpd::start_with(host, host.address(family), config, directory.path())
        };
        let varpds = configs.iter().enumerate().map(start).collect();
        let guest_mtu = match family {
            Family::V4 => mtu - 50,
            Family::V6 => mtu - 70,
        };
        Self { varpds, underlay, directory, guest_mtu: Some(guest_mtu) }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Starts a guest with one NIC; it boots meanwhile.
    fn start(&self, name: &str, host: usize, vif: Vif, listener: Listener, qemu: Qemu) -> Machine {
        let backend = Backend::start(name, vif, listener, &self.varpds[host]);
        let guest = self.start_guest(name, &backend, qemu);
        Machine { guest, backend, name: name.to_owned(), qemu }
    }

    /// The same under User-Mode Linux, which is up in a second and as fast as the machine. Where it does not run,
    /// under QEMU.
    fn start_light(&self, name: &str, host: usize, vif: Vif) -> Machine {
        let Ok(made) = uml::uml_guest() else {
            return self.start(name, host, vif, Listener::Backend, Qemu::Installed);
        };
        let backend = Backend::start(name, vif, Listener::Backend, &self.varpds[host]);
        let guest = Guest::start_uml(name, &made, &backend.socket, self.path());
        Machine { guest, backend, name: name.to_owned(), qemu: Qemu::Installed }
    }

    fn start_guest(&self, name: &str, backend: &Backend, qemu: Qemu) -> Guest {
        let nic = Nic { backend, mtu: self.guest_mtu, options: "", queue_pairs: 1 };
        Guest::start(name, qemu, &[nic], self.path())
    }
}

/// A guest and the backend of its NIC.
struct Machine {
    guest: Guest,
    backend: Backend,
    name: String,
    qemu: Qemu,
}

impl Machine {
    /// Waits until the guest has booted and gives it its address.
    fn bring_up(&mut self, address: &str) {
        self.guest.wait_boot();
        self.guest.configure("eth0", address);
    }
}

/// Sends `mib` MiB over TCP, differently each time, and checks that what arrives has the same checksum.
fn transfer(from: &mut Guest, to: &mut Guest, address: &str, mib: u32) {
    transfer_output(from, to, address, &some_bytes(mib << 20));
}

/// A command that prints `count` bytes: a few random ones, then a program. The kernel of an emulated guest makes only
/// 3 MiB of random bytes in a second.
fn some_bytes(count: u32) -> String {
    let program = " /bin/busybox".repeat(1 + count as usize / 1_000_000);
    format!("{{ head -c 4096 /dev/urandom; cat{program}; }} 2>/dev/null | head -c {count}")
}

/// The same with what a command prints.
fn transfer_output(from: &mut Guest, to: &mut Guest, address: &str, command: &str) {
    let begin = clock::mono();
    // The receiver sends back the checksum of what it has got.
    to.run("nc -l -p 5000 -e sha256sum </dev/null >/dev/null 2>&1 &");
    to.run("until netstat -ltn | grep -q :5000; do usleep 10000; done");
    from.run(&format!("{command} >/tmp/data"));
    let sent = from.run("sha256sum </tmp/data");
    let arrived = from.run(&format!("nc {address} 5000 </tmp/data; rm /tmp/data"));
    assert_eq!(sent, arrived, "checksums of what was sent and what has arrived");
    support::step(&format!("  '{command}', made, sent and checked in {:?}", elapsed(begin)));
}

fn elapsed(since: Instant) -> Duration {
    clock::mono() - since
}

/// QEMU 10, or where it cannot be had, the installed one.
fn newest_qemu() -> Qemu {
    if Qemu::Ten.is_available() {
        return Qemu::Ten;
    }
    support::skip("guests with QEMU 10", "it is neither installed nor in the backports");
    Qemu::Installed
}
