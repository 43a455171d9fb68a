//! Hosts that come while somebody floods varpd as fast as one processor can send. Half of them look for
//! a guest of the flooded host, half are looked for by it: each finds the other and agrees on keys with
//! its host, soon, whatever the flood consists of.
//!
//! ```text
//!     guest 1, and one            floods                hosts that come: an address each,
//!     played by this test           |                   the shipped state machines in this test
//!     host a                     host b                 host c
//!                           10.0.0.0/8 behind it        198.18.0.1, .2, ...
//! ```

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use vnet::mapper::{self, Destination, LocalVif, Mapper, Notice};
use vnet::policy::{Floor, Level, Suite};
use vnet::secret::Secret;
use vnet::security::handshake::{Initiator, Parties};
use vnet::security::keys::MemberKeys;
use vnet::security::membership::Membership;
use vnet::security::noise::Entropy;
use vnet::security::sadb::{self, Keyring, Sadb};
use vnet::sys::clock;
use vnet::sys::seqpacket::Connection;
use vnet::time::{Instant, Now};
use vnet::wire::control::{Event, Features, MAX_LEN, Request};
use vnet::wire::handshake::payload::Additions;
use vnet::wire::handshake::{self, Kind};
use vnet::wire::name::{Name, Realm};
use vnet::wire::varp::{self, GROUP, PORT};
use vnet::wire::{Capabilities, CareOf, EncapKinds, Longest, Mac, VifKey, VnetId};

use crate::Net;
use crate::nic::{Nic, mac, vif};
use crate::offpath::flooded;
use crate::secured::{Keys, key};
use crate::support::step;
use crate::support::vnet::Varpd;

/// What the vnet's key is made of.
const RIGHT: u8 = 0xa1;
const WRONG: u8 = 0xb2;
/// Hosts that come during each flood, one every so often.
const HOSTS: u8 = 32;
const INTERVAL: Duration = Duration::from_millis(20);
/// Within which each has to be through: first messages that are lost in a flood are sent again.
const LIMIT: Duration = Duration::from_secs(60);
/// The same for those that are looked for: what they send answers something, and no flood of first
/// messages comes in its way.
const PROMPT: Duration = Duration::from_secs(1);
/// How much varpd may grow, in KiB: pages of its allocator, tables for the hosts that came.
const GROWTH: u64 = 8192;

/// One without a flood, and each flood.
const ROUNDS: u8 = 9;

const A: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// Of the n-th host that comes: nobody has heard of it before.
fn address(round: u8, number: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 18, round, number)
}

fn vnet42() -> VnetId {
    VnetId::new(42).unwrap()
}

fn member(byte: u8) -> MemberKeys {
    let suite = Suite::choose(Level::Conf, true).unwrap();
    MemberKeys::new(&Secret::new(key(byte)), vnet42(), Level::Conf, suite)
}

/// A host that comes: what its varpd would be.
struct Newcomer {
    socket: UdpSocket,
    mapper: Mapper,
    membership: Membership,
    sadb: Sadb,
    key: VifKey,
    /// Whether it looks for guest 1, and is not looked for.
    looks: bool,
    came: Instant,
    agreed: Option<Instant>,
}

impl Newcomer {
    fn new(round: u8, number: u8) -> Self {
        let own = SocketAddr::from((address(round, number), PORT));
        let socket = shared(own);
        let SocketAddr::V4(v4) = own else { unreachable!() };
        SockRef::from(&socket).set_multicast_if_v4(v4.ip()).unwrap();
        let now = clock::now();
        let keys = member(RIGHT);
        let mut membership = Membership::default();
        membership.set_vnet(vnet42(), vec![(keys.id, keys.varp.clone())]);
        let seed = Secret::new([number.wrapping_add(now.mono.as_micros() as u8); 32]);
        let mut sadb = Sadb::new(sadb::Config::default(), Name::host(Realm(0), own.ip()), seed);
        sadb.set_vnet(vnet42(), Some(Keyring { keys: vec![keys] }), now);
        let mapper = Mapper::new(mapper::Config::default(), [number; 16], own);
        let key = VifKey { vnet: vnet42(), mac: Mac([0x52, 0x54, 0, 1, round, number]) };
        let (looks, came) = (number.is_multiple_of(2), now.mono);
        Self { socket, mapper, membership, sadb, key, looks, came, agreed: None }
    }

