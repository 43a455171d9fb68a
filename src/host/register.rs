//! Registers vifs: decides which user may have a vif, and which sockets its backend gets.
//!
//! | The backend brings | varpd keeps | The backend gets |
//! |---|---|---|
//! | no sockets | none, or for another number of queue pairs | new sockets |
//! | no sockets | those of a guest that has not run here, or has moved | new sockets |
//! | no sockets | other sockets of the vif | the kept sockets |
//! | sockets | any or none | no sockets, if its own are valid |
//!
//! Kept sockets preserve the care-of address and the frames that have arrived. If the guest has not
//! run here or has moved, these frames are not for it, or it has had them. If the group sockets
//! that a backend brings are of other groups than the configuration's, the backend gets new ones.
//!
//! A registration takes several steps, since the shell reads files and opens sockets. Until the
//! last step the vif has a number, but is not in the registry.
//!
//! ```text
//!  REGISTER -> [key of the vnet] -> kept ----------------------------> welcome
//!                                -> new ones: Open ----> Opened -----> welcome
//!                                -> its own:  Adopt ---> Adopted ----> welcome
//! ```

#![forbid(unsafe_code)]

use std::net::SocketAddr;

use crate::mapper::{AddError, LocalVif};
use crate::metrics::VarpdCounter;
use crate::policy::Floor;
use crate::time::Now;
use crate::wire::control::{ErrorCode, Event};
use crate::wire::{Capabilities, CareOf, EncapKinds, Stamp, VifKey, VnetId};

use super::Host;
use super::admission::Who;
use super::clients::{Client, ClientId, Door, Peer, Role};
use super::output::{Brought, Descriptors, Output, Rejected};
use super::registry::{Owner, Refusal, Vif, may_take};
use super::requests::Failure;

/// The vif that a backend asks for, and the backend's properties.
#[derive(Clone, Copy, Debug)]
pub(super) struct Registration {
    pub(super) key: VifKey,
    pub(super) capabilities: Capabilities,
    pub(super) takes_lanes: bool,
    pub(super) queue_pairs: u8,
    pub(super) active: bool,
    pub(super) stamp: Option<Stamp>,
    /// Most MACs that it learns, by its own statement.
    pub(super) learn: u16,
    /// The least protection under which it carries frames.
    pub(super) floor: Floor,
}

/// A registration that is not complete.
#[derive(Clone, Copy, Debug)]
pub(super) struct Registering {
    client: ClientId,
    peer: Peer,
    wanted: Registration,
    /// It waits for the key of its vnet.
    awaits_key: bool,
    /// Its backend brings sockets.
    brings_sockets: bool,
}

/// Origin of the sockets of a vif.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Opened,
    Kept,
    Brought { has_new_groups: bool },
}

/// The sockets that a backend is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Handed {
    /// None: it has all sockets.
    Nothing,
    /// Group sockets, in place of those that it has.
    Groups,
    /// All sockets.
    All,
}

impl Host {
    /// Begins the registration of a vif for a connection.
    pub(super) fn register(
        &mut self,
        id: ClientId,
        wanted: Registration,
        brings_sockets: bool,
        now: Now,
    ) -> Result<(), Failure> {
        let key = wanted.key;
        let vif = self.registry.next_id();
        self.check_registration(id, wanted, now)
            .map(|new| {
                self.registering.insert(vif, Registering { brings_sockets, ..new });
                if let Some(client) = self.clients.get_mut(id) {
                    client.role = Role::Registering(vif);
                }
                match self.needs_key(key.vnet) {
                    true => self.ask_for_key(key.vnet),
                    false => self.find_sockets(vif, now),
                }
            })
            .map_err(|failure| self.refused(key, failure))
    }

