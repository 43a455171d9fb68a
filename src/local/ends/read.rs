//! Frames from other vifs of this host: out of their lanes, into the guest.

use super::Local;
use crate::guest::frames::{GuestFrame, Handed, Origin, Outcome, Pace};
use crate::guest::receiving::ReceiveRing;
use crate::guest::side::{GuestSide, MERGED_LEN};
use crate::lane::{Entry, Lie, SHORT};
use crate::local::lanes::State;
use crate::local::unpacked;
use crate::metrics::VifCounter;
use crate::offload::LEAD_LEN;
use crate::offload::features::Offloads;
use crate::offload::header::{self, Request};
use crate::sys::iovec::IoVec;
use crate::time::Instant;
use crate::tunnel::residents::Residents;
use crate::vhost_user::vring::RingError;
use crate::wire::frame::{self, Addresses};

/// Frames and bytes read from a lane before the next has its turn and the guest sees them:
/// it can work on these while we go on.
const TURN_FRAMES: usize = 256;
const TURN_BYTES: usize = 256 << 10;
/// Frames that are dropped from a lane at once: more than it holds.
const MOST_DISCARDED: usize = 1 << 16;

/// How reading lanes ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// For now there is nothing more.
    Done,
    /// There may be more.
    More,
    /// The guest has no buffers, or only useless ones; or the rest waits for credit.
    Stuck(Outcome),
}

/// The vif whose guest gets the frames.
#[derive(Debug)]
pub struct Sink<'a, 'q, 'm> {
    /// The guest.
    pub guest: &'a mut GuestSide,
    /// Its receive ring.
    pub ring: &'a mut ReceiveRing<'q, 'm>,
    /// The MACs that are here.
    pub residents: Residents<'a>,
    /// The longest frame that a long one is cut into, in bytes.
    pub max_frame: usize,
}

impl Local {
    /// Reads each lane for a turn, and delivers what was read before.
    ///
    /// # Errors
    /// The ring is broken and must be stopped.
    pub fn read(
        &mut self,
        sink: &mut Sink<'_, '_, '_>,
        pace: &mut impl Pace,
        now: Instant,
    ) -> Result<Read, RingError> {
        self.lanes.open_gates(now);
        let read = self.read_lanes(sink, pace);
        let published = sink.guest.publish(sink.ring);
        self.lanes.settle(now, &self.counters);
        published.and(read)
    }

    /// Delivers short frames that were read before.
    ///
    /// # Errors
    /// The ring is broken and must be stopped.
    pub fn deliver_arrived(
        &mut self,
        guest: &mut GuestSide,
        ring: &mut ReceiveRing<'_, '_>,
        pace: &mut impl Pace,
    ) -> Result<Outcome, RingError> {
        match self.arrived.is_empty() {
            true => Ok(Outcome::All),
            false => guest.deliver_all(ring, &mut self.arrived, pace),
        }
    }

    fn read_lanes(
        &mut self,
        sink: &mut Sink<'_, '_, '_>,
        pace: &mut impl Pace,
    ) -> Result<Read, RingError> {
        let outcome = self.deliver_unpacked(sink)?;
        if outcome != Outcome::All {
            return Ok(Read::Stuck(outcome));
        }
        let mut read = Read::Done;
        for n in 0..self.lanes.readers() {
            match self.read_lane(n, sink, pace)? {
                Read::Done => {}
                Read::More => read = Read::More,
                stuck @ Read::Stuck(_) => {
                    self.lanes.advance(n);
                    return Ok(stuck);
                }
            }
            sink.guest.publish(sink.ring)?;
        }
        self.lanes.advance(1);
        Ok(read)
    }

