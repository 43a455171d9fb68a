//! While the vnet's policy changes: what is sealed, and what is accepted; and a NIC that carries nothing.

use super::*;
use crate::policy::{Level, Policy};
use crate::tunnel::protect::tests::pair_between;
use crate::wire::esp::sealed_len;

const ALL: Capabilities = crate::vif::link::CAPABILITIES;
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 3];
const EVERYBODY: [u8; 6] = [0xff; 6];

fn policy(levels: &[Level]) -> Policy {
    Policy::new(levels).unwrap()
}

fn sealed_first() -> Policy {
    policy(&[Level::Conf, Level::None])
}

fn know(worker: &mut Worker<MemoryUnderlay>, mac: [u8; 6], port: u16) {
    let coa = CareOf { capabilities: ALL, ..coa(port) };
    let lifetime = Duration::from_secs(30);
    worker.handle_mapping(Mac(mac), coa, lifetime, Instant::ZERO);
}

/// Frames side by side, to where a key leads and to where none does.
#[test]
fn what_has_a_key_is_sealed_and_the_rest_leaves_plain_until_it_must_not() {
    let (mut one, two) = pair_between(addr(1), addr(7));
    one.set_policy(sealed_first());
    let mut worker = offloading_worker(ALL);
    worker.tunnel.set_protection(Some(one));
    know(&mut worker, OTHER, 8);
    let mut driver = Driver::new();
    let lens = [60, 60, 300, 1390, 700, 2000];
    for (n, len) in (0_u8..).zip(lens) {
        for to in [PEER, OTHER] {
            driver.offer_frame(&frame(to, OWN, &vec![n; len]));
        }
    }
    transmit(&mut worker, &mut driver);
    let sent = mem::take(&mut worker.tunnel.underlay_mut().sent);
    let (sealed, plain): (Vec<_>, Vec<_>) = sent.into_iter().partition(|(to, _)| *to == addr(7));
    let mut opened = Vec::new();
    for (_, mut datagram) in sealed {
        let inner = two.opening(Instant::ZERO).open(Port::Own, addr(1), &mut datagram).unwrap();
        opened.push(datagram[inner].to_vec());
    }
    assert!(plain.iter().all(|(to, datagram)| *to == addr(8) && datagram[0] & 0xf0 == 0x40));
    let bytes = |of: &[Vec<u8>]| of.iter().map(Vec::len).sum::<usize>();
    let plain: Vec<Vec<u8>> = plain.into_iter().map(|(_, datagram)| datagram).collect();
    assert!(bytes(&plain) >= lens.iter().sum() && bytes(&opened) >= lens.iter().sum());
    assert!(plain.iter().all(|d| d.len() <= 1472), "as long as the path takes");
    assert!(opened.iter().all(|d| sealed_len(d.len()) <= 1472));
    assert_eq!(worker.counters.get(VifCounter::tx_frames), 12);

    worker.tunnel.set_policy(Policy::only(Level::Conf), &mut || None);
    for to in [OTHER, PEER] {
        driver.offer_frame(&frame(to, OWN, &[9; 60]));
    }
    transmit(&mut worker, &mut driver);
    let [(to, _)] = &worker.tunnel.underlay().sent[..] else { panic!("one waits for a key") };
    assert_eq!(*to, addr(7));
    assert_eq!(worker.counters.get(VifCounter::tx_parked), 1);
    assert_eq!(worker.tunnel.questions().count(), 1, "varpd is asked again");
}

#[test]
fn group_frames_are_sealed_as_soon_as_there_is_a_key() {
    let (with_key, _) = pair_between(addr(1), addr(7));
    let without =
        || Protection::of_vif(worker().tunnel.place().receiver.key.vnet, sealed_first())();
    for (protection, is_sealed) in [(without(), false), (Some(with_key), true)] {
        let mut worker = worker();
        worker.tunnel.set_protection(protection);
        worker.tunnel.set_policy(sealed_first(), &mut || None);
        let mut driver = Driver::new();
        driver.offer_frame(&frame(EVERYBODY, OWN, &[1; 60]));
        transmit(&mut worker, &mut driver);
        let [(to, datagram)] = &worker.tunnel.underlay().sent[..] else { panic!("one datagram") };
        assert_eq!((*to, datagram[0] & 0x80 != 0), (addr(1798), is_sealed));
    }
}

