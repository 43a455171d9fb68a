//! What follows when the host's place on the underlay has changed ([`super::site`]).
//!
//! | | What |
//! |---|---|
//! | another interface, same address | groups are joined there; vifs keep their sockets, sessions and claims |
//! | another address | sockets are opened anew, varpd's own and those of each vif; sessions of secured vnets are over, since their keys derive from the address; all claims are made anew. A vif that is kept for a backend that is away stays its user's, and is claimed when that is back: its guest may run elsewhere by now |
//! | no address | nothing, until there is one |
//!
//! Backends are told on the connection that they have, and go on with what they are given.

use std::io;
use std::time::Duration;

use crate::mapper::LocalVif;
use crate::metrics::VarpdCounter;
use crate::sys::link;
use crate::sys::rtnetlink::Interface;
use crate::time::Now;
use crate::wire::{CareOf, Longest};

use super::clients::ClientId;
use super::daemon::{Daemon, watch_varp};
use super::follower::Word;
use super::register::Handed;
use super::registry::Owner;
use super::site::{Place, Step};
use super::varp::{Varp, Via};
use super::{VarpdError, waiting};

/// When what has failed at sockets is tried again.
const RETRY: Duration = Duration::from_secs(1);

impl Daemon {
    /// The kernel says that something has changed.
    pub(super) fn hear_underlay(&mut self, now: Now) {
        let news = self.rtnetlink.news(self.place.index);
        self.follower.heard(news, now.mono);
    }

    /// Tells the mapper the addresses of this host.
    pub(super) fn read_addresses(&mut self) -> Result<(), VarpdError> {
        let interfaces = waiting::list(&self.config, &mut self.rtnetlink)?;
        self.keep_addresses(&interfaces);
        Ok(())
    }

    fn keep_addresses(&mut self, interfaces: &[Interface]) {
        let all = interfaces.iter().flat_map(|interface| interface.addresses.iter().copied());
        self.mapper.set_local(all.collect());
    }

    /// Looks where the host is, if it is time to, and follows.
    pub(super) fn follow_underlay(&mut self, now: Now) {
        if self.follower.poll_timeout().is_none_or(|at| at > now.mono) {
            return;
        }
        let listed = waiting::list(&self.config, &mut self.rtnetlink);
        let took = self.rtnetlink.took();
        self.follower.looked(took, now.mono + took);
        let done = listed.map_err(|e| e.to_string()).and_then(|interfaces| {
            self.keep_addresses(&interfaces);
            let step = self.follower.look(&self.config, &self.place, &interfaces, now.mono);
            self.take_step(&step, now)?;
            Ok(step)
        });
        match done {
            Ok(step) => self.say_settled(&step, now),
            Err(e) => {
                let level = self.alarms.level(now.mono);
                log::log!(level, "can't follow the underlay, and try again: {e}");
                self.follower.failed(now.mono);
            }
        }
    }

    fn take_step(&mut self, step: &Step, now: Now) -> Result<(), String> {
        match step {
            Step::Keep | Step::Wait(_) => {}
            Step::Rename(place) => {
                log::info!("interface {} is now called {}", self.place.interface, place.interface);
                self.warn_if_unnamed(place);
                self.place = place.clone();
            }
            Step::Rejoin(place) => self
                .rejoin(place, now)
                .map_err(|e| format!("the groups can't be joined on {}: {e}", place.interface))?,
            Step::Move(place) => self.move_to(place, now)?,
        }
        Ok(())
    }

    /// varpd will look for an interface at its next start that is not there.
    fn warn_if_unnamed(&self, place: &Place) {
        if let Some(named) = self.config.underlay.as_ref().filter(|n| **n != place.interface) {
            log::warn!(
                "the underlay's interface is now {}, but the configuration says '{named}': change it before the next start",
                place.interface
            );
        }
    }

