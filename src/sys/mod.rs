//! Safe wrappers over system calls.
//!
//! | File | Contents |
//! |---|---|
//! | [`clock`] | the only place that reads a clock |
//! | [`event`], [`timer`], [`signal`] | waiting for many descriptors; timers and signals as descriptors |
//! | [`event_share`] | waiting for descriptors in an epoll set of other code |
//! | [`lent_event`], [`doorbell`] | wake-ups of threads, and of processes that share memory |
//! | [`seqpacket`], [`ancillary`], [`socket_file`] | Unix sockets: whole datagrams, descriptors along with bytes, their files |
//! | [`mmsg`], [`error_queue`] | batches of UDP datagrams, and errors about sent ones |
//! | [`train`] | one message at a time, looked at before it is taken |
//! | [`sockopt`], [`link`] | socket options; network interfaces |
//! | [`rtnetlink`] | interfaces, addresses and default routes, and their changes |
//! | [`iovec`] | scatter-gather elements that may point into guest memory |
//! | [`shared_memory`], [`bus_error`] | memory of two processes, and the end of one when it fails |
//! | [`generation`] | detects that this virtual machine was restored or cloned |
//! | [`secret_file`] | files that hold secrets |
//! | [`process`], [`notify`] | a daemon's own process, and messages to the service manager |
//! | [`user`], [`beside`] | the user of a process; a second process of the same program |
//! | [`sandbox`] | confinement of a process after its start |

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
