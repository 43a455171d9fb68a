//! Datagrams that the endpoint sends of itself: the announcement of a guest that has arrived, and the
//! handover to a lane.

use std::net::SocketAddr;

use super::Endpoint;
use crate::capture::{Observed, Verdict};
use crate::lane::handover;
use crate::metrics::VifCounter;
use crate::sys::iovec::IoVec;
use crate::sys::mmsg::Message;
use crate::time::Instant;
use crate::underlay::Underlay;
use crate::wire::encap::{Flags, Header};

impl<U: Underlay> Endpoint<U> {
    /// Sends a frame to the group that announces where the vif is; sealed on a secured vnet, like all that
    /// leaves there.
    pub fn announce(&mut self, frame: &[u8], now: Instant) {
        if self.is_halted {
            return;
        }
        let vnet = self.place.receiver.key.vnet;
        let datagram = [&Header { flags: Flags::NONE, vnet }.emit()[..], frame].concat();
        let sealed = match self.protection.as_mut().filter(|protection| protection.seals_group()) {
            None => None,
            Some(protection) => match protection.seal_one_to_group(&datagram, now) {
                Ok(sealed) => Some(sealed),
                // A later one of the series may leave.
                Err(counter) => {
                    self.counters.inc(counter);
                    return self.show_announcement(frame, Verdict::Dropped(counter));
                }
            },
        };
        let part = IoVec::from_slice(sealed.as_deref().unwrap_or(&datagram));
        let parts = std::slice::from_ref(&part);
        match self.underlay.send(&[Message { to: self.place.group, parts, segment: 0 }]) {
            Ok(_) => {
                self.counters.inc(VifCounter::tx_announcements);
                self.counters.inc(VifCounter::tx_datagrams);
                self.show_announcement(frame, Verdict::Announced);
            }
            // A later one of the series may leave.
            Err(error) => {
                self.complain("cannot announce the guest's arrival", &error, now);
                self.counters.inc(VifCounter::tx_drop_error);
                self.show_announcement(frame, Verdict::Dropped(VifCounter::tx_drop_error));
            }
        }
    }

    fn show_announcement(&self, frame: &[u8], verdict: Verdict) {
        let part = IoVec::from_slice(frame);
        let parts = std::slice::from_ref(&part);
        self.to_wire.show(|| Observed::whole(parts, verdict));
    }

    /// Sends the last datagram to a vif of this host before frames go through a lane. If the kernel does not
    /// take it, the lane's reader waits for a short time.
    pub fn hand_over(&mut self, lane: u32, to: SocketAddr) {
        let datagram = handover::emit(self.place.receiver.key.vnet, lane);
        let protection = self.protection.as_mut().filter(|protection| protection.seals_to(to));
        let sealed = protection.map(|protection| protection.seal_one(to, &datagram));
        let part = match &sealed {
            // Without a key nothing can have gone that way before.
            Some(None) => return,
            Some(Some(sealed)) => IoVec::from_slice(sealed),
            None => IoVec::from_slice(&datagram),
        };
        let message = Message { to, parts: std::slice::from_ref(&part), segment: 0 };
        if let Err(error) = self.underlay.send(&[message]) {
            log::debug!("no handover to {to}: {error}");
        }
    }
}
