//! Forgeries that need a running varpd (see `tests/forgeries` for the others): VARP of relays, and
//! messages of a backend that was taken over. These are any bytes, messages that are not permitted
//! at that time, and messages for other vifs, with and without descriptors. The backend's process
//! belongs to a user; it has a vif, and may learn two MACs.
//!
//! ```text
//!   victim: vif 1 (root's)     attacker: vif 2 (nobody's)        far: vif 4
//!             \______ varpd a ______/                           varpd b
//! ```

use std::fs::File;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

use vnet::wire::control::{ErrorCode, Event, Kind, MAX_LEN, MAX_MACS, Request, Sample, Table};
use vnet::wire::extension::Extensions;
use vnet::wire::name::Realm;
use vnet::wire::trailer::{self, Locator, Trailer};
use vnet::wire::varp::{self, Author, Body, Claim, Message, TAG_LEN, Tag};
use vnet::wire::{Mac, Stamp, VifKey};

use super::admission::{NOBODY, connect_as};
use super::forging::{alter, count_or, noise};
use super::keys::Keys;
use super::peer::{ACTIVE, Backend, Peer, Way, register};
use super::random::Random;
use super::support::netns::Family;
use super::support::wait_until;
use super::{Net, SOON, Varpd, key, mac, vnet_id};

/// The most MACs that the attacker has declared that it learns.
const LEARNS: u16 = 2;
const WAY: Way = Way { learn: LEARNS, ..ACTIVE };
/// Forgeries of each kind: if each costs a connection or many requests to varpd, and otherwise.
const CONNECTIONS: u64 = 1000;
const MESSAGES: u64 = 10_000;
/// Number of forgeries between two checks of the mappings.
const LOOK: u64 = 500;
/// The most by which varpd's memory may grow, in KiB: its tables up to their bounds, and pages of
/// its allocator.
const GROWTH: u64 = 8192;

/// The victims and the means of the attack.
struct Scene<'n> {
    varpd: &'n Varpd,
    victim: Backend,
    far: Backend,
    stamp: Stamp,
    random: Random,
    files: usize,
    kib: u64,
}

impl<'n> Scene<'n> {
    fn new(varpd: &'n Varpd, other: &Varpd) -> Self {
        let victim = Backend::register(&varpd.socket, key(1), ACTIVE);
        let stamp = victim.peer.claimed();
        let far = Backend::register(&other.socket, key(4), ACTIVE);
        let (files, kib) = (varpd.open_files(), varpd.process.private_kib());
        Self { varpd, victim, far, stamp, random: Random::new(1), files, kib }
    }

    /// The attacker, with its vif.
    fn attacker(&self) -> Backend {
        Backend::register_by(connect_as(NOBODY, &self.varpd.socket), key(2), WAY)
    }

    /// The victim is where it was, for others as for itself, and varpd has nothing more than
    /// before.
    fn assert_unmoved(&self) {
        self.far.peer.resolve(mac(1));
        assert_eq!(self.far.peer.mapping(mac(1)), self.victim.coa);
        let vifs = self.varpd.show("vifs");
        let row = vifs.iter().find(|row| row["mac"] == mac(1).to_string()).unwrap();
        assert_eq!((&row["state"], &row["uid"]), (&"active".into(), &0.into()), "{row}");
        for event in drain(&self.victim.peer) {
            let is_stamp = matches!(event, Event::Claimed { stamp, .. } if stamp == self.stamp);
            let is_asked = matches!(event, Event::StatsRequest { .. } | Event::GroupLongest { .. });
            let (far, at) = (mac(4), self.far.coa);
            let is_right =
                matches!(event, Event::Mapping { mac, coa, .. } if (mac, coa) == (far, at));
            assert!(is_stamp || is_asked || is_right, "the victim is told {event:?}");
        }
        let learnt = vifs.iter().filter(|row| row["state"] == "learnt").count();
        assert!(learnt <= usize::from(LEARNS), "{vifs:?}");
    }

    /// When the attacker has gone.
    fn assert_clean(&self) {
        self.assert_unmoved();
        // The attacker's vif is kept for it: two sockets.
        wait_until("no more open files", SOON, || self.varpd.open_files() <= self.files + 4);
        let kib = self.varpd.process.private_kib();
        assert!(kib <= self.kib + GROWTH, "{} KiB, then {kib}", self.kib);
    }

