//! The rules of the mapper, one test each. Messages are written by hand here; whole hosts talk to
//! each other in `tests/simulation.rs`.

mod along;
mod bounds;
mod claiming;
mod forgeries;
mod learning;
mod moved;
mod moving;
mod resolving;
mod rivals;
mod scale;
mod trust;

use std::time::Duration;

use super::*;
use crate::wire::name::Realm;
use crate::wire::varp::{self, Tag};
use crate::wire::{Capabilities, EncapKinds, Longest, Mac, Stamp, VnetId};

/// The wall clock at the start of every test.
const WALL: u64 = 1_767_225_600_000;
const HOUR: u64 = 3_600_000;
const VIF: LocalVif = LocalVif(1);
const OTHER: LocalVif = LocalVif(2);

/// A mapper at 192.0.2.1 with a clock that the test turns.
struct Bench {
    mapper: Mapper,
    now: Now,
}

impl Bench {
    fn new() -> Self {
        Self::with(|_| ())
    }

    fn with(change: impl FnOnce(&mut Config)) -> Self {
        // The periodic announcement has a test of its own.
        let mut config = Config { announce_interval: Duration::ZERO, ..Config::default() };
        change(&mut config);
        let mapper = Mapper::new(config, [1; 16], varp_of(1));
        let now = Now { mono: Instant::from_millis(1_000_000), wall_ms: WALL };
        Self { mapper, now }
    }

    /// With one active vif, [`VIF`], (vnet 7, MAC 1), and its announcements over.
    fn hosting() -> Self {
        let mut bench = Self::new();
        bench.activate(VIF, key(7, 1));
        bench.settle();
        bench
    }

    fn add(&mut self, vif: LocalVif, key: VifKey) {
        self.mapper.add_vif(vif, key, coa(1, port(vif))).unwrap();
    }

    fn activate(&mut self, vif: LocalVif, key: VifKey) {
        self.add(vif, key);
        self.mapper.set_active(vif, true, None, self.now);
    }

    fn resolve(&mut self, vif: LocalVif, mac: u8) {
        self.mapper.resolve(vif, key(7, mac).mac, false, self.now);
    }

    fn refresh(&mut self, vif: LocalVif, mac: u8) {
        self.mapper.resolve(vif, key(7, mac).mac, true, self.now);
    }

    /// Takes in a message of host `host`, which is its author unless it says something else.
    fn hear(&mut self, host: u8, via_group: bool, message: Message) {
        let author = if message.author == author(1) { author(host) } else { message.author };
        let message = Message { author, ..message };
        self.mapper.handle_message(varp_of(host), via_group, &message, self.now);
    }

    fn hear_announce(&mut self, key: VifKey, claim: Claim) {
        let host = host_of(claim.coa);
        self.hear(host, true, message(key, 99, announce(claim)));
    }

    /// Asks for a MAC and lets `claim`'s host answer; drops the outputs.
    fn learn(&mut self, vif: LocalVif, mac: u8, claim: Claim) {
        self.resolve(vif, mac);
        let nonce = self.sent().last().expect("a request").1.nonce;
        let reply = message(key(7, mac), nonce, reply(claim));
        self.hear(host_of(claim.coa), false, reply);
        self.outputs();
    }

    fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.mapper.poll_output()).collect()
    }

    /// The messages among the outputs; drops the rest.
    fn sent(&mut self) -> Vec<(Destination, Message)> {
        let send = |output| match output {
            Output::Send { to, message } => Some((to, message)),
            _ => None,
        };
        self.outputs().into_iter().filter_map(send).collect()
    }

    /// The notices among the outputs; drops the rest.
    fn told(&mut self) -> Vec<(LocalVif, Notice)> {
        let notify = |output| match output {
            Output::Notify { vif, notice } => Some((vif, notice)),
            _ => None,
        };
        self.outputs().into_iter().filter_map(notify).collect()
    }

    /// Lets time pass, with every timer on time; the outputs stay.
    fn pass(&mut self, duration: Duration) {
        let end = self.now.mono + duration;
        while let Some(due) = self.mapper.poll_timeout().filter(|&due| due <= end) {
            self.turn(due);
            self.mapper.handle_timeout(self.now);
        }
        self.turn(end);
    }

    fn pass_ms(&mut self, ms: u64) {
        self.pass(Duration::from_millis(ms));
    }

    fn turn(&mut self, to: Instant) {
        let step = to.saturating_since(self.now.mono);
        self.now.wall_ms += u64::try_from(step.as_millis()).unwrap();
        self.now.mono = to;
    }

    /// Ends announcements and drops the outputs.
    fn settle(&mut self) {
        self.pass_ms(900);
        self.outputs();
    }

    fn count(&self, counter: MapperCounter) -> u64 {
        self.mapper.counters().get(counter)
    }
}

fn key(vnet: u32, mac: u8) -> VifKey {
    VifKey { vnet: VnetId::new(vnet).unwrap(), mac: Mac([2, 0, 0, 0, 0, mac]) }
}

fn mac(mac: u8) -> Mac {
    key(7, mac).mac
}

/// Where host `host` sends and receives VARP.
fn varp_of(host: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, host], varp::PORT))
}

fn coa(host: u8, port: u16) -> CareOf {
    let addr = SocketAddr::from(([192, 0, 2, host], port));
    CareOf {
        addr,
        kinds: EncapKinds::UDP,
        capabilities: Capabilities::BUNDLE,
        longest: Longest::UNKNOWN,
    }
}

/// The port of a local vif.
fn port(vif: LocalVif) -> u16 {
    5000 + u16::try_from(vif.0).unwrap()
}

/// A claim of host `host`, made `ms` after the tests' start.
fn claim(host: u8, ms: u64) -> Claim {
    Claim { stamp: Stamp(WALL + ms), coa: coa(host, 6000), realm: Realm(0), behind: None }
}

fn host_of(coa: CareOf) -> u8 {
    match coa.addr.ip() {
        IpAddr::V4(v4) => v4.octets()[3],
        IpAddr::V6(_) => panic!("tests are IPv4"),
    }
}

fn author(host: u8) -> Author {
    Author { realm: Realm(0), addr: varp_of(host) }
}

/// A message of the mapper that is tested; [`Bench::hear`] makes it one of another host.
fn message(key: VifKey, nonce: u64, body: Body) -> Message {
    Message { key, author: author(1), nonce, wide: false, relayed: false, body, tag: None }
}

/// A message whose author is host `host`, whoever sends it.
fn by(host: u8, message: Message) -> Message {
    Message { author: author(host), ..message }
}

/// The message of a host of realm 7.
fn of_realm7(host: u8, message: Message) -> Message {
    let (mut body, realm) = (message.body, Realm(7));
    if let Body::Reply { claim, .. }
    | Body::Announce { claim, .. }
    | Body::Correction { claim, .. } = &mut body
    {
        claim.realm = realm;
    }
    Message { author: Author { realm, ..author(host) }, body, ..message }
}

fn request(host: u8, refresh: bool) -> Body {
    Body::Request { asker: coa(host, 6000), refresh }
}

fn reply(claim: Claim) -> Body {
    Body::Reply { claim, lifetime_ms: 30_000 }
}

fn announce(claim: Claim) -> Body {
    Body::Announce { claim, lifetime_ms: 30_000 }
}

fn correction(claim: Claim) -> Body {
    Body::Correction { claim, lifetime_ms: 30_000 }
}

/// What a user is told about `claim`.
fn mapping_of(mac: u8, claim: Claim, lifetime_ms: u64) -> Notice {
    mappings::mapping(key(7, mac), claim, Duration::from_millis(lifetime_ms))
}
