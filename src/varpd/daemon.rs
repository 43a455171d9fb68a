//! The loop: one thread that waits for all sources, and reads the clock once per turn.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use crate::config::Config;
use crate::host::admission::{Admission, Operators, Unknown};
use crate::host::{ClientId, Door, Host, Input, Peer, Place, Start, mapper_config};
use crate::mapper::LocalVif;
use crate::metrics::VarpdCounter;
use crate::quiet::Quiet;
use crate::sys::event::{Interest, Poller, Ready};
use crate::sys::generation::Generation;
use crate::sys::notify::ServiceManager;
use crate::sys::rtnetlink::Rtnetlink;
use crate::sys::seqpacket::{Connection, Listener};
use crate::sys::signal::Termination;
use crate::sys::{clock, link, process};
use crate::time::{Instant, Now};
use crate::underlay::opener::{MOST_BYTES, Privileged};
use crate::underlay::sockets::{BeaconSockets, Opener};
use crate::wire::VnetId;

use super::awake::Sleep;
use super::clients::Clients;
use super::key_files::KeyFiles;
use super::processes::Processes;
use super::varp::{Varp, Via};
use super::vifs::Vifs;
use super::{VarpdError, failed};

/// The groups that the configuration names.
#[derive(Debug)]
pub(super) struct Groups {
    /// The group that may use the control socket.
    pub(super) control: Option<u32>,
    /// The group of operators.
    pub(super) operators: Option<Operators>,
}

/// Most ready sources handled in a turn.
const TURN: usize = 64;
/// Most messages received from one client in a turn.
pub(super) const CLIENT_BUDGET: usize = 32;
/// Most connections accepted in a turn.
const ACCEPT_BUDGET: usize = 16;
/// Pause after the system refused a connection (too many open files).
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// A source that can be ready. Tokens from [`FIRST_CLIENT`] on are ids of clients, those from
/// [`FIRST_MOVED`] on ids of kept vifs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Termination,
    Varp(Via),
    Listener(Door),
    /// Interfaces, addresses or routes have changed.
    Underlay,
    /// The kernel has events of devices.
    Generation,
    /// Readable when the opener has ended.
    Opener,
    /// Sockets of a vif that has moved, kept after its backend ended.
    Moved(LocalVif),
    Client(ClientId),
}

const FIRST_CLIENT: u64 = 16;
const UNDERLAY: u64 = FIRST_CLIENT - 1;
/// The token of the operators' socket.
const OPERATORS: u64 = FIRST_CLIENT - 2;
/// The token of the kernel's events of devices.
const GENERATION: u64 = FIRST_CLIENT - 3;
const OPENER: u64 = FIRST_CLIENT - 4;
/// The first token of the beacon sockets.
const BEACONS: u64 = OPENER - BeaconSockets::MOST as u64;
/// The first token of kept vifs.
const FIRST_MOVED: u64 = 1 << 63;

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
            Self::Moved(LocalVif(id)) => FIRST_MOVED | id,
            Self::Client(ClientId(id)) => id,
        }
    }

    fn of(token: u64) -> Self {
        let varp = Via::ALL.into_iter().map(Self::Varp);
        let doors = [Door::Control, Door::Operators].map(Self::Listener);
        let own = [Self::Termination, Self::Underlay, Self::Generation, Self::Opener];
        let mut fixed = own.into_iter().chain(doors).chain(varp);
        let found = fixed.find(|source| source.token() == token);
        match token.checked_sub(FIRST_MOVED) {
            Some(id) => Self::Moved(LocalVif(id)),
            None => found.unwrap_or(Self::Client(ClientId(token))),
        }
    }
}

