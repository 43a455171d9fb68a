//! The connections to the control socket.
//!
//! varpd never waits for a client. What a backend doesn't take at once costs it its connection: its
//! queue in the kernel holds hundreds of events, and it can come back with its sockets. An
//! operator's table may be longer than that queue: its rows wait here until they are taken. A monitor
//! that is slow misses events, and hears how many.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use zeroize::Zeroizing;

use crate::mapper::LocalVif;
use crate::sys::event::{Interest, Poller};
use crate::sys::seqpacket::{Connection, Peer};
use crate::time::{Instant, Now};
use crate::wire::VifKey;
use crate::wire::control::{Cell, Column, ErrorCode, Event, Features};

use super::monitor::missed;

/// Room in the kernel for events that a client has not yet read, in bytes: about 700 mappings.
const QUEUE: usize = 512 << 10;
/// An operator's command that takes no row for so long is gone or stopped.
const ROWS_TIMEOUT: Duration = Duration::from_secs(10);
/// Events that wait for a monitor at most, beside those in the kernel.
const MOST_EVENTS: usize = 1024;
/// Connections of one process at most, unless it is root's: a backend has one. Those of a user often
/// serve guests that have nothing to do with each other, and none is to take all places of the user.
const MOST_PER_PROCESS: usize = 16;
/// Connections at the operators' socket: those of backends take none of their places.
const MOST_OPERATORS: usize = 64;
/// Root may always look: so many connections more than the limit are its own.
const ROOT_RESERVE: usize = 8;

/// Names a connection; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ClientId(pub(super) u64);

/// At which socket a client came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Door {
    /// The control socket.
    Control,
    /// That of operators.
    Operators,
}

/// What a client has shown itself to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Nothing yet.
    Unknown,
    /// The backend of a vif.
    Backend(LocalVif),
    /// Asks for tables.
    Operator,
    /// Watches events.
    Monitor,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) connection: Connection,
    pub(super) peer: Peer,
    pub(super) door: Door,
    pub(super) role: Role,
    /// What it has beyond the version of the protocol, once it has said HELLO.
    pub(super) features: Option<Features>,
    /// Rows that wait for room in the kernel's queue.
    rows: VecDeque<Vec<u8>>,
    /// The table goes on behind this key, when these rows are taken.
    page: Option<Option<VifKey>>,
    /// When the client was last seen to take rows.
    took: Instant,
    /// Events that it missed because too many waited, and the time of the last, milliseconds since
    /// 1970.
    missed: (u64, u64),
}

/// All connections.
#[derive(Debug)]
pub(super) struct Clients {
    clients: BTreeMap<ClientId, Client>,
    next: u64,
    most: usize,
    most_per_user: usize,
}

/// Rows of a table: the cells of each.
pub(super) type Rows = Vec<Vec<Cell>>;

/// What became of an attempt to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Sent {
    /// It is on its way, or there is no such client.
    Ok,
    /// The client doesn't read, or is gone: it has to be dropped.
    Stalled,
}

impl Clients {
    /// No connection; ids start at `first`.
    pub(super) fn new(first: u64, most: usize, most_per_user: usize) -> Self {
        Self { clients: BTreeMap::new(), next: first, most, most_per_user }
    }

    /// Takes a new connection, or says why not.
    pub(super) fn add(
        &mut self,
        connection: Connection,
        door: Door,
        poller: &Poller,
        now: Instant,
    ) -> io::Result<Result<ClientId, String>> {
        let peer = connection.peer()?;
        let (most, most_per_user) = match door {
            Door::Control => (self.most, self.most_per_user),
            Door::Operators => (MOST_OPERATORS, self.most_per_user.min(MOST_OPERATORS / 2)),
        };
        let there = || self.clients.values().filter(|c| c.door == door);
        let of_user = there().filter(|c| c.peer.uid == peer.uid).count();
        let (root, all) = (peer.uid == 0, there().count());
        if all >= most + if root { ROOT_RESERVE } else { 0 } {
            refuse(&connection, &format!("varpd has {all} clients already"));
            return Ok(Err("too many clients".into()));
        }
        if !root && of_user >= most_per_user {
            refuse(&connection, &format!("user {} has {of_user} clients already", peer.uid));
            return Ok(Err(format!("too many clients of user {}", peer.uid)));
        }
        let of_process = there().filter(|c| c.peer == peer).count();
        // Number 0 is that of every process in a namespace that is not seen from here.
        if !root && peer.pid != 0 && of_process >= MOST_PER_PROCESS {
            let process = peer.pid;
            refuse(&connection, &format!("process {process} has {of_process} clients already"));
            return Ok(Err(format!("too many clients of process {process}")));
        }
        connection.set_queue(QUEUE)?;
        let id = ClientId(self.next);
        poller.add(&connection, id.0, Interest::Read)?;
        self.next += 1;
        let (role, rows, page, missed) = (Role::Unknown, VecDeque::new(), None, (0, 0));
        let features = None;
        let client =
            Client { connection, peer, door, role, features, rows, page, took: now, missed };
        self.clients.insert(id, client);
        Ok(Ok(id))
    }

