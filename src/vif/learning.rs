//! All MACs behind a vif (`--learn`), over its queue pairs: registered with varpd, aged, bounded.
//!
//! Each queue pair has a table of its own ([`crate::port::learned`]); this module combines them. It
//! adds a MAC when a queue pair sees it, or when varpd reports that it has a claim to it for this
//! vif (its backend was restarted). It removes the MAC when it has not been used for five minutes,
//! when a newer claim moves it elsewhere, when varpd refuses it, or when the guest's rings stop.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::metrics::VifCounter;
use crate::port::learned::{FULL_HOLD, MAX_LEARNT};
use crate::time::Instant;
use crate::vif::nic::{Lent, Nic};
use crate::wire::control::Request;
use crate::wire::{Mac, Stamp};

/// A MAC that is not used for so long is forgotten: the ageing time of bridges (IEEE 802.1D-2004,
/// table 7-5).
const AGE: Duration = Duration::from_secs(300);
/// How often that is looked at.
const SWEEP: Duration = Duration::from_secs(10);

/// The MACs behind a vif.
#[derive(Debug, Default)]
pub struct Learning {
    most: usize,
    /// Stamps of their claims, as far as there are.
    macs: BTreeMap<Mac, Option<Stamp>>,
    /// Not behind the vif any more, which varpd does not know yet.
    forgotten: Vec<Mac>,
    /// Claimed by varpd without having been told to it, with their stamps: perhaps it knows no more of
    /// them.
    untold: Vec<(Mac, Option<Stamp>)>,
    sweep_at: Option<Instant>,
}

impl Learning {
    /// For at most so many MACs.
    pub fn new(most: usize) -> Self {
        Self { most: most.min(MAX_LEARNT), ..Self::default() }
    }

    /// Takes in what queue pairs have seen; returns what varpd has to know.
    pub fn update(&mut self, seen: &[Mac], nic: &Nic, now: Instant) -> Vec<Request> {
        let mut new = std::mem::take(&mut self.untold);
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
        self.untold.clear();
        let macs: Vec<_> = self.macs.iter().map(|(&mac, &stamp)| (mac, stamp)).collect();
        (!macs.is_empty()).then_some(Request::Learn { macs })
    }

    /// varpd says that the MAC is claimed for this vif. If that was said before the guest's rings stopped
    /// and started again, varpd has forgotten it since: it is told, which changes nothing if it has not.
    pub fn handle_claimed(&mut self, mac: Mac, stamp: Stamp, nic: &Nic, now: Instant) {
        if !self.macs.contains_key(&mac) && self.macs.len() >= self.most {
            self.forgotten.push(mac);
            return;
        }
        if !self.macs.contains_key(&mac) {
            self.untold.push((mac, Some(stamp)));
        }
        self.enter(mac, nic, now);
        self.macs.insert(mac, Some(stamp));
    }

    /// The vif is at another care-of address, of which the stamps say nothing.
    pub fn forget_stamps(&mut self) {
        let untold = self.untold.iter_mut().map(|(_, stamp)| stamp);
        self.macs.values_mut().chain(untold).for_each(|stamp| *stamp = None);
    }

    /// The MAC is elsewhere now.
    pub fn handle_lost(&mut self, mac: Mac, nic: &Nic) {
        self.macs.remove(&mac);
        nic.workers().for_each(|mut worker| worker.learned().remove(mac));
    }

    /// The MAC is not to be this vif's for so long.
    pub fn refuse(&mut self, mac: Mac, hold: Duration, nic: &Nic, now: Instant) {
        self.macs.remove(&mac);
        nic.counters().inc(VifCounter::macs_refused);
        nic.workers().for_each(|mut worker| worker.learned().refuse(mac, now + hold, now));
    }

    /// The guest's rings have stopped: what is behind it is gone with it. varpd knows.
    pub fn clear(&mut self, nic: &Nic) {
        self.macs.clear();
        self.forgotten.clear();
        self.untold.clear();
        self.sweep_at = None;
        nic.workers().for_each(|mut worker| worker.learned().clear());
    }

