//! Frames for a guest, in the form that [`super::side::GuestSide`] accepts.

use crate::offload::gro::Received;
use crate::offload::header::Header;
use crate::sys::iovec::IoVec;

/// Where a frame for the guest comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Another host.
    Tunnel,
    /// Another vif of this host.
    Lane,
    /// This host answers the guest.
    Host,
}

/// A frame for the guest.
#[derive(Clone, Copy, Debug)]
pub struct GuestFrame<'p, 'a> {
    /// Its virtio-net header.
    pub header: &'p Header,
    /// Its bytes.
    pub parts: &'p [IoVec<'a>],
    /// Its origin.
    pub origin: Origin,
    /// Whether its destination is a group.
    pub is_group: bool,
}

/// The result of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handed {
    /// The frame is in the guest's buffers.
    Done,
    /// No buffers of this guest can hold the frame.
    TooLong,
    /// The guest has no buffers, and kicks when it has.
    Starved,
    /// The guest keeps adding chains that no frame fits.
    Interrupted,
}

/// The result of delivering many frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing is left to deliver.
    All,
    /// The guest has no buffers for the rest, and kicks when it has.
    Starved,
    /// The rest waits for credit.
    Held,
    /// The guest keeps adding chains that no frame fits.
    Interrupted,
}

/// Frames that wait for the guest, in order.
pub trait Frames {
    /// The n-th frame that waits.
    fn get(&self, n: usize) -> Option<Received<'_>>;

    /// The origin of the first, and whether its destination is a group.
    fn first(&self) -> (Origin, bool);

    /// The first `count` frames were delivered as one of `len` bytes.
    fn delivered(&mut self, count: usize, len: usize);

    /// The first `count` frames are dropped.
    fn dropped(&mut self, count: usize);
}

/// A limit on the rate of frames to the guest. `()` is none.
pub trait Pace {
    /// Whether one more frame may pass.
    fn admits(&mut self) -> bool;

    /// A frame of `len` bytes has passed.
    fn charge(&mut self, len: usize);
}

impl Pace for () {
    fn admits(&mut self) -> bool {
        true
    }

    fn charge(&mut self, _len: usize) {}
}
