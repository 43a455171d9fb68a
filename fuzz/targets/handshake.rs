//! Handshakes of two hosts over a network that loses, repeats, reorders and alters, with others who
//! send what they like: what no holder of the key has made changes nothing, all stays bounded, and what
//! the two agree on is the same on both sides.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::LazyLock;
use std::time::Duration;

use vnet::policy::{Level, Suite};
use vnet::secret::Secret;
use vnet::security::keys::MemberKeys;
use vnet::security::sadb::{Config, FRESH, Keyring, Output, Sadb, sender_key};
use vnet::time::{Instant, Now};
use vnet::wire::VnetId;
use vnet::wire::control::ReceiverKey;
use vnet::wire::handshake::{Header, Kind, MAC_LEN, Message};
use vnet::wire::name::{Name, Realm};

use super::Input;

const EPOCH_MS: u64 = 1_700_000_000_000;
/// Messages on the way, and recorded ones, at most.
const MOST: usize = 32;
/// What is asked for because of one event at most.
const MOST_OUTPUTS: usize = 24;
/// Sessions with one host that may be received at once: those that are kept, and a half-open one.
const MOST_SESSIONS: usize = 9;
/// What takes long, in one run: exchanges of keys, and steps.
const MOST_WANTED: usize = 4;
const MOST_STEPS: usize = 96;
/// As many INITs at once as are not answered without a cookie any more; once in a run.
const FLOOD: u8 = 70;

struct Host {
    sadb: Sadb,
    /// What the clock is ahead, in milliseconds.
    ahead: i64,
    /// Receive keys that were handed out, by session.
    inbound: BTreeMap<u32, ReceiverKey>,
}

struct World {
    hosts: [Host; 2],
    now: Instant,
    /// To whom, what.
    wire: VecDeque<(usize, Vec<u8>)>,
    recorded: Vec<(usize, Vec<u8>)>,
    was_flooded: bool,
}

/// Two keys of the vnet.
static KEYS: LazyLock<[MemberKeys; 2]> = LazyLock::new(|| [1, 2].map(member));

pub(crate) fn run(data: &[u8]) {
    let mut input = Input(data);
    let mut world = World::new();
    let mut wanted = 0;
    for _ in 0..MOST_STEPS {
        if input.0.is_empty() {
            break;
        }
        let what = input.u8();
        let (to, n) = (usize::from(what >> 7), input.u8());
        match what % 12 {
            0 | 1 if wanted < MOST_WANTED => {
                wanted += 1;
                world.want(to, n);
            }
            0 | 1 => {}
            2 => world.pass(Duration::from_millis(u64::from(input.u16()) * u64::from(n % 32))),
            3 | 4 => world.deliver(n.into()),
            5 => drop(world.take(n.into())),
            6 => world.repeat(n.into(), to, input.u8()),
            7 => world.alter(n.into(), input.u16(), input.u8()),
            8 => {
                let Some(bytes) = input.chunk() else { return };
                world.offer(to, from(1 - to, n), bytes);
            }
            9 => world.pose(to, n, &mut input),
            10 => world.turn_keys(to, n),
            _ => world.hosts[to].ahead = i64::from(input.u16() as i16) * i64::from(n % 4),
        }
        world.check();
    }
}

fn vnet() -> VnetId {
    VnetId::new(42).expect("not 0")
}

fn ip(host: usize) -> IpAddr {
    if host == 0 { [192, 0, 2, 1].into() } else { [192, 0, 2, 2].into() }
}

/// The host's address, the other's, or that of somebody else.
fn from(host: usize, which: u8) -> IpAddr {
    match which % 4 {
        0 => [198, 51, 100, which].into(),
        1 => ip(1 - host),
        _ => ip(host),
    }
}

fn keyring(keys: &[&MemberKeys]) -> Keyring {
    Keyring { keys: keys.iter().copied().cloned().collect() }
}

fn member(byte: u8) -> MemberKeys {
    MemberKeys::new(&Secret::new([byte; 32]), vnet(), Level::Conf, Suite::AesGcm)
}

