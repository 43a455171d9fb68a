//! The state of one link, and its timeouts.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::rows::Tally;
use super::{
    Agreed, CLOCK_TOLERANCE, Config, FIRST_WAIT, HOLD, KeyId, LAST_WAIT, Link, MAX_SESSIONS,
    MemberKeys, OVERLAP, Output, RENEWALS_AT_ONCE, RENEWALS_PER_SECOND, Sadb, SadbCounter, TRIES,
};
use crate::limiter::TokenBucket;
use crate::security::handshake::Initiator;
use crate::time::{Instant, Now};
use crate::wire::control::Lifetime;
use crate::wire::handshake::EPHEMERAL_LEN;
use crate::wire::handshake::payload::Additions;

/// Keys agreed on.
#[derive(Debug)]
pub(super) struct Session {
    /// This side's number.
    pub(super) number: u32,
    /// Made with which of the vnet's keys.
    pub(super) key_id: KeyId,
    pub(super) agreed: Agreed,
    pub(super) is_initiator: bool,
    /// When it was agreed on.
    pub(super) made: Instant,
    /// When another one is made, if the link is wanted.
    pub(super) rekey_at: Instant,
    pub(super) ends: Instant,
    /// The number of the next sender to each port of the peer: keys differ by receiver.
    pub(super) next_index: BTreeMap<u16, u32>,
    /// Ports of this host's care-of addresses that have the receive key.
    pub(super) handed: BTreeSet<u16>,
}

impl Session {
    /// How long its keys may still serve.
    pub(super) fn lifetime(&self, config: &Config, now: Instant) -> Lifetime {
        let until = |end: Instant| end.saturating_since(now);
        Lifetime { usual: until(self.ends), hard: until(self.made + config.end()) }
    }
}

impl Session {
    /// How many senders the receiver has that has the most.
    pub(super) fn most_senders(&self) -> u32 {
        self.next_index.values().copied().max().unwrap_or(0)
    }

    fn serves(&self, now: Instant) -> bool {
        now < self.ends
    }
}

/// An INIT of the peer that was answered.
#[derive(Debug)]
pub(super) struct HalfOpen {
    pub(super) session: Session,
    /// The INIT's ephemeral key, to know repetitions: their MACs change with cookies.
    pub(super) ephemeral: [u8; EPHEMERAL_LEN],
    pub(super) response: Vec<u8>,
    pub(super) until: Instant,
    /// From when on it holds up no handshake of our own.
    pub(super) yields: Instant,
}

/// How far our own handshake is.
#[derive(Debug)]
pub(super) enum Stage {
    Asking(Box<Initiator>),
    /// The session with this number.
    Confirming(u32),
}

/// A handshake of our own.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) stage: Stage,
    sent: u32,
    next: Instant,
}

impl Attempt {
    pub(super) fn asking(initiator: Initiator, now: Instant) -> Self {
        Self { stage: Stage::Asking(Box::new(initiator)), sent: 0, next: now }
    }

    pub(super) fn confirming(number: u32, now: Instant) -> Self {
        Self { stage: Stage::Confirming(number), sent: 0, next: now }
    }
}

fn wait(sent: u32) -> Duration {
    (FIRST_WAIT * 2_u32.saturating_pow(sent)).min(LAST_WAIT)
}

/// How often a link may still be renewed.
#[derive(Debug)]
pub(super) struct Renewals(TokenBucket);

impl Default for Renewals {
    fn default() -> Self {
        Self(TokenBucket::new(RENEWALS_PER_SECOND, RENEWALS_AT_ONCE))
    }
}

impl Renewals {
    /// Whether it may be now; then it counts.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        self.0.take(now)
    }
}

/// The other end of a link.
#[derive(Debug, Default)]
pub(super) struct Peer {
    pub(super) wanted_until: Instant,
    pub(super) attempt: Option<Attempt>,
    pub(super) half_open: Option<HalfOpen>,
    /// Those that the peer has shown to have, oldest first.
    pub(super) sessions: Vec<Session>,
    /// The time in the newest INIT that was answered, and when that was.
    pub(super) newest_init: u64,
    pub(super) newest_init_at: Instant,
    /// No attempt before.
    pub(super) rest_until: Instant,
    pub(super) renewals: Renewals,
    /// Its history.
    pub(super) tally: Tally,
    /// The session that was told to serve.
    serving: Option<u32>,
    /// Its timer.
    pub(super) due: Option<Instant>,
}

