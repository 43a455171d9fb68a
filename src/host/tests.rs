//! Tests of the parts together: a shell without sockets drives the host as `varpd` does.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use super::admission::Admission;
use super::site::Interface;
use super::*;
use crate::policy::{Floor, Level, Policy};
use crate::security::keyfile::KeyFile;
use crate::wire::control::{ErrorCode, Features, Request};
use crate::wire::{Capabilities, Mac};

#[test]
fn the_defaults_are_the_mappers() {
    assert_eq!(mapper_config(&Config::default()), mapper::Config::default());
}

/// A host and its shell, which opens "sockets" at one port after the other.
struct Bench {
    host: Host,
    now: Now,
    next_client: u64,
    next_port: u16,
    sockets: BTreeMap<LocalVif, SocketAddr>,
    /// Messages to clients, each with its descriptors.
    told: Vec<(ClientId, Event, Descriptors)>,
    closed: BTreeSet<ClientId>,
    log: Vec<(log::Level, String)>,
    /// All other outputs.
    others: Vec<Output>,
    /// Key files that can be read.
    keys: BTreeMap<VnetId, KeyFile>,
    /// All inputs and all outputs, in order.
    inputs: Vec<(Now, Input)>,
    outputs: Vec<Output>,
    start: Start,
    /// The test itself gives the host the results of outputs.
    is_slow: bool,
    results: VecDeque<Input>,
}

const PID: i32 = 700;
const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

fn vnet(id: u32) -> VnetId {
    VnetId::new(id).unwrap()
}

fn key(id: u32, mac: u8) -> VifKey {
    VifKey { vnet: vnet(id), mac: Mac([2, 0, 0, 0, 0, mac]) }
}

fn place(address: &str) -> Place {
    Place { interface: "eth0".into(), index: 2, address: address.parse().unwrap() }
}

fn config(text: &str) -> Config {
    Config::parse(&format!("underlay = 'eth0'\n{text}"), Path::new("f.toml")).unwrap()
}

fn admission(config: &Config) -> Admission {
    let nobody = |_: &str| Err(std::io::Error::other("no such account"));
    Admission::new(config, 990, None, nobody, nobody).unwrap()
}

fn key_file(byte: u8) -> KeyFile {
    KeyFile::new(Secret::new(std::array::from_fn(|n| byte ^ u8::try_from(n).unwrap())))
}

fn registration(key: VifKey) -> Request {
    Request::Register {
        key,
        capabilities: Capabilities::NONE,
        queue_pairs: 1,
        active: true,
        stamp: None,
        learn: 0,
        floor: Floor::default(),
    }
}

impl Bench {
    fn new(text: &str) -> Self {
        let config = config(text);
        let start = Start {
            mapper: mapper_config(&config),
            admission: admission(&config),
            config,
            place: place("192.0.2.1"),
            mtu: Some(1500),
            seed: [7; 32],
        };
        let now = Now { mono: Instant::from_millis(1000), wall_ms: 1_767_225_600_000 };
        Self {
            host: Host::new(start.clone(), now),
            now,
            next_client: 1,
            next_port: 40_000,
            sockets: BTreeMap::new(),
            told: Vec::new(),
            closed: BTreeSet::new(),
            log: Vec::new(),
            others: Vec::new(),
            keys: BTreeMap::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            start,
            is_slow: false,
            results: VecDeque::new(),
        }
    }

    fn give(&mut self, input: Input) {
        self.inputs.push((self.now, input.clone()));
        self.host.handle(input, self.now);
        while let Some(output) = self.host.poll_output() {
            self.outputs.push(output.clone());
            self.perform(output);
        }
        if !self.is_slow {
            self.give_results();
        }
    }

    fn give_results(&mut self) {
        while let Some(result) = self.results.pop_front() {
            self.give(result);
        }
    }

    fn open(&mut self, vif: LocalVif) -> SocketAddr {
        let address = SocketAddr::new(self.host.place().address, self.next_port);
        self.next_port += 1;
        self.sockets.insert(vif, address);
        address
    }

