//! One end of a vnet's tunnel: the sockets of a queue pair, and all that its frames need between the vif and
//! other hosts.
//!
//! ```text
//!   frames                                                        underlay
//!     │   neighbors: where?  ──► unresolved: nowhere yet
//!     ▼
//!   Batch ──► send: Stager cuts, bundles ──► Protection seals ──► sendmmsg, UDP_SEGMENT
//!
//!   Incoming ◄── Receiver accepts, or names the drop ◄── Protection opens ◄── recvmmsg, UDP_GRO
//!     │ for a MAC that has moved
//!     └──────────► send
//! ```
//!
//! An endpoint outlives the connections of a frontend: it keeps sockets, addresses and waiting frames.
//! It needs no guest: whoever has frames gives them to [`Endpoint::send`], and takes those that
//! [`Endpoint::receive`] has brought from [`Endpoint::incoming_mut`].

mod echo;
mod forward;
mod mtu;
mod policy;
mod receive;
mod resend;
mod send;
mod signal;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::echo::Limits;
use super::incoming::Incoming;
use super::moved::MovedMacs;
use super::neighbors::{Lookup, Neighbors, Question};
use super::outgoing::pieces::FrameIds;
use super::outgoing::{Losses, Route, Stager};
use super::paths::Paths;
use super::pmtu_feedback::PmtuFeedback;
use super::protect::Protection;
use super::rx::Receiver;
use super::unresolved::UnresolvedQueue;
use crate::capture::Door;
use crate::metrics::{VifCounter, VifCounters};
use crate::quiet::{Quiet, QuietEach};
use crate::sys::iovec::IoVec;
use crate::time::{Instant, Now};
use crate::underlay::Underlay;
use crate::underlay::segmentation::Segmentation;
use crate::wire::{Capabilities, CareOf, Longest, Mac, encap};

/// Where a queue pair stands on the underlay.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The vif, and the address that it is reached at.
    pub receiver: Receiver,
    /// Where group frames go.
    pub group: SocketAddr,
    /// Longest datagram (UDP payload) that the underlay's link takes, in bytes.
    pub max_datagram: usize,
}

/// Frames whose destination was resolved, in the order in which they came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Where they go.
    pub coa: CareOf,
    /// The frames, as [`Endpoint::hold`] took them.
    pub frames: Vec<Vec<u8>>,
}

/// The tunnel's end.
#[derive(Debug)]
pub struct Endpoint<U> {
    place: Place,
    /// The longest datagram of group frames that all hosts of the vnet take.
    group_longest: Longest,
    counters: Arc<VifCounters>,
    /// The sockets.
    underlay: U,
    /// Where other vifs are.
    neighbors: Neighbors,
    /// Frames that wait for their destination to be resolved.
    unresolved: UnresolvedQueue,
    /// MACs that were here.
    moved: MovedMacs,
    /// Whether unicast to other MACs than the vif's is accepted.
    takes_unknown: bool,
    /// The vnet's policy is too low: nothing is carried.
    is_halted: bool,
    stager: Stager,
    /// Seals and opens datagrams, on a secured vnet.
    protection: Option<Protection>,
    /// The list of the messages' parts, kept for its memory.
    parts: Vec<IoVec<'static>>,
    /// Where the kernel refuses to cut messages into datagrams.
    segmentation: Segmentation,
    /// Frames that the kernel refused.
    losses: Losses,
    /// Received frames that were not delivered yet.
    incoming: Incoming,
    /// How many echoes of other hosts are still answered.
    echo_limits: Arc<Limits>,
    /// Numbers for frames that leave in fragments.
    frame_ids: FrameIds,
    /// Path MTUs by destination.
    paths: Paths,
    /// Answers to senders of frames that exceed these.
    feedback: PmtuFeedback,
    /// About path MTUs that change.
    path_news: Quiet,
    /// About hosts that send under another policy.
    misfit_news: Quiet,
    /// Whether the control side knows when to call [`Endpoint::handle_timeout`] for fragments.
    timer_known: bool,
    /// The kernel's count of datagrams that did not fit the socket's buffer, when it was last read.
    overflow: u32,
    /// Received frames that are refused are shown here.
    to_guest: Door,
    /// Frames that leave, or can't, are shown here.
    to_wire: Door,
    /// About system calls that fail, by kind.
    complaints: QuietEach<&'static str>,
}

