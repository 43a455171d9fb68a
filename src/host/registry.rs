//! The vifs of this host: their users and care-of addresses, and the vifs that varpd keeps when
//! their backend is gone.
//!
//! A vif is *live* while its backend is connected and *kept* for a while afterwards. Two live vifs
//! of one user may have the same key: when a guest migrates within the host, the new backend waits
//! until its rings start, while the old one serves.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use thiserror::Error;

use crate::mapper::LocalVif;
use crate::policy::Floor;
use crate::time::{Instant, Now};
use crate::wire::{CareOf, Stamp, VifKey, VnetId};

use super::clients::{ClientId, Peer};

/// The user id of root, who may take over another user's vif.
pub(super) const ROOT: u32 = 0;

/// The backend of a vif, if it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// The backend on this connection.
    Live(ClientId),
    /// None: the vif is kept until then.
    Kept(Instant),
}

/// A vif of this host.
#[derive(Clone, Debug)]
pub(super) struct Vif {
    pub(super) key: VifKey,
    pub(super) coa: CareOf,
    pub(super) peer: Peer,
    pub(super) owner: Owner,
    /// Its backend takes lanes.
    pub(super) takes_lanes: bool,
    /// Most MACs that its backend learns behind it.
    pub(super) learn: u16,
    /// The least protection under which its backend carries frames.
    pub(super) floor: Floor,
    /// Number of its queue pairs.
    pub(super) queue_pairs: u8,
    /// Its rings run, as far as varpd knows.
    pub(super) active: bool,
    /// Its backend carries no frames, since the vnet's policy is too low for it.
    pub(super) is_halted: bool,
    /// The stamps that its backend brings are of claims at this care-of address, made with an
    /// earlier varpd: the backend brought its sockets, and has had their address since. This varpd
    /// ignores other stamps, which may be of claims at another address.
    pub(super) brings_stamps: bool,
    /// Its rings have run, and its backend has not reported that they stopped: frames that have
    /// arrived at its sockets since are for its guest.
    pub(super) ran: bool,
    /// The stamp of its claim, if it has one.
    pub(super) stamp: Option<Stamp>,
    /// It has moved away since it was last claimed here: frames that arrive at its sockets are
    /// late.
    pub(super) moved: bool,
    /// Its sockets have yet to join their groups on the underlay's interface.
    pub(super) is_deaf: bool,
    /// The shell reads its sockets, since it has moved and its backend is gone.
    pub(super) watched: bool,
    /// Start of its present state, in milliseconds since 1970.
    pub(super) since_ms: u64,
}

impl Vif {
    /// Its state as operators see it.
    pub(super) fn state(&self) -> &'static str {
        match (self.owner, self.active) {
            (Owner::Kept(_), _) => "kept",
            (Owner::Live(_), _) if self.is_halted => "halted",
            (Owner::Live(_), true) if self.stamp.is_some() => "active",
            // The rings run, but a newer claim says that the guest is elsewhere.
            (Owner::Live(_), true) => "lost",
            (Owner::Live(_), false) => "registered",
        }
    }
}

/// The reason for which a vif can't be registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum Refusal {
    /// The vif belongs to another user.
    #[error("vif {key} belongs to user {uid}, process {pid}")]
    Foreign { key: VifKey, uid: u32, pid: i32 },
    /// The vif is kept for another user, whose backend has ended.
    #[error(
        "vif {key} is kept for user {uid}, whose backend has ended, for another {} s; \
         until then only that user and root may register it", left.as_secs() + 1
    )]
    Kept { key: VifKey, uid: u32, left: Duration },
    /// The care-of address belongs to another vif.
    #[error("care-of address {coa} belongs to vif {key}")]
    CareOfTaken { coa: CareOf, key: VifKey },
}

/// All vifs of this host.
#[derive(Debug, Default)]
pub(super) struct Registry {
    vifs: BTreeMap<u64, Vif>,
    next: u64,
    /// Number of changes of the set of vifs.
    revision: u64,
}

impl Registry {
    /// Whether `peer` may register `key` in addition to, or in place of, vifs with this key.
    pub(super) fn check(&self, key: VifKey, peer: Peer, now: Instant) -> Result<(), Refusal> {
        let foreign = |vif: &&Vif| vif.key == key && !may_take(peer, vif.peer);
        let Some(vif) = self.vifs.values().find(foreign) else { return Ok(()) };
        let uid = vif.peer.uid;
        Err(match vif.owner {
            Owner::Live(_) => Refusal::Foreign { key, uid, pid: vif.peer.pid },
            Owner::Kept(until) => Refusal::Kept { key, uid, left: until.saturating_since(now) },
        })
    }

