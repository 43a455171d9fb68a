//! The world: hosts, instances, events in the order of time, and the model that knows who owns
//! what.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use vnet::host::Input;
use vnet::time::Instant;
use vnet::tunnel::moved::{LateSender, Verdict};
use vnet::wire::control::Request;
use vnet::wire::varp::Claim;
use vnet::wire::{CareOf, Mac, VifKey};

use crate::host::{Host, Protection};
use crate::network::Weather;
use crate::random::Random;
use crate::recording::Recording;
use crate::script::{Action, Scenario};
use crate::user::{Neighbour, User, Verdict as Sends};

/// Something that will happen.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// A datagram arrives at a host's varpd.
    Arrive { host: usize, from: usize, via_group: bool, bytes: Rc<[u8]> },
    /// A host's varpd has something to do.
    Wake { host: usize },
    /// A backend without a connection tries to reach varpd.
    Connect { instance: usize },
    /// An instance sends a frame to a MAC, and again after that time.
    Frame { from: usize, to: Mac, every: Duration },
    /// The script goes on.
    Act(Action),
}

/// What happened, to see that a run is worth something.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) datagrams: u64,
    pub(crate) frames: u64,
    pub(crate) delivered: u64,
    /// Times that a late frame was sent on.
    pub(crate) forwarded: u64,
    /// Places that one frame came to at most.
    pub(crate) longest_way: u64,
    pub(crate) migrations: u64,
    /// Moves from behind one bridge to behind another.
    pub(crate) wanders: u64,
    /// Times that a bridge's guest sent from another guest's own MAC.
    pub(crate) thefts: u64,
    /// Times that such a one, or one behind a bridge, was refused.
    pub(crate) refused: u64,
    /// Claims of MACs behind bridges that were put off.
    pub(crate) deferred: u64,
    /// Times that a MAC behind a bridge was looked for, and was where it was last sent from.
    pub(crate) settled: u64,
    /// Backends that were killed.
    pub(crate) crashes: u64,
    pub(crate) restarts: u64,
    pub(crate) partitions: u64,
    pub(crate) jumps: u64,
    pub(crate) claims: u64,
    pub(crate) reclaims: u64,
    pub(crate) damped: u64,
    pub(crate) corrections: u64,
    pub(crate) answers_checked: u64,
    /// Connections of backends that varpd ended, since they did not read or made no sense.
    pub(crate) ended: u64,
    /// Registrations that got the sockets of an earlier backend.
    pub(crate) resumed: u64,
    /// Registrations that brought sockets.
    pub(crate) adopted: u64,
}

impl Totals {
    pub(crate) fn add(&mut self, other: &Self) {
        self.datagrams += other.datagrams;
        self.frames += other.frames;
        self.delivered += other.delivered;
        self.forwarded += other.forwarded;
        self.longest_way = self.longest_way.max(other.longest_way);
        self.migrations += other.migrations;
        self.wanders += other.wanders;
        self.thefts += other.thefts;
        self.refused += other.refused;
        self.deferred += other.deferred;
        self.settled += other.settled;
        self.crashes += other.crashes;
        self.restarts += other.restarts;
        self.partitions += other.partitions;
        self.jumps += other.jumps;
        self.claims += other.claims;
        self.reclaims += other.reclaims;
        self.damped += other.damped;
        self.corrections += other.corrections;
        self.answers_checked += other.answers_checked;
        self.ended += other.ended;
        self.resumed += other.resumed;
        self.adopted += other.adopted;
    }

    /// A simulation in which nothing happens proves nothing.
    pub(crate) fn assert_that_things_happened(&self) {
        let all = [
            self.forwarded,
            self.migrations,
            self.wanders,
            self.thefts,
            self.refused,
            self.deferred,
            self.settled,
            self.crashes,
            self.restarts,
            self.partitions,
            self.jumps,
            self.reclaims,
            self.damped,
            self.corrections,
            self.answers_checked,
            self.ended,
            self.resumed,
            self.adopted,
        ];
        assert!(all.iter().all(|&n| n > 0), "{self:?}");
        assert!(self.delivered * 2 > self.frames, "most frames arrive: {self:?}");
    }
}

/// One run.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) scenario: Scenario,
    pub(crate) protection: Protection,
    pub(crate) random: Random,
    pub(crate) now: Instant,
    queue: BTreeMap<(Instant, u64), Event>,
    sequence: u64,
    pub(crate) weather: Weather,
    pub(crate) hosts: Vec<Host>,
    pub(crate) users: Vec<User>,
    /// The instance that has the sockets at an address, or had them last.
    pub(crate) holders: BTreeMap<SocketAddr, usize>,
    /// The instance that registers now.
    pub(crate) registering: usize,
    /// Inputs that hosts get when they have done what they are about.
    pub(crate) results: VecDeque<Input>,
    /// The instance whose guest runs last started, for each key.
    pub(crate) intended: BTreeMap<VifKey, usize>,
    /// Until when a guest that was killed is being started again.
    pub(crate) starting: BTreeMap<VifKey, Instant>,
    /// How often each key has moved.
    pub(crate) moves: BTreeMap<VifKey, u32>,
    /// The highest claim that was ever made, for each key.
    pub(crate) highest: BTreeMap<VifKey, Claim>,
    /// The first rule that was broken.
    pub(crate) violation: Option<String>,
    /// Frames must arrive at once: the pair has talked before and nothing happens to it.
    pub(crate) no_gap: bool,
    pub(crate) digest: u64,
    pub(crate) totals: Totals,
    traced: bool,
    pub(crate) trace: Vec<String>,
    /// What the first host is given, and what it does, if that is recorded.
    pub(crate) recording: Option<Recording>,
}

