//! What a driver may do, and what a hostile one does, to the rings. After each abuse the device
//! still serves: the same driver at once where only a chain was bad, after a reset where the ring
//! was.

#[path = "support/abuse.rs"]
mod abuse;
#[path = "support/driver.rs"]
mod driver;
#[path = "support/in_process.rs"]
mod in_process;
#[path = "support/loopback.rs"]
mod loopback;
#[path = "rings/plugging.rs"]
mod plugging;
#[path = "rings/polling.rs"]
mod polling;
#[path = "support/rig.rs"]
mod rig;

use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

use abuse::{
    BAD_TRANSMIT_RINGS, RingAbuse, bad_chains_are_returned, malformed_rings_stop,
    rewrite_descriptors,
};
use driver::{
    Control, Driver, HEADER_LEN, Layout, NEXT, Options, Order, USER_BASE, WRITE, gpa, readable,
    request,
};
use in_process::InProcess;
use rig::{PATIENCE, Rig, eventually, frame, hang_up};
use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vnet::sys::clock;

#[test]
fn frames_pass_in_every_layout() {
    let rig = InProcess::listening(1);
    for layout in [Layout::One, Layout::Two, Layout::Indirect] {
        for event_idx in [false, true] {
            for order in [Order::Qemu, Order::Plain] {
                let options = Options { layout, event_idx, order, ..Options::default() };
                let mut driver = rig.connect(options);
                for _ in 0..3 {
                    rig.assert_alive(&mut driver);
                }
            }
        }
    }
}

/// An independent frontend: that of the crate `vhost`.
#[test]
fn the_crates_frontend_is_served() {
    let rig = InProcess::listening(1);
    let mut driver = Driver::new(Control::connect(rig.path()).unwrap(), Options::default());
    let mut frontend = Frontend::connect(rig.path(), 2).unwrap();
    frontend.set_owner().unwrap();
    let offered = frontend.get_features().unwrap();
    let wanted = driver::F_VERSION_1 | driver::F_EVENT_IDX | driver::F_MRG_RXBUF;
    frontend.set_features(offered & (wanted | driver::F_PROTOCOL_FEATURES)).unwrap();
    let protocol = frontend.get_protocol_features().unwrap();
    frontend.set_protocol_features(protocol).unwrap();
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    assert_eq!(frontend.get_queue_num().unwrap(), 2);
    let region = VhostUserMemoryRegionInfo {
        guest_phys_addr: gpa(0),
        memory_size: driver.memory.len() as u64,
        userspace_addr: USER_BASE,
        mmap_offset: 0,
        mmap_handle: driver.memory.file.as_raw_fd(),
    };
    frontend.set_mem_table(&[region]).unwrap();
    driver.fill_rx(0);
    for index in 0..2 {
        let queue = driver.queue(index);
        frontend.set_vring_num(index, queue.size).unwrap();
        frontend.set_vring_base(index, 0).unwrap();
        let addresses = VringConfigData {
            queue_max_size: queue.size,
            queue_size: queue.size,
            flags: 0,
            desc_table_addr: USER_BASE + queue.table,
            used_ring_addr: USER_BASE + queue.used,
            avail_ring_addr: USER_BASE + queue.avail,
            log_addr: None,
        };
        frontend.set_vring_addr(index, &addresses).unwrap();
        frontend.set_vring_err(index, &queue.err).unwrap();
        frontend.set_vring_call(index, &queue.call).unwrap();
        frontend.set_vring_kick(index, &queue.kick).unwrap();
        frontend.set_vring_enable(index, true).unwrap();
    }
    rig.assert_alive(&mut driver);
    assert_eq!(frontend.get_vring_base(1).unwrap(), 3);
}

#[test]
fn every_queue_size_works_up_to_the_largest() {
    let rig = InProcess::listening(1);
    for queue_size in [2, 8, 64, 1024] {
        let mut driver = rig.connect(Options { queue_size, ..Options::default() });
        // More than twice around the ring.
        for n in 0..2 * usize::from(queue_size) + 5 {
            let sent = frame(60 + n % 100, n as u8);
            assert_eq!(rig.pass(&mut driver, &sent), Some(sent));
        }
    }
}