    fn perform(&mut self, output: Output) {
        match output {
            Output::Tell { client, event, descriptors } => {
                self.told.push((client, event, descriptors));
            }
            Output::Close { client } => assert!(self.closed.insert(client), "closed twice"),
            Output::Open { vif, .. } => {
                let result = Ok(self.open(vif));
                self.results.push_back(Input::Opened { vif, result });
            }
            Output::Adopt { vif, .. } => {
                let address = self.open(vif);
                let brought = Brought { address, has_new_groups: false };
                self.results.push_back(Input::Adopted { vif, result: Ok(brought) });
            }
            Output::HandOver { from, to } => {
                let address = self.sockets.remove(&from).unwrap();
                self.sockets.insert(to, address);
            }
            Output::Drop { vif } => drop(self.sockets.remove(&vif)),
            Output::ReadKey { vnet, path } => {
                let file = self.keys.get(&vnet).cloned();
                let result = file.ok_or(format!("{}: not found", path.display()));
                self.results.push_back(Input::Key { vnet, result });
            }
            Output::Log { level, text } => self.log.push((level, text)),
            other => self.others.push(other),
        }
    }

    fn connect(&mut self, uid: u32) -> ClientId {
        let client = ClientId(self.next_client);
        self.next_client += 1;
        let pid = PID + i32::try_from(client.0).unwrap();
        let (door, peer) = (Door::Control, Peer { uid, pid });
        self.give(Input::Connected { client, door, peer, groups: vec![uid] });
        self.ask(client, &Request::Hello { features: Features::NONE, software: "test".into() });
        client
    }

    fn ask(&mut self, client: ClientId, request: &Request) {
        self.ask_with(client, request, 0);
    }

    fn ask_with(&mut self, client: ClientId, request: &Request, descriptors: usize) {
        let bytes = request.emit();
        self.give(Input::Request { client, bytes, is_cut: false, descriptors });
    }

    fn register(&mut self, uid: u32, key: VifKey) -> ClientId {
        let client = self.connect(uid);
        self.ask(client, &registration(key));
        client
    }

    /// The place last sent to a client, and the descriptors with it.
    fn place_of(&self, client: ClientId) -> Option<(SocketAddr, u32, Policy, Descriptors)> {
        self.told.iter().rev().find_map(|(to, event, descriptors)| match event {
            Event::Registered { coa, underlay_mtu, policy, .. } if *to == client => {
                Some((coa.addr, *underlay_mtu, *policy, *descriptors))
            }
            _ => None,
        })
    }

    fn error(&self, client: ClientId) -> Option<(ErrorCode, &str)> {
        self.told.iter().rev().find_map(|(to, event, _)| match event {
            Event::Error { code, text } if *to == client => Some((*code, text.as_str())),
            _ => None,
        })
    }

    fn has_group_keys(&self, client: ClientId) -> bool {
        self.told
            .iter()
            .any(|(to, event, _)| *to == client && matches!(event, Event::GroupKeys { .. }))
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now.mono + time;
        while let Some(due) = self.host.poll_timeout().filter(|due| *due <= end) {
            let ms = u64::try_from((due - self.now.mono).as_millis()).unwrap();
            self.now = Now { mono: due.max(self.now.mono), wall_ms: self.now.wall_ms + ms };
            self.give(Input::Timeout);
        }
        self.now.mono = end;
    }

    fn state(&self, key: VifKey) -> Vec<&'static str> {
        let of_key = self.host.registry.iter().filter(|(_, vif)| vif.key == key);
        of_key.map(|(_, vif)| vif.state()).collect()
    }
}

#[test]
fn a_new_vif_gets_sockets_and_is_claimed() {
    let mut bench = Bench::new("");
    let client = bench.register(0, key(42, 1));
    let (address, mtu, _, descriptors) = bench.place_of(client).unwrap();
    assert_eq!((address.port(), mtu), (40_000, 1500));
    assert!(matches!(descriptors, Descriptors::All(_)));
    assert_eq!(bench.state(key(42, 1)), ["active"]);
    assert!(bench.others.contains(&Output::Hear([vnet(42)].into())));
}

