//! Messages of a daemon to the service manager that has started it (sd_notify(3)).
//!
//! Not crate sd-notify (0.5.0): each of its calls reads the environment, opens a socket and
//! connects it by path. A confined program may not do that any more (seccomp, Landlock, its own
//! root directory), and still has a status to report. Here the socket is connected before
//! confinement, and only written to afterwards. The crate's sockets also block, and it takes the
//! abstract name of a socket (`@...`) for a path.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The service manager, if one wants to know.
#[derive(Debug, Default)]
pub struct ServiceManager(Option<UnixDatagram>);

impl ServiceManager {
    /// Finds it by the environment variable `NOTIFY_SOCKET`, the name of a datagram socket,
    /// abstract if it starts with `@`. To be called before the process is confined.
    ///
    /// # Errors
    /// It can't be reached.
    pub fn connect() -> io::Result<Self> {
        let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(Self::default()) };
        let addr = match path.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(&path)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&addr)?;
        socket.set_nonblocking(true)?;
        Ok(Self(Some(socket)))
    }

    /// The process serves; `status` is one line for people.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={status}\n"));
    }

    /// The status of the process, in one line for operators.
    pub fn status(&self, status: &str) {
        self.send(&format!("STATUS={status}\n"));
    }

    /// The start takes longer: the manager is to wait for as long from now on.
    pub fn starting(&self, status: &str, patience: Duration) {
        self.send(&format!("EXTEND_TIMEOUT_USEC={}\nSTATUS={status}\n", patience.as_micros()));
    }

    fn send(&self, text: &str) {
        if let Some(Err(e)) = self.0.as_ref().map(|socket| socket.send(text.as_bytes())) {
            log::warn!("can't notify the service manager: {e}");
        }
    }
}
