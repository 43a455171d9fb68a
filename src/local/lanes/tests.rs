//! When lanes open, when frames wait for room in them, and how they end.

use super::*;
use crate::lane;
use crate::metrics::VifCounter;
use crate::offload::header::Header;
use crate::sys::doorbell::Doorbell;
use crate::sys::event::{Interest, Poller};
use crate::sys::iovec::{Gather, IoVec};

const HERE: &str = "192.0.2.1:40000";
const LEN: usize = 60_000;
/// The events of the timer and of the first lane.
const TIMER: u64 = 5;
const FIRST: u16 = 6;

fn at(ms: u64) -> Instant {
    Instant::from_millis(ms)
}

fn addr() -> SocketAddr {
    HERE.parse().unwrap()
}

struct Bed {
    lanes: Lanes,
    set: Poller,
    counters: VifCounters,
    handovers: Arc<Handovers>,
}

fn bed() -> Bed {
    let handovers = Arc::new(Handovers::default());
    let mut lanes = Lanes::default();
    lanes.prepare(Arc::clone(&handovers)).unwrap();
    let set = Poller::new(4).unwrap();
    lanes.share(Some(share_of(&set)));
    set.add(lanes.timer.as_ref().unwrap(), TIMER, Interest::Read).unwrap();
    Bed { lanes, set, counters: VifCounters::default(), handovers }
}

fn share_of(set: &Poller) -> Arc<EventShare> {
    Arc::new(EventShare::new(&set.as_fd().as_raw_fd(), FIRST).unwrap())
}

/// A new lane's descriptors, for either side.
fn descriptors() -> ([OwnedFd; 2], [OwnedFd; 2]) {
    let memory = lane::create().unwrap();
    let (a, b) = Doorbell::pair().unwrap();
    ([memory.try_clone().unwrap(), a], [memory, b])
}

fn reader(descriptors: [OwnedFd; 2]) -> Reader {
    let [memory, bell] = descriptors;
    Reader::new(memory, bell).unwrap()
}

fn writer(descriptors: [OwnedFd; 2]) -> Writer {
    let [memory, bell] = descriptors;
    Writer::new(memory, bell).unwrap()
}

fn take(reader: &mut Reader, most: usize) -> usize {
    let mut taken = 0;
    while taken < most
        && let Some(entry) = reader.peek().unwrap()
    {
        reader.take(&entry);
        taken += 1;
    }
    reader.publish();
    taken
}

impl Bed {
    fn open_writer(&mut self, id: u32, now: Instant) -> Reader {
        let (ours, theirs) = descriptors();
        self.lanes.open_writer(id, addr(), ours, now).unwrap();
        reader(theirs)
    }

    fn open_reader(&mut self, id: u32) -> Writer {
        let (ours, theirs) = descriptors();
        self.lanes.open_reader(id, addr(), ours).unwrap();
        writer(theirs)
    }

    fn write(&mut self, can_wait: bool, now: Instant) -> Written {
        let bytes = vec![0; LEN];
        let pieces = [IoVec::from_slice(&bytes)];
        let frame = LocalFrame {
            header: Header::PLAIN.emit(0),
            addresses: [2; 12],
            len: LEN,
            rest: Gather::new(&pieces, 12),
            can_wait,
        };
        self.lanes.begin_batch();
        let written = self.lanes.write(addr(), &frame, now, &self.counters);
        self.lanes.publish();
        written
    }

    fn fill(&mut self, now: Instant) -> usize {
        (0..).take_while(|_| self.write(false, now) == Written::Done).count()
    }

    /// Waits as the device does.
    fn woken(&mut self) -> Vec<SocketAddr> {
        let ready = self.set.wait(Some(Duration::from_secs(10))).unwrap();
        assert!(!ready.is_empty(), "woken");
        let mut deserted = Vec::new();
        for event in ready.into_iter().map(|ready| ready.token) {
            match event {
                TIMER => self.lanes.timed_out(),
                _ => {
                    let event = u16::try_from(event).unwrap() - FIRST;
                    deserted.extend(self.lanes.rung(event, &self.counters));
                }
            }
        }
        deserted
    }

    fn is_woken(&mut self) -> bool {
        !self.set.wait(Some(Duration::ZERO)).unwrap().is_empty()
    }

    fn is_open(&mut self, now: Instant) -> bool {
        self.lanes.open_gates(now);
        self.lanes.reader(0).is_some()
    }
}

