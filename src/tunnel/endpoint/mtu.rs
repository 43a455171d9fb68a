//! Path MTUs: frames and datagrams that are longer than their path.
//!
//! | When | What happens |
//! |---|---|
//! | a frame is longer than the path | its sender is told, or it leaves in pieces, see [`Endpoint::send_too_long`] |
//! | a router says that the path is narrower | the table of paths learns it; what was under way is lost, as in any network |
//! | the kernel refuses a datagram for its length | the table learns it; the datagram leaves in pieces, sealed again if it was |
//!
//! The kernel tells the next call on a socket, whatever it is for, of an ICMP error that came for an
//! earlier datagram. So behind every error the socket's reports are read, and if there were such, the
//! call is made again.

use std::io;
use std::net::IpAddr;

use super::Endpoint;
use crate::metrics::VifCounter;
use crate::offload::fragment::Split;
use crate::sys::iovec::{Gather, IoVec};
use crate::sys::mmsg::{BATCH, Message};
use crate::time::Instant;
use crate::tunnel::outgoing::pieces::{reopen, takes_pieces};
use crate::tunnel::outgoing::{Batch, Route, Staged, Step};
use crate::tunnel::paths::{self, Source};
use crate::underlay::Underlay;
use crate::wire::encap;

/// Reports read at a time; while more wait, the socket polls as in error.
const MAX_REPORTS: usize = 64;

/// What was reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reports {
    /// By the kernel itself, of the datagram at hand.
    local: usize,
    /// By ICMP, of earlier ones.
    icmp: usize,
}

impl Reports {
    /// Whether an error was that of an earlier datagram.
    pub(super) const fn are_stale(self) -> bool {
        self.icmp > 0 && self.local == 0
    }

    /// Whether there were any.
    pub(super) const fn is_empty(self) -> bool {
        self.icmp == 0 && self.local == 0
    }
}

impl<U: Underlay> Endpoint<U> {
    /// The longest datagram to a destination, in bytes; before it is sealed, if it is to be.
    pub fn max_datagram(&self, route: &Route, now: Instant) -> usize {
        let max = self.path_room(route, now);
        self.envelope(route).room_in(max)
    }

    /// The longest datagram that the path to a destination takes, as it leaves, in bytes.
    fn path_room(&self, route: &Route, now: Instant) -> usize {
        let to = route.to.ip();
        let link = self.place.max_datagram.min(paths::room(to, route.longest));
        self.paths.max_datagram(to, link, now)
    }

    /// The socket that frames leave from polls as in error. Returns whether there were reports.
    pub fn handle_reports(&mut self, now: Instant) -> bool {
        !self.heed_reports(now).is_empty()
    }

    /// Reads what the kernel has to say of datagrams that were sent.
    pub(super) fn heed_reports(&mut self, now: Instant) -> Reports {
        let mut reports = Reports::default();
        for _ in 0..MAX_REPORTS {
            let Some(report) = self.underlay.take_report() else { break };
            if report.is_local {
                reports.local += 1;
            } else {
                reports.icmp += 1;
            }
            if report.errno == libc::EMSGSIZE {
                let source = if report.is_local { Source::Kernel } else { Source::Router };
                self.learn_path(report.to, report.mtu, source, now);
            } else if !report.is_local {
                self.counters.inc(VifCounter::path_errors);
            }
        }
        reports
    }

    fn learn_path(&mut self, to: IpAddr, mtu: u32, source: Source, now: Instant) {
        if let Some(mtu) = self.paths.learn(to, mtu, source, now) {
            self.counters.inc(VifCounter::path_mtu_changes);
            let level = match self.path_news.level(now) {
                log::Level::Warn => log::Level::Info,
                quiet => quiet,
            };
            log::log!(level, "the path MTU to {to} is {mtu} bytes");
        }
    }

    /// Sends the frame at `at`, which is longer than its path and can't be cut, in pieces, unless its
    /// sender is told to send less.
    pub(super) fn send_too_long(&mut self, batch: &Batch<'_>, at: usize, now: Instant) {
        let Some(frame) = batch.frames.get(at) else { return };
        let max_datagram = self.max_datagram(&frame.route, now);
        let max_frame = max_datagram.saturating_sub(encap::LEN);
        let lead = batch.lead(frame);
        // To a group nobody can send less: each member has its own length.
        let is_carried = frame.route.is_group
            || self.feedback.is_carried(
                lead,
                frame.len,
                max_frame,
                takes_pieces(&frame.route),
                now,
            );
        let dropped = if is_carried {
            self.send_pieces(batch, at, max_datagram, now)
        } else {
            Some(VifCounter::tx_drop_too_big)
        };
        match dropped {
            None => self.counters.inc(VifCounter::tx_fragmented),
            Some(counter) => self.refuse_at(at, batch, counter),
        }
    }

