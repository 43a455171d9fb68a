//! Frames between vifs of one host: through lanes, which are shared memory, and over UDP where
//! there is none.
//!
//! ```text
//!     vnet 42:   guest 1   guest 2   guest 3
//!     vnet 43:   guest 1   guest 2              the same MACs
//!                   |         |         |
//!                 host a -----+---------+       one varpd
//! ```

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use vnet::metrics::VifCounter;
use vnet::offload::features::Offloads;

use crate::driver::{HEADER_LEN, Options};
use crate::nic::{BROADCAST, LEN, Nic, frame, mac, vif};
use crate::support::netns::Family;
use crate::support::{pause, step, wait_until};
use crate::{Net, SOON};

/// Two guests that know each other.
fn pair(net: &Net) -> (Nic, Nic) {
    let mut one = Nic::start("g1", vif(42, 1), &net.varpds[0]);
    let mut two = Nic::start("g2", vif(42, 2), &net.varpds[0]);
    one.introduce(&mut two);
    (one, two)
}

/// Sends frames from one to the other, no more at a time than the receiver has buffers, and checks
/// that all arrive, in order.
fn pass(from: &mut Nic, to: &mut Nic, numbers: std::ops::Range<u32>) {
    let mut next = numbers.start;
    while next < numbers.end {
        let end = numbers.end.min(next + 100);
        (next..end).for_each(|n| from.queue_frame(&frame(to.mac(), from.mac(), n, 200)));
        from.driver.flush(0);
        for n in next..end {
            assert_eq!(to.receive(from.mac()), n);
        }
        next = end;
    }
}

#[test]
fn frames_take_lanes_and_stay_on_their_vnet() {
    let Some(net) = Net::new("lanes between two vifs", 1) else { return };
    let (mut one, mut two) = pair(&net);
    let mut strangers =
        [1, 2].map(|n| Nic::start(&format!("v43-g{n}"), vif(43, n), &net.varpds[0]));
    pass(&mut one, &mut two, 1..5001);
    pass(&mut two, &mut one, 1..5001);
    one.send(BROADCAST, 7);
    assert_eq!(two.receive(mac(1)), 7);
    for nic in [&one, &two] {
        let counters = nic.counters(&net.varpds[0]);
        assert_eq!(counters.get(VifCounter::tx_local_frames), 5001, "{counters:?}");
        assert_eq!(counters.get(VifCounter::rx_local_frames), 5001, "{counters:?}");
        let group = counters.get(VifCounter::tx_group_frames);
        assert_eq!(counters.get(VifCounter::tx_frames), 5001 + group);
        assert_eq!(counters.get(VifCounter::tx_datagrams), group, "nothing else by UDP");
        assert_eq!(counters.get(VifCounter::lanes_opened), 2, "one each way");
        assert_eq!(counters.sum("tx_drop_"), 0);
    }
    // Nothing came to those with the same MACs, who then have lanes of their own.
    strangers.iter_mut().for_each(Nic::assert_silent);
    let [three, four] = &mut strangers;
    assert_eq!(three.counters(&net.varpds[0]).get(VifCounter::lanes_opened), 0);
    three.introduce(four);
    one.assert_silent();
    two.assert_silent();
    let counters = four.counters(&net.varpds[0]);
    assert_eq!(counters.get(VifCounter::rx_local_frames), 1);
    assert_eq!(counters.sum("rx_drop_"), 0);
}

/// Features of a guest that leaves its NIC all it can, and accepts all.
const OFFLOADS: u64 = Offloads::CSUM.bits()
    | Offloads::GUEST_CSUM.bits()
    | Offloads::GUEST_TSO4.bits()
    | Offloads::HOST_TSO4.bits();
/// Payload of a large frame, in bytes, and of its segments.
const PAYLOAD: usize = 60_000;
const SEGMENT: usize = 1400;
/// Length of Ethernet, IPv4 and TCP headers.
const HEADERS: usize = 54;

/// A large TCP frame as a guest gives it to its NIC: virtio-net header, partial checksum.
fn large(to: [u8; 6], from: [u8; 6], seed: u8) -> ([u8; HEADER_LEN], Vec<u8>) {
    let payload: Vec<u8> =
        (0..PAYLOAD).map(|n| (n as u8).wrapping_mul(7).wrapping_add(seed)).collect();
    let mut bytes = Vec::new();
    let builder = PacketBuilder::ethernet2(from, to)
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .tcp(1000, 2000, 1, 1000)
        .ack(1);
    builder.write(&mut bytes, &payload).unwrap();
    let pseudo = [10_u32 << 8, 1, 10 << 8, 2, 6, (bytes.len() - 34) as u32].iter().sum::<u32>();
    let folded = ((pseudo & 0xffff) + (pseudo >> 16)) as u16;
    bytes[50..52].copy_from_slice(&folded.to_be_bytes());
    let mut header = [0; HEADER_LEN];
    // NEEDS_CSUM; TCPv4; hdr_len; gso_size; csum_start; csum_offset.
    (header[0], header[1]) = (1, 1);
    for (at, value) in [(2, HEADERS), (4, SEGMENT), (6, 34), (8, 16)] {
        header[at..at + 2].copy_from_slice(&(value as u16).to_le_bytes());
    }
    (header, bytes)
}

