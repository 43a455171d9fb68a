//! The local vifs, by vnet, and which of them own their key.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeBounds;

use super::LocalVif;
use super::interest::Interest;
use super::moves::Moves;
use crate::limiter::TokenBucket;
use crate::time::Instant;
use crate::wire::name::Realm;
use crate::wire::varp::Claim;
use crate::wire::{CareOf, Mac, Stamp, VifKey, VnetId};

/// A claim of a MAC behind a vif that is still to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Of the guest's frame.
    pub(super) stamp: Stamp,
    /// When it is made, or everything is looked at anew.
    pub(super) due: Instant,
    /// The MAC is another vif's own: its host is being asked.
    pub(super) asks_owner: bool,
}

/// The vif that a MAC is behind: a bridge or router in its guest sends from the MAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// The vif.
    pub vif: LocalVif,
    /// Its own MAC.
    pub mac: Mac,
}

/// A local vif.
#[derive(Debug)]
pub(super) struct Vif {
    pub(super) key: VifKey,
    pub(super) coa: CareOf,
    /// This host's.
    pub(super) realm: Realm,
    /// The vif that this is a MAC behind, if it is: nobody runs under it here, so it is taken back
    /// only when it is seen.
    pub(super) behind: Option<Bridge>,
    /// Its rings run.
    pub(super) active: bool,
    /// Its backend has ended: see [`Mapper::doubt`](super::Mapper::doubt).
    pub(super) in_doubt: bool,
    /// Its claim, while that is the newest known. An active vif without one has lost it.
    pub(super) own: Option<Own>,
    /// Of a MAC behind a vif: its claim that is still to be made.
    pub(super) wanted: Option<Wanted>,
    /// When it will ask who has its key, if it runs and has lost it.
    pub(super) watch: Option<Instant>,
    /// Resolutions under way that it began.
    pub(super) asking: usize,
    /// New resolutions it may begin.
    pub(super) bucket: TokenBucket,
    /// Announcements of it and of the MACs behind it.
    pub(super) announcing: TokenBucket,
    /// When it took its key back without having been away.
    pub(super) moves: Moves,
}

impl Vif {
    /// Whether a guest's rings run under this name, as far as is known: if they do, and it has lost
    /// its key, it may take it back.
    pub(super) fn runs(&self) -> bool {
        self.active && self.behind.is_none() && !self.in_doubt
    }

    /// The claim it owns its key by.
    pub(super) fn claim(&self) -> Option<Claim> {
        self.own.as_ref().map(|own| self.claim_at(own.stamp))
    }

    /// The claim that it would own its key by, with this stamp.
    pub(super) fn claim_at(&self, stamp: Stamp) -> Claim {
        let behind = self.behind.map(|bridge| bridge.mac);
        Claim { stamp, coa: self.coa, realm: self.realm, behind }
    }
}

/// What makes a key be claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// The guest arrives here just now, so an older claim with a higher stamp is due to a clock.
    Arrived,
    /// varpd was started anew, the vif went on: nobody waits for it.
    Resumed,
    /// It is claimed above another claim.
    Again,
}

/// A claim that is held.
#[derive(Debug)]
pub(super) struct Own {
    pub(super) stamp: Stamp,
    /// Of its announcements: who answers one with it has received it.
    pub(super) nonce: u64,
    /// When it was made.
    pub(super) since: Instant,
    /// What made it be claimed.
    pub(super) why: Why,
    /// Local vifs that use it.
    pub(super) interest: Interest,
    /// Start of the series of announcements.
    pub(super) series: Instant,
    /// How many of the series were sent.
    pub(super) announced: usize,
    /// When the next is due.
    pub(super) due: Option<Instant>,
    /// When an unproven correction was last met with an announcement.
    pub(super) challenged: Option<Instant>,
    /// When an older claim of somebody else was last shown.
    pub(super) contested: Option<Instant>,
}

