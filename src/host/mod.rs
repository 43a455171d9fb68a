//! This host: the state machine of `varpd`.
//!
//! It decides everything that varpd does: who may have which vif, where each vif is reached, what is kept of it when
//! its backend has ended, which keys and lanes backends are given and when, what operators see. It performs nothing:
//! [`varpd`](crate::varpd) holds the sockets and connections, gives it [`Input`]s with the time, and carries out its
//! [`Output`]s in order. What is recorded of one run gives the same outputs in another.
//!
//! ```text
//!      backends, vnet                                           other hosts
//!           | Connected, Request, Closed                             | Datagram
//!   +-------v--------------------------------------------------------v---------+
//!   | clients -> requests -> register -> registry                doubts        |
//!   |                 |          learned, lanes, moved             |           |
//!   |                 v                 ^                          v           |
//!   |              Mapper <-------------+---------- keys, gates: Sadb,         |
//!   |                                   |           Membership; hello: Hosts   |
//!   +-----------------------------------+--------------------------------------+
//!             Tell, Open, Close, Lane,  |  ReadKey, Look, Move, Log, Send
//!                                       v
//! ```
//!
//! # Theory of operation
//!
//! **No output re-enters a decision.** An output that has a result ([`Output::Open`], [`Output::ReadKey`], ...) leaves
//! what waits for it in a table, and its result is an input like any other. A client to which nothing can be sent is
//! closed by the shell, which reports that it has stalled; outputs for a client that is gone are without effect.
//!
//! **A backend's end is not the vif's end.** The shell has duplicates of the vif's sockets. They are
//! kept, and the claim, for a while, in which a backend of the same user can come and find the same
//! care-of address and the frames that arrived meanwhile. **Nor is varpd's end**: a backend brings
//! its sockets to the next varpd, which believes it only what the kernel says about them.
//!
//! # Driving it
//!
//! Call [`Host::handle`] with each input, then carry out what [`Host::poll_output`] returns until it returns nothing;
//! wait until [`Host::poll_timeout`] and call it with [`Input::Timeout`]. Results may come at once or later.
//!
//! ```
//! use vnet::config::Config;
//! use vnet::host::admission::Admission;
//! use vnet::host::{ClientId, Door, Host, Input, Output, Peer, Place, Start, mapper_config};
//! use vnet::time::{Instant, Now};
//! use vnet::wire::control::{Event, Features, Request};
//!
//! let config = Config::default();
//! let nobody = |_: &str| Err(std::io::Error::other("no such account"));
//! let start = Start {
//!     mapper: mapper_config(&config),
//!     admission: Admission::new(&config, 0, None, nobody, nobody).unwrap(),
//!     config,
//!     place: Place { interface: "eth0".into(), index: 2, address: [192, 0, 2, 1].into() },
//!     mtu: Some(1500),
//!     seed: [7; 32],
//! };
//! let now = Now { mono: Instant::ZERO, wall_ms: 1_767_225_600_000 };
//! let mut host = Host::new(start, now);
//!
//! let client = ClientId(1);
//! let peer = Peer { uid: 1000, pid: 4711 };
//! host.handle(Input::Connected { client, door: Door::Control, peer, groups: vec![1000] }, now);
//! let hello = Request::Hello { features: Features::NONE, software: "example".into() };
//! let (bytes, is_cut, descriptors) = (hello.emit(), false, 0);
//! host.handle(Input::Request { client, bytes, is_cut, descriptors }, now);
//!
//! // The host answers by its own HELLO, and introduces itself to other hosts.
//! let outputs: Vec<Output> = std::iter::from_fn(|| host.poll_output()).collect();
//! let is_answer = |output: &Output| {
//!     matches!(output, Output::Tell { client: ClientId(1), event: Event::Hello { .. }, .. })
//! };
//! assert!(outputs.iter().any(is_answer));
//! assert!(host.poll_timeout().is_some());
//! ```
//!
//! # Where it is
//!
//! | File | What |
//! |---|---|
//! | `output` | inputs and outputs |
//! | `clients` | the clients, and the limits on their number |
//! | `requests` | what clients ask, and the ends of their connections |
//! | `admission` | which users may have vifs on which vnet, and which users are operators |
//! | `bindings` | the vif of each process |
//! | `arrivals` | the limit on the rate of registrations |
//! | `register` | registration of a vif: whose it may be, and which sockets it gets |
//! | `registry` | the vifs of this host, and what is kept of them when their backend is gone |
//! | `twins` | two backends with one vif |
//! | `learned` | MACs behind vifs |
//! | `moved` | frames that arrive for vifs that have moved |
//! | `lanes` | the lanes between vifs of this host |
//! | `keys`, `gates` | secured vnets: keys, and what backends are told of them and when |
//! | `suspended` | hosts that were suspended, restored or cloned |
//! | `hello` | other hosts, as they describe themselves |
//! | `doubts` | hosts that send under another policy, with another key or without a tag |
//! | `site`, `follower`, `place` | the host's place on the underlay: chosen, followed, moved to |
//! | `reconfigure` | another configuration under running vifs |
//! | `tables`, `stats`, `monitor` | what operators see: rows, counters of backends, events |
//! | `comings`, `complaints` | limits on the lines of the log |

