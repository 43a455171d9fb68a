//! Two backends of this host with one vif: what their operator is told.
//!
//! That is how a guest migrates within a host, and what a MAC given twice looks like, too. While both
//! guests run it is a conflict (see [`crate::mapper`]); here it is said before, when the second backend
//! comes.

#![forbid(unsafe_code)]

use crate::mapper::LocalVif;
use crate::time::Now;
use crate::wire::VifKey;
use crate::wire::control::{ErrorCode, Event};

use super::Host;
use super::clients::ClientId;

impl Host {
    /// A backend has registered a vif: says so, here and to the backend, if another one runs with it.
    pub(super) fn tell_of_twin(&mut self, client: ClientId, new: LocalVif, now: Now) {
        let Some(vif) = self.registry.get(new) else { return };
        let (key, pid, uid) = (vif.key, vif.peer.pid, vif.peer.uid);
        let Some(text) = self.twin_of(new, key) else { return };
        let level = self.complaints.twins.level(uid, key, now.mono);
        say!(self, level, "process {pid} of user {uid} has registered vif {key}, {text}");
        let text = format!("vif {key}: {text}");
        self.tell(client, Event::Error { code: ErrorCode::Warning, text });
    }

    fn twin_of(&self, new: LocalVif, key: VifKey) -> Option<String> {
        let mut live = self.registry.live();
        let (_, _, twin) = live.find(|(id, _, vif)| *id != new && vif.key == key && vif.active)?;
        let (coa, pid, uid) = (twin.coa, twin.peer.pid, twin.peer.uid);
        Some(format!(
            "whose guest runs on this host already, at {coa} (process {pid} of user {uid}): frames go \
             there until the new guest starts, and then to that. Unless the guest migrates within this \
             host, give one of the two another MAC"
        ))
    }
}
