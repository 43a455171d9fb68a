//! What a hostile driver does to the rings, and what has to come of it: for the device alone
//! (`rings.rs`) and for the program (`backend/abuse.rs`).

#![allow(dead_code, unreachable_pub, reason = "each test uses a part of it")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use vnet::sys::clock;

use crate::driver::{Driver, INDIRECT, Memory, NEXT, WRITE, gpa, raw_descriptor, readable};
use crate::rig::{PATIENCE, Rig, eventually};

/// What is done, and how.
type Abuse = (&'static str, fn(&mut Driver));

/// Chains that are no frame: each is dropped and returned, the ring goes on.
const BAD_CHAINS: &[Abuse] = &[
    ("a descriptor that is its own next", |d| chain(d, &[(0, 64, NEXT, 0)])),
    ("a loop of two", |d| chain(d, &[(0, 64, NEXT, 1), (64, 64, NEXT, 0)])),
    ("a next beyond the table", |d| chain(d, &[(0, 64, NEXT, 0xffff)])),
    ("a next just beyond the table", |d| chain(d, &[(0, 64, NEXT, 256)])),
    ("no bytes at all", |d| chain(d, &[(0, 0, 0, 0)])),
    ("a runt header", |d| chain(d, &[(0, 11, 0, 0)])),
    ("a header and nothing else", |d| chain(d, &[(0, 12, 0, 0)])),
    ("half an Ethernet header", |d| chain(d, &[(0, 12, NEXT, 1), (12, 7, 0, 0)])),
    ("a frame beyond 64 KiB", |d| chain(d, &[(0, 12, NEXT, 1), (0, u32::MAX, 0, 0)])),
    ("lengths that overflow", |d| {
        chain(d, &[(0, u32::MAX, NEXT, 1), (0, u32::MAX, NEXT, 2), (0, 64, 0, 0)]);
    }),
    ("a buffer outside memory", |d| chain(d, &[(0, 12, NEXT, 1), (1 << 40, 64, 0, 0)])),
    ("a buffer at the end of the address space", |d| {
        chain(d, &[(0, 12, NEXT, 1), (u64::MAX - 0x10_0010, 64, 0, 0)]);
    }),
    ("a buffer across the end of memory", |d| {
        let end = d.memory.len() as u64;
        chain(d, &[(0, 12, NEXT, 1), (end - 32, 64, 0, 0)]);
    }),
    ("a header outside memory", |d| chain(d, &[(1 << 40, 12, NEXT, 1), (0, 64, 0, 0)])),
    ("a buffer to be written to", |d| chain(d, &[(0, 12, NEXT, 1), (12, 64, WRITE, 0)])),
    ("only buffers to be written to", |d| chain(d, &[(0, 76, WRITE, 0)])),
    ("an indirect table of no length", |d| chain(d, &[(0, 0, INDIRECT, 0)])),
    ("an indirect table of odd length", |d| table(d, 33, &[(256, 76, 0, 0)])),
    ("an indirect table outside memory", |d| chain(d, &[(1 << 40, 32, INDIRECT, 0)])),
    ("a huge indirect table", |d| table(d, 16 * 70_000, &[(256, 76, 0, 0)])),
    ("a table in a table", |d| table(d, 32, &[(256, 32, INDIRECT, 0), (256, 76, 0, 0)])),
    ("a loop in a table", |d| table(d, 32, &[(256, 64, NEXT, 1), (320, 64, NEXT, 0)])),
    ("a next beyond its table", |d| table(d, 32, &[(256, 64, NEXT, 2), (320, 64, 0, 0)])),
    ("a long loop in a long table", |d| {
        let len = 16 * 1000;
        table(d, len, &[(256, 1, NEXT, 1), (320, 1, NEXT, 0)]);
    }),
    ("a table that lies over its own end", |d| {
        let end = d.memory.len() as u64;
        chain(d, &[(end - 16, 32, INDIRECT, 0)]);
    }),
];

/// Offers a chain of the first descriptors: offset in memory, length, flags, next.
fn chain(driver: &mut Driver, descriptors: &[(u64, u32, u16, u16)]) {
    let tx = &mut driver.pairs[0].tx;
    for (slot, &(offset, len, flags, next)) in (0..).zip(descriptors) {
        tx.descriptor(slot, gpa(offset), len, flags, next);
    }
    tx.offer(0);
    tx.expose();
}

/// Offers an indirect table that lies at the start of the scratch page, of the length it claims.
fn table(driver: &mut Driver, len: u32, descriptors: &[(u64, u32, u16, u16)]) {
    for (slot, &(offset, len, flags, next)) in (0_u64..).zip(descriptors) {
        let raw = raw_descriptor(gpa(offset), len, flags, next);
        driver.memory.write(driver.scratch + 16 * slot, &raw);
    }
    let at = driver.scratch;
    chain(driver, &[(at, len, INDIRECT, 0)]);
}

/// Each bad chain is returned and counted, and after it frames pass. Returns how many there were.
pub fn bad_chains_are_returned(rig: &impl Rig, driver: &mut Driver) -> usize {
    for (name, abuse) in BAD_CHAINS {
        let before = rig.malformed();
        abuse(driver);
        let used = driver.pairs[0].tx.wait_used(PATIENCE);
        assert_eq!(used, Some((0, 0)), "{name}: is returned");
        assert_eq!(rig.malformed(), before + 1, "{name}: is counted");
        rig.assert_alive(driver);
        // What was sent meanwhile is given back before the next chain.
        eventually(name, || {
            driver.pairs[0].reclaim();
            driver.pairs[0].tx.is_settled()
        });
    }
    BAD_CHAINS.len()
}

/// What makes a whole ring unusable, and which.
pub type RingAbuse = (&'static str, usize, fn(&mut Driver));

/// Abuses of the transmit ring that stop it.
pub const BAD_TRANSMIT_RINGS: &[RingAbuse] = &[
    ("an available index that jumps", 1, |d| {
        let tx = &mut d.pairs[0].tx;
        tx.next_avail = tx.next_avail.wrapping_add(tx.size + 1);
        tx.expose();
        tx.kick();
    }),
    ("an available index that goes back", 1, |d| {
        let tx = &mut d.pairs[0].tx;
        tx.next_avail = tx.next_avail.wrapping_sub(1);
        tx.expose();
        tx.kick();
    }),
    ("a head beyond the table", 1, |d| {
        let tx = &mut d.pairs[0].tx;
        tx.offer(4711);
        tx.expose();
    }),
];

/// Each abuse stops its ring, once, until it is reset.
pub fn malformed_rings_stop(rig: &impl Rig, driver: &mut Driver, abuses: &[RingAbuse]) {
    let before = rig.ring_failures();
    for (count, (name, index, abuse)) in (before + 1..).zip(abuses) {
        rig.assert_alive(driver);
        abuse(driver);
        assert!(readable(&driver.queue(*index).err, PATIENCE), "{name}: the error is signalled");
        eventually(name, || rig.ring_failures() == count);
        // Kicks of a stopped ring change nothing.
        driver.queue(*index).kick();
        driver.control.sync().expect("the control side is served");
        assert_eq!(rig.ring_failures(), count, "{name}: counted once");
        driver.reset().expect("the rings start again");
        rig.assert_alive(driver);
    }
}

/// Descriptors of both rings of pair 0 are overwritten while the device reads them; returns how
/// often rings were offered.
pub fn rewrite_descriptors(driver: &mut Driver, duration: Duration) -> u32 {
    let stop = Arc::new(AtomicBool::new(false));
    let rewriter = {
        let (stop, memory) = (stop.clone(), driver.memory.clone());
        let (tx, rx) = (driver.pairs[0].tx.table, driver.pairs[0].rx.table);
        std::thread::spawn(move || {
            let mut state = 0x2545_f491_4f6c_dd1d_u64;
            while !stop.load(Ordering::Relaxed) {
                rewrite_one(&memory, tx, rx, &mut state);
            }
        })
    };
    let deadline = clock::mono() + duration;
    let mut rounds = 0;
    while clock::mono() < deadline {
        offer_whatever_there_is(driver);
        rounds += 1;
    }
    stop.store(true, Ordering::Relaxed);
    rewriter.join().expect("the rewriter does not panic");
    driver.reset().expect("the rings start again");
    rounds
}

/// Writes a random descriptor into a random slot.
fn rewrite_one(memory: &Memory, tx: u64, rx: u64, state: &mut u64) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    let [slot, flags, next, pick, rest @ ..] = state.to_le_bytes();
    let table = if pick % 4 == 0 { rx } else { tx };
    let address = if pick % 8 == 1 { u64::MAX - *state } else { gpa(*state % 0x8000) };
    let len = u32::from_le_bytes(rest) % 3000;
    let raw = raw_descriptor(address, len, u16::from(flags % 8), next.into());
    memory.write(table + 16 * u64::from(slot), &raw);
}

fn offer_whatever_there_is(driver: &mut Driver) {
    for n in 0..32 {
        driver.pairs[0].tx.offer(n);
    }
    driver.flush(0);
    // Used entries may lie in buffers that the device was told to write to.
    driver.pairs[0].tx.skip_used();
    for n in 0..driver.pairs[0].rx.skip_used() {
        driver.pairs[0].rx.offer(n % 256);
    }
    driver.pairs[0].rx.expose();
    if readable(&driver.pairs[0].rx.err, Duration::ZERO)
        || readable(&driver.pairs[0].tx.err, Duration::ZERO)
    {
        driver.reset().expect("the rings start again");
    }
}
