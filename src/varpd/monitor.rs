//! The mapper's events, streamed to operators who watch (`vnet monitor`).
//!
//! varpd never waits for one who doesn't read: so many events wait for each, later ones are missed,
//! and how many is the next thing that it is told.

use crate::mapper::Event;
use crate::show;
use crate::time::Now;
use crate::wire::control::{self, Cell, Column};

use super::clients::{ClientId, Role};
use super::daemon::Daemon;
use super::requests::Failure;

/// What an event consists of.
const COLUMNS: &[Column] = &[
    Column::text("time"),
    Column::text("event"),
    Column::number("vnet", ""),
    Column::text("mac"),
    Column::text("coa"),
    Column::text("stamp"),
    Column::text("from"),
    // How many events this monitor was too slow for.
    Column::number("missed", "events"),
];

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
        let columns = control::Event::Columns { columns: COLUMNS.into() };
        for event in [columns, control::Event::End] {
            let sent = self.clients.send(id, &event, &[]);
            self.drop_if_stalled(id, sent, now);
        }
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

/// The cells of an event, in the order of [`COLUMNS`].
fn cells(event: &Event, wall_ms: u64) -> Vec<Cell> {
    let claim = event.claim();
    vec![
        Cell::Time(wall_ms),
        Cell::text(event.name()),
        Cell::Number(event.key().vnet.get().into()),
        Cell::Mac(event.key().mac),
        Cell::or_nothing(claim, |claim| Cell::Address(claim.coa.addr)),
        Cell::or_nothing(claim, |claim| Cell::Time(claim.stamp.0)),
        Cell::or_nothing(event.before(), |before| Cell::Address(before.coa.addr)),
        Cell::Nothing,
    ]
}

/// What one is told who missed events.
pub(super) fn missed(count: u64, wall_ms: u64) -> Vec<u8> {
    let mut cells = vec![Cell::Nothing; COLUMNS.len()];
    let known = [Cell::Time(wall_ms), Cell::text(show::MISSED)];
    cells.iter_mut().zip(known).for_each(|(cell, known)| *cell = known);
    if let Some(last) = cells.last_mut() {
        *last = Cell::Number(count);
    }
    control::Event::Row { cells }.emit()
}
