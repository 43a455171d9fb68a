//! What a frontend asks of the backend while it migrates a guest: a log of the pages that are
//! written to, changes to a connection on which frames pass, and word that the guest is here.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use vnet::metrics::VifCounter;

use crate::driver::{Control, F_LOG_ALL, GUEST_BASE, Memory, Options, Queue, request};
use crate::nic::{BROADCAST, LEN, Nic, RARP, frame, mac, vif};
use crate::secured::Keys;
use crate::support::netns::Family;
use crate::support::vnet::{Backend, Listener, Varpd};
use crate::support::{step, wait_until};
use crate::{Net, SOON};

/// What a bit of the log stands for, in bytes.
const PAGE: u64 = 4096;

/// A log as a frontend makes it, for a driver's memory.
struct Log(Memory);

impl Log {
    fn new(nic: &Nic) -> Self {
        let pages = (GUEST_BASE + nic.driver.memory.len() as u64) / PAGE;
        Self(Memory::new(pages.div_ceil(64) as usize * 8))
    }

    fn hand_over(&self, nic: &mut Nic) {
        let control = &mut nic.driver.control;
        set_log(control, self.0.len() as u64, 0, &[self.0.file.as_raw_fd()]).unwrap();
        let (answered, _) = control.reply().unwrap();
        assert_eq!(answered, request::SET_LOG_BASE);
    }

    /// Offsets of the pages that are marked; they are no more.
    fn take(&self) -> BTreeSet<u64> {
        let mut bits = vec![0; self.0.len()];
        self.0.read(0, &mut bits);
        self.0.write(0, &vec![0; bits.len()]);
        let pages = 0..bits.len() * 8;
        let marked = pages.filter(|page| bits[page / 8] >> (page % 8) & 1 == 1);
        marked.map(|page| page as u64 * PAGE - GUEST_BASE).collect()
    }
}

fn set_log(control: &mut Control, size: u64, offset: u64, fds: &[RawFd]) -> io::Result<()> {
    let body = [size, offset].map(u64::to_ne_bytes).concat();
    control.send(request::SET_LOG_BASE, 0, &body, fds)
}

/// Sets the features, as a frontend does to begin or to end a migration.
fn set_features(nic: &mut Nic, further: u64) {
    let features = nic.driver.features | further;
    nic.driver.control.set_u64(request::SET_FEATURES, features).unwrap();
    for index in 0..2 {
        nic.driver.send_addresses(index).unwrap();
    }
}

fn pages(bytes: Range<u64>) -> impl Iterator<Item = u64> {
    (bytes.start / PAGE..bytes.end.div_ceil(PAGE)).map(|page| page * PAGE)
}

/// Where the device may write: used rings and receive buffers.
fn places(nic: &Nic) -> [Range<u64>; 3] {
    let pair = &nic.driver.pairs[0];
    let used = |queue: &Queue| queue.used..queue.used + 6 + 8 * u64::from(queue.size);
    let Options { queue_size, rx_buffer, .. } = nic.driver.options;
    let len = u64::from(queue_size) * u64::from(rx_buffer);
    [used(&pair.rx), used(&pair.tx), pair.rx_buffers..pair.rx_buffers + len]
}

/// The pages of that.
fn writable(nic: &Nic) -> BTreeSet<u64> {
    places(nic).into_iter().flat_map(pages).collect()
}

/// The pages of a driver's memory.
fn contents(nic: &Nic) -> Vec<u8> {
    let mut bytes = vec![0; nic.driver.memory.len()];
    nic.driver.memory.read(0, &mut bytes);
    bytes
}

/// Frames in both directions; returns which of the pages that the device may write to have changed.
fn exchange(nic: &mut Nic, other: &mut Nic) -> BTreeSet<u64> {
    let before = contents(nic);
    for (n, len) in [60, 1514, 300, 1400].into_iter().cycle().take(40).enumerate() {
        let n = n as u32 + 1;
        other.send_frame(&frame(nic.mac(), other.mac(), n, len));
        assert_eq!(nic.receive(other.mac()), n);
        nic.send_frame(&frame(other.mac(), nic.mac(), n, len));
        assert_eq!(other.receive(nic.mac()), n);
    }
    nic.wait_sent();
    let after = contents(nic);
    let differs = |page: &u64| {
        let at = *page as usize..(*page + PAGE) as usize;
        before[at.clone()] != after[at]
    };
    writable(nic).into_iter().filter(differs).collect()
}

