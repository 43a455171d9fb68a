//! HELLO and LIST messages. They are not authenticated: anybody on the segment can make up a host, which operators then
//! see. Nobody but members makes a secured vnet's group frames shorter, and what is not in order changes nothing at all.
//!
//! ```text
//!   host 1 (9000 bytes)   hosts 2 and 3 (1500 bytes)     vnet 42: secured, one key; vnet 43: not
//!       ^-- forgeries
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use vnet::hosts::{Hosts, ONE, Output, Setup, To, Vnet};
use vnet::policy::{Level, Policy, Suite};
use vnet::secret::Secret;
use vnet::security::keys::MemberKeys;
use vnet::time::{Instant, Now};
use vnet::wire::Longest;
use vnet::wire::extension::Extensions;
use vnet::wire::hello::list::{Choice, TAG_LEN};
use vnet::wire::hello::{
    Abilities, Body, Entries, Entry, Flags, HMAC_LEN, Hello, List, MAX_LEN, Message, Proof, Relays,
    Release, VERSION,
};
use vnet::wire::name::{Name, Realm};

use super::{Random, Tally, alter, count, noise, vnet};

const PORT: u16 = 1798;
const WALL_MS: u64 = 1_767_225_600_000;
/// Longest datagrams: of host 1, and of the others.
const WIDE: u16 = 9000;
const NARROW: u16 = 1500;
/// Hosts that are remembered.
const MAX_HOSTS: usize = 4096;
/// HELLOs a second to single hosts: answers, questions for lists, and questions whether unicast arrives; and at once.
const A_SECOND: u64 = 20 + 10 + 2;
const AT_ONCE: u64 = 40 + 20;
/// Length of a HELLO to a single host.
const HELLO_LEN: u64 = 120;

fn addr(n: u32) -> SocketAddr {
    (IpAddr::from(Ipv4Addr::from(0x0a00_0000 + n)), PORT).into()
}

fn name(n: u32) -> Name {
    Name::host(Realm(0), addr(n).ip())
}

fn keys(byte: u8) -> MemberKeys {
    MemberKeys::new(&Secret::new([byte; 32]), vnet(42), Level::Conf, Suite::AesGcm)
}

/// On vnets 42 and 43, with such interfaces.
fn setup(longest: u16) -> Setup {
    let longest = Longest::new(longest, addr(1).ip()).unwrap();
    let groups = Choice { sent: ONE, accepted: 1 };
    let plain = Vnet { policy: Policy::default(), cipher: None, groups, longest, keys: Vec::new() };
    let keys = keys(1);
    let (policy, keys) = (Policy::only(Level::Conf), vec![(keys.id, keys.hello)]);
    let secured = Vnet { policy, cipher: Some(Suite::AesGcm), keys, ..plain.clone() };
    let group = Some(SocketAddr::from(([224, 10, 0, 1], PORT)));
    Setup {
        vnets: BTreeMap::from([(vnet(42), secured), (vnet(43), plain)]),
        vifs: 2,
        group,
        beacons: Vec::new(),
    }
}

/// A message: from which host, whether to the group, and its bytes.
type Sent = (u32, bool, Vec<u8>);

/// Host 1, the honest others, and what they have sent to it.
struct Segment {
    hosts: Vec<Hosts>,
    now: Now,
    tally: Tally,
    recorded: Vec<Sent>,
    /// What host 1 has sent since the last look, and to whom; nothing of it arrives at those who are made up.
    sent: Vec<(SocketAddr, Vec<u8>)>,
    random: Random,
}

