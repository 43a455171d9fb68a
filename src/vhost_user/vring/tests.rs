use std::os::fd::AsFd;

use nix::sys::eventfd::{EfdFlags, EventFd};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::*;

const TABLE: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const SIZE: u16 = 16;

struct Bed {
    memory: SharedMemory,
    vring: Vring,
    call: EventFd,
    err: EventFd,
}

/// The file that the crate would hand on for an event.
fn file(event: &EventFd) -> File {
    event.as_fd().try_clone_to_owned().unwrap().into()
}

/// A ring that runs.
fn bed(event_idx: bool) -> Bed {
    let ranges = [(GuestAddress(0), 0x1_0000)];
    let memory = SharedMemory::new(GuestMemory::from_ranges(&ranges).unwrap());
    let vring = Vring::new(memory.clone(), MAX_QUEUE_SIZE).unwrap();
    let [call, err] = [(); 2].map(|()| EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap());
    vring.set_queue_size(SIZE);
    vring.set_queue_info(TABLE, AVAIL, USED).unwrap();
    vring.set_queue_event_idx(event_idx);
    vring.set_call(Some(file(&call)));
    vring.set_err(Some(file(&err)));
    vring.set_queue_ready(true);
    vring.set_enabled(true);
    Bed { memory, vring, call, err }
}

impl Bed {
    /// Uses some chains, notifies, and tells whether the driver was called.
    fn notified_after(&self, chains: u16) -> bool {
        let memory = self.memory.memory();
        let mut ring = self.vring.lock();
        for _ in 0..chains {
            ring.queue_mut().add_used(&*memory, 0, 0).unwrap();
        }
        ring.notify_if_needed(&memory).unwrap();
        self.call.read().is_ok()
    }

    fn store(&self, address: u64, value: u16) {
        let memory = self.memory.memory();
        memory.store(value.to_le(), GuestAddress(address), Ordering::Relaxed).unwrap();
    }
}

#[test]
fn without_event_index_the_flag_decides() {
    let bed = bed(false);
    assert!(!bed.notified_after(0));
    assert!(bed.notified_after(1));
    bed.store(AVAIL, 1);
    assert!(!bed.notified_after(5));
    bed.store(AVAIL, 0);
    assert!(!bed.notified_after(0), "what was used before is not told again");
    assert!(bed.notified_after(1));
}

#[test]
fn with_event_index_the_call_comes_when_it_is_passed() {
    let bed = bed(true);
    let used_event = AVAIL + 4 + 2 * u64::from(SIZE);
    // The driver wants to know of the 4th used chain, index 3.
    bed.store(used_event, 3);
    assert!(!bed.notified_after(3));
    assert!(bed.notified_after(1));
    assert!(!bed.notified_after(10));
    // Around the end of the index.
    for _ in 0..0xfff0 - 14 {
        bed.notified_after(1);
    }
    bed.store(used_event, 2);
    assert!(!bed.notified_after(0x12));
    assert!(bed.notified_after(3));
}

#[test]
fn an_absent_kick_is_no_error() {
    let bed = bed(true);
    let kick = EventFd::new().unwrap();
    bed.vring.set_kick(Some(file(&kick)));
    assert!(!bed.vring.read_kick().unwrap(), "a blocking descriptor does not block either");
    kick.write(1).unwrap();
    assert!(bed.vring.read_kick().unwrap());
    assert!(!bed.vring.read_kick().unwrap());
    assert!(bed.vring.lock().is_running());
}

#[test]
fn a_kick_that_cannot_be_read_stops_the_ring() {
    let bed = bed(true);
    let (reader, _) = nix::unistd::pipe().unwrap();
    bed.vring.set_kick(Some(reader.into()));
    assert!(bed.vring.read_kick().unwrap(), "so that the device looks at the ring");
    assert!(!bed.vring.lock().is_running());
    assert_eq!(bed.err.read().unwrap(), 1);
}

