//! The vhost-user device: its offer to a frontend, and the wake-ups of the data path.
//!
//! A [`Device`] lives as long as one connection; the [`DataPath`] behind it outlives connections.
//! Each queue pair has a worker thread of the crate, which calls `Device::wake` for kicks, for the
//! data path's descriptors and for postponed work. No guest input makes a worker end: a malformed
//! ring stops (see [`super::vring::Ring::stop_with_error`]) and the worker waits for its reset. A
//! panic is a bug; it ends the process, because a process without a worker would be useless.
//!
//! Locks, in this order: a pair's state, then its two rings. The control thread takes only one of
//! them at a time, so when it holds the lock of the pair, no batch is in progress.

mod config;
mod data_path;
mod pace;
mod polling;
mod unshared;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use log::Level;
use vhost_user_backend::VringEpollHandler;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventNotifier};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

pub use self::data_path::{DataPath, Interest, Rings, Wake};
use self::polling::Polling;
use super::complaints;
use super::dirty::{Log, LogError};
use super::logging::LoggedMemory;
use super::vring::{SharedMemory, Vring};
use crate::sys::event_share::EventShare;
use crate::sys::lent_event::LentEvent;
use crate::wire::control;

/// Most queue pairs a device can have: the crate's masks of a worker's queues have 64 bits.
pub const MAX_QUEUE_PAIRS: usize = control::MAX_QUEUE_PAIRS as usize;

/// Most descriptors of the data path that a worker can wait on.
const MAX_DESCRIPTORS: usize = u64::BITS as usize;

/// The handle by which a worker's descriptors are added and removed.
type Poller = VringEpollHandler<Arc<Device>>;

/// The device of one connection.
pub struct Device {
    this: Weak<Self>,
    data_path: Arc<dyn DataPath>,
    memory: LoggedMemory,
    /// The state that the data path was told last.
    features: Mutex<Option<u64>>,
    /// Counts memory tables, so that a worker notices that its rings must be checked again.
    generation: AtomicU64,
    pairs: Vec<Arc<Pair>>,
    exits: Vec<LentEvent>,
    /// Weak, because each of them holds the device.
    pollers: OnceLock<Vec<Weak<Poller>>>,
    /// The data path's share of each.
    shares: OnceLock<Vec<Arc<EventShare>>>,
    /// Nothing is to be found out about the guest's memory any more.
    is_memory_known: AtomicBool,
}

struct Pair {
    index: usize,
    /// Number of the data path's descriptors.
    count: usize,
    again: EventFd,
    polling: Option<Polling>,
    state: Mutex<PairState>,
}

#[derive(Default)]
struct PairState {
    running: bool,
    watched: bool,
    /// The [`Device::generation`] that the rings were checked against.
    checked: u64,
    /// The data path's.
    descriptors: Vec<RawFd>,
    /// Those of them that are registered now.
    polled: u64,
    is_held: bool,
    transmit_again: bool,
    receive_again: bool,
    /// Whether the `again` event is registered and raised.
    again_raised: bool,
    /// Rings whose failure is counted: bit [`RX`], bit [`TX`].
    failed: u8,
}

impl Pair {
    fn state(&self) -> MutexGuard<'_, PairState> {
        // Poisoned only by a panic, which ends the process.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Device {
    /// A device for one connection, with `memory` still empty.
    ///
    /// # Errors
    /// No descriptors left, or the data path asks for more pairs or descriptors than are allowed.
    pub fn new(data_path: Arc<dyn DataPath>, memory: SharedMemory) -> io::Result<Arc<Self>> {
        let count = data_path.queue_pairs();
        if count == 0 || count > MAX_QUEUE_PAIRS {
            return Err(io::Error::other(format!(
                "{count} queue pairs are not 1 to {MAX_QUEUE_PAIRS}"
            )));
        }
        let pairs = (0..count).map(|index| {
            let descriptors = data_path.descriptors(index);
            if descriptors.len() > MAX_DESCRIPTORS {
                return Err(io::Error::other("too many descriptors to wait on"));
            }
            let again = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
            let polling = Polling::new(data_path.busy_poll());
            let count = descriptors.len();
            let state = Mutex::new(PairState { descriptors, ..PairState::default() });
            Ok(Arc::new(Pair { index, count, again, polling, state }))
        });
        let pairs = pairs.collect::<io::Result<_>>()?;
        let exits = (0..count).map(|_| LentEvent::new()).collect::<io::Result<_>>()?;
        Ok(Arc::new_cyclic(|this| Self {
            this: this.clone(),
            data_path,
            memory: LoggedMemory::new(memory),
            features: Mutex::new(None),
            generation: AtomicU64::new(1),
            pairs,
            exits,
            pollers: OnceLock::new(),
            shares: OnceLock::new(),
            is_memory_known: AtomicBool::new(false),
        }))
    }