/// Payload and sequence number of a segment, whose checksums must be complete.
fn segment(frame: &[u8]) -> (u32, Vec<u8>) {
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Tcp(tcp))) = (sliced.net, sliced.transport)
    else {
        panic!("TCP over IPv4")
    };
    let header = ip.header().to_header();
    assert_eq!(header.header_checksum, header.calc_header_checksum());
    let right = tcp.to_header().calc_checksum_ipv4(&header, tcp.payload()).unwrap();
    assert_eq!(tcp.checksum(), right);
    (tcp.sequence_number(), tcp.payload().to_vec())
}

#[test]
fn large_frames_pass_whole_or_are_cut_for_who_wants_that() {
    let Some(net) = Net::new("large frames through lanes", 1) else { return };
    let options =
        |offloads| Options { tx_buffer: 66_000, queue_size: 128, offloads, ..Nic::options() };
    let start = |n: u8, offloads| {
        Nic::start_with(&format!("g{n}"), vif(42, n), &net.varpds[0], options(offloads), &[])
    };
    let (mut one, mut two, mut plain) = (start(1, OFFLOADS), start(2, OFFLOADS), start(3, 0));
    one.introduce(&mut two);
    one.introduce(&mut plain);
    for seed in 0..50 {
        let (header, bytes) = large(mac(2), mac(1), seed);
        assert!(one.driver.queue_packet(0, &header, &bytes));
        one.driver.flush(0);
        let (arrived, frame) = one_packet(&mut two);
        assert!(frame == bytes, "frame {seed} is unchanged");
        assert_eq!(arrived[..10], header[..10], "and so is what it asks for");
    }
    for seed in 0..50 {
        let (header, bytes) = large(mac(3), mac(1), seed);
        assert!(one.driver.queue_packet(0, &header, &bytes));
        one.driver.flush(0);
        let mut payload = Vec::new();
        while payload.len() < PAYLOAD {
            let (header, frame) = one_packet(&mut plain);
            assert_eq!(header[..10], [0; 10], "nothing is left to this guest");
            let (sequence, bytes) = segment(&frame);
            assert_eq!(sequence as usize, 1 + payload.len());
            assert!(bytes.len() <= SEGMENT);
            payload.extend(bytes);
        }
        assert!(payload == bytes[HEADERS..], "payload {seed} is unchanged");
    }
    let counters = plain.counters(&net.varpds[0]);
    let segments = 50 * PAYLOAD.div_ceil(SEGMENT) as u64;
    assert_eq!(counters.get(VifCounter::rx_local_frames), 1 + segments);
    assert_eq!(counters.sum("rx_drop_"), 0);
    let counters = one.counters(&net.varpds[0]);
    assert_eq!(counters.get(VifCounter::tx_local_frames), 102);
    assert_eq!(counters.sum("tx_drop_"), 0);
}

fn one_packet(nic: &mut Nic) -> ([u8; HEADER_LEN], Vec<u8>) {
    nic.driver.recv_packet(0, SOON).expect("a frame arrives")
}

/// A stream from the first to the second, in which no frame may overtake another. `meanwhile` gets
/// the number of the frame that arrived last. Returns how many were sent, and lost.
fn stream(
    one: &mut Nic,
    two: &mut Nic,
    window: u32,
    meanwhile: impl FnOnce(&AtomicU32),
) -> (u32, u32) {
    let (stop, last) = (AtomicBool::new(false), AtomicU32::new(0));
    let (from, to) = (one.mac(), two.mac());
    std::thread::scope(|scope| {
        let streaming = scope.spawn(|| {
            let (mut sent, mut next, mut lost, mut idle) = (1, 1, 0, 0);
            while !stop.load(Ordering::Relaxed) || next < sent {
                while sent - next < window
                    && !stop.load(Ordering::Relaxed)
                    && one.driver.wait_room(0, Duration::ZERO)
                {
                    assert!(one.driver.queue_frame(0, &frame(to, from, sent, 100)));
                    sent += 1;
                }
                one.driver.flush(0);
                one.driver.pairs[0].reclaim();
                match two.try_receive(from, Duration::from_millis(5)) {
                    Some(n) => {
                        assert!(n >= next, "frame {n} comes after {next}");
                        (lost, next, idle) = (lost + n - next, n + 1, 0);
                        last.store(n, Ordering::Relaxed);
                    }
                    // Lost with a process, perhaps.
                    None => idle += 1,
                }
                if idle > 20 {
                    (lost, next, idle) = (lost + sent - next, sent, 0);
                }
            }
            (sent - 1, lost)
        });
        meanwhile(&last);
        stop.store(true, Ordering::Relaxed);
        streaming.join().unwrap()
    })
}

