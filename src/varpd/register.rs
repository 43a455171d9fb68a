//! Registration of a vif: whose it may be, and which sockets it gets.
//!
//! | The backend | there is kept | it gets |
//! |---|---|---|
//! | brings no sockets | nothing, or for other queue pairs | new ones |
//! | brings no sockets | its own, but the guest had not run here, or has been elsewhere since | new ones: no frames that were not for it, or that it has had |
//! | brings no sockets | its own | the kept ones: same care-of address, no frame lost |
//! | brings sockets | anything | its own, if they are what they should be; of other groups than the configuration's, new ones |

use std::io;
use std::os::fd::OwnedFd;

use crate::mapper::{AddError, LocalVif};
use crate::metrics::VarpdCounter;
use crate::policy::Floor;
use crate::sys::seqpacket::Peer;
use crate::time::Now;
use crate::underlay::sockets::{AdoptError, Adopted, Frames, VifSockets};
use crate::wire::control::{ErrorCode, Event};
use crate::wire::{Capabilities, CareOf, EncapKinds, Stamp, VifKey, VnetId};

use super::admission::Who;
use super::clients::{Client, ClientId, Door, Role};
use super::daemon::Daemon;
use super::registry::{Owner, Refusal, Vif, may_take};
use super::requests::Failure;

/// What a backend asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Registration {
    pub(super) key: VifKey,
    pub(super) capabilities: Capabilities,
    pub(super) takes_lanes: bool,
    pub(super) queue_pairs: u8,
    pub(super) active: bool,
    pub(super) stamp: Option<Stamp>,
    /// How many MACs it says that it learns at most.
    pub(super) learn: u16,
    /// The least that it carries frames under.
    pub(super) floor: Floor,
}

/// Where the sockets of a vif come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Opened,
    Kept(LocalVif),
    Brought,
}

/// Which sockets a backend is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Handed {
    /// None: it has them.
    Nothing,
    /// Those of groups, instead of those that it has.
    Groups,
    /// All.
    All,
}