    /// Whether a client may have the vif that it asks for.
    fn check_registration(
        &mut self,
        id: ClientId,
        mut wanted: Registration,
        now: Now,
    ) -> Result<Registering, Failure> {
        let key = wanted.key;
        let Some(client) = self.clients.get(id) else { return Err(invalid("the client is gone")) };
        let peer = client.peer;
        if key.vnet.is_physical() {
            return Err(invalid("vnet 1 is the physical network; vifs on it are not supported"));
        }
        if !key.mac.is_individual() {
            return Err(invalid(format!("{} is not an individual MAC address", key.mac)));
        }
        if !self.config.takes(key.vnet) {
            self.counters.inc(VarpdCounter::vifs_unlisted);
            let vnet = key.vnet;
            let text = format!(
                "vnet {vnet} is not listed in this host's varpd.toml, and others are not taken ([security] vnets = \"listed\"): \
                 add a section [vnet.{vnet}]"
            );
            return Err(Failure::fatal(ErrorCode::Denied, text));
        }
        self.admit(client, key.vnet)?;
        if !self.arrivals.take(peer.uid, now.mono) {
            self.counters.inc(VarpdCounter::vifs_too_often);
            let text = format!("user {} registers vifs too often", peer.uid);
            return Err(Failure { fatal: true, ..Failure::busy(&text) });
        }
        wanted.learn = self.bindings.check(peer, key, wanted.learn).map_err(|refusal| {
            self.counters.inc(VarpdCounter::vifs_denied);
            Failure::fatal(ErrorCode::Denied, refusal.to_string())
        })?;
        let awaits_key = self.needs_key(key.vnet);
        Ok(Registering { client: id, peer, wanted, awaits_key, brings_sockets: false })
    }

    /// Whether a client may have vifs on a vnet.
    fn admit(&self, client: &Client, vnet: VnetId) -> Result<(), Failure> {
        let denied = |why: String| {
            self.counters.inc(VarpdCounter::vifs_denied);
            Failure::fatal(ErrorCode::Denied, why)
        };
        if client.door == Door::Operators {
            let socket = self.config.socket.display();
            return Err(denied(format!(
                "vifs are registered at {socket}, not at the operators' socket"
            )));
        }
        let who = Who { uid: client.peer.uid, groups: &client.groups };
        let allowed = self.admission.check(vnet, self.config.policy(vnet).highest(), who);
        allowed.map_err(|refusal| denied(refusal.to_string()))
    }

    fn refused(&self, key: VifKey, failure: Failure) -> Failure {
        self.counters.inc(VarpdCounter::vifs_refused);
        Failure { about: Some(key), ..failure }
    }

    /// A registration fails in one of its later steps.
    fn fail_registering(&mut self, vif: LocalVif, failure: Failure, now: Now) {
        let Some(Registering { client, wanted, .. }) = self.registering.remove(&vif) else {
            return;
        };
        if let Some(client) = self.clients.get_mut(client) {
            client.role = Role::Unknown;
        }
        let failure = self.refused(wanted.key, failure);
        self.fail(client, failure, now);
    }

    /// The client of a registration is gone.
    pub(super) fn give_up_registering(&mut self, vif: LocalVif) {
        self.registering.remove(&vif);
        // The vif may have sockets already. If the shell still opens or checks them, they are
        // dropped later.
        self.outputs.push_back(Output::Drop { vif });
    }

    /// Goes on with the registrations that wait for a vnet's key: the shell has read it, or has
    /// failed to.
    pub(super) fn go_on_with_key(&mut self, vnet: VnetId, result: Result<(), &str>, now: Now) {
        let waits =
            |(_, new): &(&LocalVif, &Registering)| new.awaits_key && new.wanted.key.vnet == vnet;
        let waiting: Vec<LocalVif> =
            self.registering.iter().filter(waits).map(|(id, _)| *id).collect();
        for vif in waiting {
            match result {
                Ok(()) => {
                    self.registering.entry(vif).and_modify(|new| new.awaits_key = false);
                    self.find_sockets(vif, now);
                }
                Err(text) => {
                    self.fail_registering(vif, Failure::fatal(ErrorCode::Denied, text), now);
                }
            }
        }
    }