#[test]
fn a_large_frame_is_spread_over_mergeable_buffers() {
    let rig = InProcess::listening(1);
    let options = Options { tx_buffer: 9100, rx_buffer: 1024, ..Options::default() };
    let mut driver = rig.connect(options);
    for len in [1012, 1013, 9018] {
        let sent = frame(len, 7);
        assert!(rig.pass(&mut driver, &sent) == Some(sent), "a frame of {len} bytes");
    }
}

/// More frames than one wake-up handles all pass, in order, after a single kick.
#[test]
fn a_batch_needs_one_kick() {
    let rig = InProcess::listening(1);
    let mut driver = rig.connect(Options { layout: Layout::One, ..Options::default() });
    for n in 0..200 {
        assert!(driver.queue_frame(0, &frame(100, n)));
    }
    let kicks = driver.pairs[0].tx.kicks;
    driver.flush(0);
    assert_eq!(driver.pairs[0].tx.kicks, kicks + 1);
    for n in 0..200 {
        assert_eq!(driver.recv_frame(PATIENCE), Some(frame(100, n)));
    }
    eventually("all chains are returned", || {
        driver.pairs[0].reclaim();
        driver.pairs[0].tx.is_settled()
    });
}

/// A guest that gives no buffers is not asked again for each frame, and loses none that wait.
#[test]
fn a_starved_receive_ring_pauses_and_resumes() {
    let rig = InProcess::listening(1);
    let options = Options { queue_size: 16, ..Options::default() };
    let mut driver = rig.connect(options);
    // What is injected before is forgotten.
    eventually("the rings run", || rig.data_path.starts.load(Ordering::SeqCst) == 1);
    let mut sent = Vec::new();
    let inject = |count: u8, sent: &mut Vec<Vec<u8>>| {
        for n in 0..count {
            sent.push(frame(80, n));
            rig.data_path.inject(0, &frame(80, n));
        }
    };
    // A frame of the guest's has the worker look at all that is ready; with the second it has done so.
    let turn = |driver: &mut Driver, sent: &mut Vec<Vec<u8>>| {
        for n in 100..102 {
            let before = rig.data_path.frames.load(Ordering::SeqCst);
            sent.push(frame(80, n));
            driver.send_frame(&frame(80, n));
            eventually("a turn", || rig.data_path.frames.load(Ordering::SeqCst) > before);
        }
    };
    inject(17, &mut sent);
    eventually("one frame waits", || rig.data_path.waiting(0) == 1);
    turn(&mut driver, &mut sent);
    rig.data_path.take_unread(0);
    inject(43, &mut sent);
    turn(&mut driver, &mut sent);
    assert_eq!(rig.data_path.take_unread(0), 43, "the descriptor is not polled");
    for frame in sent {
        assert_eq!(driver.recv_frame(PATIENCE), Some(frame));
    }
    rig.assert_alive(&mut driver);
}

#[test]
fn queue_pairs_are_independent() {
    let rig = InProcess::listening(4);
    let mut driver = rig.connect(Options { pairs: 4, queue_size: 64, ..Options::default() });
    for pair in 0..4 {
        assert!(driver.queue_frame(pair, &frame(90, pair as u8)));
        driver.flush(pair);
    }
    for pair in (0..4).rev() {
        let (_, got) = driver.recv_packet(pair, PATIENCE).unwrap();
        assert_eq!(got, frame(90, pair as u8));
    }
    // One malformed ring stops its own pair only.
    driver.pairs[2].tx.next_avail = driver.pairs[2].tx.next_avail.wrapping_add(5000);
    driver.pairs[2].tx.expose();
    driver.pairs[2].tx.kick();
    assert!(readable(&driver.pairs[2].tx.err, PATIENCE));
    assert!(driver.queue_frame(3, &frame(90, 9)));
    driver.flush(3);
    assert_eq!(driver.recv_packet(3, PATIENCE).unwrap().1, frame(90, 9));
    rig.assert_alive(&mut driver);
    driver.reset().unwrap();
    assert!(driver.queue_frame(2, &frame(90, 8)));
    driver.flush(2);
    assert_eq!(driver.recv_packet(2, PATIENCE).unwrap().1, frame(90, 8));
}

