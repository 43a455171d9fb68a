//! The table of guest memory, checked before any of it is mapped.
//!
//! A frontend sends it whole (`SET_MEM_TABLE`), or region by region (`ADD_MEM_REG`, `REM_MEM_REG`).
//! In the second form there may be more regions, and existing ones stay as they are when memory is
//! plugged into a running guest. QEMU (at least 7.2) sends the regions once for each queue pair,
//! when the pair starts: the table ignores a region that it already has, and the removal of one
//! that it no longer has.
//!
//! ```text
//! bytes 0  whole: number of regions (32), padding (32), then for each region:
//!          one: padding (64), then the region:
//!       0  guest physical address (64)
//!       8  size in bytes (64)
//!      16  address in the frontend (64)
//!      24  offset in the file (64)
//! ```
//!
//! The crate would map any region that fits an address space, and trust the frontend about the
//! lengths of files: an access beyond the end of a file raises SIGBUS. A file that is truncated
//! later raises it, too; [`crate::sys::bus_error`] handles that.

#![forbid(unsafe_code)]
#![warn(clippy::indexing_slicing, clippy::cast_possible_truncation)]

use thiserror::Error;

/// Length of what precedes the regions, in bytes.
pub(super) const HEAD_LEN: usize = 8;
/// Length of a region, in bytes.
pub(super) const REGION_LEN: usize = 32;
/// Most regions of a whole table: each brings a descriptor.
pub const MAX_REGIONS: usize = super::filter::MAX_DESCRIPTORS;
/// Most regions that are told one by one: what the crate says that it has room for. Each keeps a
/// descriptor and a mapping.
pub const MAX_SLOTS: usize = 509;
/// The offset in a file must be a multiple of this; mmap(2) checks that of huge pages.
const PAGE: u64 = 4096;

/// A region of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Its guest physical address.
    pub guest: u64,
    /// Its length, in bytes.
    pub size: u64,
    /// Its address in the frontend, by which rings are told.
    pub user: u64,
    /// Where it begins in its file.
    pub offset: u64,
}

/// Why guest memory is not mapped. Regions are counted from 0.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TableError {
    /// Its length is not that of its regions.
    #[error("a table of {0} bytes that is not as long as its regions")]
    Length(usize),
    /// None, or too many.
    #[error("{0} regions, which should be 1 to {MAX_REGIONS}")]
    Count(u32),
    /// One has no bytes.
    #[error("region {0} of no bytes")]
    Empty(usize),
    /// One goes on behind the end of the address space, or of any file.
    #[error("region {region} of {size} bytes, which wraps around at its {what} {start:#x}")]
    Wraps {
        /// Its number.
        region: usize,
        /// Its length, in bytes.
        size: u64,
        /// Which of its addresses.
        what: &'static str,
        /// That address.
        start: u64,
    },
    /// One begins before the one in front of it, or within.
    #[error("region {region} at {guest:#x}, which is not behind region {previous}")]
    Overlap {
        /// Its number.
        region: usize,
        /// Its guest physical address.
        guest: u64,
        /// The number of the one in front of it.
        previous: usize,
    },
    /// One more than there is room for.
    #[error("region {0}, which is more than {MAX_SLOTS}")]
    Full(usize),
    /// One has guest addresses of another.
    #[error("region {region} at {guest:#x}, which overlaps region {other}")]
    Meets {
        /// Its number.
        region: usize,
        /// Its guest physical address.
        guest: u64,
        /// The number of the other.
        other: usize,
    },
    /// Two have addresses of the frontend in common.
    #[error("regions {one} and {other}, which overlap at the frontend's address {at:#x}")]
    Ambiguous {
        /// The number of one.
        one: usize,
        /// And of the other.
        other: usize,
        /// An address of both.
        at: u64,
    },
    /// One begins within a page.
    #[error("region {region} at offset {offset:#x} of its file, which is not that of a page")]
    Unaligned {
        /// Its number.
        region: usize,
        /// The offset.
        offset: u64,
    },
    /// The file of one ends before it does.
    #[error("region {region}: {size} bytes at offset {offset} of a file of {len}")]
    TooShort {
        /// Its number.
        region: usize,
        /// Its length, in bytes.
        size: u64,
        /// Where it begins in the file.
        offset: u64,
        /// Length of the file, in bytes.
        len: u64,
    },
    /// One's descriptor is not that of a file with a length.
    #[error("region {region}, whose descriptor is not a file: {why}")]
    NotAFile {
        /// Its number.
        region: usize,
        /// The system's error.
        why: String,
    },
}

/// Guest memory as a frontend has told it so far.
#[derive(Debug, Default)]
pub struct Table {
    /// Numbered by this order.
    regions: Vec<Region>,
}