#[test]
fn a_backend_that_comes_back_finds_what_was_kept() {
    let mut bench = Bench::new("");
    let first = bench.register(0, key(42, 1));
    let (address, ..) = bench.place_of(first).unwrap();
    bench.give(Input::Closed { client: first, why: Ending::Gone });
    assert_eq!(bench.state(key(42, 1)), ["kept"]);
    let second = bench.register(0, key(42, 1));
    assert_eq!(bench.place_of(second).unwrap().0, address, "the sockets that were kept");
    assert_eq!(bench.state(key(42, 1)), ["active"]);
    bench.give(Input::Closed { client: second, why: Ending::Stalled });
    bench.pass(Duration::from_secs(61));
    assert_eq!(bench.state(key(42, 1)), [""; 0], "nobody came");
    assert!(bench.sockets.is_empty(), "nothing is left open");
}

#[test]
fn sockets_that_come_when_their_client_is_gone_are_closed() {
    let mut bench = Bench::new("");
    bench.is_slow = true;
    let client = bench.register(0, key(42, 1));
    assert_eq!(bench.place_of(client), None, "the sockets are on their way");
    bench.ask(client, &Request::Announce);
    assert_eq!(bench.error(client), Some((ErrorCode::Invalid, "message out of place")));
    assert!(bench.closed.contains(&client));
    bench.give_results();
    assert!(bench.sockets.is_empty() && bench.host.registering.is_empty());
    assert_eq!(bench.state(key(42, 1)), [""; 0]);
}

#[test]
fn of_two_registrations_that_wait_for_sockets_the_second_users_is_refused() {
    let mut bench = Bench::new("");
    bench.is_slow = true;
    let clients = [1000, 1001].map(|uid| bench.register(uid, key(42, 1)));
    bench.is_slow = false;
    bench.give_results();
    assert!(bench.place_of(clients[0]).is_some());
    let (code, text) = bench.error(clients[1]).unwrap();
    assert_eq!(code, ErrorCode::Taken, "{text}");
    assert_eq!(bench.sockets.len(), 1, "those of the second are closed");
}

#[test]
fn a_secured_vif_waits_for_its_key_and_is_refused_without_one() {
    let mut bench = Bench::new("[vnet.42]\npolicy = 'conf'\n[vnet.43]\npolicy = 'conf'");
    bench.keys.insert(vnet(42), key_file(1));
    bench.is_slow = true;
    let two = [1, 2].map(|mac| bench.register(0, key(42, mac)));
    let lost = bench.register(0, key(43, 1));
    assert_eq!(bench.results.len(), 2, "each file is read once");
    bench.is_slow = false;
    bench.give_results();
    for client in two {
        assert_eq!(bench.place_of(client).unwrap().2.sent(), Level::Conf);
        assert!(bench.has_group_keys(client));
    }
    let (code, text) = bench.error(lost).unwrap();
    assert_eq!(code, ErrorCode::Denied);
    let want = "vnet 43 is secured (conf), but its key /etc/vnet/keys/43.key: not found";
    assert_eq!(text, want);
    assert!(bench.closed.contains(&lost));
}

#[test]
fn outputs_for_clients_that_are_gone_change_nothing() {
    let mut bench = Bench::new("");
    let client = bench.register(0, key(42, 1));
    bench.give(Input::Closed { client, why: Ending::Gone });
    let before = bench.outputs.len();
    bench.give(Input::Closed { client, why: Ending::Stalled });
    bench.ask(client, &Request::SetActive { active: false });
    bench.give(Input::Taken { client });
    let vif = LocalVif(99);
    bench.give(Input::Strayed { vif, senders: vec!["192.0.2.9:5".parse().unwrap()] });
    bench.give(Input::Rejoined { vif, result: Err("x".into()) });
    bench.give(Input::LaneFailed { lane: 1, vif, error: "x".into() });
    bench.give(Input::Placed { place: place("192.0.2.5"), result: Ok(1400) });
    assert_eq!(bench.host.place().address, place("192.0.2.1").address);
    let more = &bench.outputs[before..];
    assert!(more.iter().all(|output| matches!(output, Output::Log { .. })), "{more:?}");
    assert_eq!(bench.state(key(42, 1)), ["kept"]);
}

