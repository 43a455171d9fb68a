//! Follows the host's place on the underlay, and moves the host to another.
//!
//! - Another interface has the same address: varpd joins the groups there. Vifs keep their sockets,
//!   sessions and claims.
//! - The host has another address: varpd opens its own sockets and those of each vif anew. Sessions
//!   of secured vnets end, since their keys derive from the address. varpd makes all claims anew. A
//!   kept vif stays its user's, but varpd claims it only when its backend is back: its guest may
//!   run elsewhere by now.
//! - The host has no address: nothing changes until it has one again.
//! - The MTU has changed: varpd tells backends and other hosts.
//!
//! varpd informs backends on their existing connections; they go on with the new settings or
//! sockets.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use log::Level;

use crate::config::Config;
use crate::mapper::LocalVif;
use crate::metrics::VarpdCounter;
use crate::quiet::Quiet;
use crate::time::{Instant, Now};
use crate::wire::{CareOf, Longest, VnetId};

use super::Host;
use super::clients::ClientId;
use super::follower::{Follower, Word};
use super::output::Output;
use super::register::Handed;
use super::registry::Owner;
use super::site::{Interface, Place, Step};

/// Time until vifs that could not join their groups try again.
const RETRY: Duration = Duration::from_secs(1);
/// Lines a minute about failures to follow the underlay.
const MOST_ALARMS: u32 = 20;

/// The host's place, and the state of a change of place.
#[derive(Debug)]
pub(super) struct Underlay {
    pub(super) place: Place,
    /// The MTU of its interface in bytes, as last read.
    pub(super) mtu: Option<u32>,
    /// The VARP group.
    pub(super) group: IpAddr,
    pub(super) follower: Follower,
    /// The shell is listing the interfaces.
    looks: bool,
    /// The step that the shell is carrying out.
    step: Option<Step>,
    /// Vifs that wait for sockets at the new address.
    reopening: BTreeSet<LocalVif>,
    /// Time at which vifs that are not in their groups try again.
    retry_at: Option<Instant>,
    /// The vnets whose messages pass the filter, and the registry's revision at that time.
    heard: (Option<u64>, BTreeSet<VnetId>),
    alarms: Quiet,
}

impl Underlay {
    /// At a place whose interface has this MTU in bytes.
    pub(super) fn new(config: &Config, place: Place, mtu: Option<u32>) -> Self {
        Self {
            group: config.main_group(place.address),
            place,
            mtu,
            follower: Follower::default(),
            looks: false,
            step: None,
            reopening: BTreeSet::new(),
            retry_at: None,
            heard: (None, BTreeSet::new()),
            alarms: Quiet::new(MOST_ALARMS),
        }
    }

    /// Whether this host has vifs on a vnet, and so receives group messages about it.
    pub(super) fn hears(&self, vnet: VnetId) -> bool {
        self.heard.1.contains(&vnet)
    }

    /// The time of the next timeout, if any.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let is_busy = self.looks || self.step.is_some();
        let look = self.follower.poll_timeout().filter(|_| !is_busy);
        look.into_iter().chain(self.retry_at).min()
    }
}

impl Host {
    /// The place in words, for the log.
    pub fn describe(&self) -> String {
        let operators = match &self.config.operator_socket {
            Some(path) => format!(", operators at {}", path.display()),
            None => String::new(),
        };
        let place = &self.underlay.place;
        format!(
            "on {} at {}, group {}, control socket {}{operators}",
            place.interface,
            SocketAddr::new(place.address, self.config.port.0),
            self.group_address(),
            self.config.socket.display(),
        )
    }

    /// The place in few words, for the service manager.
    pub fn status(&self) -> String {
        let Place { interface, address, .. } = &self.underlay.place;
        format!("at {address} on {interface}")
    }

