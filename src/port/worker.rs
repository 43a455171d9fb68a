//! One queue pair's data path: everything that its frames need, and nothing shared with another's.
//!
//! ```text
//!            GuestSide                    port                          Endpoint
//!   tx ring ---> read ----------> tx::judge, guard, throttle --------> send ----------> underlay
//!                                     |         |
//!                                     |         +---> Lanes ---> another vif of this host
//!                                     +---> unresolved: frames that wait (Endpoint)
//!
//!   rx ring <--- deliver_all <--- throttle <-------------------------- Incoming <------- underlay
//!                                     ^
//!                                     +-------------- Lanes <--- another vif of this host
//! ```
//!
//! If the guest is kept to a list of addresses, [`crate::port::guard`] checks each frame behind `tx::judge`.
//!
//! In the middle of a stream in long segments the kernel copies these straight into the guest's
//! buffers, past the batch: see [`super::direct`].
//!
//! A worker outlives the connections of its frontend: it keeps the endpoint, the learned MACs and the
//! lanes, while QEMU comes and goes.

mod direct;
mod lanes;
mod receive;
#[cfg(test)]
mod tests;
mod transmit;

use std::sync::Arc;
use std::time::Duration;

use super::arrival::{Arrival, rarp};
use super::identity::Identity;
use super::learned::LearnedMacs;
use super::presence::Presence;
use super::stranger::Stranger;
use super::throttle::{Direction, Throttle};
use super::tx::SourceMac;
use crate::capture::Door;
use crate::guest::HeaderLayout;
use crate::guest::side::GuestSide;
use crate::local::ends::Local;
use crate::metrics::{VifCounter, VifCounters};
use crate::offload::features::Offloads;
use crate::port::guard::Prefix;
use crate::time::Instant;
use crate::tunnel::endpoint::{Endpoint, Place};
use crate::tunnel::outgoing::Batch;
use crate::underlay::{Port, Underlay};
use crate::wire::{CareOf, Mac};
use direct::Direct;

/// Batches handled for one wake-up before other events get their turn.
const BUDGET: usize = 8;
/// Batches of old messages that are dropped when rings start: more than a socket holds.
const DISCARD_BATCHES: usize = 4096;

/// What is left to do after a wake-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing: the guest or the kernel will wake us.
    Idle,
    /// More waits; others get their turn first.
    More,
}

/// The data path of one queue pair.
#[derive(Debug)]
pub struct Worker<U> {
    counters: Arc<VifCounters>,
    /// The virtio side.
    guest: GuestSide,
    /// The way to other hosts.
    tunnel: Endpoint<U>,
    /// The way to other vifs of this host.
    local: Local,
    /// As whom the guest may send.
    identity: Identity,
    /// Rate limits.
    throttle: Throttle,
    /// Whether the guest is here.
    presence: Presence,
    /// Lists of the frames that are being sent, kept for their memory.
    batch: Batch<'static>,
    /// Trains of long segments that are received straight into the guest's buffers.
    direct: Direct,
}

impl<U: Underlay> Worker<U> {
    /// A worker at `place`, whose frames leave through `underlay`.
    pub fn new(
        place: Place,
        source_mac: SourceMac,
        counters: Arc<VifCounters>,
        underlay: U,
    ) -> Self {
        Self {
            guest: GuestSide::new(Arc::clone(&counters)),
            tunnel: Endpoint::new(place, Arc::clone(&counters), underlay),
            local: Local::new(Arc::clone(&counters)),
            counters,
            identity: Identity::new(source_mac),
            throttle: Throttle::default(),
            presence: Presence::default(),
            batch: Batch::default(),
            direct: Direct::default(),
        }
    }

    /// Other queue pairs of the NIC look for strangers, too.
    pub fn set_stranger(&mut self, stranger: Stranger) {
        self.identity.set_stranger(stranger);
    }

    /// The same with rate limits.
    pub fn with_throttle(mut self, throttle: Throttle) -> Self {
        if let Some(bytes) = throttle.read_ahead() {
            self.tunnel.bound_batches(bytes);
        }
        self.throttle = throttle;
        self
    }

    /// The rate limits: whether frames wait for credit, and until when.
    pub fn throttle(&self) -> &Throttle {
        &self.throttle
    }

    /// Sets the doors where frames are shown; see [`crate::capture`].
    pub fn set_doors(&mut self, towards_guest: Door, towards_wire: Door) {
        self.guest.set_door(towards_guest.clone());
        self.tunnel.set_doors(towards_guest, towards_wire);
    }

    /// The way to other hosts.
    pub fn tunnel(&self) -> &Endpoint<U> {
        &self.tunnel
    }

    /// The way to other hosts, to be changed.
    pub fn tunnel_mut(&mut self) -> &mut Endpoint<U> {
        &mut self.tunnel
    }

    /// The same for a guest that is kept to these addresses; to none in particular if the list is
    /// empty.
    #[must_use]
    pub fn allowing(mut self, addresses: &[Prefix]) -> Self {
        self.identity.allow(addresses, transmit::BATCH_FRAMES);
        self
    }

    /// The same, taking up to `most` MACs behind the vif.
    #[must_use]
    pub fn learning(mut self, most: usize) -> Self {
        self.identity.learn(most);
        self.tunnel.set_takes_unknown(self.identity.learned().most() > 0);
        self
    }

