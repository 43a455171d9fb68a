//! The state of each link, as rows for operators.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use super::link::{Attempt, Peer, Stage};
use super::{INDICES, Sadb};
use crate::policy::{Level, Suite};
use crate::time::{Instant, Now};
use crate::wire::VnetId;

/// How far two hosts are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Keys serve.
    Open,
    /// Keys serve, others are being agreed on.
    Replacing,
    /// Our INIT is under way.
    Asking,
    /// The peer's INIT was answered, and is not confirmed yet.
    Answering,
    /// The host did not answer; there will be another attempt.
    Failed,
    /// No keys, and nothing under way.
    Closed,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Open => "open",
            Self::Replacing => "replacing",
            Self::Asking => "asking",
            Self::Answering => "answering",
            Self::Failed => "failed",
            Self::Closed => "closed",
        })
    }
}

/// The session that serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Serving {
    /// Whether it was made with the key that is used now; else with the other one that is accepted.
    pub has_used_key: bool,
    /// What packets are made with.
    pub suite: Suite,
    /// Time since it was agreed on.
    pub age: Duration,
    /// Until another is made, if the link is wanted then.
    pub rekey_in: Duration,
    /// Until it ends.
    pub ends_in: Duration,
    /// Senders' keys that can still be given out for the care-of address that has most of them.
    pub senders_left: u32,
}

/// A link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The vnet.
    pub vnet: VnetId,
    /// The other host.
    pub peer: IpAddr,
    /// The policy of what serves, or else of the vnet; none if that has no keys here any more.
    pub level: Level,
    /// How far it is.
    pub state: State,
    /// What serves, if anything does.
    pub serving: Option<Serving>,
    /// Sessions whose packets are accepted: that which serves, those before and after it.
    pub sessions: usize,
    /// The link's history.
    pub tally: Tally,
}

/// Numbers of one link since it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Sessions agreed on.
    pub made: u64,
    /// Attempts without an answer in time.
    pub failed: u64,
    /// Handshake messages from the host's address that were dropped.
    pub dropped: u64,
}

impl Sadb {
    /// All links, by vnet and address; at most as many as there may be links.
    pub fn rows(&self, now: Now) -> Vec<Row> {
        let row = |(&(vnet, peer), known): (&(VnetId, IpAddr), &Peer)| {
            let ring = self.vnets.get(&vnet);
            let first = ring.and_then(|ring| ring.keys.first());
            let (used, sent) = (first.map(|keys| keys.id), first.map(|keys| keys.level));
            let serving = known.current(now.mono).map(|session| Serving {
                has_used_key: Some(session.key_id) == used,
                suite: session.agreed.suite,
                age: now.mono.saturating_since(session.made),
                rekey_in: session.rekey_at.saturating_since(now.mono),
                ends_in: session.ends.saturating_since(now.mono),
                senders_left: INDICES.saturating_sub(session.most_senders()),
            });
            Row {
                vnet,
                peer,
                level: serving.map(|serving| serving.suite.level()).or(sent).unwrap_or_default(),
                state: known.state(now.mono),
                serving,
                sessions: known.sessions.len() + usize::from(known.half_open.is_some()),
                tally: known.tally,
            }
        };
        self.peers.iter().map(row).collect()
    }
}

impl Peer {
    fn state(&self, now: Instant) -> State {
        match (self.current(now), &self.attempt, &self.half_open) {
            (Some(_), None, None) => State::Open,
            (Some(_), _, _) => State::Replacing,
            (None, Some(Attempt { stage: Stage::Asking(_), .. }), _) => State::Asking,
            (None, Some(_), _) | (None, None, Some(_)) => State::Answering,
            (None, None, None) if self.rest_until > now => State::Failed,
            (None, None, None) => State::Closed,
        }
    }
}
