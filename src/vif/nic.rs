//! A guest's NIC: the workers of its queue pairs, and what they share.
//!
//! Two sides use it. The device, on the workers' threads, hands in wake-ups. The link to varpd, on
//! the main thread, hands in answers and takes questions. Each worker has a lock of its own, which
//! its thread takes once per wake-up and the link only when varpd has something to say, so no frame
//! ever waits for another queue pair.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;

use super::guest::{HeaderLayout, LEGACY_HEADER_LEN, MODERN_HEADER_LEN};
use super::lanes::Handovers;
use super::neighbors::Question;
use super::worker::{Place, Progress, Worker};
use crate::metrics::{VifCounter, VifCounters};
use crate::offload::features::Offloads;
use crate::sys::clock;
use crate::underlay::udp::UdpUnderlay;
use crate::underlay::{Port, Underlay};
use crate::vhost_user::device::{DataPath, Interest, Rings, Wake};

/// The first descriptor of a worker is that of its lanes.
const LANES: usize = 0;
/// The ports a worker polls, in the order of its other descriptors.
const PORTS: [Port; 2] = [Port::Own, Port::Group];

/// A worker, locked.
pub type Lent<'a> = MutexGuard<'a, Worker<UdpUnderlay>>;

/// A guest's NIC.
pub struct Nic {
    workers: Vec<Mutex<Worker<UdpUnderlay>>>,
    counters: Arc<VifCounters>,
    mtu: u16,
    /// Bit n: pair n's rings run.
    running: AtomicU64,
    announce: AtomicBool,
    /// Wakes the link when a flag above changes or a worker has questions.
    attention: EventFd,
    /// Ends the frontend's connection when the sockets were replaced.
    changed: EventFd,
}

/// What the link is to tell varpd.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Addresses to resolve or refresh.
    pub questions: Vec<Question>,
    /// Whether the guest's rings run.
    pub active: bool,
    /// Whether the guest asked to be announced.
    pub announce: bool,
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
        for worker in &mut workers {
            worker.prepare_lanes(Arc::clone(&handovers))?;
        }
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        Ok(Self {
            workers: workers.into_iter().map(Mutex::new).collect(),
            counters,
            mtu,
            running: AtomicU64::new(0),
            announce: AtomicBool::new(false),
            attention: EventFd::from_flags(flags)?,
            changed: EventFd::from_flags(flags)?,
        })
    }

    /// The vif's counters.
    pub fn counters(&self) -> &Arc<VifCounters> {
        &self.counters
    }

    /// Readable when [`Nic::wishes`] has something new.
    pub fn attention(&self) -> &EventFd {
        &self.attention
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
            active: self.is_active(),
            announce: self.announce.swap(false, Ordering::AcqRel),
            lanes_ended: Vec::new(),
        };
        for mut worker in self.workers() {
            wishes.announce |= worker.take_announcement();
            wishes.questions.extend(worker.questions());
            wishes.lanes_ended.extend(worker.lanes_ended());
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

    /// Whether any of the guest's rings run.
    pub fn is_active(&self) -> bool {
        self.running.load(Ordering::Acquire) != 0
    }

    /// Duplicates of the sockets of all queue pairs, group socket first, as varpd gave them.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn sockets(&self) -> io::Result<Vec<OwnedFd>> {
        let duplicate = |socket: BorrowedFd<'_>| socket.try_clone_to_owned();
        let of_worker = |worker: Lent<'_>| -> Vec<io::Result<OwnedFd>> {
            worker.underlay().sockets().map(duplicate).collect()
        };
        self.workers().flat_map(of_worker).collect()
    }

    /// Other sockets for the same vif: its care-of address has changed. The frontend is made to
    /// connect anew.
    pub fn replace_underlays(&self, underlays: Vec<UdpUnderlay>, place: Place) {
        for (mut worker, underlay) in self.workers().zip(underlays) {
            worker.replace_underlay(underlay, place);
        }
        // Fails only when the counter is full: then it is signalled already.
        let _ = self.changed.write(1);
    }
}

/// Runs a step of a worker on one of its rings; a broken ring is stopped, not the worker.
macro_rules! on_ring {
    ($ring:expr, $memory:expr, $step:expr) => {{
        let result = $step.and_then(|outcome| {
            $ring.notify_if_needed($memory)?;
            Ok(outcome)
        });
        if let Err(error) = &result {
            $ring.stop_with_error(error);
        }
        result.ok()
    }};
}

