//! A group socket gets the group's datagrams, whichever others share its address.
//!
//! ```text
//!     host a                        host b
//!   64 senders  -- underlay -->   a vif's group socket (a member)
//!                                 VARP's, at the same address (no member any more)
//! ```

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;

use socket2::{InterfaceIndexOrAddress, SockRef};
use vnet::sys::rtnetlink::Rtnetlink;
use vnet::underlay::sockets::{Frames, Opener, Site};
use vnet::wire::VnetId;

use crate::SOON;
use crate::support::netns::{Host, Underlay};
use crate::support::{can_make_hosts, step, take_turn};

const GROUP: Ipv4Addr = Ipv4Addr::new(224, 10, 0, 1);
const PORT: u16 = 1798;
/// The kernel would choose for each by its port.
const SENDERS: u8 = 64;

/// Runs on a host.
fn on<T: Send>(host: &Host, run: impl FnOnce() -> T + Send) -> T {
    let inside = || {
        host.enter();
        run()
    };
    std::thread::scope(|scope| scope.spawn(inside).join().unwrap())
}

fn site(host: &Host) -> Site {
    let interfaces = Rtnetlink::open(false).unwrap().interfaces(false).unwrap();
    let interface = interfaces.iter().find(|i| i.name == "eth0").unwrap().index;
    Site { address: host.ipv4.into(), interface, port: PORT, hops: 1, ports: None }
}

/// The group sockets of a vif, and of VARP after it has left the group, as when it is being closed: the kernel ends
/// the memberships of a socket first, and gives up its address later.
fn open(host: &Host, is_varp_first: bool) -> (UdpSocket, UdpSocket) {
    let site = site(host);
    let on_eth0 = InterfaceIndexOrAddress::Index(site.interface);
    let mut opener = Opener::new(site);
    let varp = is_varp_first.then(|| opener.varp_group(GROUP.into()).unwrap());
    let vif = opener.vif(&[GROUP.into()], Frames(VnetId::new(42).unwrap()), 1).unwrap();
    let varp = varp.unwrap_or_else(|| opener.varp_group(GROUP.into()).unwrap());
    SockRef::from(&varp).leave_multicast_v4_n(&GROUP, &on_eth0).unwrap();
    let group: OwnedFd = vif.group_fds()[0].try_clone_to_owned().unwrap();
    let group = UdpSocket::from(group);
    group.set_nonblocking(false).unwrap();
    group.set_read_timeout(Some(SOON)).unwrap();
    (group, varp)
}

#[test]
fn a_vif_misses_no_group_frame_while_varp_s_socket_is_being_closed() {
    if !can_make_hosts("group sockets at one address, of which one is a member") {
        return;
    }
    let _turn = take_turn();
    let underlay = Underlay::new(2, 1500);
    let (a, b) = (underlay.host(0), underlay.host(1));
    for is_varp_first in [true, false] {
        step(&format!("VARP's is the first: {is_varp_first}"));
        let (group, _varp) = on(b, || open(b, is_varp_first));
        on(a, || {
            let interface = site(a).interface;
            let to = SocketAddr::from((GROUP, PORT));
            for n in 0..SENDERS {
                let sender = UdpSocket::bind((a.ipv4, 0)).unwrap();
                vnet::sys::sockopt::set_multicast_interface_v4(&sender, interface).unwrap();
                sender.send_to(&[0x40, 0, 0, 0, 0, 0, 0, 42, n], to).unwrap();
            }
        });
        let mut bytes = [0; 16];
        for n in 0..SENDERS {
            let got = group.recv_from(&mut bytes).map(|(len, _)| bytes[..len].last().copied());
            assert_eq!(got.ok().flatten(), Some(n));
        }
    }
}
