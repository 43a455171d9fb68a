//! The worker's part for a guest's arrival: the frames that tell the vnet of it leave through its
//! sockets.

use super::Worker;
use crate::metrics::VifCounter;
use crate::port::arrival::{Arrival, RARP_LEN, rarp};
use crate::sys::iovec::IoVec;
use crate::sys::mmsg::Message;
use crate::time::Instant;
use crate::underlay::Underlay;
use crate::wire::encap::{self, Flags, Header};

impl<U: Underlay> Worker<U> {
    /// Whether the guest has arrived; of a NIC's workers, only the first is asked.
    pub fn arrival(&mut self) -> &mut Arrival {
        &mut self.arrival
    }

    /// Sends what is due of the frames that tell the vnet where the guest is; sealed on a secured vnet,
    /// like all that leaves there.
    pub fn announce_arrival(&mut self, now: Instant) {
        if !self.arrival.take_due(now) || self.is_halted {
            return;
        }
        let key = self.place.receiver.key;
        let mut datagram = [0; encap::LEN + RARP_LEN];
        let (head, frame) = datagram.split_at_mut(encap::LEN);
        head.copy_from_slice(&Header { flags: Flags::NONE, vnet: key.vnet }.emit());
        frame.copy_from_slice(&rarp(key.mac));
        let sealed = match self.protection.as_mut().filter(|protection| protection.seals_group()) {
            None => None,
            Some(protection) => match protection.seal_one_to_group(&datagram, now) {
                Ok(sealed) => Some(sealed),
                // A later one of the series may leave.
                Err(counter) => return self.counters.inc(counter),
            },
        };
        let part = IoVec::from_slice(sealed.as_deref().unwrap_or(&datagram));
        let parts = std::slice::from_ref(&part);
        match self.underlay.send(&[Message { to: self.place.group, parts, segment: 0 }]) {
            Ok(_) => {
                self.counters.inc(VifCounter::tx_announcements);
                self.counters.inc(VifCounter::tx_datagrams);
            }
            // A later one of the series may leave.
            Err(error) => self.complain("cannot announce the guest's arrival", &error, now),
        }
    }
}
