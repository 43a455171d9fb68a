//! Frames that come for vifs that have moved: their senders are told the new place.
//!
//! While the backend lives it sends late frames on and reports their senders. When it has ended,
//! varpd reads its kept sockets, for as long as it keeps them: the frames are dropped, since no
//! frame ever passes through varpd, but their senders are told all the same.

use std::net::SocketAddr;

use crate::mapper::LocalVif;
use crate::metrics::VarpdCounter;
use crate::sys::event::Interest;
use crate::time::Now;
use crate::wire::{Mac, VifKey};

use super::daemon::{Daemon, Source};
use super::registry::Owner;

/// Messages taken from each socket of one vif in a turn.
const BUDGET: usize = 64;

impl Daemon {
    /// A backend says who sends to a MAC that it has lost.
    pub(super) fn report_late(&mut self, vif: LocalVif, mac: Mac, sender: SocketAddr, now: Now) {
        if let Some(vif) = self.registry.get(vif) {
            let key = VifKey { vnet: vif.key.vnet, mac };
            self.mapper.correct(key, sender, now);
        }
    }

    /// Begins to read a vif's sockets, if its backend is gone and it has moved.
    pub(super) fn watch_late(&mut self, id: LocalVif) {
        let late = |vif: &&mut super::registry::Vif<_>| {
            matches!(vif.owner, Owner::Kept(_)) && vif.moved && !vif.watched
        };
        let Some(vif) = self.registry.get_mut(id).filter(late) else { return };
        vif.watched = true;
        for socket in vif.sockets.own() {
            let token = Source::Late(id).token();
            if let Err(e) = self.poller.add(&socket, token, Interest::Read) {
                log::debug!("can't watch a socket of vif {}: {e}", vif.key);
            }
        }
    }

    /// Ends that: the vif has a backend again, or is forgotten.
    pub(super) fn unwatch_late(&mut self, id: LocalVif) {
        let Some(vif) = self.registry.get_mut(id).filter(|vif| vif.watched) else { return };
        vif.watched = false;
        for socket in vif.sockets.own() {
            // It isn't there only if it could not be added.
            let _ = self.poller.remove(&socket);
        }
    }

    /// Late frames have come.
    pub(super) fn read_late(&mut self, id: LocalVif, now: Now) {
        let Some(vif) = self.registry.get(id).filter(|vif| vif.watched) else { return };
        let key = vif.key;
        let senders = vif.sockets.discard(BUDGET);
        self.counters.add(VarpdCounter::late_frames, senders.len() as u64);
        for sender in senders {
            self.mapper.correct(key, sender, now);
        }
    }
}
