//! The NIC as the device sees it: a wake-up becomes the steps of a worker.

use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_queue::QueueT;

use super::{ANNOUNCING_PAIR, Nic, Replaced, Source};
use crate::guest::{HeaderLayout, LEGACY_HEADER_LEN, MODERN_HEADER_LEN};
use crate::metrics::VifCounter;
use crate::offload::features::Offloads;
use crate::port::throttle::Direction;
use crate::port::worker::Progress;
use crate::sys::clock;
use crate::sys::event_share::EventShare;
use crate::vhost_user::device::{DataPath, Interest, Rings, Wake};

/// Least MTU in bytes of anything that carries IPv4 (RFC 791, section 3.2), and the least that a device may
/// name (virtio 1.2, section 5.1.4).
const LEAST_MTU: u16 = 68;

/// Runs a step of a worker on one of its rings; a broken ring is stopped, not the worker.
macro_rules! on_ring {
    ($ring:expr, $memory:expr, $step:expr) => {{
        let result = $step.and_then(|outcome| {
            $ring.notify_if_needed($memory)?;
            Ok(outcome)
        });
        if let Err(error) = &result {
            $ring.stop_with_error(error);
        }
        result.ok()
    }};
}

impl DataPath for Nic {
    fn queue_pairs(&self) -> usize {
        self.workers.len()
    }

    fn mac(&self) -> Option<[u8; 6]> {
        self.worker(ANNOUNCING_PAIR).map(|worker| worker.tunnel().place().receiver.key.mac.0)
    }

    fn mtu(&self) -> Option<u16> {
        Some(self.mtu)
    }

    fn offloads(&self) -> u64 {
        self.offloads.bits()
    }

    fn descriptors(&self, pair: usize) -> Vec<RawFd> {
        let Some(worker) = self.worker(pair) else { return Vec::new() };
        self.sources(pair, &worker).map(|(_, descriptor)| descriptor).collect()
    }

    fn share(&self, pair: usize, share: Option<Arc<EventShare>>) {
        if let Some(mut worker) = self.worker(pair) {
            worker.local_mut().share(share);
        }
    }

    fn busy_poll(&self) -> Duration {
        self.busy_poll
    }

    fn looked(&self, _pair: usize, has_paid: bool) {
        let counter = if has_paid { VifCounter::polls_paid } else { VifCounter::polls_in_vain };
        self.counters.inc(counter);
    }

    fn changed(&self) -> Option<BorrowedFd<'_>> {
        Some(self.changed.as_fd())
    }

    fn descriptors_taken(&self) {
        *self.replaced() = Replaced::default();
    }

    fn handle(&self, pair: usize, wake: Wake, rings: &mut Rings<'_>) -> Interest {
        let Some(mut worker) = self.worker(pair) else { return Interest::ALL };
        let now = clock::mono();
        if worker.tunnel_mut().protection_mut().is_some() {
            worker.tunnel_mut().set_clock(clock::now());
        }
        let Rings { rx, tx, memory } = rings;
        let (mut transmit_again, mut receive_again) = (false, false);
        if worker.arrival().is_unsettled() {
            let indices = [&*rx, &*tx].map(|ring| ring.queue().next_avail());
            worker.arrival().settle(indices, now);
            worker.announce_arrival(now);
            self.call_for_attention();
        }
        let turn = self.turn(pair, &mut worker, wake, now);
        if turn.transmits {
            let step = worker.transmit(tx.queue_mut(), memory, now);
            transmit_again = on_ring!(tx, memory, step) == Some(Progress::More);
            if worker.has_answers() {
                let step = worker.answer(rx.queue_mut(), memory);
                on_ring!(rx, memory, step);
            }
        }
        if wake == Wake::Receive {
            let step = worker.retry(rx.queue_mut(), memory, now);
            receive_again = on_ring!(rx, memory, step) == Some(Progress::More);
        }
        for port in turn.ports.into_iter().flatten() {
            let step = worker.receive(port, rx.queue_mut(), memory, now);
            receive_again |= on_ring!(rx, memory, step) == Some(Progress::More);
        }
        if turn.reads_lanes && !rx.is_failed() {
            let step = worker.receive_lanes(rx.queue_mut(), memory, now);
            receive_again |= on_ring!(rx, memory, step) == Some(Progress::More);
        }
        if worker.tunnel().has_echoes() {
            worker.tunnel_mut().answer_echoes(clock::now().wall_ms.saturating_mul(1000), now);
        }
        if turn.heeds_reports {
            worker.tunnel_mut().handle_reports(now);
        }
        if worker.wants_attention() {
            self.call_for_attention();
        }
        if let Some(mut alarm) = self.alarm(pair) {
            alarm.set(worker.throttle().poll_timeout(), now);
        }
        let descriptors = if worker.is_blocked() {
            let is_port = |(source, _): &(Source, RawFd)| matches!(source, Source::Port(_));
            u64::MAX << self.sources(pair, &worker).filter(is_port).count()
        } else {
            u64::MAX
        };
        let is_held = worker.throttle().holds(Direction::Out);
        Interest { descriptors, transmit_again, receive_again, is_held }
    }

    fn set_running(&self, pair: usize, running: bool) {
        if let Some(mut worker) = self.worker(pair) {
            worker.set_running(running, clock::mono());
            if running && pair == ANNOUNCING_PAIR {
                worker.arrival().rings_started();
            }
        }
        let bit = 1_u64.checked_shl(u32::try_from(pair).unwrap_or(u32::MAX)).unwrap_or(0);
        if running {
            self.running.fetch_or(bit, Ordering::AcqRel);
        } else {
            self.running.fetch_and(!bit, Ordering::AcqRel);
        }
        self.steer();
        self.call_for_attention();
    }

    fn set_features(&self, features: u64) {
        let has = |bit: u32| features & (1 << bit) != 0;
        let mergeable = has(VIRTIO_NET_F_MRG_RXBUF);
        let is_modern = has(VIRTIO_F_VERSION_1) || mergeable;
        let len = if is_modern { MODERN_HEADER_LEN } else { LEGACY_HEADER_LEN };
        let offloads = Offloads::from_features(features);
        for mut worker in self.workers() {
            worker.set_features(HeaderLayout { len, mergeable }, offloads);
        }
    }

    fn set_mtu(&self, mtu: u16) -> bool {
        if mtu > self.mtu {
            log::warn!(
                "the guest has an MTU of {mtu} bytes (host_mtu), but only {} fit: longer packets travel in \
                 segments or fragments, which costs processor time",
                self.mtu,
            );
        }
        mtu >= LEAST_MTU
    }

    fn announce(&self) {
        if let Some(mut worker) = self.worker(ANNOUNCING_PAIR) {
            let is_running = self.running.load(Ordering::Acquire) & (1 << ANNOUNCING_PAIR) != 0;
            worker.arrival().told(is_running, clock::mono());
        }
        self.announce.store(true, Ordering::Release);
        self.call_for_attention();
    }

    fn ring_failed(&self, _pair: usize) {
        self.counters.inc(VifCounter::ring_errors);
    }

    fn frontend_connected(&self) {
        self.counters.inc(VifCounter::guest_connects);
        let now = clock::mono();
        self.workers().for_each(|mut worker| worker.frontend_connected(now));
    }

    fn frontend_disconnected(&self) {
        self.call_for_attention();
    }
}
