//! The counters of hello.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::metrics::counters;

counters! {
    /// HELLO and LIST messages that varpd sent, received and dropped.
    HostsCounters by HostsCounter {
        hello_tx [messages] = "HELLO messages sent to the group",
        hello_tx_beacons [messages] = "HELLO messages sent as beacons, to the default groups and port",
        hello_tx_questions [messages] = "HELLO messages sent to one host, to ask for its list or to see whether it answers",
        hello_tx_answers [messages] = "HELLO messages sent to one host that asked",
        hello_tx_lists [messages] = "LIST messages sent",
        hello_rx [messages] = "HELLO and LIST messages received",
        hello_rx_beacons [messages] = "of hello_rx, beacons",
        hello_rx_malformed [messages] = "of hello_rx, those that are malformed",
        hello_rx_version [messages] = "of hello_rx, those of another version",
        hello_joined [hosts] = "hosts heard for the first time, or again after they had left",
        hello_left [hosts] = "hosts that announced that they leave, or that were silent for four intervals",
        hello_limited [messages] = "questions not answered because of a limit, per host or in total",
        hello_drop_own [messages] = "own HELLO and LIST messages that the underlay handed back",
        hello_drop_port [messages] = "HELLO and LIST messages from another port than VARP's, and beacons from another port than they name",
        hello_drop_source [messages] = "HELLO and LIST messages from another address than their sender's",
        hello_drop_cast [messages] = "HELLO messages to the group with a nonce, or to this host without one, and beacons to this host alone",
        hello_drop_relay [messages] = "HELLO messages of relays, which this version does not support",
        hello_drop_unasked [messages] = "answers to a question that this host did not ask",
        hello_drop_unknown [messages] = "LIST messages and farewells of hosts whose HELLO was not heard",
        hello_drop_farewell [messages] = "farewells of hosts that have proved an entry of a secured vnet: varpd removes these hosts only when their lifetime ends",
        hello_drop_stale [messages] = "HELLO and LIST messages that may be recorded ones: their time was received before, is older than the last 64 of their sender, or older than the newest of a member; or their tags are more than 90 s off this host's clock and their sender has answered no question",
        hello_drop_forged [entries] = "entries of LIST messages with a wrong tag, for a secured vnet",
        hello_drop_full [messages] = "HELLO messages and beacons of new hosts, and LIST messages with entries, for which the table had no room",
    }
}
