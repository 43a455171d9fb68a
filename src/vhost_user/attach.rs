//! How frontends reach the device: by a socket it listens on, one it connects to, or one it was
//! given; and the loop that serves them, one at a time.
//!
//! A connection that comes while another is served takes its place as soon as it says something: a
//! QEMU that restarts must not wait for its predecessor's remains, but a process that only probes
//! whether anybody listens must not cost the guest its network.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use log::Level;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrLike, SockaddrStorage, UnixAddr, connect,
    getsockname, getsockopt, recv, socket, sockopt,
};
use thiserror::Error;

use super::connection::{Connection, End};
use super::device::DataPath;
use crate::quiet::Quiet;
use crate::sys::clock;

/// First pause before connecting again to a QEMU that does not answer; doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// Most connections that have not said anything yet.
const MOST_SILENT: usize = 8;
/// Pause after an error that a retry may cure, such as too many open files.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// Where frontends come from.
#[derive(Debug)]
pub enum Attach {
    /// Listen on a new socket.
    Listen {
        /// Its path. A socket file that nobody listens on is replaced.
        path: PathBuf,
        /// Its permission bits: who may write to it may connect.
        mode: u32,
        /// Its group, if not that of the process.
        group: Option<u32>,
    },
    /// Connect to a socket that QEMU listens on, again whenever the connection ends.
    Connect {
        /// Its path.
        path: PathBuf,
    },
    /// A Unix stream socket that was inherited, connected or listening.
    Fd(OwnedFd),
}

/// Why frontends can't be served.
#[derive(Debug, Error)]
pub enum AttachError {
    /// Somebody listens there.
    #[error("{0} is in use: another process listens on it")]
    InUse(PathBuf),
    /// Something else than a socket is there.
    #[error("{0} exists and is not a socket")]
    NotASocket(PathBuf),
    /// The descriptor given is not a Unix stream socket.
    #[error("file descriptor {0} is not a connected or listening Unix stream socket")]
    NotAStream(i32),
    /// A system call on a path failed.
    #[error("{what} {path}: {error}")]
    Path {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
    /// Another system call failed.
    #[error("{what}: {error}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        error: io::Error,
    },
}

/// An open way for frontends, ready to be served.
pub struct Endpoint(Source);

enum Source {
    /// New connections come from here.
    Listener(UnixListener, #[expect(dead_code, reason = "only dropped")] Option<SocketFile>),
    /// One connection, then the end.
    Once(Option<UnixStream>),
    /// Connections are made to this path.
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
    /// Opens the way. For a socket to listen on, QEMU can connect from now on.
    ///
    /// # Errors
    /// One line that says what is wrong with the path or descriptor.
    pub fn open(attach: Attach) -> Result<Self, AttachError> {
        let source = match attach {
            Attach::Listen { path, mode, group } => bind(path, mode, group)?,
            Attach::Connect { path } => Source::Peer(path),
            Attach::Fd(fd) => inherited(fd)?,
        };
        Ok(Self(source))
    }

    /// Serves frontends until `shutdown` is readable, or the only connection there can be has
    /// ended. Returns at once then: the device's threads have ended, the guest's memory is unmapped.
    ///
    /// # Errors
    /// Waiting itself failed.
    pub fn serve(
        self,
        data_path: Arc<dyn DataPath>,
        shutdown: BorrowedFd<'_>,
    ) -> Result<(), AttachError> {
        Server::new(self.0, data_path).run(shutdown)
    }
}

fn path_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> AttachError {
    let path = path.to_owned();
    move |error| AttachError::Path { what, path, error }
}

/// Binds under another name first, so that the socket never has other permissions than those asked
/// for, and takes the place of a dead one in one step.
fn bind(path: PathBuf, mode: u32, group: Option<u32>) -> Result<Source, AttachError> {
    match fs::symlink_metadata(&path) {
        Ok(found) if !found.file_type().is_socket() => return Err(AttachError::NotASocket(path)),
        Ok(_) if UnixStream::connect(&path).is_ok() => return Err(AttachError::InUse(path)),
        _ => {}
    }
    let mut new = path.clone().into_os_string();
    new.push(format!(".{}", std::process::id()));
    let new = PathBuf::from(new);
    let _ = fs::remove_file(&new);
    let listener = UnixListener::bind(&new).map_err(path_error("can't listen on", &path))?;
    let dressed = (|| {
        fs::set_permissions(&new, fs::Permissions::from_mode(mode))?;
        chown(&new, None, group)?;
        listener.set_nonblocking(true)?;
        let inode = fs::symlink_metadata(&new)?.ino();
        fs::rename(&new, &path)?;
        Ok(inode)
    })();
    match dressed {
        Ok(inode) => Ok(Source::Listener(listener, Some(SocketFile { path, inode }))),
        Err(error) => {
            let _ = fs::remove_file(&new);
            Err(path_error("can't set up the socket", &path)(error))
        }
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

/// The loop's state.
struct Server {
    source: Source,
    data_path: Arc<dyn DataPath>,
    current: Option<Connection>,
    /// Whether the frontend of `current` said anything.
    heard: bool,
    /// Connections that have not said anything yet, oldest first.
    silent: Vec<UnixStream>,
    /// How long to wait before connecting or accepting again; `None` to do it now.
    pause: Option<Duration>,
    /// The next pause between attempts to connect.
    backoff: Duration,
    /// Why the last connection was ended that had to be, as it was said.
    refused: String,
    /// How often the same is said again: QEMU tries each second.
    quiet_about_the_same: Quiet,
    /// How often it is said that a frontend connected.
    quiet_about_connects: Quiet,
}

impl Server {
    fn new(source: Source, data_path: Arc<dyn DataPath>) -> Self {
        Self {
            source,
            data_path,
            current: None,
            heard: false,
            silent: Vec::new(),
            pause: None,
            backoff: FIRST_PAUSE,
            refused: String::new(),
            quiet_about_the_same: Quiet::new(2),
            quiet_about_connects: Quiet::new(20),
        }
    }

    fn run(mut self, shutdown: BorrowedFd<'_>) -> Result<(), AttachError> {
        loop {
            if self.current.is_none() {
                match &mut self.source {
                    Source::Once(stream) => match stream.take() {
                        Some(stream) => self.begin(stream),
                        None => return Ok(()),
                    },
                    Source::Peer(_) if self.pause.is_none() => self.connect(),
                    Source::Peer(_) | Source::Listener(..) => {}
                }
            }
            if self.wait(shutdown)? {
                return Ok(());
            }
            self.accept();
            self.promote();
            self.step();
            self.renew();
        }
    }

    /// Goes on with other descriptors if the data path has others.
    fn renew(&mut self) {
        let Some(changed) = self.data_path.changed() else { return };
        if nix::unistd::read(changed, &mut [0; 8]).is_err() {
            return;
        }
        if self.current.as_ref().is_some_and(|connection| !connection.renew_descriptors()) {
            log::warn!("the frontend is disconnected: the vif's new sockets are of another number");
            self.current = None;
        }
        self.data_path.descriptors_taken();
    }

    /// Waits for anything to do; true if it is the shutdown.
    fn wait(&mut self, shutdown: BorrowedFd<'_>) -> Result<bool, AttachError> {
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut set = vec![readable(shutdown)];
        set.extend(self.data_path.changed().map(readable));
        if let (Source::Listener(listener, _), None) = (&self.source, self.pause) {
            set.push(readable(listener.as_fd()));
        }
        set.extend(self.silent.iter().map(|stream| readable(stream.as_fd())));
        set.extend(self.current.iter().flat_map(Connection::interest));
        let timeout = self.pause.map_or(PollTimeout::NONE, |pause| {
            PollTimeout::try_from(pause).unwrap_or(PollTimeout::MAX)
        });
        let ready = match poll(&mut set, timeout) {
            Err(Errno::EINTR) => return Ok(false),
            other => other.map_err(|e| AttachError::Io { what: "can't poll", error: e.into() })?,
        };
        let over = set.first().and_then(PollFd::any).unwrap_or(false);
        if ready == 0 {
            self.pause = None;
        }
        Ok(over)
    }

    /// Takes all new connections, as many as are allowed to wait.
    fn accept(&mut self) {
        let (Source::Listener(listener, _), None) = (&self.source, self.pause) else { return };
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    if self.silent.len() == MOST_SILENT {
                        self.silent.remove(0);
                    }
                    self.silent.push(stream);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    log::warn!("can't accept a connection: {error}");
                    self.pause = Some(ERROR_PAUSE);
                    return;
                }
            }
        }
    }

