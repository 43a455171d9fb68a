//! The way to other vifs of this host, and from them: through shared memory ([`crate::lane`]) instead of
//! the tunnel.
//!
//! | File | Content |
//! |---|---|
//! | [`lanes`] | the lanes of a queue pair, their openings and ends |
//! | [`ends`] | their two ends: frames from the guest into lanes, and frames from lanes for the guest |
//! | [`arrived`] | short frames out of a lane that wait for the guest |
//! | [`unpacked`] | offloads of frames that come through a lane, for guests that do not accept them |

pub mod arrived;
pub mod ends;
pub mod lanes;
pub mod unpacked;
