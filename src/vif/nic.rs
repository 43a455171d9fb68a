//! A guest's NIC: the workers of its queue pairs, and what they share.
//!
//! Two sides use it. The device, on the workers' threads, passes wake-ups to it. The link to varpd,
//! on the main thread, passes answers to it and takes questions. Each worker has a lock of its own,
//! which its thread takes once per wake-up and the link only for a message of varpd, so no frame
//! ever waits for another queue pair.

mod data_path;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::local::lanes::Handovers;
use crate::metrics::VifCounters;
use crate::offload::features::Offloads;
use crate::policy::Policy;
use crate::port::stranger::Stranger;
use crate::port::throttle::Direction;
use crate::port::worker::Worker;
use crate::sys::clock;
use crate::time::Instant;
use crate::tunnel::echo::Limits;
use crate::tunnel::endpoint::Place;
use crate::tunnel::moved::LateSender;
use crate::tunnel::neighbors::Question;
use crate::tunnel::protect::Protection;
use crate::underlay::groups::Groups;
use crate::underlay::udp::UdpUnderlay;
use crate::underlay::{Port, Underlay};
use crate::vhost_user::device::Wake;
use crate::vif::alarm::Alarm;
use crate::wire::{Mac, VnetId};

/// The ports a worker polls, in the order of its descriptors.
const PORTS: [Port; 2] = [Port::Own, Port::Group];

/// The queue pair that says that the guest has arrived: all guests use the first.
const ANNOUNCING_PAIR: usize = 0;
/// What a descriptor of a worker stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Port(Port),
    /// The kernel says what became of datagrams.
    Reports,
    /// Frames that were held back may pass.
    Alarm,
    /// What lanes wait for has not come in time.
    LaneTimer,
}

/// A worker, locked.
pub type Lent<'a> = MutexGuard<'a, Worker<UdpUnderlay>>;

/// A guest's NIC.
pub struct Nic {
    workers: Vec<Mutex<Worker<UdpUnderlay>>>,
    /// One for each worker that has a limit. Taken only by who has the worker.
    alarms: Vec<Option<Mutex<Alarm>>>,
    counters: Arc<VifCounters>,
    mtu: u16,
    /// What is offered to drivers.
    offloads: Offloads,
    busy_poll: Duration,
    /// Bit n: pair n's rings run.
    running: AtomicU64,
    /// The pairs that the kernel chooses from.
    steered: Mutex<u64>,
    announce: AtomicBool,
    /// Wakes the link when a flag above changes or a worker has questions.
    attention: EventFd,
    /// Signals that the sockets were replaced.
    changed: EventFd,
    /// Those that were, until nobody waits on them any more.
    replaced: Mutex<Replaced>,
}

/// Sockets that were replaced.
#[derive(Debug, Default)]
struct Replaced {
    underlays: Vec<UdpUnderlay>,
    groups: Vec<Groups>,
}

/// What the link is to tell varpd.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Addresses to resolve or refresh.
    pub questions: Vec<Question>,
    /// Who sends to a MAC that has left.
    pub late: Vec<LateSender>,
    /// New MACs that the guest sends from.
    pub sources: Vec<Mac>,
    /// Whether the guest's rings run.
    pub active: bool,
    /// Whether the guest asked to be announced.
    pub announce: bool,
    /// Hosts with which another session is needed, on a secured vnet: addresses of vifs there.
    pub needs: Vec<SocketAddr>,
    /// Lanes that have ended here.
    pub lanes_ended: Vec<u32>,
}

