//! VARP in the name of members of a secured vnet, by who is none: a host without keys, and a host that
//! is a member of another vnet. varpd and the backends run, and are told lies as fast as can be sent.
//!
//! ```text
//!     guest 1 on 42 and 43       guest 2 on 42       sends forgeries      guest 4 on 43
//!            |                       |                    |                   |
//!     host a: both keys          host b: key of 42    host c: no key      host d: key of 43,
//!                                                                         sends forgeries
//! ```

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use vnet::metrics::VifCounter;
use vnet::policy::{Level, Suite};
use vnet::secret::Secret;
use vnet::security::keys::MemberKeys;
use vnet::security::membership::Membership;
use vnet::sys::clock;
use vnet::wire::name::Realm;
use vnet::wire::varp::{Author, Body, Claim, GROUP, Message, PORT, TAG_LEN, Tag};
use vnet::wire::{Capabilities, CareOf, EncapKinds, Longest, Mac, Stamp, VifKey, VnetId};

use crate::nic::{Nic, mac, vif};
use crate::offpath::{OffPath, during};
use crate::secured::{Keys, assert_no_drops, key, varpd_counter};
use crate::support::netns::Host;
use crate::support::vnet::Varpd;
use crate::support::{step, wait_until};
use crate::{Net, SOON};

/// How many forgeries of each of the two hosts varpd has to refuse.
const FORGERIES: u64 = 500_000;
/// Frames each way between two looks at counters.
const BURST: u32 = 512;
/// How much a program may grow, in KiB: pages of its allocator and its stack.
const GROWTH: u64 = 2048;
/// Processor time for a message that is refused, in the test's build on a busy machine.
const COST: Duration = Duration::from_micros(100);

const A: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const B: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

fn vnet(id: u32) -> VnetId {
    VnetId::new(id).unwrap()
}

fn member_keys(byte: u8, id: u32) -> MemberKeys {
    let suite = Suite::choose(Level::Conf, true).unwrap();
    MemberKeys::new(&Secret::new(key(byte)), vnet(id), Level::Conf, suite)
}

/// Who tags messages as members with this key do.
fn member(keys: &MemberKeys, id: u32) -> Membership {
    let mut member = Membership::default();
    member.set_vnet(vnet(id), vec![(keys.id, keys.varp.clone())]);
    member
}

fn care_of(ip: Ipv4Addr, port: u16) -> CareOf {
    CareOf {
        addr: SocketAddr::from((ip, port)),
        kinds: EncapKinds::UDP,
        capabilities: Capabilities::NONE,
        longest: Longest::UNKNOWN,
    }
}

/// That a vif is at an address, as of now.
fn claim(on: u32, last: u8, ip: Ipv4Addr, n: u64, make: fn(Claim, u32) -> Body) -> Message {
    let stamp = Stamp(clock::now().wall_ms + 1000 + n % 1000);
    let claim = Claim {
        stamp,
        coa: care_of(ip, 40_000 + (n % 1000) as u16),
        realm: Realm(0),
        behind: None,
    };
    Message {
        key: VifKey { vnet: vnet(on), mac: Mac(mac(last)) },
        author: Author { realm: Realm(0), addr: (ip, PORT).into() },
        nonce: n + 1,
        wide: false,
        relayed: false,
        body: make(claim, 30_000),
        tag: None,
    }
}

const MAKE: [fn(Claim, u32) -> Body; 3] = [
    |claim, lifetime_ms| Body::Announce { claim, lifetime_ms },
    |claim, lifetime_ms| Body::Reply { claim, lifetime_ms },
    |claim, lifetime_ms| Body::Correction { claim, lifetime_ms },
];

/// A tag that nobody made, under this key's name.
fn made_up(key_id: u32, n: u64) -> Option<Tag> {
    let mut tag = [0x5c; TAG_LEN];
    tag[..8].copy_from_slice(&n.to_be_bytes());
    Some(Tag { key_id, time_ms: clock::now().wall_ms + n % 100, tag })
}

/// Sends it as its claim says: from there, to the group or to host a.
fn send(socket: &OffPath, from: Ipv4Addr, message: &Message) -> bool {
    let to = if matches!(message.body, Body::Announce { .. }) { GROUP } else { A };
    let port = |ip| SocketAddrV4::new(ip, PORT);
    socket.send(port(from), port(to), &message.to_bytes())
}

