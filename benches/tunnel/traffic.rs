//! The traffic: a sender that keeps a window, a receiver that verifies, requests and replies.
//!
//! UDP tunnels and taps have no back-pressure, and there is no TCP here, so a sender that sends as
//! fast as it can would measure how fast frames can be lost. Instead at most a window of the flow
//! is under way: the receiver says how far it has come through shared memory, and the sender, when
//! the window is full, sleeps until half of it has arrived. What is lost moves the window on as
//! well once something later arrives; a window whose last frames are lost moves on after a pause.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vnet::sys::clock;
use vnet::time::Instant;

use crate::arrivals::{Arrival, Fault, Stretch};
use crate::board::{Board, Progress};
use crate::frames::{Flow, Load, Offload, Packets};
use crate::lane::Lane;
use crate::pattern::Pattern;

/// Frames that are shown to the device at once, at most; a guest's stack does about as many.
const BURST_FRAMES: usize = 32;
/// The same in bytes.
const BURST_BYTES: usize = 128 << 10;
/// Packets that are taken before the board is updated.
const BATCH: usize = 64;
/// A window of which nothing arrives for so long is given up.
const GIVE_UP: Duration = Duration::from_millis(50);
/// Time between looks at the board when nothing happens.
const IDLE: Duration = Duration::from_millis(20);

/// What is to be sent.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Plan {
    pub(crate) load: Load,
    /// The window, in bytes of frames.
    pub(crate) window: u64,
    /// The window, in frames.
    pub(crate) window_frames: u64,
    /// Longest time that it may go on, in milliseconds.
    pub(crate) limit_ms: u64,
}

/// What a sender has to tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Sent {
    /// How far it came: bytes of the stream, or datagrams.
    pub(crate) position: u64,
    /// How often a window was given up.
    pub(crate) given_up: u64,
}

/// Sends until the board says stop.
pub(crate) fn send(
    lane: &mut dyn Lane,
    board: &Board,
    (number, flow): (usize, Flow),
    plan: Plan,
    offload: Offload,
    pattern: &Pattern,
) -> io::Result<Sent> {
    let mut packets = Packets::new(flow, plan.load, offload);
    let step = packets.step();
    let frames = (plan.window / packets.frame_len() as u64).min(plan.window_frames);
    let window = frames.max(2) * step;
    let burst = (BURST_BYTES / packets.frame_len()).clamp(1, BURST_FRAMES);
    let deadline = clock::mono() + Duration::from_millis(plan.limit_ms);
    let mut sent = Sent::default();
    let mut forgiven = 0;
    while !board.is_stopped() && clock::mono() < deadline {
        let arrived = board.arrived(number).max(forgiven);
        let room = (arrived + window).saturating_sub(packets.position()) / step;
        if room == 0 {
            let wanted = packets.position() - window / 2;
            board.wait_arrived(number, wanted, GIVE_UP);
            if board.arrived(number) <= arrived {
                sent.given_up += 1;
                forgiven = packets.position();
            }
            continue;
        }
        for _ in 0..burst.min(room as usize) {
            let packet = packets.next(pattern);
            if !lane.send(&packet, pattern)? {
                lane.wait_room(IDLE)?;
                break;
            }
            packets.sent();
        }
        lane.flush()?;
    }
    sent.position = packets.position();
    Ok(sent)
}

/// Follows one flow.
struct Tracker {
    progress: Progress,
    fault: Option<Fault>,
}

impl Tracker {
    fn take(&mut self, arrival: &Arrival<'_>, pattern: &Pattern) {
        let Self { progress, fault } = self;
        let mut taken = *progress;
        taken.packets += 1;
        let verdict = arrival.verify(pattern, progress.arrived, &mut |stretch| {
            note(&mut taken, stretch);
        });
        match verdict {
            Ok(()) => *progress = taken,
            Err(what) => {
                progress.bad += 1;
                fault.get_or_insert(what);
            }
        }
    }
}

