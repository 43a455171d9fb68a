//! Safe wrappers over system calls.

pub mod clock;
pub mod iovec;
pub mod mmsg;