    /// Begins to serve connections that said something, the last of them in the end.
    fn promote(&mut self) {
        for stream in std::mem::take(&mut self.silent) {
            let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
            match recv(stream.as_raw_fd(), &mut [0], flags) {
                Err(Errno::EAGAIN | Errno::EINTR) => self.silent.push(stream),
                Ok(0) | Err(_) => log::debug!("a connection was closed before it said anything"),
                Ok(_) => self.begin(stream),
            }
        }
    }

    fn connect(&mut self) {
        let Source::Peer(path) = &self.source else { return };
        match connect_now(path) {
            Ok(stream) => self.begin(stream),
            Err(error) => {
                if self.backoff == FIRST_PAUSE {
                    log::info!("waiting for a frontend at {}: {error}", path.display());
                }
                self.back_off();
            }
        }
    }

    fn back_off(&mut self) {
        self.pause = Some(self.backoff);
        self.backoff = (self.backoff * 2).min(LONGEST_PAUSE);
    }

    /// Serves `stream` from now on, and whoever was served before no more.
    fn begin(&mut self, stream: UnixStream) {
        if self.current.take().is_some() {
            log::info!("another frontend connected: the previous one is disconnected");
        }
        self.heard = false;
        match Connection::start(stream, self.data_path.clone()) {
            Ok(connection) => {
                let level = self.quiet_about_connects.level(clock::mono());
                log::log!(level.max(Level::Info), "a frontend connected");
                self.current = Some(connection);
            }
            Err(error) => {
                log::error!("can't serve a frontend: {error}");
                self.pause = Some(ERROR_PAUSE);
            }
        }
    }

    /// Moves messages of the connection that is served.
    fn step(&mut self) {
        let Some(connection) = &mut self.current else { return };
        let end = match connection.step() {
            Ok(heard) => {
                self.heard |= heard;
                return;
            }
            Err(end) => end,
        };
        self.current = None;
        if matches!(end, End::Disconnected) {
            log::info!("{end}");
            if self.heard {
                self.backoff = FIRST_PAUSE;
            }
        } else {
            self.say_refused(end.to_string());
        }
        if let Source::Peer(_) = self.source {
            self.back_off();
        }
    }

    fn say_refused(&mut self, why: String) {
        let level = if why == self.refused {
            self.quiet_about_the_same.level(clock::mono())
        } else {
            Level::Error
        };
        log::log!(if level == Level::Warn { Level::Error } else { level }, "{why}");
        self.refused = why;
    }
}

/// Connects without waiting: a listener whose queue is full counts as absent.
fn connect_now(path: &Path) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(UnixStream::from(socket))
}