    /// The data path behind the device.
    pub fn data_path(&self) -> &Arc<dyn DataPath> {
        &self.data_path
    }

    /// Makes the workers' pollers known; before any message of the frontend is handled.
    ///
    /// # Errors
    /// No descriptors left.
    pub(super) fn set_pollers(&self, pollers: &[Arc<Poller>]) -> io::Result<()> {
        let shares = self.pairs.iter().zip(pollers).map(|(pair, poller)| {
            let first = self.descriptor_event(pair.count);
            EventShare::new(&**poller, first).map(Arc::new)
        });
        let _ = self.shares.set(shares.collect::<io::Result<_>>()?);
        let _ = self.pollers.set(pollers.iter().map(Arc::downgrade).collect());
        Ok(())
    }

    /// The data path has other descriptors: waits on those from now on. False if they can't take
    /// the place of the others.
    pub(super) fn renew_descriptors(&self) -> bool {
        self.pairs.iter().all(|pair| {
            let mut state = pair.state();
            let polled = state.polled;
            self.set_polled(pair, &mut state, 0);
            state.descriptors = self.data_path.descriptors(pair.index);
            let is_alike = state.descriptors.len() == pair.count;
            if state.running && is_alike {
                self.set_polled(pair, &mut state, polled);
            }
            is_alike
        })
    }

    /// Stops all pairs; for the end of the connection, when no worker is left.
    pub(super) fn stop_all(&self) {
        for pair in &self.pairs {
            self.stop(pair, &mut pair.state());
        }
    }

    fn poller(&self, pair: &Pair) -> Option<Arc<Poller>> {
        self.pollers.get()?.get(pair.index)?.upgrade()
    }

    /// Number of rings: two for each pair.
    pub(super) fn ring_count(&self) -> usize {
        2 * self.pairs.len()
    }

    /// A new memory table is in force: rings are checked again, and no batch uses the old one any
    /// more when this returns.
    ///
    /// # Errors
    /// The log, which is in use, is too short for it.
    pub(super) fn memory_changed(&self) -> Result<(), LogError> {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.memory.leave_to_owner();
        let settled = self.memory.table_changed();
        self.await_batches();
        settled
    }

    /// Writes into guest memory are told to `log` if the features say so; none goes elsewhere any
    /// more when this returns.
    ///
    /// # Errors
    /// The log is too short for the guest's memory.
    pub(super) fn set_log(&self, log: Log) -> Result<(), LogError> {
        self.memory.set_log(log)?;
        self.await_batches();
        Ok(())
    }

    /// The frontend set the features, of which `ours` are the data path's business. A frontend that
    /// begins or ends a migration changes only whether writes are logged: frames pass meanwhile.
    pub(super) fn features_set(&self, features: u64, ours: u64) {
        if self.memory.set_features(features) {
            self.await_batches();
        }
        let mut known = self.features.lock().unwrap_or_else(PoisonError::into_inner);
        if known.replace(ours) != Some(ours) {
            self.data_path.set_features(ours);
        }
    }

    /// Waits until all batches that are under way are done.
    fn await_batches(&self) {
        for pair in &self.pairs {
            drop(pair.state());
        }
    }

    /// The event that ends the worker of pair `index`.
    pub(super) fn lend_exit_event(&self, index: usize) -> Option<(EventConsumer, EventNotifier)> {
        self.exits.get(index)?.lend()
    }

    /// Ends workers that nobody else can end: the crate forgets those it had started when it can't
    /// start them all.
    pub(super) fn end_workers(&self) {
        self.exits.iter().for_each(LentEvent::raise);
    }

