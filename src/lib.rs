//! Virtual layer-2 networks for virtual machines.

pub mod mapper;
pub mod metrics;
pub mod sys;
pub mod time;
pub mod wire;
