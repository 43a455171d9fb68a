//! The loop: one thread that waits for all sources, and reads the clock once per turn.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use crate::config::{Config, FrameGroups, Seconds, Timers};
use crate::hosts::Hosts;
use crate::mapper::{self, LocalVif, Mapper, Notice, Output};
use crate::metrics::{VarpdCounter, VarpdCounters};
use crate::quiet::Quiet;
use crate::sys::event::{Interest, Poller, Ready};
use crate::sys::generation::Generation;
use crate::sys::notify::ServiceManager;
use crate::sys::rtnetlink::Rtnetlink;
use crate::sys::seqpacket::Listener;
use crate::sys::signal::Termination;
use crate::sys::{clock, link, process};
use crate::time::{Instant, Now};
use crate::underlay::opener::{MOST_BYTES, Privileged};
use crate::underlay::sockets::{BeaconSockets, Opener, VifSockets};
use crate::wire::control::Table;
use crate::wire::name::{Name, Realm};
use crate::wire::varp::{self, Message};
use crate::wire::{ParseError, VnetId, handshake, hello};

use super::admission::{Admission, Operators, Unknown};
use super::arrivals::Arrivals;
use super::awake::Sleep;
use super::clients::{ClientId, Clients, Door, Sent};
use super::comings::Comings;
use super::complaints::Complaints;
use super::follower::Follower;
use super::hello::Basis;
use super::lanes::Lanes;
use super::learnt::LearntTable;
use super::registry::{Owner, Registry};
use super::security::Security;
use super::site::Place;
use super::speakers::Speakers;
use super::stats::Runs;
use super::tables::columns;
use super::varp::{Varp, Via};
use super::{VarpdError, failed};

/// The groups that the configuration names.
#[derive(Debug)]
pub(super) struct Groups {
    /// That may use the control socket.
    pub(super) control: Option<u32>,
    /// That operators belong to.
    pub(super) operators: Option<Operators>,
}

/// Sources looked at in a turn.
const TURN: usize = 64;
/// Connections accepted in a turn.
const ACCEPT_BUDGET: usize = 16;
/// How long no connection is accepted after the system refused one (too many open files).
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// What can be ready. Tokens from [`FIRST_CLIENT`] on are clients' ids, from [`FIRST_LATE`] on kept
/// vifs'.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Termination,
    Varp(Via),
    Listener(Door),
    /// Interfaces, addresses or routes have changed.
    Underlay,
    /// The kernel's events of devices.
    Generation,
    /// It is readable when the opener has ended.
    Opener,
    /// Sockets of a vif that has moved, kept after its backend ended.
    Late(LocalVif),
    Client(ClientId),
}

const FIRST_CLIENT: u64 = 16;
const UNDERLAY: u64 = FIRST_CLIENT - 1;
/// The token of the operators' socket.
const OPERATORS: u64 = FIRST_CLIENT - 2;
/// That of the kernel's events of devices.
const GENERATION: u64 = FIRST_CLIENT - 3;
const OPENER: u64 = FIRST_CLIENT - 4;
/// Those of the sockets for beacons begin here.
const BEACONS: u64 = OPENER - BeaconSockets::MOST as u64;
/// Tokens from here on are kept vifs'.
const FIRST_LATE: u64 = 1 << 63;

impl Source {
    pub(super) fn token(self) -> u64 {
        match self {
            Self::Termination => 0,
            Self::Listener(Door::Control) => 1,
            Self::Listener(Door::Operators) => OPERATORS,
            Self::Underlay => UNDERLAY,
            Self::Generation => GENERATION,
            Self::Opener => OPENER,
            Self::Varp(Via::Group) => 2,
            Self::Varp(Via::Unicast(class)) => 3 + class as u64,
            Self::Varp(Via::Beacon(number)) => BEACONS + u64::from(number),
            Self::Late(LocalVif(id)) => FIRST_LATE | id,
            Self::Client(ClientId(id)) => id,
        }
    }

    fn of(token: u64) -> Self {
        let varp = Via::ALL.into_iter().map(Self::Varp);
        let doors = [Door::Control, Door::Operators].map(Self::Listener);
        let own = [Self::Termination, Self::Underlay, Self::Generation, Self::Opener];
        let mut fixed = own.into_iter().chain(doors).chain(varp);
        let found = fixed.find(|source| source.token() == token);
        match token.checked_sub(FIRST_LATE) {
            Some(id) => Self::Late(LocalVif(id)),
            None => found.unwrap_or(Self::Client(ClientId(token))),
        }
    }
}

