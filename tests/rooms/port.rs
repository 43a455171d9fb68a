//! A port between a guest and an endpoint: whoever looks at its doors sees each frame with its verdict.

use std::sync::{Arc, Mutex};

use vnet::capture::{Door, Observed, Observer, Verdict};
use vnet::metrics::{VifCounter, VifCounters};
use vnet::port::arrival::rarp;
use vnet::port::tx::SourceMac;
use vnet::port::worker::Worker;
use vnet::sys::iovec::IoVec;
use vnet::sys::mmsg::Message;
use vnet::time::Instant;
use vnet::underlay::Port;
use vnet::wire::Mac;

use crate::driver::Driver;
use crate::endpoint::{LIFETIME, Queue, Wire, coa, place};
use crate::{FIRST, SECOND, frame};

/// Keeps what it sees.
#[derive(Debug, Default)]
struct Notes(Mutex<Vec<(Verdict, Vec<u8>)>>);

impl Observer for Notes {
    fn see(&self, frame: &Observed<'_, '_>) {
        let note = (frame.verdict, frame.copy(usize::MAX));
        self.0.lock().expect("not poisoned").push(note);
    }
}

impl Notes {
    fn take(&self) -> Vec<(Verdict, Vec<u8>)> {
        std::mem::take(&mut self.0.lock().expect("not poisoned"))
    }
}

struct Bed {
    driver: Driver,
    worker: Worker<Wire>,
    here: Queue,
}

impl Bed {
    /// A vif on host 1, whose peer is on host 2.
    fn new() -> Self {
        let (here, there) = (Queue::default(), Queue::default());
        let wire = Wire::new(1, &here, &there);
        let counters = Arc::new(VifCounters::default());
        let worker = Worker::new(place(FIRST, 1), SourceMac::Drop, counters, wire);
        Self { driver: Driver::new(), worker, here }
    }

    fn transmit(&mut self, frame: &[u8]) {
        self.transmit_all(&[frame.to_vec()]);
    }

    fn transmit_all(&mut self, frames: &[Vec<u8>]) {
        frames.iter().for_each(|frame| self.driver.send(frame));
        let Driver { tx, memory, .. } = &mut self.driver;
        self.worker.transmit(tx, memory, Instant::ZERO).expect("a sound ring");
    }

    /// Looks at both doors; returns what is seen towards the guest, and towards the wire.
    fn observe(&mut self) -> [Arc<Notes>; 2] {
        let notes = [(); 2].map(|()| Arc::new(Notes::default()));
        let door = |notes: &Arc<Notes>| Door::with(Arc::clone(notes) as Arc<dyn Observer>);
        let [towards_guest, towards_wire] = &notes;
        self.worker.set_doors(door(towards_guest), door(towards_wire));
        notes
    }

    fn receive(&mut self, frame: &[u8]) {
        let datagram = [&[0x40, 0, 0, 0, 0, 0, 0, 42][..], frame].concat();
        let from = coa(2).addr;
        self.here.lock().expect("not poisoned").push_back((Port::Own, from, datagram));
        let Driver { rx, memory, .. } = &mut self.driver;
        self.worker.receive(Port::Own, rx, memory, Instant::ZERO).expect("a sound ring");
    }
}

#[test]
fn frames_are_shown_at_both_doors_with_their_verdicts() {
    let mut bed = Bed::new();
    let [guest, wire] = bed.observe();
    // It waits for an address, and leaves.
    let unicast = frame(SECOND, FIRST, 100);
    bed.transmit(&unicast);
    assert_eq!(wire.take(), [(Verdict::Held, unicast.clone())]);
    bed.worker.handle_mapping(SECOND, coa(2), LIFETIME, Instant::ZERO);
    assert_eq!(wire.take(), [(Verdict::Passed, unicast.clone())]);
    let broadcast = frame(Mac::BROADCAST, FIRST, 60);
    bed.transmit(&broadcast);
    assert_eq!(wire.take(), [(Verdict::Passed, broadcast)]);
    // A forged source is shown as the guest wrote it.
    let forged = frame(SECOND, Mac([2, 0, 0, 0, 0, 9]), 100);
    bed.transmit(&forged);
    assert_eq!(wire.take(), [(Verdict::Dropped(VifCounter::tx_drop_source), forged)]);
    assert!(guest.take().is_empty());

    let answer = frame(FIRST, SECOND, 80);
    bed.driver.add_buffer();
    bed.receive(&answer);
    assert_eq!(guest.take(), [(Verdict::Passed, answer.clone())]);
    assert_eq!(bed.driver.received(), [answer]);
    let stray = frame(Mac([2, 0, 0, 0, 0, 7]), SECOND, 80);
    bed.receive(&stray);
    assert_eq!(guest.take(), [(Verdict::Dropped(VifCounter::rx_drop_destination), stray)]);
    bed.driver.add_buffer();
    let long = frame(FIRST, SECOND, 3000);
    bed.receive(&long);
    assert_eq!(guest.take(), [(Verdict::Dropped(VifCounter::rx_drop_no_buffer), long)]);
    assert!(wire.take().is_empty());
    // Nobody looks any more.
    bed.worker.set_doors(Door::default(), Door::default());
    bed.transmit(&unicast);
    assert!(guest.take().is_empty() && wire.take().is_empty());
}

