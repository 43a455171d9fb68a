//! Tells the senders of frames for vifs that have moved the new place of these vifs.
//!
//! While the backend lives it forwards such frames and reports their senders. After its end the
//! shell reads the kept sockets. It drops the frames, since no frame ever passes through varpd, and
//! reports their senders.

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

    /// Asks the shell to read a vif's sockets if the vif has moved and its backend is gone.
    pub(super) fn watch_moved(&mut self, id: LocalVif) {
        let Some(vif) = self.registry.get_mut(id) else { return };
        if matches!(vif.owner, Owner::Kept(_)) && vif.moved && !vif.watched {
            vif.watched = true;
            self.outputs.push_back(Output::Watch { vif: id });
        }
    }

    /// Asks the shell to stop reading: the vif has a backend again, has new sockets, or is
    /// forgotten.
    pub(super) fn unwatch_moved(&mut self, id: LocalVif) {
        let Some(vif) = self.registry.get_mut(id) else { return };
        if std::mem::take(&mut vif.watched) {
            self.outputs.push_back(Output::Unwatch { vif: id });
        }
    }

    /// Frames have arrived at the sockets of a vif that the shell reads.
    pub(super) fn handle_strayed(&mut self, id: LocalVif, senders: &[SocketAddr], now: Now) {
        let Some(vif) = self.registry.get(id).filter(|vif| vif.watched) else { return };
        let key = vif.key;
        self.counters.add(VarpdCounter::late_frames, senders.len() as u64);
        for &sender in senders {
            self.mapper.correct(key, sender, now);
        }
    }
}
