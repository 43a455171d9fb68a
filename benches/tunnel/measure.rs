//! One measurement of one subject.

use std::io;
use std::time::Duration;

use vnet::sys::clock;

use crate::board::{FLOWS, Progress};
use crate::cpu::{Spent, Times};
use crate::frames::Load;
use crate::station::{Order, Outcome};
use crate::subject::Subject;
use crate::traffic::{Plan, Requests, RoundTrips};

/// Traffic runs for this long before it is measured.
const SETTLE: Duration = Duration::from_millis(100);
/// An order ends by itself when its measurement should have ended so long ago.
const GRACE: Duration = Duration::from_secs(10);
/// Frame length of requests and replies, in bytes.
const REQUEST_FRAME: usize = 64;
/// From a reply to the next request, in microseconds.
pub(crate) const REQUEST_GAP_US: u64 = 30;

/// At most this much of a flow is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Window {
    pub(crate) bytes: u64,
    pub(crate) frames: u64,
}

/// What a flow of frames made.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rate {
    /// Verified payload, in bits per nanosecond: Gbit/s.
    pub(crate) gbit: f64,
    /// Verified datagrams, million per second.
    pub(crate) mega_units: f64,
    /// Share of the units that did not arrive.
    pub(crate) loss: f64,
    /// How often a whole window was lost, so that the sender paused.
    pub(crate) stalls: u64,
    /// Processor time per gigabyte of payload, in seconds.
    pub(crate) cpu_per_gb: f64,
    /// Processor time per unit (a datagram, for frames), in microseconds.
    pub(crate) cpu_per_unit: f64,
    /// Share of the machine's processor time that went elsewhere.
    pub(crate) others: f64,
}

/// Waits for as long, and looks whether a station gives up meanwhile.
fn wait(subject: &Subject, station: usize, time: Duration) -> io::Result<()> {
    match subject.stations[station].answer_within(time)? {
        None => Ok(()),
        Some(outcome) => Err(io::Error::other(format!("ended too early: {outcome:?}"))),
    }
}

/// Starts `load` on a link; ends with [`stop_load`].
fn start_load(
    subject: &mut Subject,
    link: u8,
    load: Load,
    window: Window,
    time: Duration,
) -> io::Result<()> {
    let flows = subject.flows(link, subject.conditions.queue_pairs.min(FLOWS));
    let (path, board) = &subject.boards[usize::from(link)];
    board.reset();
    let path = path.clone();
    let limit_ms = (time + SETTLE + GRACE).as_millis() as u64;
    let ports = flows.iter().map(|flow| flow.port).collect();
    let from = usize::from(2 * link);
    let receive = Order::Receive { board: path.clone(), ports, limit_ms };
    subject.stations[from + 1].order(&receive)?;
    let plan = Plan { load, window: window.bytes, window_frames: window.frames, limit_ms };
    subject.stations[from].order(&Order::Send { board: path, flows, plan })
}

/// Ends the load and tells of faults as errors.
fn stop_load(subject: &mut Subject, link: u8, rate: &mut Rate) -> io::Result<()> {
    let (_, board) = &subject.boards[usize::from(link)];
    board.stop();
    let from = usize::from(2 * link);
    let sent = subject.stations[from].answer()?;
    let received = subject.stations[from + 1].answer()?;
    match (sent, received) {
        (Outcome::Sent(sent), Outcome::Received { fault: None, torn }) => {
            rate.stalls = sent.iter().map(|sent| sent.given_up).sum();
            subject.torn = torn;
            Ok(())
        }
        (sent, received) => {
            let what = format!("{:?}: {sent:?}, {received:?}", subject.kind);
            Err(io::Error::other(what))
        }
    }
}

fn progress(subject: &Subject, link: u8) -> Progress {
    let (_, board) = &subject.boards[usize::from(link)];
    (0..FLOWS).map(|flow| board.progress(flow)).fold(Progress::default(), Progress::plus)
}

/// Sends `load` over the first link for `time`.
pub(crate) fn rate(
    subject: &mut Subject,
    load: Load,
    window: Window,
    time: Duration,
) -> io::Result<Rate> {
    start_load(subject, 0, load, window, time)?;
    wait(subject, 0, SETTLE)?;
    let meter = Meter::start(subject, 0)?;
    wait(subject, 0, time)?;
    let mut rate = meter.read(subject)?;
    stop_load(subject, 0, &mut rate)?;
    Ok(rate)
}