impl Own {
    pub(super) fn new(stamp: Stamp, nonce: u64, now: Instant, why: Why) -> Self {
        Self {
            stamp,
            nonce,
            since: now,
            why,
            interest: Interest::default(),
            series: now,
            announced: 0,
            due: None,
            challenged: None,
            contested: None,
        }
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Vifs {
    map: BTreeMap<LocalVif, Vif>,
    by_key: BTreeSet<(VifKey, LocalVif)>,
    owners: BTreeMap<VifKey, LocalVif>,
    /// How many are MACs behind others.
    learnt: usize,
}

impl Vifs {
    pub(super) fn get(&self, vif: LocalVif) -> Option<&Vif> {
        self.map.get(&vif)
    }

    pub(super) fn get_mut(&mut self, vif: LocalVif) -> Option<&mut Vif> {
        self.map.get_mut(&vif)
    }

    /// Number of vifs, without the MACs behind them.
    pub(super) fn len(&self) -> usize {
        self.map.len() - self.learnt
    }

    /// Number of MACs behind vifs.
    pub(super) fn learnt_len(&self) -> usize {
        self.learnt
    }

    pub(super) fn insert(&mut self, handle: LocalVif, vif: Vif) {
        self.by_key.insert((vif.key, handle));
        self.learnt += usize::from(vif.behind.is_some());
        self.map.insert(handle, vif);
    }

    pub(super) fn remove(&mut self, handle: LocalVif) -> Option<Vif> {
        let vif = self.map.remove(&handle)?;
        self.by_key.remove(&(vif.key, handle));
        self.learnt -= usize::from(vif.behind.is_some());
        if self.owners.get(&vif.key) == Some(&handle) {
            self.owners.remove(&vif.key);
        }
        Some(vif)
    }

    /// The vifs that own a key in this range.
    pub(super) fn owners(&self, keys: impl RangeBounds<VifKey>) -> impl Iterator<Item = &Vif> {
        self.owners.range(keys).filter_map(|(_, handle)| self.map.get(handle))
    }

    /// The local vif that owns a key.
    pub(super) fn owner(&self, key: &VifKey) -> Option<LocalVif> {
        self.owners.get(key).copied()
    }

    /// The owner and its claim.
    pub(super) fn owner_claim(&self, key: &VifKey) -> Option<(LocalVif, Claim)> {
        let handle = self.owner(key)?;
        Some((handle, self.get(handle)?.claim()?))
    }

    /// Makes a vif the owner of its key; nobody else is.
    pub(super) fn set_owner(&mut self, handle: LocalVif, own: Own) {
        if let Some(vif) = self.map.get_mut(&handle) {
            self.owners.insert(vif.key, handle);
            vif.own = Some(own);
        }
    }

    /// Ends a vif's ownership.
    pub(super) fn take_own(&mut self, handle: LocalVif) -> Option<Own> {
        let vif = self.map.get_mut(&handle)?;
        let own = vif.own.take()?;
        self.owners.remove(&vif.key);
        Some(own)
    }

    /// The vifs with this key: several while a guest migrates within the host.
    pub(super) fn with_key(&self, key: VifKey) -> impl Iterator<Item = LocalVif> {
        self.by_key.range((key, LocalVif(0))..=(key, LocalVif(u64::MAX))).map(|(_, handle)| *handle)
    }

    /// A vif with this key that runs, whether it owns the key or has lost it.
    pub(super) fn running(&self, key: VifKey) -> Option<LocalVif> {
        self.with_key(key).find(|vif| self.get(*vif).is_some_and(Vif::runs))
    }

    /// The vifs on a vnet.
    pub(super) fn on_vnet(&self, vnet: VnetId) -> impl Iterator<Item = LocalVif> {
        let key = |mac| VifKey { vnet, mac };
        let low = (key(Mac([0; 6])), LocalVif(0));
        let high = (key(Mac([0xff; 6])), LocalVif(u64::MAX));
        self.by_key.range(low..=high).map(|(_, handle)| *handle)
    }

    /// Whether any vif of the vnet is here.
    pub(super) fn hosts(&self, vnet: VnetId) -> bool {
        self.on_vnet(vnet).next().is_some()
    }
}
