//! `sendmmsg` and `recvmmsg`: batches of datagrams in one system call.

use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use socket2::{SockAddr, SockAddrStorage};

use super::iovec::IoVec;

/// Most datagrams in one system call.
pub const BATCH: usize = 64;

/// A datagram to be sent, in parts.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    /// Where to.
    pub to: SocketAddr,
    /// What, in order.
    pub parts: &'a [IoVec<'a>],
}

/// Sends up to [`BATCH`] datagrams in order; returns how many the kernel took.
///
/// # Errors
/// What became of the *first* datagram when none was taken.
pub fn send(socket: BorrowedFd<'_>, datagrams: &[Datagram<'_>]) -> io::Result<usize> {
    let count = datagrams.len().min(BATCH);
    let mut names = [const { MaybeUninit::<SockAddr>::uninit() }; BATCH];
    let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; BATCH];
    for ((datagram, name), header) in datagrams.iter().zip(&mut names).zip(&mut headers) {
        let name = name.write(SockAddr::from(datagram.to));
        let mut message = empty_header();
        message.msg_name = name.as_ptr().cast_mut().cast();
        message.msg_namelen = name.len();
        message.msg_iov = datagram.parts.as_ptr().cast_mut().cast();
        message.msg_iovlen = datagram.parts.len();
        header.write(libc::mmsghdr { msg_hdr: message, msg_len: 0 });
    }
    // SAFETY: the first `count` headers are initialised; the names and parts they point to are
    // borrowed for the call, and the kernel only reads them (IoVec is a transparent iovec).
    let sent = unsafe {
        libc::sendmmsg(
            socket.as_raw_fd(),
            headers.as_mut_ptr().cast(),
            u32::try_from(count).unwrap_or(0),
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Room for each received datagram: the largest that UDP can carry, so that none is ever cut.
const ROOM: usize = 65_536;
/// Datagrams received in one system call.
const RECEIVE_BATCH: usize = 32;
/// Room for the control messages of one datagram.
const CONTROL_ROOM: usize = 64;

#[derive(Clone, Copy, Debug)]
struct Slot {
    len: usize,
    from: Option<SocketAddr>,
    truncated: bool,
}

/// A datagram that arrived.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// Its payload.
    pub bytes: &'a [u8],
    /// The sender.
    pub from: SocketAddr,
}

/// Received datagrams, taken one by one in the order they came.
///
/// What is not taken stays for later, so that a guest without receive buffers loses nothing that
/// was already read. The memory is touched only as far as datagrams reach.
#[derive(Debug)]
pub struct ReceiveBatch {
    memory: Vec<u8>,
    slots: Vec<Slot>,
    next: usize,
    /// The kernel's count of datagrams that found the socket buffer full (SO_RXQ_OVFL, wraps),
    /// as of the newest datagram.
    pub overflow: Option<u32>,
}

impl Default for ReceiveBatch {
    fn default() -> Self {
        Self {
            memory: vec![0; ROOM * RECEIVE_BATCH],
            slots: Vec::with_capacity(RECEIVE_BATCH),
            next: 0,
            overflow: None,
        }
    }
}

impl ReceiveBatch {
    /// The oldest datagram not yet taken.
    pub fn peek(&self) -> Option<Received<'_>> {
        let slot = self.slots.get(self.next)?;
        let room = self.memory.get(self.next * ROOM..)?;
        // A datagram that was cut, or whose sender is unknown, is shown as empty: no parser takes it.
        let len = if slot.truncated || slot.from.is_none() { 0 } else { slot.len };
        let from = slot.from.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)));
        Some(Received { bytes: room.get(..len)?, from })
    }

    /// Done with the datagram that [`ReceiveBatch::peek`] shows.
    pub fn take(&mut self) {
        self.next += 1;
    }

    /// How many have not been taken.
    pub fn len(&self) -> usize {
        self.slots.len().saturating_sub(self.next)
    }

    /// Whether all have been taken.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets what has not been taken.
    pub fn clear(&mut self) {
        self.slots.clear();
        self.next = 0;
    }

    /// Adds a datagram as if it had been received; what it can't hold is cut.
    #[cfg(test)]
    pub fn push(&mut self, from: SocketAddr, bytes: &[u8]) {
        let start = self.slots.len() * ROOM;
        self.memory[start..start + bytes.len()].copy_from_slice(bytes);
        self.slots.push(Slot { len: bytes.len(), from: Some(from), truncated: false });
    }

    /// Receives as many datagrams as wait, up to a batch; replaces what was not taken.
    ///
    /// # Errors
    /// `WouldBlock` when none waits; others are the socket's.
    pub fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.clear();
        let mut names = [const { MaybeUninit::<SockAddrStorage>::uninit() }; RECEIVE_BATCH];
        let mut controls = [const { MaybeUninit::<Control>::uninit() }; RECEIVE_BATCH];
        let mut rooms = [empty_iovec(); RECEIVE_BATCH];
        let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; RECEIVE_BATCH];
        for (index, chunk) in self.memory.chunks_exact_mut(ROOM).take(RECEIVE_BATCH).enumerate() {
            rooms[index] = libc::iovec { iov_base: chunk.as_mut_ptr().cast(), iov_len: ROOM };
            let name = names[index].write(SockAddrStorage::zeroed());
            let mut message = empty_header();
            message.msg_namelen = name.size_of();
            message.msg_name = std::ptr::from_mut(name).cast();
            message.msg_iov = &raw mut rooms[index];
            message.msg_iovlen = 1;
            message.msg_control =
                controls[index].write(Control([0; CONTROL_ROOM])).0.as_mut_ptr().cast();
            message.msg_controllen = CONTROL_ROOM;
            headers[index].write(libc::mmsghdr { msg_hdr: message, msg_len: 0 });
        }
        // SAFETY: all headers are initialised; names, controls and rooms outlive the call and each
        // is as large as its header says.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr().cast(),
                RECEIVE_BATCH as u32,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        for (header, name) in headers.iter().zip(names).take(received) {
            // SAFETY: initialised above; the kernel wrote into it.
            let header = unsafe { header.assume_init_ref() };
            // SAFETY: initialised above (zeroed), then filled in by the kernel.
            let name = unsafe { name.assume_init() };
            // SAFETY: the length is what the kernel wrote beside the address.
            let name = unsafe { SockAddr::new(name, header.msg_hdr.msg_namelen) };
            if let Some(overflow) = overflow_of(&header.msg_hdr) {
                self.overflow = Some(overflow);
            }
            self.slots.push(Slot {
                len: usize::try_from(header.msg_len).unwrap_or(0).min(ROOM),
                from: name.as_socket(),
                truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
            });
        }
        Ok(())
    }
}

