//! Counters: the programs count every frame that arrives, leaves or is dropped under a name.
//!
//! `vnet show stats`, the tests and `vnet(7)` all use the tables below.
//! Counters are relaxed atomics: a reader can see one change before another.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

/// A counter's name, unit and value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The name shown to operators.
    pub name: &'static str,
    /// The unit of what it counts, in the plural.
    pub unit: &'static str,
    /// Its value.
    pub value: u64,
}

macro_rules! counters {
    ($(#[$set_doc:meta])* $set:ident by $id:ident { $($name:ident [$unit:ident] = $text:literal),+ $(,)? }) => {
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

            /// The unit of what it counts, in the plural.
            pub const fn unit(self) -> &'static str {
                match self { $(Self::$name => stringify!($unit)),+ }
            }

            /// The description, in one sentence.
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

            /// Names and descriptions of all, in the order in which they are shown.
            pub fn descriptions() -> Vec<(&'static str, &'static str)> {
                $id::ALL.iter().map(|&c| (c.name(), c.text())).collect()
            }

            /// Values of all, in the order they are shown.
            pub fn readings(&self) -> impl Iterator<Item = $crate::metrics::Reading> {
                $id::ALL.iter().map(|&c| $crate::metrics::Reading {
                    name: c.name(),
                    unit: c.unit(),
                    value: self.get(c),
                })
            }
        }
    };
}

pub(crate) use counters;