impl<U: Underlay> Endpoint<U> {
    /// An endpoint at `place`, whose frames leave through `underlay`.
    pub fn new(place: Place, counters: Arc<VifCounters>, underlay: U) -> Self {
        let mut stager = Stager::new(place.receiver.key.vnet);
        stager.set_short_ends(underlay.needs_short_ends());
        Self {
            place,
            group_longest: Longest::UNKNOWN,
            counters,
            underlay,
            neighbors: Neighbors::default(),
            unresolved: UnresolvedQueue::default(),
            moved: MovedMacs::default(),
            takes_unknown: false,
            is_halted: false,
            stager,
            protection: None,
            parts: Vec::new(),
            segmentation: Segmentation::default(),
            losses: Losses::default(),
            incoming: Incoming::default(),
            echo_limits: Arc::default(),
            frame_ids: FrameIds::default(),
            paths: Paths::default(),
            feedback: PmtuFeedback::default(),
            path_news: Quiet::default(),
            misfit_news: Quiet::new(1),
            timer_known: false,
            overflow: 0,
            to_guest: Door::default(),
            to_wire: Door::default(),
            complaints: QuietEach::new(1),
        }
    }

    /// The sockets.
    pub fn underlay(&self) -> &U {
        &self.underlay
    }

    /// The sockets, to be changed.
    pub fn underlay_mut(&mut self) -> &mut U {
        &mut self.underlay
    }

    /// Its place on the underlay.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The longest frame that the link takes, in bytes.
    pub fn max_frame(&self) -> usize {
        self.place.max_datagram.saturating_sub(encap::LEN)
    }

    /// The same sockets serve on another interface, whose packets may have another length.
    pub fn set_place(&mut self, place: Place) {
        self.segmentation = Segmentation::default();
        self.place = place;
    }

    /// Sets other sockets, at another place. Returns the old ones.
    pub fn replace_underlay(&mut self, underlay: U, place: Place) -> U {
        self.stager.set_short_ends(underlay.needs_short_ends());
        if let Some(protection) = &mut self.protection {
            protection.move_away();
            // Mappings come with keys: a frame that goes by an earlier one would be dropped for the lack of a key.
            self.neighbors.invalidate_all();
        }
        self.set_place(place);
        self.moved = MovedMacs::default();
        self.incoming.clear();
        self.overflow = 0;
        std::mem::replace(&mut self.underlay, underlay)
    }

    /// Group frames leave in datagrams of this length at most from now on.
    pub const fn set_group_longest(&mut self, longest: Longest) {
        self.group_longest = longest;
    }

    /// Accepts unicast to other MACs than the vif's, as a bridge needs, or does not.
    pub const fn set_takes_unknown(&mut self, takes_unknown: bool) {
        self.takes_unknown = takes_unknown;
    }

    /// Sets the doors where frames are shown: those that are received and refused, and all that leave, or
    /// can't.
    pub fn set_doors(&mut self, to_guest: Door, to_wire: Door) {
        (self.to_guest, self.to_wire) = (to_guest, to_wire);
    }

    /// The door where frames are shown that leave, or can't.
    pub const fn door_to_wire(&self) -> &Door {
        &self.to_wire
    }

    /// Numbers frames that leave in fragments: endpoints at one address must not use the same numbers at
    /// the same time.
    pub fn set_frame_ids(&mut self, ids: FrameIds) {
        self.frame_ids = ids;
    }

    /// Limits a batch of received messages to about `bytes`.
    pub fn bound_batches(&mut self, bytes: u64) {
        self.incoming.bound(bytes);
    }

    /// Sets what protects its datagrams, on a secured vnet; on others nothing does.
    pub fn set_protection(&mut self, protection: Option<Protection>) {
        self.protection = protection;
        self.incoming.clear();
    }

    /// See [`Endpoint::set_protection`].
    pub fn protection_mut(&mut self) -> Option<&mut Protection> {
        self.protection.as_mut()
    }

    /// See [`Endpoint::set_protection`].
    pub fn is_secured(&self) -> bool {
        self.protection.is_some()
    }

    /// Sets the clocks; see [`Protection::set_clock`].
    pub fn set_clock(&mut self, now: Now) {
        if let Some(protection) = &mut self.protection {
            protection.set_clock(now);
        }
    }

