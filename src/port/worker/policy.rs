//! The worker's part of the vnet's policy: applying a new one, and halting the NIC.
//!
//! Sockets, known addresses, and frames that were received but not delivered survive a change of the
//! policy, so a change in steps ([`crate::security::policy`]) loses no frames.

use std::net::SocketAddr;

use super::Worker;
use crate::metrics::VifCounter;
use crate::offload::envelope::Envelope;
use crate::security::Level;
use crate::security::policy::Policy;
use crate::time::Instant;
use crate::tunnel::outgoing::Route;
use crate::tunnel::protect::Protection;
use crate::underlay::Underlay;

impl<U: Underlay> Worker<U> {
    /// Applies a policy. `new` makes protection if there was none; its keys follow.
    pub fn set_policy(&mut self, policy: Policy, new: &mut impl FnMut() -> Option<Protection>) {
        match &mut self.protection {
            Some(protection) if policy.is_secured() => protection.set_policy(policy),
            protection => *protection = new(),
        }
        if policy.accepts(Level::None) {
            return;
        }
        // For destinations without a key, the worker asks varpd again, which answers when there is one. Frames wait
        // meanwhile.
        let Self { neighbors, protection, .. } = self;
        neighbors.retain(|to| protection.as_ref().is_some_and(|protection| protection.has_key(to)));
    }

    /// Halts the NIC, so that it carries no frames, or resumes it. A halted NIC has no keys: varpd, which knows none
    /// of the vnet then, would neither replace nor end them.
    pub fn set_halted(&mut self, is_halted: bool) {
        self.is_halted = is_halted;
        if !is_halted {
            return;
        }
        self.drop_halted();
        if let Some(protection) = &mut self.protection {
            protection.drop_keys();
            // There is no key for any destination: the worker asks varpd again.
            self.neighbors.retain(|_| false);
        }
    }

    /// Drops received frames of a halted NIC.
    pub(super) fn drop_halted(&mut self) {
        let dropped = self.incoming.len() + self.incoming.take_detours().len();
        self.counters.add(VifCounter::rx_drop_policy, dropped as u64);
        self.incoming.take_handovers().for_each(drop);
        let echoes = self.incoming.take_echoes().len() as u64;
        self.counters.add(VifCounter::rx_drop_policy, echoes);
        self.incoming.clear();
        let unpacked = self.unpacked.len() as u64;
        self.unpacked.clear();
        self.counters.add(VifCounter::rx_drop_policy, unpacked);
        let waiting = self.take_from_lanes();
        self.counters.add(VifCounter::rx_drop_policy, waiting);
    }

    /// Counts a datagram under another policy.
    pub(super) fn name_misfit(&mut self, from: SocketAddr, now: Instant) {
        let key = self.place.receiver.key;
        let (what, counter) = match self.protection {
            Some(_) => (
                "plain frames, which its policy does not accept here",
                VifCounter::rx_drop_plaintext,
            ),
            None => ("sealed frames, but has policy none here", VifCounter::rx_drop_protected),
        };
        log::log!(
            self.misfit_news.level(now),
            "vnet {}: host {} sends {what}; dropped and counted as {} (warned of at most once a minute)",
            key.vnet,
            from.ip(),
            counter.name(),
        );
    }

    /// The overhead around datagrams on a way out.
    #[inline]
    pub(super) fn envelope(&self, route: &Route) -> Envelope {
        let is_sealed = match &self.protection {
            None => false,
            Some(protection) if route.is_group => protection.seals_group(),
            Some(protection) => protection.seals_to(route.to),
        };
        if is_sealed { Envelope::Sealed } else { Envelope::Bare }
    }
}
