//! Real sockets on the loopback interface.

mod sorted;
mod steered;

use socket2::SockFilter;

use super::super::bpf::RETURN;
use super::*;
use crate::secret::Secret;
use crate::security::noise::Entropy;
use crate::sys::rtnetlink::Rtnetlink;
use crate::wire::varp;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

const GROUP_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(224, 10, 0, 1));
const GROUP_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xff15, 0, 0, 0, 0, 0, 0xe00a, 1));

fn vnet(id: u32) -> VnetId {
    VnetId::new(id).unwrap()
}

/// A site on `lo` with a port that is free at the moment.
fn site(address: IpAddr) -> Site {
    let interfaces = Rtnetlink::open(false).unwrap().interfaces(false).unwrap();
    let interface = interfaces.iter().find(|i| i.name == "lo").unwrap().index;
    let port = UdpSocket::bind((address, 0)).unwrap().local_addr().unwrap().port();
    Site { address, interface, port, hops: 1, ports: None }
}

fn sites() -> [(Opener, IpAddr); 2] {
    [
        (Opener::new(site(Ipv4Addr::LOCALHOST.into())), GROUP_V4),
        (Opener::new(site(Ipv6Addr::LOCALHOST.into())), GROUP_V6),
    ]
}

fn udp(socket: &Socket) -> UdpSocket {
    let socket: UdpSocket = socket.try_clone().unwrap().into();
    socket.set_nonblocking(false).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(2000))).unwrap();
    socket
}

fn take(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 100];
    let (n, from) = socket.recv_from(&mut buffer).unwrap();
    (buffer[..n].to_vec(), from)
}

fn frame(id: u32, tail: &[u8]) -> Vec<u8> {
    [&[0x40, 0, 0, 0], &id.to_be_bytes()[..], tail].concat()
}

fn dup(sockets: &VifSockets) -> Vec<OwnedFd> {
    sockets.fds().iter().map(|fd| fd.try_clone_to_owned().unwrap()).collect()
}

/// IPv4 only: the loopback interface has no route for IPv6 groups.
#[test]
fn each_group_socket_gets_its_own_and_nothing_else() {
    let [(mut opener, group), _] = sites();
    let varp = opener.varp_group(group).unwrap();
    varp.set_nonblocking(false).unwrap();
    varp.set_read_timeout(Some(Duration::from_millis(2000))).unwrap();
    let a = opener.vif(&[group], Frames(vnet(42)), 1).unwrap();
    let b = opener.vif(&[group], Frames(vnet(43)), 1).unwrap();
    let from = udp(&a.unicast[0]);
    let to = SocketAddr::new(group, opener.site().port);
    let junk: [&[u8]; 7] = [
        b"",
        b"V",
        b"\x40",
        b"\x40\0\0\0\0\0\0",
        b"\x50\0\0\0\0\0\0\x2a",
        b"\x30\0\0\0\0\0\0\x2a",
        &frame(44, b"other"),
    ];
    for datagram in junk {
        from.send_to(datagram, to).unwrap();
    }
    for datagram in [&frame(42, b"a")[..], b"VA\x01\x02", &frame(43, b"b")] {
        from.send_to(datagram, to).unwrap();
    }
    // Datagrams of one sender keep their order: what was junk would have come first.
    assert_eq!(take(&udp(&a.groups[0])), (frame(42, b"a"), a.address()));
    assert_eq!(take(&udp(&b.groups[0])), (frame(43, b"b"), a.address()));
    assert_eq!(take(&varp).0, b"VA\x01\x02");
}

