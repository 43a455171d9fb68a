//! What leaves on a secured vnet besides the frames of a batch: pieces, and frames of our own.

use super::*;
use crate::policy::Level;
use crate::port::arrival::rarp;
use crate::tunnel::protect::tests::pair_between;
use crate::wire::encap;

const ALL: Capabilities = crate::vif::link::CAPABILITIES;

/// Of what is sealed, too, and of each kind of message: nothing is lost, and order is kept.
#[test]
fn what_is_sealed_leaves_in_pieces_when_the_kernel_knows_better() {
    let (one, two) = pair_between(addr(1), addr(7));
    let mut worker = offloading_worker(ALL);
    worker.tunnel.set_protection(Some(one));
    worker.tunnel.underlay_mut().max_datagram = Some(1000);
    let mut driver = Driver::new();
    let mut sent = Vec::new();
    for len in [300, 300, 300, 300, 300, 300, 1200, 1200, 1100, 1390] {
        sent.push(frame(PEER, OWN, &vec![sent.len() as u8; len]));
        driver.offer_frame(sent.last().unwrap());
    }
    transmit(&mut worker, &mut driver);
    assert!(worker.tunnel.underlay().sent.iter().all(|(_, d)| d.len() <= 1000 && d[0] & 0x80 != 0));
    assert_eq!(worker.counters.get(VifCounter::tx_frames), 10);

    let mut peer = offloading_worker(ALL);
    peer.tunnel.place_mut().receiver.capabilities = ALL;
    peer.tunnel.place_mut().receiver.key.mac = Mac(PEER);
    peer.set_features(MERGEABLE, Offloads::NONE);
    peer.tunnel.set_protection(Some(two));
    let mut driver = Driver::new();
    let places: Vec<u64> = (0..SIZE).flat_map(|_| driver.offer(&[(&[], 0x1000, WRITE)])).collect();
    let datagrams = mem::take(&mut worker.tunnel.underlay_mut().sent).into_iter();
    peer.tunnel.underlay_mut().own.extend(datagrams.map(|(_, datagram)| (addr(1), datagram)));
    // More than one batch.
    (0..4).for_each(|_| receive(&mut peer, &mut driver));
    let used = driver.used().into_iter();
    let read = |((_, len), at): ((u32, u32), &u64)| driver.read(*at, len as usize)[12..].to_vec();
    let arrived: Vec<Vec<u8>> = used.zip(&places).map(read).collect();
    assert!(arrived == sent, "all, and in order");
    for worker in [&worker, &peer] {
        let values = worker.counters.readings();
        let drops = values.filter(|r| r.name.contains("_drop_") && r.value > 0);
        assert_eq!(drops.count(), 0);
    }
}

/// Mappings come with keys, and there are none for the new place yet.
#[test]
fn at_another_place_frames_wait_for_new_keys() {
    let (one, _) = pair_between(addr(1), addr(7));
    let mut worker = offloading_worker(ALL);
    worker.tunnel.set_protection(Some(one));
    let mut driver = Driver::new();
    driver.offer_frame(&frame(PEER, OWN, &[1; 100]));
    transmit(&mut worker, &mut driver);
    assert_eq!(worker.tunnel.underlay().sent.len(), 1, "the place is known, and there is a key");

    let place = *worker.tunnel.place();
    drop(worker.tunnel.replace_underlay(MemoryUnderlay::default(), place));
    driver.offer_frame(&frame(PEER, OWN, &[2; 100]));
    transmit(&mut worker, &mut driver);
    assert_eq!(worker.counters.get(VifCounter::tx_drop_no_key), 0);
    assert_eq!(worker.counters.get(VifCounter::tx_parked), 1);
}

/// Members hear of a guest's arrival, and nobody else learns its MAC.
#[test]
fn the_announcement_of_an_arrival_is_sealed() {
    let (one, two) = pair_between(addr(1), addr(7));
    let mut worker = worker();
    worker.tunnel.set_protection(Some(
        Protection::of_vif(worker.tunnel.place().receiver.key.vnet, Level::Conf)().unwrap(),
    ));
    worker.arrival().told(true, Instant::ZERO);
    worker.announce_arrival(Instant::ZERO);
    assert_eq!(worker.counters.get(VifCounter::tx_drop_no_key), 1, "there is no key yet");
    assert!(worker.tunnel.underlay().sent.is_empty());

    worker.tunnel.set_protection(Some(one));
    let next = worker.arrival().poll_timeout().unwrap();
    worker.announce_arrival(next);
    let [(to, sealed)] = &mut worker.tunnel.underlay_mut().sent[..] else { panic!("one datagram") };
    assert_eq!(*to, addr(1798));
    assert!(!sealed.windows(OWN.len()).any(|bytes| bytes == OWN), "the MAC is not readable");
    let inner = two.opening(next).open(Port::Group, addr(1), sealed).unwrap();
    assert_eq!(sealed[inner][encap::LEN..], rarp(Mac(OWN)));
    assert_eq!(worker.counters.get(VifCounter::tx_announcements), 1);
}
