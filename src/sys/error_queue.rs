//! The error queue of a UDP socket (ip(7), `IP_RECVERR`): ICMP errors about sent datagrams.

use std::io;
use std::mem::size_of;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use socket2::{Domain, SockAddr, SockAddrStorage, SockRef};

use super::sockopt;

/// Room for control messages: the report and the address of who made it take 64 bytes.
const CONTROL_WORDS: usize = 32;

/// The kernel's report about a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Where it was sent.
    pub to: IpAddr,
    /// The error (errno(3)).
    pub errno: i32,
    /// With EMSGSIZE, the longest packet that passes, in bytes, as it was told.
    pub mtu: u32,
    /// Whether this kernel says so itself, at the time of sending; otherwise it comes from an ICMP
    /// message.
    pub is_local: bool,
}

/// Lets a socket queue reports.
///
/// # Errors
/// The kernel's.
pub fn enable(socket: BorrowedFd<'_>) -> io::Result<()> {
    let option = if SockRef::from(&socket).domain()? == Domain::IPV6 {
        (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
    } else {
        (libc::IPPROTO_IP, libc::IP_RECVERR)
    };
    sockopt::set(&socket, option, 1)
}

/// Takes the next report; `None` if there is none. One that can't be understood is skipped.
pub fn take(socket: BorrowedFd<'_>) -> Option<Report> {
    loop {
        match take_one(socket) {
            Ok(Some(report)) => return Some(report),
            Ok(None) => {}
            Err(_) => return None,
        }
    }
}

fn take_one(socket: BorrowedFd<'_>) -> io::Result<Option<Report>> {
    let mut name = SockAddrStorage::zeroed();
    let mut control = [0_u64; CONTROL_WORDS];
    // SAFETY: msghdr is plain data for which all zero bytes are a valid, empty value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_namelen = name.size_of();
    header.msg_name = (&raw mut name).cast();
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control);
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    // SAFETY: the header points to `name` and `control`, which live on and are as long as it says;
    // no bytes of the datagram itself are asked for.
    let done = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed, then filled in by the kernel to the length beside it.
    let to = unsafe { SockAddr::new(name, header.msg_namelen) }.as_socket();
    let report = to.zip(extended_error(&header)).map(|(to, error)| Report {
        to: to.ip(),
        errno: error.ee_errno.cast_signed(),
        mtu: error.ee_info,
        is_local: error.ee_origin == libc::SO_EE_ORIGIN_LOCAL,
    });
    Ok(report)
}

/// The report among the control messages.
fn extended_error(message: &libc::msghdr) -> Option<libc::sock_extended_err> {
    const LEN: usize = size_of::<libc::cmsghdr>() + size_of::<libc::sock_extended_err>();
    // SAFETY: the header was filled in by the kernel and its control buffer is still alive.
    let mut control = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !control.is_null() {
        // SAFETY: not null, and CMSG_FIRSTHDR/NXTHDR stay within the control buffer.
        let header = unsafe { *control };
        let is_report = matches!(
            (header.cmsg_level, header.cmsg_type),
            (libc::SOL_IP, libc::IP_RECVERR) | (libc::SOL_IPV6, libc::IPV6_RECVERR)
        );
        if is_report && header.cmsg_len >= LEN {
            // SAFETY: as above; the data begins behind the header.
            let data = unsafe { libc::CMSG_DATA(control) };
            // SAFETY: the message is long enough for the structure, which is plain data and may be
            // unaligned.
            return Some(unsafe { data.cast::<libc::sock_extended_err>().read_unaligned() });
        }
        // SAFETY: both are what CMSG_NXTHDR asks for.
        control = unsafe { libc::CMSG_NXTHDR(message, control) };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    #[test]
    fn what_is_too_long_for_the_route_is_reported_with_its_mtu() {
        for (address, discover) in
            [("127.0.0.1:0", sockopt::MTU_DISCOVER_V4), ("[::1]:0", sockopt::MTU_DISCOVER_V6)]
        {
            let socket = UdpSocket::bind(address).unwrap();
            sockopt::set(&socket, discover, sockopt::PMTUDISC_DO).unwrap();
            enable(socket.as_fd()).unwrap();
            assert_eq!(take(socket.as_fd()), None);
            let to = socket.local_addr().unwrap();
            // Longer than loopback's 65,536, with the headers, on IPv6; than any packet on IPv4.
            let error = socket.send_to(&vec![0; 65_500], to).err();
            if to.is_ipv6() {
                assert_eq!(error.unwrap().raw_os_error(), Some(libc::EMSGSIZE));
                let report = take(socket.as_fd()).unwrap();
                let expected =
                    Report { to: to.ip(), errno: libc::EMSGSIZE, mtu: 65_536, is_local: true };
                assert_eq!(report, expected);
            }
            assert_eq!(take(socket.as_fd()), None);
        }
    }

    #[test]
    fn a_closed_port_is_reported_once() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let closed = UdpSocket::bind(address).unwrap().local_addr().unwrap();
            let socket = UdpSocket::bind(address).unwrap();
            enable(socket.as_fd()).unwrap();
            // On loopback the ICMP message is there before the call returns.
            socket.send_to(b"anybody?", closed).unwrap();
            let report = take(socket.as_fd()).unwrap();
            assert_eq!((report.to, report.errno), (closed.ip(), libc::ECONNREFUSED));
            assert!(!report.is_local);
            assert_eq!(take(socket.as_fd()), None);
            // Taken, it is not told again by the next call.
            socket.send_to(b"to myself", socket.local_addr().unwrap()).unwrap();
        }
    }
}
