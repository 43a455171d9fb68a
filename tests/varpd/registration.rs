//! Whose a vif is, and which sockets it has.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use socket2::{InterfaceIndexOrAddress, SockRef};
use vnet::sys::rtnetlink::Rtnetlink;
use vnet::sys::sockopt;
use vnet::wire::control::{ErrorCode, Event, Request};

use super::peer::{ACTIVE, Backend, INACTIVE, Peer, Way, frame, register, take};
use super::support::netns::Family;
use super::support::wait_until;
use super::{BOTH, Net, SOON, key, mac};

/// Set where this program is run as another user: names the control socket.
const OTHER_USER_AT: &str = "VNET_TEST_OTHER_USER_AT";

#[test]
fn a_backend_is_given_bound_and_filtered_sockets() {
    let Some(net) = Net::new("varpd: sockets of a vif") else { return };
    for family in BOTH {
        let varpd = net.varpd(net.a(), family, "");
        let way = Way { queue_pairs: 3, ..INACTIVE };
        let vif = Backend::register(&varpd.socket, key(1), way);
        assert_eq!(vif.mtu, 1400);
        assert_eq!(vif.coa.addr.ip(), net.a().address(family));
        assert_ne!(vif.coa.addr.port(), 1798);
        let group = match family {
            Family::V4 => "224.10.0.1:1798",
            Family::V6 => "[ff15::e00a:1]:1798",
        };
        assert_eq!(vif.group.to_string(), group);
        assert_eq!(vif.group_socket().local_addr().unwrap(), vif.group);
        let (receiving, sending) = vif.sockets[1..].split_at(3);
        for socket in receiving {
            assert_eq!(socket.local_addr().unwrap(), vif.coa.addr);
        }
        for (pair, socket) in (0..).zip(sending) {
            let address = socket.local_addr().unwrap();
            assert_eq!((address.ip(), address.port() % 16), (vif.coa.addr.ip(), pair));
        }
        for socket in sending.iter().chain([vif.group_socket()]) {
            assert_eq!(sockopt::get(socket, sockopt::LOCK_FILTER).unwrap(), 1);
        }
        for socket in &vif.sockets {
            assert_eq!(sockopt::get(socket, sockopt::RXQ_OVFL).unwrap(), 1);
            // The kernel doubles what is asked for.
            let buffer = SockRef::from(socket).recv_buffer_size().unwrap();
            assert!(buffer >= 16 << 20, "{buffer}");
        }
        let row = &varpd.show("vifs")[0];
        assert_eq!((row["vnet"].as_u64(), &row["state"]), (Some(42), &"registered".into()));
        assert_eq!(row["coa"], vif.coa.addr.to_string());
        assert_eq!(row["pid"].as_u64(), Some(std::process::id().into()));
        vif.peer.send(&Request::SetActive { active: true });
        vif.peer.claimed();
        assert_eq!(varpd.show("vifs")[0]["state"], "active");
    }
}

#[test]
fn vifs_have_ports_from_the_range_and_vnets_their_groups() {
    let Some(net) = Net::new("varpd: ports and groups") else { return };
    let config = "ports = '40000-40001'\n[vnet.42]\ngroup = '224.10.0.42'\n";
    let varpd = net.varpd(net.a(), Family::V4, config);
    let one = Backend::register(&varpd.socket, key(1), ACTIVE);
    let two = Backend::register(&varpd.socket, key(2), ACTIVE);
    let mut ports = [one.coa.addr.port(), two.coa.addr.port()];
    ports.sort_unstable();
    assert_eq!(ports, [40000, 40001]);
    assert_eq!(one.group.to_string(), "224.10.0.42:1798");
    assert_eq!(one.group_socket().local_addr().unwrap(), one.group);
    let third = Peer::connect(&varpd.socket);
    third.send(&register(key(3), ACTIVE));
    let (code, text) = third.refusal();
    assert_eq!(code, ErrorCode::Failed);
    assert!(text.starts_with("can't open underlay sockets: "), "{text}");
    assert_eq!(varpd.show("vnets")[0]["group"], "224.10.0.42");
}