impl Peer {
    pub(super) fn is_asking(&self) -> bool {
        matches!(self.attempt, Some(Attempt { stage: Stage::Asking(_), .. }))
    }

    pub(super) fn is_confirming(&self, session: u32) -> bool {
        matches!(self.attempt, Some(Attempt { stage: Stage::Confirming(n), .. }) if n == session)
    }

    /// From when a handshake of our own may begin, if that is to be seen: not beside another one,
    /// and not while the peer's is fresh. A peer that is there confirms its own within that time;
    /// an INIT that was recorded is followed by nothing, and must not keep the hosts apart.
    fn free_from(&self) -> Option<Instant> {
        match (&self.attempt, &self.half_open) {
            (Some(_), _) => None,
            (None, Some(half)) => Some(half.yields),
            (None, None) => Some(Instant::ZERO),
        }
    }

    pub(super) fn is_negotiating(&self, now: Instant) -> bool {
        self.free_from().is_none_or(|at| now < at)
    }

    /// Whether nothing would be lost with it. A recorded INIT must not be new again.
    pub(super) fn is_idle(&self, now: Instant) -> bool {
        self.attempt.is_none()
            && self.half_open.is_none()
            && self.sessions.is_empty()
            && self.wanted_until <= now
            && self.newest_init_at + CLOCK_TOLERANCE * 2 <= now
    }

    pub(super) fn current(&self, now: Instant) -> Option<&Session> {
        self.sessions.iter().rev().find(|session| session.serves(now))
    }

    pub(super) fn current_mut(&mut self, now: Instant) -> Option<&mut Session> {
        self.sessions.iter_mut().rev().find(|session| session.serves(now))
    }

    pub(super) fn is_served_without(&self, number: u32, now: Instant) -> bool {
        self.sessions.iter().any(|session| session.number != number && session.serves(now))
    }

    pub(super) fn session(&self, number: u32) -> Option<&Session> {
        let half_open = self.half_open.iter().map(|half| &half.session);
        self.sessions.iter().chain(half_open).find(|session| session.number == number)
    }

    pub(super) fn session_mut(&mut self, number: u32) -> Option<&mut Session> {
        let half_open = self.half_open.iter_mut().map(|half| &mut half.session);
        self.sessions.iter_mut().chain(half_open).find(|session| session.number == number)
    }

    /// Takes a session in that the peer has confirmed. If the confirmation was so late that one of
    /// our own was made meanwhile, that is newer for both sides, and both go on with it.
    pub(super) fn insert(&mut self, mut session: Session, now: Instant) {
        let at = self.sessions.partition_point(|other| other.made <= session.made);
        if at < self.sessions.len() {
            session.ends = session.ends.min(now + OVERLAP);
        }
        self.sessions.insert(at, session);
    }

    /// Gives up asking; returns the number that is free again.
    pub(super) fn drop_asking(&mut self) -> Option<u32> {
        let number = match &self.attempt {
            Some(Attempt { stage: Stage::Asking(initiator), .. }) => initiator.number,
            _ => return None,
        };
        self.attempt = None;
        Some(number)
    }

    pub(super) fn drop_half_open(&mut self) -> Option<u32> {
        self.half_open.take().map(|half| half.session.number)
    }

    /// Sessions that are over, out of the table.
    fn take_over(&mut self, now: Instant) -> Vec<u32> {
        let too_many = self.sessions.len().saturating_sub(MAX_SESSIONS);
        let mut over: Vec<u32> =
            self.sessions.drain(..too_many).map(|session| session.number).collect();
        let ended = |session: &mut Session| session.ends <= now;
        over.extend(self.sessions.extract_if(.., ended).map(|session| session.number));
        if self.half_open.as_ref().is_some_and(|half| half.until <= now) {
            over.extend(self.drop_half_open());
        }
        over
    }

    /// When the newest session is to be replaced; it may not serve yet.
    fn rekey_at(&self) -> Option<Instant> {
        self.sessions.last().map(|session| session.rekey_at)
    }

