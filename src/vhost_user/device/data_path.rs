//! The data path behind a device, and the interface between the two.

use std::os::fd::{BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use crate::sys::event_share::EventShare;
use crate::vhost_user::vring::{MemoryGuard, Ring};

/// What wakes a queue pair's worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// The guest may have added frames to its transmit ring.
    Transmit,
    /// The guest may have added buffers to its receive ring.
    Receive,
    /// The n-th of [`DataPath::descriptors`] is readable.
    Socket(usize),
    /// A descriptor is readable that the data path itself has added, with this number: see
    /// [`DataPath::share`]. It may have been removed meanwhile.
    Own(u16),
}

/// The two rings of a queue pair and the memory they are in, for the length of one wake-up.
pub struct Rings<'a> {
    /// Frames to the guest.
    pub rx: Ring<'a>,
    /// Frames from the guest.
    pub tx: Ring<'a>,
    /// Guest memory as it is now.
    pub memory: &'a MemoryGuard,
}

/// The events for which a worker waits next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    /// Bit n: the n-th of [`DataPath::descriptors`].
    pub descriptors: u64,
    /// More frames wait in the transmit ring: call again with [`Wake::Transmit`] after other events
    /// had a turn. `false` counts only in answer to [`Wake::Transmit`].
    pub transmit_again: bool,
    /// The same for [`Wake::Receive`].
    pub receive_again: bool,
    /// Frames stay in the transmit ring until a descriptor says so: there is nothing to look for in
    /// it before.
    pub is_held: bool,
}

impl Interest {
    /// All descriptors, nothing put off.
    pub const ALL: Self =
        Self { descriptors: u64::MAX, transmit_again: false, receive_again: false, is_held: false };
}

/// The data path, seen from the device.
///
/// Calls for one pair never overlap. Bad guest input is counted and dropped within; a ring that
/// can't be obeyed is stopped with [`Ring::stop_with_error`].
pub trait DataPath: Send + Sync + 'static {
    /// Number of queue pairs, 1 to [`MAX_QUEUE_PAIRS`](super::MAX_QUEUE_PAIRS).
    fn queue_pairs(&self) -> usize;

    /// The NIC's MAC, for frontends that do not know it themselves.
    fn mac(&self) -> Option<[u8; 6]> {
        None
    }

    /// MTU in bytes that the guest should use, if it should be offered one.
    fn mtu(&self) -> Option<u16>;

    /// Virtio features to be offered besides those of the device itself: offloads.
    fn offloads(&self) -> u64 {
        0
    }

    /// Descriptors that the worker of `pair` waits on besides kicks, at most 64, polled (level
    /// triggered, for reading) only while the pair runs. Their number stays the same. When others
    /// take their place ([`DataPath::changed`]) they stay open until
    /// [`DataPath::descriptors_taken`].
    fn descriptors(&self, pair: usize) -> Vec<RawFd>;

    /// From now on, until it is told `None`, the data path may let the worker of `pair` wait on
    /// descriptors that come and go. The pair is about to run; at `None`, when it has stopped, they
    /// are to be removed.
    fn share(&self, _pair: usize, _share: Option<Arc<EventShare>>) {}

    /// How long workers look for frames before they sleep, while that pays; zero for not at all.
    fn busy_poll(&self) -> Duration {
        Duration::ZERO
    }

    /// The worker of `pair` has looked for frames before it slept, and some came or none did.
    fn looked(&self, _pair: usize, _has_paid: bool) {}

    /// Readable when the descriptors are no longer those that were told. Whoever asks for them anew
    /// resets the event before by reading it.
    fn changed(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Nobody waits any more on descriptors that others have taken the place of.
    fn descriptors_taken(&self) {}

    /// Handles one wake-up, without blocking and for a bounded number of frames. Called only while
    /// the pair runs and its rings lie in guest memory.
    fn handle(&self, pair: usize, wake: Wake, rings: &mut Rings<'_>) -> Interest;

    /// Both rings of a pair started, or one of them stopped. Called once per change, by the worker
    /// or by the control thread; when a stop is acknowledged to the frontend, it has been told.
    fn set_running(&self, pair: usize, running: bool);

    /// The virtio features that the driver acknowledged.
    fn set_features(&self, features: u64);

    /// The frontend tells the MTU in bytes that the guest was configured with; false refuses it,
    /// which leaves a guest of QEMU's without this NIC.
    fn set_mtu(&self, mtu: u16) -> bool;

    /// The frontend asks that the network be told where the guest is (`SEND_RARP`). May come before
    /// any ring runs.
    fn announce(&self);

    /// A ring of the pair was malformed and is stopped until it is reset.
    fn ring_failed(&self, pair: usize);

    /// A frontend connected.
    fn frontend_connected(&self);

    /// The frontend is gone; no pair runs any more.
    fn frontend_disconnected(&self);
}
