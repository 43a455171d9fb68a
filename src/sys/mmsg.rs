//! `sendmmsg` and `recvmmsg`: batches of datagrams in one system call, and with UDP_SEGMENT and
//! UDP_GRO (udp(7)) many datagrams in one message of a batch.

use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use socket2::{SockAddr, SockAddrStorage};

use super::iovec::IoVec;

/// Most messages in one system call.
pub const BATCH: usize = 64;
/// Most bytes of payload in one message, one datagram or many: what IPv4 has room for.
pub const MAX_MESSAGE_LEN: usize = 65_507;
/// Most datagrams in one message: the kernel's UDP_MAX_SEGMENTS since 6.9.
pub const MAX_SEGMENTS: usize = 128;
/// The same before 6.9.
pub const OLD_MAX_SEGMENTS: usize = 64;
/// Most parts of one message: the kernel's UIO_MAXIOV.
pub const MAX_PARTS: usize = 1024;

/// A message to be sent: one datagram, or many of one size.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Where to.
    pub to: SocketAddr,
    /// What, in order.
    pub parts: &'a [IoVec<'a>],
    /// Length of each datagram but the last, which may be shorter; 0 for a single datagram.
    pub segment: u16,
}

/// Room for the control message that carries the segment size.
const SEGMENT_ROOM: usize = 24;
/// `UDP_SEGMENT`, the option and the type of the control message (linux/udp.h).
const UDP_SEGMENT: libc::c_int = 103;
/// `UDP_GRO` likewise.
const UDP_GRO: libc::c_int = 104;

/// Sends up to [`BATCH`] messages in order; returns how many the kernel took.
///
/// # Errors
/// What became of the *first* message when none was taken.
pub fn send(socket: BorrowedFd<'_>, messages: &[Message<'_>]) -> io::Result<usize> {
    let count = messages.len().min(BATCH);
    let mut names = [const { MaybeUninit::<SockAddr>::uninit() }; BATCH];
    let mut controls = [const { MaybeUninit::<Control<SEGMENT_ROOM>>::uninit() }; BATCH];
    let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; BATCH];
    let places = names.iter_mut().zip(&mut controls).zip(&mut headers);
    for (message, ((name, control), header)) in messages.iter().zip(places) {
        let name = name.write(SockAddr::from(message.to));
        let mut raw = empty_header();
        raw.msg_name = name.as_ptr().cast_mut().cast();
        raw.msg_namelen = name.len();
        raw.msg_iov = message.parts.as_ptr().cast_mut().cast();
        raw.msg_iovlen = message.parts.len();
        if message.segment != 0 {
            raw.msg_control = control.write(segment_control(message.segment)).0.as_mut_ptr().cast();
            raw.msg_controllen = SEGMENT_ROOM;
        }
        header.write(libc::mmsghdr { msg_hdr: raw, msg_len: 0 });
    }
    // SAFETY: the first `count` headers are initialised; the names, control messages and parts they
    // point to are borrowed for the call, and the kernel only reads them (IoVec is a transparent
    // iovec).
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

/// The control message that asks for segments of a size: a header (length, level, type: cmsg(3))
/// and the size, in the host's byte order.
fn segment_control(segment: u16) -> Control<SEGMENT_ROOM> {
    let mut control = Control([0; SEGMENT_ROOM]);
    let len: usize = 16 + size_of::<u16>();
    let fields = [
        &len.to_ne_bytes()[..],
        &libc::SOL_UDP.to_ne_bytes(),
        &UDP_SEGMENT.to_ne_bytes(),
        &segment.to_ne_bytes(),
    ];
    let mut bytes = control.0.iter_mut();
    fields.into_iter().flatten().zip(&mut bytes).for_each(|(field, byte)| *byte = *field);
    control
}

