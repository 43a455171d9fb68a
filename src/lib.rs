//! Virtual layer-2 networks for virtual machines.
//!
//! A guest's NIC is attached to a *vnet*, a LAN that spans hosts. This crate is the library behind
//! three programs: `vhost-user-vnet` (the *backend*), a process per NIC that moves frames between a
//! guest's memory and the network between the hosts (the *underlay*); `varpd`, a daemon per host
//! that resolves addresses; and `vnet`, the operator's command. `vnet(7)` explains the concepts and
//! the wire formats.
//!
//! # The picture
//!
//! ```text
//!  QEMU ── vhost-user socket ──► vhost_user: filter, device      varpd ◄── VARP ──► other hosts
//!   │                              │ wake-ups                     │ mapper: places of vifs
//!   │ shared memory                ▼                              │ registry: vifs, sockets
//!   └─ rings, buffers ──────► port: workers, one per queue pair ◄──┘
//!                                  │      control socket: "where is this MAC?", sockets
//!                                  ▼
//!                              underlay: datagrams ──────────────────────────────► other backends
//! ```
//!
//! # Words
//!
//! `vnet(7)` defines the terms of the network and of the wire. The code uses further terms:
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
//! | [`host`] | all decisions of varpd: owners of vifs, kept vifs, keys, lanes, tables, the place on the underlay | yes |
//! | [`policy`], [`secret`] | policies and cipher suites; bytes of keys | yes |
//! | [`security`] | keys, handshakes, sealing of secured vnets | yes |
//! | [`lane`] | rings of shared memory between two backends of a host | except for the memory |
//! | [`limiter`] | token buckets, rates and sizes | yes |
//! | [`packet`] | the one walk over the headers of a guest's frame, which offloads and guards read | yes |
//! | [`offload`] | checksums, segmentation, coalescing, bundles, pieces | yes |
//! | [`guest`] | the virtio side of a NIC: rings, frames from the guest's memory and into it | except for the memory |
//! | [`tunnel`] | one end of a vnet's tunnel: frames to datagrams and back | except for the sockets |
//! | [`local`] | lanes of a queue pair, in place of the tunnel within a host | except for the memory |
//! | [`port`] | joins guest, tunnel and lanes: the data path of a queue pair, in packet order | mostly |
//! | [`capture`] | the two places of a port where frames can be copied with the decision about them | yes |
//! | [`vif`] | a NIC: its queue pairs, and its link to varpd | no |
//! | [`vhost_user`] | the vhost-user interface to QEMU: connection, filter, device, rings | no |
//! | [`underlay`] | sockets: opening and filtering them, batches of datagrams | no |
//! | [`varpd`] | the daemon's shell around the host: loop, sockets, connections, files | no |
//! | [`operator`] | the `vnet` command: requests to varpd, and key files | no |
//! | [`sys`] | safe wrappers around system calls; the only code that reads the clock | no |
//! | [`time`] | times for the pure modules, which the caller has read from the clock | yes |
//! | [`cli`], [`config`], [`show`], [`metrics`], `quiet`, `nonce` | command lines, configuration file, tables, counters, a rate limit for log messages, nonces | mostly |
//!
//! Pure means: no I/O, no clock, no `unsafe`. Callers pass the time as an argument, and the module
//! returns effects as data. Other modules depend on pure modules, never the reverse: the list
//! `floors` in `tests/tidy` has the modules in order, and each may import only modules before it.
//!
//! # Four ways through the code
//!
//! Each way is in the order in which the code runs. Paths are relative to `src`.
//!
//! ## A frame from the guest to another host
//!
//! 1. The guest kicks its transmit ring, which wakes the thread of the queue pair. `Device::wake`
//!    (`vhost_user/device.rs`) takes the rings and calls the data path of the NIC, `handle` in
//!    `vif/nic/data_path.rs`.
//! 2. `Worker::transmit` (`port/worker/transmit.rs`) takes descriptor chains from the ring
//!    (`guest/ring.rs`), a batch at a time. The rate limits (`port/throttle.rs`) may leave the rest
//!    in the ring.
//! 3. `GuestSide::read` ([`guest::side`]) turns a chain into a checked frame and copies its headers
//!    ([`guest::transmit`]). [`offload::layout`] and the guard read them by the one walk in
//!    [`packet`].
//! 4. [`port::tx`] decides about the frame: its source MAC, and its destination by the table of
//!    known addresses ([`tunnel::neighbors`]). [`port::guard`] checks the addresses of its sender.
//!    If the destination is not known, the frame waits in [`tunnel::unresolved`] (see the third
//!    way).
//! 5. If the destination is a vif of the same host with a lane, [`local::ends`] copies the frame
//!    into the lane (`local/ends/write.rs`), and the way ends here.
//! 6. `Endpoint::send` (`tunnel/endpoint/send.rs`) gets the batch. [`tunnel::outgoing`] copies
//!    frames into a staging buffer, segments large ones and bundles small ones for the path to
//!    their destination ([`tunnel::paths`]). If a frame exceeds the path MTU and cannot be
//!    segmented, [`tunnel::too_big`] answers its sender, or the frame leaves in fragments
//!    (`tunnel/outgoing/pieces.rs`).
//! 7. On a secured vnet [`tunnel::protect`] seals the datagrams in the staging buffer.
//! 8. [`underlay`] sends the buffer in a few messages (`underlay/udp.rs`, [`sys::mmsg`]).
//!
//! ## A datagram to the guest
//!
//! 1. A readable socket wakes the thread of the queue pair; as before, `Device::wake` calls the
//!    data path of the NIC, and this calls `Worker::receive` (`port/worker/receive.rs`).
//! 2. `Endpoint::receive` (`tunnel/endpoint/receive.rs`) reads a batch of datagrams from the
//!    [`underlay`] into [`tunnel::incoming`].
//! 3. [`tunnel::protect`] opens sealed datagrams. [`tunnel::rx`] accepts each frame or names the
//!    reason to drop it. Fragments wait in [`tunnel::reassembly`]; [`tunnel::moved`] forwards
//!    frames of a vif that has moved.
//! 4. `Worker::receive` delivers as many frames as the rate limit ([`port::throttle`]) permits.
//!    `GuestSide::deliver_all` ([`guest::side`]) merges segments of one stream ([`offload::gro`]).
//! 5. [`guest::deliver`] copies each frame into the guest's buffers, and `GuestSide::publish`
//!    counts the frames and makes them visible to the guest.
//!
//! In a stream of long segments the kernel copies the payload into the guest's buffers itself,
//! because the worker can predict the next message ([`port::direct`]). Frames in a lane take a
//! shorter way: the other backend wakes the thread, and [`local::ends`] (`local/ends/read.rs`)
//! passes the frames to the guest side.
//!
//! ## A question by VARP
//!
//! 1. A frame to an unknown MAC waits in [`tunnel::unresolved`], and [`tunnel::neighbors`] records
//!    a question. The main thread of the backend takes it (`Link::requests`, [`vif::link`]) and
//!    sends varpd a RESOLVE ([`wire::control`]; `vif/serve/varpd.rs`).
//! 2. [`varpd`] gives it to the [`host`] (`varpd/perform.rs`, `host/requests.rs`), which calls
//!    `Mapper::resolve` (`mapper/resolve.rs`). If the mapper does not know the answer, it returns a
//!    request to send ([`mapper::Mapper::poll_output`]). On a secured vnet
//!    [`security::membership`] adds a tag. varpd sends the message to the group (`varpd/varp.rs`).
//! 3. On each other host the kernel sorts the message to a socket of varpd ([`underlay::classes`]).
//!    `Host::handle` (`host/mod.rs`) has [`wire::varp`] parse it and [`security::membership`] check
//!    the tag, and `Mapper::handle_message` (`mapper/receive.rs`) decides. The mapper of the owner
//!    returns a reply, which varpd sends.
//! 4. The reply takes the same way on the first host. `mapper/mappings.rs` changes the cache and
//!    tells all vifs that use the mapping. `Host::notify` (`host/mod.rs`) sends each of their
//!    backends a MAPPING; on a secured vnet it waits for keys first (`host/gates.rs`).
//! 5. `Link::handle_event` ([`vif::link`]) passes it to the workers (`Worker::handle_mapping`), and
//!    the frames that waited leave.
//!
//! ## A message of the frontend
//!
//! 1. [`vhost_user::attach`] accepts QEMU's connection, one at a time
//!    (`vhost_user/attach/server.rs`).
//! 2. `Connection::step` ([`vhost_user::connection`]) reads a message with its descriptors
//!    ([`vhost_user::channel`]).
//! 3. [`vhost_user::filter`] forwards it, answers it itself, or refuses it. It checks tables of
//!    guest memory ([`vhost_user::memory_table`]).
//! 4. The crate `vhost-user-backend` executes the message. It calls `vhost_user/backend.rs` for
//!    features, and [`vhost_user::vring`] for rings.
//! 5. [`vhost_user::device`] passes changes to the data path of the NIC (`vif/nic/data_path.rs`):
//!    features, MTU, rings that start or stop. When rings start, [`vif::link`] sends varpd a
//!    SET-ACTIVE, and the mapper claims the vif (`mapper/claims.rs`).
//! 6. The answer passes the filter again on its way to QEMU (`Filter::reply`).
//!
//! # Ownership of state
//!
//! * A worker ([`port::worker::Worker`]) owns the data path of a queue pair: the three objects
//!   below, and three more: the guest's identity (MACs and addresses that it may send from), its
//!   presence (whether its rings run, and how it announces itself), and the rate limits. It outlives
//!   the frontend's connections.
//! * A guest side ([`guest::side::GuestSide`]) owns the features that a driver has acknowledged,
//!   and delivers and counts all frames for the guest.
//! * An endpoint ([`tunnel::endpoint::Endpoint`]) owns the sockets of a queue pair, resolved
//!   addresses, keys, path MTUs, and frames that wait for these or arrive in fragments.
//! * The ends of lanes ([`local::ends::Local`]) own this process's view of the lanes, and frames
//!   that were taken out of them.
//! * A lane ([`lane`]) has no owner: two backends hold its ends, and neither trusts the other.
//!   varpd remembers only that it made it.
//! * A device ([`vhost_user::device::Device`]) owns the state of a frontend's connection: rings,
//!   memory, features, and while the guest migrates, the log of written pages
//!   ([`vhost_user::logging`]).
//! * The mapper ([`mapper::Mapper`]), in varpd, owns all knowledge of vifs on other hosts. Backends
//!   keep copies, which they can use while varpd is away.
//! * The host ([`host::Host`]), in varpd, owns the association of clients with vifs, the state of
//!   vifs whose backend has died, the keys of secured vnets, and the host's place on the underlay. It
//!   owns the mapper, too.
//! * varpd's shell ([`varpd`]) owns connections, sockets and files, which it opens, closes and uses as
//!   the host requests. It has duplicates of the sockets of all vifs.

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
