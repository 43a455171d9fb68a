//! MACs that have moved: frames that still come for them are sent on to where they are now.

use std::time::Duration;

use super::Endpoint;
use crate::capture::{Observed, Verdict};
use crate::metrics::VifCounter;
use crate::offload::header::{PartialChecksum, Request};
use crate::offload::layout::Layout;
use crate::sys::iovec::IoVec;
use crate::time::Instant;
use crate::tunnel::incoming::Detour;
use crate::tunnel::moved::LateSender;
use crate::tunnel::outgoing::{Batch, Outgoing, Route};
use crate::underlay::Underlay;
use crate::wire::{CareOf, Mac};

impl<U: Underlay> Endpoint<U> {
    /// A newer claim says that the MAC is elsewhere: for `lifetime`, frames for it are sent on.
    pub fn depart(&mut self, mac: Mac, coa: CareOf, lifetime: Duration, now: Instant) {
        self.moved.sweep(self.place.receiver.key.mac, now);
        let own = self.place.receiver.own.ip();
        self.moved.insert(mac, coa, own, now + lifetime);
    }

    /// The MAC is here (again).
    pub fn arrive(&mut self, mac: Mac) {
        self.moved.remove(mac);
    }

    /// Whether frames for some MAC are sent on or dropped, because it has moved.
    pub fn forwards(&self) -> bool {
        !self.moved.is_empty()
    }

    /// Until when frames are to be sent on, if they are.
    pub fn forwards_until(&self, now: Instant) -> Option<Instant> {
        self.moved.forwards_until(now)
    }

    /// Takes the senders of late frames that are to be told.
    pub fn late_senders(&mut self) -> impl Iterator<Item = LateSender> + '_ {
        self.moved.senders()
    }

    /// Sends on what the last batch brought for MACs that have left, in order.
    pub(super) fn forward_detours(&mut self, now: Instant) {
        let detours = self.incoming.take_detours();
        let mut batch = Batch::default();
        for Detour { coa, frame, is_partial } in &detours {
            let len = frame.len();
            let Some(addresses) = frame.first_chunk().copied() else { continue };
            let Some(request) = request(frame, *is_partial) else {
                let counter = VifCounter::rx_drop_checksum;
                self.counters.inc(counter);
                let part = [IoVec::from_slice(frame)];
                self.to_wire.show(|| Observed::whole(&part, Verdict::Dropped(counter)));
                continue;
            };
            let at = batch.pieces.len();
            batch.pieces.push(IoVec::from_slice(frame));
            let (pieces, route) =
                (at..at + 1, Route { is_redirected: true, ..Route::to_vif(*coa) });
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