fn interfaces(address: &str) -> Input {
    let interface = Interface {
        name: "eth0".into(),
        index: 2,
        master: None,
        up: true,
        loopback: false,
        default_route: false,
        addresses: vec![address.parse().unwrap()],
    };
    Input::Interfaces { result: Ok(vec![interface]), took: Duration::ZERO }
}

#[test]
fn vifs_follow_their_host_to_another_address() {
    let mut bench = Bench::new("");
    let live = bench.register(0, key(42, 1));
    let kept = bench.register(0, key(42, 2));
    bench.give(Input::Closed { client: kept, why: Ending::Gone });
    bench.give(Input::News { any: true, is_deleted: false });
    bench.pass(Duration::from_millis(200));
    assert!(bench.others.contains(&Output::Look));
    bench.give(interfaces("192.0.2.77"));
    let place = place("192.0.2.77");
    assert!(bench.others.contains(&Output::Move(place.clone())));
    assert_eq!(bench.place_of(live).unwrap().0.ip().to_string(), "192.0.2.1", "not yet there");
    bench.give(Input::Placed { place, result: Ok(1400) });
    let (address, mtu, _, descriptors) = bench.place_of(live).unwrap();
    assert_eq!((address.ip().to_string(), mtu), ("192.0.2.77".into(), 1400));
    assert!(matches!(descriptors, Descriptors::All(_)), "it has others now");
    assert_eq!(bench.state(key(42, 1)), ["active"]);
    assert_eq!(bench.state(key(42, 2)), ["kept"]);
    assert!(bench.sockets.values().all(|at| at.ip() == address.ip()));
}

#[test]
fn a_place_that_cannot_be_gone_to_is_tried_again() {
    let mut bench = Bench::new("");
    bench.give(Input::News { any: true, is_deleted: false });
    bench.pass(Duration::from_millis(200));
    bench.give(interfaces("192.0.2.77"));
    let failure = Input::Placed { place: place("192.0.2.77"), result: Err("no".into()) };
    bench.give(failure);
    assert_eq!(bench.host.place().address.to_string(), "192.0.2.1");
    bench.others.clear();
    bench.pass(Duration::from_secs(2));
    assert!(bench.others.contains(&Output::Look), "looks again");
}

#[test]
fn another_mtu_is_told_to_backends() {
    let mut bench = Bench::new("");
    let client = bench.register(0, key(42, 1));
    bench.told.clear();
    bench.give(Input::Mtu(Some(1500)));
    bench.give(Input::Mtu(None));
    assert_eq!(bench.told, [], "nothing has changed");
    bench.give(Input::Mtu(Some(9000)));
    let (_, mtu, _, descriptors) = bench.place_of(client).unwrap();
    assert_eq!((mtu, descriptors), (9000, Descriptors::Nothing));
}

#[test]
fn what_was_recorded_gives_the_same_outputs_again() {
    let mut bench = Bench::new("[vnet.43]\npolicy = 'conf'");
    bench.keys.insert(vnet(43), key_file(3));
    let clients: Vec<ClientId> =
        (1..6).map(|n| bench.register(0, key(42 + u32::from(n % 2), n))).collect();
    bench.pass(Duration::from_secs(3));
    bench.ask(clients[0], &Request::Resolve { mac: MAC, refresh: false });
    bench.ask(clients[1], &Request::Learn { macs: vec![(Mac([2, 9, 0, 0, 0, 1]), None)] });
    bench.give(Input::Closed { client: clients[2], why: Ending::Gone });
    bench.ask_with(clients[3], &Request::Monitor, 3);
    bench.give(Input::Datagram {
        from: "192.0.2.9:1798".parse().unwrap(),
        is_group: true,
        bytes: vec![1; 60],
    });
    bench.give(Input::Slept { asleep: Duration::from_secs(9), seed: [4; 32] });
    bench.pass(Duration::from_secs(70));
    assert!(bench.outputs.len() > 100, "something has happened");
    let mut again = Host::new(bench.start, bench.inputs[0].0);
    let mut outputs = Vec::new();
    for (now, input) in bench.inputs {
        again.handle(input, now);
        outputs.extend(std::iter::from_fn(|| again.poll_output()));
    }
    let first = bench.outputs.iter().zip(&outputs).find(|(one, other)| one != other);
    assert_eq!((first, bench.outputs.len()), (None, outputs.len()));
    // Debug output shows bytes that comparison might not look at.
    assert_eq!(format!("{:?}", bench.outputs), format!("{outputs:?}"));
}

