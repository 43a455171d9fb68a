//! A guest that migrates, and those who watch it.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;
use vnet::sys::clock;

use crate::probe::{Echo, Pinger, Upload, assert_download};
use crate::station::Station;
use crate::support::guest::Guest;
use crate::support::qmp::Qmp;
use crate::support::{pause, wait_until};
use crate::{elapsed, timing};

use super::figures::Figures;
use super::network::Network;
use super::{ADDRESS, LIMIT};

/// Port of the guest's echo server, and at which it receives a file.
const ECHO: u16 = 7;
const FILE: u16 = 5000;
/// Pause that QEMU aims at, in milliseconds.
const DOWNTIME: u64 = 50;
/// Bytes a second: as fast as it goes.
const BANDWIDTH: u64 = 4 << 30;
/// The same of a migration that is to end half way.
pub(super) const CRAWL: u64 = 4 << 20;
/// So many pings are answered before it is believed that all is well.
const SETTLED: usize = 50;

/// A guest that can migrate, and those who watch it. Fields are dropped in this order.
pub(super) struct Stage<N> {
    pub(super) guest: Guest,
    pub(super) monitor: Qmp,
    /// Where it is: 0 or 1.
    host: usize,
    /// How often it has gone, or tried to go, somewhere.
    departures: u32,
    pub(super) station: Station,
    network: N,
}

impl<N: Network> Stage<N> {
    /// A guest on host a with an echo server.
    pub(super) fn new(network: N) -> Self {
        let mut stage = Self::start(network);
        stage.bring_up();
        stage
    }

    /// A guest on host a, which boots meanwhile: see [`Stage::bring_up`].
    pub(super) fn start(network: N) -> Self {
        let station = network.station();
        let guest = network.start_guest("g1-0", 0, false);
        let monitor = guest.monitor();
        Self { guest, monitor, host: 0, departures: 0, station, network }
    }

    /// Waits until the guest has booted, and starts its echo server.
    pub(super) fn bring_up(&mut self) {
        let guest = &mut self.guest;
        guest.wait_boot();
        guest.configure("eth0", &format!("{ADDRESS}/24"));
        guest.run(&format!("nc -ll -p {ECHO} -e cat </dev/null >/dev/null 2>&1 &"));
        guest.run(&format!("until netstat -ltn | grep -q :{ECHO}; do usleep 10000; done"));
    }

    pub(super) fn pings(&self) -> Pinger {
        let pings = Pinger::start(&self.station, ADDRESS);
        wait_until("the first answers", LIMIT, || pings.answered() >= 20);
        pings
    }

    pub(super) fn echo(&self) -> Echo {
        let echo = Echo::start(&self.station, SocketAddr::from((ADDRESS, ECHO)));
        wait_until("the first bytes", LIMIT, || echo.bytes() > 100_000);
        echo
    }

    /// Begins to send the guest a file, a part at a time, so that it takes some seconds.
    pub(super) fn send_file(&mut self, len: u64) -> Upload {
        let guest = &mut self.guest;
        guest.run(&format!("nc -l -p {FILE} </dev/null >/tmp/received 2>/dev/null &"));
        guest.run(&format!("until netstat -ltn | grep -q :{FILE}; do usleep 10000; done"));
        Upload::start(&self.station, SocketAddr::from((ADDRESS, FILE)), len)
    }

    /// Looks at that file: it is in memory that has moved along.
    pub(super) fn assert_received(&mut self, len: u64) {
        let guest = &mut self.guest;
        guest.run("until ! netstat -tn | grep -q :5000.*ESTABLISHED; do usleep 10000; done");
        guest.run(&format!("nc -l -p {FILE} </tmp/received >/dev/null 2>/dev/null &"));
        guest.run(&format!("until netstat -ltn | grep -q :{FILE}; do usleep 10000; done"));
        assert_download(&self.station, SocketAddr::from((ADDRESS, FILE)), len);
    }

    /// A QEMU on the other host that waits for the guest, and its monitor.
    pub(super) fn expect_guest(&mut self) -> (Guest, Qmp) {
        self.departures += 1;
        let name = format!("g1-{}", self.departures);
        let there = self.network.start_guest(&name, 1 - self.host, true);
        let monitor = there.monitor();
        (there, monitor)
    }

    /// Begins to migrate the guest to where it is expected.
    pub(super) fn depart(&mut self, there: &Guest, bandwidth: u64) {
        let limits = json!({ "downtime-limit": DOWNTIME, "max-bandwidth": bandwidth });
        self.monitor.execute("migrate-set-parameters", limits);
        self.monitor.take_event("STOP");
        self.monitor.execute("migrate", json!({ "uri": there.incoming() }));
    }