#[test]
fn a_call_that_is_full_holds_up_nobody() {
    let bed = bed(true);
    let full = EventFd::from_value_and_flags(0, EfdFlags::empty()).unwrap();
    full.write(u64::MAX - 1).unwrap();
    bed.vring.set_call(Some(file(&full)));
    let flags = OFlag::from_bits_retain(fcntl(full.as_fd(), FcntlArg::F_GETFL).unwrap());
    assert!(flags.contains(OFlag::O_NONBLOCK));
    assert_eq!(bed.vring.signal_used_queue().unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn a_running_ring_is_not_moved() {
    let bed = bed(true);
    bed.notified_after(5);
    bed.vring.set_queue_next_used(2);
    bed.vring.set_queue_next_avail(3);
    bed.vring.set_queue_size(8);
    let indices =
        |ring: Ring<'_>| (ring.queue().next_used(), ring.queue().next_avail(), ring.queue().size());
    assert_eq!(indices(bed.vring.lock()), (5, 0, SIZE));
    bed.vring.set_queue_ready(false);
    bed.vring.set_queue_next_used(2);
    bed.vring.set_queue_next_avail(3);
    bed.vring.set_queue_size(8);
    assert_eq!(indices(bed.vring.lock()), (2, 3, 8));
}

/// As Linux's virtio_uml does for a driver that is loaded again.
#[test]
fn a_disabled_ring_is_set_up_anew() {
    let bed = bed(true);
    bed.notified_after(5);
    bed.vring.lock().stop_with_error(&RingError::Malformed("test"));
    bed.vring.set_enabled(false);
    bed.vring.set_queue_size(8);
    bed.vring.set_queue_next_avail(0);
    bed.vring.set_queue_info(TABLE + 0x100, AVAIL + 0x100, USED + 0x100).unwrap();
    bed.vring.set_queue_next_used(0);
    bed.vring.set_enabled(true);
    let ring = bed.vring.lock();
    assert!(ring.is_running() && ring.is_unchecked());
    let queue = ring.queue();
    assert_eq!((queue.next_used(), queue.next_avail(), queue.size()), (0, 0, 8));
    drop(ring);
    assert!(bed.notified_after(1), "the first used chain is told");
}

#[test]
fn a_stopped_ring_runs_again_after_a_reset() {
    let bed = bed(true);
    bed.vring.lock().stop_with_error(&RingError::Malformed("test"));
    bed.vring.lock().stop_with_error(&RingError::Malformed("test"));
    assert_eq!(bed.err.read().unwrap(), 1, "signalled once");
    bed.vring.set_enabled(true);
    bed.vring.set_queue_ready(true);
    assert!(!bed.vring.lock().is_running(), "ready already: no reset");
    bed.vring.set_queue_ready(false);
    bed.vring.set_queue_ready(true);
    assert!(bed.vring.lock().is_running());
}

#[test]
fn only_powers_of_two_become_ready() {
    let bed = bed(true);
    for size in [0, 3, 15, 1023, 2048, u16::MAX] {
        bed.vring.set_queue_ready(false);
        bed.vring.set_queue_size(size);
        bed.vring.set_queue_ready(true);
        assert!(!bed.vring.lock().is_running(), "size {size}");
    }
    bed.vring.set_queue_size(MAX_QUEUE_SIZE);
    bed.vring.set_queue_ready(true);
    assert!(bed.vring.lock().is_running());
}

#[test]
fn every_part_must_lie_in_memory() {
    let bed = bed(true);
    let memory = bed.memory.memory();
    assert!(bed.vring.lock().check(&memory).is_ok());
    for (table, avail, used, part) in [
        (0xff10, AVAIL, USED, "descriptor table"),
        (TABLE, 0xfff0, USED, "available ring"),
        (TABLE, AVAIL, 0xff80, "used ring"),
    ] {
        bed.vring.set_queue_info(table, avail, used).unwrap();
        assert!(bed.vring.lock().is_unchecked());
        let found = bed.vring.lock().check(&memory);
        assert!(matches!(found, Err(RingError::Unmapped(name, _)) if name == part));
    }
}

#[test]
fn stopping_is_told_without_a_lock_held() {
    let bed = bed(true);
    let told = Arc::new(AtomicU32::new(0));
    let (count, vring) = (told.clone(), bed.vring.clone());
    bed.vring.on_stop(move || {
        drop(vring.lock());
        count.fetch_add(1, Ordering::Relaxed);
    });
    bed.vring.set_enabled(true);
    assert_eq!(told.load(Ordering::Relaxed), 0);
    bed.vring.set_enabled(false);
    bed.vring.set_queue_ready(false);
    assert_eq!(told.load(Ordering::Relaxed), 2);
}
