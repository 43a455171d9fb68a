//! Frames that were received and accepted, and wait for the guest's buffers.
//!
//! A batch of messages is unpacked at once: each datagram checked, bundles opened, what is not for
//! this vif dropped and counted. What stays is a list of places in the received bytes, so that a
//! guest without buffers costs nothing but patience, and neighbours can be merged by looking ahead.
//! Frames for a MAC that has left are set aside, to be sent on.

use std::io;

use super::departed::{Departures, Verdict};
use super::learnt::Learnt;
use super::neighbors::Neighbors;
use super::rx::{Addressee, Payload, Receiver};
use crate::metrics::{VifCounter, VifCounters};
use crate::offload::bundle::Entry;
use crate::offload::gro::Received;
use crate::sys::mmsg::ReceiveBatch;
use crate::time::Instant;
use crate::underlay::{Port, Underlay};
use crate::wire::CareOf;
use crate::wire::frame::Addresses;

/// Where a frame is.
#[derive(Clone, Copy, Debug)]
struct Place {
    start: u16,
    len: u16,
    message: u8,
    is_partial: bool,
    is_group: bool,
}

/// A frame for a MAC that has left.
#[derive(Clone, Debug)]
pub struct Detour {
    /// Where it is now.
    pub coa: CareOf,
    /// The frame.
    pub frame: Vec<u8>,
    /// Whether its transport checksum is partial.
    pub is_partial: bool,
}

/// Whose frames are taken here.
#[derive(Debug)]
pub struct Home<'a> {
    /// The vif.
    pub receiver: &'a Receiver,
    /// Where others are.
    pub neighbors: &'a Neighbors,
    /// What is behind the vif.
    pub learnt: &'a Learnt,
    /// What has left.
    pub departures: &'a mut Departures,
    /// The time.
    pub now: Instant,
}

/// The frames of one batch that have not been delivered.
#[derive(Debug, Default)]
pub struct Incoming {
    batch: ReceiveBatch,
    places: Vec<Place>,
    detours: Vec<Detour>,
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
        home: &mut Home<'_>,
        counters: &VifCounters,
    ) -> io::Result<()> {
        self.clear();
        underlay.receive(port, &mut self.batch)?;
        for message in 0..self.batch.len() {
            let Some(received) = self.batch.get(message) else { break };
            let (places, detours) = (&mut self.places, &mut self.detours);
            let (from, within) = (received.from, received.bytes);
            let mut unpack =
                Unpack { port, from, home, counters, within, message, places, detours };
            received.datagrams().for_each(|datagram| unpack.datagram(datagram));
        }
        Ok(())
    }

    /// The kernel's count of datagrams lost for want of room, if this batch brought news of it.
    pub fn take_overflow(&mut self) -> Option<u32> {
        self.batch.overflow.take()
    }

    /// Whether the batch brought frames for MACs that have left.
    pub fn has_detours(&self) -> bool {
        !self.detours.is_empty()
    }

    /// Takes them.
    pub fn take_detours(&mut self) -> Vec<Detour> {
        std::mem::take(&mut self.detours)
    }

    /// The n-th frame that waits.
    pub fn get(&self, n: usize) -> Option<Received<'_>> {
        let place = self.places.get(self.next + n)?;
        let message = self.batch.get(place.message.into())?;
        let start = usize::from(place.start);
        let bytes = message.bytes.get(start..start + usize::from(place.len))?;
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
struct Unpack<'a, 'h> {
    port: Port,
    from: std::net::SocketAddr,
    home: &'a mut Home<'h>,
    counters: &'a VifCounters,
    /// The whole message, to tell where in it a frame is.
    within: &'a [u8],
    message: usize,
    places: &'a mut Vec<Place>,
    detours: &'a mut Vec<Detour>,
}

impl Unpack<'_, '_> {
    fn datagram(&mut self, datagram: &[u8]) {
        match self.home.receiver.accept(self.port, self.from, datagram) {
            Ok(Payload::Frame(entry)) => self.frame(entry),
            Ok(Payload::Bundle(entries)) => {
                for entry in entries {
                    match entry {
                        Ok(entry) => self.frame(entry),
                        Err(_) => self.counters.inc(VifCounter::rx_drop_bundle),
                    }
                }
            }
            Err(counter) => self.counters.inc(counter),
        }
    }

    fn frame(&mut self, entry: Entry<'_>) {
        let is_group = match self.admit(entry) {
            Ok(Some(is_group)) => is_group,
            Ok(None) => return,
            Err(counter) => return self.counters.inc(counter),
        };
        let start = entry.frame.as_ptr().addr() - self.within.as_ptr().addr();
        // A message has at most 65,507 bytes, and a batch few messages.
        if let (Ok(start), Ok(len), Ok(message)) =
            (start.try_into(), entry.frame.len().try_into(), self.message.try_into())
        {
            let is_partial = entry.is_partial;
            self.places.push(Place { start, len, message, is_partial, is_group });
        }
    }

    /// Whether a frame is for a group, if it is to be delivered; sets it aside if it is to be sent
    /// on.
    fn admit(&mut self, entry: Entry<'_>) -> Result<Option<bool>, VifCounter> {
        let Home { receiver, neighbors, learnt, departures, now } = &mut *self.home;
        let addressee = receiver.accept_frame(self.port, entry.frame)?;
        let mac = match addressee {
            Addressee::Group => return Ok(Some(true)),
            Addressee::Vif => receiver.key.mac,
            Addressee::Other(mac) => mac,
        };
        if !departures.is_empty() {
            let source = Addresses::parse(entry.frame).map(|addresses| addresses.source);
            let sender = source.ok().and_then(|mac| neighbors.place_of(mac));
            match departures.judge(mac, self.from, sender, *now) {
                Some(Verdict::Forward(coa)) => {
                    let (frame, is_partial) = (entry.frame.to_vec(), entry.is_partial);
                    self.detours.push(Detour { coa, frame, is_partial });
                    return Ok(None);
                }
                Some(Verdict::Drop) => return Err(VifCounter::rx_drop_departed),
                None => {}
            }
        }
        match addressee {
            Addressee::Vif => Ok(Some(false)),
            Addressee::Other(mac) if learnt.has(mac) => Ok(Some(false)),
            _ => Err(VifCounter::rx_drop_destination),
        }
    }
}