/// Waits until so many more have arrived.
fn more(last: &AtomicU32, count: u32) {
    let goal = last.load(Ordering::Relaxed) + count;
    wait_until("the stream goes on", SOON, || last.load(Ordering::Relaxed) >= goal);
}

fn local_frames(net: &Net, n: u8) -> u64 {
    crate::Counters::of(&net.varpds[0], vif(42, n)).get(VifCounter::rx_local_frames)
}

/// Under a stream of frames varpd makes lanes where there were none, is away, and comes back.
#[test]
fn order_is_kept_from_udp_to_lanes_and_while_varpd_is_away() {
    let config = "[limits]\nlanes = 0\n[timers]\nlifetime = 1\n";
    let what = "from UDP to lanes under a stream";
    let Some(mut net) = Net::with(what, 1, Family::V4, config) else { return };
    let (mut one, mut two) = pair(&net);
    let (sent, lost) = stream(&mut one, &mut two, 60, |last| {
        more(last, 1000);
        assert_eq!(local_frames(&net, 2), 0, "by UDP");
        let varpd = &mut net.varpds[0];
        std::fs::write(&varpd.config, "[timers]\nlifetime = 1\n").unwrap();
        for _ in 0..3 {
            net.varpds[0].kill();
            more(last, 1000);
            net.varpds[0].start_again();
            wait_until("the backends are back", SOON, || {
                let rows = net.varpds[0].show("vifs");
                rows.as_array().unwrap().iter().filter(|row| row["state"] == "active").count() == 2
            });
            let before = local_frames(&net, 2);
            wait_until("frames take lanes", SOON, || local_frames(&net, 2) > before + 1000);
            more(last, 1000);
        }
    });
    assert_eq!(lost, 0);
    let counters = two.counters(&net.varpds[0]);
    assert_eq!(counters.sum("rx_drop_"), 0, "{counters:?}");
    assert_eq!(counters.get(VifCounter::lanes_failed), 0);
    assert!(counters.get(VifCounter::lanes_opened) >= 3, "each varpd made new ones");
    step(&format!(
        "{sent} frames in order, {} by lanes",
        counters.get(VifCounter::rx_local_frames)
    ));
}

/// Backends are killed under a stream; the stream goes on with their successors, over UDP and then
/// through new lanes.
/// What is longer than the guests' MTU, and is not TCP, goes whole where it would leave a host in pieces,
/// and does not lose its place among others.
#[test]
fn frames_longer_than_the_mtu_keep_their_order() {
    let Some(net) = Net::new("frames longer than the MTU through lanes", 1) else { return };
    let narrow = ["--mtu", "1000"];
    let [mut one, mut two] = [("g1", 1), ("g2", 2)].map(|(name, last)| {
        Nic::start_with(name, vif(42, last), &net.varpds[0], Nic::options(), &narrow)
    });
    one.introduce(&mut two);
    wait_until("there is a lane", SOON, || {
        pass(&mut one, &mut two, 1..2);
        local_frames(&net, 2) > 0
    });
    for n in 0..2000 {
        let len = if n % 3 == 0 { 1500 } else { LEN };
        one.queue_frame(&frame(mac(2), mac(1), n, len));
        if n % 50 == 49 {
            one.driver.flush(0);
            for n in n - 49..=n {
                assert_eq!(two.receive(mac(1)), n);
            }
        }
    }
    let counters = one.counters(&net.varpds[0]);
    assert_eq!(counters.get(VifCounter::tx_fragmented), 0);
    assert_eq!(counters.sum("tx_drop_"), 0);
}

