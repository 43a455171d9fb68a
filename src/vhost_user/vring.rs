//! A virtqueue: the control side keeps it, and lends it to the data path.
//!
//! [`Vring`] is the ring for `vhost-user-backend`: it wraps the crate's `VringRwLock` and changes
//! its behaviour at some points. A missing kick is no error; `SET_VRING_ADDR` on a live ring (QEMU
//! sends it when a migration starts) does not rewind the used index; a ring whose size is not a
//! power of two never starts; and a malformed ring stops alone: the vring signals its error
//! descriptor, and the worker continues.
//!
//! [`Ring`] is the exclusive loan of one virtqueue to the data path for one wake-up.

mod ring;
#[cfg(test)]
mod tests;
mod watch;

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use log::Level;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use thiserror::Error;
use vhost_user_backend::{VringRwLock, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::{Error as QueueError, QueueT};
use vm_memory::{GuestMemoryAtomic, GuestMemoryLoadGuard, GuestMemoryMmap};

pub use self::ring::Ring;
pub(super) use self::watch::Watch;
use super::complaints::log as complain;
use super::dirty::DirtyBitmap;

/// How guest memory is mapped.
pub type GuestMemory = GuestMemoryMmap<DirtyBitmap>;
/// The guest memory of a connection; replaced as a whole when the frontend sends a new table.
pub type SharedMemory = GuestMemoryAtomic<GuestMemory>;
/// Guest memory as it was when the guard was taken; mapped for as long as the guard lives.
pub type MemoryGuard = GuestMemoryLoadGuard<GuestMemory>;

/// Largest queue that is accepted; QEMU allows `rx_queue_size` and `tx_queue_size` up to 1024.
pub const MAX_QUEUE_SIZE: u16 = 1024;

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
    /// The queue code refused the driver's entries (an index that jumped, an invalid head).
    #[error("{0}")]
    Queue(#[from] QueueError),
    /// The data path refused the driver's entries.
    #[error("{0}")]
    Malformed(&'static str),
}

/// A virtqueue, shared by the daemon's control thread and the worker of its queue pair.
#[derive(Clone)]
pub struct Vring {
    inner: VringRwLock<SharedMemory>,
    own: Arc<Own>,
}

/// The state of a [`Vring`] in addition to the crate's.
#[derive(Default)]
struct Own {
    err: Mutex<Option<File>>,
    /// A bit set of [`FAULT`], [`BAD_SIZE`] and [`UNCHECKED`].
    flags: AtomicU8,
    /// Used index up to which a notification has been decided.
    notified: AtomicU16,
    /// Kicks since the ring became ready.
    kicks: AtomicU32,
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

    /// Whether the device may be using it. A frontend sets up anew what it has stopped, or, like
    /// Linux's virtio_uml, only disabled.
    fn is_live(&self) -> bool {
        let state = self.inner.get_ref();
        state.get_queue().ready() && state.is_enabled()
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
        if self.is_live() {
            complain(
                Level::Warn,
                "the frontend set the base of a running ring: ignored",
                format_args!(""),
            );
        } else {
            self.own.set(FAULT, false);
            self.own.set(UNCHECKED, true);
            self.own.kicks.store(0, Ordering::Relaxed);
            self.inner.set_queue_next_avail(base);
        }
    }

    /// Called by the crate with what it read from the used ring after each `SET_VRING_ADDR`. While
    /// the ring runs, that value is already older than the worker's.
    fn set_queue_next_used(&self, index: u16) {
        if !self.is_live() {
            self.own.notified.store(index, Ordering::Relaxed);
            self.inner.set_queue_next_used(index);
        }
    }

    fn queue_used_idx(&self) -> Result<u16, QueueError> {
        self.inner.queue_used_idx()
    }

    fn set_queue_size(&self, size: u16) {
        if self.is_live() {
            complain(
                Level::Warn,
                "the frontend set the size of a running ring: ignored",
                format_args!(""),
            );
            return;
        }
        let allowed = size.is_power_of_two() && size <= MAX_QUEUE_SIZE;
        self.own.set(BAD_SIZE, !allowed);
        if allowed {
            self.inner.set_queue_size(size);
        } else {
            complain(
                Level::Error,
                "a ring can't start: ",
                format_args!("{}", RingError::Size(size)),
            );
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
            complain(
                Level::Warn,
                "can\'t make a kick descriptor non-blocking: ",
                format_args!("{error}"),
            );
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
                    complain(
                        Level::Error,
                        "a ring is stopped: ",
                        format_args!("{}", RingError::Kick(error)),
                    );
                }
                Ok(true)
            }
        }
    }

    fn set_call(&self, file: Option<File>) {
        // A blocking one that is full would hold the worker in a write, too.
        if let Some(file) = &file
            && let Err(error) = set_nonblocking(file)
        {
            complain(
                Level::Warn,
                "can\'t make a call descriptor non-blocking: ",
                format_args!("{error}"),
            );
        }
        self.inner.set_call(file);
    }

    fn set_err(&self, file: Option<File>) {
        if let Some(file) = &file
            && let Err(error) = set_nonblocking(file)
        {
            complain(
                Level::Warn,
                "can\'t make an error descriptor non-blocking: ",
                format_args!("{error}"),
            );
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