/// What was there when a measurement began.
struct Meter {
    link: u8,
    begin: vnet::time::Instant,
    progress: Progress,
    times: Times,
}

impl Meter {
    fn start(subject: &Subject, link: u8) -> io::Result<Self> {
        let times = Times::now()?;
        Ok(Self { link, begin: clock::mono(), progress: progress(subject, link), times })
    }

    fn read(&self, subject: &Subject) -> io::Result<Rate> {
        let now = progress(subject, self.link);
        let seconds = (clock::mono() - self.begin).as_secs_f64();
        let times = Times::now()?;
        let spent = times.since(&self.times, &subject.generators(), &subject.tested());
        let bytes = now.bytes.saturating_sub(self.progress.bytes) as f64;
        let units = now.units.saturating_sub(self.progress.units) as f64;
        let lost = now.lost.saturating_sub(self.progress.lost) as f64;
        let Spent { path, others, .. } = spent;
        let processors = std::thread::available_parallelism()?.get() as f64;
        Ok(Rate {
            gbit: bytes * 8.0 / seconds / 1e9,
            mega_units: units / seconds / 1e6,
            loss: if units > 0.0 { lost / (units + lost) } else { 0.0 },
            stalls: 0,
            cpu_per_unit: if units > 0.0 { path * 1e6 / units } else { 0.0 },
            cpu_per_gb: if bytes > 0.0 { path / (bytes / 1e9) } else { 0.0 },
            others: others / (seconds * processors),
        })
    }
}

/// Asks over `link` for `time`, or `most` times.
fn round_trips(
    subject: &mut Subject,
    link: u8,
    (time, most): (Duration, usize),
    patience: Duration,
) -> io::Result<RoundTrips> {
    let Some(flow) = subject.flows(link, 1).pop() else { return Ok(RoundTrips::default()) };
    let (path, board) = &subject.boards[usize::from(link)];
    board.reset();
    let requests = Requests {
        frame: REQUEST_FRAME,
        gap_us: REQUEST_GAP_US,
        patience_ms: patience.as_millis() as u64,
        duration_ms: time.as_millis() as u64,
        most,
    };
    let limit_ms = (time + GRACE).as_millis() as u64;
    let reply = Order::Reply { board: path.clone(), flow, frame: REQUEST_FRAME, limit_ms };
    let from = usize::from(2 * link);
    subject.stations[from + 1].order(&reply)?;
    subject.stations[from].order(&Order::Request { flow, requests })?;
    let result = subject.stations[from].answer()?;
    subject.boards[usize::from(link)].1.stop();
    subject.stations[from + 1].answer()?;
    match result {
        Outcome::RoundTrips(trips) => Ok(trips),
        other => Err(io::Error::other(format!("{other:?}"))),
    }
}

/// Makes sure that both links work, and that everybody has learnt where everybody is.
pub(crate) fn introduce(subject: &mut Subject) -> io::Result<()> {
    for link in 0..2 {
        let patience = Duration::from_secs(1);
        let trips = round_trips(subject, link, (Duration::from_secs(10), 100), patience)?;
        if trips.micros.len() < 100 {
            let what = format!("{:?}: link {link} does not work: {trips:?}", subject.kind);
            return Err(io::Error::other(what));
        }
    }
    Ok(())
}

/// A reply that takes longer than this is lost.
const REPLY_PATIENCE: Duration = Duration::from_millis(100);

/// Round trips on an idle machine.
pub(crate) fn idle_latency(subject: &mut Subject, time: Duration) -> io::Result<RoundTrips> {
    let meter = Meter::start(subject, 0)?;
    let mut trips = round_trips(subject, 0, (time, usize::MAX), REPLY_PATIENCE)?;
    trips.others = meter.read(subject)?.others;
    Ok(trips)
}

/// Round trips on the second link, beside `load` on the first; and what that made.
pub(crate) fn loaded_latency(
    subject: &mut Subject,
    load: Load,
    window: Window,
    time: Duration,
) -> io::Result<(RoundTrips, Rate)> {
    start_load(subject, 0, load, window, time)?;
    wait(subject, 0, SETTLE)?;
    let meter = Meter::start(subject, 0)?;
    let trips = round_trips(subject, 1, (time, usize::MAX), REPLY_PATIENCE)?;
    let mut rate = meter.read(subject)?;
    stop_load(subject, 0, &mut rate)?;
    Ok((trips, rate))
}
