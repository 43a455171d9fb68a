//! Socket options that neither the standard library nor socket2 has.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use libc::{c_int, c_void, sock_filter, socklen_t};

/// From `asm-generic/socket.h`.
const SO_NETNS_COOKIE: c_int = 71;

/// From `asm-generic/socket.h`.
const SO_MEMINFO: c_int = 55;
/// From `linux/sock_diag.h`: how many values there are (SK_MEMINFO_VARS), and which is that of
/// drops.
const MEMINFO_VALUES: usize = 9;
/// See [`MEMINFO_VALUES`].
const MEMINFO_DROPS: usize = 8;
/// The same, of the memory that what was received occupies (SK_MEMINFO_RMEM_ALLOC).
const MEMINFO_RECEIVED: usize = 0;

/// From `asm-generic/socket.h`.
const PEER_PROCESS: IntOption = (libc::SOL_SOCKET, 77);

/// A level and a name of an option whose value is an `int`.
pub type IntOption = (c_int, c_int);

/// UDP datagrams dropped because the buffer was full come as ancillary data (socket(7)).
pub const RXQ_OVFL: IntOption = (libc::SOL_SOCKET, libc::SO_RXQ_OVFL);
/// The filter can't be changed or removed any more (socket(7)).
pub const LOCK_FILTER: IntOption = (libc::SOL_SOCKET, libc::SO_LOCK_FILTER);
/// The interface, by index, whose datagrams alone are received; 0 for all (socket(7), `SO_BINDTODEVICE`).
pub const INTERFACE: IntOption = (libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX);
/// Receive buffer, in bytes; the FORCE variant ignores `rmem_max` and needs CAP_NET_ADMIN.
pub const RCVBUF: IntOption = (libc::SOL_SOCKET, libc::SO_RCVBUF);
/// See [`RCVBUF`].
pub const RCVBUFFORCE: IntOption = (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE);
/// Send buffer, in bytes; the FORCE variant ignores `wmem_max` and needs CAP_NET_ADMIN.
pub const SNDBUF: IntOption = (libc::SOL_SOCKET, libc::SO_SNDBUF);
/// See [`SNDBUF`].
pub const SNDBUFFORCE: IntOption = (libc::SOL_SOCKET, libc::SO_SNDBUFFORCE);
/// Whether the don't-fragment bit is set (ip(7)): [`PMTUDISC_DO`].
pub const MTU_DISCOVER_V4: IntOption = (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER);
/// The same for IPv6, where it keeps the sender from fragmenting.
pub const MTU_DISCOVER_V6: IntOption = (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER);
/// Always set don't-fragment; too large datagrams fail with EMSGSIZE.
pub const PMTUDISC_DO: c_int = libc::IP_PMTUDISC_DO;

/// Identifies the network namespace of a socket; 0 on kernels before 5.14, which can't tell.
pub fn netns_cookie(socket: &impl AsFd) -> u64 {
    let mut cookie: u64 = 0;
    let mut len = socklen::<u64>();
    let fd = socket.as_fd().as_raw_fd();
    let to = (&raw mut cookie).cast();
    // SAFETY: `cookie` is a live u64 and `len` its size, so the kernel writes no more than that.
    unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, SO_NETNS_COOKIE, to, &raw mut len) };
    cookie
}

/// How many datagrams the kernel has dropped that were for this socket, because its buffer was full
/// or its filter did not let them pass (`SO_MEMINFO`); wraps.
pub fn drops(socket: &impl AsFd) -> io::Result<u32> {
    Ok(meminfo(socket)?[MEMINFO_DROPS])
}

/// How much memory what waits to be read occupies, in bytes (`SO_MEMINFO`).
pub fn waiting(socket: &impl AsFd) -> io::Result<u32> {
    Ok(meminfo(socket)?[MEMINFO_RECEIVED])
}

fn meminfo(socket: &impl AsFd) -> io::Result<[u32; MEMINFO_VALUES]> {
    let mut values = [0_u32; MEMINFO_VALUES];
    let mut len = socklen::<[u32; MEMINFO_VALUES]>();
    let fd = socket.as_fd().as_raw_fd();
    let to = values.as_mut_ptr().cast();
    // SAFETY: `values` is live and `len` its size, so the kernel writes no more than that.
    let rc = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, SO_MEMINFO, to, &raw mut len) };
    if rc == 0 { Ok(values) } else { Err(io::Error::last_os_error()) }
}

/// An instruction of classic BPF: code, jump if true, jump if false, operand.
pub type Instruction = (u16, u8, u8, u32);

/// Sets an option.
pub fn set(socket: &impl AsFd, (level, name): IntOption, value: c_int) -> io::Result<()> {
    set_raw(socket, level, name, &value)
}

