//! Decides when backends on secured vnets get keys, and which messages wait for keys.
//!
//! A backend gets keys before a message that makes it use them. On a secured vnet varpd holds back
//! a mapping until there is a session with the mapping's host and the backend has the keys for the
//! care-of address. Hosts use a new session when all backends of the vnet accept it. Until then a
//! *gate* holds back outputs that would make the other host send with it.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::mapper::{LocalVif, Notice};
use crate::metrics::VarpdCounter;
use crate::security::sadb::Output;
use crate::time::{Instant, Now};
use crate::wire::control::{Event, Lifetime, MAX_INBOUND, SenderKeys};
use crate::wire::{CareOf, Mac, VnetId};

use super::Host;
use super::clients::ClientId;
use super::keys::{Link, User};
use super::registry::Owner;

/// Time for which a backend does not ask again for a vif whose host does not agree on keys.
const GAVE_UP_HOLD: Duration = Duration::from_secs(1);

/// Time that the backends of a vnet have to accept the first session with a host.
const FIRST_GATE_TIMEOUT: Duration = Duration::from_millis(50);
/// Time that they have to accept another session, while an earlier one serves.
const GATE_TIMEOUT: Duration = Duration::from_millis(500);

/// Holds back outputs about a link until the local backends accept its new session. The other host
/// must not send with it earlier.
#[derive(Debug)]
pub(super) struct Gate {
    pub(super) waiting: BTreeSet<(LocalVif, u32)>,
    /// Until then, backends of an earlier varpd may still register.
    pub(super) not_before: Option<Instant>,
    /// The gate waits no longer than this.
    pub(super) until: Instant,
    held: VecDeque<Output>,
}

impl Host {
    /// Sends a backend on a secured vnet the keys that it needs to receive frames and to send group
    /// frames.
    pub(super) fn send_keys(&mut self, id: LocalVif, client: ClientId, now: Now) {
        let Some(vif) = self.registry.get(id) else { return };
        let (vnet, own) = (vif.key.vnet, vif.coa.addr);
        if !self.security.is_secured(vnet) {
            return;
        }
        self.security.forget_vif(id);
        self.send_group_keys(id, client);
        let (mut keys, mut peers) = (Vec::new(), BTreeMap::new());
        for (number, peer) in self.security.sadb.sessions(vnet) {
            // There are no keys if an earlier backend had them, since its replay window is lost.
            let inbound = self.security.sadb.inbound(number, own, now);
            *peers.entry(peer).or_insert(false) |= inbound.is_some();
            // A gate that waits for other backends waits for this one, too.
            if let (Some(_), Some(gate)) = (&inbound, self.security.gates.get_mut(&(vnet, peer))) {
                gate.waiting.insert((id, number));
            }
            keys.extend(inbound);
        }
        // Without keys for any session with a host, the backend needs a new session.
        for (peer, _) in peers.into_iter().filter(|(_, has_one)| !has_one) {
            self.security.sadb.renew(vnet, peer, now);
        }
        for keys in keys.chunks(MAX_INBOUND) {
            self.tell(client, Event::SaIn { keys: keys.to_vec() });
        }
    }

    pub(super) fn send_group_keys(&mut self, id: LocalVif, client: ClientId) {
        let Some(vif) = self.registry.get(id) else { return };
        let Some(secured) = self.security.vnets.get(&vif.key.vnet) else { return };
        let pairs = u16::from(vif.queue_pairs);
        let salt = self.security.salt;
        self.security.salt = salt.wrapping_add(pairs);
        let keys = secured.keys.iter().map(|keys| (keys.group_suite, keys.group.clone()));
        let end = self.security.sadb.end();
        let event = Event::GroupKeys { salt, end, keys: keys.collect() };
        self.tell(client, event);
    }

