//! Safe wrappers over system calls.
//!
//! | File | What |
//! |---|---|
//! | [`clock`] | the only place that reads a clock |
//! | [`event`], [`timer`], [`signal`] | waiting for many descriptors; timers and signals as such |
//! | [`event_share`] | waiting for descriptors in a set that is somebody else's |
//! | [`lent_event`], [`doorbell`] | how threads, and processes that share memory, wake each other |
//! | [`seqpacket`], [`ancillary`], [`socket_file`] | Unix sockets: whole datagrams, descriptors along with bytes, their files |
//! | [`mmsg`], [`error_queue`] | batches of UDP datagrams, and what became of those that were sent |
//! | [`train`] | one message at a time, looked at before it is taken |
//! | [`sockopt`], [`link`] | socket options; network interfaces |
//! | [`rtnetlink`] | which interfaces, addresses and default routes there are, and when they change |
//! | [`iovec`] | scatter-gather elements that may point into guest memory |
//! | [`shared_memory`], [`bus_error`] | memory of two processes, and what becomes of one when it fails |
//! | [`generation`] | whether this virtual machine is a copy of what it was |
//! | [`secret_file`] | files that hold secrets |
//! | [`process`], [`notify`] | what a daemon asks of the system about itself, and tells the service manager |
//! | [`user`], [`beside`] | as whom a process runs; a process beside it |
//! | [`sandbox`] | what a process gives up after its start |

pub mod ancillary;
pub mod beside;
pub mod bus_error;
pub mod clock;
pub mod doorbell;
pub mod error_queue;
pub mod event;
pub mod event_share;
pub mod generation;
pub mod iovec;
pub mod lent_event;
pub mod link;
pub mod mmsg;
pub mod notify;
pub mod process;
pub mod rtnetlink;
pub mod sandbox;
pub mod secret_file;
pub mod seqpacket;
pub mod shared_memory;
pub mod signal;
pub mod socket_file;
pub mod sockopt;
pub mod timer;
pub mod train;
pub mod user;
