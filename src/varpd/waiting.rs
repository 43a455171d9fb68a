//! The time before there is a place on the underlay: the interface is not there yet, or has no address.

use std::time::Duration;

use crate::config::Config;
use crate::sys::clock;
use crate::sys::event::{Interest, Poller};
use crate::sys::notify::ServiceManager;
use crate::sys::rtnetlink::{Interface, Rtnetlink};
use crate::sys::signal::Termination;
use crate::time::Instant;

use super::site::{self, Place};
use super::{VarpdError, failed};

/// How often it is said again what is waited for.
pub(super) const REMINDER: Duration = Duration::from_secs(60);
/// How long the service manager is to wait for the next word: longer than until the reminder.
const PATIENCE: Duration = Duration::from_secs(180);

/// Waits until there is a place. `None`: the process was told to end.
///
/// # Errors
/// What does not pass by waiting.
pub(super) fn await_place(
    config: &Config,
    rtnetlink: &mut Rtnetlink,
    termination: &Termination,
    manager: &ServiceManager,
) -> Result<Option<Place>, VarpdError> {
    let mut poller = Poller::new(2).map_err(failed("open an epoll set"))?;
    let (signals, news) = (0, 1);
    let add = failed("fill the epoll set");
    poller
        .add(termination, signals, Interest::Read)
        .and_then(|()| poller.add(rtnetlink, news, Interest::Read))
        .map_err(add)?;
    let mut said: Option<(String, Instant)> = None;
    loop {
        let interfaces = list(config, rtnetlink)?;
        let why = match site::choose(config, &interfaces) {
            Ok((interface, address)) => {
                warn_without_multicast(interface);
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
        poller.wait(Some(REMINDER)).map_err(failed("wait for events"))?;
        if let Ok(Some(signal)) = termination.take() {
            log::info!("exiting on {signal}");
            return Ok(None);
        }
        rtnetlink.news(0);
    }
}

/// The interfaces, as far as the configuration leaves a choice that depends on it with their routes.
pub(super) fn list(
    config: &Config,
    rtnetlink: &mut Rtnetlink,
) -> Result<Vec<Interface>, VarpdError> {
    rtnetlink.interfaces(needs_routes(config)).map_err(failed("list the network interfaces"))
}

/// Whether routes matter: nothing else says which interface is meant.
pub(super) fn needs_routes(config: &Config) -> bool {
    config.underlay.is_none() && config.address.is_none()
}

pub(super) fn warn_without_multicast(interface: &Interface) {
    if !interface.multicast && !interface.loopback {
        log::warn!(
            "interface {} cannot carry multicast, so varpd finds no other host: choose another (--underlay)",
            interface.name
        );
    }
}
