//! Frames that were received and accepted, and wait for the guest's buffers.
//!
//! A batch of messages is unpacked at once: each datagram checked, bundles opened, what is not for
//! this vif dropped and counted. What stays is a list of places in the received bytes, so that a
//! guest without buffers costs nothing but patience, and neighbours can be merged by looking ahead.
//! Pieces wait in [`Reassembly`]; what they make up joins the list in the place of the last of them.
//! Frames for a MAC that has left are set aside, to be sent on.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;

use crate::capture::{self, Door, Observed};
use crate::metrics::{VifCounter, VifCounters};
use crate::offload::bundle::Entry;
use crate::offload::gro::Received;
use crate::sys::iovec::IoVec;
use crate::sys::mmsg::ReceiveBatch;
use crate::time::Instant;
use crate::tunnel::moved::{MovedMacs, Verdict};
use crate::tunnel::neighbors::Neighbors;
use crate::tunnel::protect::Opening;
use crate::tunnel::reassembly::Reassembly;
use crate::tunnel::rx::{Addressee, Payload, Receiver};
use crate::underlay::{Port, Underlay};
use crate::wire::CareOf;
use crate::wire::encap::{Flags, Kind};
use crate::wire::frame::Addresses;

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
    /// Whether unicast to other MACs is accepted.
    pub takes_unknown: bool,
    /// MACs that were here.
    pub moved: &'a mut MovedMacs,
    /// Frames that are refused are shown here.
    pub door: &'a Door,
    /// The time.
    pub now: Instant,
}

/// Echoes that wait to be answered.
const MAX_ECHOES: usize = 256;

