//! VARP messages of many hosts around the shipped mapper, on a network that loses nothing.
//!
//! Hosts have V vifs each; each vif talks to P others, which are on its vnet and spread over the
//! hosts, without a pause. Everything starts within ten seconds; a minute later all know each other,
//! and the next ten minutes are the steady state. A message to the group is received by every host
//! but is handed only to those that could do something with it: hosts of the vnet, or, for a
//! request, the owner's. The others would drop it, as the mapper's tests show.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use vnet::mapper::{Config, Destination, LocalVif, Mapper, Notice, Output};
use vnet::tunnel::neighbors::{Lookup, Neighbors};
use vnet::wire::VifKey;
use vnet::wire::varp::{Body, Message};

use crate::plot::{self, Series};
use crate::report::table;
use crate::world::{coa, host_at, key, now, start, unbounded, varp};

const SECOND: u64 = 1_000_000;
/// Within this time everything starts.
const START: u64 = 10 * SECOND;
const WARM: u64 = 60 * SECOND;
const END: u64 = WARM + 600 * SECOND;
/// How often a vif sends to each of its peers, as far as the table of its backend is concerned.
const LOOK: u64 = 2 * SECOND;
/// Length of a VARP message with its UDP, IPv4 and Ethernet headers, in bytes.
const BYTES: f64 = (vnet::wire::varp::LEN + 8 + 20 + 14) as f64;

/// How large a network is.
#[derive(Clone, Copy, Debug)]
struct Size {
    hosts: usize,
    vifs: usize,
    peers: usize,
}

/// Messages per host: how many it receives, as the underlay carries them.
#[derive(Clone, Copy, Debug, Default)]
struct Traffic {
    group: f64,
    unicast: f64,
}

/// Something that will happen at a time, in microseconds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Start(usize),
    Look(usize),
    Wake(usize),
}

struct Network {
    size: Size,
    mappers: Vec<Mapper>,
    neighbors: Vec<Neighbors>,
    /// Hosts with vifs on a vnet.
    on_vnet: BTreeMap<usize, Vec<usize>>,
    queue: BinaryHeap<Reverse<(u64, Event)>>,
    woken: Vec<u64>,
    clock: u64,
    sent: [u64; 2],
}

impl Network {
    fn new(size: Size) -> Self {
        let count = size.hosts * size.vifs;
        let config = Config { limits: unbounded().limits, ..Config::default() };
        let mut on_vnet: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        let mut queue = BinaryHeap::new();
        for vif in 0..count {
            let hosts = on_vnet.entry(vif / (size.peers + 1)).or_default();
            if !hosts.contains(&(vif % size.hosts)) {
                hosts.push(vif % size.hosts);
            }
            // Spread evenly, in an order that has nothing to do with the vnets.
            let at = START * ((vif * 7_919) % count) as u64 / count as u64;
            queue.push(Reverse((at, Event::Start(vif))));
        }
        Self {
            size,
            mappers: (0..size.hosts).map(|h| crate::world::mapper(h, config.clone())).collect(),
            neighbors: (0..count).map(|_| Neighbors::default()).collect(),
            on_vnet,
            queue,
            woken: vec![u64::MAX; size.hosts],
            clock: 0,
            sent: [0; 2],
        }
    }

    fn key(&self, vif: usize) -> VifKey {
        key(vif / (self.size.peers + 1), vif % (self.size.peers + 1))
    }

    /// Which vif has a key.
    fn vif(&self, key: VifKey) -> usize {
        let vnet = key.vnet.get() as usize - 2;
        let [_, _, b, c, d, e] = key.mac.0;
        vnet * (self.size.peers + 1) + u32::from_be_bytes([b, c, d, e]) as usize
    }

    fn run_until(&mut self, end: u64) {
        while let Some(Reverse((at, _))) = self.queue.peek() {
            if *at > end {
                break;
            }
            let Some(Reverse((at, event))) = self.queue.pop() else { break };
            self.clock = at;
            match event {
                Event::Start(vif) => {
                    let host = vif % self.size.hosts;
                    let key = self.key(vif);
                    start(&mut self.mappers[host], vif, key, coa(host, vif), now(at));
                    self.drive(host);
                    self.queue.push(Reverse((START + at, Event::Look(vif))));
                }
                Event::Look(vif) => {
                    self.look(vif);
                    self.queue.push(Reverse((at + LOOK, Event::Look(vif))));
                }
                Event::Wake(host) => {
                    self.woken[host] = u64::MAX;
                    self.mappers[host].handle_timeout(now(at));
                    self.drive(host);
                }
            }
        }
        self.clock = end;
    }

    /// A vif sends to all its peers.
    fn look(&mut self, vif: usize) {
        let (host, at) = (vif % self.size.hosts, now(self.clock));
        let (own, vnet) = (self.key(vif), vif / (self.size.peers + 1));
        for peer in 0..=self.size.peers {
            let mac = key(vnet, peer).mac;
            let is_there = vnet * (self.size.peers + 1) + peer < self.neighbors.len();
            if mac != own.mac && is_there {
                let found = self.neighbors[vif].lookup(mac, at.mono);
                assert!(found != Lookup::Unresolved && found != Lookup::Full, "all are there");
            }
        }
        let questions: Vec<_> = self.neighbors[vif].questions().collect();
        for question in questions {
            self.mappers[host].resolve(LocalVif(vif as u64), question.mac, question.refresh, at);
            self.drive(host);
        }
    }

