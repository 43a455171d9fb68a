//! Who of the guests hears whom, once, in order, and nobody else.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use vnet::sys::clock;
use vnet::time::Instant;

use super::OPEN;
use super::frames;
use super::guests::Guest;
use crate::nic::LEN;
use crate::random::Random;
use crate::support::pause;

/// Every guest has to hear every other one of its vnet again within this time.
const LIMIT: Duration = Duration::from_secs(10);
/// Between two tries of a guest that was not heard.
const RETRY: Duration = Duration::from_millis(10);
/// Frames from each guest to each other of its vnet, and to all, once all hear each other.
const FRAMES: usize = 10;

/// Time as it is for those who are let run: of a turn that should take [`RETRY`], so much counts at most.
/// What is more, others had the processors.
const TURN: Duration = RETRY.saturating_mul(3);

/// Time that something took, on a machine that may be busy with other things.
struct Patience {
    left: Duration,
    looked: Instant,
}

impl Patience {
    fn new(limit: Duration) -> Self {
        Self { left: limit, looked: clock::mono() }
    }

    /// Whether there is any left, to be asked once in a turn.
    fn holds(&mut self) -> bool {
        let now = clock::mono();
        self.left = self.left.saturating_sub(TURN.min(now - self.looked));
        self.looked = now;
        !self.left.is_zero()
    }
}

/// A MAC of a guest: the guest's place among those that run, and which of its MACs.
type Voice = (usize, usize);

/// Who hears whom: whose frame, where, and whether it is to all.
type Wish = (Voice, Voice, bool);

/// From where and to where, which each have a way of their own: at which guest, from which MAC and which
/// queue pair of it, to which MAC or to all.
type Way = (usize, [u8; 6], usize, Option<[u8; 6]>);

/// A frame that was sent; its place in the list is its number.
#[derive(Clone, Copy, Debug)]
struct Sent {
    vnet: u32,
    from: [u8; 6],
    /// `None`: all.
    to: Option<[u8; 6]>,
    len: usize,
    /// The queue pair.
    pair: usize,
    at: Instant,
}

/// All guests, and all that they have said.
#[derive(Default)]
pub(super) struct Guests {
    pub(super) running: Vec<Guest>,
    /// The longest frame, in bytes.
    longest: usize,
    sent: Vec<Sent>,
    /// Frames that arrived more than once.
    pub(super) repeated: usize,
    /// Of these, those of secured vnets.
    pub(super) replayed: usize,
}

impl Guests {
    pub(super) fn new(longest: usize) -> Self {
        Self { longest, ..Self::default() }
    }

    /// How many frames were sent in all.
    pub(super) fn spoken(&self) -> usize {
        self.sent.len()
    }

    /// Every guest says something to each other one and to all, and nobody listens yet; one in four says
    /// as much as it may.
    pub(super) fn speak(&mut self) {
        for (n, (from, to)) in self.pairs().into_iter().enumerate() {
            let len = if n.is_multiple_of(4) { self.longest } else { LEN };
            self.send(from, Some(to), len);
        }
        for from in self.voices() {
            self.send(from, None, LEN);
        }
        self.flush();
    }

    /// The same for a while, and all listen.
    pub(super) fn chat(&mut self, duration: Duration) {
        let end = clock::mono() + duration;
        while clock::mono() < end {
            self.speak();
            let next = clock::mono() + 2 * RETRY;
            while clock::mono() < next {
                self.listen();
                pause();
            }
        }
    }

