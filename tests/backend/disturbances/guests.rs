//! Guests, and who of them hears whom.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use vnet::sys::clock;
use vnet::time::Instant;

use crate::SOON;
use crate::nic::{BROADCAST, LEN, Nic, frame, mac, number};
use crate::random::Random;
use crate::support::pause;

/// Every guest has to hear every other one of its vnet again within this time.
const LIMIT: Duration = Duration::from_secs(10);
/// Between two tries of a guest that was not heard.
const RETRY: Duration = Duration::from_millis(10);
/// Frames from each guest to each other of its vnet, and to all, once all hear each other.
const FRAMES: usize = 10;
/// The longest of these.
const LONGEST: usize = 1514;

/// A guest that runs on one of the hosts.
pub(super) struct Guest {
    pub(super) nic: Nic,
    pub(super) host: usize,
    /// How often it has moved.
    pub(super) moves: usize,
    /// Frames that have arrived, by number.
    heard: HashSet<u32>,
}

impl Guest {
    pub(super) fn new(nic: Nic, host: usize) -> Self {
        Self { nic, host, moves: 0, heard: HashSet::new() }
    }

    fn vnet(&self) -> u32 {
        self.nic.vif.vnet
    }
}

/// A frame that was sent; its place in the list is its number.
#[derive(Clone, Copy, Debug)]
struct Sent {
    vnet: u32,
    from: u8,
    /// `None`: all.
    to: Option<u8>,
    at: Instant,
}

/// All guests, and all that they have said.
#[derive(Default)]
pub(super) struct Guests {
    pub(super) running: Vec<Guest>,
    sent: Vec<Sent>,
    /// Frames that arrived more than once.
    pub(super) repeated: usize,
}

/// Who speaks and who listens, by their places among those that run.
type Pair = (usize, usize);

impl Guests {
    /// How many frames were sent in all.
    pub(super) fn spoken(&self) -> usize {
        self.sent.len()
    }

    /// Every guest says something to each other one and to all, and nobody listens yet.
    pub(super) fn speak(&mut self) {
        for (from, to) in self.pairs() {
            self.send(from, Some(to), LEN);
        }
        for from in 0..self.running.len() {
            self.send(from, None, LEN);
        }
        self.flush();
    }

    /// Tries until every guest hears what every other one says to it and to all; how long that took.
    /// Panics if it takes too long.
    pub(super) fn wait_all_hear(&mut self, after: &str) -> Duration {
        let begin = clock::mono();
        let first = self.sent.len();
        let mut deaf: BTreeSet<(Pair, bool)> =
            self.pairs().into_iter().flat_map(|pair| [(pair, false), (pair, true)]).collect();
        while !deaf.is_empty() {
            let elapsed = clock::mono() - begin;
            assert!(
                elapsed < LIMIT,
                "{after}: after {elapsed:?} these are not heard: {}",
                self.list(&deaf)
            );
            let to_all: BTreeSet<usize> =
                deaf.iter().filter(|(_, to_all)| *to_all).map(|((from, _), _)| *from).collect();
            let to_one: Vec<Pair> =
                deaf.iter().filter(|(_, to_all)| !to_all).map(|(pair, _)| *pair).collect();
            to_one.into_iter().for_each(|(from, to)| self.send(from, Some(to), LEN));
            to_all.into_iter().for_each(|from| self.send(from, None, LEN));
            self.flush();
            let next = clock::mono() + RETRY;
            while clock::mono() < next && !deaf.is_empty() {
                for (to, number) in self.listen() {
                    let sent = self.sent[number as usize];
                    if number as usize >= first
                        && let Some(from) = self.place(sent.vnet, sent.from)
                    {
                        deaf.remove(&((from, to), sent.to.is_none()));
                    }
                }
                pause();
            }
        }
        let elapsed = clock::mono() - begin;
        self.listen_until_silent();
        elapsed
    }