    /// Finds the sockets of a vif: those that its backend brings, kept ones, or new ones.
    fn find_sockets(&mut self, vif: LocalVif, now: Now) {
        let Some(new) = self.registering.get(&vif).copied() else { return };
        let Registering { wanted, peer, brings_sockets, client, .. } = new;
        let key = wanted.key;
        let checked = self.registry.check(key, peer, now.mono).inspect_err(|refusal| {
            if matches!(refusal, Refusal::Kept { .. }) {
                self.counters.inc(VarpdCounter::vifs_reserved);
            }
        });
        if let Err(refusal) = checked {
            return self.fail_registering(vif, refusal.into(), now);
        }
        if self.underlay.mtu.is_none() {
            let text = format!("can't read the MTU of {}", self.underlay.place.interface);
            return self.fail_registering(vif, Failure::fatal(ErrorCode::Failed, text), now);
        }
        let groups = self.groups_of(key.vnet).all().to_vec();
        let (vnet, queue_pairs) = (key.vnet, wanted.queue_pairs);
        if brings_sockets {
            self.outputs.push_back(Output::Adopt { vif, client, vnet, groups, queue_pairs });
        } else if let Some(kept) = self.kept_for(&wanted, peer) {
            self.counters.inc(VarpdCounter::vifs_resumed);
            self.resume(vif, kept, Origin::Kept, now);
        } else if let Some(why) = self.underlay.follower.awaits() {
            let text = format!("this host has no place on the underlay now: {why}");
            self.fail_registering(vif, Failure::fatal(ErrorCode::Failed, text), now);
        } else {
            self.outputs.push_back(Output::Open { vif, vnet, groups, queue_pairs });
        }
    }

    /// The kept vif whose sockets a backend without sockets gets.
    fn kept_for(&self, wanted: &Registration, peer: Peer) -> Option<LocalVif> {
        let (id, kept) = self.registry.kept(wanted.key)?;
        let suits = may_take(peer, kept.peer)
            && kept.ran
            && !kept.moved
            && kept.queue_pairs == wanted.queue_pairs;
        suits.then_some(id)
    }

    /// The kept vif with the same key and address as the sockets that a backend brought.
    fn kept_at(&self, wanted: &Registration, peer: Peer, address: SocketAddr) -> Option<LocalVif> {
        let (id, kept) = self.registry.kept(wanted.key)?;
        let same = kept.coa.addr == address && kept.queue_pairs == wanted.queue_pairs;
        (same && may_take(peer, kept.peer)).then_some(id)
    }

    /// The shell has opened sockets for a vif that registers, or for a vif whose host has moved.
    pub(super) fn handle_opened(
        &mut self,
        vif: LocalVif,
        result: Result<SocketAddr, String>,
        now: Now,
    ) {
        // The host has moved since it asked for them.
        if result.as_ref().is_ok_and(|at| at.ip() != self.underlay.place.address) {
            match self.wanted_sockets(vif) {
                Some(_) => return self.open_again(vif),
                None => return self.outputs.push_back(Output::Drop { vif }),
            }
        }
        if self.registry.get(vif).is_some() {
            return self.handle_reopened(vif, result, now);
        }
        match (self.registering.contains_key(&vif), result) {
            (true, Ok(address)) => self.enter(vif, address, (Origin::Opened, false), now),
            (true, Err(e)) => {
                let text = format!("can't open underlay sockets: {e}");
                self.fail_registering(vif, Failure::fatal(ErrorCode::Failed, text), now);
            }
            // Its client is gone.
            (false, _) => self.outputs.push_back(Output::Drop { vif }),
        }
    }

    /// The vnet and queue pairs of a vif that is registered, or registers.
    pub(super) fn wanted_sockets(&self, vif: LocalVif) -> Option<(VnetId, u8)> {
        let registered = self.registry.get(vif).map(|vif| (vif.key.vnet, vif.queue_pairs));
        let registering = self.registering.get(&vif).map(|new| new.wanted);
        registered.or(registering.map(|wanted| (wanted.key.vnet, wanted.queue_pairs)))
    }

    /// The shell has checked the sockets that a backend brought.
    pub(super) fn handle_adopted(
        &mut self,
        vif: LocalVif,
        result: Result<Brought, Rejected>,
        now: Now,
    ) {
        let Some(new) = self.registering.get(&vif).copied() else {
            return self.outputs.push_back(Output::Drop { vif });
        };
        let Registering { wanted, peer, .. } = new;
        let brought = match result {
            Ok(brought) => brought,
            Err(Rejected::Wrong(text)) => return self.fail_registering(vif, invalid(text), now),
            Err(Rejected::Failed(text)) => {
                return self.fail_registering(vif, Failure::fatal(ErrorCode::Failed, text), now);
            }
        };
        if brought.address.ip() != self.underlay.place.address {
            self.outputs.push_back(Output::Drop { vif });
            let failure = Failure::fatal(ErrorCode::Failed, "this host has moved at this moment");
            return self.fail_registering(vif, failure, now);
        }
        let coa = self.care_of(&wanted, brought.address);
        if let Err(refusal) = self.registry.check_care_of(wanted.key, coa) {
            self.outputs.push_back(Output::Drop { vif });
            return self.fail_registering(vif, refusal.into(), now);
        }
        self.security.note_return();
        self.counters.inc(VarpdCounter::vifs_adopted);
        let origin = Origin::Brought { has_new_groups: brought.has_new_groups };
        match self.kept_at(&wanted, peer, brought.address) {
            // They are the kept sockets, so the vif's claim continues.
            Some(kept) => {
                self.outputs.push_back(Output::Drop { vif });
                self.resume(vif, kept, origin, now);
            }
            None => self.enter(vif, brought.address, (origin, true), now),
        }
    }