    /// Its guest starts, and looks for guest 1 or is looked for.
    fn come(&mut self, asker: &Asker, now: Now) {
        let addr = SocketAddr::new(self.socket.local_addr().unwrap().ip(), 4000);
        let coa = CareOf {
            addr,
            kinds: EncapKinds::UDP,
            capabilities: Capabilities::NONE,
            longest: Longest::UNKNOWN,
        };
        self.mapper.add_vif(LocalVif(1), self.key, coa).unwrap();
        self.mapper.set_active(LocalVif(1), true, None, now);
        if self.looks {
            self.mapper.resolve(LocalVif(1), Mac(mac(1)), false, now);
        } else {
            asker.ask(self.key.mac);
        }
        self.came = now.mono;
    }

    fn hear(&mut self, from: SocketAddr, bytes: &[u8], via_group: bool) {
        let now = clock::now();
        if !via_group && handshake::Message::is_one(bytes) {
            self.sadb.handle_message(from.ip(), bytes, now);
        } else if let Ok(message) = varp::Message::parse(bytes)
            && let Ok(message) = self.membership.check(bytes, message, now.wall_ms)
        {
            self.mapper.handle_message(from, via_group, &message, now);
        }
    }

    fn is_through(&self) -> bool {
        self.agreed.is_some()
    }

    /// One turn of its loop.
    fn turn(&mut self) {
        let mut buffer = [0; 2048];
        while let Ok((len, from)) = self.socket.recv_from(&mut buffer) {
            self.hear(from, &buffer[..len], false);
        }
        let now = clock::now();
        self.mapper.handle_timeout(now);
        self.sadb.handle_timeout(now);
        while let Some(output) = self.mapper.poll_output() {
            match output {
                mapper::Output::Send { to, mut message } => {
                    assert!(self.membership.tag(&mut message, now), "few messages");
                    let to = match to {
                        Destination::Group => SocketAddr::from((GROUP, PORT)),
                        Destination::Unicast(to) => to,
                    };
                    let _ = self.socket.send_to(&message.to_bytes(), to);
                }
                mapper::Output::Notify { notice: Notice::Mapping { .. }, .. } => {
                    let until = now.mono + Duration::from_secs(3600);
                    self.sadb.want(vnet42(), A.into(), until, now);
                }
                // Asks again at once, as a guest's next frame would.
                mapper::Output::Notify { notice: Notice::Unresolved { mac, .. }, .. } => {
                    self.mapper.resolve(LocalVif(1), mac, false, now);
                }
                _ => {}
            }
        }
        while let Some(output) = self.sadb.poll_output() {
            match output {
                sadb::Output::Send { to, bytes, .. } => {
                    let _ = self.socket.send_to(&bytes, SocketAddr::new(to, PORT));
                }
                sadb::Output::Serve { .. } if self.looks => {
                    self.agreed.get_or_insert(now.mono);
                }
                _ => {}
            }
        }
    }
}

/// A guest on the flooded host that looks for others: the test plays its backend.
struct Asker(Connection);

impl Asker {
    fn register(varpd: &Varpd) -> Self {
        let this = Self(Connection::open(&varpd.socket).unwrap());
        this.tell(&Request::Hello { features: Features::NONE, software: "a test".into() });
        this.tell(&Request::Register {
            key: VifKey { vnet: vnet42(), mac: Mac(mac(2)) },
            capabilities: Capabilities::NONE,
            queue_pairs: 1,
            active: true,
            stamp: None,
            learn: 0,
            floor: Floor::default(),
        });
        this
    }

    fn tell(&self, request: &Request) {
        self.0.send(&request.emit(), &[]).unwrap();
    }

    fn ask(&self, mac: Mac) {
        self.tell(&Request::Resolve { mac, refresh: false });
    }

    /// What was found since the last call: on a secured vnet, when there are keys.
    fn found(&self) -> Vec<Mac> {
        let (mut found, mut buffer) = (Vec::new(), vec![0; MAX_LEN]);
        while let Ok(got) = self.0.recv(&mut buffer) {
            match Event::parse(&buffer[..got.len]).unwrap() {
                Event::Mapping { mac, .. } => found.push(mac),
                // As a guest's next frame would.
                Event::Unresolved { mac, .. } => self.ask(mac),
                Event::SaIn { keys } => {
                    let numbers = keys.iter().map(|key| key.number);
                    numbers.for_each(|number| self.tell(&Request::SaReady { number }));
                }
                _ => {}
            }
        }
        found
    }
}

