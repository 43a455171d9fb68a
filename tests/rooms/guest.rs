//! Guest sides without a tunnel: a pipe takes frames from one guest to another.

use std::collections::VecDeque;
use std::sync::Arc;

use vnet::guest::frames::{Frames, Origin, Outcome, Pace};
use vnet::guest::receiving::ReceiveRing;
use vnet::guest::ring::RingView;
use vnet::guest::side::GuestSide;
use vnet::guest::transmit::TransmitFrame;
use vnet::metrics::{VifCounter, VifCounters};
use vnet::offload::gro::Received;
use vnet::sys::iovec::Gather;
use vnet::wire::Mac;

use crate::driver::Driver;
use crate::{FIRST, SECOND, frame};

/// Frames on their way.
#[derive(Default)]
struct Pipe(VecDeque<Vec<u8>>);

impl Frames for Pipe {
    fn get(&self, n: usize) -> Option<Received<'_>> {
        self.0.get(n).map(|frame| Received::whole(frame, false))
    }

    fn first(&self) -> (Origin, bool) {
        let is_group = self.0.front().is_some_and(|frame| frame.starts_with(&Mac::BROADCAST.0));
        (Origin::Tunnel, is_group)
    }

    fn delivered(&mut self, count: usize, _len: usize) {
        self.0.drain(..count);
    }

    fn dropped(&mut self, count: usize) {
        self.0.drain(..count);
    }
}

struct Guest {
    driver: Driver,
    side: GuestSide,
    counters: Arc<VifCounters>,
}

impl Guest {
    fn new() -> Self {
        let counters = Arc::new(VifCounters::default());
        Self { driver: Driver::new(), side: GuestSide::new(Arc::clone(&counters)), counters }
    }

    /// Takes what the driver sends.
    fn take(&mut self, pipe: &mut Pipe) {
        let mut ring = RingView::new(&mut self.driver.tx, &self.driver.memory).expect("sound");
        let mut frame = TransmitFrame::EMPTY;
        while let Some(head) = ring.pop().expect("sound") {
            let mut pieces = Vec::new();
            if self.side.read(&mut ring, head, &mut pieces, &mut frame).is_ok() {
                let mut bytes = vec![0; frame.len];
                let pieces = &pieces[frame.pieces.clone()];
                assert!(Gather::new(pieces, frame.skip).copy_to(&mut bytes));
                pipe.0.push_back(bytes);
            }
            ring.push_used(head, 0).expect("sound");
        }
        ring.publish().expect("sound");
    }

    fn give(&mut self, pipe: &mut Pipe, pace: &mut impl Pace) -> Outcome {
        let Driver { rx, memory, .. } = &mut self.driver;
        let mut ring = ReceiveRing::new(rx, memory).expect("sound");
        let outcome = self.side.deliver_all(&mut ring, pipe, pace).expect("sound");
        self.side.publish(&mut ring).expect("sound");
        outcome
    }
}

/// Admits so many frames.
struct Quota(usize);

impl Pace for Quota {
    fn admits(&mut self) -> bool {
        self.0 > 0
    }

    fn charge(&mut self, _len: usize) {
        self.0 -= 1;
    }
}

#[test]
fn frames_go_from_guest_to_guest_and_are_counted_when_they_are_shown() {
    let (mut one, mut two, mut pipe) = (Guest::new(), Guest::new(), Pipe::default());
    let frames = [frame(SECOND, FIRST, 50), frame(Mac::BROADCAST, FIRST, 900)];
    for frame in &frames {
        one.driver.send(frame);
        two.driver.add_buffer();
    }
    one.take(&mut pipe);
    assert_eq!(two.give(&mut pipe, &mut ()), Outcome::All);
    assert_eq!(two.driver.received(), frames);
    let counted = |counter| two.counters.get(counter);
    assert_eq!(counted(VifCounter::rx_frames), 2);
    assert_eq!(counted(VifCounter::rx_group_frames), 1);
    assert_eq!(counted(VifCounter::rx_bytes), 14 + 50 + 14 + 900);
}

#[test]
fn frames_wait_in_the_pipe_for_buffers_and_for_the_pace() {
    let (mut guest, mut pipe) = (Guest::new(), Pipe::default());
    let frames: Vec<Vec<u8>> = (1..4).map(|n| frame(FIRST, SECOND, 100 * n)).collect();
    pipe.0.extend(frames.iter().cloned());
    assert_eq!(guest.give(&mut pipe, &mut ()), Outcome::Starved);
    assert!(guest.side.is_starved());
    (0..3).for_each(|_| guest.driver.add_buffer());
    assert_eq!(guest.give(&mut pipe, &mut Quota(2)), Outcome::Held);
    assert!(!guest.side.is_starved());
    assert_eq!(guest.driver.received(), frames[..2]);
    assert_eq!(guest.give(&mut pipe, &mut ()), Outcome::All);
    assert_eq!(guest.driver.received(), frames[2..]);
}

#[test]
fn a_frame_that_no_buffer_holds_is_dropped_and_others_pass() {
    let (mut guest, mut pipe) = (Guest::new(), Pipe::default());
    let good = frame(FIRST, SECOND, 100);
    pipe.0.extend([frame(FIRST, SECOND, 5000), good.clone()]);
    guest.driver.add_buffer();
    assert_eq!(guest.give(&mut pipe, &mut ()), Outcome::All);
    assert_eq!(guest.driver.received(), [good]);
    assert_eq!(guest.counters.get(VifCounter::rx_drop_no_buffer), 1);
}
