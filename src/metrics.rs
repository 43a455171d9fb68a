//! Counters: every frame that arrives, leaves or is dropped is counted under a name.
//!
//! `vnet show stats`, the tests and `vnet(7)` all use the tables below.
//! Counters are relaxed atomics: a reader can see one change before another.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($(#[$set_doc:meta])* $set:ident by $id:ident { $($name:ident = $text:literal),+ $(,)? }) => {
        /// Names the counters of a set.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[expect(missing_docs, reason = "the text of each is its documentation")]
        #[repr(usize)]
        #[expect(non_camel_case_types, reason = "a counter is called the same in code and output")]
        pub enum $id { $($name),+ }

        impl $id {
            /// All, in the order they are shown.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The name shown to operators.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),+ }
            }

            /// What it counts, in one sentence.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$name => $text),+ }
            }
        }

        $(#[$set_doc])*
        #[derive(Debug)]
        pub struct $set([AtomicU64; $id::ALL.len()]);

        impl Default for $set {
            fn default() -> Self {
                Self([const { AtomicU64::new(0) }; $id::ALL.len()])
            }
        }

        impl $set {
            /// Adds one.
            pub fn inc(&self, counter: $id) {
                self.add(counter, 1);
            }

            /// Adds `n`.
            pub fn add(&self, counter: $id, n: u64) {
                if let Some(cell) = self.0.get(counter as usize) {
                    cell.fetch_add(n, Ordering::Relaxed);
                }
            }

            /// The value now.
            pub fn get(&self, counter: $id) -> u64 {
                self.0.get(counter as usize).map_or(0, |cell| cell.load(Ordering::Relaxed))
            }

            /// Names of all and what they count, in the order they are shown.
            pub fn descriptions() -> Vec<(&'static str, &'static str)> {
                $id::ALL.iter().map(|&c| (c.name(), c.text())).collect()
            }

            /// Names and values of all, in the order they are shown.
            pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
                $id::ALL.iter().map(|&c| (c.name(), self.get(c))).collect()
            }
        }
    };
}

pub(crate) use counters;