/// Lets the kernel hand over runs of datagrams of one size as one (UDP_GRO).
///
/// # Errors
/// The kernel can't; then each datagram is received by itself.
pub fn enable_gro(socket: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option is an int, and its address and length are passed.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            UDP_GRO,
            std::ptr::from_ref(&on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Room for a message that may be the longest that UDP can carry, so that none is ever cut.
pub const LONGEST: usize = 65_536;
/// Messages received in one system call: as much as stays in a level-2 cache.
pub const RECEIVE_BATCH: usize = 16;
/// Room for the control messages of one message.
pub(super) const CONTROL_ROOM: usize = 64;

#[derive(Clone, Copy, Debug)]
struct Slot {
    len: usize,
    from: Option<SocketAddr>,
    segment: usize,
    truncated: bool,
}

/// A message that arrived: one datagram, or many of one size.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// Its payload.
    pub bytes: &'a [u8],
    /// The sender.
    pub from: SocketAddr,
    /// Length of each datagram but the last; that of all bytes for a single one, never 0.
    segment: usize,
}

impl<'a> Received<'a> {
    /// The datagrams in it, in order; a single empty one for none.
    pub fn datagrams(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let empty = self.bytes.is_empty().then_some(self.bytes);
        empty.into_iter().chain(self.bytes.chunks(self.segment.max(1)))
    }
}

/// Received messages of any length.
pub type ReceiveBatch = Arrivals<LONGEST, RECEIVE_BATCH>;

/// Received messages, in the order they came: as many as `COUNT` at a time, each of at most `ROOM`
/// bytes. The memory is touched only as far as they reach.
#[derive(Debug)]
pub struct Arrivals<const ROOM: usize, const COUNT: usize> {
    memory: Vec<u8>,
    slots: Vec<Slot>,
    /// Messages to be received at a time.
    most: usize,
    /// The kernel's count of datagrams that found the socket buffer full (SO_RXQ_OVFL, wraps),
    /// as of the newest message.
    pub overflow: Option<u32>,
}

impl<const ROOM: usize, const COUNT: usize> Default for Arrivals<ROOM, COUNT> {
    fn default() -> Self {
        let slots = Vec::with_capacity(COUNT);
        Self { memory: vec![0; ROOM * COUNT], slots, most: COUNT, overflow: None }
    }
}

impl<const ROOM: usize, const COUNT: usize> Arrivals<ROOM, COUNT> {
    /// Receives no more than about so many bytes at a time: fewer messages than there is room for,
    /// but one.
    pub fn bound(&mut self, bytes: u64) {
        let messages = usize::try_from(bytes).unwrap_or(usize::MAX) / ROOM;
        self.most = messages.clamp(1, COUNT);
    }

    /// The n-th message.
    pub fn get(&self, n: usize) -> Option<Received<'_>> {
        let slot = self.slots.get(n)?;
        let room = self.memory.get(n * ROOM..)?;
        // A message that was cut, or whose sender is unknown, is shown as empty: no parser takes
        // it.
        let len = if slot.truncated || slot.from.is_none() { 0 } else { slot.len };
        let from = slot.from.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)));
        Some(Received { bytes: room.get(..len)?, from, segment: slot.segment })
    }

    /// The n-th message, to be opened in place: its sender, its bytes, and the length of each
    /// datagram but the last, never 0.
    pub fn get_mut(&mut self, n: usize) -> Option<(SocketAddr, &mut [u8], usize)> {
        let Received { bytes, from, segment } = self.get(n)?;
        let (len, start) = (bytes.len(), n * ROOM);
        Some((from, self.memory.get_mut(start..start + len)?, segment.max(1)))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Whether there was room for no more: others may wait. A batch that is not full has emptied
    /// the socket.
    pub fn is_full(&self) -> bool {
        self.slots.len() == self.most
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.slots.clear();
    }

    /// Adds a message as if it had been received, for underlays without a socket; false if there
    /// is no room.
    pub fn push(&mut self, from: SocketAddr, bytes: &[u8], segment: usize) -> bool {
        let mut rooms = self.memory.chunks_exact_mut(ROOM).skip(self.slots.len());
        let Some(room) = rooms.next().and_then(|room| room.get_mut(..bytes.len())) else {
            return false;
        };
        room.copy_from_slice(bytes);
        self.slots.push(Slot { len: bytes.len(), from: Some(from), segment, truncated: false });
        true
    }

    /// Receives as many messages as wait, up to a batch; replaces what was there.
    ///
    /// # Errors
    /// `WouldBlock` when none waits; others are the socket's.
    pub fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.clear();
        let mut names = [const { MaybeUninit::<SockAddrStorage>::uninit() }; COUNT];
        let mut controls = [const { MaybeUninit::<Control<CONTROL_ROOM>>::uninit() }; COUNT];
        let mut rooms = [empty_iovec(); COUNT];
        let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; COUNT];
        for (index, chunk) in self.memory.chunks_exact_mut(ROOM).take(COUNT).enumerate() {
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
                self.most as u32,
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
            let extra = control_of(&header.msg_hdr);
            self.overflow = extra.overflow.or(self.overflow);
            let len = usize::try_from(header.msg_len).unwrap_or(0).min(ROOM);
            self.slots.push(Slot {
                len,
                from: name.as_socket(),
                segment: extra.segment.filter(|size| *size > 0).unwrap_or(len),
                truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
            });
        }
        Ok(())
    }
}

/// Control messages must be aligned as their header is.
#[repr(C, align(8))]
pub(super) struct Control<const ROOM: usize>(pub(super) [u8; ROOM]);

fn empty_iovec() -> libc::iovec {
    libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }
}

pub(super) fn empty_header() -> libc::msghdr {
    // SAFETY: msghdr is plain data for which all zero bytes are a valid, empty value.
    unsafe { std::mem::zeroed() }
}

/// The contents of the control messages of a received message.
#[derive(Debug, Default)]
pub(super) struct Extra {
    pub(super) overflow: Option<u32>,
    pub(super) segment: Option<usize>,
}

pub(super) fn control_of(message: &libc::msghdr) -> Extra {
    let mut extra = Extra::default();
    // SAFETY: the header was filled in by the kernel and its control buffer is still alive.
    let mut control = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !control.is_null() {
        // SAFETY: not null, and CMSG_FIRSTHDR/NXTHDR stay within the control buffer.
        let header = unsafe { *control };
        // SAFETY: as above; the data begins behind the header.
        let data = unsafe { libc::CMSG_DATA(control) };
        match (header.cmsg_level, header.cmsg_type) {
            (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) => {
                // SAFETY: SO_RXQ_OVFL carries a u32; it may be unaligned.
                extra.overflow = Some(unsafe { data.cast::<u32>().read_unaligned() });
            }
            (libc::SOL_UDP, UDP_GRO) => {
                // SAFETY: UDP_GRO carries an int; it may be unaligned.
                let size = unsafe { data.cast::<libc::c_int>().read_unaligned() };
                extra.segment = usize::try_from(size).ok();
            }
            _ => {}
        }
        // SAFETY: both are what CMSG_NXTHDR asks for.
        control = unsafe { libc::CMSG_NXTHDR(message, control) };
    }
    extra
}

#[cfg(test)]
mod tests;
