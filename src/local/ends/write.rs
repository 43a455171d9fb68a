//! Frames to other vifs of this host: into the lane that leads there.

use std::net::SocketAddr;

use super::Local;
use crate::local::lanes::{LocalFrame, Written};
use crate::local::unpacked::MOST_SEGMENTS;
use crate::metrics::VifCounter;
use crate::offload::checksum::Sum;
use crate::offload::gso::Cut;
use crate::offload::header::{Header, Request};
use crate::sys::iovec::{Gather, IoVec};
use crate::time::Instant;
use crate::tunnel::outgoing::{Batch, Outgoing, cut_plain, refusal};
use crate::tunnel::pmtu_feedback::PmtuFeedback;
use crate::wire::frame;

/// The limits that a frame is held to.
#[derive(Debug)]
pub struct Limits<'a> {
    /// The longest frame that the vnet carries, in bytes.
    pub max_frame: usize,
    /// Informs the sender of a frame that exceeds it.
    pub feedback: &'a mut PmtuFeedback,
    /// Whether the frame may stay in the guest's ring if the lane is full.
    pub can_wait: bool,
}

impl Local {
    /// Whether a lane leads to a care-of address.
    #[inline]
    pub fn leads_to(&mut self, to: SocketAddr) -> bool {
        self.lanes.lead_to(to)
    }

    /// The frames in the guest's ring are looked at again, from the first.
    pub fn begin_batch(&mut self) {
        self.lanes.begin_batch();
    }

    /// Puts a frame into the lane to where it goes; its reader sees it after [`Local::publish`].
    ///
    /// # Errors
    /// The name of the drop.
    pub fn write(
        &mut self,
        outgoing: &Outgoing,
        batch: &Batch<'_>,
        limits: Limits<'_>,
        now: Instant,
    ) -> Result<Written, VifCounter> {
        let Limits { max_frame, feedback, can_wait } = limits;
        let header = match &outgoing.request {
            Request::Segment { layout, size } => {
                let lead = batch.lead(outgoing).unwrap_or_default();
                // As it would be cut for the underlay; but that is left to the receiver.
                let cut = Cut::new(lead, layout, *size, max_frame).map_err(refusal)?;
                if cut.count() > MOST_SEGMENTS {
                    return self.write_cut(&cut, outgoing, batch, now);
                }
                let size = u16::try_from(cut.size()).unwrap_or(u16::MAX);
                Header::merged(layout, size, layout.has_cwr(lead))
            }
            request => {
                if outgoing.len > max_frame {
                    if let Some(cut) = cut_plain(batch, outgoing, max_frame) {
                        return self.write_cut(&cut, outgoing, batch, now);
                    }
                    // It needs no pieces here.
                    let lead = batch.lead(outgoing);
                    if !feedback.is_carried(lead, outgoing.len, max_frame, true, now) {
                        return Err(VifCounter::tx_drop_too_big);
                    }
                }
                match request {
                    Request::Checksum { place, .. } => Header::partial_at(*place),
                    _ => Header::PLAIN,
                }
            }
        };
        let frame = LocalFrame {
            header: header.emit(0),
            addresses: outgoing.addresses,
            len: outgoing.len,
            rest: batch.gather(outgoing, frame::ADDRESSES_LEN),
            can_wait,
        };
        let outcome = self.lanes.write(outgoing.route.to, &frame, now, &self.counters);
        if outcome == Written::Done {
            self.sent.add(outgoing.len);
        }
        Ok(outcome)
    }

    /// A TCP frame that is too long, and that its guest did not want cut (see [`cut_plain`]), or one in
    /// more segments than are left to the reader. What there is no room for is lost.
    fn write_cut(
        &mut self,
        cut: &Cut,
        outgoing: &Outgoing,
        batch: &Batch<'_>,
        now: Instant,
    ) -> Result<Written, VifCounter> {
        let mut bytes = Vec::new();
        for index in 0..cut.count() {
            let payload = cut.payload(index);
            let len = cut.header_len() + payload.len();
            bytes.resize(len, 0);
            let segment = bytes.as_mut_slice();
            write_segment(cut, index, batch.gather(outgoing, payload.start), segment)
                .ok_or(VifCounter::tx_drop_header)?;
            let piece = [IoVec::from_slice(segment)];
            let frame = LocalFrame {
                header: Header::PLAIN.emit(0),
                addresses: outgoing.addresses,
                len,
                rest: Gather::new(&piece, frame::ADDRESSES_LEN),
                can_wait: false,
            };
            match self.lanes.write(outgoing.route.to, &frame, now, &self.counters) {
                Written::Done => {}
                // Not twice what has left already.
                outcome if index == 0 => return Ok(outcome),
                Written::Wait | Written::Dropped | Written::NoLane => return Ok(Written::Dropped),
            }
        }
        self.sent.add(outgoing.len);
        Ok(Written::Done)
    }

    /// Shows what was written to its readers.
    pub fn publish(&mut self) {
        let sent = std::mem::take(&mut self.sent);
        if sent.frames > 0 {
            self.counters.add(VifCounter::tx_frames, sent.frames);
            self.counters.add(VifCounter::tx_bytes, sent.bytes);
            self.counters.add(VifCounter::tx_local_frames, sent.frames);
            self.lanes.publish();
        }
    }
}

/// Writes a segment with its headers, its checksum complete.
fn write_segment(
    cut: &Cut,
    index: usize,
    mut payload: Gather<'_, '_>,
    segment: &mut [u8],
) -> Option<()> {
    let (headers, data) = segment.split_at_mut_checked(cut.header_len())?;
    cut.write_header(index, headers)?;
    payload.copy_to(data).then_some(())?;
    cut.complete(headers, Sum::of(data))
}
