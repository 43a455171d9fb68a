//! Counters: every frame that arrives, leaves or is dropped is counted under a name.
//!
//! The table below is the only list: `vnet show stats`, the tests and `vnet(7)` are made from it.
//! Counters are relaxed atomics; a reader may see one a moment before another.

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
        tx_frames = "frames the guest sent that left towards another vif or a group",
        tx_bytes = "bytes of those frames",
        tx_group_frames = "of tx_frames, those to broadcast or multicast addresses",
        rx_frames = "frames delivered to the guest",
        rx_bytes = "bytes of those frames",
        rx_group_frames = "of rx_frames, those to broadcast or multicast addresses",
        rx_answers = "answers of our own to the guest: ICMP packets that say which length fits the path",
        tx_local_frames = "of tx_frames, those that went through a lane: memory shared with another vif's backend on this host",
        rx_local_frames = "of rx_frames, those that came through a lane",
        rx_direct_frames = "of rx_frames, those whose payload the kernel copied straight into the guest's buffers: streams in long segments",
        rx_direct_missed = "times that the next message was looked at for that, and was something else",
        tx_datagrams = "datagrams that left; less than tx_frames where frames share one, more where large frames were cut",
        tx_unsegmented = "of tx_datagrams, those handed over one by one because the kernel refuses to cut messages (UDP_SEGMENT)",
        tx_announcements = "RARP frames of our own to the group: the guest has just arrived here",
        tx_stamped = "frames with a foreign source MAC, corrected (--source-mac=stamp)",
        tx_forwarded = "frames of others that came late for a MAC that has left, and were sent on to its new place",
        tx_parked = "frames that waited for address resolution",
        tx_throttled = "times that frames began to wait in the guest's ring for credit (--rate-out, --frames-out)",
        rx_throttled = "times that frames began to wait in the vif's sockets for credit (--rate-in)",
        tx_fragmented = "frames, or datagrams with frames, that left in pieces because they are longer than the path (flag F)",
        rx_reassembled = "frames, or datagrams with frames, that arrived in pieces and were put together",
        rx_other_policy = "datagrams that were accepted under another policy than this host sends under, while the vnet's policy is changed: before the last step none may come any more",
        path_mtu_changes = "times that the path MTU to a host was learnt, or changed",
        path_errors = "ICMP errors that came back for datagrams, other than of their length: nobody listens there any more, no route",
        tx_drop_source = "frames with a foreign source MAC (--source-mac=drop)",
        tx_drop_guard_address = "frames that name a sender that is not on the vif's list (--allow-ip): IP, ARP or neighbour discovery",
        tx_drop_guard_role = "frames that play DHCP server or router, from a vif with a list",
        tx_drop_guard_opaque = "frames that can't be checked, from a vif with a list: other protocols, headers that are cut or nested",
        tx_drop_malformed = "descriptor chains that are not a frame: too short, too long, looped, outside memory, writable",
        tx_drop_header = "virtio-net headers that ask for what was not negotiated",
        tx_drop_self = "frames to the vif's own MAC, or to none (all zero)",
        tx_drop_mac_control = "MAC control frames (pause), which act on one link only (IEEE 802.3 annex 31A)",
        tx_drop_too_big = "frames too long for the underlay's path: their sender was told, they are for a group, or the peer takes no pieces",
        tx_drop_group_rate = "frames to groups beyond --group-rate or --group-frames",
        tx_drop_unresolved = "frames to a MAC nobody answered for",
        tx_drop_unusable = "frames to a MAC whose care-of address takes none from here: it is not for UDP (only IP protocol 97), has port 0, is loopback or link-local, or of the other address family",
        tx_drop_park_full = "frames dropped because too many already waited for resolution",
        tx_drop_park_expired = "frames whose resolution took too long",
        tx_drop_unreachable = "frames the kernel had no route or neighbour for",
        tx_drop_backpressure = "frames the kernel had no buffer for, or a lane no room",
        tx_drop_policy = "frames of a NIC that carries none: the vnet's policy at varpd is below what the NIC keeps to (--policy), or below what it has had",
        tx_drop_no_key = "frames to a vif or group for which there is no key: varpd is agreeing on one, or can't",
        tx_drop_key_worn = "frames not sealed because their key has used up its sequence numbers, or the clock shows no time that group keys can have",
        tx_drop_key_ended = "frames not sealed because the vnet's keys have come to their end: varpd was away for a day (twice rekey, if that is longer)",
        tx_drop_error = "frames the kernel refused for another reason",
        tx_drop_lane = "of tx_local_frames, those that the other backend had not taken from the lane when it ended",
        rx_drop_truncated = "datagrams too short for header and Ethernet header, or cut by the receive buffer",
        rx_drop_version = "datagrams whose first nibble is none of ours",
        rx_drop_flags = "datagrams with unknown or unsupported flags or reserved bits",
        rx_drop_vnet = "datagrams for another vnet at the vif's own port",
        rx_drop_bundle = "bundles with a malformed entry: that and all behind it are lost, what was before it is delivered",
        rx_drop_fragment = "pieces that did not become part of a frame: others were missing after half a second, they came twice, overlap, contradict each other, or are too many",
        rx_drop_checksum = "frames said to have a partial checksum (flag C), without a TCP or UDP header that could hold it",
        rx_drop_lane = "frames in a lane whose virtio-net header contradicts them",
        rx_drop_protected = "datagrams with ESP for a vnet that has no keys here",
        rx_drop_plaintext = "datagrams without ESP on a secured vnet",
        rx_drop_policy = "frames for a NIC that carries none, as in tx_drop_policy",
        rx_drop_spi = "datagrams with an SPI that no key belongs to: another vnet's, a session that is over or not known",
        rx_drop_auth = "datagrams that no member made, or that were altered",
        rx_drop_replay = "datagrams that were received before, or so late that it can't be told",
        rx_drop_stale = "group datagrams recorded more than 90 s ago, or of a sender whose clock is wrong by as much",
        rx_drop_key_ended = "datagrams not opened because the vnet's keys have come to their end, as with tx_drop_key_ended",
        rx_drop_next_header = "authentic ESP packets that hold something else than a datagram of the tunnel (next header 97)",
        rx_drop_flood = "group datagrams of senders from which nothing authentic has come, that were not tried: more than 1000 a second, or too many starts of one that is known",
        rx_drop_senders = "datagrams of further senders, when windows against replay are kept for as many as there may be",
        rx_drop_destination = "frames to a MAC that is not the vif's",
        rx_drop_departed = "frames to a MAC that has left, not sent on: that had been done once, or it left too long ago",
        rx_drop_not_group = "frames to an individual MAC that arrived at the group",
        rx_drop_source = "frames whose source is the vif's own MAC or a group address",
        rx_drop_own = "own group frames that the underlay handed back",
        rx_drop_no_ring = "frames that arrived while the guest's receive ring was stopped",
        rx_drop_no_buffer = "frames that did not fit in the buffers that the guest offered",
        rx_drop_malformed = "receive descriptor chains that can't be written to",
        rx_drop_overflow = "messages the kernel dropped because the vif's socket buffer was full: single datagrams, or runs of them that came as one (UDP_GRO)",
        macs_learnt = "MACs behind the vif that were taken (--learn)",
        macs_refused = "times a MAC behind the vif was not taken: no room, or it moves to and fro",
        lanes_opened = "lanes opened: to or from other vifs on this host, one per direction and queue pair",
        lanes_failed = "lanes closed because the process at the other end broke their rules",
        ring_errors = "times a malformed ring was stopped",
        polls_paid = "times that a thread looked for frames before it slept, and some came (--busy-poll)",
        polls_in_vain = "times that a thread looked for frames before it slept, and none came (--busy-poll)",
        keys_ended = "keys of a secured vnet that came to their hard end: of sessions with other hosts, each way, and of group frames",
        guest_connects = "connections of a frontend (QEMU)",
        varpd_connects = "connections to varpd",
    }
}

