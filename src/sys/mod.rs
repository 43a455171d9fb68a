//! Safe wrappers over system calls.

pub mod ancillary;
pub mod clock;
pub mod lent_event;
