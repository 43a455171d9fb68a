//! The interface to a frontend (QEMU): a socket, a connection, a device with rings.
//!
//! The crate `vhost-user-backend` implements the protocol; this module has the code around it.
//!
//! | File | Contents |
//! |---|---|
//! | [`attach`] | the ways in which frontends attach: listening, connecting, an inherited descriptor |
//! | [`channel`], [`connection`] | whole messages with their descriptors; the life of one connection |
//! | `backend` | the features and callbacks that the crate `vhost-user-backend` requires of a device |
//! | [`filter`] | pure: translates the dialect of frontends into messages that the crate understands |
//! | [`device`] | the device of a connection, and the wake-ups of the [`device::DataPath`]; within it `polling` looks for frames before a worker sleeps, and `pace`, pure, decides whether that pays |
//! | [`vring`] | a virtqueue: the control side keeps it and lends it to the data path |
//! | [`memory_table`] | pure: checks a frontend's description of guest memory |
//! | [`dirty`], [`logging`] | the log of written pages for a frontend that migrates the guest |

pub mod attach;
mod backend;
pub mod channel;
mod complaints;
pub mod connection;
pub mod device;
pub mod dirty;
pub mod filter;
pub mod logging;
pub mod memory_table;
pub mod vring;