impl Segment {
    fn new() -> Self {
        let now = Now { mono: Instant::from_millis(1_000_000), wall_ms: WALL_MS };
        let host = |n: u32| {
            let mut host = Hosts::new(name(n), PORT, [n as u8; 32], now);
            host.set_up(setup(if n == 1 { WIDE } else { NARROW }), now);
            host
        };
        let hosts = (1..=3).map(host).collect();
        let (tally, recorded, sent) = (Tally::default(), Vec::new(), Vec::new());
        let mut segment = Self { hosts, now, tally, recorded, sent, random: Random::new(1) };
        // Everybody knows everybody, and has asked everybody whether unicast arrives.
        (0..300).for_each(|_| segment.pass(Duration::from_secs(1)));
        let lens = [42, 43].map(|id| segment.hosts[0].longest(vnet(id)).number());
        assert_eq!(lens, [NARROW; 2]);
        let is_list = |sent: &&Sent| sent.2[3] == 2;
        assert!(segment.recorded.iter().any(|sent| is_list(&sent)));
        assert!(segment.recorded.iter().any(|(_, is_group, _)| !is_group));
        segment.counted();
        segment.sent.clear();
        segment
    }

    /// Time passes, and all do what is due.
    fn pass(&mut self, time: Duration) {
        self.now.mono += time;
        self.now.wall_ms += u64::try_from(time.as_millis()).unwrap();
        for host in &mut self.hosts {
            if host.poll_timeout() <= self.now.mono {
                host.handle_timeout(self.now);
            }
        }
        while (1..=self.hosts.len() as u32).any(|n| self.carry(n)) {}
    }

    /// Delivers what a host has to send; false if that is nothing.
    fn carry(&mut self, n: u32) -> bool {
        let at = |n: u32| n as usize - 1;
        let mut has_sent = false;
        while let Some(output) = self.hosts[at(n)].poll_output() {
            let Output::Send { to, bytes } = output else { continue };
            has_sent = true;
            for other in (1..=self.hosts.len() as u32).filter(|other| *other != n) {
                if to == To::Group || to == To::Host(addr(other)) {
                    let is_group = to == To::Group;
                    self.hosts[at(other)].handle_message(addr(n), is_group, &bytes, self.now);
                    if other == 1 {
                        self.recorded.push((n, is_group, bytes.clone()));
                    }
                }
            }
            if let (To::Host(to), 1) = (to, n) {
                self.sent.push((to, bytes));
            }
        }
        has_sent
    }

    fn counted(&mut self) -> Vec<&'static str> {
        let counted = self.tally.since(self.hosts[0].counters().readings());
        let is_drop =
            |name: &&str| name.contains("_drop_") || name.contains("_rx_") || *name == "hello_left";
        counted.into_iter().filter(is_drop).collect()
    }

    /// Gives host 1 a message.
    fn forge(&mut self, from: SocketAddr, is_group: bool, bytes: &[u8]) -> Vec<&'static str> {
        self.hosts[0].handle_message(from, is_group, bytes, self.now);
        self.counted()
    }

    /// What host 1 believes: the longest datagrams, and all hosts and their entries, but for the time since they were heard.
    fn believed(&self) -> (u16, BTreeSet<String>) {
        let rows = self.hosts[0]
            .rows(self.now)
            .into_iter()
            .map(|row| format!("{:?}", (row.host, row.vifs, row.vnet, row.longest, row.notes)));
        (self.hosts[0].longest(vnet(42)).number(), rows.collect())
    }

    fn genuine(&mut self) -> Sent {
        let which = self.random.index(self.recorded.len());
        self.recorded[which].clone()
    }

    /// Sends many messages that are not in order: each is dropped under this name, and nothing changes.
    fn refuses(
        &mut self,
        names: &[&str],
        mut forge: impl FnMut(&mut Self, u64) -> (SocketAddr, bool, Vec<u8>),
    ) {
        let before = self.believed();
        for n in 0..count() {
            let (from, is_group, bytes) = forge(self, n);
            let counted = self.forge(from, is_group, &bytes);
            assert!(counted.len() == 1 && names.contains(&counted[0]), "{counted:?}: {bytes:02x?}");
            assert_eq!(self.hosts[0].poll_output(), None);
            if n.is_multiple_of(256) {
                assert_eq!(self.believed(), before, "after forgery {n}");
                self.pass(Duration::from_millis(1));
            }
        }
        assert_eq!(self.believed(), before);
        // Honest messages are heard as before.
        self.counted();
        (0..60).for_each(|_| self.pass(Duration::from_secs(1)));
        assert_eq!(self.counted(), [""; 0]);
        assert_eq!(self.believed(), before);
    }
}

