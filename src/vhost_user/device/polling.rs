//! Polls for frames for some time before a worker sleeps, if the data path wants that.
//!
//! ```text
//!   event ──► turn ──► rest ──► sleep: kicks are on ─────────────────────────► the crate's loop
//!              ▲        │                                                           ▲
//!              │        ▼ look: kicks are off, no lock is held                      │
//!              └── the ring or a descriptor has frames                              │
//!                       └── nothing in time, or something else is up ──► kicks on ──┘
//! ```
//!
//! A poll (*look* in the diagram) reads the transmit ring's index and the worker's own epoll set,
//! which reports without waiting the events that the crate's loop would find: descriptors of the
//! data path, but also rings that are enabled and the worker's end. These events end the polling.
//!
//! Between two polls the worker yields the processor: with few processors, the waiting threads are
//! often those that send the next frame. If another thread keeps the processor for long, it does
//! other work; then the worker does not poll for some time, because the scheduler also postpones a
//! thread that yields (with all processors busy, a worker without this rule stood still for more
//! than 100 ms).

use std::hint;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use vhost_user_backend::VringT;

use super::pace::Pace;
use super::{Device, Pair, Poller, RX, TX};
use crate::sys::clock;
use crate::sys::event;
use crate::time::Instant;
use crate::vhost_user::vring::{Vring, Watch};

/// Looks at the ring between two at the epoll set: about a microsecond.
const GLANCES: usize = 16;
/// A worker that is without the processor for this time has lost it to work other than that of
/// frames.
const CROWDED: Duration = Duration::from_micros(200);
/// Events that are fetched at a time.
const EVENTS: usize = 8;

/// The state that a pair needs to poll for frames.
pub(super) struct Polling {
    /// Only the pair's worker uses it.
    pace: Mutex<Pace>,
    /// How often the pair was stopped.
    stops: AtomicU64,
}

impl Polling {
    /// For looks that last at most so long; `None` for no looks at all.
    pub(super) fn new(most: Duration) -> Option<Self> {
        let pace = Mutex::new(Pace::new(most));
        (!most.is_zero()).then(|| Self { pace, stops: AtomicU64::new(0) })
    }

    /// Ends a look that is under way: the pair was stopped.
    pub(super) fn interrupt(&self) {
        self.stops.fetch_add(1, Ordering::Release);
    }
}

/// The subjects of a poll, its start and its end.
struct Look {
    ring: Watch,
    set: Arc<Poller>,
    since: Instant,
    until: Instant,
    /// [`Device::generation`] and [`Polling::stops`] when it began.
    began: (u64, u64),
}

/// How a look ended.
enum Seen<'a> {
    /// The guest has sent frames.
    Ring,
    /// Descriptors of the data path, or the transmit ring's kick, are readable: their events.
    Descriptors(&'a [u64]),
    /// Nothing came.
    Nothing,
    /// Others want the processor, as of now.
    Crowd(Instant),
    /// Something else is up, for the crate's loop or the control thread.
    Other,
}

impl Device {
    /// Handles an event, and what comes in time after it.
    pub(super) fn wake_and_look(
        &self,
        pair: &Arc<Pair>,
        polling: &Polling,
        event: u16,
        [rx, tx]: [&Vring; 2],
    ) {
        // Poisoned only by a panic, which ends the process.
        let mut pace = polling.pace.lock().unwrap_or_else(PoisonError::into_inner);
        if event != RX {
            pace.frames_came(clock::mono());
        }
        self.turn(pair, event, rx, tx);
        let mut events = [0; EVENTS];
        let mut are_kicks_off = false;
        while let Some(look) = self.rest(pair, polling, &mut pace, tx) {
            let seen = self.look(polling, &look, &mut events);
            let has_paid = match seen {
                Seen::Ring | Seen::Descriptors(_) => Some(pace.frames_came(clock::mono())),
                Seen::Nothing => {
                    pace.looked_in_vain();
                    Some(false)
                }
                Seen::Crowd(now) => {
                    pace.crowded(now);
                    Some(false)
                }
                Seen::Other => {
                    pace.interrupted();
                    None
                }
            };
            if let Some(has_paid) = has_paid {
                self.data_path.looked(pair.index, has_paid);
            }
            are_kicks_off = matches!(seen, Seen::Descriptors(_));
            if let Seen::Descriptors(events) = seen {
                for event in events.iter().map(|&event| u16::try_from(event).unwrap_or(u16::MAX)) {
                    if event == TX {
                        // One may come before the driver is told not to. An error stops the ring.
                        let _ = tx.read_kick();
                    }
                    self.turn(pair, event, rx, tx);
                }
            } else {
                // Also when nothing was seen: it asks for kicks, and takes what came before that.
                self.turn(pair, TX, rx, tx);
            }
            if has_paid != Some(true) {
                return;
            }
        }
        if are_kicks_off {
            self.turn(pair, TX, rx, tx);
        }
    }

    /// What to look at, the driver told not to kick; `None` if the worker is to sleep, with the
    /// kicks as they were.
    fn rest(&self, pair: &Pair, polling: &Polling, pace: &mut Pace, tx: &Vring) -> Option<Look> {
        let state = pair.state();
        let generation = self.generation.load(Ordering::Acquire);
        let stops = polling.stops.load(Ordering::Acquire);
        // Nothing is polled while the guest has no room for more.
        let is_at_rest =
            state.running && !state.again_raised && state.polled != 0 && !state.is_held;
        if !is_at_rest || state.checked != generation {
            return None;
        }
        let set = self.poller(pair)?;
        let mut tx = tx.lock();
        if !tx.is_running() || tx.is_unchecked() {
            return None;
        }
        let since = clock::mono();
        let until = pace.rest(since)?;
        let ring = tx.watch(self.memory.memory()).ok()?;
        Some(Look { ring, set, since, until, began: (generation, stops) })
    }

    fn look<'a>(&self, polling: &Polling, look: &Look, events: &'a mut [u64]) -> Seen<'a> {
        let mut now = look.since;
        loop {
            let Ok(ready) = event::ready_in(&*look.set, events) else { return Seen::Other };
            if ready > 0 {
                let events = events.get(..ready).unwrap_or_default();
                let first = u64::from(self.again_event()) + 1;
                let are_frames = events.iter().all(|&e| e == u64::from(TX) || e >= first);
                return if are_frames { Seen::Descriptors(events) } else { Seen::Other };
            }
            for _ in 0..GLANCES {
                if look.ring.sees_more() {
                    return Seen::Ring;
                }
                hint::spin_loop();
            }
            let generation = self.generation.load(Ordering::Acquire);
            if (generation, polling.stops.load(Ordering::Acquire)) != look.began {
                return Seen::Other;
            }
            if now >= look.until {
                return Seen::Nothing;
            }
            thread::yield_now();
            let before = std::mem::replace(&mut now, clock::mono());
            if now - before > CROWDED {
                return Seen::Crowd(now);
            }
        }
    }
}