    fn say_settled(&mut self, step: &Step, now: Now) {
        match self.follower.settled(step, now.mono) {
            Some(Word::Waits(why)) => {
                log::warn!("the underlay is gone, waiting for it: {why}");
                self.manager.status(&format!("waiting: {why}"));
                return;
            }
            Some(Word::Back) => log::info!("the underlay is there again: {}", self.describe()),
            None if *step == Step::Keep => return,
            None => {}
        }
        self.manager.status(&self.status());
    }

    /// What packets of the underlay's interface may be long, in bytes; what is was, while it is away.
    pub(super) fn underlay_mtu(&mut self) -> io::Result<u32> {
        match (link::mtu(&self.place.interface), self.mtu) {
            (Ok(mtu), _) => Ok(*self.mtu.insert(mtu)),
            (Err(_), Some(known)) => Ok(known),
            (Err(e), None) => Err(e),
        }
    }

    /// The longest datagram that vifs of this host are sent.
    pub(super) fn longest_datagram(&self) -> Longest {
        self.mtu.map_or(Longest::UNKNOWN, |mtu| Longest::of_mtu(mtu, self.place.address))
    }

    /// The address is on another interface, or on one that was made anew.
    fn rejoin(&mut self, place: &Place, now: Now) -> io::Result<()> {
        let before = self.opener.site().interface;
        let mtu = link::mtu(&place.interface)?;
        self.opener.move_to(place.address, place.index);
        if let Err(e) = self.varp.rejoin(&self.opener, before) {
            self.opener.move_to(place.address, before);
            return Err(e);
        }
        log::info!(
            "{} is on {} now, before on {}: joined the multicast groups there",
            place.address,
            place.interface,
            self.place.interface
        );
        self.counters.inc(VarpdCounter::underlay_joins);
        watch_varp(&self.poller, &self.varp, &[Via::Beacon(0), Via::Beacon(1)])?;
        self.hello_basis = None;
        self.be_at(place, mtu);
        let vifs = self.registry.iter().map(|(id, _)| id).collect();
        self.rejoin_vifs(vifs, before, now);
        for (id, client) in self.live_vifs() {
            self.tell_place(id, client, mtu, Handed::Nothing, now);
        }
        self.tell_longest(now);
        self.mapper.greet(now);
        Ok(())
    }

    /// Moves the sockets of vifs to the underlay's interface from the one with this index. Those that can't be moved
    /// are tried again until they are.
    fn rejoin_vifs(&mut self, vifs: Vec<LocalVif>, before: u32, now: Now) {
        for id in vifs {
            let Some(vif) = self.registry.get_mut(id) else { continue };
            let (key, interface) = (vif.key, &self.place.interface);
            match self.opener.rejoin_vif(&vif.sockets, before) {
                Ok(()) => {
                    if std::mem::take(&mut vif.is_deaf) {
                        log::info!("vif {key}: joined its multicast groups on {interface}");
                    }
                }
                Err(e) => {
                    vif.is_deaf = true;
                    self.retry_at = Some(now.mono + RETRY);
                    let level = self.complaints.deaf.level(key, now.mono);
                    log::log!(
                        level,
                        "vif {key}: can't join its multicast groups on {interface}, so it receives no broadcasts; trying \
                         again every second: {e}"
                    );
                }
            }
        }
    }

    /// Tries again what has failed at sockets.
    pub(super) fn retry(&mut self, now: Now) {
        self.retry_at = None;
        let deaf = self.registry.iter().filter(|(_, vif)| vif.is_deaf).map(|(id, _)| id);
        let deaf: Vec<LocalVif> = deaf.collect();
        self.rejoin_vifs(deaf, self.place.index, now);
        self.hear_questions(now);
    }

    /// Questions about the vnets of this host's vifs are heard.
    pub(super) fn hear_questions(&mut self, now: Now) {
        if !self.varp.hear_questions(self.registry.vnets(), now.mono) {
            self.retry_at = Some(now.mono + RETRY);
        }
    }

