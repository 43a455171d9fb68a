//! A guest that migrates: its rings stop on one host and start on another.
//!
//! ```text
//!     guest 1            guest 2  ----------->  guest 2
//!         |                 |                      |
//!       host a            host b                 host c
//! ```

use std::time::Duration;

use vnet::metrics::VifCounter;
use vnet::sys::clock;

use crate::driver::{Control, Driver};
use crate::nic::{Nic, mac, vif};
use crate::support::step;
use crate::support::vnet::{Backend, Listener};
use crate::{Net, SOON};

/// Traffic has to follow within this time.
const LIMIT: Duration = Duration::from_secs(1);
/// Between two frames of the stream.
const INTERVAL: Duration = Duration::from_millis(1);
/// As many as are followed at once: a vif that moves more often within minutes is damped.
const MOVES: u32 = 4;

/// The backend of guest 2 on the other host waits, connected, as QEMU's does during the migration.
fn prepare(name: &str, net: &Net, host: usize) -> Nic {
    let guest = vif(42, 2);
    let backend = Backend::start(name, guest, Listener::Backend, &net.varpds[host]);
    let control = Control::connect(&backend.socket).unwrap();
    let mut driver = Driver::new(control, Nic::options());
    driver.negotiate().unwrap();
    Nic { driver, backend, vif: guest }
}

#[test]
fn traffic_follows_a_guest_that_moves() {
    let Some(net) = Net::new("a guest that moves between hosts", 3) else { return };
    let mut one = Nic::start("g1", vif(42, 1), &net.varpds[0]);
    let mut here = Nic::start("g2-0", vif(42, 2), &net.varpds[1]);
    let mut number = 0;
    let mut longest = Duration::ZERO;
    let mut lost = 0;
    for n in 1..=MOVES {
        let host = 1 + n as usize % 2;
        let mut there = prepare(&format!("g2-{n}"), &net, host);
        let mut last = 0;
        for _ in 0..50 {
            one.send(mac(2), number);
            last = here.receive(mac(1));
            assert_eq!(last, number);
            number += 1;
        }
        let begin = clock::mono();
        here.driver.stop_ring(0).unwrap();
        here.driver.stop_ring(1).unwrap();
        there.driver.start().unwrap();
        let first = loop {
            one.send(mac(2), number);
            number += 1;
            if let Some(first) = there.try_receive(mac(1), INTERVAL) {
                break first;
            }
            assert!(clock::mono() - begin < SOON, "traffic follows");
        };
        let gap = clock::mono() - begin;
        assert!(gap < LIMIT, "traffic followed only after {gap:?}");
        longest = longest.max(gap);
        lost += first - last - 1;
        // All that come now come here, in order.
        for n in first + 1..number {
            assert_eq!(there.receive(mac(1)), n);
        }
        // And the other way.
        there.send(mac(1), n);
        assert_eq!(one.receive(mac(2)), n);
        here = there;
    }
    assert_eq!(one.counters(&net.varpds[0]).sum("tx_drop_"), 0);
    assert_eq!(one.counters(&net.varpds[0]).get(VifCounter::tx_frames), u64::from(number));
    step(&format!("{MOVES} moves: unreached for at most {longest:?}, {lost} frames lost"));
}