    /// Reads one lane for a turn. Short frames are taken many at a time, and then go the way of those
    /// that came in datagrams: neighbours may be merged.
    fn read_lane(
        &mut self,
        n: usize,
        sink: &mut Sink<'_, '_, '_>,
        pace: &mut impl Pace,
    ) -> Result<Read, RingError> {
        let (mut frames, mut bytes) = (0, 0);
        let read = loop {
            let Some(lane) = self.lanes.reader(n) else { break Read::Done };
            if frames >= TURN_FRAMES || bytes >= TURN_BYTES {
                break Read::More;
            }
            let entry = match lane.reader.peek() {
                Ok(Some(entry)) => entry,
                Ok(None) => {
                    lane.reader.publish();
                    match lane.reader.sleep() {
                        Ok(true) => lane.state = State::Empty,
                        Ok(false) => continue,
                        Err(Lie) => lane.state = State::Failed,
                    }
                    break Read::Done;
                }
                Err(Lie) => {
                    lane.state = State::Failed;
                    break Read::Done;
                }
            };
            if !pace.admits() {
                break Read::Stuck(Outcome::Held);
            }
            if entry.len() <= SHORT
                && let Some((taken, outcome)) = self.deliver_short(n, sink, pace)?
            {
                frames += taken;
                match outcome {
                    Outcome::All => continue,
                    stuck => break Read::Stuck(stuck),
                }
            }
            frames += header::segments_at_most(entry.header(), entry.len());
            bytes += entry.len();
            let outcome = self.deliver_entry(n, &entry, sink)?;
            if outcome != Outcome::All {
                break Read::Stuck(outcome);
            }
            pace.charge(entry.len());
        };
        if let Some(lane) = self.lanes.reader(n) {
            lane.reader.publish();
        }
        Ok(read)
    }

    /// Takes short frames from a lane, as many as one copy brings, and delivers them; returns how
    /// many, `None` if what is next is not to be had so. What the guest has no buffers for, and what
    /// waits for credit, waits in [`Local::deliver_arrived`].
    fn deliver_short(
        &mut self,
        n: usize,
        sink: &mut Sink<'_, '_, '_>,
        pace: &mut impl Pace,
    ) -> Result<Option<(usize, Outcome)>, RingError> {
        let Self { lanes, arrived, .. } = self;
        let Some(lane) = lanes.reader(n) else { return Ok(None) };
        let filled = arrived.fill(&mut lane.reader, sink.residents, |frame, counter| {
            sink.guest.refuse(&[IoVec::from_slice(frame)], counter);
        });
        let taken = match filled {
            Ok(0) => return Ok(None),
            Ok(taken) => taken,
            Err(Lie) => {
                lane.state = State::Failed;
                0
            }
        };
        lane.reader.publish();
        let outcome = sink.guest.deliver_all(sink.ring, arrived, pace);
        sink.guest.publish(sink.ring)?;
        Ok(Some((taken, outcome?)))
    }

    /// Judges a frame as one that came from the underlay, and gives it to the guest. Unless the guest
    /// has no buffers, it is taken from its lane.
    fn deliver_entry(
        &mut self,
        n: usize,
        entry: &Entry,
        sink: &mut Sink<'_, '_, '_>,
    ) -> Result<Outcome, RingError> {
        let Some(lane) = self.lanes.reader(n) else { return Ok(Outcome::All) };
        // What is decided upon is copied first; the rest is only ever copied.
        let mut lead = [0; LEAD_LEN];
        let room = if is_cut(entry) { LEAD_LEN } else { frame::HEADER_LEN };
        let copied = lane.reader.copy(entry, lead.get_mut(..room).unwrap_or_default());
        let lead = lead.get(..copied).unwrap_or_default();
        let (request, is_group) = match judge(entry, lead, sink.residents) {
            Ok(judged) => judged,
            Err(counter) => {
                let parts = &[IoVec::from_slice(lead), lane.reader.bytes(entry, copied)];
                sink.guest.refuse(parts, counter);
                lane.reader.take(entry);
                return Ok(Outcome::All);
            }
        };
        let fits = request == Request::Plain || entry.len() <= MERGED_LEN;
        if let Some(header) =
            unpacked::as_it_is(&request, lead, sink.guest.offloads()).filter(|_| fits)
        {
            let parts = &[IoVec::from_slice(lead), lane.reader.bytes(entry, copied)];
            let frame = GuestFrame { header: &header, parts, origin: Origin::Lane, is_group };
            match sink.guest.deliver(sink.ring, &frame)? {
                Handed::Done => {}
                Handed::TooLong if request == Request::Plain => {
                    sink.guest.refuse(parts, VifCounter::rx_drop_no_buffer);
                }
                Handed::TooLong => return self.unpack(n, entry, lead, &request, sink),
                Handed::Starved => return Ok(Outcome::Starved),
                Handed::Interrupted => return Ok(Outcome::Interrupted),
            }
            lane.reader.take(entry);
            return Ok(Outcome::All);
        }
        self.unpack(n, entry, lead, &request, sink)
    }