impl World {
    fn new() -> Self {
        let host = |n: usize| {
            let seed = Secret::new([if n == 0 { 3 } else { 4 }; 32]);
            let mut sadb = Sadb::new(Config::default(), Name::host(Realm(0), ip(n)), seed);
            let now = Now { mono: Instant::ZERO, wall_ms: EPOCH_MS };
            sadb.set_vnet(vnet(), Some(keyring(&[&KEYS[0]])), now);
            Host { sadb, ahead: 0, inbound: BTreeMap::new() }
        };
        let hosts = [host(0), host(1)];
        let (wire, recorded) = (VecDeque::new(), Vec::new());
        // They have been running for a while: not every INIT needs a cookie.
        Self { hosts, now: Instant::ZERO + FRESH, wire, recorded, was_flooded: false }
    }

    fn at(&self, host: usize) -> Now {
        let passed = EPOCH_MS + self.now.as_micros() / 1000;
        let wall_ms = passed.saturating_add_signed(self.hosts[host].ahead);
        Now { mono: self.now, wall_ms }
    }

    fn want(&mut self, host: usize, seconds: u8) {
        let (now, peer) = (self.at(host), ip(1 - host));
        let until = self.now + Duration::from_secs(seconds.into());
        if seconds.is_multiple_of(4) {
            self.hosts[host].sadb.renew(vnet(), peer, now);
        } else {
            self.hosts[host].sadb.want(vnet(), peer, until, now);
        }
        self.drain(host);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        for host in [0, 1] {
            let now = self.at(host);
            let sadb = &mut self.hosts[host].sadb;
            if sadb.poll_timeout().is_some_and(|at| at <= now.mono) {
                sadb.handle_timeout(now);
                assert!(sadb.poll_timeout().is_none_or(|at| at > now.mono), "what is due is done");
            }
            self.drain(host);
        }
    }

    fn take(&mut self, n: usize) -> Option<(usize, Vec<u8>)> {
        self.wire.remove(n % self.wire.len().max(1))
    }

    fn deliver(&mut self, n: usize) {
        if let Some((to, bytes)) = self.take(n) {
            self.offer(to, ip(1 - to), &bytes);
        }
    }

    /// A recorded message comes again, perhaps elsewhere and from somebody else; or so often from where
    /// it came that others have to prove that they receive.
    fn repeat(&mut self, n: usize, to: usize, whence: u8) {
        let Some((_, bytes)) = self.recorded.get(n % self.recorded.len().max(1)).cloned() else {
            return;
        };
        if !whence.is_multiple_of(32) {
            self.offer(to, from(1 - to, whence), &bytes);
        } else if !self.was_flooded {
            self.was_flooded = true;
            for _ in 0..FLOOD {
                self.offer(to, ip(1 - to), &bytes);
            }
        }
    }

    /// A recorded message comes with a byte changed. Nothing is made of it, unless the byte is of the
    /// second MAC, which says only that cookies are received.
    fn alter(&mut self, n: usize, at: u16, change: u8) {
        let Some((to, mut bytes)) = self.recorded.get(n % self.recorded.len().max(1)).cloned()
        else {
            return;
        };
        let at = usize::from(at) % bytes.len();
        let is_covered = at < bytes.len() - MAC_LEN || bytes[3] != 1;
        bytes[at] ^= change;
        let outputs = self.offer(to, ip(1 - to), &bytes);
        assert!(outputs == 0 || !is_covered || change == 0, "an altered message is dropped");
    }

    /// A member sends what it likes: the first MAC is right.
    fn pose(&mut self, to: usize, n: u8, input: &mut Input<'_>) {
        const KINDS: [Kind; 5] =
            [Kind::Init, Kind::Response, Kind::Confirm, Kind::Ack, Kind::Cookie];
        let kind = KINDS[usize::from(n) % KINDS.len()];
        let keys = &KEYS[usize::from(n >> 7)];
        // A number that is in use, or any.
        let sessions = self.hosts[to].sadb.sessions(vnet());
        let known = sessions.get(usize::from(input.u8())).map(|(number, _)| *number);
        let receiver = known.unwrap_or_else(|| input.u16().into());
        let (vnet, key_id, sender) = (vnet(), keys.id.0, input.u16().into());
        let header = Header { vnet, key_id, sender, receiver };
        let mut bytes = header.emit(kind).to_vec();
        let (min, max) = kind.message_lens().into_inner();
        let macs = if kind == Kind::Init { 2 * MAC_LEN } else { MAC_LEN };
        if kind == Kind::Init {
            // From the host that it names, or from elsewhere.
            Name::host(Realm(u32::from(input.u8() % 2)), ip(1 - to)).emit(&mut bytes);
        }
        bytes.extend_from_slice(input.take(max - macs - bytes.len()));
        bytes.resize(bytes.len().max(min - macs), 0);
        let mac = keys.first_mac.sign(&[&bytes]);
        bytes.extend(mac);
        bytes.resize(if kind == Kind::Init { max } else { bytes.len() }, 0);
        let before = self.hosts[to].sadb.sessions(vnet).len();
        self.offer(to, ip(1 - to), &bytes);
        let after = self.hosts[to].sadb.sessions(vnet).len();
        assert!(after <= before, "no session without a handshake");
    }

