mod anew;

use super::rows::State;
use super::*;
use crate::security::Suite;
use crate::wire::handshake::Kind;
use std::collections::VecDeque;

const WALL: u64 = 1_767_225_600_000;
const SECOND: Duration = Duration::from_secs(1);
/// Of a message on its way.
const MAX_DELAY: Duration = Duration::from_millis(20);

fn vnet() -> VnetId {
    VnetId::new(42).unwrap()
}

fn ip(host: usize) -> IpAddr {
    [192, 0, 2, u8::try_from(host + 1).unwrap()].into()
}

fn keyring(keys: &[u8]) -> Keyring {
    let member =
        |byte: &u8| MemberKeys::new(&Secret::new([*byte; 32]), vnet(), Level::Conf, Suite::AesGcm);
    Keyring { keys: keys.iter().map(member).collect() }
}

/// What happens to a message on its way: in percent.
#[derive(Clone, Copy, Default)]
struct Faults {
    lost: u64,
    twice: u64,
}

struct Host {
    sadb: Sadb,
    /// Sessions whose packets its backends accept.
    received: BTreeSet<u32>,
    /// The session it sends with, by peer: the receiver's number.
    sends: BTreeMap<IpAddr, Outbound>,
    gave_up: usize,
    clock_ms: u64,
}

/// Hosts with their machines, on a network with delays.
struct World {
    hosts: Vec<Host>,
    now: Instant,
    /// In flight: when it arrives, from, to, what.
    wire: VecDeque<(Instant, usize, usize, Vec<u8>)>,
    faults: Faults,
    random: u64,
    recorded: Vec<(usize, usize, Vec<u8>)>,
    /// Packets sent with a session that the receiver did not accept.
    black: usize,
    /// Links that nothing served any more.
    downs: usize,
}

impl World {
    fn new(hosts: usize, seed: u64, config: Config) -> Self {
        let host = |n: usize| {
            let secret = Secret::new([u8::try_from(n + 1).unwrap() ^ (seed & 0x7f) as u8; 32]);
            let mut sadb = Sadb::new(config, ip(n), secret);
            let now = Now { mono: Instant::ZERO, wall_ms: WALL };
            sadb.set_vnet(vnet(), Some(keyring(&[1])), now);
            let (received, sends) = (BTreeSet::new(), BTreeMap::new());
            Host { sadb, received, sends, gave_up: 0, clock_ms: WALL }
        };
        Self {
            hosts: (0..hosts).map(host).collect(),
            // They have been running for a while.
            now: Instant::ZERO + FRESH,
            wire: VecDeque::new(),
            faults: Faults::default(),
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            recorded: Vec::new(),
            black: 0,
            downs: 0,
        }
    }

    /// A host loses its memory.
    fn restart(&mut self, host: usize) {
        let mut fresh = World::new(self.hosts.len(), 9, Config::default()).hosts.remove(host);
        fresh.sadb.start = Some(self.now);
        self.hosts[host] = fresh;
    }

