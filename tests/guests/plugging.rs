//! Memory is plugged into running guests, DIMM by DIMM, each another region for the backends.

use std::time::Duration;

use serde_json::json;

use super::ping::{Pings, assert_all_answered};
use super::support::guest::{Guest, Nic, Qemu};
use super::support::netns::Family;
use super::support::vnet::{Backend, Listener, Vif};
use super::support::{can_boot_guests, step, take_turn, wait_until};
use super::{Machine, Site, newest_qemu, transfer};

/// With what a guest has from the start, more than the eight regions that QEMU takes a backend to
/// have room for which doesn't say.
const DIMMS: u32 = 10;
/// The least that a guest's kernel takes.
const DIMM_MIB: u64 = 128;

fn start(site: &Site, number: u8, qemu: Qemu, listener: Listener) -> Machine {
    let name = format!("g{number}");
    let vif = Vif { vnet: 42, mac: number };
    let varpd = &site.varpds[usize::from(number) - 1];
    let pairs = ["--queue-pairs", &number.to_string()];
    let backend = Backend::start_with(&name, vif, listener, varpd, &pairs);
    // For each queue pair QEMU tells of all memory anew.
    let nic = Nic { backend: &backend, mtu: Some(1450), options: "", queue_pairs: number };
    let guest = Guest::start_with_slots(&name, qemu, &[nic], DIMMS, site.path());
    Machine { guest, backend, name, qemu }
}

/// Plugs a DIMM into a guest.
fn plug(guest: &Guest, number: u32) {
    let mut monitor = guest.monitor();
    let (memory, device) = (format!("m{number}"), format!("d{number}"));
    let size = DIMM_MIB << 20;
    let backend =
        json!({ "qom-type": "memory-backend-memfd", "id": memory, "size": size, "share": true });
    monitor.execute("object-add", backend);
    let dimm = json!({ "driver": "pc-dimm", "id": device, "memdev": memory });
    monitor.execute("device_add", dimm);
}

/// What the guest's kernel has, in MiB.
fn memory(guest: &mut Guest) -> u64 {
    guest.number("awk '$1 == \"MemTotal:\" { print int($2 / 1024) }' /proc/meminfo")
}

#[test]
fn memory_is_plugged_into_running_guests() {
    if !can_boot_guests("memory that is plugged into guests") {
        return;
    }
    let _turn = take_turn();
    let site = Site::new(2, Family::V4);
    let mut machines = [
        start(&site, 1, newest_qemu(), Listener::Qemu),
        start(&site, 2, Qemu::Installed, Listener::Backend),
    ];
    for (machine, address) in machines.iter_mut().zip(["10.0.0.1/24", "10.0.0.2/24"]) {
        machine.bring_up(address);
        machine.guest.run("echo online >/sys/devices/system/memory/auto_online_blocks");
    }
    let [m1, m2] = &mut machines;
    assert_all_answered(&mut m1.guest, 1, "10.0.0.2");

    step(&format!("{DIMMS} DIMMs are plugged into each guest during 500 pings"));
    let before = [memory(&mut m1.guest), memory(&mut m2.guest)];
    let pings = Pings::start(&mut m1.guest, 500, "-i 0.01 10.0.0.2");
    for number in 0..DIMMS {
        plug(&m1.guest, number);
        plug(&m2.guest, number);
    }
    pings.assert_all_answered(&mut m1.guest);
    for (machine, before) in [&mut *m1, &mut *m2].into_iter().zip(before) {
        let plugged = before + u64::from(DIMMS) * DIMM_MIB;
        wait_until("the guest has it", Duration::from_secs(20), || {
            memory(&mut machine.guest) >= plugged
        });
    }

    // The kernel prefers the memory that is above 4 GiB: what is sent and received is there now.
    transfer(&mut m1.guest, &mut m2.guest, "10.0.0.2", 4);
    transfer(&mut m2.guest, &mut m1.guest, "10.0.0.1", 4);

    step("a backend that is started again is told of all of it");
    m1.backend.process.kill();
    m1.backend.start_again();
    let answers = |guest: &mut Guest| guest.try_run("ping -c 1 -W 1 10.0.0.2").0 == 0;
    wait_until("g1 reaches g2", Duration::from_secs(10), || answers(&mut m1.guest));
    transfer(&mut m2.guest, &mut m1.guest, "10.0.0.1", 4);
    for machine in &mut machines {
        machine.guest.assert_not_rebooted();
    }
}