    /// Handles a timeout: vifs try again to join their groups, and the follower lists the
    /// interfaces.
    pub(super) fn underlay_timeout(&mut self, now: Now) {
        if self.underlay.retry_at.is_some_and(|at| at <= now.mono) {
            self.underlay.retry_at = None;
            let deaf = self.registry.iter().filter(|(_, vif)| vif.is_deaf).map(|(id, _)| id);
            let before = self.underlay.place.index;
            let again = deaf.map(|vif| Output::RejoinVif { vif, before });
            self.outputs.extend(again.collect::<Vec<_>>());
        }
        let is_busy = self.underlay.looks || self.underlay.step.is_some();
        if !is_busy && self.underlay.follower.poll_timeout().is_some_and(|at| at <= now.mono) {
            self.underlay.looks = true;
            self.outputs.push_back(Output::Look);
        }
    }

    /// Handles the list of interfaces.
    pub(super) fn handle_interfaces(
        &mut self,
        result: Result<Vec<Interface>, String>,
        took: Duration,
        now: Now,
    ) {
        self.underlay.looks = false;
        self.underlay.follower.looked(took, now.mono + took);
        let interfaces = match result {
            Ok(interfaces) => interfaces,
            Err(e) => return self.fail_to_follow(&e, now),
        };
        let all = interfaces.iter().flat_map(|interface| interface.addresses.iter().copied());
        self.mapper.set_local(all.collect());
        let Underlay { follower, place, step: under_way, .. } = &mut self.underlay;
        if under_way.is_some() {
            return;
        }
        let step = follower.look(&self.config, place, &interfaces, now.mono);
        match &step {
            Step::Keep | Step::Wait(_) => self.say_settled(&step, now),
            Step::Rename(place) => {
                let before = &self.underlay.place.interface;
                say!(self, Level::Info, "interface {before} is now called {}", place.interface);
                self.warn_if_unnamed(place);
                self.underlay.place = place.clone();
                self.say_settled(&step, now);
            }
            Step::Rejoin(place) => {
                self.outputs.push_back(Output::Rejoin(place.clone()));
                self.underlay.step = Some(step);
            }
            Step::Move(place) => {
                self.outputs.push_back(Output::Move(place.clone()));
                self.underlay.step = Some(step);
            }
        }
    }

    fn fail_to_follow(&mut self, why: &str, now: Now) {
        let level = self.underlay.alarms.level(now.mono);
        say!(self, level, "can't follow the underlay, and try again: {why}");
        self.underlay.follower.failed(now.mono);
    }

    /// The shell has moved to a place, or has failed to.
    pub(super) fn handle_placed(&mut self, place: &Place, result: Result<u32, String>, now: Now) {
        let Some(step) = self.underlay.step.take() else { return };
        match (&step, result) {
            (Step::Rejoin(_), Ok(mtu)) => self.rejoin(place, mtu, now),
            (_, Ok(mtu)) => self.move_to(place, mtu, now),
            (Step::Rejoin(_), Err(e)) => {
                let why = format!("the groups can't be joined on {}: {e}", place.interface);
                return self.fail_to_follow(&why, now);
            }
            (_, Err(e)) => return self.fail_to_follow(&e, now),
        }
        self.say_settled(&step, now);
    }

    /// Warns if the interface has another name than the configuration says: varpd would not find it
    /// at its next start.
    fn warn_if_unnamed(&mut self, place: &Place) {
        if let Some(named) = self.config.underlay.as_ref().filter(|n| **n != place.interface) {
            say!(
                self,
                Level::Warn,
                "the underlay's interface is now {}, but the configuration says '{named}': change it before the next start",
                place.interface
            );
        }
    }

    fn say_settled(&mut self, step: &Step, now: Now) {
        match self.underlay.follower.settled(step, now.mono) {
            Some(Word::Waits(why)) => {
                say!(self, Level::Warn, "the underlay is gone, waiting for it: {why}");
                return self.outputs.push_back(Output::Status(format!("waiting: {why}")));
            }
            Some(Word::Back) => {
                say!(self, Level::Info, "the underlay is there again: {}", self.describe());
            }
            None if *step == Step::Keep => return,
            None => {}
        }
        let status = self.status();
        self.outputs.push_back(Output::Status(status));
    }

