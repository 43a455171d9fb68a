//! The operator's side of the control socket: the requests of `vnet` to varpd, and its exit status.

#![forbid(unsafe_code)]

mod key;

use std::borrow::Cow;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use crate::cli::vnet::{Action, Args, Filter, ShowTable};
use crate::config::{DEFAULT_OPERATOR_SOCKET, DEFAULT_SOCKET};
use crate::show::{self, Rows};
use crate::sys::seqpacket::Connection;
use crate::wire::ParseError;
use crate::wire::control::{
    Cell, ErrorCode, Event, Features, MAX_LEN, Request, Table, VERSION, software,
};

/// varpd answers at once, or after it has waited 300 ms for backends.
const PATIENCE: Duration = Duration::from_secs(10);
/// An answer that makes no sense.
const UNKNOWN: &str = "unknown answer";

/// Why a command failed; each has its exit code.
#[derive(Debug, Error)]
pub enum OperatorError {
    /// A combination of options without a meaning.
    #[error("{0}")]
    Usage(String),
    /// A step that would cut hosts off.
    #[error("{0}")]
    Unready(String),
    /// Nothing is selected.
    #[error("no matching row")]
    NotFound,
    /// No varpd listens.
    #[error("{}: {source} (is varpd running?)", path.display())]
    Down {
        /// The control socket.
        path: PathBuf,
        /// What connecting to it gave.
        source: io::Error,
    },
    /// This user may not connect.
    #[error(
        "{}: permission denied: operators are root and the group of this socket (varpd --operator-group)",
        _0.display()
    )]
    Closed(PathBuf),
    /// varpd refuses.
    #[error("varpd: {0}")]
    Refused(String),
    /// varpd says nothing, or nothing that makes sense.
    #[error("varpd: {0}")]
    Answer(&'static str),
    /// varpd is of a release that has another control protocol.
    #[error(
        "varpd speaks version {0} of the control protocol, this program version {VERSION}: install both from one release, \
         and restart varpd"
    )]
    Version(u8),
    /// A system call failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The control socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl OperatorError {
    /// The exit code: 1 error, 2 usage, 3 not found, 4 daemon down.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::NotFound => 3,
            Self::Down { .. } => 4,
            Self::Closed(_)
            | Self::Unready(_)
            | Self::Refused(_)
            | Self::Answer(_)
            | Self::Version(_)
            | Self::Io { .. } => 1,
        }
    }
}

/// Carries out the command line, and prints the result.
pub fn run(args: &Args, out: &mut impl Write) -> Result<(), OperatorError> {
    let socket = args.socket.clone().unwrap_or_else(usual_socket);
    if let Action::Monitor { filter } = &args.action {
        return monitor(args, &socket, *filter, out);
    }
    let text = answer(args, &socket)?;
    // A reader that has seen enough (`vnet show varp | head`) is no failure.
    let _ = out.write_all(text.as_bytes());
    Ok(())
}

/// The default socket of varpd.
fn usual_socket() -> PathBuf {
    let operators = Path::new(DEFAULT_OPERATOR_SOCKET);
    if operators.exists() { operators.to_owned() } else { DEFAULT_SOCKET.into() }
}

/// The output of commands that end by themselves.
fn answer(args: &Args, socket: &Path) -> Result<String, OperatorError> {
    match &args.action {
        Action::Monitor { .. } => Ok(String::new()),
        Action::Show { table, filter } => {
            let has_macs = !matches!(table, ShowTable::Vnets | ShowTable::Peers | ShowTable::Hosts);
            if filter.mac.is_some() && !has_macs {
                let text = "vnets, peers and hosts have no MAC addresses: --mac selects vifs, varp and stats";
                return Err(OperatorError::Usage(text.into()));
            }
            let rows = ask(socket, &Request::Show { table: Table::from(*table) })?;
            let rows = select(rows, *filter)?;
            Ok(if args.json { rows.as_json() } else { rows.as_text() })
        }
        Action::Key { action } => key::run(action, socket),
        Action::Flush { filter } => {
            let request = Request::Flush { vnet: filter.vnet, mac: filter.mac };
            ask(socket, &request).map(|_| String::new())
        }
    }
}

/// An empty table is an answer; a filter that matches nothing is not.
fn select(answer: Rows, filter: Filter) -> Result<Rows, OperatorError> {
    let Filter { vnet, mac } = filter;
    let filter = show::Filter { vnet, mac };
    let Rows { columns, mut rows } = answer;
    rows.retain(|row| filter.selects(&columns, row));
    if rows.is_empty() && (vnet.is_some() || mac.is_some()) {
        return Err(OperatorError::NotFound);
    }
    Ok(Rows { columns, rows })
}

