//! One queue pair's data path: everything that its frames need, and nothing shared with another's.
//!
//! ```text
//!            guest memory                                                   underlay
//!   tx ring ---> transmit::read_frame ---> tx::judge --- outgoing::Stager ---> sendmmsg, UDP_SEGMENT
//!                 (checks, copies         |  ^         (copies while
//!                  the headers)           |  |          it cuts or bundles)
//!                                         |  neighbors (answers)
//!                                   park: frames that wait
//!
//!   rx ring <--- deliver::Deliverer <--- gro::Merger <--- incoming <--------- recvmmsg, UDP_GRO
//!                 (one copy)                             (rx::Receiver accepts,
//!                                                        or names the drop)
//! ```
//!
//! If the guest is kept to a list of addresses, [`crate::vif::guard`] checks each frame behind `tx::judge`.
//!
//! In the middle of a stream in long segments the kernel copies these straight into the guest's
//! buffers, past the batch: see [`crate::port::direct`].
//!
//! What goes to another vif of this host, or comes from one, takes a shorter way: see
//! [`crate::lane`] and [`crate::local::lanes`].
//!
//! A worker outlives the connections of its frontend: it keeps sockets, what it has learnt and the
//! frames that wait, while QEMU comes and goes.

mod arrive;
mod direct;
mod echo;
mod forward;
mod local;
mod path;
mod policy;
mod receive;
mod resend;
mod send;
#[cfg(test)]
mod tests;
mod transmit;

use direct::Direct;
pub use local::LaneOffer;
use local::Tally;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::guest::HeaderLayout;
use crate::guest::side::GuestSide;
use crate::local::lanes::Lanes;
use crate::local::unpacked::Unpacked;
use crate::metrics::{VifCounter, VifCounters};
use crate::offload::features::Offloads;
use crate::port::arrival::Arrival;
use crate::port::learned::LearnedMacs;
use crate::port::pmtu_feedback::InformedSenders;
use crate::port::stranger::Stranger;
use crate::port::throttle::{Direction, Throttle};
use crate::port::tx::SourceMac;
use crate::quiet::{Quiet, QuietEach};
use crate::sys::iovec::IoVec;
use crate::time::{Instant, Now};
use crate::tunnel::echo::Limits;
use crate::tunnel::incoming::Incoming;
use crate::tunnel::moved::MovedMacs;
use crate::tunnel::neighbors::{Lookup, Neighbors, Question};
use crate::tunnel::outgoing::pieces::FrameIds;
use crate::tunnel::outgoing::{Batch, Losses, Stager};
use crate::tunnel::paths::Paths;
use crate::tunnel::protect::Protection;
use crate::tunnel::rx::Receiver;
use crate::tunnel::unresolved::UnresolvedQueue;
use crate::underlay::segmentation::Segmentation;
use crate::underlay::{Port, Underlay};
use crate::vif::guard::Prefix;
use crate::vif::guard::exit::Exit;
use crate::wire::{CareOf, Longest, Mac};

/// Batches handled for one wake-up before other events get their turn.
const BUDGET: usize = 8;
/// Batches of old messages that are dropped when rings start: more than a socket holds.
const DISCARD_BATCHES: usize = 4096;
/// What arrived while the rings stood still for longer than this is not delivered any more.
const STALE_AFTER: Duration = Duration::from_secs(1);
/// A frontend that goes on with a new backend starts the rings within this time of its connection;
/// one that starts them later waited for a guest, to boot or to migrate here.
const SETUP: Duration = Duration::from_millis(250);

/// What is left to do after a wake-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing: the guest or the kernel will wake us.
    Idle,
    /// More waits; others get their turn first.
    More,
}

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

