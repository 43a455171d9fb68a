//! Handles the requests of clients, and the ends of their connections.

#![forbid(unsafe_code)]

use crate::mapper::LocalVif;
use crate::metrics::VarpdCounter;
use crate::time::Now;
use crate::wire::control::{ErrorCode, Event, Features, Request, Table, VERSION, software};
use crate::wire::{Mac, ParseError, VifKey, VnetId};

use super::Host;
use super::admission::Who;
use super::clients::{Client, ClientId, Door, Peer, Role};
use super::output::{Ending, Output};
use super::register::Registration;
use super::tables::columns;

/// The optional features of varpd.
const FEATURES: Features = Features::LANES;
/// Most clients that have yet to take all rows of a table.
const MOST_TABLES: usize = 8;

/// The reason for which varpd refuses a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) code: ErrorCode,
    pub(super) text: String,
    /// varpd ends the connection.
    pub(super) fatal: bool,
    /// The vif that was asked for.
    pub(super) about: Option<VifKey>,
}

impl Failure {
    /// A failure after which varpd ends the connection.
    pub(super) fn fatal(code: ErrorCode, text: impl Into<String>) -> Self {
        Self { code, text: text.into(), fatal: true, about: None }
    }

    /// Other clients have reached a limit; the client may try again.
    pub(super) fn busy(text: &str) -> Self {
        Self::passing(ErrorCode::Limit, format!("{text}; try again"))
    }

    /// A failure after which the connection continues.
    fn passing(code: ErrorCode, text: impl Into<String>) -> Self {
        Self { code, text: text.into(), fatal: false, about: None }
    }
}

impl Host {
    /// A client has connected.
    pub(super) fn handle_connected(
        &mut self,
        client: ClientId,
        door: Door,
        peer: Peer,
        groups: Vec<u32>,
    ) {
        self.counters.inc(VarpdCounter::clients);
        if let Err(text) = self.clients.add(client, door, peer, groups) {
            self.counters.inc(VarpdCounter::clients_refused);
            log::debug!("refused a client: {text}");
            self.tell(client, Event::Error { code: ErrorCode::Limit, text });
            self.outputs.push_back(Output::Close { client });
        }
    }

    /// A client has sent a message.
    pub(super) fn handle_request(
        &mut self,
        id: ClientId,
        bytes: &[u8],
        is_cut: bool,
        descriptors: usize,
        now: Now,
    ) {
        // A request before this one may have ended the connection.
        if self.clients.get(id).is_none() {
            return;
        }
        self.counters.inc(VarpdCounter::requests);
        let result = match (is_cut, Request::parse(bytes)) {
            (true, _) => Err(Failure::fatal(ErrorCode::Invalid, "message too long")),
            (_, Err(e)) => Err(unreadable(e, bytes)),
            (_, Ok(request)) => self.request(id, request, descriptors, now),
        };
        if let Err(failure) = result {
            self.fail(id, failure, now);
        }
    }

