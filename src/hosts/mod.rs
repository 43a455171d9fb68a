//! The state machine of hello: it knows the other hosts, and their settings of the vnets that this host serves.
//! [`crate::wire::hello`] has its messages and its rules.
//!
//! Hosts regularly announce themselves to the group, with a digest of their list of vnets. Hosts
//! that lack the list ask for it. So each host can show operators all others, and knows the longest
//! group frames that every host of a vnet can receive.
//!
//! The machine does no I/O and reads no clock: messages and changes come in with the time, and effects come out
//! as data ([`Output`]). Drive it like this: after each input call [`Hosts::poll_output`] until it
//! returns nothing, and call [`Hosts::handle_timeout`] at [`Hosts::poll_timeout`].
//!
//! | File | Contents |
//! |---|---|
//! | `own` | this host: its list, and its messages |
//! | `schedule` | the times of its messages to the group |
//! | `receive` | messages of others |
//! | `beacon` | messages to and from hosts with another group, port or address family |
//! | `asking` | questions to single hosts, answers, and lists |
//! | `nonces` | proofs that a host receives at its address |
//! | `table` | the other hosts, in bounded memory |
//! | `agree` | differences between the settings of another host and this one |
//! | `rows` | the table that operators see |
//!
//! Trust: without a segment key anybody on the segment can forge a host. On vnets that are not
//! secured, operators see such hosts, and their entries shorten group frames. On secured vnets the
//! machine accepts entries with right tags, whatever their source, and keeps them for some time
//! even if a message without a right tag claims that their host has left the vnet, or is gone. Only
//! such entries shorten the group frames of a secured vnet. Only a HELLO with a later time than all
//! before, or a new answer to this host's nonce, renews the lifetime of such a host; upon any other
//! message in its name, this host asks it. Tags whose time is far from this host's clock prove
//! nothing before their host has answered. So recorded messages neither keep a host that is gone
//! nor bring it back.

#![forbid(unsafe_code)]

mod agree;
mod asking;
mod beacon;
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

use crate::nonce::Nonces as Random;
use crate::secret::Secret;
use crate::time::{Instant, Now};
use crate::wire::name::Name;
use crate::wire::{Longest, VnetId};

pub use agree::{Difference, ONE, VNET};
pub use counters::{HostsCounter, HostsCounters};
pub use own::{Setup, Vnet};
pub use rows::Row;

use asking::Errands;
use beacon::Beacons;
use nonces::Nonces;
use own::{Addressing, Own};
use schedule::Schedule;
use table::Table;

/// Least length of the datagrams of group frames, even if a host says that it takes less: every path of IPv6 takes it
/// (RFC 8200, section 5), and every useful one of IPv4.
pub const LEAST_GROUP: u16 = 1280;

/// Destination of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// The group of VARP.
    Group,
    /// A default group that is listened to for beacons.
    Beacon(SocketAddr),
    /// One host.
    Host(SocketAddr),
}

/// An effect that the caller has to carry out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send this message.
    Send {
        /// The destination.
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
    /// A host's settings of a vnet cause loss of frames. Repeated with each HELLO of that host.
    Differs {
        /// The host.
        host: Name,
        /// The vnet.
        vnet: VnetId,
        /// The difference.
        what: Difference,
    },
    /// A host is heard only by its beacon. Once an hour at most, however many such hosts there are.
    Apart {
        /// The host.
        host: Name,
        /// The reason, in words.
        what: String,
        /// Number of such hosts.
        hosts: usize,
    },
}

/// A host's knowledge of the others.
///
/// ```
/// use std::collections::BTreeMap;
/// use vnet::hosts::{Hosts, Output, Setup, To};
/// use vnet::time::{Instant, Now};
/// use vnet::wire::name::{Name, Realm};
///
/// let now = Now { mono: Instant::from_millis(1000), wall_ms: 1_800_000_000_000 };
/// let host = |ip: &str| {
///     let name = Name::host(Realm(0), ip.parse().unwrap());
///     let mut host = Hosts::new(name, 1798, [7; 32], now);
///     let group = Some("224.10.0.1:1798".parse().unwrap());
///     host.set_up(Setup { vnets: BTreeMap::new(), vifs: 3, group, beacons: Vec::new() }, now);
///     host
/// };
/// let (mut one, mut two) = (host("192.0.2.1"), host("192.0.2.2"));
/// assert!(one.poll_timeout() <= now.mono);
/// one.handle_timeout(now);
/// while let Some(output) = one.poll_output() {
///     if let Output::Send { to: To::Group, bytes } = output {
///         two.handle_message("192.0.2.1:1798".parse().unwrap(), true, &bytes, now);
///     }
/// }
/// assert_eq!(two.rows(now)[0].host, one.name());
/// ```
#[derive(Debug)]
pub struct Hosts {
    own: Own,
    port: u16,
    /// Time since which it speaks under its name.
    since: Instant,
    /// Time at which all lengths are given out once more: by then it has heard all others, and lengths that an earlier
    /// process gave out are out of date.
    certain_at: Option<Instant>,
    table: Table,
    schedule: Schedule,
    beacons: Beacons,
    errands: Errands,
    nonces: Nonces,
    random: Random,
    /// The longest datagrams of group frames, as last given out; without the vnets where they are unknown.
    longest: BTreeMap<VnetId, u16>,
    /// Vnets whose longest datagram may have changed.
    touched: BTreeSet<VnetId>,
    outputs: VecDeque<Output>,
    counters: HostsCounters,
    /// Least number of hosts that are assumed to speak.
    #[cfg(test)]
    assumed: u32,
}