    /// Tries until every guest hears what every other one says to it and to all; how long that took.
    /// Panics if it takes too long.
    pub(super) fn wait_all_hear(&mut self, after: &str) -> Duration {
        let (begin, mut patience) = (clock::mono(), Patience::new(LIMIT));
        let first = self.sent.len();
        let to_all = |(from, to): (Voice, Voice)| (from, (to.0, 0), true);
        let pairs = self.pairs();
        let mut deaf: BTreeSet<Wish> = pairs
            .into_iter()
            .flat_map(|(from, to)| [(from, to, false), to_all((from, to))])
            .collect();
        while !deaf.is_empty() {
            let elapsed = clock::mono() - begin;
            assert!(
                patience.holds(),
                "{after}: after {elapsed:?} these are not heard: {}",
                self.list(&deaf)
            );
            let (all, one): (Vec<Wish>, Vec<Wish>) = deaf.iter().partition(|(_, _, all)| *all);
            let all: BTreeSet<Voice> = all.into_iter().map(|(from, _, _)| from).collect();
            one.into_iter().for_each(|(from, to, _)| self.send(from, Some(to), LEN));
            all.into_iter().for_each(|from| self.send(from, None, LEN));
            self.flush();
            let next = clock::mono() + RETRY;
            while clock::mono() < next && !deaf.is_empty() {
                for (place, number) in self.listen() {
                    if number as usize >= first
                        && let Some(wish) = self.wish(place, self.sent[number as usize])
                    {
                        deaf.remove(&wish);
                    }
                }
                pause();
            }
        }
        let elapsed = clock::mono() - begin;
        self.listen_until_silent();
        elapsed
    }

    /// What a frame fulfils that was heard at a place.
    fn wish(&self, place: usize, sent: Sent) -> Option<Wish> {
        let voice = |mac: [u8; 6]| {
            self.voices().find(|&voice| self.mac(voice) == mac && self.vnet(voice) == sent.vnet)
        };
        let to = sent.to.map_or(Some((place, 0)), voice)?;
        Some((voice(sent.from)?, to, sent.to.is_none()))
    }

    /// Nothing is disturbed: each frame arrives, once, in order, and nowhere else.
    pub(super) fn assert_all_arrives(&mut self, after: &str, random: &mut Random) {
        let (first, repeated) = (self.sent.len(), self.repeated);
        for _ in 0..FRAMES {
            for (from, to) in self.pairs() {
                let len = random.range(LEN as u64, self.longest as u64 + 1) as usize;
                self.send(from, Some(to), len);
            }
            for from in self.voices() {
                self.send(from, None, LEN);
            }
            self.flush();
        }
        let mut missing = self.hearers(first);
        let mut patience = Patience::new(LIMIT);
        // The last number that came by each way.
        let mut last: BTreeMap<Way, u32> = BTreeMap::new();
        while !missing.is_empty() {
            assert!(
                patience.holds(),
                "{after}: all heard each other, but {} frames are lost: {}",
                missing.len(),
                self.list_frames(&missing)
            );
            for (place, number) in self.listen() {
                let sent = self.sent[number as usize];
                let way = (place, sent.from, sent.pair, sent.to);
                let before = last.insert(way, number);
                assert!(
                    before < Some(number),
                    "{after}: at {}, {before:?} came before {number}, which was sent {:?} ago: {sent:?}",
                    self.describe((place, 0)),
                    clock::mono() - sent.at,
                );
                missing.remove(&(place, number));
            }
            pause();
        }
        self.listen_until_silent();
        assert_eq!(self.repeated, repeated, "{after}: frames arrived twice");
    }

    /// Where which frames have to arrive, from number `first` on.
    fn hearers(&self, first: usize) -> BTreeSet<(usize, u32)> {
        let mut hearers = BTreeSet::new();
        for (number, sent) in self.sent.iter().enumerate().skip(first) {
            for (place, guest) in self.running.iter().enumerate() {
                let macs = guest.macs();
                let is_for = sent.to.is_none_or(|to| macs.contains(&to));
                if guest.vnet() == sent.vnet && is_for && !macs.contains(&sent.from) {
                    hearers.insert((place, number as u32));
                }
            }
        }
        hearers
    }

    fn voices(&self) -> impl Iterator<Item = Voice> + use<> {
        let counts: Vec<usize> = self.running.iter().map(|guest| guest.macs().len()).collect();
        let all = counts.into_iter().enumerate();
        all.flat_map(|(place, count)| (0..count).map(move |n| (place, n)))
    }

