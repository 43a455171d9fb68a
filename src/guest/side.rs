//! One queue pair of a guest: reads frames from it, and delivers and counts frames for it.
//!
//! The device owns rings and memory, and lends them for the length of a wake-up. The guest side
//! counts frames when the guest sees them ([`GuestSide::publish`]).

use std::sync::Arc;

use super::frames::{Frames, GuestFrame, Handed, Origin, Outcome, Pace};
use super::receiving::{ReceiveRing, Receiving, Tally, total_len};
use super::ring::RingView;
use super::transmit::{self, TransmitFrame};
use super::{HeaderLayout, MODERN_HEADER_LEN, Malformed};
use crate::capture::Door;
use crate::metrics::{VifCounter, VifCounters};
use crate::offload::features::Offloads;
use crate::offload::gro::Merger;
use crate::offload::header::Header;
use crate::sys::iovec::IoVec;
use crate::vhost_user::vring::RingError;

/// Limit on received frames that become one frame.
const MERGED_FRAMES: usize = 64;
/// Limit on the length of a frame for a guest, in bytes: drivers that accept TSO have room for
/// this.
pub const MERGED_LEN: usize = 65_550;

/// The virtio side of a queue pair.
#[derive(Debug)]
pub struct GuestSide {
    offloads: Offloads,
    merger: Merger,
    receiving: Receiving,
}

impl GuestSide {
    /// A guest that has acknowledged no features.
    pub fn new(counters: Arc<VifCounters>) -> Self {
        let layout = HeaderLayout { len: MODERN_HEADER_LEN, mergeable: false };
        let tally = Tally::default();
        Self {
            offloads: Offloads::NONE,
            merger: Merger::new(Offloads::NONE, MERGED_FRAMES, MERGED_LEN),
            receiving: Receiving {
                counters,
                layout,
                tally,
                is_starved: false,
                door: Door::default(),
            },
        }
    }

    /// Sets the features that the driver has acknowledged.
    pub fn set_features(&mut self, layout: HeaderLayout, offloads: Offloads) {
        self.receiving.layout = layout;
        self.offloads = offloads;
        self.merger = Merger::new(offloads, MERGED_FRAMES, MERGED_LEN);
    }

    /// The offloads that the driver has acknowledged.
    pub fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// Length of the virtio-net header, in bytes.
    pub fn header_len(&self) -> usize {
        self.receiving.layout.len
    }

    /// Merges frames as this guest accepts them.
    pub fn merger(&mut self) -> &mut Merger {
        &mut self.merger
    }

    /// Whether a frame found no buffers since the last [`GuestSide::deliver_all`].
    pub fn is_starved(&self) -> bool {
        self.receiving.is_starved
    }

    /// The rings started or stopped: no frame waits for buffers.
    pub fn handle_ring_state(&mut self) {
        self.receiving.is_starved = false;
    }

    /// Sets the door where frames for the guest are shown.
    pub fn set_door(&mut self, door: Door) {
        self.receiving.door = door;
    }

    /// Whether somebody looks at the frames for the guest.
    pub fn is_observed(&self) -> bool {
        self.receiving.door.is_open()
    }

    /// Drops a frame for the guest; it counts as `counter`.
    pub fn refuse(&self, parts: &[IoVec<'_>], counter: VifCounter) {
        self.receiving.refuse(parts, counter);
    }

    /// Reads the transmit chain that begins with `head`; see [`transmit::read_frame`].
    ///
    /// # Errors
    /// The chain is no frame. That is counted.
    #[inline]
    pub fn read<'m: 'b, 'b>(
        &self,
        ring: &mut RingView<'_, 'm>,
        head: u16,
        pieces: &mut Vec<IoVec<'b>>,
        frame: &mut TransmitFrame,
    ) -> Result<(), Malformed> {
        let Receiving { layout, counters, .. } = &self.receiving;
        transmit::read_frame(ring, head, layout.len, pieces, frame)
            .inspect_err(|_| counters.inc(VifCounter::tx_drop_malformed))
    }

