//! The registration of a vif: what varpd says of it, and what follows from that for the guest.

use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use super::link::CAPABILITIES;
use super::rx::Receiver;
use super::serve::{ServeError, doing};
use super::worker::Place;
use crate::security::Level;
use crate::sys::mmsg::MAX_MESSAGE_LEN;
use crate::sys::seqpacket::Connection;
use crate::underlay::sockets;
use crate::underlay::udp::UdpUnderlay;
use crate::wire::control::{self, Event, Request};
use crate::wire::{CareOf, VifKey, encap, esp};

/// IP and UDP headers in front of a datagram's payload, in bytes.
const UDP_OVERHEAD_V4: usize = 28;
const UDP_OVERHEAD_V6: usize = 48;

/// What varpd says of a new vif, and its sockets.
pub(super) struct Registration {
    pub(super) coa: CareOf,
    pub(super) group: SocketAddr,
    pub(super) underlay_mtu: u32,
    pub(super) level: Level,
    pub(super) underlays: Vec<UdpUnderlay>,
}

pub(super) fn connect(path: &Path) -> Result<Connection, ServeError> {
    Connection::open(path).map_err(|error| ServeError::Unreachable { path: path.into(), error })
}

/// Registers and waits for the answer.
pub(super) fn register_with(
    varpd: &Connection,
    request: &Request,
    sockets: &[BorrowedFd<'_>],
    queue_pairs: u8,
    timeout: Duration,
) -> Result<Registration, ServeError> {
    varpd.send(&request.emit(), sockets).map_err(doing("cannot write to varpd"))?;
    let in_time = varpd.wait_readable(timeout).map_err(doing("cannot wait for varpd"))?;
    if !in_time {
        return Err(ServeError::Silent { awaited: "answer to the registration", timeout });
    }
    let mut buffer = vec![0; control::MAX_LEN];
    let received = varpd.recv(&mut buffer).map_err(doing("cannot read from varpd"))?;
    let bytes = buffer.get(..received.len).unwrap_or_default();
    let event = match Event::parse(bytes) {
        _ if bytes.is_empty() => {
            return Err(ServeError::Refused("it closed the connection".into()));
        }
        Ok(event) => event,
        Err(error) => return Err(ServeError::Protocol(error.to_string())),
    };
    match event {
        Event::Registered { coa, group, underlay_mtu, level } => {
            let underlays = if sockets.is_empty() {
                underlays_from(received.fds, queue_pairs)?
            } else {
                Vec::new()
            };
            Ok(Registration { coa, group, underlay_mtu, level, underlays })
        }
        Event::Error { text, .. } => Err(ServeError::Refused(text)),
        other => Err(ServeError::Protocol(format!("{other:?}"))),
    }
}

/// One underlay per queue pair; the first also has the group socket, each of several one to send
/// from.
fn underlays_from(sockets: Vec<OwnedFd>, queue_pairs: u8) -> Result<Vec<UdpUnderlay>, ServeError> {
    if sockets.len() != sockets::count(queue_pairs) {
        return Err(ServeError::Protocol(format!("{} sockets came along", sockets.len())));
    }
    let mut sockets = sockets.into_iter();
    let mut group = sockets.next();
    let own: Vec<OwnedFd> = sockets.by_ref().take(queue_pairs.into()).collect();
    let underlay = |own| UdpUnderlay::new(own, group.take(), sockets.next());
    Ok(own.into_iter().map(underlay).collect())
}

/// What guests are told: the underlay's MTU less the tunnel's headers, or what the operator asks
/// for if it is not more.
pub(super) fn guest_mtu(
    wanted: Option<u16>,
    registration: &Registration,
) -> Result<u16, ServeError> {
    let overhead = match registration.coa.addr {
        SocketAddr::V4(_) => encap::OVERHEAD_V4,
        SocketAddr::V6(_) => encap::OVERHEAD_V6,
    };
    let underlay = u16::try_from(registration.underlay_mtu).unwrap_or(u16::MAX);
    let plain = underlay.saturating_sub(overhead);
    let inner = usize::from(overhead) - ip_overhead(registration.coa.addr);
    let longest = match max_datagram(registration) {
        longest if registration.level.is_secured() => esp::payload_room(longest),
        longest => longest,
    };
    let most = match u16::try_from(longest.saturating_sub(inner)) {
        Ok(most) => most.min(plain),
        Err(_) => plain,
    };
    match wanted {
        Some(wanted) if wanted > most => Err(ServeError::Mtu { wanted, most }),
        Some(wanted) => Ok(wanted),
        None => Ok(most),
    }
}

/// What the queue pairs of a vif are to the underlay.
pub(super) fn place(key: VifKey, registration: &Registration) -> Place {
    let Registration { coa, group, .. } = *registration;
    Place {
        receiver: Receiver { key, own: coa.addr, capabilities: CAPABILITIES },
        group,
        max_datagram: max_datagram(registration),
    }
}

fn ip_overhead(address: SocketAddr) -> usize {
    match address {
        SocketAddr::V4(_) => UDP_OVERHEAD_V4,
        SocketAddr::V6(_) => UDP_OVERHEAD_V6,
    }
}

/// Longest datagram that the underlay's link takes.
fn max_datagram(registration: &Registration) -> usize {
    let link = usize::try_from(registration.underlay_mtu).unwrap_or(usize::MAX);
    link.saturating_sub(ip_overhead(registration.coa.addr)).min(MAX_MESSAGE_LEN)
}
