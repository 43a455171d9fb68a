//! The daemon varpd, one per host. It resolves addresses with its peers, registers the vifs of this
//! host and opens their underlay sockets.
//!
//! [`crate::host`] makes all decisions. This module is the shell around it: one thread with one
//! loop, which holds the sockets and connections and carries out the host's outputs:
//!
//! ```text
//!   backends, vnet                                          other hosts
//!        | control socket                                        | VARP: own address and group
//!   +----v-----+  +--------+     inputs    +------+  outputs +---v----+
//!   | clients  |->| daemon |-------------->| host |--------->| varp   |
//!   +----------+  |the loop|<--+           +------+    |     +--------+
//!                 +--------+   | results       |       +---->| vifs, key_files, processes |
//!                              +---- perform <-+             +----------------------------+
//! ```
//!
//! **No peer can hold up varpd.** Sockets are non-blocking, and a turn of the loop takes a bounded
//! number of messages from each source. A backend that does not read loses its connection, an
//! operator's rows wait for a bounded time, and a monitor misses events.
//!
//! **A confined varpd has no privileges**, except to bind ports below 1024 if configured. The
//! *opener* does the operations that need others: a process that varpd forks before it opens
//! sockets and confines itself ([`crate::underlay::opener`]).
//!
//! | File | What it owns |
//! |---|---|
//! | `daemon` | It runs the loop: one thread that waits for all sources. |
//! | `perform` | It carries out the host's outputs. |
//! | `clients` | It holds the connections to the control sockets. |
//! | `processes` | It watches the processes of backends until they end. |
//! | `vifs` | It holds the sockets of vifs. |
//! | `key_files` | It reads the key files of vnets, and reads them again when they change. |
//! | `varp` | It holds the VARP sockets, and receives and sends their messages. |
//! | `underlay` | It lists interfaces and moves the VARP sockets to the host's place. |
//! | `awake` | It notices that the host was suspended, restored or cloned. |
//! | `user` | It changes from root to varpd's own user. |
//! | `waiting` | It waits at the start until the host has a place on the underlay. |

#![forbid(unsafe_code)]

mod awake;
mod clients;
mod daemon;
mod key_files;
mod perform;
mod processes;
mod underlay;
mod user;
mod varp;
mod vifs;
mod waiting;

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use thiserror::Error;

use crate::config::{Config, ConfigError};
use crate::host::SiteError;
use crate::host::admission::Operators;
use crate::sys::notify::ServiceManager;
use crate::sys::rtnetlink::Rtnetlink;
use crate::sys::sandbox::{Capability, Confinement, Profile, Reach, SandboxError};
use crate::sys::seqpacket::BindError;
use crate::sys::signal::Termination;
use crate::sys::{clock, process};
use crate::underlay::opener::Privileged;
use crate::underlay::sockets::{Opener, Site};

use daemon::{Daemon, Groups};

/// Lowest port that a process may bind without privilege (ip(7)).
const FIRST_COMMON_PORT: u16 = 1024;

/// The reason for which varpd can't start or go on; displays as one line.
#[derive(Debug, Error)]
pub enum VarpdError {
    /// See [`ConfigError`].
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// See [`SiteError`].
    #[error(transparent)]
    Site(#[from] SiteError),
    /// See [`BindError`].
    #[error(transparent)]
    Bind(#[from] BindError),
    /// Another socket has the address and port.
    #[error("{0} is in use: is another varpd running?")]
    PortInUse(SocketAddr),
    /// Another user's process has the port, and could send VARP in this host's name.
    #[error(
        "UDP port {0} is in use by a process of another user, who could send VARP in this host's name: end it (see 'ss -ulpn sport = {0}'); if it is a backend, restart it, since it has sockets of a varpd that ran as another user"
    )]
    PortOfAnother(u16),
    /// A secured vnet's key can't be read.
    #[error("{0}")]
    Key(String),
    /// The directory of keys can't be entered.
    #[error(
        "{}, the directory for keys of secured vnets: {source}; make it with 'install -d -m 700 {}' (and -o if \
         varpd runs as a user of its own) and the keys with 'vnet key generate', or copy those of another host",
        directory.display(),
        directory.display()
    )]
    KeyDirectory {
        /// The directory.
        directory: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A setting names a user or group that does not exist.
    #[error("{list}: '{name}': {source}")]
    Account {
        /// The setting.
        list: &'static str,
        /// The name.
        name: String,
        /// The reason for which it is unknown.
        source: io::Error,
    },
    /// varpd can't change to its own user.
    #[error("user '{name}': {source}")]
    OwnUser {
        /// The user's name.
        name: String,
        /// The reason.
        source: io::Error,
    },
    /// The kernel can't keep a varpd that reads keys from other files.
    #[error(
        "this kernel has no Landlock (Linux 5.13, lsm=landlock), so a varpd that is taken over could read all \
         files of its user: secured vnets are refused unless [security] says without-landlock = true"
    )]
    NoLandlock,
    /// See [`SandboxError`].
    #[error(transparent)]
    Sandbox(SandboxError),
    /// A system call failed.
    #[error("can't {doing}: {source}")]
    System {
        /// The operation, as in "can't ...".
        doing: String,
        /// The reason for the failure.
        source: io::Error,
    },
}

