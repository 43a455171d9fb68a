//! Announces a guest that has migrated here to its vnet by RARP frames, so that bridges there find
//! it.
//!
//! VARP informs the hosts. But a guest of the vnet may itself be a bridge, or a gateway to another
//! network: it remembers the port behind which a MAC is, until a frame from the MAC arrives at
//! another port. So the vif broadcasts a frame in the guest's name: a RARP request (RFC 903), which
//! contains only a MAC. QEMU sends the same frame for NICs that it serves itself. If the guest
//! announces itself as well, this does no harm.
//!
//! A guest arrives when its rings continue at the indices that they had elsewhere. Rings that begin
//! at index 0 are those of a driver that was just loaded, whose first frames show its place.

#![forbid(unsafe_code)]
#![warn(clippy::indexing_slicing)]

use std::time::Duration;

use crate::mapper::ANNOUNCE_OFFSETS;
use crate::time::Instant;
use crate::wire::Mac;

/// When the frames leave, counted from the arrival: as often as VARP announces it.
const OFFSETS: [Duration; 7] = ANNOUNCE_OFFSETS;

/// Length of a [`rarp`] frame, in bytes: that of the shortest Ethernet frame, without its FCS.
pub const RARP_LEN: usize = 60;

/// Whether a guest has just arrived, and what of that is still to be said.
#[derive(Debug, Default)]
pub struct Arrival {
    /// The rings started; whether they went on is not known yet.
    is_started: bool,
    /// The frontend said that the guest is here.
    is_told: bool,
    /// When the guest arrived, and how many frames have been due since.
    series: Option<(Instant, usize)>,
}

impl Arrival {
    /// The rings start: [`Arrival::settle`] is to be called with the first look at them.
    pub fn rings_started(&mut self) {
        self.is_started = true;
    }

    /// Whether [`Arrival::settle`] is to be called.
    pub fn is_unsettled(&self) -> bool {
        self.is_started
    }

    /// The rings that started begin at these indices.
    pub fn settle(&mut self, indices: [u16; 2], now: Instant) {
        self.is_started = false;
        if std::mem::take(&mut self.is_told) || indices != [0; 2] {
            self.series = Some((now, 0));
        }
    }

    /// The frontend says that the guest is here (SEND_RARP); QEMU does so several times, the first
    /// time before the rings start.
    pub fn told(&mut self, is_running: bool, now: Instant) {
        if !is_running || self.is_started {
            self.is_told = true;
        } else if self.series.is_none() {
            self.series = Some((now, 0));
        }
    }

    /// The rings stopped: the guest is here no more.
    pub fn rings_stopped(&mut self) {
        *self = Self::default();
    }

    /// Whether a frame is due; one stands for all that are overdue.
    pub fn take_due(&mut self, now: Instant) -> bool {
        let Some((begin, done)) = &mut self.series else { return false };
        let before = *done;
        while OFFSETS.get(*done).is_some_and(|&offset| *begin + offset <= now) {
            *done += 1;
        }
        let is_due = *done > before;
        if *done == OFFSETS.len() {
            self.series = None;
        }
        is_due
    }

    /// When the next frame is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let (begin, done) = self.series?;
        OFFSETS.get(done).map(|&offset| begin + offset)
    }
}

/// A broadcast RARP request (RFC 903: operation 3) of `mac` for itself.
pub fn rarp(mac: Mac) -> [u8; RARP_LEN] {
    // To all; RARP; of Ethernet and IPv4 addresses, 6 and 4 bytes long; no IPv4 address is known.
    let head = [0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3];
    let mac = mac.0;
    let parts: [&[u8]; 6] = [&[0xff; 6], &mac, &head, &mac, &[0; 4], &mac];
    let mut frame = [0; RARP_LEN];
    for (place, byte) in frame.iter_mut().zip(parts.concat()) {
        *place = byte;
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::announces_sender;

    fn at(millis: u64) -> Instant {
        Instant::from_millis(1000 + millis)
    }

    /// The times at which frames are due, of a loop that wakes when it is told to.
    fn due(arrival: &mut Arrival, from: u64) -> Vec<u64> {
        let mut times = Vec::new();
        let mut now = at(from);
        loop {
            if arrival.take_due(now) {
                times.push((now - at(0)).as_millis() as u64);
            }
            let Some(next) = arrival.poll_timeout() else { return times };
            now = now.max(next);
        }
    }

    #[test]
    fn rings_that_go_on_are_an_arrival() {
        let mut arrival = Arrival::default();
        for indices in [[0, 7], [7, 0]] {
            arrival.rings_started();
            assert!(arrival.is_unsettled());
            arrival.settle(indices, at(0));
            assert!(!arrival.is_unsettled());
            assert_eq!(due(&mut arrival, 0), [0, 4, 12, 50, 200, 450, 800]);
        }
    }

    #[test]
    fn rings_that_begin_are_none_unless_the_frontend_says_so() {
        let mut arrival = Arrival::default();
        arrival.rings_started();
        arrival.settle([0, 0], at(0));
        assert!(due(&mut arrival, 0).is_empty());
        arrival.rings_stopped();
        arrival.told(false, at(0));
        assert!(due(&mut arrival, 0).is_empty(), "nothing before the rings start");
        arrival.rings_started();
        arrival.settle([0, 0], at(10));
        assert_eq!(due(&mut arrival, 10), [10, 14, 22, 60, 210, 460, 810]);
    }

    #[test]
    fn being_told_again_begins_no_second_series() {
        let mut arrival = Arrival::default();
        arrival.rings_started();
        arrival.settle([1, 1], at(0));
        assert!(arrival.take_due(at(0)));
        arrival.told(true, at(40));
        assert_eq!(due(&mut arrival, 40), [40, 50, 200, 450, 800]);
        arrival.told(true, at(5000));
        assert_eq!(due(&mut arrival, 5000).len(), 7);
    }

    #[test]
    fn one_stands_for_all_that_are_overdue() {
        let mut arrival = Arrival::default();
        arrival.settle([1, 1], at(0));
        assert_eq!(due(&mut arrival, 300), [300, 450, 800]);
        arrival.settle([1, 1], at(0));
        arrival.rings_stopped();
        assert!(due(&mut arrival, 0).is_empty(), "it is gone again");
    }

    #[test]
    fn the_frame_is_a_rarp_request() {
        let mac = Mac([0x52, 0x54, 0, 0, 0, 1]);
        let frame = rarp(mac);
        assert!(announces_sender(&frame));
        let expected = "ffffffffffff 525400000001 8035 0001 0800 06 04 0003 \
            525400000001 00000000 525400000001 00000000";
        let hex: String = frame[..42].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, expected.replace(' ', ""));
    }
}
