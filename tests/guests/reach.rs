//! Guests on one vnet reach each other, wherever they are, and a NIC that has nothing to do costs
//! nothing.

use std::time::Duration;

use super::ping::{assert_all_answered, first_ping};
use super::support::guest::Qemu;
use super::support::netns::Family;
use super::support::process::Process;
use super::support::vnet::{Listener, Vif};
use super::support::{can_boot_guests, pause, step, take_turn};
use super::{Machine, Site, elapsed, newest_qemu, transfer};
use vnet::sys::clock;

const G1: Vif = Vif { vnet: 42, mac: 1 };
const G2: Vif = Vif { vnet: 42, mac: 2 };

/// Two guests on two hosts, one with each QEMU.
fn two_guests(family: Family) -> (Machine, Machine, Site) {
    let site = Site::new(2, family);
    let mut g1 = site.start("g1", 0, G1, Listener::Backend, Qemu::Installed);
    let mut g2 = site.start("g2", 1, G2, Listener::Backend, newest_qemu());
    g1.bring_up("10.0.0.1/24");
    g2.bring_up("10.0.0.2/24");
    (g1, g2, site)
}

#[test]
fn guests_on_two_hosts() {
    if !can_boot_guests("guests on two hosts") {
        return;
    }
    let _turn = take_turn();
    let (mut m1, mut m2, site) = two_guests(Family::V4);
    let (g1, g2) = (&mut m1.guest, &mut m2.guest);

    step("the guests have been told the MTU that fits");
    assert_eq!(g1.number("cat /sys/class/net/eth0/mtu"), 1450);
    assert_eq!(g2.number("cat /sys/class/net/eth0/mtu"), 1450);

    step("the first packet, with nothing resolved anywhere");
    let first = first_ping(g1, "10.0.0.2");
    step(&format!("  answered after {first:?}"));
    assert!(first < Duration::from_secs(1), "answered after {first:?}");
    let table = site.varpds[0].show("varp");
    assert!(table.to_string().contains(&G2.mac()), "host a has resolved g2: {table}");

    step("1000 pings, 10 ms apart");
    assert_all_answered(g1, 1000, "-i 0.01 10.0.0.2");

    step("datagrams of many fragments, VLAN tags, IPv6");
    assert_all_answered(g1, 20, "-i 0.05 -s 20000 10.0.0.2");
    for (guest, number) in [(&mut *g1, 1), (&mut *g2, 2)] {
        guest.run("ip link add link eth0 name eth0.7 type vlan id 7");
        guest.configure("eth0.7", &format!("10.7.0.{number}/24"));
        guest.run(&format!("ip address add fd00::{number}/64 dev eth0"));
    }
    assert_all_answered(g1, 20, "-i 0.05 10.7.0.2");
    // Duplicate address detection comes first.
    g1.run("until ping -6 -q -c 1 -W 1 fd00::2; do usleep 100000; done");
    assert_all_answered(g1, 20, "-6 -i 0.05 fd00::2");

    step("TCP in both directions");
    transfer(g1, g2, "10.0.0.2", 16);
    transfer(g2, g1, "10.0.0.1", 16);

    step("a backend whose guest is idle");
    assert_idle(&m1.backend.process);
    let kib = m1.backend.process.private_kib();
    step(&format!("  has {kib} KiB of private memory"));
    assert!(kib <= 8 * 1024, "{kib} KiB of private memory");
    for machine in [&mut m1, &mut m2] {
        machine.guest.assert_not_rebooted();
        machine.guest.assert_no_complaints();
    }
}

/// Waits for three seconds in which the process has used no processor time at all; a guest still
/// has something to say now and then (router solicitations, group memberships).
fn assert_idle(process: &Process) {
    let limit = clock::mono() + Duration::from_secs(40);
    let (mut begin, mut ticks) = (clock::mono(), process.cpu_ticks());
    while elapsed(begin) < Duration::from_secs(3) {
        assert!(clock::mono() < limit, "never idle for three seconds");
        pause();
        if process.cpu_ticks() != ticks {
            (begin, ticks) = (clock::mono(), process.cpu_ticks());
        }
    }
}

/// Guests that believe in an MTU of 1500 over an underlay of 1500: what TCP sends is cut to fit, and
/// who sends other packets is told what fits.
#[test]
fn guests_that_are_not_told_the_mtu() {
    if !can_boot_guests("guests that are not told the MTU") {
        return;
    }
    let _turn = take_turn();
    let mut site = Site::new(2, Family::V4);
    site.guest_mtu = None;
    let mut m1 = site.start("g1", 0, G1, Listener::Backend, Qemu::Installed);
    let mut m2 = site.start("g2", 1, G2, Listener::Backend, newest_qemu());
    m1.bring_up("10.0.0.1/24");
    m2.bring_up("10.0.0.2/24");
    let (g1, g2) = (&mut m1.guest, &mut m2.guest);
    assert_eq!(g1.number("cat /sys/class/net/eth0/mtu"), 1500);

    step("TCP in both directions, from guests with an MTU of 1500");
    transfer(g1, g2, "10.0.0.2", 8);
    transfer(g2, g1, "10.0.0.1", 8);

    step("a packet of 1500 bytes: the sender learns that 1450 fit");
    // The answers of the other are short enough.
    g2.run("ip link set eth0 mtu 1450");
    g1.run("until ping -q -c 1 -W 1 -s 1472 10.0.0.2; do usleep 100000; done");
    assert_all_answered(g1, 20, "-i 0.05 -s 1472 10.0.0.2");
    let stats = site.varpds[0].show("stats");
    let mut rows = stats.as_array().expect("rows").iter();
    let answers = rows.find(|row| row["counter"] == "rx_answers").expect("the counter");
    assert!(answers["value"].as_u64() > Some(0), "{answers}");
    for machine in [&mut m1, &mut m2] {
        machine.guest.assert_no_complaints();
    }
}

#[test]
fn guests_over_an_ipv6_underlay() {
    if !can_boot_guests("guests over an IPv6 underlay") {
        return;
    }
    let _turn = take_turn();
    let (mut m1, mut m2, site) = two_guests(Family::V6);
    let (g1, g2) = (&mut m1.guest, &mut m2.guest);

    step("the guests have been told the MTU that fits");
    assert_eq!(g1.number("cat /sys/class/net/eth0/mtu"), 1430);

    step("the first packet, with nothing resolved anywhere");
    let first = first_ping(g1, "10.0.0.2");
    assert!(first < Duration::from_secs(1), "answered after {first:?}");
    let table = site.varpds[0].show("varp").to_string();
    assert!(table.contains("[2001:db8::2]"), "the care-of address is IPv6: {table}");

    step("200 pings, 10 ms apart, and TCP");
    assert_all_answered(g1, 200, "-i 0.01 10.0.0.2");
    transfer(g1, g2, "10.0.0.2", 8);
}
