//! Frames that arrive for vifs that have moved: their senders are told the new place.
//!
//! While the backend lives it forwards such frames and reports their senders. When it has ended,
//! the shell reads the kept sockets: the frames are dropped, since no frame ever passes through varpd, but their
//! senders are told all the same.

#![forbid(unsafe_code)]

use std::net::SocketAddr;

use crate::mapper::LocalVif;
use crate::metrics::VarpdCounter;
use crate::time::Now;
use crate::wire::{Mac, VifKey};

use super::Host;
use super::output::Output;
use super::registry::Owner;

impl Host {
    /// A backend reports the sender of a frame for a MAC that it has lost.
    pub(super) fn report_moved(&mut self, vif: LocalVif, mac: Mac, sender: SocketAddr, now: Now) {
        if let Some(vif) = self.registry.get(vif) {
            let key = VifKey { vnet: vif.key.vnet, mac };
            self.mapper.correct(key, sender, now);
        }
    }

    /// Has a vif's sockets read, if its backend is gone and it has moved.
    pub(super) fn watch_moved(&mut self, id: LocalVif) {
        let Some(vif) = self.registry.get_mut(id) else { return };
        if matches!(vif.owner, Owner::Kept(_)) && vif.moved && !vif.watched {
            vif.watched = true;
            self.outputs.push_back(Output::Watch { vif: id });
        }
    }

    /// Ends that: the vif has a backend again, or other sockets, or is forgotten.
    pub(super) fn unwatch_moved(&mut self, id: LocalVif) {
        let Some(vif) = self.registry.get_mut(id) else { return };
        if std::mem::take(&mut vif.watched) {
            self.outputs.push_back(Output::Unwatch { vif: id });
        }
    }

    /// Frames have arrived at the sockets of such a vif.
    pub(super) fn handle_strayed(&mut self, id: LocalVif, senders: &[SocketAddr], now: Now) {
        let Some(vif) = self.registry.get(id).filter(|vif| vif.watched) else { return };
        let key = vif.key;
        self.counters.add(VarpdCounter::late_frames, senders.len() as u64);
        for &sender in senders {
            self.mapper.correct(key, sender, now);
        }
    }
}
