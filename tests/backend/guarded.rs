//! A guest that is kept to a list of addresses (`--allow-ip`).
//!
//! ```text
//!     guest 1: 10.0.0.1, 2001:db8:1::/64     guest 2          guest 3       all on vnet 42
//!         |                                     |                |
//!       host a --- a lane between the two ------+              host b       MTU 9000
//! ```
//!
//! Behind what must not arrive, a numbered frame goes the same way, which does.

use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;

use vnet::metrics::VifCounter;
use vnet::offload::features::Offloads;

use crate::disguises::{self, FOREIGN, LIST, OWN};
use crate::driver::{HEADER_LEN, Options};
use crate::nic::{BROADCAST, Nic, mac, vif};
use crate::support::{step, wait_until};
use crate::{Counters, Net, SOON};

/// Ports of the frames that are allowed.
const PORTS: [u16; 2] = [1000, 2000];
/// Where the frames' source address and destination port are, without tags and options.
const SOURCE_AT: usize = 26;
const PORT_AT: usize = 36;

/// A way out of the vif: its name, whom frames go to, and how long they are.
struct Way {
    name: &'static str,
    to: [u8; 6],
    len: usize,
}

const fn way(name: &'static str, to: [u8; 6], len: usize) -> Way {
    Way { name, to, len }
}

const WAYS: [Way; 7] = [
    way("short frames through a lane", mac(2), 64),
    way("long frames through a lane", mac(2), 8000),
    way("bundles", mac(3), 64),
    way("staged frames", mac(3), 3000),
    way("frames from guest memory", mac(3), 8000),
    way("pieces", mac(3), 12_000),
    way("group frames", BROADCAST, 500),
];

/// The three guests; the first is kept to its list.
struct Guests {
    net: Net,
    nics: [Nic; 3],
    sent: u32,
}

impl Guests {
    fn new(test: &str) -> Option<Self> {
        let net = Net::jumbo(test, 2)?;
        let offloads = Offloads::CSUM.bits() | Offloads::HOST_TSO4.bits();
        let options = Options { tx_buffer: 66_000, queue_size: 64, offloads, ..Nic::options() };
        let guarded = ["--allow-ip", LIST];
        let one = Nic::start_with("g1", vif(42, 1), &net.varpds[0], options, &guarded);
        let two = Nic::start("g2", vif(42, 2), &net.varpds[0]);
        let three = Nic::start("g3", vif(42, 3), &net.varpds[1]);
        Some(Self { net, nics: [one, two, three], sent: 0 })
    }

    fn counters(&self) -> Counters {
        self.nics[0].counters(&self.net.varpds[0])
    }

    /// Puts a packet into the ring of guest 1.
    fn queue(&mut self, header: &[u8; HEADER_LEN], frame: &[u8]) {
        let driver = &mut self.nics[0].driver;
        assert!(driver.wait_room(0, SOON), "the device takes frames");
        assert!(driver.queue_packet(0, header, frame));
    }

    fn flush(&mut self) {
        self.nics[0].driver.flush(0);
    }

    fn receivers(&mut self, to: [u8; 6]) -> impl Iterator<Item = &mut Nic> {
        let are_meant = move |nic: &&mut Nic| to == BROADCAST || to == nic.mac();
        self.nics.iter_mut().skip(1).filter(are_meant)
    }

    /// Sends a frame that is allowed, which must be the next that arrives.
    fn pass(&mut self, to: [u8; 6], len: usize) {
        self.sent += 1;
        let frame = allowed(to, self.sent, len);
        self.queue(&[0; HEADER_LEN], &frame);
        self.flush();
        for nic in self.receivers(to) {
            let arrived = nic.next_frame(SOON).expect("a frame arrives");
            assert!(arrived == frame, "{:?}: {:x?}", nic.vif, &arrived[..arrived.len().min(80)]);
        }
    }

    /// Guests 2 and 3 say where they are.
    fn introduce(&mut self) {
        for n in [1, 2] {
            self.nics[n].send(mac(1), 7);
            let from = self.nics[n].mac();
            assert_eq!(self.nics[0].receive(from), 7);
        }
    }
}

/// UDP without a checksum and with a number, that may be fragmented.
fn allowed(to: [u8; 6], number: u32, len: usize) -> Vec<u8> {
    let [from_port, to_port] = PORTS.map(u16::to_be_bytes);
    let ip_len = (len as u16 - 14).to_be_bytes();
    let udp_len = (len as u16 - 34).to_be_bytes();
    let mut ip =
        [&[0x45, 0][..], &ip_len, &[0, 1, 0, 0, 64, 17, 0, 0], &OWN, &[10, 0, 0, 9]].concat();
    let sum: u32 = ip.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
    let sum = !((sum >> 16) + (sum & 0xffff)) as u16;
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut frame =
        [&to[..], &mac(1), &[8, 0], &ip, &from_port, &to_port, &udp_len, &[0, 0]].concat();
    frame.extend(number.to_be_bytes());
    frame.resize(len, number as u8);
    frame
}

