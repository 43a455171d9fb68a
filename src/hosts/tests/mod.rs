//! The rules of hello, with hosts that hear each other in a simulated segment.

mod beacons;
mod bounds;
mod converging;
mod longest;
mod recorded;
mod rules;
mod scale;

use std::time::Duration;

use super::*;
use crate::policy::{Level, Policy, Suite};
use crate::security::keys::{KeyId, MacKey};
use crate::wire::hello::list::Choice;
use crate::wire::hello::{Body, Message};
use crate::wire::name::Realm;

const PORT: u16 = 1798;
const WALL: u64 = 1_767_225_600_000;

fn vnet(id: u32) -> VnetId {
    VnetId::new(id).unwrap()
}

/// The address of host `n`.
fn addr(n: u32) -> SocketAddr {
    SocketAddr::from(((0x0a00_0000 + n).to_be_bytes(), PORT))
}

fn name(n: u32) -> Name {
    Name::host(Realm(0), addr(n).ip())
}

fn key(byte: u8) -> (KeyId, MacKey) {
    (KeyId(byte.into()), MacKey::new(&Secret::new([byte; 32])))
}

/// A vnet without keys.
fn open(longest: u32) -> Vnet {
    let groups = Choice { sent: ONE, accepted: 1 };
    let longest = Longest::of_mtu(longest, addr(1).ip());
    Vnet { policy: Policy::default(), cipher: None, groups, longest, keys: Vec::new() }
}

/// A vnet with this key.
fn secured(longest: u32, byte: u8) -> Vnet {
    let policy = Policy::only(Level::Conf);
    Vnet { policy, cipher: Some(Suite::AesGcm), keys: vec![key(byte)], ..open(longest) }
}

/// What a host with these vnets and a vif on each is.
fn setup(vnets: impl IntoIterator<Item = (u32, Vnet)>) -> Setup {
    let vnets: BTreeMap<VnetId, Vnet> =
        vnets.into_iter().map(|(id, setup)| (vnet(id), setup)).collect();
    let vifs = u32::try_from(vnets.len()).unwrap();
    let group = Some("224.10.0.1:1798".parse().unwrap());
    Setup { vnets, vifs, group, beacons: Vec::new() }
}

fn now(ms: u64) -> Now {
    Now { mono: Instant::from_millis(1_000_000 + ms), wall_ms: WALL + ms }
}

/// Host `n`, which starts at a time.
fn host(n: u32, setup: Setup, at: Now) -> Hosts {
    let mut seed = [7; 32];
    seed[..4].copy_from_slice(&n.to_be_bytes());
    let mut host = Hosts::new(name(n), PORT, seed, at);
    host.set_up(setup, at);
    host
}

/// A segment: hosts 1 to n, and what is lost of what they send.
struct Segment {
    hosts: Vec<Option<Hosts>>,
    ms: u64,
    /// How far the clock of each is ahead.
    ahead: Vec<u64>,
    /// Whether a message from one host is lost on its way to another; with a number that is new each time.
    lose: fn(u32, u32, u64) -> bool,
    messages: u64,
    /// Hosts from this number on do not hear each other by the group.
    deaf: Option<u32>,
    /// Time passes in steps of so many milliseconds.
    grain: u64,
    outputs: Vec<(u32, Output)>,
}

impl Segment {
    fn new(setups: Vec<Setup>) -> Self {
        let at = now(0);
        let hosts = (1..).zip(setups).map(|(n, setup)| Some(host(n, setup, at)));
        let hosts: Vec<Option<Hosts>> = hosts.collect();
        let (outputs, ahead) = (Vec::new(), vec![0; hosts.len()]);
        let lose = |_, _, _| false;
        Self { hosts, ms: 0, ahead, lose, messages: 0, deaf: None, grain: 1, outputs }
    }

    fn now(&self, n: u32) -> Now {
        let now = now(self.ms);
        let ahead = self.ahead[n as usize - 1];
        Now { wall_ms: now.wall_ms + ahead, ..now }
    }

    fn at(&mut self, n: u32) -> &mut Hosts {
        self.hosts[n as usize - 1].as_mut().unwrap()
    }

    fn set_up(&mut self, n: u32, setup: Setup) {
        let now = self.now(n);
        self.at(n).set_up(setup, now);
    }

    /// A host ends without a word, and another starts in its place.
    fn restart(&mut self, n: u32, setup: Setup) {
        self.hosts[n as usize - 1] = Some(host(n, setup, self.now(n)));
    }

    /// Delivers what hosts have sent.
    fn carry(&mut self) {
        let count = self.hosts.len() as u32;
        for n in 1..=count {
            while let Some(output) =
                self.hosts[n as usize - 1].as_mut().and_then(Hosts::poll_output)
            {
                match &output {
                    Output::Send { to: To::Group | To::Beacon(_), bytes } => {
                        (1..=count).for_each(|to| self.deliver(n, to, true, bytes));
                    }
                    Output::Send { to: To::Host(to), bytes } => {
                        let to = (1..=count).find(|n| addr(*n) == *to);
                        to.into_iter().for_each(|to| self.deliver(n, to, false, bytes));
                    }
                    _ => self.outputs.push((n, output)),
                }
            }
        }
    }

    fn deliver(&mut self, from: u32, to: u32, is_group: bool, bytes: &[u8]) {
        self.messages += 1;
        let now = self.now(to);
        let is_deaf = self.deaf.is_some_and(|first| is_group && from.min(to) >= first);
        if !is_deaf
            && !(self.lose)(from, to, self.messages)
            && let Some(host) = &mut self.hosts[to as usize - 1]
        {
            host.handle_message(addr(from), is_group, bytes, now);
        }
    }

    /// Lets time pass; hosts do what is due.
    fn pass(&mut self, time: Duration) {
        let end = self.ms + u64::try_from(time.as_millis()).unwrap();
        loop {
            self.carry();
            let due = self.hosts.iter().flatten().map(Hosts::poll_timeout).min().unwrap();
            let due = ((due - now(0).mono).as_millis() as u64 + 1).next_multiple_of(self.grain);
            if due > end {
                self.ms = end;
                return;
            }
            self.ms = self.ms.max(due);
            for n in 1..=self.hosts.len() as u32 {
                let now = self.now(n);
                if let Some(host) = &mut self.hosts[n as usize - 1]
                    && host.poll_timeout() <= now.mono
                {
                    host.handle_timeout(now);
                }
            }
        }
    }

    /// The rows that a host has of another.
    fn rows(&self, n: u32, of: u32) -> Vec<Row> {
        let host = self.hosts[n as usize - 1].as_ref().unwrap();
        host.rows(self.now(n)).into_iter().filter(|row| row.host == name(of)).collect()
    }

    /// Whether all hosts know all others with their present lists.
    fn has_converged(&self) -> bool {
        let running = || (1..).zip(&self.hosts).filter_map(|(n, host)| Some((n, host.as_ref()?)));
        running().all(|(n, host)| {
            let knows = |(m, other): (u32, &Hosts)| {
                let known = host.table.get(name(m));
                m == n
                    || known.is_some_and(|known| {
                        known.said.is_some() && known.digest == other.own.digest()
                    })
            };
            host.table.len() + 1 == running().count() && running().all(knows)
        })
    }

    fn count(&self, n: u32, counter: HostsCounter) -> u64 {
        self.hosts[n as usize - 1].as_ref().unwrap().counters.get(counter)
    }
}

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}