/// What varpd shows before its counters: names, and of what each is the number at this moment.
pub const VARPD_GAUGES: [(&str, &str); 3] = [
    ("clients_now", "connections to the control socket"),
    ("vifs_now", "vifs: those with a backend, and those kept without one"),
    ("lanes_now", "lanes between vifs of this host"),
];

counters! {
    /// The counters of varpd, beside those of its mapper.
    VarpdCounters by VarpdCounter {
        clients = "connections to the control socket",
        clients_refused = "of clients, those beyond a limit",
        clients_stalled = "clients disconnected because they did not read",
        requests = "messages from clients",
        requests_invalid = "of requests, those malformed or out of place; they end the connection",
        descriptors_closed = "descriptors that came with a message that has none",
        vifs_registered = "vifs registered",
        vifs_refused = "vifs not registered: another user's, a user who may not, sockets that are not what the backend says, a limit",
        vifs_denied = "of vifs_refused, those of users that are not on the vnet's list (allow-users), and of processes that have another vif",
        vifs_reserved = "of vifs_refused, those that were kept for another user, whose backend had ended a short while ago",
        operators_denied = "times that a process that has a vif asked for a table, for events or a flush",
        vifs_unlisted = "of vifs_refused, those on vnets that the configuration does not list ([security] vnets)",
        vifs_below_policy = "vifs registered that carry no frame: the vnet's policy is below what their backend keeps to",
        vifs_resumed = "of vifs_registered, those whose sockets had been kept for them",
        vifs_adopted = "of vifs_registered, those that brought their sockets",
        vifs_kept = "vifs whose backend ended",
        vifs_forgotten = "vifs whose backend did not come back in time",
        macs_learnt = "MACs behind vifs registered (--learn)",
        macs_refused = "MACs behind vifs not registered: another user's vif, a limit, moving to and fro",
        macs_beyond = "of macs_refused, those beyond what the vif's backend said when it registered (--learn)",
        buffers_small = "sockets opened or adopted whose buffers are as large as net.core.rmem_max and wmem_max allow, not as asked for: the opener has ended, or lacks CAP_NET_ADMIN",
        late_frames = "frames that came for a vif that has moved, at sockets kept after its backend ended; dropped, their senders told",
        underlay_moves = "times that the host was followed to another address",
        underlay_joins = "times that its address was on another interface, or on one made anew, and groups were joined there",
        lanes_made = "lanes made between vifs of this host",
        lanes_refused = "lanes not made because of a limit, or for want of memory or descriptors",
        stats_late = "counters of a backend that came too late or unasked",
        varp_rx = "VARP datagrams received",
        varp_rx_malformed = "of varp_rx, those that are no VARP message",
        varp_drop_untagged = "VARP messages without a tag for a secured vnet",
        varp_other_policy = "VARP messages that were heard under another policy or key than this host sends under, while these are changed",
        varp_drop_key = "VARP messages with a tag made with a key that the vnet does not have here",
        varp_drop_forged = "VARP messages whose tag is wrong",
        varp_drop_stale = "VARP messages recorded more than 90 s ago, or of a host whose clock is wrong by as much",
        varp_drop_replayed = "VARP messages that were heard before, or of more senders than are kept apart",
        varp_drop_foreign = "datagrams to the VARP port of this host that are no message by their first bytes or length: dropped by the kernel, not in varp_rx",
        varp_drop_overflow = "messages to this host that the kernel dropped because varpd could not read them in time, other than those of handshake_drop_overflow",
        handshake_drop_overflow = "first INITs that the kernel dropped because they came faster than varpd reads",
        sa_needed = "times a backend asked for another session: packets of an unknown one, or a key nearly worn",
        key_files_read = "times a key file was read",
        key_files_failed = "times a key file was missing, open to others or malformed",
        varp_tx = "VARP messages sent",
        varp_tx_failed = "of varp_tx, those that the kernel refused",
        varp_tx_limited = "VARP messages not sent because there were more than 900 a second on one secured vnet",
    }
}
