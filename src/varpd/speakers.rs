//! Which vif each process speaks for.
//!
//! A backend serves one vif as long as it lives, so a process that has registered one can register no
//! other. Otherwise a guest that takes over its backend could have vifs on all vnets that are open to
//! the backend's user, and take the place of those of the user's other backends. Root is not held to
//! it: root could do without varpd.
//!
//! Nor is it an operator: tables and events tell of all vnets, and to flush the cache costs them all.
//!
//! The rule for vifs holds for how many MACs a backend learns: it says so when it registers, and a process that
//! registers again can say less, but not more.
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

/// A process and what it said first.
#[derive(Debug)]
struct Speaker<P> {
    key: VifKey,
    learn: u16,
    process: P,
}

/// All of them. `P` is a process.
#[derive(Debug)]
pub(super) struct Speakers<P = Process> {
    by_pid: BTreeMap<i32, Speaker<P>>,
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
    pub(super) fn enter(&mut self, connection: &Connection, peer: Peer, key: VifKey, learn: u16) {
        match connection.process() {
            Ok(process) => self.insert(peer, Speaker { key, learn, process }),
            Err(e) => log::debug!("process {} can't be watched: {e}", peer.pid),
        }
    }
}

impl<P: Mortal> Speakers<P> {
    /// What is known of a process that speaks for a vif and lives.
    fn living(&self, peer: Peer) -> Option<&Speaker<P>> {
        self.by_pid.get(&peer.pid).filter(|speaker| !speaker.process.has_ended())
    }

    /// How many MACs a process may learn that wants to speak for a vif and to learn so many.
    ///
    /// # Errors
    /// It may not speak for this vif.
    pub(super) fn check(&self, peer: Peer, key: VifKey, learn: u16) -> Result<u16, OtherVif> {
        match self.living(peer) {
            Some(speaker) if speaker.key != key => {
                Err(OtherVif { pid: peer.pid, key: speaker.key })
            }
            Some(speaker) => Ok(learn.min(speaker.learn)),
            None => Ok(learn),
        }
    }

    /// Whether a process may ask what operators ask.
    pub(super) fn check_operator(&self, peer: Peer) -> Result<(), Speaks> {
        match self.living(peer) {
            Some(speaker) => Err(Speaks { pid: peer.pid, key: speaker.key }),
            None => Ok(()),
        }
    }

    fn insert(&mut self, peer: Peer, speaker: Speaker<P>) {
        // Number 0 is that of every process in a namespace that is not seen from here.
        if peer.uid == ROOT || peer.pid == 0 {
            return;
        }
        self.by_pid.insert(peer.pid, speaker);
        if self.by_pid.len() >= self.sweep_at {
            self.by_pid.retain(|_, speaker| !speaker.process.has_ended());
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

    fn speaker(key: VifKey, learn: u16, ended: &Rc<Cell<bool>>) -> Speaker<Rc<Cell<bool>>> {
        Speaker { key, learn, process: Rc::clone(ended) }
    }

    fn peer(uid: u32, pid: i32) -> Peer {
        Peer { uid, pid }
    }

    #[test]
    fn a_process_has_one_vif_as_long_as_it_lives() {
        let (mut speakers, ended) = (Speakers::default(), Rc::new(Cell::new(false)));
        assert_eq!(speakers.check(peer(1000, 7), key(42, 1), 0), Ok(0));
        speakers.insert(peer(1000, 7), speaker(key(42, 1), 0, &ended));
        assert_eq!(speakers.check(peer(1000, 7), key(42, 1), 0), Ok(0));
        for other in [key(42, 2), key(43, 1)] {
            let refusal = speakers.check(peer(1000, 7), other, 0).unwrap_err();
            let want = "process 7 speaks for vif 42/02:00:00:00:00:01, and for no other as long as \
                        it lives";
            assert_eq!(refusal.to_string(), want);
        }
        let refusal = speakers.check_operator(peer(1000, 7)).unwrap_err();
        let want = "process 7 speaks for vif 42/02:00:00:00:00:01, and is no operator as long as it \
                    lives";
        assert_eq!(refusal.to_string(), want);
        assert_eq!(speakers.check(peer(1000, 8), key(43, 1), 0), Ok(0), "another process");
        assert_eq!(speakers.check_operator(peer(1000, 8)), Ok(()), "another process");
        ended.set(true);
        assert_eq!(speakers.check_operator(peer(1000, 7)), Ok(()), "another of that number");
        assert_eq!(speakers.check(peer(1000, 7), key(43, 1), 0), Ok(0), "another of that number");
    }

    #[test]
    fn root_and_those_without_a_number_are_not_held_to_it() {
        let mut speakers = Speakers::default();
        for who in [peer(0, 7), peer(1000, 0)] {
            speakers.insert(who, speaker(key(42, 1), 0, &Rc::new(Cell::new(false))));
            assert_eq!(speakers.check(who, key(43, 1), 0), Ok(0));
            assert_eq!(speakers.check_operator(who), Ok(()));
        }
    }

    #[test]
    fn a_process_learns_no_more_than_it_said_first() {
        let (mut speakers, ended) = (Speakers::default(), Rc::new(Cell::new(false)));
        let (who, own) = (peer(1000, 7), key(42, 1));
        assert_eq!(speakers.check(who, own, 300), Ok(300));
        speakers.insert(who, speaker(own, 2, &ended));
        for (wanted, gets) in [(300, 2), (2, 2), (1, 1)] {
            assert_eq!(speakers.check(who, own, wanted), Ok(gets));
        }
        ended.set(true);
        assert_eq!(speakers.check(who, own, 300), Ok(300), "another of that number");
    }

    #[test]
    fn those_that_have_ended_are_forgotten() {
        let mut speakers = Speakers::default();
        for pid in 1..10_000 {
            let lives = pid % 100 == 0;
            speakers.insert(peer(1000, pid), speaker(key(42, 1), 0, &Rc::new(Cell::new(!lives))));
        }
        assert!(speakers.by_pid.len() < 99 + 2 * FEW + 99, "{}", speakers.by_pid.len());
        assert!((1..100).all(|n| speakers.by_pid.contains_key(&(n * 100))));
    }
}
