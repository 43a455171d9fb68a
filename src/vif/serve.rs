//! The backend process: opens everything, then serves the guest until a signal ends it.
//!
//! Threads: this one holds the connection to varpd and ends the process; one serves the frontend's
//! control messages; one per queue pair moves frames.

mod confine;
mod frontend;
mod status;
mod varpd;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use zeroize::Zeroizing;

pub use self::confine::View;
use self::confine::{Sockets, confine};
use self::frontend::Frontend;
use self::status::{State, Status};
use crate::metrics::VifCounters;
use crate::offload::features::Offloads;
use crate::policy::{Floor, Level, Policy};
use crate::port::guard::Prefix;
use crate::port::throttle::{Limits, Throttle};
use crate::port::tx::SourceMac;
use crate::port::worker::Worker;
use crate::sys::bus_error;
use crate::sys::clock;
use crate::sys::event::{Interest, Poller};
use crate::sys::notify::ServiceManager;
use crate::sys::process;
use crate::sys::sandbox::SandboxError;
use crate::sys::sandbox::view::{Directory, ViewError};
use crate::sys::seqpacket::Connection;
use crate::sys::signal::Termination;
use crate::time::Instant;
use crate::tunnel::outgoing::pieces::FrameIds;
use crate::underlay::udp::UdpUnderlay;
use crate::vhost_user::attach::{Attach, AttachError, Endpoint, Frontends};
use crate::vif::late::LateWatch;
use crate::vif::link::{CAPABILITIES, Link};
use crate::vif::nic::Nic;
use crate::vif::registration::{Registration, connect, guest_mtu, place, register_with};
use crate::wire::VifKey;
use crate::wire::control::{self, Event, Request, VERSION};

/// How long varpd may take to answer the first registration.
const START_TIMEOUT: Duration = Duration::from_secs(5);

/// The options of a backend.
#[derive(Debug)]
pub struct Options {
    /// How the frontend attaches.
    pub attach: Attach,
    /// The users who may be the frontend.
    pub frontends: Frontends,
    /// The vif.
    pub key: VifKey,
    /// varpd's socket.
    pub varpd: PathBuf,
    /// Number of queue pairs.
    pub queue_pairs: u8,
    /// MTU for the guest, in bytes; by default the largest that fits the underlay.
    pub mtu: Option<u16>,
    /// How to treat frames with a foreign source MAC.
    pub source_mac: SourceMac,
    /// Whether the process confines itself after its start.
    pub sandbox: bool,
    /// The directories that it can see then.
    pub view: View,
    /// Rate limits.
    pub limits: Limits,
    /// How long workers poll for frames before they sleep; zero turns polling off.
    pub busy_poll: Duration,
    /// Whether to offer receive offloads: partial or verified checksums, and several segments
    /// in one frame.
    pub receive_offloads: bool,
    /// Limit on MACs behind the vif.
    pub learn: usize,
    /// The addresses that the guest may use; any if empty.
    pub allowed: Vec<Prefix>,
    /// The lowest policy of the vnet under which the backend carries frames.
    pub policy: Level,
}

