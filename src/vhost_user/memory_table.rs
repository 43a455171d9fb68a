//! The table of guest memory (`SET_MEM_TABLE`), checked before any of it is mapped.
//!
//! ```text
//! bytes 0  number of regions (32), padding (32), then for each region:
//!       0  guest physical address (64)
//!       8  size in bytes (64)
//!      16  address in the frontend (64)
//!      24  offset in the file (64)
//! ```
//!
//! The crate would map whatever fits an address space, and believe what is said of the files: to touch
//! memory beyond the end of its file raises SIGBUS. A file that is cut later does so, too; for
//! that there is [`crate::sys::bus_error`].

#![forbid(unsafe_code)]
#![warn(clippy::indexing_slicing, clippy::cast_possible_truncation)]

use thiserror::Error;

/// Length of what precedes the regions, in bytes.
const HEAD_LEN: usize = 8;
/// Length of a region, in bytes.
const REGION_LEN: usize = 32;
/// Most regions: each brings a descriptor.
pub const MAX_REGIONS: usize = super::filter::MAX_DESCRIPTORS;
/// What the offset in a file is a multiple of, at least; that of huge pages is left to mmap(2).
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
        /// What the system says.
        why: String,
    },
}

/// Reads a table and checks all that can be known without its files.
///
/// # Errors
/// What is wrong with it.
pub fn parse(payload: &[u8]) -> Result<Vec<Region>, TableError> {
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
        table.push(region);
    }
    Ok(table)
}

fn read(bytes: &[u8; REGION_LEN]) -> Region {
    let mut words = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_ne_bytes(*word));
    let mut next = || words.next().unwrap_or_default();
    Region { guest: next(), size: next(), user: next(), offset: next() }
}

/// Checks a region, given those in front of it.
fn check(new: &Region, before: &[Region]) -> Result<(), TableError> {
    let (region, size) = (before.len(), new.size);
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
    if let Some(last) = before.last()
        && new.guest < last.guest + last.size
    {
        let (guest, previous) = (new.guest, region - 1);
        return Err(TableError::Overlap { region, guest, previous });
    }
    let meets = |old: &Region| new.user < old.user + old.size && old.user < new.user + size;
    match before.iter().position(meets) {
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;
    const LOW: Region = Region { guest: 0, size: MIB, user: 64 * MIB, offset: 0 };
    const HIGH: Region = Region { guest: 4 * MIB, size: MIB, user: 80 * MIB, offset: MIB };

    fn table(regions: &[Region]) -> Vec<u8> {
        let mut bytes = (regions.len() as u64).to_ne_bytes().to_vec();
        for Region { guest, size, user, offset } in regions {
            bytes.extend([guest, size, user, offset].map(|n| n.to_ne_bytes()).concat());
        }
        bytes
    }

    fn refused(second: Region) -> TableError {
        parse(&table(&[LOW, second])).unwrap_err()
    }

    #[test]
    fn a_table_is_read_as_it_was_written() {
        assert_eq!(parse(&table(&[LOW])), Ok(vec![LOW]));
        assert_eq!(parse(&table(&[LOW, HIGH])), Ok(vec![LOW, HIGH]));
        let adjacent = Region { guest: MIB, user: LOW.user + MIB, ..HIGH };
        assert_eq!(parse(&table(&[LOW, adjacent])), Ok(vec![LOW, adjacent]));
        let end = Region { guest: u64::MAX - MIB, user: u64::MAX - MIB, ..HIGH };
        assert_eq!(parse(&table(&[LOW, end])), Ok(vec![LOW, end]));
    }

    #[test]
    fn a_table_of_another_length_is_refused() {
        let good = table(&[LOW, HIGH]);
        for len in (0..good.len()).filter(|len| *len != HEAD_LEN) {
            assert_eq!(parse(&good[..len]), Err(TableError::Length(len)));
        }
        let longer = [&good[..], &[0]].concat();
        assert_eq!(parse(&longer), Err(TableError::Length(longer.len())));
        assert_eq!(parse(&[0; HEAD_LEN]), Err(TableError::Count(0)));
        assert_eq!(parse(&table(&[LOW; 33])), Err(TableError::Count(33)));
        assert_eq!(parse(&[0xff; HEAD_LEN]), Err(TableError::Count(u32::MAX)));
    }

    #[test]
    fn what_is_wrong_with_a_region_is_said() {
        assert_eq!(refused(Region { size: 0, ..HIGH }), TableError::Empty(1));
        let edge = u64::MAX - MIB + 1;
        for wrapping in [
            Region { guest: edge, ..HIGH },
            Region { user: edge, ..HIGH },
            Region { offset: edge, ..HIGH },
        ] {
            assert!(matches!(refused(wrapping), TableError::Wraps { region: 1, .. }));
        }
        let unaligned = refused(Region { offset: MIB + 512, ..HIGH });
        assert_eq!(unaligned, TableError::Unaligned { region: 1, offset: MIB + 512 });
        for guest in [0, 1, MIB - 1] {
            let overlap = TableError::Overlap { region: 1, guest, previous: 0 };
            assert_eq!(refused(Region { guest, ..HIGH }), overlap);
        }
        for user in [LOW.user - MIB + 1, LOW.user, LOW.user + MIB - 1] {
            let ambiguous = TableError::Ambiguous { one: 0, other: 1, at: user };
            assert_eq!(refused(Region { user, ..HIGH }), ambiguous);
        }
    }

    #[test]
    fn a_region_ends_within_its_file() {
        assert_eq!(check_file(0, &HIGH, 2 * MIB), Ok(()));
        for len in [0, MIB, 2 * MIB - 1] {
            let short = check_file(0, &HIGH, len).unwrap_err();
            let wanted = format!("region 0: 1048576 bytes at offset 1048576 of a file of {len}");
            assert_eq!(short.to_string(), wanted);
        }
        let wrapping = Region { offset: u64::MAX, ..HIGH };
        assert!(check_file(0, &wrapping, u64::MAX).is_err());
    }

    proptest! {
        /// Nothing panics, and what is accepted can be mapped and addressed without doubt.
        #[test]
        fn any_table_is_decided(
            count in 0_u64..4,
            words in prop::collection::vec(prop_oneof![any::<u64>(), 0..MIB, Just(4096)], 0..16),
        ) {
            let bytes: Vec<u8> =
                [count].iter().chain(&words).flat_map(|word| word.to_ne_bytes()).collect();
            for region in parse(&bytes).iter().flatten() {
                prop_assert!(region.size > 0 && region.offset % PAGE == 0);
                prop_assert!(region.guest.checked_add(region.size).is_some());
            }
        }
    }
}