    fn random(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    fn at(&self, host: usize) -> Now {
        Now { mono: self.now, wall_ms: self.hosts[host].clock_ms + self.now.as_micros() / 1000 }
    }

    fn want(&mut self, from: usize, to: usize, seconds: u32) {
        let now = self.at(from);
        let until = self.now + SECOND * seconds;
        self.hosts[from].sadb.want(vnet(), ip(to), until, now);
        self.drain(from);
    }

    fn number(&self, address: IpAddr) -> Option<usize> {
        (0..self.hosts.len()).find(|n| ip(*n) == address)
    }

    /// Does what a machine asks for.
    fn drain(&mut self, n: usize) {
        while let Some(output) = self.hosts[n].sadb.poll_output() {
            let now = self.at(n);
            match output {
                Output::Send { to, bytes, .. } => {
                    let Some(to) = self.number(to) else { continue };
                    self.recorded.push((n, to, bytes.clone()));
                    self.transmit(n, to, bytes);
                }
                Output::Receive { number, .. } => {
                    let own = SocketAddr::new(ip(n), 4000);
                    let inbound = self.hosts[n].sadb.inbound(number, own, now).unwrap();
                    assert_eq!(inbound.number, number);
                    assert_eq!(self.hosts[n].sadb.inbound(number, own, now), None, "once");
                    self.hosts[n].received.insert(number);
                }
                Output::Serve { peer, .. } => {
                    let to = SocketAddr::new(peer, 4000);
                    let keys = self.hosts[n].sadb.outbound(vnet(), to, 2, now).unwrap();
                    assert_eq!(keys.keys.len(), 2);
                    self.hosts[n].sends.insert(peer, keys);
                }
                Output::Ended { number, .. } => drop(self.hosts[n].received.remove(&number)),
                Output::Down { peer, .. } => {
                    self.downs += 1;
                    self.hosts[n].sends.remove(&peer);
                }
                Output::GaveUp { .. } => self.hosts[n].gave_up += 1,
            }
        }
    }

    fn transmit(&mut self, from: usize, to: usize, bytes: Vec<u8>) {
        let copies = match self.random(100) {
            draw if draw < self.faults.lost => 0,
            draw if draw < self.faults.lost + self.faults.twice => 2,
            _ => 1,
        };
        for _ in 0..copies {
            let spread = self.random(MAX_DELAY.as_micros() as u64 - 100);
            let delay = Duration::from_micros(100 + spread);
            self.wire.push_back((self.now + delay, from, to, bytes.clone()));
        }
    }

    fn deliver(&mut self, from: usize, to: usize, bytes: &[u8]) {
        let now = self.at(to);
        self.hosts[to].sadb.handle_message(ip(from), bytes, now);
        self.drain(to);
    }

    /// Every sender sends a packet: is it accepted?
    fn probe(&mut self) {
        for host in &self.hosts {
            for (peer, keys) in &host.sends {
                let to = (0..self.hosts.len()).find(|n| ip(*n) == *peer).unwrap();
                let number = keys.keys[0].0.session();
                self.black += usize::from(!self.hosts[to].received.contains(&number));
            }
        }
    }

    fn run(&mut self, seconds: u64) {
        self.run_for(Duration::from_secs(seconds));
    }

    /// Lets time pass, in steps of what happens next.
    fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let timers = self.hosts.iter().filter_map(|host| host.sadb.poll_timeout());
            let arrivals = self.wire.iter().map(|(at, ..)| *at);
            let Some(next) = timers.chain(arrivals).min().filter(|at| *at <= end) else { break };
            self.now = self.now.max(next);
            let (due, rest): (Vec<_>, Vec<_>) =
                self.wire.drain(..).partition(|(at, ..)| *at <= self.now);
            self.wire = rest.into();
            for (_, from, to, bytes) in due {
                self.deliver(from, to, &bytes);
            }
            for n in 0..self.hosts.len() {
                let now = self.at(n);
                self.hosts[n].sadb.handle_timeout(now);
                self.drain(n);
            }
            self.probe();
        }
        self.now = end;
    }

    /// Whether what `from` sends to `to` is received.
    fn is_through(&self, from: usize, to: usize) -> bool {
        let session = self.hosts[from].sends.get(&ip(to)).map(|keys| keys.keys[0].0.session());
        session.is_some_and(|number| self.hosts[to].received.contains(&number))
    }

    fn count(&self, host: usize, counter: SadbCounter) -> u64 {
        self.hosts[host].sadb.counters().get(counter)
    }
}

fn world(hosts: usize) -> World {
    World::new(hosts, 1, Config::default())
}

#[test]
fn two_hosts_agree_and_derive_the_same_keys() {
    let mut w = world(2);
    w.want(0, 1, 60);
    w.run(1);
    assert!(w.is_through(0, 1) && w.is_through(1, 0));
    assert_eq!(w.count(0, SadbCounter::sa_sessions), 1);
    let [a, b] = [0, 1].map(|n| w.at(n));
    let to: SocketAddr = (ip(1), 4001).into();
    let out = w.hosts[0].sadb.outbound(vnet(), to, 1, a).unwrap();
    let (spi, key) = &out.keys[0];
    let inbound = w.hosts[1].sadb.inbound(spi.session(), to, b).unwrap();
    assert_eq!(sender_key(&inbound.receiver, spi.index()), *key);
    let other = w.hosts[1].sadb.inbound(spi.session(), (ip(1), 4002).into(), b).unwrap();
    assert_ne!(other.receiver, inbound.receiver, "each vif has its own");
    let again = w.hosts[0].sadb.outbound(vnet(), to, 1, a).unwrap();
    assert_ne!(again.keys[0], out.keys[0], "no sender gets another's key");
}