/// All of varpd's state.
#[derive(Debug)]
pub(super) struct Daemon {
    pub(super) config: Config,
    /// Where it is on the underlay.
    pub(super) place: Place,
    /// What the packets of its interface may be long, when that was last to be seen.
    pub(super) mtu: Option<u32>,
    pub(super) follower: Follower,
    pub(super) rtnetlink: Rtnetlink,
    pub(super) manager: ServiceManager,
    pub(super) main_group: IpAddr,
    termination: Termination,
    pub(super) poller: Poller,
    listener: Listener,
    /// That of operators, if there is one.
    operators: Option<Listener>,
    /// No connection is accepted until then.
    accept_again: Option<Instant>,
    quiet_about_accepting: Quiet,
    pub(super) complaints: Complaints,
    /// About vifs that come and go.
    pub(super) comings: Comings,
    /// How often users may register vifs.
    pub(super) arrivals: Arrivals,
    /// About what is wrong with the underlay.
    pub(super) alarms: Quiet,
    /// When what failed at sockets is tried again.
    pub(super) retry_at: Option<Instant>,
    pub(super) varp: Varp,
    pub(super) opener: Opener,
    pub(super) mapper: Mapper,
    pub(super) registry: Registry<VifSockets>,
    pub(super) learnt: LearntTable,
    pub(super) clients: Clients,
    pub(super) runs: Runs,
    pub(super) security: Security,
    pub(super) hosts: Hosts,
    /// What others were told of this host last.
    pub(super) hello_basis: Option<Basis>,
    pub(super) admission: Admission,
    pub(super) speakers: Speakers,
    pub(super) lanes: Lanes,
    pub(super) sleep: Sleep,
    /// None where the kernel has no such events.
    pub(super) generation: Option<Generation>,
    pub(super) counters: VarpdCounters,
}

impl Daemon {
    /// Opens everything; keys are still to be read. The control socket comes last: whoever can connect
    /// is served.
    pub(super) fn open(
        config: Config,
        place: Place,
        opener: Opener,
        groups: Groups,
        termination: Termination,
        rtnetlink: Rtnetlink,
    ) -> Result<Self, VarpdError> {
        let address = place.address;
        let main_group = config.main_group(address);
        let poller = Poller::new(TURN).map_err(failed("open an epoll set"))?;
        let seed = process::random().map_err(failed("get random numbers"))?;
        let [l0, l1, l2, l3] = process::random().map_err(failed("get random numbers"))?;
        let lane_seed = u32::from_ne_bytes([l0, l1, l2, l3]);
        let own = SocketAddr::new(address, config.port.0);
        let mapper = Mapper::new(mapper_config(&config), seed, own);
        let operators = operator_listener(&config, &groups)?;
        let (own, user, group) = (process::own_user(), process::user_id, process::group_id);
        let admission = Admission::new(&config, own, groups.operators, user, group).map_err(
            |Unknown { list, name, error }| VarpdError::Account { list, name, source: error },
        )?;
        let secret = process::random().map_err(failed("get random numbers"))?;
        let security = Security::new(&config, address, secret);
        let varp = Varp::open(&opener, main_group, security.sadb.token_key(), config.beacon)?;
        let secret = process::random().map_err(failed("get random numbers"))?;
        let name = Name::host(Realm(config.realm), address);
        let hosts = Hosts::new(name, config.port.0, secret, clock::now());
        let listener = listen(&config.socket, config.socket_mode.0, groups.control)?;
        let add = |result: io::Result<()>| result.map_err(failed("fill the epoll set"));
        let read = Interest::Read;
        add(poller.add(&termination, Source::Termination.token(), read))?;
        add(watch_varp(&poller, &varp, &Via::ALL))?;
        add(poller.add(&listener, Source::Listener(Door::Control).token(), read))?;
        if let Some(operators) = &operators {
            add(poller.add(operators, Source::Listener(Door::Operators).token(), read))?;
        }
        add(poller.add(&rtnetlink, Source::Underlay.token(), read))?;
        let generation = Generation::listen()
            .inspect_err(|e| log::debug!("can't hear of restored snapshots: {e}"))
            .ok();
        if let Some(generation) = &generation {
            add(poller.add(generation, Source::Generation.token(), read))?;
        }
        let watch = |opener: &Privileged| opener.watch(&poller, Source::Opener.token());
        add(opener.privileged().map_or(Ok(()), watch))?;
        let limits = &config.limits;
        Ok(Self {
            clients: Clients::new(FIRST_CLIENT, limits.clients, limits.clients_per_user),
            main_group,
            termination,
            poller,
            listener,
            operators,
            accept_again: None,
            quiet_about_accepting: Quiet::new(1),
            complaints: Complaints::default(),
            comings: Comings::default(),
            arrivals: Arrivals::new(limits.registrations_per_second, limits.clients_per_user),
            alarms: Quiet::new(20),
            retry_at: None,
            varp,
            opener,
            mapper,
            registry: Registry::default(),
            learnt: LearntTable::default(),
            runs: Runs::default(),
            security,
            hosts,
            hello_basis: None,
            admission,
            speakers: Speakers::default(),
            lanes: Lanes::new(lane_seed),
            sleep: Sleep::default(),
            generation,
            counters: VarpdCounters::default(),
            config,
            mtu: link::mtu(&place.interface).ok(),
            place,
            follower: Follower::default(),
            rtnetlink,
            manager: ServiceManager::default(),
        })
    }

