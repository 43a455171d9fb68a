//! The control protocol: messages between varpd and its clients (backends, `vnet`) on a
//! `SOCK_SEQPACKET` Unix socket, one datagram each, at most [`MAX_LEN`] bytes.
//!
//! One connection of a backend carries one vif. varpd never waits for a client: a client that does
//! not read loses its connection.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +---------------+---------------+-------------------------------+
//! |  version = 2  |     type      |       reserved, MBZ           |
//! +---------------+---------------+-------------------------------+
//! |  xid: STATS and STATS-REQUEST; all others MBZ                 |
//! +---------------------------------------------------------------+
//! |  body, by type ...
//!
//! type  request     body                   type  event          body
//!    1  REGISTER    see below               129  REGISTERED     coa, address (group), mtu (32),
//!                                                              policy
//!    2  SET-ACTIVE  active (8, 0 or 1)      130  CLAIMED        mac (48), stamp (64)
//!    3  ANNOUNCE    -                       131  LOST           mac, stamp, coa, lifetime
//!    4  RESOLVE     mac (48), refresh (8)   132  MAPPING        mac, coa, stamp, lifetime ms (32)
//!    5  STATS       n (16), n x {name,      133  UNRESOLVED     mac (48), hold ms (32)
//!                   kind (8), unit,         134  INVALIDATE     mac (48)
//!                   value (64)}
//!    6  SHOW        table (8)               135  STATS-REQUEST  -
//!    7  FLUSH       flags (8: 1 vnet,       136  ROW            n (16), n x cell
//!                   2 mac), reserved (8),   137  END            -
//!                   mac (48), vnet (32)     138  ERROR          code (8), text
//!    8  LATE        mac (48), address       139  REFUSED        mac (48), hold ms (32)
//!    9  LEARN       n (16), n x {mac,       140  LANE           see below
//!                   flags (8: 1 stamp),     141  CLOSE-LANE     lane (32)
//!                   stamp (64)}
//!   10  FORGET      n (16), n x mac (48)   142  GROUP-LONGEST  length (16), reserved (16)
//!   11  MONITOR     -
//!   12  LANE-CLOSED lane (32)
//!   13  HELLO       features (64), text     143  HELLO          features (64), text
//!                                           144  COLUMNS        n (16), n x {name, unit,
//!                                                              flags (8: 1 numbers, 2 detail)}
//!   32  SA-NEEDED   address                 160  GROUP-KEYS     salt (16), end s (32), n (16),
//!   33  SA-READY    number (32)                                n x {suite, key (256)}
//!                                           161  SA-OUT         address, suite, lifetime ms (32),
//!                                                              hard end s (32), n (16), n x
//!                                                              {spi (32), key (256), salt (32)}
//!                                           162  SA-IN          n (16), n x {suite, number (32),
//!                                                              lifetime ms (32), hard end s (32),
//!                                                              key (256)}
//!                                           163  SA-END         number (32)
//!
//! REGISTER
//! +---------------------------------------------------------------+
//! |                           vnet id (32)                        |
//! +---------------------------------------------------------------+
//! |                           mac (48)                            |
//! +                               +---------------+---------------+
//! |                               |  queue pairs  |   flags   |S|A|   A: active, S: stamp is valid
//! +-------------------------------+---------------+---------------+
//! |       capabilities (16)       |  MACs that it learns (16)     |
//! +-------------------------------+-------------------------------+
//! |                 stamp (64), zero without S                    |
//! |                                                               |
//! +---------------+---------------+-------------------------------+
//! |  least level  |  lowest had   |  reserved, MBZ                |
//! +---------------+---------------+-------------------------------+
//!
//! LANE
//! +---------------------------------------------------------------+
//! |                           lane (32)                           |
//! +---------------+---------------+-------------------------------+
//! |  queue pair   |   flags     |R|  mac (48), of the vif at the  |   R: the lane is to be read,
//! +---------------+---------------+                               +   otherwise it is written
//! |  other end                                                    |
//! +---------------------------------------------------------------+
//! |  address, at which that vif is reached ...
//!
//! coa
//! +---------------+---------------+-------------------------------+
//! |    kinds      | reserved, MBZ |       capabilities (16)       |
//! +---------------+---------------+-------------------------------+
//! |     longest datagram (16)     |      reserved, MBZ (16)       |
//! +-------------------------------+-------------------------------+
//! |  then an address                                              |
//!
//! address
//! +---------------+---------------+-------------------------------+
//! | family 4 or 6 | reserved, MBZ |           port (16)           |
//! +---------------+---------------+-------------------------------+
//! |  IP address (128); an IPv4 address is followed by 12 zeros    |
//! |  ...                                                          |
//! +---------------------------------------------------------------+
//!
//! text, name, unit: length in bytes (16), UTF-8
//! kind: 1 counter, 2 gauge
//! cell: type (8), value: 0 nothing; 1 text; 2 number (64); 3 number, a lower bound (64);
//!       4 span of time, us (64); 5 difference of clocks, ms (64, signed);
//!       6 time, ms since 1970 (64); 7 mac (48); 8 address
//! level: 0 none, 1 auth, 2 conf
//! policy: level for sending (8), set of accepted levels (8; bit 1 << level), reserved (16)
//! suite (8), reserved (8): 1 AES-256-GCM, 2 AES-256-GMAC, 3 ChaCha20-Poly1305
//! ```
//!
//! REGISTER and REGISTERED carry descriptors (`SCM_RIGHTS`): one or two group sockets, one
//! unicast socket per queue pair, and, if there are several pairs, one sending socket for each, in
//! any order: `underlay::sockets` says how both sides tell them apart.
//! LANE carries two: the lane's memory, then a socket. If REGISTER carried sockets, the REGISTERED
//! that answers it carries none, or only new group sockets if the vnet's groups have changed. Each
//! side closes all other descriptors that it receives.
//!
//! The first message of each side is HELLO: its features beyond this version, one bit each
//! ([`Features`]), and its software, for display. A client need not wait for varpd's HELLO before
//! it sends further messages. varpd answers a client of another version with an ERROR, and likewise
//! one that sends another message before HELLO. A side uses a feature only if both sides have it,
//! and ignores unknown bits. varpd sends LANE and CLOSE-LANE only to backends with the feature
//! `LANES`; only a backend that received the LANE sends LANE-CLOSED.
//!
//! varpd answers SHOW with COLUMNS, a ROW for each row of the table, and END. It answers MONITOR
//! with COLUMNS and END, and then sends a ROW for each event. In `vnet show stats`, the other cells
//! of a row distinguish numbers of the same name.