/// A legal frame in illegal-looking pieces: header split, one byte per descriptor.
#[test]
fn a_frame_in_one_byte_descriptors_passes() {
    let rig = InProcess::listening(1);
    let mut driver = rig.connect(Options::default());
    let sent = frame(60, 3);
    let bytes = [&[0; HEADER_LEN][..], &sent].concat();
    driver.memory.write(driver.scratch, &bytes);
    let last = bytes.len() as u16 - 1;
    let tx = &mut driver.pairs[0].tx;
    for n in 0..=last {
        let flags = if n == last { 0 } else { NEXT };
        tx.descriptor(n, gpa(driver.scratch + u64::from(n)), 1, flags, n + 1);
    }
    tx.offer(0);
    tx.expose();
    assert_eq!(driver.recv_frame(PATIENCE), Some(sent));
}

#[test]
fn a_bad_chain_is_dropped_and_returned() {
    let rig = InProcess::listening(1);
    for event_idx in [true, false] {
        let mut driver = rig.connect(Options { event_idx, ..Options::default() });
        bad_chains_are_returned(&rig, &mut driver);
        assert_eq!(rig.ring_failures(), 0);
    }
}

const BAD_RECEIVE_RINGS: &[RingAbuse] = &[
    ("a receive index that jumps", 0, |d| {
        let rx = &mut d.pairs[0].rx;
        rx.next_avail = rx.next_avail.wrapping_add(rx.size + 1);
        rx.expose();
        d.send_frame(&frame(60, 0));
    }),
    ("receive buffers that can't be written to", 0, |d| {
        rx_buffers(d, |_| (gpa(0), 2048, 0));
    }),
    ("receive buffers outside memory", 0, |d| {
        rx_buffers(d, |_| (gpa(1 << 40), 2048, WRITE));
    }),
    ("receive buffers without room", 0, |d| {
        rx_buffers(d, |_| (gpa(0), 0, WRITE));
    }),
];

/// Rewrites all receive buffers and sends a frame that one of them has to take.
fn rx_buffers(driver: &mut Driver, buffer: fn(u16) -> (u64, u32, u16)) {
    let rx = &driver.pairs[0].rx;
    for slot in 0..rx.size {
        let (address, len, flags) = buffer(slot);
        rx.descriptor(slot, address, len, flags, 0);
    }
    driver.send_frame(&frame(60, 0));
}

#[test]
fn a_malformed_ring_stops_until_it_is_reset() {
    let rig = InProcess::listening(1);
    let mut driver = rig.connect(Options::default());
    for abuses in [BAD_TRANSMIT_RINGS, BAD_RECEIVE_RINGS] {
        malformed_rings_stop(&rig, &mut driver, abuses);
    }
}

#[test]
fn a_ring_outside_memory_does_not_run() {
    let rig = InProcess::listening(1);
    let mut driver = rig.connect(Options::default());
    // The used ring begins in memory and ends outside.
    driver.stop_ring(1).unwrap();
    let end = driver.memory.len() as u64;
    let used = driver.pairs[0].tx.used;
    driver.pairs[0].tx.used = end - 64;
    driver.start_ring(1).unwrap();
    assert!(readable(&driver.pairs[0].tx.err, PATIENCE));
    eventually("the failure is counted", || rig.ring_failures() == 1);
    driver.pairs[0].tx.used = used;
    driver.reset().unwrap();
    rig.assert_alive(&mut driver);
}

#[test]
fn bad_ring_addresses_end_the_connection_only() {
    let rig = InProcess::listening(1);
    for address in [USER_BASE - 16, USER_BASE + (1 << 40), 0, u64::MAX - 15, USER_BASE + 8] {
        let mut driver = rig.connect(Options::default());
        driver.stop_ring(1).unwrap();
        let refused = driver.send_user_addresses(1, address, USER_BASE, USER_BASE);
        assert!(refused.is_err(), "{address:#x} is refused");
        assert!(driver.control.is_closed(PATIENCE));
        let mut next = rig.connect(Options::default());
        rig.assert_alive(&mut next);
    }
}