    /// Others send this host's vifs no longer datagrams than it takes now.
    fn tell_longest(&mut self, now: Now) {
        let longest = self.longest_datagram();
        let vifs: Vec<LocalVif> = self.registry.iter().map(|(id, _)| id).collect();
        for id in vifs {
            let Some(vif) = self.registry.get_mut(id) else { continue };
            vif.coa.longest = longest;
            let coa = vif.coa;
            self.mapper.move_vif(id, coa, now);
            self.move_learnt(id, coa, now);
        }
    }

    fn be_at(&mut self, place: &Place, mtu: u32) {
        self.warn_if_unnamed(place);
        (self.place, self.mtu) = (place.clone(), Some(mtu));
    }

    /// The host has another address.
    fn move_to(&mut self, place: &Place, now: Now) -> Result<(), String> {
        let before = self.place.clone();
        let mtu = link::mtu(&place.interface).map_err(|e| e.to_string())?;
        self.opener.move_to(place.address, place.index);
        let key = self.security.sadb.token_key();
        let watched = |varp: Varp| {
            let done = watch_varp(&self.poller, &varp, &Via::ALL);
            done.map(|()| varp).map_err(|e| e.to_string())
        };
        let opened = Varp::open(&self.opener, self.main_group, key, self.config.beacon)
            .map_err(|e| e.to_string())
            .and_then(watched);
        let varp = opened.inspect_err(|_| self.opener.move_to(before.address, before.index))?;
        self.varp.flush(now.mono, &self.counters);
        self.varp = varp;
        log::info!(
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
        let vifs: Vec<LocalVif> = self.registry.iter().map(|(id, _)| id).collect();
        for id in vifs {
            if let Err(e) = self.move_vif(id, mtu, now) {
                let vif = self.registry.get(id).map(|vif| vif.key.to_string()).unwrap_or_default();
                log::warn!("vif {vif}: can't open sockets at {}: {e}", place.address);
                self.send_away(id, now);
            }
            self.drive(now);
        }
        self.hear_questions(now);
        self.mapper.greet(now);
        Ok(())
    }

    fn live_vifs(&self) -> Vec<(LocalVif, ClientId)> {
        let live = |(id, vif): (LocalVif, &super::registry::Vif<_>)| match vif.owner {
            Owner::Live(client) => Some((id, client)),
            Owner::Kept(_) => None,
        };
        self.registry.iter().filter_map(live).collect()
    }

    /// A vif has no sockets at the new address: its backend has to come again.
    fn send_away(&mut self, id: LocalVif, now: Now) {
        if let Some(Owner::Live(client)) = self.registry.get(id).map(|vif| vif.owner) {
            self.drop_client(client, "is to come again", now);
        }
        self.forget_vif(id, now);
    }

    fn move_vif(&mut self, id: LocalVif, mtu: u32, now: Now) -> io::Result<()> {
        let Some(vif) = self.registry.get(id) else { return Ok(()) };
        let sockets = self.sockets_for(vif.key.vnet, vif.queue_pairs)?;
        let longest = self.longest_datagram();
        // Nothing comes late to the old ones any more.
        self.unwatch_late(id);
        self.close_lanes_of(id, now);
        let Some(vif) = self.registry.get_mut(id) else { return Ok(()) };
        let coa = CareOf { addr: sockets.address(), longest, ..vif.coa };
        log::info!("vif {} at {coa}, before at {}", vif.key, vif.coa);
        (vif.coa, vif.sockets, vif.brings_stamps) = (coa, sockets, false);
        vif.is_deaf = false;
        match vif.owner {
            Owner::Live(client) => {
                if self.tell_place(id, client, mtu, Handed::All, now) {
                    self.send_keys(id, client, now);
                }
            }
            Owner::Kept(_) => {
                (vif.active, vif.stamp) = (false, None);
                if let Err(e) = vif.sockets.bound() {
                    log::debug!("can't bound what waits for vif {}: {e}", vif.key);
                }
                self.clear_learnt(id, now);
                self.mapper.set_active(id, false, None, now);
            }
        }
        self.mapper.move_vif(id, coa, now);
        self.move_learnt(id, coa, now);
        Ok(())
    }
}
