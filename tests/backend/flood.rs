//! First messages of handshakes from a hundred thousand addresses: varpd keeps nothing of them, and
//! members get through.
//!
//! ```text
//!     guest 1      guest 2         sends INITs            guest 4: comes during the flood
//!        |            |                 |                    |
//!     host a       host b            host c               host d
//!                                 10.0.0.0/8 behind it
//! ```

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use vnet::policy::{Level, Suite};
use vnet::secret::Secret;
use vnet::security::handshake::{Initiator, Parties};
use vnet::security::keys::MemberKeys;
use vnet::security::noise::Entropy;
use vnet::sys::clock;
use vnet::wire::VnetId;
use vnet::wire::handshake::payload::Additions;
use vnet::wire::name::{Name, Realm};
use vnet::wire::varp::PORT;

use crate::Net;
use crate::nic::{Nic, mac, vif};
use crate::offpath::{OffPath, during};
use crate::secured::{Keys, key};
use crate::support::vnet::Varpd;
use crate::support::{step, wait_until};

/// What the vnet's key is made of.
const RIGHT: u8 = 0xa1;
/// INITs of each kind that varpd has to receive, each from another address and port.
const FLOOD: u64 = 100_000;
/// Handshake messages that members send meanwhile, at most: two new links, some tries each.
const HONEST: u64 = 64;
/// How much varpd may grow, in KiB: pages of its allocator and its stack.
const GROWTH: u64 = 2048;
/// So many INITs each millisecond while a guest comes: hundreds of times as many as are opened, and no
/// more than varpd can read. Beyond that the kernel drops some, and members have to try again.
const PAUSE_AFTER: u64 = 20;
/// Within which a guest that comes during the flood is reached: a handshake is tried for 14 s.
const LATE: Duration = Duration::from_secs(30);

const A: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const B: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// An INIT for vnet 42 from host b to host a, as it was when it was recorded.
fn recorded_init(byte: u8) -> Vec<u8> {
    let vnet = VnetId::new(42).unwrap();
    let suite = Suite::choose(Level::Conf, true).unwrap();
    let keys = MemberKeys::new(&Secret::new(key(byte)), vnet, Level::Conf, suite);
    let [initiator, responder] = [B, A].map(|ip| Name::host(Realm(0), ip.into()));
    let parties = Parties { vnet, level: Level::Conf, initiator, responder };
    let entropy = Entropy::new(Secret::new([7; 32]));
    let (time, none) = (clock::now().wall_ms, Additions::NONE);
    Initiator::new(parties, &keys, 5, time, &none, &entropy).unwrap().message()
}

/// The n-th source: all are different.
fn source(n: u64) -> SocketAddrV4 {
    let [.., b, c, d] = (n as u32 % (1 << 24)).to_be_bytes();
    SocketAddrV4::new(Ipv4Addr::new(10, b, c, d), 1024 + (n % 60_000) as u16)
}

/// What varpd has done about handshakes.
#[derive(Clone, Copy, Debug)]
struct Account {
    received: u64,
    sent: u64,
    cookies: u64,
    dropped: u64,
    sessions: u64,
    kib: u64,
}

impl Account {
    /// All of one moment.
    fn of(varpd: &Varpd) -> Self {
        let rows = varpd.show("stats");
        let rows = rows.as_array().unwrap();
        let get = |name| {
            let row = rows.iter().find(|row| row["vnet"].is_null() && row["counter"] == name);
            row.map_or(0, |row| row["value"].as_u64().unwrap())
        };
        Self {
            received: get("handshake_rx"),
            sent: get("handshake_tx"),
            cookies: get("handshake_cookies"),
            dropped: get("handshake_drop_forged")
                + get("handshake_drop_vnet")
                + get("handshake_drop_name"),
            sessions: get("sa_sessions"),
            kib: varpd.process.private_kib(),
        }
    }
}

/// Two guests whose frames go to and fro.
struct Flow {
    one: Nic,
    two: Nic,
    next: u32,
}

impl Flow {
    fn start(net: &Net) -> Self {
        let mut one = Nic::start("g1", vif(42, 1), &net.varpds[0]);
        let mut two = Nic::start("g2", vif(42, 2), &net.varpds[1]);
        one.introduce(&mut two);
        Self { one, two, next: 1 }
    }

