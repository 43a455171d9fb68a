//! Controls whether and where a connection's writes into guest memory are logged.
//!
//! A frontend that migrates a guest passes a [`Log`] (`SET_LOG_BASE`) and requests its use by a
//! feature bit (`SET_FEATURES` with `VHOST_F_LOG_ALL`). It may do either first, replace the log
//! while it is in use, and replace the memory table. After that it reads the old log to the end,
//! copies pages and stops the rings. This requires three guarantees:
//!
//! * Once the backend has acknowledged the log or the feature, it logs every write, and none into
//!   an older log.
//! * It logs a new memory table before the first write into it. The crate uses the table before it
//!   calls the callback for it; the first of the two, the callback or a worker, attaches the log.
//! * Pages written after the feature was set but before there was a log are unknown: all pages
//!   count as written. QEMU causes this for a device that starts in the middle of a migration (a
//!   guest that boots then, a backend that is restarted).

#![forbid(unsafe_code)]

use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::{GuestAddressSpace, GuestMemoryBackend};

use super::dirty::{self, Log, LogError};
use super::vring::{GuestMemory, MemoryGuard, SharedMemory};
use crate::sys::process;

/// Bit 26 of the features: log all writes (`VHOST_F_LOG_ALL`).
pub const F_LOG_ALL: u64 = 1 << 26;

/// The guest memory of a connection, logged as the frontend wishes.
#[derive(Debug)]
pub struct LoggedMemory {
    shared: SharedMemory,
    /// The memory that [`Wishes`] are in force for; kept alive by them, so that no other can have
    /// its address.
    settled: AtomicPtr<GuestMemory>,
    wishes: Mutex<Wishes>,
}

#[derive(Debug, Default)]
struct Wishes {
    is_wanted: bool,
    log: Option<Arc<Log>>,
    settled: Option<Arc<GuestMemory>>,
}

impl Wishes {
    fn in_force(&self) -> Option<&Arc<Log>> {
        self.log.as_ref().filter(|_| self.is_wanted)
    }
}

impl LoggedMemory {
    /// Logs nothing yet.
    pub fn new(shared: SharedMemory) -> Self {
        Self { shared, settled: AtomicPtr::default(), wishes: Mutex::default() }
    }

    fn wishes(&self) -> MutexGuard<'_, Wishes> {
        // Poisoned only by a panic, which ends the process.
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The memory as it is now. What is written to it is logged if that is wished.
    pub fn memory(&self) -> MemoryGuard {
        let memory = self.shared.memory();
        if !ptr::eq(&*memory, self.settled.load(Ordering::Acquire)) {
            self.settle(&mut self.wishes());
        }
        memory
    }

    /// Puts the wishes in force for the memory table of now.
    fn settle(&self, wishes: &mut Wishes) {
        let memory = self.shared.memory().into_inner();
        dirty::attach(&memory, wishes.in_force());
        self.settled.store(Arc::as_ptr(&memory).cast_mut(), Ordering::Release);
        wishes.settled = Some(memory);
    }

    /// Guest memory is the frontend's: it says what of it is kept from swap, not this process.
    pub fn leave_to_owner(&self) {
        for region in self.shared.memory().iter() {
            process::unlock(region.as_ptr(), region.size());
        }
    }

    /// A new memory table is in force.
    ///
    /// # Errors
    /// It has pages that the log, which is in use, has no bits for.
    pub fn table_changed(&self) -> Result<(), LogError> {
        let mut wishes = self.wishes();
        self.settle(&mut wishes);
        match (wishes.in_force(), &wishes.settled) {
            (Some(log), Some(memory)) => log.check(memory),
            _ => Ok(()),
        }
    }

    /// Takes a log, in place of the one before. Batches that are under way may still use that one.
    ///
    /// # Errors
    /// There are pages that it has no bits for: nothing has changed.
    pub fn set_log(&self, log: Log) -> Result<(), LogError> {
        let mut wishes = self.wishes();
        log.check(&self.shared.memory())?;
        let is_late = wishes.is_wanted && wishes.log.is_none();
        wishes.log = Some(Arc::new(log));
        self.settle(&mut wishes);
        if let (true, Some(memory)) = (is_late, &wishes.settled) {
            dirty::mark_all(memory);
        }
        Ok(())
    }

    /// The features were set: logs from now on, or no longer. True if that is a change; batches
    /// that are under way may not have heard of it.
    pub fn set_features(&self, features: u64) -> bool {
        let mut wishes = self.wishes();
        let is_wanted = features & F_LOG_ALL != 0;
        let is_change = wishes.is_wanted != is_wanted;
        wishes.is_wanted = is_wanted;
        if is_change {
            self.settle(&mut wishes);
        }
        is_change
    }
}
