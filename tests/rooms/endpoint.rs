//! Endpoints without guests: frames are given to one and taken from the other.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vnet::metrics::{VifCounter, VifCounters};
use vnet::offload::header::Request;
use vnet::sys::iovec::IoVec;
use vnet::sys::mmsg::{Message, ReceiveBatch};
use vnet::time::Instant;
use vnet::tunnel::endpoint::{Endpoint, Place, Resolved};
use vnet::tunnel::neighbors::{Lookup, Question};
use vnet::tunnel::outgoing::{Batch, Route};
use vnet::tunnel::rx::Receiver;
use vnet::underlay::{Port, Underlay};
use vnet::wire::{Capabilities, CareOf, EncapKinds, Longest, Mac, VifKey, VnetId};

use crate::{FIRST, SECOND, addr, frame};

const GROUP: u8 = 9;
pub(crate) const LIFETIME: Duration = Duration::from_secs(30);
const MAX_DATAGRAM: usize = 1472;

pub(crate) type Queue = Arc<Mutex<VecDeque<(Port, SocketAddr, Vec<u8>)>>>;

/// One end of a link between two hosts.
pub(crate) struct Wire {
    own: SocketAddr,
    here: Queue,
    there: Queue,
    /// The error number with which the kernel refuses a message.
    pub(crate) refuses: fn(&Message<'_>) -> Option<i32>,
}

impl Wire {
    pub(crate) fn new(host: u8, here: &Queue, there: &Queue) -> Self {
        Self {
            own: addr(host),
            here: Arc::clone(here),
            there: Arc::clone(there),
            refuses: |_| None,
        }
    }
}

impl Underlay for Wire {
    fn send(&mut self, messages: &[Message<'_>]) -> io::Result<usize> {
        let mut there = self.there.lock().expect("not poisoned");
        for (n, message) in messages.iter().enumerate() {
            if let Some(errno) = (self.refuses)(message) {
                return if n == 0 { Err(io::Error::from_raw_os_error(errno)) } else { Ok(n) };
            }
            let mut bytes = Vec::new();
            message.parts.iter().for_each(|part| part.append_to(&mut bytes));
            let port = if message.to == addr(GROUP) { Port::Group } else { Port::Own };
            let segment = usize::from(message.segment);
            let segment = if segment == 0 { bytes.len() } else { segment };
            assert!(segment <= MAX_DATAGRAM, "a datagram of {segment} bytes");
            let datagrams = bytes.chunks(segment);
            there.extend(datagrams.map(|datagram| (port, self.own, datagram.to_vec())));
        }
        Ok(messages.len())
    }

    fn receive(&mut self, port: Port, batch: &mut ReceiveBatch) -> io::Result<()> {
        batch.clear();
        let mut here = self.here.lock().expect("not poisoned");
        let (now, later): (VecDeque<_>, VecDeque<_>) =
            here.drain(..).partition(|(at, ..)| *at == port);
        *here = later;
        for (_, from, datagram) in now {
            assert!(batch.push(from, &datagram, datagram.len()), "room for a batch");
        }
        if batch.is_empty() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    }

    fn descriptor(&self, _: Port) -> Option<RawFd> {
        None
    }
}

struct End {
    endpoint: Endpoint<Wire>,
    counters: Arc<VifCounters>,
}

pub(crate) fn coa(host: u8) -> CareOf {
    CareOf {
        addr: addr(host),
        kinds: EncapKinds::UDP,
        capabilities: Capabilities::FRAGMENT,
        longest: Longest::UNKNOWN,
    }
}

/// Where the vif of a host is.
pub(crate) fn place(mac: Mac, host: u8) -> Place {
    let key = VifKey { vnet: VnetId::new(42).expect("an id"), mac };
    let receiver = Receiver { key, own: addr(host), capabilities: Capabilities::FRAGMENT };
    Place { receiver, group: addr(GROUP), max_datagram: MAX_DATAGRAM }
}

fn end(mac: Mac, host: u8, here: &Queue, there: &Queue) -> End {
    let wire = Wire::new(host, here, there);
    let counters = Arc::new(VifCounters::default());
    End { endpoint: Endpoint::new(place(mac, host), Arc::clone(&counters), wire), counters }
}

/// Two vifs on two hosts.
fn ends() -> [End; 2] {
    let queues = [Queue::default(), Queue::default()];
    [end(FIRST, 1, &queues[0], &queues[1]), end(SECOND, 2, &queues[1], &queues[0])]
}

fn send(end: &mut End, frames: &[Vec<u8>], route: Route) {
    let mut batch = Batch::default();
    for frame in frames {
        let at = batch.pieces.len();
        batch.pieces.push(IoVec::from_slice(frame));
        let outgoing = batch.add().expect("it was added");
        outgoing.route = route;
        outgoing.addresses = *frame.first_chunk().expect("an Ethernet header");
        outgoing.request = Request::Plain;
        outgoing.len = frame.len();
        outgoing.pieces = at..at + 1;
    }
    end.endpoint.send(&batch, Instant::ZERO);
}

/// The frames that have arrived, by the endpoint's own socket and by the group's.
fn received(end: &mut End) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for port in [Port::Own, Port::Group] {
        while end.endpoint.receive(port, Instant::ZERO) {
            let incoming = end.endpoint.incoming_mut();
            while let Some(frame) = incoming.get(0) {
                frames.push(frame.bytes().to_vec());
                incoming.take(1);
            }
        }
    }
    frames
}

#[test]
fn frames_wait_for_an_address_and_then_arrive_in_order() {
    let [mut one, mut two] = ends();
    let frames: Vec<Vec<u8>> = (1..5).map(|n| frame(SECOND, FIRST, 100 * n)).collect();
    for frame in &frames {
        let lookup = one.endpoint.neighbors_mut().lookup(SECOND, Instant::ZERO);
        assert_eq!(lookup, Lookup::Wait);
        one.endpoint.hold(SECOND, frame.clone(), Instant::ZERO).expect("there is room");
    }
    assert!(one.endpoint.wants_attention());
    let questions: Vec<Question> = one.endpoint.questions().collect();
    assert_eq!(questions, [Question { mac: SECOND, refresh: false }]);
    let resolved = one.endpoint.handle_mapping(SECOND, coa(2), LIFETIME, Instant::ZERO);
    assert_eq!(resolved, Some(Resolved { coa: coa(2), frames: frames.clone() }));
    send(&mut one, &frames, Route::to_vif(coa(2)));
    assert_eq!(received(&mut two), frames);
    assert_eq!(one.counters.get(VifCounter::tx_frames), 4);
    assert!(received(&mut one).is_empty());
}

#[test]
fn a_frame_that_exceeds_the_path_arrives_whole() {
    let [mut one, mut two] = ends();
    let frames = [frame(SECOND, FIRST, 4000), frame(SECOND, FIRST, 60)];
    send(&mut one, &frames, Route::to_vif(coa(2)));
    assert_eq!(received(&mut two), frames);
    assert_eq!(one.counters.get(VifCounter::tx_fragmented), 1);
    assert_eq!(two.counters.get(VifCounter::rx_reassembled), 1);
}

#[test]
fn group_frames_reach_the_group_and_frames_for_others_are_dropped() {
    let [mut one, mut two] = ends();
    let broadcast = [frame(Mac::BROADCAST, FIRST, 50)];
    let to_group = one.endpoint.to_group();
    send(&mut one, &broadcast, to_group);
    assert_eq!(received(&mut two), broadcast);
    let stray = [frame(Mac([2, 0, 0, 0, 0, 7]), FIRST, 50)];
    send(&mut one, &stray, Route::to_vif(coa(2)));
    assert!(received(&mut two).is_empty());
    assert_eq!(two.counters.get(VifCounter::rx_drop_destination), 1);
    two.endpoint.set_takes_unknown(true);
    send(&mut one, &stray, Route::to_vif(coa(2)));
    assert_eq!(received(&mut two), stray, "a bridge takes it");
}

#[test]
fn frames_for_a_mac_that_has_moved_are_sent_on() {
    let [mut one, mut two] = ends();
    two.endpoint.depart(SECOND, coa(3), LIFETIME, Instant::ZERO);
    send(&mut one, &[frame(SECOND, FIRST, 50)], Route::to_vif(coa(2)));
    assert!(received(&mut two).is_empty());
    assert_eq!(two.counters.get(VifCounter::tx_forwarded), 1);
    assert_eq!(two.endpoint.late_senders().count(), 1, "varpd informs the sender");
}

#[test]
fn a_halted_endpoint_carries_nothing() {
    let [mut one, mut two] = ends();
    one.endpoint.set_halted(true);
    send(&mut one, &[frame(SECOND, FIRST, 50)], Route::to_vif(coa(2)));
    assert_eq!(one.counters.get(VifCounter::tx_drop_policy), 1);
    send(&mut two, &[frame(FIRST, SECOND, 50)], Route::to_vif(coa(1)));
    assert!(received(&mut one).is_empty() && received(&mut two).is_empty());
    assert_eq!(one.counters.get(VifCounter::rx_drop_policy), 1);
}
