//! UDP segmentation offload (USO): a guest that sends many datagrams in one frame, which stays whole as
//! far as it can.
//!
//! ```text
//!     g1, on host a          g3, on host a           g2, on host b       Linux 6.12
//!       |                      |                       |                 virtio_net in each guest
//!     all features           all features            no checksums, and nothing that needs them, inwards
//!       |                      |                       |                 withhold.rs
//!     backend                backend                 backend
//! ```
//!
//! QEMU's virtio-net offers a guest no USO on a vhost-user netdev, up to QEMU 11 at least, whatever the
//! backend offers and its properties (`host_uso=on`) say: it asks the netdev, and vhost-user's does not
//! know. The first test holds that on record. The second has QEMU's generic vhost-user device instead
//! (tests/uso-guest tells which QEMU), which lets driver and backend agree on all they know.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use super::support::guest::{Guest, Nic};
use super::support::netns::Family;
use super::support::vnet::{Backend, Listener, Varpd, Vif};
use super::support::{ROOT, can_boot_guests, skip, step, take_turn, wait_until};
use super::withhold::Withholder;
use super::{Site, newest_qemu};

/// Feature bits (virtio 1.3, 5.1.3).
const GUEST_CSUM: u32 = 1;
const MTU: u32 = 3;
const GUEST_TSO4: u32 = 7;
const GUEST_TSO6: u32 = 8;
const GUEST_ECN: u32 = 9;
const GUEST_USO4: u32 = 54;
const GUEST_USO6: u32 = 55;
const HOST_USO: u32 = 56;
const USO: [u32; 3] = [GUEST_USO4, GUEST_USO6, HOST_USO];

/// This needs what the generic device does not have: a configuration space.
const NEVER: [u32; 1] = [MTU];
/// Without these a guest checks what it gets, and gets no more at once than was on a wire.
const PLAIN: [u32; 6] = [GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, GUEST_ECN, GUEST_USO4, GUEST_USO6];

/// What is sent: so many runs of so many bytes, in datagrams of a size.
#[derive(Clone, Copy, Debug)]
struct Load {
    runs: u64,
    len: u64,
    segment: u64,
}

const LOADS: [Load; 2] =
    [Load { runs: 20, len: 40_300, segment: 1400 }, Load { runs: 20, len: 12_000, segment: 200 }];
const PORT: u16 = 6000;

impl Load {
    fn datagrams(self) -> u64 {
        self.runs * self.len.div_ceil(self.segment)
    }
}

#[test]
fn what_qemu_offers_a_guest() {
    if !can_boot_guests("what QEMU offers a guest") {
        return;
    }
    let _turn = take_turn();
    let site = Site::new(1, Family::V4);
    let backend = Backend::start("g1", vif(1), Listener::Backend, &site.varpds[0]);
    let options = ",host_uso=on,guest_uso4=on,guest_uso6=on";
    let qemu = newest_qemu();
    let nic = Nic { backend: &backend, mtu: site.guest_mtu, options, queue_pairs: 1 };
    let mut guest = Guest::start("g1", qemu, &[nic], site.path());
    // QEMU tells of the backend's features only while the driver uses it.
    guest.wait_boot();
    let mut monitor = guest.monitor();
    let devices = monitor.execute("x-query-virtio", json!({}));
    let mut devices = devices.as_array().expect("devices").iter();
    let device = devices.find(|device| device["name"] == "virtio-net").expect("a NIC");
    let status = monitor.execute("x-query-virtio-status", json!({ "path": device["path"] }));

    let uso = |features: &Value| {
        let all = features["dev-features"].as_array().expect("features").iter();
        all.filter(|feature| feature.as_str().is_some_and(|text| text.contains("_USO"))).count()
    };
    assert_eq!(uso(&status["vhost-dev"]["features"]), USO.len(), "what the backend offers QEMU");
    let passed_on = uso(&status["host-features"]);
    let version = monitor.execute("query-version", json!({}))["qemu"]["major"].as_u64();
    let version = version.expect("a version");
    step(&format!("QEMU {version} offers the guest {passed_on} of {} features", USO.len()));
    if version <= 10 {
        assert_eq!(passed_on, 0, "what QEMU offers the guest: {}", status["host-features"]);
    }
}

#[test]
fn runs_of_datagrams() {
    if !can_boot_guests("runs of datagrams") {
        return;
    }
    let made = match uso_guest() {
        Ok(made) => made,
        Err(why) => return skip("runs of datagrams", &why),
    };
    let _turn = take_turn();
    let site = Site::new(2, Family::V4);
    let start = |n, host, withheld: &[u32]| Machine::start(&site, &made, n, host, withheld);
    let [mut g1, mut g2, mut g3] =
        [start(1, 0, &NEVER), start(2, 1, &[&NEVER[..], &PLAIN].concat()), start(3, 0, &NEVER)];
    for machine in [&mut g1, &mut g2, &mut g3] {
        machine.bring_up();
    }
    for machine in [&mut g1, &mut g3] {
        assert!(USO.iter().all(|bit| machine.has(*bit)), "agreed on by driver and backend");
    }
    assert!(g2.has(HOST_USO) && !g2.has(GUEST_USO4) && !g2.has(GUEST_CSUM));

    for load in LOADS {
        for version in [4, 6] {
            step(&format!("{load:?} over IPv{version}"));
            step("  within a host: they stay whole");
            let sent = send(&mut g1, &mut g3, load, version, &site);
            assert!(sent.local >= load.runs, "through shared memory: {sent:?}");
            assert!(sent.received < load.runs + OTHERS, "{sent:?}");
            step("  across hosts, to one that takes them whole: they are put together");
            let sent = send(&mut g2, &mut g1, load, version, &site);
            assert!(sent.received < load.datagrams() / 2, "{sent:?}");
            step(
                "  across hosts, to one that does not: all are there, and their checksums are right",
            );
            let sent = send(&mut g1, &mut g2, load, version, &site);
            assert!(sent.received >= load.datagrams(), "{sent:?}");
        }
    }
    for machine in [g1, g2, g3] {
        machine.guest.assert_no_complaints();
    }
}