impl Hosts {
    /// Makes a host without vnets that speaks from now on, from and to this port. `seed` is secret randomness.
    pub fn new(name: Name, port: u16, seed: [u8; 32], now: Now) -> Self {
        let seed = Secret::new(seed);
        Self {
            own: Own::new(name, now),
            port,
            since: now.mono,
            certain_at: Some(now.mono + asking::NEW),
            table: Table::default(),
            schedule: Schedule::new(now.mono),
            beacons: Beacons::new(now.mono),
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

    /// Replaces this host's settings.
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

    /// Gives this host another name.
    pub fn move_to(&mut self, name: Name, now: Now) {
        self.own.move_to(name, now);
        self.since = now.mono;
        self.schedule = Schedule::new(now.mono);
        self.beacons.restart(now.mono);
    }

    /// Tells others that the host leaves, so that they drop it at once. Do not call this if vifs of the host live on.
    pub fn leave(&mut self, now: Now) {
        let bytes = self.own.hello(Addressing::default(), std::time::Duration::ZERO, now);
        self.outputs.push_back(Output::Send { to: To::Group, bytes });
    }

    /// Handles timers that are due.
    pub fn handle_timeout(&mut self, now: Now) {
        if self.schedule.due() <= now.mono {
            self.speak(now);
        }
        self.send_beacons(now);
        if self.table.next().is_some_and(|at| at <= now.mono) {
            self.sweep(now);
        }
        self.send_lists(now);
        self.check_one(now);
        self.give_out(now);
        self.settle();
    }

    /// Time of the next timer.
    pub fn poll_timeout(&self) -> Instant {
        let errands = self.errands.due();
        let beacons = (!self.own.setup.beacons.is_empty()).then(|| self.beacons.due());
        let others = self.table.next().into_iter().chain(errands).chain(self.certain_at);
        let others = others.chain(beacons);
        others.fold(self.schedule.due(), Instant::min)
    }

    /// The next effect.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The longest datagram for a vnet's group frames; unknown if no host takes less than this host's interface.
    pub fn longest(&self, vnet: VnetId) -> Longest {
        let known = self.longest.get(&vnet).copied().unwrap_or_default();
        Longest::new(known, self.own.name.ip()).unwrap_or(Longest::UNKNOWN)
    }

    /// Its counters.
    pub const fn counters(&self) -> &HostsCounters {
        &self.counters
    }

    /// Whether it has had time to hear all others. Before that, an unknown length only means that none was heard yet.
    pub const fn is_certain(&self) -> bool {
        self.certain_at.is_none()
    }

    /// Gives out all lengths once more when they become certain.
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

    /// Sends a HELLO to the group.
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

    /// Ends hosts and entries that have expired, and asks hosts whose question is due.
    fn sweep(&mut self, now: Now) {
        let swept = self.table.sweep(now.mono);
        self.counters.add(HostsCounter::hello_left, swept.gone.len() as u64);
        self.touch(swept.vnets);
        for name in swept.ask {
            self.ask_for_list(name, now);
        }
        self.table.settle();
    }

    /// Marks vnets whose longest datagram may have changed.
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

    /// The longest datagram that all hosts of a vnet take, if one of them takes less than this host.
    fn least(&self, vnet: VnetId) -> Option<u16> {
        let takes_all = self.own.takes_all(vnet)?;
        let hosts = self.table.iter().filter_map(|(_, host)| host.takes(vnet, takes_all));
        let least = hosts.min()?.max(LEAST_GROUP);
        let own = self.own.setup.vnets.get(&vnet)?.longest.known();
        Some(least).filter(|least| own.is_none_or(|own| u32::from(*least) < own))
    }
}
