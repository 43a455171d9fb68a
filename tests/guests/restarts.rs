//! Everything may end and come back: varpd, the backend, QEMU, the guest, the guest's driver.

use std::time::Duration;

use super::support::guest::{Guest, Qemu};
use super::support::netns::Family;
use super::support::vnet::{Listener, Varpd, Vif};
use super::support::{can_boot_guests, step, take_turn, wait_until};
use super::{Machine, Site, elapsed, newest_qemu, ping_command, pings, transfer};
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
    let output = guest.run(&format!("ping -q -c 20 -i 0.02 -W 3 {address}"));
    assert_eq!(pings(&output).answered, 20, "{output}");
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
        let running = m1.guest.spawn(&ping_command(1000, "10.0.0.2"));
        restart_varpd(&mut site.varpds[host]);
        let (_, output) = m1.guest.wait(running);
        let result = pings(&output);
        assert_eq!((result.sent, result.answered), (1000, 1000), "{output}");
    }

    step("the backend that connects to QEMU is killed and started again");
    restart_backend(&mut m1, &mut m2.guest, "10.0.0.1", Duration::from_secs(1));
    step("the backend that QEMU connects to is killed and started again");
    // QEMU's `reconnect=1` looks once a second.
    restart_backend(&mut m2, &mut m1.guest, "10.0.0.2", Duration::from_millis(1500));
    transfer(&mut m1.guest, &mut m2.guest, "10.0.0.2", 4);
    transfer(&mut m2.guest, &mut m1.guest, "10.0.0.1", 4);
}

/// Kills varpd, starts it again, and waits until its vif is back.
fn restart_varpd(varpd: &mut Varpd) {
    let active = |varpd: &Varpd| {
        let vifs = varpd.show("vifs");
        let vifs = vifs.as_array().expect("an array").clone();
        vifs.iter().filter(|vif| vif["state"] == "active").count()
    };
    assert_eq!(active(varpd), 1, "before: {}", varpd.show("vifs"));
    varpd.kill();
    varpd.start_again();
    wait_until("the backend registers again", Duration::from_secs(10), || active(varpd) == 1);
}

/// Kills a guest's backend and starts it again while another guest pings it; the pings are
/// unanswered for no longer than `limit` after the start.
fn restart_backend(machine: &mut Machine, other: &mut Guest, address: &str, limit: Duration) {
    let interval = Duration::from_millis(20);
    let running = other.spawn(&format!(
        "ping -c 250 -i 0.02 -W 2 {address} >/tmp/pings; \
        grep -c ' bytes from ' /tmp/pings; tail -n 2 /tmp/pings; rm /tmp/pings"
    ));
    other.run("until [ $(grep -c ' bytes from ' /tmp/pings) -ge 20 ]; do usleep 10000; done");
    let killed = clock::mono();
    machine.backend.process.kill();
    machine.backend.start_again();
    let down = elapsed(killed);
    let (_, output) = other.wait(running);
    let result = pings(&output);
    let gap = interval * (result.sent - result.answered);
    step(&format!("  it was down for {down:?}; unanswered for {gap:?}"));
    assert_eq!(result.sent, 250, "{output}");
    assert!(gap <= down + limit, "unanswered for {gap:?}, of which it was down for {down:?}");
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