/// The group, for all hosts that come.
fn group_socket(own: Ipv4Addr) -> UdpSocket {
    let socket = shared((GROUP, PORT).into());
    socket.join_multicast_v4(&GROUP, &own).unwrap();
    socket
}

/// A socket at VARP's port, which it shares with the host's varpd.
fn shared(at: SocketAddr) -> UdpSocket {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.bind(&at.into()).unwrap();
    socket.into()
}

/// How many hosts got through of those that come to the vnet, and how long they took in milliseconds,
/// ascending: those that look, and those that are looked for.
struct Came {
    through: usize,
    looking: Vec<u64>,
    looked_for: Vec<u64>,
}

fn come(net: &Net, round: u8, asker: &Asker) -> Came {
    net.underlay.host(2).enter();
    let group = group_socket(net.underlay.host(2).ipv4);
    let mut hosts: Vec<Newcomer> = (1..=HOSTS).map(|n| Newcomer::new(round, n)).collect();
    let begin = clock::mono();
    let (mut come, mut buffer) = (0, [0; 2048]);
    let end = INTERVAL * u32::from(HOSTS) + LIMIT;
    while clock::mono() - begin < end && !hosts.iter().all(Newcomer::is_through) {
        let now = clock::now();
        let due = (now.mono - begin).as_micros() / INTERVAL.as_micros() + 1;
        while come < hosts.len() && come < due as usize {
            hosts[come].come(asker, now);
            come += 1;
        }
        while let Ok((len, from)) = group.recv_from(&mut buffer) {
            // Others have nothing to say, and some of them too much.
            let is_asked = |host: &&mut Newcomer| from.ip() == A && !host.looks;
            hosts.iter_mut().take(come).filter(is_asked).for_each(|host| {
                host.hear(from, &buffer[..len], true);
            });
        }
        hosts.iter_mut().take(come).for_each(Newcomer::turn);
        for found in asker.found() {
            let host = hosts.iter_mut().find(|host| host.key.mac == found).unwrap();
            host.agreed.get_or_insert(clock::mono());
        }
        std::thread::park_timeout(Duration::from_micros(500));
    }
    let times = |looks: bool| {
        let of = hosts.iter().filter(|host| host.looks == looks);
        let times = of.filter_map(|host| Some((host.agreed? - host.came).as_millis() as u64));
        let mut times: Vec<u64> = times.collect();
        times.sort_unstable();
        times
    };
    let (looking, looked_for) = (times(true), times(false));
    Came { through: looking.len() + looked_for.len(), looking, looked_for }
}

/// Hosts come to the vnet.
fn newcomers(net: &Net, round: u8, asker: &Asker) -> Came {
    std::thread::scope(|scope| scope.spawn(|| come(net, round, asker)).join().unwrap())
}

/// An INIT for vnet 42 to host a, as it was when it was recorded.
fn recorded_init(byte: u8) -> Vec<u8> {
    let initiator = Name::host(Realm(0), [192, 0, 2, 250].into());
    let responder = Name::host(Realm(0), A.into());
    let parties = Parties { vnet: vnet42(), level: Level::Conf, initiator, responder };
    let entropy = Entropy::new(Secret::new([7; 32]));
    let time = clock::now().wall_ms;
    Initiator::new(parties, &member(byte), 5, time, &Additions::NONE, &entropy).unwrap().message()
}

/// A question to the vnet, as it was when it was recorded.
fn recorded_request() -> Vec<u8> {
    let own = SocketAddr::from(([192, 0, 2, 250], PORT));
    let now = clock::now();
    let keys = member(RIGHT);
    let mut membership = Membership::default();
    membership.set_vnet(vnet42(), vec![(keys.id, keys.varp)]);
    let mut mapper = Mapper::new(mapper::Config::default(), [9; 16], own);
    let coa = CareOf {
        addr: own,
        kinds: EncapKinds::UDP,
        capabilities: Capabilities::NONE,
        longest: Longest::UNKNOWN,
    };
    let key = VifKey { vnet: vnet42(), mac: Mac(mac(250)) };
    mapper.add_vif(LocalVif(1), key, coa).unwrap();
    mapper.resolve(LocalVif(1), Mac(mac(1)), false, now);
    while let Some(output) = mapper.poll_output() {
        if let mapper::Output::Send { mut message, .. } = output {
            assert!(membership.tag(&mut message, now), "few messages");
            return message.to_bytes();
        }
    }
    panic!("no question");
}

