//! A virtqueue as the control side keeps it, and as the data path is lent it.
//!
//! [`Vring`] is what `vhost-user-backend` sees: its own `VringRwLock` with the edges taken off. A
//! kick that is not there is no error, `SET_VRING_ADDR` on a live ring (QEMU sends it when a
//! migration starts) does not rewind the used index, a queue size that is not a power of two never
//! starts, and a malformed ring is stopped by itself: its error descriptor is signalled and the
//! worker lives on.
//!
//! [`Ring`] is the exclusive loan of one virtqueue to the data path for one wake-up.

mod watch;

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use thiserror::Error;
use vhost_user_backend::{VringRwLock, VringStateGuard, VringStateMutGuard, VringT};
use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Error as QueueError, Queue, QueueT};
use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryLoadGuard,
    GuestMemoryMmap,
};

pub(super) use self::watch::Watch;
use super::dirty::DirtyBitmap;
use crate::quiet::Quiet;
use crate::sys::clock;

/// How guest memory is mapped.
pub type GuestMemory = GuestMemoryMmap<DirtyBitmap>;
/// The guest memory of a connection; replaced as a whole when the frontend sends a new table.
pub type SharedMemory = GuestMemoryAtomic<GuestMemory>;
/// Guest memory as it was when the guard was taken; mapped for as long as the guard lives.
pub type MemoryGuard = GuestMemoryLoadGuard<GuestMemory>;

/// Largest queue that is accepted; QEMU allows `rx_queue_size` and `tx_queue_size` up to 1024.
pub const MAX_QUEUE_SIZE: u16 = 1024;

/// Kicks after which a ring that is still untouched makes one suspect memory that is not shared.
const SUSPICIOUS_KICKS: u32 = 3;