    /// The MACs behind the vif.
    pub fn learned(&mut self) -> &mut LearnedMacs {
        self.identity.learned_mut()
    }

    /// What the driver acknowledged, from now on.
    pub fn set_features(&mut self, layout: HeaderLayout, offloads: Offloads) {
        self.guest.set_features(layout, offloads);
    }

    /// A frontend connected.
    pub fn frontend_connected(&mut self, now: Instant) {
        self.presence.frontend_connected(now);
    }

    /// The rings run, or no longer do. What arrived while they stood still for long is dropped,
    /// not delivered late; and what arrived before the guest did is not for it: group frames it has
    /// had where it was.
    pub fn set_running(&mut self, running: bool, now: Instant) {
        self.guest.handle_ring_state();
        self.throttle.reset();
        if running {
            // Where the guest runs it has arrived; varpd says so if a newer claim is known.
            self.tunnel.arrive(self.tunnel.place().receiver.key.mac);
            if self.presence.rings_started(now) {
                self.discard(Port::Own, now);
                self.discard(Port::Group, now);
                self.local.drop_waiting(VifCounter::rx_drop_no_ring);
            }
        } else {
            self.presence.rings_stopped(now);
            self.drop_incoming();
            self.local.handle_rings_stopped();
        }
    }

    /// Reads and drops what waits at `port`, for a bounded number of batches.
    fn discard(&mut self, port: Port, now: Instant) {
        for _ in 0..DISCARD_BATCHES {
            if !self.tunnel.receive(port, now) {
                break;
            }
            self.drop_incoming();
        }
    }

    fn drop_incoming(&mut self) {
        self.take_handovers();
        self.tunnel.drop_incoming(VifCounter::rx_drop_no_ring);
    }

    /// Lets lanes be read whose handover has arrived.
    fn take_handovers(&mut self) {
        for (from, lane) in self.tunnel.incoming_mut().take_handovers() {
            self.local.note_handover(from, lane);
        }
    }

    /// Whether frames were read that wait for the guest's receive buffers, or for credit: sockets
    /// need not be polled until the guest has added some, or the time has come.
    pub fn is_blocked(&self) -> bool {
        self.guest.is_starved() || self.throttle.holds(Direction::In)
    }

    /// Whether the control side has something to do: the tunnel has, the guest announced itself or sends
    /// from new MACs, or a lane ended.
    pub fn wants_attention(&self) -> bool {
        self.tunnel.wants_attention()
            || self.presence.has_announced()
            || self.identity.learned().has_news()
            || self.local.has_ended()
    }

    /// Whether the guest has announced itself since the last call (gratuitous ARP and the like).
    pub fn take_announcement(&mut self) -> bool {
        self.presence.take_announcement()
    }

    /// A destination was found, or has moved: frames that wait for it leave now, in order.
    pub fn handle_mapping(&mut self, mac: Mac, coa: CareOf, lifetime: Duration, now: Instant) {
        if let Some(resolved) = self.tunnel.handle_mapping(mac, coa, lifetime, now) {
            self.send_resolved(&resolved, now);
        }
    }

    /// A newer claim says that the MAC is elsewhere: for `lifetime` its frames are sent on. What had
    /// waited here for too long already is dropped.
    pub fn depart(&mut self, mac: Mac, coa: CareOf, lifetime: Duration, now: Instant) {
        if self.presence.is_long_gone(now) && !self.tunnel.forwards() {
            self.discard(Port::Own, now);
        }
        self.tunnel.depart(mac, coa, lifetime, now);
    }

    /// Until when frames are to be sent on though no ring runs, if they are: then the caller polls
    /// the socket for [`Worker::forward_waiting`], since the device does not.
    pub fn forwards_alone_until(&self, now: Instant) -> Option<Instant> {
        let until = self.tunnel.forwards_until(now);
        until.filter(|_| !self.presence.is_running())
    }

    /// Sends on what waits at the vif's address, for a bounded number of batches, while no ring
    /// runs. What is not for a MAC that has left is dropped.
    pub fn forward_waiting(&mut self, now: Instant) {
        for _ in 0..BUDGET {
            if self.presence.is_running() || !self.tunnel.receive(Port::Own, now) {
                return;
            }
            self.drop_incoming();
        }
    }

    /// Halts the NIC, so that it carries no frames, or resumes it.
    pub fn set_halted(&mut self, is_halted: bool) {
        self.tunnel.set_halted(is_halted);
        if is_halted {
            self.drop_local();
        }
    }

    /// Whether the guest has arrived; of a NIC's workers, only the first is asked.
    pub fn arrival(&mut self) -> &mut Arrival {
        self.presence.arrival_mut()
    }

    /// Sends what is due of the frames that tell the vnet where the guest is.
    pub fn announce_arrival(&mut self, now: Instant) {
        if self.presence.arrival_mut().take_due(now) {
            let mac = self.tunnel.place().receiver.key.mac;
            self.tunnel.announce(&rarp(mac), now);
        }
    }

    /// Drops what has waited too long; says that the guest has arrived, if that is due; ends lanes whose
    /// time is over.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.local.handle_timeout(now);
        self.announce_arrival(now);
        self.tunnel.handle_timeout(now);
    }

    /// When [`Worker::handle_timeout`] is to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let arrival = self.presence.arrival();
        let waits = [self.tunnel.poll_timeout(), arrival.poll_timeout(), self.local.poll_timeout()];
        waits.into_iter().flatten().min()
    }
}
