//! A path between two hosts that becomes narrow while guests use it. "Ping works, ssh hangs" must not
//! happen.

use super::ping::assert_all_answered;
use super::support::guest::{Guest, Running};
use super::support::netns::Family;
use super::support::routed::Routed;
use super::support::vnet::{Listener, Vif};
use super::support::{can_boot_guests, step, take_turn, wait_until};
use super::{Machine, Site, newest_qemu, some_bytes, transfer};

use std::time::Duration;

const G1: Vif = Vif { vnet: 42, mac: 1 };
const G2: Vif = Vif { vnet: 42, mac: 2 };
/// What has arrived in each direction, at least, before the path becomes narrow, in bytes.
const BEFORE: u64 = 512 << 10;
/// What is sent in each direction afterwards, in bytes.
const AFTER: u32 = 4 << 20;
/// MTU of the narrow path.
const NARROW: u32 = 1280;
/// Long pings each way.
const PINGS: u64 = 20;
/// How often a guest was told that something did not arrive (InDestUnreachs).
const TOLD: &str = "awk '$1 == \"Icmp:\" { told = $5 } END { print told }' /proc/net/snmp";

/// A guest that was told 8950 (by its backend), and one that was not and believes in 1500.
#[test]
fn guests_on_a_path_that_shrinks_from_9000() {
    path_shrinks(Family::V4, 9000, 8950);
}

#[test]
fn guests_on_an_ipv6_path_that_shrinks_from_1500() {
    path_shrinks(Family::V6, 1500, 1430);
}

fn path_shrinks(family: Family, mtu: u32, guest_mtu: u32) {
    let what = format!("guests on a path that shrinks from {mtu}, {family:?}");
    if !can_boot_guests(&what) {
        return;
    }
    let _turn = take_turn();
    step(&what);
    let mut site = Site::with_mtu(2, family, mtu);
    let routed = Routed::between(&site.underlay, mtu);
    site.guest_mtu = Some(guest_mtu);
    let mut m1 = site.start_light("g1", 0, G1);
    site.guest_mtu = None;
    let mut m2 = site.start("g2", 1, G2, Listener::Backend, newest_qemu());
    m1.bring_up("10.0.0.1/24");
    m2.bring_up("10.0.0.2/24");
    for (machine, mtu) in [(&mut m1, guest_mtu), (&mut m2, 1500)] {
        assert_eq!(machine.guest.number("cat /sys/class/net/eth0/mtu"), u64::from(mtu));
    }

    step(&format!("TCP in both directions, on {mtu}"));
    transfer(&mut m1.guest, &mut m2.guest, "10.0.0.2", 4);
    transfer(&mut m2.guest, &mut m1.guest, "10.0.0.1", 4);

    step("both at the same time, and the path becomes narrow");
    let back = Transfer::start(&mut m2.guest, &mut m1.guest, "10.0.0.1");
    let forth = Transfer::start(&mut m1.guest, &mut m2.guest, "10.0.0.2");
    routed.narrow(NARROW);
    let back = back.end_soon(&mut m2.guest, &mut m1.guest);
    let forth = forth.end_soon(&mut m1.guest, &mut m2.guest);
    back.finish(&mut m2.guest, &mut m1.guest);
    forth.finish(&mut m1.guest, &mut m2.guest);
    transfer(&mut m1.guest, &mut m2.guest, "10.0.0.2", 4);
    transfer(&mut m2.guest, &mut m1.guest, "10.0.0.1", 4);

    step("long datagrams");
    for (machine, to, size) in [(&mut m1, "10.0.0.2", 1390), (&mut m2, "10.0.0.1", 1390)] {
        // Those before the guest has learnt what fits are lost, but for one that the backend uses to ask
        // whether the path is still narrow (tunnel::paths): it arrives in pieces, and nobody is told.
        machine.guest.run(&format!(
            "until [ $({TOLD}) -gt 0 ]; do ping -q -c 1 -W 1 -s {size} {to}; usleep 50000; done"
        ));
        assert_all_answered(&mut machine.guest, PINGS, &format!("-i 0.05 -s {size} {to}"));
    }
    step("the path grows again");
    routed.widen(&site.underlay, mtu);
    transfer(&mut m1.guest, &mut m2.guest, "10.0.0.2", 4);
    transfer(&mut m2.guest, &mut m1.guest, "10.0.0.1", 4);
    assert!(routed.told(family) > 0, "the routers had something to say");
    assert_eq!(routed.ip_fragments(&site.underlay), 0, "nothing was ever fragmented by IP");
    for Machine { guest, .. } in [&mut m1, &mut m2] {
        guest.assert_not_rebooted();
        guest.assert_no_complaints();
    }
}

fn received(guest: &mut Guest) -> u64 {
    guest.number("cat /sys/class/net/eth0/statistics/rx_bytes")
}

/// A TCP transfer that is well under way, and goes on until [`Transfer::end_soon`].
struct Transfer(Running);

/// A TCP transfer of which [`AFTER`] bytes are left to send.
struct Ending {
    running: Running,
    /// Bytes that the receiver's interface had received before these.
    received: u64,
}

impl Transfer {
    fn start(from: &mut Guest, to: &mut Guest, address: &str) -> Self {
        // The receiver sends back the checksum of what it has got, the sender makes one on the way.
        to.run("nc -l -p 5001 -e sha256sum </dev/null >/dev/null 2>&1 &");
        to.run("until netstat -ltn | grep -q :5001; do usleep 10000; done");
        from.run("mkfifo /tmp/copy");
        let begin = received(to);
        let rest = some_bytes(AFTER);
        let running = from.spawn(&format!(
            "sha256sum </tmp/copy >/tmp/sum & \
             {{ until [ -e /tmp/rest ]; do head -c 262144 /bin/busybox; done; {rest}; }} | \
             tee /tmp/copy | nc {address} 5001; wait; cat /tmp/sum"
        ));
        wait_until("it is well under way", Duration::from_secs(60), || {
            received(to) > begin + BEFORE
        });
        Self(running)
    }

    /// Has [`AFTER`] more bytes sent, and then no more.
    fn end_soon(self, from: &mut Guest, to: &mut Guest) -> Ending {
        let received = received(to);
        from.run("touch /tmp/rest");
        Ending { running: self.0, received }
    }
}

impl Ending {
    fn finish(self, from: &mut Guest, to: &mut Guest) {
        let (status, output) = from.wait(self.running);
        let sums: Vec<&str> = output.lines().collect();
        assert!(status == 0 && sums.len() == 2 && sums[0] == sums[1], "{status}: {output}");
        let rest = received(to) - self.received;
        step(&format!("  {rest} bytes have arrived since"));
        assert!(rest > u64::from(AFTER), "in mid-flow");
    }
}
