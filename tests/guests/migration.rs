//! Guests that migrate from host to host while they run, and what their peer notices of it.
//!
//! ```text
//!     station            guest  <------------>  guest          10.0.0.100, 10.0.0.1 on vnet 42
//!        |                 |                      |            virtio-net, vhost-user
//!     backend           backend                backend         both there all the time
//!        |                 |                      |
//!      host c            host a                 host b
//!        +------------- underlay -----------------+            see support/netns.rs
//! ```
//!
//! Figures are told apart:
//!
//! * the guest's own pause, from the STOP event of the QEMU that it leaves to the RESUME event of the one
//!   that it comes to;
//! * the network's delay, from then until the first of the station's frames for it, which leave each
//!   2 ms, arrives at its new host;
//! * from RESUME until the station, which pings each 10 ms, gets the first answer, and the longest time
//!   in which it gets none. These include what the guest takes to come to life: an emulated one has all
//!   its code translated anew.
//!
//! All with the newer QEMU: 7.2 loses some of what an emulated guest writes while its memory is copied if
//! the machine is busy, also of a guest on a tap and the kernel's bridge, whose kernel then crashes.
//!
//! Times come from the kernel's stamps on packets and from QEMU's events, not from when a thread of the
//! test noticed; threads that send at set times go before all others (SCHED_FIFO).

mod figures;
mod kernel;
mod many;
mod network;
mod stage;

use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::json;

use super::station::Part;
use super::support::guest::Guest;
use super::support::netns::Family;
use super::support::vnet::{Listener, Vif};
use super::support::{can_boot_guests, step, take_turn, wait_until};
use super::{Site, some_bytes};
use figures::report;
use network::{Kind, Vnet};
use stage::{CRAWL, Stage};

const GUEST: Vif = Vif { vnet: 42, mac: 1 };
const STATION: Vif = Vif { vnet: 42, mac: 100 };
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const PART: Part = Part { vif: STATION, address: "10.0.0.100/24", to: GUEST };
/// Host of the station; the guest migrates between the two others.
const STATION_HOST: usize = 2;

/// Time that a migration may take.
const LIMIT: Duration = Duration::from_secs(60);
/// Length of the file that a guest receives while it migrates, in bytes.
const RECEIVED_LEN: u64 = 6_000_000;

/// What the underlay loses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    None,
    Tenth,
}

/// The hosts.
fn hosts(loss: Loss) -> Site {
    let site = Site::new(3, Family::V4);
    if loss == Loss::Tenth {
        site.underlay.lose_a_tenth();
    }
    site
}

/// Guest memory that is written to all the time, 4 MiB of it, and a file whose content is known.
fn keep_busy(guest: &mut Guest) -> String {
    guest.run(&format!("{} >/tmp/known", some_bytes(6_000_000)));
    guest.run(
        "(while :; do head -c 4000000 /tmp/known >/tmp/busy; usleep 200000; done) \
         </dev/null >/dev/null 2>&1 &",
    );
    guest.run("sha256sum </tmp/known")
}

#[test]
fn a_guest_goes_there_and_back() {
    if !can_boot_guests("a guest that goes there and back") {
        return;
    }
    let _turn = take_turn();
    let site = hosts(Loss::None);
    let mut stage = Stage::new(Vnet::new(&site, Kind::plain()));
    let known = keep_busy(&mut stage.guest);
    let pings = stage.pings();
    let echo = stage.echo();

    step("three migrations, while the guest receives a file");
    let file = stage.send_file(RECEIVED_LEN);
    let figures = [(); 3].map(|()| stage.migrate(&pings));
    report("there and back", &figures);
    file.finish();
    stage.assert_received(RECEIVED_LEN);

    step("a migration that is cancelled half way");
    let (there, _) = stage.expect_guest();
    stage.depart(&there, CRAWL);
    stage.wait_transferred(4 << 20);
    stage.monitor.execute("migrate_cancel", json!({}));
    stage.wait_progress("cancelled");
    stage.assert_answers(&pings);
    drop(there);

    step("a migration whose destination dies half way");
    let (mut there, _) = stage.expect_guest();
    stage.depart(&there, CRAWL);
    stage.wait_transferred(4 << 20);
    there.process.kill();
    stage.wait_progress("failed");
    stage.assert_answers(&pings);
    drop(there);

    step("a migration after those");
    report("after two that failed", &[stage.migrate(&pings)]);
    assert_eq!(stage.guest.run("sha256sum </tmp/known"), known, "what the guest knew");
    let bytes = echo.finish();
    step(&format!("  {bytes} bytes went there and back; {} pings were lost", pings.lost()));
    drop(pings);
    stage.assert_unharmed();
}

/// A guest that does not announce itself: QEMU tells the backend to.
#[test]
fn a_guest_that_does_not_announce_itself() {
    if !can_boot_guests("a guest that does not announce itself") {
        return;
    }
    let _turn = take_turn();
    let kind = Kind { options: ",guest_announce=off", ..Kind::plain() };
    let site = hosts(Loss::None);
    let mut stage = Stage::new(Vnet::new(&site, kind));
    let pings = stage.pings();
    let echo = stage.echo();
    let before = stage.station.rarps();
    let figures = [(); 2].map(|()| stage.migrate(&pings));
    report("without GUEST_ANNOUNCE", &figures);
    // QEMU's last SEND_RARP falls into the series that the arrival began.
    wait_until("each arrival is announced in the vnet", LIMIT, || {
        stage.station.rarps() - before >= 6
    });
    echo.finish();
    drop(pings);
    stage.assert_unharmed();
}

/// QEMU says everything once for each pair. The backends connect to it.
#[test]
fn a_guest_with_two_queue_pairs() {
    if !can_boot_guests("a guest with two queue pairs") {
        return;
    }
    let _turn = take_turn();
    let kind = Kind { queue_pairs: 2, listener: Listener::Qemu, ..Kind::plain() };
    let site = hosts(Loss::None);
    let mut stage = Stage::new(Vnet::new(&site, kind));
    assert_eq!(stage.guest.number("ls -d /sys/class/net/eth0/queues/rx-* | wc -l"), 2);
    let pings = stage.pings();
    // Connections are spread over the pairs by their ports.
    let echoes = [(); 4].map(|()| stage.echo());
    let figures = [(); 2].map(|()| stage.migrate(&pings));
    report("two queue pairs", &figures);
    for echo in echoes {
        echo.finish();
    }
    drop(pings);
    stage.assert_unharmed();
}
