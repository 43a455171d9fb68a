//! A guest's NIC: the data path in packet order.

pub mod guest;
pub mod neighbors;
pub mod park;
pub mod rx;
pub mod tx;
pub mod worker;