#[test]
fn a_restarted_backend_finds_its_address_and_its_frames() {
    let Some(net) = Net::new("varpd: restarted backend") else { return };
    let varpd = net.varpd(net.a(), Family::V4, "");
    let other = Backend::register(&varpd.socket, key(9), ACTIVE);
    let old = Backend::register(&varpd.socket, key(1), ACTIVE);
    let (coa, stamp) = (old.coa, old.peer.claimed());
    drop(old);
    other.unicast().send_to(&frame(42, "meanwhile"), coa.addr).unwrap();
    // At once, and also when varpd has long noticed.
    for round in 0..3 {
        let new = Backend::register(&varpd.socket, key(1), ACTIVE);
        assert_eq!(new.coa, coa, "round {round}");
        assert_eq!(new.peer.claimed(), stamp, "the claim lived on");
        if round == 0 {
            assert_eq!(take(new.unicast()), (frame(42, "meanwhile"), other.coa.addr));
        }
        drop(new);
        wait_until("the vif is kept", SOON, || varpd.show("vifs")[0]["state"] == "kept");
    }
    // For another number of queue pairs the sockets are of no use.
    let way = Way { queue_pairs: 2, ..ACTIVE };
    assert_ne!(Backend::register(&varpd.socket, key(1), way).coa, coa);
    assert_eq!(varpd.counter("vifs_resumed"), 3);
}

/// What arrived at the sockets of a backend whose guest did not run was not for it: the guest ran
/// elsewhere, or has sent it itself.
#[test]
fn a_guest_that_did_not_run_here_finds_no_frames() {
    let Some(net) = Net::new("varpd: a backend whose guest did not run") else { return };
    let varpd = net.varpd(net.a(), Family::V4, "");
    let again = || {
        let kept = || varpd.show("vifs").iter().all(|row| row["state"] == "kept");
        wait_until("the vif is kept", SOON, kept);
        Backend::register(&varpd.socket, key(1), INACTIVE)
    };
    let prepared = Backend::register(&varpd.socket, key(1), INACTIVE);
    let first = prepared.coa;
    drop(prepared);
    let arrived = again();
    assert_ne!(arrived.coa, first, "it had not run");
    arrived.peer.send(&Request::SetActive { active: true });
    arrived.peer.claimed();
    let second = arrived.coa;
    drop(arrived);
    // It runs again, as far as is known, though its rings are not there yet.
    let back = again();
    assert_eq!(back.coa, second);
    drop(back);
    let back = again();
    assert_eq!(back.coa, second);
    back.peer.send(&Request::SetActive { active: true });
    back.peer.claimed();
    back.peer.send(&Request::SetActive { active: false });
    let has_left = || varpd.show("vifs")[0]["state"] == "registered";
    wait_until("the guest has left", SOON, has_left);
    drop(back);
    assert_ne!(again().coa, second, "it had left");
}

#[test]
fn what_nobody_comes_back_for_is_forgotten() {
    let Some(net) = Net::new("varpd: forgotten vifs") else { return };
    let varpd = net.varpd(net.a(), Family::V4, "[timers]\nkeep = 0.2\n[limits]\nkept-vifs = 1\n");
    let vif = Backend::register(&varpd.socket, key(1), ACTIVE);
    let other = Backend::register(&varpd.socket, key(2), ACTIVE);
    drop((vif, other));
    wait_until("both are forgotten", SOON, || varpd.show("vifs").is_empty());
    assert_eq!(varpd.counter("vifs_forgotten"), 2);
    assert!(varpd.show("vnets").is_empty());
    assert!(varpd.show("varp").iter().all(|row| row["state"] != "local"));
}

#[test]
fn a_backend_outlives_varpd() {
    let Some(net) = Net::new("varpd: restart of varpd") else { return };
    for family in BOTH {
        let mut varpd = net.varpd(net.a(), family, "");
        let way = Way { queue_pairs: 2, ..ACTIVE };
        let vif = Backend::register(&varpd.socket, key(1), way);
        let (coa, stamp) = (vif.coa, vif.peer.claimed());
        varpd.restart(&net);
        assert!(vif.peer.next().is_none());
        let way = Way { stamp: Some(stamp), ..way };
        let vif = Backend::return_with(&varpd.socket, key(1), way, vif.sockets);
        assert_eq!(vif.coa, coa);
        assert_eq!(vif.peer.claimed(), stamp, "the same claim");
        assert_eq!(varpd.counter("vifs_adopted"), 1);
        // varpd has duplicates again: the backend may die, too.
        drop(vif);
        let vif = Backend::register(&varpd.socket, key(1), way);
        assert_eq!((vif.coa, vif.peer.claimed()), (coa, stamp));
    }
}

