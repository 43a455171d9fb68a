//! What differs from world to world.

use super::OPEN;
use crate::random::Random;
use crate::support::netns::Family;
use crate::support::vnet::Listener;
use crate::{JUMBO_MTU, MTU};

/// Hosts and the underlay.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) family: Family,
    /// Of the underlay, in bytes.
    pub(super) mtu: u32,
    /// Whether guests of one host talk through lanes; over loopback if not.
    pub(super) has_lanes: bool,
    /// Seconds after which the keys between hosts are replaced.
    pub(super) rekey: u32,
    /// Seconds for which the sockets of a backend are kept that has ended.
    pub(super) keep: u32,
    /// Whether programs end only with their guests, so that they get old.
    pub(super) programs_last: bool,
}

impl Shape {
    pub(super) fn new(random: &mut Random) -> Self {
        Self {
            family: if random.per_mille(400) { Family::V6 } else { Family::V4 },
            mtu: if random.per_mille(250) { JUMBO_MTU } else { MTU },
            has_lanes: random.per_mille(700),
            rekey: [4, 10, 3600][random.index(3)],
            keep: [3, 60][random.index(2)],
            programs_last: random.per_mille(150),
        }
    }

    /// What varpd's configuration says of it.
    pub(super) fn config(&self) -> String {
        let Self { rekey, keep, .. } = self;
        let ipv6 = self.family == Family::V6;
        let lanes = if self.has_lanes { "" } else { "[limits]\nlanes = 0\n" };
        format!("ipv6 = {ipv6}\n{lanes}[timers]\nkeep = {keep}\n[security]\nrekey = {rekey}\n")
    }

    /// The longest frame that guests say, in bytes.
    pub(super) fn longest(&self) -> usize {
        if self.mtu == JUMBO_MTU { 8900 } else { 1514 }
    }
}

/// A guest and its backend.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    /// Queue pairs.
    pub(super) pairs: usize,
    /// Who listens on the socket between the two.
    pub(super) listener: Listener,
    /// Whether it is a bridge, behind which there is a MAC.
    pub(super) is_bridge: bool,
    /// Room for a frame that it sends, in bytes.
    pub(super) room: u32,
}

impl Kind {
    pub(super) fn new(shape: &Shape, random: &mut Random) -> Self {
        Self {
            pairs: if random.per_mille(300) { 2 } else { 1 },
            listener: if random.per_mille(300) { Listener::Qemu } else { Listener::Backend },
            is_bridge: random.per_mille(250),
            room: if shape.mtu == JUMBO_MTU { 9216 } else { 2048 },
        }
    }

    /// Arguments of its backend, on this vnet: it refuses to serve below the vnet's policy, which a varpd that
    /// has lost its configuration does not know.
    pub(super) fn arguments(&self, vnet: u32) -> Vec<String> {
        let mut arguments = vec![format!("--queue-pairs={}", self.pairs)];
        if vnet != OPEN {
            arguments.push("--policy=auth".to_owned());
        }
        if self.is_bridge {
            arguments.push("--learn=2".to_owned());
        }
        arguments
    }
}
