//! Messages to single hosts: questions, answers, and lists for those who lack them.
//!
//! A host that lacks another's list asks for it with the nonce that the other has sent it last. If it has none, or an
//! old one, the answer brings one, and it asks again at once. So a list is sent to nobody who does not receive at the address
//! that it asks from. And one of each two hosts asks the other now and then whether unicast arrives at all.

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

/// LISTs a second, to the group and to single hosts.
const LISTS: u32 = 20;
/// Between two looks at whether more may leave.
const LIST_PAUSE: Duration = Duration::from_millis(50);
/// Hosts that wait for a list at most; others ask again.
const MAX_ERRANDS: usize = 64;
/// Answers a second, and at once.
const ANSWERS: (u32, u32) = (20, 40);
/// Questions for lists a second, and at once.
const QUESTIONS: (u32, u32) = (10, 20);
/// How long a list may be under way before it is asked for, at least.
const LIST_DELAY: Duration = Duration::from_secs(2);
/// The same for a host that has just started: others have sent theirs before.
const FIRST_DELAY: Duration = Duration::from_millis(300);
/// How long a host counts as just started.
pub(super) const NEW: Duration = Duration::from_secs(60);
/// Wait for a list that was asked for; it doubles, so many times at most.
const ASK_AGAIN: Duration = Duration::from_secs(5);
const MOST_DOUBLINGS: u32 = 6;
/// How often each host is asked whether it answers: a small segment, and what each host adds on a large one.
const CHECK: Duration = Duration::from_secs(60);
const CHECK_PER_HOST: Duration = Duration::from_millis(500);

/// A list that is to be sent, in as many LISTs as it takes.
#[derive(Debug)]
struct Errand {
    /// The group, or a host.
    to: To,
    range: (VnetId, VnetId),
}

/// What is under way to single hosts.
#[derive(Debug)]
pub(super) struct Errands {
    lists: VecDeque<Errand>,
    pace: TokenBucket,
    lists_at: Instant,
    answers: TokenBucket,
    questions: TokenBucket,
    /// When the next host is asked whether it answers, and the one that was asked last.
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

    /// The group is to hear of the vnets in a range.
    pub(super) fn tell_group(&mut self, range: (VnetId, VnetId)) {
        self.lists.retain(|errand| errand.to != To::Group || errand.range != range);
        self.lists.push_front(Errand { to: To::Group, range });
    }

    /// A host is to hear of all, unless too many are.
    fn tell_host(&mut self, to: SocketAddr) {
        let to = To::Host(to);
        if self.lists.len() < MAX_ERRANDS && self.lists.iter().all(|errand| errand.to != to) {
            self.lists.push_back(Errand { to, range: ALL });
        }
    }

    /// When something is to leave.
    pub(super) fn due(&self) -> impl Iterator<Item = Instant> {
        let lists = (!self.lists.is_empty()).then_some(self.lists_at);
        lists.into_iter().chain([self.check_at])
    }
}

impl Hosts {
    /// Sends lists, as far as the limit allows.
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

    /// Asks a host for its list some time soon, if this host lacks it.
    pub(super) fn plan_question(&mut self, name: Name, now: Now) {
        let delay = if now.mono < self.since + NEW {
            FIRST_DELAY + within(FIRST_DELAY, &mut self.random)
        } else {
            let spread =
                Duration::from_secs(1).max(super::schedule::interval(self.speakers()) / 30);
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

    /// Asks a host for its list, and plans the next question if it does not come.
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
        self.question(name, Flags::WANTS_LIST, now);
    }

    /// A host has answered: if it lacked a nonce of this host's, it can be asked anew now.
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
        let heard = if host.by_group.is_some() { Flags::HEARD } else { Flags::NONE };
        self.tell(to, Addressing { flags: flags.with(heard), nonce: 0, answer }, now);
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
                // It does not hear what it is sent alone.
                self.own.tell_all();
            }
        }
        host.has_nonce = true;
        let heard = if host.by_group.is_some() { Flags::HEARD } else { Flags::NONE };
        let flags = Flags::ANSWER.with(heard);
        self.tell(to, Addressing { flags, nonce: 0, answer: question.nonce }, now);
    }

    /// Asks the next host whether it answers, if it is time to. Of two hosts, the one with the lower name asks.
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