    fn turn_keys(&mut self, host: usize, n: u8) {
        let [one, two] = &*KEYS;
        let ring = match n % 5 {
            0 => None,
            1 => Some(keyring(&[two, one])),
            2 => Some(keyring(&[two])),
            3 => Some(keyring(&[one, two])),
            _ => Some(keyring(&[one])),
        };
        let now = self.at(host);
        self.hosts[host].sadb.set_vnet(vnet(), ring, now);
        self.drain(host);
    }

    /// A message arrives; returns how much was asked for because of it.
    fn offer(&mut self, to: usize, from: IpAddr, bytes: &[u8]) -> usize {
        let now = self.at(to);
        self.hosts[to].sadb.handle_message(from, bytes, now);
        self.drain(to)
    }

    /// Does what a host asks for.
    fn drain(&mut self, host: usize) -> usize {
        let mut count = 0;
        while let Some(output) = self.hosts[host].sadb.poll_output() {
            count += 1;
            assert!(count <= MOST_OUTPUTS, "an event causes a bounded number of others");
            self.obey(host, output);
        }
        count
    }

    fn obey(&mut self, host: usize, output: Output) {
        let now = self.at(host);
        let sadb = &mut self.hosts[host].sadb;
        match output {
            Output::Send { to, bytes, .. } => {
                assert!(Message::parse(&bytes).is_ok(), "what is sent can be read");
                if to == ip(1 - host) {
                    push(&mut self.recorded, (1 - host, bytes.clone()));
                    self.wire.push_back((1 - host, bytes));
                    self.wire.truncate(MOST);
                }
            }
            Output::Receive { number, .. } => {
                // Nothing if it has ended by now, which is told next.
                let inbound = sadb.inbound(number, SocketAddr::new(ip(host), 4000), now);
                self.hosts[host].inbound.extend(inbound.map(|inbound| (number, inbound)));
            }
            Output::Serve { peer, .. } => self.compare(host, peer, now),
            Output::Ended { number, .. } => drop(self.hosts[host].inbound.remove(&number)),
            Output::Down { .. } | Output::GaveUp { .. } => {}
        }
    }

    /// A host sends with new keys: if the other one has those of that session, they are the same.
    fn compare(&mut self, host: usize, peer: IpAddr, now: Now) {
        if peer != ip(1 - host) {
            return;
        }
        let to = SocketAddr::new(peer, 4000);
        let Some(outbound) = self.hosts[host].sadb.outbound(vnet(), to, 1, now) else { return };
        for (spi, key) in &outbound.keys {
            if let Some(inbound) = self.hosts[1 - host].inbound.get(&spi.session()) {
                assert_eq!(inbound.suite, outbound.suite);
                assert_eq!(&sender_key(&inbound.receiver, spi.index()), key, "both agree");
            }
        }
    }

    fn check(&self) {
        for host in &self.hosts {
            let sessions = host.sadb.sessions(vnet());
            let of_peer = |peer: IpAddr| sessions.iter().filter(|(_, of)| *of == peer).count();
            assert!([ip(0), ip(1)].into_iter().all(|peer| of_peer(peer) <= MOST_SESSIONS));
            let of_others = sessions.iter().filter(|(_, of)| *of != ip(0) && *of != ip(1));
            assert_eq!(of_others.count(), 0, "nobody else has a session");
        }
    }
}

fn push(recorded: &mut Vec<(usize, Vec<u8>)>, message: (usize, Vec<u8>)) {
    if recorded.len() == MOST {
        recorded.remove(0);
    }
    recorded.push(message);
}
