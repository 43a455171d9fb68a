//! Sockets when the site changes: other ones at another address; the same ones on another interface.
//!
//! A socket at an address serves whichever interface has the address. But what it sends to groups leaves by an
//! interface that is named by its index, and so are the interfaces on which groups are joined: for one that was
//! made again, or for a bridge, both have to be said anew. The kernel has forgotten that a deleted interface was
//! joined, but not that the socket had asked for it, which counts against a limit.

use std::io;
use std::net::{IpAddr, UdpSocket};

use socket2::{InterfaceIndexOrAddress, SockRef, Socket};

use super::{Opener, VarpSockets, VifSockets};

impl Opener {
    /// From now on sockets are opened at this address of the interface with this index.
    pub fn move_to(&mut self, address: IpAddr, interface: u32) {
        (self.site.address, self.site.interface) = (address, interface);
    }

    /// The sockets of a vif serve on the site's interface instead of the one with index `before`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn rejoin_vif(&self, vif: &VifSockets, group: IpAddr, before: u32) -> io::Result<()> {
        self.rejoin(&vif.group, group, before)?;
        vif.unicast.iter().chain(&vif.senders).try_for_each(|socket| self.sends(socket))
    }

    /// Those of varpd itself likewise.
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
        // It fails if the socket had not joined there.
        let _ = match group {
            IpAddr::V4(group) => {
                socket.leave_multicast_v4_n(&group, &InterfaceIndexOrAddress::Index(before))
            }
            IpAddr::V6(group) => socket.leave_multicast_v6(&group, before),
        };
        self.receives_group(socket, group)
    }
}