#[test]
fn no_disguise_leaves_by_any_way() {
    let Some(mut guests) = Guests::new("disguises, by all ways out of a vif") else { return };
    let disguises = disguises::all();
    // Nobody knows yet where guests 2 and 3 are: what is not dropped waits.
    let unresolved = [way("frames that wait", mac(2), 64), way("frames that wait", mac(3), 9500)];
    let mut ways: Vec<&Way> = unresolved.iter().collect();
    ways.extend(&WAYS);
    for (n, way) in ways.iter().enumerate() {
        if n == unresolved.len() {
            guests.introduce();
        }
        for disguise in &disguises {
            let mut frame = disguise.frame.clone();
            frame[..6].copy_from_slice(&way.to);
            frame.resize(frame.len().max(way.len), 0);
            guests.queue(&disguise.header, &frame);
            guests.flush();
        }
        guests.pass(way.to, way.len);
        step(&format!("{}: {} disguises dropped", way.name, disguises.len()));
    }
    guests.nics.iter_mut().for_each(Nic::assert_silent);

    let counters = guests.counters();
    for counter in [
        VifCounter::tx_drop_guard_address,
        VifCounter::tx_drop_guard_role,
        VifCounter::tx_drop_guard_opaque,
    ] {
        let of_kind: Vec<_> = disguises.iter().filter(|one| one.counter == counter).collect();
        let names: Vec<_> = of_kind.iter().map(|one| one.name).collect();
        let expected = (of_kind.len() * ways.len()) as u64;
        assert_eq!(counters.get(counter), expected, "{}: {names:?}", counter.name());
    }
    let dropped = (disguises.len() * ways.len()) as u64;
    assert_eq!(counters.sum("tx_drop_"), dropped, "{counters:?}");
    assert_eq!(counters.get(VifCounter::tx_frames), ways.len() as u64);
    assert_eq!(counters.get(VifCounter::tx_fragmented), 2, "two were longer than the path");
    assert!(counters.get(VifCounter::tx_local_frames) >= 2, "there was a lane");
}

/// Payload of large TCP frames, in bytes.
const LARGE: usize = 60_000;

/// A large TCP frame that the device is to cut.
fn large(to: [u8; 6], source: [u8; 4], segment: usize) -> ([u8; HEADER_LEN], Vec<u8>) {
    let mut frame = allowed(to, 0, 54 + LARGE);
    frame[23] = 6;
    frame[SOURCE_AT..SOURCE_AT + 4].copy_from_slice(&source);
    frame[34..54].fill(0);
    (frame[46], frame[47]) = (0x50, 0x10);
    let mut header = [0; HEADER_LEN];
    // NEEDS_CSUM; TCPv4; hdr_len; gso_size; csum_start; csum_offset.
    (header[0], header[1]) = (1, 1);
    for (at, value) in [(2, 54), (4, segment), (6, 34), (8, 16)] {
        header[at..at + 2].copy_from_slice(&(value as u16).to_le_bytes());
    }
    (header, frame)
}

#[test]
fn large_frames_are_cut_under_their_own_address_only() {
    let Some(mut guests) = Guests::new("large frames, from a list of addresses") else { return };
    guests.pass(mac(2), 100);
    guests.pass(mac(3), 100);
    guests.introduce();
    // Through a lane; staged; straight from guest memory.
    let ways = [(mac(2), 1400), (mac(2), 8000), (mac(3), 1400), (mac(3), 8000)];
    for (to, segment) in ways {
        for source in [FOREIGN, [0; 4], [224, 0, 0, 1]] {
            let (header, frame) = large(to, source, segment);
            guests.queue(&header, &frame);
        }
        let (header, frame) = large(to, OWN, segment);
        guests.queue(&header, &frame);
        guests.flush();
        let nic = guests.receivers(to).next().unwrap();
        let mut left = LARGE;
        while left > 0 {
            let frame = nic.next_frame(SOON).expect("a segment arrives");
            assert_eq!(frame[SOURCE_AT..SOURCE_AT + 4], OWN);
            assert!(frame.len() <= 54 + segment, "it was cut");
            left -= frame.len() - 54;
        }
    }
    guests.nics.iter_mut().for_each(Nic::assert_silent);
    let counters = guests.counters();
    assert_eq!(counters.get(VifCounter::tx_drop_guard_address), 3 * ways.len() as u64);
    assert_eq!(counters.sum("tx_drop_"), 3 * ways.len() as u64, "{counters:?}");
    assert_eq!(counters.get(VifCounter::tx_frames), 2 + ways.len() as u64);
}

/// Frames that are sent while their headers are overwritten.
const RACES: u32 = 100_000;
/// Of these, as many at a time.
const AT_ONCE: u32 = 50;

/// What the second thread does.
const FLIP: u8 = 0;
const PAUSE: u8 = 1;
const PAUSED: u8 = 2;
const END: u8 = 3;
const FLIPPING: u8 = 4;