    /// It serves from now on: the service manager may know.
    pub(super) fn announce_ready(&mut self, manager: ServiceManager) {
        log::info!("varpd: ready {}", self.describe());
        manager.ready(&self.status());
        self.manager = manager;
    }

    /// Where it is, for the log.
    pub(super) fn describe(&self) -> String {
        let operators = match &self.config.operator_socket {
            Some(path) => format!(", operators at {}", path.display()),
            None => String::new(),
        };
        format!(
            "on {} at {}, group {}, control socket {}{operators}",
            self.place.interface,
            SocketAddr::new(self.place.address, self.config.port.0),
            self.varp.group_address,
            self.config.socket.display(),
        )
    }

    /// The same in few words, for the service manager.
    pub(super) fn status(&self) -> String {
        format!("at {} on {}", self.place.address, self.place.interface)
    }

    /// Says whether sockets of vifs will have less room than they should.
    pub(super) fn tell_small_buffers(&self) {
        if self.opener.has_room().is_ok_and(|has_room| !has_room) {
            log::warn!(
                "sockets have small buffers, so this host loses more frames when it is busy \
                 (buffers_small): start varpd with CAP_NET_ADMIN, or raise net.core.rmem_max and wmem_max \
                 to {MOST_BYTES}"
            );
        }
    }

    /// Serves until it's told to end.
    pub(super) fn run(&mut self) -> Result<(), VarpdError> {
        let mut now = clock::now();
        loop {
            let timeout = self.next_timeout().map(|at| at.saturating_since(now.mono));
            let ready = self.poller.wait(timeout).map_err(failed("wait for events"))?;
            now = clock::now();
            self.heed_sleep(clock::asleep(), now);
            for ready in ready {
                if self.handle(ready, now) == Turn::End {
                    return Ok(());
                }
                self.drive(now);
            }
            self.handle_timeouts(now);
            self.refresh_hello(now);
            self.counters.add(VarpdCounter::buffers_small, self.opener.take_small());
            self.varp.flush(now.mono, &self.counters);
        }
    }

    fn handle(&mut self, ready: Ready, now: Now) -> Turn {
        match Source::of(ready.token) {
            Source::Termination => match self.termination.take() {
                Ok(Some(signal)) => {
                    log::info!("exiting on {signal}");
                    self.leave_hello(now);
                    return Turn::End;
                }
                Ok(None) => {}
                Err(e) => log::warn!("can't read signals: {e}"),
            },
            Source::Varp(via) => self.handle_varp(via, now),
            Source::Listener(door) => self.accept(door, now),
            Source::Underlay => self.hear_underlay(now),
            Source::Generation => self.heed_generation(now),
            // Which closes what was waited for.
            Source::Opener => self.opener.privileged().map(Privileged::check).unwrap_or_default(),
            Source::Late(id) => self.read_late(id, now),
            Source::Client(id) => self.handle_client(id, ready, now),
        }
        Turn::Next
    }

    fn handle_varp(&mut self, via: Via, now: Now) {
        let Some(batch) = self.varp.receive(via, &self.counters) else { return };
        for message in (0..batch.len()).filter_map(|n| batch.get(n)) {
            self.hear(via, message.from, message.bytes, now);
            self.drive(now);
        }
        self.varp.give_back(batch);
    }

