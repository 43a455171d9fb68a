//! VARP's port is varpd's user's: nobody else on the host speaks from it.

use std::net::SocketAddr;

use nix::unistd::{Uid, setfsuid};
use socket2::{Domain, Socket, Type};

use super::admission::NOBODY;
use super::peer::{ACTIVE, Backend};
use super::support::netns::{Family, Host};
use super::support::wait_until;
use super::{Net, SOON, key};

/// Addresses of the host, all of them at VARP's port.
const PLACES: [&str; 9] = [
    "127.0.0.1:1798",
    "127.0.0.2:1798",
    "192.0.2.1:1798",
    "192.0.2.101:1798",
    "224.10.0.1:1798",
    "0.0.0.0:1798",
    "[::1]:1798",
    "[2001:db8::1]:1798",
    "[::]:1798",
];

/// Where a user can bind a socket on a host, by any of the ways to share a port.
fn bound(host: &Host, user: u32) -> Vec<String> {
    let attempt = |place: &str, ways: u8, only_v6: bool| {
        let at: SocketAddr = place.parse().unwrap();
        let domain = if at.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::DGRAM, None).unwrap();
        if at.is_ipv6() {
            socket.set_only_v6(only_v6).unwrap();
        }
        socket.set_reuse_address(ways & 1 != 0).unwrap();
        socket.set_reuse_port(ways & 2 != 0).unwrap();
        let bound = socket.bind(&at.into());
        bound.is_ok().then(|| format!("{place} by ways {ways}, IPv6 only: {only_v6}"))
    };
    let all = || {
        host.enter();
        // Of this thread: the user that the kernel takes a socket for.
        setfsuid(Uid::from_raw(user));
        let ways = (0..4).flat_map(|ways| [(ways, false), (ways, true)]);
        let each = PLACES.iter().flat_map(|place| ways.clone().map(move |way| (place, way)));
        each.filter_map(|(place, (ways, only_v6))| attempt(place, ways, only_v6)).collect()
    };
    std::thread::scope(|scope| scope.spawn(all).join().unwrap())
}

#[test]
fn no_other_user_has_a_socket_at_its_port_while_varpd_runs() {
    let Some(net) = Net::new("varpd: its port") else { return };
    net.a().ip("address add 192.0.2.101/24 dev eth0");
    let mut varpd = net.varpd(net.a(), Family::V4, "");
    let mut backends = Vec::new();
    // The kernel looks for conflicts another way when there are many sockets.
    for count in [0, 1, 20] {
        while backends.len() < count {
            let last = u8::try_from(backends.len() + 1).unwrap();
            backends.push(Backend::register(&varpd.socket, key(last), ACTIVE));
        }
        let bound = bound(net.a(), NOBODY);
        assert!(bound.is_empty(), "beside {count} vifs: {bound:?}");
    }
    varpd.process.kill();
    drop(backends);
    wait_until("the port is free again", SOON, || bound(net.a(), NOBODY).len() == 8 * PLACES.len());
}

#[test]
fn varpds_of_one_user_share_a_host_at_other_addresses() {
    let Some(net) = Net::new("varpd: two on a host") else { return };
    net.a().ip("address add 192.0.2.101/24 dev eth0");
    let one = net.varpd(net.a(), Family::V4, "");
    let second = |family, address: &str, group: &str| {
        let name = format!("second-{}", address.replace([':', '.'], "-"));
        let socket = net.path(&format!("{name}.sock"));
        let mut command = net.a().command(env!("CARGO_BIN_EXE_varpd"));
        let options = ["--address", address, "--group", group, "--socket"];
        command.args(options).arg(&socket);
        let process = super::spawn(&name, &net, &mut command);
        wait_until(&format!("{name} is ready: {family:?}"), SOON, || {
            process.log().contains("varpd: ready")
        });
        process
    };
    let two = second(Family::V4, "192.0.2.101", "224.10.0.2");
    let three = second(Family::V6, "2001:db8::1", "ff15::e00a:1");
    let near = Backend::register(&one.socket, key(1), ACTIVE);
    let far = net.varpd(net.b(), Family::V4, "");
    let there = Backend::register(&far.socket, key(2), ACTIVE);
    near.peer.resolve(key(2).mac);
    assert_eq!(near.peer.mapping(key(2).mac).addr, there.coa.addr);
    drop((two, three));
}