mod codec;
mod features;
mod keys;
mod row;
#[cfg(test)]
mod tests;

pub use features::Features;
pub use keys::{Lifetime, ReceiverKey, SenderKeys};
pub use row::{Cell, Column, Kind, MAX_CELL, MAX_CELLS, MAX_NAME, MAX_UNIT, Sample};

use super::{CareOf, Longest, Mac, Stamp, VifKey};
use crate::policy::{Floor, Policy, Suite};
use crate::secret::Secret;
use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::Duration;

/// Version of this protocol.
pub const VERSION: u8 = 2;
/// Longest message, in bytes.
pub const MAX_LEN: usize = 16 * 1024;
/// Length of the header, in bytes.
pub const HEADER_LEN: usize = 8;
/// Most queue pairs of a vif.
pub const MAX_QUEUE_PAIRS: u8 = 16;
/// Most groups that a vif listens at.
pub const MAX_GROUPS: usize = 2;
/// Most descriptors in a message: those of groups, and two sockets per queue pair.
pub const MAX_FDS: usize = MAX_GROUPS + 2 * MAX_QUEUE_PAIRS as usize;
/// Most counters in [`Request::Stats`].
pub const MAX_VALUES: usize = 128;
/// Most MACs in [`Request::Learn`] and [`Request::Forget`], and behind a vif.
pub const MAX_MACS: usize = 256;
/// Longest name of a software, in bytes.
pub const MAX_SOFTWARE: usize = 64;
/// Most keys in [`Event::GroupKeys`]: for each policy that has keys, one that is used and one that
/// is also accepted.
pub const MAX_GROUP_KEYS: usize = 4;
/// Most keys in [`Event::SaIn`].
pub const MAX_INBOUND: usize = 256;
/// Longest text of an error, in bytes.
pub const MAX_ERROR_TEXT: usize = 1024;

/// The name of a program of this release in its HELLO.
pub fn software(program: &str) -> String {
    format!("{program} {}", env!("CARGO_PKG_VERSION"))
}