/// Control messages must be aligned as their header is.
#[repr(C, align(8))]
struct Control([u8; CONTROL_ROOM]);

fn empty_iovec() -> libc::iovec {
    libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }
}

fn empty_header() -> libc::msghdr {
    // SAFETY: msghdr is plain data for which all zero bytes are a valid, empty value.
    unsafe { std::mem::zeroed() }
}

/// The SO_RXQ_OVFL counter among the control messages of a received datagram.
fn overflow_of(message: &libc::msghdr) -> Option<u32> {
    // SAFETY: the header was filled in by the kernel and its control buffer is still alive.
    let mut control = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !control.is_null() {
        // SAFETY: not null, and CMSG_FIRSTHDR/NXTHDR stay within the control buffer.
        let header = unsafe { *control };
        if header.cmsg_level == libc::SOL_SOCKET && header.cmsg_type == libc::SO_RXQ_OVFL {
            // SAFETY: as above; the data begins behind the header.
            let data = unsafe { libc::CMSG_DATA(control) };
            // SAFETY: SO_RXQ_OVFL carries a u32; it may be unaligned.
            return Some(unsafe { data.cast::<u32>().read_unaligned() });
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

    fn pair() -> (UdpSocket, UdpSocket, SocketAddr) {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = receiver.local_addr().unwrap();
        (sender, receiver, to)
    }

    #[test]
    fn a_batch_arrives_in_order_and_whole() {
        let (sender, receiver, to) = pair();
        let texts: Vec<String> = (0..10).map(|n| "x".repeat(n * 1000)).collect();
        let parts: Vec<[IoVec<'_>; 2]> = texts
            .iter()
            .map(|t| [IoVec::from_slice(b"head:"), IoVec::from_slice(t.as_bytes())])
            .collect();
        let datagrams: Vec<Datagram<'_>> =
            parts.iter().map(|parts| Datagram { to, parts }).collect();
        assert_eq!(send(sender.as_fd(), &datagrams).unwrap(), 10);

        let mut batch = ReceiveBatch::default();
        batch.receive(receiver.as_fd()).unwrap();
        assert_eq!(batch.len(), 10);
        for text in &texts {
            let received = batch.peek().unwrap();
            assert_eq!(received.bytes, format!("head:{text}").as_bytes());
            assert_eq!(received.from, sender.local_addr().unwrap());
            batch.take();
        }
        assert!(batch.is_empty());
        let empty = batch.receive(receiver.as_fd()).unwrap_err();
        assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn the_first_failure_is_reported() {
        let (sender, _receiver, to) = pair();
        let huge = vec![0; 70_000];
        let parts = [[IoVec::from_slice(b"small")], [IoVec::from_slice(&huge)]];
        let datagrams = parts.each_ref().map(|parts| Datagram { to, parts });
        assert_eq!(send(sender.as_fd(), &datagrams).unwrap(), 1);
        let error = send(sender.as_fd(), &datagrams[1..]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
    }

    #[test]
    fn overflow_of_the_socket_buffer_is_seen() {
        let (sender, receiver, to) = pair();
        let socket = socket2::SockRef::from(&receiver);
        socket.set_recv_buffer_size(4096).unwrap();
        nix::sys::socket::setsockopt(&receiver, nix::sys::socket::sockopt::RxqOvfl, &1).unwrap();
        let bytes = [0; 1000];
        let parts = [IoVec::from_slice(&bytes)];
        for _ in 0..50 {
            send(sender.as_fd(), &[Datagram { to, parts: &parts }]).unwrap();
        }
        let mut batch = ReceiveBatch::default();
        batch.receive(receiver.as_fd()).unwrap();
        let arrived = batch.len() as u32;
        assert!(arrived < 50);
        send(sender.as_fd(), &[Datagram { to, parts: &parts }]).unwrap();
        batch.receive(receiver.as_fd()).unwrap();
        assert_eq!(batch.overflow, Some(50 - arrived));
    }
}
