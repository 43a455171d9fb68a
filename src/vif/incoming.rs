//! Frames that were received and accepted, and wait for the guest's buffers.
//!
//! A batch of messages is unpacked at once: each datagram checked, bundles opened, what is not for
//! this vif dropped and counted. What stays is a list of places in the received bytes, so that a
//! guest without buffers costs nothing but patience, and neighbours can be merged by looking ahead.
//! Pieces wait in [`Reassembly`]; what they make up joins the list in the place of the last of them.

use std::io;

use super::reassembly::Reassembly;
use super::rx::{Payload, Receiver};
use crate::metrics::{VifCounter, VifCounters};
use crate::offload::bundle::Entry;
use crate::offload::gro::Received;
use crate::sys::mmsg::ReceiveBatch;
use crate::time::Instant;
use crate::underlay::{Port, Underlay};
use crate::wire::encap::Flags;

/// Where a frame is.
#[derive(Clone, Copy, Debug)]
struct Place {
    start: u32,
    len: u32,
    within: Within,
    is_partial: bool,
    is_group: bool,
}

/// The bytes that a frame is in.
#[derive(Clone, Copy, Debug)]
enum Within {
    /// A message, by its number in the batch.
    Message(u16),
    /// What pieces made up, by its number.
    Joined(u16),
}

/// The frames of one batch that have not been delivered.
#[derive(Debug, Default)]
pub struct Incoming {
    batch: ReceiveBatch,
    reassembly: Reassembly,
    joined: Vec<Vec<u8>>,
    places: Vec<Place>,
    next: usize,
}

impl Incoming {
    /// Receives a batch and unpacks it. Nothing may be waiting.
    ///
    /// # Errors
    /// The socket's; `WouldBlock` when nothing has arrived.
    pub fn fill(
        &mut self,
        port: Port,
        underlay: &mut impl Underlay,
        receiver: &Receiver,
        counters: &VifCounters,
        now: Instant,
    ) -> io::Result<()> {
        self.clear();
        underlay.receive(port, &mut self.batch)?;
        let Self { batch, reassembly, joined, places, .. } = self;
        let unpack = Unpack { port, receiver, counters };
        for message in (0..u16::MAX).take(batch.len()) {
            let Some(received) = batch.get(message.into()) else { break };
            for datagram in received.datagrams() {
                let bytes = (Within::Message(message), received.bytes);
                match receiver.accept(port, received.from, datagram) {
                    Ok(Payload::Piece(flags, piece)) => {
                        let whole = reassembly.add(received.from, flags, &piece, now);
                        whole.into_iter().for_each(|w| unpack.joined(flags, w, joined, places));
                    }
                    payload => unpack.payload(payload, bytes, places),
                }
            }
        }
        self.count_dropped_pieces(counters);
        Ok(())
    }

    /// Receives no more than about so many bytes at a time, but one message.
    pub fn bound(&mut self, bytes: u64) {
        self.batch.bound(bytes);
    }

    /// Gives up pieces that have waited too long for others.
    pub fn expire(&mut self, counters: &VifCounters, now: Instant) {
        self.reassembly.expire(now);
        self.count_dropped_pieces(counters);
    }

    /// The pieces that wait for others.
    pub fn reassembly(&self) -> &Reassembly {
        &self.reassembly
    }

    fn count_dropped_pieces(&mut self, counters: &VifCounters) {
        match self.reassembly.take_dropped() {
            0 => {}
            dropped => counters.add(VifCounter::rx_drop_fragment, dropped),
        }
    }

    /// The kernel's count of datagrams lost for want of room, if this batch brought news of it.
    pub fn take_overflow(&mut self) -> Option<u32> {
        self.batch.overflow.take()
    }

    /// The n-th frame that waits.
    pub fn get(&self, n: usize) -> Option<Received<'_>> {
        let place = self.places.get(self.next + n)?;
        let within = match place.within {
            Within::Message(n) => self.batch.get(n.into())?.bytes,
            Within::Joined(n) => self.joined.get(usize::from(n))?,
        };
        let bytes = within.get(place.start as usize..)?.get(..place.len as usize)?;
        Some(Received { bytes, is_partial: place.is_partial })
    }

    /// Whether the first frame that waits is for a group.
    pub fn is_group(&self) -> bool {
        self.places.get(self.next).is_some_and(|place| place.is_group)
    }

    /// Done with so many frames.
    pub fn take(&mut self, count: usize) {
        self.next += count;
    }

    /// How many frames wait.
    pub fn len(&self) -> usize {
        self.places.len().saturating_sub(self.next)
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets them.
    pub fn clear(&mut self) {
        self.places.clear();
        self.joined.clear();
        self.next = 0;
    }
}

/// What unpacking datagrams needs.
struct Unpack<'a> {
    port: Port,
    receiver: &'a Receiver,
    counters: &'a VifCounters,
}

impl Unpack<'_> {
    /// Notes the frames of a datagram, which is somewhere in `bytes`.
    fn payload(
        &self,
        payload: Result<Payload<'_>, VifCounter>,
        bytes: (Within, &[u8]),
        places: &mut Vec<Place>,
    ) {
        match payload {
            Ok(Payload::Frame(entry)) => self.frame(entry, bytes, places),
            Ok(Payload::Bundle(entries)) => {
                for entry in entries {
                    match entry {
                        Ok(entry) => self.frame(entry, bytes, places),
                        Err(_) => self.counters.inc(VifCounter::rx_drop_bundle),
                    }
                }
            }
            // What pieces make up is not a piece.
            Ok(Payload::Piece(..)) => self.counters.inc(VifCounter::rx_drop_fragment),
            Err(counter) => self.counters.inc(counter),
        }
    }

    /// Notes the frames of what pieces have made up, and keeps it.
    fn joined(
        &self,
        flags: Flags,
        whole: Vec<u8>,
        joined: &mut Vec<Vec<u8>>,
        places: &mut Vec<Place>,
    ) {
        self.counters.inc(VifCounter::rx_reassembled);
        // A batch has no more datagrams than that.
        let Ok(number) = joined.len().try_into() else { return };
        self.payload(Payload::open(flags, &whole), (Within::Joined(number), &whole), places);
        joined.push(whole);
    }

    fn frame(&self, entry: Entry<'_>, (within, bytes): (Within, &[u8]), places: &mut Vec<Place>) {
        let is_group = match self.receiver.accept_frame(self.port, entry.frame) {
            Ok(is_group) => is_group,
            Err(counter) => return self.counters.inc(counter),
        };
        let start = entry.frame.as_ptr().addr() - bytes.as_ptr().addr();
        // Neither a message nor a frame is longer than 2^17 bytes.
        if let (Ok(start), Ok(len)) = (start.try_into(), entry.frame.len().try_into()) {
            places.push(Place { start, len, within, is_partial: entry.is_partial, is_group });
        }
    }
}