    /// Takes over the MTU of the underlay's interface. `None` (the interface is away) changes
    /// nothing.
    pub(super) fn handle_mtu(&mut self, mtu: Option<u32>, now: Now) {
        let Some(mtu) = mtu else { return };
        let Some(before) = self.underlay.mtu.replace(mtu).filter(|before| *before != mtu) else {
            return;
        };
        let interface = &self.underlay.place.interface;
        say!(
            self,
            Level::Info,
            "interface {interface} takes packets of {mtu} bytes, before {before}"
        );
        self.tell_places();
        self.tell_longest(now);
    }

    /// Tells all backends the care-of addresses of their vifs, and the MTU of the underlay.
    pub(super) fn tell_places(&mut self) {
        let live: Vec<(LocalVif, ClientId)> =
            self.registry.live().map(|(id, client, _)| (id, client)).collect();
        for (id, client) in live {
            self.tell_place(id, client, Handed::Nothing);
        }
    }

    /// The longest datagram that other hosts may send to vifs of this host.
    pub(super) fn longest_datagram(&self) -> Longest {
        let Underlay { mtu, place, .. } = &self.underlay;
        mtu.map_or(Longest::UNKNOWN, |mtu| Longest::of_mtu(mtu, place.address))
    }

    /// The address is on another interface, or on one that was deleted and made again.
    fn rejoin(&mut self, place: &Place, mtu: u32, now: Now) {
        let before = self.underlay.place.clone();
        say!(
            self,
            Level::Info,
            "{} is on {} now, before on {}: joined the multicast groups there",
            place.address,
            place.interface,
            before.interface
        );
        self.counters.inc(VarpdCounter::underlay_joins);
        self.hello.set_up_again();
        self.be_at(place, mtu);
        for vif in self.registry.ids() {
            self.outputs.push_back(Output::RejoinVif { vif, before: before.index });
        }
        self.tell_places();
        self.tell_longest(now);
        self.mapper.greet(now);
    }

    /// The sockets of a vif have joined their groups on the underlay's interface, or could not. If
    /// not, they try again.
    pub(super) fn handle_rejoined(&mut self, id: LocalVif, result: Result<(), String>, now: Now) {
        let Some(vif) = self.registry.get_mut(id) else { return };
        let (key, interface) = (vif.key, &self.underlay.place.interface);
        match result {
            Ok(()) => {
                if std::mem::take(&mut vif.is_deaf) {
                    say!(
                        self,
                        Level::Info,
                        "vif {key}: joined its multicast groups on {interface}"
                    );
                }
            }
            Err(e) => {
                vif.is_deaf = true;
                self.underlay.retry_at = Some(now.mono + RETRY);
                let level = self.complaints.deaf.level(key, now.mono);
                say!(
                    self,
                    level,
                    "vif {key}: can't join its multicast groups on {interface}, so it receives no broadcasts; trying \
                     again every second: {e}"
                );
            }
        }
    }

    /// Lets group messages about the vnets of this host's vifs pass the filter.
    pub(super) fn hear_questions(&mut self) {
        let (revision, heard) = &mut self.underlay.heard;
        if *revision == Some(self.registry.revision()) {
            return;
        }
        *revision = Some(self.registry.revision());
        let vnets = self.registry.vnets();
        if *heard != vnets {
            heard.clone_from(&vnets);
            self.outputs.push_back(Output::Hear(vnets));
        }
    }

    /// Announces the longest datagram that the vifs of this host now receive.
    fn tell_longest(&mut self, now: Now) {
        let longest = self.longest_datagram();
        for id in self.registry.ids() {
            let Some(vif) = self.registry.get_mut(id) else { continue };
            vif.coa.longest = longest;
            let coa = vif.coa;
            self.mapper.move_vif(id, coa, now);
            self.move_learned(id, coa, now);
        }
    }