/// Why a ring was stopped.
#[derive(Debug, Error)]
pub enum RingError {
    /// Descriptor table, available ring or used ring are not in guest memory.
    #[error("its {0} at {1:#x} is not within the guest's shared memory")]
    Unmapped(&'static str, u64),
    /// The frontend asked for a size that is not allowed.
    #[error("its size {0} is not a power of two from 1 to {MAX_QUEUE_SIZE}")]
    Size(u16),
    /// The kick descriptor can't be read.
    #[error("its kick descriptor failed: {0}")]
    Kick(#[source] io::Error),
    /// The queue code refused what the driver wrote (an index that jumped, an invalid head).
    #[error("{0}")]
    Queue(#[from] QueueError),
    /// The data path refused what the driver wrote.
    #[error("{0}")]
    Malformed(&'static str),
}

/// A virtqueue, shared by the daemon's control thread and the worker of its queue pair.
#[derive(Clone)]
pub struct Vring {
    inner: VringRwLock<SharedMemory>,
    own: Arc<Own>,
}

/// What a [`Vring`] keeps beside the crate's state.
#[derive(Default)]
struct Own {
    err: Mutex<Option<File>>,
    /// A bit set of [`FAULT`], [`BAD_SIZE`] and [`UNCHECKED`].
    flags: AtomicU8,
    /// Used index up to which a notification has been decided.
    notified: AtomicU16,
    /// Kicks since the ring became ready.
    kicks: AtomicU32,
    quiet: Mutex<Quiet>,
    on_stop: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

/// The ring was malformed and is stopped until the frontend resets it.
const FAULT: u8 = 1;
/// The frontend asked for a size that is not allowed.
const BAD_SIZE: u8 = 2;
/// Addresses or size changed since the last [`Ring::check`].
const UNCHECKED: u8 = 4;

impl Own {
    fn is(&self, flag: u8) -> bool {
        self.flags.load(Ordering::Acquire) & flag != 0
    }

    fn set(&self, flag: u8, on: bool) {
        if on {
            self.flags.fetch_or(flag, Ordering::AcqRel);
        } else {
            self.flags.fetch_and(!flag, Ordering::AcqRel);
        }
    }

    fn err(&self) -> MutexGuard<'_, Option<File>> {
        self.err.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks the ring as stopped; true if it was not before.
    fn fail(&self) -> bool {
        let first = self.flags.fetch_or(FAULT, Ordering::AcqRel) & FAULT == 0;
        if first && let Some(err) = &*self.err() {
            // Nobody listening, or a full pipe, must not matter here.
            let _ = (&*err).write(&1_u64.to_ne_bytes());
        }
        first
    }
}

impl Vring {
    /// Borrows the ring for exclusive use; the control thread waits meanwhile.
    pub fn lock(&self) -> Ring<'_> {
        Ring { state: self.inner.get_mut(), own: &self.own }
    }

    /// Sets what is called, without any lock held, after the frontend has stopped or disabled the
    /// ring. The first call counts.
    pub fn on_stop(&self, call: impl Fn() + Send + Sync + 'static) {
        let _ = self.own.on_stop.set(Box::new(call));
    }

    fn stopped(&self) {
        if let Some(call) = self.own.on_stop.get() {
            call();
        }
    }

    fn is_ready(&self) -> bool {
        self.inner.get_ref().get_queue().ready()
    }
}

impl<'a> VringStateGuard<'a, SharedMemory> for Vring {
    type G = <VringRwLock<SharedMemory> as VringStateGuard<'a, SharedMemory>>::G;
}

impl<'a> VringStateMutGuard<'a, SharedMemory> for Vring {
    type G = <VringRwLock<SharedMemory> as VringStateMutGuard<'a, SharedMemory>>::G;
}

impl VringT<SharedMemory> for Vring {
    fn new(memory: SharedMemory, max_queue_size: u16) -> Result<Self, QueueError> {
        Ok(Self { inner: VringRwLock::new(memory, max_queue_size)?, own: Arc::default() })
    }

    fn get_ref(&self) -> <Self as VringStateGuard<'_, SharedMemory>>::G {
        self.inner.get_ref()
    }

    fn get_mut(&self) -> <Self as VringStateMutGuard<'_, SharedMemory>>::G {
        self.inner.get_mut()
    }

    fn add_used(&self, desc_index: u16, len: u32) -> Result<(), QueueError> {
        self.inner.add_used(desc_index, len)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.inner.signal_used_queue()
    }

    fn enable_notification(&self) -> Result<bool, QueueError> {
        self.inner.enable_notification()
    }

    fn disable_notification(&self) -> Result<(), QueueError> {
        self.inner.disable_notification()
    }

    fn needs_notification(&self) -> Result<bool, QueueError> {
        self.inner.needs_notification()
    }

    fn set_enabled(&self, enabled: bool) {
        self.inner.set_enabled(enabled);
        if !enabled {
            self.stopped();
        }
    }

    fn set_queue_info(&self, desc: u64, avail: u64, used: u64) -> Result<(), QueueError> {
        let same = {
            let state = self.inner.get_ref();
            let queue = state.get_queue();
            (queue.desc_table(), queue.avail_ring(), queue.used_ring()) == (desc, avail, used)
        };
        if !same {
            self.own.set(UNCHECKED, true);
            self.inner.set_queue_info(desc, avail, used)?;
        }
        Ok(())
    }

    fn queue_next_avail(&self) -> u16 {
        self.inner.queue_next_avail()
    }

    fn set_queue_next_avail(&self, base: u16) {
        if self.is_ready() {
            log::warn!("the frontend set the base of a running ring: ignored");
        } else {
            self.inner.set_queue_next_avail(base);
        }
    }

    /// Called by the crate with what it read from the used ring after each `SET_VRING_ADDR`. While
    /// the ring runs, that value is already older than the worker's.
    fn set_queue_next_used(&self, index: u16) {
        if !self.is_ready() {
            self.inner.set_queue_next_used(index);
        }
    }

    fn queue_used_idx(&self) -> Result<u16, QueueError> {
        self.inner.queue_used_idx()
    }

    fn set_queue_size(&self, size: u16) {
        if self.is_ready() {
            log::warn!("the frontend set the size of a running ring: ignored");
            return;
        }
        let allowed = size.is_power_of_two() && size <= MAX_QUEUE_SIZE;
        self.own.set(BAD_SIZE, !allowed);
        if allowed {
            self.inner.set_queue_size(size);
        } else {
            log::error!("a ring can't start: {}", RingError::Size(size));
        }
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.inner.set_queue_event_idx(enabled);
    }

    fn set_queue_ready(&self, ready: bool) {
        if ready && self.own.is(BAD_SIZE) {
            self.own.fail();
            return;
        }
        if ready {
            let mut state = self.inner.get_mut();
            if !state.get_queue().ready() {
                self.own.set(FAULT, false);
                self.own.set(UNCHECKED, true);
                self.own.kicks.store(0, Ordering::Relaxed);
                self.own.notified.store(state.get_queue().next_used(), Ordering::Relaxed);
                state.get_queue_mut().set_ready(true);
            }
        } else {
            self.inner.set_queue_ready(false);
            self.stopped();
        }
    }

    fn set_kick(&self, file: Option<File>) {
        // A blocking eventfd whose event somebody else took would hold the worker for ever.
        if let Some(file) = &file
            && let Err(error) = set_nonblocking(file)
        {
            log::warn!("can't make a kick descriptor non-blocking: {error}");
        }
        self.inner.set_kick(file);
    }

    /// An error here would end the worker's thread: an absent kick counts as none, and a
    /// descriptor that can't be read stops the ring.
    fn read_kick(&self) -> io::Result<bool> {
        match self.inner.read_kick() {
            Ok(enabled) => {
                self.own.kicks.fetch_add(1, Ordering::Relaxed);
                Ok(enabled)
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                Ok(false)
            }
            Err(error) => {
                if self.own.fail() {
                    log::error!("a ring is stopped: {}", RingError::Kick(error));
                }
                Ok(true)
            }
        }
    }

    fn set_call(&self, file: Option<File>) {
        self.inner.set_call(file);
    }

    fn set_err(&self, file: Option<File>) {
        if let Some(file) = &file
            && let Err(error) = set_nonblocking(file)
        {
            log::warn!("can't make an error descriptor non-blocking: {error}");
        }
        *self.own.err() = file;
    }
}

fn set_nonblocking(file: &File) -> nix::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(file.as_fd(), FcntlArg::F_GETFL)?);
    if !flags.contains(OFlag::O_NONBLOCK) {
        fcntl(file.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    }
    Ok(())
}

/// One virtqueue, lent to the data path for the length of a wake-up. While it lives, the frontend
/// can neither change nor stop the ring.
pub struct Ring<'a> {
    state: <Vring as VringStateMutGuard<'a, SharedMemory>>::G,
    own: &'a Own,
}

