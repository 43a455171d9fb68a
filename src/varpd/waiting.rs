//! Waits at the start until the underlay's interface exists and has an address.

use std::time::Duration;

use crate::config::Config;
use crate::host::follower::{REMINDER, gap_after};
use crate::host::site::{self, Interface, Place};
use crate::sys::clock;
use crate::sys::event::{Interest, Poller};
use crate::sys::notify::ServiceManager;
use crate::sys::rtnetlink::{self, Rtnetlink};
use crate::sys::signal::Termination;
use crate::time::Instant;

use super::{VarpdError, failed};

/// Start timeout that varpd requests from the service manager: longer than the interval between
/// lines.
const PATIENCE: Duration = Duration::from_secs(180);

/// Waits until there is a place. `None`: a signal ends the process.
///
/// # Errors
/// A problem that waiting cannot solve.
pub(super) fn await_place(
    config: &Config,
    rtnetlink: &mut Rtnetlink,
    termination: &Termination,
    manager: &ServiceManager,
) -> Result<Option<Place>, VarpdError> {
    let mut all = Poller::new(2).map_err(failed("open an epoll set"))?;
    let mut only_signals = Poller::new(1).map_err(failed("open an epoll set"))?;
    let (signals, news) = (0, 1);
    let add = failed("fill the epoll set");
    all.add(termination, signals, Interest::Read)
        .and_then(|()| all.add(rtnetlink, news, Interest::Read))
        .and_then(|()| only_signals.add(termination, signals, Interest::Read))
        .map_err(add)?;
    let mut said: Option<(String, Instant)> = None;
    loop {
        let listed = listed(config, rtnetlink)?;
        let interfaces: Vec<Interface> = listed.iter().cloned().map(Interface::from).collect();
        let why = match site::choose(config, &interfaces) {
            Ok((interface, address)) => {
                let named = listed.iter().find(|listed| listed.index == interface.index);
                named.into_iter().for_each(warn_without_multicast);
                return Ok(Some(Place::of(interface, address)));
            }
            Err(why) if why.may_pass() => why.to_string(),
            Err(why) => return Err(why.into()),
        };
        let now = clock::mono();
        if said.as_ref().is_none_or(|(before, at)| *before != why || *at + REMINDER <= now) {
            log::warn!("waiting for an address on the underlay: {why}");
            manager.starting(&format!("waiting: {why}"), PATIENCE);
            said = Some((why, now));
        }
        // Notifications come fast on a busy router.
        let gap = gap_after(rtnetlink.took());
        for (poller, timeout) in [(&mut only_signals, gap), (&mut all, REMINDER)] {
            poller.wait(Some(timeout)).map_err(failed("wait for events"))?;
            if let Ok(Some(signal)) = termination.take() {
                log::info!("exiting on {signal}");
                return Ok(None);
            }
        }
        rtnetlink.news(0);
    }
}

/// The interfaces, with their routes if the choice depends on them.
pub(super) fn list(
    config: &Config,
    rtnetlink: &mut Rtnetlink,
) -> Result<Vec<Interface>, VarpdError> {
    Ok(listed(config, rtnetlink)?.into_iter().map(Interface::from).collect())
}

fn listed(
    config: &Config,
    rtnetlink: &mut Rtnetlink,
) -> Result<Vec<rtnetlink::Interface>, VarpdError> {
    rtnetlink.interfaces(needs_routes(config)).map_err(failed("list the network interfaces"))
}

impl From<rtnetlink::Interface> for Interface {
    fn from(listed: rtnetlink::Interface) -> Self {
        let rtnetlink::Interface { name, index, master, up, loopback, default_route, .. } = listed;
        let addresses = listed.addresses;
        Self { name, index, master, up, loopback, default_route, addresses }
    }
}

/// Whether the choice depends on routes: the configuration names no interface or address.
pub(super) fn needs_routes(config: &Config) -> bool {
    config.underlay.is_none() && config.address.is_none()
}

fn warn_without_multicast(interface: &rtnetlink::Interface) {
    if !interface.multicast && !interface.loopback {
        log::warn!(
            "interface {} cannot carry multicast, so varpd finds no other host: choose another (--underlay)",
            interface.name
        );
    }
}
