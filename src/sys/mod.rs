//! Safe wrappers over system calls.

pub mod ancillary;
pub mod bus_error;
pub mod clock;
pub mod doorbell;
pub mod error_queue;
pub mod event;
pub mod iovec;
pub mod lent_event;
pub mod link;
pub mod mmsg;
pub mod process;
pub mod sandbox;
pub mod secret_file;
pub mod seqpacket;
pub mod shared_memory;
pub mod signal;
pub mod sockopt;
pub mod timer;
