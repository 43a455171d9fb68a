//! Looks a vnet id up in a classic BPF program: a binary search, whose leaves compare one id after
//! the other.
//!
//! A conditional jump skips at most 255 instructions, and a program has at most 4096. Each id takes
//! one instruction, two if it is a range of consecutive ids, and the tree an eighth more. Where the
//! ids take more room than there is, those close to each other become ranges, so that some vnets
//! between them are found as well, but all that are looked for are found.

use std::ops::RangeInclusive;

use super::super::bpf::{JUMP, JUMP_ABOVE, JUMP_AT_LEAST, JUMP_EQUAL, RETURN};
use super::filters::{NOTHING, WHOLE};
use crate::sys::sockopt::Instruction;
use crate::wire::VnetId;

/// Ranges that a leaf compares with, at most: jumps over them reach far enough.
const LEAF: usize = 32;

/// Passes a datagram if A is one of these ids, which are in ascending order, and drops it if not,
/// in at most `room` instructions, but never fewer than four.
pub(super) fn program(vnets: &[VnetId], room: usize) -> Vec<Instruction> {
    let mut gap = 1_u32;
    loop {
        let found = search(&ranges(vnets, gap));
        if found.len() <= room || gap == u32::MAX {
            return found;
        }
        gap = gap.saturating_mul(2);
    }
}

/// Ids that differ by at most `gap` from the one before are in one range with it.
fn ranges(vnets: &[VnetId], gap: u32) -> Vec<RangeInclusive<u32>> {
    let mut ranges: Vec<RangeInclusive<u32>> = Vec::new();
    for id in vnets.iter().map(|vnet| vnet.get()) {
        match ranges.last_mut() {
            Some(last) if id.saturating_sub(*last.end()) <= gap => *last = *last.start()..=id,
            _ => ranges.push(id..=id),
        }
    }
    ranges
}

fn search(ranges: &[RangeInclusive<u32>]) -> Vec<Instruction> {
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let Some(middle) = high.first().filter(|_| ranges.len() > LEAF) else {
        return leaf(ranges);
    };
    let (below, above) = (search(low), search(high));
    let to_above = u32::try_from(below.len()).unwrap_or(u32::MAX);
    let mut program = vec![(JUMP_AT_LEAST, 0, 1, *middle.start()), (JUMP, 0, 0, to_above)];
    program.extend(below);
    program.extend(above);
    program
}

/// The highest range first: what is above a range is in none then.
fn leaf(ranges: &[RangeInclusive<u32>]) -> Vec<Instruction> {
    let is_single = |range: &RangeInclusive<u32>| range.start() == range.end();
    let tests = ranges.iter().map(|range| if is_single(range) { 1 } else { 2 }).sum::<u8>();
    let mut program: Vec<Instruction> = Vec::with_capacity(usize::from(tests) + 2);
    // Instructions between the one that is added and the end of the tests.
    let mut behind = tests;
    for range in ranges.iter().rev() {
        if is_single(range) {
            behind -= 1;
            program.push((JUMP_EQUAL, behind + 1, 0, *range.start()));
        } else {
            behind -= 2;
            program.push((JUMP_ABOVE, behind + 1, 0, *range.end()));
            program.push((JUMP_AT_LEAST, behind + 1, 0, *range.start()));
        }
    }
    program.extend([(RETURN, 0, 0, NOTHING), (RETURN, 0, 0, WHOLE)]);
    program
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// What the program returns for A, and how many instructions that takes.
    fn run(program: &[Instruction], a: u32) -> (u32, usize) {
        let (mut at, mut steps) = (0, 0);
        loop {
            let (code, jt, jf, k) = program[at];
            let holds = match code {
                JUMP_ABOVE => a > k,
                JUMP_AT_LEAST => a >= k,
                JUMP_EQUAL => a == k,
                JUMP => true,
                RETURN => return (k, steps + 1),
                _ => panic!("opcode {code:#x}"),
            };
            at += 1 + match code {
                JUMP => k as usize,
                _ => usize::from(if holds { jt } else { jf }),
            };
            steps += 1;
        }
    }

    fn passes(program: &[Instruction], id: u32) -> bool {
        run(program, id).0 == WHOLE
    }

    fn vnets(ids: impl IntoIterator<Item = u32>) -> Vec<VnetId> {
        let ids: BTreeSet<u32> = ids.into_iter().collect();
        ids.into_iter().map(|id| VnetId::new(id).unwrap()).collect()
    }

    #[test]
    fn three_thousand_scattered_vnets_fit_and_few_instructions_find_one() {
        let ids = |n: u32| n.wrapping_mul(0x9e37_79b1) | 1;
        let here = vnets((0..3000).map(ids));
        let program = program(&here, 4000);
        assert!(program.len() <= 4000, "{}", program.len());
        for vnet in &here {
            let (found, steps) = run(&program, vnet.get());
            assert_eq!(found, WHOLE);
            assert!(steps <= 50, "{steps} instructions");
        }
        let others =
            (3000..100_000).map(ids).filter(|id| !here.contains(&VnetId::new(*id).unwrap()));
        assert_eq!(others.filter(|id| passes(&program, *id)).count(), 0);
    }

    #[test]
    fn consecutive_vnets_take_the_room_of_one_range() {
        let program = program(&vnets(1000..100_000), 4000);
        assert!(program.len() <= 4, "{}", program.len());
        for (id, is_here) in [(999, false), (1000, true), (99_999, true), (100_000, false)] {
            assert_eq!(passes(&program, id), is_here, "{id}");
        }
    }

    proptest! {
        #[test]
        fn a_program_passes_all_that_it_is_for_and_nothing_else_where_there_is_room(
            ids in prop::collection::btree_set(1_u32..2000, 0..600),
            more in prop::collection::btree_set(1_u32.., 0..100),
            others in prop::collection::vec(1_u32.., 100),
        ) {
            let here = vnets(ids.into_iter().chain(more));
            let program = program(&here, 4000);
            for id in (1..2100).chain(others) {
                prop_assert_eq!(passes(&program, id), here.binary_search(&VnetId::new(id).unwrap()).is_ok());
            }
        }

        #[test]
        fn a_program_without_enough_room_passes_all_that_it_is_for(
            ids in prop::collection::btree_set(1_u32.., 1..600),
            room in 0_usize..600,
        ) {
            let here = vnets(ids);
            let program = program(&here, room);
            prop_assert!(program.len() <= room.max(4));
            for vnet in here {
                prop_assert!(passes(&program, vnet.get()));
            }
        }
    }
}
