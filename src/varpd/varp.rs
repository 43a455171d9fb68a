//! VARP on the underlay: the sockets, and the messages that they receive and send.
//!
//! varpd receives messages in batches into memory that it reuses, and sends them in batches. A turn
//! of the loop takes one batch from each socket, so a flood at one socket does not starve the other
//! sockets, clients and timers.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use crate::metrics::{VarpdCounter, VarpdCounters};
use crate::quiet::QuietEach;
use crate::security::handshake::token::TokenKey;
use crate::sys::iovec::IoVec;
use crate::sys::{mmsg, sockopt};
use crate::time::Instant;
use crate::underlay::classes::Class;
use crate::underlay::sockets::{self, BeaconSockets, Opener, VarpSockets};
use crate::wire::{VnetId, handshake, hello, varp};

use super::{VarpdError, failed};

/// Room for a message, in bytes: more than the longest one, so that a message that is too long is
/// recognized.
const ROOM: usize = 1280;
const _: () = assert!(ROOM > varp::MAX_LEN && ROOM > handshake::MAX_LEN && ROOM > hello::MAX_LEN);
/// Most messages received from one socket in a turn: a flood must not starve the clients.
const BUDGET: usize = 64;
/// Interval between readings of the kernel's drop counters.
const LOOK: Duration = Duration::from_secs(1);

/// Received messages.
pub(super) type Batch = mmsg::Arrivals<ROOM, BUDGET>;

/// The socket that a message arrived at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Via {
    /// Sent to this host's address.
    Unicast(Class),
    /// Sent to the group.
    Group,
    /// Sent to a default group that is not this host's, by the number of the socket.
    Beacon(u8),
}

impl Via {
    /// All sockets, the most useful first.
    pub(super) const ALL: [Self; 8] = [
        Self::Unicast(Class::Answer),
        Self::Unicast(Class::Handshake),
        Self::Group,
        Self::Unicast(Class::Question),
        Self::Unicast(Class::Hello),
        Self::Unicast(Class::Newcomer),
        Self::Beacon(0),
        Self::Beacon(1),
    ];

    /// Whether it was sent to a group.
    pub(super) const fn is_group(self) -> bool {
        !matches!(self, Self::Unicast(_))
    }
}

/// A counter of varpd, and the last reading of the kernel's counter for it.
#[derive(Debug)]
struct Drops {
    counter: VarpdCounter,
    seen: u32,
}

/// The VARP sockets.
#[derive(Debug)]
pub(super) struct Varp {
    unicast: VarpSockets,
    group: UdpSocket,
    beacons: BeaconSockets,
    address: IpAddr,
    /// Address and port of the group.
    pub(super) group_address: SocketAddr,
    token_key: TokenKey,
    /// The vnets whose questions to the group pass the filter.
    vnets: BTreeSet<VnetId>,
    /// Memory for a batch; `None` while the daemon handles the messages in it.
    batch: Option<Batch>,
    /// Messages to send at the end of the turn.
    outbox: Vec<(SocketAddr, Vec<u8>)>,
    /// The drops of each class's socket, in the order of the classes, then of the socket for
    /// messages of no class.
    drops: Vec<Drops>,
    look_at: Instant,
    /// Limits the log lines about each kind of failure.
    quiet: QuietEach<&'static str>,
}

impl Varp {
    /// Opens the sockets.
    pub(super) fn open(
        opener: &Opener,
        group: IpAddr,
        token_key: TokenKey,
        has_beacons: bool,
    ) -> Result<Self, VarpdError> {
        let (address, port) = (opener.site().address, opener.site().port);
        let wrong = |ip| {
            let at = SocketAddr::new(ip, port);
            move |e: io::Error| match e.kind() {
                io::ErrorKind::AddrInUse => VarpdError::PortInUse(at),
                io::ErrorKind::ResourceBusy => VarpdError::PortOfAnother(port),
                _ => failed(format!("open the VARP socket at {at}"))(e),
            }
        };
        let counter = |class| match class {
            Class::Newcomer => VarpdCounter::handshake_drop_overflow,
            Class::Answer | Class::Handshake | Class::Question | Class::Hello => {
                VarpdCounter::varp_drop_overflow
            }
        };
        let counters = Class::ALL.map(counter).into_iter().chain([VarpdCounter::varp_drop_foreign]);
        let group_address = SocketAddr::new(group, port);
        Ok(Self {
            unicast: opener.varp_unicast(token_key).map_err(wrong(address))?,
            group: opener.varp_group(group).map_err(wrong(group))?,
            beacons: match has_beacons {
                true => opener.beacons(group_address),
                false => BeaconSockets::default(),
            },
            address,
            group_address,
            token_key,
            vnets: BTreeSet::new(),
            batch: Some(Batch::default()),
            outbox: Vec::with_capacity(BUDGET),
            drops: counters.map(|counter| Drops { counter, seen: 0 }).collect(),
            look_at: Instant::ZERO,
            quiet: QuietEach::new(1),
        })
    }

    /// The socket for such messages, if there is one.
    pub(super) fn socket(&self, via: Via) -> Option<&UdpSocket> {
        match via {
            Via::Unicast(class) => self.unicast.of(class).or(Some(self.unicast.junk())),
            Via::Group => Some(&self.group),
            Via::Beacon(number) => self.beacons.listening().get(usize::from(number)),
        }
    }

    /// The groups that beacons can be sent to.
    pub(super) fn beacon_groups(&self) -> &[SocketAddr] {
        self.beacons.groups()
    }