/// Frames beside the runs, at most: answers, neighbour discovery and its like.
const OTHERS: u64 = 20;

/// What became of runs, in frames, by the backends' counters.
#[derive(Clone, Copy, Debug)]
struct Sent {
    /// That went through memory shared with a backend on the same host.
    local: u64,
    /// That the other guest received.
    received: u64,
}

/// Sends a load; all of it arrives, and leaves the sender in as many frames as there are runs.
fn send(from: &mut Machine, to: &mut Machine, load: Load, version: u8, site: &Site) -> Sent {
    let Load { runs, len, segment } = load;
    let before = [from.counters(site), to.counters(site)];
    let rest = format!("{PORT} {runs} {len} {segment}");
    let receiver = to.guest.spawn(&format!("datagrams receive {rest}"));
    to.guest.run(&format!("until netstat -lun | grep -q :{PORT}; do usleep 10000; done"));
    let address = if version == 4 { to.v4() } else { to.v6() };
    from.guest.run(&format!("datagrams send {address} {rest}"));
    let (status, output) = to.guest.wait(receiver);
    assert_eq!((status, output.trim()), (0, &*load.datagrams().to_string()), "datagrams");
    for machine in [&mut *from, &mut *to] {
        assert_eq!(machine.guest.number(UDP_ERRORS), 0, "checksums and the like");
    }

    let after = [from.counters(site), to.counters(site)];
    let grown = |n: usize, name: &str| after[n][name] - before[n][name];
    let (frames, bytes) = (grown(0, "tx_frames"), grown(0, "tx_bytes"));
    assert!((runs..runs + OTHERS).contains(&frames), "the guest sent runs: {frames} frames");
    assert!(bytes >= runs * len, "{bytes} bytes");
    Sent { local: grown(0, "tx_local_frames"), received: grown(1, "rx_frames") }
}

/// Datagrams that the guest's kernel has not delivered, whatever was wrong with them.
const UDP_ERRORS: &str = "awk '$1 == \"Udp:\" { n = $4 + $9 } $1 ~ /^Udp6In(Csum)?Errors$/ { m += $2 } \
     END { print n + m }' /proc/net/snmp /proc/net/snmp6";

/// A guest whose NIC is QEMU's generic vhost-user device. Fields are dropped in this order.
struct Machine {
    guest: Guest,
    number: u8,
    host: usize,
    _withholder: Withholder,
    _backend: Backend,
}

impl Machine {
    fn start(site: &Site, made: &Path, number: u8, host: usize, withheld: &[u32]) -> Self {
        let name = format!("g{number}");
        let backend = Backend::start(&name, vif(number), Listener::Backend, &site.varpds[host]);
        let features = withheld.iter().fold(0, |all, bit| all | 1 << bit);
        let withholder = Withholder::start(&backend.socket, features);
        let guest = Guest::start_generic(&name, made, &withholder.socket, site.path());
        Self { guest, number, host, _withholder: withholder, _backend: backend }
    }

    fn v4(&self) -> String {
        format!("10.0.0.{}", self.number)
    }

    fn v6(&self) -> String {
        format!("fd00::{}", self.number)
    }

    /// The device has no configuration space to say its address and MTU in.
    fn bring_up(&mut self) {
        let (v4, v6) = (self.v4(), self.v6());
        let mac = vif(self.number).mac();
        self.guest.wait_boot();
        // Linux leaves it off until it is asked for.
        self.guest.run("ethtool -K eth0 tx-udp-segmentation on");
        let features = self.guest.run("ethtool -k eth0");
        assert!(features.contains("tx-udp-segmentation: on\n"), "{features}");
        self.guest.run(&format!("ip link set eth0 address {mac} mtu 1450"));
        self.guest.run("echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad");
        self.guest.configure("eth0", &format!("{v4}/24"));
        self.guest.run(&format!("ip address add {v6}/64 dev eth0"));
    }

    /// Whether a feature was negotiated; the guest's kernel prints a digit for each.
    fn has(&mut self, bit: u32) -> bool {
        let features = self.guest.run("cat /sys/class/net/eth0/device/features");
        features.as_bytes()[bit as usize] == b'1'
    }

    /// The counters of its backend.
    fn counters(&self, site: &Site) -> BTreeMap<String, u64> {
        let mut found = BTreeMap::new();
        wait_until("the backend tells its counters", Duration::from_secs(10), || {
            found = counters(&site.varpds[self.host], &vif(self.number).mac());
            !found.is_empty()
        });
        found
    }
}

fn counters(varpd: &Varpd, mac: &str) -> BTreeMap<String, u64> {
    let table = varpd.show("stats");
    let rows = table.as_array().expect("rows").iter().filter(|row| row["mac"] == mac);
    let value = |row: &Value| {
        (
            row["counter"].as_str().expect("a name").to_owned(),
            row["value"].as_u64().expect("a number"),
        )
    };
    rows.map(value).collect()
}

fn vif(number: u8) -> Vif {
    Vif { vnet: 42, mac: number }
}

/// Where the QEMU, the kernel and the program for the guests are, or why they can't be had.
fn uso_guest() -> Result<PathBuf, String> {
    let output = Command::new(Path::new(ROOT).join("tests/uso-guest")).output().expect("a script");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        return Ok(text(&output.stdout).into());
    }
    let said = text(&output.stderr);
    Err(said.lines().last().unwrap_or("tests/uso-guest has failed").to_owned())
}
