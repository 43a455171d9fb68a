//! A port between a guest and an endpoint: whoever looks at its doors sees each frame with its verdict.

use std::sync::{Arc, Mutex};

use vnet::capture::{Door, Observed, Observer, Verdict};
use vnet::metrics::{VifCounter, VifCounters};
use vnet::port::tx::SourceMac;
use vnet::port::worker::Worker;
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
        self.driver.send(frame);
        let Driver { tx, memory, .. } = &mut self.driver;
        self.worker.transmit(tx, memory, Instant::ZERO).expect("a sound ring");
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
    let [guest, wire] = [(); 2].map(|()| Arc::new(Notes::default()));
    let doors = [&guest, &wire].map(|notes| Door::with(Arc::clone(notes) as Arc<dyn Observer>));
    let [towards_guest, towards_wire] = doors;
    bed.worker.set_doors(towards_guest, towards_wire);
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