#[test]
fn another_users_vif_is_denied() {
    if let Some(socket) = std::env::var_os(OTHER_USER_AT) {
        return play_another_user(socket.as_ref());
    }
    let Some(net) = Net::new("varpd: other users") else { return };
    let varpd = net.varpd(net.a(), Family::V4, "");
    let got = register_as(1000, &net, &varpd.socket);
    let theirs: SocketAddr = got.strip_prefix("Registered ").expect(&got).parse().unwrap();
    // Root may have everybody's.
    wait_until("the vif is kept", SOON, || varpd.show("vifs")[0]["state"] == "kept");
    assert_eq!(varpd.show("vifs")[0]["uid"].as_u64(), Some(1000));
    let mine = Backend::register(&varpd.socket, key(1), ACTIVE);
    assert_eq!(mine.coa.addr, theirs);
    let denied = register_as(1000, &net, &varpd.socket);
    let pid = std::process::id();
    let vif = "vif 42/52:54:00:00:00:01 belongs to user 0";
    assert_eq!(denied, format!("Taken {vif}, process {pid}"));
    assert_eq!(varpd.counter("vifs_reserved"), 0);
    drop(mine);
    wait_until("the vif is kept", SOON, || varpd.show("vifs")[0]["state"] == "kept");
    // A user who waits for a backend to restart does not get its guest's place.
    let denied = register_as(1000, &net, &varpd.socket);
    let reserved = "Taken vif 42/52:54:00:00:00:01 is kept for user 0, whose backend has ended";
    assert!(denied.starts_with(reserved), "{denied}");
    assert_eq!(varpd.counter("vifs_reserved"), 1);
    assert_eq!(Backend::register(&varpd.socket, key(1), ACTIVE).coa.addr, theirs);
}

/// Registers vif 1 as another user, in a process of its own, which then ends.
fn register_as(uid: u32, net: &Net, socket: &Path) -> String {
    let program = net.path("other-user");
    if !program.exists() {
        // The build's directory may be closed to other users.
        std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    }
    let output = Command::new(program)
        .args(["--exact", "registration::another_users_vif_is_denied", "--nocapture"])
        .env(OTHER_USER_AT, socket)
        .uid(uid)
        .gid(uid)
        .current_dir("/")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    // The test runner's own words come before it on the same line.
    let text = String::from_utf8(output.stdout).unwrap();
    let mut found = text.lines().filter_map(|line| line.split_once("RESULT "));
    found.next().unwrap_or_else(|| panic!("no result: {text}")).1.to_owned()
}

/// The other side of [`register_as`].
fn play_another_user(socket: &Path) {
    let peer = Peer::connect(socket);
    peer.send(&register(key(1), ACTIVE));
    match peer.event() {
        Event::Registered { coa, .. } => println!("RESULT Registered {coa}"),
        Event::Error { code, text } => println!("RESULT {code:?} {text}"),
        event => panic!("{event:?}"),
    }
}

/// A MAC given twice, or a guest that migrates within its host: who is to know which?
#[test]
fn a_second_backend_of_a_running_vif_is_named_in_both_logs() {
    let Some(net) = Net::new("varpd: a second backend") else { return };
    let varpd = net.varpd(net.a(), Family::V4, "");
    let one = Backend::register(&varpd.socket, key(1), INACTIVE);
    let two = Backend::register(&varpd.socket, key(1), INACTIVE);
    one.peer.send(&Request::SetActive { active: true });
    one.peer.claimed();
    let three = Backend::register(&varpd.socket, key(1), INACTIVE);
    let warning = |event: &Event| match event {
        Event::Error { code: ErrorCode::Warning, text } => Some(text.clone()),
        _ => None,
    };
    let text = three.peer.find(warning);
    for part in [&key(1).to_string(), &one.coa.to_string(), "another MAC"] {
        assert!(text.contains(part), "{text}");
    }
    let said = varpd.process.log();
    assert!(said.contains(&format!("has registered vif {}, whose guest runs", key(1))), "{said}");
    assert_eq!(said.matches("has registered").count(), 1, "not while none runs: {said}");
    // Both run.
    two.peer.send(&Request::SetActive { active: true });
    two.peer.claimed();
    wait_until("the conflict is said in words", SOON, || {
        let said = varpd.process.log();
        said.contains("two guests have this MAC") && said.contains(&format!("go to {}", two.coa))
    });
}

