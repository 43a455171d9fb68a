//! Guests under User-Mode Linux: Linux as a program, with a vhost-user frontend that has nothing in
//! common with QEMU's (virtio_uml), and that passes on to its driver all that the backend offers.
//!
//! ```text
//!     u1, on host a      u2, on host b      g3, under QEMU, on host b
//!       |                  |                  |
//!     backend            backend            backend
//! ```

use std::path::{Path, PathBuf};
use std::process::Command;

use vnet::sys::clock;

use super::ping::assert_all_answered;
use super::support::guest::{Guest, Qemu};
use super::support::netns::Family;
use super::support::vnet::{Backend, Listener, Vif};
use super::support::{ROOT, can_boot_guests, skip, step, take_turn};
use super::{Site, elapsed, transfer};

/// What is sent to see how fast it goes, in MiB.
const BULK: u32 = 16;

#[test]
fn user_mode_linux() {
    if !can_boot_guests("guests under User-Mode Linux") {
        return;
    }
    let made = match uml_guest() {
        Ok(made) => made,
        Err(why) => return skip("guests under User-Mode Linux", &why),
    };
    let _turn = take_turn();
    let site = Site::new(2, Family::V4);
    let start = |n: u8, host: usize| {
        let vif = Vif { vnet: 42, mac: n };
        let name = format!("u{n}");
        let backend = Backend::start(&name, vif, Listener::Backend, &site.varpds[host]);
        let guest = Guest::start_uml(&name, &made, &backend.socket, site.path());
        (guest, backend)
    };
    let [(mut one, one_backend), (mut two, _two_backend)] = [start(1, 0), start(2, 1)];
    let mut three =
        site.start("g3", 1, Vif { vnet: 42, mac: 3 }, Listener::Backend, Qemu::Installed);

    step("the backend tells them their MAC and MTU");
    for (guest, n) in [(&mut one, 1), (&mut two, 2)] {
        guest.wait_boot();
        let mac = guest.run("cat /sys/class/net/eth0/address");
        assert_eq!(mac.trim(), Vif { vnet: 42, mac: n }.mac());
        assert_eq!(guest.number("cat /sys/class/net/eth0/mtu"), 1450);
        guest.configure("eth0", &format!("10.0.0.{n}/24"));
    }
    three.bring_up("10.0.0.3/24");
    assert_all_answered(&mut one, 50, "-i 0.01 10.0.0.2");
    assert_all_answered(&mut two, 50, "-i 0.01 10.0.0.3");
    transfer(&mut one, &mut two, "10.0.0.2", 4);
    transfer(&mut two, &mut three.guest, "10.0.0.3", 4);
    bulk(&mut one, &mut two, "10.0.0.2");

    step("their driver is loaded again");
    one.run("rmmod virtio_net && insmod /lib/modules/virtio_net.ko");
    one.configure("eth0", "10.0.0.1/24");
    assert_all_answered(&mut one, 50, "-i 0.01 10.0.0.2");
    transfer(&mut two, &mut one, "10.0.0.1", 4);
    let log = one_backend.process.log();
    assert!(!log.contains("ring is stopped") && !log.contains("is ended"), "{log}");
}

/// Says how fast a stream is between two real TCP stacks.
fn bulk(from: &mut Guest, to: &mut Guest, address: &str) {
    to.run("nc -l -p 5001 -e wc -c </dev/null >/dev/null 2>&1 &");
    to.run("until netstat -ltn | grep -q :5001; do usleep 10000; done");
    let begin = clock::mono();
    let arrived = from.run(&format!("head -c {} /dev/zero | nc {address} 5001", BULK << 20));
    assert_eq!(arrived.trim(), (BULK << 20).to_string());
    let seconds = elapsed(begin).as_secs_f64();
    let rate = f64::from(BULK << 20) * 8.0 / seconds / 1e9;
    step(&format!("  TCP between two guests under User-Mode Linux: {rate:.2} Gbit/s"));
}

/// What tests/uml-guest makes, or why it can't.
pub(super) fn uml_guest() -> Result<PathBuf, String> {
    let output = Command::new(Path::new(ROOT).join("tests/uml-guest")).output().expect("a script");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        Ok(PathBuf::from(text(&output.stdout)))
    } else {
        Err(text(&output.stderr))
    }
}
