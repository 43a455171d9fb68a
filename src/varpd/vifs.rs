//! The sockets of this host's vifs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use crate::host::Descriptors;
use crate::mapper::LocalVif;
use crate::sys::event::{Interest, Poller};
use crate::underlay::sockets::VifSockets;

use super::daemon::Source;

/// Most messages read from each socket of one vif in a turn.
const BUDGET: usize = 64;

/// The sockets of a vif.
#[derive(Debug)]
struct Vif {
    sockets: VifSockets,
    /// varpd reads the sockets, since the vif has moved.
    is_watched: bool,
}

/// The sockets of all vifs.
#[derive(Debug, Default)]
pub(super) struct Vifs(BTreeMap<LocalVif, Vif>);

impl Vifs {
    /// Gives a vif these sockets, in place of any that it has.
    pub(super) fn insert(&mut self, id: LocalVif, sockets: VifSockets, poller: &Poller) {
        // Closing old sockets would leave them in the poller, since backends have duplicates.
        self.unwatch(id, poller);
        self.0.insert(id, Vif { sockets, is_watched: false });
    }

    /// The sockets of a vif.
    pub(super) fn get(&self, id: LocalVif) -> Option<&VifSockets> {
        self.0.get(&id).map(|vif| &vif.sockets)
    }

    /// Closes the sockets of a vif.
    pub(super) fn remove(&mut self, id: LocalVif, poller: &Poller) {
        self.unwatch(id, poller);
        self.0.remove(&id);
    }

    /// Gives the sockets of one vif to another.
    pub(super) fn hand_over(&mut self, from: LocalVif, to: LocalVif) {
        if let Some(vif) = self.0.remove(&from) {
            self.0.insert(to, vif);
        }
    }

    /// The descriptors to send with a message.
    pub(super) fn descriptors(&self, which: Descriptors) -> Vec<BorrowedFd<'_>> {
        match which {
            Descriptors::Nothing => Vec::new(),
            Descriptors::Groups(id) => self.get(id).map(VifSockets::group_fds).unwrap_or_default(),
            Descriptors::All(id) => self.get(id).map(VifSockets::fds).unwrap_or_default(),
        }
    }

    /// Begins to read a vif's sockets.
    pub(super) fn watch(&mut self, id: LocalVif, poller: &Poller) {
        let Some(vif) = self.0.get_mut(&id).filter(|vif| !vif.is_watched) else { return };
        vif.is_watched = true;
        for socket in vif.sockets.own() {
            if let Err(e) = poller.add(&socket, Source::Moved(id).token(), Interest::Read) {
                log::debug!("can't watch a socket of a vif: {e}");
            }
        }
    }

    /// Stops reading a vif's sockets.
    pub(super) fn unwatch(&mut self, id: LocalVif, poller: &Poller) {
        let Some(vif) = self.0.get_mut(&id).filter(|vif| vif.is_watched) else { return };
        vif.is_watched = false;
        for socket in vif.sockets.own() {
            // This fails only if adding the socket failed.
            let _ = poller.remove(&socket);
        }
    }

    /// Drops frames that have arrived at the sockets of a vif that varpd reads, up to [`BUDGET`]
    /// per socket. Returns the senders.
    pub(super) fn discard(&self, id: LocalVif) -> Vec<SocketAddr> {
        let vif = self.0.get(&id).filter(|vif| vif.is_watched);
        vif.map(|vif| vif.sockets.discard(BUDGET)).unwrap_or_default()
    }
}
