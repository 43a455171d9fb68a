//! Virtual layer-2 networks for virtual machines.

pub mod cli;
pub mod config;
pub mod metrics;
pub mod show;
pub mod sys;
pub mod time;
pub mod underlay;
pub mod vif;
pub mod wire;