    /// Any MAC: one of a vif, or of nobody.
    fn mac(&mut self) -> Mac {
        match self.random.range(0, 4) {
            0 => mac(self.random.range(0, 8) as u8),
            1 => Mac([0xff; 6]),
            _ => Mac(noise(&mut self.random, 6).try_into().unwrap()),
        }
    }

    /// Any address: of a host, of a vif, or of somebody else.
    fn address(&mut self) -> SocketAddr {
        let random = self.random.next() as u32;
        let ip = match random % 3 {
            0 => Ipv4Addr::new(192, 0, 2, random as u8 % 4),
            1 => Ipv4Addr::new(198, 51, 100, random as u8),
            _ => Ipv4Addr::from(random),
        };
        (IpAddr::from(ip), (random >> 16) as u16).into()
    }

    /// What a backend may say once it has a vif, with any values that there are; it costs no
    /// connection.
    fn request(&mut self) -> Request {
        loop {
            let request = self.any_request();
            // An address may be none that there is.
            if Request::parse(&request.emit()).as_ref() == Ok(&request) {
                return request;
            }
        }
    }

    fn any_request(&mut self) -> Request {
        let macs = 1 + self.random.index(8);
        let number = self.random.next() as u32 >> self.random.range(0, 32);
        let (kind, unit) = (Kind::Counter, "frames".into());
        let sample = Sample { name: "tx_frames".into(), kind, unit, value: 1 };
        match self.random.range(0, 10) {
            0 => Request::SetActive { active: self.random.per_mille(700) },
            1 => Request::Announce,
            2 | 3 => Request::Resolve { mac: self.mac(), refresh: self.random.per_mille(500) },
            4 => Request::Stats { xid: number, samples: vec![sample] },
            5 => Request::SaNeeded { address: self.address() },
            6 => Request::SaReady { number },
            7 => Request::Late { mac: self.mac(), sender: self.address() },
            8 => {
                let far = Stamp(u64::MAX >> self.random.range(0, 40));
                let stamp = self.random.per_mille(300).then_some(far);
                Request::Learn { macs: (0..macs).map(|_| (self.mac(), stamp)).collect() }
            }
            _ if number.is_multiple_of(2) => Request::LaneClosed { lane: number },
            _ => Request::Forget { macs: (0..macs).map(|_| self.mac()).collect() },
        }
    }
}

/// What has come, without waiting for more.
fn drain(peer: &Peer) -> Vec<Event> {
    let (mut buffer, mut events) = (vec![0; MAX_LEN], Vec::new());
    while let Ok(got) = peer.0.recv(&mut buffer)
        && got.len > 0
    {
        events.push(Event::parse(&buffer[..got.len]).unwrap());
    }
    events
}

/// Sends as soon as varpd has room.
fn send(peer: &Peer, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    wait_until("varpd takes a message", SOON, || {
        drain(peer);
        match peer.0.send(bytes, fds) {
            Err(e) if e.kind() == ErrorKind::WouldBlock => false,
            sent => {
                sent.unwrap();
                true
            }
        }
    });
}