/// From a backend or the operator's command to varpd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// First message of every client.
    Hello {
        /// The client's features beyond this version.
        features: Features,
        /// The client's name and version, for display.
        software: String,
    },
    /// A backend's next message: registers a vif on this connection.
    ///
    /// A backend that already has sockets (varpd was restarted) attaches them, so that varpd learns
    /// its CoA and can keep duplicates. If they do not fit varpd's configuration, the answer is
    /// [`ErrorCode::Invalid`]; without them the vif gets a new CoA.
    Register {
        /// The vif.
        key: VifKey,
        /// The capabilities of its receiver.
        capabilities: super::Capabilities,
        /// Number of queue pairs, 1 to 16, each of which needs a unicast socket.
        queue_pairs: u8,
        /// Whether the guest's rings run: varpd then claims and announces the vif at once.
        active: bool,
        /// The stamp of the claim that an earlier varpd made for this backend, if any.
        stamp: Option<Stamp>,
        /// The most MACs that the backend learns ([`Request::Learn`]). As long as the process
        /// lives, varpd permits no more than it declared first.
        learn: u16,
        /// The least policy under which the backend carries frames. If the vnet's policy is
        /// lower, varpd does not claim the vif until the backend registers anew.
        floor: Floor,
    },
    /// The rings have started (the guest has arrived: claim and announce the vif), or stopped.
    SetActive {
        /// Whether they run now.
        active: bool,
    },
    /// The guest has announced itself (SEND_RARP, gratuitous ARP): announce the vif again.
    Announce,
    /// Resolve a MAC. varpd answers [`Event::Mapping`] or [`Event::Unresolved`], some time later.
    Resolve {
        /// The MAC, on the vif's own vnet.
        mac: Mac,
        /// Whether the backend uses an entry that soon expires: confirm it by unicast first.
        refresh: bool,
    },
    /// Answer to [`Event::StatsRequest`]: counters, in the order in which they are shown.
    Stats {
        /// Repeats the request's number.
        xid: u32,
        /// The counters.
        samples: Vec<Sample>,
    },
    /// On a secured vnet, agree on another session with the host at this address: it sent packets
    /// of an unknown session, or the keys for it have sealed nearly as many packets as they may.
    SaNeeded {
        /// The address of a vif on that host; only the IP address matters.
        address: SocketAddr,
    },
    /// The backend now accepts packets of a session: answers [`Event::SaIn`], for each key in it.
    SaReady {
        /// As in [`Event::SaIn`].
        number: u32,
    },
    /// A frame arrived for a MAC that this vif has lost: correct its sender's host.
    Late {
        /// The MAC.
        mac: Mac,
        /// The source of the frame's datagram.
        sender: SocketAddr,
    },
    /// The guest sends from these MACs, too: claim them for this vif. varpd answers
    /// [`Event::Claimed`], [`Event::Lost`] or [`Event::Refused`] for each.
    Learn {
        /// Each with the stamp of the claim that an earlier varpd made for it, if any.
        macs: Vec<(Mac, Option<Stamp>)>,
    },
    /// The guest no longer sends from these MACs.
    Forget {
        /// The MACs.
        macs: Vec<Mac>,
    },
    /// Show events to the operator. varpd answers [`Event::Columns`] and [`Event::End`], and then
    /// sends an [`Event::Row`] for each event until the client disconnects.
    Monitor,
    /// Show a table to the operator. varpd answers [`Event::Columns`], [`Event::Row`]s and one
    /// [`Event::End`].
    Show {
        /// The table.
        table: Table,
    },
    /// Forget cached mappings (all, those of one vnet, or one). varpd answers [`Event::End`].
    Flush {
        /// Only this vnet.
        vnet: Option<super::VnetId>,
        /// Only this MAC.
        mac: Option<Mac>,
    },
    /// A lane came to its end at this side: the other side was gone, or broke its rules.
    LaneClosed {
        /// Its number.
        lane: u32,
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
    /// The hosts with which keys are agreed on.
    Peers,
    /// The hosts that tell of themselves.
    Hosts,
}

