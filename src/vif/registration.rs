//! The registration of a vif with varpd: the exchange, and what follows from the answer (the guest's MTU,
//! the workers' place on the underlay).

use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use socket2::Socket;

use crate::policy::{Level, Policy};
use crate::sys::mmsg::MAX_MESSAGE_LEN;
use crate::sys::seqpacket::Connection;
use crate::tunnel::endpoint::Place;
use crate::tunnel::rx::Receiver;
use crate::underlay::groups::{self, Groups};
use crate::underlay::sockets;
use crate::underlay::udp::UdpUnderlay;
use crate::vif::link::{CAPABILITIES, Link};
use crate::vif::serve::{ServeError, doing};
use crate::wire::control::{self, ErrorCode, Event, Request};
use crate::wire::{CareOf, ParseError, VifKey, encap, esp, frame};

/// What varpd says of a new vif, and its sockets.
pub(super) struct Registration {
    /// Where the vif is reached.
    pub(super) coa: CareOf,
    /// Where its group frames go.
    pub(super) group: SocketAddr,
    /// Longest IP packet that the underlay's link takes, in bytes.
    pub(super) underlay_mtu: u32,
    /// The vnet's policy.
    pub(super) policy: Policy,
    /// The sockets of each queue pair; none if the backend had brought its own.
    pub(super) underlays: Vec<UdpUnderlay>,
    /// The group sockets to take instead of those that the backend had brought, if the vnet's groups are others.
    pub(super) groups: Option<Groups>,
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
    let messages = [(&Link::hello().emit()[..], &[][..]), (&request.emit()[..], sockets)];
    varpd.send_all(&messages).map_err(doing("cannot write to varpd"))?;
    let mut buffer = vec![0; control::MAX_LEN];
    loop {
        let in_time = varpd.wait_readable(timeout).map_err(doing("cannot wait for varpd"))?;
        if !in_time {
            return Err(ServeError::Silent { awaited: "answer to the registration", timeout });
        }
        let received = varpd.recv(&mut buffer).map_err(doing("cannot read from varpd"))?;
        let bytes = buffer.get(..received.len).unwrap_or_default();
        match (Event::parse(bytes), bytes.first()) {
            (_, None) => return Err(ServeError::refused_for_now("it closed the connection")),
            (Ok(Event::Hello { features, software }), _) => {
                log::debug!("varpd is {software:?}, {features:?}");
            }
            (Ok(event), _) => {
                return registration(event, received.fds, sockets.is_empty(), queue_pairs);
            }
            (Err(ParseError::Version), Some(&version)) => {
                return Err(ServeError::OtherVersion { version });
            }
            (Err(error), _) => return Err(ServeError::Protocol(error.to_string())),
        }
    }
}

/// What varpd says of a vif; `with_sockets`: all come along, otherwise at most those of groups.
pub(super) fn registration(
    event: Event,
    fds: Vec<OwnedFd>,
    with_sockets: bool,
    queue_pairs: u8,
) -> Result<Registration, ServeError> {
    match event {
        Event::Registered { coa, group, underlay_mtu, policy } => {
            let (mut underlays, mut groups) = (Vec::new(), None);
            if with_sockets {
                underlays = underlays_from(fds, queue_pairs)?;
            } else if !fds.is_empty() {
                groups = Some(groups_from(fds)?);
            }
            Ok(Registration { coa, group, underlay_mtu, policy, underlays, groups })
        }
        Event::Error { code, text } => {
            Err(ServeError::Refused { why: text, is_lasting: code == ErrorCode::Denied })
        }
        other => Err(ServeError::Protocol(format!("{other:?}"))),
    }
}

/// One underlay per queue pair; the first also has the group sockets, each of several one to send
/// from.
fn underlays_from(fds: Vec<OwnedFd>, queue_pairs: u8) -> Result<Vec<UdpUnderlay>, ServeError> {
    let sorted = sockets::sort(fds, queue_pairs);
    let sorted = sorted.map_err(|error| ServeError::Protocol(error.to_string()))?;
    let groups = sorted.groups.into_iter().map(OwnedFd::from).collect();
    let mut groups = Some(groups_from(groups)?);
    let mut senders = sorted.senders.into_iter().map(OwnedFd::from);
    let underlay = |own: Socket| {
        UdpUnderlay::new(own.into(), groups.take().unwrap_or_default(), senders.next())
    };
    Ok(sorted.own.into_iter().map(underlay).collect())
}

fn groups_from(sockets: Vec<OwnedFd>) -> Result<Groups, ServeError> {
    match sockets.len() {
        1..=groups::MOST => Groups::new(sockets).map_err(doing("cannot poll the group's sockets")),
        wrong => Err(wrong_count(wrong)),
    }
}

fn wrong_count(count: usize) -> ServeError {
    ServeError::Protocol(format!("{count} sockets came along"))
}

/// The MTU that guests are told, in bytes: the underlay's less the tunnel's headers, or what the
/// operator asks for (`wanted`). `least` is the least policy that the backend serves.
///
/// # Errors
/// [`ServeError::Mtu`] if the operator asks for more than fits.
pub(super) fn guest_mtu(
    wanted: Option<u16>,
    registration: &Registration,
    least: Level,
) -> Result<u16, ServeError> {
    let most = longest_packet(registration, least);
    match wanted {
        Some(wanted) if wanted > most => Err(ServeError::Mtu { wanted, most }),
        Some(wanted) => Ok(wanted),
        None => Ok(most),
    }
}

/// The longest packet of a guest that fits a datagram, in bytes: sealed, if the vnet's policy has keys or is to
/// have (`least`).
pub(super) fn longest_packet(registration: &Registration, least: Level) -> u16 {
    let datagram = match max_datagram(registration) {
        sealed if registration.policy.is_secured() || least.is_secured() => {
            esp::payload_room(sealed)
        }
        plain => plain,
    };
    let most = datagram.saturating_sub(encap::LEN + frame::HEADER_LEN);
    u16::try_from(most).unwrap_or(u16::MAX)
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

/// Longest datagram (UDP payload) that the underlay's link takes, in bytes.
fn max_datagram(registration: &Registration) -> usize {
    let link = usize::try_from(registration.underlay_mtu).unwrap_or(usize::MAX);
    let outer = encap::outer_len(registration.coa.addr.ip());
    link.saturating_sub(outer).min(MAX_MESSAGE_LEN)
}
