//! The mapper's events, streamed to operators who watch (`vnet monitor`).
//!
//! varpd never waits for one who doesn't read: so many events wait for each, later ones are missed,
//! and how many is the next thing that it is told.

use crate::mapper::Event;
use crate::show::{self, NONE};
use crate::time::Now;
use crate::wire::control;

use super::clients::{ClientId, Role};
use super::daemon::Daemon;
use super::requests::Failure;

/// Most monitors at a time.
const MOST_MONITORS: usize = 16;

impl Daemon {
    /// A client wants to be shown events from now on; it is told when that begins.
    pub(super) fn begin_monitor(&mut self, id: ClientId, now: Now) -> Result<(), Failure> {
        if self.clients.monitors().count() >= MOST_MONITORS {
            return Err(Failure::busy("too many monitors are watching"));
        }
        if let Some(client) = self.clients.get_mut(id) {
            client.role = Role::Monitor;
        }
        let sent = self.clients.send(id, &control::Event::End, &[]);
        self.drop_if_stalled(id, sent, now);
        Ok(())
    }

    /// Something happened at the mapper: it is logged, and shown to those who watch.
    pub(super) fn show_event(&mut self, event: &Event, now: Now) {
        // Anybody can claim vifs on vnets that this host has no part in.
        let vnet = event.key().vnet;
        let level = match event.is_alarm() && self.varp.hears(vnet) {
            true => self.complaints.alarms.level(vnet, event.name(), now.mono),
            false => log::Level::Debug,
        };
        log::log!(level, "{event}");
        let watching: Vec<ClientId> = self.clients.monitors().collect();
        if watching.is_empty() {
            return;
        }
        let row = control::Event::Row { cells: cells(event, now.wall_ms) }.emit();
        for id in watching {
            let sent = self.clients.offer(id, row.clone(), &self.poller, now);
            self.drop_if_stalled(id, sent, now);
        }
    }
}

/// The cells of an event, in the order of [`show::MONITOR`].
fn cells(event: &Event, wall_ms: u64) -> Vec<String> {
    let or_none = |text: Option<String>| text.unwrap_or_else(|| NONE.to_owned());
    let claim = event.claim();
    vec![
        or_none(show::time(wall_ms)),
        event.name().to_owned(),
        event.key().vnet.to_string(),
        event.key().mac.to_string(),
        or_none(claim.map(|claim| claim.coa.to_string())),
        or_none(claim.map(|claim| show::stamp(claim.stamp))),
        or_none(event.before().map(|before| before.coa.to_string())),
        NONE.to_owned(),
    ]
}

/// What one is told who missed events.
pub(super) fn missed(count: u64, wall_ms: u64) -> Vec<u8> {
    let time = show::time(wall_ms).unwrap_or_else(|| NONE.to_owned());
    let mut cells = vec![NONE.to_owned(); show::MONITOR.len()];
    for (cell, text) in cells.iter_mut().zip([time, show::MISSED.to_owned()]) {
        *cell = text;
    }
    if let Some(last) = cells.last_mut() {
        *last = count.to_string();
    }
    control::Event::Row { cells }.emit()
}
