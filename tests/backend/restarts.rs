//! Programs that end and come back while frames pass.
//!
//! ```text
//!     guest 1: its backend is killed       guest 2
//!         |                                   |
//!       host a                              host b
//! ```

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use vnet::sys::clock;

use crate::nic::{BROADCAST, LEN, Nic, frame, mac, vif};
use crate::support::netns::Family;
use crate::support::vnet::Varpd;
use crate::support::{pause, step, wait_until};
use crate::{Net, SOON};

/// How often the backend is killed.
const DEATHS: u32 = 100;
/// Frames on their way in each direction when it is: fewer than may wait for resolution.
const ON_THEIR_WAY: u32 = 40;
/// Datagrams that a backend reads at once: those are lost with it.
const READ_AT_ONCE: u32 = 32;

/// Open descriptors of varpd. The connection of an operator who was just there may not have been
/// closed yet: the least of several looks counts.
fn open_files(varpd: &Varpd) -> usize {
    let directory = format!("/proc/{}/fd", varpd.process.pid());
    let looks = (0..20).map(|_| {
        pause();
        std::fs::read_dir(&directory).unwrap().count()
    });
    looks.min().unwrap()
}

/// Processes whose command line names this directory, but those that end with their varpd (its opener).
fn processes(directory: &Path) -> BTreeSet<u32> {
    let directory = directory.to_str().unwrap().as_bytes();
    let pids = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let pid: u32 = entry.unwrap().file_name().to_str()?.parse().ok()?;
        let of = |what| std::fs::read(format!("/proc/{pid}/{what}")).ok();
        let (line, name) = (of("cmdline")?, of("comm")?);
        let is_own = name != b"varpd-opener\n";
        let mut parts = line.windows(directory.len());
        (is_own && parts.any(|part| part == directory)).then_some(pid)
    });
    pids.collect()
}

/// Key, care-of address and state of the vifs of a host.
fn vifs(varpd: &Varpd) -> Vec<[String; 4]> {
    let rows = varpd.show("vifs");
    let cells = ["vnet", "mac", "coa", "state"];
    rows.as_array().unwrap().iter().map(|row| cells.map(|cell| row[cell].to_string())).collect()
}

/// A stream of numbered frames in one direction.
#[derive(Default)]
struct Stream {
    sent: u32,
    /// Which have arrived.
    arrived: Vec<bool>,
    last: Option<u32>,
    twice: u32,
}

impl Stream {
    fn queue(&mut self, from: &mut Nic, to: [u8; 6]) {
        from.queue_frame(&frame(to, from.mac(), self.sent, LEN));
        self.sent += 1;
        self.arrived.push(false);
    }

    fn take(&mut self, number: u32) {
        let slot = &mut self.arrived[number as usize];
        self.twice += u32::from(*slot);
        *slot = true;
        self.last = self.last.max(Some(number));
    }

    fn receive_all(&mut self, to: &mut Nic, from: [u8; 6]) {
        while let Some(number) = to.try_receive(from, Duration::ZERO) {
            self.take(number);
        }
    }

    fn lost(&self) -> u32 {
        self.arrived.iter().filter(|arrived| !**arrived).count() as u32
    }
}

/// A killed backend's successor gets the same care-of address, finishes what the guest had queued,
/// and loses at most what its predecessor had read.
#[test]
fn a_backend_may_be_killed_at_any_time() {
    let Some(net) = Net::new("a backend is killed 100 times", 2) else { return };
    let mut one = Nic::start("g1", vif(42, 1), &net.varpds[0]);
    let mut two = Nic::start("g2", vif(42, 2), &net.varpds[1]);
    let (mut out, mut back) = (Stream::default(), Stream::default());
    exchange(&mut one, &mut two, &mut out, &mut back);
    let registered = net.each(vifs);
    let files = net.each(open_files);
    let mut gaps = Vec::new();
    for n in 0..DEATHS {
        for _ in 0..ON_THEIR_WAY {
            out.queue(&mut one, mac(2));
            back.queue(&mut two, mac(1));
        }
        one.driver.flush(0);
        two.driver.flush(0);
        // Not always at the same moment.
        let later = clock::mono() + Duration::from_micros((n * 37 % 400).into());
        while clock::mono() < later {}
        let killed = clock::mono();
        one.backend.process.kill();
        one.backend.start_again();
        one.reconnect();
        exchange(&mut one, &mut two, &mut out, &mut back);
        gaps.push(clock::mono() - killed);
        one.wait_state("active", &net.varpds[0]);
        assert_eq!(net.each(vifs), registered, "the same vifs at the same places");
    }
    assert_eq!(out.lost(), 0, "what the guest had queued is sent by the next backend");
    assert!(back.lost() <= DEATHS * READ_AT_ONCE, "{} were lost", back.lost());
    assert_eq!(back.twice, 0, "nothing is delivered twice");
    assert_eq!(net.each(open_files), files, "descriptors of varpd");
    let running = [&net.varpds[0], &net.varpds[1]].map(|varpd| varpd.process.pid());
    let backends = [&one, &two].map(|nic| nic.backend.process.pid());
    assert_eq!(processes(net.path()), running.into_iter().chain(backends).collect());
    gaps.sort_unstable();
    let (median, longest) = (gaps[gaps.len() / 2], gaps[gaps.len() - 1]);
    step(&format!(
        "{DEATHS} deaths: frames passed again both ways after {median:?} (median), at most \
         {longest:?}; {} of {} frames sent were sent twice, {} of {} to it were lost",
        out.twice,
        out.sent,
        back.lost(),
        back.sent
    ));
}