    /// Does what the guest does not accept to be left to it, in memory of our own.
    fn unpack(
        &mut self,
        n: usize,
        entry: &Entry,
        lead: &[u8],
        request: &Request,
        sink: &mut Sink<'_, '_, '_>,
    ) -> Result<Outcome, RingError> {
        let Some(lane) = self.lanes.reader(n) else { return Ok(Outcome::All) };
        let mut bytes = lead.to_vec();
        lane.reader.bytes(entry, lead.len()).append_to(&mut bytes);
        lane.reader.take(entry);
        let (offloads, max_frame) = (sink.guest.offloads(), sink.max_frame);
        if self.unpacked.fill(request, &mut bytes, offloads, max_frame).is_err() {
            self.counters.inc(VifCounter::rx_drop_lane);
        }
        self.deliver_unpacked(sink)
    }

    fn deliver_unpacked(&mut self, sink: &mut Sink<'_, '_, '_>) -> Result<Outcome, RingError> {
        let Self { unpacked, .. } = self;
        while let Some((frame, header)) = unpacked.first() {
            let is_group = Addresses::parse(frame).is_ok_and(|a| a.destination.is_group());
            let parts = &[IoVec::from_slice(frame)];
            let frame = GuestFrame { header, parts, origin: Origin::Lane, is_group };
            match sink.guest.deliver(sink.ring, &frame)? {
                Handed::Done => {}
                Handed::TooLong => sink.guest.refuse(parts, VifCounter::rx_drop_no_buffer),
                Handed::Starved => return Ok(Outcome::Starved),
                Handed::Interrupted => return Ok(Outcome::Interrupted),
            }
            unpacked.take();
        }
        Ok(Outcome::All)
    }

    /// Drops what waits in the lanes; it counts as `counter`.
    pub fn drop_waiting(&mut self, counter: VifCounter) {
        let mut dropped = 0;
        for lane in self.lanes.all_readers() {
            for _ in 0..MOST_DISCARDED {
                // Who lies is found out when the lane is read next.
                let Ok(Some(entry)) = lane.reader.peek() else { break };
                lane.reader.take(&entry);
                dropped += 1;
            }
            lane.reader.publish();
            lane.state = State::Busy;
        }
        self.counters.add(counter, dropped);
    }

    /// Drops what was taken from lanes; it counts as `counter`.
    pub fn drop_taken(&mut self, counter: VifCounter) {
        let dropped = self.unpacked.len() + self.arrived.len();
        self.counters.add(counter, dropped as u64);
        self.unpacked.clear();
        self.arrived.clear();
    }
}

/// Whether a frame is to be cut, as its header says.
fn is_cut(entry: &Entry) -> bool {
    !matches!(entry.header(), [_, 0, ..])
}

/// Checks a frame whose beginning was copied: addresses, and what its header says. Returns whether it is
/// for a group.
fn judge(
    entry: &Entry,
    lead: &[u8],
    residents: Residents<'_>,
) -> Result<(Request, bool), VifCounter> {
    let is_group = residents.accept(lead)?;
    let (header, len) = (entry.header(), entry.len());
    Request::parse_uncut(header, len, Offloads::ALL)
        .unwrap_or_else(|| Request::parse(header, lead, len, Offloads::ALL))
        .map(|request| (request, is_group))
        .map_err(|_| VifCounter::rx_drop_lane)
}