    fn be_at(&mut self, place: &Place, mtu: u32) {
        self.warn_if_unnamed(place);
        (self.underlay.place, self.underlay.mtu) = (place.clone(), Some(mtu));
    }

    /// The host has another address.
    fn move_to(&mut self, place: &Place, mtu: u32, now: Now) {
        let before = self.underlay.place.clone();
        say!(
            self,
            Level::Info,
            "the host has moved to {} on {}, before at {} on {}: vifs get new care-of addresses",
            place.address,
            place.interface,
            before.address,
            before.interface
        );
        self.counters.inc(VarpdCounter::underlay_moves);
        self.be_at(place, mtu);
        self.security.move_to(place.address, now);
        self.drive_security(now);
        self.mapper.move_to((place.address, self.config.port.0).into());
        self.underlay.reopening = self.registry.ids().into_iter().collect();
        for vif in self.registry.ids() {
            self.open_again(vif);
        }
        self.greet_when_complete(now);
    }

    /// Asks for sockets of a vif at the host's address.
    pub(super) fn open_again(&mut self, vif: LocalVif) {
        let Some((vnet, queue_pairs)) = self.wanted_sockets(vif) else { return };
        let groups = self.groups_of(vnet).all().to_vec();
        self.outputs.push_back(Output::Open { vif, vnet, groups, queue_pairs });
    }

    /// Announces this host once all its vifs are at the new address.
    fn greet_when_complete(&mut self, now: Now) {
        if self.underlay.reopening.is_empty() {
            self.mapper.greet(now);
        }
    }

    /// A vif has sockets at the host's new address, or the shell could not open any.
    pub(super) fn handle_reopened(
        &mut self,
        id: LocalVif,
        result: Result<SocketAddr, String>,
        now: Now,
    ) {
        match result {
            Ok(address) => self.move_vif(id, address, now),
            Err(e) => {
                let Some(vif) = self.registry.get(id).map(|vif| vif.key) else { return };
                let address = self.underlay.place.address;
                say!(self, Level::Warn, "vif {vif}: can't open sockets at {address}: {e}");
                self.send_away(id, now);
            }
        }
        self.drive(now);
        if self.underlay.reopening.remove(&id) {
            self.greet_when_complete(now);
        }
    }

    /// A vif has no sockets at the new address: its backend has to register again.
    fn send_away(&mut self, id: LocalVif, now: Now) {
        if let Some(client) = self.registry.client(id) {
            self.drop_client(client, "must register again", now);
        }
        self.forget_vif(id, now);
    }

    fn move_vif(&mut self, id: LocalVif, address: SocketAddr, now: Now) {
        let longest = self.longest_datagram();
        // No late frame reaches the old sockets any more.
        self.unwatch_moved(id);
        self.close_lanes_of(id);
        let Some(vif) = self.registry.get_mut(id) else { return };
        let (key, before, owner) = (vif.key, vif.coa, vif.owner);
        let coa = CareOf { addr: address, longest, ..vif.coa };
        (vif.coa, vif.brings_stamps, vif.is_deaf) = (coa, false, false);
        if matches!(owner, Owner::Kept(_)) {
            (vif.active, vif.stamp) = (false, None);
        }
        say!(self, Level::Info, "vif {key} at {coa}, before at {before}");
        match owner {
            Owner::Live(client) => {
                self.tell_place(id, client, Handed::All);
                self.send_keys(id, client, now);
            }
            Owner::Kept(_) => {
                self.outputs.push_back(Output::Bound { vif: id });
                self.clear_learned(id, now);
                self.mapper.set_active(id, false, None, now);
            }
        }
        self.mapper.move_vif(id, coa, now);
        self.move_learned(id, coa, now);
    }
}