/// Uses another configuration, with the keys that it needs.
fn reconfigure(bench: &mut Bench, text: &str) {
    let config = config(text);
    let needed = bench.host.vnets_with_keys(&config).into_iter();
    let keys = needed.map(|vnet| (vnet, bench.keys[&vnet].clone())).collect();
    let admission = admission(&config);
    bench.give(Input::Reconfigure { config: Box::new(config), admission, keys });
}

#[test]
fn a_vnet_gets_another_policy_under_running_vifs() {
    let mut bench = Bench::new("");
    bench.keys.insert(vnet(42), key_file(5));
    let [here, elsewhere] = [42, 43].map(|id| bench.register(0, key(id, 1)));
    let conf = "[vnet.42]\npolicy = 'conf'";
    reconfigure(&mut bench, conf);
    let policy = |bench: &Bench, client| bench.place_of(client).unwrap().2.sent();
    assert_eq!(policy(&bench, here), Level::Conf);
    assert!(bench.has_group_keys(here));
    assert_eq!(policy(&bench, elsewhere), Level::None);
    assert!(!bench.has_group_keys(elsewhere));
    let watched =
        |output: &Output| matches!(output, Output::WatchKey { vnet, .. } if vnet.get() == 42);
    assert!(bench.others.iter().any(watched));
    bench.told.clear();
    reconfigure(&mut bench, conf);
    assert_eq!(bench.told, [], "nothing has changed");
    reconfigure(&mut bench, "");
    assert_eq!(policy(&bench, here), Level::None);
    assert_eq!(bench.state(key(42, 1)), ["active"]);
}

#[test]
fn a_backend_that_requires_more_is_halted_until_the_policy_is_back() {
    let conf = "[vnet.42]\npolicy = 'conf'";
    let mut bench = Bench::new(conf);
    bench.keys.insert(vnet(42), key_file(5));
    let client = bench.connect(0);
    let mut floor = Floor::default();
    floor.note(Policy::from(Level::Conf));
    let Request::Register { key, capabilities, queue_pairs, active, stamp, learn, .. } =
        registration(key(42, 1))
    else {
        panic!()
    };
    bench.ask(
        client,
        &Request::Register { key, capabilities, queue_pairs, active, stamp, learn, floor },
    );
    assert_eq!(bench.state(key), ["active"]);
    reconfigure(&mut bench, "");
    assert_eq!(bench.state(key), ["halted"]);
    assert!(bench.log.iter().any(|(level, text)| {
        *level == log::Level::Warn && text.contains("carries no frame any more")
    }));
    bench.ask(client, &Request::SetActive { active: true });
    assert_eq!(bench.state(key), ["halted"]);
    reconfigure(&mut bench, conf);
    bench.ask(client, &Request::SetActive { active: true });
    assert_eq!(bench.state(key), ["active"]);
}

#[test]
fn limits_and_lists_are_used_at_once_and_other_settings_later() {
    let mut bench = Bench::new("");
    bench.register(1000, key(42, 1));
    reconfigure(
        &mut bench,
        "port = 1799\nrealm = 5\n[limits]\nclients-per-user = 2\n[vnet.42]\nallow-users = [1001]\ngroup = '239.1.1.1'",
    );
    let later = "these settings take effect at the next start of varpd: realm, group, port";
    assert!(bench.log.iter().any(|(_, text)| text == later), "{:?}", bench.log);
    assert_eq!((bench.host.config().port.0, bench.host.config().realm), (1798, 0));
    let denied = bench.register(1000, key(42, 2));
    assert_eq!(bench.error(denied).unwrap().0, ErrorCode::Denied);
    let group = bench.host.groups_of(vnet(42)).first();
    assert_eq!(group.to_string(), "224.10.0.1", "the sockets have joined this one");
    assert_eq!(bench.state(key(42, 1)), ["active"], "what is there stays");
    for expected in [true, true, false] {
        let client = bench.connect(1002);
        assert_eq!(!bench.closed.contains(&client), expected);
    }
}

