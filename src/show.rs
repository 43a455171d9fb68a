//! Tables as text and as JSON, and the words in which values are shown.

#![forbid(unsafe_code)]

use std::fmt::Write as _;

use serde_json::{Map, Value};

use crate::wire::control::Table;
use crate::wire::{Mac, Stamp, VnetId};

/// What a cell shows that has no value.
pub const NONE: &str = "-";

/// A column of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its header, in capitals, and its key in JSON.
    pub name: &'static str,
    /// Numbers are aligned to the right, and are numbers in JSON.
    pub number: bool,
}

const fn text(name: &'static str) -> Column {
    Column { name, number: false }
}

const fn number(name: &'static str) -> Column {
    Column { name, number: true }
}

/// The columns of a table; varpd sends the cells of its rows in this order.
pub const fn columns(table: Table) -> &'static [Column] {
    match table {
        Table::Vnets => VNETS,
        Table::Vifs => VIFS,
        Table::Varp => VARP,
        Table::Stats => STATS,
        Table::Peers => PEERS,
        Table::Hosts => HOSTS,
    }
}

/// What follows a number of hosts beyond which varpd has counted none.
pub const AT_LEAST: &str = "+";

const VNETS: &[Column] = &[
    number("vnet"),
    number("vifs"),
    number("active"),
    number("cached"),
    text("group"),
    text("policy"),
    text("key"),
    number("others"),
    number("untagged"),
];
const VIFS: &[Column] = &[
    number("vnet"),
    text("mac"),
    number("uid"),
    number("pid"),
    text("coa"),
    text("state"),
    text("stamp"),
    text("since"),
];
const VARP: &[Column] = &[
    number("vnet"),
    text("mac"),
    text("coa"),
    text("stamp"),
    text("state"),
    number("age"),
    number("expires"),
];
/// The columns of an event of `vnet monitor`. `detail` is how many events were missed.
pub const MONITOR: &[Column] = &[
    text("time"),
    text("event"),
    number("vnet"),
    text("mac"),
    text("coa"),
    text("stamp"),
    text("from"),
    number("missed"),
];
/// The event of one who missed events.
pub const MISSED: &str = "missed";

const PEERS: &[Column] = &[
    number("vnet"),
    text("peer"),
    text("policy"),
    text("state"),
    text("key"),
    text("cipher"),
    number("age"),
    number("rekey"),
    number("expires"),
    number("senders"),
    number("sessions"),
    number("made"),
    number("failed"),
    number("dropped"),
];
const HOSTS: &[Column] = &[
    text("host"),
    text("version"),
    number("vifs"),
    number("group"),
    number("unicast"),
    number("clock"),
    number("vnet"),
    number("longest"),
    text("note"),
];
const STATS: &[Column] = &[text("scope"), text("counter"), number("value")];

/// An event as a line for people: only what it has.
pub fn event_as_text(cells: &[String]) -> String {
    let cell = |name: &str| {
        let at = MONITOR.iter().position(|column| column.name == name)?;
        let cell = cells.get(at).filter(|cell| *cell != NONE)?;
        Some(cell.replace(char::is_control, "?"))
    };
    let vif = cell("vnet").zip(cell("mac")).map(|(vnet, mac)| format!("{vnet}/{mac}"));
    let named = |name: &str, word: &str| cell(name).map(|cell| format!("{word} {cell}"));
    let parts = [
        cell("time"),
        cell("event").map(|event| format!("{event:<11}")),
        vif,
        named("coa", "at"),
        named("from", "from"),
        named("stamp", "stamp"),
        cell("missed").map(|count| format!("{count} events: this monitor is too slow")),
    ];
    let line: Vec<String> = parts.into_iter().flatten().collect();
    line.join(" ").trim_end().to_owned() + "\n"
}

/// An event as a JSON object on a line of its own; what it doesn't have is null.
pub fn event_as_json(cells: &[String]) -> String {
    let value = |(column, cell): (&Column, &String)| {
        let value = if cell == NONE { Value::Null } else { json_value(column, cell) };
        (column.name.to_owned(), value)
    };
    let fields: Map<String, Value> = MONITOR.iter().zip(cells).map(value).collect();
    Value::Object(fields).to_string() + "\n"
}

/// Selects rows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filter {
    /// Only this vnet.
    pub vnet: Option<VnetId>,
    /// Only this MAC.
    pub mac: Option<Mac>,
}

