//! Which other hosts there are, and how they have set up the vnets that this host serves: the state machine of
//! hello. [`crate::wire::hello`] has its messages and its rules.
//!
//! Hosts announce themselves to the group now and then, with a digest of their list of vnets. Whoever lacks that list
//! asks for it. So every host knows all others, for operators, and how long the group frames of a vnet may be so that
//! each of them can receive them.
//!
//! The machine does no I/O and reads no clock: messages and changes come in with the time, and what is to be
//! done comes out as data ([`Output`]). Drive it like this: after each input call [`Hosts::poll_output`] until it
//! returns nothing, and call [`Hosts::handle_timeout`] at [`Hosts::poll_timeout`].
//!
//! | File | What |
//! |---|---|
//! | `own` | this host: its list, and its messages |
//! | `schedule` | when it speaks to the group |
//! | `receive` | messages of others |
//! | `asking` | questions to single hosts, answers, and lists |
//! | `nonces` | proofs that a host receives at its address |
//! | `table` | the hosts that were heard, in bounded memory |
//! | `agree` | in which respects another host is set up otherwise |
//! | `rows` | what operators see |
//!
//! What it believes: without a segment key anybody on the segment can make up a host, so all this is only shown. Of
//! secured vnets it believes entries with right tags, whoever sends them, and keeps them although somebody says that
//! their host has left the vnet, or is gone. Only they shorten the group frames of such a vnet.

#![forbid(unsafe_code)]

mod agree;
mod asking;
mod counters;
mod nonces;
mod own;
mod receive;
mod rows;
mod schedule;
mod table;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use crate::mapper::nonce::Nonces as Random;
use crate::security::keys::Secret;
use crate::time::{Instant, Now};
use crate::wire::name::Name;
use crate::wire::{Longest, VnetId};

pub use agree::{Difference, ONE, VNET};
pub use counters::{HostsCounter, HostsCounters};
pub use own::{Setup, Vnet};
pub use rows::Row;

use asking::Errands;
use nonces::Nonces;
use own::{Addressing, Own};
use schedule::Schedule;
use table::Table;

/// No group frame is cut shorter than for this length, whatever hosts say: every path of IPv6 takes it (RFC 8200, section
/// 5), and every useful one of IPv4.
pub const LEAST_GROUP: u16 = 1280;

/// Where a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// The group of VARP.
    Group,
    /// One host.
    Host(SocketAddr),
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send this message.
    Send {
        /// Where to.
        to: To,
        /// The message.
        bytes: Vec<u8>,
    },
    /// Group frames of a vnet leave in datagrams of this length at most from now on.
    Longest {
        /// The vnet.
        vnet: VnetId,
        /// The length; unknown if every host takes as much as this one's interface does.
        longest: Longest,
    },
    /// A host has set up a vnet so that frames get lost. Said with each HELLO of that host.
    Differs {
        /// The host.
        host: Name,
        /// The vnet.
        vnet: VnetId,
        /// In what.
        what: Difference,
    },
}

/// What a host knows of the others.
#[derive(Debug)]
pub struct Hosts {
    own: Own,
    port: u16,
    /// Since when it speaks under its name.
    since: Instant,
    /// When all that it knows is given out once more: by then it has heard all others, and what an earlier process
    /// gave out is over.
    certain_at: Option<Instant>,
    table: Table,
    schedule: Schedule,
    errands: Errands,
    nonces: Nonces,
    random: Random,
    /// The longest datagrams of group frames that were given out, where they are known.
    longest: BTreeMap<VnetId, u16>,
    /// Vnets for which they may have changed.
    touched: BTreeSet<VnetId>,
    outputs: VecDeque<Output>,
    counters: HostsCounters,
    /// Hosts that are taken to speak at least.
    #[cfg(test)]
    assumed: u32,
}

impl Hosts {
    /// A host without vnets that speaks from now on, from and to this port. `seed` is secret randomness.
    pub fn new(name: Name, port: u16, seed: [u8; 32], now: Now) -> Self {
        let seed = Secret::new(seed);
        Self {
            own: Own::new(name, now),
            port,
            since: now.mono,
            certain_at: Some(now.mono + asking::NEW),
            table: Table::default(),
            schedule: Schedule::new(now.mono),
            errands: Errands::new(now.mono),
            nonces: Nonces::new(&seed.derive("hello nonces", &[])),
            random: Random::new(seed.expand("hello times", &[])),
            longest: BTreeMap::new(),
            touched: BTreeSet::new(),
            outputs: VecDeque::new(),
            counters: HostsCounters::default(),
            #[cfg(test)]
            assumed: 0,
        }
    }

    /// This host is set up like this from now on.
    pub fn set_up(&mut self, setup: Setup, now: Now) {
        let mut gone: BTreeSet<VnetId> = self.own.setup.vnets.keys().copied().collect();
        gone.retain(|vnet| !setup.vnets.contains_key(vnet));
        let has_moved = self.own.setup.group != setup.group;
        let others = self.own.set(setup, now);
        if !self.own.is_told() || has_moved {
            self.schedule.change(self.speakers(), now.mono);
        }
        self.prove_again(&others, now);
        self.touched.extend(others.into_iter().chain(gone));
        self.settle();
    }

