//! Adapts sockets to a change of the site: new ones for another address, the same ones for another interface.
//!
//! A socket at an address serves whichever interface has the address. But the interface for sending to groups, and those
//! on which groups are joined, are selected by index. For an interface that was
//! made again, or for a bridge, varpd must select both again. When an interface is deleted, the kernel ends its
//! memberships, but the socket's record of them remains and counts against a limit.

use std::io;
use std::net::{IpAddr, UdpSocket};

use socket2::{InterfaceIndexOrAddress, SockRef, Socket};

use super::{Opener, VarpSockets, VifSockets, local_address};

impl Opener {
    /// Opens sockets at this address of the interface with this index from now on.
    pub fn move_to(&mut self, address: IpAddr, interface: u32) {
        (self.site.address, self.site.interface) = (address, interface);
    }

    /// Moves the sockets of a vif to the site's interface from the one with index `before`. If that fails, it may be
    /// tried again, from the site's interface: those that were moved stay moved.
    ///
    /// # Errors
    /// The first of the kernel's; whatever can be moved is.
    pub fn rejoin_vif(&self, vif: &VifSockets, before: u32) -> io::Result<()> {
        let join = |socket| self.rejoin(socket, local_address(socket)?.ip(), before);
        let joined = vif.groups.iter().map(join);
        let sending = vif.unicast.iter().chain(&vif.senders).map(|socket| self.sends(socket));
        let results: Vec<io::Result<()>> = joined.chain(sending).collect();
        results.into_iter().collect()
    }

    /// Moves varpd's own sockets likewise.
    ///
    /// # Errors
    /// The kernel's.
    pub fn rejoin_varp(
        &self,
        (unicast, group_socket): (&VarpSockets, &UdpSocket),
        group: IpAddr,
        before: u32,
    ) -> io::Result<()> {
        self.rejoin(&SockRef::from(group_socket), group, before)?;
        unicast.classes.first().map_or(Ok(()), |first| self.sends(&SockRef::from(first)))
    }

    fn rejoin(&self, socket: &Socket, group: IpAddr, before: u32) -> io::Result<()> {
        // This fails if the socket had not joined there.
        let _ = match group {
            IpAddr::V4(group) => {
                socket.leave_multicast_v4_n(&group, &InterfaceIndexOrAddress::Index(before))
            }
            IpAddr::V6(group) => socket.leave_multicast_v6(&group, before),
        };
        self.receives_group(socket, group)
    }
}