/// The host, and all objects that carry out its outputs.
#[derive(Debug)]
pub(super) struct Daemon {
    pub(super) host: Host,
    /// Results of outputs that the host has yet to handle.
    pub(super) results: VecDeque<Input>,
    pub(super) manager: ServiceManager,
    termination: Termination,
    pub(super) poller: Poller,
    listener: Listener,
    /// The operators' socket, if there is one.
    operators: Option<Listener>,
    /// Time at which varpd accepts connections again.
    accept_again: Option<Instant>,
    quiet_about_accepting: Quiet,
    pub(super) clients: Clients,
    /// The descriptors of the message that is being handled.
    pub(super) offered: Vec<OwnedFd>,
    pub(super) processes: Processes,
    pub(super) vifs: Vifs,
    pub(super) keys: KeyFiles,
    pub(super) rtnetlink: Rtnetlink,
    pub(super) varp: Varp,
    pub(super) opener: Opener,
    /// The vnets whose group messages are to pass the filter.
    pub(super) heard: BTreeSet<VnetId>,
    /// Time at which varpd tries to set the filter again.
    pub(super) retry_at: Option<Instant>,
    pub(super) sleep: Sleep,
    /// `None` where the kernel has no such events.
    pub(super) generation: Option<Generation>,
    /// Limits the log lines about events of devices.
    pub(super) alarms: Quiet,
}

impl Daemon {
    /// Opens all sockets; reads no keys yet. The control socket comes last, so that all clients
    /// that can connect are served.
    pub(super) fn open(
        config: Config,
        place: Place,
        opener: Opener,
        groups: Groups,
        termination: Termination,
        rtnetlink: Rtnetlink,
    ) -> Result<Self, VarpdError> {
        let poller = Poller::new(TURN).map_err(failed("open an epoll set"))?;
        let operators = operator_listener(&config, &groups)?;
        let control = groups.control;
        let admission = admission(&config, groups.operators)?;
        let (main_group, has_beacons) = (config.main_group(place.address), config.beacon);
        let (socket, mode) = (config.socket.clone(), config.socket_mode.0);
        let start = Start {
            mapper: mapper_config(&config),
            config,
            admission,
            mtu: link::mtu(&place.interface).ok(),
            place,
            seed: process::random().map_err(failed("get random numbers"))?,
        };
        let host = Host::new(start, clock::now());
        let varp = Varp::open(&opener, main_group, host.token_key(), has_beacons)?;
        let listener = listen(&socket, mode, control)?;
        let generation = Generation::listen()
            .inspect_err(|e| log::debug!("can't listen for restored snapshots: {e}"))
            .ok();
        let daemon = Self {
            host,
            results: [Input::Beacons(varp.beacon_groups().to_vec())].into(),
            manager: ServiceManager::default(),
            termination,
            poller,
            listener,
            operators,
            accept_again: None,
            quiet_about_accepting: Quiet::new(1),
            clients: Clients::new(FIRST_CLIENT),
            offered: Vec::new(),
            processes: Processes::default(),
            vifs: Vifs::default(),
            keys: KeyFiles::default(),
            rtnetlink,
            varp,
            opener,
            heard: BTreeSet::new(),
            retry_at: None,
            sleep: Sleep::default(),
            generation,
            alarms: Quiet::new(20),
        };
        daemon.watch_all().map_err(failed("fill the epoll set"))?;
        Ok(daemon)
    }

    fn watch_all(&self) -> io::Result<()> {
        let (poller, read) = (&self.poller, Interest::Read);
        poller.add(&self.termination, Source::Termination.token(), read)?;
        watch_varp(poller, &self.varp, &Via::ALL)?;
        for (door, listener) in self.listeners() {
            poller.add(listener, Source::Listener(door).token(), read)?;
        }
        poller.add(&self.rtnetlink, Source::Underlay.token(), read)?;
        if let Some(generation) = &self.generation {
            poller.add(generation, Source::Generation.token(), read)?;
        }
        let watch = |opener: &Privileged| opener.watch(poller, Source::Opener.token());
        self.opener.privileged().map_or(Ok(()), watch)
    }

