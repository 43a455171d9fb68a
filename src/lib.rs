//! Virtual layer-2 networks for virtual machines.

pub mod time;
pub mod wire;