#[test]
fn a_mac_given_twice_is_said_on_both_hosts() {
    let Some(net) = Net::new("varpd: a MAC given twice") else { return };
    for family in BOTH {
        let (a, b) = (net.varpd(net.a(), family, ""), net.varpd(net.b(), family, ""));
        let one = Backend::register(&a.socket, key(1), ACTIVE);
        one.peer.claimed();
        let two = Backend::register(&b.socket, key(1), ACTIVE);
        two.peer.claimed();
        for (varpd, other) in [(&a, net.b().address(family)), (&b, net.a().address(family))] {
            wait_until("it is said", SOON, || {
                let said = varpd.process.log();
                let said = said.lines().find(|line| line.contains("two guests have this MAC"));
                said.is_some_and(|line| {
                    let wins = format!("frames go to {}", two.coa);
                    [&key(1).to_string(), &format!("on host {other}"), &wins]
                        .iter()
                        .all(|part| line.contains(part.as_str()))
                })
            });
        }
    }
}

/// Many vifs may be kept, each with several sockets, and anybody can send to them.
#[test]
fn what_waits_for_a_vif_that_is_kept_is_bounded_until_it_is_read_again() {
    let Some(net) = Net::new("varpd: what waits for a kept vif") else { return };
    let varpd = net.varpd(net.a(), Family::V4, "");
    let Backend { peer, sockets, coa, .. } = Backend::register(&varpd.socket, key(1), ACTIVE);
    peer.claimed();
    net.b().enter();
    let sender = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let flood = || {
        (0..8000).for_each(|_| drop(sender.send_to(&[0x40; 1300], coa.addr)));
        sockopt::waiting(&sockets[1]).unwrap()
    };
    // On a busy machine the kernel drops some on their way.
    let room = |what: &str| wait_until(what, SOON, || flood() > 8 << 20);
    room("it has room while it is served");
    drop(peer);
    wait_until("it is kept", SOON, || varpd.show("vifs")[0]["state"] == "kept");
    wait_until("what waited is dropped", SOON, || sockopt::waiting(&sockets[1]).unwrap() == 0);
    let mut waiting = 0;
    wait_until("it has little room while it is kept", SOON, || {
        waiting = flood();
        waiting > 1 << 20
    });
    assert!(waiting < 3 << 20, "{waiting} bytes wait");
    let again = Backend::register(&varpd.socket, key(1), ACTIVE);
    assert_eq!(again.coa.addr, coa.addr, "the same sockets");
    room("it has room again");
}

/// Gives host a another address, and waits until its only vif has followed.
fn renumber(net: &Net, varpd: &super::Varpd) {
    net.a().ip("address delete 192.0.2.1/24 dev eth0");
    net.a().ip("address add 192.0.2.77/24 dev eth0");
    wait_until("the vif is at another address", SOON, || {
        let coa = varpd.show("vifs")[0]["coa"].to_string();
        coa.contains("192.0.2.77:")
    });
}

#[test]
fn a_vif_that_is_kept_while_its_host_is_renumbered_has_bounded_sockets() {
    let Some(net) = Net::new("varpd: sockets of a kept vif that moves") else { return };
    let varpd = net.varpd_on(net.a(), "eth0", "");
    let old = Backend::register(&varpd.socket, key(1), ACTIVE);
    old.peer.claimed();
    drop(old);
    wait_until("it is kept", SOON, || varpd.show("vifs")[0]["state"] == "kept");
    renumber(&net, &varpd);
    let coa: SocketAddr = varpd.show("vifs")[0]["coa"].as_str().unwrap().parse().unwrap();
    net.b().enter();
    let sender = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    (0..8000).for_each(|_| drop(sender.send_to(&[0x40; 1300], coa)));
    let back = Backend::register(&varpd.socket, key(1), ACTIVE);
    assert_eq!(back.coa.addr, coa, "the kept sockets");
    let waited = sockopt::waiting(&back.sockets[1]).unwrap();
    assert!((1..3 << 20).contains(&waited), "{waited}");
}

