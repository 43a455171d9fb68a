//! The socket options that a process may set and read after its start, with the code that uses
//! them.
//!
//! An option that is missing here kills the process, so add a new one in the same commit as the
//! code that uses it. Some options give access to a separate part of the kernel, such as iptables.
//! These need a capability, but a process gets that in a user namespace of its own.

use std::collections::BTreeMap;

use seccompiler::{BackendError, SeccompCmpOp, SeccompRule};

use super::calls::{Profile, condition, unsigned};

/// Level and name.
pub(super) type SocketOption = (libc::c_int, libc::c_int);

/// From `asm-generic/socket.h`.
const SO_MEMINFO: libc::c_int = 55;
const SO_NETNS_COOKIE: libc::c_int = 71;
const SO_PEERPIDFD: libc::c_int = 77;
/// From `linux/udp.h`.
const UDP_GRO: libc::c_int = 104;

/// Set by a backend.
const BACKEND_SETS: &[SocketOption] = &[
    // sys::mmsg::enable_gro
    (libc::SOL_UDP, UDP_GRO),
    // sys::error_queue::enable
    (libc::IPPROTO_IP, libc::IP_RECVERR),
    (libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
    // underlay::udp: bound_receive_buffers, steer
    (libc::SOL_SOCKET, libc::SO_RCVBUF),
    (libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF),
];

/// Read by a backend.
const BACKEND_READS: &[SocketOption] = &[
    // underlay::udp: bound_receive_buffers, take_report
    (libc::SOL_SOCKET, libc::SO_RCVBUF),
    (libc::SOL_SOCKET, libc::SO_ERROR),
    // underlay::sockets::tokens
    (libc::SOL_SOCKET, libc::SO_SNDTIMEO),
    // sys::error_queue::enable; the vhost crate, of sockets that a frontend sends
    (libc::SOL_SOCKET, libc::SO_DOMAIN),
    (libc::SOL_SOCKET, libc::SO_TYPE),
    // vhost_user::attach::callers
    (libc::SOL_SOCKET, libc::SO_PEERCRED),
    (libc::SOL_SOCKET, SO_PEERPIDFD),
];

/// Set by varpd.
const VARPD_SETS: &[SocketOption] = &[
    // underlay::sockets: socket, common
    (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY),
    (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER),
    (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
    (libc::SOL_SOCKET, libc::SO_RXQ_OVFL),
    (libc::SOL_SOCKET, libc::SO_RCVBUF),
    // The same, and sys::seqpacket::set_queue.
    (libc::SOL_SOCKET, libc::SO_SNDBUF),
    // underlay::sockets::tokens
    (libc::SOL_SOCKET, libc::SO_SNDTIMEO),
    // underlay::sockets: attach_filter, lock_unless_steered, shared, sort, reserved
    (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER),
    (libc::SOL_SOCKET, libc::SO_LOCK_FILTER),
    (libc::SOL_SOCKET, libc::SO_REUSEPORT),
    (libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF),
    // underlay::sockets: take_for_itself
    (libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX),
    // underlay::sockets: sends, receives_group
    (libc::IPPROTO_IP, libc::IP_MULTICAST_IF),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_TTL),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_LOOP),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_ALL),
    (libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP),
    // underlay::sockets::moved::rejoin
    (libc::IPPROTO_IP, libc::IP_DROP_MEMBERSHIP),
    (libc::IPPROTO_IPV6, libc::IPV6_DROP_MEMBERSHIP),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_IF),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_ALL),
    (libc::IPPROTO_IPV6, libc::IPV6_ADD_MEMBERSHIP),
];

/// Read by varpd.
const VARPD_READS: &[SocketOption] = &[
    // underlay::sockets: check_kind, check_unicast, check_group
    (libc::SOL_SOCKET, libc::SO_TYPE),
    (libc::SOL_SOCKET, libc::SO_DOMAIN),
    (libc::SOL_SOCKET, libc::SO_PROTOCOL),
    (libc::SOL_SOCKET, SO_NETNS_COOKIE),
    (libc::SOL_SOCKET, libc::SO_COOKIE),
    (libc::SOL_SOCKET, libc::SO_LOCK_FILTER),
    (libc::SOL_SOCKET, libc::SO_GET_FILTER),
    (libc::SOL_SOCKET, libc::SO_SNDTIMEO),
    // underlay::sockets::set_buffers
    (libc::SOL_SOCKET, libc::SO_RCVBUF),
    (libc::SOL_SOCKET, libc::SO_SNDBUF),
    // sys::sockopt::drops
    (libc::SOL_SOCKET, SO_MEMINFO),
    // sys::seqpacket: peer, groups, process
    (libc::SOL_SOCKET, libc::SO_PEERCRED),
    (libc::SOL_SOCKET, libc::SO_PEERGROUPS),
    (libc::SOL_SOCKET, SO_PEERPIDFD),
];

/// Set by the opener, for which it has its capability: underlay::opener::perform.
const OPENER_SETS: &[SocketOption] =
    &[(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE), (libc::SOL_SOCKET, libc::SO_SNDBUFFORCE)];

/// Read by the opener: underlay::opener::is_udp.
const OPENER_READS: &[SocketOption] = &[
    (libc::SOL_SOCKET, libc::SO_TYPE),
    (libc::SOL_SOCKET, libc::SO_DOMAIN),
    (libc::SOL_SOCKET, libc::SO_PROTOCOL),
];

/// The options that a program sets, and those that it reads.
pub(super) fn of(profile: Profile) -> (&'static [SocketOption], &'static [SocketOption]) {
    match profile {
        Profile::Backend => (BACKEND_SETS, BACKEND_READS),
        Profile::Varpd => (VARPD_SETS, VARPD_READS),
        Profile::Opener => (OPENER_SETS, OPENER_READS),
    }
}

/// Lets these pass.
pub(super) fn allow(
    profile: Profile,
    rules: &mut BTreeMap<i64, Vec<SeccompRule>>,
) -> Result<(), BackendError> {
    let is = |&(level, name): &SocketOption| {
        let level = condition(1, SeccompCmpOp::Eq, unsigned(level))?;
        SeccompRule::new(vec![level, condition(2, SeccompCmpOp::Eq, unsigned(name))?])
    };
    let (sets, reads) = of(profile);
    for (call, options) in [(libc::SYS_setsockopt, sets), (libc::SYS_getsockopt, reads)] {
        rules.insert(call, options.iter().map(is).collect::<Result<_, _>>()?);
    }
    Ok(())
}