fn write_one(writer: &mut Writer) {
    let bytes = [0; 60];
    let pieces = [IoVec::from_slice(&bytes)];
    writer.write(&[0; 12], &[2; 12], 60, Gather::new(&pieces, 12)).unwrap();
    writer.publish();
}

#[test]
fn a_lane_opens_after_its_handover() {
    let mut bed = bed();
    let mut writer = bed.open_reader(7);
    write_one(&mut writer);
    assert!(bed.woken().is_empty());
    assert!(bed.lanes.has_shut() && !bed.is_open(at(0)));
    let stranger = "192.0.2.2:40000".parse().unwrap();
    bed.handovers.note(stranger, 7);
    bed.handovers.note(addr(), 8);
    assert!(!bed.is_open(at(1)), "of another lane, or from another vif");
    bed.handovers.note(addr(), 7);
    assert!(bed.is_open(at(2)) && !bed.lanes.has_shut());
}

#[test]
fn a_handover_may_come_first_and_may_be_lost() {
    let mut bed = bed();
    bed.handovers.note(addr(), 7);
    let mut writer = bed.open_reader(7);
    write_one(&mut writer);
    bed.woken();
    assert!(bed.is_open(at(0)));

    let mut bed = self::bed();
    let mut writer = bed.open_reader(8);
    assert!(!bed.is_open(at(0)), "nothing is there");
    assert!(!bed.is_open(at(5000)));
    write_one(&mut writer);
    bed.woken();
    assert!(!bed.is_open(at(6000)));
    assert!(!bed.is_open(at(6049)), "counted from the first frame");
    assert!(bed.is_open(at(6050)));
}

#[test]
fn handovers_are_few() {
    let handovers = Handovers::default();
    (0..1000).for_each(|lane| handovers.note(addr(), lane));
    assert!(!handovers.take(addr(), 0) && handovers.take(addr(), 999));
    assert_eq!(handovers.0.lock().unwrap().len(), MOST_HANDOVERS - 1);
}

#[test]
fn a_frame_waits_for_room_once_and_briefly() {
    let mut bed = bed();
    let mut reader = bed.open_writer(1, at(0));
    assert_eq!(bed.fill(at(0)), 17);
    assert_eq!(bed.write(true, at(0)), Written::Wait);
    assert!(bed.lanes.is_stalled());
    assert_eq!(bed.write(true, at(19)), Written::Wait, "the same, looked at again");
    // Half of the lane is read: that wakes, and there is room.
    assert_eq!(take(&mut reader, 9), 9);
    bed.woken();
    assert_eq!(bed.write(true, at(19)), Written::Done);
    assert!(!bed.lanes.is_stalled());

    // More than a quarter was read since: it may wait again, but nothing comes of it.
    bed.fill(at(30));
    assert_eq!(bed.write(true, at(30)), Written::Wait);
    bed.woken();
    assert_eq!(bed.write(true, at(50)), Written::Dropped, "the time is over");
    assert_eq!(bed.write(true, at(50)), Written::Dropped, "not once more");
    assert!(!bed.lanes.is_stalled());
    // A reader that dawdles is not waited for.
    assert_eq!(take(&mut reader, 1), 1);
    bed.fill(at(60));
    assert_eq!(bed.write(true, at(60)), Written::Dropped);
    assert_eq!(take(&mut reader, 5), 5);
    bed.fill(at(70));
    assert_eq!(bed.write(true, at(70)), Written::Wait);
}

#[test]
fn a_dead_reader_ends_a_lane() {
    let mut bed = bed();
    let mut reader = bed.open_writer(1, at(0));
    for _ in 0..3 {
        assert_eq!(bed.write(true, at(0)), Written::Done);
    }
    take(&mut reader, 1);
    drop(reader);
    assert_eq!(bed.woken(), [addr()]);
    assert_eq!(bed.write(true, at(0)), Written::NoLane);
    assert_eq!(bed.counters.get(VifCounter::tx_drop_lane), 2);
    assert_eq!(bed.lanes.take_ended().collect::<Vec<_>>(), [1]);
}