    /// The live backends of a vnet.
    pub(super) fn backends(&self, vnet: VnetId) -> Vec<(LocalVif, ClientId)> {
        let on_vnet = self.registry.live().filter(|(_, _, vif)| vif.key.vnet == vnet);
        on_vnet.map(|(id, client, _)| (id, client)).collect()
    }

    /// Whether a notice has to wait for keys; if so, varpd sends it later. Records which care-of
    /// addresses the vif uses.
    pub(super) fn holds_back(&mut self, id: LocalVif, notice: Notice, now: Now) -> bool {
        let Some(vif) = self.registry.get(id) else { return false };
        let vnet = vif.key.vnet;
        if !self.security.seals(vnet) {
            return false;
        }
        match notice {
            // The backend drops frames to this care-of address with or without keys.
            Notice::Mapping { coa, .. }
                if coa.usable_from(self.underlay.place.address).is_err() =>
            {
                false
            }
            Notice::Mapping { mac, coa, lifetime, .. } => {
                let (to, until) = (coa.addr, now.mono + lifetime);
                let waits = self.security.must_seal(vnet, to.ip());
                let user = User { to, held: waits.then_some(notice), until };
                self.security.users.insert((id, mac), user);
                self.security.sadb.want(vnet, to.ip(), until, now);
                self.serve_if_open(id, vnet, to, now);
                waits
            }
            Notice::Unresolved { mac, .. } | Notice::Invalidate { mac } => {
                self.security.users.remove(&(id, mac));
                false
            }
            Notice::Lost { coa, .. } => {
                self.send_on(id, vif.key.mac, coa, now);
                false
            }
            Notice::Claimed { .. } | Notice::Refused { .. } => false,
        }
    }

    /// A MAC of this backend has moved to `coa`. For a while the backend forwards frames that still
    /// arrive for it, and needs keys for that.
    pub(super) fn send_on(&mut self, id: LocalVif, mac: Mac, coa: CareOf, now: Now) {
        let Some(vnet) = self.registry.get(id).map(|vif| vif.key.vnet) else { return };
        if !self.security.seals(vnet) {
            return;
        }
        let (to, until) = (coa.addr, now.mono + self.config.timers.lifetime.duration());
        self.security.users.insert((id, mac), User { to, held: None, until });
        self.security.sadb.want(vnet, to.ip(), until, now);
        self.serve_if_open(id, vnet, to, now);
    }

    /// Serves a backend at once if a session serves the host at `to` and no gate holds it back.
    fn serve_if_open(&mut self, id: LocalVif, vnet: VnetId, to: SocketAddr, now: Now) {
        // Keys for the host may be among the pending outputs; they go first.
        self.drive_security(now);
        let is_gated = self.security.gates.contains_key(&(vnet, to.ip().to_canonical()));
        if !is_gated && self.security.sadb.is_served(vnet, to.ip(), now) {
            self.serve(id, to, false, now);
        }
    }

    /// Sends a backend keys for a care-of address if it has none, or `anew`, and then the notices
    /// that wait for them.
    fn serve(&mut self, id: LocalVif, to: SocketAddr, anew: bool, now: Now) {
        let Some(vif) = self.registry.get(id) else { return };
        let Owner::Live(client) = vif.owner else { return };
        let (vnet, pairs) = (vif.key.vnet, u32::from(vif.queue_pairs));
        if anew || !self.security.issued.contains(&(id, to)) {
            let Some(keys) = self.security.sadb.outbound(vnet, to, pairs, now) else { return };
            self.security.issued.insert((id, to));
            self.tell(client, Event::SaOut { to, keys });
        }
        self.release(id, to, now);
    }

