//! The backend process: opens everything, then serves the guest until told to end.
//!
//! Threads: this one holds the connection to varpd and ends the process; one serves the frontend's
//! control messages; one per queue pair moves frames.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use thiserror::Error;
use zeroize::Zeroizing;

use super::guard::Prefix;
use super::late::LateWatch;
use super::link::{CAPABILITIES, Link};
use super::nic::Nic;
use super::outgoing::pieces::FrameIds;
use super::protect::Protection;
use super::rx::Receiver;
use super::throttle::{Limits, Throttle};
use super::tx::SourceMac;
use super::worker::{Place, Worker};
use crate::metrics::VifCounters;
use crate::security::Level;
use crate::sys::bus_error;
use crate::sys::clock;
use crate::sys::event::{Interest, Poller};
use crate::sys::mmsg::MAX_MESSAGE_LEN;
use crate::sys::process;
use crate::sys::sandbox::{Confinement, Profile, Reach, SandboxError};
use crate::sys::seqpacket::Connection;
use crate::sys::signal::Termination;
use crate::time::Instant;
use crate::underlay::sockets;
use crate::underlay::udp::UdpUnderlay;
use crate::vhost_user::attach::{Attach, AttachError, Endpoint};
use crate::wire::control::{self, Event, Request};
use crate::wire::{Capabilities, CareOf, VifKey, encap, esp};

/// How long varpd may take to answer the first registration.
const START_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a restarted varpd may take; the main thread does nothing else meanwhile.
const RETURN_TIMEOUT: Duration = Duration::from_millis(500);
/// IP and UDP headers in front of a datagram's payload, in bytes.
const UDP_OVERHEAD_V4: usize = 28;
const UDP_OVERHEAD_V6: usize = 48;
/// Messages of varpd handled before other events get their turn.
const EVENT_BUDGET: usize = 64;

/// What a backend is started with.
#[derive(Debug)]
pub struct Options {
    /// How the frontend is met.
    pub attach: Attach,
    /// The vif.
    pub key: VifKey,
    /// varpd's socket.
    pub varpd: PathBuf,
    /// Number of queue pairs.
    pub queue_pairs: u8,
    /// What guests are told, in bytes; otherwise what fits the underlay.
    pub mtu: Option<u16>,
    /// What happens to frames with a foreign source MAC.
    pub source_mac: SourceMac,
    /// Whether the process gives up what it does not need once it has started.
    pub sandbox: bool,
    /// Rate limits.
    pub limits: Limits,
    /// How long workers look for frames before they sleep; zero for not at all.
    pub busy_poll: Duration,
    /// Most MACs behind the vif.
    pub learn: usize,
    /// Addresses that the guest is kept to; any if there are none.
    pub allowed: Vec<Prefix>,
}

