//! What a view promises beyond the verdicts that `differential` compares.

use virtio_queue::QueueOwnedT;
use vm_memory::GuestAddress;

use super::*;

const TABLE: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const SIZE: u16 = 8;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

struct Bed {
    memory: GuestMemory,
    queue: Queue,
}

impl Bed {
    fn new() -> Self {
        let ranges = [(GuestAddress(0), 0x8000), (GuestAddress(0x8000), 0x2_0000)];
        let memory = GuestMemory::from_ranges(&ranges).unwrap();
        let mut queue = Queue::new(SIZE).unwrap();
        queue.try_set_desc_table_address(GuestAddress(TABLE)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(AVAIL)).unwrap();
        queue.try_set_used_ring_address(GuestAddress(USED)).unwrap();
        queue.set_ready(true);
        Self { memory, queue }
    }

    fn store(&self, at: u64, value: u16) {
        self.memory.write_obj(value.to_le(), GuestAddress(at)).unwrap();
    }

    fn load(&self, at: u64) -> u16 {
        u16::from_le(self.memory.read_obj(GuestAddress(at)).unwrap())
    }

    fn descriptor(&self, table: u64, index: u16, parts: (u64, u32, u16, u16)) {
        let (address, len, flags, next) = parts;
        let words = [address, u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48];
        self.memory.write_obj(words, GuestAddress(table + 16 * u64::from(index))).unwrap();
    }

    /// Offers heads as the entries from `first` on.
    fn offer(&self, first: u16, heads: &[u16]) {
        for (at, &head) in (first..).zip(heads) {
            self.store(AVAIL + 4 + 2 * u64::from(at % SIZE), head);
        }
        self.store(AVAIL + 2, first + heads.len() as u16);
    }

    fn view(&mut self) -> RingView<'_, '_> {
        RingView::new(&mut self.queue, &self.memory).unwrap()
    }

    /// The length of each piece of a chain.
    fn walk(&mut self, head: u16, access: Access) -> Result<Vec<usize>, BrokenChain> {
        let mut lens = Vec::new();
        self.view().walk(head, access, |piece| {
            lens.push(piece.len());
            Ok(())
        })?;
        Ok(lens)
    }
}

#[test]
fn used_entries_are_published_once_and_together() {
    let mut bed = Bed::new();
    bed.offer(0, &[5, 3, 1]);
    let memory = bed.memory.clone();
    let index = || memory.read_obj::<u16>(GuestAddress(USED + 2)).unwrap();
    let mut view = bed.view();
    for len in 0..3 {
        let head = view.pop().unwrap().unwrap();
        view.push_used(head, 100 + len).unwrap();
    }
    assert_eq!(view.pop().unwrap(), None);
    assert_eq!(index(), 0);
    view.publish().unwrap();
    assert_eq!(index(), 3);
    let entries: [u32; 6] = memory.read_obj(GuestAddress(USED + 4)).unwrap();
    assert_eq!(entries, [5, 100, 3, 101, 1, 102]);
    assert_eq!((bed.queue.next_avail(), bed.queue.next_used()), (3, 3));
}

#[test]
fn what_is_not_published_is_not_taken() {
    let mut bed = Bed::new();
    bed.offer(0, &[0, 1]);
    let mut view = bed.view();
    view.pop().unwrap().unwrap();
    view.push_used(0, 0).unwrap();
    assert_eq!((bed.queue.next_avail(), bed.queue.next_used()), (0, 0));
    assert_eq!(bed.view().pop().unwrap(), Some(0));
}

#[test]
fn chains_that_were_gone_back_over_come_again() {
    let mut bed = Bed::new();
    bed.offer(0, &[4, 5, 6]);
    let mut view = bed.view();
    assert_eq!(view.pop().unwrap(), Some(4));
    view.push_used(4, 0).unwrap();
    let position = view.position();
    assert_eq!(view.pop().unwrap(), Some(5));
    assert_eq!(view.pop().unwrap(), Some(6));
    view.rewind_to(position);
    view.publish().unwrap();
    assert_eq!(view.pop().unwrap(), Some(5));
    assert_eq!((bed.queue.next_avail(), bed.queue.next_used()), (1, 1));
}

/// A driver that offers again what it does not have back yet must not make us overwrite entries.
#[test]
fn no_more_chains_are_taken_than_the_ring_has_while_some_are_staged() {
    let mut bed = Bed::new();
    bed.offer(0, &[0; SIZE as usize]);
    let memory = bed.memory.clone();
    let mut view = bed.view();
    for _ in 0..SIZE {
        let head = view.pop().unwrap().unwrap();
        view.push_used(head, 0).unwrap();
    }
    memory.write_obj(2 * SIZE, GuestAddress(AVAIL + 2)).unwrap();
    assert_eq!(view.pop().unwrap(), None);
    view.publish().unwrap();
    assert_eq!(view.pop().unwrap(), Some(0));
    // Nor while chains are held that are not given back.
    memory.write_obj(2 * SIZE + 1, GuestAddress(AVAIL + 2)).unwrap();
    for _ in 1..SIZE {
        view.pop().unwrap().unwrap();
    }
    assert!(matches!(view.pop(), Err(RingError::Queue(QueueError::InvalidAvailRingIndex))));
}

