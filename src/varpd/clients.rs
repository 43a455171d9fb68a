//! The connections to the control socket.
//!
//! varpd never waits for a client. A backend that does not take a message at once loses its
//! connection: its queue in the kernel holds hundreds of events, and it can register again with its
//! sockets. An operator's table may be longer than that queue: its rows wait here until the client
//! takes them. A slow monitor misses events, and gets their number.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use zeroize::Zeroizing;

use crate::host::{ClientId, Rows, missed};
use crate::sys::event::{Interest, Poller};
use crate::sys::seqpacket::{Connection, Received};
use crate::time::{Instant, Now};
use crate::wire::VifKey;
use crate::wire::control::{Cell, Column, Event};

/// Room in the kernel for events that a client has not yet read, in bytes: about 700 mappings.
const QUEUE: usize = 512 << 10;
/// varpd closes the connection of an operator's command that takes no row for this time.
const ROWS_TIMEOUT: Duration = Duration::from_secs(10);
/// Most events that wait for a monitor, in addition to those in the kernel.
const MOST_EVENTS: usize = 1024;

/// A connection.
#[derive(Debug)]
struct Client {
    connection: Connection,
    /// Rows that wait for room in the kernel's queue.
    rows: VecDeque<Vec<u8>>,
    /// The client has yet to take all rows of a table.
    owes_table: bool,
    /// The table continues after this key (`Some(None)`: begins) when the client has taken these
    /// rows.
    page: Option<Option<VifKey>>,
    /// Time at which the client last took rows.
    took: Instant,
    /// Number of events that it missed because too many waited, and the time of the last, in
    /// milliseconds since 1970.
    missed: (u64, u64),
}

/// All connections.
#[derive(Debug)]
pub(super) struct Clients {
    clients: BTreeMap<ClientId, Client>,
    next: u64,
}

/// The result of an attempt to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Sent {
    /// The message is sent or waits to be sent, or there is no such client.
    Ok,
    /// The client has taken the last row of a table.
    Taken,
    /// The client does not read, or is gone.
    Stalled,
}

impl Clients {
    /// No connection; ids start at `first`.
    pub(super) fn new(first: u64) -> Self {
        Self { clients: BTreeMap::new(), next: first }
    }

    /// Adds a new connection.
    pub(super) fn add(
        &mut self,
        connection: Connection,
        poller: &Poller,
        now: Instant,
    ) -> io::Result<ClientId> {
        connection.set_queue(QUEUE)?;
        let id = ClientId(self.next);
        poller.add(&connection, id.0, Interest::Read)?;
        self.next += 1;
        let client = Client {
            connection,
            rows: VecDeque::new(),
            owes_table: false,
            page: None,
            took: now,
            missed: (0, 0),
        };
        self.clients.insert(id, client);
        Ok(id)
    }

    /// A connection, read-only.
    pub(super) fn get(&self, id: ClientId) -> Option<&Connection> {
        self.clients.get(&id).map(|client| &client.connection)
    }

    /// Closes a connection. Returns false if there is none with this id.
    pub(super) fn remove(&mut self, id: ClientId) -> bool {
        self.clients.remove(&id).is_some()
    }

