//! One received message at a time: looked at before it is taken, and taken into any memory.
//!
//! With UDP_GRO (udp(7)) a message is a *train*: datagrams of one sender and one length, the last
//! perhaps shorter. [`super::mmsg`] takes many trains into memory of ours; here one is taken into pieces
//! of memory that may be a guest's.

use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use socket2::{SockAddr, SockAddrStorage};
use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

use super::mmsg::{CONTROL_ROOM, Control, control_of, empty_header};

/// A writable piece of memory, ours or a guest's, for `recvmsg`.
#[derive(Debug)]
#[repr(transparent)]
pub struct IoVecMut<'a> {
    raw: libc::iovec,
    borrow: PhantomData<&'a mut [u8]>,
}

impl<'a> IoVecMut<'a> {
    /// Our own memory.
    pub fn from_slice(slice: &'a mut [u8]) -> Self {
        let raw = libc::iovec { iov_base: slice.as_mut_ptr().cast(), iov_len: slice.len() };
        Self { raw, borrow: PhantomData }
    }

    /// Guest memory. The slice was bounds-checked when it was made; whoever lets the kernel write marks
    /// it as dirty afterwards.
    pub fn from_guest<B: BitmapSlice>(slice: &VolatileSlice<'a, B>) -> Self {
        let guard = slice.ptr_guard_mut();
        let raw = libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: slice.len() };
        Self { raw, borrow: PhantomData }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.raw.iov_len
    }

    /// Whether it covers nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes the first of `bytes`, as many as both have; returns the rest. For underlays without a
    /// socket.
    pub fn fill<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        let (now, later) = bytes.split_at(self.len().min(bytes.len()));
        // SAFETY: the memory is valid for writes of its length for 'a, whoever made the IoVecMut upheld
        // that. A guest may use it meanwhile, which this type of slice allows for.
        let slice = unsafe { VolatileSlice::new(self.raw.iov_base.cast(), now.len()) };
        slice.copy_from(now);
        later
    }
}

/// What is known of a message: who sent it, its length, and how it is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Train {
    /// The sender.
    pub from: SocketAddr,
    /// Length of all, in bytes, whatever room there was for it.
    pub len: usize,
    /// Length of each datagram but the last, in bytes; that of all for a single one.
    pub segment: usize,
}

impl Train {
    /// How many datagrams it is.
    pub fn datagrams(&self) -> usize {
        self.len.div_ceil(self.segment.max(1))
    }
}

/// A message and the kernel's count of those that found the socket buffer full (SO_RXQ_OVFL, wraps).
pub type Arrived = (Train, Option<u32>);

/// Looks at the message that is received next, and copies its beginning to `head`.
///
/// # Errors
/// `WouldBlock` when none waits; others are the socket's.
pub fn peek(socket: BorrowedFd<'_>, head: &mut [u8]) -> io::Result<Train> {
    let (train, _) = receive(socket, &mut [IoVecMut::from_slice(head)], libc::MSG_PEEK)?;
    Ok(train)
}

/// Receives the next message into `parts`, in order. Of one that is longer than they are, the rest is
/// lost.
///
/// # Errors
/// `WouldBlock` when none waits; `EFAULT` if memory is gone, and the message with it; others are the
/// socket's.
pub fn take(socket: BorrowedFd<'_>, parts: &mut [IoVecMut<'_>]) -> io::Result<Arrived> {
    receive(socket, parts, 0)
}

fn receive(
    socket: BorrowedFd<'_>,
    parts: &mut [IoVecMut<'_>],
    flags: libc::c_int,
) -> io::Result<Arrived> {
    let mut name = SockAddrStorage::zeroed();
    let mut control = MaybeUninit::<Control<CONTROL_ROOM>>::uninit();
    let mut message = empty_header();
    message.msg_namelen = name.size_of();
    message.msg_name = std::ptr::from_mut(&mut name).cast();
    message.msg_iov = parts.as_mut_ptr().cast();
    message.msg_iovlen = parts.len();
    message.msg_control = control.write(Control([0; CONTROL_ROOM])).0.as_mut_ptr().cast();
    message.msg_controllen = CONTROL_ROOM;
    let flags = flags | libc::MSG_DONTWAIT | libc::MSG_TRUNC;
    // SAFETY: name, control message and parts are borrowed for the call, and each is as large as the
    // header says (IoVecMut is a transparent iovec, whose memory is valid for writes).
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
    let len = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the length is what the kernel wrote beside the address.
    let name = unsafe { SockAddr::new(name, message.msg_namelen) };
    let extra = control_of(&message);
    let from = name.as_socket().ok_or(io::ErrorKind::InvalidData)?;
    let segment = extra.segment.filter(|size| *size > 0).unwrap_or(len);
    Ok((Train { from, len, segment }, extra.overflow))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::iovec::IoVec;
    use crate::sys::mmsg::{self, Message};
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    #[test]
    fn a_train_is_seen_and_then_taken_into_pieces() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (to, from) = (receiver.local_addr().unwrap(), sender.local_addr().unwrap());
        mmsg::enable_gro(receiver.as_fd()).unwrap();
        let mut head = [0; 16];
        let nothing = peek(receiver.as_fd(), &mut head).unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        let bytes: Vec<u8> = (0..4500).map(|n| (n / 20) as u8).collect();
        let parts = [IoVec::from_slice(&bytes)];
        let train = Message { to, parts: &parts, segment: 1000 };
        let single = Message { to, parts: &parts, segment: 0 };
        assert_eq!(mmsg::send(sender.as_fd(), &[train, single]).unwrap(), 2);

        let expected = Train { from, len: 4500, segment: 1000 };
        for _ in 0..2 {
            assert_eq!(peek(receiver.as_fd(), &mut head).unwrap(), expected);
            assert_eq!(head, bytes[..16]);
        }
        assert_eq!(expected.datagrams(), 5);
        let (mut first, mut guest) = (vec![0; 700], vec![0; 5000]);
        let slice = VolatileSlice::from(guest.as_mut_slice());
        let mut parts = [IoVecMut::from_slice(&mut first), IoVecMut::from_guest(&slice)];
        assert_eq!(take(receiver.as_fd(), &mut parts).unwrap().0, expected);
        assert_eq!((&first[..], &guest[..3800]), (&bytes[..700], &bytes[700..]));
        assert!(guest[3800..].iter().all(|byte| *byte == 0));

        // Its length is told also where it does not fit.
        let single = Train { segment: 4500, ..expected };
        let mut parts = [IoVecMut::from_slice(&mut first)];
        assert_eq!(take(receiver.as_fd(), &mut parts).unwrap().0, single);
        let nothing = take(receiver.as_fd(), &mut parts).unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn pieces_are_filled_in_order() {
        let (mut a, mut b) = ([0; 3], [0; 4]);
        let rest = IoVecMut::from_slice(&mut a).fill(b"abcdef");
        assert!(IoVecMut::from_slice(&mut b).fill(rest).is_empty());
        assert_eq!((&a, &b), (b"abc", b"def\0"));
    }
}