/// From varpd to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Answers [`Request::Hello`].
    Hello {
        /// What varpd has beyond this version.
        features: Features,
        /// Its name and version, for people.
        software: String,
    },
    /// The vif is registered. Carries its sockets. If the backend sent its
    /// own, those of groups alone, where its own are of others, or none.
    Registered {
        /// The vif's care-of address.
        coa: CareOf,
        /// The destination of group frames.
        group: SocketAddr,
        /// MTU of the underlay link in bytes (outer IP packet).
        underlay_mtu: u32,
        /// The vnet's policy.
        policy: Policy,
    },
    /// The keys of group frames on a secured vnet, from now on.
    GroupKeys {
        /// The salt of the first queue pair; the others have the next ones.
        salt: u16,
        /// The keys end when varpd has been away for this time.
        end: Duration,
        /// The accepted keys, each with its suite. The backend sends with the first one that
        /// belongs to the policy for sending.
        keys: Vec<(Suite, Secret)>,
    },
    /// The keys of packets to a care-of address on a secured vnet, from now on: one per queue pair,
    /// or none if the backend may no longer send there.
    SaOut {
        /// The care-of address.
        to: SocketAddr,
        /// The keys.
        keys: SenderKeys,
    },
    /// Keys of packets from other hosts on a secured vnet: accept these packets from now on.
    SaIn {
        /// The keys.
        keys: Vec<ReceiverKey>,
    },
    /// A session has ended: accept its packets no longer.
    SaEnd {
        /// As in [`Event::SaIn`].
        number: u32,
    },
    /// The vif's claim to a MAC now has this stamp.
    Claimed {
        /// The vif's own MAC, or one behind it ([`Request::Learn`]).
        mac: Mac,
        /// To be repeated in [`Request::Register`] after a restart of varpd.
        stamp: Stamp,
    },
    /// The vif's claim to a MAC lost to a newer one: the MAC is now at `coa`.
    Lost {
        /// The vif's own MAC, or one behind it.
        mac: Mac,
        /// Stamp of the newer claim.
        stamp: Stamp,
        /// Its care-of address.
        coa: CareOf,
        /// The time for which other hosts may still use the old claim, in milliseconds: forward
        /// frames for the MAC meanwhile.
        lifetime_ms: u32,
    },
    /// A resolved, refreshed or moved mapping.
    Mapping {
        /// MAC on the vif's vnet.
        mac: Mac,
        /// Its care-of address.
        coa: CareOf,
        /// Stamp of the owner's claim.
        stamp: Stamp,
        /// Validity of the mapping, in milliseconds.
        lifetime_ms: u32,
    },
    /// No host answers for the MAC.
    Unresolved {
        /// The MAC.
        mac: Mac,
        /// The time for which to drop frames to it before asking again, in milliseconds.
        hold_ms: u32,
    },
    /// The mapping is no longer valid: ask again before use.
    Invalidate {
        /// The MAC.
        mac: Mac,
    },
    /// varpd does not claim a MAC of [`Request::Learn`] for this vif: it is the own MAC of another
    /// vif, or a limit is reached.
    Refused {
        /// The MAC.
        mac: Mac,
        /// The time for which not to ask again, in milliseconds.
        hold_ms: u32,
    },
    /// From now on, send group frames in datagrams of at most this length.
    GroupLongest {
        /// The length of the IP packet, at least 1280; unknown: the most that the underlay link
        /// accepts.
        longest: Longest,
    },
    /// A lane to or from another vif of this host ([`crate::lane`]). Carries its memory and an end
    /// of a pair of sockets.
    Lane {
        /// Its number.
        lane: u32,
        /// The queue pair that writes or reads it.
        pair: u8,
        /// Whether this backend reads it; otherwise it writes it.
        is_read: bool,
        /// The vif at its other end.
        mac: Mac,
        /// That vif's address on the underlay.
        addr: SocketAddr,
    },
    /// End a lane: its writer sends new frames another way, and ends the lane once it is empty.
    CloseLane {
        /// Its number.
        lane: u32,
    },
    /// Send your counters.
    StatsRequest {
        /// The answer repeats it.
        xid: u32,
    },
    /// The columns of the rows that follow.
    Columns {
        /// From left to right.
        columns: Cow<'static, [Column]>,
    },
    /// A line of a table.
    Row {
        /// The cells, in the order of the columns.
        cells: Vec<Cell>,
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
    /// Not for this client, until a list, another setting or a key file has been changed.
    Denied,
    /// Nothing of that name.
    NotFound,
    /// A bound is reached.
    Limit,
    /// varpd could not do it (system error).
    Failed,
    /// Nothing has failed: something that the operator should know of. The connection goes on.
    Warning,
    /// Another client has it at this time.
    Taken,
}
