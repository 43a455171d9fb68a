//! A guest that has left: its late frames are sent on, and those who sent them reported.

use super::*;

const NEW_PLACE: u16 = 9;

fn depart(worker: &mut Worker<MemoryUnderlay>, now: Instant) {
    let lifetime = Duration::from_secs(30);
    worker.depart(Mac(OWN), coa(NEW_PLACE), lifetime, now);
}

fn arrive_from(worker: &mut Worker<MemoryUnderlay>, port: u16, payload: &[u8]) {
    let datagram = encapsulated_frame(OWN, PEER, payload);
    worker.tunnel.underlay_mut().own.push_back((addr(port), datagram));
}

#[test]
fn late_frames_are_sent_on_once_and_their_senders_reported() {
    let mut worker = worker();
    worker.set_running(false, Instant::ZERO);
    for n in 0..3 {
        arrive_from(&mut worker, 7, &[n]);
    }
    assert_eq!(worker.forwards_alone_until(Instant::ZERO), None);
    depart(&mut worker, Instant::ZERO);
    assert_eq!(worker.forwards_alone_until(Instant::ZERO), Some(Instant::from_millis(30_000)));
    // From the new place, and from a host that the sender is not on: sent on already.
    arrive_from(&mut worker, NEW_PLACE, b"back");
    worker.forward_waiting(Instant::ZERO);
    learn(&mut worker, PEER, 7);
    let elsewhere = SocketAddr::from(([192, 0, 2, 8], 8));
    worker
        .tunnel
        .underlay_mut()
        .own
        .push_back((elsewhere, encapsulated_frame(OWN, PEER, b"indirect")));
    worker.forward_waiting(Instant::ZERO);
    let expected: Vec<_> =
        (0..3).map(|n| (addr(NEW_PLACE), encapsulated_frame(OWN, PEER, &[n]))).collect();
    assert_eq!(worker.tunnel.underlay().sent, expected);
    assert_eq!(worker.counters.get(VifCounter::tx_forwarded), 3);
    assert_eq!(worker.counters.get(VifCounter::tx_frames), 0, "not the guest's own");
    assert_eq!(worker.counters.get(VifCounter::rx_drop_departed), 2);
    assert!(worker.wants_attention());
    let senders: Vec<SocketAddr> = worker.tunnel.late_senders().map(|late| late.from).collect();
    assert_eq!(senders, [addr(7), addr(NEW_PLACE), elsewhere]);
    arrive_from(&mut worker, 7, b"too late");
    worker.forward_waiting(Instant::from_millis(30_000));
    assert_eq!(worker.tunnel.underlay().sent.len(), 3);
}

#[test]
fn a_guest_that_has_left_gets_nothing_though_its_rings_run() {
    let (mut worker, mut driver) = (worker(), Driver::new());
    worker.set_running(true, Instant::ZERO);
    driver.offer(&[(b"", 200, WRITE)]);
    depart(&mut worker, Instant::ZERO);
    arrive_from(&mut worker, 7, b"late");
    receive(&mut worker, &mut driver);
    assert_eq!(driver.used(), []);
    assert_eq!(worker.tunnel.underlay().sent.len(), 1);
    // It is back.
    worker.tunnel.arrive(Mac(OWN));
    arrive_from(&mut worker, 7, b"now");
    receive(&mut worker, &mut driver);
    assert_eq!(driver.used().len(), 1);
    assert_eq!(worker.counters.get(VifCounter::rx_frames), 1);
}

#[test]
fn what_waited_too_long_is_not_sent_on() {
    let mut worker = worker();
    worker.set_running(false, Instant::ZERO);
    arrive_from(&mut worker, 7, b"old");
    depart(&mut worker, Instant::from_millis(1001));
    worker.forward_waiting(Instant::from_millis(1001));
    assert!(worker.tunnel.underlay().sent.is_empty());
    assert_eq!(worker.counters.get(VifCounter::rx_drop_no_ring), 1);
    // The guest comes back: what comes now is for it.
    worker.set_running(true, Instant::from_millis(1002));
    assert_eq!(worker.forwards_alone_until(Instant::from_millis(1002)), None);
}

#[test]
fn partial_checksums_are_completed_where_the_new_place_needs_it() {
    for capabilities in [Capabilities::NONE, Capabilities::PARTIAL_CHECKSUM] {
        let mut worker = offloading_worker(Capabilities::NONE);
        worker.tunnel.place_mut().receiver.capabilities = Capabilities::PARTIAL_CHECKSUM;
        worker.set_running(false, Instant::ZERO);
        let place = CareOf { capabilities, ..coa(NEW_PLACE) };
        let lifetime = Duration::from_secs(30);
        worker.depart(Mac(OWN), place, lifetime, Instant::ZERO);
        let mut frame = tcp_frame(100);
        frame[..6].copy_from_slice(&OWN);
        frame[6..12].copy_from_slice(&PEER);
        let datagram = [&[0x40, 1, 0, 0, 0, 0, 0, 42][..], &frame].concat();
        worker.tunnel.underlay_mut().own.push_back((addr(7), datagram.clone()));
        worker.forward_waiting(Instant::ZERO);
        let (to, sent) = worker.tunnel.underlay_mut().sent.pop().expect("it is sent on");
        assert_eq!(to, addr(NEW_PLACE));
        if capabilities == Capabilities::NONE {
            assert_eq!(sent[1], 0);
            assert_complete(&sent[8..]);
        } else {
            assert_eq!(sent, datagram);
        }
    }
}
