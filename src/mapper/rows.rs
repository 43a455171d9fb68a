//! The mapper's knowledge, as rows of `vnet show varp`.

use std::fmt;
use std::ops::Bound;
use std::time::Duration;

use super::Mapper;
use super::cache::Known;
use super::interest::Interest;
use super::pending::Stage;
use crate::time::{Instant, Now};
use crate::wire::varp::Claim;
use crate::wire::{VifKey, VnetId};

/// The knowledge about one vif.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The vif.
    pub key: VifKey,
    /// How it stands.
    pub state: State,
    /// The newest claim known.
    pub claim: Option<Claim>,
    /// Since when: the claim was made (local), last confirmed, asked for.
    pub age: Duration,
    /// How long this will be believed.
    pub remaining: Duration,
    /// How many local vifs use it; `None` is all of the vnet.
    pub users: Option<usize>,
}

/// States of a [`Row`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The vif is here.
    Local,
    /// It is elsewhere.
    Resolved,
    /// It is elsewhere, and its host is being asked to confirm.
    Confirming,
    /// It is being asked for.
    Resolving,
    /// No host answered.
    Unresolved,
    /// It was here and has left.
    Departed,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Local => "local",
            Self::Resolved => "resolved",
            Self::Confirming => "confirming",
            Self::Resolving => "resolving",
            Self::Unresolved => "unresolved",
            Self::Departed => "departed",
        })
    }
}

/// A range of keys.
type Keys = (Bound<VifKey>, Bound<VifKey>);

impl Mapper {
    /// All that is known, in the order of the keys.
    pub fn rows(&self, now: Now) -> Vec<Row> {
        self.rows_after(None, usize::MAX, now)
    }

    /// The first `most` of the rows whose keys come after this one (a few more if the last key has
    /// several), so that a long table can be shown a page at a time.
    pub fn rows_after(&self, after: Option<VifKey>, most: usize, now: Now) -> Vec<Row> {
        let keys = (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let mut rows: Vec<Row> = self.local_rows(keys, now.mono).take(most).collect();
        rows.extend(self.cached_rows(keys, now.mono).take(most));
        rows.extend(self.asked_rows(keys, now.mono).take(most));
        rows.extend(self.departed_rows(keys, now.mono).take(most));
        rows.sort_by_key(|row| row.key);
        // Behind the last key there may be others that were not taken.
        if let Some(last) = most.checked_sub(1).and_then(|at| rows.get(at)).map(|row| row.key) {
            rows.retain(|row| row.key <= last);
        }
        rows
    }

    /// How many vifs of a vnet are known to be elsewhere.
    pub fn known_on(&self, vnet: VnetId) -> usize {
        self.cache.known_on(vnet)
    }

    fn local_rows(&self, keys: Keys, now: Instant) -> impl Iterator<Item = Row> {
        let row = move |vif: &super::Vif| {
            let own = vif.own.as_ref()?;
            Some(Row {
                key: vif.key,
                state: State::Local,
                claim: vif.claim(),
                age: now.saturating_since(own.since),
                remaining: self.config.lifetime,
                users: users(&own.interest),
            })
        };
        self.vifs.owners(keys).filter_map(row)
    }

    fn cached_rows(&self, keys: Keys, now: Instant) -> impl Iterator<Item = Row> {
        self.cache.range(keys).map(move |(key, entry)| Row {
            key: *key,
            state: match (&entry.known, self.pending.get(key)) {
                (Known::Nobody, _) => State::Unresolved,
                (Known::At { .. }, None) => State::Resolved,
                (Known::At { .. }, Some(_)) => State::Confirming,
            },
            claim: entry.claim(),
            age: now.saturating_since(entry.since),
            remaining: entry.expires.saturating_since(now),
            users: users(&entry.interest),
        })
    }

    fn asked_rows(&self, keys: Keys, now: Instant) -> impl Iterator<Item = Row> {
        let unknown = self.pending.range(keys).filter(|(key, _)| self.cache.get(key).is_none());
        unknown.map(move |(key, pending)| Row {
            key: *key,
            state: match pending.stage {
                Stage::Ask => State::Resolving,
                Stage::Confirm(_) | Stage::Vouch => State::Confirming,
            },
            claim: None,
            age: now.saturating_since(pending.since),
            remaining: pending.due.saturating_since(now),
            users: users(&pending.waiters),
        })
    }

    /// Notes of keys that are known as remote again are in the cache's rows.
    fn departed_rows(&self, keys: Keys, now: Instant) -> impl Iterator<Item = Row> {
        let left = |key: &VifKey| self.vifs.owner(key).is_none() && self.cache.get(key).is_none();
        let notes = self.notes.range(keys).filter(move |(key, _)| left(key));
        notes.map(move |(key, note)| Row {
            key: *key,
            state: State::Departed,
            claim: Some(note.moved.unwrap_or(note.ours)),
            age: (now + self.config.lifetime).saturating_since(note.until),
            remaining: note.until.saturating_since(now),
            users: Some(0),
        })
    }
}

fn users(interest: &Interest) -> Option<usize> {
    interest.listed().map(<[_]>::len)
}
