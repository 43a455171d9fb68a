//! Virtual layer-2 networks for virtual machines.
//!
//! A guest's NIC is attached to a *vnet*, a LAN that spans hosts. This crate is the library
//! behind three programs: `vhost-user-vnet`, a process per NIC that moves frames between a guest's
//! memory and the network between the hosts (the *underlay*); `varpd`, a daemon per host that resolves
//! addresses; and `vnet`, the operator's command. `vnet(7)` explains the concepts and the wire formats.
//!
//! # The picture
//!
//! ```text
//!  QEMU ── vhost-user socket ──► vhost_user: filter, device      varpd ◄── VARP ──► other hosts
//!   │                              │ wake-ups                     │ mapper: who is where
//!   │ shared memory                ▼                              │ registry: vifs, sockets
//!   └─ rings, buffers ──────► port: workers, one per queue pair ◄──┘
//!                                  │      control socket: "where is this MAC?", sockets
//!                                  ▼
//!                              underlay: datagrams ──────────────────────────────► other backends
//! ```
//!
//! # Words
//!
//! `vnet(7)` defines the terms of the network and of the wire. The code uses some more:
//!
//! | Word | Means |
//! |---|---|
//! | vif | a guest's NIC on a vnet, identified by vnet and MAC address ([`wire::VifKey`]) |
//! | care-of address, CoA | the underlay address of a vif: its host's IP address and a UDP port of its own ([`wire::CareOf`]) |
//! | claim, stamp | a host's statement that a vif is on it; of two claims to one vif, the one with the higher stamp wins ([`mapper`]) |
//! | frontend, driver | QEMU at the vhost-user socket; the virtio-net driver in the guest |
//! | worker | the data path of a queue pair: a thread and its state ([`port::worker`]) |
//! | lead | the beginning of a frame, copied out of the guest's memory before any decision about the frame ([`offload::LEAD_LEN`]) |
//! | message | the data of one `sendmsg` call: a datagram, or several of equal length that the kernel separates (UDP_SEGMENT; [`sys::mmsg`]) |
//! | staged, scattered | staged: a message that was copied into one buffer; scattered: one whose payload the kernel reads from the guest's memory ([`tunnel::outgoing`]) |
//! | train | datagrams of one sender and equal length that the kernel delivers as one message (UDP_GRO; [`sys::train`]) |
//! | piece | in a ring or a batch: contiguous memory that holds part of a frame ([`guest::ring::Piece`]). On the wire: a fragment of a frame that exceeds the path MTU (flag F; [`wire::fragment`]) |
//! | bundle | small frames to one destination that share a datagram (flag B; [`offload::bundle`]) |
//! | sealed, opened | sealed: encrypted or authenticated as an ESP packet; opened: the reverse ([`tunnel::protect`]) |
//! | parked | a frame that waits for the resolution of its destination ([`tunnel::unresolved`]) |
//! | lane | a unidirectional ring in memory that two backends of a host share ([`lane`]) |
//! | learnt, behind a vif | other MACs than the NIC's from which a bridge in the guest sends ([`port::learned`]) |
//! | departed, late | departed: a MAC that has moved from here to another host; late: frames that still arrive for it ([`tunnel::moved`]) |
//!
//! # Where things are
//!
//! | Module | Content | Pure |
//! |---|---|---|
//! | [`wire`] | all formats that leave a process | yes |
//! | [`mapper`] | the VARP state machine of a host | yes |
//! | [`hosts`] | the state machine of hello: knows the other hosts and their settings | yes |
//! | [`host`] | everything that varpd decides: vifs and whose they are, kept vifs, keys, lanes, tables, the place on the underlay | yes |
//! | [`policy`], [`secret`] | levels of protection and cipher suites; bytes of keys | yes |
//! | [`security`] | keys, handshakes, sealing of secured vnets | yes |
//! | [`lane`] | rings of shared memory between two backends of a host | except for the memory |
//! | [`limiter`] | token buckets, rates and sizes | yes |
//! | [`packet`] | the one walk over the headers of a guest's frame, which offloads and guards read | yes |
//! | [`offload`] | checksums, segmentation, coalescing, bundles, pieces | yes |
//! | [`guest`] | the virtio side of a NIC: rings, frames from the guest's memory and into it | except for the memory |
//! | [`tunnel`] | one end of a vnet's tunnel: frames to datagrams and back | except for the sockets |
//! | [`local`] | lanes of a queue pair, in place of the tunnel within a host | except for the memory |
//! | [`port`] | joins guest, tunnel and lanes: the data path of a queue pair, in packet order | mostly |
//! | [`capture`] | the two doors of a port where frames can be copied with their verdict | yes |
//! | [`vif`] | a NIC: its queue pairs, and its link to varpd | no |
//! | [`vhost_user`] | the vhost-user interface to QEMU: connection, filter, device, rings | no |
//! | [`underlay`] | sockets: opening and filtering them, batches of datagrams | no |
//! | [`varpd`] | the daemon's shell around the host: loop, sockets, connections, files | no |
//! | [`operator`] | the `vnet` command: requests to varpd, and key files | no |
//! | [`sys`] | safe wrappers around system calls; the only code that reads the clock | no |
//! | [`time`] | times for the pure modules, which the caller has read from the clock | yes |
//! | [`cli`], [`config`], [`show`], [`metrics`], `quiet`, `nonce` | command lines, configuration file, tables, counters, a rate limit for log messages, nonces | mostly |
//!
//! Pure means: no I/O, no clock, no `unsafe`. Callers pass the time as an argument, and the module returns effects as data.
//! Other modules depend on pure modules, never the reverse: `tests/tidy` has the modules in order (`floors`), and each may import those
//! before it only.
//!
//! # The path of a frame
//!
//! [`port::worker`] has a diagram. Sending: a kick wakes the pair's thread. [`guest::transmit`] turns
//! descriptor chains into checked frames and copies their headers, which [`packet`] reads. [`port::tx`] decides
//! about each frame; [`port::guard`] checks the addresses of its sender. [`tunnel::endpoint`] takes a batch of frames:
//! [`tunnel::outgoing`] copies frames into a staging buffer, segments large ones and bundles small
//! ones for the path to their destination ([`tunnel::paths`]). On a secured vnet [`tunnel::protect`] seals them there.
//! [`underlay`] sends the buffer in a few messages. If a frame exceeds the path MTU and cannot
//! be segmented, [`tunnel::too_big`] answers its sender, or it leaves in fragments, which [`tunnel::reassembly`]
//! puts together at the receiver. Receiving: a readable socket wakes the thread. [`tunnel::protect`] opens sealed
//! datagrams. [`tunnel::rx`] accepts a frame or names the reason to drop it. [`offload::gro`] merges segments.
//! [`guest::deliver`] copies the frame into the guest's buffers. In a stream of long segments the kernel copies the payload
//! there itself, because the worker can predict the next message ([`port::direct`]).
//!
//! Between two vifs of one host there is a shorter path: [`local::ends`] copies the frame from
//! the guest's ring into memory that both backends map, and the other worker copies it from there to its guest.
//!
//! # Ownership of state
//!
//! * A worker ([`port::worker::Worker`]) owns the data path of a queue pair: the three objects below, the guard,
//!   rate limits and learned MACs. It outlives the frontend's connections.
//! * A guest side ([`guest::side::GuestSide`]) owns the features that a driver has acknowledged, and delivers and
//!   counts all frames for the guest.
//! * An endpoint ([`tunnel::endpoint::Endpoint`]) owns the sockets of a queue pair, resolved addresses, keys, path
//!   MTUs, and frames that wait for these or arrive in fragments.
//! * The ends of lanes ([`local::ends::Local`]) own this process's view of the lanes, and frames that were taken out
//!   of them.
//! * A lane ([`lane`]) has no owner: two backends hold its ends, and neither trusts the other.
//!   varpd remembers only that it made it.
//! * A device ([`vhost_user::device::Device`]) owns the state of a frontend's connection: rings, memory, features,
//!   and while the guest migrates, the log of written pages ([`vhost_user::logging`]).
//! * The mapper ([`mapper::Mapper`]), in varpd, owns all knowledge of vifs on other hosts. Backends
//!   keep copies, which they can use while varpd is away.
//! * The host ([`host::Host`]), in varpd, owns the association of clients with vifs, what is kept of a vif whose
//!   backend has died, the keys of secured vnets, and the host's place on the underlay. It owns the mapper, too.
//! * varpd's shell ([`varpd`]) owns connections, sockets and files: what the host asks to open, close and send. It has duplicates
//!   of the sockets of all vifs.

pub mod capture;
pub mod cli;
pub mod config;
pub mod guest;
pub mod host;
pub mod hosts;
pub mod lane;
pub mod limiter;
pub mod local;
pub mod mapper;
pub mod metrics;
mod nonce;
pub mod offload;
pub mod operator;
pub mod packet;
pub mod policy;
pub mod port;
mod quiet;
pub mod secret;
pub mod security;
pub mod show;
pub mod sys;
pub mod time;
pub mod tunnel;
pub mod underlay;
pub mod varpd;
pub mod vhost_user;
pub mod vif;
pub mod wire;