/// Why a backend can't start, or ended.
#[derive(Debug, Error)]
pub enum ServeError {
    /// No connection to varpd.
    #[error("cannot reach varpd at {}: {error}; {}", path.display(), first_question(error))]
    Unreachable {
        /// Its socket.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// varpd answers, but not with a registration.
    #[error("varpd refused the vif: {why}")]
    Refused {
        /// The reason.
        why: String,
        /// It stays until a list, another setting or a key file has been changed.
        is_lasting: bool,
    },
    /// varpd broke the protocol.
    #[error("varpd sent a malformed or unexpected answer: {0}")]
    Protocol(String),
    /// varpd is of a release with another control protocol.
    #[error(
        "varpd speaks version {version} of the control protocol, this program version {VERSION}: install all programs from one \
         release, and restart those that run"
    )]
    OtherVersion {
        /// What varpd speaks.
        version: u8,
    },
    /// varpd is connected but silent.
    #[error("varpd does not answer: no {awaited} within {timeout:?}")]
    Silent {
        /// The expected message.
        awaited: &'static str,
        /// The timeout.
        timeout: Duration,
    },
    /// The MTU asked for leaves no room for the tunnel's headers.
    #[error("an MTU of {wanted} does not fit the underlay: {most} is the most")]
    Mtu {
        /// The requested MTU.
        wanted: u16,
        /// The largest that fits.
        most: u16,
    },
    /// Rate limits that contradict each other, in words.
    #[error("{0}")]
    Limits(String),
    /// The frontend's socket.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// There is no private view, which is required.
    #[error("--view required: no private view of the file system: {0}")]
    View(#[source] ViewError),
    /// The process can't be confined.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The system refused something.
    #[error("{0}: {1}")]
    System(&'static str, #[source] io::Error),
}

impl ServeError {
    /// Whether varpd's socket does not let this user in.
    pub(super) fn is_denied(&self) -> bool {
        matches!(self, Self::Unreachable { error, .. } if error.kind() == io::ErrorKind::PermissionDenied)
    }

    /// varpd has refused the vif for a reason that may pass.
    pub(super) fn refused_for_now(why: &str) -> Self {
        Self::Refused { why: why.to_owned(), is_lasting: false }
    }

    /// Exit status of the process: 2 if somebody has to change the command line, a setting of varpd, a file or a permission
    /// before another attempt can succeed; 1 for all else, which may pass.
    pub fn exit_status(&self) -> u8 {
        let is_lasting = match self {
            Self::Limits(_) | Self::Mtu { .. } | Self::View(_) => true,
            Self::Refused { is_lasting, .. } => *is_lasting,
            Self::Unreachable { .. } => self.is_denied(),
            Self::Attach(error) => error.is_lasting(),
            Self::Protocol(_)
            | Self::OtherVersion { .. }
            | Self::Silent { .. }
            | Self::Sandbox(_)
            | Self::System(..) => false,
        };
        if is_lasting { 2 } else { 1 }
    }
}

/// The first thing to check when varpd cannot be reached.
fn first_question(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "may this user connect (varpd --socket-group)?",
        _ => "is it running?",
    }
}

/// Adds the failed operation to a system error.
pub(super) fn doing(what: &'static str) -> impl FnOnce(io::Error) -> ServeError {
    move |error| ServeError::System(what, error)
}

/// Serves one vif until a signal, or until the frontend on an inherited descriptor is gone.
///
/// # Errors
/// The reason why the backend cannot start, in one line.
pub fn serve(options: Options) -> Result<(), ServeError> {
    let manager = ServiceManager::connect().unwrap_or_else(|error| {
        log::warn!("can't reach the service manager: {error}");
        ServiceManager::default()
    });
    let termination = Termination::new().map_err(doing("cannot handle signals"))?;
    bus_error::explain().map_err(doing("cannot handle signals"))?;
    let throttle = Throttle::new(&options.limits).map_err(ServeError::Limits)?;
    let varpd = connect(&options.varpd)?;
    let register = Request::Register {
        key: options.key,
        capabilities: CAPABILITIES,
        queue_pairs: options.queue_pairs,
        active: false,
        stamp: None,
        learn: u16::try_from(options.learn).unwrap_or(u16::MAX),
        floor: Floor::new(options.policy),
    };
    let registration = register_with(&varpd, &register, &[], options.queue_pairs, START_TIMEOUT)?;
    let mtu = guest_mtu(options.mtu, &registration, options.policy)?;
    let (coa, policy) = (registration.coa, registration.policy);
    let nic = Arc::new(new_nic(&options, registration, mtu, &throttle)?);
    let exact_users = options.frontends.is_list();
    let sockets = Sockets::find(&options.attach, &options.varpd);
    let endpoint = Endpoint::open(options.attach)?.only_for(options.frontends)?;
    // Not before: a process that cannot start logs why, and nothing else.
    log::info!("vif {} at {coa}, MTU {mtu}", options.key);
    if options.limits != Limits::default() {
        log::info!("limits: {}", options.limits);
    }
    if !options.allowed.is_empty() {
        let allowed: Vec<String> = options.allowed.iter().map(Prefix::to_string).collect();
        log::info!("the guest may send from {}", allowed.join(", "));
    }
    tell_shared_user(&varpd);
    let varpd_directory = match options.sandbox {
        true => confine(&sockets, options.view, exact_users)?,
        false => {
            log::warn!("--no-sandbox: a guest that takes over this process has all its rights");
            None
        }
    };
    let link = Link::new(options.key, options.queue_pairs, options.learn, Arc::clone(&nic));
    let mut link = link.above(Floor::new(options.policy));
    if !link.handle_policy(policy) {
        log::warn!("{}", too_low(options.key, link.floor(), policy));
    } else if policy.sent().is_secured() {
        await_keys(&varpd, &mut link)?;
    }
    let frontend = Frontend::start(endpoint, Arc::clone(&nic))?;
    let mut serving = Serving {
        key: options.key,
        link,
        nic,
        path: sockets.varpd().into(),
        varpd_directory,
        queue_pairs: options.queue_pairs,
        varpd: Some(varpd),
        call_at: None,
        keep_sockets: true,
        refusal: None,
        mtu,
        late: LateWatch::default(),
        status: Status::new(manager, options.key),
        poller: Poller::new(8).map_err(doing("cannot poll"))?,
    };
    let result = serving.run(&termination, &frontend);
    frontend.stop().and(result)
}

