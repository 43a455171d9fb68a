//! The mapper's counters.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::metrics::counters;

counters! {
    /// What a mapper did, refused and dropped.
    MapperCounters by MapperCounter {
        resolves = "resolutions that local vifs requested",
        resolve_local = "of resolves, those answered with a vif of this host",
        resolve_cached = "of resolves, those answered from the cache",
        resolve_negative = "of resolves, those to a MAC for which no host had answered just before",
        resolve_shared = "of resolves, those that joined a resolution in progress",
        resolved = "resolutions that found the owner",
        unresolved = "resolutions that no host answered",
        refreshes = "mappings that varpd asked the owner's host to confirm",
        refresh_failed = "of refreshes, those whose host did not answer or no longer has the vif",
        moved = "changes of a cached mapping's owner",
        expired = "mappings that expired without confirmation",
        evicted = "mappings dropped to make room for others of their vnet, or of a smaller vnet",
        uncached = "answers passed on but not cached, because the cache was full",
        claims = "claims made for local vifs",
        reclaims = "of claims, those repeated above an old stamp of a clock that was ahead",
        conflicts = "claims of other hosts to a vif whose rings run here: two guests with one MAC, a network that was split, or a guest that moved while it ran",
        losses = "local claims ended by a newer claim of another host",
        tx_requests = "requests sent to the group",
        tx_refreshes = "requests sent to one host",
        tx_replies = "replies sent",
        tx_announces = "announcements sent",
        tx_corrections = "corrections sent",
        tx_absents = "messages to a host that asked to confirm a vif that is not here",
        rx_requests = "requests received",
        rx_replies = "replies received",
        rx_announces = "announcements received",
        rx_corrections = "corrections received",
        rx_absents = "messages of hosts that no longer have a vif",
        rx_drop_own = "own messages that the underlay handed back",
        rx_drop_tagged = "messages with an authentication tag for a vnet that has no keys here",
        rx_drop_source = "messages whose sender is not the host that they speak for",
        rx_drop_cast = "replies to the group, and announcements by unicast",
        rx_drop_reply_to = "requests whose reply would go to a third host",
        rx_drop_unasked = "replies and corrections that match no request",
        rx_implausible = "claims with a stamp more than a day ahead of this host's clock",
        rx_stale = "claims older than the known one",
        rx_unusable = "vifs found at, or moved to, a care-of address that cannot be used from here: not over UDP, no port, another address family",
        limit_rate = "resolutions refused because the vif requested too many per second",
        limit_pending = "resolutions refused because too many were in progress",
        limit_announces = "announcements not sent because of a limit per vif, including the MACs behind it",
        limit_corrections = "corrections not sent because of a limit",
        damped_claims = "claims refused because the vif moved too often",
        damped_moves = "moves that backends were told of late because the vif moved too often",
    }
}