    /// Delivers a frame. The guest sees it after [`GuestSide::publish`].
    ///
    /// # Errors
    /// The ring is broken and must be stopped.
    pub fn deliver(
        &mut self,
        ring: &mut ReceiveRing<'_, '_>,
        frame: &GuestFrame<'_, '_>,
    ) -> Result<Handed, RingError> {
        self.receiving.deliver(ring, frame)
    }

    /// Delivers frames in order, neighbours merged as far as the guest accepts that, while `pace`
    /// admits them. The guest sees them after [`GuestSide::publish`].
    ///
    /// # Errors
    /// The ring is broken and must be stopped.
    pub fn deliver_all(
        &mut self,
        ring: &mut ReceiveRing<'_, '_>,
        frames: &mut impl Frames,
        pace: &mut impl Pace,
    ) -> Result<Outcome, RingError> {
        let Self { merger, receiving, .. } = self;
        receiving.is_starved = false;
        let mut most = usize::MAX;
        while let Some(merged) = merger.merge(|n| if n < most { frames.get(n) } else { None }) {
            if !pace.admits() {
                return Ok(Outcome::Held);
            }
            let Ok(merged) = merged else {
                receiving.refuse_first(frames, VifCounter::rx_drop_checksum);
                continue;
            };
            let payload = |n| {
                let frame = frames.get(n);
                IoVec::from_slice(frame.map_or(&[], |frame| merged.payload_of(&frame)))
            };
            let head = IoVec::from_slice(merged.head);
            let (header, count) = (&merged.header, merged.frames);
            let (origin, is_group) = frames.first();
            let (handed, len) = if count == 1 {
                let parts = &[head, payload(0)];
                let frame = GuestFrame { header, parts, origin, is_group };
                (receiving.deliver(ring, &frame)?, total_len(parts))
            } else {
                let payloads = (0..count).map(payload);
                let parts: Vec<IoVec<'_>> = std::iter::once(head).chain(payloads).collect();
                let frame = GuestFrame { header, parts: &parts, origin, is_group };
                (receiving.deliver(ring, &frame)?, total_len(&parts))
            };
            match handed {
                Handed::Done => {
                    pace.charge(len);
                    frames.delivered(count, len);
                }
                // The guest's whole ring holds less: not merged, the frames may fit.
                Handed::TooLong if count > 1 => most = 1,
                Handed::TooLong => {
                    receiving.refuse_first(frames, VifCounter::rx_drop_no_buffer);
                }
                Handed::Starved => return Ok(Outcome::Starved),
                Handed::Interrupted => return Ok(Outcome::Interrupted),
            }
        }
        Ok(Outcome::All)
    }

    /// Reserves room for a frame of up to `len` bytes, for others to write it there. Until
    /// [`GuestSide::commit`] or [`ReceiveRing::release`] follows, nothing else may be done with the
    /// ring. [`Handed::Interrupted`] if it is worth another try.
    ///
    /// # Errors
    /// The ring is broken and must be stopped.
    pub fn reserve(
        &mut self,
        ring: &mut ReceiveRing<'_, '_>,
        len: usize,
    ) -> Result<Handed, RingError> {
        let layout = self.receiving.layout;
        let failure = ring.deliverer.reserve(&mut ring.ring, len, layout)?;
        failure.map_or(Ok(Handed::Done), |failure| self.receiving.note(ring, failure))
    }

    /// Delivers a frame from another host in the room that was reserved; see
    /// [`super::deliver::Deliverer::commit`]. It is not shown at the door.
    ///
    /// # Errors
    /// The ring is broken and must be stopped.
    pub fn commit(
        &mut self,
        ring: &mut ReceiveRing<'_, '_>,
        header: &Header,
        head: &[u8],
        len: usize,
    ) -> Result<(), RingError> {
        let Receiving { layout, tally, .. } = &mut self.receiving;
        ring.deliverer.commit(&mut ring.ring, header, head, len, *layout)?;
        tally.add(Origin::Tunnel, len, false);
        tally.direct_frames += 1;
        Ok(())
    }

    /// Shows the guest the delivered frames, and counts them.
    ///
    /// # Errors
    /// The ring is broken and must be stopped. What was delivered is counted.
    pub fn publish(&mut self, ring: &mut ReceiveRing<'_, '_>) -> Result<(), RingError> {
        self.receiving.count();
        ring.ring.publish()
    }
}