/// The n-th forgery of a host without keys that has recorded a message, and has seen key ids.
fn of_outsider(socket: &OffPath, n: u64, recorded: &Message, victim: SocketAddrV4) -> bool {
    let own = Ipv4Addr::new(192, 0, 2, 3);
    // Its own address, or that of a member.
    let ip = [own, B][n as usize / 8 % 2];
    let mut message = claim(42, 1 + (n / 16 % 2) as u8, ip, n, MAKE[n as usize % 3]);
    match n % 8 {
        0 | 1 => {}
        2..=4 => message.tag = made_up(recorded.tag.unwrap().key_id, n),
        5 => message = *recorded,
        6 => {
            let (body, nonce) = (message.body, message.nonce);
            message = Message { body, nonce, ..*recorded };
        }
        // Where there is a guest, and no varpd.
        _ => {
            message.tag = made_up(recorded.tag.unwrap().key_id, n);
            return socket.send(SocketAddrV4::new(ip, PORT), victim, &message.to_bytes());
        }
    }
    send(socket, ip, &message)
}

/// The n-th forgery of a host that has the key of vnet 43, as it is and as if it were that of vnet 42,
/// and knows that one's id.
fn of_neighbour(socket: &OffPath, n: u64, key_id: u32, keys: &[MemberKeys; 2]) -> bool {
    let own = Ipv4Addr::new(192, 0, 2, 4);
    let ip = [own, B][n as usize / 4 % 2];
    let mut message = claim(42, 1 + (n / 8 % 2) as u8, ip, n, MAKE[n as usize % 3]);
    assert!(member(&keys[n as usize % 2], 42).tag(&mut message, clock::now()));
    if n % 4 >= 2 {
        message.tag.as_mut().unwrap().key_id = key_id;
    }
    send(socket, ip, &message)
}

/// What a host believes of a vnet: where each MAC is, and since when.
fn believed(varpd: &Varpd) -> BTreeMap<String, String> {
    let rows = varpd.show("varp");
    let text = |row: &serde_json::Value| {
        assert!(["local", "resolved", "confirming"].iter().any(|s| row["state"] == *s), "{row}");
        (format!("{}/{}", row["vnet"], row["mac"]), format!("{} {}", row["coa"], row["stamp"]))
    };
    rows.as_array().unwrap().iter().map(text).collect()
}

const REFUSALS: [&str; 5] = [
    "varp_drop_untagged",
    "varp_drop_key",
    "varp_drop_forged",
    "varp_drop_stale",
    "varp_drop_replayed",
];
/// What changes when VARP is believed.
const CHANGES: [&str; 6] = ["moved", "conflicts", "losses", "expired", "evicted", "refresh_failed"];

fn each<const N: usize>(varpd: &Varpd, names: [&str; N]) -> [u64; N] {
    names.map(|name| varpd_counter(varpd, name))
}

/// A message that a member sent to the group, as somebody at a host hears it.
fn record(host: &Host, send: impl FnOnce()) -> Message {
    let socket = std::thread::scope(|scope| {
        let open = || {
            host.enter();
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None);
            let socket = socket.unwrap();
            socket.set_reuse_port(true).unwrap();
            socket.bind(&SocketAddr::from((GROUP, PORT)).into()).unwrap();
            socket.join_multicast_v4(&GROUP, &host.ipv4).unwrap();
            UdpSocket::from(socket)
        };
        scope.spawn(open).join().unwrap()
    });
    socket.set_read_timeout(Some(SOON)).unwrap();
    send();
    let mut buffer = [0; 2048];
    loop {
        let len = socket.recv(&mut buffer).unwrap();
        match Message::parse(&buffer[..len]) {
            Ok(message @ Message { body: Body::Announce { .. }, tag: Some(_), .. })
                if message.key.vnet == vnet(42) =>
            {
                return message;
            }
            _ => {}
        }
    }
}

/// The guests' flow and what is watched of it.
struct Watch<'n> {
    net: &'n Net,
    one: Nic,
    two: Nic,
    next: u32,
    believed: [BTreeMap<String, String>; 2],
    changes: [[u64; CHANGES.len()]; 2],
    kib: Vec<u64>,
}

