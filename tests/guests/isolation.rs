//! Vnets do not hear each other, not even where MAC and IP addresses are the same.

use super::ping::{Pings, assert_all_answered};
use super::support::guest::{Guest, Qemu};
use super::support::netns::Family;
use super::support::vnet::{Listener, Vif};
use super::support::{can_boot_guests, step, take_turn};
use super::{Machine, Site, transfer};

const fn vif(vnet: u32, mac: u8) -> Vif {
    Vif { vnet, mac }
}

/// Each guest on vnet 43 has the MAC and the IP address of one on vnet 42, which is on the same host
/// (g1) or on the other (g2, g3). One of each vnet is under QEMU (Q), the others under User-Mode Linux.
///
/// ```text
///                 host a          host b
///     vnet 42     g1 g3           g2 (Q)
///     vnet 43     h1 h2 (Q)       h3
/// ```
#[test]
fn vnets_with_the_same_addresses() {
    if !can_boot_guests("vnets with the same addresses") {
        return;
    }
    let _turn = take_turn();
    let site = Site::new(2, Family::V4);
    let start = |(name, host, vif)| -> Machine {
        match name {
            "g2" | "h2" => site.start(name, host, vif, Listener::Backend, Qemu::Installed),
            _ => site.start_light(name, host, vif),
        }
    };
    let plan = [
        ("g1", 0, vif(42, 1)),
        ("g2", 1, vif(42, 2)),
        ("g3", 0, vif(42, 3)),
        ("h1", 0, vif(43, 1)),
        ("h2", 0, vif(43, 2)),
        ("h3", 1, vif(43, 3)),
    ];
    let [mut g1, mut g2, mut g3, mut h1, mut h2, mut h3] = plan.map(start);
    for machine in [&mut g1, &mut g2, &mut g3, &mut h1, &mut h2, &mut h3] {
        let address = format!("10.0.0.{}/24", machine.backend.vif.mac);
        machine.guest.wait_boot();
        // The kernel speaks IPv6 by itself now and then, which would blur what is counted here.
        machine.guest.run("echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6");
        machine.guest.configure("eth0", &address);
        // Who answers on a connection says its name.
        let name = &machine.name;
        machine.guest.run(&format!("nc -ll -p 6000 -e echo {name} </dev/null >/dev/null 2>&1 &"));
        machine.guest.run("until netstat -ltn | grep -q :6000; do usleep 10000; done");
    }

    step("only vnet 42 speaks; vnet 43 hears nothing");
    let quiet = settled([&mut h1.guest, &mut h2.guest, &mut h3.guest]);
    reach(&mut g1.guest, "10.0.0.2", "g2");
    reach(&mut g1.guest, "10.0.0.3", "g3");
    reach(&mut g2.guest, "10.0.0.3", "g3");
    transfer(&mut g1.guest, &mut g2.guest, "10.0.0.2", 4);
    transfer(&mut g1.guest, &mut g3.guest, "10.0.0.3", 4);
    // Broadcast: nobody has this address.
    let (status, _) = g1.guest.try_run("ping -q -c 2 -W 1 10.0.0.99");
    assert_ne!(status, 0, "nobody has this address");
    let after = [&mut h1, &mut h2, &mut h3].map(|machine| machine.guest.frames_received("eth0"));
    assert_eq!(after, quiet, "frames received by h1, h2, h3");

    step("only vnet 43 speaks; vnet 42 hears nothing");
    let quiet = settled([&mut g1.guest, &mut g2.guest, &mut g3.guest]);
    reach(&mut h1.guest, "10.0.0.2", "h2");
    reach(&mut h1.guest, "10.0.0.3", "h3");
    reach(&mut h2.guest, "10.0.0.3", "h3");
    let (status, _) = h1.guest.try_run("ping -q -c 2 -W 1 10.0.0.99");
    assert_ne!(status, 0, "nobody has this address");
    let after = [&mut g1, &mut g2, &mut g3].map(|machine| machine.guest.frames_received("eth0"));
    assert_eq!(after, quiet, "frames received by g1, g2, g3");

    step("both speak at the same time; each hears its own");
    let [in_42, in_43] =
        [&mut g1.guest, &mut h1.guest].map(|guest| Pings::start(guest, 300, "-i 0.01 10.0.0.2"));
    in_42.assert_all_answered(&mut g1.guest);
    in_43.assert_all_answered(&mut h1.guest);
    reach(&mut g1.guest, "10.0.0.2", "g2");
    reach(&mut h1.guest, "10.0.0.2", "h2");
}

/// Pings the address, and asks who it is.
fn reach(guest: &mut Guest, address: &str, name: &str) {
    assert_all_answered(guest, 50, &format!("-i 0.01 {address}"));
    assert_eq!(guest.run(&format!("nc {address} 6000 </dev/null")).trim(), name);
}

/// Frames that guests have received, when none of them has received any for a second.
fn settled(mut guests: [&mut Guest; 3]) -> [u64; 3] {
    for guest in &mut guests {
        // Else the kernel confirms them some seconds after they were used.
        guest.run("ip neigh flush dev eth0");
    }
    let mut last = guests.each_mut().map(|guest| guest.frames_received("eth0"));
    loop {
        let seconds = guests.each_mut().map(|guest| guest.spawn("sleep 1"));
        for (guest, second) in guests.iter_mut().zip(seconds) {
            assert_eq!(guest.wait(second).0, 0, "it waits");
        }
        let now = guests.each_mut().map(|guest| guest.frames_received("eth0"));
        if now == last {
            return now;
        }
        last = now;
    }
}