#[test]
fn keys_are_told_when_they_end_by_themselves() {
    let hour = SECOND * 3600;
    for (rekey, end) in [(1, 24), (12, 24), (13, 26), (720, 1440)] {
        let config = Config { rekey: hour * rekey };
        assert_eq!(config.end(), hour * end);
        let mut world = World::new(2, 1, config);
        world.want(0, 1, 60);
        world.run(2);
        let to = SocketAddr::new(ip(1), 4000);
        let now = world.at(0);
        let lifetime = world.hosts[0].sadb.outbound(vnet(), to, 1, now).unwrap().lifetime;
        let [usual, hard] = [(lifetime.usual, 2 * rekey), (lifetime.hard, end)]
            .map(|(got, want)| hour * want - got);
        assert_eq!(usual, hard, "both count from when the session was made");
        assert!(usual <= SECOND * 2, "{usual:?}");
    }
}

#[test]
fn a_host_sends_to_itself_without_asking() {
    let mut w = world(1);
    w.want(0, 0, 60);
    assert!(w.is_through(0, 0));
    assert!(w.recorded.is_empty());
}

#[test]
fn both_at_once_end_with_one_session() {
    for seed in 0..50 {
        let mut w = World::new(2, seed, Config::default());
        w.want(0, 1, 60);
        w.want(1, 0, 60);
        w.run(5);
        assert!(w.is_through(0, 1) && w.is_through(1, 0), "seed {seed}");
        let sessions = w.count(0, SadbCounter::sa_sessions);
        assert_eq!((sessions, w.count(1, SadbCounter::sa_sessions)), (1, 1), "seed {seed}");
        assert_eq!(w.black, 0, "seed {seed}");
    }
}

#[test]
fn losses_reorder_and_duplicates_only_delay() {
    for seed in 0..50 {
        let mut w = World::new(4, seed, Config::default());
        w.faults = Faults { lost: 30, twice: 20 };
        for (from, to) in [(0, 1), (1, 0), (2, 1), (3, 0), (0, 3), (3, 2)] {
            w.want(from, to, 200);
        }
        w.run(60);
        for (from, to) in [(0, 1), (1, 0), (2, 1), (3, 0), (0, 3), (3, 2)] {
            assert!(w.is_through(from, to), "seed {seed}: {from} to {to}");
        }
    }
}

#[test]
fn a_session_is_replaced_without_a_gap() {
    for seed in 0..20 {
        let mut w = World::new(2, seed, Config { rekey: SECOND * 10 });
        if seed % 2 == 1 {
            w.faults = Faults { lost: 10, twice: 10 };
        }
        w.want(0, 1, 700);
        w.run(600);
        assert!(w.is_through(0, 1), "seed {seed}");
        let made = w.count(0, SadbCounter::sa_sessions);
        assert!((50..=80).contains(&made), "seed {seed}: {made}");
        assert_eq!(w.black, 0, "seed {seed}");
        assert!(w.hosts[1].received.len() <= 6, "old ones end");
    }
}

#[test]
fn only_what_is_wanted_is_replaced() {
    let mut w = World::new(2, 3, Config { rekey: SECOND * 10 });
    w.want(0, 1, 15);
    w.run(100);
    assert_eq!(w.count(0, SadbCounter::sa_sessions), 2);
    assert!(w.hosts[0].sends.is_empty() && w.hosts[1].received.is_empty());
    assert!(w.hosts.iter().all(|host| host.sadb.numbers.is_empty()));
}