/// The frames of one batch that have not been delivered.
#[derive(Debug, Default)]
pub struct Incoming {
    batch: ReceiveBatch,
    reassembly: Reassembly,
    joined: Vec<Vec<u8>>,
    places: Vec<Place>,
    detours: Vec<Detour>,
    next: usize,
    /// Where opened datagrams of one message are.
    opened: Vec<Range<usize>>,
    handovers: Vec<(SocketAddr, u32)>,
    /// Questions of other hosts.
    echoes: Vec<(SocketAddr, Vec<u8>)>,
    /// Who sent under another policy.
    misfit: Option<SocketAddr>,
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
        opening: Option<Opening<'_>>,
    ) -> io::Result<()> {
        self.clear();
        underlay.receive(port, &mut self.batch)?;
        self.unpack(port, home, counters, opening);
        Ok(())
    }

    /// Takes a message that was received elsewhere: its sender, its bytes, and the length of each datagram
    /// but the last. Nothing may be waiting.
    pub fn put(
        &mut self,
        port: Port,
        (from, bytes, segment): (SocketAddr, &[u8], usize),
        home: &mut Home<'_>,
        counters: &VifCounters,
    ) {
        self.clear();
        self.batch.clear();
        self.batch.push(from, bytes, segment);
        self.unpack(port, home, counters, None);
    }

    fn unpack(
        &mut self,
        port: Port,
        home: &mut Home<'_>,
        counters: &VifCounters,
        opening: Option<Opening<'_>>,
    ) {
        let now = home.now;
        let Self { batch, reassembly, joined, places, detours, handovers, .. } = self;
        let Self { echoes, opened, misfit, .. } = self;
        let unfit = match opening {
            None => Some(Kind::Protected),
            Some(opening) => (!opening.takes_plain()).then_some(Kind::Plain),
        };
        for message in (0..u16::MAX).take(batch.len()) {
            if let Some(received) = batch.get(message.into())
                && Some(Kind::of(received.bytes)) == unfit
                && received.from != home.receiver.own
            {
                misfit.get_or_insert(received.from);
            }
            if let (Some(opening), Some(received)) = (opening, batch.get_mut(message.into())) {
                let own = home.receiver.own;
                opening.open_message(port, own, received, opened, counters);
            }
            let Some(received) = batch.get(message.into()) else { break };
            let (from, bytes) = (received.from, (Within::Message(message), received.bytes));
            let mut unpack = Unpack { port, from, home, counters, places, detours };
            let mut take = |datagram| match unpack.home.receiver.accept(port, from, datagram) {
                Ok(Payload::Piece(flags, piece)) => {
                    let whole = reassembly.add(from, flags, &piece, now);
                    whole.into_iter().for_each(|whole| unpack.joined(flags, whole, joined));
                }
                Ok(Payload::Handover(lane)) => handovers.push((from, lane)),
                Ok(Payload::Echo(_)) if echoes.len() >= MAX_ECHOES => {
                    counters.inc(VifCounter::tx_drop_echo);
                }
                Ok(Payload::Echo(question)) => echoes.push((from, question.to_vec())),
                payload => unpack.payload(payload, bytes),
            };
            match opening {
                Some(_) => {
                    let opened = opened.iter().filter_map(|inner| bytes.1.get(inner.clone()));
                    opened.for_each(take);
                }
                None => received.datagrams().for_each(&mut take),
            }
        }
        self.count_dropped_pieces(counters);
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

    /// Whether the last batch was full, so that the socket may hold more.
    pub fn was_full(&self) -> bool {
        self.batch.is_full()
    }

    /// The kernel's count of datagrams lost for want of room, if this batch brought news of it.
    pub fn take_overflow(&mut self) -> Option<u32> {
        self.batch.overflow.take()
    }

    /// Takes the first sender whose datagrams were dropped because they came under another policy.
    pub fn take_misfit(&mut self) -> Option<SocketAddr> {
        self.misfit.take()
    }

    /// Whether the batch brought frames for MACs that have left.
    pub fn has_detours(&self) -> bool {
        !self.detours.is_empty()
    }

    /// Takes them.
    pub fn take_detours(&mut self) -> Vec<Detour> {
        std::mem::take(&mut self.detours)
    }

    /// Handovers among the datagrams that were read, for when all that was read is delivered.
    pub fn take_handovers(&mut self) -> impl Iterator<Item = (SocketAddr, u32)> + use<> {
        std::mem::take(&mut self.handovers).into_iter()
    }

    /// Whether echoes of other hosts wait.
    pub const fn has_echoes(&self) -> bool {
        !self.echoes.is_empty()
    }

    /// Echoes among the datagrams that were read, and who sent them.
    pub fn take_echoes(&mut self) -> Vec<(SocketAddr, Vec<u8>)> {
        std::mem::take(&mut self.echoes)
    }

    /// The n-th frame that waits.
    pub fn get(&self, n: usize) -> Option<Received<'_>> {
        let place = self.places.get(self.next + n)?;
        let within = match place.within {
            Within::Message(n) => self.batch.get(n.into())?.bytes,
            Within::Joined(n) => self.joined.get(usize::from(n))?,
        };
        let bytes = within.get(place.start as usize..)?.get(..place.len as usize)?;
        Some(Received::whole(bytes, place.is_partial))
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

/// What unpacking datagrams of one sender needs.
struct Unpack<'a, 'h> {
    port: Port,
    from: SocketAddr,
    home: &'a mut Home<'h>,
    counters: &'a VifCounters,
    places: &'a mut Vec<Place>,
    detours: &'a mut Vec<Detour>,
}

impl Unpack<'_, '_> {
    /// Notes the frames of a datagram, which is somewhere in `bytes`.
    fn payload(&mut self, payload: Result<Payload<'_>, VifCounter>, bytes: (Within, &[u8])) {
        match payload {
            Ok(Payload::Frame(entry)) => self.frame(entry, bytes),
            Ok(Payload::Bundle(entries)) => {
                for entry in entries {
                    match entry {
                        Ok(entry) => self.frame(entry, bytes),
                        Err(_) => self.counters.inc(VifCounter::rx_drop_bundle),
                    }
                }
            }
            // What pieces make up is neither a piece nor a handover nor an echo.
            Ok(Payload::Piece(..) | Payload::Handover(_) | Payload::Echo(_)) => {
                self.counters.inc(VifCounter::rx_drop_fragment);
            }
            Err(counter) => self.counters.inc(counter),
        }
    }

    /// Notes the frames of what pieces have made up, and keeps it.
    fn joined(&mut self, flags: Flags, whole: Vec<u8>, joined: &mut Vec<Vec<u8>>) {
        self.counters.inc(VifCounter::rx_reassembled);
        // A batch has no more datagrams than that.
        let Ok(number) = joined.len().try_into() else { return };
        self.payload(Payload::open(flags, &whole), (Within::Joined(number), &whole));
        joined.push(whole);
    }

    fn frame(&mut self, entry: Entry<'_>, (within, bytes): (Within, &[u8])) {
        let is_group = match self.admit(entry) {
            Ok(Some(is_group)) => is_group,
            Ok(None) => return,
            Err(counter) => {
                self.counters.inc(counter);
                let parts = &[IoVec::from_slice(entry.frame)];
                let verdict = capture::Verdict::Dropped(counter);
                return self.home.door.show(|| Observed::whole(parts, verdict));
            }
        };
        let start = entry.frame.as_ptr().addr() - bytes.as_ptr().addr();
        // Neither a message nor a frame is longer than 2^17 bytes.
        if let (Ok(start), Ok(len)) = (start.try_into(), entry.frame.len().try_into()) {
            let is_partial = entry.is_partial;
            self.places.push(Place { start, len, within, is_partial, is_group });
        }
    }

    /// Whether a frame is for a group, if it is to be delivered; sets it aside if it is to be sent
    /// on.
    fn admit(&mut self, entry: Entry<'_>) -> Result<Option<bool>, VifCounter> {
        let Home { receiver, neighbors, takes_unknown, moved, now, .. } = &mut *self.home;
        let addressee = receiver.accept_frame(self.port, entry.frame)?;
        let mac = match addressee {
            Addressee::Group => return Ok(Some(true)),
            Addressee::Vif => receiver.key.mac,
            Addressee::Other(mac) => mac,
        };
        if !moved.is_empty() {
            let source = Addresses::parse(entry.frame).map(|addresses| addresses.source);
            let sender = source.ok().and_then(|mac| neighbors.place_of(mac));
            match moved.judge(mac, self.from, sender, *now) {
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
            Addressee::Other(_) if *takes_unknown => Ok(Some(false)),
            _ => Err(VifCounter::rx_drop_destination),
        }
    }
}