    /// Reports to the service manager that varpd serves from now on.
    pub(super) fn announce_ready(&mut self, manager: ServiceManager) {
        log::info!("varpd: ready {}", self.host.describe());
        manager.ready(&self.host.status());
        self.manager = manager;
    }

    /// Warns if the sockets of vifs will have less buffer space than they should.
    pub(super) fn tell_small_buffers(&self) {
        if self.opener.has_room().is_ok_and(|has_room| !has_room) {
            log::warn!(
                "sockets have small buffers, so this host loses more frames when it is busy \
                 (buffers_small): start varpd with CAP_NET_ADMIN, or raise net.core.rmem_max and wmem_max \
                 to {MOST_BYTES}"
            );
        }
    }

    /// Reads the keys of the vnets that are configured to be secured.
    ///
    /// # Errors
    /// A key file is unreadable or invalid; the error names the vnet, the file and the reason.
    pub(super) fn load_keys(&mut self, now: Now) -> Result<(), VarpdError> {
        let config = self.host.config();
        let secured: Vec<_> = config
            .secured_vnets()
            .map(|vnet| (vnet, config.policy(vnet), config.key_file(vnet)))
            .collect();
        for (vnet, policy, path) in secured {
            let read = self.keys.read(vnet, path, self.host.counters());
            let file = read.map_err(|why| {
                VarpdError::Key(format!("vnet {vnet} is secured ({policy}), but its key {why}"))
            })?;
            self.feed(Input::Key { vnet, result: Ok(file) }, now);
        }
        Ok(())
    }

    /// Serves until a signal ends varpd.
    pub(super) fn run(&mut self) -> Result<(), VarpdError> {
        let mut now = clock::now();
        self.feed_results(now);
        loop {
            let timeout = self.next_timeout().map(|at| at.saturating_since(now.mono));
            let ready = self.poller.wait(timeout).map_err(failed("wait for events"))?;
            now = clock::now();
            self.heed_sleep(clock::asleep(), now);
            for ready in ready {
                if self.handle(ready, now) == Turn::End {
                    return Ok(());
                }
            }
            self.handle_timeouts(now);
            self.host.counters().add(VarpdCounter::buffers_small, self.opener.take_small());
            self.varp.flush(now.mono, self.host.counters());
        }
    }

    fn handle(&mut self, ready: Ready, now: Now) -> Turn {
        match Source::of(ready.token) {
            Source::Termination => match self.termination.take() {
                Ok(Some(signal)) => {
                    log::info!("exiting on {signal}");
                    self.feed(Input::Leave, now);
                    self.varp.flush(now.mono, self.host.counters());
                    return Turn::End;
                }
                Ok(None) => {}
                Err(e) => log::warn!("can't read signals: {e}"),
            },
            Source::Varp(via) => self.handle_varp(via, now),
            Source::Listener(door) => self.accept(door, now),
            Source::Underlay => self.hear_underlay(now),
            Source::Generation => self.heed_generation(now),
            // The check closes the descriptor that has become readable.
            Source::Opener => self.opener.privileged().map(Privileged::check).unwrap_or_default(),
            Source::Moved(vif) => {
                let senders = self.vifs.discard(vif);
                self.feed(Input::Strayed { vif, senders }, now);
            }
            Source::Client(id) => self.handle_client(id, ready, now),
        }
        Turn::Next
    }

