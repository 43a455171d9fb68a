//! A data path that hands every frame back to the guest that sent it.

#![allow(dead_code, unreachable_pub, reason = "each test uses a part of it")]

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::time::Duration;

use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vnet::offload::features::Offloads;
use vnet::sys::clock;
use vnet::vhost_user::device::{DataPath, Interest, Rings, Wake};
use vnet::vhost_user::vring::{GuestMemory, Ring, RingError};

/// Chains handled per wake-up.
const BUDGET: usize = 32;
/// Frames that wait for receive buffers.
const BACKLOG: usize = 2048;
/// Longest frame, without header.
const LONGEST: usize = 65_550;
const HEADER_LEN: usize = 12;
/// The NIC's address.
pub const MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];

pub struct Loopback {
    pairs: Vec<PairState>,
    mtu: Option<u16>,
    /// How long workers look for frames before they sleep.
    pub busy_poll: Duration,
    /// Looks in vain, and those that have paid.
    pub looks: [AtomicU64; 2],
    pub features: AtomicU64,
    pub announced: AtomicU64,
    pub mtu_set: AtomicU16,
    pub connects: AtomicU64,
    pub disconnects: AtomicU64,
    pub ring_failures: AtomicU64,
    pub malformed: AtomicU64,
    pub frames: AtomicU64,
    pub wakes: AtomicU64,
    /// How long each wake-up takes at least, in microseconds; if not 0, there is always more to do.
    pub busy: AtomicU64,
    /// Wake-ups with a ring that was not in memory, which the device promises not to happen.
    pub strays: AtomicU64,
    pub starts: AtomicU64,
    pub stops: AtomicU64,
}

struct PairState {
    backlog: Mutex<VecDeque<Vec<u8>>>,
    wake: EventFd,
}

impl Loopback {
    pub fn new(pairs: usize, mtu: Option<u16>) -> Self {
        let pair = |_| PairState {
            backlog: Mutex::default(),
            wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).expect("an eventfd"),
        };
        let zero = || AtomicU64::new(0);
        Self {
            pairs: (0..pairs).map(pair).collect(),
            mtu,
            busy_poll: Duration::ZERO,
            looks: [zero(), zero()],
            features: zero(),
            announced: zero(),
            mtu_set: AtomicU16::new(0),
            connects: zero(),
            disconnects: zero(),
            ring_failures: zero(),
            malformed: zero(),
            frames: zero(),
            wakes: zero(),
            strays: zero(),
            busy: zero(),
            starts: zero(),
            stops: zero(),
        }
    }

    /// Delivers a frame to the guest as if it came from a network.
    pub fn inject(&self, pair: usize, frame: &[u8]) {
        self.pairs[pair].backlog.lock().expect("not poisoned").push_back(frame.to_vec());
        self.pairs[pair].wake.write(1).expect("a wake-up");
    }

    /// How often [`Loopback::inject`] has been called since its descriptor was last read, by the pair's
    /// worker or here.
    pub fn take_unread(&self, pair: usize) -> u64 {
        self.pairs[pair].wake.read().unwrap_or(0)
    }

    /// Frames that wait for receive buffers.
    pub fn waiting(&self, pair: usize) -> usize {
        self.pairs[pair].backlog.lock().expect("not poisoned").len()
    }

    /// Takes frames from the guest; true if more wait.
    fn transmit(&self, pair: usize, rings: &mut Rings<'_>) -> Result<bool, RingError> {
        let mut more = false;
        rings.tx.disable_kicks(rings.memory)?;
        for taken in 0.. {
            let mut chains = rings.tx.queue_mut().iter(&**rings.memory)?;
            let Some(chain) = chains.next() else {
                if rings.tx.enable_kicks(rings.memory)? {
                    continue;
                }
                break;
            };
            let head = chain.head_index();
            match read_frame(chain, rings.memory) {
                Some(frame) => {
                    self.frames.fetch_add(1, Ordering::Relaxed);
                    let mut backlog = self.pairs[pair].backlog.lock().expect("not poisoned");
                    if backlog.len() < BACKLOG {
                        backlog.push_back(frame);
                    }
                }
                None => {
                    self.malformed.fetch_add(1, Ordering::Relaxed);
                }
            }
            rings.tx.queue_mut().add_used(&**rings.memory, head, 0)?;
            if taken + 1 == BUDGET {
                more = true;
                break;
            }
        }
        rings.tx.notify_if_needed(rings.memory)?;
        Ok(more)
    }

    /// Writes waiting frames to the guest; true if it has no room for the next.
    fn receive(&self, pair: usize, rings: &mut Rings<'_>) -> Result<bool, RingError> {
        let mut backlog = self.pairs[pair].backlog.lock().expect("not poisoned");
        let mut starved = false;
        while let Some(frame) = backlog.front() {
            let seen = rings.rx.queue().avail_idx(&**rings.memory, Ordering::Acquire)?;
            if write_frame(frame, rings)? {
                backlog.pop_front();
                continue;
            }
            rings.rx.enable_kicks(rings.memory)?;
            if rings.rx.queue().avail_idx(&**rings.memory, Ordering::Acquire)? == seen {
                starved = true;
                break;
            }
        }
        rings.rx.notify_if_needed(rings.memory)?;
        Ok(starved)
    }
}

/// Whether the used ring, the one that is written to, is in memory.
fn in_memory(ring: &Ring<'_>, memory: &GuestMemory) -> bool {
    let len = 6 + 8 * usize::from(ring.queue().size());
    GuestMemoryBackend::check_range(memory, GuestAddress(ring.queue().used_ring()), len)
}

