//! The mapper's events, streamed to operators who watch (`vnet monitor`).
//!
//! varpd never waits for a monitor that does not read. A bounded number of events waits for it; it
//! misses later ones, and the next row that it gets says how many.

#![forbid(unsafe_code)]

use crate::mapper::Event;
use crate::show;
use crate::time::Now;
use crate::wire::control::{self, Cell, Column};

use super::Host;
use super::clients::{ClientId, Role};
use super::output::Output;
use super::requests::Failure;

/// The columns of an event.
const COLUMNS: &[Column] = &[
    Column::text("time"),
    Column::text("event"),
    Column::number("vnet", ""),
    Column::text("mac"),
    Column::text("coa"),
    Column::text("stamp"),
    Column::text("from"),
    // Number of events that this monitor missed because it was too slow.
    Column::number("missed", "events"),
];

/// Most monitors at a time.
const MOST_MONITORS: usize = 16;

impl Host {
    /// Begins to stream events to a client, and confirms it to the client.
    pub(super) fn begin_monitor(&mut self, id: ClientId) -> Result<(), Failure> {
        if self.clients.monitors().count() >= MOST_MONITORS {
            return Err(Failure::busy("too many monitors are watching"));
        }
        if let Some(client) = self.clients.get_mut(id) {
            client.role = Role::Monitor;
        }
        self.tell(id, control::Event::Columns { columns: COLUMNS.into() });
        self.tell(id, control::Event::End);
        Ok(())
    }

    /// Logs an event of the mapper, and shows it to the monitors.
    pub(super) fn show_event(&mut self, event: &Event, now: Now) {
        // Any host can claim vifs on vnets without vifs here, so those alarms go to the debug
        // level.
        let vnet = event.key().vnet;
        let level = match event.is_alarm() && self.underlay.hears(vnet) {
            true => self.complaints.alarms.level(vnet, event.name(), now.mono),
            false => log::Level::Debug,
        };
        say!(self, level, "{event}");
        let watching: Vec<ClientId> = self.clients.monitors().collect();
        for client in watching {
            let cells = cells(event, now.wall_ms);
            self.outputs.push_back(Output::Show { client, cells });
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

/// The row that tells a monitor how many events it missed, the last of them at `wall_ms`.
pub(crate) fn missed(count: u64, wall_ms: u64) -> Vec<Cell> {
    let mut cells = vec![Cell::Nothing; COLUMNS.len()];
    let known = [Cell::Time(wall_ms), Cell::text(show::MISSED)];
    cells.iter_mut().zip(known).for_each(|(cell, known)| *cell = known);
    if let Some(last) = cells.last_mut() {
        *last = Cell::Number(count);
    }
    cells
}
