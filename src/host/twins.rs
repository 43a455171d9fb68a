//! Warns when two backends of this host serve one vif.
//!
//! This happens when a guest migrates within a host, and when two guests have the same MAC by
//! mistake. While both guests run it is a conflict (see [`crate::mapper`]). This module warns
//! earlier, when the second backend registers.

#![forbid(unsafe_code)]

use crate::mapper::LocalVif;
use crate::time::Now;
use crate::wire::VifKey;
use crate::wire::control::{ErrorCode, Event};

use super::Host;
use super::clients::ClientId;

impl Host {
    /// Warns in the log and to a backend that has registered a vif if another vif with the same key
    /// runs here.
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