impl Nic {
    /// A NIC with one worker per queue pair. `mtu` is what guests are told, in bytes.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn new(
        workers: Vec<Worker<UdpUnderlay>>,
        counters: Arc<VifCounters>,
        mtu: u16,
    ) -> io::Result<Self> {
        let mut workers = workers;
        let handovers = Arc::new(Handovers::default());
        let has_said = Arc::new(AtomicBool::new(false));
        let echo_limits = Arc::<Limits>::default();
        for worker in &mut workers {
            worker.tunnel_mut().set_echo_limits(Arc::clone(&echo_limits));
            worker.local_mut().prepare(Arc::clone(&handovers))?;
            worker.set_stranger(Stranger::new(Arc::clone(&has_said)));
        }
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let alarm = |worker: &Worker<UdpUnderlay>| {
            let is_needed = worker.throttle().needs_timer();
            is_needed.then(|| Alarm::new().map(Mutex::new)).transpose()
        };
        Ok(Self {
            alarms: workers.iter().map(alarm).collect::<io::Result<_>>()?,
            workers: workers.into_iter().map(Mutex::new).collect(),
            counters,
            mtu,
            offloads: Offloads::ALL,
            busy_poll: Duration::ZERO,
            running: AtomicU64::new(0),
            steered: Mutex::new(0),
            announce: AtomicBool::new(false),
            attention: EventFd::from_flags(flags)?,
            changed: EventFd::from_flags(flags)?,
            replaced: Mutex::default(),
        })
    }

    /// Workers look for frames for at most so long before they sleep, while that pays.
    #[must_use]
    pub fn with_busy_poll(self, busy_poll: Duration) -> Self {
        Self { busy_poll, ..self }
    }

    /// Only these offloads are offered to drivers.
    #[must_use]
    pub fn offering(self, offloads: Offloads) -> Self {
        Self { offloads, ..self }
    }

    /// The vif's counters.
    pub fn counters(&self) -> &Arc<VifCounters> {
        &self.counters
    }

    /// Readable when [`Nic::wishes`] has something new.
    pub fn attention(&self) -> &EventFd {
        &self.attention
    }

    fn replaced(&self) -> MutexGuard<'_, Replaced> {
        // Poisoned only by a panic, which ends the process.
        self.replaced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks each worker in turn.
    pub fn workers(&self) -> impl Iterator<Item = Lent<'_>> {
        // Poisoned only by a panic, which ends the process.
        self.workers.iter().map(|w| w.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Resets [`Nic::attention`]; to be called before [`Nic::wishes`], and also when nobody is there
    /// to hear them.
    pub fn take_attention(&self) {
        // Fails only when it was not signalled.
        let _ = self.attention.read();
    }

    /// What varpd should hear. Questions and the wish to be announced are told once.
    pub fn wishes(&self) -> Wishes {
        let mut wishes = Wishes {
            questions: Vec::new(),
            late: Vec::new(),
            sources: Vec::new(),
            active: self.is_active(),
            announce: self.announce.swap(false, Ordering::AcqRel),
            needs: Vec::new(),
            lanes_ended: Vec::new(),
        };
        for mut worker in self.workers() {
            wishes.announce |= worker.take_announcement();
            wishes.questions.extend(worker.tunnel_mut().questions());
            if let Some(protection) = worker.tunnel_mut().protection_mut() {
                wishes.needs.extend(protection.take_needs());
            }
            wishes.late.extend(worker.tunnel_mut().late_senders());
            wishes.sources.extend(worker.learned().news());
            wishes.lanes_ended.extend(worker.local_mut().take_ended());
        }
        wishes
    }

    fn call_for_attention(&self) {
        // Fails only when the counter is full: then it is signalled already.
        let _ = self.attention.write(1);
    }

    /// The worker of a queue pair, if there is such a one.
    pub fn worker(&self, pair: usize) -> Option<Lent<'_>> {
        let worker = self.workers.get(pair)?;
        Some(worker.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn alarm(&self, pair: usize) -> Option<MutexGuard<'_, Alarm>> {
        let alarm = self.alarms.get(pair)?.as_ref()?;
        Some(alarm.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What a worker waits on, in the order of its descriptors: ports, then what is never left alone.
    fn sources(
        &self,
        pair: usize,
        worker: &Worker<UdpUnderlay>,
    ) -> impl Iterator<Item = (Source, RawFd)> {
        let port = |port| Some((Source::Port(port), worker.tunnel().underlay().descriptor(port)?));
        let alarm = self.alarm(pair).map(|alarm| (Source::Alarm, alarm.descriptor()));
        let sender =
            worker.tunnel().underlay().sender().map(|fd| (Source::Reports, fd.as_raw_fd()));
        let lanes = worker.local().descriptor().map(|fd| (Source::LaneTimer, fd));
        PORTS.map(port).into_iter().flatten().chain(sender).chain(alarm).chain(lanes)
    }

    fn turn(&self, pair: usize, worker: &mut Lent<'_>, wake: Wake, now: Instant) -> Turn {
        let index = match wake {
            Wake::Transmit => return Turn { transmits: true, ..Turn::default() },
            Wake::Receive => {
                return Turn { reads_lanes: worker.local().has_readers(), ..Turn::default() };
            }
            Wake::Own(event) => {
                let transmits = worker.lanes_rung(event, now);
                return Turn {
                    transmits,
                    reads_lanes: worker.local().has_readers(),
                    ..Turn::default()
                };
            }
            Wake::Socket(index) => index,
        };
        let source = self.sources(pair, worker).nth(index);
        match source {
            Some((Source::Port(port), _)) => {
                let reads_lanes = worker.local().has_shut();
                Turn { ports: [Some(port), None], reads_lanes, ..Turn::default() }
            }
            Some((Source::LaneTimer, _)) => {
                let transmits = worker.lanes_timed_out();
                Turn { transmits, reads_lanes: worker.local().has_readers(), ..Turn::default() }
            }
            Some((Source::Alarm, _)) => {
                let ports = self.alarm(pair).map(|mut alarm| alarm.ring().map(Some));
                let ports = ports.filter(|_| worker.throttle().is_due(Direction::In, now));
                let transmits = worker.throttle().is_due(Direction::Out, now);
                let reads_lanes = ports.is_some() && worker.local().has_readers();
                Turn { transmits, ports: ports.unwrap_or_default(), reads_lanes, ..Turn::default() }
            }
            Some((Source::Reports, _)) => Turn { heeds_reports: true, ..Turn::default() },
            None => Turn::default(),
        }
    }

    /// Whether any of the guest's rings run.
    pub fn is_active(&self) -> bool {
        self.running.load(Ordering::Acquire) != 0
    }

    /// Duplicates of the sockets of all queue pairs as varpd gave them: the group sockets first, then
    /// those that receive, then those that only send.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn sockets(&self) -> io::Result<Vec<OwnedFd>> {
        let duplicate = |socket: BorrowedFd<'_>| socket.try_clone_to_owned();
        let receiving = |worker: Lent<'_>| -> Vec<io::Result<OwnedFd>> {
            worker.tunnel().underlay().sockets().map(duplicate).collect()
        };
        let sending = |worker: Lent<'_>| worker.tunnel().underlay().sender().map(duplicate);
        self.workers().flat_map(receiving).chain(self.workers().filter_map(sending)).collect()
    }

    /// From now on the vnet has this policy; keys are to follow.
    pub fn set_policy(&self, vnet: VnetId, policy: Policy) {
        let mut protection = Protection::of_vif(vnet, policy);
        for mut worker in self.workers() {
            worker.tunnel_mut().set_policy(policy, &mut protection);
            worker.tunnel_mut().set_clock(clock::now());
        }
    }

    /// Carries no frame from now on, or does again.
    pub fn set_halted(&self, is_halted: bool) {
        self.workers().for_each(|mut worker| worker.set_halted(is_halted));
    }

    /// Frames that wait for credit shall not wait for long: the sockets get room for few. varpd gives
    /// them room for many whenever it takes them.
    pub fn bound_receive_buffers(&self) {
        for worker in self.workers() {
            let Some(bytes) = worker.throttle().waiting_room(self.workers.len()) else { return };
            if let Err(error) = worker.tunnel().underlay().bound_receive_buffers(bytes) {
                log::warn!("cannot change a socket's receive buffer: {error}");
            }
        }
    }

    /// Lets datagrams come to the pairs that run. When none does they wait where they are.
    fn steer(&self) {
        if self.workers.len() == 1 {
            return;
        }
        let mut steered = self.steered.lock().unwrap_or_else(PoisonError::into_inner);
        let running = self.running.load(Ordering::Acquire);
        if running == 0 || running == *steered {
            return;
        }
        *steered = running;
        let done =
            self.worker(0).map_or(Ok(()), |worker| worker.tunnel().underlay().steer(running));
        if let Err(error) = done {
            log::warn!("cannot steer frames to the queue pairs that the guest uses: {error}");
        }
    }

    /// Duplicates of the queue pairs' sockets at the vif's own address.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn own_sockets(&self) -> io::Result<Vec<OwnedFd>> {
        // The groups' come first.
        let groups = self.worker(0).map_or(0, |worker| worker.tunnel().underlay().group_count());
        Ok(self.sockets()?.into_iter().skip(groups).collect())
    }

    /// See [`Worker::forwards_alone_until`]: the last of all queue pairs.
    pub fn forwards_alone_until(&self, now: Instant) -> Option<Instant> {
        self.workers().filter_map(|worker| worker.forwards_alone_until(now)).max()
    }

    /// Sends on late frames of queue pairs whose rings don't run.
    pub fn forward_waiting(&self, now: Instant) {
        self.workers().for_each(|mut worker| worker.forward_waiting(now));
        if self.workers().any(|worker| worker.wants_attention()) {
            self.call_for_attention();
        }
    }

    /// Other groups for the same vif at the same care-of address: all else stays as it is.
    pub fn replace_groups(&self, groups: Groups) {
        if let Some(mut worker) = self.worker(0) {
            let old = worker.tunnel_mut().underlay_mut().replace_groups(groups);
            self.replaced().groups.push(old);
        }
        self.bound_receive_buffers();
        // Fails only when the counter is full: then it is signalled already.
        let _ = self.changed.write(1);
    }

    /// Other sockets for the same vif: its care-of address has changed. The guest notices nothing.
    pub fn replace_underlays(&self, underlays: Vec<UdpUnderlay>, place: Place) {
        for (mut worker, underlay) in self.workers().zip(underlays) {
            let old = worker.tunnel_mut().replace_underlay(underlay, place);
            self.replaced().underlays.push(old);
        }
        self.bound_receive_buffers();
        *self.steered.lock().unwrap_or_else(PoisonError::into_inner) = 0;
        self.steer();
        // Fails only when the counter is full: then it is signalled already.
        let _ = self.changed.write(1);
    }
}

/// What a wake-up is for, besides frames that were received before.
#[derive(Clone, Copy, Debug, Default)]
struct Turn {
    transmits: bool,
    /// In this order.
    ports: [Option<Port>; 2],
    reads_lanes: bool,
    heeds_reports: bool,
}
