//! Frames of one turn on their way out, and where each of them goes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;

use crate::offload::LEAD_LEN;
use crate::offload::header::Request;
use crate::sys::iovec::{self, Gather, IoVec};
use crate::wire::{Capabilities, CareOf, Longest, frame};

/// Destination and source of a frame, as they leave.
pub type AddressBytes = [u8; frame::ADDRESSES_LEN];

/// Where a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Care-of address, or group.
    pub to: SocketAddr,
    /// Whether it is the group.
    pub is_group: bool,
    /// Whether the frame came from elsewhere and is sent on.
    pub is_redirected: bool,
    /// What all receivers there understand.
    pub capabilities: Capabilities,
    /// The longest packet that the host there takes.
    pub longest: Longest,
}

impl Route {
    /// The way to a vif.
    pub const fn to_vif(coa: CareOf) -> Self {
        let CareOf { addr: to, capabilities, longest, .. } = coa;
        Self { to, is_group: false, is_redirected: false, capabilities, longest }
    }
}

/// A frame on its way out.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// Where to.
    pub route: Route,
    /// What leaves instead of the frame's own addresses.
    pub addresses: AddressBytes,
    /// What the guest wants done.
    pub request: Request,
    /// Length of the frame, in bytes.
    pub len: usize,
    /// Its bytes, among [`Batch::pieces`].
    pub pieces: Range<usize>,
    /// Where it begins in its pieces: they also hold the virtio-net header.
    pub skip: usize,
    /// Its beginning, among [`Batch::leads`], if it has to be cut.
    pub lead: Option<usize>,
}

impl Outgoing {
    /// Nothing, to nobody.
    const EMPTY: Self = Self {
        route: Route {
            to: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
            is_group: false,
            is_redirected: false,
            capabilities: Capabilities::NONE,
            longest: Longest::UNKNOWN,
        },
        addresses: [0; frame::ADDRESSES_LEN],
        request: Request::Plain,
        len: 0,
        pieces: 0..0,
        skip: 0,
        lead: None,
    };
}

/// The beginning of a frame, copied before it was looked at.
pub type Lead = [u8; LEAD_LEN];

/// Frames of one turn.
#[derive(Debug, Default)]
pub struct Batch<'m> {
    /// The frames, in order.
    pub frames: Vec<Outgoing>,
    /// What their bytes are made of.
    pub pieces: Vec<IoVec<'m>>,
    /// Beginnings of those that have to be cut.
    pub leads: Vec<Lead>,
}

impl<'m> Batch<'m> {
    /// The same lists, empty, for pieces of another turn.
    pub fn recycle<'n>(mut self) -> Batch<'n> {
        self.frames.clear();
        self.leads.clear();
        Batch { frames: self.frames, pieces: iovec::recycle(self.pieces), leads: self.leads }
    }

    /// Adds a frame to be filled in, in its place: a frame that is made elsewhere and moved there
    /// costs more than all that is written into it.
    pub fn add(&mut self) -> Option<&mut Outgoing> {
        self.frames.push(Outgoing::EMPTY);
        self.frames.last_mut()
    }

    /// Reads a frame from an offset on.
    #[inline]
    pub fn gather(&self, frame: &Outgoing, from: usize) -> Gather<'_, 'm> {
        let pieces = self.pieces.get(frame.pieces.clone()).unwrap_or_default();
        Gather::new(pieces, frame.skip + from)
    }

    /// A frame's copied beginning, if it was kept.
    pub fn lead(&self, frame: &Outgoing) -> Option<&[u8]> {
        let lead = self.leads.get(frame.lead?)?;
        lead.get(..frame.len.min(LEAD_LEN))
    }
}
