//! The lanes of one queue pair ([`crate::lane`]): those it writes to, those it reads from, and what
//! wakes its worker for them.
//!
//! | A lane that is written | How it ends |
//! |---|---|
//! | serves its care-of address | its reader is gone or lies: at once, and what it had not taken is lost |
//! | is closing: varpd says so, or there is a newer one | when the reader has taken all; frames wait for that, briefly |
//!
//! | A lane that is read | How it goes on |
//! |---|---|
//! | shut: it is new | opens after its handover, or some time after its first frame |
//! | open | ends when its writer lies, or is gone and all is taken |
//!
//! **A full lane.** Dropping would waste what the guest has spent on the frame, and waiting for a
//! reader that stands still would hold up the guest's frames to others. So a frame that finds its
//! lane full stays in the guest's ring, and all behind it, for at most [`MAX_WAIT`]; and there is such
//! a wait only if since the last one a quarter of the lane was read. Otherwise the frame is dropped.
//!
//! All that a worker waits for here is behind one descriptor, an epoll set of its own: lanes come and
//! go, while the device waits for the same descriptors as long as its connection lasts.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::outgoing::AddressBytes;
use crate::lane::index::HeaderBytes;
use crate::lane::{Lie, Reader, Refused, Writer};
use crate::metrics::{VifCounter, VifCounters};
use crate::quiet::Quiet;
use crate::sys::doorbell::Heard;
use crate::sys::event::{Interest, Poller};
use crate::sys::iovec::Gather;
use crate::sys::timer::Timer;
use crate::time::Instant;

/// Lanes of a queue pair at most, each way.
const MOST: usize = 256;
/// How long a frame waits for room in its lane at most.
pub const MAX_WAIT: Duration = Duration::from_millis(5);
/// So many bytes have to be read from a lane before a frame waits for it again.
const PROGRESS: u32 = 1 << 18;
/// How long a new lane is shut after its first frame if its handover does not come.
const HANDOVER_WAIT: Duration = Duration::from_millis(50);
/// How often a handover is looked for that another queue pair may have received.
const HANDOVER_LOOK: Duration = Duration::from_millis(1);
/// How long a lane that is to be closed is used at most.
const CLOSING: Duration = Duration::from_secs(2);
/// Handovers that are remembered: one may come before its lane.
const MOST_HANDOVERS: usize = 64;
/// Descriptors looked at in a turn.
const TURN: usize = 64;
/// Token of the timer; those of lanes are below.
const TIMER: u64 = u64::MAX;

/// Handovers that have arrived at a vif, whichever queue pair received them.
#[derive(Debug, Default)]
pub struct Handovers(Mutex<VecDeque<(SocketAddr, u32)>>);

impl Handovers {
    /// All that came before it by UDP is delivered.
    pub fn note(&self, from: SocketAddr, lane: u32) {
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if noted.len() >= MOST_HANDOVERS {
            noted.pop_front();
        }
        noted.push_back((from, lane));
    }

    fn take(&self, from: SocketAddr, lane: u32) -> bool {
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = noted.len();
        noted.retain(|one| *one != (from, lane));
        noted.len() < before
    }
}

/// A frame that is to be written.
#[derive(Clone, Copy, Debug)]
pub struct LocalFrame<'p, 'm> {
    /// Its virtio-net header.
    pub header: HeaderBytes,
    /// Its addresses, as they leave.
    pub addresses: AddressBytes,
    /// Its length, in bytes.
    pub len: usize,
    /// What is behind its addresses.
    pub rest: Gather<'p, 'm>,
    /// Whether it can stay in the guest's ring for a while.
    pub can_wait: bool,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It is in the lane; the reader sees it after [`Lanes::publish`].
    Done,
    /// It stays where it is, and with it those behind it, until [`Lanes::woken`] says so.
    Wait,
    /// There is no room.
    Dropped,
    /// There is no lane to there (any more).
    NoLane,
}

