//! One end of a vnet's tunnel on a host: frames become datagrams to other hosts, and datagrams frames.
//!
//! | File | Content |
//! |---|---|
//! | [`endpoint`] | the end itself: sockets, and the order in which the others work |
//! | [`neighbors`] | the care-of addresses of other vifs, by MAC |
//! | [`unresolved`] | frames that wait for such an address |
//! | [`outgoing`] | frames become datagrams |
//! | [`paths`] | how long those may be, by destination |
//! | [`too_big`] | the ICMP answer to a frame that is longer than its path |
//! | [`pmtu_feedback`] | answers to senders whose frames exceed that, and the senders that ignore them |
//! | [`protect`] | datagrams of a secured vnet are sealed and opened |
//! | [`rx`] | whether a datagram holds a frame for this vif |
//! | [`incoming`], [`reassembly`] | frames that were received and accepted, whole or in pieces |
//! | [`moved`] | MACs that have moved from here, whose late frames are sent on |
//! | [`residents`] | the MACs that are here, for frames that come through lanes |
//! | [`echo`] | answers to echoes of other hosts |
//!
//! This module knows nothing of guests: [`crate::port`] joins a tunnel to one.

pub mod echo;
pub mod endpoint;
pub mod incoming;
pub mod moved;
pub mod neighbors;
pub mod outgoing;
pub mod paths;
pub mod pmtu_feedback;
pub mod protect;
pub mod reassembly;
pub mod residents;
pub mod rx;
pub mod too_big;
pub mod unresolved;