#![forbid(unsafe_code)]

macro_rules! say {
    ($host:expr, $level:expr, $($line:tt)+) => {{
        let level: log::Level = $level;
        if level <= log::Level::Info {
            let text = format!($($line)+);
            $host.outputs.push_back($crate::host::Output::Log { level, text });
        } else {
            log::log!(level, $($line)+);
        }
    }};
}

pub mod admission;
mod arrivals;
mod bindings;
mod clients;
mod comings;
mod complaints;
mod doubts;
pub(crate) mod follower;
mod gates;
mod hello;
mod keys;
mod lanes;
mod learned;
mod monitor;
mod moved;
mod output;
mod place;
mod reconfigure;
mod register;
mod registry;
mod requests;
pub mod site;
mod stats;
mod suspended;
mod tables;
#[cfg(test)]
mod tests;
mod twins;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use crate::config::{Config, FrameGroups, Seconds, Timers};
use crate::hosts::Hosts;
use crate::mapper::{self, LocalVif, Mapper, Notice};
use crate::metrics::{VarpdCounter, VarpdCounters};
use crate::secret::Secret;
use crate::security::handshake::token::TokenKey;
use crate::time::{Instant, Now};
use crate::wire::control::{Event, Table};
use crate::wire::name::{Name, Realm};
use crate::wire::varp::{self, Message};
use crate::wire::{ParseError, VifKey, VnetId, handshake};

use admission::Admission;
use arrivals::Arrivals;
use bindings::Bindings;
use clients::{Clients, Role};
use comings::Comings;
use complaints::Complaints;
use hello::Hello;
use keys::Security;
use lanes::Lanes;
use learned::LearnedTable;
use place::Underlay;
use register::Registering;
use registry::{Owner, Registry};
use stats::Runs;
use tables::columns;

pub use clients::{ClientId, Door, Peer};
pub(crate) use monitor::missed;
pub use output::{Brought, Descriptors, Ending, Input, LaneEnd, Output, Rejected, Rows};
pub use site::{Interface, Place, SiteError};

/// What a host begins with.
#[derive(Clone, Debug)]
pub struct Start {
    /// Its configuration.
    pub config: Config,
    /// Bounds and times of the mapper; [`mapper_config`] makes them from the configuration.
    pub mapper: mapper::Config,
    /// The users and groups that the configuration names.
    pub admission: Admission,
    /// Its place on the underlay.
    pub place: Place,
    /// The MTU of the place's interface in bytes, if it is known.
    pub mtu: Option<u32>,
    /// Secret randomness, of this start alone.
    pub seed: [u8; 32],
}

/// The state machine; see the module's text.
#[derive(Debug)]
pub struct Host {
    config: Config,
    underlay: Underlay,
    admission: Admission,
    bindings: Bindings,
    arrivals: Arrivals,
    clients: Clients,
    registry: Registry,
    /// Registrations that wait for sockets or keys.
    registering: BTreeMap<LocalVif, Registering>,
    learned: LearnedTable,
    lanes: Lanes,
    mapper: Mapper,
    security: Security,
    hello: Hello,
    /// Counters that are being collected.
    runs: Runs,
    comings: Comings,
    complaints: Complaints,
    counters: VarpdCounters,
    outputs: VecDeque<Output>,
}