impl Daemon {
    /// Makes a connection that of a vif.
    pub(super) fn register(
        &mut self,
        id: ClientId,
        mut wanted: Registration,
        fds: Vec<OwnedFd>,
        now: Now,
    ) -> Result<(), Failure> {
        let Some(client) = self.clients.get(id) else { return Ok(()) };
        let peer = client.peer;
        let key = wanted.key;
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
        wanted.learn = self.speakers.check(peer, key, wanted.learn).map_err(|refusal| {
            self.counters.inc(VarpdCounter::vifs_denied);
            Failure::fatal(ErrorCode::Denied, refusal.to_string())
        })?;
        self.security
            .load(key.vnet, &self.config, &self.counters, now)
            .map_err(|text| Failure::fatal(ErrorCode::Denied, text))?;
        self.drop_the_dead(key, now);
        self.registry.check(key, peer, now.mono).inspect_err(|refusal| {
            if matches!(refusal, Refusal::Kept { .. }) {
                self.counters.inc(VarpdCounter::vifs_reserved);
            }
        })?;
        let mtu = self.underlay_mtu().map_err(|e| {
            let text = format!("can't read the MTU of {}: {e}", self.place.interface);
            Failure::fatal(ErrorCode::Failed, text)
        })?;
        let is_admitted = self.admits(&wanted, peer, now);
        wanted.active &= is_admitted;
        let origin = self.origin(&wanted, peer, &fds);
        let (mut handed, mut brings_stamps) = (Handed::All, false);
        let vif = match origin {
            Origin::Kept(kept) => {
                self.counters.inc(VarpdCounter::vifs_resumed);
                self.resume(kept, &wanted, peer, id, now)?
            }
            Origin::Opened => {
                let sockets = self.open_sockets(&wanted)?;
                self.enter(&wanted, peer, id, sockets, now)?
            }
            Origin::Brought => {
                let Adopted { sockets, has_new_groups } = self.adopt_sockets(&wanted, fds)?;
                self.security.note_return();
                handed = if has_new_groups { Handed::Groups } else { Handed::Nothing };
                self.counters.inc(VarpdCounter::vifs_adopted);
                match self.kept_at(&wanted, peer, &sockets) {
                    // They are those that are kept: the claim has lived on.
                    Some(kept) => self.resume(kept, &wanted, peer, id, now)?,
                    None => {
                        brings_stamps = true;
                        self.enter(&wanted, peer, id, sockets, now)?
                    }
                }
            }
        };
        if let Some(vif) = self.registry.get_mut(vif) {
            vif.brings_stamps = brings_stamps;
            vif.is_halted = !is_admitted;
        }
        if let Some(client) = self.clients.get_mut(id) {
            client.role = Role::Backend(vif);
            self.speakers.enter(&client.connection, peer, key, wanted.learn);
        }
        self.counters.inc(VarpdCounter::vifs_registered);
        if self.welcome(id, vif, (origin, handed), mtu, now) {
            self.tell_of_twin(id, vif, now);
            self.send_keys(vif, id, now);
            let prior = wanted.stamp.filter(|_| brings_stamps);
            self.activate(vif, wanted.active, prior, now);
        }
        Ok(())
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
                "vifs are registered at {socket}, not where operators ask"
            )));
        }
        let groups = client.connection.groups().unwrap_or_default();
        let who = Who { uid: client.peer.uid, groups: &groups };
        let allowed = self.admission.check(vnet, self.config.policy(vnet).highest(), who);
        allowed.map_err(|refusal| denied(refusal.to_string()))
    }

    /// Whether the backend carries frames under the vnet's policy; says so if it does not.
    fn admits(&mut self, wanted: &Registration, peer: Peer, now: Now) -> bool {
        let (key, policy) = (wanted.key, self.config.policy(wanted.key.vnet));
        let is_admitted = wanted.floor.admits(policy);
        if !is_admitted {
            self.counters.inc(VarpdCounter::vifs_below_policy);
            let level = self.complaints.halted.level(peer.uid, key, now.mono);
            let (vnet, least) = (key.vnet, wanted.floor.level());
            log::log!(
                level,
                "vif {key} carries no frame: vnet {vnet} has policy {policy} here, but its backend requires {least}"
            );
        }
        is_admitted
    }

    /// Tells the backend where its vif is, with the sockets that it lacks.
    fn welcome(
        &mut self,
        id: ClientId,
        vif: LocalVif,
        (origin, handed): (Origin, Handed),
        underlay_mtu: u32,
        now: Now,
    ) -> bool {
        let Some(known) = self.registry.get(vif) else { return false };
        let (key, coa, peer) = (known.key, known.coa, known.peer);
        let how = match origin {
            Origin::Opened => "new",
            Origin::Kept(_) => "resumed",
            Origin::Brought => "with its own sockets",
        };
        let Peer { uid, pid } = peer;
        let line = format_args!("vif {key} at {coa} ({how}): process {pid} of user {uid}");
        self.comings.log(uid, line, now.mono);
        self.tell_place(vif, id, underlay_mtu, handed, now)
    }

    /// Tells a backend where its vif is.
    pub(super) fn tell_place(
        &mut self,
        vif: LocalVif,
        client: ClientId,
        underlay_mtu: u32,
        handed: Handed,
        now: Now,
    ) -> bool {
        let Some(vif) = self.registry.get(vif) else { return false };
        let (vnet, coa) = (vif.key.vnet, vif.coa);
        let group = (self.groups_of(vnet).first(), self.config.port.0).into();
        let policy = self.config.policy(vnet);
        let registered = Event::Registered { coa, group, underlay_mtu, policy };
        let fds = match handed {
            Handed::Nothing => Vec::new(),
            Handed::Groups => vif.sockets.group_fds(),
            Handed::All => vif.sockets.fds(),
        };
        let sent = self.clients.send(client, &registered, &fds);
        let is_served = self.sent(client, sent, now);
        self.tell_group_longest(vnet, client, now);
        is_served
    }

    /// The rings' state, as the backend says it; a claim that lived on while its backend was gone is
    /// told again.
    fn activate(&mut self, id: LocalVif, active: bool, prior: Option<Stamp>, now: Now) {
        let claim = self.mapper.claim(id);
        if let Some(vif) = self.registry.get_mut(id) {
            vif.active = active;
            vif.ran |= active;
            if !active {
                vif.stamp = None;
            }
            let Owner::Live(client) = vif.owner else { return };
            let mac = vif.key.mac;
            if let Some(claim) = claim.filter(|_| active) {
                let sent =
                    self.clients.send(client, &Event::Claimed { mac, stamp: claim.stamp }, &[]);
                if !self.sent(client, sent, now) {
                    return;
                }
            }
        }
        if !active {
            self.clear_learnt(id, now);
        }
        self.tell_learnt(id, now);
        self.mapper.set_active(id, active, prior, now);
    }

    /// Backends of this vif that have ended, though their end was not yet read.
    fn drop_the_dead(&mut self, key: VifKey, now: Now) {
        let live = self.registry.iter().filter_map(|(_, vif)| match vif.owner {
            Owner::Live(client) if vif.key == key => Some(client),
            _ => None,
        });
        let live: Vec<ClientId> = live.collect();
        for client in live {
            if self.clients.get(client).is_some_and(|c| c.connection.hung_up()) {
                self.drop_client(client, "is gone", now);
            }
        }
    }

    fn origin(&self, wanted: &Registration, peer: Peer, fds: &[OwnedFd]) -> Origin {
        if !fds.is_empty() {
            return Origin::Brought;
        }
        match self.registry.kept(wanted.key) {
            Some((id, kept))
                if may_take(peer, kept.peer)
                    && kept.ran
                    && !kept.moved
                    && kept.sockets.queue_pairs() == usize::from(wanted.queue_pairs) =>
            {
                Origin::Kept(id)
            }
            _ => Origin::Opened,
        }
    }

    /// The kept vif that has the very address of these sockets.
    fn kept_at(&self, wanted: &Registration, peer: Peer, brought: &VifSockets) -> Option<LocalVif> {
        let (id, kept) = self.registry.kept(wanted.key)?;
        let same = kept.sockets.address() == brought.address()
            && kept.sockets.queue_pairs() == brought.queue_pairs();
        (same && may_take(peer, kept.peer)).then_some(id)
    }

    fn open_sockets(&mut self, wanted: &Registration) -> Result<VifSockets, Failure> {
        if let Some(why) = self.follower.awaits() {
            let text = format!("this host has no place on the underlay now: {why}");
            return Err(Failure::fatal(ErrorCode::Failed, text));
        }
        self.sockets_for(wanted.key.vnet, wanted.queue_pairs).map_err(|e| {
            Failure::fatal(ErrorCode::Failed, format!("can't open underlay sockets: {e}"))
        })
    }

    /// New sockets for a vif.
    pub(super) fn sockets_for(&mut self, vnet: VnetId, queue_pairs: u8) -> io::Result<VifSockets> {
        self.opener.vif(self.groups_of(vnet).all(), Frames(vnet), queue_pairs)
    }

    fn adopt_sockets(&self, wanted: &Registration, fds: Vec<OwnedFd>) -> Result<Adopted, Failure> {
        let vnet = wanted.key.vnet;
        let (groups, frames) = (self.groups_of(vnet), Frames(vnet));
        let adopted = self.opener.adopt(groups.all(), frames, wanted.queue_pairs, fds);
        let adopted = adopted.map_err(|e| match e {
            AdoptError::Io(_) => Failure::fatal(ErrorCode::Failed, e.to_string()),
            _ => invalid(e.to_string()),
        })?;
        self.registry.check_care_of(wanted.key, self.care_of(wanted, &adopted.sockets))?;
        Ok(adopted)
    }

    /// A kept vif has a backend again.
    fn resume(
        &mut self,
        kept: LocalVif,
        wanted: &Registration,
        peer: Peer,
        client: ClientId,
        now: Now,
    ) -> Result<LocalVif, Failure> {
        self.unwatch_late(kept);
        if let Some(Err(e)) = self.registry.get(kept).map(|vif| self.opener.widen(&vif.sockets)) {
            log::debug!("can't widen the sockets of vif {}: {e}", wanted.key);
        }
        let longest = self.longest_datagram();
        if let Some(vif) = self.registry.get_mut(kept)
            && (vif.coa.capabilities, vif.coa.longest) == (wanted.capabilities, longest)
        {
            vif.owner = Owner::Live(client);
            vif.peer = peer;
            vif.takes_lanes = wanted.takes_lanes;
            vif.learn = wanted.learn;
            vif.since_ms = now.wall_ms;
            self.bound_learnt(kept, now);
            return Ok(kept);
        }
        // The new backend's receiver understands something else: it's another care-of address.
        self.clear_learnt(kept, now);
        self.mapper.remove_vif(kept, now);
        match self.registry.remove(kept) {
            Some(vif) => self.enter(wanted, peer, client, vif.sockets, now),
            None => Err(Failure::fatal(ErrorCode::Failed, "the kept vif is gone")),
        }
    }

    fn care_of(&self, wanted: &Registration, sockets: &VifSockets) -> CareOf {
        let (addr, capabilities) = (sockets.address(), wanted.capabilities);
        let longest = self.longest_datagram();
        CareOf { addr, kinds: EncapKinds::UDP, capabilities, longest }
    }

    /// A new vif; a kept one of the same key has had its time.
    fn enter(
        &mut self,
        wanted: &Registration,
        peer: Peer,
        client: ClientId,
        sockets: VifSockets,
        now: Now,
    ) -> Result<LocalVif, Failure> {
        if let Some((kept, _)) = self.registry.kept(wanted.key) {
            self.forget_vif(kept, now);
        }
        let (key, coa) = (wanted.key, self.care_of(wanted, &sockets));
        let id = self.registry.insert(Vif {
            key,
            coa,
            peer,
            owner: Owner::Live(client),
            sockets,
            takes_lanes: wanted.takes_lanes,
            learn: wanted.learn,
            queue_pairs: wanted.queue_pairs,
            active: wanted.active,
            is_halted: false,
            brings_stamps: false,
            ran: wanted.active,
            stamp: None,
            moved: false,
            is_deaf: false,
            watched: false,
            since_ms: now.wall_ms,
        });
        self.hear_questions(now);
        self.mapper.add_vif(id, key, coa).map_err(|e| {
            self.registry.remove(id);
            let code = if e == AddError::Full { ErrorCode::Limit } else { ErrorCode::Invalid };
            Failure::fatal(code, e.to_string())
        })?;
        Ok(id)
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
