//! Guests that migrate from host to host while they run, and what their peer notices of it.
//!
//! ```text
//!     station            guest  <------------>  guest          10.0.0.100, 10.0.0.1 on vnet 42
//!        |                 |                      |            virtio-net, vhost-user
//!     backend           backend                backend         both there all the time
//!        |                 |                      |
//!      host c            host a                 host b
//!        +------------- underlay -----------------+            see support/netns.rs
//! ```
//!
//! Figures are told apart:
//!
//! * the guest's own pause, from the STOP event of the QEMU that it leaves to the RESUME event of the one
//!   that it comes to;
//! * the network's delay, from then until the first of the station's frames for it, which leave each
//!   2 ms, arrives at its new host;
//! * the longest time in which the station, which pings each 10 ms, gets no answer. That includes
//!   what the guest takes to come to life: an emulated one has all its code translated anew.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde_json::json;
use vnet::sys::clock;

use super::probe::{Echo, PING_INTERVAL, Pinger, Upload, assert_download};
use super::sniffer::Sniffer;
use super::station::Station;
use super::support::guest::{Guest, Nic, Qemu};
use super::support::netns::Family;
use super::support::qmp::Qmp;
use super::support::vnet::{Backend, Listener, Vif};
use super::support::{can_boot_guests, pause, skip, step, take_turn, wait_until};
use super::{Site, elapsed, newest_qemu};

const GUEST: Vif = Vif { vnet: 42, mac: 1 };
const STATION: Vif = Vif { vnet: 42, mac: 100 };
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// Host of the station, and the two between which the guest migrates.
const STATION_HOST: usize = 2;
/// Port of the guest's echo server.
const ECHO: u16 = 7;

/// Time that a migration may take.
const LIMIT: Duration = Duration::from_secs(60);
/// Pause that QEMU aims at, in milliseconds.
const DOWNTIME: u64 = 50;
/// Bytes a second: as fast as it goes.
const BANDWIDTH: u64 = 4 << 30;
/// The same of a migration that is to end half way.
const CRAWL: u64 = 4 << 20;
/// Length of the file that a guest receives while it migrates, in bytes.
const RECEIVED_LEN: u64 = 6_000_000;
/// From one migration to the next of many. Hosts are told of the moves of a guest that moves all the time
/// no more than once a second.
const SPACING: Duration = Duration::from_secs(3);
/// A machine on which processes wait no longer than this is not too busy.
const QUIET: Duration = Duration::from_millis(10);
/// Port at which it does.
const FILE: u16 = 5000;

/// What the underlay loses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    None,
    Tenth,
}

/// What a guest is like.
#[derive(Clone, Copy, Debug)]
struct Kind {
    qemu: Qemu,
    /// Further options of its NIC, ",name=value" each.
    options: &'static str,
    queue_pairs: u8,
    listener: Listener,
}

impl Kind {
    fn plain() -> Self {
        Self { qemu: newest_qemu(), options: "", queue_pairs: 1, listener: Listener::Backend }
    }

    fn nic<'a>(&'a self, backend: &'a Backend, mtu: Option<u32>) -> Nic<'a> {
        Nic { backend, mtu, options: self.options, queue_pairs: self.queue_pairs }
    }
}

/// A guest that can migrate, and those who watch it. Fields are dropped in this order.
struct Stage {
    guest: Guest,
    monitor: Qmp,
    /// Where it is: 0 or 1.
    host: usize,
    /// How often it has gone, or tried to go, somewhere.
    departures: u32,
    kind: Kind,
    station: Station,
    backends: [Backend; 2],
    site: Site,
}

/// What a migration was like.
#[derive(Clone, Copy, Debug)]
struct Figures {
    /// QEMU's own figure for the pause.
    downtime: Duration,
    /// From STOP to RESUME.
    pause: Duration,
    /// From RESUME until frames arrive.
    delay: Duration,
    /// The longest time without an answer to a ping.
    gap: Duration,
    /// How long the machine let a process wait meanwhile that had something to do.
    lateness: Duration,
}

