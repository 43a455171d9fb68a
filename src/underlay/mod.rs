//! The underlay: how frames leave for, and come from, other hosts.

pub mod sockets;
