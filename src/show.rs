//! Tables and events of varpd as text and as JSON.

#![forbid(unsafe_code)]

use std::fmt::Write as _;

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::wire::control::{Cell, Column};
use crate::wire::{Mac, VnetId};

/// The text of a cell without a value.
pub const NONE: &str = "-";
/// The text that follows a number beyond which was not counted.
const AT_LEAST: &str = "+";
/// The event of one who missed events.
pub const MISSED: &str = "missed";

/// An answer of varpd: rows under their columns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rows {
    /// The columns.
    pub columns: Vec<Column>,
    /// The cells of each row, in the order of the columns.
    pub rows: Vec<Vec<Cell>>,
}

/// The cell of a row under a column of this name.
pub fn cell<'a>(columns: &[Column], row: &'a [Cell], name: &str) -> &'a Cell {
    let at = columns.iter().position(|column| column.name == name);
    at.and_then(|at| row.get(at)).unwrap_or(&Cell::Nothing)
}

/// A cell as text. Names come from other programs: no control character reaches the terminal.
pub fn as_word(cell: &Cell) -> String {
    match cell {
        Cell::Nothing => NONE.to_owned(),
        Cell::Text(text) => text.replace(char::is_control, "?"),
        Cell::Number(n) => n.to_string(),
        Cell::AtLeast(n) => format!("{n}{AT_LEAST}"),
        Cell::Span(span) => format!("{:.1}", span.as_secs_f64()),
        Cell::Offset(ms) => {
            let (sign, ms) = (if *ms < 0 { "-" } else { "" }, ms.unsigned_abs());
            format!("{sign}{}.{:03}", ms / 1000, ms % 1000)
        }
        Cell::Time(ms) => time(*ms),
        Cell::Mac(mac) => mac.to_string(),
        Cell::Address(address) => address.to_string(),
    }
}

/// A cell as JSON: numbers are numbers, times in seconds too; nothing is null.
fn as_value(cell: &Cell) -> Value {
    match cell {
        Cell::Nothing => Value::Null,
        Cell::Number(n) => Value::from(*n),
        Cell::Span(_) | Cell::Offset(_) => {
            let word = as_word(cell);
            word.parse::<serde_json::Number>().map_or_else(|_| Value::from(word), Value::Number)
        }
        Cell::Text(text) => Value::from(text.as_ref()),
        Cell::AtLeast(_) | Cell::Time(_) | Cell::Mac(_) | Cell::Address(_) => {
            Value::from(as_word(cell))
        }
    }
}

fn as_object(columns: &[Column], row: &[Cell]) -> String {
    let field = |(column, cell): (&Column, &Cell)| (column.name.to_string(), as_value(cell));
    let fields: Map<String, Value> = columns.iter().zip(row).map(field).collect();
    Value::Object(fields).to_string()
}

/// An event as a line of text, without its empty fields.
pub fn event_as_text(columns: &[Column], row: &[Cell]) -> String {
    let word = |name: &str| match cell(columns, row, name) {
        Cell::Nothing => None,
        cell => Some(as_word(cell)),
    };
    let vif = word("vnet").zip(word("mac")).map(|(vnet, mac)| format!("{vnet}/{mac}"));
    let named = |name: &str, label: &str| word(name).map(|word| format!("{label} {word}"));
    let parts = [
        word("time"),
        word("event").map(|event| format!("{event:<11}")),
        vif,
        named("coa", "at"),
        named("from", "from"),
        named("stamp", "stamp"),
        word("missed").map(|count| format!("{count} events: this monitor is too slow")),
    ];
    let line: Vec<String> = parts.into_iter().flatten().collect();
    line.join(" ").trim_end().to_owned() + "\n"
}

/// An event as a JSON object on a line of its own.
pub fn event_as_json(columns: &[Column], row: &[Cell]) -> String {
    as_object(columns, row) + "\n"
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
    /// Whether a row is selected. A row without a vnet or MAC is not, if it is asked for.
    pub fn selects(&self, columns: &[Column], row: &[Cell]) -> bool {
        let has_vnet = |want: VnetId| match cell(columns, row, "vnet") {
            Cell::Number(vnet) => *vnet == u64::from(want.get()),
            _ => false,
        };
        let has_mac = |want: Mac| *cell(columns, row, "mac") == Cell::Mac(want);
        self.vnet.is_none_or(has_vnet) && self.mac.is_none_or(has_mac)
    }
}

