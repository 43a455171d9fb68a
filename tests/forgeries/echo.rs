//! Echoes and traces between hosts (flag O), at a vif's own port and at the group's. Attackers
//! choose source addresses.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use vnet::policy::Level;
use vnet::time::Instant;
use vnet::underlay::Port;
use vnet::wire::echo::{Body, Hop, MAX_SLOTS, Message, Proof};
use vnet::wire::encap::{Flags, Header};
use vnet::wire::name::{Name, Realm};

use super::nic::{Done, Nic, WALL_US};
use super::{Random, alter, count, vnet};

/// Answers at once, and in each second after: of a vif, and to one source.
const LIMITS: [u64; 2] = [100, 10];

fn host(random: &mut Random, hosts: u64) -> SocketAddr {
    let n = u32::try_from(random.range(0, hosts)).unwrap();
    (IpAddr::from(Ipv4Addr::from(0x0a00_0000 + n)), 4000).into()
}

/// A question, as anybody makes one: a trace as well, whose HMAC only relays look at.
fn question(random: &mut Random) -> Message {
    let is_trace = random.per_mille(300);
    let proof = is_trace.then_some(Proof { key_number: 1, hmac: [7; 16] });
    let slots = if is_trace { random.range(0, MAX_SLOTS as u64 + 1) as u8 } else { 0 };
    let relay = Name::host(Realm(0), Ipv4Addr::LOCALHOST.into());
    let hops = (0..random.range(0, u64::from(slots) + 1)).map(|_| Hop { relay, passed_us: 7 });
    let padding = random.index(900);
    Message {
        longest: 1500,
        nonce: random.next() | 1,
        asked_us: WALL_US,
        proof,
        slots,
        hops: hops.collect(),
        body: Body::Question { padding },
    }
}

fn datagram(message: &Message) -> Vec<u8> {
    let mut bytes = Header { flags: Flags::ECHO, vnet: vnet(42) }.emit().to_vec();
    message.emit(&mut bytes);
    bytes
}

/// One drop under this name, and nothing sent.
fn dropped(counted: &[&'static str]) -> Done {
    Done { counted: counted.to_vec(), sent: Vec::new() }
}

/// Whatever source addresses an attacker forges, a vif sends each address at most ten answers a
/// second and all together at most a hundred, and none is longer than its question.
#[test]
fn questions_in_the_names_of_others_are_answered_within_limits() {
    for hosts in [1, 50, 100_000] {
        let (mut nic, mut random) = (Nic::new(Level::None), Random::new(1));
        let (begin, mut answers) = (nic.now, 0);
        for n in 0..count().div_ceil(3) {
            let (from, asked) = (host(&mut random, hosts), datagram(&question(&mut random)));
            let len = asked.len();
            let done = nic.arrive(Port::Own, from, asked);
            let answered = ["rx_echoes", "tx_echoes"];
            if done.counted == answered {
                let [(to, answer)] = &done.sent[..] else { panic!("{:?}", done.sent) };
                assert!(*to == from && answer.len() <= len);
                answers += 1;
            } else {
                assert_eq!(done, dropped(&["rx_echoes", "tx_drop_echo"]));
            }
            if n.is_multiple_of(16) {
                nic.now += Duration::from_millis(1);
            }
        }
        let [of_vif, of_source] = LIMITS;
        let limit = of_vif.min(of_source * hosts);
        let passed = (nic.now - begin).as_millis() as u64;
        let most = limit + limit * passed / 1000 + 1;
        assert!(
            answers >= limit.min(count() / 30) && answers <= most,
            "{answers} to {hosts} hosts, {most} at most"
        );
    }
}

#[test]
fn answers_that_nobody_asked_for_are_dropped() {
    let (mut nic, mut random) = (Nic::new(Level::None), Random::new(2));
    for _ in 0..count() {
        let answer = question(&mut random).answer(1500, WALL_US, WALL_US).unwrap();
        let done = nic.arrive(Port::Own, host(&mut random, 100), datagram(&answer));
        assert_eq!(done, dropped(&["rx_echoes", "rx_drop_echo"]));
    }
}

#[test]
fn altered_echoes_are_no_frames_and_make_no_longer_answers() {
    let (mut nic, mut random) = (Nic::new(Level::None), Random::new(3));
    for n in 0..count() {
        let asked = datagram(&question(&mut random));
        let (at, mut altered) = alter(&mut random, &asked, asked.len().min(60));
        // With other flags it may be a frame, which anybody can send on a vnet without keys.
        if at == 1 {
            continue;
        }
        altered.truncate(if n.is_multiple_of(4) {
            random.index(altered.len())
        } else {
            altered.len()
        });
        let (from, len) = (host(&mut random, 100_000), altered.len());
        let Done { counted, sent } = nic.arrive(Port::Own, from, altered);
        let drops = counted.iter().filter(|name| name.contains("_drop_")).count();
        assert!(sent.iter().all(|(to, answer)| *to == from && answer.len() <= len));
        assert_eq!(drops + sent.len(), 1, "{counted:?}");
        // Fields that only the asking host interprets may have any value.
        nic.now = if sent.is_empty() { nic.now } else { nic.now + Duration::from_millis(10) };
    }
}

#[test]
fn echoes_to_the_group_are_dropped() {
    let (mut nic, mut random) = (Nic::new(Level::None), Random::new(4));
    for _ in 0..count() {
        let asked = datagram(&question(&mut random));
        let done = nic.arrive(Port::Group, host(&mut random, 100), asked);
        assert_eq!(done, dropped(&["rx_drop_flags"]));
    }
}

#[test]
fn echoes_in_the_clear_are_dropped_on_a_secured_vnet() {
    let (mut nic, mut random) = (Nic::new(Level::Conf), Random::new(5));
    for n in 0..count() {
        let port = if n.is_multiple_of(2) { Port::Own } else { Port::Group };
        let mut message = question(&mut random);
        if n.is_multiple_of(3) {
            message = message.answer(1500, WALL_US, WALL_US).unwrap();
        }
        let done = nic.arrive(port, host(&mut random, 100), datagram(&message));
        assert_eq!(done, dropped(&["rx_drop_plaintext"]));
        nic.now = Instant::from_millis(1000 + n / 16);
    }
}
