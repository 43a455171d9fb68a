//! Handshake messages, at each point of a handshake that replaces a session. Attackers record
//! messages, and may be members of other vnets or in other realms.
//!
//! ```text
//!   host 0 ------ INIT, CONFIRM -----------> host 1     vnet 42, one key
//!          <----- COOKIE, RESPONSE, ACK ----            a session; then its replacement, with forgeries
//! ```

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use vnet::policy::{Level, Suite};
use vnet::secret::Secret;
use vnet::security::keys::MemberKeys;
use vnet::security::sadb::rows::State;
use vnet::security::sadb::{Config, FRESH, Keyring, Output, Sadb};
use vnet::time::{Instant, Now};
use vnet::wire::VnetId;
use vnet::wire::handshake::{Header, Kind, MAC_LEN, VERSION};
use vnet::wire::name::{Name, Realm};

use super::{Random, Tally, alter, count, noise, size, vnet};

const WALL_MS: u64 = 1_767_225_600_000;
/// Messages of a handshake, with one for a cookie: forgeries come before each, and at the end.
const POINTS: u64 = 6;
/// How much more a host may remember: nothing but numbers that have grown.
const GROWTH: usize = 512;

fn ip(host: usize) -> IpAddr {
    [192, 0, 2, u8::try_from(host + 1).unwrap()].into()
}

/// Of whoever is neither host.
fn other(random: &mut Random) -> IpAddr {
    [198, 51, 100, random.range(0, 256) as u8].into()
}

fn keyring(id: VnetId) -> Keyring {
    let key = Secret::new([1; 32]);
    Keyring { keys: vec![MemberKeys::new(&key, id, Level::Conf, Suite::AesGcm)] }
}

fn member(id: VnetId, realm: u32, at: IpAddr, seed: u8, now: Now) -> Sadb {
    let name = Name::host(Realm(realm), at);
    let mut sadb = Sadb::new(Config::default(), name, Secret::new([seed; 32]));
    sadb.set_vnet(id, Some(keyring(id)), now);
    sadb
}

/// The first message of a host that wants a session.
fn init_of(sadb: &mut Sadb, id: VnetId, now: Now) -> Vec<u8> {
    sadb.want(id, ip(1), now.mono + Duration::from_secs(1), now);
    let Some(Output::Send { bytes, .. }) = sadb.poll_output() else { panic!("an INIT") };
    bytes
}

fn kind_of(message: &[u8]) -> Kind {
    Kind::ALL.into_iter().find(|kind| kind.code() == message[3]).unwrap()
}

/// All that handshakes change about a link: sessions, how far it is, and how many were made or
/// failed.
type View = (Vec<(u32, IpAddr)>, Vec<(IpAddr, State, usize, u64, u64)>);

struct Pair {
    hosts: [Sadb; 2],
    now: Instant,
    tallies: [Tally; 2],
    /// On the way: to whom.
    wire: VecDeque<(usize, Vec<u8>)>,
    /// What has arrived.
    recorded: Vec<(usize, Vec<u8>)>,
    random: Random,
}

impl Pair {
    /// With a session, made with all kinds of messages, and an INIT for another on the way.
    fn new() -> Self {
        let now = Now { mono: Instant::ZERO, wall_ms: WALL_MS };
        let mut pair = Self {
            hosts: [0, 1].map(|n| member(vnet(42), 0, ip(n), n as u8 + 2, now)),
            now: Instant::ZERO,
            tallies: Default::default(),
            wire: VecDeque::new(),
            recorded: Vec::new(),
            random: Random::new(1),
        };
        // A host that has just started asks for a cookie.
        let until = Instant::ZERO + 4 * FRESH;
        pair.hosts[0].want(vnet(42), ip(1), until, now);
        pair.drain(0);
        while pair.step() {}
        let kinds = pair.recorded.iter().map(|(_, bytes)| kind_of(bytes));
        assert!(Kind::ALL.iter().all(|kind| kinds.clone().any(|seen| seen == *kind)));
        pair.now += FRESH + Duration::from_secs(1);
        let now = pair.at();
        pair.hosts[0].renew(vnet(42), ip(1), now);
        pair.drain(0);
        [0, 1].into_iter().for_each(|host| drop(pair.counted(host)));
        pair
    }

    fn at(&self) -> Now {
        Now { mono: self.now, wall_ms: WALL_MS + self.now.as_micros() / 1000 }
    }

    /// What a host asks for; messages to the other one are on the way then. Returns all messages.
    fn drain(&mut self, host: usize) -> Vec<(IpAddr, Vec<u8>)> {
        let mut sent = Vec::new();
        while let Some(output) = self.hosts[host].poll_output() {
            if let Output::Send { to, bytes, .. } = output {
                if to == ip(1 - host) {
                    self.wire.push_back((1 - host, bytes.clone()));
                }
                sent.push((to, bytes));
            }
        }
        sent
    }