    /// Whether the rings of a vif with this key run here.
    pub(super) fn is_active(&self, key: VifKey) -> bool {
        self.vifs.values().any(|vif| vif.key == key && vif.state() == "active")
    }

    /// Whether a care-of address that a backend brings is free: no vif other than a kept one with
    /// the same key has it.
    pub(super) fn check_care_of(&self, key: VifKey, coa: CareOf) -> Result<(), Refusal> {
        let has = |vif: &&Vif| {
            vif.coa.addr == coa.addr && (vif.key != key || matches!(vif.owner, Owner::Live(_)))
        };
        match self.vifs.values().find(has) {
            Some(vif) => Err(Refusal::CareOfTaken { coa, key: vif.key }),
            None => Ok(()),
        }
    }

    /// The kept vif of this key, if there is one.
    pub(super) fn kept(&self, key: VifKey) -> Option<(LocalVif, &Vif)> {
        let kept = |vif: &Vif| vif.key == key && matches!(vif.owner, Owner::Kept(_));
        self.iter().find(|(_, vif)| kept(vif))
    }

    /// A new handle; handles are never reused.
    pub(super) fn next_id(&mut self) -> LocalVif {
        let id = self.next;
        self.next += 1;
        LocalVif(id)
    }

    /// Adds a vif under a handle of [`Registry::next_id`].
    pub(super) fn insert(&mut self, id: LocalVif, vif: Vif) {
        self.revision += 1;
        self.vifs.insert(id.0, vif);
    }

    /// The connection of the backend of a vif, if it has one.
    pub(super) fn client(&self, id: LocalVif) -> Option<ClientId> {
        match self.get(id)?.owner {
            Owner::Live(client) => Some(client),
            Owner::Kept(_) => None,
        }
    }

    /// The vifs that have backends.
    pub(super) fn live(&self) -> impl Iterator<Item = (LocalVif, ClientId, &Vif)> {
        self.iter().filter_map(|(id, vif)| match vif.owner {
            Owner::Live(client) => Some((id, client, vif)),
            Owner::Kept(_) => None,
        })
    }

    /// Number of vifs.
    pub(super) fn len(&self) -> usize {
        self.vifs.len()
    }

    /// Whether there is no vif.
    pub(super) fn is_empty(&self) -> bool {
        self.vifs.is_empty()
    }

    /// The handles of all vifs.
    pub(super) fn ids(&self) -> Vec<LocalVif> {
        self.vifs.keys().map(|&id| LocalVif(id)).collect()
    }

    /// The vnets that have vifs here.
    pub(super) fn vnets(&self) -> BTreeSet<VnetId> {
        self.vifs.values().map(|vif| vif.key.vnet).collect()
    }

    /// A number that changes whenever a vif is added or removed.
    pub(super) const fn revision(&self) -> u64 {
        self.revision
    }

    /// Removes a vif.
    pub(super) fn remove(&mut self, id: LocalVif) -> Option<Vif> {
        self.revision += 1;
        self.vifs.remove(&id.0)
    }

    /// A vif.
    pub(super) fn get(&self, id: LocalVif) -> Option<&Vif> {
        self.vifs.get(&id.0)
    }

    /// A vif, mutable.
    pub(super) fn get_mut(&mut self, id: LocalVif) -> Option<&mut Vif> {
        self.vifs.get_mut(&id.0)
    }

