//! Clients that lie, stall, flood or die, and datagrams from anywhere: varpd goes on.

use std::net::UdpSocket;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use vnet::sys::clock;
use vnet::wire::control::{
    Cell, ErrorCode, Event, Features, Kind, MAX_LEN, Request, Sample, Table,
};
use vnet::wire::name::Realm;
use vnet::wire::varp::{self, Author, Body, Claim, Message};
use vnet::wire::{CareOf, Stamp};

use super::peer::{ACTIVE, Backend, Peer, Way, register, take};
use super::support::netns::Family;
use super::support::wait_until;
use super::{HASTY, Net, SOON, Varpd, key, mac, vnet_id};

/// varpd serves others: at once.
fn assert_serves(varpd: &Varpd) {
    let begin = clock::mono();
    let peer = Peer::connect(&varpd.socket);
    peer.send(&Request::Show { table: Table::Vnets });
    peer.find(|event| matches!(event, Event::End).then_some(()));
    let took = clock::mono() - begin;
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[test]
fn nonsense_is_answered_and_ends_the_connection() {
    let Some(net) = Net::new("varpd: nonsense") else { return };
    let varpd = net.varpd(net.a(), Family::V4, "");
    let said = |bytes: &[u8]| {
        let peer = Peer::connect(&varpd.socket);
        peer.0.send(bytes, &[]).unwrap();
        let (code, text) = peer.refusal();
        assert_eq!(code, ErrorCode::Invalid, "{text}");
        text
    };
    let text = said(&[9, 1]);
    assert!(
        text.starts_with("version 9 of the control protocol is not spoken here, only version 2: "),
        "{text}"
    );
    assert_eq!(said(b"\x01"), "malformed message: truncated");
    assert_eq!(said(&[2, 99, 0, 0, 0, 0, 0, 0]), "malformed message: unknown type");
    assert_eq!(said(&vec![2; MAX_LEN + 1]), "message too long");
    assert_eq!(said(&Event::End.emit()), "malformed message: unknown type");
    for stray in [
        Request::Announce,
        Request::SetActive { active: true },
        Request::Resolve { mac: mac(1), refresh: false },
        Request::Stats { xid: 0, samples: vec![] },
    ] {
        assert_eq!(said(&stray.emit()), "message out of place");
    }
    for first in [register(key(1), ACTIVE), Request::Show { table: Table::Vnets }] {
        let peer = Peer::silent(&varpd.socket);
        peer.send(&first);
        let (code, text) = peer.refusal();
        let want = (ErrorCode::Invalid, "the first message must be HELLO");
        assert_eq!((code, text.as_str()), want);
    }
    let twice = Request::Hello { features: Features::NONE, software: String::new() };
    assert_eq!(said(&twice.emit()), "message out of place");
    let vif = Backend::register(&varpd.socket, key(1), ACTIVE);
    vif.peer.claimed();
    vif.peer.send(&register(key(2), ACTIVE));
    assert_eq!(vif.peer.refusal(), (ErrorCode::Invalid, "message out of place".into()));

    let mut physical = key(1);
    physical.vnet = vnet_id(1);
    let text = said(&register(physical, ACTIVE).emit());
    assert!(text.contains("vnet 1 is the physical network"), "{text}");
    let mut group = key(1);
    group.mac = "01:00:5e:00:00:01".parse().unwrap();
    let text = said(&register(group, ACTIVE).emit());
    assert_eq!(text, "01:00:5e:00:00:01 is not an individual MAC address");
    assert_serves(&varpd);
    assert_eq!(varpd.counter("requests_invalid"), 15);
}

#[test]
fn sockets_that_are_not_the_vifs_are_not_believed() {
    let Some(net) = Net::new("varpd: lying backends") else { return };
    let varpd = net.varpd(net.a(), Family::V4, "");
    let victim = Backend::register(&varpd.socket, key(1), ACTIVE);
    let own = Backend::register(&varpd.socket, key(2), ACTIVE);
    let files = varpd.open_files();
    let says = |key, sockets: &[BorrowedFd<'_>]| {
        let peer = Peer::connect(&varpd.socket);
        peer.0.send(&register(key, ACTIVE).emit(), sockets).unwrap();
        let (code, text) = peer.refusal();
        assert_ne!(code, ErrorCode::Failed, "{text}");
        text
    };
    let group = own.group_socket().as_fd();
    let text = says(key(3), &[group, victim.unicast().as_fd()]);
    assert_eq!(text, format!("care-of address {} belongs to vif {}", victim.coa, key(1)));
    let text = says(key(2), &[group, own.unicast().as_fd()]);
    assert!(text.contains("belongs to vif"), "its first connection still has it: {text}");
    // In this test's own namespace, not in the host's.
    let foreign = UdpSocket::bind("127.0.0.1:0").unwrap();
    let text = says(key(3), &[group, foreign.as_fd()]);
    assert!(text.contains("not a UDP socket of the underlay's"), "{text}");
    let file = std::fs::File::open("/dev/null").unwrap();
    let text = says(key(3), &[file.as_fd(), file.as_fd()]);
    assert!(text.contains("not a UDP socket"), "{text}");
    let text = says(key(3), &[victim.unicast().as_fd(), group]);
    assert!(text.contains("belongs to vif"), "in whatever order: {text}");
    let text = says(key(3), &[group, group]);
    assert_eq!(text, "the sockets of queue pairs are not one each");
    let mut other_vnet = key(3);
    other_vnet.vnet = vnet_id(43);
    let text = says(other_vnet, &[group, own.unicast().as_fd()]);
    assert!(text.contains("filter"), "{text}");
    assert_eq!(says(key(3), &[group]), "1 sockets instead of 2");
    let text = says(key(3), &[file.as_fd(); 200]);
    assert_eq!(text, "200 sockets instead of 2");
    // Where no descriptor belongs, all are closed.
    let peer = Peer::connect(&varpd.socket);
    peer.0.send(&Request::Show { table: Table::Vnets }.emit(), &[file.as_fd(); 200]).unwrap();
    peer.find(|event| matches!(event, Event::End).then_some(()));
    let one_more = files + 1;
    wait_until("none is held while the client stays", SOON, || varpd.open_files() <= one_more);
    drop(peer);
    assert_eq!(varpd.counter("descriptors_closed"), 200);
    wait_until("nothing has leaked", SOON, || varpd.open_files() <= files);
    assert_eq!(varpd.show("vifs").len(), 2);
}

#[test]
fn a_backend_that_does_not_read_loses_its_connection() {
    let Some(net) = Net::new("varpd: stalled backends") else { return };
    let varpd = net.varpd(net.a(), Family::V4, HASTY);
    let stalled = Backend::register(&varpd.socket, key(1), ACTIVE);
    let other = Backend::register(&varpd.socket, key(2), ACTIVE);
    let stamp = stalled.peer.claimed();
    let ask = Request::Resolve { mac: mac(2), refresh: false }.emit();
    wait_until("the stalled backend is dropped", SOON, || {
        let broken = (0..1000).any(|_| match stalled.peer.0.send(&ask, &[]) {
            Err(e) => e.kind() != std::io::ErrorKind::WouldBlock,
            Ok(()) => false,
        });
        broken && varpd.counter("clients_stalled") == 1
    });
    assert_serves(&varpd);
    other.peer.resolve(mac(1));
    assert_eq!(other.peer.mapping(mac(1)), stalled.coa, "its vif is kept");
    // It comes back with its sockets.
    let sockets = stalled.sockets;
    let back = Backend::return_with(&varpd.socket, key(1), ACTIVE, sockets);
    assert_eq!((back.coa, back.peer.claimed()), (stalled.coa, stamp), "its claim lived on");
    assert_eq!(varpd.counter("vifs_forgotten"), 0);
}

#[test]
fn who_does_not_answer_for_counters_is_shown_as_stalled() {
    let Some(net) = Net::new("varpd: counters") else { return };
    let varpd = net.varpd(net.a(), Family::V4, "");
    let stalled = Backend::register(&varpd.socket, key(1), ACTIVE);
    let good = Backend::register(&varpd.socket, key(2), ACTIVE);
    let operator = Peer::connect(&varpd.socket);
    operator.send(&Request::Show { table: Table::Stats });
    let xid = good.peer.find(|event| match event {
        Event::StatsRequest { xid } => Some(*xid),
        _ => None,
    });
    let sample =
        |name: &str, kind, value| Sample { name: name.into(), kind, unit: "frames".into(), value };
    let tx = sample("tx_frames", Kind::Counter, u64::MAX);
    let samples = vec![tx, sample("waiting", Kind::Gauge, 2)];
    // Numbers that were not asked for are not taken.
    let lie = vec![sample("lie", Kind::Counter, 1)];
    good.peer.send(&Request::Stats { xid: xid.wrapping_add(1), samples: lie });
    good.peer.send(&Request::Stats { xid, samples });
    assert_serves(&varpd);
    let Event::Columns { columns } = operator.event() else { panic!("no columns") };
    let names: Vec<&str> = columns.iter().map(|column| column.name.as_ref()).collect();
    assert_eq!(names, ["vnet", "mac", "counter", "value", "unit", "kind"]);
    let mut rows = Vec::new();
    while let Event::Row { cells } = operator.event() {
        rows.push(cells);
    }
    let of_vifs = rows.iter().filter(|row| row[0] == Cell::Number(42));
    let row = |last: u8, name: &'static str, value, unit, kind: &'static str| {
        let (vnet, mac) = (Cell::Number(42), Cell::Mac(key(last).mac));
        vec![vnet, mac, Cell::text(name), Cell::Number(value), unit, Cell::text(kind)]
    };
    let frames = || Cell::text("frames");
    let want = [
        row(1, "stalled", 1, Cell::Nothing, "gauge"),
        row(2, "tx_frames", u64::MAX, frames(), "counter"),
        row(2, "waiting", 2, frames(), "gauge"),
    ];
    assert_eq!(of_vifs.cloned().collect::<Vec<_>>(), want);
    let registered = [Cell::Nothing, Cell::Nothing, Cell::text("vifs_registered"), Cell::Number(2)];
    assert!(rows.iter().any(|row| row.starts_with(&registered)), "{rows:?}");
    assert_eq!(varpd.counter("stats_late"), 1);
    drop(stalled);
}

#[test]
fn there_are_only_so_many_clients() {
    let Some(net) = Net::new("varpd: limits") else { return };
    let varpd = net.varpd(net.a(), Family::V4, "[limits]\nclients = 2\nvifs = 1\n");
    let vif = Backend::register(&varpd.socket, key(1), ACTIVE);
    let second = Peer::connect(&varpd.socket);
    second.send(&register(key(2), ACTIVE));
    assert_eq!(second.refusal(), (ErrorCode::Limit, "this host has too many vifs".into()));
    let crowd: Vec<Peer> = (0..50).map(|_| Peer::connect(&varpd.socket)).collect();
    let (code, text) = crowd[49].refusal();
    assert_eq!(code, ErrorCode::Limit);
    assert!(text.contains("clients already"), "{text}");
    vif.peer.resolve(mac(1));
    vif.peer.mapping(mac(1));
    drop(crowd);
    wait_until("there is room again", SOON, || varpd.counter("clients_now") == 2);
}

#[test]
fn without_file_descriptors_it_waits_for_better_times() {
    let Some(net) = Net::new("varpd: out of descriptors") else { return };
    let mut command = net.a().command("prlimit");
    command.args(["--nofile=28:28", env!("CARGO_BIN_EXE_varpd"), "--underlay", "eth0", "--socket"]);
    let socket = net.path("few.sock");
    let process = super::spawn("few", &net, command.arg(&socket));
    wait_until("it is ready", SOON, || process.log().contains("varpd: ready"));
    let vif = Backend::register(&socket, key(1), ACTIVE);
    let crowd: Vec<Peer> = (0..40).map(|_| Peer::connect(&socket)).collect();
    wait_until("it can accept no more", SOON, || process.log().contains("can't accept a client"));
    let before = process.cpu_ticks();
    vif.peer.resolve(mac(1));
    vif.peer.mapping(mac(1));
    drop(crowd);
    // It looks again after a second.
    wait_until("it serves again", SOON, || {
        super::vnet(&socket, &["show", "vifs"]).status.success()
    });
    let ticks = process.cpu_ticks() - before;
    assert!(ticks < 20, "it was busy for {ticks} ticks");
}

#[test]
fn no_descriptor_is_left_of_clients_that_die() {
    let Some(net) = Net::new("varpd: descriptor leaks") else { return };
    let config = format!("{HASTY}keep = 0.05\n[limits]\nkept-vifs = 4\n");
    let varpd = net.varpd(net.a(), Family::V4, &config);
    assert!(varpd.show("vifs").is_empty());
    let files = varpd.open_files();
    for round in 0..200_u8 {
        let way = Way { queue_pairs: 1 + round % 4, ..ACTIVE };
        let vif = Backend::register(&varpd.socket, key(round % 8), way);
        match round % 4 {
            0 => drop(vif),
            1 => {
                // Dies with questions open and a message half thought through.
                vif.peer.resolve(mac(99));
                vif.peer.0.send(b"\x01", &[]).unwrap();
            }
            2 => {
                let sockets = vif.sockets;
                drop(vif.peer);
                let again = Peer::connect(&varpd.socket);
                let fds: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
                again.0.send(&register(key(round % 8), way).emit(), &fds).unwrap();
            }
            _ => drop(Peer::connect(&varpd.socket)),
        }
    }
    wait_until("all that was kept is forgotten", SOON, || varpd.show("vifs").is_empty());
    // The last to look may still have been connected when they were counted first.
    wait_until("no more open files than before", SOON, || varpd.open_files() <= files);
    assert_serves(&varpd);
}

#[test]
fn a_flood_of_varp_does_not_starve_clients() {
    let Some(net) = Net::new("varpd: VARP flood") else { return };
    let (a, b) = (net.varpd(net.a(), Family::V4, ""), net.varpd(net.b(), Family::V4, ""));
    let vif = Backend::register(&a.socket, key(1), ACTIVE);
    let flooder = Backend::register(&b.socket, key(2), ACTIVE);
    let to: Vec<_> = [format!("{}:1798", net.a().ipv4), vif.group.to_string()].into();
    let socket = flooder.unicast().try_clone().unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Also when an assertion fails: the scope waits for the thread.
        let _end = SetOnDrop(&stop);
        scope.spawn(|| {
            // A reply in form, for vnet 0, which is none.
            let mut junk = [0; varp::LEN];
            junk[..4].copy_from_slice(&[b'V', b'A', varp::VERSION, varp::REPLY]);
            while !stop.load(Ordering::Relaxed) {
                junk[4] = junk[4].wrapping_add(1);
                for to in &to {
                    let _ = socket.send_to(&junk, to);
                }
            }
        });
        wait_until("the flood has arrived", SOON, || a.counter("varp_rx_malformed") > 10_000);
        for _ in 0..20 {
            assert_serves(&a);
        }
        vif.peer.resolve(mac(2));
        assert_eq!(vif.peer.mapping(mac(2)), flooder.coa);
    });
    vif.unicast().send_to(b"x", flooder.coa.addr).unwrap();
    assert_eq!(take(flooder.unicast()).0, b"x");
}