impl VarpdError {
    /// Exit status of the process: 2 if an operator has to change the configuration, a file or a
    /// permission before another attempt can succeed; 1 for all other errors, which may pass.
    pub fn exit_status(&self) -> u8 {
        let is_lasting = match self {
            Self::Config(_) | Self::Key(_) | Self::NoLandlock => true,
            Self::Site(error) => !error.may_pass(),
            Self::Bind(BindError::NotASocket(_)) => true,
            Self::Bind(BindError::System { source, .. })
            | Self::KeyDirectory { source, .. }
            | Self::Account { source, .. }
            | Self::OwnUser { source, .. } => process::is_lasting(source),
            Self::System { source, .. } => source.kind() == io::ErrorKind::PermissionDenied,
            Self::Bind(BindError::Live(_))
            | Self::PortInUse(_)
            | Self::PortOfAnother(_)
            | Self::Sandbox(_) => false,
        };
        if is_lasting { 2 } else { 1 }
    }
}

/// For `map_err`: names the operation that failed.
fn failed(doing: impl Into<String>) -> impl FnOnce(io::Error) -> VarpdError {
    move |source| VarpdError::System { doing: doing.into(), source }
}

impl From<SandboxError> for VarpdError {
    fn from(error: SandboxError) -> Self {
        match error {
            SandboxError::NoLandlock => Self::NoLandlock,
            other => Self::Sandbox(other),
        }
    }
}

/// Runs varpd until a signal ends it.
///
/// varpd reports that it is ready only after it is confined and has read the keys, with the rights
/// that it will have later.
pub fn run(config: Config) -> Result<(), VarpdError> {
    let termination = Termination::new().map_err(failed("handle signals"))?;
    let files = process::raise_file_limit().map_err(failed("raise the limit of open files"))?;
    log::debug!("at most {files} open files");
    process::raise_lock_limit();
    let about_user = user::become_own(&config)?;
    // Before varpd opens anything that the opener would inherit.
    let privileged = config.sandbox.then(Privileged::start).transpose();
    let privileged = privileged.map_err(failed("start the opener"))?;
    let manager = ServiceManager::connect().unwrap_or_else(|e| {
        log::warn!("can't reach the service manager: {e}");
        ServiceManager::default()
    });
    let groups = groups(&config)?;
    check_key_directories(&config)?;
    let mut rtnetlink = Rtnetlink::open(waiting::needs_routes(&config))
        .map_err(failed("ask for the network interfaces"))?;
    let place = waiting::await_place(&config, &mut rtnetlink, &termination, &manager)?;
    let Some(place) = place else { return Ok(()) };
    let opener = Opener::new(Site {
        address: place.address,
        interface: place.index,
        port: config.port.0,
        hops: config.ttl.0,
        ports: config.ports.clone().map(|ports| ports.0),
    })
    .with(privileged);
    let confinement = confinement(&config);
    // varpd still has the capabilities that this may need.
    let mut daemon = Daemon::open(config, place, opener, groups, termination, rtnetlink)?;
    match confinement {
        Some(confinement) => confinement.enter()?,
        None => log::warn!(
            "not confined (--no-sandbox): an attacker who takes over this process has all its rights"
        ),
    }
    daemon.read_addresses(clock::now())?;
    daemon.load_keys(clock::now())?;
    about_user.into_iter().for_each(|text| log::warn!("{text}"));
    daemon.tell_small_buffers();
    daemon.announce_ready(manager);
    daemon.run()
}

/// Fails if a key directory is not readable: it must exist when the process confines itself to it.
fn check_key_directories(config: &Config) -> Result<(), VarpdError> {
    key_directories(config).into_iter().try_for_each(|directory| {
        let read = std::fs::read_dir(&directory).map(drop);
        read.map_err(|source| VarpdError::KeyDirectory { directory, source })
    })
}

/// Looks up the groups of the sockets.
fn groups(config: &Config) -> Result<Groups, VarpdError> {
    let number = |name: &String, list: &'static str| {
        let failed = |source| VarpdError::Account { list, name: name.clone(), source };
        process::group_id(name).map_err(failed)
    };
    let control = config.socket_group.as_ref();
    let control = control.map(|name| number(name, "socket-group")).transpose()?;
    let operators = config.operator_group.as_ref().map(|name| {
        let number = number(name, "operator-group");
        number.map(|number| Operators { name: name.clone(), number })
    });
    Ok(Groups { control, operators: operators.transpose()? })
}

/// The rights that varpd keeps, if confined: it binds low ports if configured, reads keys, and
/// removes its control sockets when it ends.
fn confinement(config: &Config) -> Option<Confinement> {
    let ports = config.ports.as_ref().map(|ports| *ports.0.start());
    let capabilities = match ports.into_iter().chain([config.port.0]).min() {
        Some(..FIRST_COMMON_PORT) => vec![Capability::CAP_NET_BIND_SERVICE],
        _ => Vec::new(),
    };
    let mut files = vec![Reach::remove_socket(&config.socket)];
    files.extend(config.operator_socket.as_deref().map(Reach::remove_socket));
    files.extend(key_directories(config).into_iter().map(Reach::Read));
    let needs_landlock = !config.security.without_landlock;
    let profile = Profile::Varpd;
    config.sandbox.then_some(Confinement { profile, files, capabilities, needs_landlock })
}

/// The directories of key files. varpd reads the files again when they change.
fn key_directories(config: &Config) -> BTreeSet<PathBuf> {
    let named = config.secured_vnets().map(|vnet| config.key_file(vnet));
    let of = |file: PathBuf| match file.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => parent.to_owned(),
        None => PathBuf::from("."),
    };
    let usual = config.security.policy.is_secured().then(|| config.security.key_directory.clone());
    named.map(of).chain(usual).collect()
}
