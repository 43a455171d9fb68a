//! The virtio side of a NIC, and the trust boundary: descriptor chains, which the guest writes,
//! become frames or named faults, and frames are written into its buffers.
//!
//! Whatever the guest does to its memory meanwhile, three rules hold. This module checks every
//! access against the guest's regions. It copies the bytes by which it decides once, before it
//! decides. A chain whose links are broken, looped, or point outside is a fault, never a short
//! frame (see [`ring::chain`]).
//!
//! | File | Content |
//! |---|---|
//! | [`ring`] | the rings: chains taken, walked and given back, by the batch |
//! | [`transmit`] | from the guest: a chain becomes a frame or a fault |
//! | [`deliver`] | to the guest: a frame goes into as many buffers as it takes |
//! | [`frames`] | frames that wait for a guest, and the results of their delivery |
//! | [`receiving`] | tries of a delivery, and its counting |
//! | [`side`] | the state of a queue pair: reads frames, and delivers and counts them |
//!
//! This module knows nothing of the tunnel: [`crate::port`] decides where frames go.

pub mod deliver;
pub mod frames;
pub mod receiving;
pub mod ring;
pub mod side;
pub mod transmit;

use crate::offload::header;
use ring::BrokenChain;

/// Length of the virtio-net header of a modern driver, in bytes (virtio 1.2, 5.1.6).
pub const MODERN_HEADER_LEN: usize = header::LEN;
/// Length of it for a legacy driver without mergeable buffers (virtio 1.2, 5.1.6.1).
pub const LEGACY_HEADER_LEN: usize = header::LEGACY_LEN;

/// A chain that is not a frame: a link is broken or looped, a descriptor points outside of memory
/// or into the wrong direction, there are too many of them, or the frame is shorter or longer than
/// any frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl From<BrokenChain> for Malformed {
    fn from(_: BrokenChain) -> Self {
        Self
    }
}

/// How the virtio-net header in front of received frames looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderLayout {
    /// Its length, in bytes.
    pub len: usize,
    /// Whether a frame may continue in further chains (VIRTIO_NET_F_MRG_RXBUF).
    pub mergeable: bool,
}