    /// Moves the sockets from the interface with index `before` to the site's interface. Opens new
    /// sockets for beacons.
    pub(super) fn rejoin(&mut self, opener: &Opener, before: u32) -> io::Result<()> {
        let sockets = (&self.unicast, &self.group);
        opener.rejoin_varp(sockets, self.group_address.ip(), before)?;
        if !self.beacons.groups().is_empty() {
            // The new sockets can't be opened while the old ones are open.
            self.beacons = BeaconSockets::default();
            self.beacons = opener.beacons(self.group_address);
        }
        Ok(())
    }

    /// Receives messages that wait, up to a batch. Return the batch with [`Varp::give_back`].
    pub(super) fn receive(&mut self, via: Via, counters: &VarpdCounters) -> Option<Batch> {
        let mut batch = self.batch.take().unwrap_or_default();
        // An error may stem from an ICMP message about an earlier datagram; reading clears it.
        let received = self.socket(via).map(|socket| batch.receive(socket.as_fd()));
        if received.is_none_or(|received| received.is_err()) {
            self.batch = Some(batch);
            return None;
        }
        counters.add(VarpdCounter::varp_rx, batch.len() as u64);
        Some(batch)
    }

    /// Takes back the memory of a batch.
    pub(super) fn give_back(&mut self, batch: Batch) {
        self.batch = Some(batch);
    }

    /// Gives INITs with tokens of this key a queue of their own from now on.
    pub(super) fn sort_by(&mut self, token_key: TokenKey, now: Instant) {
        if token_key == self.token_key {
            return;
        }
        match self.unicast.sort(self.address, token_key) {
            Ok(()) => self.token_key = token_key,
            Err(e) => {
                let level = self.quiet.level("sort", now);
                log::log!(level, "can't sort what comes to the VARP port, and try again: {e}");
            }
        }
    }

    /// Lets only questions about these vnets pass the filter. Returns false if the caller has to
    /// try again.
    #[must_use]
    pub(super) fn hear_questions(&mut self, vnets: BTreeSet<VnetId>, now: Instant) -> bool {
        if vnets == self.vnets {
            return true;
        }
        match sockets::hear_questions(&self.group, &vnets) {
            Ok(()) => self.vnets = vnets,
            Err(e) => {
                let level = self.quiet.level("filter", now);
                log::log!(level, "can't filter questions, and try again: {e}");
                return false;
            }
        }
        true
    }

    /// Counts the kernel's drops, at most once per [`LOOK`] unless `at_once`.
    pub(super) fn count_drops(&mut self, at_once: bool, now: Instant, counters: &VarpdCounters) {
        if !at_once && now < self.look_at {
            return;
        }
        self.look_at = now + LOOK;
        let sockets = Class::ALL.map(|class| self.unicast.of(class)).into_iter().flatten();
        let sockets = sockets.chain([self.unicast.junk()]);
        for (socket, drops) in sockets.zip(&mut self.drops) {
            let Ok(all) = sockopt::drops(socket) else { continue };
            let more = all.wrapping_sub(std::mem::replace(&mut drops.seen, all));
            counters.add(drops.counter, more.into());
        }
    }

    /// Sends a beacon. A host may have no address of the other family, so a failure there is only
    /// counted.
    pub(super) fn send_beacon(
        &mut self,
        to: SocketAddr,
        bytes: Vec<u8>,
        now: Instant,
        counters: &VarpdCounters,
    ) {
        if to.is_ipv4() == self.address.is_ipv4() {
            return self.send_bytes(to, bytes, now, counters);
        }
        counters.inc(VarpdCounter::varp_tx);
        if let Err(e) = self.beacons.send(to, &bytes) {
            counters.inc(VarpdCounter::varp_tx_failed);
            log::debug!("can't send a beacon to {to}: {e}");
        }
    }

    /// Sends a message of any kind, at the end of the turn at the latest.
    pub(super) fn send_bytes(
        &mut self,
        to: SocketAddr,
        bytes: Vec<u8>,
        now: Instant,
        counters: &VarpdCounters,
    ) {
        self.outbox.push((to, bytes));
        if self.outbox.len() >= BUDGET {
            self.flush(now, counters);
        }
    }

    /// Sends the messages that wait.
    pub(super) fn flush(&mut self, now: Instant, counters: &VarpdCounters) {
        if self.outbox.is_empty() {
            return;
        }
        let parts: Vec<[IoVec<'_>; 1]> =
            self.outbox.iter().map(|(_, bytes)| [IoVec::from_slice(bytes)]).collect();
        let all = self.outbox.iter().zip(&parts);
        let all = all.map(|(&(to, _), parts)| mmsg::Message { to, parts, segment: 0 });
        let messages: Vec<mmsg::Message<'_>> = all.collect();
        counters.add(VarpdCounter::varp_tx, messages.len() as u64);
        let mut rest = messages.as_slice();
        let socket = self.unicast.of(Class::Answer).unwrap_or(self.unicast.junk()).as_fd();
        while let Some(first) = rest.first() {
            let sent = mmsg::send(socket, rest).unwrap_or_else(|e| {
                counters.inc(VarpdCounter::varp_tx_failed);
                let level = self.quiet.level("send", now);
                log::log!(level, "can't send VARP to {}: {e}", first.to);
                1
            });
            rest = rest.get(sent.max(1)..).unwrap_or_default();
        }
        self.outbox.clear();
    }
}