/// Sends a frame each way and waits for both; all that was sent before comes first.
fn exchange(one: &mut Nic, two: &mut Nic, out: &mut Stream, back: &mut Stream) {
    out.queue(one, mac(2));
    back.queue(two, mac(1));
    one.driver.flush(0);
    two.driver.flush(0);
    wait_until("frames pass both ways", SOON, || {
        out.receive_all(two, mac(1));
        back.receive_all(one, mac(2));
        out.last == Some(out.sent - 1) && back.last == Some(back.sent - 1)
    });
}

/// Sends a frame about every millisecond until told to stop, unicast and to all in turns; each has
/// to arrive.
fn stream(one: &mut Nic, two: &mut Nic, stop: &AtomicBool) -> u32 {
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        let to = if sent % 4 == 3 { BROADCAST } else { mac(2) };
        one.send(to, sent);
        assert_eq!(two.receive(mac(1)), sent);
        sent += 1;
        two.send(mac(1), sent);
        assert_eq!(one.receive(mac(2)), sent);
        std::thread::park_timeout(Duration::from_millis(1));
    }
    sent
}

/// While varpd is away longer than mappings live, and as it comes back, no frame is lost.
#[test]
fn varpd_may_be_killed_at_any_time() {
    // Mappings are refreshed several times a second.
    let config = "[timers]\nlifetime = 1\n";
    let what = "varpd is killed under a stream of frames";
    let Some(mut net) = Net::with(what, 2, Family::V4, config) else { return };
    let mut one = Nic::start("g1", vif(42, 1), &net.varpds[0]);
    let mut two = Nic::start("g2", vif(42, 2), &net.varpds[1]);
    // A frame whose destination is not known yet would wait for varpd, but not for that long.
    one.introduce(&mut two);
    let before = net.each(vifs);
    let stop = AtomicBool::new(false);
    let sent = std::thread::scope(|scope| {
        let streaming = scope.spawn(|| stream(&mut one, &mut two, &stop));
        // Both hosts' at once, for longer than mappings live.
        net.varpds.iter_mut().for_each(Varpd::kill);
        watch(Duration::from_secs(2));
        for _ in 0..3 {
            for varpd in &mut net.varpds {
                varpd.kill();
                varpd.start_again();
                wait_until("the vif is registered again", SOON, || {
                    vifs(varpd).iter().any(|vif| vif[3] == "\"active\"")
                });
            }
        }
        // Longer than what the backends keep beyond the return of varpd.
        watch(Duration::from_secs(6));
        stop.store(true, Ordering::Relaxed);
        streaming.join().unwrap()
    });
    assert_eq!(net.each(vifs), before, "the same vifs at the same places");
    for (nic, varpd) in [&one, &two].into_iter().zip(&net.varpds) {
        assert_eq!(nic.counters(varpd).sum("tx_drop_"), 0);
    }
    step(&format!("{sent} frames each way, none lost"));
}

/// Lets frames pass for a while.
fn watch(duration: Duration) {
    let end = clock::mono() + duration;
    while clock::mono() < end {
        pause();
    }
}

/// The group sockets at hand don't suit the new configuration: backends get others, and keep their care-of
/// addresses.
#[test]
fn varpd_may_come_back_with_another_group() {
    let Some(mut net) = Net::new("varpd comes back with another group", 2) else { return };
    let mut one = Nic::start("g1", vif(42, 1), &net.varpds[0]);
    let mut two = Nic::start("g2", vif(42, 2), &net.varpds[1]);
    one.introduce(&mut two);
    let before = net.each(vifs);
    net.varpds.iter_mut().for_each(Varpd::kill);
    for varpd in &mut net.varpds {
        std::fs::write(&varpd.config, "group = '224.10.0.99'\n").unwrap();
        varpd.start_again();
    }
    for (nic, varpd) in [(&mut one, &net.varpds[0]), (&mut two, &net.varpds[1])] {
        nic.wait_state("active", varpd);
    }
    assert_eq!(net.each(vifs), before, "the same vifs at the same places");
    // Group frames by the new group, others as before.
    one.send(BROADCAST, 1);
    assert_eq!(two.receive(mac(1)), 1);
    two.send(mac(1), 2);
    assert_eq!(one.receive(mac(2)), 2);
}