    /// Sends a backend the mappings to a care-of address that were held back.
    fn release(&mut self, id: LocalVif, to: SocketAddr, now: Now) {
        let Some(vif) = self.registry.get(id) else { return };
        let Owner::Live(client) = vif.owner else { return };
        let own = vif.key.mac;
        let of_vif = self.security.users.range_mut((id, Mac([0; 6]))..=(id, Mac([0xff; 6])));
        let held: Vec<Notice> =
            of_vif.filter(|(_, user)| user.to == to).filter_map(|(_, u)| u.held.take()).collect();
        for notice in held {
            if let Notice::Mapping { mac, coa, .. } = notice {
                self.offer_lanes(id, mac, coa, now);
            }
            let event = notice.event(own, self.config.timers.lifetime.duration());
            self.tell(client, event);
        }
    }

    /// Sends the backends of a vnet all mappings that were held back.
    pub(super) fn release_all(&mut self, vnet: VnetId, now: Now) {
        let held = self.security.users.values().filter(|user| user.held.is_some());
        let to: BTreeSet<SocketAddr> = held.map(|user| user.to).collect();
        for (id, _) in self.backends(vnet) {
            for &to in &to {
                self.release(id, to, now);
            }
        }
    }

    /// The local vifs that send to a host's vifs, with the addresses that they send to.
    fn users_of(&self, vnet: VnetId, peer: IpAddr) -> BTreeSet<(LocalVif, SocketAddr)> {
        let users = self.security.users.iter();
        let of_peer = users.filter(|(_, user)| user.to.ip().to_canonical() == peer);
        let of_vnet = |vif: &LocalVif| self.registry.get(*vif).is_some_and(|v| v.key.vnet == vnet);
        of_peer.map(|(&(vif, _), user)| (vif, user.to)).filter(|(vif, _)| of_vnet(vif)).collect()
    }

    /// Carries out the outputs of the key database.
    pub(super) fn drive_security(&mut self, now: Now) {
        while let Some(output) = self.security.sadb.poll_output() {
            let gate = output.link().and_then(|link| self.security.gates.get_mut(&link));
            match (gate, &output) {
                (Some(gate), output) if !matches!(output, Output::Receive { .. }) => {
                    gate.held.push_back(output.clone());
                }
                _ => self.perform(output, now),
            }
        }
    }

    fn perform(&mut self, output: Output, now: Now) {
        match output {
            Output::Send { to, bytes, .. } => {
                let to = SocketAddr::new(to, self.config.port.0);
                self.outputs.push_back(super::Output::Send { to, bytes });
            }
            Output::Receive { vnet, peer, number } => self.hand_out((vnet, peer), number, now),
            Output::Serve { vnet, peer } => {
                for (vif, to) in self.users_of(vnet, peer) {
                    self.serve(vif, to, true, now);
                }
            }
            Output::Ended { vnet, number } => {
                for (_, client) in self.backends(vnet) {
                    self.tell(client, Event::SaEnd { number });
                }
            }
            Output::Down { vnet, peer } => self.link_down(vnet, peer),
            Output::GaveUp { vnet, peer } => self.gave_up(vnet, peer, now),
        }
    }

    /// Sends local backends the inbound keys of a session, and closes the gate until they accept
    /// it.
    fn hand_out(&mut self, link: Link, number: u32, now: Now) {
        let mut waiting = BTreeSet::new();
        for (id, client) in self.backends(link.0) {
            let Some(own) = self.registry.get(id).map(|vif| vif.coa.addr) else { continue };
            if let Some(inbound) = self.security.sadb.inbound(number, own, now) {
                self.tell(client, Event::SaIn { keys: vec![inbound] });
                waiting.insert((id, number));
            }
        }
        let not_before = self.security.awaited_return(waiting.is_empty(), now.mono);
        if !waiting.is_empty() || not_before.is_some() {
            let another_serves = self.security.sadb.is_served_without(link.0, link.1, number, now);
            let timeout = if another_serves { GATE_TIMEOUT } else { FIRST_GATE_TIMEOUT };
            let until = not_before.unwrap_or(now.mono) + timeout;
            let gate = Gate { waiting: BTreeSet::new(), not_before, until, held: VecDeque::new() };
            let gate = self.security.gates.entry(link).or_insert(gate);
            gate.waiting.extend(waiting);
            gate.until = until;
        }
    }