#[test]
fn backends_may_be_killed_at_any_time() {
    let Some(net) = Net::with("a backend beside another is killed", 1, Family::V4, "") else {
        return;
    };
    let (mut one, mut two) = pair(&net);
    let mut total = (0, 0);
    for n in 0..6 {
        let kills_reader = n % 2 == 0;
        let (sent, lost) = stream(&mut one, &mut two, 60, |last| more(last, 2000));
        total = (total.0 + sent, total.1 + lost);
        // Some are on their way.
        for number in 1..=30 {
            one.queue_frame(&frame(mac(2), mac(1), number, 100));
        }
        one.driver.flush(0);
        let victim = if kills_reader { &mut two } else { &mut one };
        victim.backend.process.kill();
        victim.backend.start_again();
        victim.reconnect();
        victim.wait_state("active", &net.varpds[0]);
        // What is left of the old stream; then one that arrives.
        let mut number = 1000;
        wait_until("frames pass again", SOON, || {
            one.send(mac(2), number);
            number += 1;
            two.try_receive(mac(1), Duration::from_millis(5)).is_some_and(|n| n >= 1000)
        });
        while two.try_receive(mac(1), Duration::from_millis(50)).is_some() {}
    }
    assert_eq!(total.1, 0, "nothing is lost but with a process");
    let before = local_frames(&net, 2);
    stream(&mut one, &mut two, 60, |_| {
        wait_until("frames take lanes again", Duration::from_secs(30), || {
            pause();
            local_frames(&net, 2) > before + 100
        });
    });
    for nic in [&one, &two] {
        assert_eq!(nic.counters(&net.varpds[0]).get(VifCounter::lanes_failed), 0);
    }
    let stats = net.varpds[0].show("stats");
    let gauge = stats.as_array().unwrap().iter().find(|row| row["counter"] == "lanes_now");
    let lanes = gauge.unwrap()["value"].as_u64().unwrap();
    assert!((1..=2).contains(&lanes), "none is left of the dead: {lanes}");
}

/// A guest that takes nothing holds up its sender only briefly, and only once.
#[test]
fn a_guest_that_stands_still_does_not_hold_up_others() {
    let Some(net) = Net::new("a guest without receive buffers", 1) else { return };
    let (mut one, mut still) = pair(&net);
    let mut three = Nic::start("g3", vif(42, 3), &net.varpds[0]);
    one.introduce(&mut three);
    // More than its buffers and the lane hold, with frames to another in between.
    let mut number = 0;
    for _ in 0..40 {
        for _ in 0..100 {
            one.queue_frame(&frame(mac(2), mac(1), number, 1400));
            number += 1;
        }
        one.send(mac(3), number);
        assert_eq!(three.receive(mac(1)), number);
    }
    let counters = one.counters(&net.varpds[0]);
    let dropped = counters.get(VifCounter::tx_drop_backpressure);
    assert!(dropped > 0, "{counters:?}");
    assert_eq!(counters.sum("tx_drop_"), dropped);
    // What arrives is in order, and all but what was dropped.
    let (mut arrived, mut next) = (0, 0);
    while let Some(n) = still.try_receive(mac(1), Duration::from_millis(200)) {
        assert!(n >= next, "{n} after {next}");
        (arrived, next) = (arrived + 1, n + 1);
    }
    assert_eq!(arrived + dropped, u64::from(number));
    pass(&mut one, &mut still, number + 1..number + 2000);
    let later = one.counters(&net.varpds[0]).get(VifCounter::tx_drop_backpressure);
    assert_eq!(later, dropped);
    step(&format!("{arrived} frames waited, {dropped} were dropped"));
}

#[test]
fn queue_pairs_keep_their_order() {
    let Some(net) = Net::new("lanes between several queue pairs", 1) else { return };
    let start = |n: u8, pairs: usize| {
        let options = Options { pairs, ..Nic::options() };
        let pairs = pairs.to_string();
        let further = ["--queue-pairs", &pairs];
        Nic::start_with(&format!("g{n}"), vif(42, n), &net.varpds[0], options, &further)
    };
    let (mut wide, mut narrow) = (start(1, 3), start(2, 2));
    // The first frame on each pair asks; what follows takes a lane.
    for pair in 0..3 {
        assert!(wide.driver.queue_frame(pair, &frame(mac(2), mac(1), 0, 100)));
        wide.driver.flush(pair);
        assert!(narrow.driver.recv_packet(pair % 2, SOON).is_some());
    }
    for n in 0..500 {
        for pair in 0..3 {
            let sent = frame(mac(2), mac(1), 1000 * pair as u32 + n, 100);
            wait_until("room in the ring", SOON, || wide.driver.queue_frame(pair, &sent));
            wide.driver.flush(pair);
        }
    }
    let mut next = [0, 1000, 2000];
    for pair in [0, 1] {
        let count = if pair == 0 { 1000 } else { 500 };
        for _ in 0..count {
            let (_, got) = narrow.driver.recv_packet(pair, SOON).expect("on this pair");
            let number = crate::nic::number(&got, mac(1));
            let of = number as usize / 1000;
            assert_eq!(of % 2, pair, "a pair's frames stay together");
            assert_eq!(number, next[of]);
            next[of] += 1;
        }
    }
    assert_eq!(next, [500, 1500, 2500]);
    let counters = narrow.counters(&net.varpds[0]);
    assert_eq!(counters.get(VifCounter::rx_local_frames), 1503, "{counters:?}");
    assert_eq!(counters.get(VifCounter::lanes_opened), 3);
}