impl Ring<'_> {
    /// The ring's state: addresses, size and indices.
    pub fn queue(&self) -> &Queue {
        self.state.get_queue()
    }

    /// The ring's state, to take chains from and return them to.
    pub fn queue_mut(&mut self) -> &mut Queue {
        self.state.get_queue_mut()
    }

    /// Whether frames may pass: started, enabled and not malformed.
    pub fn is_running(&self) -> bool {
        self.queue().ready() && self.state.is_enabled() && !self.is_failed()
    }

    /// Whether the ring was stopped because it is malformed.
    pub fn is_failed(&self) -> bool {
        self.own.is(FAULT)
    }

    /// Stops this ring because what the driver wrote can't be obeyed; signals its error
    /// descriptor and says why, once, and not too often a minute. It runs again after the frontend has reset it.
    pub fn stop_with_error(&mut self, why: &RingError) {
        if self.own.fail() {
            let mut quiet = self.own.quiet.lock().unwrap_or_else(PoisonError::into_inner);
            let level = quiet.level(clock::mono());
            log::log!(level, "a ring is stopped until the guest resets it: {why}");
        }
    }

    /// Signals the driver that buffers were used since the last call, if it wants to know.
    /// Call it once per batch.
    ///
    /// # Errors
    /// The used event or the flags can't be read: the ring is not in memory.
    pub fn notify_if_needed(&mut self, memory: &MemoryGuard) -> Result<(), RingError> {
        let old = self.own.notified.load(Ordering::Relaxed);
        let new = self.queue().next_used();
        if new == old {
            return Ok(());
        }
        // The driver must see the used index before this reads whether it wants a call
        // (VIRTIO 1.2, 2.7.10.1).
        fence(Ordering::SeqCst);
        let wanted = if self.queue().event_idx_enabled() {
            let event = self.load_avail(memory, self.used_event_offset())?;
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            u32::from(self.load_avail(memory, 0)?) & VRING_AVAIL_F_NO_INTERRUPT == 0
        };
        self.own.notified.store(new, Ordering::Relaxed);
        if wanted && let Err(error) = self.state.signal_used_queue() {
            // EAGAIN: the counter is full, the driver has a call pending anyway.
            log::debug!("can't signal a ring's call descriptor: {error}");
        }
        Ok(())
    }

    /// Asks the driver for kicks again. True if buffers arrived meanwhile: look once more.
    ///
    /// # Errors
    /// The ring is not in memory.
    pub fn enable_kicks(&mut self, memory: &MemoryGuard) -> Result<bool, RingError> {
        Ok(self.queue_mut().enable_notification(&**memory)?)
    }

    /// Tells the driver that kicks are not needed while the device is looking anyway.
    ///
    /// # Errors
    /// The ring is not in memory.
    pub fn disable_kicks(&mut self, memory: &MemoryGuard) -> Result<(), RingError> {
        Ok(self.queue_mut().disable_notification(&**memory)?)
    }

    /// Whether addresses or size changed since [`Ring::check`] last found them good.
    pub(super) fn is_unchecked(&self) -> bool {
        self.own.is(UNCHECKED)
    }

    /// Whether the three parts of the ring lie within guest memory.
    pub(super) fn check(&mut self, memory: &MemoryGuard) -> Result<(), RingError> {
        let queue = self.queue();
        let size = usize::from(queue.size());
        let parts = [
            ("descriptor table", queue.desc_table(), 16 * size),
            ("available ring", queue.avail_ring(), 6 + 2 * size),
            ("used ring", queue.used_ring(), 6 + 8 * size),
        ];
        for (name, address, len) in parts {
            if !GuestMemoryBackend::check_range(&**memory, GuestAddress(address), len) {
                return Err(RingError::Unmapped(name, address));
            }
        }
        self.own.set(UNCHECKED, false);
        Ok(())
    }

    /// Whether the guest keeps kicking while the ring is all zero here: its memory is mapped
    /// privately somewhere. True once per start.
    pub(super) fn looks_unshared(&self, memory: &MemoryGuard) -> bool {
        if self.own.kicks.load(Ordering::Relaxed) != SUSPICIOUS_KICKS {
            return false;
        }
        let head = memory.read_obj::<[u64; 2]>(GuestAddress(self.queue().desc_table()));
        let index = self.load_avail(memory, 2);
        self.queue().next_avail() == 0
            && index.is_ok_and(|i| i == 0)
            && head.is_ok_and(|h| h == [0; 2])
    }

    pub(super) fn kick_descriptor(&self) -> Option<RawFd> {
        self.state.get_kick().as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Offset of `used_event`, behind the available ring's entries.
    fn used_event_offset(&self) -> u64 {
        4 + 2 * u64::from(self.queue().size())
    }

    fn load_avail(&self, memory: &MemoryGuard, offset: u64) -> Result<u16, RingError> {
        let base = self.queue().avail_ring();
        let unmapped = RingError::Unmapped("available ring", base);
        let Some(address) = GuestAddress(base).checked_add(offset) else { return Err(unmapped) };
        memory.load(address, Ordering::Relaxed).map(u16::from_le).map_err(|_| unmapped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::eventfd::{EfdFlags, EventFd};
    use std::os::fd::AsFd;
    use vm_memory::GuestAddressSpace;

    const TABLE: u64 = 0x1000;
    const AVAIL: u64 = 0x2000;
    const USED: u64 = 0x3000;
    const SIZE: u16 = 16;

    struct Bed {
        memory: SharedMemory,
        vring: Vring,
        call: EventFd,
        err: EventFd,
    }

    /// The file that the crate would hand on for an event.
    fn file(event: &EventFd) -> File {
        event.as_fd().try_clone_to_owned().unwrap().into()
    }

    /// A ring that runs.
    fn bed(event_idx: bool) -> Bed {
        let ranges = [(GuestAddress(0), 0x1_0000)];
        let memory = SharedMemory::new(GuestMemory::from_ranges(&ranges).unwrap());
        let vring = Vring::new(memory.clone(), MAX_QUEUE_SIZE).unwrap();
        let [call, err] = [(); 2].map(|()| EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap());
        vring.set_queue_size(SIZE);
        vring.set_queue_info(TABLE, AVAIL, USED).unwrap();
        vring.set_queue_event_idx(event_idx);
        vring.set_call(Some(file(&call)));
        vring.set_err(Some(file(&err)));
        vring.set_queue_ready(true);
        vring.set_enabled(true);
        Bed { memory, vring, call, err }
    }

    impl Bed {
        /// Uses some chains, notifies, and tells whether the driver was called.
        fn notified_after(&self, chains: u16) -> bool {
            let memory = self.memory.memory();
            let mut ring = self.vring.lock();
            for _ in 0..chains {
                ring.queue_mut().add_used(&*memory, 0, 0).unwrap();
            }
            ring.notify_if_needed(&memory).unwrap();
            self.call.read().is_ok()
        }

        fn store(&self, address: u64, value: u16) {
            let memory = self.memory.memory();
            memory.store(value.to_le(), GuestAddress(address), Ordering::Relaxed).unwrap();
        }
    }

    #[test]
    fn without_event_index_the_flag_decides() {
        let bed = bed(false);
        assert!(!bed.notified_after(0));
        assert!(bed.notified_after(1));
        bed.store(AVAIL, 1);
        assert!(!bed.notified_after(5));
        bed.store(AVAIL, 0);
        assert!(!bed.notified_after(0), "what was used before is not told again");
        assert!(bed.notified_after(1));
    }

    #[test]
    fn with_event_index_the_call_comes_when_it_is_passed() {
        let bed = bed(true);
        let used_event = AVAIL + 4 + 2 * u64::from(SIZE);
        // The driver wants to know of the 4th used chain, index 3.
        bed.store(used_event, 3);
        assert!(!bed.notified_after(3));
        assert!(bed.notified_after(1));
        assert!(!bed.notified_after(10));
        // Around the end of the index.
        for _ in 0..0xfff0 - 14 {
            bed.notified_after(1);
        }
        bed.store(used_event, 2);
        assert!(!bed.notified_after(0x12));
        assert!(bed.notified_after(3));
    }

    #[test]
    fn an_absent_kick_is_no_error() {
        let bed = bed(true);
        let kick = EventFd::new().unwrap();
        bed.vring.set_kick(Some(file(&kick)));
        assert!(!bed.vring.read_kick().unwrap(), "a blocking descriptor does not block either");
        kick.write(1).unwrap();
        assert!(bed.vring.read_kick().unwrap());
        assert!(!bed.vring.read_kick().unwrap());
        assert!(bed.vring.lock().is_running());
    }

    #[test]
    fn a_kick_that_cannot_be_read_stops_the_ring() {
        let bed = bed(true);
        let (reader, _) = nix::unistd::pipe().unwrap();
        bed.vring.set_kick(Some(reader.into()));
        assert!(bed.vring.read_kick().unwrap(), "so that the device looks at the ring");
        assert!(!bed.vring.lock().is_running());
        assert_eq!(bed.err.read().unwrap(), 1);
    }

    #[test]
    fn a_running_ring_is_not_moved() {
        let bed = bed(true);
        bed.notified_after(5);
        bed.vring.set_queue_next_used(2);
        bed.vring.set_queue_next_avail(3);
        bed.vring.set_queue_size(8);
        let indices = |ring: Ring<'_>| {
            (ring.queue().next_used(), ring.queue().next_avail(), ring.queue().size())
        };
        assert_eq!(indices(bed.vring.lock()), (5, 0, SIZE));
        bed.vring.set_queue_ready(false);
        bed.vring.set_queue_next_used(2);
        bed.vring.set_queue_next_avail(3);
        bed.vring.set_queue_size(8);
        assert_eq!(indices(bed.vring.lock()), (2, 3, 8));
    }

    #[test]
    fn a_stopped_ring_runs_again_after_a_reset() {
        let bed = bed(true);
        bed.vring.lock().stop_with_error(&RingError::Malformed("test"));
        bed.vring.lock().stop_with_error(&RingError::Malformed("test"));
        assert_eq!(bed.err.read().unwrap(), 1, "signalled once");
        bed.vring.set_enabled(true);
        bed.vring.set_queue_ready(true);
        assert!(!bed.vring.lock().is_running(), "ready already: no reset");
        bed.vring.set_queue_ready(false);
        bed.vring.set_queue_ready(true);
        assert!(bed.vring.lock().is_running());
    }

    #[test]
    fn only_powers_of_two_become_ready() {
        let bed = bed(true);
        for size in [0, 3, 15, 1023, 2048, u16::MAX] {
            bed.vring.set_queue_ready(false);
            bed.vring.set_queue_size(size);
            bed.vring.set_queue_ready(true);
            assert!(!bed.vring.lock().is_running(), "size {size}");
        }
        bed.vring.set_queue_size(MAX_QUEUE_SIZE);
        bed.vring.set_queue_ready(true);
        assert!(bed.vring.lock().is_running());
    }

    #[test]
    fn every_part_must_lie_in_memory() {
        let bed = bed(true);
        let memory = bed.memory.memory();
        assert!(bed.vring.lock().check(&memory).is_ok());
        for (table, avail, used, part) in [
            (0xff10, AVAIL, USED, "descriptor table"),
            (TABLE, 0xfff0, USED, "available ring"),
            (TABLE, AVAIL, 0xff80, "used ring"),
        ] {
            bed.vring.set_queue_info(table, avail, used).unwrap();
            assert!(bed.vring.lock().is_unchecked());
            let found = bed.vring.lock().check(&memory);
            assert!(matches!(found, Err(RingError::Unmapped(name, _)) if name == part));
        }
    }

    #[test]
    fn stopping_is_told_without_a_lock_held() {
        let bed = bed(true);
        let told = Arc::new(AtomicU32::new(0));
        let (count, vring) = (told.clone(), bed.vring.clone());
        bed.vring.on_stop(move || {
            drop(vring.lock());
            count.fetch_add(1, Ordering::Relaxed);
        });
        bed.vring.set_enabled(true);
        assert_eq!(told.load(Ordering::Relaxed), 0);
        bed.vring.set_enabled(false);
        bed.vring.set_queue_ready(false);
        assert_eq!(told.load(Ordering::Relaxed), 2);
    }
}