/// Reads an option.
pub fn get(socket: &impl AsFd, (level, name): IntOption) -> io::Result<c_int> {
    let mut value: c_int = 0;
    let mut len = socklen::<c_int>();
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: `value` is a live int and `len` its size, so the kernel writes no more than that.
    let rc = unsafe { libc::getsockopt(fd, level, name, (&raw mut value).cast(), &raw mut len) };
    if rc == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

/// The interface, by index, that IPv4 multicast leaves by.
pub fn set_multicast_interface_v4(socket: &impl AsFd, index: u32) -> io::Result<()> {
    let any = libc::in_addr { s_addr: 0 };
    let imr_ifindex = c_int::try_from(index).map_err(|_| io::ErrorKind::InvalidInput)?;
    let request = libc::ip_mreqn { imr_multiaddr: any, imr_address: any, imr_ifindex };
    set_raw(socket, libc::IPPROTO_IP, libc::IP_MULTICAST_IF, &request)
}

/// The classic BPF program that filters what the socket receives; empty if there is none.
pub fn filter(socket: &impl AsFd) -> io::Result<Vec<Instruction>> {
    // BPF_MAXINSNS: no program is longer.
    let blank = sock_filter { code: 0, jt: 0, jf: 0, k: 0 };
    let mut program = vec![blank; 4096];
    // This option counts in instructions, not in bytes.
    let mut len: socklen_t = 4096;
    let fd = socket.as_fd().as_raw_fd();
    let to = program.as_mut_ptr().cast::<c_void>();
    // SAFETY: `program` has room for `len` instructions and the kernel writes at most so many.
    let rc =
        unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_GET_FILTER, to, &raw mut len) };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    program.truncate(usize::try_from(len).unwrap_or(0));
    Ok(program.iter().map(|i| (i.code, i.jt, i.jf, i.k)).collect())
}

/// Attaches the classic BPF program that chooses among the sockets of a port (`SO_REUSEPORT`): it
/// returns the index of one, in the order in which they were bound. It replaces an earlier one, and
/// stays with the sockets, also when they are handed to another process.
///
/// # Errors
/// The socket is not one of several, or its filter is locked.
pub fn attach_reuseport(socket: &impl AsFd, program: &[Instruction]) -> io::Result<()> {
    let instruction = |&(code, jt, jf, k): &Instruction| sock_filter { code, jt, jf, k };
    let mut instructions: Vec<sock_filter> = program.iter().map(instruction).collect();
    let len = u16::try_from(instructions.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // The instructions outlive the call, and the kernel only reads them.
    let request = libc::sock_fprog { len, filter: instructions.as_mut_ptr() };
    set_raw(socket, libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF, &request)
}

/// A descriptor of the process at the other end of a Unix socket (`SO_PEERPIDFD`, socket(7)).
///
/// # Errors
/// The kernel is older than Linux 6.5, or the process has ended.
pub fn peer_process(socket: &impl AsFd) -> io::Result<OwnedFd> {
    let raw = get(socket, PEER_PROCESS)?;
    // SAFETY: the kernel has just made the descriptor for this call; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// The supplementary groups of the process at the other end of a Unix socket, as they were when it
/// connected (`SO_PEERGROUPS`, socket(7)).
///
/// # Errors
/// The kernel is older than Linux 4.13.
pub fn peer_groups(socket: &impl AsFd) -> io::Result<Vec<u32>> {
    // Enough for nearly everybody; the kernel says how many there are otherwise.
    let mut groups = vec![0_u32; 64];
    loop {
        let room = size_of_val(groups.as_slice());
        let mut len = socklen_t::try_from(room).map_err(|_| io::ErrorKind::InvalidInput)?;
        let (fd, to) = (socket.as_fd().as_raw_fd(), groups.as_mut_ptr().cast());
        let name = libc::SO_PEERGROUPS;
        // SAFETY: `groups` is live and `len` its size in bytes, so the kernel writes no more than
        // that.
        let rc = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, name, to, &raw mut len) };
        let error = io::Error::last_os_error();
        let count = usize::try_from(len).unwrap_or(0) / size_of::<u32>();
        match rc {
            0 => {
                groups.truncate(count);
                return Ok(groups);
            }
            _ if error.raw_os_error() == Some(libc::ERANGE) && count > groups.len() => {
                groups.resize(count, 0);
            }
            _ => return Err(error),
        }
    }
}

fn set_raw<T: Copy>(socket: &impl AsFd, level: c_int, name: c_int, value: &T) -> io::Result<()> {
    let fd = socket.as_fd().as_raw_fd();
    let from = (&raw const *value).cast::<c_void>();
    // SAFETY: `value` is a live `T` and the length is its size; the kernel only reads it.
    let rc = unsafe { libc::setsockopt(fd, level, name, from, socklen::<T>()) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn socklen<T>() -> socklen_t {
    socklen_t::try_from(size_of::<T>()).expect("options are small")
}
