//! A frontend that says of its guest's memory what is not so, or cuts it while it is in use: it harms
//! its own NIC and nobody else's.
//!
//! ```text
//!     guest 1, whose frontend lies      guest 2      guest 3
//!         |                               |            |
//!       host a ---------------------------+------------+
//! ```

use std::os::fd::AsRawFd;

use vnet::metrics::VifCounter;
use vnet::sys::bus_error::EXIT_STATUS;

use crate::driver::{Control, Driver, F_LOG_ALL, GUEST_BASE, Memory, USER_BASE, gpa, request};
use crate::nic::{Nic, mac, vif};
use crate::rig::hang_up;
use crate::support::wait_until;
use crate::{Net, SOON};

const MIB: u64 = 1 << 20;
/// What a backend says whose guest's memory was cut.
const GONE: &str = "vhost-user-vnet: memory that is shared with the frontend is gone";

fn start(test: &str) -> Option<(Net, Nic, Nic)> {
    let net = Net::new(test, 1)?;
    let one = Nic::start("g1", vif(42, 1), &net.varpds[0]);
    let two = Nic::start("g2", vif(42, 2), &net.varpds[0]);
    Some((net, one, two))
}

/// The backend of the first NIC has ended because of its memory; nobody else has noticed, and it can be
/// started again.
fn assert_ended_alone(net: &Net, one: &mut Nic, two: &mut Nic) {
    let status = one.backend.process.wait_end(SOON);
    let log = one.backend.process.log();
    assert_eq!(status.code(), Some(EXIT_STATUS), "{status}: {log}");
    assert_eq!(log.matches(GONE).count(), 1, "{log}");
    let mut three = Nic::start("g3", vif(42, 3), &net.varpds[0]);
    two.introduce(&mut three);
    assert_eq!(two.counters(&net.varpds[0]).get(VifCounter::lanes_failed), 0);
    one.backend.start_again();
    one.driver = Driver::connect(&one.backend.socket, Nic::options()).unwrap();
    one.wait_state("active", &net.varpds[0]);
    one.introduce(&mut three);
}

#[test]
fn memory_that_is_shorter_than_said_is_refused() {
    let Some((net, mut one, mut two)) = start("memory files that are too short") else { return };
    one.introduce(&mut two);
    let memory = Memory::new(MIB as usize);
    hang_up(&one.driver);
    let mut control = Control::connect(&one.backend.socket).unwrap();
    control.send(request::SET_OWNER, 0, &[], &[]).unwrap();
    let table = [1, GUEST_BASE, 2 * MIB, USER_BASE, 0].map(u64::to_ne_bytes).concat();
    let fd = memory.file.as_raw_fd();
    control.send(request::SET_MEM_TABLE, 0, &table, &[fd]).unwrap();
    assert!(control.is_closed(SOON));
    one.backend.process.assert_running();
    let why = "SET_MEM_TABLE with region 0: 2097152 bytes at offset 0 of a file of 1048576";
    wait_until(why, SOON, || one.backend.process.log().contains(why));
    one.driver = Driver::connect(&one.backend.socket, Nic::options()).unwrap();
    one.wait_state("active", &net.varpds[0]);
    one.introduce(&mut two);
}

#[test]
fn memory_that_is_cut_ends_only_its_own_backend() {
    let Some((net, mut one, mut two)) = start("guest memory that is cut") else { return };
    one.introduce(&mut two);
    one.driver.memory.file.set_len(0).unwrap();
    one.driver.pairs[0].tx.kick();
    assert_ended_alone(&net, &mut one, &mut two);
}

#[test]
fn buffers_that_are_cut_end_only_their_own_backend() {
    let Some((net, mut one, mut two)) = start("guest buffers that are cut") else { return };
    one.introduce(&mut two);
    // The rings stay.
    let end = one.driver.memory.len() as u64;
    let tx = &mut one.driver.pairs[0].tx;
    tx.descriptor(0, gpa(end - 4096), 60, 0, 0);
    tx.offer(0);
    one.driver.memory.file.set_len(end - 4096).unwrap();
    one.driver.pairs[0].tx.expose();
    one.driver.pairs[0].tx.kick();
    assert_ended_alone(&net, &mut one, &mut two);
}

#[test]
fn a_log_that_is_cut_ends_only_its_own_backend() {
    let Some((net, mut one, mut two)) = start("a log that is cut") else { return };
    one.introduce(&mut two);
    let log = Memory::new(1 << 16);
    let body = [1_u64 << 16, 0].map(u64::to_ne_bytes).concat();
    let features = one.driver.features | F_LOG_ALL;
    let control = &mut one.driver.control;
    control.send(request::SET_LOG_BASE, 0, &body, &[log.file.as_raw_fd()]).unwrap();
    assert_eq!(control.reply().unwrap().0, request::SET_LOG_BASE);
    control.set_u64(request::SET_FEATURES, features).unwrap();
    control.sync().unwrap();
    log.file.set_len(0).unwrap();
    two.send(mac(1), 1);
    assert_ended_alone(&net, &mut one, &mut two);
}

#[test]
fn whoever_may_connect_does_not_fill_the_log() {
    let Some((net, mut one, mut two)) = start("a frontend that fills the log") else { return };
    hang_up(&one.driver);
    for n in 0..200_u32 {
        let mut control = Control::connect(&one.backend.socket).unwrap();
        control.send(request::SET_OWNER, 0, &[], &[]).unwrap();
        // A ring's size that is no power of two; then, with ever another number, a message that is refused.
        let size = [0, 3 + 4 * n].map(u32::to_ne_bytes).concat();
        control.send(request::SET_VRING_NUM, 0, &size, &[]).unwrap();
        if n % 2 == 0 {
            control.send(1000 + n, 0, &[0; 8], &[]).unwrap();
            assert!(control.is_closed(SOON));
        }
    }
    let mut three = Nic::start("g3", vif(42, 3), &net.varpds[0]);
    two.introduce(&mut three);
    one.backend.process.assert_running();
    let log = one.backend.process.log();
    assert!(log.lines().count() < 100, "{log}");
    assert!(log.contains("a ring can't start"), "{log}");
}
