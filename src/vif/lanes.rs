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

mod inbound;
mod outbound;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::lane::{Reader, Writer};
use crate::metrics::VifCounters;
use crate::quiet::Quiet;
use crate::sys::doorbell::Heard;
use crate::sys::event::{Interest, Poller};
use crate::sys::timer::Timer;
use crate::time::Instant;

pub(super) use inbound::State;
use inbound::{Gate, Inbound};
pub use outbound::{LocalFrame, MAX_WAIT, Written};
use outbound::{Outbound, Stall};

/// Lanes of a queue pair at most, each way.
const MOST: usize = 256;
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
        // A vif with several queue pairs sends from other ports than that of its own address.
        noted.retain(|one| (one.0.ip(), one.1) != (from.ip(), lane));
        noted.len() < before
    }
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
            let _ = waker.timer.set(None);
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
}