counters! {
    /// The counters of one vif, kept by its backend.
    VifCounters by VifCounter {
        tx_frames = "frames from the guest that left towards another vif or a group",
        tx_bytes = "bytes of those frames",
        tx_group_frames = "of tx_frames, those to broadcast or multicast addresses",
        rx_frames = "frames delivered to the guest",
        rx_bytes = "bytes of those frames",
        rx_group_frames = "of rx_frames, those to broadcast or multicast addresses",
        rx_answers = "ICMP packets that the backend sent to the guest to say which length fits the path",
        tx_local_frames = "of tx_frames, those that left through a lane: memory shared with another vif's backend on this host",
        rx_local_frames = "of rx_frames, those that arrived through a lane",
        rx_direct_frames = "of rx_frames, those whose payload the kernel copied directly into the guest's buffers: streams of long segments",
        rx_direct_missed = "messages that the backend expected to receive directly into the guest's buffers, but that did not continue the stream",
        tx_datagrams = "datagrams sent: fewer than tx_frames if frames shared datagrams, more if large frames were segmented",
        tx_unsegmented = "of tx_datagrams, those passed to the kernel one by one because it refuses to segment messages (UDP_SEGMENT)",
        tx_announcements = "RARP frames that the backend sent to the group because the guest has arrived here",
        tx_stamped = "frames with a foreign source MAC, which the backend replaced (--source-mac=stamp)",
        tx_forwarded = "frames that arrived for a MAC that has moved, forwarded to its new host",
        tx_parked = "frames that waited for address resolution",
        tx_throttled = "times that frames had to wait in the guest's ring for credit (--rate-out, --frames-out)",
        rx_throttled = "times that frames had to wait in the vif's sockets for credit (--rate-in)",
        tx_fragmented = "frames and bundles sent in fragments because they exceed the path MTU (flag F)",
        rx_reassembled = "frames and bundles reassembled from fragments",
        rx_other_policy = "datagrams accepted under another policy than this host sends under, while the vnet's policy is changed; must stop growing before the last step",
        rx_echoes = "echoes of other hosts that arrived for the backend (flag O); none of them is for the guest",
        tx_echoes = "answers to echoes of other hosts",
        path_mtu_changes = "times that the backend learnt the path MTU to a host, or that it changed",
        path_errors = "ICMP errors for sent datagrams, except for their length: no process listens at the port any more, no route",
        tx_drop_source = "frames with a foreign source MAC (--source-mac=drop)",
        tx_drop_guard_address = "frames whose sender address is not on the vif's list (--allow-ip): IP, ARP or neighbour discovery",
        tx_drop_guard_role = "messages of DHCP servers and routers, from a vif with --allow-ip",
        tx_drop_guard_opaque = "frames that cannot be checked, from a vif with --allow-ip: other protocols, incomplete or nested headers",
        tx_drop_malformed = "descriptor chains that are not a frame: too short, too long, looped, outside of memory, writable",
        tx_drop_header = "frames whose virtio-net header requests features that were not negotiated",
        tx_drop_self = "frames to the vif's own MAC, or to MAC 00:00:00:00:00:00",
        tx_drop_mac_control = "MAC control frames (pause), which apply to a single link (IEEE 802.3 annex 31A)",
        tx_drop_too_big = "frames that exceed the path MTU and are not fragmented: the sender was told (ICMP), they are group frames, or the peer cannot reassemble",
        tx_drop_group_rate = "group frames (broadcast, multicast) beyond --group-rate or --group-frames",
        tx_drop_unresolved = "frames to a MAC for which no host has answered",
        tx_drop_unusable = "frames to a vif whose care-of address cannot be used from here: only IP protocol 97, port 0, loopback, link-local, or another address family",
        tx_drop_park_full = "frames dropped because too many others waited for address resolution",
        tx_drop_park_expired = "frames whose address resolution took too long",
        tx_drop_unreachable = "frames for which the kernel had no route or neighbour",
        tx_drop_backpressure = "frames for which the kernel had no buffer, or a lane no room",
        tx_drop_policy = "frames of a vif that is halted: the vnet's policy at varpd is lower than the backend permits (--policy, or the policy that it has had)",
        tx_drop_no_key = "frames to a vif or group without a key: varpd is still agreeing on one, or cannot",
        tx_drop_key_worn = "frames not sealed because the key's sequence numbers have run out, or because the clock shows a time for which there are no group keys",
        tx_drop_key_ended = "frames not sealed because the vnet's keys have expired: varpd was away for a day (or twice rekey, if that is longer)",
        tx_drop_error = "frames that the kernel refused for another reason",
        tx_drop_lane = "of tx_local_frames, those that the other backend had not read from the lane when it ended",
        rx_drop_truncated = "datagrams too short for the header and an Ethernet header, or truncated by the receive buffer",
        rx_drop_version = "datagrams whose first octet matches no known format",
        rx_drop_flags = "datagrams with unsupported flags or reserved bits",
        rx_drop_vnet = "datagrams for another vnet at the vif's own port",
        rx_drop_bundle = "bundles with a malformed entry: the entries before it were delivered, the rest was dropped",
        rx_drop_fragment = "fragments that did not become part of a frame: others were missing after half a second, or they were duplicates, overlapping, inconsistent or too many",
        tx_drop_echo = "echoes of other hosts not answered: more than 10 a second of a host or 100 a second in all, or no key to answer with",
        rx_drop_echo = "echoes that are malformed, or answer a question that nobody asked",
        rx_drop_checksum = "frames marked as having a partial checksum (flag C), without a TCP or UDP header that could hold it",
        rx_drop_lane = "frames in a lane that contradict their virtio-net header",
        rx_drop_protected = "ESP datagrams for a vnet that has no keys here",
        rx_drop_plaintext = "datagrams without ESP on a secured vnet",
        rx_drop_policy = "frames for a vif that is halted, see tx_drop_policy",
        rx_drop_spi = "datagrams whose SPI belongs to no key: of another vnet, or of a session that has expired or is unknown",
        rx_drop_auth = "datagrams that were forged or altered",
        rx_drop_replay = "datagrams that were received before, or are too late for the replay window",
        rx_drop_stale = "group datagrams older than 90 s, or of a sender whose clock is wrong by as much",
        rx_drop_key_ended = "datagrams not opened because the vnet's keys have expired, see tx_drop_key_ended",
        rx_drop_next_header = "authentic ESP packets whose content is not the tunnel's (next header 97)",
        rx_drop_flood = "group datagrams that were not tried: of senders without an authentic datagram so far, beyond 1000 a second, or with too many starts of a known sender",
        rx_drop_senders = "datagrams of new senders while the table of replay windows was full",
        rx_drop_destination = "frames to a MAC that is not the vif's",
        rx_drop_departed = "frames to a MAC that has moved, not forwarded because they were forwarded before or it moved too long ago",
        rx_drop_not_group = "frames to an individual MAC that arrived at the multicast group",
        rx_drop_source = "frames whose source is the vif's own MAC or a group address",
        rx_drop_own = "the vif's own group frames, which the underlay handed back; not a loss",
        rx_drop_no_ring = "frames that arrived while the guest's receive ring was stopped",
        rx_drop_no_buffer = "frames that did not fit into the guest's buffers",
        rx_drop_malformed = "receive descriptor chains that cannot be written to",
        rx_drop_overflow = "messages that the kernel dropped because the vif's socket buffer was full: single datagrams, or trains of datagrams that it had merged (UDP_GRO)",
        macs_learnt = "MACs learnt behind the vif (--learn)",
        macs_refused = "times that a MAC behind the vif was not learnt: --learn permits no more, or it is the own MAC of another vif",
        lanes_opened = "lanes opened to or from other vifs on this host, one per direction and queue pair",
        lanes_failed = "lanes closed because the process at the other end broke the rules",
        ring_errors = "times that a malformed ring was stopped",
        polls_paid = "polls for frames that found some (--busy-poll)",
        polls_in_vain = "polls for frames that found none (--busy-poll)",
        keys_ended = "keys of a secured vnet that expired: of sessions, per direction, and of group frames",
        guest_connects = "connections of a frontend (QEMU)",
        varpd_connects = "connections to varpd",
    }
}