fn parsed(bytes: &[u8]) -> Message<'_> {
    Message::parse(bytes).unwrap()
}

#[test]
fn replayed_messages_change_nothing() {
    let mut segment = Segment::new();
    let names = ["hello_drop_stale", "hello_drop_unasked"];
    segment.refuses(&names, |segment, _| {
        let (from, is_group, bytes) = segment.genuine();
        (addr(from), is_group, bytes)
    });
}

/// Questions and answers, HELLOs and LISTs with right tags among them.
#[test]
fn replayed_messages_neither_keep_hosts_that_are_gone_nor_bring_them_back() {
    let mut segment = Segment::new();
    segment.hosts.truncate(1);
    for second in 0..600 {
        for _ in 0..count().div_ceil(600) {
            let (from, is_group, bytes) = segment.genuine();
            segment.forge(addr(from), is_group, &bytes);
        }
        segment.pass(Duration::from_secs(1));
        // Four intervals after the last HELLO. Anybody can make up hosts, but no members.
        if second > 130 {
            assert_eq!(segment.hosts[0].longest(vnet(42)).number(), 0, "after {second} s");
        }
    }
}

#[test]
fn messages_from_elsewhere_change_nothing() {
    let mut segment = Segment::new();
    segment.refuses(&["hello_drop_source"], |segment, n| {
        let (_, is_group, bytes) = segment.genuine();
        let from = if n.is_multiple_of(2) { 100 + segment.random.range(0, 1000) as u32 } else { 1 };
        (addr(from), is_group, bytes)
    });
    // By local users of the hosts.
    segment.refuses(&["hello_drop_port"], |segment, _| {
        let (from, is_group, bytes) = segment.genuine();
        let port = 1 + segment.random.range(0, 60_000) as u16;
        let port = if port == PORT { 5 } else { port };
        (SocketAddr::new(addr(from).ip(), port), is_group, bytes)
    });
    segment.refuses(&["hello_drop_own"], |segment, _| {
        let (_, is_group, bytes) = segment.genuine();
        let own = Message { sender: name(1), ..parsed(&bytes) };
        (addr(1), is_group, own.to_bytes())
    });
}

#[test]
fn messages_that_are_not_in_order_change_nothing() {
    let mut segment = Segment::new();
    segment.refuses(&["hello_rx_version"], |segment, n| {
        let (from, is_group, mut bytes) = segment.genuine();
        bytes[2] =
            if n.is_multiple_of(2) { 0 } else { VERSION + 1 + segment.random.range(0, 250) as u8 };
        bytes.truncate(3 + segment.random.index(bytes.len() - 2));
        (addr(from), is_group, bytes)
    });
    segment.refuses(&["hello_rx_malformed"], |segment, n| {
        let (from, is_group, mut bytes) = segment.genuine();
        match n % 4 {
            0 => bytes.truncate(segment.random.index(bytes.len())),
            1 => bytes.extend(noise(&mut segment.random, 1 + n as usize % 16)),
            2 => bytes.resize(MAX_LEN + 1 + n as usize % 64, 0),
            _ => {
                let len = segment.random.index(300);
                bytes.truncate(3);
                bytes.extend([7].into_iter().chain(noise(&mut segment.random, len)));
            }
        }
        (addr(from), is_group, bytes)
    });
    // A HELLO with a nonce to the group, or without one to this host; the program's data is right otherwise.
    segment.refuses(&["hello_drop_cast"], |segment, n| {
        let (from, time_ms) = (2 + n as u32 % 2, segment.now.wall_ms + 1 + n);
        let nonce = n % 2;
        (addr(from), nonce != 0, hello(from, time_ms, nonce, Abilities::default()))
    });
    segment.refuses(&["hello_drop_relay"], |segment, n| {
        let (from, time_ms) = (2 + n as u32 % 200, segment.now.wall_ms + 1 + n);
        (addr(from), true, hello(from, time_ms, 0, Abilities::RELAY))
    });
    segment.refuses(&["hello_drop_unasked"], |segment, n| {
        let (from, time_ms) = (2 + n as u32 % 200, segment.now.wall_ms + 1 + n);
        let mut bytes = hello(from, time_ms, 7, Abilities::default());
        let answer = segment.random.next();
        let Message { body: Body::Hello(hello), .. } = parsed(&bytes) else { unreachable!() };
        let body = Body::Hello(Hello { answer, ..hello });
        bytes = Message { body, flags: Flags::ANSWER, ..parsed(&bytes) }.to_bytes();
        (addr(from), false, bytes)
    });
    segment.refuses(&["hello_drop_unknown"], |segment, n| {
        let from = 1000 + n as u32;
        (addr(from), true, list(from, segment.now.wall_ms, 0, &[]))
    });
}

