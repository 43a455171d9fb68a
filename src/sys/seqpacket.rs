//! `SOCK_SEQPACKET` Unix sockets: whole datagrams over a connection, with descriptors.
//!
//! All sockets are non-blocking and close-on-exec. A descriptor that arrives has an owner from the
//! moment at which it is in this process: code that does not want it drops it.

use std::fs;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, getsockopt, sendmsg, sockopt::PeerCredentials};
use socket2::{Domain, SockAddr, Socket, Type};
use thiserror::Error;

use super::ancillary;
use super::process::Process;
use super::socket_file;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Why a socket can't be listened on.
#[derive(Debug, Error)]
pub enum BindError {
    /// Somebody answers there.
    #[error("{0}: another process is listening there")]
    Live(PathBuf),
    /// Something else has the name.
    #[error("{0}: exists and is not a socket")]
    NotASocket(PathBuf),
    /// A system call failed.
    #[error("{path}: can't {doing}: {source}")]
    System {
        /// The socket's path.
        path: PathBuf,
        /// The failed operation.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// A socket that listens at a path; removes the path when dropped.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    path: PathBuf,
    /// Device and inode: a successor's socket is not removed.
    inode: (u64, u64),
}

impl Listener {
    /// Listens at `path` with the given permission bits and, if any, group. A socket file on which
    /// nobody listens is replaced.
    pub fn bind(path: &Path, mode: u32, group: Option<u32>) -> Result<Self, BindError> {
        let failed =
            |doing| move |source| BindError::System { path: path.to_owned(), doing, source };
        remove_stale(path)?;
        let listen = |at: &Path| {
            let socket = new_socket()?;
            socket.bind(&SockAddr::unix(at)?)?;
            socket.listen(BACKLOG)?;
            Ok(socket)
        };
        let placed = socket_file::place(path, mode, group, listen);
        let (socket, inode) = placed.map_err(|(doing, source)| failed(doing)(source))?;
        Ok(Self { socket, path: path.to_owned(), inode })
    }

    /// The next connection that waits; [`io::ErrorKind::WouldBlock`] if none does.
    pub fn accept(&self) -> io::Result<Connection> {
        let (socket, _) = self.socket.accept_raw()?;
        socket.set_cloexec(true)?;
        socket.set_nonblocking(true)?;
        Ok(Connection(socket))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let same = |file: fs::Metadata| (file.dev(), file.ino()) == self.inode;
        if fs::symlink_metadata(&self.path).is_ok_and(same) {
            // Nothing better to do about a failure at the end.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The process at the other end, as the kernel recorded it when the connection was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Effective user id.
    pub uid: u32,
    /// Process id, 0 if it is in a namespace that is not seen from here.
    pub pid: i32,
}

/// A datagram that arrived.
#[derive(Debug)]
pub struct Received {
    /// Its length in the buffer; 0 means that the connection has ended.
    pub len: usize,
    /// It did not fit in the buffer and was cut.
    pub truncated: bool,
    /// The descriptors that came along, in order.
    pub fds: Vec<OwnedFd>,
}

/// A connection.
#[derive(Debug)]
pub struct Connection(Socket);

impl Connection {
    /// Connects to a listener.
    pub fn open(path: &Path) -> io::Result<Self> {
        let socket = new_socket()?;
        socket.connect(&SockAddr::unix(path)?)?;
        Ok(Self(socket))
    }

    /// Both ends of one that has no name.
    pub fn pair() -> io::Result<(Self, Self)> {
        let kind = Type::from(libc::SOCK_SEQPACKET).nonblocking().cloexec();
        let (one, other) = Socket::pair_raw(Domain::UNIX, kind, None)?;
        Ok((Self(one), Self(other)))
    }

    /// Sends a datagram, whole or not at all: [`io::ErrorKind::WouldBlock`] if the peer's queue is
    /// full.
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[] } else { &rights[..] };
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        let iov = [IoSlice::new(bytes)];
        sendmsg::<()>(self.0.as_raw_fd(), &iov, control, flags, None)?;
        Ok(())
    }

