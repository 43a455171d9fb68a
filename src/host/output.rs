//! The effects that [`Host`](super::Host) asks its shell to carry out, and what the shell reports back.
//!
//! Both are plain data that can be compared and recorded: a host that is given a recorded list of inputs gives
//! the same outputs again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::config::Config;
use crate::mapper::LocalVif;
use crate::security::handshake::token::TokenKey;
use crate::security::keyfile::KeyFile;
use crate::wire::control::{Cell, Column, Event};
use crate::wire::{Mac, VifKey, VnetId};

use super::admission::Admission;
use super::clients::{ClientId, Door, Peer};
use super::site::{Interface, Place};

/// Rows of a table: the cells of each.
pub type Rows = Vec<Vec<Cell>>;

/// Something that has happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// Time has passed: does what is due. [`Host::poll_timeout`](super::Host::poll_timeout) says when.
    Timeout,
    /// A datagram has arrived at a socket for VARP.
    Datagram {
        /// The source address.
        from: SocketAddr,
        /// It was sent to a group.
        is_group: bool,
        /// The payload.
        bytes: Vec<u8>,
    },
    /// A client has connected. Its number is never used again.
    Connected {
        /// The client.
        client: ClientId,
        /// The socket that it connected to.
        door: Door,
        /// Its process, as the kernel reports it.
        peer: Peer,
        /// The groups of its user, as the kernel reports them.
        groups: Vec<u32>,
    },
    /// A client has sent a message.
    Request {
        /// The client.
        client: ClientId,
        /// The message.
        bytes: Vec<u8>,
        /// It was longer than a message can be, and was cut.
        is_cut: bool,
        /// Number of descriptors that came along. The shell holds them until the next message of this client.
        descriptors: usize,
    },
    /// A connection has ended.
    Closed {
        /// The client.
        client: ClientId,
        /// The reason.
        why: Ending,
    },
    /// A client has taken all rows of a table.
    Taken {
        /// The client.
        client: ClientId,
    },
    /// A process that a vif was bound to ([`Output::Bind`]) has ended.
    ProcessEnded {
        /// Its number.
        pid: i32,
    },
    /// Answers [`Output::Open`]: the address of the sockets.
    Opened {
        /// The vif.
        vif: LocalVif,
        /// The address, or the reason for which there are no sockets.
        result: Result<SocketAddr, String>,
    },
    /// Answers [`Output::Adopt`].
    Adopted {
        /// The vif.
        vif: LocalVif,
        /// The sockets that the backend brought.
        result: Result<Brought, Rejected>,
    },
    /// Answers [`Output::Lane`] if the lane could not be made.
    LaneFailed {
        /// The lane.
        lane: u32,
        /// The vif that was to write to it.
        vif: LocalVif,
        /// The reason.
        error: String,
    },
    /// Frames have arrived at the sockets of a vif that has moved away ([`Output::Watch`]).
    Strayed {
        /// The vif.
        vif: LocalVif,
        /// Their senders.
        senders: Vec<SocketAddr>,
    },
    /// A key file was read, because of [`Output::ReadKey`] or because it has changed.
    Key {
        /// The vnet.
        vnet: VnetId,
        /// The keys, or the file's name and what is wrong with it.
        result: Result<KeyFile, String>,
    },
    /// The kernel reports that interfaces, addresses or routes may have changed.
    News {
        /// Something may have changed.
        any: bool,
        /// The underlay's interface was deleted, or may have been.
        is_deleted: bool,
    },
    /// Answers [`Output::Look`].
    Interfaces {
        /// The interfaces of the host, or the reason for which they are not known.
        result: Result<Vec<Interface>, String>,
        /// The time that it took to list them.
        took: Duration,
    },
    /// The default groups that beacons can be sent to from here.
    Beacons(Vec<SocketAddr>),
    /// The MTU of the underlay's interface in bytes; `None` if it could not be read.
    Mtu(Option<u32>),
    /// Answers [`Output::Rejoin`] and [`Output::Move`].
    Placed {
        /// The place.
        place: Place,
        /// The MTU of its interface in bytes, or the reason for which the host could not go there.
        result: Result<u32, String>,
    },
    /// Answers [`Output::RejoinVif`].
    Rejoined {
        /// The vif.
        vif: LocalVif,
        /// The reason for which it could not join its groups.
        result: Result<(), String>,
    },
    /// This host was suspended.
    Slept {
        /// The time for which it was.
        asleep: Duration,
        /// Secret randomness.
        seed: [u8; 32],
    },
    /// This machine was restored from a snapshot or cloned, or may have been.
    Restored {
        /// Secret randomness that no copy of the process has.
        seed: [u8; 32],
    },
    /// The operator has changed the configuration.
    Reconfigure {
        /// The new configuration.
        config: Box<Config>,
        /// The users and groups that it names.
        admission: Admission,
        /// The keys of [`Host::vnets_with_keys`](super::Host::vnets_with_keys).
        keys: BTreeMap<VnetId, KeyFile>,
    },
    /// The process ends.
    Leave,
}

/// The reason for which a connection has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The client has closed it.
    Gone,
    /// The client does not read.
    Stalled,
    /// The kernel reports this error.
    Failed(String),
}

/// Sockets that a backend brought, and that are what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Brought {
    /// The address of the unicast ones.
    pub address: SocketAddr,
    /// New sockets replace those of groups: the backend brought others.
    pub has_new_groups: bool,
}