impl Table {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// Takes the place of all regions: a `SET_MEM_TABLE`.
    ///
    /// # Errors
    /// Faults that show without its files. Nothing has changed.
    pub fn replace(&mut self, payload: &[u8]) -> Result<&[Region], TableError> {
        self.regions = parse(payload)?;
        Ok(&self.regions)
    }

    /// Adds a region: an `ADD_MEM_REG`. Returns it and its number, or `None` if it is there
    /// already.
    ///
    /// # Errors
    /// Faults that show without its file. Nothing has changed.
    pub fn add(&mut self, payload: &[u8]) -> Result<Option<(usize, Region)>, TableError> {
        let (new, number) = (parse_one(payload)?, self.regions.len());
        if self.regions.contains(&new) {
            return Ok(None);
        }
        if number >= MAX_SLOTS {
            return Err(TableError::Full(number));
        }
        check(&new, &self.regions)?;
        let meets = |old: &Region| overlap((new.guest, new.size), (old.guest, old.size));
        if let Some(other) = self.regions.iter().position(meets) {
            return Err(TableError::Meets { region: number, guest: new.guest, other });
        }
        self.regions.push(new);
        Ok(Some((number, new)))
    }

    /// Removes a region: a `REM_MEM_REG`, whose offset says nothing. Returns whether it was there.
    ///
    /// # Errors
    /// It is of another length.
    pub fn remove(&mut self, payload: &[u8]) -> Result<bool, TableError> {
        let Region { guest, size, user, .. } = parse_one(payload)?;
        let is_it = |old: &Region| (old.guest, old.size, old.user) == (guest, size, user);
        let at = self.regions.iter().position(is_it);
        Ok(at.map(|at| self.regions.remove(at)).is_some())
    }
}

/// Reads a whole table and checks all that can be known without its files.
fn parse(payload: &[u8]) -> Result<Vec<Region>, TableError> {
    let wrong = || TableError::Length(payload.len());
    let (head, rest) = payload.split_first_chunk::<HEAD_LEN>().ok_or_else(wrong)?;
    let [c0, c1, c2, c3, ..] = *head;
    let count = u32::from_ne_bytes([c0, c1, c2, c3]);
    let regions = usize::try_from(count).ok().filter(|count| (1..=MAX_REGIONS).contains(count));
    if rest.len() != regions.ok_or(TableError::Count(count))? * REGION_LEN {
        return Err(wrong());
    }
    let mut table: Vec<Region> = Vec::new();
    for bytes in rest.as_chunks::<REGION_LEN>().0 {
        let region = read(bytes);
        check(&region, &table)?;
        // The crate takes them only in their order.
        if let Some(last) = table.last()
            && region.guest < last.guest + last.size
        {
            let (number, guest) = (table.len(), region.guest);
            return Err(TableError::Overlap { region: number, guest, previous: number - 1 });
        }
        table.push(region);
    }
    Ok(table)
}

/// Reads a region that comes alone.
fn parse_one(payload: &[u8]) -> Result<Region, TableError> {
    let bytes = payload.get(HEAD_LEN..).and_then(|rest| <&[u8; REGION_LEN]>::try_from(rest).ok());
    bytes.map(read).ok_or(TableError::Length(payload.len()))
}

fn read(bytes: &[u8; REGION_LEN]) -> Region {
    let mut words = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_ne_bytes(*word));
    let mut next = || words.next().unwrap_or_default();
    Region { guest: next(), size: next(), user: next(), offset: next() }
}

/// Whether two areas, each a start and a length, have an address in common. Neither wraps around.
fn overlap((one, one_len): (u64, u64), (other, other_len): (u64, u64)) -> bool {
    one < other + other_len && other < one + one_len
}

/// Checks a region, given those that it joins.
fn check(new: &Region, others: &[Region]) -> Result<(), TableError> {
    let (region, size) = (others.len(), new.size);
    if size == 0 {
        return Err(TableError::Empty(region));
    }
    let starts =
        [("guest address", new.guest), ("address", new.user), ("offset in its file", new.offset)];
    for (what, start) in starts {
        if start.checked_add(size).is_none() {
            return Err(TableError::Wraps { region, size, what, start });
        }
    }
    if !new.offset.is_multiple_of(PAGE) {
        return Err(TableError::Unaligned { region, offset: new.offset });
    }
    let meets = |old: &Region| overlap((new.user, size), (old.user, old.size));
    match others.iter().position(meets) {
        Some(one) => Err(TableError::Ambiguous { one, other: region, at: new.user }),
        None => Ok(()),
    }
}

/// Checks region number `region` against the length of its file, in bytes.
///
/// # Errors
/// The file ends before the region does.
pub fn check_file(
    region: usize,
    &Region { size, offset, .. }: &Region,
    len: u64,
) -> Result<(), TableError> {
    match offset.checked_add(size) {
        Some(end) if end <= len => Ok(()),
        _ => Err(TableError::TooShort { region, size, offset, len }),
    }
}

#[cfg(test)]
mod tests;