    fn hear(&mut self, via: Via, from: SocketAddr, bytes: &[u8], now: Now) {
        let is_group = via.is_group();
        if !is_group && handshake::Message::is_one(bytes) {
            self.doubt_handshake(from.ip(), bytes, now);
            return self.security.sadb.handle_message(from.ip(), bytes, now);
        }
        if hello::Message::is_one(bytes) {
            return self.hear_hello(via, from, bytes, now);
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

    /// Counts a message that can't be read; a host that speaks another version is named.
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

    fn accept(&mut self, door: Door, now: Now) {
        for _ in 0..ACCEPT_BUDGET {
            let listeners = self.listeners();
            let Some(listener) = listeners.into_iter().find_map(|(d, l)| (d == door).then_some(l))
            else {
                return;
            };
            let connection = match listener.accept() {
                Ok(connection) => connection,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(e) => return self.pause_accepting(&e, now),
            };
            self.counters.inc(VarpdCounter::clients);
            match self.clients.add(connection, door, &self.poller, now.mono) {
                Ok(Ok(_)) => {}
                Ok(Err(why)) => {
                    self.counters.inc(VarpdCounter::clients_refused);
                    log::debug!("refused a client: {why}");
                }
                Err(e) => log::debug!("lost a client at once: {e}"),
            }
        }
    }

    /// The sockets that are connected to.
    fn listeners(&self) -> Vec<(Door, &Listener)> {
        let operators = self.operators.iter().map(|listener| (Door::Operators, listener));
        std::iter::once((Door::Control, &self.listener)).chain(operators).collect()
    }

    /// The listeners would be ready again at once, without any progress.
    fn pause_accepting(&mut self, why: &io::Error, now: Now) {
        log::log!(self.quiet_about_accepting.level(now.mono), "can't accept a client: {why}");
        for (_, listener) in self.listeners() {
            // It fails for one that is not waited for already.
            let _ = self.poller.remove(listener);
        }
        self.accept_again = Some(now.mono + ACCEPT_PAUSE);
    }

    /// Looks at the listeners again.
    fn accept_again(&mut self, now: Now) {
        self.accept_again = None;
        let add = |(door, listener)| {
            self.poller.add(listener, Source::Listener(door).token(), Interest::Read)
        };
        if let Err(e) = self.listeners().into_iter().try_for_each(add) {
            self.pause_accepting(&e, now);
        }
    }

    /// Does what the mapper asks for, until it asks for nothing more.
    pub(super) fn drive(&mut self, now: Now) {
        while let Some(output) = self.mapper.poll_output() {
            match output {
                Output::Send { to, mut message } => {
                    if self.security.tag(&mut message, now) {
                        self.varp.send(to, &message, now.mono, &self.counters);
                    } else {
                        self.counters.inc(VarpdCounter::varp_tx_limited);
                    }
                }
                Output::Notify { vif, notice } => self.notify(vif, notice, now),
                Output::Event(event) => self.show_event(&event, now),
            }
        }
        self.drive_security(now);
    }

    fn notify(&mut self, id: LocalVif, notice: Notice, now: Now) {
        let Some(vif) = self.registry.get_mut(id) else {
            return self.notify_learnt(id, notice, now);
        };
        let before = vif.state();
        match notice {
            Notice::Claimed { stamp } => (vif.stamp, vif.moved) = (Some(stamp), false),
            Notice::Lost { coa, .. } => {
                (vif.stamp, vif.moved) = (None, true);
                let line = format_args!("vif {} has moved to {coa}", vif.key);
                self.comings.log(vif.peer.uid, line, now.mono);
            }
            Notice::Mapping { .. }
            | Notice::Unresolved { .. }
            | Notice::Invalidate { .. }
            | Notice::Refused { .. } => {}
        }
        if vif.state() != before {
            vif.since_ms = now.wall_ms;
        }
        if matches!(notice, Notice::Lost { .. }) {
            self.close_lanes_of(id, now);
        }
        let Some(vif) = self.registry.get(id) else { return };
        let (own, owner) = (vif.key.mac, vif.owner);
        match owner {
            Owner::Live(client) if !self.holds_back(id, notice, now) => {
                // Before the mapping: the frames that wait for it then take the lane at once.
                if let Notice::Mapping { mac, coa, .. } = notice {
                    self.offer_lanes(id, mac, coa, now);
                }
                let event = notice.event(own, self.config.timers.lifetime.duration());
                let sent = self.clients.send(client, &event, &[]);
                self.drop_if_stalled(client, sent, now);
            }
            Owner::Live(_) => {}
            Owner::Kept(_) => self.watch_late(id),
        }
    }

    /// Ends the connection of a client that doesn't read.
    pub(super) fn drop_if_stalled(&mut self, client: ClientId, sent: Sent, now: Now) {
        if sent == Sent::Stalled {
            self.counters.inc(VarpdCounter::clients_stalled);
            self.drop_client(client, "does not read", now);
        }
    }

    fn handle_timeouts(&mut self, now: Now) {
        self.follow_underlay(now);
        if self.retry_at.is_some_and(|at| at <= now.mono) {
            self.retry(now);
        }
        if self.mapper.poll_timeout().is_some_and(|at| at <= now.mono) {
            self.mapper.handle_timeout(now);
        }
        self.security_timeout(now);
        self.varp.sort_by(self.security.sadb.token_key(), now.mono);
        self.varp.count_drops(false, now.mono, &self.counters);
        for vif in self.registry.expired(now.mono) {
            self.forget_vif(vif, now);
        }
        self.expire_learnt(now);
        for client in self.clients.stalled(now.mono) {
            self.drop_if_stalled(client, Sent::Stalled, now);
        }
        while let Some(run) = self.runs.poll_done(now.mono) {
            self.varp.count_drops(true, now.mono, &self.counters);
            let rows = self.stats_rows(&run.answers);
            let sent =
                self.clients.send_rows(run.client, columns(Table::Stats), rows, &self.poller, now);
            self.drop_if_stalled(run.client, sent, now);
        }
        if self.accept_again.is_some_and(|at| at <= now.mono) {
            self.accept_again(now);
        }
        self.drive(now);
    }

    fn next_timeout(&self) -> Option<Instant> {
        [
            self.mapper.poll_timeout(),
            self.security.next_timeout(),
            self.registry.next_expiry(),
            self.learnt.next_expiry(),
            self.clients.next_timeout(),
            self.runs.next_deadline(),
            self.accept_again,
            self.retry_at,
            self.follower.poll_timeout(),
            Some(self.hosts.poll_timeout()),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// The groups of a vnet's frames: they are sent to the first.
    pub(super) fn groups_of(&self, vnet: VnetId) -> FrameGroups {
        self.config.frame_groups(vnet, self.place.address)
    }
}

/// Waits for messages that come these ways.
pub(super) fn watch_varp(poller: &Poller, varp: &Varp, ways: &[Via]) -> io::Result<()> {
    let sockets = ways.iter().filter_map(|via| Some((via, varp.socket(*via)?)));
    let mut sockets = sockets.map(|(via, socket)| (Source::Varp(*via).token(), socket));
    sockets.try_for_each(|(token, socket)| poller.add(socket, token, Interest::Read))
}

/// Whether to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Next,
    End,
}

/// Permission bits of the operators' socket.
const OPERATORS_MODE: u32 = 0o660;

/// The operators' socket, if there is to be one.
fn operator_listener(config: &Config, groups: &Groups) -> Result<Option<Listener>, VarpdError> {
    let group = groups.operators.as_ref().map(|operators| operators.number);
    let path = config.operator_socket.as_deref();
    path.map(|path| listen(path, OPERATORS_MODE, group)).transpose()
}

fn listen(path: &Path, mode: u32, group: Option<u32>) -> Result<Listener, VarpdError> {
    if let Some(directory) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        match std::fs::create_dir(directory) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed(format!("create {}", directory.display()))(e));
            }
            _ => {}
        }
    }
    Ok(Listener::bind(path, mode, group)?)
}

/// The part of the configuration that is the mapper's.
fn mapper_config(config: &Config) -> mapper::Config {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_the_mappers() {
        assert_eq!(mapper_config(&Config::default()), mapper::Config::default());
    }

    #[test]
    fn tokens_name_sources() {
        let client = Source::Client(ClientId(FIRST_CLIENT));
        let varp = Via::ALL.map(Source::Varp);
        let others = [
            Source::Termination,
            Source::Listener(Door::Control),
            Source::Listener(Door::Operators),
            Source::Underlay,
            Source::Generation,
            Source::Opener,
            Source::Late(LocalVif(0)),
            Source::Late(LocalVif(7)),
            client,
        ];
        for source in varp.into_iter().chain(others) {
            assert!(source == client || source.token() != FIRST_CLIENT);
            assert_eq!(Source::of(source.token()), source);
        }
    }
}