    /// All vifs, the oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (LocalVif, &Vif)> {
        self.vifs.iter().map(|(&id, vif)| (LocalVif(id), vif))
    }

    /// Keeps a vif whose backend is gone until `until`. Returns the vifs to forget: an older kept
    /// vif with the same key, and kept vifs beyond `most`. Each of the latter is the oldest of the
    /// user who has most kept, so that no user displaces the vifs of users who have fewer.
    pub(super) fn keep(
        &mut self,
        id: LocalVif,
        until: Instant,
        most: usize,
        now: Now,
    ) -> Vec<LocalVif> {
        let Some(vif) = self.vifs.get_mut(&id.0) else { return Vec::new() };
        vif.owner = Owner::Kept(until);
        vif.since_ms = now.wall_ms;
        let key = vif.key;
        let kept = |vif: &Vif| matches!(vif.owner, Owner::Kept(_));
        let same = |(other, vif): &(LocalVif, &Vif)| *other != id && vif.key == key && kept(vif);
        let mut gone: Vec<LocalVif> = self.iter().filter(same).map(|(id, _)| id).collect();
        let rest = self.iter().filter(|(id, _)| !gone.contains(id));
        let mut by_user: BTreeMap<u32, Vec<(Instant, LocalVif)>> = BTreeMap::new();
        for (id, vif) in rest {
            if let Owner::Kept(until) = vif.owner {
                by_user.entry(vif.peer.uid).or_default().push((until, id));
            }
        }
        gone.extend(beyond(most, by_user));
        gone
    }

    /// Time at which the next kept vif expires.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        let until = |vif: &Vif| match vif.owner {
            Owner::Kept(until) => Some(until),
            Owner::Live(_) => None,
        };
        self.vifs.values().filter_map(until).min()
    }

    /// The kept vifs whose time is over.
    pub(super) fn expired(&self, now: Instant) -> Vec<LocalVif> {
        let over = |vif: &Vif| matches!(vif.owner, Owner::Kept(until) if until <= now);
        self.iter().filter(|(_, vif)| over(vif)).map(|(id, _)| id).collect()
    }
}

/// The kept vifs to forget so that `most` are left.
fn beyond(most: usize, mut by_user: BTreeMap<u32, Vec<(Instant, LocalVif)>>) -> Vec<LocalVif> {
    for kept in by_user.values_mut() {
        // The oldest last.
        kept.sort_unstable_by_key(|&(until, id)| std::cmp::Reverse((until, id.0)));
    }
    let count: usize = by_user.values().map(Vec::len).sum();
    let next = |_| {
        let oldest =
            |kept: &Vec<(Instant, LocalVif)>| kept.last().map(|&(until, id)| (until, id.0));
        let richest = by_user
            .values_mut()
            .max_by_key(|kept| (kept.len(), std::cmp::Reverse(oldest(kept))))?;
        richest.pop().map(|(_, id)| id)
    };
    (most..count).map_while(next).collect()
}