    /// A backend accepts a session.
    pub(super) fn sa_ready(&mut self, id: LocalVif, number: u32, now: Now) {
        for gate in self.security.gates.values_mut() {
            gate.waiting.remove(&(id, number));
        }
        self.open_gates(now);
    }

    /// Opens the gates of links whose backends are ready, or whose time is over.
    pub(super) fn open_gates(&mut self, now: Now) {
        for gate in self.security.gates.values_mut() {
            gate.not_before = gate.not_before.filter(|at| *at > now.mono);
        }
        let is_open = |gate: &Gate| {
            gate.not_before.is_none() && (gate.waiting.is_empty() || gate.until <= now.mono)
        };
        let gates = self.security.gates.iter();
        let open: Vec<Link> = gates.filter(|(_, g)| is_open(g)).map(|(link, _)| *link).collect();
        for link in open {
            let held = self.security.gates.remove(&link).map(|gate| gate.held);
            held.into_iter().flatten().for_each(|output| self.perform(output, now));
        }
    }

    /// No session with a host serves any more: backends resolve its vifs anew before they send
    /// there.
    fn link_down(&mut self, vnet: VnetId, peer: IpAddr) {
        for (id, to) in self.users_of(vnet, peer) {
            self.security.issued.remove(&(id, to));
            let Some(Owner::Live(client)) = self.registry.get(id).map(|vif| vif.owner) else {
                continue;
            };
            let secured = self.security.vnets.get(&vnet);
            if let Some(suite) = secured.and_then(|secured| secured.suites.first()) {
                let none =
                    SenderKeys { suite: *suite, keys: Vec::new(), lifetime: Lifetime::default() };
                self.tell(client, Event::SaOut { to, keys: none });
            }
            let of_vif = self.security.users.iter().filter(|((of, _), u)| *of == id && u.to == to);
            let macs: Vec<Mac> = of_vif.map(|((_, mac), _)| *mac).collect();
            for mac in macs {
                self.security.users.remove(&(id, mac));
                self.tell(client, Event::Invalidate { mac });
            }
        }
    }

    /// A host does not agree on keys. Backends that wait for them hear that the vif is unresolved.
    /// If the vnet accepts plain frames too, they get the mapping and send plain frames.
    fn gave_up(&mut self, vnet: VnetId, peer: IpAddr, now: Now) {
        let level = self.complaints.no_keys.level(vnet, peer, now.mono);
        say!(self, level, "vnet {vnet}: {peer} does not agree on keys (another key or policy?)");
        for (id, to) in self.users_of(vnet, peer) {
            if self.security.takes_plain(vnet) {
                // Waiting does not help; while the policy changes, the host may accept plain
                // frames.
                self.release(id, to, now);
                continue;
            }
            let Some(Owner::Live(client)) = self.registry.get(id).map(|vif| vif.owner) else {
                continue;
            };
            let waits = |((of, _), user): &(&(LocalVif, Mac), &User)| {
                *of == id && user.to == to && user.held.is_some()
            };
            let users = self.security.users.iter().filter(waits);
            let macs: Vec<Mac> = users.map(|((_, mac), _)| *mac).collect();
            let hold_ms = u32::try_from(GAVE_UP_HOLD.as_millis()).unwrap_or(u32::MAX);
            for mac in macs {
                self.security.users.remove(&(id, mac));
                self.tell(client, Event::Unresolved { mac, hold_ms });
            }
        }
    }

    /// A backend needs another session with a host.
    pub(super) fn sa_needed(&mut self, id: LocalVif, address: SocketAddr, now: Now) {
        self.counters.inc(VarpdCounter::sa_needed);
        if let Some(vif) = self.registry.get(id) {
            self.security.sadb.renew(vif.key.vnet, address.ip(), now);
        }
    }
}