#[test]
fn who_does_not_answer_is_given_up_and_tried_again() {
    let mut w = world(2);
    w.faults.lost = 100;
    w.want(0, 1, 100);
    w.run(30);
    assert!(w.hosts[0].gave_up >= 2, "{}", w.hosts[0].gave_up);
    assert!(w.recorded.len() < 40, "backs off: {}", w.recorded.len());
    w.faults.lost = 0;
    w.run(15);
    assert!(w.is_through(0, 1));
    w.run(1000);
    assert!(w.hosts[0].sadb.numbers.len() <= 1, "nothing is left of the attempts");
}

#[test]
fn rows_tell_how_far_links_are() {
    let mut w = world(2);
    let row = |w: &World, host: usize| {
        let rows = w.hosts[host].sadb.rows(w.at(host));
        assert!(rows.len() <= 1);
        rows.first().copied()
    };
    assert_eq!(row(&w, 0), None);
    w.faults.lost = 100;
    w.want(0, 1, 20_000);
    let asking = row(&w, 0).unwrap();
    assert_eq!((asking.vnet, asking.peer, asking.level), (vnet(), ip(1), Level::Conf));
    assert_eq!((asking.state, asking.serving, asking.sessions), (State::Asking, None, 0));
    while w.hosts[0].gave_up == 0 {
        w.run(1);
    }
    let failed = row(&w, 0).unwrap();
    assert_eq!((failed.state, failed.tally.failed, failed.tally.made), (State::Failed, 1, 0));

    w.faults.lost = 0;
    w.run(15);
    for host in [0, 1] {
        let open = row(&w, host).unwrap();
        let serving = open.serving.unwrap();
        assert_eq!((open.state, open.sessions, open.tally.made), (State::Open, 1, 1));
        assert!(serving.has_used_key && serving.suite.level() == Level::Conf);
        assert!(serving.age < 15 * SECOND && serving.rekey_in > 3000 * SECOND);
        assert!(serving.ends_in > serving.rekey_in);
        assert_eq!(serving.senders_left, INDICES - 2);
    }
    let init = w.recorded.iter().find(|(from, ..)| *from == 0).unwrap().2.clone();
    w.deliver(0, 1, &init);
    assert_eq!(row(&w, 1).unwrap().tally.dropped, 1, "it was heard before");

    let now = w.at(0);
    w.hosts[0].sadb.set_vnet(vnet(), Some(keyring(&[2, 1])), now);
    assert!(!row(&w, 0).unwrap().serving.unwrap().has_used_key);
    w.hosts[0].sadb.set_vnet(vnet(), Some(keyring(&[2])), now);
    let closed = row(&w, 0).unwrap();
    assert_eq!((closed.serving, closed.sessions), (None, 0));
}

#[test]
fn many_receivers_of_one_host_do_not_wear_a_session_out() {
    let mut w = world(2);
    w.want(0, 1, 600);
    w.run(1);
    let made = w.count(0, SadbCounter::sa_sessions);
    let mut keys = BTreeSet::new();
    for port in 1..=10_000 {
        let now = w.at(0);
        let to = SocketAddr::new(ip(1), port);
        let outbound = w.hosts[0].sadb.outbound(vnet(), to, 1, now).unwrap();
        keys.extend(outbound.keys.iter().map(|(_, key)| key.key.bytes().to_vec()));
    }
    assert_eq!(keys.len(), 10_000, "no key twice");
    w.drain(0);
    w.run(5);
    assert_eq!(w.count(0, SadbCounter::sa_sessions), made);
}

#[test]
fn strangers_take_nothing_from_hosts_that_are_known() {
    let mut w = world(2);
    w.want(0, 1, 600);
    w.run(1);
    let made = w.count(0, SadbCounter::sa_sessions);
    let now = w.at(0);
    for n in 0..1000_u32 {
        let [.., c, d] = n.to_be_bytes();
        w.hosts[0].sadb.renew(vnet(), IpAddr::from([10, 1, c, d]), now);
    }
    let asked = w.hosts[0].sadb.rows(now).len();
    assert!(asked <= 2 + INITS_PER_SECOND as usize, "{asked}");
    w.hosts[0].sadb.renew(vnet(), ip(1), now);
    w.drain(0);
    w.run(2);
    assert_eq!(w.count(0, SadbCounter::sa_sessions), made + 1);
}