    /// The host has another name.
    pub fn move_to(&mut self, name: Name, now: Now) {
        self.own.move_to(name, now);
        self.since = now.mono;
        self.schedule = Schedule::new(now.mono);
    }

    /// The host leaves: others need not wait until they miss it. If vifs of it live on, say nothing instead.
    pub fn leave(&mut self, now: Now) {
        let bytes = self.own.hello(Addressing::default(), std::time::Duration::ZERO, now);
        self.outputs.push_back(Output::Send { to: To::Group, bytes });
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Now) {
        if self.schedule.due() <= now.mono {
            self.speak(now);
        }
        if self.table.next().is_some_and(|at| at <= now.mono) {
            self.sweep(now);
        }
        self.send_lists(now);
        self.check_one(now);
        self.give_out(now);
        self.settle();
    }

    /// When something is due next.
    pub fn poll_timeout(&self) -> Instant {
        let errands = self.errands.due();
        let others = self.table.next().into_iter().chain(errands).chain(self.certain_at);
        others.fold(self.schedule.due(), Instant::min)
    }

    /// What is to be done next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// How long the datagrams of a vnet's group frames may be; unknown if as long as this host's interface takes.
    pub fn longest(&self, vnet: VnetId) -> Longest {
        let known = self.longest.get(&vnet).copied().unwrap_or_default();
        Longest::new(known, self.own.name.ip()).unwrap_or(Longest::UNKNOWN)
    }

    /// Its counters.
    pub const fn counters(&self) -> &HostsCounters {
        &self.counters
    }

    /// Whether it has heard all others, so that a length which is unknown is not just one that it has not heard of.
    pub const fn is_certain(&self) -> bool {
        self.certain_at.is_none()
    }

    /// Says all lengths once more, if it is certain of them from now on.
    fn give_out(&mut self, now: Now) {
        if self.certain_at.take_if(|at| *at <= now.mono).is_some() {
            let vnets = self.own.setup.vnets.keys();
            let all =
                vnets.map(|vnet| Output::Longest { vnet: *vnet, longest: self.longest(*vnet) });
            self.outputs.extend(all.collect::<Vec<_>>());
        }
    }

    /// This host's name.
    pub const fn name(&self) -> Name {
        self.own.name
    }

    /// Number of other hosts that are known.
    pub fn known(&self) -> usize {
        self.table.len()
    }

    /// Number of hosts that speak, this one among them.
    fn speakers(&self) -> u32 {
        let known = u32::try_from(self.table.len()).unwrap_or(u32::MAX).saturating_add(1);
        #[cfg(test)]
        let known = known.max(self.assumed);
        known
    }

    /// Says to the group that this host is here.
    fn speak(&mut self, now: Now) {
        let speakers = self.speakers();
        let bytes = self.own.hello(Addressing::default(), schedule::lifetime(speakers), now);
        self.send(To::Group, bytes, HostsCounter::hello_tx);
        self.schedule.sent(speakers, &mut self.random, now.mono);
        if let Some(range) = self.own.take_untold() {
            self.errands.tell_group(range);
        }
    }

    fn send(&mut self, to: To, bytes: Vec<u8>, counter: HostsCounter) {
        self.counters.inc(counter);
        self.outputs.push_back(Output::Send { to, bytes });
    }

    /// Ends what is over, and asks those who are to be asked.
    fn sweep(&mut self, now: Now) {
        let swept = self.table.sweep(now.mono);
        self.counters.add(HostsCounter::hello_left, swept.gone.len() as u64);
        self.touch(swept.vnets);
        for name in swept.ask {
            self.ask_for_list(name, now);
        }
        self.table.settle();
    }

    /// What is known of these vnets has changed.
    fn touch(&mut self, vnets: impl IntoIterator<Item = VnetId>) {
        let own = &self.own.setup.vnets;
        self.touched.extend(vnets.into_iter().filter(|vnet| own.contains_key(vnet)));
    }

    /// Gives out the longest datagrams that have changed.
    fn settle(&mut self) {
        for vnet in std::mem::take(&mut self.touched) {
            let least = self.least(vnet);
            let before = match least {
                Some(least) => self.longest.insert(vnet, least),
                None => self.longest.remove(&vnet),
            };
            if before != least && self.own.setup.vnets.contains_key(&vnet) {
                let longest = self.longest(vnet);
                self.outputs.push_back(Output::Longest { vnet, longest });
            }
        }
    }

    /// The least of what the hosts of a vnet take, if any of them takes less than this host.
    fn least(&self, vnet: VnetId) -> Option<u16> {
        let takes_all = self.own.takes_all(vnet)?;
        let hosts = self.table.iter().filter_map(|(_, host)| host.takes(vnet, takes_all));
        let least = hosts.min()?.max(LEAST_GROUP);
        let own = self.own.setup.vnets.get(&vnet)?.longest.known();
        Some(least).filter(|least| own.is_none_or(|own| u32::from(*least) < own))
    }
}