/// The data path of one queue pair.
#[derive(Debug)]
pub struct Worker<U> {
    place: Place,
    /// The longest datagram of group frames that all hosts of the vnet take.
    group_longest: Longest,
    source_mac: SourceMac,
    /// Checks what leaves, if the guest is kept to a list of addresses.
    exit: Option<Box<Exit>>,
    counters: Arc<VifCounters>,
    /// The virtio side.
    guest: GuestSide,
    /// The sockets.
    underlay: U,
    /// Where other vifs are.
    neighbors: Neighbors,
    /// MACs that were here and have left.
    departures: MovedMacs,
    /// MACs behind the vif.
    learnt: LearnedMacs,
    /// Whether the guest uses other MACs than those.
    stranger: Stranger,
    /// Frames that wait for their destination to be resolved.
    park: UnresolvedQueue,
    /// Rate limits.
    throttle: Throttle,
    is_running: bool,
    /// The vnet's policy is too low: nothing is carried.
    is_halted: bool,
    /// When the rings stopped, if they have not run since.
    stopped_at: Option<Instant>,
    /// When the frontend connected, if its rings have not run since.
    connected_at: Option<Instant>,
    /// The guest has announced itself; varpd is to be told.
    announcement_seen: bool,
    /// Whether the guest has migrated here, and what of that the vnet is still to be told.
    arrival: Arrival,
    stager: Stager,
    /// Seals and opens datagrams, on a secured vnet.
    protection: Option<Protection>,
    /// Lists of the frames that are being sent, kept for their memory.
    batch: Batch<'static>,
    /// The list of the messages' parts, likewise.
    parts: Vec<IoVec<'static>>,
    /// Where the kernel refuses to cut messages into datagrams.
    segmentation: Segmentation,
    /// Frames that the kernel refused.
    losses: Losses,
    /// Frames that were received and wait for the guest's buffers.
    incoming: Incoming,
    /// How many echoes of other hosts are still answered.
    echo_limits: Arc<Limits>,
    /// Trains of long segments that are received straight into those.
    direct: Direct,
    /// Frames of ours for the guest: ICMP answers to packets that are too long.
    answers: Vec<Vec<u8>>,
    /// Numbers for frames that leave in pieces.
    frame_ids: FrameIds,
    /// Path MTUs by destination.
    paths: Paths,
    /// About path MTUs that change.
    path_news: Quiet,
    /// About hosts that send under another policy.
    misfit_news: Quiet,
    /// Senders in the guest that were told to send shorter packets.
    told: InformedSenders,
    /// Whether the control side knows when to call [`Worker::handle_timeout`] for pieces.
    timer_known: bool,
    /// The kernel's count of datagrams that did not fit the socket's buffer, when it was last read.
    overflow: u32,
    /// About system calls that fail, by kind.
    complaints: QuietEach<&'static str>,
    /// Rings of memory to and from other vifs of this host.
    lanes: Lanes,
    /// Frames out of a lane that the guest does not accept as they were.
    unpacked: Unpacked,
    /// Frames written into lanes, not yet counted.
    sent_locally: Tally,
}

impl<U: Underlay> Worker<U> {
    /// A worker at `place`, whose frames leave through `underlay`.
    pub fn new(
        place: Place,
        source_mac: SourceMac,
        counters: Arc<VifCounters>,
        underlay: U,
    ) -> Self {
        let guest = GuestSide::new(Arc::clone(&counters));
        let mut stager = Stager::new(place.receiver.key.vnet);
        stager.set_short_ends(underlay.needs_short_ends());
        Self {
            place,
            group_longest: Longest::UNKNOWN,
            source_mac,
            exit: None,
            counters,
            guest,
            underlay,
            neighbors: Neighbors::default(),
            departures: MovedMacs::default(),
            learnt: LearnedMacs::default(),
            stranger: Stranger::default(),
            park: UnresolvedQueue::default(),
            throttle: Throttle::default(),
            is_running: false,
            is_halted: false,
            stopped_at: None,
            connected_at: None,
            announcement_seen: false,
            arrival: Arrival::default(),
            stager,
            protection: None,
            batch: Batch::default(),
            parts: Vec::new(),
            segmentation: Segmentation::default(),
            losses: Losses::default(),
            incoming: Incoming::default(),
            echo_limits: Arc::default(),
            direct: Direct::default(),
            answers: Vec::new(),
            frame_ids: FrameIds::default(),
            paths: Paths::default(),
            path_news: Quiet::default(),
            misfit_news: Quiet::new(1),
            told: InformedSenders::default(),
            timer_known: false,
            overflow: 0,
            complaints: QuietEach::new(1),
            lanes: Lanes::default(),
            unpacked: Unpacked::default(),
            sent_locally: Tally::default(),
        }
    }

    /// Other queue pairs of the NIC look for strangers, too.
    pub fn set_stranger(&mut self, stranger: Stranger) {
        self.stranger = stranger;
    }

