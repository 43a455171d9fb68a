//! Frames that were received and accepted, and wait for the guest's buffers.
//!
//! A batch of messages is unpacked at once: each datagram checked, bundles opened, what is not for
//! this vif dropped and counted. What stays is a list of places in the received bytes, so that a
//! guest without buffers costs nothing but patience, and neighbours can be merged by looking ahead.

use std::io;
use std::net::SocketAddr;

use super::arrival;
use super::rx::{Payload, Receiver};
use crate::lane::{Lie, Reader};
use crate::metrics::{VifCounter, VifCounters};
use crate::offload::bundle::Entry;
use crate::offload::gro::Received;
use crate::sys::mmsg::ReceiveBatch;
use crate::underlay::{Port, Underlay};

/// Where a frame is.
#[derive(Clone, Copy, Debug)]
struct Place {
    start: u16,
    len: u16,
    message: u8,
    is_partial: bool,
    is_group: bool,
}

/// The frames of one batch that have not been delivered.
#[derive(Debug, Default)]
pub struct Incoming {
    batch: ReceiveBatch,
    places: Vec<Place>,
    next: usize,
    handovers: Vec<(SocketAddr, u32)>,
    /// Bytes out of a lane, if that is where the frames are from.
    chunk: Vec<u8>,
    is_local: bool,
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
    ) -> io::Result<()> {
        self.clear();
        self.is_local = false;
        underlay.receive(port, &mut self.batch)?;
        for message in 0..self.batch.len() {
            let Some(received) = self.batch.get(message) else { break };
            for datagram in received.datagrams() {
                let unpack = Unpack { port, receiver, counters, within: received.bytes, message };
                if let Some(lane) = unpack.datagram(received.from, datagram, &mut self.places) {
                    self.handovers.push((received.from, lane));
                }
            }
        }
        Ok(())
    }

    /// Takes the next frames of a lane, if they are short and ask for no more than those in
    /// datagrams; returns how many. Nothing may be waiting.
    ///
    /// # Errors
    /// The writer of the lane has broken its rules.
    pub fn fill_from_lane(
        &mut self,
        lane: &mut Reader,
        receiver: &Receiver,
        counters: &VifCounters,
    ) -> Result<usize, Lie> {
        self.clear();
        self.is_local = true;
        let Self { chunk, places, .. } = self;
        lane.take_short(chunk, |header, frame, start| {
            let Some(is_partial) = arrival::as_in_datagram(header, frame) else { return false };
            match receiver.accept_frame(Port::Own, frame) {
                Ok(is_group) => {
                    if let (Ok(start), Ok(len)) = (start.try_into(), frame.len().try_into()) {
                        places.push(Place { start, len, message: 0, is_partial, is_group });
                    }
                }
                Err(counter) => counters.inc(counter),
            }
            true
        })
    }

    /// Whether the frames that wait came through a lane.
    pub fn is_local(&self) -> bool {
        self.is_local
    }

    /// The kernel's count of datagrams lost for want of room, if this batch brought news of it.
    pub fn take_overflow(&mut self) -> Option<u32> {
        self.batch.overflow.take()
    }

    /// Handovers among the datagrams that were read, for when all that was read is delivered.
    pub fn take_handovers(&mut self) -> impl Iterator<Item = (SocketAddr, u32)> + use<> {
        std::mem::take(&mut self.handovers).into_iter()
    }

    /// The n-th frame that waits.
    pub fn get(&self, n: usize) -> Option<Received<'_>> {
        let place = self.places.get(self.next + n)?;
        let within = match self.is_local {
            true => &self.chunk,
            false => self.batch.get(place.message.into())?.bytes,
        };
        let start = usize::from(place.start);
        let bytes = within.get(start..start + usize::from(place.len))?;
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
        self.next = 0;
    }
}

/// What unpacking a message's datagrams needs.
struct Unpack<'a> {
    port: Port,
    receiver: &'a Receiver,
    counters: &'a VifCounters,
    /// The whole message, to tell where in it a frame is.
    within: &'a [u8],
    message: usize,
}

impl Unpack<'_> {
    /// Returns the number of a lane if the datagram is its handover.
    fn datagram(&self, from: SocketAddr, datagram: &[u8], places: &mut Vec<Place>) -> Option<u32> {
        match self.receiver.accept(self.port, from, datagram) {
            Ok(Payload::Frame(entry)) => self.frame(entry, places),
            Ok(Payload::Bundle(entries)) => {
                for entry in entries {
                    match entry {
                        Ok(entry) => self.frame(entry, places),
                        Err(_) => self.counters.inc(VifCounter::rx_drop_bundle),
                    }
                }
            }
            Ok(Payload::Handover(lane)) => return Some(lane),
            Err(counter) => self.counters.inc(counter),
        }
        None
    }

    fn frame(&self, entry: Entry<'_>, places: &mut Vec<Place>) {
        let is_group = match self.receiver.accept_frame(self.port, entry.frame) {
            Ok(is_group) => is_group,
            Err(counter) => return self.counters.inc(counter),
        };
        let start = entry.frame.as_ptr().addr() - self.within.as_ptr().addr();
        // A message has at most 65,507 bytes, and a batch few messages.
        if let (Ok(start), Ok(len), Ok(message)) =
            (start.try_into(), entry.frame.len().try_into(), self.message.try_into())
        {
            places.push(Place { start, len, message, is_partial: entry.is_partial, is_group });
        }
    }
}