fn note(progress: &mut Progress, Stretch { at, units, bytes }: Stretch) {
    if at >= progress.arrived {
        progress.lost += at - progress.arrived;
        progress.arrived = at + units;
    } else {
        progress.reordered += 1;
        progress.lost = progress.lost.saturating_sub(units);
    }
    progress.units += units;
    progress.bytes += bytes;
}

/// The flows that a station receives, whichever lane they come in at.
pub(crate) struct Receiver<'a> {
    station: u8,
    ports: Vec<u16>,
    trackers: Vec<Mutex<Tracker>>,
    board: &'a Board,
    pattern: &'a Pattern,
}

impl<'a> Receiver<'a> {
    pub(crate) fn new(
        station: u8,
        ports: Vec<u16>,
        board: &'a Board,
        pattern: &'a Pattern,
    ) -> Self {
        let tracker = |_: &u16| Mutex::new(Tracker { progress: Progress::default(), fault: None });
        let trackers = ports.iter().map(tracker).collect();
        Self { station, ports, trackers, board, pattern }
    }

    /// Receives from one lane until the board says stop.
    pub(crate) fn run(&self, lane: &mut dyn Lane, limit: Duration) -> io::Result<()> {
        let deadline = clock::mono() + limit;
        while !self.board.is_stopped() && clock::mono() < deadline {
            if self.take_batch(lane)? == 0 {
                lane.wait(IDLE)?;
            }
        }
        Ok(())
    }

    fn take_batch(&self, lane: &mut dyn Lane) -> io::Result<usize> {
        // Packets of a flow mostly follow each other, so its tracker stays locked from one to the
        // next; the board hears of the flow when another's turn comes.
        let mut current: Option<(usize, MutexGuard<'_, Tracker>)> = None;
        let count = lane.receive(BATCH, &mut |pieces| {
            let Some((port, arrival)) = Arrival::of(pieces, self.station) else { return };
            let Some(flow) = self.ports.iter().position(|&known| known == port) else { return };
            if !matches!(&current, Some((same, _)) if *same == flow) {
                self.publish(current.take());
                let tracker = self.trackers[flow].lock().unwrap_or_else(PoisonError::into_inner);
                current = Some((flow, tracker));
            }
            if let Some((_, tracker)) = &mut current {
                tracker.take(&arrival, self.pattern);
            }
        })?;
        self.publish(current);
        Ok(count)
    }

    fn publish(&self, current: Option<(usize, MutexGuard<'_, Tracker>)>) {
        if let Some((flow, tracker)) = current {
            self.board.publish(flow, tracker.progress);
        }
    }

    /// The first fault that was found in any packet.
    pub(crate) fn fault(&self) -> Option<Fault> {
        let lock =
            |tracker: &Mutex<Tracker>| tracker.lock().unwrap_or_else(PoisonError::into_inner).fault;
        self.trackers.iter().find_map(lock)
    }
}

/// Requests to be sent one after the other.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Requests {
    /// Frame length, in bytes.
    pub(crate) frame: usize,
    /// From a reply to the next request, in microseconds; the sender spins meanwhile.
    pub(crate) gap_us: u64,
    /// A reply that takes longer is lost, in milliseconds.
    pub(crate) patience_ms: u64,
    /// How long to go on, in milliseconds.
    pub(crate) duration_ms: u64,
    /// After so many replies it is enough.
    pub(crate) most: usize,
}

/// Round trips.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct RoundTrips {
    /// In microseconds, ascending.
    pub(crate) micros: Vec<u32>,
    pub(crate) lost: u64,
    /// Share of the machine's processor time that other processes took meanwhile.
    #[serde(default)]
    pub(crate) others: f64,
}

impl RoundTrips {
    /// The time that a share (0 to 1) of the round trips took at most; none without any.
    pub(crate) fn quantile(&self, share: f64) -> Option<f64> {
        let last = self.micros.len().checked_sub(1)?;
        self.micros.get((last as f64 * share).round() as usize).map(|&micros| micros.into())
    }
}