    /// The same with rate limits.
    pub fn with_throttle(mut self, throttle: Throttle) -> Self {
        if let Some(bytes) = throttle.read_ahead() {
            self.incoming.bound(bytes);
        }
        self.throttle = throttle;
        self
    }

    /// The rate limits: whether frames wait for credit, and until when.
    pub fn throttle(&self) -> &Throttle {
        &self.throttle
    }

    /// Numbers frames that leave in pieces: workers at one address must not use the same numbers at
    /// the same time.
    pub fn set_frame_ids(&mut self, ids: FrameIds) {
        self.frame_ids = ids;
    }

    /// The same for a guest that is kept to these addresses; to none in particular if the list is
    /// empty.
    #[must_use]
    pub fn allowing(mut self, addresses: &[Prefix]) -> Self {
        let exit = || Box::new(Exit::new(addresses.to_vec(), transmit::BATCH_FRAMES));
        self.exit = (!addresses.is_empty()).then(exit);
        self
    }

    /// The same, taking up to `most` MACs behind the vif.
    #[must_use]
    pub fn learning(mut self, most: usize) -> Self {
        self.learnt = LearnedMacs::new(most);
        self
    }

    /// The MACs behind the vif.
    pub fn learnt(&mut self) -> &mut LearnedMacs {
        &mut self.learnt
    }

    /// The sockets.
    pub fn underlay(&self) -> &U {
        &self.underlay
    }

    /// What the queue pair is to the underlay.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// What protects its datagrams, on a secured vnet; on others nothing does.
    pub fn set_protection(&mut self, protection: Option<Protection>) {
        self.protection = protection;
        self.incoming.clear();
    }

    /// See [`Worker::set_protection`].
    pub fn protection_mut(&mut self) -> Option<&mut Protection> {
        self.protection.as_mut()
    }

    /// What the clocks say; see [`Protection::set_clock`].
    pub fn set_clock(&mut self, now: Now) {
        if let Some(protection) = &mut self.protection {
            protection.set_clock(now);
        }
    }

    /// The sockets, to be changed.
    pub fn underlay_mut(&mut self) -> &mut U {
        &mut self.underlay
    }

    /// Other sockets, at another place. Returns the old ones.
    pub fn replace_underlay(&mut self, underlay: U, place: Place) -> U {
        self.stager.set_short_ends(underlay.needs_short_ends());
        if let Some(protection) = &mut self.protection {
            protection.move_away();
        }
        self.set_place(place);
        self.departures = MovedMacs::default();
        self.incoming.clear();
        self.overflow = 0;
        std::mem::replace(&mut self.underlay, underlay)
    }

    /// The same sockets serve on another interface, whose packets may have another length.
    pub fn set_place(&mut self, place: Place) {
        self.segmentation = Segmentation::default();
        self.place = place;
    }

    /// Group frames leave in datagrams of this length at most from now on.
    pub const fn set_group_longest(&mut self, longest: Longest) {
        self.group_longest = longest;
    }

    /// What the driver acknowledged, from now on.
    pub fn set_features(&mut self, layout: HeaderLayout, offloads: Offloads) {
        self.guest.set_features(layout, offloads);
    }

    /// A frontend connected.
    pub fn frontend_connected(&mut self, now: Instant) {
        self.connected_at = Some(now);
    }

    /// The rings run, or no longer do. What arrived while they stood still for long is dropped,
    /// not delivered late; and what arrived before the guest did is not for it: group frames it has
    /// had where it was.
    pub fn set_running(&mut self, running: bool, now: Instant) {
        self.guest.handle_ring_state();
        self.throttle.reset();
        self.is_running = running;
        if running {
            // Where the guest runs it has arrived; varpd says so if a newer claim is known.
            self.departures.remove(self.place.receiver.key.mac);
            let was_long = |since: Option<Instant>, limit| since.is_some_and(|at| now - at > limit);
            let has_arrived = was_long(self.connected_at.take(), SETUP);
            if was_long(self.stopped_at.take(), STALE_AFTER) || has_arrived {
                self.discard(Port::Own, now);
                self.discard(Port::Group, now);
                self.discard_lanes();
            }
        } else {
            self.stopped_at = Some(now);
            self.arrival.rings_stopped();
            self.drop_incoming();
            self.drop_unpacked();
            self.lanes.forget_stall();
        }
    }