/// A lane that frames are written to.
#[derive(Debug)]
struct Outbound {
    id: u32,
    to: SocketAddr,
    writer: Writer,
    /// No more than what it takes until it is empty; and no longer than until then.
    closing: Option<Instant>,
    /// Takes its place.
    successor: Option<(u32, Writer)>,
    /// Where the reader was when a frame last waited for it.
    waited_at: Option<u32>,
}

/// Whether a lane may be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    Open,
    /// Until the handover comes, or then.
    Shut(Option<Instant>),
}

/// A lane that frames are read from.
#[derive(Debug)]
pub(super) struct Inbound {
    id: u32,
    from: SocketAddr,
    pub(super) reader: Reader,
    gate: Gate,
    /// The writer has ended: nothing comes any more.
    is_gone: bool,
    /// Whether it is to be removed.
    pub(super) state: State,
    /// When it ends, if varpd said so.
    closing: Option<Instant>,
}

/// What is known of a lane after it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// There may be frames.
    Busy,
    /// Nothing is in it; the next frame rings.
    Empty,
    /// Its writer has broken the rules.
    Failed,
}

/// A frame waits for room.
#[derive(Clone, Copy, Debug)]
struct Stall {
    lane: u32,
    until: Instant,
}

/// What the worker waits on.
#[derive(Debug)]
struct Waker {
    poller: Poller,
    timer: Timer,
}

/// The lanes of a queue pair.
#[derive(Debug, Default)]
pub struct Lanes {
    waker: Option<Waker>,
    writers: Vec<Outbound>,
    /// The one that was used last.
    recent: usize,
    readers: Vec<Inbound>,
    /// The one that is read first, next time.
    turn: usize,
    stall: Option<Stall>,
    /// Whether that frame is still in the guest's ring, as far as is known.
    is_stalled: bool,
    handovers: Arc<Handovers>,
    /// Lanes that ended here, of which varpd is not told yet.
    ended: Vec<u32>,
    quiet: Quiet,
}