    /// A kept vif has a backend again.
    fn resume(&mut self, vif: LocalVif, kept: LocalVif, origin: Origin, now: Now) {
        let Some(Registering { client, peer, wanted, .. }) = self.registering.get(&vif).copied()
        else {
            return;
        };
        self.unwatch_moved(kept);
        self.outputs.push_back(Output::Widen { vif: kept });
        let longest = self.longest_datagram();
        let Some(known) = self.registry.get_mut(kept) else { return };
        if (known.coa.capabilities, known.coa.longest) == (wanted.capabilities, longest) {
            known.owner = Owner::Live(client);
            known.peer = peer;
            known.takes_lanes = wanted.takes_lanes;
            known.learn = wanted.learn;
            known.floor = wanted.floor;
            known.since_ms = now.wall_ms;
            self.bound_learned(kept, now);
            self.registering.remove(&vif);
            return self.complete(kept, (client, wanted), (origin, false), now);
        }
        // The new backend has other capabilities, or the longest datagram has changed, so the
        // care-of address is another.
        let address = known.coa.addr;
        self.clear_learned(kept, now);
        self.mapper.remove_vif(kept, now);
        self.registry.remove(kept);
        self.outputs.push_back(Output::HandOver { from: kept, to: vif });
        self.enter(vif, address, (origin, false), now);
    }

    fn care_of(&self, wanted: &Registration, addr: SocketAddr) -> CareOf {
        let (capabilities, longest) = (wanted.capabilities, self.longest_datagram());
        CareOf { addr, kinds: EncapKinds::UDP, capabilities, longest }
    }

    /// Enters a new vif into the registry. Forgets a kept vif with the same key.
    fn enter(
        &mut self,
        vif: LocalVif,
        address: SocketAddr,
        (origin, brings_stamps): (Origin, bool),
        now: Now,
    ) {
        let Some(Registering { client, peer, wanted, .. }) = self.registering.get(&vif).copied()
        else {
            return;
        };
        // Another vif with this key may have registered while this one waited for its sockets.
        if let Err(refusal) = self.registry.check(wanted.key, peer, now.mono) {
            self.outputs.push_back(Output::Drop { vif });
            return self.fail_registering(vif, refusal.into(), now);
        }
        if let Some((kept, _)) = self.registry.kept(wanted.key) {
            self.forget_vif(kept, now);
        }
        let (key, coa) = (wanted.key, self.care_of(&wanted, address));
        if let Err(e) = self.mapper.add_vif(vif, key, coa) {
            let code = if e == AddError::Full { ErrorCode::Limit } else { ErrorCode::Invalid };
            self.outputs.push_back(Output::Drop { vif });
            return self.fail_registering(vif, Failure::fatal(code, e.to_string()), now);
        }
        self.registering.remove(&vif);
        self.registry.insert(
            vif,
            Vif {
                key,
                coa,
                peer,
                owner: Owner::Live(client),
                takes_lanes: wanted.takes_lanes,
                learn: wanted.learn,
                floor: wanted.floor,
                queue_pairs: wanted.queue_pairs,
                active: false,
                is_halted: false,
                brings_stamps: false,
                ran: false,
                stamp: None,
                moved: false,
                is_deaf: false,
                watched: false,
                since_ms: now.wall_ms,
            },
        );
        self.complete(vif, (client, wanted), (origin, brings_stamps), now);
    }