    fn handle_varp(&mut self, via: Via, now: Now) {
        let Some(batch) = self.varp.receive(via, self.host.counters()) else { return };
        for message in (0..batch.len()).filter_map(|n| batch.get(n)) {
            let (from, bytes) = (message.from, message.bytes.to_vec());
            self.feed(Input::Datagram { from, is_group: via.is_group(), bytes }, now);
        }
        self.varp.give_back(batch);
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
            if let Err(e) = self.take_in(connection, door, now) {
                log::debug!("lost a client while accepting it: {e}");
            }
        }
    }

    fn take_in(&mut self, connection: Connection, door: Door, now: Now) -> io::Result<()> {
        let (peer, groups) = (connection.peer()?, connection.groups()?);
        let peer = Peer { uid: peer.uid, pid: peer.pid };
        // A new process may have the process id of an ended one.
        if self.processes.take_ended(peer.pid) {
            self.feed(Input::ProcessEnded { pid: peer.pid }, now);
        }
        let client = self.clients.add(connection, &self.poller, now.mono)?;
        self.feed(Input::Connected { client, door, peer, groups }, now);
        Ok(())
    }

    /// The sockets that clients connect to.
    fn listeners(&self) -> Vec<(Door, &Listener)> {
        let operators = self.operators.iter().map(|listener| (Door::Operators, listener));
        std::iter::once((Door::Control, &self.listener)).chain(operators).collect()
    }

    /// Stops accepting for [`ACCEPT_PAUSE`]: the listeners would be ready again at once, without
    /// progress.
    fn pause_accepting(&mut self, why: &io::Error, now: Now) {
        log::log!(self.quiet_about_accepting.level(now.mono), "can't accept a client: {why}");
        for (_, listener) in self.listeners() {
            // It fails if the listener is not in the poller.
            let _ = self.poller.remove(listener);
        }
        self.accept_again = Some(now.mono + ACCEPT_PAUSE);
    }

    /// Accepts connections again.
    fn accept_again(&mut self, now: Now) {
        self.accept_again = None;
        let add = |(door, listener)| {
            self.poller.add(listener, Source::Listener(door).token(), Interest::Read)
        };
        if let Err(e) = self.listeners().into_iter().try_for_each(add) {
            self.pause_accepting(&e, now);
        }
    }

    fn handle_timeouts(&mut self, now: Now) {
        if self.host.poll_timeout().is_some_and(|at| at <= now.mono) {
            self.feed(Input::Timeout, now);
        }
        if self.retry_at.is_some_and(|at| at <= now.mono) {
            self.hear_again(now);
        }
        self.varp.sort_by(self.host.token_key(), now.mono);
        self.varp.count_drops(false, now.mono, self.host.counters());
        self.end_stalled(now);
        if self.accept_again.is_some_and(|at| at <= now.mono) {
            self.accept_again(now);
        }
    }

    fn next_timeout(&self) -> Option<Instant> {
        let own = [self.clients.next_timeout(), self.accept_again, self.retry_at];
        self.host.poll_timeout().into_iter().chain(own.into_iter().flatten()).min()
    }
}

/// Looks up the users and groups of a configuration.
fn admission(config: &Config, operators: Option<Operators>) -> Result<Admission, VarpdError> {
    let (own, user, group) = (process::own_user(), process::user_id, process::group_id);
    Admission::new(config, own, operators, user, group).map_err(|unknown| {
        let Unknown { list, name, error } = unknown;
        VarpdError::Account { list, name, source: error }
    })
}

/// Adds these VARP sockets to the poller.
pub(super) fn watch_varp(poller: &Poller, varp: &Varp, ways: &[Via]) -> io::Result<()> {
    let sockets = ways.iter().filter_map(|via| Some((via, varp.socket(*via)?)));
    let mut sockets = sockets.map(|(via, socket)| (Source::Varp(*via).token(), socket));
    sockets.try_for_each(|(token, socket)| poller.add(socket, token, Interest::Read))
}

/// Whether the loop goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Next,
    End,
}

/// Permission bits of the operators' socket.
const OPERATORS_MODE: u32 = 0o660;

/// Opens the operators' socket, if configured.
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

#[cfg(test)]
mod tests {
    use super::*;

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
            Source::Moved(LocalVif(0)),
            Source::Moved(LocalVif(7)),
            client,
        ];
        for source in varp.into_iter().chain(others) {
            assert!(source == client || source.token() != FIRST_CLIENT);
            assert_eq!(Source::of(source.token()), source);
        }
    }
}
