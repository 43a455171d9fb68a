//! Safe wrappers over system calls.

pub mod clock;