    /// Those of one vnet, but for those to themselves.
    fn pairs(&self) -> Vec<(Voice, Voice)> {
        let all = self.voices().flat_map(|from| self.voices().map(move |to| (from, to)));
        all.filter(|&(from, to)| from.0 != to.0 && self.vnet(from) == self.vnet(to)).collect()
    }

    fn mac(&self, (place, n): Voice) -> [u8; 6] {
        self.running[place].macs()[n]
    }

    fn vnet(&self, (place, _): Voice) -> u32 {
        self.running[place].vnet()
    }

    fn send(&mut self, from: Voice, to: Option<Voice>, len: usize) {
        let number = self.sent.len() as u32;
        let (vnet, mac, to) = (self.vnet(from), self.mac(from), to.map(|to| self.mac(to)));
        let guest = &mut self.running[from.0];
        // By turns, as far as the forms allow: those alternate, too.
        let pair = (number / 4) as usize % guest.kind.pairs;
        self.sent.push(Sent { vnet, from: mac, to, len, pair, at: clock::mono() });
        let to = to.unwrap_or_else(|| frames::group(number));
        guest.queue(pair, &frames::frame(to, mac, number, len));
    }

    fn flush(&mut self) {
        self.running.iter_mut().for_each(Guest::flush);
    }

    /// What has arrived since: at which guest, and its number. Each must be for it, of its vnet, and
    /// as it was sent.
    fn listen(&mut self) -> Vec<(usize, u32)> {
        let mut arrived = Vec::new();
        for (place, guest) in self.running.iter_mut().enumerate() {
            while let Some(bytes) = guest.next_frame() {
                let number = frames::number(&bytes);
                let own = guest.nic.vif;
                let sent = self.sent.get(number as usize);
                let sent = *sent.unwrap_or_else(|| panic!("{bytes:x?} arrived at {own:?}"));
                let to = sent.to.unwrap_or_else(|| frames::group(number));
                let whole = frames::frame(to, sent.from, number, sent.len);
                assert!(bytes == whole, "{sent:?} arrived at {own:?} as {bytes:x?}");
                let macs = guest.macs();
                assert_eq!(sent.vnet, own.vnet, "{sent:?} arrived at {own:?}");
                assert!(sent.to.is_none_or(|to| macs.contains(&to)), "{sent:?} arrived at {own:?}");
                // What it sent from another place may reach it at this one, as on one wire.
                let is_own = macs.contains(&sent.from) && sent.at >= guest.since;
                assert!(!is_own, "{own:?} hears itself: {sent:?}");
                if !guest.heard.insert(number) {
                    self.repeated += 1;
                    self.replayed += usize::from(sent.vnet != OPEN);
                }
                arrived.push((place, number));
            }
        }
        arrived
    }

    /// Takes all that is still under way.
    pub(super) fn listen_until_silent(&mut self) {
        let mut silent_since = clock::mono();
        while clock::mono() - silent_since < 3 * RETRY {
            if !self.listen().is_empty() {
                silent_since = clock::mono();
            }
            pause();
        }
    }

    fn describe(&self, voice: Voice) -> String {
        let Guest { nic, host, kind, .. } = &self.running[voice.0];
        let letter = char::from(b'a' + *host as u8);
        let behind = if voice.1 > 0 { " (behind it)" } else { "" };
        format!("{}/{}{behind} ({}) on {letter}", nic.vif.vnet, nic.vif.mac, kind.pairs)
    }

    fn list(&self, deaf: &BTreeSet<Wish>) -> String {
        let line = |(from, to, to_all): &Wish| {
            let what = if *to_all { " (to all)" } else { "" };
            format!("\n    {} by {}{what}", self.describe(*from), self.describe(*to))
        };
        deaf.iter().map(line).collect()
    }

    fn list_frames(&self, missing: &BTreeSet<(usize, u32)>) -> String {
        let line = |(place, number): &(usize, u32)| {
            let (at, sent) = (self.describe((*place, 0)), self.sent[*number as usize]);
            format!("\n    {number} for {at}: {sent:?}")
        };
        missing.iter().take(20).map(line).collect()
    }
}