impl Host {
    /// Makes a host without vifs, which serves from now on.
    pub fn new(start: Start, now: Now) -> Self {
        let Start { config, mapper, admission, place, mtu, seed } = start;
        let seed = Secret::new(seed);
        let (address, realm) = (place.address, Realm(config.realm));
        let own = SocketAddr::new(address, config.port.0);
        let hosts =
            Hosts::new(Name::host(realm, address), config.port.0, seed.expand("hello", &[]), now);
        let security = Security::new(&config, address, &seed.derive("keys", &[]), now.mono);
        let limits = &config.limits;
        Self {
            underlay: Underlay::new(&config, place, mtu),
            admission,
            bindings: Bindings::default(),
            arrivals: Arrivals::new(limits.registrations_per_second, limits.clients_per_user),
            clients: Clients::new(limits.clients, limits.clients_per_user),
            registry: Registry::default(),
            registering: BTreeMap::new(),
            learned: LearnedTable::default(),
            lanes: Lanes::new(u32::from_be_bytes(seed.expand("lanes", &[]))),
            mapper: Mapper::new(mapper, seed.expand("mapper", &[]), own),
            security,
            hello: Hello::new(hosts),
            runs: Runs::default(),
            comings: Comings::default(),
            complaints: Complaints::default(),
            counters: VarpdCounters::default(),
            outputs: VecDeque::new(),
            config,
        }
    }

    /// Handles an input. Then drain [`Host::poll_output`].
    pub fn handle(&mut self, input: Input, now: Now) {
        match input {
            Input::Timeout => self.handle_timeout(now),
            Input::Datagram { from, is_group, bytes } => self.hear(from, is_group, &bytes, now),
            Input::Connected { client, door, peer, groups } => {
                self.handle_connected(client, door, peer, groups);
            }
            Input::Request { client, bytes, is_cut, descriptors } => {
                self.handle_request(client, &bytes, is_cut, descriptors, now);
            }
            Input::Closed { client, why } => self.handle_closed(client, &why, now),
            Input::Taken { client } => {
                if let Some(client) = self.clients.get_mut(client) {
                    client.is_reading = false;
                }
            }
            Input::ProcessEnded { pid } => self.bindings.end(pid),
            Input::Opened { vif, result } => self.handle_opened(vif, result, now),
            Input::Adopted { vif, result } => self.handle_adopted(vif, result, now),
            Input::LaneFailed { lane, vif, error } => {
                self.handle_lane_failed(vif, lane, &error, now)
            }
            Input::Strayed { vif, senders } => self.handle_strayed(vif, &senders, now),
            Input::Key { vnet, result } => self.handle_key(vnet, result, now),
            Input::News { any, is_deleted } => {
                self.underlay.follower.heard(any, is_deleted, now.mono)
            }
            Input::Interfaces { result, took } => self.handle_interfaces(result, took, now),
            Input::Beacons(groups) => self.hello.set_beacons(groups),
            Input::Mtu(mtu) => self.handle_mtu(mtu, now),
            Input::Placed { place, result } => self.handle_placed(&place, result, now),
            Input::Rejoined { vif, result } => self.handle_rejoined(vif, result, now),
            Input::Slept { asleep, seed } => self.handle_slept(asleep, seed, now),
            Input::Restored { seed } => self.handle_restored(seed, now),
            Input::Reconfigure { config, admission, keys } => {
                self.reconfigure(*config, admission, &keys, now);
            }
            Input::Leave => self.leave(now),
        }
        self.settle(now);
    }

    /// The next thing to do, if any.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Input::Timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        [
            self.mapper.poll_timeout(),
            self.security.next_timeout(),
            self.registry.next_expiry(),
            self.learned.next_expiry(),
            self.runs.next_deadline(),
            self.underlay.poll_timeout(),
            Some(self.hello.hosts.poll_timeout()),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// What it did, refused and dropped. The shell counts here as well.
    pub fn counters(&self) -> &VarpdCounters {
        &self.counters
    }

