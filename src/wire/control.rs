//! The control protocol: messages between varpd and its clients (backends, `vnet`) on a
//! `SOCK_SEQPACKET` Unix socket, one datagram each, at most [`MAX_LEN`] bytes.
//!
//! One connection of a backend carries one vif. varpd never waits for a client: a client that does
//! not read loses its connection.

use super::{CareOf, Mac, Stamp, VifKey};
use std::net::SocketAddr;

/// Version of this protocol.
pub const VERSION: u8 = 1;
/// Longest message, in bytes.
pub const MAX_LEN: usize = 16 * 1024;

/// From a backend or the operator's command to varpd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// First message of a backend: this connection is that of a vif.
    ///
    /// A backend that already has sockets (varpd was restarted) sends them along, group socket
    /// first, so that varpd learns its CoA and can keep duplicates.
    Register {
        /// The vif.
        key: VifKey,
        /// What its receiver understands.
        capabilities: super::Capabilities,
        /// Number of queue pairs, 1 to 16: so many unicast sockets are wanted.
        queue_pairs: u8,
        /// Whether the guest's rings run: the vif is claimed and announced at once.
        active: bool,
        /// The stamp of the claim that an earlier varpd made for this backend, if any.
        stamp: Option<Stamp>,
    },
    /// The rings started (the guest has arrived: claim and announce), or stopped.
    SetActive {
        /// Whether they run now.
        active: bool,
    },
    /// Says that the guest is here now, again (SEND_RARP, gratuitous ARP): announce.
    Announce,
    /// Where is this MAC? Answered by [`Event::Mapping`] or [`Event::Unresolved`], some time later.
    Resolve {
        /// The MAC asked for, on the vif's own vnet.
        mac: Mac,
        /// An entry that is in use and soon expires: confirm by unicast first.
        refresh: bool,
    },
    /// Answer to [`Event::StatsRequest`]: named counters, in the order they are shown.
    Stats {
        /// Repeats the request's number.
        xid: u32,
        /// Name and value.
        values: Vec<(String, u64)>,
    },
    /// The operator asks for a table; answered by [`Event::Row`]s and one [`Event::End`].
    Show {
        /// Which.
        table: Table,
    },
    /// Forget cached mappings (all, of one vnet, or one), tell their users. Answered by `End`.
    Flush {
        /// Only this vnet.
        vnet: Option<super::VnetId>,
        /// Only this MAC.
        mac: Option<Mac>,
    },
}

/// Tables that the operator can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// vnets that have vifs here.
    Vnets,
    /// Local vifs.
    Vifs,
    /// The mapper's cache.
    Varp,
    /// Counters of varpd and of every vif.
    Stats,
}

/// From varpd to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The vif is registered. Carries the sockets, group socket first, then one unicast socket per
    /// queue pair, unless the backend sent its own.
    Registered {
        /// Where the vif is reached.
        coa: CareOf,
        /// Where group frames are sent to.
        group: SocketAddr,
        /// MTU of the underlay link in bytes (outer IP packet).
        underlay_mtu: u32,
    },
    /// The vif's claim now has this stamp.
    Claimed {
        /// To be repeated in [`Request::Register`] after a restart of varpd.
        stamp: Stamp,
    },
    /// The vif's claim lost against a newer one: the guest now lives behind `coa`.
    Lost {
        /// Stamp of the newer claim.
        stamp: Stamp,
        /// Its care-of address.
        coa: CareOf,
    },
    /// A resolved, refreshed or moved mapping.
    Mapping {
        /// MAC on the vif's vnet.
        mac: Mac,
        /// Where it is.
        coa: CareOf,
        /// Stamp of the owner's claim.
        stamp: Stamp,
        /// How long the mapping may be used, in milliseconds.
        lifetime_ms: u32,
    },
    /// Nobody answers for the MAC.
    Unresolved {
        /// The MAC.
        mac: Mac,
        /// How long to drop frames to it before asking again, in milliseconds.
        hold_ms: u32,
    },
    /// The mapping is no longer known: ask again before use.
    Invalidate {
        /// The MAC.
        mac: Mac,
    },
    /// Send your counters.
    StatsRequest {
        /// To be repeated in the answer.
        xid: u32,
    },
    /// A line of a table: cells as text, in the order of the table's columns.
    Row {
        /// The cells.
        cells: Vec<String>,
    },
    /// The request is done.
    End,
    /// The request failed; a backend's `Register` that failed ends the connection.
    Error {
        /// What kind of failure.
        code: ErrorCode,
        /// One line for people.
        text: String,
    },
}

/// Kinds of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    /// The message is malformed or out of place.
    Invalid,
    /// Not for this client.
    Denied,
    /// Nothing of that name.
    NotFound,
    /// A bound is reached.
    Limit,
    /// varpd could not do it (system error).
    Failed,
}