/// Sends a message that costs the connection; returns why.
fn refusal(peer: &Peer, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> (ErrorCode, String) {
    peer.0.send(bytes, fds).unwrap();
    let refused = peer.find(|event| match event {
        Event::Error { code, text } => Some((*code, text.clone())),
        _ => None,
    });
    assert!(peer.next().is_none(), "the connection goes on after {refused:?}");
    refused
}

#[test]
fn any_bytes_cost_the_connection_and_nothing_else() {
    let Some(net) = Net::new("varpd: any bytes of a backend") else { return };
    let [a, b] = [net.a(), net.b()].map(|host| net.varpd(host, Family::V4, ""));
    let mut scene = Scene::new(&a, &b);
    let file = File::open("/dev/null").unwrap();
    let before = a.counter("requests_invalid");
    for n in 0..count_or(CONNECTIONS) {
        // Once in a while by a backend, which comes back as one that was restarted does.
        let peer = match n % 65 {
            0 if n < 650 => scene.attacker().peer,
            _ => connect_as(NOBODY, &a.socket),
        };
        drain(&peer);
        let genuine = scene.request().emit();
        let bytes = match n % 4 {
            0 => {
                let len = 1 + scene.random.index(300);
                noise(&mut scene.random, len)
            }
            1 => alter(&mut scene.random, &genuine, 4).1,
            2 => genuine[..1 + scene.random.index(genuine.len() - 1)].to_vec(),
            _ => [&genuine[..], &[7]].concat(),
        };
        // One whose type was changed may say something else; nobody but a backend is heard.
        if Request::parse(&bytes).is_ok() {
            continue;
        }
        let fds = vec![file.as_fd(); n as usize % 3];
        let (code, text) = refusal(&peer, &bytes, &fds);
        assert_eq!(code, ErrorCode::Invalid, "{text}: {bytes:02x?}");
        if n.is_multiple_of(LOOK) {
            scene.assert_unmoved();
        }
    }
    assert!(a.counter("requests_invalid") - before > count_or(CONNECTIONS) * 9 / 10);
    scene.assert_clean();
}

#[test]
fn messages_out_of_place_cost_the_connection_and_nothing_else() {
    let Some(net) = Net::new("varpd: messages of a backend out of place") else { return };
    let [a, b] = [net.a(), net.b()].map(|host| net.varpd(host, Family::V4, ""));
    let mut scene = Scene::new(&a, &b);
    let file = File::open("/dev/null").unwrap();
    let before = a.counter("requests_invalid");
    for n in 0..count_or(CONNECTIONS) {
        let fds = vec![file.as_fd(); n as usize % 3];
        // Before it is registered; or, as a backend, what is for others or comes once.
        let (peer, request) = match n % 64 {
            0 if n < 640 => (scene.attacker().peer, register(key((n / 64 % 8) as u8), WAY)),
            _ => (connect_as(NOBODY, &a.socket), scene.request()),
        };
        drain(&peer);
        let refused = refusal(&peer, &request.emit(), &fds);
        assert_eq!(refused, (ErrorCode::Invalid, "message out of place".into()), "{request:?}");
        if n.is_multiple_of(LOOK) {
            scene.assert_unmoved();
        }
    }
    assert_eq!(a.counter("requests_invalid") - before, count_or(CONNECTIONS));
    scene.assert_clean();
}

/// The process has had a vif: it has no other, and sees and changes no tables, as long as it lives.
#[test]
fn other_vifs_and_tables_are_not_for_a_process_that_has_a_vif() {
    let Some(net) = Net::new("varpd: a backend asks for vifs of others") else { return };
    let config = "[limits]\nregistrations-per-second = 100000\nclients-per-user = 10000\n";
    let [a, b] = [net.a(), net.b()].map(|host| net.varpd(host, Family::V4, config));
    let mut scene = Scene::new(&a, &b);
    let own = scene.attacker();
    let sockets: Vec<_> = own.sockets.iter().map(AsFd::as_fd).collect();
    let victims: Vec<_> = scene.victim.sockets.iter().map(|s| s.try_clone().unwrap()).collect();
    let victims: Vec<_> = victims.iter().map(AsFd::as_fd).collect();
    let file = File::open("/dev/null").unwrap();
    let tables = [Table::Vnets, Table::Vifs, Table::Varp, Table::Stats, Table::Peers, Table::Hosts];
    for n in 0..count_or(CONNECTIONS) {
        let other = match n % 3 {
            0 => key(1),
            1 => key(3 + scene.random.range(0, 200) as u8),
            _ => VifKey { vnet: vnet_id(43 + n as u32), ..key(2) },
        };
        let far = Stamp(u64::MAX >> scene.random.range(0, 40));
        let way = Way { stamp: (n.is_multiple_of(2)).then_some(far), learn: 300, ..ACTIVE };
        let request = match n % 8 {
            0 => Request::Show { table: tables[scene.random.index(tables.len())] },
            1 => Request::Flush { vnet: None, mac: Some(mac(1)) },
            2 => Request::Monitor,
            _ => register(other, way),
        };
        let fds = match n % 5 {
            0 => vec![],
            1 => sockets.clone(),
            2 => victims.clone(),
            _ => vec![file.as_fd(); n as usize % 40],
        };
        let peer = connect_as(NOBODY, &a.socket);
        let (code, text) = refusal(&peer, &request.emit(), &fds);
        assert_eq!(code, ErrorCode::Denied, "{request:?}: {text}");
        if n.is_multiple_of(LOOK) {
            scene.assert_unmoved();
        }
    }
    assert_eq!(a.show("vifs").len(), 2);
    drop(sockets);
    drop(own);
    scene.assert_clean();
}

/// All that a backend may say, with any values and with descriptors, as fast as varpd takes it.
#[test]
fn requests_with_any_values_move_nothing_of_others() {
    let Some(net) = Net::new("varpd: any requests of a backend") else { return };
    let [a, b] = [net.a(), net.b()].map(|host| net.varpd(host, Family::V4, ""));
    let mut scene = Scene::new(&a, &b);
    let own = scene.attacker();
    let file = File::open("/dev/null").unwrap();
    let [closed, sent] = ["descriptors_closed", "varp_tx"].map(|name| a.counter(name));
    let mut fds = 0;
    for n in 0..count_or(MESSAGES) {
        let request = scene.request();
        let some = vec![file.as_fd(); if n.is_multiple_of(8) { n as usize % 5 } else { 0 }];
        fds += some.len() as u64;
        send(&own.peer, &request.emit(), &some);
        if n.is_multiple_of(LOOK) {
            scene.assert_unmoved();
        }
    }
    // The longest, and then an answer: all before it was heard.
    let most = (0..MAX_MACS).map(|_| (scene.mac(), None)).collect();
    send(&own.peer, &Request::Learn { macs: most }.emit(), &[]);
    send(&own.peer, &Request::SetActive { active: true }.emit(), &[]);
    send(&own.peer, &Request::Resolve { mac: mac(1), refresh: false }.emit(), &[]);
    own.peer.mapping(mac(1));
    assert_eq!(a.counter("descriptors_closed") - closed, fds, "each is closed and counted");
    // What it makes a host send to others: a question is repeated a few times, an announcement too.
    let sent = a.counter("varp_tx") - sent;
    assert!(sent <= 4 * count_or(MESSAGES), "{sent} messages because of {}", count_or(MESSAGES));
    assert_eq!(a.counter("clients_stalled"), 0);
    scene.assert_unmoved();
    drop(own);
    scene.assert_clean();
}

/// With the trailer that a relay puts behind message and tag; on a vnet that is secured, and on one
/// that is not.
#[test]
fn relayed_messages_are_dropped_under_their_name() {
    const BURST: u64 = 100;
    let Some(net) = Net::new("varpd: messages of relays") else { return };
    let keys = Keys::new(&net);
    let varpd = net.varpd(net.a(), Family::V4, &keys.config(""));
    let plain = VifKey { vnet: vnet_id(43), ..key(1) };
    let one = Backend::register(&varpd.socket, plain, ACTIVE);
    let other = Backend::register(&varpd.socket, key(1), ACTIVE);
    let socket = std::thread::scope(|scope| {
        let open = || {
            net.b().enter();
            UdpSocket::bind((net.b().ipv4, varp::PORT)).unwrap()
        };
        scope.spawn(open).join().unwrap()
    });
    let mut random = Random::new(1);
    let mut forge = |n: u64| {
        let author = Author { realm: Realm(0), addr: (net.b().ipv4, varp::PORT).into() };
        let claim =
            Claim { stamp: Stamp(u64::MAX >> 20), coa: one.coa, realm: Realm(0), behind: None };
        let lifetime_ms = 30_000;
        let body = match n % 3 {
            0 => Body::Announce { claim, lifetime_ms },
            1 => Body::Reply { claim, lifetime_ms },
            _ => Body::Correction { claim, lifetime_ms },
        };
        let key = VifKey { vnet: vnet_id(42 + n as u32 % 2), ..key((n / 3 % 3) as u8) };
        let tag = (n % 4 < 2).then_some(Tag { key_id: 7, time_ms: n, tag: [7; TAG_LEN] });
        let message = Message { key, author, nonce: n, wide: false, relayed: true, body, tag };
        let locator =
            (n % 5 < 2).then_some(Locator { addr: one.coa.addr, control_port: varp::PORT });
        let trailer = Trailer {
            locator,
            hops: 1,
            key_number: 1,
            origin: n,
            time_us: n,
            extensions: Extensions::NONE,
            hmac: noise(&mut random, trailer::HMAC_LEN).try_into().unwrap(),
        };
        [message.to_bytes(), trailer.to_bytes()].concat()
    };
    let mut sent = 0;
    while sent < count_or(CONNECTIONS) {
        for n in sent..sent + BURST {
            socket.send_to(&forge(n), (net.a().ipv4, varp::PORT)).unwrap();
        }
        sent += BURST;
        wait_until("they are dropped", SOON, || varpd.counter("rx_drop_relayed") == sent);
    }
    for name in ["varp_rx_malformed", "varp_drop_forged", "losses", "moved"] {
        assert_eq!(varpd.counter(name), 0, "{name}");
    }
    for peer in [&one.peer, &other.peer] {
        assert!(!drain(peer).iter().any(|event| matches!(event, Event::Lost { .. })));
    }
}