    fn request(
        &mut self,
        id: ClientId,
        request: Request,
        descriptors: usize,
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
            self.counters.add(VarpdCounter::descriptors_closed, descriptors as u64);
        }
        let Some(features) = client.features else { return self.greet(id, request) };
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
                self.register(id, registration, descriptors > 0, now)
            }
            (Role::Backend(vif), request) => self.handle_backend(vif, request, now),
            (Role::Unknown | Role::Operator, Request::Show { table }) => self.show(id, table, now),
            (Role::Unknown, Request::Monitor) => self.begin_monitor(id),
            (Role::Unknown | Role::Operator, Request::Flush { vnet, mac }) => {
                self.flush(id, vnet, mac);
                Ok(())
            }
            _ => Err(out_of_place()),
        }
    }

    /// Handles a message of the backend of a vif.
    fn handle_backend(&mut self, vif: LocalVif, request: Request, now: Now) -> Result<(), Failure> {
        match request {
            Request::SetActive { active } => self.set_active(vif, active, now),
            Request::Announce => self.mapper.announce(vif, now),
            Request::Resolve { mac, refresh } => self.mapper.resolve(vif, mac, refresh, now),
            Request::SaReady { number } => self.sa_ready(vif, number, now),
            Request::SaNeeded { address } => self.sa_needed(vif, address, now),
            Request::Learn { macs } => self.learn(vif, &macs, now),
            Request::Forget { macs } => self.forget_learned(vif, &macs, now),
            Request::Late { mac, sender } => self.report_moved(vif, mac, sender, now),
            Request::LaneClosed { lane } => self.lane_closed(vif, lane),
            Request::Stats { xid, samples } => {
                if !self.runs.answer(xid, vif, samples) {
                    self.counters.inc(VarpdCounter::stats_late);
                }
            }
            Request::Hello { .. }
            | Request::Register { .. }
            | Request::Show { .. }
            | Request::Monitor
            | Request::Flush { .. } => return Err(out_of_place()),
        }
        Ok(())
    }

    /// Handles the first message of a client.
    fn greet(&mut self, id: ClientId, request: Request) -> Result<(), Failure> {
        let Request::Hello { features, software: theirs } = request else {
            return Err(Failure::fatal(ErrorCode::Invalid, "the first message must be HELLO"));
        };
        log::debug!("client {} is {theirs:?}, {features:?}", id.0);
        if let Some(client) = self.clients.get_mut(id) {
            client.features = Some(features);
        }
        self.tell(id, Event::Hello { features: FEATURES, software: software("varpd") });
        Ok(())
    }

    /// Fails with the reason if a client may not send operators' requests.
    fn check_operator(&self, client: &Client) -> Result<(), String> {
        self.bindings.check_operator(client.peer).map_err(|refusal| refusal.to_string())?;
        if client.door == Door::Operators {
            return Ok(());
        }
        let who = Who { uid: client.peer.uid, groups: &client.groups };
        self.admission.check_operator(who).map_err(|refusal| match &self.config.operator_socket {
            Some(socket) => format!("{refusal}; operators connect to {}", socket.display()),
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
            self.clear_learned(id, now);
        }
        self.mapper.set_active(id, active, None, now);
    }

    fn show(&mut self, id: ClientId, table: Table, now: Now) -> Result<(), Failure> {
        if self.clients.readers() >= MOST_TABLES {
            return Err(Failure::busy("too many tables are being read"));
        }
        let Some(client) = self.clients.get_mut(id) else { return Ok(()) };
        client.role = Role::Operator;
        let rows = match table {
            Table::Vnets => self.vnet_rows(now),
            Table::Vifs => self.vif_rows(),
            Table::Varp => {
                client.is_reading = true;
                self.outputs.push_back(Output::Pages { client: id, columns: columns(table) });
                return Ok(());
            }
            Table::Peers => self.peer_rows(now),
            Table::Hosts => self.host_rows(now),
            Table::Stats => return self.begin_stats(id, now),
        };
        self.send_table(id, columns(table), rows);
        Ok(())
    }

    /// Asks the backends for their counters. The rows follow when all have answered, or their time
    /// is over.
    fn begin_stats(&mut self, id: ClientId, now: Now) -> Result<(), Failure> {
        let live: Vec<(LocalVif, ClientId)> =
            self.registry.live().map(|(vif, client, _)| (vif, client)).collect();
        let Some(xid) = self.runs.begin(id, live.iter().map(|(vif, _)| *vif), now.mono) else {
            return Err(Failure::busy("too many clients are asking for counters"));
        };
        for (_, client) in live {
            self.tell(client, Event::StatsRequest { xid });
        }
        Ok(())
    }

    fn flush(&mut self, id: ClientId, vnet: Option<VnetId>, mac: Option<Mac>) {
        if let Some(client) = self.clients.get_mut(id) {
            client.role = Role::Operator;
        }
        let flushed = self.mapper.flush(vnet, mac);
        say!(self, log::Level::Info, "flushed {flushed} entries");
        self.tell(id, Event::End);
    }

    /// Tells a client that varpd refuses its request; ends the connection if the failure is fatal.
    pub(super) fn fail(&mut self, id: ClientId, failure: Failure, now: Now) {
        let Failure { code, text, fatal, about } = failure;
        if code == ErrorCode::Invalid {
            self.counters.inc(VarpdCounter::requests_invalid);
        }
        if let Some(client) = self.clients.get(id) {
            let peer = client.peer;
            let level = self.complaints.refused.level(peer.uid, (code, about), now.mono);
            say!(self, level, "refused process {} of user {}: {text}", peer.pid, peer.uid);
        }
        self.tell(id, Event::Error { code, text });
        if fatal {
            self.drop_client(id, "refused", now);
        }
    }

    /// A connection has ended.
    pub(super) fn handle_closed(&mut self, id: ClientId, why: &Ending, now: Now) {
        match why {
            Ending::Gone => self.drop_client(id, "is gone", now),
            Ending::Failed(error) => self.drop_client(id, error, now),
            Ending::Stalled => {
                if self.clients.get(id).is_some() {
                    self.counters.inc(VarpdCounter::clients_stalled);
                }
                self.drop_client(id, "does not read", now);
            }
        }
    }

    /// Ends a connection. The vif of a backend is kept for a while.
    pub(super) fn drop_client(&mut self, id: ClientId, why: &str, now: Now) {
        let Some(client) = self.clients.remove(id) else { return };
        log::debug!("client {} (process {}) {why}", id.0, client.peer.pid);
        self.outputs.push_back(Output::Close { client: id });
        self.runs.abandon(id);
        match client.role {
            Role::Backend(vif) => self.keep_vif(vif, why, now),
            Role::Registering(vif) => self.give_up_registering(vif),
            Role::Unknown | Role::Operator | Role::Monitor => {}
        }
    }

    /// The backend of a vif has ended: the vif is kept for a while.
    fn keep_vif(&mut self, vif: LocalVif, why: &str, now: Now) {
        self.runs.forget(vif);
        self.close_lanes_of(vif);
        self.counters.inc(VarpdCounter::vifs_kept);
        let until = now.mono + self.config.timers.keep.duration();
        for gone in self.registry.keep(vif, until, self.config.limits.kept_vifs, now) {
            self.forget_vif(gone, now);
        }
        self.mapper.doubt(vif, now);
        self.watch_moved(vif);
        if let Some(kept) = self.registry.get(vif) {
            self.outputs.push_back(Output::Bound { vif });
            let line =
                format_args!("vif {}: its backend (process {}) {why}", kept.key, kept.peer.pid);
            self.comings.log(kept.peer.uid, line, now.mono, &mut self.outputs);
        }
    }

    /// Forgets a vif: closes its sockets and ends its claim.
    pub(super) fn forget_vif(&mut self, id: LocalVif, now: Now) {
        self.unwatch_moved(id);
        self.close_lanes_of(id);
        if let Some(vif) = self.registry.remove(id) {
            let line = format_args!("vif {} at {} is forgotten", vif.key, vif.coa);
            self.comings.log(vif.peer.uid, line, now.mono, &mut self.outputs);
            self.counters.inc(VarpdCounter::vifs_forgotten);
            self.clear_learned(id, now);
            self.mapper.remove_vif(id, now);
            self.security.forget_vif(id);
            self.outputs.push_back(Output::Drop { vif: id });
        }
    }
}

fn out_of_place() -> Failure {
    Failure::fatal(ErrorCode::Invalid, "message out of place")
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
