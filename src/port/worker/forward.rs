//! The worker's part for guests that have left: frames that still come for them are sent on to where
//! they are now.

use std::time::Duration;

use super::{BUDGET, STALE_AFTER, Worker};
use crate::metrics::VifCounter;
use crate::offload::header::{PartialChecksum, Request};
use crate::offload::layout::Layout;
use crate::sys::iovec::IoVec;
use crate::time::Instant;
use crate::tunnel::incoming::Detour;
use crate::tunnel::moved::LateSender;
use crate::tunnel::outgoing::{Batch, Outgoing, Route};
use crate::underlay::{Port, Underlay};
use crate::wire::{CareOf, Mac};

impl<U: Underlay> Worker<U> {
    /// A newer claim says that the MAC is elsewhere: for so long its frames are sent on. What had
    /// waited here for too long already is dropped.
    pub fn depart(&mut self, mac: Mac, coa: CareOf, lifetime: Duration, now: Instant) {
        let is_stale = self.stopped_at.is_some_and(|at| now - at > STALE_AFTER);
        if is_stale && self.departures.is_empty() {
            self.discard(Port::Own, now);
        }
        self.departures.sweep(self.place.receiver.key.mac, now);
        let own = self.place.receiver.own.ip();
        self.departures.insert(mac, coa, own, now + lifetime);
    }

    /// The MAC is here (again).
    pub fn arrive(&mut self, mac: Mac) {
        self.departures.remove(mac);
    }

    /// Until when frames are to be sent on though no ring runs, if they are: then the caller polls
    /// the socket for [`Worker::forward_waiting`], since the device does not.
    pub fn forwards_alone_until(&self, now: Instant) -> Option<Instant> {
        let until = self.departures.forwards_until(now);
        until.filter(|_| !self.is_running)
    }

    /// Sends on what waits at the vif's address, for a bounded number of batches, while no ring
    /// runs. What is not for a MAC that has left is dropped.
    pub fn forward_waiting(&mut self, now: Instant) {
        for _ in 0..BUDGET {
            if self.is_running || !self.fill(Port::Own, now) {
                return;
            }
            self.drop_incoming();
        }
    }

    /// Takes the senders of late frames that are to be told.
    pub fn late_senders(&mut self) -> impl Iterator<Item = LateSender> + '_ {
        self.departures.senders()
    }

    /// Sends on what the last batch brought for MACs that have left, in order.
    pub(super) fn forward_detours(&mut self, now: Instant) {
        let detours = self.incoming.take_detours();
        let mut batch = Batch::default();
        for Detour { coa, frame, is_partial } in &detours {
            let len = frame.len();
            let Some(addresses) = frame.first_chunk().copied() else { continue };
            let Some(request) = request(frame, *is_partial) else {
                self.counters.inc(VifCounter::rx_drop_checksum);
                continue;
            };
            let at = batch.pieces.len();
            batch.pieces.push(IoVec::from_slice(frame));
            let (pieces, route) = (at..at + 1, redirected(*coa));
            batch.frames.push(Outgoing {
                route,
                addresses,
                request,
                len,
                pieces,
                skip: 0,
                lead: None,
            });
        }
        self.send(&batch, now);
    }
}

/// What is left to do to a frame; `None` if its partial checksum has no place.
fn request(frame: &[u8], is_partial: bool) -> Option<Request> {
    if !is_partial {
        return Some(Request::Plain);
    }
    let layout = Layout::parse(frame, frame.len()).ok()?;
    let offset = layout.transport.checksum_offset();
    let place = PartialChecksum { start: layout.transport_at, offset };
    Some(Request::Checksum { place, is_transport: true })
}

fn redirected(coa: CareOf) -> Route {
    let CareOf { addr: to, capabilities, longest, .. } = coa;
    Route { to, is_group: false, is_redirected: true, capabilities, longest }
}
