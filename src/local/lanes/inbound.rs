//! Reading from lanes.

use std::net::SocketAddr;
use std::time::Duration;

use super::Lanes;
use crate::lane::{Lie, Reader};
use crate::metrics::{VifCounter, VifCounters};
use crate::time::Instant;

/// How long a new lane is shut after its first frame if its handover does not come.
const HANDOVER_WAIT: Duration = Duration::from_millis(50);
/// How often a handover is looked for that another queue pair may have received.
const HANDOVER_LOOK: Duration = Duration::from_millis(1);

/// Whether a lane may be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    Open,
    /// Until the handover comes, or then.
    Shut(Option<Instant>),
}

/// A lane that frames are read from.
#[derive(Debug)]
pub(crate) struct Inbound {
    pub(super) id: u32,
    pub(super) from: SocketAddr,
    pub(crate) reader: Reader,
    pub(super) gate: Gate,
    /// The writer has ended: nothing comes any more.
    pub(super) is_gone: bool,
    /// Whether it is to be removed.
    pub(crate) state: State,
    /// When it ends, if varpd said so.
    pub(super) closing: Option<Instant>,
}

/// What is known of a lane after it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// There may be frames.
    Busy,
    /// Nothing is in it; the next frame rings.
    Empty,
    /// Its writer has broken the rules.
    Failed,
}

impl Lanes {
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
        if let Some(timer) = &self.timer
            && must_look
            && !self.is_stalled
        {
            // It can't fail, and if it did the lane would open with its next ring.
            let _ = timer.set(Some(HANDOVER_LOOK));
        }
    }

    /// How many there are to be read; those of [`Lanes::reader`].
    pub(crate) fn readers(&self) -> usize {
        self.readers.len()
    }

    /// The n-th lane, counted from where this turn begins, if it is open and may have frames.
    pub(crate) fn reader(&mut self, n: usize) -> Option<&mut Inbound> {
        let count = self.readers.len().max(1);
        let lane = self.readers.get_mut((self.turn + n) % count)?;
        (lane.gate == Gate::Open && lane.state == State::Busy).then_some(lane)
    }

    /// The next turn begins so many lanes further.
    pub(crate) fn advance(&mut self, by: usize) {
        self.turn = (self.turn + by) % self.readers.len().max(1);
    }

    /// All lanes, whatever their state.
    pub(crate) fn all_readers(&mut self) -> impl Iterator<Item = &mut Inbound> {
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
