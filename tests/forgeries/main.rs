//! Forged messages of each kind that hosts and backends take from others: nothing of them is believed.
//!
//! Each test makes many messages of one kind in a way that an attacker has, and gives them to the code that takes them in
//! the programs. It asserts of each of them that
//!
//! * the state is as it was before,
//! * it is dropped and counted under one name, the right one; or answered, to its source only and with no more bytes than
//!   it had,
//! * memory stays within a bound,
//!
//! and that genuine messages are taken afterwards as if nothing had come.
//!
//! | Module | Forgeries | Taken by |
//! |---|---|---|
//! | `handshake` | INIT, RESPONSE, CONFIRM, ACK, COOKIE: replayed, altered, made up, of other names, vnets and versions | [`vnet::security::sadb::Sadb`] |
//! | `hello` | HELLO and LIST: replayed, altered, of other sources, ports and versions, with wrong tags, made-up hosts | [`vnet::hosts::Hosts`] |
//! | `esp` | packets to a vif of a secured vnet, and to its group: replayed, altered, with other keys, SPIs and starts | [`vnet::tunnel::protect::Protection`] |
//! | `echo` | echoes and traces (flag O): spoofed, altered, unasked, in the clear on a secured vnet | [`vnet::port::worker::Worker`] |
//! | `relayed` | group frames of relays | the same |
//! | `tests/varpd/forgeries.rs` | VARP of relays; the control protocol, as a backend speaks it that was taken over | varpd, running |
//! | `mapper::tests::forgeries` | VARP on a vnet without keys | [`vnet::mapper::Mapper`] |
//! | `security::membership::tests` | VARP on a secured vnet | [`vnet::security::membership::Membership`] |
//!
//! `VNET_FORGERIES` says how many instead of the usual number (`tests/run --forgeries N`).

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

/// The values that counters had when they were last looked at.
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

/// How much a machine remembers, roughly: the length of what can be shown of it.
fn size(machine: &impl Debug) -> usize {
    format!("{machine:?}").len()
}