    /// State of the migration, in QEMU's words, and its figure for the pause.
    fn progress(&mut self) -> (String, Duration) {
        let state = self.monitor.execute("query-migrate", json!({}));
        let status = state["status"].as_str().unwrap_or_default().to_owned();
        (status, Duration::from_millis(state["downtime"].as_u64().unwrap_or(0)))
    }

    pub(super) fn wait_progress(&mut self, wanted: &str) -> Duration {
        let begin = clock::mono();
        loop {
            let (status, downtime) = self.progress();
            if status == wanted {
                return downtime;
            }
            let is_over = ["completed", "failed", "cancelled"].contains(&status.as_str());
            assert!(!is_over, "the migration has {status}");
            assert!(elapsed(begin) < LIMIT, "the migration is still {status}");
            pause();
        }
    }

    /// Waits until so many bytes have left for the destination.
    pub(super) fn wait_transferred(&mut self, bytes: u64) {
        wait_until("memory is transferred", LIMIT, || {
            let state = self.monitor.execute("query-migrate", json!({}));
            let is_under_way =
                ["setup", "active"].contains(&state["status"].as_str().unwrap_or(""));
            assert!(is_under_way, "{state}");
            state["ram"]["transferred"].as_u64() >= Some(bytes)
        });
    }

    /// The guest is where it was, and all know it.
    pub(super) fn assert_answers(&self, pings: &Pinger) {
        let answered = pings.answered();
        wait_until("the guest answers", LIMIT, || pings.answered() >= answered + 20);
        self.network.assert_at_home(self.host);
    }

    /// Migrates the guest to the other host while the station pings it.
    pub(super) fn migrate(&mut self, pings: &Pinger) -> Figures {
        let (mut there, mut monitor) = self.expect_guest();
        let arrivals = self.network.look_out(1 - self.host);
        let begin = timing::wall();
        self.depart(&there, BANDWIDTH);
        let downtime = self.wait_progress("completed");
        let mut resumed = None;
        wait_until("the guest goes on", LIMIT, || {
            resumed = monitor.take_event("RESUME");
            resumed.is_some()
        });
        let stopped = self.monitor.take_event("STOP").expect("the guest has stopped");
        let resumed = resumed.expect("just seen");
        let mut arrived = None;
        wait_until("frames arrive at the new host", LIMIT, || {
            arrived = arrivals.first_since(stopped);
            arrived.is_some()
        });
        let arrived = arrived.expect("just seen");
        settle(pings);

        self.guest.hand_over(&mut there);
        self.monitor.execute("quit", json!({}));
        self.guest.process.wait_end(LIMIT);
        self.guest = there;
        self.monitor = monitor;
        self.host = 1 - self.host;
        self.network.assert_at_home(self.host);
        let mut figures = Figures::of(pings, begin, stopped, arrived, resumed);
        figures.downtime = downtime;
        figures
    }

    /// Stops the guest for so long and lets it go on where it is, for comparison: its code stays
    /// translated.
    pub(super) fn halt(&mut self, pings: &Pinger, length: Duration) -> Figures {
        let begin = timing::wall();
        self.monitor.execute("stop", json!({}));
        let stop = clock::mono();
        while let Some(left) = length.checked_sub(elapsed(stop)) {
            std::thread::park_timeout(left.max(Duration::from_micros(100)));
        }
        self.monitor.execute("cont", json!({}));
        let [stopped, resumed] = ["STOP", "RESUME"].map(|name| self.monitor.take_event(name));
        let (stopped, resumed) = (stopped.expect("it has stopped"), resumed.expect("it goes on"));
        settle(pings);
        Figures::of(pings, begin, stopped, resumed, resumed)
    }

    /// Nothing is sent, and the guest stands still, while others are looked at.
    pub(super) fn rest(&mut self, echo: &Echo) {
        self.station.quiet().store(true, Ordering::Relaxed);
        pause();
        wait_until("all bytes have come back", LIMIT, || echo.is_idle());
        self.monitor.execute("stop", json!({}));
    }

    /// Goes on after a rest.
    pub(super) fn wake(&mut self, pings: &Pinger, echo: &Echo) {
        self.monitor.execute("cont", json!({}));
        for event in ["STOP", "RESUME"] {
            self.monitor.take_event(event);
        }
        let before = echo.bytes();
        self.station.quiet().store(false, Ordering::Relaxed);
        settle(pings);
        wait_until("bytes come back again", LIMIT, || echo.bytes() > before + 100_000);
    }

    /// After all is done: nothing has complained, crashed or started anew.
    pub(super) fn assert_unharmed(mut self) {
        self.guest.assert_not_rebooted();
        self.guest.assert_no_complaints();
        self.network.assert_unharmed();
    }
}

/// Waits until the guest answers again, and then for a while: a second gap would count, too.
fn settle(pings: &Pinger) {
    let answered = pings.answered();
    wait_until("the guest answers", LIMIT, || pings.answered() >= answered + SETTLED);
}
