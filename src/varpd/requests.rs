//! What clients ask, and the ends of their connections.

use std::io;
use std::os::fd::OwnedFd;

use crate::mapper::LocalVif;
use crate::metrics::VarpdCounter;
use crate::sys::event::Ready;
use crate::time::Now;
use crate::wire::control::{
    ErrorCode, Event, Features, MAX_LEN, Request, Table, VERSION, software,
};
use crate::wire::{Mac, ParseError, VifKey, VnetId};

use super::admission::Who;
use super::clients::{Client, ClientId, Door, Role, Sent};
use super::daemon::Daemon;
use super::register::Registration;
use super::registry::Owner;
use super::tables::columns;

/// What varpd has beyond the version of the protocol.
const FEATURES: Features = Features::LANES;
/// Messages taken from one client in a turn.
const BUDGET: usize = 32;
/// Most tables that wait to be read, in total.
const MOST_TABLES: usize = 8;

/// Why a request is not granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) code: ErrorCode,
    pub(super) text: String,
    /// It costs the connection.
    pub(super) fatal: bool,
    /// The vif that was asked for.
    pub(super) about: Option<VifKey>,
}

impl Failure {
    /// After which the connection ends.
    pub(super) fn fatal(code: ErrorCode, text: impl Into<String>) -> Self {
        Self { code, text: text.into(), fatal: true, about: None }
    }

    /// A limit that others keep busy.
    pub(super) fn busy(text: &str) -> Self {
        Self::passing(ErrorCode::Limit, format!("{text}; try again"))
    }

    /// After which the client may go on.
    fn passing(code: ErrorCode, text: impl Into<String>) -> Self {
        Self { code, text: text.into(), fatal: false, about: None }
    }
}

impl Daemon {
    /// A client has sent something, is gone, or has room again.
    pub(super) fn handle_client(&mut self, id: ClientId, ready: Ready, now: Now) {
        if ready.writable {
            let sent = self.clients.flush(id, &self.poller, now);
            self.drop_if_stalled(id, sent, now);
            self.send_next_page(id, now);
        }
        if !ready.readable {
            return;
        }
        let mut buffer = [0; MAX_LEN];
        for _ in 0..BUDGET {
            // A request may have ended the connection.
            let Some(client) = self.clients.get(id) else { return };
            let got = match client.connection.recv(&mut buffer) {
                Ok(got) if got.len > 0 => got,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Ok(_) => return self.drop_client(id, "is gone", now),
                Err(e) => return self.drop_client(id, &e.to_string(), now),
            };
            self.counters.inc(VarpdCounter::requests);
            let bytes = buffer.get(..got.len).unwrap_or(&buffer);
            let result = match (got.truncated, Request::parse(bytes)) {
                (true, _) => Err(Failure::fatal(ErrorCode::Invalid, "message too long")),
                (_, Err(e)) => Err(unreadable(e, bytes)),
                (_, Ok(request)) => self.request(id, request, got.fds, now),
            };
            if let Err(failure) = result {
                self.fail(id, failure, now);
            }
            self.drive(now);
        }
    }