/// Whoever sends made-up packets in a known host's name can have another session asked for: that
/// must neither cut the link, nor keep its hosts busy.
#[test]
fn packets_of_unknown_sessions_do_not_wear_a_link_out() {
    let mut w = world(2);
    w.want(0, 1, 600);
    w.run(2);
    let made = w.count(0, SadbCounter::sa_sessions);
    for _ in 0..1000 {
        for n in [0, 1] {
            let now = w.at(n);
            w.hosts[n].sadb.renew(vnet(), ip(1 - n), now);
            w.drain(n);
        }
        w.run_for(Duration::from_millis(10));
        assert!(w.is_through(0, 1) && w.is_through(1, 0), "{:?}", w.now);
    }
    assert_eq!((w.black, w.downs), (0, 0));
    let renewed = w.count(0, SadbCounter::sa_sessions) - made;
    assert!(renewed <= 26, "{renewed} in ten seconds");
}

#[test]
fn strangers_get_nowhere() {
    for (keys, level) in [(&[2][..], Level::Conf), (&[1][..], Level::Auth)] {
        let mut w = world(3);
        let mut ring = keyring(keys);
        if level == Level::Auth {
            let key = Secret::new([1; 32]);
            ring.keys = vec![MemberKeys::new(&key, vnet(), level, Suite::AesGcm)];
        }
        let now = w.at(2);
        w.hosts[2].sadb.set_vnet(vnet(), Some(ring), now);
        w.want(2, 0, 60);
        w.want(0, 2, 60);
        w.want(0, 1, 60);
        w.run(60);
        assert!(w.is_through(0, 1));
        assert!(w.hosts[2].sends.is_empty() && w.hosts[2].received.is_empty());
        assert_eq!(w.count(0, SadbCounter::sa_sessions), 1);
    }
}

#[test]
fn a_host_without_the_vnet_answers_nothing() {
    let mut w = world(2);
    let now = w.at(1);
    w.hosts[1].sadb.set_vnet(vnet(), None, now);
    w.want(0, 1, 60);
    w.want(1, 0, 60);
    w.run(10);
    assert!(w.recorded.iter().all(|(from, ..)| *from == 0));
    assert!(w.count(1, SadbCounter::handshake_drop_vnet) > 0);
}

#[test]
fn replayed_messages_change_nothing() {
    let mut w = world(2);
    w.want(0, 1, 600);
    w.run(2);
    let recorded = std::mem::take(&mut w.recorded);
    let sessions = [w.hosts[0].received.clone(), w.hosts[1].received.clone()];
    for _ in 0..100 {
        for (from, to, bytes) in &recorded {
            w.deliver(*from, *to, bytes);
            // As if from the other host, and from a third.
            w.deliver(*to, *from, bytes);
        }
    }
    assert_eq!([w.hosts[0].received.clone(), w.hosts[1].received.clone()], sessions);
    let answers = w.recorded.iter().filter(|(_, _, bytes)| bytes[3] != 4 && bytes[3] != 5).count();
    assert_eq!(answers, 0, "only ACKs and cookies");
    w.run(200);
    for (from, to, bytes) in &recorded {
        w.deliver(*from, *to, bytes);
    }
    w.run(10);
    assert!(w.is_through(0, 1));
}

#[test]
fn every_flipped_byte_is_dropped() {
    let mut w = world(2);
    w.want(0, 1, 600);
    w.run(2);
    let recorded = std::mem::take(&mut w.recorded);
    for (from, to, bytes) in &recorded {
        for at in 0..bytes.len() - if bytes[3] == 1 { 16 } else { 0 } {
            let mut wrong = bytes.clone();
            wrong[at] ^= 0x10;
            let before = w.count(*to, SadbCounter::handshake_drop_forged)
                + w.count(*to, SadbCounter::handshake_drop_malformed)
                + w.count(*to, SadbCounter::handshake_drop_vnet);
            w.deliver(*from, *to, &wrong);
            let after = w.count(*to, SadbCounter::handshake_drop_forged)
                + w.count(*to, SadbCounter::handshake_drop_malformed)
                + w.count(*to, SadbCounter::handshake_drop_vnet);
            assert_eq!(after, before + 1, "type {} byte {at}", bytes[3]);
        }
    }
    assert!(w.recorded.is_empty());
}

