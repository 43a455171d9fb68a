//! A guest that is a bridge migrates: all that is behind it comes along, also what says nothing.
//!
//! ```text
//!   user 0        bridge, user 1  ----->  bridge, user 2
//!     |              |      |                |      |
//!   host a         host b --+              host c --+
//! ```

use std::time::Duration;

use vnet::sys::clock;

use crate::driver::{Control, Driver};
use crate::idle::hurry;
use crate::nic::{BROADCAST, LEN, Nic, frame, mac, number, vif};
use crate::support::netns::Family;
use crate::support::step;
use crate::support::vnet::{Backend, Listener, Varpd};
use crate::{Net, SOON};

/// The last octets of the MAC addresses behind the bridge.
const BEHIND: std::ops::RangeInclusive<u8> = 101..=150;
/// The bridge's own.
const BRIDGE: u8 = 2;
const LEARN: [&str; 1] = ["--learn=50"];
/// Mappings are to be confirmed some times while the test runs, but not to end between two frames.
const LIFETIME: &str = "[timers]\nlifetime = 6\n";
/// All are to be reached within this time after the bridge runs again.
const LIMIT: Duration = Duration::from_secs(1);
/// Between two frames to somebody who was not reached.
const INTERVAL: Duration = Duration::from_millis(5);

/// The bridge's backend on the other host waits, connected, as QEMU's does during the migration.
fn prepare(net: &Net) -> Nic {
    let guest = vif(42, BRIDGE);
    let backend =
        Backend::start_with("bridge-there", guest, Listener::Backend, &net.varpds[2], &LEARN);
    let mut driver = Driver::new(Control::connect(&backend.socket).unwrap(), Nic::options());
    driver.negotiate().unwrap();
    hurry(backend.process.pid());
    Nic { driver, backend, vif: guest }
}

/// The sum of a counter of varpd.
fn counter(varpd: &Varpd, name: &str) -> u64 {
    let rows = varpd.show("stats");
    let row = rows.as_array().unwrap().iter().find(|row| row["counter"] == name);
    row.unwrap()["value"].as_u64().unwrap()
}

/// The destination, sender and number of the next frame of a user that the bridge gets.
fn next(bridge: &mut Nic, timeout: Duration) -> Option<([u8; 6], [u8; 6], u32)> {
    let frame = bridge.next_frame(timeout)?;
    let [to, from] = [0, 6].map(|at| frame[at..at + 6].try_into().unwrap());
    Some((to, from, number(&frame, from)))
}

/// Whether the bridge gets this before it gets nothing for a while.
fn gets(bridge: &mut Nic, wanted: ([u8; 6], [u8; 6], u32)) -> bool {
    std::iter::from_fn(|| next(bridge, INTERVAL)).any(|got| got == wanted)
}

/// Each user sends to all that are behind the bridge, again to those that are not reached.
fn reach_all(users: &mut [Nic], bridge: &mut Nic, numbers: &mut std::ops::RangeFrom<u32>) {
    let begin = clock::mono();
    for user in users {
        for last in BEHIND {
            loop {
                let number = numbers.next().unwrap();
                user.send(mac(last), number);
                if gets(bridge, (mac(last), user.mac(), number)) {
                    break;
                }
                assert!(clock::mono() - begin < SOON, "{last} is reached by {:?}", user.vif);
            }
        }
    }
}

/// All frames of all users arrive.
fn assert_reached(users: &mut [Nic], bridge: &mut Nic, numbers: &mut std::ops::RangeFrom<u32>) {
    for user in users {
        for last in BEHIND {
            let number = numbers.next().unwrap();
            user.send(mac(last), number);
            assert_eq!(next(bridge, SOON), Some((mac(last), user.mac(), number)));
        }
    }
}

/// A bridge on host b, with all behind it known to a user on each host.
struct Site {
    here: Nic,
    users: Vec<Nic>,
    numbers: std::ops::RangeFrom<u32>,
    net: Net,
}