    /// The first epoll event number above the crate's own (one per ring, and one to exit); the data
    /// path's descriptors follow.
    fn again_event(&self) -> u16 {
        u16::try_from(self.ring_count() + 1).unwrap_or(u16::MAX)
    }

    /// The event of the n-th of the data path's descriptors; those that it adds itself follow.
    fn descriptor_event(&self, n: usize) -> u16 {
        // There are at most MAX_DESCRIPTORS.
        self.again_event().saturating_add(1).saturating_add(u16::try_from(n).unwrap_or(u16::MAX))
    }

    fn poll(&self, pair: &Pair, fd: RawFd, event: u16, on: bool) {
        let Some(poller) = self.poller(pair) else { return };
        let done = if on {
            poller.register_listener(fd, EventSet::IN, event.into())
        } else {
            poller.unregister_listener(fd, EventSet::IN, event.into())
        };
        if let Err(error) = done {
            let verb = if on { "wait" } else { "stop waiting" };
            let which = format_args!(
                "queue pair {}: can't {verb} for descriptor {fd}: {error}",
                pair.index
            );
            complaints::log(Level::Error, "polling: ", which);
        }
    }

    /// Handles an event of the worker of pair `index`.
    pub(super) fn wake(&self, event: u16, vrings: &[Vring], index: usize) {
        let (Some(pair), [rx, tx]) = (self.pairs.get(index), vrings) else { return };
        match &pair.polling {
            None => self.turn(pair, event, rx, tx),
            Some(polling) => self.wake_and_look(pair, polling, event, [rx, tx]),
        }
    }

    /// One turn of a worker: what an event is about, for a bounded number of frames.
    fn turn(&self, pair: &Arc<Pair>, event: u16, rx: &Vring, tx: &Vring) {
        let index = pair.index;
        let mut state = pair.state();
        if !state.watched {
            state.watched = true;
            self.watch(pair, rx);
            self.watch(pair, tx);
        }
        let generation = self.generation.load(Ordering::Acquire);
        let memory = self.memory.memory();
        let mut rings = Rings { rx: rx.lock(), tx: tx.lock(), memory: &memory };
        if !check(&mut state, &mut rings, generation) {
            self.settle_failed(pair, &mut state, &rings);
            return self.stop(pair, &mut state);
        }
        state.failed = 0;
        self.look_whether_shared(event, &rings);
        if state.running {
            self.dispatch(pair, &mut state, &mut rings, event);
        } else {
            state.running = true;
            let share = self.shares.get().and_then(|shares| shares.get(index));
            self.data_path.share(index, share.cloned());
            self.data_path.set_running(index, true);
            self.call(pair, &mut state, &mut rings, Wake::Receive);
            self.call(pair, &mut state, &mut rings, Wake::Transmit);
        }
        if rings.rx.is_failed() || rings.tx.is_failed() {
            self.settle_failed(pair, &mut state, &rings);
            self.stop(pair, &mut state);
        }
    }

    /// Lets the end of a ring end the pair, in the control thread.
    fn watch(&self, pair: &Arc<Pair>, vring: &Vring) {
        let (device, pair) = (self.this.clone(), Arc::downgrade(pair));
        vring.on_stop(move || {
            if let (Some(device), Some(pair)) = (device.upgrade(), pair.upgrade()) {
                device.stop(&pair, &mut pair.state());
            }
        });
    }

    fn dispatch(&self, pair: &Pair, state: &mut PairState, rings: &mut Rings<'_>, event: u16) {
        let again = self.again_event();
        match event {
            RX => self.call(pair, state, rings, Wake::Receive),
            TX => self.call(pair, state, rings, Wake::Transmit),
            _ if event == again => {
                if state.transmit_again {
                    self.call(pair, state, rings, Wake::Transmit);
                }
                if state.receive_again {
                    self.call(pair, state, rings, Wake::Receive);
                }
            }
            _ => {
                let Some(n) = event.checked_sub(again + 1).map(usize::from) else { return };
                match n.checked_sub(pair.count) {
                    Some(own) => {
                        let own = u16::try_from(own).unwrap_or(u16::MAX);
                        self.call(pair, state, rings, Wake::Own(own));
                    }
                    None if state.polled >> n & 1 == 1 => {
                        self.call(pair, state, rings, Wake::Socket(n));
                    }
                    // An event fetched before its descriptor was unregistered is stale.
                    None => {}
                }
            }
        }
    }