#[test]
fn filters_are_locked_and_fragmentation_is_off() {
    for (mut opener, group) in sites() {
        let vif = opener.vif(&[group], Frames(vnet(42)), 1).unwrap();
        assert_eq!((vif.queue_pairs(), vif.senders.len()), (1, 0));
        for socket in vif.groups.iter().chain(&vif.unicast) {
            assert!(socket.attach_filter(&[SockFilter::new(RETURN, 0, 0, 0)]).is_err());
            assert!(socket.detach_filter().is_err());
            let discover = match group {
                IpAddr::V4(_) => sockopt::MTU_DISCOVER_V4,
                IpAddr::V6(_) => sockopt::MTU_DISCOVER_V6,
            };
            assert_eq!(sockopt::get(socket, discover).unwrap(), sockopt::PMTUDISC_DO);
            assert_eq!(sockopt::get(socket, sockopt::RXQ_OVFL).unwrap(), 1);
        }
    }
}

/// Other messages would wake varpd in vain. Hello is about hosts.
#[test]
fn messages_to_the_group_about_vnets_that_are_not_here_do_not_reach_varpd() {
    let [(opener, group), _] = sites();
    let varp = opener.varp_group(group).unwrap();
    let sender = opener.varp_unicast(TokenKey::new(&Entropy::new(Secret::new([1; 32])))).unwrap();
    let sender = sender.of(Class::Answer).unwrap();
    let to = SocketAddr::new(group, opener.site().port);
    let message = |version: u8, opcode: u8, id: u32| {
        [&[b'V', b'A', version, opcode, 0, 0, 0, 0], &id.to_be_bytes()[..]].concat()
    };
    let is_heard = |bytes: &[u8]| {
        sender.send_to(bytes, to).unwrap();
        let mut buffer = [0; 100];
        varp.recv_from(&mut buffer).is_ok_and(|(n, _)| buffer[..n] == *bytes)
    };
    for opcode in 0..=6 {
        assert!(!is_heard(&message(varp::VERSION, opcode, 42)), "there are no vnets yet");
    }
    for count in [1, 2, 100, 200, 201, 3000, 0] {
        let id = |n: u32| 42 + 1000 * n;
        let vnets = (0..count).map(|n| vnet(id(n))).collect();
        hear_questions(&varp, &vnets).unwrap();
        for n in [0, count / 2, count.saturating_sub(1)] {
            for opcode in 0..=6 {
                let heard = is_heard(&message(varp::VERSION, opcode, id(n)));
                assert_eq!(heard, count > 0, "opcode {opcode}, vnet {n} of {count}");
                for other in [id(n) - 1, id(n) + 1] {
                    assert!(!is_heard(&message(varp::VERSION, opcode, other)), "{other}, {count}");
                }
            }
        }
        assert!(is_heard(&message(1, 1, 43)), "whoever speaks another version is to be named");
        assert!(is_heard(b"VH\x01\x01"), "hello is about all vnets");
        assert!(!is_heard(b"VK\x01\x01") && !is_heard(b"VA"));
        assert!(!is_heard(&message(varp::VERSION, 1, 42)[..11]), "which vnet?");
    }
}

/// Messages about some others pass then.
#[test]
fn messages_about_vnets_that_are_here_reach_varpd_however_many_those_are() {
    let [(opener, group), _] = sites();
    let varp = opener.varp_group(group).unwrap();
    let sender = opener.varp_unicast(TokenKey::new(&Entropy::new(Secret::new([1; 32])))).unwrap();
    let sender = sender.of(Class::Answer).unwrap();
    let to = SocketAddr::new(group, opener.site().port);
    let id = |n: u32| n.wrapping_mul(0x9e37_79b1) | 1;
    hear_questions(&varp, &(0..50_000).map(|n| vnet(id(n))).collect()).unwrap();
    assert!(sockopt::filter(&varp).unwrap().len() > MOST_INSTRUCTIONS / 4);
    for n in (0..50_000).step_by(997) {
        let head = [b'V', b'A', varp::VERSION, varp::ANNOUNCE, 0, 0, 0, 0];
        let message = [&head, &id(n).to_be_bytes()[..]].concat();
        sender.send_to(&message, to).unwrap();
        let mut buffer = [0; 100];
        let (len, _) = varp.recv_from(&mut buffer).unwrap();
        assert_eq!(buffer[..len], message, "vnet {n}");
    }
}

