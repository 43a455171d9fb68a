//! Everything may end and come back: varpd, the backend, QEMU, the guest, the guest's driver.

use std::time::Duration;

use super::ping::{Pings, assert_all_answered};
use super::support::guest::{Guest, Qemu};
use super::support::netns::Family;
use super::support::vnet::{Listener, Varpd, Vif};
use super::support::{can_boot_guests, step, take_turn, wait_until};
use super::{Machine, Site, elapsed, newest_qemu, transfer};
use vnet::sys::clock;

/// g1 on host a listens for its backend, g2 on host b connects to its own.
fn two_guests() -> (Machine, Machine, Site) {
    let site = Site::new(2, Family::V4);
    let (v1, v2) = (Vif { vnet: 42, mac: 1 }, Vif { vnet: 42, mac: 2 });
    let mut g1 = site.start("g1", 0, v1, Listener::Qemu, newest_qemu());
    let mut g2 = site.start("g2", 1, v2, Listener::Backend, Qemu::Installed);
    g1.bring_up("10.0.0.1/24");
    g2.bring_up("10.0.0.2/24");
    (g1, g2, site)
}

fn assert_reaches(guest: &mut Guest, address: &str) {
    assert_all_answered(guest, 20, &format!("-i 0.02 {address}"));
}

#[test]
fn programs_restart_under_running_guests() {
    if !can_boot_guests("restarts under running guests") {
        return;
    }
    let _turn = take_turn();
    let (mut m1, mut m2, mut site) = two_guests();
    assert_reaches(&mut m1.guest, "10.0.0.2");

    for (host, name) in [(0, "a"), (1, "b")] {
        step(&format!("varpd of host {name} is killed and started again during 1000 pings"));
        let pings = Pings::start(&mut m1.guest, 1000, "-i 0.01 10.0.0.2");
        restart_varpd(&mut site.varpds[host]);
        pings.assert_all_answered(&mut m1.guest);
    }

    step("the backend that connects to QEMU is killed and started again");
    restart_backend(&mut m1, &site.varpds[0], &mut m2.guest, "10.0.0.1", Duration::from_secs(1));
    step("the backend that QEMU connects to is killed and started again");
    // QEMU's `reconnect=1` looks a second after the connection has ended.
    let limit = Duration::from_millis(1500);
    restart_backend(&mut m2, &site.varpds[1], &mut m1.guest, "10.0.0.2", limit);
    transfer(&mut m1.guest, &mut m2.guest, "10.0.0.2", 4);
    transfer(&mut m2.guest, &mut m1.guest, "10.0.0.1", 4);
}

/// Kills varpd, starts it again, and waits until its vif is back.
fn restart_varpd(varpd: &mut Varpd) {
    let before = active_backends(varpd);
    assert_eq!(before.len(), 1, "before: {}", varpd.show("vifs"));
    varpd.kill();
    varpd.start_again();
    wait_until("the backend registers again", Duration::from_secs(10), || {
        active_backends(varpd) == before
    });
}

/// Process ids of the backends whose rings run.
fn active_backends(varpd: &Varpd) -> Vec<u64> {
    let vifs = varpd.show("vifs");
    let vifs = vifs.as_array().expect("an array").iter();
    vifs.filter(|vif| vif["state"] == "active").filter_map(|vif| vif["pid"].as_u64()).collect()
}

/// Kills a guest's backend and starts it again while another guest pings it. The rings run again
/// `limit` after the start at the latest.
///
/// The pings do not measure that: what is sent meanwhile waits in the socket that varpd keeps.
fn restart_backend(
    machine: &mut Machine,
    varpd: &Varpd,
    other: &mut Guest,
    address: &str,
    limit: Duration,
) {
    let pings = Pings::start(other, 250, &format!("-i 0.02 {address}"));
    wait_until("the first answers", Duration::from_secs(10), || pings.answered(other) >= 20);

    machine.backend.process.kill();
    machine.backend.start_again();
    let started = clock::mono();
    let new = vec![u64::from(machine.backend.process.pid())];
    wait_until("the rings run again", limit, || active_backends(varpd) == new);
    step(&format!("  the rings run again after {:?}", elapsed(started)));

    let answered = pings.finish(other);
    step(&format!("  {answered} of 250 pings were answered"));
    // A guest's kernel that has seen the link go may take a second more to use it again.
    assert!(answered >= 125, "{answered} of 250 pings were answered");
    assert_reaches(other, address);
    machine.guest.assert_not_rebooted();
}

#[test]
fn guests_restart_under_running_programs() {
    if !can_boot_guests("restarts of guests") {
        return;
    }
    let _turn = take_turn();
    let (mut m1, mut m2, site) = two_guests();
    assert_reaches(&mut m1.guest, "10.0.0.2");

    step("the guests' drivers are unbound and bound again");
    for (machine, address) in [(&mut m1, "10.0.0.1/24"), (&mut m2, "10.0.0.2/24")] {
        rebind(&mut machine.guest);
        machine.guest.configure("eth0", address);
    }
    assert_reaches(&mut m1.guest, "10.0.0.2");

    step("the guests reboot");
    for machine in [&mut m1, &mut m2] {
        let before = machine.guest.boot_id().to_owned();
        machine.guest.spawn("reboot -f");
        machine.guest.wait_boot();
        assert_ne!(machine.guest.boot_id(), before, "it has rebooted");
    }
    m1.guest.configure("eth0", "10.0.0.1/24");
    m2.guest.configure("eth0", "10.0.0.2/24");
    assert_reaches(&mut m1.guest, "10.0.0.2");

    step("QEMU is killed, and a new one uses the same backend");
    for machine in [&mut m1, &mut m2] {
        machine.guest.process.kill();
        machine.backend.process.assert_running();
        machine.guest = site.start_guest(&machine.name, &machine.backend, machine.qemu);
    }
    m1.bring_up("10.0.0.1/24");
    m2.bring_up("10.0.0.2/24");
    assert_reaches(&mut m1.guest, "10.0.0.2");

    step("QEMU quits, and a new one uses the same backend");
    m2.guest.process.terminate(Duration::from_secs(20));
    m2.backend.process.assert_running();
    m2.guest = site.start_guest(&m2.name, &m2.backend, m2.qemu);
    m2.bring_up("10.0.0.2/24");
    assert_reaches(&mut m1.guest, "10.0.0.2");
    transfer(&mut m2.guest, &mut m1.guest, "10.0.0.1", 4);

    step("the backends end on SIGTERM");
    for machine in [&mut m1, &mut m2] {
        let status = machine.backend.process.terminate(Duration::from_secs(3));
        assert!(status.success(), "{status}");
    }
}

fn rebind(guest: &mut Guest) {
    guest.run(
        "device=$(basename $(readlink /sys/class/net/eth0/device)); \
         cd /sys/bus/virtio/drivers/virtio_net && echo $device >unbind && \
         [ ! -e /sys/class/net/eth0 ] && echo $device >bind && [ -e /sys/class/net/eth0 ]",
    );
}
