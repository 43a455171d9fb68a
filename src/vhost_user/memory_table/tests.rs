//! What may be guest memory, told whole or region by region.

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

/// A region alone, as `ADD_MEM_REG` and `REM_MEM_REG` have it.
fn one(Region { guest, size, user, offset }: Region) -> Vec<u8> {
    [0, guest, size, user, offset].into_iter().flat_map(u64::to_ne_bytes).collect()
}

#[test]
fn regions_come_and_go_in_any_order() {
    let mut known = Table::default();
    assert_eq!(known.add(&one(HIGH)), Ok(Some((0, HIGH))));
    assert_eq!(known.add(&one(LOW)), Ok(Some((1, LOW))));
    // What is removed is told by its addresses; its offset counts for nothing.
    assert_eq!(known.remove(&one(Region { offset: 4096, ..HIGH })), Ok(true));
    assert_eq!(known.regions, [LOW]);
    for other in [
        HIGH,
        Region { size: 4096, ..LOW },
        Region { user: LOW.user + 4096, ..LOW },
        Region { guest: 4096, ..LOW },
    ] {
        assert_eq!(known.remove(&one(other)), Ok(false));
    }
    assert_eq!(known.add(&one(LOW)), Ok(None));
    assert_eq!(known.regions, [LOW]);
    assert_eq!(known.add(&one(HIGH)), Ok(Some((1, HIGH))));
    assert_eq!(known.replace(&table(&[HIGH])), Ok(&[HIGH][..]));
    assert_eq!(known.add(&one(LOW)), Ok(Some((1, LOW))));
}

#[test]
fn a_region_that_cannot_join_changes_nothing() {
    let mut known = Table::default();
    known.add(&one(LOW)).unwrap();
    let meets = TableError::Meets { region: 1, guest: MIB - 1, other: 0 };
    assert_eq!(known.add(&one(Region { guest: MIB - 1, ..HIGH })), Err(meets));
    let shifted = Region { offset: 4096, ..LOW };
    let ambiguous_itself = TableError::Ambiguous { one: 0, other: 1, at: LOW.user };
    assert_eq!(known.add(&one(shifted)), Err(ambiguous_itself));
    let ambiguous = TableError::Ambiguous { one: 0, other: 1, at: LOW.user };
    assert_eq!(known.add(&one(Region { user: LOW.user, ..HIGH })), Err(ambiguous));
    assert_eq!(known.add(&one(Region { size: 0, ..HIGH })), Err(TableError::Empty(1)));
    for len in [0, HEAD_LEN, 39, 41, 72] {
        let bytes = vec![0; len];
        assert_eq!(known.add(&bytes), Err(TableError::Length(len)));
        assert_eq!(known.remove(&bytes), Err(TableError::Length(len)));
    }
    assert_eq!(known.replace(&table(&[LOW; 33])), Err(TableError::Count(33)));
    assert_eq!(known.regions, [LOW]);
}

#[test]
fn there_is_room_for_so_many() {
    let mut known = Table::default();
    let at = |n: usize| {
        let place = n as u64 * 2 * MIB;
        Region { guest: place, size: MIB, user: (1 << 40) + place, offset: 0 }
    };
    for n in 0..MAX_SLOTS {
        assert_eq!(known.add(&one(at(n))), Ok(Some((n, at(n)))));
    }
    assert_eq!(known.add(&one(at(MAX_SLOTS))), Err(TableError::Full(MAX_SLOTS)));
    assert_eq!(known.add(&one(at(9))), Ok(None));
    assert_eq!(known.remove(&one(at(7))), Ok(true));
    assert_eq!(known.add(&one(at(7))), Ok(Some((MAX_SLOTS - 1, at(7)))));
}