#[test]
fn an_index_that_goes_back_is_refused() {
    let mut bed = Bed::new();
    bed.offer(0, &[0, 1, 2]);
    let memory = bed.memory.clone();
    let mut view = bed.view();
    for _ in 0..3 {
        view.pop().unwrap().unwrap();
    }
    memory.write_obj(2_u16, GuestAddress(AVAIL + 2)).unwrap();
    assert!(matches!(view.pop(), Err(RingError::Queue(QueueError::InvalidAvailRingIndex))));
}

#[test]
fn kicks_are_asked_for_as_negotiated() {
    for event_idx in [false, true] {
        let mut bed = Bed::new();
        bed.queue.set_event_idx(event_idx);
        bed.offer(0, &[0, 1]);
        bed.view().disable_kicks().unwrap();
        assert_eq!(bed.load(USED), u16::from(!event_idx));
        assert!(bed.view().enable_kicks().unwrap(), "two wait");
        assert!(!bed.view().enable_kicks_beyond(2).unwrap());
        assert_eq!(bed.load(USED), 0);
        let event = bed.load(USED + 4 + 8 * u64::from(SIZE));
        assert_eq!(event, if event_idx { 2 } else { 0 });
        // The crate's queue finds the same.
        assert_eq!(bed.queue.iter(&bed.memory).unwrap().count(), 2);
    }
}

#[test]
fn every_part_of_a_ring_lies_in_one_region() {
    for (table, avail, used, part) in [
        (0x7ff0, AVAIL, USED, "descriptor table"),
        (TABLE, 0x7ffe, USED, "available ring"),
        (TABLE, AVAIL, 0x7ffc, "used ring"),
        (TABLE, AVAIL, 0x2_7ffc, "used ring"),
        (0x10_0000, AVAIL, USED, "descriptor table"),
    ] {
        let mut bed = Bed::new();
        bed.queue.try_set_desc_table_address(GuestAddress(table)).unwrap();
        bed.queue.try_set_avail_ring_address(GuestAddress(avail)).unwrap();
        bed.queue.try_set_used_ring_address(GuestAddress(used)).unwrap();
        let view = RingView::new(&mut bed.queue, &bed.memory);
        assert!(matches!(view, Err(RingError::Unmapped(name, _)) if name == part), "{part}");
    }
    let mut bed = Bed::new();
    bed.queue.set_ready(false);
    let view = RingView::new(&mut bed.queue, &bed.memory);
    assert!(matches!(view, Err(RingError::Queue(QueueError::QueueNotReady))));
}

#[test]
fn a_buffer_across_regions_comes_in_pieces() {
    let mut bed = Bed::new();
    bed.descriptor(TABLE, 0, (0x7ff0, 0x20, NEXT, 1));
    bed.descriptor(TABLE, 1, (u64::MAX, 0, NEXT, 2));
    bed.descriptor(TABLE, 2, (0x100, 1, 0, 0));
    assert_eq!(bed.walk(0, Access::Read), Ok(vec![0x10, 0x10, 1]));
    assert_eq!(bed.walk(0, Access::Write), Err(BrokenChain));
    let mut copy = [0; 0x21];
    let bytes: Vec<u8> = (1..=0x20).collect();
    bed.memory.write_slice(&bytes, GuestAddress(0x7ff0)).unwrap();
    let mut at = 0;
    let walked = bed.view().walk(0, Access::Read, |piece| {
        at += piece.copy_to(&mut copy[at..]);
        Ok::<_, BrokenChain>(())
    });
    assert_eq!((walked, at), (Ok(()), 0x21));
    assert_eq!(copy[..0x20], bytes);
}

/// The two verdicts that differ from the crate's.
#[test]
fn tables_are_entered_at_the_end_of_a_chain_and_followed_for_a_while() {
    const FAR: u64 = 0x8000;
    let mut bed = Bed::new();
    let links = chain::MAX_LINKS;
    for index in 0..=links {
        bed.descriptor(FAR, index, (0x100, 1, NEXT | WRITE, index + 1));
    }
    bed.descriptor(FAR, links - 1, (0x100, 1, WRITE, 0));
    bed.descriptor(TABLE, 0, (FAR, 16 * (u32::from(links) + 1), INDIRECT, 0));
    bed.descriptor(TABLE, 1, (FAR, 16 * u32::from(links), INDIRECT | NEXT, 2));
    bed.descriptor(TABLE, 2, (0x100, 1, WRITE, 0));
    assert_eq!(bed.walk(0, Access::Write), Ok(vec![1; links.into()]));
    assert_eq!(bed.walk(1, Access::Write), Err(BrokenChain));
    bed.descriptor(FAR, links - 1, (0x100, 1, NEXT | WRITE, links));
    bed.descriptor(FAR, links, (0x100, 1, WRITE, 0));
    assert_eq!(bed.walk(0, Access::Write), Err(BrokenChain));
}

#[test]
fn the_callers_refusal_ends_the_walk() {
    #[derive(Debug, PartialEq)]
    enum No {
        Broken,
        TooMuch,
    }
    impl From<BrokenChain> for No {
        fn from(_: BrokenChain) -> Self {
            Self::Broken
        }
    }
    let mut bed = Bed::new();
    bed.descriptor(TABLE, 0, (0x100, 10, NEXT, 1));
    bed.descriptor(TABLE, 1, (0x200, 10, NEXT, 99));
    let mut seen = 0;
    let mut walk = |most| {
        bed.view().walk(0, Access::Read, |piece| {
            seen += piece.len();
            if seen > most { Err(No::TooMuch) } else { Ok(()) }
        })
    };
    assert_eq!(walk(15), Err(No::TooMuch));
    assert_eq!(walk(100), Err(No::Broken));
}
