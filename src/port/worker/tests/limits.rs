//! Rate limits: what waits, where, and until when.

use super::*;
use crate::port::throttle::Limits;

const LEN: usize = 14 + 1000;

fn at(micros: u64) -> Instant {
    Instant::from_micros(micros)
}

/// A worker with a limit of 8 Mbit/s, that is a byte per microsecond, with a burst of 2 ms: two
/// frames. It knows its peer.
fn limited(limits: Limits) -> Worker<MemoryUnderlay> {
    let limits = Limits { burst: Some("2000".parse().unwrap()), ..limits };
    let mut worker = worker().with_throttle(Throttle::new(&limits).unwrap());
    learn(&mut worker, PEER, 7);
    worker
}

fn rate() -> Option<crate::limiter::units::Rate> {
    Some("8M".parse().unwrap())
}

fn transmit_at(worker: &mut Worker<MemoryUnderlay>, driver: &mut Driver, now: Instant) -> usize {
    let Driver { queue, memory, .. } = driver;
    assert_eq!(worker.transmit(queue, memory, now).unwrap(), Progress::Idle);
    mem::take(&mut worker.tunnel.underlay_mut().sent).len()
}

#[test]
fn frames_beyond_the_rate_stay_in_the_guests_ring() {
    let mut worker = limited(Limits { rate_out: rate(), ..Limits::default() });
    let mut driver = Driver::new();
    for n in 0..6 {
        driver.offer_frame(&frame(PEER, OWN, &[n; 1000]));
    }
    assert_eq!(transmit_at(&mut worker, &mut driver, at(0)), 2);
    assert_eq!(driver.used().len(), 2, "the others are still the guest's");
    assert!(worker.throttle().holds(Direction::Out) && !worker.is_blocked());
    assert_eq!(transmit_at(&mut worker, &mut driver, at(10)), 0, "a kick changes nothing");
    let until = worker.throttle().poll_timeout().unwrap();
    // 28 bytes are owed, and 1 KiB is booked.
    assert_eq!(until, at(1024));
    assert_eq!(transmit_at(&mut worker, &mut driver, until), 1);
    assert_eq!(transmit_at(&mut worker, &mut driver, at(2048)), 1);
    assert_eq!(transmit_at(&mut worker, &mut driver, at(20_000)), 2);
    assert!(!worker.throttle().holds(Direction::Out), "nothing is left to wait");
    assert_eq!(worker.throttle().poll_timeout(), None);
    assert_eq!(worker.counters.get(VifCounter::tx_throttled), 3);
    assert_eq!(worker.counters.get(VifCounter::tx_bytes), 6 * LEN as u64);
}

#[test]
fn parked_frames_are_charged_and_dropped_ones_are_not() {
    let mut worker = limited(Limits { rate_out: rate(), ..Limits::default() });
    let mut driver = Driver::new();
    for _ in 0..5 {
        driver.offer_frame(&frame(OWN, OWN, &[0; 1000]));
    }
    assert_eq!(transmit_at(&mut worker, &mut driver, at(0)), 0);
    assert_eq!(worker.counters.get(VifCounter::tx_drop_self), 5);
    for n in 0..5 {
        driver.offer_frame(&frame([2, 0, 0, 0, 0, 9], OWN, &[n; 1000]));
    }
    assert_eq!(transmit_at(&mut worker, &mut driver, at(0)), 0);
    assert_eq!(worker.counters.get(VifCounter::tx_parked), 2);
    assert!(worker.throttle().holds(Direction::Out));
}

