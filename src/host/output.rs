//! The effects that [`Host`](super::Host) asks its shell to carry out, and what the shell reports
//! back.
//!
//! Both are plain data that can be compared and recorded: the same list of inputs gives the same
//! outputs again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::config::Config;
use crate::mapper::LocalVif;
use crate::security::keyfile::KeyFile;
use crate::wire::control::{Cell, Column, Event};
use crate::wire::{Mac, VnetId};

use super::admission::Admission;
use super::clients::{ClientId, Door, Peer};
use super::site::{Interface, Place};

/// Rows of a table: the cells of each.
pub type Rows = Vec<Vec<Cell>>;

/// An input: an event, or the result of an output.
#[derive(Clone, Debug)]
pub enum Input {
    /// The time of [`Host::poll_timeout`](super::Host::poll_timeout) has come.
    Timeout,
    /// A datagram has arrived at a socket for VARP.
    Datagram {
        /// The source address.
        from: SocketAddr,
        /// The destination was a multicast group.
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
        /// The message exceeded the longest one allowed, and was cut.
        is_cut: bool,
        /// Number of descriptors that the message carries. The shell holds them until it has
        /// carried out all that follows, and closes those that no output has used.
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
    /// A process that was bound to a vif ([`Output::Bind`]) has ended.
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
        /// The source addresses of the frames.
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
        /// Interfaces, addresses or routes may have changed.
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
        /// The MTU of its interface in bytes, or the reason for which the host could not move
        /// there.
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
        /// The duration of the suspension.
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

/// Sockets that a backend brought, and that the shell accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Brought {
    /// The address of the unicast sockets.
    pub address: SocketAddr,
    /// New group sockets replace those that the backend brought, since those are of other groups.
    pub has_new_groups: bool,
}

/// The reason for which the shell refused sockets that a backend brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// They are not usable as sockets of this vif.
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

/// An effect that the shell carries out.
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
        /// The descriptors to send along.
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
    /// Send the mapper's table to a client, a page at a time
    /// ([`Host::varp_page`](super::Host::varp_page)); then report [`Input::Taken`].
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
    /// Watch the process of a client, and report its end with [`Input::ProcessEnded`].
    Bind {
        /// The client.
        client: ClientId,
        /// The number of its process.
        pid: i32,
    },
    /// Open sockets for a vif, in place of any that it has; then report [`Input::Opened`].
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
    /// Take the descriptors of the client's message as the sockets of a vif; then report
    /// [`Input::Adopted`].
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
    /// Give the sockets of one vif to another.
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
    /// Bound the bytes that may wait in the sockets of a vif, since no backend reads them for a
    /// while.
    Bound {
        /// The vif.
        vif: LocalVif,
    },
    /// A backend reads the sockets of a vif again: undo [`Output::Bound`].
    Widen {
        /// The vif.
        vif: LocalVif,
    },
    /// Read the sockets of a vif, drop the frames that arrive, and report the senders with
    /// [`Input::Strayed`].
    Watch {
        /// The vif.
        vif: LocalVif,
    },
    /// Stop reading the sockets of a vif.
    Unwatch {
        /// The vif.
        vif: LocalVif,
    },
    /// Make a lane and hand it to both backends, first to the one that reads.
    Lane {
        /// The number of the lane.
        lane: u32,
        /// The side that writes.
        from: LaneEnd,
        /// The side that reads.
        to: LaneEnd,
    },
    /// Let only group messages about these vnets pass the filter of the VARP socket.
    Hear(BTreeSet<VnetId>),
    /// Read a key file and report it with [`Input::Key`]. If it is readable, also report its later
    /// changes.
    ReadKey {
        /// The vnet.
        vnet: VnetId,
        /// The file.
        path: PathBuf,
    },
    /// Report changes of this key file, which was read before, from now on.
    WatchKey {
        /// The vnet.
        vnet: VnetId,
        /// The file.
        path: PathBuf,
    },
    /// Check the key files for changes, and report each with [`Input::Key`].
    CheckKeys,
    /// List the interfaces; then report [`Input::Interfaces`].
    Look,
    /// Join the VARP groups at this place, which has the same address; then report
    /// [`Input::Placed`].
    Rejoin(Place),
    /// Join the groups of a vif at the host's place; then report [`Input::Rejoined`].
    RejoinVif {
        /// The vif.
        vif: LocalVif,
        /// The index of the interface at which it joined them before.
        before: u32,
    },
    /// Open the VARP sockets at this place, which has another address; then report
    /// [`Input::Placed`].
    Move(Place),
    /// Report this status to the service manager.
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
