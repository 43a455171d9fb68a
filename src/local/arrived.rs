//! Short frames that come through a lane: taken many at a time, they wait for the guest, and are merged
//! like those that came in datagrams.

use super::unpacked;
use crate::guest::frames::{Frames, Origin};
use crate::lane::{Lie, Reader};
use crate::metrics::VifCounter;
use crate::offload::gro::Received;
use crate::tunnel::residents::Residents;

/// Where a frame is.
#[derive(Clone, Copy, Debug)]
struct Place {
    start: u32,
    len: u32,
    is_partial: bool,
    is_group: bool,
}

/// The short frames of one copy that have not been delivered.
#[derive(Debug, Default)]
pub struct Arrived {
    /// Bytes out of a lane.
    chunk: Vec<u8>,
    places: Vec<Place>,
    next: usize,
}

impl Arrived {
    /// Takes the next frames of a lane, if they are short and ask for no more than those in
    /// datagrams; returns how many. `dropped` is given each frame that is dropped, and why. Nothing may be
    /// waiting.
    ///
    /// # Errors
    /// The writer of the lane has broken its rules.
    pub fn fill(
        &mut self,
        lane: &mut Reader,
        residents: Residents<'_>,
        mut dropped: impl FnMut(&[u8], VifCounter),
    ) -> Result<usize, Lie> {
        self.clear();
        let Self { chunk, places, .. } = self;
        lane.take_short(chunk, |header, frame, start| {
            let Some(is_partial) = unpacked::as_in_datagram(header, frame) else { return false };
            match residents.accept(frame) {
                Ok(is_group) => {
                    // Neither is longer than a chunk.
                    if let (Ok(start), Ok(len)) = (start.try_into(), frame.len().try_into()) {
                        places.push(Place { start, len, is_partial, is_group });
                    }
                }
                Err(counter) => dropped(frame, counter),
            }
            true
        })
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

impl Frames for Arrived {
    fn get(&self, n: usize) -> Option<Received<'_>> {
        let place = self.places.get(self.next + n)?;
        let bytes = self.chunk.get(place.start as usize..)?.get(..place.len as usize)?;
        Some(Received::whole(bytes, place.is_partial))
    }

    fn first(&self) -> (Origin, bool) {
        let is_group = self.places.get(self.next).is_some_and(|place| place.is_group);
        (Origin::Lane, is_group)
    }

    fn delivered(&mut self, count: usize, _len: usize) {
        self.next += count;
    }

    fn dropped(&mut self, count: usize) {
        self.next += count;
    }
}
