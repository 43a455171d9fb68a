//! The mapper's counters.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::metrics::counters;

counters! {
    /// What a mapper did, refused and dropped.
    MapperCounters by MapperCounter {
        resolves = "questions of local vifs",
        resolve_local = "of resolves, those answered with a vif of this host",
        resolve_cached = "of resolves, those answered from the cache",
        resolve_negative = "of resolves, those to a MAC for which nobody had answered just before",
        resolve_shared = "of resolves, those that joined a resolution under way",
        resolved = "resolutions that found the owner",
        unresolved = "resolutions that nobody answered",
        refreshes = "mappings asked to be confirmed by unicast",
        refresh_failed = "of refreshes, those whose host did not answer or disclaimed the vif",
        moved = "changes of a cached mapping's owner",
        expired = "mappings that came to their end unconfirmed",
        evicted = "mappings that had to make room for others of their vnet, or of a smaller one",
        uncached = "answers passed on but not kept, because the cache was full",
        claims = "claims made for local vifs",
        reclaims = "of claims, those repeated above a stale stamp of a clock that was ahead",
        conflicts = "claims of others to a vif whose rings run here: two guests with one MAC, a network that was split, or a guest that moved while it ran",
        losses = "local claims that a newer one ended",
        tx_requests = "requests sent to the group",
        tx_refreshes = "requests sent to one host",
        tx_replies = "replies sent",
        tx_announces = "announcements sent",
        tx_corrections = "corrections sent",
        tx_absents = "times a host was told that the vif is not here",
        rx_requests = "requests received",
        rx_replies = "replies received",
        rx_announces = "announcements received",
        rx_corrections = "corrections received",
        rx_absents = "hosts that said the vif is not there",
        rx_drop_own = "own messages that the underlay handed back",
        rx_drop_tagged = "messages with an authentication tag for a vnet that has no keys here",
        rx_drop_source = "messages whose sender is not the host that they speak for",
        rx_drop_cast = "replies at the group, or announcements by unicast",
        rx_drop_reply_to = "requests whose reply would go to a third host",
        rx_drop_unasked = "replies and corrections that match no question",
        rx_implausible = "claims with a stamp too far ahead of this host's clock",
        rx_stale = "claims older than the one known",
        rx_unusable = "vifs found, or moved, where no frame can be sent from here: not over UDP, no port, another address family",
        limit_rate = "resolutions refused because the vif began too many per second",
        limit_pending = "resolutions refused because too many were under way",
        limit_announces = "announcements not sent because a vif, with the MACs behind it, made too many",
        limit_corrections = "corrections not sent because too many were sent",
        damped_claims = "claims refused because the vif moved too often",
        damped_moves = "moves that users were told late because the vif moved too often",
    }
}
