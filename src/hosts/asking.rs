//! Messages to single hosts: questions, answers, and lists for the hosts that lack them.
//!
//! A host that lacks another's list asks for it with the nonce that the other has sent it last. If
//! it has none, or an old one, the answer brings one, and it asks again at once. So a host gets a
//! list only if it receives at the address that it asks from. In addition, one host of each pair
//! regularly asks the other whether unicast arrives at all.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use super::own::{ALL, Addressing};
use super::schedule::{lifetime, within};
use super::{Hosts, HostsCounter, To};
use crate::limiter::TokenBucket;
use crate::time::{Instant, Now};
use crate::wire::VnetId;
use crate::wire::hello::{Flags, Hello};
use crate::wire::name::Name;

/// Limit on LISTs sent per second, to the group and to single hosts together.
const LISTS: u32 = 20;
/// Time between two checks whether the limit permits another LIST.
const LIST_PAUSE: Duration = Duration::from_millis(50);
/// Limit on hosts that wait for this host's list; further hosts have to ask again.
const MAX_ERRANDS: usize = 64;
/// Limit on answers: per second, and burst.
const ANSWERS: (u32, u32) = (20, 40);
/// Limit on questions for lists: per second, and burst.
const QUESTIONS: (u32, u32) = (10, 20);
/// Least time for which a host waits for LISTs to the group before it asks for the list.
const LIST_DELAY: Duration = Duration::from_secs(2);
/// The same for a host that has just started: the other hosts sent their LISTs before that.
const FIRST_DELAY: Duration = Duration::from_millis(300);
/// Time after the start for which a host counts as just started.
pub(super) const NEW: Duration = Duration::from_secs(60);
/// Delay before the same list is asked for again. It doubles with each question, up to
/// [`MOST_DOUBLINGS`] times.
const ASK_AGAIN: Duration = Duration::from_secs(5);
const MOST_DOUBLINGS: u32 = 6;
/// Interval of questions whether a host answers: the least, and the part that each host on a large
/// segment adds.
const CHECK: Duration = Duration::from_secs(60);
const CHECK_PER_HOST: Duration = Duration::from_millis(500);

/// This host's list, or a range of it, to be sent in as many LISTs as necessary.
#[derive(Debug)]
struct Errand {
    /// Destination: the group, or a host.
    to: To,
    range: (VnetId, VnetId),
}

/// Messages to single hosts that are planned.
#[derive(Debug)]
pub(super) struct Errands {
    lists: VecDeque<Errand>,
    pace: TokenBucket,
    lists_at: Instant,
    answers: TokenBucket,
    questions: TokenBucket,
    /// Time of the next question whether a host answers, and the host that was asked last.
    check_at: Instant,
    checked: Option<Name>,
}

impl Errands {
    pub(super) fn new(now: Instant) -> Self {
        let bucket = |(per_second, burst)| TokenBucket::new(per_second, burst);
        Self {
            lists: VecDeque::new(),
            pace: TokenBucket::new(LISTS, LISTS),
            lists_at: now,
            answers: bucket(ANSWERS),
            questions: bucket(QUESTIONS),
            check_at: now + CHECK,
            checked: None,
        }
    }

    /// Plans LISTs of the vnets in a range, to the group.
    pub(super) fn tell_group(&mut self, range: (VnetId, VnetId)) {
        self.lists.retain(|errand| errand.to != To::Group || errand.range != range);
        self.lists.push_front(Errand { to: To::Group, range });
    }

    /// Plans LISTs of all vnets to a host, unless too many hosts wait.
    fn tell_host(&mut self, to: SocketAddr) {
        let to = To::Host(to);
        if self.lists.len() < MAX_ERRANDS && self.lists.iter().all(|errand| errand.to != to) {
            self.lists.push_back(Errand { to, range: ALL });
        }
    }

    /// Times at which messages are due.
    pub(super) fn due(&self) -> impl Iterator<Item = Instant> {
        let lists = (!self.lists.is_empty()).then_some(self.lists_at);
        lists.into_iter().chain([self.check_at])
    }
}

impl Hosts {
    /// Sends LISTs within the limit.
    pub(super) fn send_lists(&mut self, now: Now) {
        while let Some(Errand { to, range }) = self.errands.lists.pop_front() {
            if !self.errands.pace.take(now.mono) {
                self.errands.lists.push_front(Errand { to, range });
                self.errands.lists_at = now.mono + LIST_PAUSE;
                return;
            }
            let (bytes, next) = self.own.list(range, now);
            self.send(to, bytes, HostsCounter::hello_tx_lists);
            if let Some(next) = next {
                self.errands.lists.push_front(Errand { to, range: (next, range.1) });
            }
        }
    }