impl World {
    /// A world without vifs, as the seed has it.
    pub(crate) fn new(seed: u64, traced: bool) -> Self {
        let mut random = Random::new(seed);
        let scenario = Scenario::roll(seed);
        let protection = if seed % 20 == 6 { Protection::Conf } else { Protection::None };
        let now = Instant::from_millis(1000);
        let count = random.range(3, if protection == Protection::None { 21 } else { 6 });
        let hosts = (0..usize::try_from(count).expect("few"))
            .map(|number| {
                let skew_ms = match protection {
                    Protection::None => Host::skew(&mut random),
                    Protection::Conf => Host::small_skew(&mut random),
                };
                let mut host = Host { number, varpd: None, skew_ms, island: 0 };
                let entropy = [random.next(), random.next()];
                host.start(Host::setup(number, protection, entropy), now);
                host
            })
            .collect();
        Self {
            scenario,
            protection,
            random,
            now,
            queue: BTreeMap::new(),
            sequence: 0,
            weather: Weather::FAIR,
            hosts,
            users: Vec::new(),
            holders: BTreeMap::new(),
            registering: 0,
            results: VecDeque::new(),
            intended: BTreeMap::new(),
            starting: BTreeMap::new(),
            moves: BTreeMap::new(),
            highest: BTreeMap::new(),
            violation: None,
            no_gap: false,
            digest: 0,
            totals: Totals::default(),
            traced,
            trace: Vec::new(),
            recording: None,
        }
    }

    pub(crate) fn summary(&self) -> String {
        format!("{} hosts, {} instances, {:?}", self.hosts.len(), self.users.len(), self.totals)
    }

    /// Something happens after so many microseconds.
    pub(crate) fn after(&mut self, micros: u64, event: Event) {
        self.sequence += 1;
        self.queue.insert((self.now + Duration::from_micros(micros), self.sequence), event);
    }