/// A hundred thousand INITs: of outsiders, and recorded ones from false addresses.
#[test]
fn a_flood_makes_no_state_and_members_still_get_through() {
    let mut w = world(3);
    let now = w.at(0);
    let mut forged = vec![0; Kind::Init.message_len()];
    forged[..4].copy_from_slice(&[b'V', b'K', 1, 1]);
    forged[7] = 42;
    for n in 0..100_000_u32 {
        forged[12..16].copy_from_slice(&n.to_be_bytes());
        let [a, b, c, d] = (n | 0x0a00_0000).to_be_bytes();
        w.hosts[0].sadb.handle_message([a, b, c, d].into(), &forged, now);
    }
    assert!(w.hosts[0].sadb.poll_output().is_none(), "not one answer");
    assert!(w.hosts[0].sadb.peers.is_empty());

    // Recorded on the way from 1 to 2, sent to 0 and 2 from anywhere.
    w.want(1, 2, 600);
    w.run(1);
    let (.., init) = w.recorded[0].clone();
    let mut answers = 0;
    for n in 0..10_000_u32 {
        let now = w.at(2);
        let [a, b, c, d] = (n | 0x0a00_0000).to_be_bytes();
        w.hosts[2].sadb.handle_message([a, b, c, d].into(), &init, now);
        while let Some(output) = w.hosts[2].sadb.poll_output() {
            let Output::Send { bytes, .. } = output else { panic!("{output:?}") };
            assert_eq!(bytes[3], 5, "a cookie");
            answers += 1;
        }
    }
    assert!(answers > 9000);
    assert_eq!(w.hosts[2].sadb.peers.len(), 1);
    // Host 0 is a member: it has to show that it is where it says.
    w.want(0, 2, 60);
    let (.., bytes) = w.recorded.last().unwrap().clone();
    w.deliver(0, 2, &bytes);
    w.run(5);
    assert!(w.is_through(0, 2));
    assert!(w.recorded.iter().any(|(from, to, bytes)| (*from, *to, bytes[3]) == (2, 0, 5)));
}

#[test]
fn a_rotation_of_the_vnet_key_loses_nothing_and_shuts_out_the_rest() {
    let mut w = world(3);
    for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 0)] {
        w.want(from, to, 10_000);
    }
    w.run(1);
    let steps: [&[u8]; 3] = [&[1, 2], &[2, 1], &[2]];
    for step in steps {
        // Host 2 does not get the new file.
        for n in [0, 1] {
            let now = w.at(n);
            w.hosts[n].sadb.set_vnet(vnet(), Some(keyring(step)), now);
            w.drain(n);
            if step.len() > 1 {
                w.run(2);
            }
        }
        w.run(40);
        if step.len() > 1 {
            assert_eq!(w.black, 0, "{step:?}");
        }
        assert!(w.is_through(0, 1) && w.is_through(1, 0), "{step:?}");
    }
    assert!(!w.is_through(2, 0) && !w.is_through(0, 2));
    assert!(!w.hosts[0].sends.contains_key(&ip(2)));
}

#[test]
fn a_host_that_lost_its_memory_asks_for_another_session() {
    let mut w = world(2);
    w.want(0, 1, 600);
    w.run(1);
    w.restart(1);
    w.run(5);
    assert!(!w.is_through(0, 1));
    // A backend there has seen packets of a session that it does not know.
    for _ in 0..1000 {
        let now = w.at(1);
        w.hosts[1].sadb.renew(vnet(), ip(0), now);
    }
    w.drain(1);
    // Three messages; the other side does not go on with the old session for a while.
    w.run_for(3 * MAX_DELAY);
    assert!(w.is_through(0, 1), "told once, all is well again");
    w.run(5);
    assert_eq!(w.count(1, SadbCounter::sa_sessions), 1);
}