    /// The same for several in a row. A peer that has closed its end, after it refused the
    /// connection or one of them, ends it without an error: its last words are to be read.
    pub fn send_all(&self, datagrams: &[(&[u8], &[BorrowedFd<'_>])]) -> io::Result<()> {
        for (bytes, fds) in datagrams {
            match self.send(bytes, fds) {
                // The first attempt can give the error that a reader would get.
                Err(e) if is_gone(e.kind()) => break,
                sent => sent?,
            }
        }
        Ok(())
    }

    /// Receives a datagram; [`io::ErrorKind::WouldBlock`] if none waits.
    ///
    /// A peer that closed its end with datagrams of ours unread gives an error first, once. Its
    /// last words are still to be read.
    pub fn recv(&self, buffer: &mut [u8]) -> io::Result<Received> {
        let received = match ancillary::receive(self.0.as_fd(), buffer) {
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => {
                ancillary::receive(self.0.as_fd(), buffer)?
            }
            received => received?,
        };
        Ok(Received { len: received.len, truncated: received.is_cut, fds: received.descriptors })
    }

    /// Who connected.
    pub fn peer(&self) -> io::Result<Peer> {
        let credentials = getsockopt(&self.0, PeerCredentials)?;
        Ok(Peer { uid: credentials.uid(), pid: credentials.pid() })
    }

    /// The groups of who connected, as they were then: the effective one, and the supplementary
    /// ones where the kernel tells (Linux 4.13).
    pub fn groups(&self) -> io::Result<Vec<u32>> {
        let mut groups = super::sockopt::peer_groups(self).unwrap_or_else(|e| {
            log::debug!("groups of a peer are not known: {e}");
            Vec::new()
        });
        groups.push(getsockopt(&self.0, PeerCredentials)?.gid());
        Ok(groups)
    }

    /// The process that connected.
    ///
    /// # Errors
    /// The kernel does not tell (before Linux 6.5), or the process has ended.
    pub fn process(&self) -> io::Result<Process> {
        super::sockopt::peer_process(self).map(Process::from)
    }

    /// Whether the peer has closed its end (there may still be datagrams to read).
    pub fn hung_up(&self) -> bool {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::empty())];
        let gone = PollFlags::POLLHUP | PollFlags::POLLERR;
        poll(&mut fds, PollTimeout::ZERO).is_ok()
            && fds.iter().any(|fd| fd.revents().is_some_and(|r| r.intersects(gone)))
    }

    /// Waits until there is something to read; false when `timeout` passed before.
    pub fn wait_readable(&self, timeout: std::time::Duration) -> io::Result<bool> {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Err(nix::errno::Errno::EINTR) => Ok(false),
            n => Ok(n? > 0),
        }
    }

    /// Asks for this many bytes of room for datagrams that the peer has not yet read.
    pub fn set_queue(&self, bytes: usize) -> io::Result<()> {
        self.0.set_send_buffer_size(bytes)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn new_socket() -> io::Result<Socket> {
    let kind = Type::from(libc::SOCK_SEQPACKET).nonblocking().cloexec();
    Socket::new_raw(Domain::UNIX, kind, None)
}

/// Removes a socket file without a listener.
fn remove_stale(path: &Path) -> Result<(), BindError> {
    let failed = |doing| move |source| BindError::System { path: path.to_owned(), doing, source };
    let file = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file.map_err(failed("look at it"))?,
    };
    if !file.file_type().is_socket() {
        return Err(BindError::NotASocket(path.to_owned()));
    }
    match Connection::open(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed("replace the stale socket"))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            Err(failed("see whether anybody listens")(e))
        }
        // Connected, a full backlog, another socket type: somebody is there.
        _ => Err(BindError::Live(path.to_owned())),
    }
}