#[test]
fn both_kinds_are_taken_in_order_and_counted() {
    let (mut one, mut two) = pair_between(addr(7), addr(1));
    two.set_policy(policy(&[Level::None, Level::Conf]));
    let mut worker = worker();
    worker.set_features(MERGEABLE, Offloads::NONE);
    worker.tunnel.set_protection(Some(two));
    let mut driver = Driver::new();
    let places: Vec<u64> = (0..SIZE).flat_map(|_| driver.offer(&[(&[], 0x1000, WRITE)])).collect();
    let mut come = |worker: &mut Worker<MemoryUnderlay>, n: u8, is_sealed: bool| {
        let plain = encapsulated_frame(OWN, PEER, &[n; 60]);
        let datagram = if is_sealed { one.seal_one(addr(1), &plain).unwrap() } else { plain };
        worker.tunnel.underlay_mut().own.push_back((addr(7), datagram));
    };
    for n in 0..6 {
        come(&mut worker, n, n % 3 == 0);
    }
    receive(&mut worker, &mut driver);
    let used = driver.used();
    assert_eq!(used.len(), 6);
    for (n, at) in (0_u8..6).zip(&places) {
        assert_eq!(driver.read(*at, 12 + 14 + 60)[12 + 14..], [n; 60]);
    }
    assert_eq!(worker.counters.get(VifCounter::rx_other_policy), 2, "the sealed ones");
    worker.tunnel.set_policy(sealed_first(), &mut || None);
    come(&mut worker, 6, true);
    come(&mut worker, 7, false);
    receive(&mut worker, &mut driver);
    assert_eq!(worker.counters.get(VifCounter::rx_other_policy), 3, "the plain one");
    worker.tunnel.set_policy(Policy::only(Level::Conf), &mut || None);
    come(&mut worker, 8, false);
    come(&mut worker, 9, true);
    receive(&mut worker, &mut driver);
    assert_eq!(worker.counters.get(VifCounter::rx_drop_plaintext), 1);
    assert_eq!((driver.used().len(), worker.counters.get(VifCounter::rx_other_policy)), (9, 3));
}

#[test]
fn a_halted_nic_carries_nothing_in_any_way() {
    let mut worker = worker();
    worker.set_features(MERGEABLE, Offloads::NONE);
    let mut driver = Driver::new();
    driver.offer_frame(&frame(OTHER, OWN, &[1; 60]));
    transmit(&mut worker, &mut driver);
    assert_eq!(worker.counters.get(VifCounter::tx_parked), 1);
    worker.set_halted(true);
    know(&mut worker, OTHER, 8);
    assert_eq!(worker.counters.get(VifCounter::tx_drop_policy), 1, "what had waited");
    for to in [OTHER, EVERYBODY] {
        driver.offer_frame(&frame(to, OWN, &[2; 60]));
    }
    transmit(&mut worker, &mut driver);
    assert_eq!(worker.counters.get(VifCounter::tx_drop_policy), 3);
    worker.arrival().told(true, Instant::ZERO);
    worker.announce_arrival(Instant::ZERO);
    assert!(worker.tunnel.underlay().sent.is_empty());
    let mut driver = Driver::new();
    (0..4).for_each(|_| drop(driver.offer(&[(&[], 0x1000, WRITE)])));
    worker.tunnel.underlay_mut().own.push_back((addr(7), encapsulated_frame(OWN, PEER, &[3; 60])));
    receive(&mut worker, &mut driver);
    assert_eq!(worker.counters.get(VifCounter::rx_drop_policy), 1);
    assert_eq!(driver.used(), []);

    worker.set_halted(false);
    worker.tunnel.underlay_mut().own.push_back((addr(7), encapsulated_frame(OWN, PEER, &[4; 60])));
    receive(&mut worker, &mut driver);
    assert_eq!(driver.used().len(), 1);
}