/// Writes forbidden and allowed values in turn to where the headers of frames are, all transmit
/// buffers over, until it is told to end.
fn flip(guest: &crate::driver::Memory, buffers: &[u64], task: &AtomicU8) {
    let own = u16::from_le_bytes([OWN[2], OWN[3]]);
    let foreign = u16::from_le_bytes([FOREIGN[2], FOREIGN[3]]);
    // The halves of the address that differ; the destination port; the ether type.
    let fields = [
        (SOURCE_AT + 2, foreign, own),
        (PORT_AT, 68_u16.to_be(), PORTS[1].to_be()),
        (12, 0x88b5_u16.to_be(), 0x0800_u16.to_be()),
    ];
    let write = |pick: fn(&(usize, u16, u16)) -> u16, which: usize| {
        let field = &fields[which];
        for buffer in buffers {
            let at = buffer + (HEADER_LEN + field.0) as u64;
            guest.u16(at).store(pick(field), Ordering::Relaxed);
        }
    };
    // Unless it is to end by now.
    let swap =
        |from, to| task.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok();
    loop {
        match task.load(Ordering::Acquire) {
            END => return,
            PAUSE => {
                swap(PAUSE, PAUSED);
            }
            PAUSED => thread::yield_now(),
            _ => {
                // More often the address, which is the point.
                for which in [0, 1, 0, 2, 0] {
                    write(|field| field.1, which);
                    write(|field| field.2, which);
                }
                swap(FLIP, FLIPPING);
            }
        }
    }
}

#[test]
fn headers_that_change_after_the_check_do_not_leave() {
    let Some(mut guests) = Guests::new("headers that change while frames leave") else { return };
    guests.pass(mac(2), 100);
    guests.pass(mac(3), 100);
    guests.introduce();
    let guest = guests.nics[0].driver.memory.clone();
    let buffers = guests.nics[0].driver.tx_buffers();
    let (task, mut arrived) = (AtomicU8::new(PAUSED), 0);
    thread::scope(|scope| {
        scope.spawn(|| flip(&guest, &buffers, &task));
        let end = EndOnDrop(&task);
        for batch in 0..RACES / AT_ONCE {
            let is = |what| task.load(Ordering::Acquire) == what;
            let way = &WAYS[batch as usize % WAYS.len()];
            let len = if way.name == "pieces" { 9500 } else { way.len };
            for n in 0..AT_ONCE {
                guests.queue(&[0; HEADER_LEN], &allowed(way.to, n, len));
                if n == 9 {
                    task.store(FLIP, Ordering::Release);
                    wait_until("the other thread writes", SOON, || is(FLIPPING));
                }
                if n % 10 == 9 {
                    guests.flush();
                }
            }
            guests.nics[0].wait_sent();
            task.store(PAUSE, Ordering::Release);
            wait_until("the other thread rests", SOON, || is(PAUSED));
            arrived += finish(&mut guests, way.to);
        }
        drop(end);
    });
    let counters = guests.counters();
    let dropped = counters.sum("tx_drop_guard_");
    let batches = u64::from(RACES / AT_ONCE);
    assert_eq!(counters.get(VifCounter::tx_frames) + dropped, 2 + u64::from(RACES) + batches);
    assert_eq!(counters.sum("tx_drop_"), dropped, "{counters:?}");
    assert!(arrived > 1000 && dropped > 1000, "{arrived} arrived, {dropped} dropped");
    step(&format!("{RACES} frames: {dropped} dropped, {arrived} arrived, none forbidden"));
}

/// Ends the other thread also when this one fails.
struct EndOnDrop<'t>(&'t AtomicU8);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(END, Ordering::Release);
    }
}

/// Sends a last frame, which has a length of its own, and looks at all that arrives up to it;
/// returns how many.
fn finish(guests: &mut Guests, to: [u8; 6]) -> u32 {
    const LAST: usize = 77;
    guests.queue(&[0; HEADER_LEN], &allowed(to, 0, LAST));
    guests.flush();
    let mut arrived = 0;
    for nic in guests.receivers(to) {
        loop {
            let frame = nic.next_frame(SOON).expect("a frame arrives");
            assert_eq!(frame[12..14], [8, 0], "IP");
            assert_eq!(frame[SOURCE_AT..SOURCE_AT + 4], OWN, "its own address");
            assert_eq!(frame[PORT_AT..PORT_AT + 2], PORTS[1].to_be_bytes());
            if frame.len() == LAST {
                break;
            }
            arrived += 1;
        }
    }
    arrived
}

#[test]
fn a_list_that_makes_no_sense_is_refused() {
    for (list, why) in [
        ("10.0.0.1/24", "10.0.0.1 has bits beyond /24; did you mean 10.0.0.0/24, or 10.0.0.1?"),
        ("10.0.0.1,", "`` is no IPv4 or IPv6 address"),
        ("ff02::1", "nobody sends from ff02::1"),
    ] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_vhost-user-vnet"))
            .args(["--fd", "0", "--vnet", "42", "--mac", "52:54:00:00:00:01", "--allow-ip", list])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(text.contains(why), "{text}");
    }
}
