//! VARP on the underlay: the sockets and what passes them.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use crate::mapper::Destination;
use crate::metrics::{VarpdCounter, VarpdCounters};
use crate::quiet::Quiet;
use crate::time::Instant;
use crate::underlay::sockets::Opener;
use crate::wire::handshake;
use crate::wire::varp::Message;

use super::{VarpdError, failed};

/// Longer than any message, so that one that is too long is seen to be.
const BUFFER: usize = 512;

/// Which way a message came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Via {
    /// To this host's address.
    Unicast,
    /// To the group.
    Group,
}

/// What was heard.
#[derive(Debug)]
pub(super) enum Heard {
    /// A VARP message.
    Varp(Message),
    /// A datagram that says to be a handshake message, unchecked.
    Handshake(Vec<u8>),
}

/// The sockets.
#[derive(Debug)]
pub(super) struct Varp {
    pub(super) unicast: UdpSocket,
    pub(super) group: UdpSocket,
    /// Where messages to the group go.
    pub(super) group_address: SocketAddr,
    quiet: Quiet,
}

impl Varp {
    /// Opens them.
    pub(super) fn open(opener: &Opener, group: IpAddr) -> Result<Self, VarpdError> {
        let port = opener.site().port;
        let open = |what: io::Result<UdpSocket>, ip| {
            let at = SocketAddr::new(ip, port);
            what.map_err(|e| match e.kind() {
                io::ErrorKind::AddrInUse => VarpdError::PortInUse(at),
                _ => failed(format!("open the VARP socket at {at}"))(e),
            })
        };
        Ok(Self {
            unicast: open(opener.varp_unicast(), opener.site().address)?,
            group: open(opener.varp_group(group), group)?,
            group_address: SocketAddr::new(group, port),
            quiet: Quiet::new(1),
        })
    }

    /// The next message that waits, and its sender. What is no message is counted and passed over,
    /// up to `budget` datagrams, which is counted down.
    pub(super) fn recv(
        &self,
        via: Via,
        budget: &mut usize,
        counters: &VarpdCounters,
    ) -> Option<(SocketAddr, Heard)> {
        let socket = match via {
            Via::Unicast => &self.unicast,
            Via::Group => &self.group,
        };
        let mut buffer = [0; BUFFER];
        while *budget > 0 {
            *budget -= 1;
            let (n, from) = match socket.recv_from(&mut buffer) {
                Ok(got) => got,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return None,
                // An ICMP error for something sent before: the next datagram may be fine.
                Err(_) => continue,
            };
            counters.inc(VarpdCounter::varp_rx);
            let bytes = buffer.get(..n).unwrap_or_default();
            if via == Via::Unicast && handshake::Message::is_one(bytes) {
                return Some((from, Heard::Handshake(bytes.to_vec())));
            }
            match Message::parse(bytes) {
                Ok(message) => {
                    let from = SocketAddr::new(from.ip(), from.port());
                    return Some((from, Heard::Varp(message)));
                }
                Err(e) => log::trace!("VARP from {from}: {e}"),
            }
            counters.inc(VarpdCounter::varp_rx_malformed);
        }
        None
    }

    /// Sends a message. VARP repeats what is lost, so failure is only counted, and logged.
    pub(super) fn send(
        &mut self,
        to: Destination,
        message: &Message,
        now: Instant,
        counters: &VarpdCounters,
    ) {
        let to = match to {
            Destination::Group => self.group_address,
            Destination::Unicast(to) => to,
        };
        log::trace!("VARP to {to}: {message:?}");
        self.send_bytes(to, &message.to_bytes(), now, counters);
    }

    /// Sends a message of any kind.
    pub(super) fn send_bytes(
        &mut self,
        to: SocketAddr,
        bytes: &[u8],
        now: Instant,
        counters: &VarpdCounters,
    ) {
        counters.inc(VarpdCounter::varp_tx);
        if let Err(e) = self.unicast.send_to(bytes, to) {
            counters.inc(VarpdCounter::varp_tx_failed);
            log::log!(self.quiet.level(now), "can't send VARP to {to}: {e}");
        }
    }
}