/// The line that says why the NIC carries no frames, and how to change that.
fn too_low(key: VifKey, floor: Floor, policy: Policy) -> String {
    let why = match floor.least > floor.had {
        true => "this backend requires (--policy)",
        false => "it has had since this backend was started",
    };
    let (vnet, least) = (key.vnet, floor.level());
    format!(
        "vif {key} carries no frame: vnet {vnet} has policy {policy} here, lower than {least}, which {why}. Name {least} \
         in varpd.toml (alone, or in a list: varpd(8), CHANGING A POLICY) and restart varpd"
    )
}

/// Waits for the keys of a secured vnet, because the guest's first frames are usually broadcasts.
fn await_keys(varpd: &Connection, link: &mut Link) -> Result<(), ServeError> {
    let mut buffer = Zeroizing::new(vec![0; control::MAX_LEN]);
    while !link.has_group_keys() {
        if !varpd.wait_readable(START_TIMEOUT).map_err(doing("cannot wait for varpd"))? {
            let awaited = "keys of the secured vnet";
            return Err(ServeError::Silent { awaited, timeout: START_TIMEOUT });
        }
        let received = varpd.recv(&mut buffer).map_err(doing("cannot read from varpd"))?;
        if received.len == 0 {
            return Err(ServeError::refused_for_now("it closed the connection"));
        }
        let event = Event::parse(buffer.get(..received.len).unwrap_or_default())
            .map_err(|error| ServeError::Protocol(error.to_string()))?;
        if let Event::Registered { .. } = event {
            // No thread uses the sockets yet: a new process starts with the right ones.
            return Err(ServeError::refused_for_now("the host has moved at this moment"));
        }
        if let Some(answer) = link.handle_event(event, received.fds, clock::mono()) {
            varpd.send(&answer.emit(), &[]).map_err(doing("cannot write to varpd"))?;
        }
    }
    Ok(())
}

/// Logs if varpd runs as the same user, so that permissions do not separate the two.
fn tell_shared_user(varpd: &Connection) {
    let own = nix::unistd::geteuid().as_raw();
    if varpd.peer().is_ok_and(|peer| peer.uid == own) {
        log::info!(
            "varpd runs as this process's user ({own}), so permissions do not separate the two: see \"One user for all\" \
             in SECURITY.md"
        );
    }
}