#[test]
fn received_frames_beyond_the_rate_wait_and_arrive_in_order() {
    let mut worker = limited(Limits { rate_in: rate(), ..Limits::default() });
    worker.set_features(MERGEABLE, Offloads::NONE);
    let mut driver = Driver::new();
    let mut buffers = Vec::new();
    for _ in 0..8 {
        buffers.extend(driver.offer(&[(&[], 2000, WRITE)]));
    }
    for n in 0..6 {
        let datagram = encapsulated_frame(OWN, PEER, &[n; 1000]);
        worker.tunnel.underlay_mut().own.push_back((addr(7), datagram));
    }
    let mut receive_at = |worker: &mut Worker<MemoryUnderlay>, now| {
        let Driver { queue, memory, .. } = &mut driver;
        worker.receive(Port::Own, queue, memory, now).unwrap();
        driver.used().len()
    };
    assert_eq!(receive_at(&mut worker, at(0)), 2);
    assert!(worker.is_blocked() && worker.throttle().holds(Direction::In));
    assert_eq!(receive_at(&mut worker, at(10)), 2);
    let until = worker.throttle().poll_timeout().unwrap();
    assert_eq!(receive_at(&mut worker, until), 3);
    assert_eq!(receive_at(&mut worker, at(2048)), 4);
    assert_eq!(receive_at(&mut worker, at(20_000)), 6);
    assert!(!worker.is_blocked());
    assert_eq!(worker.counters.get(VifCounter::rx_throttled), 3);
    for (n, (address, (_, len))) in buffers.iter().zip(driver.used()).enumerate() {
        assert_eq!(len as usize, MODERN_HEADER_LEN + LEN);
        let got = driver.read(address + MODERN_HEADER_LEN as u64, LEN);
        assert_eq!(got, frame(OWN, PEER, &[n as u8; 1000]), "frame {n}");
    }
}

#[test]
fn a_storm_to_the_group_is_dropped_and_unicast_passes() {
    let limits = Limits { rate_out: rate(), group_frames: Some(100), ..Limits::default() };
    let mut worker = worker().with_throttle(Throttle::new(&limits).unwrap());
    learn(&mut worker, PEER, 7);
    let mut driver = Driver::new();
    let mut sent = 0;
    for _ in 0..20 {
        for _ in 0..SIZE {
            driver.offer_frame(&frame([0xff; 6], OWN, &[]));
        }
        sent += transmit_at(&mut worker, &mut driver, at(0));
    }
    assert_eq!(sent, 32);
    let dropped = worker.counters.get(VifCounter::tx_drop_group_rate);
    assert_eq!(dropped, 20 * u64::from(SIZE) - 32);
    assert!(!worker.throttle().holds(Direction::Out), "what is dropped costs no credit");
    driver.offer_frame(&frame(PEER, OWN, &[]));
    assert_eq!(transmit_at(&mut worker, &mut driver, at(0)), 1);
}

#[test]
fn a_ring_that_starts_anew_waits_for_nothing() {
    let mut worker = limited(Limits { rate_out: rate(), ..Limits::default() });
    let mut driver = Driver::new();
    for n in 0..6 {
        driver.offer_frame(&frame(PEER, OWN, &[n; 1000]));
    }
    transmit_at(&mut worker, &mut driver, at(0));
    worker.set_running(false, at(0));
    assert_eq!(worker.throttle().poll_timeout(), None);
    worker.set_running(true, at(5000));
    assert_eq!(transmit_at(&mut worker, &mut driver, at(5000)), 2);
}

/// A frame that is cut into thousands counts as them to a group, and as more than its own bytes
/// elsewhere.
#[test]
fn large_frames_in_tiny_segments_do_not_pass_below_the_limits() {
    let mut worker = limited(Limits { group_frames: Some(100), ..Limits::default() });
    worker.set_features(MERGEABLE, Offloads::ALL);
    let mut to_group = tcp_frame(4000);
    to_group[..6].fill(0xff);
    let mut driver = Driver::new();
    for _ in 0..4 {
        offer_with_header(&mut driver, tso_header(&to_group, 1), &to_group);
    }
    assert_eq!(transmit_at(&mut worker, &mut driver, at(0)), 4000);
    assert_eq!(worker.counters.get(VifCounter::tx_drop_group_rate), 3, "40 seconds' worth");
    // At a byte per microsecond, 1000 segments to one place are 130 milliseconds and not one.
    let mut worker = limited(Limits { rate_out: rate(), ..Limits::default() });
    worker.set_features(MERGEABLE, Offloads::ALL);
    let large = tcp_frame(1000);
    for _ in 0..2 {
        offer_with_header(&mut driver, tso_header(&large, 1), &large);
    }
    assert_eq!(transmit_at(&mut worker, &mut driver, at(0)), 1000);
    let mut now = at(0);
    while driver.used().len() < 6 {
        now = worker.throttle().poll_timeout().unwrap();
        transmit_at(&mut worker, &mut driver, now);
    }
    assert!((at(130_000)..at(140_000)).contains(&now), "{now:?}");
}
