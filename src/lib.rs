//! Virtual layer-2 networks for virtual machines.
//!
//! A guest's NIC is put on a *vnet*, a LAN of its own that spans hosts. This crate is the library
//! behind three programs: `vhost-user-vnet`, a process per NIC that moves frames between a guest's
//! memory and the network below (the *underlay*); `varpd`, a daemon per host that finds out where
//! addresses are; and `vnet`, the operator's command. What the words mean and what is on the wire
//! is explained in `vnet(7)`.
//!
//! # The picture
//!
//! ```text
//!  QEMU ── vhost-user socket ──► vhost_user: filter, device      varpd ◄── VARP ──► other hosts
//!   │                              │ wake-ups                     │ mapper: who is where
//!   │ shared memory                ▼                              │ registry: vifs, sockets
//!   └─ rings, buffers ──────► vif: workers, one per queue pair ◄──┘
//!                                  │      control socket: "where is this MAC?", sockets
//!                                  ▼
//!                              underlay: datagrams ──────────────────────────────► other backends
//! ```
//!
//! # Words
//!
//! `vnet(7)` explains those of the network and of the wire. The code has some more of its own:
//!
//! | Word | Means |
//! |---|---|
//! | vif | a guest's NIC on a vnet, named by vnet and MAC address ([`wire::VifKey`]) |
//! | care-of address, CoA | where a vif is reached: its host's IP address and a UDP port of its own ([`wire::CareOf`]) |
//! | claim, stamp | a host's statement that a vif is there; of two claims to one vif that with the higher stamp holds ([`mapper`]) |
//! | frontend, driver | QEMU at the vhost-user socket; the virtio-net driver in the guest |
//! | worker | the data path of a queue pair: a thread, and all that its frames need ([`vif::worker`]) |
//! | lead | the beginning of a frame, copied out of the guest's memory before anything is decided from it ([`offload::LEAD_LEN`]) |
//! | message | what one call of `sendmsg` takes: a datagram, or many of one length that the kernel cuts apart (UDP_SEGMENT; [`sys::mmsg`]) |
//! | staged, scattered | a message that was copied into one buffer; one whose payload the kernel reads in the guest's memory ([`vif::outgoing`]) |
//! | train | datagrams of one sender and one length that the kernel hands over as one message (UDP_GRO; [`sys::train`]) |
//! | piece | in a ring or a batch: contiguous memory that holds part of a frame ([`vif::ring::Piece`]). On the wire: a fragment of a frame that is longer than its path (flag F; [`wire::fragment`]) |
//! | bundle | small frames to one place that share a datagram (flag B; [`offload::bundle`]) |
//! | sealed, opened | made into an ESP packet; made from one ([`vif::protect`]) |
//! | parked | a frame that waits until its destination is resolved ([`vif::park`]) |
//! | lane | a ring in memory that two backends of a host share, one way ([`lane`]) |
//! | learnt, behind a vif | MACs that a bridge or router in the guest sends from, besides its NIC's ([`vif::learnt`]) |
//! | departed, late | a MAC that was here and is on another host now; frames that still come for it ([`vif::departed`]) |
//!
//! # Where things are
//!
//! | Module | What | Pure |
//! |---|---|---|
//! | [`wire`] | every format that leaves a process | yes |
//! | [`mapper`] | the VARP state machine of a host | yes |
//! | [`security`] | policies, keys, handshakes, sealing of secured vnets | yes |
//! | [`lane`] | rings of memory between two backends of a host | but for the memory |
//! | [`limiter`] | token buckets, rates and sizes | yes |
//! | [`offload`] | checksums, segmentation, coalescing, bundles, pieces | yes |
//! | [`vif`] | a NIC: the data path in packet order, and its link to varpd | mostly |
//! | [`vhost_user`] | what QEMU sees: connection, filter, device, rings | no |
//! | [`underlay`] | sockets: opening and filtering them, batches of datagrams | no |
//! | [`varpd`] | the daemon's shell around the mapper | no |
//! | [`operator`] | what `vnet` asks varpd, and key files | no |
//! | [`sys`] | safe wrappers over system calls; the only reader of the clock | no |
//! | [`time`] | time as the pure modules see it: numbers that the caller read | yes |
//! | [`cli`], [`config`], [`show`], [`metrics`], `quiet` | command lines, file, tables, counters, a limit on log messages | mostly |
//!
//! Pure means: no I/O, no clock, no `unsafe`; time comes in as an argument, effects go out as data.
//! Dependencies point from the shell to the pure modules, never back.
//!
//! # The path of a frame
//!
//! [`vif::worker`] draws it. Out: a kick wakes the pair's thread; [`vif::guest`] turns
//! descriptor chains into frames, checked and with their header copied; [`vif::tx`] judges each, and
//! [`vif::guard`] whether it names its sender rightly;
//! [`vif::outgoing`] copies them into one staging buffer while it cuts large ones and bundles small
//! ones, for the path to their destination ([`vif::paths`]), [`vif::protect`] seals them there on a
//! secured vnet, and [`underlay`] sends that in a few messages. What is longer than the path and can't
//! be cut is refused with an answer ([`vif::too_big`]) or leaves in pieces, which [`vif::reassembly`]
//! puts together at the other end. In: a readable socket wakes the thread; [`vif::protect`] opens what is
//! sealed; [`vif::rx`] accepts or names the drop; [`offload::gro`] merges segments; [`vif::guest`] copies the
//! frame into the guest's buffers. In a stream of long segments it is the kernel that copies them there, once it
//! is foreseen what comes ([`vif::direct`]).
//!
//! Between two vifs of one host there is a shorter path: [`vif::lanes`] takes the frame straight from
//! the guest's ring into memory that both backends map, and the other worker from there to its guest.
//!
//! # Who owns which state
//!
//! * A worker ([`vif::worker::Worker`]) owns what its frames need: sockets, addresses learnt, frames
//!   that wait, and outlives the frontend's connections.
//! * A lane ([`lane`]) is owned by nobody: two backends hold its ends, and neither believes the other.
//!   varpd remembers only that it made it.
//! * A device ([`vhost_user::device::Device`]) owns what a connection needs: rings, memory, features,
//!   and while the guest migrates, the log of pages written to ([`vhost_user::logging`]).
//! * The mapper ([`mapper::Mapper`]) owns what a host knows of others, and lives in varpd. Backends
//!   keep copies that they may use beyond its death.
//! * varpd's registry ([`varpd`]) owns who may speak for which vif, and duplicates of the sockets
//!   of backends that died, for a while.

pub mod cli;
pub mod config;
pub mod lane;
pub mod limiter;
pub mod mapper;
pub mod metrics;
pub mod offload;
pub mod operator;
mod quiet;
pub mod security;
pub mod show;
pub mod sys;
pub mod time;
pub mod underlay;
pub mod varpd;
pub mod vhost_user;
pub mod vif;
pub mod wire;
