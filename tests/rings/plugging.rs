//! Guest memory that comes and goes while the rings run: DIMMs that are plugged and unplugged.

use std::os::fd::AsRawFd;
use std::time::Duration;

use crate::driver::{Driver, HEADER_LEN, Memory, Options, WRITE, readable, request};
use crate::in_process::InProcess;
use crate::rig::{PATIENCE, Rig, eventually, frame};

const MIB: u64 = 1 << 20;
/// Where the first DIMM is, for the guest and for the frontend; others follow.
const GUEST: u64 = 1 << 40;
const USER: u64 = 1 << 45;
/// More than fit into one SET_MEM_TABLE.
const DIMMS: u64 = 100;

/// What is said of DIMM number `n`.
fn dimm(n: u64) -> Vec<u8> {
    let (guest, user) = (GUEST + 2 * n * MIB, USER + 2 * n * MIB);
    [0, guest, MIB, user, 0].map(u64::to_ne_bytes).concat()
}

fn plug(driver: &mut Driver, n: u64, memory: &Memory) {
    let fd = memory.file.as_raw_fd();
    driver.control.set(request::ADD_MEM_REG, &dimm(n), &[fd]).expect("a region comes");
}

fn unplug(driver: &mut Driver, n: u64) {
    driver.control.set(request::REM_MEM_REG, &dimm(n), &[]).expect("a region goes");
}

/// Restarts the receive ring with all its buffers in DIMM 0.
fn receive_in_dimm(driver: &mut Driver) {
    driver.stop_ring(0).expect("a ring that stops");
    let (size, len) = (driver.options.queue_size, driver.options.rx_buffer);
    let rx = driver.queue(0);
    rx.reset();
    for slot in 0..size {
        rx.descriptor(slot, GUEST + u64::from(slot) * u64::from(len), len, WRITE, 0);
        rx.offer(slot);
    }
    rx.expose();
    driver.start_ring(0).expect("a ring that runs");
    driver.enable(true).expect("rings that are enabled");
}

#[test]
fn frames_pass_through_memory_that_is_plugged_while_the_rings_run() {
    let rig = InProcess::listening(1);
    let mut driver = rig.connect(Options { slots: true, queue_size: 64, ..Options::default() });
    assert_eq!(driver.control.get_u64(request::GET_MAX_MEM_SLOTS).unwrap(), 509);
    rig.assert_alive(&mut driver);
    let memories: Vec<Memory> = (0..DIMMS).map(|_| Memory::new(MIB as usize)).collect();
    for (n, memory) in (0..).zip(&memories) {
        plug(&mut driver, n, memory);
        let sent = frame(100, n as u8);
        assert_eq!(rig.pass(&mut driver, &sent), Some(sent));
    }
    // Out of the last one, as the first frame after it came.
    let (sent, last) = (frame(1000, 42), memories.last().unwrap());
    last.write(4096, &[&[0; HEADER_LEN][..], &sent].concat());
    let tx = driver.queue(1);
    let slot = tx.next_avail % tx.size;
    let place = GUEST + 2 * (DIMMS - 1) * MIB + 4096;
    tx.descriptor(slot, place, (HEADER_LEN + sent.len()) as u32, 0, 0);
    tx.offer(slot);
    tx.expose();
    assert_eq!(driver.recv_frame(PATIENCE), Some(sent));

    // And into the first.
    receive_in_dimm(&mut driver);
    let sent = frame(900, 43);
    driver.send_frame(&sent);
    let (slot, len) = driver.queue(0).wait_used(PATIENCE).expect("a frame");
    let mut received = vec![0; len as usize];
    memories[0].read(u64::from(slot) * 2048, &mut received);
    assert_eq!(received[HEADER_LEN..], sent);

    // Those that hold no buffers go unnoticed.
    for n in 1..DIMMS {
        unplug(&mut driver, n);
    }
    driver.send_frame(&sent);
    assert!(driver.queue(0).wait_used(PATIENCE).is_some());
}

/// A guest that lets go of memory and uses it nevertheless loses the ring, and nothing else.
#[test]
fn a_ring_with_buffers_in_memory_that_is_gone_stops() {
    let rig = InProcess::listening(1);
    let mut driver = rig.connect(Options { slots: true, queue_size: 64, ..Options::default() });
    let memory = Memory::new(MIB as usize);
    plug(&mut driver, 0, &memory);
    receive_in_dimm(&mut driver);
    driver.send_frame(&frame(60, 1));
    assert!(driver.queue(0).wait_used(PATIENCE).is_some());
    unplug(&mut driver, 0);
    driver.send_frame(&frame(60, 2));
    eventually("the ring is stopped", || readable(&driver.pairs[0].rx.err, Duration::ZERO));
    driver.reset().unwrap();
    rig.assert_alive(&mut driver);
}
