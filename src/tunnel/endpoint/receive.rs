//! From the underlay: batches of datagrams are read, and their frames wait in [`Incoming`]. Or the payload of
//! a long message goes elsewhere at once: then its reader looks at it first.

use std::io;
use std::mem;

use super::Endpoint;
use crate::metrics::VifCounter;
use crate::sys::train::{Arrived, IoVecMut, Train};
use crate::time::Instant;
use crate::tunnel::incoming::{Home, Incoming};
use crate::tunnel::residents::Residents;
use crate::underlay::{Port, Underlay};

impl<U: Underlay> Endpoint<U> {
    /// Reads the next batch from a socket; false when nothing waits. No frame of the last may be left.
    pub fn receive(&mut self, port: Port, now: Instant) -> bool {
        let opening = self.protection.as_ref().map(|protection| protection.opening(now));
        let opening = opening.map(|opening| opening.closed(self.is_halted));
        let Self { incoming, underlay, place, neighbors, moved, counters, to_guest: door, .. } =
            self;
        let (receiver, takes_unknown) = (&place.receiver, self.takes_unknown);
        let mut home = Home { receiver, neighbors, takes_unknown, moved, door, now };
        let filled = incoming.fill(port, underlay, &mut home, counters, opening);
        if let Err(error) = filled {
            if error.kind() != io::ErrorKind::WouldBlock && self.heed_reports(now).is_empty() {
                self.complain("cannot receive from the underlay", &error, now);
            }
            return false;
        }
        let overflow = self.incoming.take_overflow();
        if port == Port::Own {
            self.count_overflow(overflow);
        }
        if let Some(from) = self.incoming.take_misfit() {
            self.name_misfit(from, now);
        }
        if self.is_halted {
            self.drop_received(VifCounter::rx_drop_policy);
        }
        if self.incoming.has_detours() {
            self.forward_detours(now);
        }
        true
    }

    /// The frames that were received.
    pub fn incoming(&self) -> &Incoming {
        &self.incoming
    }

    /// The frames that were received, to be taken.
    pub fn incoming_mut(&mut self) -> &mut Incoming {
        &mut self.incoming
    }

    /// Drops the frames that were received; they count as `counter`.
    pub fn drop_incoming(&mut self, counter: VifCounter) {
        self.counters.add(counter, self.incoming.len() as u64);
        self.incoming.clear();
    }

    /// Drops everything that was received, for a halted vif.
    pub(super) fn drop_received(&mut self, counter: VifCounter) {
        let others = self.incoming.take_detours().len() + self.incoming.take_echoes().len();
        self.counters.add(counter, others as u64);
        self.incoming.take_handovers().for_each(drop);
        self.drop_incoming(counter);
    }

    /// The MACs that are here, for frames that come another way than through the sockets.
    pub fn residents(&self) -> Residents<'_> {
        let Self { place, takes_unknown, moved, .. } = self;
        Residents { receiver: &place.receiver, takes_unknown: *takes_unknown, moved }
    }

    /// Looks at the next message at the vif's own address, and copies its beginning to `head`. Gives
    /// `judge` what is known of the vif.
    ///
    /// # Errors
    /// `WouldBlock` when nothing waits.
    pub fn peek<R>(
        &mut self,
        head: &mut [u8],
        now: Instant,
        judge: impl FnOnce(Train, &[u8], &Home<'_>) -> R,
    ) -> io::Result<R> {
        let Self { underlay, place, neighbors, takes_unknown, moved, to_guest: door, .. } = self;
        let train = underlay.peek(Port::Own, head)?;
        let (receiver, takes_unknown) = (&place.receiver, *takes_unknown);
        let home = Home { receiver, neighbors, takes_unknown, moved, door, now };
        let head = &*head;
        Ok(judge(train, head.get(..train.segment).unwrap_or(head), &home))
    }

    /// Receives the next message at the vif's own address into pieces of memory.
    ///
    /// # Errors
    /// `WouldBlock` when nothing waits.
    pub fn take(&mut self, parts: &mut [IoVecMut<'_>]) -> io::Result<Train> {
        let (train, overflow): Arrived = self.underlay.take(Port::Own, parts)?;
        self.count_overflow(overflow);
        Ok(train)
    }

    /// Takes in a message that [`Endpoint::take`] brought, or the rest of it. No received frame may be left.
    pub fn put(&mut self, train: Train, bytes: &[u8], now: Instant) {
        let Self { incoming, place, neighbors, moved, counters, to_guest: door, .. } = self;
        let (receiver, takes_unknown) = (&place.receiver, self.takes_unknown);
        let mut home = Home { receiver, neighbors, takes_unknown, moved, door, now };
        incoming.put(Port::Own, (train.from, bytes, train.segment), &mut home, counters);
        if self.incoming.has_detours() {
            self.forward_detours(now);
        }
    }

    /// Counts what found the socket buffer full, if the kernel said how many those were so far. The group
    /// socket's count has also what its filter turned away, so only that of the own says anything.
    fn count_overflow(&mut self, overflow: Option<u32>) {
        let Some(overflow) = overflow else { return };
        // The kernel's counter wraps at 32 bits.
        let lost = overflow.wrapping_sub(mem::replace(&mut self.overflow, overflow));
        self.counters.add(VifCounter::rx_drop_overflow, u64::from(lost));
    }
}
