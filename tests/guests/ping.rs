//! Pings, counted by the guest's kernel.
//!
//! What ping itself counts is not enough where nothing may be lost: its socket holds about twenty
//! answers, and a guest that the host has not run for a moment gets more at once.

use std::time::Duration;

use super::support::guest::{Guest, Running};

/// Prints what a guest's kernel counted since it booted, of both IP versions.
pub(crate) const COUNTED: &str =
    "cat /proc/net/snmp; grep -vE '[^0-9]0$' /proc/net/snmp6; ip neigh show";

/// Pings that are under way.
pub(crate) struct Pings {
    count: u64,
    before: u64,
    running: Running,
}

impl Pings {
    /// Starts `count` pings; `arguments` for ping end with the address.
    pub(crate) fn start(guest: &mut Guest, count: u64, arguments: &str) -> Self {
        let before = answers(guest);
        let running = guest.spawn(&format!("ping -q -c {count} -W 2 {arguments}"));
        Self { count, before, running }
    }

    /// How many have been answered so far.
    pub(crate) fn answered(&self, guest: &mut Guest) -> u64 {
        answers(guest) - self.before
    }

    /// Waits for the end; returns how many have been answered.
    pub(crate) fn finish(self, guest: &mut Guest) -> u64 {
        let (_, output) = guest.wait(self.running);
        let sent = format!("{} packets transmitted", self.count);
        assert!(output.contains(&sent), "{output}");
        answers(guest) - self.before
    }

    /// Waits for the end; panics unless all have been answered.
    pub(crate) fn assert_all_answered(self, guest: &mut Guest) {
        let count = self.count;
        let answered = self.finish(guest);
        assert!(
            answered == count,
            "{answered} of {count} pings were answered; what the guest's kernel counted:\n{}",
            guest.run(COUNTED),
        );
    }
}

/// Pings; panics unless all are answered.
pub(crate) fn assert_all_answered(guest: &mut Guest, count: u64, arguments: &str) {
    Pings::start(guest, count, arguments).assert_all_answered(guest);
}

/// Pings once; returns the time until the answer, which includes all address resolution.
pub(crate) fn first_ping(guest: &mut Guest, to: &str) -> Duration {
    let output = guest.run(&format!("ping -c 1 -W 5 {to}"));
    let time = output.split_once("time=").and_then(|(_, rest)| rest.split_once(" ms"));
    let milliseconds: f64 = time.and_then(|(time, _)| time.parse().ok()).expect("a time from ping");
    Duration::from_secs_f64(milliseconds / 1000.0)
}

/// Echo replies that the guest has received since it booted, of both IP versions.
fn answers(guest: &mut Guest) -> u64 {
    guest.number(
        "awk '$1 == \"Icmp:\" && column { n += $column } \
         $1 == \"Icmp:\" { for (i = 2; i <= NF; i++) if ($i == \"InEchoReps\") column = i } \
         $1 == \"Icmp6InEchoReplies\" { n += $2 } END { print n + 0 }' \
         /proc/net/snmp /proc/net/snmp6",
    )
}