/// All that has changed is marked, and nothing that can't have.
fn assert_logged(nic: &mut Nic, other: &mut Nic, log: &Log) {
    let changed = exchange(nic, other);
    let marked = log.take();
    assert!(changed.len() > 10, "{changed:x?}");
    assert!(changed.is_subset(&marked), "written to, not marked: {:x?}", &changed - &marked);
    let writable = writable(nic);
    assert!(marked.is_subset(&writable), "marked, never written to: {:x?}", &marked - &writable);
}

#[test]
fn pages_that_are_written_to_are_logged() {
    let Some(net) = Net::new("pages that are written to", 1) else { return };
    let mut one = Nic::start("g1", vif(42, 1), &net.varpds[0]);
    let mut two = Nic::start("g2", vif(42, 2), &net.varpds[0]);
    one.introduce(&mut two);

    step("a log alone changes nothing");
    let log = Log::new(&two);
    log.hand_over(&mut two);
    exchange(&mut two, &mut one);
    assert_eq!(log.take(), BTreeSet::new());

    step("with the feature, pages are marked");
    set_features(&mut two, F_LOG_ALL);
    assert_logged(&mut two, &mut one, &log);

    step("also after a new memory table");
    two.driver.send_memory().unwrap();
    assert_logged(&mut two, &mut one, &log);

    step("and in another log, if there is one; the first is left alone");
    let other = Log::new(&two);
    other.hand_over(&mut two);
    assert_logged(&mut two, &mut one, &other);
    assert_eq!(log.take(), BTreeSet::new());

    step("without the feature, no more");
    set_features(&mut two, 0);
    exchange(&mut two, &mut one);
    assert_eq!(other.take(), BTreeSet::new());

    step("a log that comes after the feature has all pages marked");
    two.reconnect();
    set_features(&mut two, F_LOG_ALL);
    exchange(&mut two, &mut one);
    let late = Log::new(&two);
    late.hand_over(&mut two);
    let len = two.driver.memory.len() as u64;
    assert_eq!(late.take(), pages(0..len).collect());
    assert_logged(&mut two, &mut one, &late);
}

#[test]
fn a_log_that_lies_ends_the_connection() {
    // Lanes have descriptors of their own, which come and go.
    let config = "[limits]\nlanes = 0\n";
    let Some(net) = Net::with("a log that lies", 1, Family::V4, config) else { return };
    let mut one = Nic::start("g1", vif(42, 1), &net.varpds[0]);
    let mut two = Nic::start("g2", vif(42, 2), &net.varpds[0]);
    let file = Log::new(&two).0.file.try_clone().unwrap();
    let fd = file.as_raw_fd();
    let len = file.metadata().unwrap().len();
    let (pipe, _end) = nix::unistd::pipe().unwrap();
    let pid = two.backend.process.pid();
    let open_files = || std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let before = open_files();
    let cases: [(&str, u64, u64, &[RawFd]); 9] = [
        ("no bytes", 0, 0, &[fd]),
        ("too short for the memory", 8, 0, &[fd]),
        ("longer than its file", len + 4096, 0, &[fd]),
        ("behind the end of its file", len, 1 << 40, &[fd]),
        ("partly behind it", len, 4096, &[fd]),
        ("beyond all numbers", u64::MAX, u64::MAX, &[fd]),
        ("no file but a pipe", len, 0, &[pipe.as_raw_fd()]),
        ("no descriptor", len, 0, &[]),
        ("two descriptors", len, 0, &[fd, fd]),
    ];
    for (before, (what, size, offset, fds)) in cases.into_iter().enumerate() {
        step(what);
        set_features(&mut two, F_LOG_ALL);
        set_log(&mut two.driver.control, size, offset, fds).unwrap();
        assert!(two.driver.control.is_closed(SOON), "{what}: the connection goes on");
        wait_until("the backend says why", SOON, || {
            two.backend.process.log().matches("SET_LOG_BASE").count() > before
        });
        two.reconnect();
        two.introduce(&mut one);
    }
    step("a memory table that the log does not reach to");
    let log = Log::new(&two);
    set_features(&mut two, F_LOG_ALL);
    log.hand_over(&mut two);
    let region = [GUEST_BASE << 8, PAGE, 0x7000_0000_0000, 0].map(u64::to_ne_bytes).concat();
    let body = [&[1_u32, 0].map(u32::to_ne_bytes).concat()[..], &region].concat();
    let memory = two.driver.memory.file.as_raw_fd();
    assert!(two.driver.control.set(request::SET_MEM_TABLE, &body, &[memory]).is_err());
    assert!(two.driver.control.is_closed(SOON));
    two.reconnect();
    two.introduce(&mut one);
    wait_until("nothing is leaked", SOON, || open_files() <= before);
    two.backend.process.assert_running();
}