    /// Reads and drops what waits at `port`, for a bounded number of batches.
    fn discard(&mut self, port: Port, now: Instant) {
        for _ in 0..DISCARD_BATCHES {
            if !self.fill(port, now) {
                break;
            }
            self.drop_incoming();
        }
    }

    fn drop_incoming(&mut self) {
        self.counters.add(VifCounter::rx_drop_no_ring, self.incoming.len() as u64);
        for (from, lane) in self.incoming.take_handovers() {
            self.lanes.note_handover(from, lane);
        }
        self.incoming.clear();
    }

    /// Whether frames were read that wait for the guest's receive buffers, or for credit: sockets
    /// need not be polled until the guest has added some, or the time has come.
    pub fn is_blocked(&self) -> bool {
        self.guest.is_starved() || self.throttle.holds(Direction::In)
    }

    fn complain(&mut self, what: &'static str, error: &io::Error, now: Instant) {
        log::log!(
            self.complaints.level(what, now),
            "{what}: {error} (warned of at most once a minute)"
        );
    }

    /// Takes the questions that frames have raised.
    pub fn questions(&mut self) -> impl Iterator<Item = Question> + '_ {
        self.neighbors.questions()
    }

    /// Whether the control side has something to do: questions, a guest that announced itself, or
    /// pieces to wait for.
    pub fn wants_attention(&self) -> bool {
        self.neighbors.has_questions()
            || self.announcement_seen
            || self.protection.as_ref().is_some_and(Protection::has_needs)
            || !self.timer_known && !self.incoming.reassembly().is_empty()
            || self.departures.has_senders()
            || self.learnt.has_news()
            || self.lanes.has_ended()
    }

    /// Whether the guest has announced itself since the last call (gratuitous ARP and the like).
    pub fn take_announcement(&mut self) -> bool {
        std::mem::take(&mut self.announcement_seen)
    }

    /// A destination was found, or has moved: frames that wait for it leave now, in order.
    pub fn handle_mapping(&mut self, mac: Mac, coa: CareOf, lifetime: Duration, now: Instant) {
        let own = self.place.receiver.own.ip();
        self.neighbors.handle_mapping(mac, coa, own, lifetime, now);
        let frames = self.park.take(mac);
        let dropped = match self.neighbors.lookup(mac, now) {
            Lookup::To(coa) => return self.send_parked(&frames, coa, now),
            Lookup::Unusable => VifCounter::tx_drop_unusable,
            Lookup::Wait | Lookup::Unresolved | Lookup::Full => VifCounter::tx_drop_unresolved,
        };
        self.counters.add(dropped, frames.len() as u64);
    }

    /// Nobody answers for `mac`: frames that wait for it are dropped, new ones for a short while.
    pub fn handle_unresolved(&mut self, mac: Mac, hold: Duration, now: Instant) {
        self.neighbors.handle_unresolved(mac, hold, now);
        let dropped = self.park.take(mac).len();
        self.counters.add(VifCounter::tx_drop_unresolved, dropped as u64);
    }

    /// What was known of `mac` no longer holds.
    pub fn handle_invalidate(&mut self, mac: Mac) {
        self.neighbors.handle_invalidate(mac);
    }

    /// varpd is gone.
    pub fn varpd_left(&mut self) {
        self.neighbors.varpd_left();
    }

    /// varpd is there again.
    pub fn varpd_returned(&mut self, now: Instant) {
        self.neighbors.varpd_returned(now);
    }

    /// Drops frames, and pieces of frames, that have waited too long; says that the guest has
    /// arrived, if that is due; ends lanes whose time is over.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.lanes.handle_timeout(now);
        self.announce_arrival(now);
        self.incoming.expire(&self.counters, now);
        // Whoever calls asks for the next time afterwards. That of pieces only moves forward.
        self.timer_known = !self.incoming.reassembly().is_empty();
        let mut abandoned = Vec::new();
        let expired = self.park.expire(now, &mut abandoned);
        self.counters.add(VifCounter::tx_drop_park_expired, expired);
        for mac in abandoned {
            self.neighbors.give_up(mac);
        }
    }

    /// When [`Worker::handle_timeout`] is to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let pieces = self.incoming.reassembly().poll_timeout();
        let waits = [
            self.park.poll_timeout(),
            pieces,
            self.arrival.poll_timeout(),
            self.lanes.poll_timeout(),
        ];
        waits.into_iter().flatten().min()
    }
}
