//! The launch lines of the documentation, as they stand in `qemu-examples`.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::ping::assert_all_answered;
use super::support::guest::{Guest, Nic, Qemu};
use super::support::netns::Family;
use super::support::process::Process;
use super::support::vnet::{Backend, Listener, Vif, programs};
use super::support::{ROOT, can_boot_guests, step, take_turn, wait_until};
use super::{Site, newest_qemu, transfer};

/// Runs an example; `varpd` is its host's.
fn start_example(name: &str, qemu: Qemu, site: &Site, host: usize) -> Guest {
    let sockets = site.path().join(name);
    std::fs::create_dir(&sockets).expect("a directory for the example's sockets");
    let path = std::env::var("PATH").expect("a PATH");
    let mut command = Command::new(Path::new(ROOT).join("qemu-examples").join(name));
    command
        .env("PATH", format!("{}:{path}", programs().display()))
        .env("VARPD", &site.varpds[host].socket)
        .env("QEMU", qemu.program())
        .env("DIR", sockets);
    Guest::start_command(name, &mut command, site.path())
}

#[test]
fn examples() {
    if !can_boot_guests("the examples") {
        return;
    }
    let _turn = take_turn();
    let site = Site::new(2, Family::V4);
    let mut hub = start_example("two-nics", Qemu::Installed, &site, 0);
    let names = ["server-mode", "client-mode", "fd", "multiqueue"];
    let mut guests = names.map(|name| {
        let qemu = if name == "client-mode" { newest_qemu() } else { Qemu::Installed };
        start_example(name, qemu, &site, 1)
    });

    hub.wait_boot();
    hub.configure("eth0", "10.42.0.100/24");
    hub.configure("eth1", "10.43.0.100/24");
    for (number, guest) in guests.iter_mut().enumerate() {
        step(names[number]);
        guest.wait_boot();
        let address = format!("10.42.0.{}", number + 1);
        guest.configure("eth0", &format!("{address}/24"));
        assert_all_answered(&mut hub, 50, &format!("-i 0.01 {address}"));
        transfer(&mut hub, guest, &address, 2);
    }

    step("multiqueue: both queue pairs exist");
    let [server, _, _, multiqueue] = &mut guests;
    assert_eq!(multiqueue.number("ls -d /sys/class/net/eth0/queues/rx-* | wc -l"), 2);
    for _ in 0..4 {
        // Connections are spread over the queue pairs by their ports.
        transfer(multiqueue, server, "10.42.0.1", 1);
    }

    step("two NICs: the second is on vnet 43, where nobody else is");
    let (status, output) = hub.try_run("ping -q -c 3 -i 0.1 -W 1 -I eth1 10.42.0.1");
    assert_ne!(status, 0, "{output}");
    let vifs = site.varpds[0].show("vifs");
    let vnet_of = |vif: &serde_json::Value| vif["vnet"].as_u64();
    let mut vnets: Vec<_> = vifs.as_array().expect("an array").iter().map(vnet_of).collect();
    vnets.sort_unstable();
    assert_eq!(vnets, [Some(42), Some(43)]);
}

/// The example of a migration says itself when it is done.
#[test]
fn the_example_of_a_migration() {
    if !can_boot_guests("the example of a migration") {
        return;
    }
    let _turn = take_turn();
    let site = Site::new(1, Family::V4);
    let path = std::env::var("PATH").expect("a PATH");
    let mut command = Command::new(Path::new(ROOT).join("qemu-examples/migrate"));
    command
        .env("PATH", format!("{}:{path}", programs().display()))
        .env("VARPD", &site.varpds[0].socket)
        .env("QEMU", newest_qemu().program())
        .env("DIR", site.path());
    let mut example = Process::start("migrate", site.path(), &mut command);
    wait_until("the guest has migrated", Duration::from_secs(90), || {
        example.assert_running();
        example.log().contains("the guest runs in the second QEMU now")
    });
    let log = example.log();
    assert!(log.contains("\ndowntime: "), "{log}");
    wait_until("its vif is where it runs", Duration::from_secs(10), || {
        let vifs = site.varpds[0].show("vifs");
        let states = vifs.as_array().expect("an array").iter().map(|vif| vif["state"].as_str());
        states.collect::<Vec<_>>() == [Some("registered"), Some("active")]
    });
}

/// The most common mistake: QEMU is started without shared memory. QEMU then says so, or, if it
/// says nothing to the backend about memory, the backend does; and not once for each attempt.
#[test]
fn guest_memory_that_is_not_shared() {
    if !can_boot_guests("guest memory that is not shared") {
        return;
    }
    let _turn = take_turn();
    let site = Site::new(1, Family::V4);
    let file = format!("memory-backend-file,id=mem,size=128M,mem-path={}", site.path().display());
    let private = Some("memory-backend-memfd,id=mem,size=128M,share=off");
    let kinds = [
        ("none", Qemu::Installed, 1, None),
        ("none-newest", newest_qemu(), 2, None),
        ("file", Qemu::Installed, 3, Some(&*file)),
        ("private", newest_qemu(), 4, private),
    ];
    let mut pairs = kinds.map(|(name, qemu, mac, object)| {
        step(&format!("{name}: {}", qemu.program()));
        let vif = Vif { vnet: 42, mac };
        let backend = Backend::start(name, vif, Listener::Backend, &site.varpds[0]);
        let nics = [Nic { backend: &backend, mtu: Some(1450), options: "", queue_pairs: 1 }];
        let guest = Guest::start_unshared(name, qemu, &nics, object, site.path());
        (guest, backend)
    });
    let said = |guest: &Guest, backend: &Backend| {
        let logs = guest.process.log() + &backend.process.log();
        logs.lines().filter(|line| line.contains("share=on")).count()
    };
    let waits = pairs.each_mut().map(|(guest, backend)| {
        guest.wait_boot();
        guest.run("ip link set eth0 up");
        wait_until("someone says what is wrong", Duration::from_secs(10), || {
            said(guest, backend) > 0
        });
        // QEMU would try again each second.
        guest.spawn("sleep 5")
    });
    for ((guest, backend), wait) in pairs.iter_mut().zip(waits) {
        assert_eq!(guest.wait(wait).0, 0, "it waits");
        assert!(said(guest, backend) <= 3, "said {} times", said(guest, backend));
        backend.process.assert_running();
    }
}

/// QEMU takes the number of rings that a backend serves for one of queue pairs.
#[test]
fn more_queues_than_are_served_are_refused_and_said() {
    if !can_boot_guests("more queues than are served") {
        return;
    }
    let _turn = take_turn();
    let site = Site::new(1, Family::V4);
    for (name, qemu, mac) in [("installed", Qemu::Installed, 1), ("newest", newest_qemu(), 2)] {
        let vif = Vif { vnet: 42, mac };
        let mut backend = Backend::start(name, vif, Listener::Backend, &site.varpds[0]);
        let nics = [Nic { backend: &backend, mtu: Some(1450), options: "", queue_pairs: 2 }];
        let guest = Guest::start(name, qemu, &nics, site.path());
        let what = "give QEMU no more than queues=1";
        wait_until("the backend says what to do", Duration::from_secs(30), || {
            backend.process.log().contains(what)
        });
        wait_until("so does QEMU", Duration::from_secs(30), || {
            guest.process.log().contains("qemu-system-x86_64: ")
        });
        step(&format!("{}: {}", qemu.program(), guest.process.log().trim()));
        backend.process.assert_running();
    }
}
