//! Tables as they travel: columns with names and units, then rows of typed cells, so that text,
//! JSON and metrics are made from the same values; and the counters of backends.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::Duration;

use super::codec::Writer;
use crate::wire::reader::Reader;
use crate::wire::{Mac, ParseError};

/// Most columns of a table, and cells of a row.
pub const MAX_CELLS: usize = 16;
/// Longest text in a cell, in bytes: 16 of them fit in [`super::MAX_LEN`].
pub const MAX_CELL: usize = 400;
/// Longest name of a column or counter, in bytes.
pub const MAX_NAME: usize = 80;
/// Longest unit, in bytes: 128 counters of at most 2 + 80 + 1 + 2 + 24 + 8 bytes fit in
/// [`super::MAX_LEN`].
pub const MAX_UNIT: usize = 24;

/// Flag of a column: it holds numbers, aligned to the right.
const NUMBERS: u8 = 1;
/// Flag of a column: it is for programs only.
const DETAIL: u8 = 2;

/// A column of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name: in capitals its header, and its key in JSON.
    pub name: Cow<'static, str>,
    /// The unit of its numbers, in the plural; empty if they have none.
    pub unit: Cow<'static, str>,
    /// Whether it holds numbers, which are aligned to the right.
    pub is_number: bool,
    /// Whether it is for programs only: text leaves it out.
    pub is_detail: bool,
}

impl Column {
    /// A column of words, addresses or times.
    pub const fn text(name: &'static str) -> Self {
        let (name, unit) = (Cow::Borrowed(name), Cow::Borrowed(""));
        Self { name, unit, is_number: false, is_detail: false }
    }

    /// A column of numbers in a unit, which may be empty.
    pub const fn number(name: &'static str, unit: &'static str) -> Self {
        let (name, unit) = (Cow::Borrowed(name), Cow::Borrowed(unit));
        Self { name, unit, is_number: true, is_detail: false }
    }

    /// A column of words for programs only.
    pub const fn detail(name: &'static str) -> Self {
        let (name, unit) = (Cow::Borrowed(name), Cow::Borrowed(""));
        Self { name, unit, is_number: false, is_detail: true }
    }
}

/// A value in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell {
    /// There is none.
    Nothing,
    /// Words, at most [`MAX_CELL`] bytes.
    Text(Cow<'static, str>),
    /// A number in the column's unit.
    Number(u64),
    /// This number, or more: counting has reached its limit.
    AtLeast(u64),
    /// A span of time, to the microsecond.
    Span(Duration),
    /// A difference of two clocks, in milliseconds.
    Offset(i64),
    /// Milliseconds since 1970-01-01 UTC.
    Time(u64),
    /// A MAC address.
    Mac(Mac),
    /// An IP address and a UDP port.
    Address(SocketAddr),
}

impl Cell {
    /// Words.
    pub fn text(text: impl Into<Cow<'static, str>>) -> Self {
        Self::Text(text.into())
    }

    /// The value, or nothing.
    pub fn or_nothing<T>(value: Option<T>, cell: impl FnOnce(T) -> Self) -> Self {
        value.map_or(Self::Nothing, cell)
    }
}

/// The kind of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows, from 0 at the start of the program.
    Counter,
    /// It is the number at this moment.
    Gauge,
}

impl Kind {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
        }
    }

    const fn code(self) -> u8 {
        match self {
            Self::Counter => 1,
            Self::Gauge => 2,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [Self::Counter, Self::Gauge].into_iter().find(|kind| kind.code() == code)
    }
}

/// A named number of a backend; it belongs to the backend's vif.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The name, at most [`MAX_NAME`] bytes.
    pub name: String,
    /// Its kind.
    pub kind: Kind,
    /// Its unit in the plural, at most [`MAX_UNIT`] bytes; empty if it has none.
    pub unit: String,
    /// The number.
    pub value: u64,
}

mod code {
    pub(super) const NOTHING: u8 = 0;
    pub(super) const TEXT: u8 = 1;
    pub(super) const NUMBER: u8 = 2;
    pub(super) const AT_LEAST: u8 = 3;
    pub(super) const SPAN: u8 = 4;
    pub(super) const OFFSET: u8 = 5;
    pub(super) const TIME: u8 = 6;
    pub(super) const MAC: u8 = 7;
    pub(super) const ADDRESS: u8 = 8;
}

