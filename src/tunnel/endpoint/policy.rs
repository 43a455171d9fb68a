//! The vnet's policy: applying a new one, and halting the vif.
//!
//! Sockets, known addresses, and frames that were received but not delivered survive a change of the
//! policy, so a change in steps ([`crate::policy`]) loses no frames.

use std::net::SocketAddr;

use super::Endpoint;
use crate::metrics::VifCounter;
use crate::offload::envelope::Envelope;
use crate::policy::{Level, Policy};
use crate::time::Instant;
use crate::tunnel::outgoing::Route;
use crate::tunnel::protect::Protection;
use crate::underlay::Underlay;

impl<U: Underlay> Endpoint<U> {
    /// Applies a policy. `new` makes protection if there was none; its keys follow.
    pub fn set_policy(&mut self, policy: Policy, new: &mut impl FnMut() -> Option<Protection>) {
        match &mut self.protection {
            Some(protection) if policy.is_secured() => protection.set_policy(policy),
            protection => *protection = new(),
        }
        if policy.accepts(Level::None) {
            return;
        }
        // For destinations without a key, the endpoint asks varpd again, which answers when there is one. Frames wait
        // meanwhile.
        let Self { neighbors, protection, .. } = self;
        neighbors.retain(|to| protection.as_ref().is_some_and(|protection| protection.has_key(to)));
    }

    /// Halts the vif, so that it carries no frames, or resumes it. A halted vif has no keys: varpd, which knows none
    /// of the vnet then, would neither replace nor end them.
    pub fn set_halted(&mut self, is_halted: bool) {
        self.is_halted = is_halted;
        if !is_halted {
            return;
        }
        self.drop_received(VifCounter::rx_drop_policy);
        if let Some(protection) = &mut self.protection {
            protection.drop_keys();
            // There is no key for any destination: the endpoint asks varpd again.
            self.neighbors.retain(|_| false);
        }
    }

    /// Whether the vif is halted.
    pub const fn is_halted(&self) -> bool {
        self.is_halted
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
            "vnet {}: host {} sends {what}; dropped and counted as {} (logged at most once a minute)",
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