impl Figures {
    /// What is left of the gap without the guest's pause and an interval of the pings.
    fn added(&self) -> Duration {
        self.gap.saturating_sub(self.pause + PING_INTERVAL)
    }
}

impl Stage {
    /// A guest on host a with an echo server.
    fn new(kind: Kind, loss: Loss) -> Self {
        let site = Site::new(3, Family::V4);
        if loss == Loss::Tenth {
            site.underlay.lose_a_tenth();
        }
        let backend = |host: usize| {
            let name = format!("g1-on-{}", ["a", "b"][host]);
            let pairs = kind.queue_pairs.to_string();
            let further = ["--queue-pairs", &pairs];
            Backend::start_with(&name, GUEST, kind.listener, &site.varpds[host], &further)
        };
        let backends = [backend(0), backend(1)];
        let varpd = &site.varpds[STATION_HOST];
        let station = Station::start(&site.underlay, varpd, STATION, "10.0.0.100/24", GUEST);
        let nic = kind.nic(&backends[0], site.guest_mtu);
        let mut guest = Guest::start("g1-0", kind.qemu, &[nic], site.path());
        guest.wait_boot();
        guest.configure("eth0", &format!("{ADDRESS}/24"));
        guest.run(&format!("nc -ll -p {ECHO} -e cat </dev/null >/dev/null 2>&1 &"));
        guest.run(&format!("until netstat -ltn | grep -q :{ECHO}; do usleep 10000; done"));
        let monitor = guest.monitor();
        Self { guest, monitor, host: 0, departures: 0, kind, station, backends, site }
    }

    fn pings(&self) -> Pinger {
        let pings = Pinger::start(&self.station, ADDRESS);
        wait_until("the first answers", LIMIT, || pings.answered() >= 20);
        pings
    }

    fn echo(&self) -> Echo {
        let echo = Echo::start(&self.station, SocketAddr::from((ADDRESS, ECHO)));
        wait_until("the first bytes", LIMIT, || echo.bytes() > 100_000);
        echo
    }

    /// Begins to send the guest a file, a part at a time, so that it takes some seconds.
    fn send_file(&mut self, len: u64) -> Upload {
        let guest = &mut self.guest;
        guest.run(&format!("nc -l -p {FILE} </dev/null >/tmp/received 2>/dev/null &"));
        guest.run(&format!("until netstat -ltn | grep -q :{FILE}; do usleep 10000; done"));
        Upload::start(&self.station, SocketAddr::from((ADDRESS, FILE)), len)
    }

    /// Looks at that file: it is in memory that has moved along.
    fn assert_received(&mut self, len: u64) {
        let guest = &mut self.guest;
        guest.run("until ! netstat -tn | grep -q :5000.*ESTABLISHED; do usleep 10000; done");
        guest.run(&format!("nc -l -p {FILE} </tmp/received >/dev/null 2>/dev/null &"));
        guest.run(&format!("until netstat -ltn | grep -q :{FILE}; do usleep 10000; done"));
        assert_download(&self.station, SocketAddr::from((ADDRESS, FILE)), len);
    }

    /// A QEMU on the other host that waits for the guest, and its monitor.
    fn expect_guest(&mut self) -> (Guest, Qmp) {
        self.departures += 1;
        let backend = &self.backends[1 - self.host];
        let nic = self.kind.nic(backend, self.site.guest_mtu);
        let name = format!("g1-{}", self.departures);
        let there = Guest::await_migration(&name, self.kind.qemu, &[nic], self.site.path());
        let monitor = there.monitor();
        (there, monitor)
    }