/// A host that has proved that it is a member is gone when its lifetime has ended, and not by anybody's word.
#[test]
fn farewells_in_the_names_of_members_and_of_strangers_change_nothing() {
    let mut segment = Segment::new();
    let farewell = |from: u32, time_ms: u64| {
        let bytes = hello(from, time_ms, 0, Abilities::default());
        let Message { body: Body::Hello(hello), .. } = parsed(&bytes) else { unreachable!() };
        let body = Body::Hello(Hello { lifetime_ms: 0, ..hello });
        (addr(from), true, Message { body, ..parsed(&bytes) }.to_bytes())
    };
    segment.refuses(&["hello_drop_farewell"], |segment, n| {
        farewell(2 + n as u32 % 2, segment.now.wall_ms + 1 + n)
    });
    segment.refuses(&["hello_drop_unknown"], |segment, n| {
        farewell(1000 + n as u32, segment.now.wall_ms)
    });
}

/// A HELLO of any host.
fn hello(from: u32, time_ms: u64, nonce: u64, abilities: Abilities) -> Vec<u8> {
    let hello = Hello {
        lifetime_ms: 120_000,
        release: Release::default(),
        abilities,
        vifs: 1,
        digest: time_ms,
        nonce,
        answer: 0,
        group: None,
        relays: Relays::NONE,
    };
    message(from, time_ms, Body::Hello(hello), Flags::NONE)
}

/// A LIST of any host, of all vnets.
fn list(from: u32, time_ms: u64, generation: u32, entries: &[Entry]) -> Vec<u8> {
    let bytes = Entries::emit(entries);
    let entries = Entries::parse(&bytes).unwrap();
    let list = List { first: vnet(1), last: vnet(u32::MAX), entries };
    let bytes = message(from, time_ms, Body::List(list), Flags::NONE);
    Message { generation, ..parsed(&bytes) }.to_bytes()
}

fn message(from: u32, time_ms: u64, body: Body<'_>, flags: Flags) -> Vec<u8> {
    let message = Message {
        flags,
        key_number: 0,
        time_ms,
        generation: 1,
        sender: name(from),
        body,
        extensions: Extensions::NONE,
        hmac: [0; HMAC_LEN],
    };
    message.to_bytes()
}

/// An entry of a vnet with any values, and a tag that nobody made.
fn entry(random: &mut Random, id: u32) -> Entry {
    let key_id = if random.per_mille(700) { keys(1).id.0 } else { random.next() as u32 };
    let tag = noise(random, TAG_LEN).try_into().unwrap();
    Entry {
        vnet: vnet(id),
        policy: Choice { sent: random.range(0, 4) as u8, accepted: random.range(0, 16) as u8 },
        cipher: random.range(0, 5) as u8,
        groups: Choice { sent: random.range(0, 4) as u8, accepted: random.range(0, 16) as u8 },
        longest: random.range(552, 9000) as u16,
        proof: random.per_mille(800).then_some(Proof { key_id, tag }),
    }
}