/// Sockets that a backend brought, and that are not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// They are not what they should be.
    Wrong(String),
    /// A system call failed.
    Failed(String),
}

/// The descriptors that go with a message to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descriptors {
    /// None.
    Nothing,
    /// The group sockets of a vif.
    Groups(LocalVif),
    /// All sockets of a vif.
    All(LocalVif),
}

/// One side of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneEnd {
    /// The vif.
    pub vif: LocalVif,
    /// Its backend.
    pub client: ClientId,
    /// The queue pair that reads or writes.
    pub pair: u8,
    /// The MAC of the vif.
    pub mac: Mac,
    /// Its care-of address.
    pub addr: SocketAddr,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send this datagram from the host's VARP address.
    Send {
        /// The destination.
        to: SocketAddr,
        /// The payload.
        bytes: Vec<u8>,
    },
    /// Send this beacon to a default group, from an address of the group's family.
    SendBeacon {
        /// The destination.
        to: SocketAddr,
        /// The payload.
        bytes: Vec<u8>,
    },
    /// Send this message to a client.
    Tell {
        /// The client.
        client: ClientId,
        /// The message.
        event: Event,
        /// What goes with it.
        descriptors: Descriptors,
    },
    /// Send a table to a client, as fast as it takes the rows; then report [`Input::Taken`].
    Table {
        /// The client.
        client: ClientId,
        /// The columns.
        columns: &'static [Column],
        /// The rows.
        rows: Rows,
    },
    /// The same for the mapper's table, which is made a page at a time ([`Host::varp_page`](super::Host::varp_page)).
    Pages {
        /// The client.
        client: ClientId,
        /// The columns.
        columns: &'static [Column],
    },
    /// Show a row to a client, or count it as missed if too many wait for it.
    Show {
        /// The client.
        client: ClientId,
        /// The row.
        cells: Vec<Cell>,
    },
    /// Close a connection.
    Close {
        /// The client.
        client: ClientId,
    },
    /// Remember the process of a client, and report when it has ended.
    Bind {
        /// The client.
        client: ClientId,
        /// The number of its process.
        pid: i32,
    },
    /// Open sockets for a vif, in the place of those that it has.
    Open {
        /// The vif.
        vif: LocalVif,
        /// Its vnet.
        vnet: VnetId,
        /// The groups whose frames it receives.
        groups: Vec<IpAddr>,
        /// Number of its queue pairs.
        queue_pairs: u8,
    },
    /// Take the descriptors that came with the client's last message as the sockets of a vif.
    Adopt {
        /// The vif.
        vif: LocalVif,
        /// The client.
        client: ClientId,
        /// The vif's vnet.
        vnet: VnetId,
        /// The groups whose frames it receives.
        groups: Vec<IpAddr>,
        /// Number of its queue pairs.
        queue_pairs: u8,
    },
    /// The sockets of one vif are another's from now on.
    HandOver {
        /// The vif that has them.
        from: LocalVif,
        /// The vif that gets them.
        to: LocalVif,
    },
    /// Close the sockets of a vif.
    Drop {
        /// The vif.
        vif: LocalVif,
    },
    /// No backend reads the sockets of a vif for a while: bound what may wait there.
    Bound {
        /// The vif.
        vif: LocalVif,
    },
    /// A backend reads the sockets of a vif again: undo [`Output::Bound`].
    Widen {
        /// The vif.
        vif: LocalVif,
    },
    /// Read the sockets of a vif, drop what arrives and report the senders.
    Watch {
        /// The vif.
        vif: LocalVif,
    },
    /// Leave them alone again.
    Unwatch {
        /// The vif.
        vif: LocalVif,
    },
    /// Make a lane and hand it to both sides, first to the one that reads.
    Lane {
        /// The number of the lane.
        lane: u32,
        /// The side that writes.
        from: LaneEnd,
        /// The side that reads.
        to: LaneEnd,
    },
    /// Let group messages about these vnets through the filter of the VARP socket, and about no others.
    Hear(BTreeSet<VnetId>),
    /// INITs of handshakes with tokens of this key get a queue of their own.
    Sort(TokenKey),
    /// Read a key file and report it with [`Input::Key`]; from now on also when it has changed.
    ReadKey {
        /// The vnet.
        vnet: VnetId,
        /// The file.
        path: PathBuf,
    },
    /// Look after this key file from now on, which was read before.
    WatchKey {
        /// The vnet.
        vnet: VnetId,
        /// The file.
        path: PathBuf,
    },
    /// Look whether key files have changed.
    CheckKeys,
    /// List the interfaces.
    Look,
    /// Join the groups of VARP at this place, which has the same address.
    Rejoin(Place),
    /// Join the groups of a vif at the host's place.
    RejoinVif {
        /// The vif.
        vif: LocalVif,
        /// The index of the interface at which it has joined them.
        before: u32,
    },
    /// Open the sockets of VARP at this place, which has another address.
    Move(Place),
    /// Tell the service manager.
    Status(String),
    /// Write a line to the log.
    Log {
        /// Its level.
        level: log::Level,
        /// The line.
        text: String,
    },
}

impl Output {
    /// A message without descriptors.
    pub(super) fn tell(client: ClientId, event: Event) -> Self {
        Self::Tell { client, event, descriptors: Descriptors::Nothing }
    }
}

/// A vif in log lines.
pub(super) fn named(key: Option<VifKey>) -> String {
    key.map(|key| key.to_string()).unwrap_or_default()
}