    /// The next message on the way arrives, if there is one.
    fn step(&mut self) -> bool {
        let Some((to, bytes)) = self.wire.pop_front() else { return false };
        let now = self.at();
        self.hosts[to].handle_message(ip(1 - to), &bytes, now);
        self.drain(to);
        self.counted(to);
        self.recorded.push((to, bytes));
        true
    }

    fn counted(&mut self, host: usize) -> Vec<&'static str> {
        let mut counted = self.tallies[host].since(self.hosts[host].counters().readings());
        counted.retain(|name| !["handshake_rx", "handshake_tx"].contains(name));
        counted
    }

    fn views(&self) -> [View; 2] {
        [0, 1].map(|host| {
            let rows = self.hosts[host].rows(self.at());
            let row = |row: &vnet::security::sadb::rows::Row| {
                (row.peer, row.state, row.sessions, row.tally.made, row.tally.failed)
            };
            (self.hosts[host].sessions(vnet(42)), rows.iter().map(row).collect())
        })
    }

    /// A forgery arrives: returns the name of its drop, or the answer. An answer is counted as a
    /// drop is, if at all.
    fn forge(&mut self, to: usize, from: IpAddr, bytes: &[u8]) -> Result<Kind, &'static str> {
        let (now, on_the_way) = (self.at(), self.wire.len());
        self.hosts[to].handle_message(from, bytes, now);
        let sent = self.drain(to);
        // They are lost.
        self.wire.truncate(on_the_way);
        let counted = self.counted(to);
        match (&sent[..], &counted[..]) {
            ([(back, answer)], [] | ["handshake_cookies"]) => {
                assert_eq!(*back, from, "an answer goes to the source");
                assert!(answer.len() <= bytes.len(), "and is no longer than what it answers");
                Ok(kind_of(answer))
            }
            ([], [drop]) => Err(drop),
            _ => panic!("{} messages, counted {counted:?}", sent.len()),
        }
    }

    /// Any that was recorded, or is on the way.
    fn genuine(&mut self) -> (usize, Vec<u8>) {
        let all = self.recorded.len() + self.wire.len();
        let which = self.random.index(all);
        let waiting = which.checked_sub(self.recorded.len());
        waiting.map_or_else(|| self.recorded[which].clone(), |at| self.wire[at].clone())
    }
}

/// Sends many forgeries before each message of a handshake and at its end, and checks the state of
/// both hosts after each. The handshake succeeds nevertheless.
fn nothing_changes(mut forge: impl FnMut(&mut Pair, u64)) {
    let mut pair = Pair::new();
    let each = count().div_ceil(POINTS);
    for _ in 0..POINTS {
        let (before, sizes) = (pair.views(), [0, 1].map(|n| size(&pair.hosts[n])));
        for n in 0..each {
            if n.is_multiple_of((each / 1000).max(1)) {
                pair.now += Duration::from_millis(1);
            }
            forge(&mut pair, n);
            if n.is_multiple_of(16) {
                assert_eq!(pair.views(), before, "after forgery {n}");
            }
        }
        assert_eq!(pair.views(), before);
        for (host, before) in sizes.into_iter().enumerate() {
            let after = size(&pair.hosts[host]);
            assert!(after < before + GROWTH, "host {host}: {before} and then {after}");
        }
        pair.step();
    }
    while pair.step() {}
    for (host, (sessions, links)) in pair.views().into_iter().enumerate() {
        assert_eq!(sessions.len(), 2, "that before, and its replacement");
        assert_eq!(links, [(ip(1 - host), State::Open, 2, 2, 0)]);
    }
}

#[test]
fn replayed_messages_change_nothing() {
    const DROPS: [&str; 5] = [
        "handshake_drop_forged",
        "handshake_drop_name",
        "handshake_drop_unasked",
        "handshake_drop_stale",
        "handshake_drop_crossed",
    ];
    nothing_changes(|pair, n| {
        let which = pair.random.index(pair.recorded.len());
        let (to, bytes) = pair.recorded[which].clone();
        let third = other(&mut pair.random);
        // As it was; reflected; in the name of its addressee; by somebody else.
        let (to, from) = match n % 8 {
            0..=3 => (to, ip(1 - to)),
            4 => (1 - to, ip(to)),
            5 => (to, ip(to)),
            _ => (to, third),
        };
        let kind = kind_of(&bytes);
        match pair.forge(to, from, &bytes) {
            Ok(answer) => {
                assert_eq!(from, ip(1 - to), "{kind:?}");
                // What may have been lost is sent again.
                let pairs = [
                    (Kind::Init, Kind::Cookie),
                    (Kind::Init, Kind::Response),
                    (Kind::Confirm, Kind::Ack),
                ];
                assert!(pairs.contains(&(kind, answer)), "{kind:?} was answered by {answer:?}");
            }
            Err(drop) => assert!(DROPS.contains(&drop), "{kind:?}: {drop}"),
        }
    });
}