impl Site {
    fn new(test: &str) -> Option<Self> {
        let net = Net::with(test, 3, Family::V4, LIFETIME)?;
        let (guest, options) = (vif(42, BRIDGE), Nic::options());
        let mut here = Nic::start_with("bridge-here", guest, &net.varpds[1], options, &LEARN);
        let user = |host: usize| {
            Nic::start(&format!("u{host}"), vif(42, 10 + host as u8), &net.varpds[host])
        };
        let mut users: Vec<Nic> = (0..3).map(user).collect();
        for last in BEHIND {
            here.send_frame(&frame(BROADCAST, mac(last), 0, LEN));
            users.iter_mut().for_each(|user| assert_eq!(user.receive(mac(last)), 0));
        }
        // What is measured is not how busy the machine is.
        net.varpds.iter().for_each(|varpd| hurry(varpd.process.pid()));
        users.iter().chain([&here]).for_each(|nic| hurry(nic.backend.process.pid()));
        let mut numbers = 1..;
        reach_all(&mut users, &mut here, &mut numbers);
        Some(Self { here, users, numbers, net })
    }

    /// The bridge stops on host b.
    fn stop(&mut self) {
        self.here.driver.stop_ring(0).unwrap();
        self.here.driver.stop_ring(1).unwrap();
        self.here.wait_state("registered", &self.net.varpds[1]);
    }

    /// The bridge starts on host c: all behind it are reached by all users at once, by one claim.
    fn start(&mut self, mut there: Nic) -> Nic {
        let claims = counter(&self.net.varpds[2], "claims");
        let begin = clock::mono();
        there.driver.start().unwrap();
        there.wait_state("active", &self.net.varpds[2]);
        reach_all(&mut self.users, &mut there, &mut self.numbers);
        let gap = clock::mono() - begin;
        step(&format!("150 mappings of three users, reached {gap:?} after the rings started"));
        assert!(gap < LIMIT, "reached only after {gap:?}");
        assert_eq!(counter(&self.net.varpds[2], "claims"), claims + 1, "one claim");
        there
    }
}

#[test]
fn fifty_macs_behind_a_bridge_migrate_with_it_by_one_claim_and_may_be_silent() {
    let Some(mut site) = Site::new("a bridge that migrates with 50 MACs behind it") else { return };
    let there = prepare(&site.net);
    site.stop();
    let mut there = site.start(there);
    let Site { users, numbers, net, .. } = &mut site;
    let claims = counter(&net.varpds[2], "claims");
    // Nothing behind it has sent anything: their mappings are confirmed all the same.
    let refreshed = |varpd: &Varpd| counter(varpd, "refreshes");
    let (begin, before) = (clock::mono(), net.each(refreshed));
    let mut rounds = 0;
    while net.each(refreshed).iter().zip(&before).any(|(now, before)| now - before < 100) {
        assert_reached(users, &mut there, numbers);
        rounds += 1;
        assert!(clock::mono() - begin < 6 * SOON, "mappings are confirmed: {rounds} rounds");
    }
    step(&format!("silent, confirmed twice each, {} frames arrived", rounds * 150));
    // One of them says something.
    there.send_frame(&frame(BROADCAST, mac(*BEHIND.start()), 7, LEN));
    users.iter_mut().for_each(|user| assert_eq!(user.receive(mac(*BEHIND.start())), 7));
    assert_reached(users, &mut there, numbers);
    assert_eq!(counter(&net.varpds[2], "claims"), claims + 1);
}

/// Their mappings were lost, as their host had neither them nor the bridge any more.
#[test]
fn macs_behind_a_bridge_that_are_asked_for_while_it_moves_are_found_with_it() {
    let Some(mut site) = Site::new("a bridge that is asked for while it moves") else { return };
    let there = prepare(&site.net);
    assert_reached(&mut site.users, &mut site.here, &mut site.numbers);
    site.stop();
    let begin = clock::mono();
    // On the hosts of the two users that are not on its own.
    let is_lost = |varpd: &Varpd| {
        let rows = varpd.show("varp");
        let asked = rows.as_array().unwrap().iter().filter(|row| row["state"] == "resolving");
        asked.count() >= BEHIND.count()
    };
    while ![0, 2].iter().all(|&host| is_lost(&site.net.varpds[host])) {
        for user in &mut site.users {
            for last in BEHIND {
                user.send(mac(last), site.numbers.next().unwrap());
            }
        }
        assert!(clock::mono() - begin < SOON, "everybody is asked for all");
    }
    site.start(there);
}