    fn exchange(&mut self) {
        for n in self.next..self.next + 64 {
            self.one.send(mac(2), n);
            self.two.send(mac(1), n);
            assert_eq!(self.two.receive(mac(1)), n);
            assert_eq!(self.one.receive(mac(2)), n);
        }
        self.next += 64;
    }
}

fn to_host_a() -> SocketAddrV4 {
    SocketAddrV4::new(A, PORT)
}

/// Sends INITs that were made with this key until varpd has received so many, under the flow.
fn assert_stands(net: &Net, flow: &mut Flow, byte: u8) {
    let a = &net.varpds[0];
    let init = recorded_init(byte);
    let (before, begin) = (Account::of(a), clock::mono());
    let flood = |socket: &OffPath, n| socket.send(source(n), to_host_a(), &init);
    let (sent, ()) = during(net.underlay.host(2), flood, |_| {
        wait_until("varpd has received them", LATE, || {
            flow.exchange();
            Account::of(a).received - before.received >= FLOOD
        });
    });
    let (after, took) = (Account::of(a), clock::mono() - begin);
    let received = after.received - before.received;
    let (cookies, dropped) = (after.cookies - before.cookies, after.dropped - before.dropped);
    step(&format!(
        "  {sent} sent, {received} received in {took:?}: {cookies} cookies, {dropped} dropped; \
         {} KiB, then {}",
        before.kib, after.kib
    ));
    assert!(received - cookies - dropped <= HONEST, "{before:?} {after:?}");
    assert_eq!(cookies, 0, "they are not answered at all");
    assert_eq!(after.sent - before.sent, cookies, "nothing else is answered");
    assert_eq!(after.sessions, before.sessions);
    assert!(after.kib <= before.kib + GROWTH, "{before:?} {after:?}");
}

/// A guest on another host comes during a flood of recorded INITs, and reaches g1.
fn assert_reached(net: &Net, flow: &mut Flow) {
    let a = &net.varpds[0];
    let init = recorded_init(RIGHT);
    let before = Account::of(a);
    let flood = |socket: &OffPath, n| {
        if n % PAUSE_AFTER == 0 {
            std::thread::park_timeout(Duration::from_millis(1));
        }
        socket.send(source(n), to_host_a(), &init)
    };
    during(net.underlay.host(2), flood, |_| {
        let begin = clock::mono();
        let mut four = Nic::start("g4", vif(42, 4), &net.varpds[3]);
        let mut n = 0;
        wait_until("it is reached", LATE, || {
            n += 1;
            four.send(mac(1), n);
            flow.one.try_receive(mac(4), Duration::from_millis(20)).is_some()
        });
        wait_until("host a is sure of its keys", LATE, || {
            Account::of(a).sessions > before.sessions
        });
        step(&format!("  reached after {:?}", clock::mono() - begin));
    });
    let after = Account::of(a);
    assert!(after.sessions <= before.sessions + 4, "{before:?} {after:?}");
    assert!(after.kib <= before.kib + 2 * GROWTH, "{before:?} {after:?}");
    while flow.one.try_receive(mac(4), Duration::from_millis(20)).is_some() {}
}

#[test]
fn a_flood_of_first_messages_leaves_nothing_behind() {
    let keys = Keys::new();
    let config = keys.config("conf", "k", &[("use", "a1")], "");
    let configs = [config.clone(), config.clone(), String::new(), config];
    let Some(net) = Net::with_configs("floods of first messages", &configs) else { return };
    let mut flow = Flow::start(&net);
    // What varpd answers goes there.
    let mut route = net.underlay.host(0).command("ip");
    let added = route.args(["route", "add", "10.0.0.0/8", "via", "192.0.2.3"]).status().unwrap();
    assert!(added.success());

    step("INITs that were made with another key");
    assert_stands(&net, &mut flow, 0xb2);
    step("recorded INITs");
    assert_stands(&net, &mut flow, RIGHT);
    step("a guest comes during the flood");
    assert_reached(&net, &mut flow);
    flow.exchange();
}
