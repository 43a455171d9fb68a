//! Forged messages of each kind that hosts and backends receive: they accept none of them.
//!
//! Each test makes many messages of one kind by the means of an attacker, and passes them to the
//! code that handles them in the programs. It asserts for each message that
//!
//! * the state is unchanged,
//! * the code drops and counts it under one name, the right one; or answers it, to its source only
//!   and with no more bytes than it had,
//! * memory stays within a bound,
//!
//! and that the code afterwards handles genuine messages as if there had been no forgeries.
//!
//! | Module | Forgeries | Handled by |
//! |---|---|---|
//! | `handshake` | INIT, RESPONSE, CONFIRM, ACK, COOKIE: replayed, altered, invented, of other names, vnets and versions | [`vnet::security::sadb::Sadb`] |
//! | `hello` | HELLO and LIST: replayed, altered, of other sources, ports and versions, with wrong tags, of invented hosts | [`vnet::hosts::Hosts`] |
//! | `esp` | packets to a vif of a secured vnet, and to its group: replayed, altered, with other keys, SPIs and starts | [`vnet::tunnel::protect::Protection`] |
//! | `echo` | echoes and traces (flag O): spoofed, altered, unasked, in the clear on a secured vnet | [`vnet::port::worker::Worker`] |
//! | `relayed` | group frames of relays | the same |
//! | `tests/varpd/forgeries.rs` | VARP of relays; messages of a backend that was taken over, by the control protocol | varpd, running |
//! | `mapper::tests::forgeries` | VARP on a vnet without keys | [`vnet::mapper::Mapper`] |
//! | `security::membership::tests` | VARP on a secured vnet | [`vnet::security::membership::Membership`] |
//!
//! `VNET_FORGERIES` sets another number of forgeries than the usual one
//! (`tests/run --forgeries N`).

#![expect(clippy::unwrap_used, reason = "a failed test may panic")]

mod echo;
mod esp;
#[path = "../support/forging.rs"]
mod forging;
mod handshake;
mod hello;
mod nic;
#[path = "../support/random.rs"]
mod random;
mod relayed;
#[path = "../../fuzz/targets/mod.rs"]
mod targets;

use std::fmt::Debug;

use forging::{alter, noise};
use random::Random;
use vnet::metrics::Reading;
use vnet::wire::VnetId;

/// Usual number of forgeries of each kind.
const USUALLY: u64 = 10_000;

fn count() -> u64 {
    forging::count_or(USUALLY)
}

fn vnet(id: u32) -> VnetId {
    VnetId::new(id).unwrap()
}

/// The values of counters at the last look.
#[derive(Debug, Default)]
struct Tally(Vec<u64>);

impl Tally {
    /// The counters that have grown since then, each as often as it was counted up.
    fn since(&mut self, now: impl Iterator<Item = Reading>) -> Vec<&'static str> {
        let mut grown = Vec::new();
        for (at, Reading { name, value, .. }) in now.enumerate() {
            if self.0.len() == at {
                self.0.push(0);
            }
            let before = std::mem::replace(&mut self.0[at], value);
            grown.extend((before..value).map(|_| name));
        }
        grown
    }
}

/// The approximate size of a machine's state: the length of its debug output.
fn size(machine: &impl Debug) -> usize {
    format!("{machine:?}").len()
}
