//! The two doors of a port, where frames can be copied with their verdict: one towards the guest, one
//! towards the wire.
//!
//! A door is shut unless an [`Observer`] stands there; then a message costs a test of a pointer. Each frame is
//! shown once, when its fate is known: behind the system call that sends it, if it leaves. Exceptions:
//!
//! * A frame that waits for the resolution of its destination is shown as [`Verdict::Held`], and again when
//!   it leaves. If nobody answers, its drop is counted only.
//! * A frame that leaves in several messages is shown with the first of them, and again if the kernel
//!   refuses a later one.
//! * Trains of long segments that the kernel writes into the guest's buffers are not received that way while
//!   somebody looks at the door towards the guest.
//! * Datagrams that hold no frame for this vif are counted only.

use std::fmt::Debug;
use std::sync::Arc;

use crate::metrics::VifCounter;
use crate::sys::iovec::{Gather, IoVec};

/// The decision about a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on: to the guest, or to other hosts.
    Passed,
    /// It has come from another host for a MAC that has moved, and is sent on to where that is now.
    Forwarded,
    /// The backend sends it for the guest, to announce where that is now.
    Announced,
    /// It goes to another vif of this host.
    Local,
    /// It waits for the resolution of its destination.
    Held,
    /// It is dropped, and counted so.
    Dropped(VifCounter),
}

/// A frame at a door.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'p, 'a> {
    /// Its memory.
    pub parts: &'p [IoVec<'a>],
    /// Where in these it begins.
    pub skip: usize,
    /// Its length, in bytes. An offload may still have to cut it, or to complete its checksum.
    pub len: usize,
    /// Written in place of its first bytes, if the port changes its addresses. A frame that the port drops
    /// before it knows them is shown as the guest wrote it.
    pub addresses: &'p [u8],
    /// The decision about it.
    pub verdict: Verdict,
}

impl<'p, 'a> Observed<'p, 'a> {
    /// A frame that is all that `parts` hold.
    pub fn whole(parts: &'p [IoVec<'a>], verdict: Verdict) -> Self {
        let len = parts.iter().map(IoVec::len).sum();
        Self { parts, skip: 0, len, addresses: &[], verdict }
    }

    /// A copy of the first `most` bytes.
    pub fn copy(&self, most: usize) -> Vec<u8> {
        let mut bytes = vec![0; self.len.min(most)];
        Gather::new(self.parts, self.skip).copy_to(&mut bytes);
        bytes.iter_mut().zip(self.addresses).for_each(|(to, from)| *to = *from);
        bytes
    }
}

/// Whoever looks at frames. Called on the data path: it must not block.
pub trait Observer: Debug + Send + Sync {
    /// A frame passes the door, or is turned away.
    fn see(&self, frame: &Observed<'_, '_>);
}

/// A door. Clones are the same door.
#[derive(Clone, Debug, Default)]
pub struct Door(Option<Arc<dyn Observer>>);

impl Door {
    /// A door at which `observer` stands.
    pub fn with(observer: Arc<dyn Observer>) -> Self {
        Self(Some(observer))
    }

    /// Whether an observer stands there.
    #[inline]
    pub fn is_open(&self) -> bool {
        self.0.is_some()
    }

    /// Shows a frame to the observer, if there is one.
    #[inline]
    pub fn show<'p, 'a: 'p>(&self, frame: impl FnOnce() -> Observed<'p, 'a>) {
        if let Some(observer) = &self.0 {
            see(&**observer, &frame());
        }
    }
}

/// Apart from the path of frames at which nobody looks.
#[cold]
fn see(observer: &dyn Observer, frame: &Observed<'_, '_>) {
    observer.see(frame);
}