/// Somebody sends an INIT again whose host knows nothing of it any more.
#[test]
fn an_init_that_nobody_confirms_holds_up_no_handshake_for_long() {
    for (other, host) in [(0, 1), (1, 0)] {
        let mut w = world(2);
        w.faults.lost = 100;
        w.want(other, host, 1);
        let (.., init) = w.recorded[0].clone();
        w.restart(other);
        w.hosts[other].sadb.start = Some(Instant::ZERO);
        w.deliver(other, host, &init);
        assert_eq!(w.hosts[host].received.len(), 1, "it is answered");
        w.faults.lost = 0;
        w.want(host, other, 60);
        w.run_for(HALF_OPEN_YIELDS / 2);
        assert!(!w.is_through(host, other), "it goes first");
        w.run_for(HALF_OPEN_YIELDS / 2 + 4 * MAX_DELAY);
        assert!(w.is_through(host, other) && w.is_through(other, host), "from {other}");
        assert_eq!(w.count(host, SadbCounter::sa_sessions), 1);
        w.run(60);
        assert_eq!(w.hosts[host].received.len(), 1, "nothing is left of the other");
        assert_eq!(w.black, 0);
    }
}

#[test]
fn an_answer_that_is_late_ends_what_began_meanwhile() {
    for (first, second) in [(0, 1), (1, 0)] {
        let mut w = world(2);
        w.want(first, second, 60);
        w.run_for(MAX_DELAY);
        assert!(w.hosts[second].sadb.rows(w.at(second))[0].sessions == 1, "answered");
        // Nothing gets through until the other has begun as well.
        w.wire.clear();
        w.faults.lost = 100;
        w.want(second, first, 60);
        w.run_for(HALF_OPEN_YIELDS + Duration::from_millis(50));
        w.faults.lost = 0;
        w.run(5);
        assert!(w.is_through(0, 1) && w.is_through(1, 0), "{first}");
        assert_eq!(w.count(0, SadbCounter::sa_sessions), w.count(1, SadbCounter::sa_sessions));
        w.run(40);
        assert_eq!((w.black, w.hosts[0].received.len(), w.hosts[1].received.len()), (0, 1, 1));
    }
}

/// Each side has a session of its own making, and they hear of them in another order.
#[test]
fn two_sessions_at_once_are_in_one_order() {
    let mut w = world(2);
    w.want(0, 1, 60);
    let (.., init) = w.wire.pop_front().unwrap();
    w.faults.lost = 100;
    w.deliver(0, 1, &init);
    let (.., late) = w.recorded.last().unwrap().clone();
    assert_eq!(late[3], 2);
    // That RESPONSE is on its way for so long that host 1 begins as well.
    w.want(1, 0, 60);
    while !w.hosts[1].sadb.peers[&(vnet(), ip(0))].is_asking() {
        w.run_for(Duration::from_millis(10));
    }
    let of = |w: &World, host: usize, kind: u8| {
        let found = w.recorded.iter().rfind(|(from, _, bytes)| (*from, bytes[3]) == (host, kind));
        found.unwrap().2.clone()
    };
    w.deliver(1, 0, &late);
    w.run_for(Duration::from_millis(1));
    w.deliver(1, 0, &of(&w, 1, 1));
    w.run_for(Duration::from_millis(1));
    let (confirm, response) = (of(&w, 0, 3), of(&w, 0, 2));
    w.deliver(0, 1, &response);
    w.deliver(0, 1, &confirm);
    w.faults.lost = 0;
    w.run(100);
    assert!(w.is_through(0, 1) && w.is_through(1, 0));
    assert_eq!((w.black, w.downs), (0, 0));
    assert_eq!((w.hosts[0].received.len(), w.hosts[1].received.len()), (1, 1));
}