#[test]
fn a_queue_size_that_is_no_power_of_two_does_not_start() {
    let rig = InProcess::listening(1);
    let mut driver = rig.connect(Options::default());
    driver.stop_ring(1).unwrap();
    driver.queue(1).reset();
    driver.queue(1).size = 255;
    driver.start_ring(1).unwrap();
    assert!(readable(&driver.pairs[0].tx.err, PATIENCE));
    let starts = rig.data_path.starts.load(Ordering::SeqCst);
    driver.queue(1).kick();
    driver.control.sync().unwrap();
    assert_eq!(rig.data_path.starts.load(Ordering::SeqCst), starts);
    driver.queue(1).size = 256;
    driver.reset().unwrap();
    rig.assert_alive(&mut driver);
    hang_up(&driver);
    // Out of range altogether: the crate ends the connection.
    for size in [0, 2048, 0x1_0000] {
        let mut other = rig.connect(Options::default());
        other.stop_ring(1).unwrap();
        assert!(other.control.set_ring(request::SET_VRING_NUM, 1, size).is_err());
        assert!(other.control.is_closed(PATIENCE));
    }
    rig.assert_alive(&mut rig.connect(Options::default()));
}

#[test]
fn kicks_before_memory_are_harmless() {
    let rig = InProcess::listening(1);
    let mut driver = Driver::new(Control::connect(rig.path()).unwrap(), Options::default());
    driver.negotiate().unwrap();
    for index in 0..2 {
        let queue = driver.queue(index);
        let (number, kick) = (queue.index, queue.kick.as_raw_fd());
        queue.kick();
        driver.control.set_ring_fd(request::SET_VRING_KICK, number, kick).unwrap();
    }
    // Rings that "run" at addresses that are not in any memory are stopped.
    assert!(readable(&driver.pairs[0].rx.err, PATIENCE));
    driver.control.sync().unwrap();
    for index in 0..2 {
        driver.stop_ring(index).unwrap();
        driver.queue(index).reset();
    }
    driver.start().unwrap();
    rig.assert_alive(&mut driver);
}

/// A guest that rewrites descriptors while the device reads them.
#[test]
fn descriptors_that_change_meanwhile_do_no_harm() {
    let rig = InProcess::listening(1);
    let mut driver = rig.connect(Options { layout: Layout::One, ..Options::default() });
    let rounds = rewrite_descriptors(&mut driver, Duration::from_millis(1500));
    assert!(rounds > 10, "{rounds} rounds are too few to mean anything");
    rig.assert_alive(&mut driver);
}

/// QEMU repeats `SET_VRING_ADDR` for running rings when a migration starts.
#[test]
fn addresses_can_be_repeated_while_frames_pass() {
    let rig = InProcess::listening(1);
    let mut driver = rig.connect(Options::default());
    for n in 0..100 {
        let sent = frame(100, n);
        driver.send_frame(&sent);
        driver.send_addresses(1).unwrap();
        driver.send_addresses(0).unwrap();
        driver.control.set_u64(request::SET_FEATURES, driver.features).unwrap();
        assert_eq!(driver.recv_frame(PATIENCE), Some(sent));
    }
    assert_eq!(rig.data_path.starts.load(Ordering::SeqCst), 1, "the rings ran on");
}

#[test]
fn a_kick_descriptor_can_be_replaced_while_its_event_is_pending() {
    let rig = InProcess::listening(1);
    let mut driver = rig.connect(Options::default());
    for n in 0..50 {
        assert!(driver.queue_frame(0, &frame(100, n)));
        driver.flush(0);
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap();
        let old = std::mem::replace(&mut driver.pairs[0].tx.kick, event);
        let new = driver.pairs[0].tx.kick.as_raw_fd();
        driver.control.set_ring_fd(request::SET_VRING_KICK, 1, new).unwrap();
        assert_eq!(driver.recv_frame(PATIENCE).as_ref(), Some(&frame(100, n)));
        // The new one works, the old one is nobody's.
        rig.assert_alive(&mut driver);
        old.write(1).unwrap();
        driver.control.sync().unwrap();
        assert!(readable(&old, Duration::ZERO));
    }
}