/// A stamp orders claims to one care-of address. With that of a claim at the old one, a claim at the new one would
/// be no newer, and hosts that know the old one might keep that.
#[test]
fn a_stamp_of_a_claim_at_the_old_address_is_not_believed_at_the_new_one() {
    let Some(net) = Net::new("varpd: stamps of a kept vif that moves") else { return };
    let varpd = net.varpd_on(net.a(), "eth0", "");
    let way = Way { learn: 4, ..ACTIVE };
    let old = Backend::register(&varpd.socket, key(1), way);
    let stamp = old.peer.claimed();
    let behind = |stamp| Request::Learn { macs: vec![(mac(9), stamp)] };
    let claimed_behind = |peer: &Peer| {
        peer.find(|event| match event {
            Event::Claimed { mac: of, stamp } if *of == mac(9) => Some(*stamp),
            _ => None,
        })
    };
    old.peer.send(&behind(None));
    let learnt = claimed_behind(&old.peer);
    drop(old);
    wait_until("it is kept", SOON, || varpd.show("vifs")[0]["state"] == "kept");
    renumber(&net, &varpd);
    // A backend that was stopped meanwhile: its own sockets are refused, so it comes without.
    let back = Backend::register(&varpd.socket, key(1), Way { stamp: Some(stamp), ..way });
    assert_eq!(varpd.counter("vifs_resumed"), 1);
    assert!(back.peer.claimed() > stamp);
    back.peer.send(&behind(Some(learnt)));
    assert!(claimed_behind(&back.peer) > learnt);
}

/// What keeps a vif from joining its groups on another interface may pass.
#[test]
fn a_vif_that_could_not_join_its_groups_is_tried_again() {
    let Some(net) = Net::new("varpd: a vif that can't join its groups") else { return };
    let varpd = net.varpd_on(net.a(), "eth0", "");
    let vif = Backend::register(&varpd.socket, key(1), ACTIVE);
    vif.peer.claimed();
    // Its socket has more memberships than the kernel gives one from now on.
    let others: [Ipv4Addr; 3] = [1, 2, 3].map(|n| [224, 10, 9, n].into());
    let socket = vif.group_socket();
    net.a().enter();
    let interfaces = Rtnetlink::open(false).unwrap().interfaces(false).unwrap();
    let eth0 = interfaces.iter().find(|interface| interface.name == "eth0").unwrap();
    let eth0 = InterfaceIndexOrAddress::Index(eth0.index);
    let further = SockRef::from(socket);
    others.iter().for_each(|group| further.join_multicast_v4_n(group, &eth0).unwrap());
    let mut limit = net.a().command("sysctl");
    assert!(limit.arg("-qw").arg("net.ipv4.igmp_max_memberships=2").status().unwrap().success());
    for line in [
        "link add br0 mtu 1400 type bridge forward_delay 0 mcast_snooping 0",
        "link set br0 up",
        "address delete 192.0.2.1/24 dev eth0",
        "link set eth0 master br0",
        "address add 192.0.2.1/24 dev br0",
    ] {
        net.a().ip(line);
    }
    let says = |text: &str| wait_until(text, SOON, || varpd.process.log().contains(text));
    says("can't join its multicast groups on br0");
    says("192.0.2.1 is on br0 now");
    others.iter().for_each(|group| further.leave_multicast_v4_n(group, &eth0).unwrap());
    net.b().enter();
    let sender = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    SockRef::from(&sender).set_multicast_if_v4(&net.b().ipv4).unwrap();
    socket.set_nonblocking(true).unwrap();
    let sent = frame(42, "to all");
    wait_until("frames to all arrive", SOON, || {
        sender.send_to(&sent, vif.group).unwrap();
        let mut buffer = [0; 64];
        socket.recv(&mut buffer).is_ok_and(|len| buffer[..len] == sent)
    });
}