    /// Forgets what has not been used for long.
    pub fn handle_timeout(&mut self, nic: &Nic, now: Instant) {
        if self.sweep_at.is_none_or(|at| now < at) {
            return;
        }
        let used = |mac: Mac, worker: &mut Lent<'_>| worker.learned().used(mac);
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
            worker.learned().insert(mac, now);
            worker.tunnel_mut().arrive(mac);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::sync::Arc;

    use super::*;
    use crate::metrics::VifCounters;
    use crate::port::tx::SourceMac;
    use crate::port::worker::Worker;
    use crate::tunnel::endpoint::Place;
    use crate::tunnel::rx::Receiver;
    use crate::underlay::groups::Groups;
    use crate::underlay::udp::UdpUnderlay;
    use crate::wire::{Capabilities, VifKey, VnetId};

    const A: Mac = Mac([2, 0, 0, 0, 0, 0xa]);
    const B: Mac = Mac([2, 0, 0, 0, 0, 0xb]);
    const C: Mac = Mac([2, 0, 0, 0, 0, 0xc]);

    fn at(secs: u64) -> Instant {
        Instant::from_millis(secs * 1000)
    }

    /// A NIC with two queue pairs, behind which there may be two MACs.
    fn nic() -> Nic {
        let counters = Arc::new(VifCounters::default());
        let worker = |_| {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            let own = socket.local_addr().unwrap();
            let key = VifKey { vnet: VnetId::new(42).unwrap(), mac: Mac([2, 0, 0, 0, 0, 1]) };
            let receiver = Receiver { key, own, capabilities: Capabilities::NONE };
            let place = Place { receiver, group: own, max_datagram: 1472 };
            let underlay = UdpUnderlay::new(socket.into(), Groups::default(), None);
            Worker::new(place, SourceMac::Stamp, Arc::clone(&counters), underlay).learning(2)
        };
        Nic::new((0..2).map(worker).collect(), Arc::clone(&counters), 1450).unwrap()
    }

    fn see(nic: &Nic, pair: usize, mac: Mac, now: Instant) -> bool {
        nic.workers().nth(pair).unwrap().learned().sees(mac, now)
    }

    fn has(nic: &Nic, mac: Mac) -> Vec<bool> {
        nic.workers().map(|mut worker| worker.learned().has(mac)).collect()
    }

    fn learn(mac: Mac) -> Vec<Request> {
        vec![Request::Learn { macs: vec![(mac, None)] }]
    }

    #[test]
    fn what_one_queue_pair_sees_all_take_and_varpd_is_told() {
        let (nic, mut learning) = (nic(), Learning::new(2));
        assert!(see(&nic, 0, A, at(0)));
        assert_eq!(learning.update(&nic.wishes().sources, &nic, at(0)), learn(A));
        assert_eq!(has(&nic, A), [true, true]);
        // Both queue pairs have room for one more, all together for only one.
        assert!(see(&nic, 0, B, at(1)) && see(&nic, 1, C, at(1)));
        assert_eq!(learning.update(&nic.wishes().sources, &nic, at(1)), learn(B));
        assert_eq!(has(&nic, C), [false, false]);
        assert!(!see(&nic, 1, C, at(1)));
        learning.handle_claimed(A, Stamp(7), &nic, at(1));
        let macs = vec![(A, Some(Stamp(7))), (B, None)];
        assert_eq!(learning.all(), Some(Request::Learn { macs }));
        // The vif is at another care-of address.
        learning.forget_stamps();
        let macs = vec![(A, None), (B, None)];
        assert_eq!(learning.all(), Some(Request::Learn { macs }));
    }

    #[test]
    fn what_is_not_used_for_five_minutes_is_forgotten() {
        let (nic, mut learning) = (nic(), Learning::new(2));
        for mac in [A, B] {
            see(&nic, 0, mac, at(0));
        }
        learning.update(&nic.wishes().sources, &nic, at(0));
        for second in 1..300 {
            // The other queue pair uses it.
            see(&nic, 1, A, at(second));
            if learning.poll_timeout().is_some_and(|due| due <= at(second)) {
                learning.handle_timeout(&nic, at(second));
            }
        }
        assert_eq!(has(&nic, B), [true, true]);
        learning.handle_timeout(&nic, at(310));
        assert_eq!((has(&nic, A), has(&nic, B)), (vec![true; 2], vec![false; 2]));
        let forget = vec![Request::Forget { macs: vec![B] }];
        assert_eq!(learning.update(&[], &nic, at(310)), forget);
        learning.handle_timeout(&nic, at(700));
        assert_eq!(learning.poll_timeout(), None, "nothing is left");
    }

    #[test]
    fn what_is_elsewhere_or_refused_is_not_here() {
        let (nic, mut learning) = (nic(), Learning::new(2));
        see(&nic, 0, A, at(0));
        learning.update(&nic.wishes().sources, &nic, at(0));
        learning.handle_lost(A, &nic);
        assert_eq!(has(&nic, A), [false, false]);
        // It is seen here again, and refused.
        assert!(see(&nic, 0, A, at(1)));
        assert_eq!(learning.update(&nic.wishes().sources, &nic, at(1)), learn(A));
        learning.refuse(A, Duration::from_secs(30), &nic, at(1));
        assert!(!see(&nic, 0, A, at(30)));
        assert!(see(&nic, 0, A, at(31)));
    }

    #[test]
    fn what_varpd_claims_unasked_is_told_to_it() {
        let (nic, mut learning) = (nic(), Learning::new(2));
        see(&nic, 0, A, at(0));
        learning.update(&nic.wishes().sources, &nic, at(0));
        // The answer comes when the rings have stopped and run again.
        learning.clear(&nic);
        learning.handle_claimed(A, Stamp(7), &nic, at(0));
        assert_eq!(has(&nic, A), [true, true]);
        let told = vec![Request::Learn { macs: vec![(A, Some(Stamp(7)))] }];
        assert_eq!(learning.update(&[], &nic, at(0)), told);
        learning.handle_claimed(A, Stamp(8), &nic, at(0));
        assert_eq!(learning.update(&[], &nic, at(0)), [], "once");
    }

    #[test]
    fn a_backend_without_learning_takes_nothing_over() {
        let (nic, mut learning) = (nic(), Learning::new(0));
        learning.handle_claimed(A, Stamp(7), &nic, at(0));
        let forget = vec![Request::Forget { macs: vec![A] }];
        assert_eq!(learning.update(&[], &nic, at(0)), forget);
        assert_eq!(has(&nic, A), [false, false]);
    }
}
