//! Guests with jumbo frames and several NICs, on an underlay that carries them and on one that does
//! not.
//!
//! ```text
//!     vnet 42, told 8950     eth0  j1  eth1     eth0  j2  eth1     vnet 43, not told: 9000
//!                              |        |         |        |
//!                            host a, QEMU 7.2   host b, QEMU 10    underlay: 9000, then 1500
//! ```

use std::time::Duration;

use super::ping::{COUNTED, assert_all_answered};
use super::support::guest::{Guest, Nic, Qemu};
use super::support::netns::Family;
use super::support::vnet::{Backend, Listener, Vif};
use super::support::{can_boot_guests, step, take_turn, wait_until};
use super::{Site, newest_qemu, transfer};

/// The vnets of the guests' NICs, and the MTU in bytes that they are told: what fits into an underlay
/// of 9000, and nothing.
const NICS: [(u32, Option<u32>); 2] = [(42, Some(8950)), (43, None)];
/// What who is not told believes in.
const BELIEVED: u32 = 9000;

/// A guest and the backends of its NICs.
struct Jumbo {
    guest: Guest,
    backends: [Backend; 2],
}

impl Jumbo {
    /// Starts guest number 1 or 2 on the host of that number.
    fn start(site: &Site, number: u8, qemu: Qemu) -> Self {
        let varpd = &site.varpds[usize::from(number) - 1];
        let backends = NICS.map(|(vnet, _)| {
            let vif = Vif { vnet, mac: number };
            Backend::start(&format!("j{number}-{vnet}"), vif, Listener::Backend, varpd)
        });
        let [first, second] = &backends;
        let nics = [(first, NICS[0].1), (second, NICS[1].1)].map(|(backend, mtu)| Nic {
            backend,
            mtu,
            options: "",
            queue_pairs: 1,
        });
        let guest = Guest::start_router(&format!("j{number}"), qemu, &nics, site.path());
        Self { guest, backends }
    }

    /// Addresses: 10.0.NIC.NUMBER, fd0NIC::NUMBER, and 10.7.0.NUMBER on VLAN 7 of the first NIC.
    fn configure(&mut self, number: u8) {
        self.guest.wait_boot();
        assert_eq!(self.guest.number("cat /sys/class/net/eth0/mtu"), 8950);
        self.guest.run(&format!("ip link set eth1 mtu {BELIEVED}"));
        for nic in [0, 1] {
            self.guest.configure(&format!("eth{nic}"), &format!("10.0.{nic}.{number}/24"));
            self.guest.run(&format!("ip address add fd0{nic}::{number}/64 dev eth{nic}"));
        }
        for vlan in [7, 8] {
            let name = format!("eth0.{vlan}");
            self.guest.run(&format!("ip link add link eth0 name {name} type vlan id {vlan}"));
        }
        self.guest.configure("eth0.7", &format!("10.7.0.{number}/24"));
    }
}

#[test]
fn jumbo_frames_and_several_nics() {
    if !can_boot_guests("jumbo frames and several NICs") {
        return;
    }
    let _turn = take_turn();
    let site = Site::with_mtu(2, Family::V4, 9000);
    let mut j1 = Jumbo::start(&site, 1, Qemu::Installed);
    let mut j2 = Jumbo::start(&site, 2, newest_qemu());
    j1.configure(1);
    j2.configure(2);
    // Duplicate address detection comes first.
    j1.guest.run("until ping -6 -q -c 1 -W 1 fd00::2; do usleep 100000; done");

    wide(&site, &mut j1.guest, &mut j2.guest);
    separate(&mut j1.guest, &mut j2.guest);

    step("the underlay has 1500 from now on");
    site.underlay.set_mtu(1500);
    for (network, fits) in [("10.0.0", 1450), ("10.7.0", 1446)] {
        narrow(&site, &mut j1.guest, &mut j2.guest, network, fits);
    }
    assert_sender_cuts(&mut j1.guest, "-6 -s 8000 fd00::2", &mut j2.guest);

    step("backends that are started on it, also for guests that were told more");
    for backend in [&mut j1, &mut j2].into_iter().flat_map(|jumbo| &mut jumbo.backends) {
        backend.process.kill();
        backend.start_again();
    }
    for network in ["10.0.0", "10.0.1"] {
        j1.guest.run(&format!("until ping -q -c 1 -W 1 {network}.2; do usleep 100000; done"));
        narrow(&site, &mut j1.guest, &mut j2.guest, network, 1450);
    }
    for jumbo in [&mut j1, &mut j2] {
        jumbo.guest.assert_not_rebooted();
    }
}