/// One message of somebody who can do everything but make tags, in the name of a member or of a host that is made up.
fn lie(segment: &mut Segment, n: u64) -> (SocketAddr, bool, Vec<u8>) {
    let hosts = if n.is_multiple_of(2) { 2 } else { 10_000 };
    let from = 2 + segment.random.range(0, hosts) as u32;
    let time_ms = segment.now.wall_ms + segment.random.range(0, 1000);
    let is_group = segment.random.per_mille(500);
    let nonce = if is_group { 0 } else { segment.random.next() | 1 };
    let mut bytes = match n % 8 {
        0..=2 => hello(from, time_ms, nonce, Abilities::default()),
        3 => {
            let (_, was_group, genuine) = segment.genuine();
            let (_, altered) = alter(&mut segment.random, &genuine, genuine.len());
            return (addr(from), was_group, altered);
        }
        4..=6 => {
            let ids = [42, 43, 44 + segment.random.range(0, 100_000) as u32];
            let random = &mut segment.random;
            let mut entries: Vec<Entry> = ids.iter().map(|id| entry(random, *id)).collect();
            entries.retain(|_| random.per_mille(700));
            list(from, time_ms, segment.random.range(0, 3) as u32, &entries)
        }
        _ => hello(from, time_ms, 0, Abilities::default()),
    };
    // Farewells, questions for the list, and any lifetime.
    if let Message { body: Body::Hello(hello), .. } = parsed(&bytes) {
        let lifetime_ms = if n % 8 == 7 { 0 } else { segment.random.next() as u32 };
        let is_question = nonce != 0 && n % 8 != 7;
        let answer = if is_question { segment.random.next() } else { 0 };
        let flags = if is_question { Flags::WANTS_LIST } else { Flags::NONE };
        let body = Body::Hello(Hello { lifetime_ms, answer, ..hello });
        bytes = Message { body, flags, ..parsed(&bytes) }.to_bytes();
    }
    (addr(from), is_group, bytes)
}

/// For a secured vnet, the host accepts only entries with members' tags. It shows forged hosts up
/// to the room of its table, sends each address at most one HELLO for each of its own, within
/// limits, and sends its list to none of them.
#[test]
fn lies_shorten_no_group_frames_of_a_secured_vnet_and_make_no_targets() {
    let mut segment = Segment::new();
    let begin = segment.now.mono;
    let mut to_third = 0;
    let mut heard = BTreeSet::new();
    for n in 0..count() {
        let (from, is_group, bytes) = lie(&mut segment, n);
        heard.insert(from);
        let counted = segment.forge(from, is_group, &bytes);
        let drops = counted.iter().filter(|name| **name != "hello_left").count();
        // A LIST has up to three entries with a wrong tag each.
        assert!(drops <= 4, "{counted:?}");
        assert_eq!(segment.hosts[0].longest(vnet(42)).number(), NARROW, "after lie {n}");
        if n.is_multiple_of(8) {
            segment.pass(Duration::from_millis(20));
        }
        segment.carry(1);
        for (to, sent) in std::mem::take(&mut segment.sent) {
            let is_member = to == addr(2) || to == addr(3);
            assert!(is_member || heard.contains(&to), "{to} has said nothing");
            assert!(is_member || sent[3] == 1, "the list goes to nobody who has not answered");
            to_third += if is_member { 0 } else { sent.len() as u64 };
        }
        assert!(segment.hosts[0].known() <= MAX_HOSTS);
    }
    let seconds = (segment.now.mono - begin).as_secs() + 1;
    let most = HELLO_LEN * (AT_ONCE + A_SECOND * seconds);
    assert!(to_third <= most, "{to_third} bytes to others, {most} at most");
    // When they have ended, the members are what they were.
    (0..1900).for_each(|_| segment.pass(Duration::from_secs(1)));
    assert_eq!(segment.hosts[0].known(), 2);
    assert_eq!([42, 43].map(|id| segment.hosts[0].longest(vnet(id)).number()), [NARROW; 2]);
}