    /// Plans a question for a host's list, if this host lacks it.
    pub(super) fn plan_question(&mut self, name: Name, now: Now) {
        let delay = if now.mono < self.since + NEW {
            FIRST_DELAY + within(FIRST_DELAY, &mut self.random)
        } else {
            let spread =
                Duration::from_secs(1).max(super::schedule::interval(self.speakers()) / 60);
            LIST_DELAY + within(spread, &mut self.random)
        };
        let Some(host) = self.table.get_mut(name) else { return };
        if !host.wants_list() {
            (host.ask_at, host.asked) = (None, 0);
        } else if host.ask_at.is_none() {
            let at = now.mono + delay;
            host.ask_at = Some(at);
            self.table.due(at);
        }
    }

    /// Plans a question whether a host is still there: a message in its name may be a recorded one,
    /// or its times may have been used up by forged ones. The host's answer ends the doubt.
    pub(super) fn doubt(&mut self, name: Name, now: Instant) {
        let Some(host) = self.table.get_mut(name).filter(|host| host.ask_at.is_none()) else {
            return;
        };
        let at = now + LIST_DELAY;
        host.ask_at = Some(at);
        self.table.due(at);
    }

    /// Asks a host for its list if this host lacks it, or only whether it is still there. Plans the
    /// next question if there is no answer.
    pub(super) fn ask_for_list(&mut self, name: Name, now: Now) {
        let has_room = self.errands.questions.take(now.mono);
        let Some(host) = self.table.get_mut(name) else { return };
        if !has_room {
            host.ask_at = Some(now.mono + ASK_AGAIN);
            return;
        }
        host.asked_with = host.nonce;
        host.ask_at = Some(now.mono + ASK_AGAIN * (1 << host.asked.min(MOST_DOUBLINGS)));
        host.asked = host.asked.saturating_add(1);
        let flags = if host.wants_list() { Flags::WANTS_LIST } else { Flags::NONE };
        self.question(name, flags, now);
    }

    /// A host has answered: if this host lacked its nonce, it asks again now.
    pub(super) fn heed_answer(&mut self, name: Name, now: Now) {
        let Some(host) = self.table.get_mut(name) else { return };
        if host.wants_list() && host.asked > 0 && host.asked_with != host.nonce {
            self.ask_for_list(name, now);
        }
    }

    fn question(&mut self, name: Name, flags: Flags, now: Now) {
        let Some(host) = self.table.get_mut(name) else { return };
        host.has_nonce = true;
        let (to, answer) = (host.addr, host.nonce);
        let flags = flags.with(host.heard());
        self.tell(to, Addressing { flags, nonce: 0, answer }, now);
    }

    /// Sends a HELLO to one host.
    fn tell(&mut self, to: SocketAddr, addressing: Addressing, now: Now) {
        let nonce = self.nonces.current(to, now.mono);
        let is_answer = addressing.flags.contains(Flags::ANSWER);
        let lifetime = lifetime(self.speakers());
        let bytes = self.own.hello(Addressing { nonce, ..addressing }, lifetime, now);
        let counter = match is_answer {
            true => HostsCounter::hello_tx_answers,
            false => HostsCounter::hello_tx_questions,
        };
        self.send(To::Host(to), bytes, counter);
    }

    /// Answers a question, within limits.
    pub(super) fn answer(&mut self, name: Name, flags: Flags, question: &Hello<'_>, now: Now) {
        let Some(host) = self.table.get_mut(name) else { return };
        if !host.answers.take(now.mono) || !self.errands.answers.take(now.mono) {
            self.counters.inc(HostsCounter::hello_limited);
            return;
        }
        let to = host.addr;
        if flags.contains(Flags::WANTS_LIST) {
            if self.nonces.accepts(to, question.answer, now.mono) {
                self.errands.tell_host(to);
                self.errands.lists_at = now.mono;
            } else if host.has_nonce {
                // Unicast does not reach it.
                self.own.tell_all();
            }
        }
        host.has_nonce = true;
        let flags = Flags::ANSWER.with(host.heard());
        self.tell(to, Addressing { flags, nonce: 0, answer: question.nonce }, now);
    }

    /// Asks the next host whether it answers, if the question is due. Of two hosts, the one with
    /// the lower name asks.
    pub(super) fn check_one(&mut self, now: Now) {
        if self.errands.check_at > now.mono {
            return;
        }
        let behind = self.errands.checked.filter(|checked| *checked > self.own.name);
        let next = self.table.after(behind.unwrap_or(self.own.name));
        let next = next.or_else(|| self.table.after(self.own.name));
        self.errands.checked = next;
        let higher = self.table.count_after(self.own.name).max(1);
        let every = CHECK.max(CHECK_PER_HOST * self.speakers());
        self.errands.check_at = now.mono + every / higher;
        if let Some(name) = next {
            self.question(name, Flags::NONE, now);
        }
    }
}
