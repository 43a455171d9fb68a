//! Resolutions in progress, and the vifs that wait for them. Frames wait in the backends.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::RangeBounds;

use super::LocalVif;
use super::interest::Interest;
use crate::time::Instant;
use crate::wire::{CareOf, Mac, Stamp, VifKey, VnetId};

/// How far a resolution is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The host that is known is asked to confirm.
    Confirm(SocketAddr),
    /// That host has not the MAC, which is behind a vif: it is asked whether it has the vif.
    Vouch,
    /// The mapper asks all hosts.
    Ask,
}

/// One resolution. However many vifs ask for a key, there is one, with a back-off of its own: a
/// MAC that nobody answers for delays no other.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) stage: Stage,
    /// Requests sent in this stage.
    pub(super) sent: u32,
    /// Of all requests of this resolution.
    pub(super) nonce: u64,
    /// When it began.
    pub(super) since: Instant,
    /// When the next request is due, or the stage has failed.
    pub(super) due: Instant,
    /// Who asked.
    pub(super) waiters: Interest,
    /// Whose limits it counts against: who asked first.
    pub(super) payer: LocalVif,
    /// Where the first asker is.
    pub(super) asker: CareOf,
    /// The vif that the MAC was behind until its mapping was lost, and the stamp of that; changed by
    /// [`PendingTable::lose_with`] only.
    pub(super) lost: Option<(Mac, Stamp)>,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct PendingTable {
    map: BTreeMap<VifKey, Pending>,
    by_vnet: BTreeMap<VnetId, usize>,
    /// MACs that were behind a vif, by the vif.
    lost: BTreeSet<(VifKey, Mac)>,
}

impl PendingTable {
    pub(super) fn get(&self, key: &VifKey) -> Option<&Pending> {
        self.map.get(key)
    }

    pub(super) fn get_mut(&mut self, key: &VifKey) -> Option<&mut Pending> {
        self.map.get_mut(key)
    }

    /// Who asked first is elsewhere now.
    pub(super) fn moved(&mut self, payer: LocalVif, asker: CareOf) {
        let of_payer = self.map.values_mut().filter(|pending| pending.payer == payer);
        of_payer.for_each(|pending| pending.asker = asker);
    }

    /// Those whose keys are in this range.
    pub(super) fn range(
        &self,
        keys: impl RangeBounds<VifKey>,
    ) -> impl Iterator<Item = (&VifKey, &Pending)> {
        self.map.range(keys)
    }

    /// Puts in one for a key that has none.
    pub(super) fn insert(&mut self, key: VifKey, pending: Pending) {
        if self.map.insert(key, pending).is_none() {
            *self.by_vnet.entry(key.vnet).or_default() += 1;
        }
    }

    pub(super) fn remove(&mut self, key: &VifKey) -> Option<Pending> {
        let pending = self.map.remove(key)?;
        if let Some((bridge, _)) = pending.lost {
            self.lost.remove(&(VifKey { mac: bridge, ..*key }, key.mac));
        }
        if let Some(count) = self.by_vnet.get_mut(&key.vnet) {
            *count -= 1;
            if *count == 0 {
                self.by_vnet.remove(&key.vnet);
            }
        }
        Some(pending)
    }

    /// The mapping of a MAC behind a vif was lost: it may follow the vif.
    pub(super) fn lose_with(&mut self, key: VifKey, bridge: Mac, stamp: Stamp) {
        let Some(pending) = self.map.get_mut(&key) else { return };
        if let Some((former, _)) = pending.lost.replace((bridge, stamp)) {
            self.lost.remove(&(VifKey { mac: former, ..key }, key.mac));
        }
        self.lost.insert((VifKey { mac: bridge, ..key }, key.mac));
    }

    /// The MACs that were behind a vif, and the stamps of their mappings.
    pub(super) fn lost_with(&self, bridge: VifKey) -> Vec<(VifKey, Stamp)> {
        let all = (bridge, Mac([0; 6]))..=(bridge, Mac([0xff; 6]));
        let keys = self.lost.range(all).map(|(_, mac)| VifKey { mac: *mac, ..bridge });
        keys.filter_map(|key| Some((key, self.map.get(&key)?.lost?.1))).collect()
    }

    /// Number in total.
    pub(super) fn len(&self) -> usize {
        self.map.len()
    }

    /// Number on one vnet.
    pub(super) fn vnet_len(&self, vnet: VnetId) -> usize {
        self.by_vnet.get(&vnet).copied().unwrap_or(0)
    }

    /// Removes a vif from all on its vnet; returns those for which no vif waits any more.
    pub(super) fn desert(&mut self, vnet: VnetId, vif: LocalVif) -> Vec<VifKey> {
        let on_vnet = self.map.iter_mut().filter(|(key, _)| key.vnet == vnet);
        let mut deserted = Vec::new();
        for (key, pending) in on_vnet {
            pending.waiters.remove(vif);
            if pending.waiters.is_empty() {
                deserted.push(*key);
            }
        }
        deserted
    }

    /// The keys on one vnet.
    pub(super) fn keys(&self, vnet: VnetId) -> Vec<VifKey> {
        self.map.keys().filter(|key| key.vnet == vnet).copied().collect()
    }
}