    fn request(
        &mut self,
        id: ClientId,
        request: Request,
        fds: Vec<OwnedFd>,
        now: Now,
    ) -> Result<(), Failure> {
        let Some(client) = self.clients.get(id) else { return Ok(()) };
        if matches!(request, Request::Show { .. } | Request::Monitor | Request::Flush { .. })
            && let Err(refusal) = self.check_operator(client)
        {
            self.counters.inc(VarpdCounter::operators_denied);
            return Err(Failure::fatal(ErrorCode::Denied, refusal));
        }
        if !matches!(request, Request::Register { .. }) {
            self.counters.add(VarpdCounter::descriptors_closed, fds.len() as u64);
        }
        let Some(features) = client.features else { return self.greet(id, request, now) };
        match (client.role, request) {
            (
                Role::Unknown,
                Request::Register { key, capabilities, queue_pairs, active, stamp, learn, floor },
            ) => {
                let registration = Registration {
                    key,
                    capabilities,
                    takes_lanes: features.contains(Features::LANES),
                    queue_pairs,
                    active,
                    stamp,
                    learn,
                    floor,
                };
                let registered = self.register(id, registration, fds, now);
                if registered.is_err() {
                    self.counters.inc(VarpdCounter::vifs_refused);
                }
                registered.map_err(|failure| Failure { about: Some(key), ..failure })
            }
            (Role::Backend(vif), Request::SetActive { active }) => {
                self.set_active(vif, active, now);
                Ok(())
            }
            (Role::Backend(vif), Request::Announce) => {
                self.mapper.announce(vif, now);
                Ok(())
            }
            (Role::Backend(vif), Request::Resolve { mac, refresh }) => {
                self.mapper.resolve(vif, mac, refresh, now);
                Ok(())
            }
            (Role::Backend(vif), Request::SaReady { number }) => {
                self.sa_ready(vif, number, now);
                Ok(())
            }
            (Role::Backend(vif), Request::SaNeeded { address }) => {
                self.sa_needed(vif, address, now);
                Ok(())
            }
            (Role::Backend(vif), Request::Learn { macs }) => {
                self.learn(vif, &macs, now);
                Ok(())
            }
            (Role::Backend(vif), Request::Forget { macs }) => {
                self.forget_learnt(vif, &macs, now);
                Ok(())
            }
            (Role::Backend(vif), Request::Late { mac, sender }) => {
                self.report_late(vif, mac, sender, now);
                Ok(())
            }
            (Role::Backend(vif), Request::LaneClosed { lane }) => {
                self.lane_closed(vif, lane, now);
                Ok(())
            }
            (Role::Backend(vif), Request::Stats { xid, samples }) => {
                if !self.runs.answer(xid, vif, samples) {
                    self.counters.inc(VarpdCounter::stats_late);
                }
                Ok(())
            }
            (Role::Unknown | Role::Operator, Request::Show { table }) => self.show(id, table, now),
            (Role::Unknown, Request::Monitor) => self.begin_monitor(id, now),
            (Role::Unknown | Role::Operator, Request::Flush { vnet, mac }) => {
                self.flush(id, vnet, mac, now);
                Ok(())
            }
            _ => Err(Failure::fatal(ErrorCode::Invalid, "message out of place")),
        }
    }

    /// The first message of a client.
    fn greet(&mut self, id: ClientId, request: Request, now: Now) -> Result<(), Failure> {
        let Request::Hello { features, software: theirs } = request else {
            return Err(Failure::fatal(ErrorCode::Invalid, "the first message must be HELLO"));
        };
        log::debug!("client {} is {theirs:?}, {features:?}", id.0);
        if let Some(client) = self.clients.get_mut(id) {
            client.features = Some(features);
        }
        let hello = Event::Hello { features: FEATURES, software: software("varpd") };
        let sent = self.clients.send(id, &hello, &[]);
        self.drop_if_stalled(id, sent, now);
        Ok(())
    }

    /// Whether a client may ask what operators ask; else why not.
    fn check_operator(&self, client: &Client) -> Result<(), String> {
        self.speakers.check_operator(client.peer).map_err(|refusal| refusal.to_string())?;
        if client.door == Door::Operators {
            return Ok(());
        }
        let groups = client.connection.groups().unwrap_or_default();
        let who = Who { uid: client.peer.uid, groups: &groups };
        self.admission.check_operator(who).map_err(|refusal| match &self.config.operator_socket {
            Some(socket) => format!("{refusal}, who ask at {}", socket.display()),
            None => refusal.to_string(),
        })
    }

    fn set_active(&mut self, id: LocalVif, active: bool, now: Now) {
        let Some(vif) = self.registry.get_mut(id) else { return };
        let active = active && !vif.is_halted;
        if vif.active != active {
            vif.active = active;
            vif.since_ms = now.wall_ms;
        }
        vif.ran = active;
        if !active {
            vif.stamp = None;
            self.clear_learnt(id, now);
        }
        self.mapper.set_active(id, active, None, now);
    }

    fn show(&mut self, id: ClientId, table: Table, now: Now) -> Result<(), Failure> {
        let Some(client) = self.clients.get_mut(id) else { return Ok(()) };
        client.role = Role::Operator;
        if self.clients.with_rows() >= MOST_TABLES {
            return Err(Failure::busy("too many tables are being read"));
        }
        let rows = match table {
            Table::Vnets => self.vnet_rows(now),
            Table::Vifs => self.vif_rows(),
            Table::Varp => {
                let sent = self.clients.begin_pages(id, columns(table), &self.poller, now);
                self.drop_if_stalled(id, sent, now);
                return Ok(());
            }
            Table::Peers => self.peer_rows(now),
            Table::Hosts => self.host_rows(now),
            Table::Stats => return self.begin_stats(id, now),
        };
        let sent = self.clients.send_rows(id, columns(table), rows, &self.poller, now);
        self.drop_if_stalled(id, sent, now);
        Ok(())
    }

    /// One page of a long table in a turn of the loop: others are served between.
    fn send_next_page(&mut self, id: ClientId, now: Now) {
        if let Some(after) = self.clients.wants_page(id) {
            let (rows, more) = self.varp_page(after, now);
            let sent = self.clients.send_page(id, rows, more, &self.poller, now);
            self.drop_if_stalled(id, sent, now);
        }
    }