    /// Completes a registration: sends the backend its place, its keys and its claims.
    fn complete(
        &mut self,
        id: LocalVif,
        (client, wanted): (ClientId, Registration),
        (origin, brings_stamps): (Origin, bool),
        now: Now,
    ) {
        let is_admitted = self.admits(id, &wanted, now);
        let Some(vif) = self.registry.get_mut(id) else { return };
        vif.brings_stamps = brings_stamps;
        vif.is_halted = !is_admitted;
        let (peer, key) = (vif.peer, vif.key);
        if let Some(client) = self.clients.get_mut(client) {
            client.role = Role::Backend(id);
        }
        if self.bindings.bind(peer, key, wanted.learn) {
            self.outputs.push_back(Output::Bind { client, pid: peer.pid });
        }
        self.counters.inc(VarpdCounter::vifs_registered);
        self.welcome(id, client, origin, now);
        self.tell_of_twin(client, id, now);
        self.send_keys(id, client, now);
        let prior = wanted.stamp.filter(|_| brings_stamps);
        self.activate(id, wanted.active && is_admitted, prior, now);
    }

    /// Whether the backend carries frames under the vnet's policy. Logs a line if it does not.
    fn admits(&mut self, id: LocalVif, wanted: &Registration, now: Now) -> bool {
        let (key, policy) = (wanted.key, self.config.policy(wanted.key.vnet));
        let is_admitted = wanted.floor.admits(policy);
        if !is_admitted {
            self.counters.inc(VarpdCounter::vifs_below_policy);
            let uid = self.registry.get(id).map_or(0, |vif| vif.peer.uid);
            let level = self.complaints.halted.level(uid, key, now.mono);
            let (vnet, least) = (key.vnet, wanted.floor.level());
            say!(
                self,
                level,
                "vif {key} carries no frame: vnet {vnet} has policy {policy} here, but its backend requires {least}"
            );
        }
        is_admitted
    }

    /// Tells the backend its care-of address, and hands over the sockets that it lacks.
    fn welcome(&mut self, vif: LocalVif, client: ClientId, origin: Origin, now: Now) {
        let Some(known) = self.registry.get(vif) else { return };
        let (key, coa, Peer { uid, pid }) = (known.key, known.coa, known.peer);
        let (how, handed) = match origin {
            Origin::Opened => ("new", Handed::All),
            Origin::Kept => ("resumed", Handed::All),
            Origin::Brought { has_new_groups: true } => ("with its own sockets", Handed::Groups),
            Origin::Brought { has_new_groups: false } => ("with its own sockets", Handed::Nothing),
        };
        let line = format_args!("vif {key} at {coa} ({how}): process {pid} of user {uid}");
        self.comings.log(uid, line, now.mono, &mut self.outputs);
        self.tell_place(vif, client, handed);
    }

    /// Tells a backend its care-of address, group, MTU and policy.
    pub(super) fn tell_place(&mut self, id: LocalVif, client: ClientId, handed: Handed) {
        let Some(vif) = self.registry.get(id) else { return };
        let (vnet, coa) = (vif.key.vnet, vif.coa);
        let group = (self.groups_of(vnet).first(), self.config.port.0).into();
        let policy = self.config.policy(vnet);
        let underlay_mtu = self.underlay.mtu.unwrap_or_default();
        let event = Event::Registered { coa, group, underlay_mtu, policy };
        let descriptors = match handed {
            Handed::Nothing => Descriptors::Nothing,
            Handed::Groups => Descriptors::Groups(id),
            Handed::All => Descriptors::All(id),
        };
        self.outputs.push_back(Output::Tell { client, event, descriptors });
        self.tell_group_longest(vnet, client);
    }

    /// Takes over the state of the rings from the backend. Tells it a claim that continued while
    /// the vif was kept.
    fn activate(&mut self, id: LocalVif, active: bool, prior: Option<Stamp>, now: Now) {
        let claim = self.mapper.claim(id);
        if let Some(vif) = self.registry.get_mut(id) {
            vif.active = active;
            vif.ran |= active;
            if !active {
                vif.stamp = None;
            }
            let mac = vif.key.mac;
            if let Some(claim) = claim.filter(|_| active) {
                self.tell_vif(id, Event::Claimed { mac, stamp: claim.stamp });
            }
        }
        if !active {
            self.clear_learned(id, now);
        }
        self.tell_learned(id);
        self.mapper.set_active(id, active, prior, now);
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::fatal(ErrorCode::Taken, refusal.to_string())
    }
}

fn invalid(text: impl Into<String>) -> Failure {
    Failure::fatal(ErrorCode::Invalid, text)
}