#[test]
fn a_closing_lane_is_used_up_first() {
    let mut bed = bed();
    let mut reader = bed.open_writer(1, at(0));
    assert_eq!(bed.write(true, at(0)), Written::Done);
    bed.lanes.close(1, at(0));
    assert_eq!(bed.write(true, at(0)), Written::Wait, "until it is empty");
    take(&mut reader, 1);
    bed.woken();
    assert_eq!(bed.write(true, at(1)), Written::NoLane);

    // Or until it has been waited for long enough.
    let _reader = bed.open_writer(2, at(0));
    assert_eq!(bed.write(true, at(0)), Written::Done);
    bed.lanes.close(2, at(0));
    assert_eq!(bed.write(true, at(0)), Written::Wait);
    assert_eq!(bed.write(true, at(20)), Written::NoLane);

    // Or for so long that nobody wrote.
    let _reader = bed.open_writer(3, at(0));
    bed.lanes.close(3, at(0));
    assert_eq!(bed.lanes.poll_timeout(), Some(at(2000)));
    bed.lanes.handle_timeout(at(2000));
    assert!(!bed.lanes.lead_to(addr()));
}

#[test]
fn a_successor_takes_over_from_an_empty_lane() {
    let mut bed = bed();
    let mut first = bed.open_writer(1, at(0));
    assert_eq!(bed.write(true, at(0)), Written::Done);
    let mut second = bed.open_writer(2, at(0));
    assert_eq!(bed.write(true, at(0)), Written::Wait);
    assert_eq!(take(&mut second, 9), 0);
    take(&mut first, 1);
    assert_eq!(bed.write(true, at(1)), Written::Done);
    assert_eq!((take(&mut first, 9), take(&mut second, 9)), (0, 1));
    // The first is closed: its reader hears that.
    assert_eq!(first.hear(), Heard::Ring);
    assert_eq!(first.hear(), Heard::End);
}

#[test]
fn a_lane_whose_writer_is_gone_is_read_to_its_end() {
    let mut bed = bed();
    let mut writer = bed.open_reader(1);
    bed.handovers.note(addr(), 1);
    write_one(&mut writer);
    drop(writer);
    bed.woken();
    // The ring was heard; then the end.
    bed.woken();
    assert!(bed.is_open(at(0)));
    bed.lanes.settle(at(0), &bed.counters);
    let lane = bed.lanes.reader(0).expect("there is a frame");
    assert_eq!(take(&mut lane.reader, 9), 1);
    lane.state = State::Empty;
    bed.lanes.settle(at(0), &bed.counters);
    assert!(!bed.lanes.has_readers());
    assert_eq!(bed.lanes.take_ended().collect::<Vec<_>>(), [1]);
    assert_eq!(bed.counters.get(VifCounter::lanes_failed), 0);
}

#[test]
fn nobody_is_woken_for_lanes_while_the_rings_stand_still() {
    let mut bed = bed();
    let mut early = bed.open_reader(1);
    bed.lanes.share(None);
    let mut late = bed.open_reader(2);
    let led_to = bed.open_writer(3, at(0));
    write_one(&mut early);
    write_one(&mut late);
    drop(led_to);
    assert!(!bed.is_woken());
    // What has rung meanwhile is heard then.
    bed.lanes.share(Some(share_of(&bed.set)));
    assert_eq!(bed.woken(), [addr()]);
    assert!(!bed.is_woken(), "all three were heard");
    assert!(bed.lanes.all_readers().all(|lane| lane.state == State::Busy));
}

#[test]
fn lanes_of_one_event_are_heard_together() {
    let mut bed = bed();
    let (one, other) = (7, 7 + EVENTS);
    let _reader = bed.open_writer(7 + 2 * EVENTS, at(0));
    let mut writers = [bed.open_reader(one), bed.open_reader(other)];
    write_one(&mut writers[1]);
    bed.woken();
    assert!(!bed.is_woken());
    write_one(&mut writers[0]);
    assert!(bed.woken().is_empty() && !bed.is_woken());
}

#[test]
fn a_lane_that_cannot_be_waited_on_ends() {
    let mut bed = bed();
    let (_writer, _reader) = (bed.open_reader(1), bed.open_writer(2, at(0)));
    let _successor = bed.open_writer(3, at(0));
    // That is no set.
    let (pipe, _other) = Doorbell::pair().unwrap();
    bed.lanes.share(Some(Arc::new(EventShare::new(&pipe, FIRST).unwrap())));
    assert_eq!(bed.lanes.take_ended().collect::<Vec<_>>(), [3, 2, 1]);
    assert!(!bed.lanes.has_readers() && !bed.lanes.lead_to(addr()));
    let (ours, _theirs) = descriptors();
    assert!(bed.lanes.open_reader(4, addr(), ours).is_err());
}
