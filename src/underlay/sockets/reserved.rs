//! Reserves VARP's port for varpd's user: nobody else on this host can send from it, at any address.
//!
//! Hosts believe VARP only from this port. All sockets at it share it by `SO_REUSEPORT`, which the kernel grants to
//! sockets of one user; varpd holds the wildcard of both address families as well, by sockets that receive nothing, so
//! that every other bind at the port conflicts with one of its sockets. `SO_REUSEADDR` must not be set on any of them: with
//! it, sockets of different users could share the port.
//!
//! With shared ports, bind(2) does not tell two varpds at one address from one. An abstract Unix socket does, whose
//! name contains the address: such names are unique in a network namespace.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::filters::{attach_filter, nothing_filter};
use super::{Opener, sockopt};

/// The sockets that reserve the port.
#[derive(Debug)]
pub(super) struct Reserved {
    _wildcards: Vec<Socket>,
    /// `None`: another user has taken its name.
    _name: Option<Socket>,
}

impl Opener {
    /// Reserves the site's port.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`]: another varpd has address and port. [`io::ErrorKind::ResourceBusy`]: a process
    /// of another user has the port.
    pub(super) fn reserve(&self) -> io::Result<Reserved> {
        let _name = self.name()?;
        let all = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let mut _wildcards = Vec::new();
        for ip in all {
            match wildcard(ip, self.site.port) {
                Ok(socket) => _wildcards.push(socket),
                // This host has no addresses of the family.
                Err(e) if e.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
                Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
                    return Err(io::ErrorKind::ResourceBusy.into());
                }
                Err(e) => return Err(e),
            }
        }
        Ok(Reserved { _wildcards, _name })
    }

    /// The socket with the name that only one varpd at an address can have.
    fn name(&self) -> io::Result<Option<Socket>> {
        let at = self.local(self.site.address, self.site.port);
        let name = SockAddr::unix(format!("\0vnet/varp/{at}"))?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        match socket.bind(&name) {
            Ok(()) => {
                socket.listen(1)?;
                Ok(Some(socket))
            }
            Err(e) if e.kind() == io::ErrorKind::AddrInUse && self.is_ours(&name) => Err(e),
            // Anybody can take the name, which must not keep varpd from its work.
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Whether a process of this user listens there, as far as this process may know.
    fn is_ours(&self, name: &SockAddr) -> bool {
        let user = || {
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None).ok()?;
            socket.set_nonblocking(true).ok()?;
            match socket.connect(name) {
                Ok(()) => Some(getsockopt(&socket, PeerCredentials).ok()?.uid()),
                // Connections wait: it listens, and takes none.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => Some(self.user),
                Err(_) => None,
            }
        };
        user() == Some(self.user)
    }
}

/// A socket at all addresses of a family. The kernel gives a datagram to the socket with the most specific address.
fn wildcard(ip: IpAddr, port: u16) -> io::Result<Socket> {
    let domain = if ip.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    attach_filter(&socket, &nothing_filter())?;
    sockopt::set(&socket, sockopt::LOCK_FILTER, 1)?;
    // Otherwise the kernel would filter each group datagram once more.
    match ip {
        IpAddr::V4(_) => socket.set_multicast_all_v4(false)?,
        IpAddr::V6(_) => {
            socket.set_only_v6(true)?;
            socket.set_multicast_all_v6(false)?;
        }
    }
    socket.set_reuse_port(true)?;
    socket.bind(&SocketAddr::new(ip, port).into())?;
    Ok(socket)
}