    /// Does what a mapper wants, and what those want that it tells, and so on.
    fn drive(&mut self, first: usize) {
        let mut hosts = vec![first];
        while let Some(host) = hosts.pop() {
            while let Some(output) = self.mappers[host].poll_output() {
                match output {
                    Output::Send { to, message } => self.deliver(host, to, &message, &mut hosts),
                    Output::Notify { vif, notice } => self.tell(vif, notice),
                    Output::Event(_) => {}
                }
            }
            let due = self.mappers[host].poll_timeout().map_or(u64::MAX, |at| at.as_micros());
            if due < self.woken[host] {
                self.woken[host] = due;
                self.queue.push(Reverse((due.max(self.clock), Event::Wake(host))));
            }
        }
    }

    fn deliver(&mut self, from: usize, to: Destination, message: &Message, hosts: &mut Vec<usize>) {
        let (via_group, targets) = match to {
            Destination::Unicast(addr) => (false, vec![host_at(addr)]),
            Destination::Group if matches!(message.body, Body::Request { .. }) => {
                (true, vec![self.vif(message.key) % self.size.hosts])
            }
            Destination::Group => {
                let vnet = message.key.vnet.get() as usize - 2;
                (true, self.on_vnet[&vnet].clone())
            }
        };
        self.sent[usize::from(!via_group)] += 1;
        for target in targets.into_iter().filter(|&target| target != from) {
            let mapper = &mut self.mappers[target];
            mapper.handle_message(varp(from), via_group, message, now(self.clock));
            hosts.push(target);
        }
    }

    fn tell(&mut self, vif: LocalVif, notice: Notice) {
        let Some(table) = self.neighbors.get_mut(vif.0 as usize) else { return };
        let at = now(self.clock).mono;
        match notice {
            Notice::Mapping { mac, coa, lifetime, .. } => {
                table.handle_mapping(mac, coa, coa.addr.ip(), lifetime, at);
            }
            Notice::Unresolved { mac, hold } => table.handle_unresolved(mac, hold, at),
            Notice::Invalidate { mac } => table.handle_invalidate(mac),
            Notice::Claimed { .. } | Notice::Lost { .. } | Notice::Refused { .. } => {}
        }
    }

    /// What each host has received since the last call.
    fn received(&mut self) -> Traffic {
        let [group, unicast] = std::mem::take(&mut self.sent).map(|count| count as f64);
        let hosts = self.size.hosts as f64;
        // Each of the others receives a message to the group, one a message to a host.
        Traffic { group: group * (hosts - 1.0) / hosts, unicast: unicast / hosts }
    }
}

/// Messages that each host receives in the first minute, and per second after it.
fn measure(size: Size) -> (Traffic, Traffic) {
    let mut network = Network::new(size);
    network.run_until(WARM);
    let cold = network.received();
    network.run_until(END);
    let steady = network.received();
    let seconds = ((END - WARM) / SECOND) as f64;
    (cold, Traffic { group: steady.group / seconds, unicast: steady.unicast / seconds })
}

/// The table and the plot.
pub(crate) fn run(quick: bool) -> (String, String) {
    let base = Size { hosts: 100, vifs: 10, peers: 10 };
    let hosts: &[usize] = if quick { &[10, 30] } else { &[10, 30, 100, 300, 1000] };
    let vifs: &[usize] = if quick { &[3, 10] } else { &[3, 10, 30, 100] };
    let peers: &[usize] = if quick { &[3, 10] } else { &[3, 10, 30, 100] };
    let mut panels = Vec::new();
    let mut rows = Vec::new();
    let sweeps = [
        ("hosts", hosts.iter().map(|&hosts| Size { hosts, ..base }).collect::<Vec<_>>()),
        ("vifs per host", vifs.iter().map(|&vifs| Size { vifs, ..base }).collect()),
        ("peers per vif", peers.iter().map(|&peers| Size { peers, ..base }).collect()),
    ];
    for (name, sizes) in sweeps {
        let mut series = Series::new(name);
        for size in sizes {
            let (cold, steady) = measure(size);
            let x = match name {
                "hosts" => size.hosts,
                "vifs per host" => size.vifs,
                _ => size.peers,
            };
            series.push(x as f64, [cold.group, cold.unicast, steady.group, steady.unicast]);
            let kbits = (steady.group + steady.unicast) * BYTES * 8.0 / 1000.0;
            let mut row = vec![format!("{} x {} x {}", size.hosts, size.vifs, size.peers)];
            let cells = [cold.group, cold.unicast, steady.group, steady.unicast, kbits];
            row.extend(cells.map(|value| match value {
                value if value >= 100.0 => format!("{value:.0}"),
                value => format!("{value:.2}"),
            }));
            rows.push(row);
        }
        panels.push(series);
    }
    let head = [
        "hosts x vifs x peers",
        "first minute: group",
        "unicast",
        "later, per second: group",
        "unicast",
        "kbit/s",
    ];
    (format!("Messages that each host receives:\n\n{}", table(&head, &rows)), plot::svg(&panels))
}
