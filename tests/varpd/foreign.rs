//! A host is spared the group frames of vnets that it does not have.

use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use vnet::wire::{VifKey, group};

use super::peer::{Backend, INACTIVE, frame, take};
use super::support::netns::{Family, Host};
use super::support::wait_until;
use super::{BOTH, Net, SOON, mac, vnet_id};

/// Vifs of the host, each on a vnet of its own.
const NICS: u32 = 300;
const FIRST: u32 = 1000;
/// A vnet that the host does not have.
const FOREIGN: u32 = 999;
/// Frames sent, and at once: the kernel's backlog must have room for them.
const FRAMES: u64 = 1000;
const AT_ONCE: u64 = 50;

/// Text of a file on a host.
fn read(host: &Host, path: &str) -> String {
    let output = host.command("cat").arg(path).output().unwrap();
    assert!(output.status.success(), "{path}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn packets_received(host: &Host) -> u64 {
    read(host, "/sys/class/net/eth0/statistics/rx_packets").trim().parse().unwrap()
}

/// Datagrams that UDP sockets of a host have dropped, most of them because of their filters (proc_net_udp(5)).
fn drops(host: &Host) -> u64 {
    let drops = |line: &str| line.split_whitespace().last()?.parse::<u64>().ok();
    let of = |path| read(host, path).lines().filter_map(drops).sum::<u64>();
    of("/proc/net/udp") + of("/proc/net/udp6")
}

/// Sends frames of a vnet from a host to a group, and waits until they have arrived at another's interface.
fn send(from: &Host, family: Family, to: &Host, group: SocketAddr, vnet: u32, count: u64) {
    let open = || {
        from.enter();
        let own = SocketAddr::new(from.address(family), 0);
        let socket = Socket::new(Domain::for_address(own), Type::DGRAM, Some(Protocol::UDP));
        let socket = socket.unwrap();
        socket.bind(&own.into()).unwrap();
        let index = nix::net::if_::if_nametoindex("eth0").unwrap();
        match own.ip() {
            IpAddr::V4(ip) => socket.set_multicast_if_v4(&ip).unwrap(),
            IpAddr::V6(_) => socket.set_multicast_if_v6(index).unwrap(),
        }
        socket
    };
    let socket = std::thread::scope(|scope| scope.spawn(open).join().unwrap());
    let mut sent = 0;
    while sent < count {
        let before = packets_received(to);
        let now = AT_ONCE.min(count - sent);
        for _ in 0..now {
            socket.send_to(&frame(vnet, "to all"), &group.into()).unwrap();
        }
        wait_until("the frames arrive", SOON, || packets_received(to) >= before + now);
        sent += now;
    }
}

#[test]
fn a_group_frame_of_a_vnet_without_vifs_here_reaches_no_socket_of_this_host() {
    let Some(net) = Net::new("varpd: group frames of a vnet that is not here") else { return };
    for family in BOTH {
        let varpd = net.varpd(net.a(), family, "groups = ['vnet']\n");
        let register = |n| {
            let key = VifKey { vnet: vnet_id(FIRST + n), mac: mac(1) };
            let mut backend = Backend::register(&varpd.socket, key, INACTIVE);
            // varpd has duplicates of the sockets; this process need not have all.
            backend.sockets.truncate(if n == 0 { 1 } else { 0 });
            backend
        };
        let backends: Vec<Backend> = (0..NICS).map(register).collect();
        let group = |vnet| {
            let group = group::of_vnet(vnet_id(vnet), net.a().address(family));
            SocketAddr::new(group, 1798)
        };
        let send = |group, vnet, count| send(net.b(), family, net.a(), group, vnet, count);
        let (refused, heard) = (drops(net.a()), varpd.counter("varp_rx"));
        send(group(FOREIGN), FOREIGN, FRAMES);
        // Frames of a vnet that is here reach its vif, and those to the group of VARP all filters of that group.
        send(group(FIRST), FIRST, 1);
        assert_eq!(take(backends[0].group_socket()).0, frame(FIRST, "to all"));
        // All that was sent before has been judged.
        assert_eq!(drops(net.a()), refused, "{family:?}: no socket was handed a frame");
        // Its own HELLO and LISTs come back to it, and no frame did.
        let heard = varpd.counter("varp_rx") - heard;
        assert!(heard < FRAMES / 5, "{family:?}: varpd has received {heard} messages");
        let one = match family {
            Family::V4 => "224.10.0.1:1798",
            Family::V6 => "[ff15::e00a:1]:1798",
        };
        send(one.parse().unwrap(), FOREIGN, 10);
        wait_until("frames are refused", SOON, || drops(net.a()) >= refused + 10);
        assert_eq!(drops(net.a()), refused + 10, "{family:?}: varpd's filter refuses frames");
    }
}

/// With one group for all, each of the host's sockets is handed each frame, and refuses it.
#[test]
fn a_group_frame_to_the_one_group_is_handed_to_the_filter_of_each_vif() {
    let Some(net) = Net::new("varpd: group frames to the one group") else { return };
    let varpd = net.varpd(net.a(), Family::V4, "groups = ['one']\n");
    let register = |n| {
        let key = VifKey { vnet: vnet_id(FIRST + n), mac: mac(1) };
        Backend::register(&varpd.socket, key, INACTIVE)
    };
    let backends: Vec<Backend> = (0..10).map(register).collect();
    let refused = drops(net.a());
    let group = backends[0].group;
    let (vifs, frames) = (10, 21);
    send(net.b(), Family::V4, net.a(), group, FOREIGN, frames);
    let all = frames * (vifs + 1);
    wait_until("frames are refused", SOON, || drops(net.a()) >= refused + all);
    // The filters of vifs refuse varpd's own HELLOs and LISTs as well, which come back to this host.
    let more = drops(net.a()) - refused - all;
    assert_eq!(more % vifs, 0, "{more} more than those of vifs, and varpd's");
}