/// On an underlay of 9000.
fn wide(site: &Site, j1: &mut Guest, j2: &mut Guest) {
    step("an underlay of 9000: what fits travels whole");
    pings_with_df(j1, 8000, "10.0.0.2");
    pings_with_df(j1, 8950 - 28, "10.0.0.2");
    pings_with_df(j1, 8000, "fd00::2");
    pings_with_df(j1, 8000, "10.7.0.2");
    transfer(j1, j2, "10.0.0.2", 4);
    transfer(j2, j1, "10.7.0.1", 4);
    assert_eq!(counter(site, "tx_fragmented"), 0, "nothing was cut");
    assert_eq!(counter(site, "tx_drop_too_big"), 0, "nothing was too long");

    step("the other NIC believes in 50 bytes more than fit");
    let longest = BELIEVED - 28;
    assert_too_long(j1, longest, "10.0.1.2", 8950);
    assert_answered_in_pieces(site, j1, longest, "10.0.1.2");
    transfer(j1, j2, "10.0.1.2", 4);
}

/// What is on one vnet or VLAN of a guest is not heard on another.
fn separate(j1: &mut Guest, j2: &mut Guest) {
    step("neither vnets nor VLANs hear each other");
    // Else Linux answers on each of its interfaces for the addresses of all of them.
    j2.run("echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore");
    j2.configure("eth0.8", "10.8.0.2/24");
    j1.run("ip address add 10.8.0.1/24 dev eth0.7");
    for arguments in ["-I eth0 10.0.1.2", "-I eth1 10.0.0.2", "-I eth0.7 10.8.0.2"] {
        let (status, output) = j1.try_run(&format!("ping -q -c 3 -i 0.1 -W 1 {arguments}"));
        assert!(status != 0 && output.contains("100% packet loss"), "{arguments}: {output}");
    }
    // It is there for those on its VLAN.
    j1.run("ip address del 10.8.0.1/24 dev eth0.7");
    j1.configure("eth0.8", "10.8.0.1/24");
    assert_all_answered(j1, 5, "-i 0.05 10.8.0.2");
}

/// Guests that believe in jumbo frames, on an underlay of 1500, where packets of `fits` bytes fit.
fn narrow(site: &Site, j1: &mut Guest, j2: &mut Guest, network: &str, fits: u32) {
    step(&format!("an underlay of 1500: {network}.1 and {network}.2"));
    for guest in [&mut *j1, &mut *j2] {
        // What they have learnt of paths so far.
        guest.run("ip route flush cache");
    }
    let to = format!("{network}.2");
    transfer(j1, j2, &to, 2);
    transfer(j2, j1, &format!("{network}.1"), 2);
    assert_too_long(j1, 8000, &to, fits);
    assert_answered_in_pieces(site, j1, 8000, &to);
    assert_sender_cuts(j1, &format!("-s 8000 {to}"), j2);
}

/// Pings whose packets may not be cut by anybody; panics unless all are answered.
fn pings_with_df(guest: &mut Guest, size: u32, to: &str) {
    let command = format!("iputils-ping -M do -q -c 20 -i 0.02 -W 2 -s {size} {to}");
    let output = guest.run(&command);
    assert!(output.contains(" 20 received, 0% packet loss"), "{command}:\n{output}");
}