    /// Receives the next message of a client.
    pub(super) fn receive(&self, id: ClientId, buffer: &mut [u8]) -> io::Result<Received> {
        match self.clients.get(&id) {
            Some(client) => client.connection.recv(buffer),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Shows an event to a monitor, if not too many wait for it already.
    pub(super) fn offer(
        &mut self,
        id: ClientId,
        cells: Vec<Cell>,
        poller: &Poller,
        now: Now,
    ) -> Sent {
        let Some(client) = self.clients.get_mut(&id) else { return Sent::Ok };
        if client.rows.len() >= MOST_EVENTS {
            client.missed = (client.missed.0 + 1, now.wall_ms);
            return Sent::Ok;
        }
        client.tell_missed();
        client.rows.push_back(Event::Row { cells }.emit());
        self.flush(id, poller, now)
    }

    /// Sends an event at once; never queues it.
    pub(super) fn send(&self, id: ClientId, event: &Event, fds: &[BorrowedFd<'_>]) -> Sent {
        let Some(client) = self.clients.get(&id) else { return Sent::Ok };
        // The event may contain a key.
        let bytes = Zeroizing::new(event.emit());
        match client.connection.send(&bytes, fds) {
            Ok(()) => Sent::Ok,
            Err(e) => {
                log::debug!("client {}: {e}", id.0);
                Sent::Stalled
            }
        }
    }

    /// Begins a table that is sent a page at a time. The poller then reports the client as
    /// writable.
    pub(super) fn begin_pages(
        &mut self,
        id: ClientId,
        columns: &'static [Column],
        poller: &Poller,
        now: Now,
    ) -> Sent {
        if let Some(client) = self.clients.get_mut(&id) {
            client.rows.push_back(Event::Columns { columns: columns.into() }.emit());
            (client.page, client.took, client.owes_table) = (Some(None), now.mono, true);
        }
        self.flush(id, poller, now)
    }

    /// The key after which the client's table continues, if the client can take the next page now.
    pub(super) fn wants_page(&self, id: ClientId) -> Option<Option<VifKey>> {
        self.clients.get(&id).filter(|client| client.rows.is_empty())?.page
    }

    /// Sends a page. `more`: the key after which the table continues, if it does.
    pub(super) fn send_page(
        &mut self,
        id: ClientId,
        rows: Rows,
        more: Option<VifKey>,
        poller: &Poller,
        now: Now,
    ) -> Sent {
        if let Some(client) = self.clients.get_mut(&id) {
            client.rows.extend(rows.into_iter().map(|cells| Event::Row { cells }.emit()));
            client.page = more.map(Some);
            if more.is_none() {
                client.rows.push_back(Event::End.emit());
            }
        }
        self.flush(id, poller, now)
    }

    /// Sends a table and its end, as fast as the client takes the rows.
    pub(super) fn send_rows(
        &mut self,
        id: ClientId,
        columns: &'static [Column],
        rows: Rows,
        poller: &Poller,
        now: Now,
    ) -> Sent {
        let Some(client) = self.clients.get_mut(&id) else { return Sent::Ok };
        (client.took, client.owes_table) = (now.mono, true);
        client.rows.push_back(Event::Columns { columns: columns.into() }.emit());
        client.rows.extend(rows.into_iter().map(|cells| Event::Row { cells }.emit()));
        client.rows.push_back(Event::End.emit());
        self.flush(id, poller, now)
    }

    /// Sends rows that wait, as far as the client has room.
    pub(super) fn flush(&mut self, id: ClientId, poller: &Poller, now: Now) -> Sent {
        let Some(client) = self.clients.get_mut(&id) else { return Sent::Ok };
        loop {
            if client.rows.is_empty() {
                client.tell_missed();
            }
            let Some(row) = client.rows.front() else { break };
            match client.connection.send(row, &[]) {
                Ok(()) => {
                    client.rows.pop_front();
                    client.took = now.mono;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return Sent::Stalled,
            }
        }
        let is_done = client.rows.is_empty() && client.page.is_none();
        let interest = if is_done { Interest::Read } else { Interest::ReadWrite };
        match poller.change(&client.connection, id.0, interest) {
            Ok(()) if is_done && std::mem::take(&mut client.owes_table) => Sent::Taken,
            Ok(()) => Sent::Ok,
            Err(_) => Sent::Stalled,
        }
    }

    /// Time at which to check for clients that do not take their rows.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        let waiting = self.clients.values().filter(|c| c.owes_table);
        waiting.map(|c| c.took + ROWS_TIMEOUT).min()
    }

    /// The clients that do not take their rows.
    pub(super) fn stalled(&self, now: Instant) -> Vec<ClientId> {
        let stalled = |c: &Client| c.owes_table && c.took + ROWS_TIMEOUT <= now;
        self.clients.iter().filter(|(_, c)| stalled(c)).map(|(&id, _)| id).collect()
    }
}

impl Client {
    /// Queues a row with the number of events that the client missed, if any.
    fn tell_missed(&mut self) {
        if self.missed.0 > 0 {
            let cells = missed(self.missed.0, self.missed.1);
            self.rows.push_back(Event::Row { cells }.emit());
            self.missed = (0, 0);
        }
    }
}
#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::seqpacket::Listener;

    struct Bench {
        listener: Listener,
        poller: Poller,
        clients: Clients,
        dir: tempfile::TempDir,
    }

    fn bench() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        Bench {
            listener: Listener::bind(&dir.path().join("s"), 0o600, None).unwrap(),
            poller: Poller::new(8).unwrap(),
            clients: Clients::new(16),
            dir,
        }
    }

    impl Bench {
        fn connect(&mut self) -> (Connection, ClientId) {
            let connection = Connection::open(&self.dir.path().join("s")).unwrap();
            let accepted = self.listener.accept().unwrap();
            let id = self.clients.add(accepted, &self.poller, Instant::ZERO).unwrap();
            (connection, id)
        }
    }

    fn at(ms: u64) -> Now {
        Now { mono: Instant::from_millis(ms), wall_ms: 1000 + ms }
    }

    fn read(connection: &Connection) -> Option<Event> {
        let mut buffer = [0; 4096];
        let got = connection.recv(&mut buffer).ok()?;
        Some(Event::parse(&buffer[..got.len]).unwrap())
    }

    #[test]
    fn rows_wait_for_a_slow_reader_and_events_do_not() {
        let mut b = bench();
        let (reader, id) = b.connect();
        let rows: Rows = (0..5000).map(|n| vec![Cell::Number(n)]).collect();
        const COLUMNS: &[Column] = &[Column::number("n", "rows")];
        let sent = b.clients.send_rows(id, COLUMNS, rows, &b.poller, at(0));
        assert_eq!(sent, Sent::Ok);
        assert!(b.clients.clients[&id].owes_table, "more than the kernel holds");
        assert_eq!(b.clients.send(id, &Event::End, &[]), Sent::Stalled);
        assert_eq!(b.clients.stalled(Instant::from_millis(9999)), []);
        assert_eq!(b.clients.stalled(Instant::from_millis(10_000)), [id]);

        assert_eq!(read(&reader), Some(Event::Columns { columns: COLUMNS.into() }));
        let mut got = 0;
        let mut taken = 0;
        loop {
            match read(&reader) {
                Some(Event::Row { cells }) => {
                    assert_eq!(cells, [Cell::Number(got)]);
                    got += 1;
                }
                Some(event) => {
                    assert_eq!(event, Event::End);
                    break;
                }
                None => match b.clients.flush(id, &b.poller, at(9000)) {
                    Sent::Ok => {}
                    Sent::Taken => taken += 1,
                    Sent::Stalled => panic!("it reads"),
                },
            }
        }
        assert_eq!(got, 5000);
        assert_eq!((taken, b.clients.next_timeout()), (1, None), "told once that all is taken");
        assert!(!b.clients.clients[&id].owes_table);
    }

    #[test]
    fn a_slow_monitor_holds_up_nobody_and_hears_what_it_missed() {
        const EVENTS: u64 = 100_000;
        let mut b = bench();
        let (reader, id) = b.connect();
        for n in 0..EVENTS {
            let cells = vec![Cell::Number(n)];
            assert_eq!(b.clients.offer(id, cells, &b.poller, at(n)), Sent::Ok);
        }
        assert!(b.clients.clients[&id].rows.len() <= MOST_EVENTS);
        assert_eq!(
            b.clients.stalled(Instant::from_millis(u64::MAX / 2000)),
            [],
            "nor is it dropped"
        );
        let (mut seen, mut missed) = (0, 0);
        while seen + missed < EVENTS {
            match read(&reader) {
                Some(Event::Row { cells }) if cells.len() == 1 => {
                    assert_eq!(cells, [Cell::Number(seen + missed)], "in order");
                    seen += 1;
                }
                Some(Event::Row { cells }) => {
                    assert_eq!(cells[1], Cell::text("missed"));
                    let Some(Cell::Number(count)) = cells.last() else { panic!("{cells:?}") };
                    missed += count;
                }
                Some(other) => panic!("{other:?}"),
                None => assert_eq!(b.clients.flush(id, &b.poller, at(0)), Sent::Ok),
            }
        }
        assert!(seen >= MOST_EVENTS as u64 && missed > 0, "{seen} seen, {missed} missed");
    }
}
