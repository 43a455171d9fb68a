//! Which vif each process speaks for.
//!
//! A backend serves one vif as long as it lives, so a process that has registered one can register no
//! other. Otherwise a guest that takes over its backend could have vifs on all vnets that are open to
//! the backend's user, and take the place of those of the user's other backends. Root is not held to
//! it: root could do without varpd.
//!
//! Nor is it an operator: tables and events tell of all vnets, and to flush the cache costs them all.
//!
//! A process is known by its number until it has ended. varpd that was started anew knows none.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use thiserror::Error;

use super::registry::ROOT;
use crate::sys::process::Process;
use crate::sys::seqpacket::{Connection, Peer};
use crate::wire::VifKey;

/// As many processes are remembered before those that have ended are looked for.
const FEW: usize = 64;

/// The process has another vif.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("process {pid} speaks for vif {key}, and for no other as long as it lives")]
pub(super) struct OtherVif {
    pid: i32,
    key: VifKey,
}

/// The process has a vif.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("process {pid} speaks for vif {key}, and is no operator as long as it lives")]
pub(super) struct Speaks {
    pid: i32,
    key: VifKey,
}

/// What can be seen to have ended.
pub(super) trait Mortal {
    /// Whether it has.
    fn has_ended(&self) -> bool;
}

impl Mortal for Process {
    fn has_ended(&self) -> bool {
        Self::has_ended(self)
    }
}

/// All of them. `P` is a process.
#[derive(Debug)]
pub(super) struct Speakers<P = Process> {
    by_pid: BTreeMap<i32, (VifKey, P)>,
    /// As many are there when those that have ended are forgotten.
    sweep_at: usize,
}

impl<P> Default for Speakers<P> {
    fn default() -> Self {
        Self { by_pid: BTreeMap::new(), sweep_at: FEW }
    }
}

impl Speakers {
    /// The process at the other end of a connection speaks for a vif from now on. One that can't be
    /// told from its successors (before Linux 6.5), or has ended already, is not remembered.
    pub(super) fn enter(&mut self, connection: &Connection, peer: Peer, key: VifKey) {
        match connection.process() {
            Ok(process) => self.insert(peer, key, process),
            Err(e) => log::debug!("process {} can't be watched: {e}", peer.pid),
        }
    }
}

impl<P: Mortal> Speakers<P> {
    /// The vif that a process speaks for, if it lives.
    fn vif_of(&self, peer: Peer) -> Option<VifKey> {
        let (own, process) = self.by_pid.get(&peer.pid)?;
        (!process.has_ended()).then_some(*own)
    }

    /// Whether a process may speak for a vif.
    pub(super) fn check(&self, peer: Peer, key: VifKey) -> Result<(), OtherVif> {
        match self.vif_of(peer) {
            Some(own) if own != key => Err(OtherVif { pid: peer.pid, key: own }),
            _ => Ok(()),
        }
    }

    /// Whether a process may ask what operators ask.
    pub(super) fn check_operator(&self, peer: Peer) -> Result<(), Speaks> {
        match self.vif_of(peer) {
            Some(key) => Err(Speaks { pid: peer.pid, key }),
            None => Ok(()),
        }
    }

    fn insert(&mut self, peer: Peer, key: VifKey, process: P) {
        // Number 0 is that of every process in a namespace that is not seen from here.
        if peer.uid == ROOT || peer.pid == 0 {
            return;
        }
        self.by_pid.insert(peer.pid, (key, process));
        if self.by_pid.len() >= self.sweep_at {
            self.by_pid.retain(|_, (_, process)| !process.has_ended());
            self.sweep_at = FEW.max(2 * self.by_pid.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Mac, VnetId};
    use std::cell::Cell;
    use std::rc::Rc;

    impl Mortal for Rc<Cell<bool>> {
        fn has_ended(&self) -> bool {
            self.get()
        }
    }

    fn key(vnet: u32, mac: u8) -> VifKey {
        VifKey { vnet: VnetId::new(vnet).unwrap(), mac: Mac([2, 0, 0, 0, 0, mac]) }
    }

    fn peer(uid: u32, pid: i32) -> Peer {
        Peer { uid, pid }
    }

    #[test]
    fn a_process_has_one_vif_as_long_as_it_lives() {
        let (mut speakers, ended) = (Speakers::default(), Rc::new(Cell::new(false)));
        assert_eq!(speakers.check(peer(1000, 7), key(42, 1)), Ok(()));
        speakers.insert(peer(1000, 7), key(42, 1), Rc::clone(&ended));
        assert_eq!(speakers.check(peer(1000, 7), key(42, 1)), Ok(()));
        for other in [key(42, 2), key(43, 1)] {
            let refusal = speakers.check(peer(1000, 7), other).unwrap_err();
            let want = "process 7 speaks for vif 42/02:00:00:00:00:01, and for no other as long as \
                        it lives";
            assert_eq!(refusal.to_string(), want);
        }
        let refusal = speakers.check_operator(peer(1000, 7)).unwrap_err();
        let want = "process 7 speaks for vif 42/02:00:00:00:00:01, and is no operator as long as it \
                    lives";
        assert_eq!(refusal.to_string(), want);
        assert_eq!(speakers.check(peer(1000, 8), key(43, 1)), Ok(()), "another process");
        assert_eq!(speakers.check_operator(peer(1000, 8)), Ok(()), "another process");
        ended.set(true);
        assert_eq!(speakers.check_operator(peer(1000, 7)), Ok(()), "another of that number");
        assert_eq!(speakers.check(peer(1000, 7), key(43, 1)), Ok(()), "another of that number");
    }

    #[test]
    fn root_and_those_without_a_number_are_not_held_to_it() {
        let mut speakers = Speakers::default();
        for who in [peer(0, 7), peer(1000, 0)] {
            speakers.insert(who, key(42, 1), Rc::new(Cell::new(false)));
            assert_eq!(speakers.check(who, key(43, 1)), Ok(()));
            assert_eq!(speakers.check_operator(who), Ok(()));
        }
    }

    #[test]
    fn those_that_have_ended_are_forgotten() {
        let mut speakers = Speakers::default();
        for pid in 1..10_000 {
            let lives = pid % 100 == 0;
            speakers.insert(peer(1000, pid), key(42, 1), Rc::new(Cell::new(!lives)));
        }
        assert!(speakers.by_pid.len() < 99 + 2 * FEW + 99, "{}", speakers.by_pid.len());
        assert!((1..100).all(|n| speakers.by_pid.contains_key(&(n * 100))));
    }
}