impl Rows {
    /// The table with aligned columns under headers, without those that are for programs.
    pub fn as_text(&self) -> String {
        let shown: Vec<(usize, &Column)> =
            self.columns.iter().enumerate().filter(|(_, column)| !column.is_detail).collect();
        let word = |row: &[Cell], at: usize| as_word(row.get(at).unwrap_or(&Cell::Nothing));
        let header = |column: &Column| column.name.to_uppercase().replace(char::is_control, "?");
        let width = |(at, column): &(usize, &Column)| {
            let words = self.rows.iter().map(|row| word(row, *at).chars().count());
            words.chain([header(column).chars().count()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = shown.iter().map(width).collect();
        let line = |words: Vec<String>| {
            let mut line = String::new();
            for ((word, &width), (_, column)) in words.iter().zip(&widths).zip(&shown) {
                let gap = if line.is_empty() { "" } else { "  " };
                // Writing to a String can't fail.
                let _ = if column.is_number {
                    write!(line, "{gap}{word:>width$}")
                } else {
                    write!(line, "{gap}{word:<width$}")
                };
            }
            line.trim_end().to_owned() + "\n"
        };
        let first = line(shown.iter().map(|(_, column)| header(column)).collect());
        let words = |row: &Vec<Cell>| line(shown.iter().map(|(at, _)| word(row, *at)).collect());
        std::iter::once(first).chain(self.rows.iter().map(words)).collect()
    }

    /// The table as a JSON array of objects, one per line.
    pub fn as_json(&self) -> String {
        let lines: Vec<String> =
            self.rows.iter().map(|row| as_object(&self.columns, row)).collect();
        if lines.is_empty() { "[]\n".into() } else { format!("[{}]\n", lines.join(",\n ")) }
    }

    /// The cell of a row under a column of this name.
    pub fn cell<'a>(&self, row: &'a [Cell], name: &str) -> &'a Cell {
        cell(&self.columns, row, name)
    }
}

/// Milliseconds since 1970 as a date and time (RFC 3339, UTC); as a number if it's not a time of
/// these millennia.
pub fn time(ms: u64) -> String {
    let timestamp = i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    timestamp.map_or_else(|| ms.to_string(), |timestamp| format!("{timestamp:.3}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn table(columns: &[Column], rows: &[&[Cell]]) -> Rows {
        Rows { columns: columns.to_vec(), rows: rows.iter().map(|row| row.to_vec()).collect() }
    }

    fn mac() -> Mac {
        "52:54:00:00:00:01".parse().unwrap()
    }

    const COUNTERS: &[Column] = &[
        Column::number("vnet", ""),
        Column::text("mac"),
        Column::text("counter"),
        Column::number("value", ""),
        Column::detail("unit"),
    ];

    fn counters() -> Rows {
        let own = [
            Cell::Nothing,
            Cell::Nothing,
            Cell::text("requests"),
            Cell::Number(7),
            Cell::text("messages"),
        ];
        let vifs = [
            Cell::Number(42),
            Cell::Mac(mac()),
            Cell::text("tx"),
            Cell::Number(123_456),
            Cell::text("frames"),
        ];
        table(COUNTERS, &[&own, &vifs])
    }

    #[test]
    fn text_is_aligned_and_without_details() {
        let want = "\
VNET  MAC                COUNTER    VALUE
   -  -                  requests       7
  42  52:54:00:00:00:01  tx        123456
";
        assert_eq!(counters().as_text(), want);
        assert_eq!(table(COUNTERS, &[]).as_text(), "VNET  MAC  COUNTER  VALUE\n");
    }

    #[test]
    fn nothing_controls_the_terminal() {
        let rows = table(&[Column::text("counter")], &[&[Cell::text("\x1b[2J\n\u{9b}x")]]);
        assert_eq!(rows.as_text(), "COUNTER\n?[2J??x\n");
        let column = Column { name: "a\x1b[2J".into(), ..Column::text("") };
        assert_eq!(table(&[column], &[]).as_text(), "A?[2J\n");
    }

    #[test]
    fn every_kind_of_cell_has_its_text_and_its_json() {
        let address = "[2001:db8::1]:1798".parse().unwrap();
        let cells = [
            (Cell::Nothing, "-", serde_json::json!(null)),
            (Cell::text("up"), "up", serde_json::json!("up")),
            (Cell::Number(u64::MAX), "18446744073709551615", serde_json::json!(u64::MAX)),
            (Cell::AtLeast(1024), "1024+", serde_json::json!("1024+")),
            (Cell::Span(Duration::from_millis(1520)), "1.5", serde_json::json!(1.5)),
            (Cell::Offset(-90_012), "-90.012", serde_json::json!(-90.012)),
            (Cell::Time(0), "1970-01-01T00:00:00.000Z", "1970-01-01T00:00:00.000Z".into()),
            (Cell::Mac(mac()), "52:54:00:00:00:01", "52:54:00:00:00:01".into()),
            (Cell::Address(address), "[2001:db8::1]:1798", "[2001:db8::1]:1798".into()),
        ];
        for (cell, word, value) in cells {
            assert_eq!(as_word(&cell), word);
            assert_eq!(as_value(&cell), value);
        }
        let value: Value = serde_json::from_str(&counters().as_json()).unwrap();
        let want = serde_json::json!([
            {"vnet": null, "mac": null, "counter": "requests", "value": 7, "unit": "messages"},
            {"vnet": 42, "mac": "52:54:00:00:00:01", "counter": "tx", "value": 123_456, "unit": "frames"},
        ]);
        assert_eq!(value, want);
        assert_eq!(Rows::default().as_json(), "[]\n");
    }

    #[test]
    fn events_are_lines() {
        let columns = ["time", "event", "vnet", "mac", "coa", "stamp", "from", "missed"];
        let columns: Vec<Column> = columns.map(Column::text).into();
        let at = |address: &str| Cell::Address(address.parse().unwrap());
        let mut moved = vec![Cell::Nothing; 8];
        moved[0] = Cell::text("12:00");
        moved[1] = Cell::text("moved");
        (moved[2], moved[3]) = (Cell::Number(42), Cell::Mac(mac()));
        (moved[4], moved[6]) = (at("192.0.2.1:5"), at("192.0.2.2:5"));
        moved[5] = Cell::text("s");
        assert_eq!(
            event_as_text(&columns, &moved),
            "12:00 moved       42/52:54:00:00:00:01 at 192.0.2.1:5 from 192.0.2.2:5 stamp s\n"
        );
        let value: Value = serde_json::from_str(&event_as_json(&columns, &moved)).unwrap();
        let want = serde_json::json!({"time": "12:00", "event": "moved", "vnet": 42,
            "mac": "52:54:00:00:00:01", "coa": "192.0.2.1:5", "stamp": "s", "from": "192.0.2.2:5",
            "missed": null});
        assert_eq!(value, want);
        let mut missed = vec![Cell::Nothing; 8];
        (missed[0], missed[1]) = (Cell::text("12:00"), Cell::text(MISSED));
        missed[7] = Cell::Number(17);
        assert_eq!(
            event_as_text(&columns, &missed),
            "12:00 missed      17 events: this monitor is too slow\n"
        );
        assert!(event_as_json(&columns, &missed).contains("\"missed\":17"));
    }

    #[test]
    fn filters_select_by_key() {
        let filter = |vnet, mac: &str| Filter { vnet: VnetId::new(vnet), mac: mac.parse().ok() };
        let Rows { columns, rows } = counters();
        let selects = |filter: Filter| [0, 1].map(|row| filter.selects(&columns, &rows[row]));
        assert_eq!(selects(filter(0, "")), [true, true]);
        assert_eq!(selects(filter(42, "")), [false, true]);
        assert_eq!(selects(filter(42, "52:54:00:00:00:01")), [false, true]);
        assert_eq!(selects(filter(43, "")), [false, false]);
        assert_eq!(selects(filter(0, "52:54:00:00:00:02")), [false, false]);
    }

    #[test]
    fn times_are_dates() {
        assert_eq!(time(951_782_400_123), "2000-02-29T00:00:00.123Z");
        assert_eq!(time(1_772_323_199_999), "2026-02-28T23:59:59.999Z");
        assert_eq!(time(4_107_542_400_000), "2100-03-01T00:00:00.000Z");
        assert_eq!(time(253_402_300_800_000), "253402300800000");
        assert_eq!(time(u64::MAX), u64::MAX.to_string());
    }
}
