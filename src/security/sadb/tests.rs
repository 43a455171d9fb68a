//! Hosts with their machines, on a network with delays and faults.

mod agreeing;
mod anew;
mod hostile;
mod names;
mod sessions;

use super::rows::State;
use super::*;
use crate::policy::Suite;
use crate::wire::handshake;
use crate::wire::name::Realm;
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

fn name(host: usize) -> Name {
    Name::host(Realm(0), ip(host))
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
    sends: BTreeMap<IpAddr, SenderKeys>,
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
            let mut sadb = Sadb::new(config, name(n), secret);
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