    /// When something is due by itself.
    fn next_due(&self, now: Instant) -> Option<Instant> {
        let wanted = self.wanted_until > now;
        let sessions = self.sessions.iter().map(|session| Some(session.ends));
        let begin = self.free_from().filter(|_| wanted);
        let begin = begin.map(|at| at.max(self.rekey_at().unwrap_or(now)).max(self.rest_until));
        let attempt = self.attempt.as_ref().map(|attempt| attempt.next);
        let half_open = self.half_open.as_ref().map(|half| half.until);
        sessions.chain([attempt, half_open, begin]).flatten().min()
    }
}

impl Sadb {
    /// Carries out due actions of a link, reports changes, and sets its timer.
    pub(super) fn advance(&mut self, link: Link, now: Now) {
        self.drive_attempt(link, now);
        let Some(peer) = self.peers.get_mut(&link) else { return };
        peer.take_over(now.mono).into_iter().for_each(|number| {
            self.counters.inc(SadbCounter::sa_ended);
            self.release(number);
        });
        self.switch(link, now);
        let Some(peer) = self.peers.get(&link) else { return };
        let is_due = peer.rekey_at().is_none_or(|at| at <= now.mono);
        let may_begin = !peer.is_negotiating(now.mono) && peer.rest_until <= now.mono;
        if is_due && may_begin && peer.wanted_until > now.mono {
            if self.begin(link, now) {
                self.drive_attempt(link, now);
                self.switch(link, now);
            } else if let Some(peer) = self.peers.get_mut(&link) {
                peer.rest_until = now.mono + HOLD;
            }
        }
        self.set_timer(link, now);
    }

    fn set_timer(&mut self, link: Link, now: Now) {
        let Some(peer) = self.peers.get_mut(&link) else { return };
        let due = peer.next_due(now.mono);
        if due != peer.due {
            if let Some(at) = peer.due {
                self.timers.remove(&(at, link));
            }
            peer.due = due;
            self.timers.extend(due.map(|at| (at, link)));
        }
    }

    /// Tells when another session serves, or none; what it replaces ends a while later.
    fn switch(&mut self, link: Link, now: Now) {
        let Some(peer) = self.peers.get_mut(&link) else { return };
        let current = peer.current(now.mono).map(|session| session.number);
        if current == peer.serving {
            return;
        }
        peer.serving = current;
        let (vnet, host) = link;
        let Some(current) = current else {
            return self.outputs.push_back(Output::Down { vnet, peer: host });
        };
        let until = now.mono + OVERLAP;
        let older = peer.sessions.iter_mut().take_while(|session| session.number != current);
        older.for_each(|session| session.ends = session.ends.min(until));
        self.outputs.push_back(Output::Serve { vnet, peer: host });
    }

    /// Begins a handshake; with ourselves, it ends at once.
    pub(super) fn begin(&mut self, link: Link, now: Now) -> bool {
        let (vnet, host) = link;
        let Some(keys) = self.vnets.get(&vnet).and_then(|ring| ring.keys.first()).cloned() else {
            return false;
        };
        let parties = self.parties(link, keys.level, true);
        let Some(number) = self.new_number(link) else { return false };
        if host == self.own.ip() {
            return self.begin_with_self(link, number, &keys, now);
        }
        let time = self.next_time(now.wall_ms);
        let initiator =
            Initiator::new(parties, &keys, number, time, &Additions::NONE, &self.entropy);
        match (initiator, self.peers.get_mut(&link)) {
            (Ok(initiator), Some(peer)) => {
                peer.attempt = Some(Attempt::asking(initiator, now.mono));
                true
            }
            _ => {
                self.numbers.remove(&number);
                false
            }
        }
    }

    /// A time that a peer has not seen from here. After a clock was far ahead nobody has believed
    /// its times, and it can go back.
    fn next_time(&mut self, wall_ms: u64) -> u64 {
        let ahead = Duration::from_millis(self.last_time.saturating_sub(wall_ms));
        let is_believed = ahead <= CLOCK_TOLERANCE;
        self.last_time = if is_believed { wall_ms.max(self.last_time + 1) } else { wall_ms };
        self.last_time
    }

