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
//! Lanes come and go, so their doorbells are in a share of the set that the worker waits on
//! ([`EventShare`]); while the guest's rings stand still, they are nowhere. The timer is a descriptor
//! like those of sockets.

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
use crate::sys::event_share::EventShare;
use crate::sys::timer::Timer;
use crate::time::Instant;

pub(crate) use inbound::State;
use inbound::{Gate, Inbound};
pub use outbound::{LocalFrame, MAX_WAIT, Written};
use outbound::{Outbound, Stall};

/// Lanes of a queue pair at most, each way.
const MOST: usize = 256;
/// How long a lane that is to be closed is used at most.
const CLOSING: Duration = Duration::from_secs(2);
/// Handovers that are remembered: one may come before its lane.
const MOST_HANDOVERS: usize = 64;
/// Numbers of events. Lanes that have the same one are heard together.
const EVENTS: u32 = 1 << 14;

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

/// The number of a lane's event.
fn event_of(lane: u32) -> u16 {
    u16::try_from(lane % EVENTS).unwrap_or_default()
}

/// The lanes of a queue pair.
#[derive(Debug, Default)]
pub struct Lanes {
    timer: Option<Timer>,
    /// Where the doorbells are, while the guest's rings run.
    share: Option<Arc<EventShare>>,
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
    /// Makes the timer. Without it there are no lanes.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn prepare(&mut self, handovers: Arc<Handovers>) -> io::Result<()> {
        self.timer = Some(Timer::new()?);
        self.handovers = handovers;
        Ok(())
    }

    /// Readable when [`Lanes::timed_out`] is to be called.
    pub fn descriptor(&self) -> Option<RawFd> {
        self.timer.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// From now on the worker waits on the doorbells in this set, or not at all. A lane that it cannot
    /// wait on ends.
    pub fn share(&mut self, share: Option<Arc<EventShare>>) {
        if let Some(share) = self.share.take() {
            let writers = self.writers.iter().flat_map(Outbound::writers);
            writers.for_each(|writer| share.remove(writer));
            self.readers.iter().for_each(|lane| share.remove(&lane.reader));
        }
        let Some(share) = share else { return };
        let Self { writers, readers, ended, .. } = self;
        let mut watch = |bell: &dyn AsFd, lane| {
            let watched = share.add(&bell.as_fd(), event_of(lane)).is_ok();
            if !watched {
                ended.push(lane);
            }
            watched
        };
        writers.retain_mut(|lane| {
            lane.successor.take_if(|(id, writer)| !watch(writer, *id));
            watch(&lane.writer, lane.id)
        });
        readers.retain(|lane| lane.is_gone || watch(&lane.reader, lane.id));
        self.share = Some(share);
    }

    fn watch(&self, bell: &impl AsFd, lane: u32) -> io::Result<()> {
        if self.timer.is_none() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.share.as_ref().map_or(Ok(()), |share| share.add(bell, event_of(lane)))
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

    /// The timer's time is over: a frame has waited long enough, or a handover is to be looked for.
    pub fn timed_out(&mut self) {
        if let Some(timer) = &self.timer {
            // It can't fail, and if it did we would only be woken again.
            let _ = timer.set(None);
        }
    }

    /// Hears the lanes whose event has this number. Returns the addresses that lanes led to whose
    /// readers have ended.
    pub fn rung(&mut self, event: u16, counters: &VifCounters) -> Vec<SocketAddr> {
        let mut deserted = Vec::new();
        for n in 0..self.readers.len() {
            self.hear_reader(n, event);
        }
        let is_over =
            |lane: &Outbound| event_of(lane.id) == event && lane.writer.hear() == Heard::End;
        while let Some(n) = self.writers.iter().position(is_over) {
            deserted.extend(self.writers.get(n).map(|lane| lane.to));
            self.end_writer(n, counters);
        }
        self.hear_successors(event);
        deserted
    }

    fn hear_reader(&mut self, n: usize, event: u16) {
        let Some(lane) = self.readers.get_mut(n).filter(|lane| event_of(lane.id) == event) else {
            return;
        };
        match lane.reader.hear() {
            Heard::End => {
                lane.is_gone = true;
                // It would wake us for ever.
                self.share.iter().for_each(|share| share.remove(&lane.reader));
            }
            Heard::Ring | Heard::Silence => {}
        }
        lane.state = State::Busy;
    }

    fn hear_successors(&mut self, event: u16) {
        for lane in &mut self.writers {
            let ended = lane
                .successor
                .take_if(|(id, writer)| event_of(*id) == event && writer.hear() == Heard::End);
            self.ended.extend(ended.map(|(id, _)| id));
        }
    }
}
