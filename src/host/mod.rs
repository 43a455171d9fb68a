//! This host: the state machine of `varpd`.
//!
//! The host makes all decisions of varpd: which user may have which vif, where each vif is reached,
//! which state outlives a backend, which keys and lanes backends get and when, and which tables and
//! events operators see. It performs no I/O except debug lines of the log: [`varpd`](crate::varpd)
//! holds the sockets and connections, passes [`Input`]s and the time to the host, and carries out
//! its [`Output`]s in order. A recorded list of inputs gives the same outputs in another run.
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
//! **No output re-enters a decision.** If an output has a result ([`Output::Open`],
//! [`Output::ReadKey`], ...), the host keeps the pending work in a table, and the result is an
//! input like any other. The shell closes a client that does not take a message, and reports it as
//! stalled. Outputs for a client that is gone have no effect.
//!
//! **A vif outlives its backend.** The shell has duplicates of the vif's sockets. varpd keeps these
//! and the claim for a while. A backend of the same user that registers meanwhile gets the same
//! care-of address, and the frames that have arrived. **A vif also outlives varpd**: its backend
//! brings the sockets to the next varpd, which checks them with the kernel.
//!
//! # Driving it
//!
//! Call [`Host::handle`] with each input, then carry out the outputs that [`Host::poll_output`]
//! returns until it returns `None`. Wait until [`Host::poll_timeout`], and call [`Host::handle`]
//! with [`Input::Timeout`]. Results may follow at once or later.
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
//! # Files
//!
//! | File | What it owns |
//! |---|---|
//! | `output` | It defines the inputs and outputs. |
//! | `clients` | It holds the clients and limits their number. |
//! | `requests` | It handles the requests of clients and the ends of their connections. |
//! | `admission` | It decides which users may have vifs on which vnet, and which are operators. |
//! | `bindings` | It binds each process to one vif. |
//! | `arrivals` | It limits the rate of registrations. |
//! | `register` | It registers vifs and finds their sockets. |
//! | `registry` | It holds the vifs of this host, live and kept. |
//! | `twins` | It warns when two backends serve one vif. |
//! | `learned` | It holds the MACs behind vifs. |
//! | `moved` | It corrects the senders of frames for vifs that have moved. |
//! | `lanes` | It holds the lanes between vifs of this host and offers them to backends. |
//! | `keys` | It holds the keys of secured vnets and the state machines that use them. |
//! | `gates` | It decides when backends get keys, and which messages wait for keys. |
//! | `suspended` | It renews keys after this host was suspended, restored or cloned. |
//! | `hello` | It gives other hosts this host's settings and shows operators the hosts. |
//! | `doubts` | It names hosts whose setup or version differs. |
//! | `site` | It chooses the host's place on the underlay. |
//! | `follower` | It decides when varpd examines the interfaces and follows changes. |
//! | `place` | It holds the host's place and moves the host to another. |
//! | `reconfigure` | It changes the configuration under running vifs. |
//! | `tables` | It makes the rows of operators' tables. |
//! | `stats` | It collects counters from backends. |
//! | `monitor` | It streams the mapper's events to operators. |
//! | `comings` | It limits the log lines about vifs that come and go. |
//! | `complaints` | It limits the log lines that clients and other hosts can provoke. |

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

/// The initial state and settings of a host.
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
    /// The MTU of the place's interface in bytes, if known.
    pub mtu: Option<u32>,
    /// Secret random bytes, used for this start only.
    pub seed: [u8; 32],
}

/// The state machine; see the [module](self).
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
    /// Runs that collect counters from backends.
    runs: Runs,
    comings: Comings,
    complaints: Complaints,
    counters: VarpdCounters,
    outputs: VecDeque<Output>,
}

impl Host {
    /// Makes a host without vifs that serves from `now` on.
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

    /// Handles an input at the time `now`. Drain [`Host::poll_output`] afterwards.
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

    /// The next output to carry out, if any.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Time at which [`Input::Timeout`] is due.
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

    /// Counts of actions, refusals and drops. The shell uses the same counters.
    pub fn counters(&self) -> &VarpdCounters {
        &self.counters
    }

    /// The mapper, read-only.
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

    /// The key by which the VARP sockets recognize INITs of handshakes with valid tokens. It changes
    /// every few minutes.
    pub fn token_key(&self) -> TokenKey {
        self.security.sadb.token_key()
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

    /// Handles a datagram that arrived at a VARP socket.
    fn hear(&mut self, from: SocketAddr, is_group: bool, bytes: &[u8], now: Now) {
        if !is_group && handshake::Message::is_one(bytes) {
            self.doubt_handshake(from.ip(), bytes, now);
            return self.security.sadb.handle_message(from.ip(), bytes, now);
        }
        if crate::wire::hello::Message::is_one(bytes) {
            return self.hello.hosts.handle_message(from, is_group, bytes, now);
        }
        // This precedes the check of the tag, since a relay's trailer follows the tag.
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

    /// Counts an unreadable message, and names its sender in the log if it speaks another version.
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

    /// Carries out the outputs of the inner state machines until there are no more.
    fn settle(&mut self, now: Now) {
        self.drive(now);
        self.refresh_hello(now);
        self.show_runs(now);
        self.hear_questions();
    }

    /// Carries out the outputs of the mapper and of the key database.
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
                // Lanes precede the mapping, so that frames that wait for the mapping take the lane
                // at once.
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

    /// The groups of a vnet's frames. Hosts send to the first and receive from all.
    fn groups_of(&self, vnet: VnetId) -> FrameGroups {
        self.config.frame_groups(vnet, self.underlay.place.address)
    }

    /// Address and port of the VARP group.
    fn group_address(&self) -> SocketAddr {
        SocketAddr::new(self.underlay.group, self.config.port.0)
    }

    /// Sends the counters of each run that is complete or whose time is over.
    fn show_runs(&mut self, now: Now) {
        while let Some(run) = self.runs.poll_done(now.mono) {
            let rows = self.stats_rows(&run.answers);
            self.send_table(run.client, columns(Table::Stats), rows);
        }
    }

    fn leave(&mut self, now: Now) {
        // If there are vifs, their backends may come to this host's next varpd.
        if self.registry.is_empty() {
            self.hello.hosts.leave(now);
        }
    }
}

/// The mapper's part of the configuration.
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
