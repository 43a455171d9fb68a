//! Work that a guest leaves to its NIC: checksums, segmentation of large frames and merging of
//! segments; and bundles of small frames.
//!
//! Linux moves TCP in frames of up to 64 KiB through virtio-net. If a tunnel accepted only frames
//! of the underlay's MTU, guest and host would traverse their stacks forty times as often. A tunnel
//! that accepts large frames has to segment them itself, because each datagram carries a whole
//! frame.
//!
//! ```text
//! out:  virtio-net header ──► header::Request ──┬─ nothing ─────────────────────► one datagram
//!       first bytes of frame ► layout::Layout   ├─ checksum: checksum::complete, or flag C
//!                                               └─ segments: gso::Cut ──────────► n datagrams
//!       other frames longer than the path ──────── fragment::Split ───────────► n datagrams
//!       small frames to one place ──────────────── bundle::Packer ──────────────► n datagrams
//!
//! in:   datagrams ──► (bundle::Entries) ──► gro::Merger ──► virtio-net header, headers, payloads
//! ```
//!
//! Everything here is arithmetic on bytes that were copied from guests or received from peers: no
//! I/O, no clock, no allocation, no panic. The caller moves the payload, so results
//! contain ranges instead of bytes.
//!
//! | File | What |
//! |---|---|
//! | [`features`] | the offloads on which guest and device have agreed |
//! | [`header`] | the virtio-net header, checked against frame and features |
//! | [`layout`] | the positions of a frame's headers, if it can be cut or merged |
//! | [`checksum`] | the Internet checksum, partial and complete |
//! | [`gso`] | one large frame becomes segments |
//! | [`gro`] | segments become one large frame |
//! | [`envelope`] | the room around a datagram for its ESP header and trailer |
//! | [`bundle`] | many small frames in a datagram (flag B) |
//! | [`fragment`] | one large frame in many datagrams (flag F) |

#![forbid(unsafe_code)]
#![warn(clippy::indexing_slicing)]
#![cfg_attr(not(test), warn(clippy::cast_possible_truncation))]

pub mod bundle;
pub mod checksum;
pub mod envelope;
pub mod features;
pub mod fragment;
pub mod gro;
pub mod gso;
pub mod header;
pub mod layout;
#[cfg(test)]
pub(crate) mod packets;

/// How much of a frame's beginning is copied and looked at, in bytes: all headers have to be in it.
///
/// Ethernet with two VLAN tags, IPv4 and TCP with all their options make 142; the rest is room for
/// extension headers of IPv6.
pub const LEAD_LEN: usize = 256;
