//! The book of the MACs behind a vif (`--learn`): registered with varpd, aged, bounded.
//!
//! Each queue pair has a table of its own ([`super::learnt`]); here they are held together. A MAC
//! comes in when a queue pair sees it, or when varpd says that it is held for this vif (its backend
//! was restarted). It goes when it has not been used for [`AGE`], when a newer claim says that it
//! is elsewhere, when varpd refuses it, or when the guest's rings stop.

use std::collections::BTreeMap;
use std::time::Duration;

use super::learnt::MAX_LEARNT;
use super::nic::{Lent, Nic};
use crate::metrics::VifCounter;
use crate::time::Instant;
use crate::wire::control::Request;
use crate::wire::{Mac, Stamp};

/// A MAC that is not used for so long is forgotten: the ageing time of bridges (IEEE 802.1D-2004,
/// table 7-5).
const AGE: Duration = Duration::from_secs(300);
/// How often that is looked at.
const SWEEP: Duration = Duration::from_secs(10);
/// How long a MAC is not asked for again for which there is no room.
const FULL_HOLD: Duration = Duration::from_secs(1);

/// The book.
#[derive(Debug, Default)]
pub struct Learning {
    most: usize,
    /// Stamps of their claims, as far as there are.
    macs: BTreeMap<Mac, Option<Stamp>>,
    /// Not behind the vif any more, which varpd does not know yet.
    forgotten: Vec<Mac>,
    sweep_at: Option<Instant>,
}

impl Learning {
    /// For at most so many MACs.
    pub fn new(most: usize) -> Self {
        Self { most: most.min(MAX_LEARNT), ..Self::default() }
    }

    /// Takes in what queue pairs have seen; returns what varpd has to know.
    pub fn update(&mut self, seen: &[Mac], nic: &Nic, now: Instant) -> Vec<Request> {
        let mut new = Vec::new();
        for &mac in seen {
            let is_known = self.macs.contains_key(&mac);
            if is_known || self.macs.len() < self.most {
                self.enter(mac, nic, now);
            } else {
                self.refuse(mac, FULL_HOLD, nic, now);
            }
            if !is_known && self.macs.contains_key(&mac) {
                new.push((mac, None));
                nic.counters().inc(VifCounter::macs_learnt);
            }
        }
        let forgotten = std::mem::take(&mut self.forgotten);
        let mut requests = Vec::new();
        if !forgotten.is_empty() {
            requests.push(Request::Forget { macs: forgotten });
        }
        if !new.is_empty() {
            requests.push(Request::Learn { macs: new });
        }
        requests
    }

    /// What a varpd has to know that has just registered the vif.
    pub fn all(&mut self) -> Option<Request> {
        self.forgotten.clear();
        let macs: Vec<_> = self.macs.iter().map(|(&mac, &stamp)| (mac, stamp)).collect();
        (!macs.is_empty()).then_some(Request::Learn { macs })
    }

    /// varpd says that the MAC is claimed for this vif.
    pub fn handle_claimed(&mut self, mac: Mac, stamp: Stamp, nic: &Nic, now: Instant) {
        if !self.macs.contains_key(&mac) && self.macs.len() >= self.most {
            self.forgotten.push(mac);
            return;
        }
        self.enter(mac, nic, now);
        self.macs.insert(mac, Some(stamp));
    }

    /// The MAC is elsewhere now.
    pub fn handle_lost(&mut self, mac: Mac, nic: &Nic) {
        self.macs.remove(&mac);
        nic.workers().for_each(|mut worker| worker.learnt().remove(mac));
    }

    /// The MAC is not to be this vif's for so long.
    pub fn refuse(&mut self, mac: Mac, hold: Duration, nic: &Nic, now: Instant) {
        self.macs.remove(&mac);
        nic.counters().inc(VifCounter::macs_refused);
        nic.workers().for_each(|mut worker| worker.learnt().refuse(mac, now + hold, now));
    }

    /// The guest's rings have stopped: what is behind it is gone with it. varpd knows.
    pub fn clear(&mut self, nic: &Nic) {
        self.macs.clear();
        self.forgotten.clear();
        self.sweep_at = None;
        nic.workers().for_each(|mut worker| worker.learnt().clear());
    }

    /// Forgets what has not been used for long.
    pub fn handle_timeout(&mut self, nic: &Nic, now: Instant) {
        if self.sweep_at.is_none_or(|at| now < at) {
            return;
        }
        let used = |mac: Mac, worker: &mut Lent<'_>| worker.learnt().used(mac);
        let is_old = |mac: Mac| {
            let last = nic.workers().filter_map(|mut worker| used(mac, &mut worker)).max();
            last.is_none_or(|at| now - at >= AGE)
        };
        let old: Vec<Mac> = self.macs.keys().copied().filter(|&mac| is_old(mac)).collect();
        for mac in old {
            self.handle_lost(mac, nic);
            self.forgotten.push(mac);
        }
        self.sweep_at = (!self.macs.is_empty()).then_some(now + SWEEP);
    }

    /// When that is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.sweep_at
    }

    fn enter(&mut self, mac: Mac, nic: &Nic, now: Instant) {
        self.macs.entry(mac).or_default();
        self.sweep_at.get_or_insert(now + SWEEP);
        nic.workers().for_each(|mut worker| {
            worker.learnt().insert(mac, now);
            worker.arrive(mac);
        });
    }
}
