//! One guest NIC.

pub mod attach;
mod backend;
pub mod channel;
pub mod connection;
pub mod device;
pub mod filter;
pub mod vring;