#[test]
fn rings_stop_and_go_on_where_they_were() {
    let rig = InProcess::listening(1);
    let mut driver = rig.connect(Options::default());
    let mut sent = 0_u16;
    for _ in 0..20 {
        for _ in 0..3 {
            rig.assert_alive(&mut driver);
            sent += 3;
        }
        driver.pairs[0].reclaim();
        assert_eq!(driver.stop_ring(1).unwrap(), sent, "all chains were completed in order");
        assert_eq!(driver.stop_ring(0).unwrap(), sent);
        assert_eq!(driver.pairs[0].rx.last_used, sent);
        eventually("the pair stops", || {
            rig.data_path.starts.load(Ordering::SeqCst)
                == rig.data_path.stops.load(Ordering::SeqCst)
        });
        driver.start_ring(0).unwrap();
        driver.start_ring(1).unwrap();
    }
}

#[test]
fn a_disabled_ring_is_left_alone() {
    let rig = InProcess::listening(1);
    let mut driver = rig.connect(Options::default());
    rig.assert_alive(&mut driver);
    driver.enable(false).unwrap();
    assert_eq!(rig.data_path.stops.load(Ordering::SeqCst), 1, "stopped when the answer is there");
    driver.send_frame(&frame(60, 1));
    driver.control.sync().unwrap();
    let tx = &mut driver.pairs[0].tx;
    while tx.take_used().is_some() {}
    assert_eq!(tx.last_used.wrapping_add(1), tx.next_avail, "the frame is not taken");
    driver.enable(true).unwrap();
    assert_eq!(driver.recv_frame(PATIENCE), Some(frame(60, 1)), "nor forgotten");
}

/// Memory can be replaced while rings run; a ring that is no longer in it stops.
#[test]
fn rings_are_checked_again_when_memory_changes() {
    let rig = InProcess::listening(1);
    let mut driver = rig.connect(Options::default());
    rig.assert_alive(&mut driver);
    driver.send_memory().unwrap();
    rig.assert_alive(&mut driver);
    let region = [driver::GUEST_BASE, 0x1000, USER_BASE, 0].map(u64::to_ne_bytes).concat();
    let body = [&[1_u32, 0].map(u32::to_ne_bytes).concat()[..], &region].concat();
    let fd = driver.memory.file.as_raw_fd();
    driver.control.set(request::SET_MEM_TABLE, &body, &[fd]).unwrap();
    driver.send_frame(&frame(60, 1));
    let pair = &driver.pairs[0];
    eventually("a ring is stopped", || {
        readable(&pair.tx.err, Duration::ZERO) || readable(&pair.rx.err, Duration::ZERO)
    });
    driver.send_memory().unwrap();
    driver.reset().unwrap();
    rig.assert_alive(&mut driver);
}

/// A worker that has always more to do does not hold up the frontend: the downtime of a migration
/// begins with stopping the rings.
#[test]
fn a_busy_worker_does_not_hold_up_the_frontend() {
    let rig = InProcess::listening(1);
    let mut driver = rig.connect(Options::default());
    rig.data_path.busy.store(100, Ordering::Relaxed);
    let mut longest = Duration::ZERO;
    for _ in 0..100 {
        driver.send_frame(&frame(60, 1));
        assert!(driver.recv_frame(PATIENCE).is_some());
        driver.pairs[0].reclaim();
        let start = clock::mono();
        driver.send_addresses(1).unwrap();
        driver.stop_ring(0).unwrap();
        driver.stop_ring(1).unwrap();
        longest = longest.max(clock::mono() - start);
        driver.start_ring(0).unwrap();
        driver.start_ring(1).unwrap();
    }
    // It takes microseconds, but how long a machine stands still is not for a test to say.
    assert!(longest < PATIENCE, "stopped only after {longest:?}");
}
