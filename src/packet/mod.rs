//! The headers of a guest's frame: Ethernet, VLAN tags, IP, extension headers, fragments, and the
//! beginning of what they carry. This is the only code that walks them.
//!
//! A guard that reads a frame otherwise than the code that cuts it, or than the receiver, can be
//! bypassed. So offloads ([`crate::offload::layout`]), the guard ([`crate::port::guard`]), the
//! answer to packets that are too long ([`crate::tunnel::too_big`]) and the search for announcements
//! ([`crate::wire::frame`]) all read what [`Packet::parse`] found, and decide only what to make of
//! it.
//!
//! ```text
//!  0      12        14 .. 22   network_at                    transport_at              end
//!  +------+----------+----------+-----------------------------+-------------------------+---------+
//!  | MACs | VLAN     | ether    | IP header, options or       | ports, ICMP message, .. | padding |
//!  |      | tags 0-2 | type     | extension headers 0-8       |                         |         |
//!  +------+----------+----------+-----------------------------+-------------------------+---------+
//!    Ethernet::parse              Packet::parse                 transport, discovery
//! ```
//!
//! # VLAN policy
//!
//! A vnet carries tagged frames as they are: nothing adds, removes or changes a tag, and no tag
//! selects a vnet. Every VLAN of a vnet has the same guests, and `--allow-ip` holds for all of them
//! alike.
//!
//! * A tag is one of IEEE 802.1Q (0x8100) or 802.1ad (0x88a8), or of the types that switches used
//!   before 802.1ad (0x9100, 0x9200, 0x9300). VLAN 0, a tag for its priority alone, is a tag as
//!   well.
//! * At most [`ethernet::MAX_TAGS`] tags are read. The type of a third one counts as a protocol
//!   that nobody knows: the frame is carried, but the guard drops it.
//! * Offloads apply behind tags of 802.1Q and 802.1ad only: Linux segments no frames behind others
//!   ([`Ethernet::has_old_tags`]).
//! * A MAC control frame (0x8808) is one without tags: the MAC looks for them right behind the
//!   addresses.
//!
//! # Rules of the walk
//!
//! | Subject | Rule |
//! |---|---|
//! | type below 0x600 | a length (IEEE 802.3): LLC follows, and is not read |
//! | version | that of the header must be that of the type |
//! | length fields | an IP packet ends within its frame; behind it is padding. See [`Lengths`] for 0 |
//! | jumbograms (RFC 2675) | there are none: no frame is longer than [`crate::wire::frame::MAX_LEN`] |
//! | IPv4 options | skipped |
//! | extension headers | at most [`extension::MAX_EXTENSIONS`]: hop-by-hop options (first only), routing, destination options, fragment (once), authentication, mobility, HIP, Shim6. IPv4 has authentication headers only |
//! | ESP, and any other protocol | the end of the walk |
//! | fragments | behind the header of a later fragment there is payload, whatever it looks like |
//! | truncated bytes | a header counts only as a whole; [`Stop::at`] says how far the walk came |
//!
//! Everything here reads a slice that was copied from the guest before. Nothing allocates, panics
//! or performs I/O.

#![forbid(unsafe_code)]
#![warn(clippy::indexing_slicing)]
#![cfg_attr(not(test), warn(clippy::cast_possible_truncation))]

pub mod arp;
pub mod discovery;
pub mod ethernet;
pub mod extension;
pub(crate) mod field;
mod ip;
pub mod protocol;
#[cfg(test)]
mod tests;
pub mod transport;

pub use ethernet::Ethernet;
pub use ip::{Fragment, IpVersion, Lengths, Packet};

/// Why a walk ended before the headers did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The header is longer than the bytes given.
    Truncated,
    /// The frame is neither IPv4 nor IPv6, as far as its tags are read.
    NotIp,
    /// Versions, lengths or the order of headers contradict each other.
    Malformed,
    /// The packet has more extension headers than are read.
    TooManyExtensions,
}

/// Where and why a walk ended before the headers did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    /// Where the header begins that was not understood, in bytes from the frame's beginning. All
    /// headers before it were.
    pub at: usize,
    /// The reason.
    pub reason: Reason,
}

impl Stop {
    const fn truncated(at: usize) -> Self {
        Self { at, reason: Reason::Truncated }
    }

    const fn malformed(at: usize) -> Self {
        Self { at, reason: Reason::Malformed }
    }
}