    /// Nothing is disturbed: each frame arrives, once, in order, and nowhere else.
    pub(super) fn assert_all_arrives(&mut self, after: &str, random: &mut Random) {
        let (first, repeated) = (self.sent.len(), self.repeated);
        for _ in 0..FRAMES {
            for (from, to) in self.pairs() {
                let len = random.range(LEN as u64, LONGEST as u64 + 1) as usize;
                self.send(from, Some(to), len);
            }
            for from in 0..self.running.len() {
                self.send(from, None, LEN);
            }
            self.flush();
        }
        let mut missing: BTreeSet<(usize, u32)> = BTreeSet::new();
        for (n, sent) in self.sent.iter().enumerate().skip(first) {
            let hears = |guest: &Guest| {
                let own = guest.nic.vif.mac;
                guest.vnet() == sent.vnet && own != sent.from && sent.to.is_none_or(|to| to == own)
            };
            let hearers = self.running.iter().enumerate().filter(|(_, guest)| hears(guest));
            missing.extend(hearers.map(|(place, _)| (place, n as u32)));
        }
        let begin = clock::mono();
        // The last number from each guest to each, by one way: frames to all go another.
        let mut last: BTreeMap<(usize, u8, bool), u32> = BTreeMap::new();
        while !missing.is_empty() {
            assert!(
                clock::mono() - begin < SOON,
                "{after}: all heard each other, but {} frames are lost: {}",
                missing.len(),
                self.list_frames(&missing)
            );
            for (to, number) in self.listen() {
                let sent = self.sent[number as usize];
                let before = last.insert((to, sent.from, sent.to.is_none()), number);
                assert!(
                    before < Some(number),
                    "{after}: at {}, {before:?} came before {number}, which was sent {:?} ago: {sent:?}",
                    self.describe(to),
                    clock::mono() - sent.at,
                );
                missing.remove(&(to, number));
            }
            pause();
        }
        self.listen_until_silent();
        assert_eq!(self.repeated, repeated, "{after}: frames arrived twice");
    }

    /// Those of one vnet, but for those to themselves.
    fn pairs(&self) -> Vec<Pair> {
        let places = 0..self.running.len();
        let all = places.clone().flat_map(|from| places.clone().map(move |to| (from, to)));
        all.filter(|&(from, to)| from != to && self.running[from].vnet() == self.running[to].vnet())
            .collect()
    }

    fn place(&self, vnet: u32, mac: u8) -> Option<usize> {
        self.running.iter().position(|guest| guest.vnet() == vnet && guest.nic.vif.mac == mac)
    }

    fn send(&mut self, from: usize, to: Option<usize>, len: usize) {
        let to = to.map(|to| self.running[to].nic.vif.mac);
        let number = self.sent.len() as u32;
        let nic = &mut self.running[from].nic;
        self.sent.push(Sent { vnet: nic.vif.vnet, from: nic.vif.mac, to, at: clock::mono() });
        nic.queue_frame(&frame(to.map_or(BROADCAST, mac), nic.mac(), number, len));
    }

    fn flush(&mut self) {
        self.running.iter_mut().for_each(|guest| guest.nic.driver.flush(0));
    }

    /// What has arrived since: at which guest, and its number. Each must be for it, and of its vnet.
    fn listen(&mut self) -> Vec<(usize, u32)> {
        let mut arrived = Vec::new();
        for (place, guest) in self.running.iter_mut().enumerate() {
            while let Some(bytes) = guest.nic.next_frame(Duration::ZERO) {
                let at = u32::from_be_bytes(bytes[14..18].try_into().expect("4 bytes"));
                let sent = self.sent[at as usize];
                assert_eq!(number(&bytes, mac(sent.from)), at);
                let own = guest.nic.vif;
                assert_eq!(sent.vnet, own.vnet, "{sent:?} arrived at {own:?}");
                assert!(sent.to.is_none_or(|to| to == own.mac), "{sent:?} arrived at {own:?}");
                assert_ne!(sent.from, own.mac, "{own:?} hears itself");
                self.repeated += usize::from(!guest.heard.insert(at));
                arrived.push((place, at));
            }
        }
        arrived
    }

    /// Takes all that is still under way.
    fn listen_until_silent(&mut self) {
        let mut silent_since = clock::mono();
        while clock::mono() - silent_since < 3 * RETRY {
            if !self.listen().is_empty() {
                silent_since = clock::mono();
            }
            pause();
        }
    }

    fn describe(&self, place: usize) -> String {
        let Guest { nic, host, .. } = &self.running[place];
        let letter = char::from(b'a' + *host as u8);
        format!("{}/{} on {letter}", nic.vif.vnet, nic.vif.mac)
    }

    fn list(&self, deaf: &BTreeSet<(Pair, bool)>) -> String {
        let line = |((from, to), to_all): &(Pair, bool)| {
            let what = if *to_all { " (to all)" } else { "" };
            format!("\n    {} by {}{what}", self.describe(*from), self.describe(*to))
        };
        deaf.iter().map(line).collect()
    }

    fn list_frames(&self, missing: &BTreeSet<(usize, u32)>) -> String {
        let line = |(place, number): &(usize, u32)| {
            format!(
                "\n    {number} for {}: {:?}",
                self.describe(*place),
                self.sent[*number as usize]
            )
        };
        missing.iter().take(20).map(line).collect()
    }
}