#[test]
fn altered_messages_change_nothing() {
    nothing_changes(|pair, _| {
        let (to, bytes) = pair.genuine();
        // The second MAC of an INIT only says that cookies are received.
        let uncovered = if kind_of(&bytes) == Kind::Init { MAC_LEN } else { 0 };
        let (at, altered) = alter(&mut pair.random, &bytes, bytes.len() - uncovered);
        let drop = pair.forge(to, ip(1 - to), &altered).unwrap_err();
        let names: &[&str] = match at {
            2 => &["handshake_drop_version"],
            0 | 1 => &["handshake_drop_malformed"],
            4..8 => &["handshake_drop_vnet", "handshake_drop_malformed"],
            8..12 => &["handshake_drop_vnet"],
            _ => &["handshake_drop_forged", "handshake_drop_malformed"],
        };
        assert!(names.contains(&drop), "byte {at}: {drop}");
    });
}

#[test]
fn made_up_messages_change_nothing() {
    let key_id = keyring(vnet(42)).keys[0].id.0;
    nothing_changes(|pair, _| {
        let to = pair.random.index(2);
        let kind = Kind::ALL[pair.random.index(5)];
        let (min, max) = kind.message_lens().into_inner();
        // Numbers that are in use, too.
        let numbers = pair.hosts[to].sessions(vnet(42));
        let which = pair.random.index(numbers.len() + 1);
        let random = pair.random.next() as u32;
        let receiver = numbers.get(which).map_or(random, |(number, _)| *number);
        let header = Header { vnet: vnet(42), key_id, sender: random, receiver };
        let mut bytes = header.emit(kind).to_vec();
        if kind == Kind::Init {
            Name::host(Realm(0), ip(1 - to)).emit(&mut bytes);
            bytes.extend([0; 2]);
        }
        let rest = min + pair.random.index(max - min + 1) - bytes.len();
        bytes.extend(noise(&mut pair.random, rest));
        let drop = pair.forge(to, ip(1 - to), &bytes).unwrap_err();
        let names = ["handshake_drop_forged", "handshake_drop_malformed"];
        assert!(names.contains(&drop), "{kind:?}: {drop}");
        if kind != Kind::Confirm {
            assert_eq!(drop, names[0], "{kind:?}");
        }
        // Any bytes at all.
        let len = pair.random.index(1300);
        let bytes = noise(&mut pair.random, len);
        assert_eq!(pair.forge(to, ip(1 - to), &bytes), Err("handshake_drop_malformed"));
    });
}

#[test]
fn messages_of_version_1_change_nothing() {
    nothing_changes(|pair, n| {
        let (to, mut bytes) = pair.genuine();
        // Version 1 had other lengths; nobody looks at what follows.
        bytes.truncate(4 + pair.random.index(bytes.len() - 3));
        let version = if n.is_multiple_of(4) { pair.random.next() as u8 } else { 1 };
        bytes[2] = if version == VERSION { 1 } else { version };
        assert_eq!(pair.forge(to, ip(1 - to), &bytes), Err("handshake_drop_version"));
    });
}

/// The key is right, and the sender a member: it is called otherwise than its address.
#[test]
fn messages_of_other_names_change_nothing() {
    let now = Now { mono: Instant::ZERO, wall_ms: WALL_MS };
    let of = |realm, host: usize| {
        let make =
            move |seed| init_of(&mut member(vnet(42), realm, ip(host), seed, now), vnet(42), now);
        (10..20).map(make).collect::<Vec<_>>()
    };
    // Host 0 of another realm, and a third host of this one.
    let (foreign, third) = (of(7, 0), of(0, 2));
    nothing_changes(|pair, n| {
        let which = pair.random.index(10);
        let (init, from) = match n % 3 {
            0 => (&foreign[which], ip(0)),
            1 => (&third[which], ip(0)),
            _ => (&third[which], other(&mut pair.random)),
        };
        assert_eq!(pair.forge(1, from, init), Err("handshake_drop_name"));
    });
}

#[test]
fn messages_of_members_of_another_vnet_change_nothing() {
    let now = Now { mono: Instant::ZERO, wall_ms: WALL_MS };
    let make = |seed| init_of(&mut member(vnet(43), 0, ip(0), seed, now), vnet(43), now);
    let inits: Vec<Vec<u8>> = (10..20).map(make).collect();
    let key_id = keyring(vnet(42)).keys[0].id.0;
    nothing_changes(|pair, n| {
        let mut init = inits[pair.random.index(10)].clone();
        let drop = match n % 2 {
            0 => "handshake_drop_vnet",
            _ => {
                init[4..8].copy_from_slice(&42_u32.to_be_bytes());
                init[8..12].copy_from_slice(&key_id.to_be_bytes());
                "handshake_drop_forged"
            }
        };
        assert_eq!(pair.forge(1, ip(0), &init), Err(drop));
    });
}
