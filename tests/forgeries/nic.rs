//! The data path of a NIC whose guest has offered buffers, on an underlay that the test holds.

use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use vnet::guest::HeaderLayout;
use vnet::metrics::VifCounters;
use vnet::offload::features::Offloads;
use vnet::policy::{Level, Suite};
use vnet::port::tx::SourceMac;
use vnet::port::worker::Worker;
use vnet::secret::Secret;
use vnet::security::inbound::Inbound;
use vnet::sys::mmsg::{Message, ReceiveBatch};
use vnet::sys::train::{self, IoVecMut, Train};
use vnet::time::{Instant, Now};
use vnet::tunnel::endpoint::Place;
use vnet::tunnel::protect::Protection;
use vnet::tunnel::rx::Receiver;
use vnet::underlay::{Port, Underlay};
use vnet::vif::link::CAPABILITIES;
use vnet::wire::{Mac, VifKey};

use super::targets::Input;
use super::targets::guest::{Arrivals, Arrived, Guest};
use super::{Tally, vnet};

pub(crate) const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
pub(crate) const WALL_US: u64 = 1_767_225_600_000_000;
const LAYOUT: HeaderLayout = HeaderLayout { len: 12, mergeable: true };
const HOUR: Duration = Duration::from_secs(3600);

/// What arrives, and what was sent.
#[derive(Default)]
struct Wire {
    arrivals: Arrivals,
    sent: Vec<(SocketAddr, Vec<u8>)>,
}

impl Underlay for Wire {
    fn send(&mut self, messages: &[Message<'_>]) -> io::Result<usize> {
        for message in messages {
            let mut bytes = Vec::new();
            message.parts.iter().for_each(|part| part.append_to(&mut bytes));
            self.sent.push((message.to, bytes));
        }
        Ok(messages.len())
    }

    fn receive(&mut self, port: Port, batch: &mut ReceiveBatch) -> io::Result<()> {
        self.arrivals.receive(port, batch)
    }

    fn peek(&mut self, port: Port, head: &mut [u8]) -> io::Result<Train> {
        self.arrivals.peek(port, head)
    }

    fn take(&mut self, port: Port, parts: &mut [IoVecMut<'_>]) -> io::Result<train::Arrived> {
        self.arrivals.take(port, parts)
    }

    fn descriptor(&self, _: Port) -> Option<RawFd> {
        None
    }
}

/// What a datagram has done.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Done {
    /// Counters of drops and echoes that it has counted up.
    pub(crate) counted: Vec<&'static str>,
    /// What was sent because of it.
    pub(crate) sent: Vec<(SocketAddr, Vec<u8>)>,
}

/// The NIC, its guest, and what it counts.
pub(crate) struct Nic {
    worker: Worker<Wire>,
    guest: Guest,
    counters: Arc<VifCounters>,
    tally: Tally,
    pub(crate) now: Instant,
}

impl Nic {
    /// On vnet 42, with this policy.
    pub(crate) fn new(level: Level) -> Self {
        let own = SocketAddr::from(([192, 0, 2, 1], 4000));
        let key = VifKey { vnet: vnet(42), mac: MAC };
        let receiver = Receiver { key, own, capabilities: CAPABILITIES };
        let place = Place { receiver, group: own, max_datagram: 1472 };
        let counters = Arc::new(VifCounters::default());
        let source = SourceMac::Stamp;
        let mut worker = Worker::new(place, source, Arc::clone(&counters), Wire::default());
        if level.is_secured() {
            let inbound = Inbound::new(vnet(42), level);
            inbound.insert(5, Suite::AesGcm, Secret::new([7; 32]), HOUR, Instant::ZERO);
            inbound.set_group(vec![(Suite::AesGcm, Secret::new([9; 32]))]);
            worker.tunnel_mut().set_protection(Some(Protection::new(Arc::new(inbound))));
        }
        worker.set_features(LAYOUT, Offloads::ALL);
        let now = Instant::from_millis(1000);
        worker.tunnel_mut().set_clock(Now { mono: now, wall_ms: WALL_US / 1000 });
        let mut guest = Guest::new(&mut Input(&[1]));
        guest.offer(&mut Input(&[8]));
        Self { worker, guest, counters, tally: Tally::default(), now }
    }

    /// A datagram arrives; nothing of it reaches the guest.
    pub(crate) fn arrive(&mut self, port: Port, from: SocketAddr, bytes: Vec<u8>) -> Done {
        let segment = bytes.len().max(1);
        let arrived = Arrived { port, from, bytes, segment };
        self.worker.tunnel_mut().underlay_mut().arrivals.0.push_back(arrived);
        let Guest { queue, memory, .. } = &mut self.guest;
        self.worker.receive(port, queue, memory, self.now).unwrap();
        let passed_us = self.now.as_micros() - 1_000_000;
        self.worker.tunnel_mut().answer_echoes(WALL_US + passed_us, self.now);
        assert_eq!(self.guest.check(LAYOUT, Offloads::ALL, MAC), 0, "nothing is for the guest");
        let mut counted = self.tally.since(self.counters.readings());
        counted.retain(|name| name.contains("echo") || name.contains("_drop_"));
        Done { counted, sent: std::mem::take(&mut self.worker.tunnel_mut().underlay_mut().sent) }
    }
}