impl<'n> Watch<'n> {
    fn new(net: &'n Net, one: Nic, two: Nic) -> Self {
        let [a, b] = [&net.varpds[0], &net.varpds[1]];
        let mut watch = Self {
            net,
            one,
            two,
            next: 1,
            believed: [believed(a), believed(b)],
            changes: [each(a, CHANGES), each(b, CHANGES)],
            kib: Vec::new(),
        };
        // What the flow needs is there.
        watch.exchange();
        watch.kib = watch.private_kib();
        watch
    }

    fn private_kib(&self) -> Vec<u64> {
        let varpds = self.net.varpds[..2].iter().map(|varpd| &varpd.process);
        let backends = [&self.one, &self.two].map(|nic| &nic.backend.process);
        varpds.chain(backends).map(|process| process.private_kib()).collect()
    }

    /// Frames in both directions; all arrive, in order.
    fn exchange(&mut self) {
        for start in (self.next..self.next + BURST).step_by(64) {
            for n in start..start + 64 {
                self.one.send(mac(2), n);
                self.two.send(mac(1), n);
            }
            for n in start..start + 64 {
                assert_eq!(self.two.receive(mac(1)), n);
                assert_eq!(self.one.receive(mac(2)), n);
            }
        }
        self.next += BURST;
    }

    /// Exchanges frames until host a has refused so many messages; nothing else happens.
    fn until_refused(&mut self, count: u64) {
        let a = &self.net.varpds[0];
        let refused = || each(a, REFUSALS).iter().sum::<u64>();
        let (before, ticks, begin) = (refused(), a.process.cpu_ticks(), clock::mono());
        let limit = Duration::from_secs(20) + Duration::from_micros(100) * count as u32;
        let (mut slowest, mut exchanged) = (Duration::ZERO, self.next);
        while refused() - before < count {
            self.exchange();
            let asked = clock::mono();
            for (host, before) in self.believed.iter().enumerate() {
                assert_eq!(believed(&self.net.varpds[host]), *before, "host {host} believes it");
            }
            slowest = slowest.max((clock::mono() - asked) / 2);
            assert!(clock::mono() - begin < limit, "{} of {count} refused", refused() - before);
        }
        exchanged = self.next - exchanged;
        let (took, refused) = (clock::mono() - begin, refused() - before);
        let ticks = a.process.cpu_ticks() - ticks;
        step(&format!(
            "  {refused} refused in {took:?}, {ticks} ticks of 10 ms; {exchanged} frames each way; \
             varpd answered within {slowest:?}; {:?}",
            REFUSALS.iter().zip(each(a, REFUSALS)).collect::<Vec<_>>()
        ));
        let cost = Duration::from_millis(10) * ticks as u32 / refused as u32;
        assert!(cost < COST, "{cost:?} of processor time for a message");
    }

    fn assert_unchanged(&self) {
        for (host, before) in self.changes.iter().enumerate() {
            assert_eq!(
                each(&self.net.varpds[host], CHANGES),
                *before,
                "{CHANGES:?} of host {host}"
            );
        }
        for (host, nic) in [(0, &self.one), (1, &self.two)] {
            let counters = self.net.counters(host, nic.vif);
            // The introduction and all of the flow.
            assert_eq!(counters.get(VifCounter::rx_frames), u64::from(self.next), "{counters:?}");
        }
        let kib = self.private_kib();
        step(&format!(
            "  private memory of varpds and backends in KiB: {:?}, then {kib:?}",
            self.kib
        ));
        for (before, after) in self.kib.iter().zip(&kib) {
            assert!(*after <= before + GROWTH, "{:?} KiB, then {kib:?}", self.kib);
        }
    }
}

fn coa_of(nic: &Nic, varpd: &Varpd) -> SocketAddrV4 {
    let rows = varpd.show("vifs");
    let ours = |row: &&serde_json::Value| {
        row["vnet"] == nic.vif.vnet && row["mac"] == nic.vif.mac().as_str()
    };
    let row = rows.as_array().unwrap().iter().find(ours).unwrap();
    row["coa"].as_str().unwrap().trim_start_matches("udp:").parse().unwrap()
}

