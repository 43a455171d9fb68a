//! What a frontend (QEMU) sees: a socket, a connection, a device with rings.
//!
//! The protocol is spoken by the crate `vhost-user-backend`; here is what stands around it.
//!
//! | File | What |
//! |---|---|
//! | [`attach`] | how frontends are met: listening, connecting, an inherited descriptor |
//! | [`channel`], [`connection`] | whole messages with their descriptors; one connection's life |
//! | `backend` | what the crate `vhost-user-backend` asks of a device: features, callbacks |
//! | [`filter`] | pure: the dialect of frontends, turned into what the crate understands |
//! | [`device`] | the device of a connection, and the wake-ups of the [`device::DataPath`]; within it `polling` looks for frames before a worker sleeps, and `pace`, pure, says whether that pays |
//! | [`vring`] | a virtqueue as the control side keeps it and as the data path is lent it |
//! | [`memory_table`] | pure: whether what a frontend says of guest memory can be |
//! | [`dirty`], [`logging`] | pages written to are told to a frontend that migrates the guest |

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