/// Why a backend can't start, or ended.
#[derive(Debug, Error)]
pub enum ServeError {
    /// No connection to varpd.
    #[error("cannot reach varpd at {}: {error}; is it running?", path.display())]
    Unreachable {
        /// Its socket.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// varpd answers, but not with a registration.
    #[error("varpd refused the vif: {0}")]
    Refused(String),
    /// varpd broke the protocol.
    #[error("varpd's answer makes no sense: {0}")]
    Protocol(String),
    /// The MTU asked for leaves no room for the tunnel's headers.
    #[error("an MTU of {wanted} does not fit the underlay: {most} is the most")]
    Mtu {
        /// Asked for.
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
    /// The process can't be confined.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The system refused something.
    #[error("{0}: {1}")]
    System(&'static str, #[source] io::Error),
}

/// Adds what was being done to a system error.
fn doing(what: &'static str) -> impl FnOnce(io::Error) -> ServeError {
    move |error| ServeError::System(what, error)
}

/// What varpd says of a new vif, and its sockets.
struct Registration {
    coa: CareOf,
    group: SocketAddr,
    underlay_mtu: u32,
    level: Level,
    underlays: Vec<UdpUnderlay>,
}

/// Serves one vif until a signal, or until the frontend on an inherited descriptor is gone.
///
/// # Errors
/// What prevented the start, each in one line.
pub fn serve(options: Options) -> Result<(), ServeError> {
    let termination = Termination::new().map_err(doing("cannot handle signals"))?;
    bus_error::explain().map_err(doing("cannot handle signals"))?;
    let throttle = Throttle::new(&options.limits).map_err(ServeError::Limits)?;
    let varpd = connect(&options.varpd)?;
    let register = Request::Register {
        key: options.key,
        capabilities: CAPABILITIES.with(Capabilities::LANES),
        queue_pairs: options.queue_pairs,
        active: false,
        stamp: None,
    };
    let registration = register_with(&varpd, &register, &[], options.queue_pairs, START_TIMEOUT)?;
    let mtu = guest_mtu(options.mtu, &registration)?;
    let (coa, level) = (registration.coa, registration.level);
    let nic = Arc::new(new_nic(&options, registration, mtu, &throttle)?);
    let confinement = options.sandbox.then(|| confinement(&options.attach));
    let endpoint = Endpoint::open(options.attach)?;
    // Not before: who can't start says why, and nothing else.
    log::info!("vif {} at {coa}, MTU {mtu}", options.key);
    if options.limits != Limits::default() {
        log::info!("limits: {}", options.limits);
    }
    if !options.allowed.is_empty() {
        let allowed: Vec<String> = options.allowed.iter().map(Prefix::to_string).collect();
        log::info!("the guest may send from {}", allowed.join(", "));
    }
    match confinement {
        Some(confinement) => confinement.enter()?,
        None => log::warn!("--no-sandbox: a guest that takes over this process has all its rights"),
    }
    let mut link = Link::new(options.key, options.queue_pairs, options.learn, Arc::clone(&nic));
    if level.is_secured() {
        await_keys(&varpd, &mut link)?;
    }
    let frontend = Frontend::start(endpoint, Arc::clone(&nic))?;
    let mut serving = Serving {
        key: options.key,
        link,
        nic,
        path: options.varpd,
        queue_pairs: options.queue_pairs,
        varpd: Some(varpd),
        call_at: None,
        keep_sockets: true,
        refusal: None,
        level,
        late: LateWatch::default(),
        poller: Poller::new(8).map_err(doing("cannot poll"))?,
    };
    let result = serving.run(&termination, &frontend);
    frontend.stop().and(result)
}

/// Waits for the keys of a secured vnet: the guest's first frames are for everybody.
fn await_keys(varpd: &Connection, link: &mut Link) -> Result<(), ServeError> {
    let mut buffer = Zeroizing::new(vec![0; control::MAX_LEN]);
    while !link.has_group_keys() {
        if !varpd.wait_readable(START_TIMEOUT).map_err(doing("cannot wait for varpd"))? {
            return Err(ServeError::Protocol("no keys came for a secured vnet".into()));
        }
        let received = varpd.recv(&mut buffer).map_err(doing("cannot read from varpd"))?;
        if received.len == 0 {
            return Err(ServeError::Refused("it closed the connection".into()));
        }
        let event = Event::parse(buffer.get(..received.len).unwrap_or_default())
            .map_err(|error| ServeError::Protocol(error.to_string()))?;
        if let Some(answer) = link.handle_event(event, received.fds, clock::mono()) {
            varpd.send(&answer.emit(), &[]).map_err(doing("cannot write to varpd"))?;
        }
    }
    Ok(())
}

/// What is left to this process: it removes the socket that it listens on when it ends.
fn confinement(attach: &Attach) -> Confinement {
    let files = match attach {
        Attach::Listen { path, .. } => vec![Reach::remove_socket(path)],
        Attach::Connect { .. } | Attach::Fd(_) => Vec::new(),
    };
    Confinement { profile: Profile::Backend, files, capabilities: Vec::new() }
}

fn connect(path: &std::path::Path) -> Result<Connection, ServeError> {
    Connection::open(path).map_err(|error| ServeError::Unreachable { path: path.into(), error })
}

/// Registers and waits for the answer.
fn register_with(
    varpd: &Connection,
    request: &Request,
    sockets: &[BorrowedFd<'_>],
    queue_pairs: u8,
    timeout: Duration,
) -> Result<Registration, ServeError> {
    varpd.send(&request.emit(), sockets).map_err(doing("cannot write to varpd"))?;
    let in_time = varpd.wait_readable(timeout).map_err(doing("cannot wait for varpd"))?;
    if !in_time {
        return Err(ServeError::Protocol(format!("none came within {timeout:?}")));
    }
    let mut buffer = vec![0; control::MAX_LEN];
    let received = varpd.recv(&mut buffer).map_err(doing("cannot read from varpd"))?;
    let bytes = buffer.get(..received.len).unwrap_or_default();
    let event = match Event::parse(bytes) {
        _ if bytes.is_empty() => {
            return Err(ServeError::Refused("it closed the connection".into()));
        }
        Ok(event) => event,
        Err(error) => return Err(ServeError::Protocol(error.to_string())),
    };
    match event {
        Event::Registered { coa, group, underlay_mtu, level } => {
            let underlays = if sockets.is_empty() {
                underlays_from(received.fds, queue_pairs)?
            } else {
                Vec::new()
            };
            Ok(Registration { coa, group, underlay_mtu, level, underlays })
        }
        Event::Error { text, .. } => Err(ServeError::Refused(text)),
        other => Err(ServeError::Protocol(format!("{other:?}"))),
    }
}

/// One underlay per queue pair; the first also has the group socket, each of several one to send
/// from.
fn underlays_from(sockets: Vec<OwnedFd>, queue_pairs: u8) -> Result<Vec<UdpUnderlay>, ServeError> {
    if sockets.len() != sockets::count(queue_pairs) {
        return Err(ServeError::Protocol(format!("{} sockets came along", sockets.len())));
    }
    let mut sockets = sockets.into_iter();
    let mut group = sockets.next();
    let own: Vec<OwnedFd> = sockets.by_ref().take(queue_pairs.into()).collect();
    let underlay = |own| UdpUnderlay::new(own, group.take(), sockets.next());
    Ok(own.into_iter().map(underlay).collect())
}

/// What guests are told: the underlay's MTU less the tunnel's headers, or what the operator asks
/// for if it is not more.
fn guest_mtu(wanted: Option<u16>, registration: &Registration) -> Result<u16, ServeError> {
    let overhead = match registration.coa.addr {
        SocketAddr::V4(_) => encap::OVERHEAD_V4,
        SocketAddr::V6(_) => encap::OVERHEAD_V6,
    };
    let underlay = u16::try_from(registration.underlay_mtu).unwrap_or(u16::MAX);
    let plain = underlay.saturating_sub(overhead);
    let inner = usize::from(overhead) - ip_overhead(registration.coa.addr);
    let longest = match max_datagram(registration) {
        longest if registration.level.is_secured() => esp::payload_room(longest),
        longest => longest,
    };
    let most = match u16::try_from(longest.saturating_sub(inner)) {
        Ok(most) => most.min(plain),
        Err(_) => plain,
    };
    match wanted {
        Some(wanted) if wanted > most => Err(ServeError::Mtu { wanted, most }),
        Some(wanted) => Ok(wanted),
        None => Ok(most),
    }
}

/// What the queue pairs of a vif are to the underlay.
fn place(key: VifKey, registration: &Registration) -> Place {
    let Registration { coa, group, .. } = *registration;
    Place {
        receiver: Receiver { key, own: coa.addr, capabilities: CAPABILITIES },
        group,
        max_datagram: max_datagram(registration),
    }
}

fn ip_overhead(address: SocketAddr) -> usize {
    match address {
        SocketAddr::V4(_) => UDP_OVERHEAD_V4,
        SocketAddr::V6(_) => UDP_OVERHEAD_V6,
    }
}

/// Longest datagram that the underlay's link takes.
fn max_datagram(registration: &Registration) -> usize {
    let link = usize::try_from(registration.underlay_mtu).unwrap_or(usize::MAX);
    link.saturating_sub(ip_overhead(registration.coa.addr)).min(MAX_MESSAGE_LEN)
}

fn new_nic(
    options: &Options,
    registration: Registration,
    mtu: u16,
    throttle: &Throttle,
) -> Result<Nic, ServeError> {
    let counters = Arc::new(VifCounters::default());
    let place = place(options.key, &registration);
    // Others may still hold pieces of a backend that was at this address before.
    let [a, b, c, d] = process::random().map_err(doing("no random numbers"))?;
    let first_id = u32::from_ne_bytes([a, b, c, d]);
    let mut protection = Protection::of_vif(options.key.vnet, registration.level);
    let worker = |(pair, underlay): (u32, UdpUnderlay)| {
        let counters = Arc::clone(&counters);
        let mut worker = Worker::new(place, options.source_mac, counters, underlay)
            .with_throttle(throttle.clone())
            .learning(options.learn)
            .allowing(&options.allowed);
        worker.set_frame_ids(FrameIds::from(first_id.wrapping_add(pair << 28)));
        worker.set_protection(protection());
        worker.set_clock(clock::now());
        worker
    };
    let workers = (0_u32..).zip(registration.underlays).map(worker).collect();
    let nic = Nic::new(workers, Arc::clone(&counters), mtu);
    Ok(nic.map_err(doing("cannot create a descriptor"))?.with_busy_poll(options.busy_poll))
}

fn new_event() -> Result<EventFd, ServeError> {
    let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
    EventFd::from_flags(flags).map_err(io::Error::from).map_err(doing("cannot create an eventfd"))
}

/// The thread that serves the frontend.
struct Frontend {
    shutdown: Arc<EventFd>,
    /// Readable when the thread has ended.
    ended: Arc<EventFd>,
    thread: JoinHandle<Result<(), AttachError>>,
}

impl Frontend {
    fn start(endpoint: Endpoint, nic: Arc<Nic>) -> Result<Self, ServeError> {
        let (shutdown, ended) = (Arc::new(new_event()?), Arc::new(new_event()?));
        let (told, tell) = (Arc::clone(&shutdown), Arc::clone(&ended));
        let run = move || {
            let result = endpoint.serve(nic, told.as_fd());
            // Fails only when the counter is full: then it is signalled already.
            let _ = tell.write(1);
            result
        };
        let thread = thread::Builder::new()
            .name("frontend".into())
            .spawn(run)
            .map_err(doing("cannot start a thread"))?;
        Ok(Self { shutdown, ended, thread })
    }

    fn stop(self) -> Result<(), ServeError> {
        let _ = self.shutdown.write(1);
        match self.thread.join() {
            Ok(result) => Ok(result?),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

/// What the main thread waits for.
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
    queue_pairs: u8,
    varpd: Option<Connection>,
    /// When to call a varpd that is away.
    call_at: Option<Instant>,
    /// Whether the sockets at hand suit varpd; otherwise it is asked for new ones.
    keep_sockets: bool,
    /// Why varpd refused the vif last, so that it is logged once.
    refusal: Option<String>,
    /// The vnet's policy.
    level: Level,
    /// Of frames for a guest that has left.
    late: LateWatch,
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

    fn read_varpd(&mut self, now: Instant) {
        // Keys come through here, too.
        let mut buffer = Zeroizing::new(vec![0; control::MAX_LEN]);
        for _ in 0..EVENT_BUDGET {
            let Some(varpd) = &self.varpd else { return };
            let (bytes, fds) = match varpd.recv(&mut buffer) {
                Ok(received) if received.len > 0 => {
                    (buffer.get(..received.len).unwrap_or_default(), received.fds)
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                _ => return self.lose_varpd(now),
            };
            match Event::parse(bytes) {
                Ok(event) => {
                    if let Some(answer) = self.link.handle_event(event, fds, now) {
                        self.tell_varpd(&answer, now);
                    }
                }
                Err(error) => {
                    log::warn!("varpd sent what is no message: {error}");
                    return self.lose_varpd(now);
                }
            }
        }
    }

    fn write_varpd(&mut self, now: Instant) {
        for request in self.link.requests(now) {
            self.tell_varpd(&request, now);
        }
    }

    /// A varpd whose queue is full is as good as gone: it is called anew, and told everything.
    fn tell_varpd(&mut self, request: &Request, now: Instant) {
        if let Some(varpd) = &self.varpd
            && varpd.send(&request.emit(), &[]).is_err()
        {
            self.lose_varpd(now);
        }
    }

    fn lose_varpd(&mut self, now: Instant) {
        if self.varpd.take().is_some() {
            log::warn!("varpd is gone; going on with what is known");
        }
        self.call_at = Some(now + self.link.handle_disconnected());
    }

    fn call_varpd(&mut self, now: Instant) {
        self.call_at = None;
        match self.try_call() {
            Ok(varpd) => {
                log::info!("registered with varpd again");
                self.varpd = Some(varpd);
                self.link.handle_registered(now);
                if let Err(error) = self.watch_varpd() {
                    log::error!("cannot poll the connection to varpd: {error}");
                    self.lose_varpd(now);
                }
            }
            Err(error) => {
                log::debug!("{error}");
                self.lose_varpd(now);
            }
        }
    }

    /// Calls varpd with the sockets at hand, so that the care-of address stays; if a varpd that
    /// was configured anew has no use for them, with new ones at the next attempt.
    fn try_call(&mut self) -> Result<Connection, ServeError> {
        let varpd = connect(&self.path)?;
        let request = self.link.register();
        let sockets = match self.keep_sockets {
            true => self.nic.sockets().map_err(doing("cannot duplicate sockets"))?,
            false => Vec::new(),
        };
        let lent: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
        let registered = register_with(&varpd, &request, &lent, self.queue_pairs, RETURN_TIMEOUT);
        if let Err(ServeError::Refused(why)) = &registered {
            if self.refusal.as_ref() != Some(why) {
                log::warn!("varpd refused the vif: {why}");
            }
            self.refusal = Some(why.clone());
            self.keep_sockets = false;
        }
        let registration = registered?;
        let level_changed = registration.level != self.level;
        if level_changed {
            log::warn!("the vnet's policy is now {}", registration.level);
            self.level = registration.level;
            self.nic.protect(self.key.vnet, self.level);
        }
        if !self.keep_sockets {
            log::warn!("the vif's care-of address is now {}", registration.coa);
            let place = place(self.key, &registration);
            self.late.end(&self.poller).map_err(doing("cannot poll"))?;
            self.nic.replace_underlays(registration.underlays, place);
            self.keep_sockets = true;
        }
        Ok(varpd)
    }
}
