//! Vifs that were on this host and have left: for one lifetime of a mapping the mapper keeps their
//! new places, so that backends can forward frames that still arrive, and this host can correct the
//! senders' hosts.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeBounds;

use super::moves::TELL_INTERVAL;
use crate::limiter::repeat;
use crate::time::Instant;
use crate::wire::varp::Claim;
use crate::wire::{Mac, VifKey};

/// What is remembered of one vif.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Note {
    /// The claim that was made here.
    pub(super) ours: Claim,
    /// The newer claim, once it is known: a guest stops here before it starts elsewhere.
    pub(super) moved: Option<Claim>,
    /// When that became known.
    pub(super) moved_at: Option<Instant>,
    /// The end of the note.
    pub(super) until: Instant,
    /// When the vifs that were here were last told of the newer claim.
    pub(super) said: Option<Instant>,
    /// When they will be told of one that was held back.
    pub(super) overdue: Option<Instant>,
    /// When the host of the newer claim was last told that the vif runs here, too; or, where ours is the newer one,
    /// when the host of the older claim was last told that ours is over.
    pub(super) contested: Option<Instant>,
    /// Hosts that sent late frames, when they were last told, and how often so far.
    told: Vec<(IpAddr, Instant, u32)>,
}

/// Hosts remembered by one note; more are told again sooner.
const MOST_TOLD: usize = 32;

impl Note {
    pub(super) fn new(ours: Claim, moved: Option<Claim>, now: Instant, until: Instant) -> Self {
        let moved_at = moved.map(|_| now);
        let (said, overdue, contested) = (moved_at, None, None);
        Self { ours, moved, moved_at, until, said, overdue, contested, told: Vec::new() }
    }

    /// Whether the vifs that were here are to be told of the newer claim now: at once, and of further ones every
    /// [`TELL_INTERVAL`] at most. If not, until when that is held back.
    pub(super) fn say(&mut self, now: Instant) -> Result<(), Instant> {
        let due = self.said.map_or(now, |said| said + TELL_INTERVAL);
        if due > now {
            return Err(due);
        }
        (self.said, self.overdue) = (Some(now), None);
        // Hosts that were told another place are told this one at once.
        self.told.clear();
        Ok(())
    }

    /// Whether a host is to be told now: at once, soon again, since any message may be lost, and then
    /// once a second.
    pub(super) fn tell(&mut self, host: IpAddr, now: Instant) -> bool {
        if let Some((_, at, times)) = self.told.iter_mut().find(|(told, ..)| *told == host) {
            let is_due = now.saturating_since(*at) >= repeat::wait(*times);
            if is_due {
                (*at, *times) = (now, *times + 1);
            }
            return is_due;
        }
        if self.told.len() >= MOST_TOLD {
            self.told.remove(0);
        }
        self.told.push((host, now, 1));
        true
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Notes(BTreeMap<VifKey, Note>);

impl Notes {
    pub(super) fn get(&self, key: &VifKey) -> Option<&Note> {
        self.0.get(key)
    }

    pub(super) fn get_mut(&mut self, key: &VifKey) -> Option<&mut Note> {
        self.0.get_mut(key)
    }

    /// Puts in a note; returns the one it replaces.
    pub(super) fn insert(&mut self, key: VifKey, note: Note) -> Option<Note> {
        self.0.insert(key, note)
    }

    pub(super) fn remove(&mut self, key: &VifKey) -> Option<Note> {
        self.0.remove(key)
    }

    /// The note to give up when there are too many. Rare, so a scan is good enough.
    pub(super) fn oldest(&self) -> Option<VifKey> {
        self.0.iter().min_by_key(|(_, note)| note.until).map(|(key, _)| *key)
    }

    /// Those whose keys are in this range.
    pub(super) fn range(
        &self,
        keys: impl RangeBounds<VifKey>,
    ) -> impl Iterator<Item = (&VifKey, &Note)> {
        self.0.range(keys)
    }

    /// Those of MACs that were behind this vif.
    pub(super) fn behind(&self, bridge: VifKey) -> impl Iterator<Item = (&VifKey, &Note)> {
        let key = |mac| VifKey { mac, ..bridge };
        let on_vnet = self.range(key(Mac([0; 6]))..=key(Mac([0xff; 6])));
        on_vnet.filter(move |(_, note)| note.ours.behind == Some(bridge.mac))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}