/// Prints events as they arrive, until the reader or varpd ends.
fn monitor(
    args: &Args,
    socket: &Path,
    filter: Filter,
    out: &mut impl Write,
) -> Result<(), OperatorError> {
    let failed = |source| OperatorError::Io { path: socket.to_owned(), source };
    let Filter { vnet, mac } = filter;
    let filter = show::Filter { vnet, mac };
    let connection = call(socket, &Request::Monitor)?;
    let mut buffer = vec![0; MAX_LEN];
    let mut columns = Cow::default();
    loop {
        if !connection.wait_readable(PATIENCE).map_err(failed)? {
            continue;
        }
        let cells = match receive(&connection, socket, &mut buffer)? {
            Event::Row { cells } => cells,
            Event::Columns { columns: sent } => {
                columns = sent;
                continue;
            }
            Event::Hello { .. } | Event::End => continue,
            _ => return Err(OperatorError::Answer(UNKNOWN)),
        };
        let is_missed = *show::cell(&columns, &cells, "event") == Cell::text(show::MISSED);
        if is_missed || filter.selects(&columns, &cells) {
            let format = if args.json { show::event_as_json } else { show::event_as_text };
            let line = format(&columns, &cells);
            if out.write_all(line.as_bytes()).and_then(|()| out.flush()).is_err() {
                return Ok(());
            }
        }
    }
}

/// Connects and sends a request.
fn call(path: &Path, request: &Request) -> Result<Connection, OperatorError> {
    let failed = |source| OperatorError::Io { path: path.to_owned(), source };
    let connection = Connection::open(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            OperatorError::Down { path: path.to_owned(), source }
        }
        io::ErrorKind::PermissionDenied => OperatorError::Closed(path.to_owned()),
        _ => failed(source),
    })?;
    let hello = Request::Hello { features: Features::NONE, software: software("vnet") };
    let (hello, request) = (hello.emit(), request.emit());
    connection.send_all(&[(&hello, &[]), (&request, &[])]).map_err(failed)?;
    Ok(connection)
}

/// The next event.
fn receive(
    connection: &Connection,
    path: &Path,
    buffer: &mut [u8],
) -> Result<Event, OperatorError> {
    let failed = |source| OperatorError::Io { path: path.to_owned(), source };
    let got = connection.recv(buffer).map_err(failed)?;
    if got.len == 0 {
        return Err(OperatorError::Answer("closed the connection"));
    }
    let bytes = buffer.get(..got.len).unwrap_or_default();
    match (Event::parse(bytes), bytes.first()) {
        (Ok(Event::Error { code: ErrorCode::NotFound, .. }), _) => Err(OperatorError::NotFound),
        (Ok(Event::Error { text, .. }), _) => Err(OperatorError::Refused(text)),
        (Ok(event), _) => Ok(event),
        (Err(ParseError::Version), Some(&version)) => Err(OperatorError::Version(version)),
        _ => Err(OperatorError::Answer(UNKNOWN)),
    }
}

/// Sends a request and collects the rows of the answer.
fn ask(path: &Path, request: &Request) -> Result<Rows, OperatorError> {
    let failed = |source| OperatorError::Io { path: path.to_owned(), source };
    let connection = call(path, request)?;
    let mut answer = Rows::default();
    let mut buffer = vec![0; MAX_LEN];
    loop {
        if !connection.wait_readable(PATIENCE).map_err(failed)? {
            return Err(OperatorError::Answer("no answer"));
        }
        match receive(&connection, path, &mut buffer)? {
            Event::Hello { .. } => {}
            Event::Columns { columns } => answer.columns = columns.into_owned(),
            Event::Row { cells } => answer.rows.push(cells),
            Event::End => return Ok(answer),
            _ => return Err(OperatorError::Answer(UNKNOWN)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::control::Column;
    use clap::Parser;

    fn fails(args: &[&str]) -> OperatorError {
        run(&Args::parse_from(["vnet"].iter().chain(args)), &mut io::sink()).unwrap_err()
    }

    #[test]
    fn each_failure_has_its_code() {
        let down = fails(&["--socket", "/nonexistent/s", "show", "vifs"]);
        assert_eq!(down.exit_code(), 4);
        assert!(down.to_string().contains("is varpd running?"), "{down}");
        let usage = fails(&["show", "vnets", "--mac", "52:54:00:00:00:01"]);
        assert_eq!(usage.exit_code(), 2);
        let down = fails(&["--socket", "/nonexistent/s", "monitor"]);
        assert_eq!(down.exit_code(), 4);
        assert_eq!(OperatorError::NotFound.exit_code(), 3);
        assert_eq!(OperatorError::Refused(String::new()).exit_code(), 1);
    }

    #[test]
    fn an_empty_table_is_found_and_an_empty_selection_is_not() {
        let table = |rows| Rows { columns: vec![Column::number("vnet", "")], rows };
        let none = Filter::default();
        assert!(select(table(Vec::new()), none).unwrap().rows.is_empty());
        let one = Filter { vnet: crate::wire::VnetId::new(42), mac: None };
        assert!(select(table(Vec::new()), one).is_err());
        let found = table(vec![vec![Cell::Number(42)]]);
        assert_eq!(select(found.clone(), one).unwrap(), found);
    }
}
