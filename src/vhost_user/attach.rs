//! The ways in which frontends attach to the device: a socket that it listens on, one that it
//! connects to, or one that it has inherited.
//!
//! | File | Content |
//! |---|---|
//! | `server` | the loop that serves connections, one at a time, each until it ends |
//! | `callers` | the processes that connect, and which of them may |

mod callers;
mod server;

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::socket::{
    AddressFamily, SockType, SockaddrLike, SockaddrStorage, getsockname, getsockopt, sockopt,
};
use thiserror::Error;

use self::callers::Caller;
pub use self::callers::{Frontends, User};
use self::server::Server;
use super::device::DataPath;
use crate::sys::sandbox::view;
use crate::sys::{process, socket_file};

/// How a frontend attaches.
#[derive(Debug)]
pub enum Attach {
    /// Listen on a new socket.
    Listen {
        /// Its path. A socket file without a listener is replaced.
        path: PathBuf,
        /// Its permission bits: users with write permission may connect.
        mode: u32,
        /// Its group; by default that of the process.
        group: Option<u32>,
    },
    /// Connect to a socket that QEMU listens on, and reconnect whenever the connection ends.
    Connect {
        /// Its path.
        path: PathBuf,
    },
    /// A Unix stream socket that was inherited, connected or listening.
    Fd(OwnedFd),
}

/// Why the backend cannot serve frontends.
#[derive(Debug, Error)]
pub enum AttachError {
    /// Another process listens on the socket.
    #[error("{0} is in use: another process listens on it")]
    InUse(PathBuf),
    /// The path exists and is not a socket.
    #[error("{0} exists and is not a socket")]
    NotASocket(PathBuf),
    /// The inherited descriptor is not a Unix stream socket.
    #[error("file descriptor {0} is not a connected or listening Unix stream socket")]
    NotAStream(i32),
    /// The inherited connection belongs to a user who may not be a frontend.
    #[error("the frontend is {0}, whom --frontend-user does not list")]
    NotListed(String),
    /// There can't be a socket at the path.
    #[error("can't listen on {path}: {}{error}", step(doing))]
    Listen {
        /// The path.
        path: PathBuf,
        /// The failed operation.
        doing: &'static str,
        /// Why it failed.
        error: io::Error,
    },
    /// Another system call failed.
    #[error("{what}: {error}")]
    Io {
        /// The failed operation.
        what: &'static str,
        /// Why it failed.
        error: io::Error,
    },
}

impl AttachError {
    /// Whether it stays until somebody changes the command line, a file or a permission.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::NotASocket(_) | Self::NotAStream(_) | Self::NotListed(_) => true,
            Self::Listen { error, .. } => process::is_lasting(error),
            Self::InUse(_) | Self::Io { .. } => false,
        }
    }
}

/// The step that failed, unless it is the obvious one.
fn step(doing: &str) -> String {
    match doing {
        socket_file::CREATE => String::new(),
        _ => format!("can't {doing}: "),
    }
}

/// A socket for frontends, ready to be served.
pub struct Endpoint {
    source: Source,
    frontends: Frontends,
}

enum Source {
    /// A listening socket.
    Listener(UnixListener, #[expect(dead_code, reason = "only dropped")] Option<SocketFile>),
    /// A single connection.
    Once(Option<UnixStream>),
    /// The backend connects to this path.
    Peer(PathBuf),
}

/// The file of a listening socket, removed when dropped if it is still the same.
struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|m| m.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Endpoint {
    /// Opens the socket. If it listens, QEMU can connect from now on.
    ///
    /// # Errors
    /// One line that says what is wrong with the path or descriptor.
    pub fn open(attach: Attach) -> Result<Self, AttachError> {
        let source = match attach {
            Attach::Listen { path, mode, group } => bind(path, mode, group)?,
            Attach::Connect { path } => Source::Peer(view::real(&path).unwrap_or(path)),
            Attach::Fd(fd) => inherited(fd)?,
        };
        Ok(Self { source, frontends: Frontends::default() })
    }

    /// Admits only these users.
    ///
    /// # Errors
    /// The inherited connection belongs to another user.
    pub fn only_for(mut self, frontends: Frontends) -> Result<Self, AttachError> {
        if let Source::Once(Some(stream)) = &self.source {
            let caller = Caller::of(stream);
            if !frontends.admit(&caller) {
                return Err(AttachError::NotListed(frontends.describe(&caller)));
            }
        }
        self.frontends = frontends;
        Ok(self)
    }

    /// Serves frontends until `shutdown` is readable, or a single inherited connection has
    /// ended. When it returns, the device's threads have ended and the guest's memory is unmapped.
    ///
    /// # Errors
    /// Waiting itself failed.
    pub fn serve(
        self,
        data_path: Arc<dyn DataPath>,
        shutdown: BorrowedFd<'_>,
    ) -> Result<(), AttachError> {
        Server::new(self.source, self.frontends, data_path).run(shutdown)
    }
}

fn bind(path: PathBuf, mode: u32, group: Option<u32>) -> Result<Source, AttachError> {
    match fs::symlink_metadata(&path) {
        Ok(found) if !found.file_type().is_socket() => return Err(AttachError::NotASocket(path)),
        Ok(_) if UnixStream::connect(&path).is_ok() => return Err(AttachError::InUse(path)),
        _ => {}
    }
    let listen = |at: &Path| {
        let listener = UnixListener::bind(at)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    match socket_file::place(&path, mode, group, listen) {
        Ok((listener, (_, inode))) => {
            let path = view::place(&path).unwrap_or(path);
            Ok(Source::Listener(listener, Some(SocketFile { path, inode })))
        }
        Err((doing, error)) => Err(AttachError::Listen { path, doing, error }),
    }
}

fn inherited(fd: OwnedFd) -> Result<Source, AttachError> {
    let number = fd.as_raw_fd();
    let family = getsockname::<SockaddrStorage>(number).map(|address| address.family());
    let kind = getsockopt(&fd, sockopt::SockType);
    if family != Ok(Some(AddressFamily::Unix)) || kind != Ok(SockType::Stream) {
        return Err(AttachError::NotAStream(number));
    }
    let failed = |error| AttachError::Io { what: "can't use the inherited socket", error };
    if getsockopt(&fd, sockopt::AcceptConn).map_err(|e| failed(e.into()))? {
        let listener = UnixListener::from(fd);
        listener.set_nonblocking(true).map_err(failed)?;
        return Ok(Source::Listener(listener, None));
    }
    let stream = UnixStream::from(fd);
    stream.peer_addr().map_err(|_| AttachError::NotAStream(number))?;
    Ok(Source::Once(Some(stream)))
}
