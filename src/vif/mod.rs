//! A guest's NIC.

pub mod attach;
mod backend;
pub mod channel;
pub mod connection;
pub mod device;
pub mod filter;
pub mod guest;
pub mod link;
pub mod neighbors;
pub mod nic;
pub mod park;
pub mod rx;
pub mod serve;
pub mod tx;
pub mod vring;
pub mod worker;