fn counters(varpd: &Varpd) -> BTreeMap<String, u64> {
    let rows = varpd.show("stats");
    let rows = rows.as_array().unwrap().iter().filter(|row| row["vnet"].is_null());
    rows.map(|row| (row["counter"].as_str().unwrap().into(), row["value"].as_u64().unwrap()))
        .collect()
}

/// Whether all that come during this flood get through, and varpd is no larger after it.
fn are_all_through(
    net: &Net,
    round: u8,
    asker: &Asker,
    (what, to, payload): (&str, Ipv4Addr, Vec<u8>),
) -> bool {
    let a = &net.varpds[0];
    let (before, kib, ticks) = (counters(a), a.process.private_kib(), a.process.cpu_ticks());
    let to = SocketAddrV4::new(to, PORT);
    let (sent, took, came) =
        flooded(net.underlay.host(1), to, &payload, || newcomers(net, round, asker));
    let (after, ticks) = (counters(a), a.process.cpu_ticks() - ticks);
    let grown = a.process.private_kib().saturating_sub(kib);
    let at = |all: &[u64], part: usize| all.get(all.len() * part / 100).or(all.last()).copied();
    let shape = |all: &[u64]| [50, 90, 100].map(|part| at(all, part).unwrap_or(0));
    step(&format!(
        "  {what}: {:.0} thousand/s for {:.1} s: {} of {HOSTS} through; looking {:?} ms, looked for \
         {:?} ms (p50, p90, max); varpd: {:.0} % of a processor, {grown} KiB more",
        sent as f64 / took.as_secs_f64() / 1e3,
        took.as_secs_f64(),
        came.through,
        shape(&came.looking),
        shape(&came.looked_for),
        ticks as f64 / took.as_secs_f64(),
    ));
    let grew = |(name, value): (&String, &u64)| {
        let more = value - before.get(name).unwrap_or(&0);
        (more > 0).then(|| format!("{name} {more}"))
    };
    step(&format!("    {}", after.iter().filter_map(grew).collect::<Vec<_>>().join(", ")));
    let is_prompt = |ms: &u64| Duration::from_millis(*ms) < PROMPT;
    came.through == usize::from(HOSTS) && came.looked_for.iter().all(is_prompt) && grown <= GROWTH
}

#[test]
fn hosts_come_through_floods_at_full_speed() {
    let keys = Keys::new();
    let config = keys.config("conf", "k", &[("use", "a1")], "");
    let configs = [config.clone(), String::new(), config];
    let Some(net) = Net::with_configs("floods at full speed", &configs) else { return };
    let _one = Nic::start("g1", vif(42, 1), &net.varpds[0]);
    let asker = Asker::register(&net.varpds[0]);
    for (round, number) in (0..ROUNDS).flat_map(|round| (1..=HOSTS).map(move |n| (round, n))) {
        net.underlay.host(2).ip(&format!("address add {}/32 dev eth0", address(round, number)));
    }
    net.underlay.host(0).ip("route add 198.18.0.0/15 dev eth0");
    // What varpd answers goes there.
    net.underlay.host(0).ip("route add 10.0.0.0/8 via 192.0.2.2");

    let came = newcomers(&net, 0, &asker);
    let (looking, looked_for) = (&came.looking, &came.looked_for);
    step(&format!("  no flood: looking {looking:?} ms, looked for {looked_for:?} ms"));
    assert_eq!(came.through, usize::from(HOSTS));
    let mut cookie = recorded_init(RIGHT);
    let len = cookie.len();
    cookie[len - 16..].fill(7);
    let mut response = vec![0; *Kind::Response.message_lens().start()];
    response[..8].copy_from_slice(&[b'V', b'K', handshake::VERSION, 2, 0, 0, 0, 42]);
    let mut reply = recorded_request();
    reply[varp::OPCODE_OFFSET] = varp::REPLY;
    let floods = [
        ("no messages", A, b"nonsense".repeat(14)),
        ("INITs of outsiders", A, recorded_init(WRONG)),
        ("recorded INITs", A, recorded_init(RIGHT)),
        ("recorded INITs, made-up cookies", A, cookie),
        ("made-up RESPONSEs", A, response),
        ("made-up answers", A, reply),
        ("recorded questions", A, recorded_request()),
        ("recorded questions to the group", GROUP, recorded_request()),
    ];
    let held = (1..ROUNDS).zip(floods);
    let held: Vec<bool> =
        held.map(|(round, flood)| are_all_through(&net, round, &asker, flood)).collect();
    assert!(held.iter().all(|held| *held), "{held:?}");
}
