//! Lists the interfaces of the host, and moves the VARP sockets to the host's place on the
//! underlay.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::host::{Input, Place};
use crate::sys::link;
use crate::time::Now;
use crate::wire::VnetId;

use super::daemon::{Daemon, watch_varp};
use super::varp::{Varp, Via};
use super::{VarpdError, waiting};

/// Time until a filter that could not be set is tried again.
const RETRY: Duration = Duration::from_secs(1);

impl Daemon {
    /// The kernel reports changes of interfaces, addresses or routes.
    pub(super) fn hear_underlay(&mut self, now: Now) {
        let news = self.rtnetlink.news(self.host.place().index);
        self.feed(Input::News { any: news.any, is_deleted: news.is_deleted }, now);
    }

    /// Tells the host the interfaces for the first time.
    ///
    /// # Errors
    /// The kernel does not list the interfaces.
    pub(super) fn read_addresses(&mut self, now: Now) -> Result<(), VarpdError> {
        let interfaces = waiting::list(self.host.config(), &mut self.rtnetlink)?;
        let took = self.rtnetlink.took();
        self.feed(Input::Interfaces { result: Ok(interfaces), took }, now);
        Ok(())
    }

    /// Lists the interfaces.
    pub(super) fn look(&mut self) {
        let listed = waiting::list(self.host.config(), &mut self.rtnetlink);
        let (result, took) = (listed.map_err(|e| e.to_string()), self.rtnetlink.took());
        // This MTU is that of the present place, so it precedes the list, which may move the host.
        self.results.push_back(Input::Mtu(self.mtu()));
        self.results.push_back(Input::Interfaces { result, took });
    }

    /// The MTU of the underlay's interface in bytes; `None` while the interface is away.
    pub(super) fn mtu(&self) -> Option<u32> {
        let mtu = link::mtu(&self.host.place().interface);
        mtu.inspect_err(|e| log::debug!("can't read the MTU of the underlay: {e}")).ok()
    }

    /// Joins the VARP groups at a place with the same address.
    pub(super) fn rejoin(&mut self, place: Place) {
        let before = self.opener.site().interface;
        let joined = link::mtu(&place.interface).and_then(|mtu| {
            self.opener.move_to(place.address, place.index);
            let joined = self.varp.rejoin(&self.opener, before);
            joined.inspect_err(|_| self.opener.move_to(place.address, before)).map(|()| mtu)
        });
        let joined = joined.and_then(|mtu| {
            watch_varp(&self.poller, &self.varp, &[Via::Beacon(0), Via::Beacon(1)]).map(|()| mtu)
        });
        self.report(place, joined.map_err(|e| e.to_string()));
    }

    /// Opens the VARP sockets at a place with another address.
    pub(super) fn move_to(&mut self, place: Place, now: Now) {
        let result = self.open_at(&place, now);
        self.report(place, result);
    }

    fn open_at(&mut self, place: &Place, now: Now) -> Result<u32, String> {
        let before = self.opener.site().clone();
        let mtu = link::mtu(&place.interface).map_err(|e| e.to_string())?;
        self.opener.move_to(place.address, place.index);
        let (group, has_beacons) = (self.varp.group_address.ip(), self.host.config().beacon);
        let watched = |varp: Varp| {
            let done = watch_varp(&self.poller, &varp, &Via::ALL);
            done.map(|()| varp).map_err(|e| e.to_string())
        };
        let opened = Varp::open(&self.opener, group, self.host.token_key(), has_beacons)
            .map_err(|e| e.to_string())
            .and_then(watched);
        let varp = opened.inspect_err(|_| self.opener.move_to(before.address, before.interface))?;
        self.varp.flush(now.mono, self.host.counters());
        self.varp = varp;
        self.hear_again(now);
        Ok(mtu)
    }

    fn report(&mut self, place: Place, result: Result<u32, String>) {
        if result.is_ok() {
            let beacons = self.varp.beacon_groups().to_vec();
            self.results.push_back(Input::Beacons(beacons));
        }
        self.results.push_back(Input::Placed { place, result });
    }

    /// Lets only group messages about these vnets pass the filter.
    pub(super) fn hear(&mut self, vnets: BTreeSet<VnetId>, now: Now) {
        self.heard = vnets;
        self.hear_again(now);
    }

    /// Sets the filter; if that fails, tries again after [`RETRY`].
    pub(super) fn hear_again(&mut self, now: Now) {
        let is_done = self.varp.hear_questions(self.heard.clone(), now.mono);
        self.retry_at = (!is_done).then_some(now.mono + RETRY);
    }
}
