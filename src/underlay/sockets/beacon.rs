//! Sockets for beacons: the default groups of both address families are heard, and sent to, whichever of them the
//! host uses. Each is opened if the host has the family, and left out if not.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::AsFd;

use socket2::{Domain, Protocol, Socket, Type};

use super::filters::{attach_filter, beacon_filter, nothing_filter};
use super::{Opener, shared};
use crate::config::{DEFAULT_GROUP_V4, DEFAULT_GROUP_V6, DEFAULT_PORT};
use crate::sys::iovec::IoVec;
use crate::sys::{mmsg, sockopt};

/// Receive buffer, in bytes. Few beacons come, and any of them will do.
const BUFFER: i32 = 64 << 10;

/// The sockets.
#[derive(Debug, Default)]
pub struct BeaconSockets {
    listening: Vec<UdpSocket>,
    /// One of the address family that the host does not use.
    sender: Option<UdpSocket>,
    groups: Vec<SocketAddr>,
}

impl BeaconSockets {
    /// Number of sockets at most that beacons are received by.
    pub const MOST: usize = 2;

    /// The sockets that beacons are received by.
    pub fn listening(&self) -> &[UdpSocket] {
        &self.listening
    }

    /// The groups that beacons can be sent to.
    pub fn groups(&self) -> &[SocketAddr] {
        &self.groups
    }

    /// Sends a beacon to a group of the address family that the host does not use.
    ///
    /// # Errors
    /// The system's.
    pub fn send(&self, to: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        let Some(socket) = &self.sender else { return Err(io::ErrorKind::NotConnected.into()) };
        let parts = [IoVec::from_slice(bytes)];
        mmsg::send(socket.as_fd(), &[mmsg::Message { to, parts: &parts, segment: 0 }]).map(drop)
    }
}

impl Opener {
    /// Opens the sockets for beacons of a host whose own group is `own`.
    pub fn beacons(&self, own: SocketAddr) -> BeaconSockets {
        let mut sockets = BeaconSockets::default();
        for group in [IpAddr::from(DEFAULT_GROUP_V4), DEFAULT_GROUP_V6.into()] {
            let to = SocketAddr::new(group, DEFAULT_PORT);
            if group.is_ipv4() != self.site.address.is_ipv4() {
                match self.beacon_sender(group) {
                    Ok(socket) => sockets.sender = Some(socket.into()),
                    Err(e) => {
                        log::debug!("no beacons to {to}: {e}");
                        continue;
                    }
                }
            }
            sockets.groups.push(to);
            if to != own {
                match self.beacon_listener(to) {
                    Ok(socket) => sockets.listening.push(socket.into()),
                    Err(e) => log::debug!("can't hear beacons to {to}: {e}"),
                }
            }
        }
        sockets
    }

    /// A socket at all addresses of a family and at the site's port; it receives nothing.
    fn beacon_sender(&self, group: IpAddr) -> io::Result<Socket> {
        let socket = of_family(group)?;
        attach_filter(&socket, &nothing_filter())?;
        let any: IpAddr = match group {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        match group {
            IpAddr::V4(_) => {
                socket.set_multicast_all_v4(false)?;
                sockopt::set_multicast_interface_v4(&socket, self.site.interface)?;
                socket.set_multicast_ttl_v4(self.site.hops.into())?;
            }
            IpAddr::V6(_) => {
                socket.set_multicast_all_v6(false)?;
                socket.set_multicast_if_v6(self.site.interface)?;
                socket.set_multicast_hops_v6(self.site.hops.into())?;
            }
        }
        shared(socket, &SocketAddr::new(any, self.site.port).into())
    }

    fn beacon_listener(&self, at: SocketAddr) -> io::Result<Socket> {
        let socket = of_family(at.ip())?;
        sockopt::set(&socket, sockopt::RCVBUF, BUFFER)?;
        attach_filter(&socket, &beacon_filter())?;
        let bound = match at {
            SocketAddr::V4(_) => at,
            SocketAddr::V6(v6) => {
                SocketAddrV6::new(*v6.ip(), v6.port(), 0, self.site.interface).into()
            }
        };
        self.at_group(socket, bound)
    }
}

fn of_family(ip: IpAddr) -> io::Result<Socket> {
    let domain = if ip.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    if ip.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}