counters! {
    /// The counters of one vif, kept by its backend.
    VifCounters by VifCounter {
        tx_frames [frames] = "frames from the guest that left towards another vif or a group",
        tx_bytes [bytes] = "bytes of those frames",
        tx_group_frames [frames] = "of tx_frames, those to broadcast or multicast addresses",
        rx_frames [frames] = "frames delivered to the guest",
        rx_bytes [bytes] = "bytes of those frames",
        rx_group_frames [frames] = "of rx_frames, those to broadcast or multicast addresses",
        rx_answers [packets] = "ICMP packets by which the backend told the guest the length that fits the path",
        tx_local_frames [frames] = "of tx_frames, those that left through a lane: memory shared with another vif's backend on this host",
        rx_local_frames [frames] = "of rx_frames, those that arrived through a lane",
        rx_direct_frames [frames] = "of rx_frames, those whose payload the kernel copied directly into the guest's buffers: streams of long segments",
        rx_direct_missed [messages] = "messages that the backend expected to receive directly into the guest's buffers, but that did not continue the stream",
        tx_datagrams [datagrams] = "datagrams sent: fewer than tx_frames if frames shared datagrams, more if large frames were segmented",
        tx_unsegmented [datagrams] = "of tx_datagrams, those passed to the kernel one by one because it refuses to segment messages (UDP_SEGMENT)",
        tx_announcements [frames] = "RARP frames that the backend sent to the group because the guest had arrived on this host",
        tx_stamped [frames] = "frames with a foreign source MAC, which the backend replaced (--source-mac=stamp)",
        tx_forwarded [frames] = "frames for a MAC that has moved, forwarded to its new host",
        tx_parked [frames] = "frames that waited for address resolution",
        tx_throttled [events] = "times that frames had to wait in the guest's ring for credit (--rate-out, --frames-out)",
        rx_throttled [events] = "times that frames had to wait in the vif's sockets for credit (--rate-in)",
        tx_fragmented [frames] = "frames and bundles sent in fragments because they exceed the path MTU (flag F)",
        rx_reassembled [frames] = "frames and bundles reassembled from fragments",
        rx_other_policy [datagrams] = "datagrams accepted under another policy than this host sends under, while the vnet's policy changes; must stop growing before the last step",
        rx_echoes [datagrams] = "echoes of other hosts that arrived for the backend (flag O), not for the guest",
        tx_echoes [datagrams] = "answers to echoes of other hosts",
        path_mtu_changes [events] = "times that the backend learnt the path MTU to a host, or that it changed",
        path_errors [packets] = "ICMP errors about sent datagrams, except about their length: no process listens at the port any more, or there is no route",
        tx_drop_source [frames] = "frames with a foreign source MAC (--source-mac=drop)",
        tx_drop_guard_address [frames] = "frames whose sender address is not on the vif's list (--allow-ip): IP, ARP or neighbour discovery",
        tx_drop_guard_role [frames] = "messages of DHCP servers and routers, from a vif with --allow-ip",
        tx_drop_guard_opaque [frames] = "frames that cannot be checked, from a vif with --allow-ip: other protocols, incomplete or nested headers",
        tx_drop_malformed [chains] = "descriptor chains that hold no frame: too short, too long, looped, outside of memory, or writable",
        tx_drop_header [frames] = "frames whose virtio-net header requests features that were not negotiated",
        tx_drop_self [frames] = "frames to the vif's own MAC, or to MAC 00:00:00:00:00:00",
        tx_drop_mac_control [frames] = "MAC control frames (pause), which apply to a single link (IEEE 802.3 annex 31A)",
        tx_drop_too_big [frames] = "frames that exceed the path MTU and are not fragmented: the backend answered their sender (ICMP), or the peer cannot reassemble",
        tx_drop_group_rate [frames] = "group frames (broadcast, multicast) beyond --group-rate or --group-frames",
        tx_drop_unresolved [frames] = "frames to a MAC for which no host has answered",
        tx_drop_unusable [frames] = "frames to a vif whose care-of address this host cannot use: only IP protocol 97, port 0, loopback, link-local, or another address family",
        tx_drop_park_full [frames] = "frames dropped because too many others waited for address resolution",
        tx_drop_park_expired [frames] = "frames whose address resolution took too long",
        tx_drop_unreachable [frames] = "frames for which the kernel had no route or neighbour",
        tx_drop_backpressure [frames] = "frames for which the kernel had no buffer, or a lane no room",
        tx_drop_policy [frames] = "frames of a vif that is halted: the vnet's policy at varpd is lower than the backend permits (--policy, or the policy that it has had)",
        tx_drop_no_key [frames] = "frames to a vif or group without a key: varpd is still agreeing on one, or cannot",
        tx_drop_key_worn [frames] = "frames not sealed because the key's sequence numbers have run out, or because there are no group keys for the time that the clock shows",
        tx_drop_key_ended [frames] = "frames not sealed because the vnet's keys have expired: varpd was away for a day (or twice rekey, if that is longer)",
        tx_drop_error [frames] = "frames that the kernel refused for another reason",
        tx_drop_lane [frames] = "of tx_local_frames, those that the other backend had not read from the lane when it ended",
        rx_drop_truncated [datagrams] = "datagrams too short for the header and an Ethernet header, or truncated by the receive buffer",
        rx_drop_version [datagrams] = "datagrams whose first octet matches no known format",
        rx_drop_flags [datagrams] = "datagrams with unsupported flags or reserved bits",
        rx_drop_vnet [datagrams] = "datagrams for another vnet at the vif's own port",
        rx_drop_bundle [bundles] = "bundles with a malformed entry: the entries before it were delivered, the rest was dropped",
        rx_drop_fragment [fragments] = "fragments that did not become part of a frame: others were missing after half a second, or they were duplicates, overlapping, inconsistent or too many",
        tx_drop_echo [datagrams] = "echoes of other hosts not answered: more than 10 a second of a host or 100 a second in all, or no key to answer with",
        rx_drop_echo [datagrams] = "echoes that are malformed, or answers to questions that the backend never asked",
        rx_drop_checksum [frames] = "frames marked as having a partial checksum (flag C), without a TCP or UDP header that could hold it",
        rx_drop_lane [frames] = "frames in a lane that contradict their virtio-net header",
        rx_drop_protected [datagrams] = "ESP datagrams for a vnet that has no keys here",
        rx_drop_plaintext [datagrams] = "datagrams without ESP on a secured vnet",
        rx_drop_policy [frames] = "frames for a vif that is halted, see tx_drop_policy",
        rx_drop_spi [datagrams] = "datagrams whose SPI belongs to no key: they are of another vnet, or of a session that has expired or is unknown",
        rx_drop_auth [datagrams] = "datagrams that were forged or altered",
        rx_drop_replay [datagrams] = "datagrams that were received before, or are too late for the replay window",
        rx_drop_stale [datagrams] = "group datagrams older than 90 s, or of a sender whose clock is wrong by as much",
        rx_drop_key_ended [datagrams] = "datagrams not opened because the vnet's keys have expired, see tx_drop_key_ended",
        rx_drop_next_header [packets] = "authentic ESP packets whose content is not the tunnel's (next header 97)",
        rx_drop_flood [datagrams] = "group datagrams not tried: more than 1000 a second of senders that have sent nothing authentic, or too many starts of a known sender",
        rx_drop_senders [datagrams] = "datagrams of new senders while the table of replay windows was full",
        rx_drop_destination [frames] = "frames to a MAC that is not the vif's",
        rx_drop_departed [frames] = "frames to a MAC that has moved, not forwarded because they were forwarded before or it moved too long ago",
        rx_drop_not_group [frames] = "frames to an individual MAC that arrived at the multicast group",
        rx_drop_source [frames] = "frames whose source is the vif's own MAC or a group address",
        rx_drop_own [frames] = "the vif's own group frames, which the underlay handed back; not a loss",
        rx_drop_no_ring [frames] = "frames that arrived while the guest's receive ring was stopped",
        rx_drop_no_buffer [frames] = "frames that did not fit into the guest's buffers",
        rx_drop_malformed [chains] = "receive descriptor chains that cannot be written to",
        rx_drop_overflow [messages] = "messages that the kernel dropped because the vif's socket buffer was full: single datagrams, or trains of datagrams that it had merged (UDP_GRO)",
        macs_learnt [macs] = "MACs learnt behind the vif (--learn)",
        macs_refused [events] = "times that a MAC behind the vif was not learnt: --learn permits no more, or it is the own MAC of another vif",
        lanes_opened [lanes] = "lanes opened to or from other vifs on this host, one per direction and queue pair",
        lanes_failed [lanes] = "lanes closed because the process at the other end broke the rules",
        ring_errors [events] = "times that the backend stopped a malformed ring",
        polls_paid [polls] = "polls for frames that found some (--busy-poll)",
        polls_in_vain [polls] = "polls for frames that found none (--busy-poll)",
        keys_ended [keys] = "keys of a secured vnet that expired: of sessions, per direction, and of group frames",
        guest_connects [connections] = "connections of a frontend (QEMU)",
        varpd_connects [connections] = "connections to varpd",
    }
}