/// The addresses at which this host claims a key.
fn claimed_at(bench: &Bench, key: VifKey) -> Vec<SocketAddr> {
    let mapper = bench.host.mapper();
    let claim = mapper.owner(&key).and_then(|vif| mapper.claim(vif));
    claim.into_iter().map(|claim| claim.coa.addr).collect()
}

#[test]
fn a_backend_whose_guest_never_ran_leaves_no_sockets_to_its_successor() {
    let mut bench = Bench::new("");
    let first = bench.connect(0);
    let Request::Register { key, capabilities, queue_pairs, stamp, learn, floor, .. } =
        registration(key(42, 1))
    else {
        panic!()
    };
    let active = false;
    bench.ask(
        first,
        &Request::Register { key, capabilities, queue_pairs, active, stamp, learn, floor },
    );
    let (address, ..) = bench.place_of(first).unwrap();
    bench.give(Input::Closed { client: first, why: Ending::Gone });
    let second = bench.register(0, key);
    assert_ne!(bench.place_of(second).unwrap().0, address, "frames there were for nobody");
    assert_eq!(bench.state(key), ["active"]);
    assert_eq!(bench.sockets.len(), 1, "the old ones are closed");
}

/// Another host's announcement of a vif, newer than all earlier ones.
fn announced_elsewhere(bench: &mut Bench, key: VifKey) {
    use crate::wire::varp::{Author, Body, Claim};
    use crate::wire::{CareOf, EncapKinds, Longest, Stamp};
    let author: SocketAddr = "192.0.2.9:1798".parse().unwrap();
    let coa = CareOf {
        addr: "192.0.2.9:5555".parse().unwrap(),
        kinds: EncapKinds::UDP,
        capabilities: Capabilities::NONE,
        longest: Longest::UNKNOWN,
    };
    let stamp = Stamp((bench.now.wall_ms + 5000) << 16);
    let stamp = bench
        .host
        .mapper()
        .owner(&key)
        .and_then(|vif| bench.host.mapper().claim(vif))
        .map_or(stamp, |claim| Stamp(claim.stamp.0 + 1000));
    let message = Message {
        key,
        author: Author { realm: Realm(0), addr: author },
        nonce: 77,
        wide: false,
        relayed: false,
        body: Body::Announce {
            claim: Claim { stamp, coa, realm: Realm(0), behind: None },
            lifetime_ms: 30_000,
        },
        tag: None,
    };
    bench.give(Input::Datagram { from: author, is_group: true, bytes: message.to_bytes() });
}

#[test]
fn sockets_of_a_guest_that_has_been_elsewhere_since_are_not_taken_again() {
    let mut bench = Bench::new("");
    let first = bench.register(0, key(42, 1));
    let (address, ..) = bench.place_of(first).unwrap();
    bench.give(Input::Closed { client: first, why: Ending::Gone });
    announced_elsewhere(&mut bench, key(42, 1));
    assert!(bench.others.iter().any(|output| matches!(output, Output::Watch { .. })));
    let second = bench.register(0, key(42, 1));
    assert_ne!(bench.place_of(second).unwrap().0, address);
    assert!(bench.others.iter().any(|output| matches!(output, Output::Unwatch { .. })));
    assert_eq!(claimed_at(&bench, key(42, 1)).len(), 1, "its guest has come back");
}

#[test]
fn what_strays_to_a_vif_that_has_moved_is_told_the_new_place() {
    let mut bench = Bench::new("");
    let client = bench.register(0, key(42, 1));
    bench.give(Input::Closed { client, why: Ending::Gone });
    let vif = bench.host.registry.ids()[0];
    let senders = vec!["192.0.2.8:4000".parse().unwrap()];
    let before = bench.others.len();
    bench.give(Input::Strayed { vif, senders: senders.clone() });
    assert_eq!(bench.others.len(), before, "it has not moved");
    announced_elsewhere(&mut bench, key(42, 1));
    bench.give(Input::Strayed { vif, senders });
    let to = |output: &Output| matches!(output, Output::Send { to, .. } if to.ip().to_string() == "192.0.2.8");
    assert!(bench.others.iter().any(to), "a correction");
}