/// Whether `peer` may take over a vif of `before`: root and the same user may.
pub(super) fn may_take(peer: Peer, before: Peer) -> bool {
    peer.uid == ROOT || peer.uid == before.uid
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Capabilities, EncapKinds, Longest, Mac, VnetId};

    const NOW: Now = Now { mono: Instant::ZERO, wall_ms: 7 };

    fn key(mac: u8) -> VifKey {
        VifKey { vnet: VnetId::new(42).unwrap(), mac: Mac([2, 0, 0, 0, 0, mac]) }
    }

    fn peer(uid: u32) -> Peer {
        Peer { uid, pid: 1 }
    }

    fn coa(port: u16) -> CareOf {
        CareOf {
            addr: ([192, 0, 2, 1], port).into(),
            kinds: EncapKinds::UDP,
            capabilities: Capabilities::NONE,
            longest: Longest::UNKNOWN,
        }
    }

    fn vif(mac: u8, uid: u32, port: u16) -> Vif {
        Vif {
            key: key(mac),
            coa: coa(port),
            peer: peer(uid),
            owner: Owner::Live(ClientId(1)),
            takes_lanes: false,
            learn: 0,
            floor: Floor::default(),
            queue_pairs: 1,
            active: true,
            is_halted: false,
            brings_stamps: false,
            ran: true,
            stamp: None,
            moved: false,
            is_deaf: false,
            watched: false,
            since_ms: 0,
        }
    }

    fn enter(registry: &mut Registry, vif: Vif) -> LocalVif {
        let id = registry.next_id();
        registry.insert(id, vif);
        id
    }

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    #[test]
    fn a_live_vif_is_its_users_and_roots() {
        let mut registry = Registry::default();
        enter(&mut registry, vif(1, 1000, 5));
        assert_eq!(registry.check(key(1), peer(1000), at(0)), Ok(()));
        assert_eq!(registry.check(key(1), peer(0), at(0)), Ok(()));
        assert_eq!(registry.check(key(2), peer(1001), at(0)), Ok(()));
        let refusal = registry.check(key(1), peer(1001), at(0)).unwrap_err();
        let text = "vif 42/02:00:00:00:00:01 belongs to user 1000, process 1";
        assert_eq!(refusal.to_string(), text);
    }

    #[test]
    fn a_kept_vif_is_reserved_to_its_user_while_it_is_kept() {
        let mut registry = Registry::default();
        let id = enter(&mut registry, vif(1, 1000, 5));
        registry.keep(id, at(60_000), 10, NOW);
        let refusal = registry.check(key(1), peer(1001), at(20_500)).unwrap_err();
        let text = "vif 42/02:00:00:00:00:01 is kept for user 1000, whose backend has ended, for \
                    another 40 s; until then only that user and root may register it";
        assert_eq!(refusal.to_string(), text);
        assert_eq!(registry.check(key(1), peer(1000), at(20_500)), Ok(()));
        assert_eq!(registry.check(key(1), peer(0), at(20_500)), Ok(()));
        registry.remove(id);
        assert_eq!(registry.check(key(1), peer(1001), at(60_000)), Ok(()));
    }

    #[test]
    fn nobody_pushes_out_what_is_kept_of_another_user() {
        let mut registry = Registry::default();
        let quiet: Vec<LocalVif> =
            (0..2).map(|n| enter(&mut registry, vif(n, 1000, n.into()))).collect();
        for (n, id) in (0..).zip(&quiet) {
            assert_eq!(registry.keep(*id, at(n), 4, NOW), []);
        }
        let mut own = Vec::new();
        for n in 10..200_u8 {
            let id = enter(&mut registry, vif(n, 1001, n.into()));
            let gone = registry.keep(id, at(u64::from(n)), 4, NOW);
            own.push(id);
            let want = if own.len() > 2 { vec![own.remove(0)] } else { Vec::new() };
            assert_eq!(gone, want, "its own oldest");
            for id in gone {
                registry.remove(id);
            }
        }
        // A third user gets a share: of two users with equal numbers, the one whose oldest is older
        // gives one up.
        let third = enter(&mut registry, vif(9, 1002, 9));
        assert_eq!(registry.keep(third, at(900), 4, NOW), [quiet[0]]);
    }

    #[test]
    fn a_care_of_address_is_that_of_one_vif() {
        let mut registry = Registry::default();
        let id = enter(&mut registry, vif(1, 1000, 5));
        assert_eq!(registry.check_care_of(key(2), coa(6)), Ok(()));
        assert!(registry.check_care_of(key(2), coa(5)).is_err());
        assert!(registry.check_care_of(key(1), coa(5)).is_err());
        registry.keep(id, at(1), 10, NOW);
        assert!(registry.check_care_of(key(2), coa(5)).is_err());
        assert_eq!(registry.check_care_of(key(1), coa(5)), Ok(()));
    }

    #[test]
    fn kept_vifs_expire_in_order() {
        let mut registry = Registry::default();
        let a = enter(&mut registry, vif(1, 1, 1));
        let b = enter(&mut registry, vif(2, 1, 2));
        assert_eq!(registry.next_expiry(), None);
        assert_eq!(registry.keep(a, at(20), 10, NOW), []);
        assert_eq!(registry.keep(b, at(10), 10, NOW), []);
        assert_eq!(registry.next_expiry(), Some(at(10)));
        assert_eq!(registry.expired(at(9)), []);
        assert_eq!(registry.expired(at(10)), [b]);
        assert_eq!(registry.expired(at(20)), [a, b]);
        assert_eq!(registry.remove(a).unwrap().since_ms, 7);
        assert!(registry.get(a).is_none());
        assert_eq!(registry.next_expiry(), Some(at(10)));
    }

    #[test]
    fn few_are_kept_and_one_of_each_key() {
        let mut registry = Registry::default();
        let old = enter(&mut registry, vif(1, 1, 1));
        let new = enter(&mut registry, vif(1, 1, 2));
        assert_eq!(registry.keep(old, at(1), 2, NOW), []);
        assert_eq!(registry.keep(new, at(2), 2, NOW), [old]);
        registry.remove(old);
        let b = enter(&mut registry, vif(2, 1, 3));
        let c = enter(&mut registry, vif(3, 1, 4));
        assert_eq!(registry.keep(b, at(3), 2, NOW), []);
        assert_eq!(registry.keep(c, at(4), 2, NOW), [new]);
        registry.remove(new);
        let d = enter(&mut registry, vif(4, 1, 5));
        assert_eq!(registry.keep(d, at(5), 0, NOW), [b, c, d], "none is kept at all");
        // Handles are never used again.
        assert_ne!(enter(&mut registry, vif(5, 1, 6)), old);
    }
}