/// Gauges that varpd shows before its counters: name, unit and meaning.
pub const VARPD_GAUGES: [(&str, &str, &str); 4] = [
    ("clients_now", "connections", "connections to the control sockets"),
    ("vifs_now", "vifs", "vifs with a backend, and vifs kept without one"),
    ("lanes_now", "lanes", "lanes between vifs of this host"),
    ("hosts_now", "hosts", "other hosts that are known from their HELLO messages"),
];

counters! {
    /// The counters of varpd, beside those of its mapper.
    VarpdCounters by VarpdCounter {
        clients [connections] = "connections to the control socket",
        clients_refused [connections] = "of clients, those beyond a limit",
        clients_stalled [connections] = "clients disconnected because they did not read",
        requests [messages] = "messages from clients",
        requests_invalid [messages] = "of requests, those that were malformed or not permitted there; the connection was closed",
        descriptors_closed [descriptors] = "descriptors that varpd closed because they were attached to messages that take none",
        vifs_registered [vifs] = "vifs registered",
        vifs_refused [vifs] = "registrations refused: the vif belongs to another user, the user is not permitted, the sockets are not as described, or a limit is reached",
        vifs_denied [vifs] = "of vifs_refused, those of users who are not on the vnet's list (allow-users, allow-groups), and of processes that have another vif",
        vifs_reserved [vifs] = "of vifs_refused, those of vifs that varpd keeps for another user, whose backend has ended",
        operators_denied [messages] = "operators' requests refused because the process has a vif or its user is no operator",
        vifs_too_often [vifs] = "of vifs_refused, those beyond the rate of their user (registrations-per-second)",
        vifs_unlisted [vifs] = "of vifs_refused, those on vnets without a section in varpd.toml ([security] vnets)",
        vifs_below_policy [vifs] = "registrations of vifs that are halted: the vnet's policy is lower than their backend permits",
        vifs_resumed [vifs] = "of vifs_registered, those that got the sockets that varpd had kept for them",
        vifs_adopted [vifs] = "of vifs_registered, those that brought their sockets",
        vifs_kept [vifs] = "vifs whose backend ended, and whose sockets varpd kept",
        vifs_forgotten [vifs] = "vifs forgotten because their backend did not return in time",
        macs_learnt [macs] = "MACs registered behind vifs (--learn)",
        macs_refused [macs] = "MACs behind vifs refused: the own MAC of another vif, or a limit",
        macs_beyond [macs] = "of macs_refused, those beyond the number that the vif's backend declared when it registered (--learn)",
        buffers_small [sockets] = "sockets whose buffers are only as large as net.core.rmem_max and wmem_max permit: the opener has ended, or lacks CAP_NET_ADMIN",
        late_frames [frames] = "frames for a vif that has moved, dropped at sockets that varpd kept after its backend ended; varpd told their senders",
        underlay_moves [events] = "times that varpd followed the host to another address",
        underlay_joins [events] = "times that varpd joined the multicast groups again because its address was on another interface, or on one made anew",
        lanes_made [lanes] = "lanes made between vifs of this host",
        lanes_refused [lanes] = "lanes not made because of a limit, or lack of memory or descriptors",
        stats_late [messages] = "counters that a backend sent too late or unasked",
        varp_rx [messages] = "VARP datagrams received",
        varp_rx_malformed [messages] = "of varp_rx, those that are not a VARP message",
        varp_rx_version [messages] = "of varp_rx, messages of another version; the log names their sender and the host that needs an upgrade",
        varp_rx_tag_kind [messages] = "of varp_rx, messages with an unknown kind of tag",
        varp_rx_critical [messages] = "of varp_rx, messages with an unknown flag or extension that is marked critical",
        varp_drop_untagged [messages] = "VARP messages without a tag for a secured vnet",
        varp_other_policy [messages] = "VARP messages accepted under another policy or key than this host sends under, while these are changed",
        varp_drop_key [messages] = "VARP messages whose tag was made with a key that is unknown here",
        varp_drop_forged [messages] = "VARP messages whose tag is wrong",
        varp_drop_stale [messages] = "VARP messages older than 90 s, or of a host whose clock is wrong by as much",
        varp_drop_replayed [messages] = "VARP messages that were received before, or whose sender is one too many for varpd to track",
        varp_drop_foreign [datagrams] = "datagrams to this host's VARP port that the kernel dropped because their length or first bytes match no message; not in varp_rx",
        varp_drop_overflow [messages] = "messages to this host that the kernel dropped because varpd could not read them in time, except those of handshake_drop_overflow",
        handshake_drop_overflow [messages] = "INITs of unknown hosts that the kernel dropped because varpd could not read them in time",
        sa_needed [events] = "times that a backend requested another session: for packets of an unknown one, or because a key's numbers were running out",
        key_files_read [events] = "times that varpd read a key file",
        key_files_failed [events] = "times that a key file was missing, accessible to others or malformed",
        varp_tx [messages] = "VARP messages sent",
        varp_tx_failed [messages] = "of varp_tx, those that the kernel refused",
        varp_tx_limited [messages] = "VARP messages not sent because there were more than 900 a second on one secured vnet",
    }
}