#[test]
fn macs_behind_a_vif_follow_it_when_its_host_moves_and_end_with_it() {
    let mut bench = Bench::new("");
    let client = bench.connect(0);
    let Request::Register { key: own, capabilities, queue_pairs, active, stamp, floor, .. } =
        registration(key(42, 1))
    else {
        panic!()
    };
    let learn = 8;
    bench.ask(
        client,
        &Request::Register { key: own, capabilities, queue_pairs, active, stamp, learn, floor },
    );
    let behind = key(42, 99);
    bench.ask(client, &Request::Learn { macs: vec![(behind.mac, None)] });
    bench.pass(Duration::from_secs(2));
    assert_eq!(claimed_at(&bench, behind), claimed_at(&bench, own));
    bench.give(Input::News { any: true, is_deleted: false });
    bench.pass(Duration::from_millis(400));
    bench.give(interfaces("192.0.2.77"));
    bench.give(Input::Placed { place: place("192.0.2.77"), result: Ok(1500) });
    bench.pass(Duration::from_secs(2));
    let [at] = claimed_at(&bench, own)[..] else { panic!() };
    assert_eq!(at.ip().to_string(), "192.0.2.77");
    assert_eq!(claimed_at(&bench, behind), [at]);
    bench.ask(client, &Request::SetActive { active: false });
    assert_eq!(claimed_at(&bench, behind), [], "nothing runs behind a guest that has stopped");
}

#[test]
fn a_second_backend_of_a_running_vif_is_told_and_the_last_to_run_has_the_vif() {
    let mut bench = Bench::new("");
    let first = bench.register(0, key(42, 1));
    let second = bench.register(0, key(42, 1));
    let (code, text) = bench.error(second).unwrap();
    assert_eq!(code, ErrorCode::Warning);
    assert!(text.contains("whose guest runs on this host already"), "{text}");
    let at = bench.place_of(second).unwrap().0;
    assert_eq!(claimed_at(&bench, key(42, 1)), [at]);
    let mut states = bench.state(key(42, 1));
    states.sort_unstable();
    assert_eq!(states, ["active", "lost"]);
    bench.give(Input::Closed { client: second, why: Ending::Gone });
    bench.pass(Duration::from_secs(120));
    let at = bench.place_of(first).unwrap().0;
    assert_eq!(claimed_at(&bench, key(42, 1)), [at], "the one that still runs");
}

#[test]
fn sockets_at_an_address_that_the_host_has_left_are_opened_again() {
    let mut bench = Bench::new("");
    bench.is_slow = true;
    let client = bench.register(0, key(42, 1));
    let late = bench.results.pop_front().unwrap();
    bench.give(Input::News { any: true, is_deleted: false });
    bench.pass(Duration::from_millis(200));
    bench.give(interfaces("192.0.2.77"));
    bench.give(Input::Placed { place: place("192.0.2.77"), result: Ok(1500) });
    bench.is_slow = false;
    bench.give(late);
    let (address, ..) = bench.place_of(client).unwrap();
    assert_eq!(address.ip().to_string(), "192.0.2.77");
    assert_eq!(bench.state(key(42, 1)), ["active"]);
    assert_eq!(bench.sockets.len(), 1);
}

#[test]
fn another_directory_of_keys_is_nothing_to_a_vnet_without_keys() {
    let mut bench = Bench::new("");
    bench.register(0, key(42, 1));
    bench.told.clear();
    reconfigure(&mut bench, "[security]\nkey-directory = '/elsewhere'");
    assert_eq!(bench.told, []);
}

#[test]
fn a_registration_goes_on_if_its_vnet_is_not_secured_any_more() {
    let mut bench = Bench::new("[vnet.42]\npolicy = 'conf'");
    bench.is_slow = true;
    let client = bench.register(0, key(42, 1));
    bench.is_slow = false;
    let config = config("");
    let admission = admission(&config);
    let keys = BTreeMap::new();
    let late = bench.results.pop_front().unwrap();
    bench.give(Input::Reconfigure { config: Box::new(config), admission, keys });
    bench.give(late);
    assert!(bench.place_of(client).is_some());
    assert_eq!(bench.state(key(42, 1)), ["active"]);
}
