//! The opener: a small process that carries out the operations of varpd that need a capability.
//!
//! ```text
//!   varpd                        opener
//!   reads the network            reads nothing but this connection
//!   no capability                CAP_NET_ADMIN
//!     | --- request, descriptor --> |
//!     | <-- errno, 0 if done ------ |
//! ```
//!
//! varpd forks the opener before it opens anything; the opener confines itself at once. Requests are of a few kinds
//! and have a fixed length. The opener checks all parameters and the attached descriptor before it acts,
//! because an attacker who has taken varpd over can send requests. The opener ends with varpd. If the
//! opener ends first, varpd continues without it.

#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Type};

use crate::sys::beside;
use crate::sys::event::{Interest, Poller};
use crate::sys::sandbox::{Capability, Confinement, Profile};
use crate::sys::seqpacket::Connection;
use crate::sys::sockopt;

/// Timeout of a request, longer than it ever takes; varpd serves no client meanwhile.
const PATIENCE: Duration = Duration::from_secs(1);
/// Largest permitted buffer, in bytes: that of a vif's sockets.
pub const MOST_BYTES: u32 = 16 << 20;

/// A request to the opener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    /// Set the send and receive buffers of the attached UDP socket.
    Buffers {
        /// At most [`MOST_BYTES`].
        bytes: u32,
    },
}

/// Length of a request: its kind and one number, of 32 bits each.
const REQUEST_LEN: usize = 8;
/// Length of an answer: a number of errno(3).
const ANSWER_LEN: usize = 4;
/// The kinds.
const BUFFERS: u32 = 1;

impl Request {
    fn emit(self) -> [u8; REQUEST_LEN] {
        let (kind, number) = match self {
            Self::Buffers { bytes } => (BUFFERS, bytes),
        };
        (u64::from(kind) << 32 | u64::from(number)).to_be_bytes()
    }

    /// `None` if the kind is unknown or a parameter out of bounds.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let (kind, number) = bytes.split_first_chunk::<4>()?;
        let number = u32::from_be_bytes(number.try_into().ok()?);
        match u32::from_be_bytes(*kind) {
            BUFFERS if number <= MOST_BYTES => Some(Self::Buffers { bytes: number }),
            _ => None,
        }
    }
}

/// Serves varpd until it ends.
fn serve(connection: &Connection) -> io::Result<()> {
    // One octet more, to detect messages that are too long.
    let mut buffer = [0; REQUEST_LEN + 1];
    loop {
        let received = match connection.recv(&mut buffer) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                connection.wait_readable(Duration::MAX)?;
                continue;
            }
            received => received?,
        };
        if received.len == 0 {
            return Ok(());
        }
        let request = buffer.get(..received.len).and_then(Request::parse);
        let done = request.ok_or(libc::EBADMSG).and_then(|request| perform(request, &received.fds));
        connection.send(&done.err().unwrap_or(0).to_be_bytes(), &[])?;
    }
}

fn perform(request: Request, fds: &[OwnedFd]) -> Result<(), i32> {
    let [fd] = fds else { return Err(libc::EBADMSG) };
    let errno = |error: io::Error| error.raw_os_error().unwrap_or(libc::EIO);
    match request {
        Request::Buffers { bytes } => {
            if !is_udp(fd).map_err(errno)? {
                return Err(libc::EPROTOTYPE);
            }
            let bytes = i32::try_from(bytes).map_err(|_| libc::EINVAL)?;
            sockopt::set(fd, sockopt::RCVBUFFORCE, bytes).map_err(errno)?;
            sockopt::set(fd, sockopt::SNDBUFFORCE, bytes).map_err(errno)
        }
    }
}

fn is_udp(fd: &impl AsFd) -> io::Result<bool> {
    let fd = fd.as_fd();
    let socket = SockRef::from(&fd);
    Ok([Domain::IPV4, Domain::IPV6].contains(&socket.domain()?)
        && socket.r#type()? == Type::DGRAM
        && socket.protocol()? == Some(Protocol::UDP))
}

/// varpd's connection to the opener.
#[derive(Debug)]
pub struct Privileged {
    /// `None` when it is gone.
    connection: RefCell<Option<Connection>>,
}

impl Privileged {
    /// Starts the opener, while this process has one thread.
    ///
    /// # Errors
    /// The system refuses another process.
    pub fn start() -> io::Result<Self> {
        let confinement = Confinement {
            profile: Profile::Opener,
            files: Vec::new(),
            capabilities: vec![Capability::CAP_NET_ADMIN],
            needs_landlock: false,
        };
        let (connection, pid) = beside::start(c"varpd-opener", |connection| {
            let served = confinement.enter().map_err(io::Error::other);
            if let Err(error) = served.and_then(|()| serve(&connection)) {
                log::error!("the opener ends: {error}");
            }
        })?;
        log::debug!("the opener is process {pid}");
        Ok(Self { connection: RefCell::new(Some(connection)) })
    }

    /// Sets the send and receive buffers of a UDP socket, in bytes; false on failure.
    pub fn enlarge(&self, socket: BorrowedFd<'_>, bytes: u32) -> bool {
        let answer = match &*self.connection.borrow() {
            None => return false,
            Some(connection) => exchange(connection, Request::Buffers { bytes }, socket),
        };
        match answer {
            Ok(0) => true,
            // The opener lacks the capability; varpd logs this when it starts.
            Ok(libc::EPERM) => false,
            Ok(errno) => {
                let error = io::Error::from_raw_os_error(errno);
                log::warn!("the opener can't enlarge a socket's buffers: {error}");
                false
            }
            Err(error) => {
                self.lose(&error);
                false
            }
        }
    }

    /// Checks whether the opener still runs.
    pub fn check(&self) {
        let hung_up = self.connection.borrow().as_ref().is_some_and(Connection::hung_up);
        if hung_up {
            self.lose(&io::ErrorKind::UnexpectedEof.into());
        }
    }

    fn lose(&self, error: &io::Error) {
        log::error!(
            "the opener has ended ({error}): new vifs get sockets with small buffers (net.core.rmem_max, \
             wmem_max); restart varpd, which interrupts no traffic"
        );
        self.connection.replace(None);
    }

    /// Adds the connection to a poller: it is readable when the opener has ended.
    ///
    /// # Errors
    /// The poller's.
    pub fn watch(&self, poller: &Poller, token: u64) -> io::Result<()> {
        match &*self.connection.borrow() {
            Some(connection) => poller.add(connection, token, Interest::Read),
            None => Ok(()),
        }
    }

    #[cfg(test)]
    fn is_there(&self) -> bool {
        self.connection.borrow().is_some()
    }
}

fn exchange(connection: &Connection, request: Request, fd: BorrowedFd<'_>) -> io::Result<i32> {
    connection.send(&request.emit(), &[fd])?;
    if !connection.wait_readable(PATIENCE)? {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let mut answer = [0; ANSWER_LEN];
    match connection.recv(&mut answer)?.len {
        ANSWER_LEN => Ok(i32::from_be_bytes(answer)),
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests;