    /// A client, to look at.
    pub(super) fn get(&self, id: ClientId) -> Option<&Client> {
        self.clients.get(&id)
    }

    /// A client, to change.
    pub(super) fn get_mut(&mut self, id: ClientId) -> Option<&mut Client> {
        self.clients.get_mut(&id)
    }

    /// Closes a connection.
    pub(super) fn remove(&mut self, id: ClientId) -> Option<Client> {
        self.clients.remove(&id)
    }

    /// Number of connections.
    pub(super) fn len(&self) -> usize {
        self.clients.len()
    }

    /// Number of clients with rows of tables that wait.
    pub(super) fn with_rows(&self) -> usize {
        self.clients.values().filter(|c| c.owes_rows()).count()
    }

    /// Those who watch events.
    pub(super) fn monitors(&self) -> impl Iterator<Item = ClientId> {
        self.clients.iter().filter(|(_, c)| c.role == Role::Monitor).map(|(&id, _)| id)
    }

    /// Sends an event to one who watches, if not too many wait for it already.
    pub(super) fn offer(&mut self, id: ClientId, row: Vec<u8>, poller: &Poller, now: Now) -> Sent {
        let Some(client) = self.clients.get_mut(&id) else { return Sent::Ok };
        if client.rows.len() >= MOST_EVENTS {
            client.missed = (client.missed.0 + 1, now.wall_ms);
            return Sent::Ok;
        }
        client.tell_missed();
        client.rows.push_back(row);
        self.flush(id, poller, now)
    }

    /// Sends an event now or never.
    pub(super) fn send(&self, id: ClientId, event: &Event, fds: &[BorrowedFd<'_>]) -> Sent {
        let Some(client) = self.clients.get(&id) else { return Sent::Ok };
        // It may be a key.
        let bytes = Zeroizing::new(event.emit());
        match client.connection.send(&bytes, fds) {
            Ok(()) => Sent::Ok,
            Err(e) => {
                log::debug!("client {} of user {}: {e}", id.0, client.peer.uid);
                Sent::Stalled
            }
        }
    }

    /// Begins a table that is made a page at a time: the client will be shown to be writable.
    pub(super) fn begin_pages(
        &mut self,
        id: ClientId,
        columns: &'static [Column],
        poller: &Poller,
        now: Now,
    ) -> Sent {
        if let Some(client) = self.clients.get_mut(&id) {
            client.rows.push_back(Event::Columns { columns: columns.into() }.emit());
            (client.page, client.took) = (Some(None), now.mono);
        }
        self.flush(id, poller, now)
    }

    /// The key behind which the client wants the next page of its table, if it does now.
    pub(super) fn wants_page(&self, id: ClientId) -> Option<Option<VifKey>> {
        self.clients.get(&id).filter(|client| client.rows.is_empty())?.page
    }

    /// Sends a page; `more` is where the table goes on, if it does.
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

    /// Sends a table, as fast as the client takes its rows, and the end.
    pub(super) fn send_rows(
        &mut self,
        id: ClientId,
        columns: &'static [Column],
        rows: Rows,
        poller: &Poller,
        now: Now,
    ) -> Sent {
        let Some(client) = self.clients.get_mut(&id) else { return Sent::Ok };
        client.took = now.mono;
        client.rows.push_back(Event::Columns { columns: columns.into() }.emit());
        client.rows.extend(rows.into_iter().map(|cells| Event::Row { cells }.emit()));
        client.rows.push_back(Event::End.emit());
        self.flush(id, poller, now)
    }

    /// The client has room again: sends rows that wait.
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
            Ok(()) => Sent::Ok,
            Err(_) => Sent::Stalled,
        }
    }

    /// When to look for clients that don't take their rows.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        let waiting = self.clients.values().filter(|c| c.owes_rows());
        waiting.map(|c| c.took + ROWS_TIMEOUT).min()
    }

    /// The clients that don't take their rows.
    pub(super) fn stalled(&self, now: Instant) -> Vec<ClientId> {
        let stalled = |c: &Client| c.owes_rows() && c.took + ROWS_TIMEOUT <= now;
        self.clients.iter().filter(|(_, c)| stalled(c)).map(|(&id, _)| id).collect()
    }
}