    /// Begins to migrate the guest to where it is expected.
    fn depart(&mut self, there: &Guest, bandwidth: u64) {
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

    fn wait_progress(&mut self, wanted: &str) -> Duration {
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
    fn wait_transferred(&mut self, bytes: u64) {
        wait_until("memory is transferred", LIMIT, || {
            let state = self.monitor.execute("query-migrate", json!({}));
            let is_under_way =
                ["setup", "active"].contains(&state["status"].as_str().unwrap_or(""));
            assert!(is_under_way, "{state}");
            state["ram"]["transferred"].as_u64() >= Some(bytes)
        });
    }

    /// The guest is where it was, and all know it.
    fn assert_answers(&self, pings: &Pinger) {
        let answered = pings.answered();
        wait_until("the guest answers", LIMIT, || pings.answered() >= answered + 20);
        self.assert_at_home();
    }

    /// Migrates the guest to the other host while the station pings it.
    fn migrate(&mut self, pings: &Pinger) -> Figures {
        let (mut there, mut monitor) = self.expect_guest();
        let arrivals =
            Sniffer::start(self.site.underlay.host(1 - self.host), self.port(1 - self.host));
        let begin = clock::mono();
        self.depart(&there, BANDWIDTH);
        let downtime = self.wait_progress("completed");
        let mut resumed = None;
        wait_until("the guest goes on", LIMIT, || {
            resumed = monitor.take_event("RESUME");
            resumed.is_some()
        });
        let stopped = self.monitor.take_event("STOP").expect("the guest has stopped");
        let resumed = resumed.expect("just seen");
        wait_until("frames arrive at the new host", LIMIT, || arrivals.first().is_some());
        let delay = arrivals.first().expect("just seen").saturating_sub(resumed);
        let pause = resumed.saturating_sub(stopped);
        // Until it answers again, and then for a while: a second gap would count, too.
        let answered = pings.answered();
        wait_until("the guest answers", LIMIT, || pings.answered() >= answered + 50);
        let (gap, lateness) = (pings.longest_gap(begin), pings.lateness(begin));

        self.guest.hand_over(&mut there);
        self.monitor.execute("quit", json!({}));
        self.guest.process.wait_end(LIMIT);
        self.guest = there;
        self.monitor = monitor;
        self.host = 1 - self.host;
        self.assert_at_home();
        let [pause, delay] = [pause, delay].map(Duration::from_micros);
        Figures { downtime, pause, delay, gap, lateness }
    }

    /// Stops the guest and lets it go on where it is, for comparison: its code stays translated.
    fn halt(&mut self, pings: &Pinger) -> Figures {
        let begin = clock::mono();
        self.monitor.execute("stop", json!({}));
        wait_until("a pause", LIMIT, || elapsed(begin) > Duration::from_millis(15));
        self.monitor.execute("cont", json!({}));
        let [stopped, resumed] = ["STOP", "RESUME"].map(|name| self.monitor.take_event(name));
        let pause = resumed.expect("it goes on").saturating_sub(stopped.expect("it has stopped"));
        let answered = pings.answered();
        wait_until("the guest answers", LIMIT, || pings.answered() >= answered + 50);
        let (gap, lateness) = (pings.longest_gap(begin), pings.lateness(begin));
        let pause = Duration::from_micros(pause);
        Figures { downtime: pause, pause, delay: Duration::ZERO, gap, lateness }
    }

    /// Port of the guest's vif on a host.
    fn port(&self, host: usize) -> u16 {
        let table = self.site.varpds[host].show("vifs");
        let mut rows = table.as_array().expect("rows").iter();
        let row = rows.find(|row| row["mac"] == GUEST.mac()).expect("the guest's vif");
        let coa = row["coa"].as_str().and_then(|coa| coa.parse::<SocketAddr>().ok());
        coa.expect("a care-of address").port()
    }

    /// The hosts agree that the guest is where it is, and nowhere else.
    fn assert_at_home(&self) {
        let address = self.site.underlay.host(self.host).ipv4.to_string();
        let is_guest = |row: &serde_json::Value| row["mac"] == GUEST.mac();
        wait_until("the mapping is that of the guest's host", LIMIT, || {
            let table = self.site.varpds[STATION_HOST].show("varp");
            let mut rows = table.as_array().expect("rows").iter().filter(|row| is_guest(row));
            rows.all(|row| row["coa"].as_str().is_some_and(|coa| coa.starts_with(&address)))
        });
        for (host, varpd) in self.site.varpds.iter().enumerate().take(2) {
            let wanted = if host == self.host { "active" } else { "registered" };
            wait_until(&format!("the vif of host {host} is {wanted}"), LIMIT, || {
                let table = varpd.show("vifs");
                let mut rows = table.as_array().expect("rows").iter().filter(|row| is_guest(row));
                rows.all(|row| row["state"] == wanted)
            });
        }
    }

    /// After all is done: nothing has complained, crashed or started anew.
    fn assert_unharmed(mut self) {
        self.guest.assert_not_rebooted();
        self.guest.assert_no_complaints();
        for backend in &mut self.backends {
            backend.process.assert_running();
            let log = backend.process.log();
            let complaint = log.lines().find(|line| line.contains("ERROR"));
            assert_eq!(complaint, None);
        }
    }
}

/// Of many values, in order of size.
#[derive(Clone, Copy, Debug)]
struct Percentiles {
    p50: Duration,
    p99: Duration,
    worst: Duration,
}

impl Percentiles {
    fn of(mut values: Vec<Duration>) -> Self {
        values.sort_unstable();
        let at = |percent: usize| values[(values.len() - 1) * percent / 100];
        Self { p50: at(50), p99: at(99), worst: at(100) }
    }
}

/// Prints what migrations were like.
fn report(what: &str, figures: &[Figures]) {
    let row = |name: &str, figure: fn(&Figures) -> Duration| {
        let of = Percentiles::of(figures.iter().map(figure).collect());
        let [p50, p99, worst] = [of.p50, of.p99, of.worst].map(|value| value.as_secs_f64() * 1e3);
        println!("    {name:26} {p50:8.1} {p99:8.1} {worst:8.1}");
    };
    step(&format!("{what}: {} times", figures.len()));
    println!("    {:26} {:>8} {:>8} {:>8}", "in ms", "p50", "p99", "worst");
    row("QEMU's downtime", |figures| figures.downtime);
    row("the guest's pause", |figures| figures.pause);
    row("the network's delay", |figures| figures.delay);
    row("longest gap of the pings", |figures| figures.gap);
    row("  less pause and interval", Figures::added);
    row("the machine's own delay", |figures| figures.lateness);
}

/// Holds the figures against what is promised. Migrations during which the machine had no processor
/// for those who had something to do say nothing about the network, and are left out.
fn judge(loss: Loss, figures: &[Figures]) {
    let is_quiet = |figures: &&Figures| figures.lateness <= QUIET;
    let judged: Vec<&Figures> = figures.iter().filter(is_quiet).collect();
    step(&format!("  {} of them on a machine that was not too busy", judged.len()));
    if judged.is_empty() {
        return skip("the figures of migrations", "the machine is too busy");
    }
    let delay = Percentiles::of(judged.iter().map(|figures| figures.delay).collect());
    let gap = Percentiles::of(judged.iter().map(|figures| figures.gap).collect());
    if loss == Loss::None {
        assert!(delay.p50 <= Duration::from_millis(5), "the network's delay: {delay:?}");
        assert!(delay.p99 <= Duration::from_millis(50), "the network's delay: {delay:?}");
    }
    assert!(gap.worst <= Duration::from_millis(500), "the longest gap: {gap:?}");
}

/// Guest memory that is written to all the time, 4 MiB of it, and a file whose content is known.
fn keep_busy(guest: &mut Guest) -> String {
    guest.run("head -c 6000000 /dev/urandom >/tmp/known");
    guest.run(
        "(while :; do head -c 4000000 /tmp/known >/tmp/busy; usleep 200000; done) \
         </dev/null >/dev/null 2>&1 &",
    );
    guest.run("sha256sum </tmp/known")
}

#[test]
fn a_guest_goes_there_and_back() {
    if !can_boot_guests("a guest that goes there and back") {
        return;
    }
    let _turn = take_turn();
    let mut stage = Stage::new(Kind::plain(), Loss::None);
    let known = keep_busy(&mut stage.guest);
    let pings = stage.pings();
    let echo = stage.echo();

    step("three migrations, while the guest receives a file");
    let file = stage.send_file(RECEIVED_LEN);
    let figures = [(); 3].map(|()| stage.migrate(&pings));
    report("there and back", &figures);
    file.finish();
    stage.assert_received(RECEIVED_LEN);

    step("a migration that is cancelled half way");
    let (there, _) = stage.expect_guest();
    stage.depart(&there, CRAWL);
    stage.wait_transferred(4 << 20);
    stage.monitor.execute("migrate_cancel", json!({}));
    stage.wait_progress("cancelled");
    stage.assert_answers(&pings);
    drop(there);

    step("a migration whose destination dies half way");
    let (mut there, _) = stage.expect_guest();
    stage.depart(&there, CRAWL);
    stage.wait_transferred(4 << 20);
    there.process.kill();
    stage.wait_progress("failed");
    stage.assert_answers(&pings);
    drop(there);

    step("a migration after those");
    report("after two that failed", &[stage.migrate(&pings)]);
    assert_eq!(stage.guest.run("sha256sum </tmp/known"), known, "what the guest knew");
    let bytes = echo.finish();
    step(&format!("  {bytes} bytes went there and back; {} pings were lost", pings.lost()));
    drop(pings);
    stage.assert_unharmed();
}

/// The other QEMU, and a guest that does not announce itself: QEMU tells the backend to.
#[test]
fn a_guest_that_does_not_announce_itself() {
    if !can_boot_guests("a guest that does not announce itself") {
        return;
    }
    let _turn = take_turn();
    let kind = Kind { qemu: Qemu::Installed, options: ",guest_announce=off", ..Kind::plain() };
    let mut stage = Stage::new(kind, Loss::None);
    let pings = stage.pings();
    let echo = stage.echo();
    let before = stage.station.rarps();
    let figures = [(); 2].map(|()| stage.migrate(&pings));
    report("without GUEST_ANNOUNCE", &figures);
    // QEMU's last SEND_RARP falls into the series that the arrival began.
    wait_until("each arrival is announced in the vnet", LIMIT, || {
        stage.station.rarps() - before >= 6
    });
    echo.finish();
    drop(pings);
    stage.assert_unharmed();
}

/// QEMU says everything once for each pair. The backends connect to it.
#[test]
fn a_guest_with_two_queue_pairs() {
    if !can_boot_guests("a guest with two queue pairs") {
        return;
    }
    let _turn = take_turn();
    let mut stage =
        Stage::new(Kind { queue_pairs: 2, listener: Listener::Qemu, ..Kind::plain() }, Loss::None);
    assert_eq!(stage.guest.number("ls -d /sys/class/net/eth0/queues/rx-* | wc -l"), 2);
    let pings = stage.pings();
    // Connections are spread over the pairs by their ports.
    let echoes = [(); 4].map(|()| stage.echo());
    let figures = [(); 2].map(|()| stage.migrate(&pings));
    report("two queue pairs", &figures);
    for echo in echoes {
        echo.finish();
    }
    drop(pings);
    stage.assert_unharmed();
}

/// Many migrations, as many as VNET_MIGRATIONS says: `tests/run --migrations 50`.
#[test]
#[ignore = "takes minutes: tests/run --migrations N"]
fn many_migrations() {
    if !can_boot_guests("many migrations") {
        return;
    }
    let _turn = take_turn();
    let count = std::env::var("VNET_MIGRATIONS").ok().and_then(|count| count.parse().ok());
    let count: usize = count.unwrap_or(10);
    for loss in [Loss::None, Loss::Tenth] {
        let mut stage = Stage::new(Kind::plain(), loss);
        let pings = stage.pings();
        let echo = stage.echo();
        let in_place = [(); 10].map(|()| stage.halt(&pings));
        report("stopped and continued where it is", &in_place);
        let mut figures = Vec::new();
        for _ in 0..count {
            let begin = clock::mono();
            figures.push(stage.migrate(&pings));
            wait_until("it may move again", LIMIT, || elapsed(begin) > SPACING);
        }
        let what = match loss {
            Loss::None => "without loss",
            Loss::Tenth => "with a tenth of all packets lost",
        };
        report(what, &figures);
        let bytes = echo.finish();
        step(&format!(
            "  TCP: no reset, {bytes} bytes there and back; lost pings: {}",
            pings.lost()
        ));
        judge(loss, &figures);
        drop(pings);
        stage.assert_unharmed();
    }
}