impl Lanes {
    /// Makes what the worker waits on. Without it there are no lanes.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn prepare(&mut self, handovers: Arc<Handovers>) -> io::Result<()> {
        let (poller, timer) = (Poller::new(TURN)?, Timer::new()?);
        poller.add(&timer, TIMER, Interest::Read)?;
        self.waker = Some(Waker { poller, timer });
        self.handovers = handovers;
        Ok(())
    }

    /// Readable when [`Lanes::woken`] has something to do.
    pub fn descriptor(&self) -> Option<RawFd> {
        self.waker.as_ref().map(|waker| waker.poller.as_fd().as_raw_fd())
    }

    fn watch(&self, bell: &impl AsFd, lane: u32) -> io::Result<()> {
        match &self.waker {
            Some(waker) => waker.poller.add(bell, lane.into(), Interest::Read),
            None => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn check_room(&self) -> io::Result<()> {
        match self.writers.len().max(self.readers.len()) < MOST {
            true => Ok(()),
            false => Err(io::Error::other("too many of them")),
        }
    }

    /// A new lane to a vif at this address. One that there is already is used until it is empty.
    ///
    /// # Errors
    /// The descriptors are not those of a lane, or there are too many.
    pub fn open_writer(
        &mut self,
        id: u32,
        to: SocketAddr,
        [memory, bell]: [OwnedFd; 2],
        now: Instant,
    ) -> io::Result<()> {
        self.check_room()?;
        let writer = Writer::new(memory, bell)?;
        self.watch(&writer, id)?;
        match self.writers.iter_mut().find(|lane| lane.to == to) {
            Some(lane) => {
                lane.closing = Some(now + CLOSING);
                lane.successor = Some((id, writer));
            }
            None => {
                let (closing, successor, waited_at) = (None, None, None);
                self.writers.push(Outbound { id, to, writer, closing, successor, waited_at });
            }
        }
        Ok(())
    }

    /// A new lane from a vif at this address.
    ///
    /// # Errors
    /// The descriptors are not those of a lane, or there are too many.
    pub fn open_reader(
        &mut self,
        id: u32,
        from: SocketAddr,
        [memory, bell]: [OwnedFd; 2],
    ) -> io::Result<()> {
        self.check_room()?;
        let reader = Reader::new(memory, bell)?;
        self.watch(&reader, id)?;
        let (gate, state) = (Gate::Shut(None), State::Empty);
        self.readers.push(Inbound { id, from, reader, gate, is_gone: false, state, closing: None });
        Ok(())
    }

    /// A lane is to end, if it is one of these.
    pub fn close(&mut self, id: u32, now: Instant) {
        let until = Some(now + CLOSING);
        for lane in &mut self.writers {
            if lane.id == id {
                lane.closing = lane.closing.or(until);
            } else if lane.successor.as_ref().is_some_and(|(successor, _)| *successor == id) {
                lane.successor = None;
            }
        }
        for lane in self.readers.iter_mut().filter(|lane| lane.id == id) {
            lane.closing = until;
        }
    }

    /// A lane ended here, or could not be opened.
    pub fn end(&mut self, id: u32) {
        self.ended.push(id);
    }

    /// Lanes that have ended here since the last call.
    pub fn take_ended(&mut self) -> impl Iterator<Item = u32> + '_ {
        self.ended.drain(..)
    }

    /// Whether there are some.
    pub fn has_ended(&self) -> bool {
        !self.ended.is_empty()
    }

    /// When [`Lanes::handle_timeout`] is to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let writers = self.writers.iter().filter_map(|lane| lane.closing);
        writers.chain(self.readers.iter().filter_map(|lane| lane.closing)).min()
    }

    /// Lanes whose time is over end. (Nothing may have been sent or read since.)
    pub fn handle_timeout(&mut self, now: Instant) {
        let is_over = |closing: Option<Instant>| closing.is_some_and(|at| at <= now);
        let mut n = 0;
        while let Some(lane) = self.writers.get(n) {
            if is_over(lane.closing) && self.replace(n) {
                continue;
            }
            n += 1;
        }
        self.readers.retain(|lane| !is_over(lane.closing));
    }

    /// The guest's rings stopped: no frame waits any more.
    pub fn forget_stall(&mut self) {
        (self.stall, self.is_stalled) = (None, false);
    }

    // --- writing

    /// Whether there is a lane to there.
    pub fn lead_to(&mut self, to: SocketAddr) -> bool {
        self.find(to).is_some()
    }

    fn find(&mut self, to: SocketAddr) -> Option<usize> {
        if self.writers.get(self.recent).is_some_and(|lane| lane.to == to) {
            return Some(self.recent);
        }
        self.recent = self.writers.iter().position(|lane| lane.to == to)?;
        Some(self.recent)
    }

    /// Writes a frame to the lane to there.
    pub fn write(
        &mut self,
        to: SocketAddr,
        frame: &LocalFrame<'_, '_>,
        now: Instant,
        counters: &VifCounters,
    ) -> Written {
        let Some(n) = self.find(to) else { return Written::NoLane };
        let result = self.try_write(n, frame, now);
        match result {
            Ok(Written::NoLane) => {
                // Closed and replaced by nothing, or by a new one.
                if self.lead_to(to) {
                    return self.write(to, frame, now, counters);
                }
                Written::NoLane
            }
            Ok(outcome) => outcome,
            Err(Lie) => {
                self.fail_writer(n, now, counters);
                Written::NoLane
            }
        }
    }

    fn try_write(
        &mut self,
        n: usize,
        frame: &LocalFrame<'_, '_>,
        now: Instant,
    ) -> Result<Written, Lie> {
        let LocalFrame { header, addresses, len, rest, can_wait } = frame;
        let Some(lane) = self.writers.get_mut(n) else { return Ok(Written::NoLane) };
        if lane.closing.is_some() {
            lane.writer.publish();
            if lane.writer.wait_until_drained()? || !can_wait || !self.wait(n, now) {
                self.replace(n);
                return Ok(Written::NoLane);
            }
            return Ok(Written::Wait);
        }
        for _ in 0..2 {
            match lane.writer.write(header, addresses, *len, *rest) {
                Ok(()) => {
                    self.stall = None;
                    return Ok(Written::Done);
                }
                Err(Refused::Lie) => return Err(Lie),
                Err(Refused::Full) => {
                    lane.writer.publish();
                    if lane.writer.wait_for_room(*len)? {
                        break;
                    }
                }
            }
        }
        Ok(if *can_wait && self.wait(n, now) { Written::Wait } else { Written::Dropped })
    }

    /// Whether a frame waits for room in the n-th lane; it does not if it has done so for too long.
    fn wait(&mut self, n: usize, now: Instant) -> bool {
        let (Some(lane), Some(waker)) = (self.writers.get_mut(n), &self.waker) else {
            return false;
        };
        if let Some(stall) = self.stall
            && stall.lane == lane.id
        {
            self.is_stalled = now < stall.until;
            if !self.is_stalled {
                self.stall = None;
            }
            return self.is_stalled;
        }
        let tail = lane.writer.tail();
        if lane.waited_at.is_some_and(|at| tail.wrapping_sub(at) < PROGRESS) {
            return false;
        }
        lane.waited_at = Some(tail);
        if waker.timer.set(MAX_WAIT).is_err() {
            return false;
        }
        self.stall = Some(Stall { lane: lane.id, until: now + MAX_WAIT });
        self.is_stalled = true;
        true
    }

    /// Whether a frame waits in the guest's ring since [`Lanes::begin_batch`].
    pub fn is_stalled(&self) -> bool {
        self.is_stalled
    }

    /// The frames in the guest's ring are looked at again, from the first.
    pub fn begin_batch(&mut self) {
        self.is_stalled = false;
    }

    /// Lets readers see what was written, and wakes those that sleep.
    pub fn publish(&mut self) {
        self.writers.iter_mut().for_each(|lane| lane.writer.publish());
    }

    /// A closing lane is done with: its successor takes over, if it has one. Whether it was removed.
    fn replace(&mut self, n: usize) -> bool {
        let Some(lane) = self.writers.get_mut(n) else { return false };
        if self.stall.is_some_and(|stall| stall.lane == lane.id) {
            self.stall = None;
        }
        match lane.successor.take() {
            Some((id, writer)) => {
                (lane.id, lane.writer) = (id, writer);
                (lane.closing, lane.waited_at) = (None, None);
                false
            }
            None => {
                self.writers.swap_remove(n);
                true
            }
        }
    }

    fn fail_writer(&mut self, n: usize, now: Instant, counters: &VifCounters) {
        if let Some(lane) = self.writers.get(n) {
            counters.inc(VifCounter::lanes_failed);
            log::log!(self.quiet.level(now), "the lane to {} is closed: {Lie}", lane.to);
        }
        self.end_writer(n, counters);
    }

    /// The reader is of no use any more: what it had not taken is lost.
    fn end_writer(&mut self, n: usize, counters: &VifCounters) {
        if let Some(lane) = self.writers.get_mut(n) {
            counters.add(VifCounter::tx_drop_lane, lane.writer.left());
            self.ended.push(lane.id);
            self.replace(n);
        }
    }

    // --- waking

    /// Looks at what made [`Lanes::descriptor`] readable. Returns the addresses that lanes led to
    /// whose readers have ended.
    pub fn woken(&mut self, counters: &VifCounters) -> Vec<SocketAddr> {
        let Some(waker) = &mut self.waker else { return Vec::new() };
        let ready = waker.poller.wait(Some(Duration::ZERO)).unwrap_or_default();
        let mut deserted = Vec::new();
        for token in ready.into_iter().map(|ready| ready.token) {
            if token == TIMER {
                self.clear_timer();
            } else if let Some(n) = self.writers.iter().position(|l| u64::from(l.id) == token) {
                let lane = self.writers.get(n);
                if let Some(to) = lane.filter(|l| l.writer.hear() == Heard::End).map(|l| l.to) {
                    deserted.push(to);
                    self.end_writer(n, counters);
                }
            } else if let Some(n) = self.readers.iter().position(|l| u64::from(l.id) == token) {
                self.hear_reader(n);
            } else {
                self.hear_successor(token);
            }
        }
        deserted
    }

    fn clear_timer(&self) {
        if let Some(waker) = &self.waker {
            // It can't fail, and if it did we would only be woken again.
            let _ = waker.timer.clear();
        }
    }

    fn hear_reader(&mut self, n: usize) {
        let (Some(lane), Some(waker)) = (self.readers.get_mut(n), &self.waker) else { return };
        match lane.reader.hear() {
            Heard::End => {
                lane.is_gone = true;
                // It would wake us for ever.
                let _ = waker.poller.remove(&lane.reader);
            }
            Heard::Ring | Heard::Silence => {}
        }
        lane.state = State::Busy;
    }

    fn hear_successor(&mut self, token: u64) {
        for lane in &mut self.writers {
            if let Some((id, writer)) = &lane.successor
                && u64::from(*id) == token
                && writer.hear() == Heard::End
            {
                self.ended.push(*id);
                lane.successor = None;
            }
        }
    }

    // --- reading

    /// Whether there are lanes to be read.
    pub fn has_readers(&self) -> bool {
        !self.readers.is_empty()
    }

    /// Whether a lane waits for its handover.
    pub fn has_shut(&self) -> bool {
        self.readers.iter().any(|lane| lane.gate != Gate::Open)
    }

    /// Notes a handover that was received.
    pub fn note_handover(&self, from: SocketAddr, lane: u32) {
        self.handovers.note(from, lane);
    }

    /// Opens lanes whose handover has come, or has not come for too long.
    pub fn open_gates(&mut self, now: Instant) {
        let mut must_look = false;
        for lane in &mut self.readers {
            let Gate::Shut(until) = lane.gate else { continue };
            if self.handovers.take(lane.from, lane.id) || until.is_some_and(|at| at <= now) {
                lane.gate = Gate::Open;
            } else if lane.state == State::Busy {
                lane.gate = Gate::Shut(until.or(Some(now + HANDOVER_WAIT)));
                must_look = true;
            }
        }
        if let Some(waker) = &self.waker
            && must_look
            && !self.is_stalled
        {
            // It can't fail, and if it did the lane would open with its next ring.
            let _ = waker.timer.set(HANDOVER_LOOK);
        }
    }

    /// How many there are to be read; those of [`Lanes::reader`].
    pub(super) fn readers(&self) -> usize {
        self.readers.len()
    }

    /// The n-th lane, counted from where this turn begins, if it is open and may have frames.
    pub(super) fn reader(&mut self, n: usize) -> Option<&mut Inbound> {
        let count = self.readers.len().max(1);
        let lane = self.readers.get_mut((self.turn + n) % count)?;
        (lane.gate == Gate::Open && lane.state == State::Busy).then_some(lane)
    }

    /// The next turn begins so many lanes further.
    pub(super) fn advance(&mut self, by: usize) {
        self.turn = (self.turn + by) % self.readers.len().max(1);
    }

    /// All lanes, whatever their state.
    pub(super) fn all_readers(&mut self) -> impl Iterator<Item = &mut Inbound> {
        self.readers.iter_mut()
    }

    /// Removes lanes that have failed, or whose writer is gone and that are empty.
    pub fn settle(&mut self, now: Instant, counters: &VifCounters) {
        let Self { readers, ended, quiet, .. } = self;
        readers.retain(|lane| {
            if lane.state == State::Failed {
                counters.inc(VifCounter::lanes_failed);
                let level = quiet.level(now);
                log::log!(level, "the lane from {} is closed: {Lie}", lane.from);
            }
            let is_over = lane.is_gone && lane.gate == Gate::Open && lane.state == State::Empty;
            let stays = lane.state != State::Failed && !is_over;
            if !stays {
                ended.push(lane.id);
            }
            stays
        });
    }
}