    fn begin_with_self(&mut self, link: Link, number: u32, keys: &MemberKeys, now: Now) -> bool {
        let Some(agreed) = Agreed::with_self(&self.entropy, keys.level, number) else {
            return false;
        };
        let session = self.new_session(number, keys.id, agreed, true, now);
        let Some(peer) = self.peers.get_mut(&link) else { return false };
        peer.sessions.push(session);
        peer.tally.made += 1;
        self.counters.inc(SadbCounter::sa_sessions);
        self.outputs.push_back(Output::Receive { vnet: link.0, peer: link.1, number });
        true
    }

    /// Sends what an attempt has to send now, or gives it up.
    fn drive_attempt(&mut self, link: Link, now: Now) {
        let Some(peer) = self.peers.get_mut(&link) else { return };
        let Some(attempt) = peer.attempt.as_mut().filter(|attempt| attempt.next <= now.mono) else {
            return;
        };
        if attempt.sent >= TRIES {
            return self.give_up(link, now);
        }
        attempt.next = now.mono + wait(attempt.sent);
        attempt.sent += 1;
        match &attempt.stage {
            Stage::Asking(initiator) => {
                let bytes = initiator.message();
                self.send(link, bytes);
            }
            Stage::Confirming(number) => {
                let number = *number;
                self.send_short(link, number);
            }
        }
    }

    /// Sends the CONFIRM of a session that this side began, or the ACK of another.
    pub(super) fn send_short(&mut self, link: Link, number: u32) {
        let (vnet, _) = link;
        let Some(session) = self.peers.get(&link).and_then(|peer| peer.session(number)) else {
            return;
        };
        let Some(keys) = self.keys(vnet, session.key_id) else { return };
        let bytes = match session.is_initiator {
            true => session.agreed.confirm(&Additions::NONE, keys, vnet, number),
            false => session.agreed.ack(keys, vnet, number),
        };
        self.send(link, bytes);
    }

    /// Nobody answers. A session that was not acknowledged is not to be relied on.
    fn give_up(&mut self, link: Link, now: Now) {
        let (vnet, host) = link;
        let Some(peer) = self.peers.get_mut(&link) else { return };
        let Some(attempt) = peer.attempt.take() else { return };
        peer.rest_until = now.mono + HOLD;
        let number = match attempt.stage {
            Stage::Asking(initiator) => initiator.number,
            Stage::Confirming(number) => number,
        };
        peer.sessions.retain(|session| session.number != number);
        peer.tally.failed += 1;
        self.counters.inc(SadbCounter::sa_given_up);
        self.release(number);
        self.outputs.push_back(Output::GaveUp { vnet, peer: host });
    }

    /// Ends sessions made with keys that are no longer accepted.
    pub(super) fn end_withdrawn(&mut self, link: Link, now: Now) {
        let ring = self.vnets.get(&link.0);
        let accepted: Vec<KeyId> =
            ring.iter().flat_map(|ring| ring.keys.iter().map(|keys| keys.id)).collect();
        let soon = now.mono + Duration::from_millis(u64::from(self.entropy.number() % 3000));
        let Some(peer) = self.peers.get_mut(&link) else { return };
        let is_gone = |id: KeyId| !accepted.contains(&id);
        let mut over: Vec<u32> = peer
            .sessions
            .extract_if(.., |session| is_gone(session.key_id))
            .map(|session| session.number)
            .collect();
        if peer.half_open.as_ref().is_some_and(|half| is_gone(half.session.key_id)) {
            over.extend(peer.drop_half_open());
        }
        match &peer.attempt {
            Some(Attempt { stage: Stage::Asking(initiator), .. })
                if is_gone(KeyId(initiator.key_id)) =>
            {
                over.extend(peer.drop_asking());
            }
            Some(Attempt { stage: Stage::Confirming(number), .. }) if over.contains(number) => {
                peer.attempt = None;
            }
            _ => {}
        }
        if accepted.is_empty() {
            peer.wanted_until = now.mono;
        }
        for session in peer.sessions.iter_mut().filter(|s| accepted.first() != Some(&s.key_id)) {
            session.rekey_at = session.rekey_at.min(soon);
        }
        over.into_iter().for_each(|number| {
            self.counters.inc(SadbCounter::sa_ended);
            self.release(number);
        });
    }
}
