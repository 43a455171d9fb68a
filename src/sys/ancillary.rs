//! Bytes with descriptors over a Unix socket (`SCM_RIGHTS`).

use std::io::{self, IoSlice};
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

/// Most descriptors that a message can carry: the kernel's `SCM_MAX_FD`.
pub const MAX_DESCRIPTORS: usize = 253;

/// Room for one control message of [`MAX_DESCRIPTORS`], in units that align it.
const CONTROL_WORDS: usize = (size_of::<libc::cmsghdr>() + MAX_DESCRIPTORS * 4).div_ceil(8) + 1;

/// What one call received.
#[derive(Debug)]
pub struct Received {
    /// Bytes written to the buffer; 0 at the end of the stream.
    pub len: usize,
    /// Descriptors that came along, close-on-exec.
    pub descriptors: Vec<OwnedFd>,
    /// Whether descriptors were lost because this process may not open more.
    pub truncated: bool,
    /// Whether a datagram did not fit in the buffer and was cut.
    pub is_cut: bool,
}

/// Receives without waiting. The kernel never hands out the descriptors of two sent messages in one
/// call.
///
/// (nix's `recvmsg` does not show the descriptors of a message whose control data was cut, which
/// leaks them.)
///
/// # Errors
/// Those of recvmsg(2); `WouldBlock` if nothing is there.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    let mut control = [0_u64; CONTROL_WORDS];
    let mut slice = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all-zero is a valid value of this C structure.
    let mut header = unsafe { MaybeUninit::<libc::msghdr>::zeroed().assume_init() };
    header.msg_iov = &raw mut slice;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control);
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    let len = loop {
        // SAFETY: `header` points to `slice` and `control`, which live on and are as long as said;
        // `slice` to `buffer`, which is borrowed for writing.
        let done = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
        match usize::try_from(done) {
            Ok(len) => break len,
            Err(_) if Errno::last() == Errno::EINTR => {}
            Err(_) => return Err(io::Error::last_os_error()),
        }
    };
    Ok(Received {
        len,
        descriptors: adopt(&control, header.msg_controllen),
        truncated: header.msg_flags & libc::MSG_CTRUNC != 0,
        is_cut: header.msg_flags & libc::MSG_TRUNC != 0,
    })
}

/// Takes ownership of the descriptors in the control data of one recvmsg(2).
fn adopt(control: &[u64; CONTROL_WORDS], used: usize) -> Vec<OwnedFd> {
    let bytes: Vec<u8> = control.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let mut rest = bytes.get(..used).unwrap_or(&bytes);
    let mut adopted = Vec::new();
    // struct cmsghdr { size_t cmsg_len; int cmsg_level; int cmsg_type; }, then data; cmsg(3).
    while let Some((head, _)) = rest.split_at_checked(size_of::<libc::cmsghdr>()) {
        let word = size_of::<usize>();
        let len = head.first_chunk().map_or(0, |b| usize::from_ne_bytes(*b));
        let int = |at: usize| head.get(at..at + 4).and_then(|b| b.first_chunk().copied());
        let kind = (int(word).map(i32::from_ne_bytes), int(word + 4).map(i32::from_ne_bytes));
        let data = rest.get(head.len()..len).unwrap_or_default();
        if kind == (Some(libc::SOL_SOCKET), Some(libc::SCM_RIGHTS)) {
            let (numbers, _) = data.as_chunks();
            // SAFETY: the kernel opened the descriptors for this call; nobody else knows them.
            adopted.extend(
                numbers.iter().map(|n| unsafe { OwnedFd::from_raw_fd(RawFd::from_ne_bytes(*n)) }),
            );
        }
        rest = rest.get(len.max(1).next_multiple_of(word)..).unwrap_or_default();
    }
    adopted
}

/// Sends as much of `bytes` as the socket takes without waiting, `descriptors` with the first of
/// them. Returns how many bytes were sent.
///
/// # Errors
/// Those of sendmsg(2); `WouldBlock` if the socket is full, and nothing was sent then.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[OwnedFd]) -> io::Result<usize> {
    let numbers: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let control = if numbers.is_empty() { &[][..] } else { &rights[..] };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    loop {
        match sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None) {
            Err(Errno::EINTR) => {}
            done => return done.map_err(io::Error::from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn descriptors_arrive_with_their_bytes() {
        let (a, b) = UnixStream::pair().unwrap();
        let files: Vec<OwnedFd> =
            (0..40).map(|_| std::fs::File::open("/dev/null").unwrap().into()).collect();
        assert_eq!(send(a.as_fd(), b"one", &files).unwrap(), 3);
        assert_eq!(send(a.as_fd(), b"two", &[]).unwrap(), 3);
        let mut buffer = [0; 16];
        let first = receive(b.as_fd(), &mut buffer).unwrap();
        assert_eq!((first.len, first.descriptors.len(), first.truncated), (3, 40, false));
        let second = receive(b.as_fd(), &mut buffer).unwrap();
        assert_eq!((second.len, second.descriptors.len()), (3, 0));
        assert_eq!(receive(b.as_fd(), &mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(a);
        assert_eq!(receive(b.as_fd(), &mut buffer).unwrap().len, 0);
    }
}