fn new_nic(
    options: &Options,
    registration: Registration,
    mtu: u16,
    throttle: &Throttle,
) -> Result<Nic, ServeError> {
    let counters = Arc::new(VifCounters::default());
    let place = place(options.key, &registration);
    // Receivers may still hold fragments of an earlier backend at this address.
    let [a, b, c, d] = process::random().map_err(doing("no random numbers"))?;
    let first_id = u32::from_ne_bytes([a, b, c, d]);
    let worker = |(pair, underlay): (u32, UdpUnderlay)| {
        let counters = Arc::clone(&counters);
        let mut worker = Worker::new(place, options.source_mac, counters, underlay)
            .with_throttle(throttle.clone())
            .learning(options.learn)
            .allowing(&options.allowed);
        worker.tunnel_mut().set_frame_ids(FrameIds::from(first_id.wrapping_add(pair << 28)));
        worker.tunnel_mut().set_clock(clock::now());
        worker
    };
    let workers = (0_u32..).zip(registration.underlays).map(worker).collect();
    let nic = Nic::new(workers, Arc::clone(&counters), mtu);
    let offloads = match options.receive_offloads {
        true => Offloads::ALL,
        false => Offloads::ALL.without(Offloads::RECEIVE),
    };
    let nic = nic.map_err(doing("cannot create a descriptor"))?;
    Ok(nic.with_busy_poll(options.busy_poll).offering(offloads))
}

/// The event sources of the main thread.
#[derive(Clone, Copy)]
#[repr(u64)]
enum Source {
    Termination,
    Frontend,
    Attention,
    Varpd,
    Late,
}

struct Serving {
    key: VifKey,
    link: Link,
    nic: Arc<Nic>,
    path: PathBuf,
    /// The directory of that path, until the log has said that it was removed.
    varpd_directory: Option<Directory>,
    queue_pairs: u8,
    varpd: Option<Connection>,
    /// When to try to connect to varpd again.
    call_at: Option<Instant>,
    /// Whether varpd accepts the current sockets; otherwise the backend asks for new ones.
    keep_sockets: bool,
    /// The last logged reason for which varpd was out of reach or refused the vif.
    refusal: Option<String>,
    /// The guest's MTU, in bytes.
    mtu: u16,
    /// Watches sockets for frames to a guest that has left.
    late: LateWatch,
    status: Status,
    poller: Poller,
}

impl Serving {
    fn run(&mut self, termination: &Termination, frontend: &Frontend) -> Result<(), ServeError> {
        let failed = || doing("cannot poll");
        let poller = &self.poller;
        poller.add(termination, Source::Termination as u64, Interest::Read).map_err(failed())?;
        poller.add(&frontend.ended, Source::Frontend as u64, Interest::Read).map_err(failed())?;
        poller
            .add(self.nic.attention(), Source::Attention as u64, Interest::Read)
            .map_err(failed())?;
        self.watch_varpd().map_err(failed())?;
        loop {
            let (active, varpd) = (self.nic.is_active(), self.varpd.is_some());
            self.status.show(State { active, varpd });
            let now = clock::mono();
            let deadlines = [self.link.poll_timeout(), self.call_at, self.late.poll_timeout()];
            let deadline = deadlines.into_iter().flatten().min();
            let timeout = deadline.map(|at| at.saturating_since(now));
            let ready = self.poller.wait(timeout).map_err(failed())?;
            let now = clock::mono();
            let is_ready = |source: Source| ready.iter().any(|r| r.token == source as u64);
            if is_ready(Source::Termination) || is_ready(Source::Frontend) {
                return Ok(());
            }
            if is_ready(Source::Attention) {
                self.nic.take_attention();
            }
            if is_ready(Source::Varpd) {
                self.read_varpd(now);
            }
            self.link.handle_timeout(now);
            if self.call_at.is_some_and(|at| at <= now) {
                self.call_varpd(now);
            }
            if is_ready(Source::Late) {
                self.nic.forward_waiting(now);
            }
            self.write_varpd(now);
            let late = Source::Late as u64;
            self.late.update(&self.nic, &self.poller, late, now).map_err(failed())?;
        }
    }

    fn watch_varpd(&self) -> io::Result<()> {
        match &self.varpd {
            Some(varpd) => self.poller.add(varpd, Source::Varpd as u64, Interest::Read),
            None => Ok(()),
        }
    }
}