    /// Logs a failed system call, each kind once a minute at most.
    pub fn complain(&mut self, what: &'static str, error: &io::Error, now: Instant) {
        log::log!(
            self.complaints.level(what, now),
            "{what}: {error} (logged at most once a minute)"
        );
    }

    /// The addresses of other vifs.
    pub fn neighbors_mut(&mut self) -> &mut Neighbors {
        &mut self.neighbors
    }

    /// Answers to senders of frames that exceed the path MTU.
    pub fn feedback(&self) -> &PmtuFeedback {
        &self.feedback
    }

    /// See [`Endpoint::feedback`].
    pub fn feedback_mut(&mut self) -> &mut PmtuFeedback {
        &mut self.feedback
    }

    /// The way of group frames.
    pub fn to_group(&self) -> Route {
        Route {
            to: self.place.group,
            is_group: true,
            is_redirected: false,
            // All receivers put fragments together.
            capabilities: Capabilities::FRAGMENT,
            longest: self.group_longest,
        }
    }

    /// Lets a frame wait for the resolution of its destination.
    ///
    /// # Errors
    /// The name of the drop: too many wait.
    pub fn hold(&mut self, mac: Mac, frame: Vec<u8>, now: Instant) -> Result<(), VifCounter> {
        self.unresolved.push(mac, frame, now).map_err(|_| VifCounter::tx_drop_park_full)
    }

    /// Takes the questions that frames have raised.
    pub fn questions(&mut self) -> impl Iterator<Item = Question> + '_ {
        self.neighbors.questions()
    }

    /// Whether the control side has something to do: questions, senders to be informed, keys that are
    /// missing, or fragments to wait for.
    pub fn wants_attention(&self) -> bool {
        self.neighbors.has_questions()
            || self.protection.as_ref().is_some_and(Protection::has_needs)
            || !self.timer_known && !self.incoming.reassembly().is_empty()
            || self.moved.has_senders()
    }

    /// A destination was found, or has moved. Returns the frames that wait for it, which may leave now.
    #[must_use]
    pub fn handle_mapping(
        &mut self,
        mac: Mac,
        coa: CareOf,
        lifetime: Duration,
        now: Instant,
    ) -> Option<Resolved> {
        let own = self.place.receiver.own.ip();
        self.neighbors.handle_mapping(mac, coa, own, lifetime, now);
        let frames = self.unresolved.take(mac);
        if frames.is_empty() {
            return None;
        }
        let dropped = match self.neighbors.lookup(mac, now) {
            Lookup::To(coa) => return Some(Resolved { coa, frames }),
            Lookup::Unusable => VifCounter::tx_drop_unusable,
            Lookup::Wait | Lookup::Unresolved | Lookup::Full => VifCounter::tx_drop_unresolved,
        };
        self.counters.add(dropped, frames.len() as u64);
        None
    }

    /// Nobody answers for `mac`: frames that wait for it are dropped, new ones for a short while.
    pub fn handle_unresolved(&mut self, mac: Mac, hold: Duration, now: Instant) {
        self.neighbors.handle_unresolved(mac, hold, now);
        let dropped = self.unresolved.take(mac).len();
        self.counters.add(VifCounter::tx_drop_unresolved, dropped as u64);
    }

    /// Drops frames, and fragments of frames, that have waited too long.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.incoming.expire(&self.counters, now);
        // Whoever calls asks for the next time afterwards. That of fragments only moves forward.
        self.timer_known = !self.incoming.reassembly().is_empty();
        let mut abandoned = Vec::new();
        let expired = self.unresolved.expire(now, &mut abandoned);
        self.counters.add(VifCounter::tx_drop_park_expired, expired);
        for mac in abandoned {
            self.neighbors.give_up(mac);
        }
    }

    /// When [`Endpoint::handle_timeout`] is to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let waits = [self.unresolved.poll_timeout(), self.incoming.reassembly().poll_timeout()];
        waits.into_iter().flatten().min()
    }
}

#[cfg(test)]
impl<U> Endpoint<U> {
    pub(crate) fn place_mut(&mut self) -> &mut Place {
        &mut self.place
    }

    pub(crate) fn stager_mut(&mut self) -> &mut Stager {
        &mut self.stager
    }
}