impl Reader<'_> {
    pub(super) fn columns(&mut self) -> Result<Vec<Column>, ParseError> {
        let n = self.count(MAX_CELLS)?;
        (0..n).map(|_| self.column()).collect()
    }

    fn column(&mut self) -> Result<Column, ParseError> {
        let name = Cow::Owned(self.text(MAX_NAME)?);
        let unit = Cow::Owned(self.text(MAX_UNIT)?);
        let flags = self.u8()?;
        if flags & !(NUMBERS | DETAIL) != 0 {
            return Err(ParseError::Reserved);
        }
        let (is_number, is_detail) = (flags & NUMBERS != 0, flags & DETAIL != 0);
        Ok(Column { name, unit, is_number, is_detail })
    }

    pub(super) fn cells(&mut self) -> Result<Vec<Cell>, ParseError> {
        let n = self.count(MAX_CELLS)?;
        (0..n).map(|_| self.cell()).collect()
    }

    fn cell(&mut self) -> Result<Cell, ParseError> {
        Ok(match self.u8()? {
            code::NOTHING => Cell::Nothing,
            code::TEXT => Cell::text(self.text(MAX_CELL)?),
            code::NUMBER => Cell::Number(self.u64()?),
            code::AT_LEAST => Cell::AtLeast(self.u64()?),
            code::SPAN => Cell::Span(Duration::from_micros(self.u64()?)),
            code::OFFSET => Cell::Offset(i64::from_be_bytes(self.array()?)),
            code::TIME => Cell::Time(self.u64()?),
            code::MAC => Cell::Mac(self.mac()?),
            code::ADDRESS => Cell::Address(self.addr()?),
            _ => return Err(ParseError::Value),
        })
    }

    pub(super) fn sample(&mut self) -> Result<Sample, ParseError> {
        let name = self.text(MAX_NAME)?;
        let kind = Kind::from_code(self.u8()?).ok_or(ParseError::Value)?;
        Ok(Sample { name, kind, unit: self.text(MAX_UNIT)?, value: self.u64()? })
    }
}

impl Writer {
    pub(super) fn columns(&mut self, columns: &[Column]) -> &mut Self {
        self.count(columns.len(), MAX_CELLS);
        for Column { name, unit, is_number, is_detail } in columns.iter().take(MAX_CELLS) {
            let number = if *is_number { NUMBERS } else { 0 };
            let detail = if *is_detail { DETAIL } else { 0 };
            self.text(name, MAX_NAME).text(unit, MAX_UNIT).u8(number | detail);
        }
        self
    }

    pub(super) fn cells(&mut self, cells: &[Cell]) -> &mut Self {
        self.count(cells.len(), MAX_CELLS);
        for cell in cells.iter().take(MAX_CELLS) {
            self.cell(cell);
        }
        self
    }

    fn cell(&mut self, cell: &Cell) -> &mut Self {
        match cell {
            Cell::Nothing => self.u8(code::NOTHING),
            Cell::Text(text) => self.u8(code::TEXT).text(text, MAX_CELL),
            Cell::Number(n) => self.u8(code::NUMBER).u64(*n),
            Cell::AtLeast(n) => self.u8(code::AT_LEAST).u64(*n),
            Cell::Span(span) => {
                let micros = u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
                self.u8(code::SPAN).u64(micros)
            }
            Cell::Offset(ms) => self.u8(code::OFFSET).bytes(&ms.to_be_bytes()),
            Cell::Time(ms) => self.u8(code::TIME).u64(*ms),
            Cell::Mac(mac) => self.u8(code::MAC).mac(*mac),
            Cell::Address(address) => self.u8(code::ADDRESS).addr(address),
        }
    }

    pub(super) fn sample(&mut self, sample: &Sample) -> &mut Self {
        let Sample { name, kind, unit, value } = sample;
        self.text(name, MAX_NAME).u8(kind.code()).text(unit, MAX_UNIT).u64(*value)
    }
}
