//! Echoes of other hosts are answered, and are nothing to the guest.

use super::*;
use crate::policy::Suite;
use crate::secret::{SaKey, Secret};
use crate::tunnel::protect::tests::pair_between;
use crate::wire::control::Lifetime;
use crate::wire::echo::{Body, Message};
use crate::wire::encap::{self, Flags, Header};
use crate::wire::esp::Spi;

const ALL: Capabilities = crate::vif::link::CAPABILITIES;
const ASKED: u64 = 1_767_225_600_000_000;

fn question(padding: usize) -> Message {
    let body = Body::Question { padding };
    let (longest, nonce, asked_us) = (1500, 77, ASKED);
    Message { longest, nonce, asked_us, proof: None, slots: 0, hops: Vec::new(), body }
}

fn datagram(message: &Message) -> Vec<u8> {
    let vnet = VnetId::new(42).unwrap();
    let mut bytes = Header { flags: Flags::ECHO, vnet }.emit().to_vec();
    message.emit(&mut bytes);
    bytes
}

fn capable() -> Worker<MemoryUnderlay> {
    let mut worker = offloading_worker(ALL);
    worker.tunnel.place_mut().receiver.capabilities = ALL;
    worker
}

/// Takes in what has come; nothing reaches the guest.
fn take_in(worker: &mut Worker<MemoryUnderlay>) {
    let mut driver = Driver::new();
    driver.offer(&[(&[], 0x1000, WRITE)]);
    receive(worker, &mut driver);
    assert!(driver.used().is_empty());
    worker.tunnel.answer_echoes(ASKED + 5, Instant::ZERO);
}

#[test]
fn a_question_is_answered_to_its_source_and_not_shown_to_the_guest() {
    let mut worker = capable();
    let asked = datagram(&question(200));
    worker.tunnel.underlay_mut().own.push_back((addr(9), asked.clone()));
    take_in(&mut worker);
    let [(to, sent)] = &worker.tunnel.underlay().sent[..] else { panic!("one answer") };
    assert!(*to == addr(9) && sent.len() <= asked.len());
    let (header, rest) = Header::parse(sent).unwrap();
    assert_eq!(header.flags, Flags::ECHO);
    let answer = Message::parse(rest).unwrap();
    let body = Body::Answer { question_len: 240, arrived_us: ASKED + 5, answered_us: ASKED + 5 };
    assert_eq!((answer.nonce, answer.asked_us, answer.longest), (77, ASKED, 1500));
    assert_eq!(answer.body, body);
    assert_eq!(worker.counters.get(VifCounter::rx_echoes), 1);
    assert_eq!(worker.counters.get(VifCounter::tx_echoes), 1);
}

#[test]
fn answers_malformed_questions_and_too_many_are_counted() {
    let mut worker = capable();
    let answer = question(0).answer(1500, 1, 1).unwrap();
    let mut malformed = datagram(&question(0));
    malformed.truncate(encap::LEN + 20);
    for bytes in [datagram(&answer), malformed] {
        worker.tunnel.underlay_mut().own.push_back((addr(9), bytes));
    }
    take_in(&mut worker);
    assert_eq!(worker.counters.get(VifCounter::rx_drop_echo), 2);
    (0..30).for_each(|_| {
        worker.tunnel.underlay_mut().own.push_back((addr(9), datagram(&question(0))))
    });
    take_in(&mut worker);
    assert_eq!(worker.counters.get(VifCounter::tx_echoes), 10);
    assert_eq!(worker.counters.get(VifCounter::tx_drop_echo), 20);
    // To the group nobody asks.
    worker.tunnel.underlay_mut().group.push_back((addr(9), datagram(&question(0))));
    let before = worker.counters.get(VifCounter::rx_drop_flags);
    let mut driver = Driver::new();
    driver.offer(&[(&[], 0x1000, WRITE)]);
    let Driver { queue, memory, .. } = &mut driver;
    worker.receive(Port::Group, queue, memory, Instant::ZERO).unwrap();
    assert_eq!(worker.counters.get(VifCounter::rx_drop_flags), before + 1);
}

#[test]
fn on_a_secured_vnet_questions_and_answers_are_sealed() {
    let (mut one, two) = pair_between(addr(7), addr(1));
    let mut worker = capable();
    worker.tunnel.place_mut().receiver.key.mac = Mac(PEER);
    worker.tunnel.set_protection(Some(two));
    let asked = datagram(&question(100));
    // In clear it is nothing.
    worker.tunnel.underlay_mut().own.push_back((addr(7), asked.clone()));
    take_in(&mut worker);
    assert!(worker.tunnel.underlay().sent.is_empty());
    assert_eq!(worker.counters.get(VifCounter::rx_drop_plaintext), 1);
    let mut ask = |worker: &mut Worker<MemoryUnderlay>| {
        let sealed = one.seal_one(addr(1), &asked).unwrap();
        worker.tunnel.underlay_mut().own.push_back((addr(7), sealed.clone()));
        take_in(worker);
        sealed.len()
    };
    ask(&mut worker);
    assert!(worker.tunnel.underlay().sent.is_empty(), "no answer in clear where there is no key");
    assert_eq!(worker.counters.get(VifCounter::tx_drop_echo), 1);
    let key = SaKey { key: Secret::new([1; 32]), salt: [0; 4] };
    let protection = worker.tunnel.protection_mut().unwrap();
    let lifetime = Lifetime { usual: Duration::from_secs(60), hard: Duration::from_secs(60) };
    let (outbound, suite) = (protection.outbound_mut(), Suite::AesGcm);
    outbound.insert(addr(7), Spi::of(3, 5), suite, &key, lifetime, Instant::ZERO);
    let len = ask(&mut worker);
    let [(to, sent)] = &worker.tunnel.underlay().sent[..] else { panic!("one answer") };
    assert!(*to == addr(7) && sent.len() <= len && sent[0] & 0x80 != 0);
    assert_eq!(worker.counters.get(VifCounter::tx_echoes), 1);
}