    /// Lets time pass.
    pub(crate) fn run_for(&mut self, duration: Duration) -> Result<(), String> {
        let end = self.now + duration;
        while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= end) {
            let ((at, _), event) = entry.remove_entry();
            self.now = at;
            self.happen(event);
            if let Some(violation) = self.violation.take() {
                return Err(violation);
            }
        }
        self.now = end;
        Ok(())
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive { host, from, via_group, bytes } => {
                self.totals.datagrams += 1;
                self.note(|| format!("{host} <- {from} group {via_group}, {} bytes", bytes.len()));
                let from = Host::varp(from);
                self.give(
                    host,
                    Input::Datagram { from, is_group: via_group, bytes: bytes.to_vec() },
                );
            }
            Event::Wake { host } => {
                let now = self.now;
                let due = self.hosts[host].varpd.as_ref().and_then(|v| v.machine.poll_timeout());
                if due.is_some_and(|due| due <= now) {
                    self.give(host, Input::Timeout);
                }
            }
            Event::Connect { instance } => self.connect(instance),
            Event::Frame { from, to, every } => {
                self.frame(from, to);
                if self.users[from].present {
                    let micros = u64::try_from(every.as_micros()).expect("short");
                    self.after(micros, Event::Frame { from, to, every });
                }
            }
            Event::Act(action) => {
                self.note(|| format!("{action:?}"));
                self.act(action);
            }
        }
    }

    /// Gives a host's varpd an input and does what it says; nothing while varpd is down.
    pub(crate) fn give(&mut self, host: usize, input: Input) {
        if self.hosts[host].varpd.is_none() {
            return;
        }
        self.results.push_front(input);
        while let Some(input) = self.results.pop_front() {
            let now = self.hosts[host].now(self.now);
            let Some(varpd) = self.hosts[host].varpd.as_mut() else { break };
            let recording = self.recording.as_mut().filter(|_| host == 0);
            recording.into_iter().for_each(|to| to.inputs.push((now, input.clone())));
            varpd.machine.handle(input, now);
            while let Some(output) =
                self.hosts[host].varpd.as_mut().and_then(|v| v.machine.poll_output())
            {
                let recording = self.recording.as_mut().filter(|_| host == 0);
                recording.into_iter().for_each(|to| to.outputs.push(output.clone()));
                self.perform(host, output);
            }
        }
        let due = self.hosts[host].varpd.as_ref().and_then(|v| v.machine.poll_timeout());
        if let Some(due) = due {
            let wait = due.saturating_since(self.now).as_micros();
            self.wake(host, u64::try_from(wait).expect("short"));
        }
    }

    /// A backend asks its varpd for something, if it has a connection.
    pub(crate) fn ask(&mut self, instance: usize, request: &Request) {
        let host = self.users[instance].host;
        let varpd = self.hosts[host].varpd.as_ref();
        if let Some(client) = varpd.and_then(|varpd| varpd.client(instance)) {
            let bytes = request.emit();
            self.give(host, Input::Request { client, bytes, is_cut: false, descriptors: 0 });
        }
    }

    /// At most one wake-up of a host waits at a time for a moment.
    fn wake(&mut self, host: usize, micros: u64) {
        let at = self.now + Duration::from_micros(micros);
        // The sequence numbers of wake-ups are fixed, so that equal ones fall together.
        let sequence = u64::MAX - host as u64;
        self.queue.insert((at, sequence), Event::Wake { host });
    }

    /// A datagram leaves a host.
    pub(crate) fn send(&mut self, from: usize, to: SocketAddr, bytes: &[u8]) {
        let mut hasher = DefaultHasher::new();
        (self.now, from, bytes).hash(&mut hasher);
        self.stir(hasher.finish());
        let via_group = to.ip().is_multicast();
        let targets: Vec<usize> = match via_group {
            true => (0..self.hosts.len()).collect(),
            false => Host::at(to).into_iter().collect(),
        };
        let bytes: Rc<[u8]> = bytes.into();
        for host in targets {
            let reachable = self.hosts.get(host).map(|h| h.island) == Some(self.hosts[from].island);
            if !reachable {
                continue;
            }
            // What a host sends to the group comes back to itself and is never lost.
            let weather = if host == from { Weather::FAIR } else { self.weather };
            for micros in weather.arrivals(&mut self.random) {
                let bytes = Rc::clone(&bytes);
                self.after(micros, Event::Arrive { host, from, via_group, bytes });
            }
        }
    }

    /// An instance's guest sends a frame.
    fn frame(&mut self, from: usize, to: Mac) {
        if !self.users[from].active {
            return;
        }
        self.totals.frames += 1;
        let now = self.now;
        let established =
            matches!(self.users[from].neighbours.get(&to), Some(Neighbour::Mapped { .. }));
        let verdict = self.users[from].frame(to, now);
        let refresh = match verdict {
            Sends::Send { refresh, .. } => refresh,
            Sends::Ask => false,
            Sends::Wait => return,
        };
        if verdict == Sends::Ask && established && self.no_gap {
            self.violate(format!("{from} lost the mapping of {to} while using it"));
        }
        if refresh || verdict == Sends::Ask {
            self.ask(from, &Request::Resolve { mac: to, refresh });
        }
        if let Sends::Send { coa, .. } = verdict {
            self.arrive(from, to, coa);
        }
    }

    /// A frame arrives at a care-of address: it is delivered, sent on, or dropped.
    fn arrive(&mut self, from: usize, to: Mac, coa: CareOf) {
        let (mut last, mut coa) = (from, coa);
        let mut way = Vec::new();
        loop {
            let instance = self.holders[&coa.addr];
            let (sender, receiver) = (&self.users[from], &self.users[instance]);
            let wanted = VifKey { vnet: sender.key.vnet, mac: to };
            if receiver.key != wanted {
                let (a, b) = (sender.key, receiver.key);
                return self.violate(format!("a frame from {a} to {to} arrived at {b}"));
            }
            if self.hosts[receiver.host].island != self.hosts[self.users[last].host].island {
                return;
            }
            if way.contains(&instance) {
                return self.violate(format!("a frame to {to} runs in a circle: {way:?}"));
            }
            way.push(instance);
            self.totals.longest_way = self.totals.longest_way.max(way.len() as u64);
            let there = receiver.host;
            let back = self.users[last].coa.addr;
            let known = receiver.mapping(sender.key.mac, self.now).map(|coa| coa.addr);
            let now = self.now;
            let receiver = &mut self.users[instance];
            if !receiver.present {
                // varpd reads the sockets of a backend that has ended, but sends nothing on.
                return self.stray(there, coa.addr, back);
            }
            let verdict = receiver.departures.judge(to, back, known, now);
            let late: Vec<LateSender> = receiver.departures.senders().collect();
            for LateSender { from, .. } in late {
                self.ask(instance, &Request::Late { mac: to, sender: from });
            }
            match verdict {
                None if self.users[instance].active => {
                    self.totals.delivered += 1;
                    return;
                }
                None | Some(Verdict::Drop) => return,
                Some(Verdict::Forward(on)) => {
                    self.totals.forwarded += 1;
                    (last, coa) = (instance, on);
                }
            }
        }
    }

    pub(crate) fn violate(&mut self, text: String) {
        let at = self.now.as_micros();
        self.violation.get_or_insert(format!("at {at} us: {text}"));
    }

    pub(crate) fn stir(&mut self, value: u64) {
        self.digest = (self.digest.rotate_left(5) ^ value).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    pub(crate) fn note(&mut self, text: impl FnOnce() -> String) {
        if self.traced {
            let mut line = format!("{:>12} us  ", self.now.as_micros());
            write!(line, "{}", text()).expect("a string");
            self.trace.push(line);
        }
    }
}