/// Gauges that varpd shows before its counters: name and meaning.
pub const VARPD_GAUGES: [(&str, &str); 4] = [
    ("clients_now", "connections to the control sockets"),
    ("vifs_now", "vifs with a backend, and vifs kept without one"),
    ("lanes_now", "lanes between vifs of this host"),
    ("hosts_now", "other hosts that are known from their HELLO messages"),
];

counters! {
    /// The counters of varpd, beside those of its mapper.
    VarpdCounters by VarpdCounter {
        clients = "connections to the control socket",
        clients_refused = "of clients, those beyond a limit",
        clients_stalled = "clients disconnected because they did not read",
        requests = "messages from clients",
        requests_invalid = "of requests, those that were malformed or not permitted there; the connection was closed",
        descriptors_closed = "descriptors attached to messages that take none",
        vifs_registered = "vifs registered",
        vifs_refused = "registrations refused: the vif belongs to another user, the user is not permitted, the sockets are not as described, or a limit is reached",
        vifs_denied = "of vifs_refused, those of users who are not on the vnet's list (allow-users, allow-groups), and of processes that have another vif",
        vifs_reserved = "of vifs_refused, those of vifs that varpd keeps for another user, whose backend has ended",
        operators_denied = "requests for tables, events or flushes refused because the process has a vif or its user is no operator",
        vifs_unlisted = "of vifs_refused, those on vnets without a section in varpd.toml ([security] vnets)",
        vifs_below_policy = "registrations of vifs that are halted: the vnet's policy is lower than their backend permits",
        vifs_resumed = "of vifs_registered, those that got the sockets that varpd had kept for them",
        vifs_adopted = "of vifs_registered, those that brought their sockets",
        vifs_kept = "vifs whose backend ended, and whose sockets varpd kept",
        vifs_forgotten = "vifs forgotten because their backend did not return in time",
        macs_learnt = "MACs registered behind vifs (--learn)",
        macs_refused = "MACs behind vifs refused: the own MAC of another vif, or a limit",
        macs_beyond = "of macs_refused, those beyond the number that the vif's backend declared when it registered (--learn)",
        buffers_small = "sockets whose buffers are only as large as net.core.rmem_max and wmem_max permit: the opener has ended, or lacks CAP_NET_ADMIN",
        late_frames = "frames for a vif that has moved, dropped at sockets that varpd kept after its backend ended; varpd told their senders",
        underlay_moves = "times that varpd followed the host to another address",
        underlay_joins = "times that varpd joined the multicast groups again because its address was on another interface, or on one made anew",
        lanes_made = "lanes made between vifs of this host",
        lanes_refused = "lanes not made because of a limit, or lack of memory or descriptors",
        stats_late = "counters that a backend sent too late or unasked",
        varp_rx = "VARP datagrams received",
        varp_rx_malformed = "of varp_rx, those that are not a VARP message",
        varp_rx_version = "of varp_rx, messages of another version; the log names their sender and the host that needs an upgrade",
        varp_rx_tag_kind = "of varp_rx, messages with an unknown kind of tag",
        varp_rx_critical = "of varp_rx, messages with an unknown flag or extension that is marked critical",
        varp_drop_untagged = "VARP messages without a tag for a secured vnet",
        varp_other_policy = "VARP messages accepted under another policy or key than this host sends under, while these are changed",
        varp_drop_key = "VARP messages whose tag was made with a key that is unknown here",
        varp_drop_forged = "VARP messages whose tag is wrong",
        varp_drop_stale = "VARP messages older than 90 s, or of a host whose clock is wrong by as much",
        varp_drop_replayed = "VARP messages that were received before, or of more senders than varpd can track",
        varp_drop_foreign = "datagrams to this host's VARP port that the kernel dropped because their length or first bytes match no message; not in varp_rx",
        varp_drop_overflow = "messages to this host that the kernel dropped because varpd could not read them in time, except those of handshake_drop_overflow",
        handshake_drop_overflow = "INITs of unknown hosts that the kernel dropped because varpd could not read them in time",
        sa_needed = "times that a backend requested another session: for packets of an unknown one, or because a key's numbers were running out",
        key_files_read = "times that varpd read a key file",
        key_files_failed = "times that a key file was missing, accessible to others or malformed",
        varp_tx = "VARP messages sent",
        varp_tx_failed = "of varp_tx, those that the kernel refused",
        varp_tx_limited = "VARP messages not sent because there were more than 900 a second on one secured vnet",
    }
}