#[test]
fn a_migration_that_begins_and_ends_disturbs_nothing() {
    let Some(net) = Net::new("a migration that begins and ends", 1) else { return };
    let mut one = Nic::start("g1", vif(42, 1), &net.varpds[0]);
    let mut two = Nic::start("g2", vif(42, 2), &net.varpds[0]);
    one.introduce(&mut two);
    let before = net.varpds[0].show("vifs")[1]["stamp"].clone();
    let log = Log::new(&two);
    let mut count = 0;
    for _ in 0..50 {
        let first = count;
        let mut send = |one: &mut Nic, two: &mut Nic| {
            for _ in 0..10 {
                one.send(two.mac(), count);
                two.send(one.mac(), count);
                count += 1;
            }
        };
        log.hand_over(&mut two);
        send(&mut one, &mut two);
        set_features(&mut two, F_LOG_ALL);
        send(&mut one, &mut two);
        set_features(&mut two, 0);
        send(&mut one, &mut two);
        for n in first..count {
            assert_eq!(two.receive(one.mac()), n);
            assert_eq!(one.receive(two.mac()), n);
        }
    }
    assert_eq!(net.varpds[0].show("vifs")[1]["stamp"], before, "the guest was here all the time");
    let counters = two.counters(&net.varpds[0]);
    assert_eq!(counters.sum("tx_drop_") + counters.sum("rx_drop_"), 0, "{counters:?}");
    assert_eq!(counters.get(VifCounter::tx_announcements), 0);
}

/// Once the index of a stopped ring is told, the guest's memory is copied as it is.
#[test]
fn nothing_is_touched_once_the_rings_have_stopped() {
    let Some(net) = Net::new("rings that have stopped", 1) else { return };
    let mut one = Nic::start("g1", vif(42, 1), &net.varpds[0]);
    let mut two = Nic::start("g2", vif(42, 2), &net.varpds[0]);
    one.introduce(&mut two);
    for _ in 0..20 {
        // In the middle of traffic both ways.
        for n in 0..50 {
            one.send(two.mac(), n);
            two.send(one.mac(), n);
        }
        let bases = [0, 1].map(|index| two.driver.stop_ring(index).unwrap());
        let before = contents(&two);
        for n in 50..100 {
            one.send(two.mac(), n);
            let _ = two.driver.queue_frame(0, &frame(one.mac(), two.mac(), n, LEN));
        }
        one.wait_sent();
        while one.try_receive(two.mac(), Duration::from_millis(5)).is_some() {}
        let after = contents(&two);
        for place in places(&two) {
            let bytes = place.start as usize..place.end as usize;
            assert_eq!(before[bytes.clone()], after[bytes], "at {place:x?}");
        }
        for (index, base) in bases.into_iter().enumerate() {
            assert_eq!(two.driver.queue(index).used_index(), base, "ring {index}");
        }
        two.driver.reset().unwrap();
        two.wait_state("active", &net.varpds[0]);
        while two.try_receive(one.mac(), Duration::from_millis(5)).is_some() {}
    }
}

/// The driver goes on with the backend on another host. Its frontend may say that it is here before
/// anything else (QEMU's first SEND_RARP), or not at all.
fn arrive(two: &mut Nic, there: Backend, is_told: bool) {
    for index in 0..2 {
        two.driver.stop_ring(index).unwrap();
    }
    let control = Control::connect(&there.socket).unwrap();
    if is_told {
        let mac: [u8; 8] = [&mac(2)[..], &[0; 2]].concat().try_into().unwrap();
        control.send(request::SEND_RARP, 0, &mac, &[]).unwrap();
    }
    two.driver.reconnect(control).unwrap();
    two.backend = there;
}