/// The verdicts on frames to the second vif of these lengths, in one batch, with a kernel that `refuses` messages.
fn verdicts(refuses: fn(&Message<'_>) -> Option<i32>, lens: &[usize]) -> Vec<Verdict> {
    let mut bed = Bed::new();
    bed.worker.handle_mapping(SECOND, coa(2), LIFETIME, Instant::ZERO);
    bed.worker.tunnel_mut().underlay_mut().refuses = refuses;
    let [guest, wire] = bed.observe();
    let frames: Vec<Vec<u8>> = lens.iter().map(|len| frame(SECOND, FIRST, *len)).collect();
    bed.transmit_all(&frames);
    assert!(guest.take().is_empty());
    let (verdicts, shown): (Vec<Verdict>, Vec<Vec<u8>>) = wire.take().into_iter().unzip();
    assert_eq!(shown, frames, "each once, in order");
    verdicts
}

#[test]
fn frames_that_the_kernel_refuses_are_shown_with_the_reason() {
    let second = |message: &Message<'_>| {
        let len: usize = message.parts.iter().map(IoVec::len).sum();
        (1200..1300).contains(&len).then_some(libc::EPERM)
    };
    let refused = Verdict::Dropped(VifCounter::tx_drop_error);
    let found = verdicts(second, &[100, 1200, 1300, 1400]);
    assert_eq!(found, [Verdict::Passed, refused, Verdict::Passed, Verdict::Passed]);
    let full = Verdict::Dropped(VifCounter::tx_drop_backpressure);
    assert_eq!(verdicts(|_| Some(libc::EAGAIN), &[300, 300, 300, 100, 400]), [full; 5]);
    // Frames of equal length share a message, which leaves as smaller ones.
    let has_segments = |message: &Message<'_>| (message.segment != 0).then_some(libc::EIO);
    assert_eq!(verdicts(has_segments, &[500; 7]), [Verdict::Passed; 7]);
    assert_eq!(verdicts(|_| None, &[100, 1500, 100]), [Verdict::Passed; 3], "in fragments");
}

#[test]
fn a_halted_port_shows_the_frames_that_it_drops() {
    let mut bed = Bed::new();
    let [_, wire] = bed.observe();
    bed.worker.set_halted(true);
    let unicast = frame(SECOND, FIRST, 100);
    bed.transmit(&unicast);
    assert_eq!(wire.take(), [(Verdict::Dropped(VifCounter::tx_drop_policy), unicast)]);
}

#[test]
fn forwarded_frames_are_shown_towards_the_wire() {
    let mut bed = Bed::new();
    let [guest, wire] = bed.observe();
    bed.worker.depart(FIRST, coa(3), LIFETIME, Instant::ZERO);
    let late = frame(FIRST, SECOND, 100);
    bed.driver.add_buffer();
    bed.receive(&late);
    assert_eq!(wire.take(), [(Verdict::Forwarded, late.clone())]);
    bed.worker.tunnel_mut().underlay_mut().refuses = |_| Some(libc::ENETUNREACH);
    bed.receive(&late);
    assert_eq!(wire.take(), [(Verdict::Dropped(VifCounter::tx_drop_unreachable), late)]);
    assert!(guest.take().is_empty() && bed.driver.received().is_empty());
}

#[test]
fn announcements_of_a_guest_that_has_arrived_are_shown_towards_the_wire() {
    let mut bed = Bed::new();
    let [_, wire] = bed.observe();
    bed.worker.arrival().told(true, Instant::ZERO);
    bed.worker.announce_arrival(Instant::ZERO);
    assert_eq!(wire.take(), [(Verdict::Announced, rarp(FIRST).to_vec())]);
    bed.worker.tunnel_mut().underlay_mut().refuses = |_| Some(libc::EPERM);
    let next = bed.worker.arrival().poll_timeout().expect("a series");
    bed.worker.announce_arrival(next);
    let refused = Verdict::Dropped(VifCounter::tx_drop_error);
    assert_eq!(wire.take(), [(refused, rarp(FIRST).to_vec())]);
}