/// Whether an error says that the peer has closed its end.
fn is_gone(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use std::fs::File;
    use std::os::unix::net::UnixListener;

    fn pair() -> (Listener, Connection, Connection, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = Listener::bind(&path, 0o600, None).unwrap();
        let client = Connection::open(&path).unwrap();
        let server = listener.accept().unwrap();
        (listener, client, server, dir)
    }

    fn open_fds() -> usize {
        fs::read_dir("/proc/self/fd").unwrap().count()
    }

    #[test]
    fn datagrams_keep_their_bounds_and_descriptors() {
        let (_listener, client, server, _dir) = pair();
        let file = File::open("/dev/null").unwrap();
        client.send(b"one", &[]).unwrap();
        client.send(b"twotwo", &[file.as_fd(), file.as_fd()]).unwrap();
        let mut buffer = [0; 4];
        let got = server.recv(&mut buffer).unwrap();
        assert_eq!((got.len, got.truncated, got.fds.len()), (3, false, 0));
        let got = server.recv(&mut buffer).unwrap();
        assert_eq!((got.len, got.truncated, got.fds.len()), (4, true, 2));
        let inode = |fd: &OwnedFd| File::from(fd.try_clone().unwrap()).metadata().unwrap().rdev();
        assert!(got.fds.iter().all(|fd| inode(fd) == file.metadata().unwrap().rdev()));
        assert_eq!(server.recv(&mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(!server.hung_up());
        drop(client);
        assert!(server.hung_up());
        assert_eq!(server.recv(&mut buffer).unwrap().len, 0);
    }

    #[test]
    fn the_last_words_of_a_peer_that_did_not_listen_are_read() {
        let (_listener, client, server, _dir) = pair();
        client.send(b"unread", &[]).unwrap();
        server.send(b"no", &[]).unwrap();
        drop(server);
        client.send_all(&[(b"too", &[]), (b"late", &[])]).unwrap();
        let mut buffer = [0; 4];
        assert_eq!(client.recv(&mut buffer).unwrap().len, 2);
        assert_eq!(client.recv(&mut buffer).unwrap().len, 0);
    }

    #[test]
    fn a_flood_of_descriptors_does_not_leak() {
        let (_listener, client, server, _dir) = pair();
        let file = File::open("/dev/null").unwrap();
        let many = vec![file.as_fd(); ancillary::MAX_DESCRIPTORS];
        let mut buffer = [0; 4];
        client.send(b"x", &many).unwrap();
        assert_eq!(server.recv(&mut buffer).unwrap().fds.len(), ancillary::MAX_DESCRIPTORS);
        // Other tests of this process open descriptors too, but not hundreds.
        let before = open_fds();
        for _ in 0..10 {
            client.send(b"x", &many).unwrap();
            drop(server.recv(&mut buffer).unwrap());
        }
        assert!(open_fds() < before + ancillary::MAX_DESCRIPTORS);
    }

    #[test]
    fn a_full_queue_would_block() {
        let (_listener, client, _server, _dir) = pair();
        let full = (0..100_000).find_map(|_| client.send(&[0; 1000], &[]).err()).unwrap();
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_live_socket_is_kept_and_a_stale_one_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = Listener::bind(&path, 0o620, None).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o620);
        assert!(matches!(Listener::bind(&path, 0o600, None), Err(BindError::Live(_))));
        drop(listener);
        assert!(!path.exists(), "dropping removes the file");

        // A listener that was killed leaves its file.
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(Listener::bind(&path, 0o600, None).unwrap());

        // One of another type is somebody else's.
        let other = UnixListener::bind(&path).unwrap();
        assert!(matches!(Listener::bind(&path, 0o600, None), Err(BindError::Live(_))));
        drop(other);

        fs::remove_file(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        assert!(matches!(Listener::bind(&path, 0o600, None), Err(BindError::NotASocket(_))));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_successors_socket_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let old = Listener::bind(&path, 0o600, None).unwrap();
        fs::remove_file(&path).unwrap();
        let _new = Listener::bind(&path, 0o600, None).unwrap();
        drop(old);
        assert!(path.exists());
    }

    #[test]
    fn the_peer_is_known() {
        let (_listener, client, server, _dir) = pair();
        let me = Peer {
            uid: nix::unistd::geteuid().as_raw(),
            pid: i32::try_from(std::process::id()).unwrap(),
        };
        assert_eq!(server.peer().unwrap(), me);
        assert_eq!(client.peer().unwrap(), me);
        let mut groups = server.groups().unwrap();
        assert_eq!(groups.pop(), Some(nix::unistd::getegid().as_raw()));
        let mine = nix::unistd::getgroups().unwrap();
        assert_eq!(groups, mine.iter().map(|gid| gid.as_raw()).collect::<Vec<u32>>());
    }

    /// Only a thread takes others, with the bare system call.
    #[test]
    fn as_many_groups_as_there_are_are_known() {
        if !nix::unistd::geteuid().is_root() {
            println!("not root: nobody may choose groups");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = Listener::bind(&path, 0o666, None).unwrap();
        for count in [0, 1, 64, 65, 5000_u32] {
            let groups: Vec<u32> = (0..count).map(|n| 100_000 + n).collect();
            let connect = || {
                // SAFETY: reads as many numbers as it is told there are, and changes this thread
                // alone.
                let rc =
                    unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
                assert_eq!(rc, 0);
                Connection::open(&path).unwrap()
            };
            let client = std::thread::scope(|scope| scope.spawn(connect).join().unwrap());
            let mut known = listener.accept().unwrap().groups().unwrap();
            known.pop();
            assert_eq!(known, groups);
            drop(client);
        }
    }
}