impl Client {
    /// Whether rows of a table wait for it.
    fn owes_rows(&self) -> bool {
        self.role != Role::Monitor && !(self.rows.is_empty() && self.page.is_none())
    }

    /// Lets it know what it missed, if anything.
    fn tell_missed(&mut self) {
        if self.missed.0 > 0 {
            self.rows.push_back(missed(self.missed.0, self.missed.1));
            self.missed = (0, 0);
        }
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

/// A last word to a connection that is not taken.
fn refuse(connection: &Connection, why: &str) {
    let event = Event::Error { code: ErrorCode::Limit, text: why.to_owned() };
    // It is closed next, whether it hears or not.
    let _ = connection.send(&event.emit(), &[]);
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

    impl Bench {
        fn connect_to(&mut self, door: Door) -> (Connection, Option<ClientId>) {
            let connection = Connection::open(&self.dir.path().join("s")).unwrap();
            let accepted = self.listener.accept().unwrap();
            let id = self.clients.add(accepted, door, &self.poller, Instant::ZERO).unwrap();
            (connection, id.ok())
        }
    }

    fn bench(most: usize, most_per_user: usize) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        Bench {
            listener: Listener::bind(&dir.path().join("s"), 0o600, None).unwrap(),
            poller: Poller::new(8).unwrap(),
            clients: Clients::new(16, most, most_per_user),
            dir,
        }
    }

    impl Bench {
        fn connect(&mut self) -> (Connection, Option<ClientId>) {
            self.connect_to(Door::Control)
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
    fn one_too_many_is_told_why() {
        let mut b = bench(1, 1);
        let reserve = if nix::unistd::geteuid().is_root() { ROOT_RESERVE } else { 0 };
        let kept: Vec<_> = (0..=reserve).map(|_| b.connect()).collect();
        assert!(kept.iter().all(|(_, id)| id.is_some()));
        let (refused, id) = b.connect();
        assert_eq!(id, None);
        let Some(Event::Error { code: ErrorCode::Limit, text }) = read(&refused) else { panic!() };
        assert!(text.contains("already"), "{text}");
        assert!(b.connect_to(Door::Operators).1.is_some(), "operators have places of their own");
        let first = kept[0].1.unwrap();
        assert!(b.clients.remove(first).is_some());
        assert!(b.connect().1.is_some());
    }

    #[test]
    fn rows_wait_for_a_slow_reader_and_events_do_not() {
        let mut b = bench(4, 4);
        let (reader, id) = b.connect();
        let id = id.unwrap();
        let rows: Rows = (0..5000).map(|n| vec![Cell::Number(n)]).collect();
        const COLUMNS: &[Column] = &[Column::number("n", "rows")];
        let sent = b.clients.send_rows(id, COLUMNS, rows, &b.poller, at(0));
        assert_eq!(sent, Sent::Ok);
        assert_eq!(b.clients.with_rows(), 1, "more than the kernel holds");
        assert_eq!(b.clients.send(id, &Event::End, &[]), Sent::Stalled);
        assert_eq!(b.clients.stalled(Instant::from_millis(9999)), []);
        assert_eq!(b.clients.stalled(Instant::from_millis(10_000)), [id]);

        assert_eq!(read(&reader), Some(Event::Columns { columns: COLUMNS.into() }));
        let mut got = 0;
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
                None => {
                    assert_eq!(b.clients.flush(id, &b.poller, at(9000)), Sent::Ok);
                }
            }
        }
        assert_eq!(got, 5000);
        assert_eq!((b.clients.with_rows(), b.clients.next_timeout()), (0, None));
    }

    #[test]
    fn a_slow_monitor_holds_up_nobody_and_hears_what_it_missed() {
        const EVENTS: u64 = 100_000;
        let mut b = bench(4, 4);
        let (reader, id) = b.connect();
        let id = id.unwrap();
        b.clients.get_mut(id).unwrap().role = Role::Monitor;
        for n in 0..EVENTS {
            let row = Event::Row { cells: vec![Cell::Number(n)] }.emit();
            assert_eq!(b.clients.offer(id, row, &b.poller, at(n)), Sent::Ok);
        }
        assert!(b.clients.get(id).unwrap().rows.len() <= MOST_EVENTS);
        assert_eq!(b.clients.with_rows(), 0, "it keeps no table from being read");
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