/// Any host of the segment can announce a MAC of a vnet without keys, as often as it likes.
#[test]
fn announcements_of_a_running_mac_do_not_fill_its_backends_queue() {
    // More than its queue holds.
    const FORGED: u64 = 3000;
    let Some(net) = Net::new("varpd: a flood of announcements") else { return };
    let varpd = net.varpd(net.a(), Family::V4, "");
    let vif = Backend::register(&varpd.socket, key(1), ACTIVE);
    let own = vif.peer.claimed();
    net.b().enter();
    let liar = UdpSocket::bind((net.b().ipv4, varp::PORT)).unwrap();
    socket2::SockRef::from(&liar).set_multicast_if_v4(&net.b().ipv4).unwrap();
    let author = Author { realm: Realm(0), addr: (net.b().ipv4, varp::PORT).into() };
    let announce = |n: u64| {
        let stamp = Stamp(own.0 + 1 + n);
        let addr = (net.b().ipv4, 40_000 + (n % 2) as u16).into();
        let coa = CareOf { addr, ..vif.coa };
        let claim = Claim { stamp, coa, realm: Realm(0), behind: None };
        let body = Body::Announce { claim, lifetime_ms: 30_000 };
        let (key, nonce, tag) = (key(1), n + 1, None);
        let message = Message { key, author, nonce, wide: false, relayed: false, body, tag };
        liar.send_to(&message.to_bytes(), (varp::GROUP, varp::PORT)).unwrap();
        stamp
    };
    let mut sent = 0;
    wait_until("the flood has arrived", SOON, || {
        (0..1500).for_each(|_| {
            announce(sent);
            sent += 1;
        });
        varpd.counter("rx_announces") >= FORGED
    });
    let last = announce(sent);
    let told = vif.peer.find(|event| match event {
        Event::Lost { stamp, coa, .. } if *stamp == last => Some(coa.addr.port()),
        _ => None,
    });
    assert_eq!(u64::from(told), 40_000 + sent % 2, "the last place is told");
    assert_eq!(varpd.counter("clients_stalled"), 0);
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