    fn call(&self, pair: &Pair, state: &mut PairState, rings: &mut Rings<'_>, wake: Wake) {
        if rings.rx.is_failed() || rings.tx.is_failed() {
            return;
        }
        let wanted = self.data_path.handle(pair.index, wake, rings);
        if wake == Wake::Transmit {
            state.transmit_again = false;
        } else if wake == Wake::Receive {
            state.receive_again = false;
        }
        state.is_held = wanted.is_held;
        state.transmit_again |= wanted.transmit_again;
        state.receive_again |= wanted.receive_again;
        self.set_polled(pair, state, wanted.descriptors);
        self.set_again(pair, state, state.transmit_again || state.receive_again);
    }

    /// Registers and unregisters descriptors where the wish changed.
    fn set_polled(&self, pair: &Pair, state: &mut PairState, wanted: u64) {
        let existing = match state.descriptors.len() {
            0 => 0,
            n => u64::MAX >> (MAX_DESCRIPTORS - n),
        };
        let wanted = wanted & existing;
        let changed = wanted ^ state.polled;
        state.polled = wanted;
        if changed == 0 {
            return;
        }
        for ((n, &fd), event) in state.descriptors.iter().enumerate().zip(self.again_event() + 1..)
        {
            if changed >> n & 1 == 1 {
                self.poll(pair, fd, event, wanted >> n & 1 == 1);
            }
        }
    }

    /// Raises or lowers the worker's own event. It stays raised as long as work is put off, which
    /// then costs no system call per turn.
    fn set_again(&self, pair: &Pair, state: &mut PairState, raise: bool) {
        if raise == state.again_raised {
            return;
        }
        state.again_raised = raise;
        if raise {
            let _ = pair.again.write(1);
        } else {
            let _ = pair.again.read();
        }
        self.poll(pair, pair.again.as_raw_fd(), self.again_event(), raise);
    }

    fn stop(&self, pair: &Pair, state: &mut PairState) {
        if state.running {
            state.running = false;
            pair.polling.iter().for_each(Polling::interrupt);
            (state.transmit_again, state.receive_again) = (false, false);
            self.set_polled(pair, state, 0);
            self.set_again(pair, state, false);
            self.data_path.share(pair.index, None);
            self.data_path.set_running(pair.index, false);
        }
    }

    /// Counts failed rings and stops listening to their kicks: a kick descriptor that can't be
    /// read would wake the worker for ever.
    fn settle_failed(&self, pair: &Pair, state: &mut PairState, rings: &Rings<'_>) {
        for (ring, number) in [(&rings.rx, RX), (&rings.tx, TX)] {
            let bit = 1 << number;
            if !ring.is_failed() {
                state.failed &= !bit;
                continue;
            }
            if let (Some(fd), Some(poller)) = (ring.kick_descriptor(), self.poller(pair)) {
                // Not there any more if this is not the first event since.
                let _ = poller.unregister_listener(fd, EventSet::IN, self.again_event().into());
            }
            if state.failed & bit == 0 {
                state.failed |= bit;
                let name = if number == RX { "receive" } else { "transmit" };
                let which = format_args!("the {name} ring of queue pair {}", pair.index);
                complaints::log(Level::Warn, "a ring is malformed and stopped: ", which);
                self.data_path.ring_failed(pair.index);
            }
        }
    }
}

/// Whether both rings run and lie in guest memory.
fn check(state: &mut PairState, rings: &mut Rings<'_>, generation: u64) -> bool {
    if !(rings.rx.is_running() && rings.tx.is_running()) {
        return false;
    }
    if state.checked == generation && !rings.rx.is_unchecked() && !rings.tx.is_unchecked() {
        return true;
    }
    for ring in [&mut rings.rx, &mut rings.tx] {
        if let Err(why) = ring.check(rings.memory) {
            ring.stop_with_error(&why);
            return false;
        }
    }
    state.checked = generation;
    true
}

/// Positions of a pair's rings among its worker's, and so their event numbers (VIRTIO 1.2, 5.1.2:
/// receive first).
const RX: u16 = 0;
const TX: u16 = 1;