    /// Asks the backends; the rows follow when they have answered, or not.
    fn begin_stats(&mut self, id: ClientId, now: Now) -> Result<(), Failure> {
        let live = self.registry.iter().filter_map(|(vif, v)| match v.owner {
            Owner::Live(client) => Some((vif, client)),
            Owner::Kept(_) => None,
        });
        let live: Vec<_> = live.collect();
        let Some(xid) = self.runs.begin(id, live.iter().map(|(vif, _)| *vif), now.mono) else {
            return Err(Failure::busy("too many clients are asking for counters"));
        };
        for (_, client) in live {
            let sent = self.clients.send(client, &Event::StatsRequest { xid }, &[]);
            self.drop_if_stalled(client, sent, now);
        }
        Ok(())
    }

    fn flush(&mut self, id: ClientId, vnet: Option<VnetId>, mac: Option<Mac>, now: Now) {
        if let Some(client) = self.clients.get_mut(id) {
            client.role = Role::Operator;
        }
        let flushed = self.mapper.flush(vnet, mac);
        log::info!("flushed {flushed} entries");
        let sent = self.clients.send(id, &Event::End, &[]);
        self.drop_if_stalled(id, sent, now);
    }

    fn fail(&mut self, id: ClientId, failure: Failure, now: Now) {
        let Failure { code, text, fatal, about } = failure;
        if code == ErrorCode::Invalid {
            self.counters.inc(VarpdCounter::requests_invalid);
        }
        if let Some(client) = self.clients.get(id) {
            let peer = client.peer;
            let level = self.complaints.refused.level(peer.uid, (code, about), now.mono);
            log::log!(level, "refused process {} of user {}: {text}", peer.pid, peer.uid);
        }
        let sent = self.clients.send(id, &Event::Error { code, text }, &[]);
        if fatal {
            self.drop_client(id, "refused", now);
        } else {
            self.drop_if_stalled(id, sent, now);
        }
    }

    /// Ends a connection. The vif of a backend is kept for a while.
    pub(super) fn drop_client(&mut self, id: ClientId, why: &str, now: Now) {
        let Some(client) = self.clients.remove(id) else { return };
        log::debug!("client {} (process {}) {why}", id.0, client.peer.pid);
        self.runs.abandon(id);
        let Role::Backend(vif) = client.role else { return };
        self.runs.forget(vif);
        self.close_lanes_of(vif, now);
        self.counters.inc(VarpdCounter::vifs_kept);
        let until = now.mono + self.config.timers.keep.duration();
        for gone in self.registry.keep(vif, until, self.config.limits.kept_vifs, now) {
            self.forget_vif(gone, now);
        }
        self.mapper.doubt(vif, now);
        self.watch_late(vif);
        if let Some(vif) = self.registry.get(vif) {
            if let Err(e) = vif.sockets.bound() {
                log::debug!("can't bound what waits for vif {}: {e}", vif.key);
            }
            let line =
                format_args!("vif {}: its backend (process {}) {why}", vif.key, vif.peer.pid);
            self.comings.log(vif.peer.uid, line, now.mono);
        }
    }

    /// A vif that nobody came back for: its sockets are closed, its claim ends.
    pub(super) fn forget_vif(&mut self, id: LocalVif, now: Now) {
        self.unwatch_late(id);
        self.close_lanes_of(id, now);
        if let Some(vif) = self.registry.remove(id) {
            let line = format_args!("vif {} at {} is forgotten", vif.key, vif.coa);
            self.comings.log(vif.peer.uid, line, now.mono);
            self.counters.inc(VarpdCounter::vifs_forgotten);
            self.clear_learnt(id, now);
            self.mapper.remove_vif(id, now);
            self.security.forget_vif(id);
            self.hear_questions(now);
        }
    }

    /// Whether a send went through; a client that doesn't read is dropped.
    pub(super) fn sent(&mut self, id: ClientId, sent: Sent, now: Now) -> bool {
        self.drop_if_stalled(id, sent, now);
        sent == Sent::Ok
    }
}

fn unreadable(error: ParseError, bytes: &[u8]) -> Failure {
    let text = match (error, bytes.first()) {
        (ParseError::Version, Some(version)) => {
            format!(
                "version {version} of the control protocol is not spoken here, only version {VERSION}: install all programs from \
                 one release, and restart those that run"
            )
        }
        _ => format!("malformed message: {error}"),
    };
    Failure::fatal(ErrorCode::Invalid, text)
}
