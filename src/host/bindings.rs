//! Bindings of processes to vifs.
//!
//! A backend serves one vif as long as it lives, so a process that has registered one vif can
//! register no other. Otherwise a guest that takes over its backend could have vifs on all vnets
//! that are open to the backend's user, and could replace the user's other backends. Root is not
//! bound, since it needs no varpd to reach the underlay.
//!
//! A bound process is no operator either: tables and events reveal all vnets, and a flush of the
//! cache affects all of them.
//!
//! A binding also limits the number of MACs that a backend learns. The backend states it when it
//! registers; a process that registers again can lower it, but not raise it.
//!
//! A binding identifies a process by its process id until the process ends. A restarted varpd has
//! no bindings.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use thiserror::Error;

use super::clients::Peer;
use super::registry::ROOT;
use crate::wire::VifKey;

/// The process is bound to another vif.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("process {pid} speaks for vif {key}, and for no other as long as it lives")]
pub(super) struct OtherVif {
    pid: i32,
    key: VifKey,
}

/// The process is bound to a vif, so it is no operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("process {pid} speaks for vif {key}, and is no operator as long as it lives")]
pub(super) struct HasVif {
    pid: i32,
    key: VifKey,
}

/// The vif of a process, and the limit on the MACs that it learns.
#[derive(Clone, Copy, Debug)]
struct Binding {
    key: VifKey,
    learn: u16,
}

/// All bindings.
#[derive(Debug, Default)]
pub(super) struct Bindings {
    by_pid: BTreeMap<i32, Binding>,
}

impl Bindings {
    /// The number of MACs that a process may learn if it registers `key` and asks for `learn` MACs.
    ///
    /// # Errors
    /// The process is bound to another vif.
    pub(super) fn check(&self, peer: Peer, key: VifKey, learn: u16) -> Result<u16, OtherVif> {
        match self.by_pid.get(&peer.pid) {
            Some(bound) if bound.key != key => Err(OtherVif { pid: peer.pid, key: bound.key }),
            Some(bound) => Ok(learn.min(bound.learn)),
            None => Ok(learn),
        }
    }

    /// Fails if the process is bound to a vif, and so may not send operators' requests.
    pub(super) fn check_operator(&self, peer: Peer) -> Result<(), HasVif> {
        match self.by_pid.get(&peer.pid) {
            Some(bound) => Err(HasVif { pid: peer.pid, key: bound.key }),
            None => Ok(()),
        }
    }

    /// Binds a process to a vif until the process ends. Returns false if it binds none: root, and
    /// processes with number 0.
    #[must_use]
    pub(super) fn bind(&mut self, peer: Peer, key: VifKey, learn: u16) -> bool {
        // All processes in namespaces that varpd cannot see have number 0.
        let is_bound = peer.uid != ROOT && peer.pid != 0;
        if is_bound {
            self.by_pid.insert(peer.pid, Binding { key, learn });
        }
        is_bound
    }

    /// Removes the binding of a process that has ended, or that varpd cannot tell from a later
    /// process with the same number.
    pub(super) fn end(&mut self, pid: i32) {
        self.by_pid.remove(&pid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Mac, VnetId};

    fn key(vnet: u32, mac: u8) -> VifKey {
        VifKey { vnet: VnetId::new(vnet).unwrap(), mac: Mac([2, 0, 0, 0, 0, mac]) }
    }

    fn peer(uid: u32, pid: i32) -> Peer {
        Peer { uid, pid }
    }

    #[test]
    fn a_process_has_one_vif_as_long_as_it_lives() {
        let mut bindings = Bindings::default();
        assert_eq!(bindings.check(peer(1000, 7), key(42, 1), 0), Ok(0));
        assert!(bindings.bind(peer(1000, 7), key(42, 1), 0));
        assert_eq!(bindings.check(peer(1000, 7), key(42, 1), 0), Ok(0));
        for other in [key(42, 2), key(43, 1)] {
            let refusal = bindings.check(peer(1000, 7), other, 0).unwrap_err();
            let want = "process 7 speaks for vif 42/02:00:00:00:00:01, and for no other as long as \
                        it lives";
            assert_eq!(refusal.to_string(), want);
        }
        let refusal = bindings.check_operator(peer(1000, 7)).unwrap_err();
        let want = "process 7 speaks for vif 42/02:00:00:00:00:01, and is no operator as long as it \
                    lives";
        assert_eq!(refusal.to_string(), want);
        assert_eq!(bindings.check(peer(1000, 8), key(43, 1), 0), Ok(0), "another process");
        assert_eq!(bindings.check_operator(peer(1000, 8)), Ok(()), "another process");
        bindings.end(7);
        assert_eq!(bindings.check_operator(peer(1000, 7)), Ok(()), "another of that number");
        assert_eq!(bindings.check(peer(1000, 7), key(43, 1), 0), Ok(0), "another of that number");
    }

    #[test]
    fn root_and_processes_without_a_number_are_not_bound() {
        let mut bindings = Bindings::default();
        for who in [peer(0, 7), peer(1000, 0)] {
            assert!(!bindings.bind(who, key(42, 1), 0));
            assert_eq!(bindings.check(who, key(43, 1), 0), Ok(0));
            assert_eq!(bindings.check_operator(who), Ok(()));
        }
    }

    #[test]
    fn a_process_learns_no_more_than_it_said_first() {
        let mut bindings = Bindings::default();
        let (who, own) = (peer(1000, 7), key(42, 1));
        assert_eq!(bindings.check(who, own, 300), Ok(300));
        assert!(bindings.bind(who, own, 2));
        for (wanted, gets) in [(300, 2), (2, 2), (1, 1)] {
            assert_eq!(bindings.check(who, own, wanted), Ok(gets));
        }
        bindings.end(7);
        assert_eq!(bindings.check(who, own, 300), Ok(300), "another of that number");
    }
}
