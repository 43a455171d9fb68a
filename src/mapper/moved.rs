//! A change of the host's own address, or of its way to other hosts.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use super::vifs::Why;
use super::{LocalVif, Mapper, receive};
use crate::time::Now;
use crate::wire::varp::Claim;
use crate::wire::{CareOf, VifKey};

/// Hosts that are spoken to at once.
const MOST_GREETED: usize = 256;

impl Mapper {
    /// From now on messages are sent from `own` and replies come to it. The vifs are to be moved, too.
    pub fn move_to(&mut self, own: SocketAddr) {
        self.own.addr = receive::canonical(own);
    }

    /// The addresses of this host, all of them: no remote vif is at one.
    pub fn set_local(&mut self, addresses: BTreeSet<IpAddr>) {
        self.local = addresses;
    }

    /// A vif, or a MAC behind one, has another care-of address: if it owns its key it claims it anew.
    pub fn move_vif(&mut self, vif: LocalVif, coa: CareOf, now: Now) {
        let Some(state) = self.vifs.get_mut(vif).filter(|state| state.coa != coa) else { return };
        state.coa = coa;
        let (vnet, owns) = (state.key.vnet, state.own.is_some());
        self.pending.moved(vif, coa);
        if owns {
            let stamp = self.tick(vnet, now);
            self.claim_key(vif, stamp, Why::Again, now);
        }
    }

    /// Hosts whose vifs are in use here are asked to confirm one each. Whoever hears that learns by which way
    /// this host is reached now: its link-layer address may be another one.
    pub fn greet(&mut self, now: Now) {
        let mut hosts: BTreeSet<IpAddr> = BTreeSet::new();
        let known = self.cache.keys(None).into_iter();
        let known: Vec<(VifKey, Claim)> = known
            .filter_map(|key| Some((key, self.cached_claim(&key)?)))
            .filter(|(_, claim)| hosts.len() < MOST_GREETED && hosts.insert(claim.coa.addr.ip()))
            .collect();
        for (key, claim) in known {
            if let Some((vif, coa)) = self.any_asker(key.vnet) {
                self.confirm(vif, key, coa, claim, now);
            }
        }
    }
}
