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
//! cell: type (8), value: 0 nothing; 1 text; 2 number (64); 3 number (64), or more; 4 span of time, us (64);
//!       5 difference of clocks, ms (64, signed); 6 time, ms since 1970 (64); 7 mac (48); 8 address
//! level: 0 none, 1 auth, 2 conf
//! policy: level (8) that is sent under, a bit (1 << level) for each that is accepted (8), reserved (16)
//! suite (8), reserved (8): 1 AES-256-GCM, 2 AES-256-GMAC, 3 ChaCha20-Poly1305
//! ```
//!
//! Descriptors (`SCM_RIGHTS`) travel with REGISTER and REGISTERED (the group sockets first, one or two, then one
//! unicast socket per queue pair, then, if there are several pairs, one for each to send from) and
//! with LANE (its memory, then a socket). REGISTERED that answers a REGISTER with sockets has none, or the
//! group sockets alone: then the vnet's groups are others than those that were brought. Any other descriptor is closed by whoever receives it.
//!
//! The first message of each side is HELLO: the features that it has beyond this version, one bit each ([`Features`]),
//! and its software, for people. A client need not wait for varpd's HELLO before it goes on. Who speaks another version is told so, and
//! a client that says anything before HELLO too. A side uses a feature only if both have it; unknown bits mean nothing.
//! LANE and CLOSE-LANE are sent only to backends with the feature `LANES`, and LANE-CLOSED only by those that were sent the LANE.
//!
//! SHOW is answered by COLUMNS, a ROW for each row of the table, and END; MONITOR by COLUMNS and END, then a ROW for each event.
//! A number in a row is told apart from others of its name by the other cells of the row.

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
/// Most descriptors in a message: two group sockets and two sockets per queue pair.
pub const MAX_FDS: usize = 2 + 2 * MAX_QUEUE_PAIRS as usize;
/// Most counters in [`Request::Stats`].
pub const MAX_VALUES: usize = 128;
/// Most MACs in [`Request::Learn`] and [`Request::Forget`].
pub const MAX_MACS: usize = 256;
/// Longest name of a software, in bytes.
pub const MAX_SOFTWARE: usize = 64;
/// Most keys in [`Event::GroupKeys`]: for each policy that has keys, one that is used and one that is
/// also accepted.
pub const MAX_GROUP_KEYS: usize = 4;
/// Most keys in [`Event::SaIn`].
pub const MAX_INBOUND: usize = 256;
/// Longest text of an error, in bytes.
pub const MAX_ERROR_TEXT: usize = 1024;

/// What a program of this release calls itself in its HELLO.
pub fn software(program: &str) -> String {
    format!("{program} {}", env!("CARGO_PKG_VERSION"))
}

/// From a backend or the operator's command to varpd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// First message of every client.
    Hello {
        /// What it has beyond this version.
        features: Features,
        /// Its name and version, for people.
        software: String,
    },
    /// A backend's next message: this connection is that of a vif.
    ///
    /// A backend that already has sockets (varpd was restarted) sends them along, group socket
    /// first, so that varpd learns its CoA and can keep duplicates. If they don't fit varpd's
    /// configuration, the answer is [`ErrorCode::Invalid`]; without them it would be a new CoA.
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
        /// How many MACs it learns at most ([`Request::Learn`]). As long as the process lives it can learn no more
        /// than it said first.
        learn: u16,
        /// The least that it carries frames under. One that the vnet's policy is too low for carries none, and
        /// the vif is not claimed, until it registers anew.
        floor: Floor,
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
    /// Answer to [`Event::StatsRequest`], in the order they are shown.
    Stats {
        /// Repeats the request's number.
        xid: u32,
        /// The counters.
        samples: Vec<Sample>,
    },
    /// On a secured vnet, another session with the host at this address is needed: packets of one
    /// that is not known came from there, or the keys for there have sealed nearly all they may.
    SaNeeded {
        /// Of a vif there; the host counts.
        address: SocketAddr,
    },
    /// Packets of a session are accepted from now on: answers [`Event::SaIn`], for each key in it.
    SaReady {
        /// As in [`Event::SaIn`].
        number: u32,
    },
    /// A frame came for a MAC that this vif has lost: its sender's host is to be told.
    Late {
        /// The MAC.
        mac: Mac,
        /// Where the frame came from.
        sender: SocketAddr,
    },
    /// The guest sends from these MACs, too: they are to be claimed for this vif. Each is answered by
    /// [`Event::Claimed`], [`Event::Lost`] or [`Event::Refused`].
    Learn {
        /// Each with the stamp of the claim that an earlier varpd made for it, if any.
        macs: Vec<(Mac, Option<Stamp>)>,
    },
    /// The guest does not send from these MACs any more.
    Forget {
        /// Which.
        macs: Vec<Mac>,
    },
    /// The operator wants to see what happens: answered by [`Event::Columns`] and [`Event::End`] when that begins, then by
    /// an [`Event::Row`] for each event, until it goes.
    Monitor,
    /// The operator asks for a table; answered by [`Event::Columns`], [`Event::Row`]s and one [`Event::End`].
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
    /// The vif is registered. Carries its sockets, in the order told above. If the backend sent its own, those of groups
    /// alone, where its own are of others, or none.
    Registered {
        /// Where the vif is reached.
        coa: CareOf,
        /// Where group frames are sent to.
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
        /// They end when varpd has been away for so long.
        end: Duration,
        /// Those that are accepted, and what packets are made with. The first of the policy that is sent
        /// under is sent with.
        keys: Vec<(Suite, Secret)>,
    },
    /// The keys of packets to a care-of address on a secured vnet, from now on: one per queue pair, or
    /// none if nothing may be sent there any more.
    SaOut {
        /// The care-of address.
        to: SocketAddr,
        /// The keys.
        keys: SenderKeys,
    },
    /// Keys of packets from other hosts on a secured vnet: they are accepted from now on.
    SaIn {
        /// The keys.
        keys: Vec<ReceiverKey>,
    },
    /// A session is over: its packets are not accepted any more.
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
    /// The vif's claim to a MAC lost against a newer one: it now lives behind `coa`.
    Lost {
        /// The vif's own MAC, or one behind it.
        mac: Mac,
        /// Stamp of the newer claim.
        stamp: Stamp,
        /// Its care-of address.
        coa: CareOf,
        /// How long others may still believe that the MAC is here, in milliseconds: so long frames
        /// for it are forwarded.
        lifetime_ms: u32,
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
    /// A MAC of [`Request::Learn`] is not claimed for this vif: it moves to and fro, or a bound is
    /// reached.
    Refused {
        /// The MAC.
        mac: Mac,
        /// How long not to ask again, in milliseconds.
        hold_ms: u32,
    },
    /// Group frames are to leave in datagrams of this length at most, from now on.
    GroupLongest {
        /// The IP packet's length, 1280 at least; unknown: as long as the underlay link takes.
        longest: Longest,
    },
    /// A lane to or from another vif of this host ([`crate::lane`]). Carries its memory and an end
    /// of a pair of sockets.
    Lane {
        /// Its number.
        lane: u32,
        /// Which queue pair writes or reads it.
        pair: u8,
        /// Whether it is read here; otherwise it is written.
        is_read: bool,
        /// The vif at its other end.
        mac: Mac,
        /// Where that is reached.
        addr: SocketAddr,
    },
    /// A lane is to come to its end: its writer takes another way once it is empty.
    CloseLane {
        /// Its number.
        lane: u32,
    },
    /// Send your counters.
    StatsRequest {
        /// To be repeated in the answer.
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