    /// The mapper, to look at.
    pub fn mapper(&self) -> &Mapper {
        &self.mapper
    }

    /// Its place on the underlay.
    pub fn place(&self) -> &Place {
        &self.underlay.place
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The key of the tokens that INITs of handshakes are sorted by at the VARP sockets; [`Output::Sort`] tells another.
    pub fn token_key(&self) -> TokenKey {
        self.security.sorted_by
    }

    /// Whether a client is the backend of a vif.
    pub fn is_backend(&self, client: ClientId) -> bool {
        self.clients.get(client).is_some_and(|client| matches!(client.role, Role::Backend(_)))
    }

    /// The backends of a vif.
    pub fn backends_of(&self, key: VifKey) -> Vec<ClientId> {
        let of_key = self.registry.live().filter(|(_, _, vif)| vif.key == key);
        of_key.map(|(_, client, _)| client).collect()
    }

    /// Handles a datagram that came to a VARP socket.
    fn hear(&mut self, from: SocketAddr, is_group: bool, bytes: &[u8], now: Now) {
        if !is_group && handshake::Message::is_one(bytes) {
            self.doubt_handshake(from.ip(), bytes, now);
            return self.security.sadb.handle_message(from.ip(), bytes, now);
        }
        if crate::wire::hello::Message::is_one(bytes) {
            return self.hello.hosts.handle_message(from, is_group, bytes, now);
        }
        // Before its tag is looked at: a relay's trailer stands behind that.
        if varp::is_relayed(bytes) && self.mapper.refuses_relayed(from) {
            return;
        }
        let message = match Message::parse(bytes) {
            Ok(message) => message,
            Err(e) => return self.refuse_malformed(from, bytes, e, now),
        };
        log::trace!("VARP from {from}: {message:?}");
        let from = SocketAddr::new(from.ip(), from.port());
        if let Some(message) = self.check(from, bytes, message, now) {
            self.mapper.handle_message(from, is_group, &message, now);
        }
    }

    /// Counts a message that cannot be read; a host that speaks another version is named.
    fn refuse_malformed(&mut self, from: SocketAddr, bytes: &[u8], error: ParseError, now: Now) {
        log::trace!("VARP from {from}: {error}");
        self.counters.inc(match error {
            ParseError::Version => VarpdCounter::varp_rx_version,
            ParseError::TagKind => VarpdCounter::varp_rx_tag_kind,
            ParseError::Critical => VarpdCounter::varp_rx_critical,
            _ => VarpdCounter::varp_rx_malformed,
        });
        let version = bytes.get(varp::VERSION_OFFSET).filter(|_| error == ParseError::Version);
        if let Some(version) = version {
            self.doubt_version(from.ip().to_canonical(), *version, now);
        }
    }

    fn handle_timeout(&mut self, now: Now) {
        self.underlay_timeout(now);
        if self.mapper.poll_timeout().is_some_and(|at| at <= now.mono) {
            self.mapper.handle_timeout(now);
        }
        self.security_timeout(now);
        for vif in self.registry.expired(now.mono) {
            self.forget_vif(vif, now);
        }
        self.expire_learned(now);
        if self.hello.hosts.poll_timeout() <= now.mono {
            self.hello.hosts.handle_timeout(now);
        }
    }

    /// Does what the state machines ask for, until they ask for nothing more.
    fn settle(&mut self, now: Now) {
        self.drive(now);
        self.refresh_hello(now);
        self.show_runs(now);
        self.hear_questions();
        self.sort_newcomers();
    }

    /// Does what the mapper and the database of keys ask for.
    fn drive(&mut self, now: Now) {
        while let Some(output) = self.mapper.poll_output() {
            match output {
                mapper::Output::Send { to, message } => self.send_varp(to, message, now),
                mapper::Output::Notify { vif, notice } => self.notify(vif, notice, now),
                mapper::Output::Event(event) => self.show_event(&event, now),
            }
        }
        self.drive_security(now);
    }

    fn send_varp(&mut self, to: mapper::Destination, mut message: Message, now: Now) {
        if !self.security.tag(&mut message, now) {
            return self.counters.inc(VarpdCounter::varp_tx_limited);
        }
        let to = match to {
            mapper::Destination::Group => self.group_address(),
            mapper::Destination::Unicast(to) => to,
        };
        log::trace!("VARP to {to}: {message:?}");
        self.outputs.push_back(Output::Send { to, bytes: message.to_bytes() });
    }

    fn notify(&mut self, id: LocalVif, notice: Notice, now: Now) {
        let Some(vif) = self.registry.get_mut(id) else {
            return self.notify_learned(id, notice, now);
        };
        let before = vif.state();
        match notice {
            Notice::Claimed { stamp } => (vif.stamp, vif.moved) = (Some(stamp), false),
            Notice::Lost { coa, .. } => {
                (vif.stamp, vif.moved) = (None, true);
                let line = format_args!("vif {} has moved to {coa}", vif.key);
                self.comings.log(vif.peer.uid, line, now.mono, &mut self.outputs);
            }
            Notice::Mapping { .. }
            | Notice::Unresolved { .. }
            | Notice::Invalidate { .. }
            | Notice::Refused { .. } => {}
        }
        if vif.state() != before {
            vif.since_ms = now.wall_ms;
        }
        let (own, owner) = (vif.key.mac, vif.owner);
        if matches!(notice, Notice::Lost { .. }) {
            self.close_lanes_of(id);
        }
        match owner {
            Owner::Live(client) if !self.holds_back(id, notice, now) => {
                // Before the mapping: the frames that wait for it then take the lane at once.
                if let Notice::Mapping { mac, coa, .. } = notice {
                    self.offer_lanes(id, mac, coa, now);
                }
                let event = notice.event(own, self.config.timers.lifetime.duration());
                self.tell(client, event);
            }
            Owner::Live(_) => {}
            Owner::Kept(_) => self.watch_moved(id),
        }
    }

    /// Sends a message to a client.
    fn tell(&mut self, client: ClientId, event: Event) {
        self.outputs.push_back(Output::tell(client, event));
    }

    /// Sends a message to the backend of a vif, if it has one.
    fn tell_vif(&mut self, vif: LocalVif, event: Event) {
        if let Some(client) = self.registry.client(vif) {
            self.tell(client, event);
        }
    }

    /// The groups of a vnet's frames: they are sent to the first.
    fn groups_of(&self, vnet: VnetId) -> FrameGroups {
        self.config.frame_groups(vnet, self.underlay.place.address)
    }

    /// The group of VARP.
    fn group_address(&self) -> SocketAddr {
        SocketAddr::new(self.underlay.group, self.config.port.0)
    }

    /// Counters that have been collected, or that were waited for long enough, are shown.
    fn show_runs(&mut self, now: Now) {
        while let Some(run) = self.runs.poll_done(now.mono) {
            let rows = self.stats_rows(&run.answers);
            self.send_table(run.client, columns(Table::Stats), rows);
        }
    }

    fn leave(&mut self, now: Now) {
        // Vifs of a host that ends may live on: their backends come to its next varpd.
        if self.registry.is_empty() {
            self.hello.hosts.leave(now);
        }
    }
}

/// The part of the configuration that is the mapper's.
pub fn mapper_config(config: &Config) -> mapper::Config {
    let Timers { reply_timeout, tries, early_retries, lifetime, negative_lifetime, .. } =
        &config.timers;
    let limits = &config.limits;
    let defaults = mapper::Config::default();
    mapper::Config {
        realm: Realm(config.realm),
        port: config.port.0,
        reply_timeout: reply_timeout.duration(),
        tries: *tries,
        early_retries: early_retries.iter().copied().map(Seconds::duration).collect(),
        lifetime: lifetime.duration(),
        negative_lifetime: negative_lifetime.duration(),
        announce_interval: config.timers.announce_interval.duration(),
        limits: mapper::Limits {
            vifs: limits.vifs,
            learnt: limits.learnt,
            entries: limits.entries,
            entries_per_vnet: limits.entries_per_vnet,
            pending: limits.pending,
            pending_per_vif: limits.pending_per_vif,
            requests_per_second: limits.requests_per_second,
            request_burst: limits.request_burst,
            ..defaults.limits
        },
        ..defaults
    }
}