/// RARP frames that tell of an arrival. The early ones may fall together, where the backend waits for a
/// processor.
const SERIES: u64 = 7;
const LEAST: u64 = 4;

/// RARP frames of guest 2 among those that arrive until `count` have, and a numbered frame.
fn take_rarps(one: &mut Nic, count: u64) {
    for _ in 0..count {
        let frame = one.driver.recv_frame(SOON).expect("the guest's arrival is announced");
        assert_eq!(frame[..14], [&BROADCAST[..], &mac(2), &RARP].concat());
        assert_eq!(frame.len(), LEN);
    }
}

#[test]
fn an_arrival_is_announced_in_the_vnet() {
    let Some(net) = Net::new("an arrival", 3) else { return };
    arrivals_are_announced(&net);
}

#[test]
fn an_arrival_is_announced_in_a_secured_vnet() {
    let keys = Keys::new();
    let config = keys.config("conf", "k", &[("use", "a1")], "");
    let configs = [0; 3].map(|_| config.clone());
    let Some(net) = Net::with_configs("an arrival, secured", &configs) else { return };
    arrivals_are_announced(&net);
}

/// Guest 2 goes from one host to another and back, and guest 1 hears of it.
fn arrivals_are_announced(net: &Net) {
    let start =
        |name: &str, varpd: &Varpd| Backend::start(name, vif(42, 2), Listener::Backend, varpd);
    let mut one = Nic::start("g1", vif(42, 1), &net.varpds[0]);
    let mut two = Nic::start("g2-b", vif(42, 2), &net.varpds[1]);
    one.introduce(&mut two);
    let sent =
        |two: &Nic, host: usize| two.counters(&net.varpds[host]).get(VifCounter::tx_announcements);
    assert_eq!(sent(&two, 1), 0, "a driver that has just been loaded speaks for itself");

    for (is_told, host, name) in [(false, 2, "g2-c"), (true, 1, "g2-b-again")] {
        step(name);
        let there = start(name, &net.varpds[host]);
        arrive(&mut two, there, is_told);
        take_rarps(&mut one, LEAST);
        wait_until("the arrival is announced", SOON, || sent(&two, host) >= LEAST);
        assert!(sent(&two, host) <= SERIES);
        one.introduce(&mut two);
    }
    step("the frontend says so again, later, and more often than is needed");
    wait_until("another series", SOON, || {
        two.driver.control.set_u64(request::SEND_RARP, 0).unwrap();
        sent(&two, 1) >= SERIES + LEAST
    });
    assert!(sent(&two, 1) <= 3 * SERIES, "not a frame each time");
    one.introduce(&mut two);
}

/// What was broadcast before a guest arrived was delivered where it was then.
#[test]
fn nothing_old_is_delivered_to_who_arrives() {
    let Some(net) = Net::new("nothing old", 2) else { return };
    let mut one = Nic::start("g1", vif(42, 1), &net.varpds[0]);
    let mut two = Nic::start("g2-a", vif(42, 2), &net.varpds[0]);
    let there = Backend::start("g2-b", vif(42, 2), Listener::Backend, &net.varpds[1]);
    // As QEMU, which connects before memory is copied.
    let control = Control::connect(&there.socket).unwrap();
    control.send(request::GET_FEATURES, 0, &[], &[]).unwrap();
    for n in 0..20 {
        one.send(BROADCAST, n);
        assert_eq!(two.receive(mac(1)), n);
    }
    // The group's datagrams are with the kernel of the other host.
    assert_eq!(two.try_receive(mac(1), Duration::from_millis(400)), None);
    for index in 0..2 {
        two.driver.stop_ring(index).unwrap();
    }
    let mut control = control;
    let (answered, _) = control.reply().unwrap();
    assert_eq!(answered, request::GET_FEATURES);
    two.driver.reconnect(control).unwrap();
    two.backend = there;
    two.wait_state("active", &net.varpds[1]);
    one.send(BROADCAST, 100);
    assert_eq!(two.receive(mac(1)), 100, "the first frame is a new one");
    let counters = two.counters(&net.varpds[1]);
    assert!(counters.get(VifCounter::rx_drop_no_ring) >= 20, "{counters:?}");
}