impl Filter {
    /// Whether a row of the table is selected. A row without a vnet or MAC is not, if it is asked
    /// for.
    pub fn selects(&self, table: Table, row: &[String]) -> bool {
        self.selects_among(columns(table), row)
    }

    /// The same for a row with these columns.
    pub fn selects_among(&self, columns: &[Column], row: &[String]) -> bool {
        let cell = |name| {
            let at = columns.iter().position(|c| c.name == name);
            at.and_then(|at| row.get(at)).map(String::as_str)
        };
        let (vnet, mac) = match cell("scope") {
            // A vif's scope is its key.
            Some(scope) => scope.split_once('/').unzip(),
            None => (cell("vnet"), cell("mac")),
        };
        self.vnet.is_none_or(|want| vnet.and_then(|v| v.parse().ok()) == Some(want))
            && self.mac.is_none_or(|want| mac.and_then(|m| m.parse().ok()) == Some(want))
    }
}

/// The table with aligned columns under headers. Names of counters come from backends: no control
/// character reaches the terminal.
pub fn as_text(table: Table, rows: &[Vec<String>]) -> String {
    let columns = columns(table);
    let cell = |row: &[String], at: usize| {
        let text = row.get(at).map_or(NONE, String::as_str);
        text.replace(char::is_control, "?")
    };
    let width = |at: usize, column: &Column| {
        let cells = rows.iter().map(|row| cell(row, at).chars().count());
        cells.chain([column.name.len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = columns.iter().enumerate().map(|(at, c)| width(at, c)).collect();
    let line = |cells: Vec<String>| {
        let mut line = String::new();
        for ((cell, &width), column) in cells.iter().zip(&widths).zip(columns) {
            let gap = if line.is_empty() { "" } else { "  " };
            // Writing to a String can't fail.
            let _ = if column.number {
                write!(line, "{gap}{cell:>width$}")
            } else {
                write!(line, "{gap}{cell:<width$}")
            };
        }
        line.trim_end().to_owned() + "\n"
    };
    let header = line(columns.iter().map(|c| c.name.to_uppercase()).collect());
    let body = rows.iter().map(|row| line((0..columns.len()).map(|at| cell(row, at)).collect()));
    std::iter::once(header).chain(body).collect()
}

/// The table as a JSON array of objects, one per line. An absent number is null.
pub fn as_json(table: Table, rows: &[Vec<String>]) -> String {
    let object = |row: &Vec<String>| {
        let cells = columns(table).iter().zip(row);
        let fields: Map<String, Value> =
            cells.map(|(c, cell)| (c.name.to_owned(), json_value(c, cell))).collect();
        Value::Object(fields).to_string()
    };
    let lines: Vec<String> = rows.iter().map(object).collect();
    if lines.is_empty() { "[]\n".into() } else { format!("[{}]\n", lines.join(",\n ")) }
}

fn json_value(column: &Column, cell: &str) -> Value {
    match (column.number, cell) {
        (true, NONE) => Value::Null,
        (true, cell) => serde_json::from_str::<serde_json::Number>(cell)
            .map_or_else(|_| Value::from(cell), Value::Number),
        (false, cell) => Value::from(cell),
    }
}

/// A stamp as the time of its claim (UTC); as a number if it's not a time of these millennia.
pub fn stamp(stamp: Stamp) -> String {
    time(stamp.0).unwrap_or_else(|| stamp.0.to_string())
}

/// Milliseconds since 1970 as a date and time (RFC 3339, UTC), up to the year 9999.
pub fn time(ms: u64) -> Option<String> {
    let (days, rest) = (ms / 86_400_000, ms % 86_400_000);
    let (y, m, d) = date(days)?;
    let (h, min, s, milli) = (rest / 3_600_000, rest / 60_000 % 60, rest / 1000 % 60, rest % 1000);
    Some(format!("{y:04}-{m:02}-{d:02}T{h:02}:{min:02}:{s:02}.{milli:03}Z"))
}

/// Year, month and day of the `days`th day after 1970-01-01, in the Gregorian calendar.
fn date(days: u64) -> Option<(u64, u64, u64)> {
    // Whole 400-year cycles have 146,097 days; shifted to start on 0000-03-01, leap days come last.
    let shifted = days + 719_468;
    let (cycle, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day_of_month = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = cycle * 400 + year + carry;
    (year <= 9999).then_some((year, month, day_of_month))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &[&[&str]]) -> Vec<Vec<String>> {
        text.iter().map(|row| row.iter().map(|&cell| cell.to_owned()).collect()).collect()
    }

    #[test]
    fn text_is_aligned() {
        let rows = rows(&[&["varpd", "requests", "7"], &["42/52:54:00:00:00:01", "tx", "123456"]]);
        let want = "\
SCOPE                 COUNTER    VALUE
varpd                 requests       7
42/52:54:00:00:00:01  tx        123456
";
        assert_eq!(as_text(Table::Stats, &rows), want);
        assert_eq!(as_text(Table::Stats, &[]), "SCOPE  COUNTER  VALUE\n");
    }

    #[test]
    fn nothing_controls_the_terminal() {
        let rows = rows(&[&["42/52:54:00:00:00:01", "\x1b[2J\n\u{9b}x", "1"]]);
        let text = as_text(Table::Stats, &rows);
        assert!(text.ends_with("  ?[2J??x      1\n"), "{text:?}");
    }

    #[test]
    fn json_numbers_are_numbers() {
        let rows = rows(&[&["42", "m", "c", "s", "valid", "1.5", "-"]]);
        let value: Value = serde_json::from_str(&as_json(Table::Varp, &rows)).unwrap();
        let want = serde_json::json!([{"vnet": 42, "mac": "m", "coa": "c", "stamp": "s",
            "state": "valid", "age": 1.5, "expires": null}]);
        assert_eq!(value, want);
        assert_eq!(as_json(Table::Varp, &[]), "[]\n");
    }

    #[test]
    fn events_are_lines() {
        let row = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let moved = row("12:00 moved 42 m 192.0.2.1:5 s 192.0.2.2:5 -");
        assert_eq!(
            event_as_text(&moved),
            "12:00 moved       42/m at 192.0.2.1:5 from 192.0.2.2:5 stamp s\n"
        );
        let value: Value = serde_json::from_str(&event_as_json(&moved)).unwrap();
        let want = serde_json::json!({"time": "12:00", "event": "moved", "vnet": 42, "mac": "m",
            "coa": "192.0.2.1:5", "stamp": "s", "from": "192.0.2.2:5", "missed": null});
        assert_eq!(value, want);
        let missed = row("12:00 missed - - - - - 17");
        assert_eq!(
            event_as_text(&missed),
            "12:00 missed      17 events: this monitor is too slow\n"
        );
        assert!(event_as_json(&missed).contains("\"missed\":17"));
    }

    #[test]
    fn filters_select_by_key() {
        let filter = |vnet, mac: &str| Filter { vnet: VnetId::new(vnet), mac: mac.parse().ok() };
        let vif = &rows(&[&["42", "52:54:00:00:00:01"]])[0];
        let stat = &rows(&[&["42/52:54:00:00:00:01", "tx", "1"]])[0];
        let own = &rows(&[&["varpd", "tx", "1"]])[0];
        for (table, row) in [(Table::Vifs, vif), (Table::Stats, stat)] {
            assert!(filter(0, "").selects(table, row));
            assert!(filter(42, "").selects(table, row));
            assert!(filter(42, "52:54:00:00:00:01").selects(table, row));
            assert!(!filter(43, "").selects(table, row));
            assert!(!filter(0, "52:54:00:00:00:02").selects(table, row));
        }
        assert!(filter(0, "").selects(Table::Stats, own));
        assert!(!filter(42, "").selects(Table::Stats, own));
    }

    #[test]
    fn stamps_are_times() {
        assert_eq!(stamp(Stamp(0)), "1970-01-01T00:00:00.000Z");
        assert_eq!(stamp(Stamp(951_782_400_123)), "2000-02-29T00:00:00.123Z");
        assert_eq!(stamp(Stamp(1_772_323_199_999)), "2026-02-28T23:59:59.999Z");
        assert_eq!(stamp(Stamp(4_107_542_400_000)), "2100-03-01T00:00:00.000Z");
        assert_eq!(stamp(Stamp(253_402_300_799_999)), "9999-12-31T23:59:59.999Z");
        assert_eq!(stamp(Stamp(253_402_300_800_000)), "253402300800000");
        assert_eq!(stamp(Stamp(u64::MAX)), u64::MAX.to_string());
    }
}