/// Asks on the first lane and awaits replies, one at a time.
pub(crate) fn request(
    lanes: &mut [&mut dyn Lane],
    flow: Flow,
    requests: Requests,
    offload: Offload,
    pattern: &Pattern,
) -> io::Result<RoundTrips> {
    let mut packets = Packets::new(flow, Load::Datagrams { frame: requests.frame }, offload);
    let mut result = RoundTrips { micros: Vec::with_capacity(1 << 17), ..RoundTrips::default() };
    let end = clock::mono() + Duration::from_millis(requests.duration_ms);
    let patience = Duration::from_millis(requests.patience_ms);
    while result.micros.len() < requests.most {
        let begin = clock::mono();
        if begin >= end {
            break;
        }
        let number = packets.position();
        let lane = &mut lanes[0];
        if lane.send(&packets.next(pattern), pattern)? {
            packets.sent();
            lane.flush()?;
        } else {
            lane.wait_room(patience)?;
            continue;
        }
        match await_reply(lanes, flow, number, begin + patience, pattern)? {
            Some(at) => {
                result.micros.push((at - begin).as_micros() as u32);
                let next = at + Duration::from_micros(requests.gap_us);
                while clock::mono() < next {
                    std::hint::spin_loop();
                }
            }
            None => result.lost += 1,
        }
    }
    result.micros.sort_unstable();
    Ok(result)
}

/// Takes packets from all lanes: which one a flow comes in at is the other side's choice.
fn receive_any(lanes: &mut [&mut dyn Lane], sink: &mut dyn FnMut(&[&[u8]])) -> io::Result<usize> {
    let mut count = 0;
    for lane in lanes {
        count += lane.receive(BATCH, sink)?;
    }
    Ok(count)
}

/// Waits for a packet. With several lanes, looks at them in turn; latency is measured with one.
fn wait_any(lanes: &mut [&mut dyn Lane], timeout: Duration) -> io::Result<()> {
    const TURN: Duration = Duration::from_millis(1);
    match lanes {
        [lane] => lane.wait(timeout),
        lanes => lanes.iter_mut().try_for_each(|lane| lane.wait(TURN)),
    }
}

/// When the reply with this number came.
fn await_reply(
    lanes: &mut [&mut dyn Lane],
    flow: Flow,
    number: u64,
    deadline: Instant,
    pattern: &Pattern,
) -> io::Result<Option<Instant>> {
    loop {
        let mut is_there = false;
        receive_any(lanes, &mut |pieces| {
            let Some((port, arrival)) = Arrival::of(pieces, flow.from) else { return };
            let verdict = arrival.verify(pattern, 0, &mut |stretch| {
                is_there |= port == flow.port && stretch.at == number;
            });
            // A reply that is not what was asked for is no reply.
            is_there &= verdict.is_ok() || port != flow.port;
        })?;
        let now = clock::mono();
        if is_there {
            return Ok(Some(now));
        }
        if now >= deadline {
            return Ok(None);
        }
        wait_any(lanes, deadline - now)?;
    }
}

/// Replies to requests of `flow` until the board says stop.
pub(crate) fn reply(
    lanes: &mut [&mut dyn Lane],
    board: &Board,
    flow: Flow,
    frame: usize,
    offload: Offload,
    pattern: &Pattern,
    limit: Duration,
) -> io::Result<u64> {
    let mut packets = Packets::new(flow.back(), Load::Datagrams { frame }, offload);
    let deadline = clock::mono() + limit;
    let mut numbers = Vec::with_capacity(BATCH);
    let mut count = 0;
    while !board.is_stopped() && clock::mono() < deadline {
        numbers.clear();
        let received = receive_any(lanes, &mut |pieces| {
            let Some((port, arrival)) = Arrival::of(pieces, flow.to) else { return };
            if port == flow.port {
                let _ = arrival.verify(pattern, 0, &mut |stretch| numbers.push(stretch.at));
            }
        })?;
        for &number in &numbers {
            packets.seek(number);
            if lanes[0].send(&packets.next(pattern), pattern)? {
                count += 1;
            }
        }
        lanes[0].flush()?;
        if received == 0 {
            wait_any(lanes, IDLE)?;
        }
    }
    Ok(count)
}
