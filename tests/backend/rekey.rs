//! New keys all the time, for minutes: bulk traffic and pings between two hosts lose nothing by it.
//!
//! ```text
//!     bulk, both ways        g1           g2
//!     pings, each 10 ms      p1           p2, which sends them back
//!                             |            |
//!                          host a ====== host b        new keys every 10 s
//! ```

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use vnet::sys::clock;
use vnet::time::Instant;

use crate::Net;
use crate::nic::{Nic, frame, mac, vif};
use crate::secured::{Keys, assert_no_drops, varpd_counter};
use crate::support::{pause, step};

/// Age at which keys are replaced.
const REKEY: Duration = Duration::from_secs(10);
/// Time between two pings.
const INTERVAL: Duration = Duration::from_millis(10);
/// How long is waited for the last answers.
const GRACE: Duration = Duration::from_secs(2);
/// Frames each way that are under way at a time, and their length: they fit the sockets' buffers.
const WINDOW: u32 = 96;
const LEN: usize = 1400;

/// What has become of the pings.
#[derive(Debug, Default)]
struct Pings {
    sent: Vec<Instant>,
    /// How long each took, by number; those that were answered.
    times: Vec<Option<Duration>>,
}

impl Pings {
    fn send(&mut self, nic: &mut Nic, to: [u8; 6]) {
        nic.send(to, self.sent.len() as u32);
        self.sent.push(clock::mono());
        self.times.push(None);
    }

    fn receive(&mut self, nic: &mut Nic, from: [u8; 6], timeout: Duration) {
        if let Some(number) = nic.try_receive(from, timeout) {
            let place = number as usize;
            let earlier = self.times[place].replace(clock::mono() - self.sent[place]);
            assert_eq!(earlier, None, "ping {number} was answered twice");
        }
    }

    fn lost(&self) -> usize {
        self.times.iter().filter(|time| time.is_none()).count()
    }

    /// p50, p99 and the longest.
    fn percentiles(&self) -> [Duration; 3] {
        let mut times: Vec<Duration> = self.times.iter().flatten().copied().collect();
        times.sort_unstable();
        [50, 99, 100].map(|percent| times[(times.len() - 1) * percent / 100])
    }
}

/// Sends pings until told to end.
fn ping(nic: &mut Nic, to: [u8; 6], end: &AtomicBool) -> Pings {
    let mut pings = Pings::default();
    let mut next = clock::mono();
    while !end.load(Ordering::Relaxed) {
        if clock::mono() >= next {
            pings.send(nic, to);
            next += INTERVAL;
        }
        let left = next.saturating_since(clock::mono());
        pings.receive(nic, to, left.max(Duration::from_millis(1)));
    }
    let begin = clock::mono();
    while pings.lost() > 0 && clock::mono() - begin < GRACE {
        pings.receive(nic, to, Duration::from_millis(10));
    }
    pings
}

/// Sends everything back until told to end.
fn answer(nic: &mut Nic, from: [u8; 6], end: &AtomicBool) {
    while !end.load(Ordering::Relaxed) {
        if let Some(number) = nic.try_receive(from, Duration::from_millis(20)) {
            nic.send(from, number);
        }
    }
}

/// Sends to and fro; returns how many frames went each way, and the longest time for a window.
fn bulk(one: &mut Nic, two: &mut Nic, until: Instant) -> (u32, Duration) {
    let (mut sent, mut slowest) = (0, Duration::ZERO);
    loop {
        let begin = clock::mono();
        if begin >= until {
            return (sent, slowest);
        }
        for n in sent..sent + WINDOW {
            one.queue_frame(&frame(mac(2), mac(1), n, LEN));
            two.queue_frame(&frame(mac(1), mac(2), n, LEN));
        }
        one.driver.flush(0);
        two.driver.flush(0);
        for n in sent..sent + WINDOW {
            assert_eq!(two.receive(mac(1)), n);
            assert_eq!(one.receive(mac(2)), n);
        }
        sent += WINDOW;
        slowest = slowest.max(clock::mono() - begin);
    }
}

/// `tests/run --rekey-minutes 10`.
#[test]
#[ignore = "takes as many minutes as VNET_REKEY_MINUTES says"]
fn rekey_for_minutes() {
    let minutes: u32 = std::env::var("VNET_REKEY_MINUTES")
        .ok()
        .and_then(|text| text.parse().ok())
        .expect("VNET_REKEY_MINUTES is a number of minutes");
    let keys = Keys::new();
    let more = format!("[security]\nrekey = {}\n", REKEY.as_secs());
    let config = keys.config("conf", "k", &[("use", "a1")], &more);
    let what = format!("new keys every 10 s for {minutes} minutes");
    let Some(net) = Net::with_configs(&what, &[config.clone(), config]) else { return };
    let [mut one, mut p1] =
        [("g1", 1), ("p1", 3)].map(|(name, last)| Nic::start(name, vif(42, last), &net.varpds[0]));
    let [mut two, mut p2] =
        [("g2", 2), ("p2", 4)].map(|(name, last)| Nic::start(name, vif(42, last), &net.varpds[1]));
    one.introduce(&mut two);
    p1.introduce(&mut p2);
    let sessions = || [0, 1].map(|host| varpd_counter(&net.varpds[host], "sa_sessions"));
    let before = sessions();
    let (end, all_ended) = (AtomicBool::new(false), AtomicBool::new(false));
    let begin = clock::mono();
    let ((frames, slowest), pings) = std::thread::scope(|scope| {
        let pinger = scope.spawn(|| ping(&mut p1, mac(4), &end));
        scope.spawn(|| answer(&mut p2, mac(3), &all_ended));
        let until = begin + Duration::from_secs(60) * minutes;
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            bulk(&mut one, &mut two, until)
        }));
        end.store(true, Ordering::Relaxed);
        while !pinger.is_finished() {
            pause();
        }
        all_ended.store(true, Ordering::Relaxed);
        let bulk = outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (bulk, pinger.join().unwrap())
    });
    let rekeys: Vec<u64> = sessions().iter().zip(before).map(|(now, then)| now - then).collect();
    let [p50, p99, longest] = pings.percentiles();
    step(&format!(
        "{frames} frames of {LEN} bytes each way in {:?}, none lost, a window of {WINDOW} took at most \
         {slowest:?}; {} pings, {} lost, p50 {p50:?}, p99 {p99:?}, longest {longest:?}; \
         {rekeys:?} new sessions at the hosts",
        clock::mono() - begin,
        pings.sent.len(),
        pings.lost(),
    ));
    assert_eq!(pings.lost(), 0);
    for count in rekeys {
        // Keys are replaced a little before they are ten seconds old.
        assert!(count >= u64::from(minutes) * 60 / REKEY.as_secs() - 1, "{count} new sessions");
    }
    for (host, nic) in [(0, &one), (0, &p1), (1, &two), (1, &p2)] {
        assert_no_drops(&net, host, nic);
    }
}