impl DataPath for Nic {
    fn queue_pairs(&self) -> usize {
        self.workers.len()
    }

    fn mtu(&self) -> Option<u16> {
        Some(self.mtu)
    }

    fn offloads(&self) -> u64 {
        Offloads::ALL.bits()
    }

    fn descriptors(&self, pair: usize) -> Vec<RawFd> {
        let worker = self.worker(pair);
        let descriptor = |port| worker.as_ref().and_then(|w| w.underlay().descriptor(port));
        let lanes = worker.as_ref().and_then(|w| w.lanes_descriptor());
        lanes.into_iter().chain(PORTS.into_iter().filter_map(descriptor)).collect()
    }

    fn changed(&self) -> Option<BorrowedFd<'_>> {
        Some(self.changed.as_fd())
    }

    fn handle(&self, pair: usize, wake: Wake, rings: &mut Rings<'_>) -> Interest {
        let Some(mut worker) = self.worker(pair) else { return Interest::ALL };
        let now = clock::mono();
        let Rings { rx, tx, memory } = rings;
        let (mut transmit_again, mut receive_again) = (false, false);
        match wake {
            Wake::Transmit => {
                let step = worker.transmit(tx.queue_mut(), memory, now);
                transmit_again = on_ring!(tx, memory, step) == Some(Progress::More);
                if worker.has_answers() {
                    let step = worker.answer(rx.queue_mut(), memory);
                    on_ring!(rx, memory, step);
                }
            }
            Wake::Receive => {
                let step = worker.retry(rx.queue_mut(), memory);
                receive_again = on_ring!(rx, memory, step) == Some(Progress::More);
            }
            Wake::Socket(LANES) => {
                if worker.lanes_woken(now) {
                    let step = worker.transmit(tx.queue_mut(), memory, now);
                    transmit_again = on_ring!(tx, memory, step) == Some(Progress::More);
                }
            }
            Wake::Socket(index) => {
                if let Some(&port) = PORTS.get(index - 1) {
                    let step = worker.receive(port, rx.queue_mut(), memory, now);
                    receive_again = on_ring!(rx, memory, step) == Some(Progress::More);
                }
            }
        }
        let reads_lanes = match wake {
            Wake::Transmit => false,
            Wake::Receive | Wake::Socket(LANES) => worker.has_lanes(),
            Wake::Socket(_) => worker.has_shut_lanes(),
        };
        if reads_lanes && !rx.is_failed() {
            let step = worker.receive_lanes(rx.queue_mut(), memory, now);
            receive_again |= on_ring!(rx, memory, step) == Some(Progress::More);
        }
        if worker.wants_attention() {
            self.call_for_attention();
        }
        // Lanes also tell that there is room in one: they are heard in any case.
        let descriptors = if worker.is_starved() { 1 << LANES } else { u64::MAX };
        Interest { descriptors, transmit_again, receive_again }
    }

    fn set_running(&self, pair: usize, running: bool) {
        if let Some(mut worker) = self.worker(pair) {
            worker.set_running(running, clock::mono());
        }
        let bit = 1_u64.checked_shl(u32::try_from(pair).unwrap_or(u32::MAX)).unwrap_or(0);
        if running {
            self.running.fetch_or(bit, Ordering::AcqRel);
        } else {
            self.running.fetch_and(!bit, Ordering::AcqRel);
        }
        self.call_for_attention();
    }

    fn set_features(&self, features: u64) {
        let has = |bit: u32| features & (1 << bit) != 0;
        let mergeable = has(VIRTIO_NET_F_MRG_RXBUF);
        let is_modern = has(VIRTIO_F_VERSION_1) || mergeable;
        let len = if is_modern { MODERN_HEADER_LEN } else { LEGACY_HEADER_LEN };
        let offloads = Offloads::from_features(features);
        for mut worker in self.workers() {
            worker.set_features(HeaderLayout { len, mergeable }, offloads);
        }
    }

    fn set_mtu(&self, mtu: u16) -> bool {
        mtu <= self.mtu
    }

    fn announce(&self) {
        self.announce.store(true, Ordering::Release);
        self.call_for_attention();
    }

    fn ring_failed(&self, _pair: usize) {
        self.counters.inc(VifCounter::ring_errors);
    }

    fn frontend_connected(&self) {
        self.counters.inc(VifCounter::guest_connects);
    }

    fn frontend_disconnected(&self) {
        self.call_for_attention();
    }
}