#[test]
fn what_was_recorded_before_a_start_is_not_answered() {
    let mut w = world(3);
    w.want(0, 1, 600);
    w.run(2);
    let (.., init) = w.recorded[0].clone();
    w.restart(1);
    for _ in 0..80 {
        w.recorded.clear();
        w.deliver(0, 1, &init);
        assert_eq!(w.recorded.len(), 1);
        assert_eq!(w.recorded[0].2[3], 5, "a cookie");
        w.run(2);
        assert!(w.hosts[1].received.is_empty() && w.hosts[1].sadb.peers.is_empty());
    }
    // Who is there has a round trip more.
    w.restart(1);
    w.recorded.clear();
    w.want(2, 1, 600);
    w.run_for(5 * MAX_DELAY);
    assert!(w.is_through(2, 1) && w.is_through(1, 2));
    let kinds: Vec<u8> = w.recorded.iter().map(|(.., bytes)| bytes[3]).collect();
    assert_eq!(kinds, [1, 5, 1, 2, 3, 4]);
    // And later not.
    w.run_for(FRESH);
    w.recorded.clear();
    w.restart(0);
    w.want(0, 1, 600);
    w.run(1);
    let kinds: Vec<u8> = w.recorded.iter().map(|(.., bytes)| bytes[3]).collect();
    assert_eq!(kinds, [1, 2, 3, 4]);
}

#[test]
fn who_has_a_token_says_so() {
    let mut w = world(2);
    w.restart(1);
    let key = w.hosts[1].sadb.token_key();
    w.want(0, 1, 600);
    w.run(1);
    assert!(w.is_through(0, 1));
    let receiver = |bytes: &[u8]| u32::from_be_bytes(bytes[16..20].try_into().unwrap());
    let inits = w.recorded.iter().filter(|(from, _, bytes)| (*from, bytes[3]) == (0, 1));
    let tokens: Vec<u32> = inits.map(|(.., bytes)| receiver(bytes)).collect();
    assert_eq!(tokens, [0, key.token(ip(0))]);
    let now = Now { mono: w.now + COOKIE_TURN, ..w.at(1) };
    w.hosts[1].sadb.handle_timeout(now);
    assert_ne!(w.hosts[1].sadb.token_key(), key, "it changes with the cookies");
}

#[test]
fn a_wrong_clock_is_said_and_does_no_harm() {
    let mut w = world(2);
    w.hosts[0].clock_ms += 200_000;
    w.want(0, 1, 60);
    w.run(20);
    assert!(!w.is_through(0, 1));
    assert!(w.count(1, SadbCounter::handshake_drop_stale) > 0);
    w.hosts[0].clock_ms -= 200_000;
    w.run(30);
    assert!(w.is_through(0, 1));
}

#[test]
fn a_session_gives_out_its_senders_and_then_makes_room() {
    let mut w = world(2);
    w.want(0, 1, 600);
    w.run(1);
    let to = SocketAddr::new(ip(1), 4000);
    let mut given = 2;
    loop {
        let now = w.at(0);
        let Some(keys) = w.hosts[0].sadb.outbound(vnet(), to, 16, now) else { break };
        given += keys.keys.len();
    }
    assert!(given > INDICES as usize - 16);
    // Others there have not had any yet, and do not wear the session out.
    let other = SocketAddr::new(ip(1), 4001);
    let now = w.at(0);
    assert!(w.hosts[0].sadb.outbound(vnet(), other, 16, now).is_some());
    w.drain(0);
    w.run(2);
    assert_eq!(w.count(0, SadbCounter::sa_sessions), 2, "another session");
    let now = w.at(0);
    assert!(w.hosts[0].sadb.outbound(vnet(), to, 16, now).is_some());
}

#[test]
fn a_host_at_another_address_agrees_anew_also_when_it_returns() {
    let mut w = world(3);
    w.want(0, 1, 600);
    w.want(1, 0, 600);
    w.run(1);
    assert!(w.is_through(0, 1) && w.is_through(1, 0));
    // What is at place 2 has the address that belongs there.
    for (from, to) in [(0, 2), (2, 0)] {
        let now = w.at(from);
        w.hosts[from].sadb.move_to(ip(to), now);
        w.drain(from);
        let host = &w.hosts[from];
        assert!(host.received.is_empty() && host.sends.is_empty(), "all is over at once");
        assert!(host.sadb.numbers.is_empty() && host.sadb.poll_timeout().is_none());
        w.hosts.swap(from, to);
        w.want(to, 1, 600);
        w.want(1, to, 600);
        w.run(5);
        assert!(w.is_through(to, 1) && w.is_through(1, to));
        assert!(w.count(1, SadbCounter::handshake_cookies) == 0, "the other one knows its INITs");
    }
    assert_eq!(w.downs, 2, "only the host that moved");
}