#[test]
fn forged_answers_and_announcements_change_nothing() {
    let keys = Keys::new();
    // On a machine that has much to do it takes longer than mappings live that nobody uses.
    let timers = "[timers]\nlifetime = 300\n";
    let on_42 = keys.config("conf", "42", &[("use", "a1")], "");
    let on_43 = keys.config("conf", "43", &[("use", "b2")], "").replace("[vnet.42]", "[vnet.43]");
    let configs = [format!("{on_42}{on_43}"), on_42, String::new(), on_43];
    let configs = configs.map(|config| format!("{timers}{config}"));
    let what = format!("{FORGERIES} forged VARP messages of two hosts each");
    let Some(net) = Net::with_configs(&what, &configs) else { return };
    let mut one = Nic::start("g1", vif(42, 1), &net.varpds[0]);
    let mut two = None;
    let recorded = record(net.underlay.host(2), || {
        two = Some(Nic::start("g2", vif(42, 2), &net.varpds[1]));
    });
    let mut two = two.unwrap();
    let mut near = Nic::start("h1", vif(43, 1), &net.varpds[0]);
    let mut far = Nic::start("h4", vif(43, 4), &net.varpds[3]);
    one.introduce(&mut two);
    near.introduce(&mut far);
    let key_id = recorded.tag.unwrap().key_id;
    assert_eq!(key_id, member_keys(0xa1, 42).id.0, "the id is no secret");
    let victim = coa_of(&one, &net.varpds[0]);
    let mut watch = Watch::new(&net, one, two);

    step("a host without keys");
    let forge = |socket: &OffPath, n| of_outsider(socket, n, &recorded, victim);
    let (sent, ()) = during(net.underlay.host(2), forge, |_| watch.until_refused(FORGERIES));
    step(&format!("  {sent} sent"));
    watch.assert_unchanged();

    step("a member of vnet 43");
    let keys_of_43 = [43, 42].map(|id| member_keys(0xb2, id));
    let forge = |socket: &OffPath, n| of_neighbour(socket, n, key_id, &keys_of_43);
    let (sent, ()) = during(net.underlay.host(3), forge, |_| watch.until_refused(FORGERIES));
    step(&format!("  {sent} sent"));
    watch.assert_unchanged();
    let at_own_port = net.counters(0, watch.one.vif).get(VifCounter::rx_drop_version);
    assert!(at_own_port > 0, "VARP at a vif's own port is dropped there");
    assert_no_drops(&net, 1, &watch.two);
    near.introduce(&mut far);

    step("the same message with the right tag is believed");
    let ip = Ipv4Addr::new(192, 0, 2, 3);
    let mut honest = claim(42, 2, ip, 1, MAKE[0]);
    assert!(member(&member_keys(0xa1, 42), 42).tag(&mut honest, clock::now()));
    let send_once = |socket: &OffPath, n| n == 0 && send(socket, ip, &honest);
    during(net.underlay.host(2), send_once, |_| {
        wait_until("host a believes it", SOON, || varpd_counter(&net.varpds[0], "moved") > 0);
    });
}

/// Where there are no keys, any host of the segment can announce a guest's MAC.
#[test]
fn announcements_of_a_running_mac_do_not_fill_its_backends_log() {
    let what = "a host announces another's guest all the time";
    let Some(net) = Net::with_configs(what, &[String::new(), String::new()]) else { return };
    let mut one = Nic::start("g1", vif(42, 1), &net.varpds[0]);
    one.wait_state("active", &net.varpds[0]);
    let stamp = clock::now().wall_ms + 1000;
    let forge = |socket: &OffPath, n| {
        let mut forged = claim(42, 1, B, n, MAKE[0]);
        if let Body::Announce { claim, .. } = &mut forged.body {
            claim.stamp = Stamp(stamp + n);
        }
        send(socket, B, &forged)
    };
    during(net.underlay.host(1), forge, |_| {
        let often = || varpd_counter(&net.varpds[0], "damped_moves") > 20;
        wait_until("the backend was told often", SOON, often);
    });
    one.backend.process.assert_running();
    assert_eq!(varpd_counter(&net.varpds[0], "clients_stalled"), 0);
    let log = one.backend.process.log();
    let said = log.matches("a guest with this MAC runs at").count();
    assert!((1..=5).contains(&said), "{log}");
}