#[test]
fn the_varp_port_is_taken_once() {
    for (opener, group) in sites() {
        let key = TokenKey::new(&Entropy::new(Secret::new([1; 32])));
        let _first = opener.varp_unicast(key).unwrap();
        assert_eq!(opener.varp_unicast(key).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        // The group is shared.
        let _groups = [opener.varp_group(group).unwrap(), opener.varp_group(group).unwrap()];
    }
}

#[test]
fn ports_come_from_the_range_each_once() {
    let mut site = site(Ipv4Addr::LOCALHOST.into());
    // Four ports of which one is VARP's; others on this machine may hold some.
    let first = site.port.min(65_000);
    site.ports = Some(first..=first + 3);
    let varp = site.port;
    let mut opener = Opener::new(site);
    let mut got = Vec::new();
    let full = loop {
        match opener.vif(&[GROUP_V4], Frames(vnet(42)), 1) {
            Ok(vif) => got.push(vif),
            Err(e) => break e,
        }
    };
    assert_eq!(full.kind(), io::ErrorKind::AddrInUse);
    let mut ports: Vec<_> = got.iter().map(|v| v.address().port()).collect();
    assert!(ports.iter().all(|p| (first..=first + 3).contains(p) && *p != varp), "{ports:?}");
    ports.dedup();
    assert_eq!(ports.len(), got.len());
}

#[test]
fn a_vif_goes_to_another_group_with_the_sockets_that_it_has() {
    for (mut opener, one) in sites() {
        let own = crate::wire::group::of_vnet(vnet(42), one);
        let frames = Frames(vnet(42));
        let mut vif = opener.vif(&[one], frames, 2).unwrap();
        for groups in [&[one, own][..], &[own, one], &[own], &[one]] {
            let before = cookies(&vif);
            let adopted = opener.adopt(groups, frames, 2, dup(&vif)).unwrap();
            let at: Vec<IpAddr> =
                adopted.sockets.groups.iter().map(|s| local_address(s).unwrap().ip()).collect();
            assert_eq!(at, groups);
            let after = cookies(&adopted.sockets);
            assert_eq!(after[groups.len()..], before[vif.groups.len()..], "its own stay");
            let kept = after.iter().filter(|cookie| before.contains(cookie)).count();
            assert_eq!(adopted.has_new_groups, (kept, before.len()) != (after.len(), after.len()));
            vif = adopted.sockets;
        }
    }
}

/// IPv4 only: the loopback interface has no route for IPv6 groups.
#[test]
fn a_vif_hears_both_of_its_groups() {
    let [(mut opener, one), _] = sites();
    let own = crate::wire::group::of_vnet(vnet(42), one);
    let vif = opener.vif(&[one, own], Frames(vnet(42)), 1).unwrap();
    let sender = opener.vif(&[one], Frames(vnet(43)), 1).unwrap();
    for (n, group) in (0_u8..).zip([one, own]) {
        let bytes = frame(42, &[n]);
        udp(&sender.unicast[0]).send_to(&bytes, (group, opener.site.port)).unwrap();
        assert_eq!(take(&udp(&vif.groups[usize::from(n)])).0, bytes, "{group}");
    }
}

/// What tells sockets apart.
fn cookies(vif: &VifSockets) -> Vec<u64> {
    let all = vif.groups.iter().chain(&vif.unicast).chain(&vif.senders);
    all.map(|socket| socket.cookie().unwrap()).collect()
}

#[test]
fn sockets_of_a_vif_are_told_apart_in_any_order() {
    for (mut opener, group) in sites() {
        for pairs in [1, 2, 16] {
            let vif = opener.vif(&[group], Frames(vnet(42)), pairs).unwrap();
            for turn in 0..vif.fds().len() {
                let mut fds = dup(&vif);
                fds.rotate_left(turn);
                if turn % 2 == 1 {
                    fds.reverse();
                }
                let adopted = opener.adopt(&[group], Frames(vnet(42)), pairs, fds).unwrap();
                assert_eq!(cookies(&adopted.sockets), cookies(&vif), "{pairs} pairs, turn {turn}");
                assert!(!adopted.has_new_groups);
            }
        }
    }
}

#[test]
fn own_sockets_are_adopted_and_lies_are_not() {
    for (mut opener, group) in sites() {
        let vif = opener.vif(&[group], Frames(vnet(42)), 2).unwrap();
        let Adopted { sockets: back, has_new_groups } =
            opener.adopt(&[group], Frames(vnet(42)), 2, dup(&vif)).unwrap();
        assert!(!has_new_groups);
        assert_eq!((back.address(), back.queue_pairs()), (vif.address(), 2));

        let hearing = opener.alone(|_| true, EPHEMERAL_TRIES).unwrap();
        let refused = |vnet_id, pairs, fds| {
            opener.adopt(&[group], Frames(vnet(vnet_id)), pairs, fds).unwrap_err().to_string()
        };
        assert_eq!(refused(42, 1, dup(&vif)), "5 sockets instead of 2");
        assert_eq!(refused(42, 2, vec![]), "0 sockets instead of 5");
        assert!(refused(43, 2, dup(&vif)).contains("filter"));
        let mut twice = dup(&vif);
        twice[2] = twice[1].try_clone().unwrap();
        assert!(refused(42, 2, twice).contains("not one each"));
        let mut no_group = dup(&vif);
        no_group[0] = no_group[1].try_clone().unwrap();
        assert!(refused(42, 2, no_group).contains("not one each"));
        let mut file = dup(&vif);
        file[1] = std::fs::File::open("/dev/null").unwrap().into();
        assert!(refused(42, 2, file).contains("not a UDP socket"));
        let mut varp = dup(&vif);
        let key = TokenKey::new(&Entropy::new(Secret::new([1; 32])));
        let own = opener.varp_unicast(key).unwrap();
        varp[1] = own.of(Class::Answer).unwrap().try_clone().unwrap().into();
        assert!(refused(42, 2, varp).contains("none of the vif's sockets"));
        let mut varp = dup(&vif);
        let own: Socket = own.of(Class::Answer).unwrap().try_clone().unwrap().into();
        mark(&own, Role::Own(0)).unwrap();
        varp[1] = own.into();
        assert!(refused(42, 2, varp).contains("unicast socket"));
        let mut other_family = dup(&vif);
        let wrong = if group.is_ipv4() { "[::1]:0" } else { "127.0.0.1:0" };
        other_family[1] = UdpSocket::bind(wrong).unwrap().into();
        assert!(refused(42, 2, other_family).contains("not a UDP socket"));
        let wildcard = if group.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let mut anywhere = dup(&vif);
        let at_all: Socket = UdpSocket::bind(wildcard).unwrap().into();
        mark(&at_all, Role::Own(0)).unwrap();
        anywhere[1] = at_all.into();
        assert!(refused(42, 2, anywhere).contains("unicast socket"));
        let mut listening = dup(&vif);
        mark(&hearing, Role::Sender(0)).unwrap();
        listening[3] = hearing.into();
        assert!(refused(42, 2, listening).contains("filter"));
        let mut one_twice = dup(&vif);
        one_twice[4] = one_twice[3].try_clone().unwrap();
        assert!(refused(42, 2, one_twice).contains("not one each"));
        let mut unfiltered = dup(&vif);
        let open = opener.socket(4096).unwrap();
        open.set_reuse_port(true).unwrap();
        open.bind(&opener.local(group, opener.site.port).into()).unwrap();
        unfiltered[0] = open.into();
        assert!(refused(42, 2, unfiltered).contains("filter"));
    }
}