/// The frame in a chain; `None` if the chain is not one. A chain that the crate cut short ends with
/// a descriptor that claims to have a next one.
fn read_frame(chain: DescriptorChain<&GuestMemory>, memory: &GuestMemory) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut complete = false;
    for descriptor in chain {
        if descriptor.is_write_only() {
            return None;
        }
        complete = !descriptor.has_next();
        let start = bytes.len();
        let len = usize::try_from(descriptor.len()).ok()?;
        if start + len > HEADER_LEN + LONGEST {
            return None;
        }
        bytes.resize(start + len, 0);
        memory.read_slice(&mut bytes[start..], descriptor.addr()).ok()?;
    }
    if !complete || bytes.len() < HEADER_LEN + 14 {
        return None;
    }
    Some(bytes.split_off(HEADER_LEN))
}

/// Writes a frame into as many buffers as it takes; false, and nothing taken, if there are too few.
fn write_frame(frame: &[u8], rings: &mut Rings<'_>) -> Result<bool, RingError> {
    let memory = rings.memory;
    let mut rest = [&[0; HEADER_LEN][..], frame].concat();
    let mut heads = Vec::new();
    let mut first = None;
    let start = rings.rx.queue().next_avail();
    while !rest.is_empty() {
        let chain = rings.rx.queue_mut().iter(&**memory)?.next();
        let Some(chain) = chain else {
            rings.rx.queue_mut().set_next_avail(start);
            return Ok(false);
        };
        let head = chain.head_index();
        let mut written = 0;
        for descriptor in chain {
            if !descriptor.is_write_only() {
                return Err(RingError::Malformed("a receive buffer that can't be written to"));
            }
            let len = rest.len().min(descriptor.len() as usize);
            first.get_or_insert(descriptor.addr());
            if memory.write_slice(&rest[..len], descriptor.addr()).is_err() {
                return Err(RingError::Malformed("a receive buffer outside memory"));
            }
            rest.drain(..len);
            written += len;
        }
        if written == 0 {
            return Err(RingError::Malformed("a receive buffer without room"));
        }
        heads.push((head, written));
    }
    if let Some(first) = first {
        let count = u16::try_from(heads.len()).unwrap_or(u16::MAX).to_le_bytes();
        let field = vm_memory::Address::unchecked_add(&first, 10);
        memory.write_slice(&count, field).map_err(|_| RingError::Malformed("no header room"))?;
    }
    for (head, written) in heads {
        rings.rx.queue_mut().add_used(&**memory, head, written as u32)?;
    }
    Ok(true)
}

impl DataPath for Loopback {
    fn queue_pairs(&self) -> usize {
        self.pairs.len()
    }

    fn mac(&self) -> Option<[u8; 6]> {
        Some(MAC)
    }

    fn mtu(&self) -> Option<u16> {
        self.mtu
    }

    fn offloads(&self) -> u64 {
        Offloads::ALL.bits()
    }

    fn busy_poll(&self) -> Duration {
        self.busy_poll
    }

    fn looked(&self, _pair: usize, has_paid: bool) {
        self.looks[usize::from(has_paid)].fetch_add(1, Ordering::SeqCst);
    }

    fn descriptors(&self, pair: usize) -> Vec<RawFd> {
        vec![self.pairs[pair].wake.as_raw_fd()]
    }

    fn handle(&self, pair: usize, wake: Wake, rings: &mut Rings<'_>) -> Interest {
        self.wakes.fetch_add(1, Ordering::Relaxed);
        if !(in_memory(&rings.rx, rings.memory) && in_memory(&rings.tx, rings.memory)) {
            self.strays.fetch_add(1, Ordering::Relaxed);
        }
        let mut interest = Interest::ALL;
        match wake {
            Wake::Transmit => match self.transmit(pair, rings) {
                Ok(more) => interest.transmit_again = more,
                Err(why) => rings.tx.stop_with_error(&why),
            },
            Wake::Receive | Wake::Own(_) => {}
            Wake::Socket(n) => {
                assert_eq!(n, 0);
                let _ = self.pairs[pair].wake.read();
            }
        }
        match self.receive(pair, rings) {
            Ok(true) => interest.descriptors = 0,
            Ok(false) => {}
            Err(why) => rings.rx.stop_with_error(&why),
        }
        let busy = self.busy.load(Ordering::Relaxed);
        if busy > 0 {
            let end = clock::mono() + Duration::from_micros(busy);
            while clock::mono() < end {}
            interest.transmit_again = true;
        }
        interest
    }

    fn set_running(&self, pair: usize, running: bool) {
        self.pairs[pair].backlog.lock().expect("not poisoned").clear();
        let counter = if running { &self.starts } else { &self.stops };
        counter.fetch_add(1, Ordering::SeqCst);
    }

    fn set_features(&self, features: u64) {
        self.features.store(features, Ordering::SeqCst);
    }

    fn set_mtu(&self, mtu: u16) -> bool {
        self.mtu_set.store(mtu, Ordering::SeqCst);
        self.mtu.is_none_or(|most| mtu <= most)
    }

    fn announce(&self) {
        self.announced.fetch_add(1, Ordering::SeqCst);
    }

    fn ring_failed(&self, _pair: usize) {
        self.ring_failures.fetch_add(1, Ordering::SeqCst);
    }

    fn frontend_connected(&self) {
        self.connects.fetch_add(1, Ordering::SeqCst);
    }

    fn frontend_disconnected(&self) {
        self.disconnects.fetch_add(1, Ordering::SeqCst);
    }
}