/// The first one is answered by a message of what fits; the guest's kernel soon sends no more.
fn assert_too_long(guest: &mut Guest, size: u32, to: &str, fits: u32) {
    let command = format!("iputils-ping -M do -c 4 -i 0.2 -W 1 -s {size} {to}");
    // It fails if none was answered in pieces before the kernel knew.
    let (_, output) = guest.try_run(&command);
    let told = output.contains(&format!("mtu = {fits}"));
    let known = output.contains(&format!("mtu={fits}"));
    assert!(told && known, "{command}:\n{output}");
}

/// A guest that lets no message through to itself, and insists: it gets through all the same, after
/// a moment.
fn assert_answered_in_pieces(site: &Site, guest: &mut Guest, size: u32, to: &str) {
    guest.run(
        "echo 'table inet deaf { chain input { type filter hook input priority filter; \
         icmp type destination-unreachable counter drop; }; }' | nft -f - && ip route flush cache",
    );
    let ping = format!("iputils-ping -M do -q -c 1 -W 1 -s {size} {to}");
    guest.run(&format!("until {ping}; do usleep 50000; done"));
    let before = counter(site, "tx_fragmented");
    pings_with_df(guest, size, to);
    // The answers are as long, and forbid nothing.
    let cut = counter(site, "tx_fragmented") - before;
    assert!(cut >= 40, "of 20 requests and 20 answers, {cut} travelled in pieces");
    let rules = guest.run("nft list ruleset; nft flush ruleset");
    assert!(!rules.contains("packets 0 "), "it was told: {rules}");
}

/// Guests that heed the message cut packets themselves. Some are lost until then. Of IPv6, both guests have to be told,
/// and an answer alone does not show that the other one was: a backend that asks whether the path is still narrow
/// (`tunnel::paths`) lets a packet pass in pieces and tells nobody.
fn assert_sender_cuts(guest: &mut Guest, arguments: &str, other: &mut Guest) {
    let is_v6 = arguments.starts_with("-6 ");
    let before = [fragments_made(guest), fragments_made(other)];
    wait_until("the guests cut packets", Duration::from_secs(20), || {
        let (status, _) = guest.try_run(&format!("ping -q -c 1 -W 1 {arguments}"));
        status == 0
            && fragments_made(guest) > before[0]
            && (!is_v6 || fragments_made(other) > before[1])
    });
    // One after the other: a kernel drops answers of its own if a busy host makes it give many at once.
    let pings = format!("for n in $(seq 20); do ping -q -c 1 -W 5 {arguments} || echo lost; done");
    let output = guest.run(&pings);
    let mut counted =
        || [&mut *guest, other].map(|guest| guest.run(COUNTED)).join("\n--- other:\n");
    assert!(!output.contains("lost"), "{output}; counted:\n{}", counted());
}

/// Fragments that a guest's kernel has made of longer packets, of both IP versions.
fn fragments_made(guest: &mut Guest) -> u64 {
    guest.number(
        "awk '$1 == \"Ip:\" && column { n += $column } \
         $1 == \"Ip:\" { for (i = 2; i <= NF; i++) if ($i == \"FragCreates\") column = i } \
         $1 == \"Ip6FragCreates\" { n += $2 } END { print n + 0 }' \
         /proc/net/snmp /proc/net/snmp6",
    )
}

/// A counter, summed over all vifs of both hosts.
fn counter(site: &Site, name: &str) -> u64 {
    let of_host = |stats: serde_json::Value| -> u64 {
        let rows = stats.as_array().expect("rows").iter();
        rows.filter(|row| row["counter"] == name).filter_map(|row| row["value"].as_u64()).sum()
    };
    site.varpds.iter().map(|varpd| of_host(varpd.show("stats"))).sum()
}