    /// Stages a frame in pieces; returns why not, if so.
    fn send_pieces(
        &mut self,
        batch: &Batch<'_>,
        at: usize,
        max_datagram: usize,
        now: Instant,
    ) -> Option<VifCounter> {
        loop {
            match self.stager.stage_pieces(batch, at, max_datagram, &mut self.frame_ids) {
                Step::Done(_) => return None,
                Step::Full if !self.stager.staged().is_empty() => self.flush(batch, now),
                // Larger than the empty buffer.
                Step::Full => return Some(VifCounter::tx_drop_too_big),
                Step::Refused(counter) => return Some(counter),
            }
        }
    }

    /// Sends a datagram that the kernel refused for its length in pieces; false if that was not why,
    /// or the receiver takes none.
    pub(super) fn split_refused(
        &mut self,
        error: &io::Error,
        staged: &Staged,
        datagram: &Message<'_>,
        batch: &Batch<'_>,
        now: Instant,
    ) -> bool {
        if error.raw_os_error() != Some(libc::EMSGSIZE) {
            return false;
        }
        let len = len_of(datagram);
        if len <= self.path_room(&staged.route, now) {
            // No report: they need room in the socket's receive buffer.
            let to = staged.route.to.ip();
            let Some(mtu) = paths::guess(to, len) else { return false };
            self.learn_path(to, mtu, Source::Router, now);
        }
        self.split(staged, datagram, batch, now)
    }

    /// Sends a datagram that is longer than its path in pieces; false if it is not, or the receiver
    /// takes none.
    fn split(
        &mut self,
        staged: &Staged,
        datagram: &Message<'_>,
        batch: &Batch<'_>,
        now: Instant,
    ) -> bool {
        let len = len_of(datagram);
        if len <= self.path_room(&staged.route, now) || !takes_pieces(&staged.route) {
            return false;
        }
        let mut bytes = vec![0; len];
        Gather::new(datagram.parts, 0).copy_to(&mut bytes);
        let max_datagram = self.max_datagram(&staged.route, now);
        let Some(pieces) = self.pieces_of(&mut bytes, staged, max_datagram) else {
            return false;
        };
        self.counters.inc(VifCounter::tx_fragmented);
        let mut staged = staged.clone();
        staged.datagrams = pieces.len();
        match self.send_all(pieces.iter().map(Vec::as_slice), datagram) {
            Ok(()) => self.count_sent(&staged, batch),
            Err(error) => drop(self.count_refused(&error, &[staged], batch, now)),
        }
        true
    }

    /// The datagrams of the pieces of one that was too long, sealed again if that was.
    fn pieces_of(
        &mut self,
        datagram: &mut [u8],
        staged: &Staged,
        max_datagram: usize,
    ) -> Option<Vec<Vec<u8>>> {
        let to = staged.route.to;
        let mut protection = self.protection.as_mut().filter(|_| staged.is_sealed);
        let inner = match &mut protection {
            Some(protection) => protection.reopen(to, datagram)?,
            None => 0..datagram.len(),
        };
        let (header, whole) = reopen(datagram.get(inner)?, &mut self.frame_ids)?;
        let split = Split::new(whole.bytes.len(), max_datagram)?;
        let mut pieces = vec![0; split.datagrams_len(&(0..split.count()))];
        split.write(header, &whole, 0..split.count(), &mut pieces)?;
        let pieces = pieces.chunks(split.datagram());
        match protection {
            Some(protection) => pieces.map(|piece| protection.seal_one(to, piece)).collect(),
            None => Some(pieces.map(<[u8]>::to_vec).collect()),
        }
    }

    /// Sends datagrams to where `like` goes; ends at the first that is refused.
    pub(super) fn send_all<'d>(
        &mut self,
        datagrams: impl Iterator<Item = &'d [u8]>,
        like: &Message<'_>,
    ) -> io::Result<()> {
        let parts: Vec<[IoVec<'_>; 1]> = datagrams.map(|d| [IoVec::from_slice(d)]).collect();
        for parts in parts.chunks(BATCH) {
            let messages: Vec<Message<'_>> =
                parts.iter().map(|parts| Message { parts, segment: 0, ..*like }).collect();
            let mut left = messages.as_slice();
            while !left.is_empty() {
                let sent = self.underlay.send(left)?.clamp(1, left.len());
                left = left.get(sent..).unwrap_or_default();
            }
        }
        Ok(())
    }
}

/// Length of a message, in bytes.
fn len_of(message: &Message<'_>) -> usize {
    message.parts.iter().map(IoVec::len).sum()
}
