//! A lane against a queue as the model, and against a process at the other end that lies.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use proptest::prelude::*;

use super::index::{ALIGN, Cursor, ENTRY_LEN, EntryBytes, Tracks};
use super::*;
use crate::sys::doorbell::{Doorbell, Heard};
use crate::sys::iovec::{Gather, IoVec};
use crate::wire::frame;

const SMALL: usize = 1 << 18;

/// Both ends, and the memory for whoever lies.
fn lane_of(capacity: usize) -> (Writer, Reader, SharedMemory) {
    let memory = create_with(capacity).unwrap();
    let clone = || memory.try_clone().unwrap();
    let (a, b) = Doorbell::pair().unwrap();
    let writer = Writer::new(clone(), a).unwrap();
    let reader = Reader::new(clone(), b).unwrap();
    (writer, reader, SharedMemory::map(memory, |_| true).unwrap())
}

fn frame(number: u32, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at as u32).wrapping_mul(31).wrapping_add(number) as u8).collect()
}

fn header(number: u32) -> [u8; 12] {
    let mut header = [number as u8; 12];
    header[..4].copy_from_slice(&number.to_le_bytes());
    header
}

fn write(writer: &mut Writer, number: u32, len: usize) -> Result<(), Refused> {
    let bytes = frame(number, len);
    let pieces = [IoVec::from_slice(&bytes[..13]), IoVec::from_slice(&bytes[13..])];
    let addresses = bytes[..12].try_into().unwrap();
    writer.write(&header(number), &addresses, len, Gather::new(&pieces, 12))
}

fn read(reader: &mut Reader) -> Option<([u8; 12], Vec<u8>)> {
    let entry = reader.peek().unwrap()?;
    let mut beginning = [0; 20];
    let copied = reader.copy(&entry, &mut beginning);
    let mut bytes = beginning[..copied].to_vec();
    reader.bytes(&entry, copied).append_to(&mut bytes);
    assert_eq!(bytes.len(), entry.len());
    let header = *entry.header();
    reader.take(&entry);
    Some((header, bytes))
}

/// The same many at a time; those that are not short are left.
fn read_short(reader: &mut Reader, most: usize) -> Vec<([u8; 12], Vec<u8>)> {
    let (mut chunk, mut got) = (Vec::new(), Vec::new());
    let count = reader.take_short(&mut chunk, |header, bytes, _| {
        let is_wanted = got.len() < most;
        if is_wanted {
            got.push((*header, bytes.to_vec()));
        }
        is_wanted
    });
    assert_eq!(count, Ok(got.len()));
    got
}

#[derive(Clone, Debug)]
enum Step {
    Write(usize),
    Publish,
    Read(usize),
    ReadShort(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let len = prop_oneof![14..100_usize, 1000..2000_usize, frame::MAX_LEN - 40..=frame::MAX_LEN];
    let step = prop_oneof![
        4 => len.prop_map(Step::Write),
        1 => Just(Step::Publish),
        1 => (0..12_usize).prop_map(Step::Read),
        1 => (0..100_usize).prop_map(Step::ReadShort),
    ];
    prop::collection::vec(step, 1..300)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// What is read is what was written and published, in order; what is refused did not fit.
    #[test]
    fn is_a_queue(steps in steps()) {
        let (mut writer, mut reader, _) = lane_of(SMALL);
        let (mut hidden, mut seen) = (VecDeque::<([u8; 12], Vec<u8>)>::new(), VecDeque::new());
        let mut taken = 0;
        for (number, step) in (0..).zip(steps) {
            match step {
                Step::Write(len) => match write(&mut writer, number, len) {
                    Ok(()) => hidden.push_back((header(number), frame(number, len))),
                    Err(refused) => {
                        prop_assert_eq!(refused, Refused::Full);
                        let lens = hidden.iter().chain(&seen).map(|(_, frame)| frame.len());
                        let used: usize = lens.map(|len| (ENTRY_LEN + len).next_multiple_of(16)).sum();
                        // What was skipped at the end is less than the longest entry.
                        prop_assert!(used + 2 * (ENTRY_LEN + frame::MAX_LEN + 15) > SMALL);
                    }
                },
                Step::Publish => {
                    writer.publish();
                    seen.append(&mut hidden);
                }
                Step::ReadShort(most) => {
                    let got = read_short(&mut reader, most);
                    let is_short = seen.front().is_some_and(|(_, frame)| frame.len() <= SHORT);
                    // The chunk may end with the ring: what is skipped there is found out next.
                    let at_end = reader.peek().unwrap().is_some() && got.is_empty();
                    prop_assert!(!got.is_empty() || !is_short || most == 0 || at_end);
                    for frame in got {
                        taken += 1;
                        prop_assert!(frame.1.len() <= SHORT);
                        prop_assert_eq!(Some(frame), seen.pop_front());
                    }
                    reader.publish();
                }
                Step::Read(most) => {
                    for _ in 0..most {
                        let expected = seen.pop_front();
                        taken += u64::from(expected.is_some());
                        prop_assert_eq!(read(&mut reader), expected);
                    }
                    reader.publish();
                }
            }
        }
        let left = (hidden.len() + seen.len()) as u64;
        prop_assert_eq!(writer.left(), left, "after {} taken", taken);
    }

    /// Whatever is in the ring and in its indices, an entry is within what was written.
    #[test]
    fn the_cursor_believes_nothing(
        heads in prop::collection::vec((any::<bool>(), any::<u32>()), 1..40),
        entries in prop::collection::vec(any::<(bool, u8, u32)>(), 1..16),
    ) {
        let capacity = 1 << 18;
        let mut cursor = Cursor::new(capacity);
        let mut reads = 0_usize;
        for (is_near, head) in heads {
            let head = if is_near { cursor.tail().wrapping_add(head % (capacity + 64)) } else { head };
            if cursor.see_head(head).is_err() {
                continue;
            }
            prop_assert!(cursor.known() <= capacity);
            for (is_plausible, kind, len) in &entries {
                let len = match kind % 4 {
                    0 => u32::MAX,
                    _ if *is_plausible => 14 + len % 70_000,
                    _ => *len,
                };
                let mut bytes: EntryBytes = [0; ENTRY_LEN];
                bytes[..4].copy_from_slice(&len.to_ne_bytes());
                let (tail, known) = (cursor.tail(), cursor.known());
                let found = cursor.next(|index, at| {
                    assert!(at + ENTRY_LEN <= capacity as usize);
                    assert!(at % ALIGN as usize == 0 && index % capacity == at as u32);
                    Some(bytes)
                });
                reads += 1;
                match found {
                    Ok(Some(found)) => {
                        prop_assert!(found.at + found.len <= capacity as usize);
                        prop_assert!((14..=frame::MAX_LEN).contains(&found.len));
                        cursor.take(&found);
                        prop_assert!(cursor.tail().wrapping_sub(tail) <= known);
                    }
                    Ok(None) => prop_assert_eq!(cursor.known(), 0),
                    Err(Lie) => break,
                }
            }
        }
        prop_assert!(reads <= 40 * 16);
    }

    /// Whatever the reader says, the writer stays in the ring and never laps what it was not told
    /// of.
    #[test]
    fn the_tracks_believe_nothing(steps in prop::collection::vec(any::<(bool, u32, u16)>(), 1..200)) {
        let capacity = 1 << 18;
        let mut tracks = Tracks::new(capacity);
        for (is_near, tail, len) in steps {
            let near = tracks.head().wrapping_sub(tail % (capacity + 64)) & !(ALIGN - 1);
            let before = tracks.used();
            match tracks.see_tail(if is_near { near } else { tail }) {
                Ok(()) => prop_assert!(tracks.used() <= before),
                Err(Lie) => prop_assert_eq!(tracks.used(), before),
            }
            if let Some(place) = tracks.place(len.into()) {
                prop_assert!(place.at + ENTRY_LEN + usize::from(len) <= capacity as usize);
                prop_assert!(place.skip_at.is_none_or(|at| place.at == 0 && at < capacity as usize));
                tracks.commit(place);
            }
            prop_assert!(tracks.used() <= capacity);
        }
    }
}

#[test]
fn sleepers_are_woken_once() {
    let (mut writer, mut reader, _) = lane_of(SMALL);
    write(&mut writer, 1, 60).unwrap();
    assert_eq!(reader.hear(), Heard::Silence, "nothing is published");
    writer.publish();
    assert_eq!(reader.hear(), Heard::Ring, "a new reader sleeps");
    write(&mut writer, 2, 60).unwrap();
    writer.publish();
    assert_eq!(reader.hear(), Heard::Silence, "it is awake");
    assert_eq!(reader.sleep(), Ok(false), "there is something");
    assert!(read(&mut reader).is_some() && read(&mut reader).is_some());
    assert_eq!(reader.sleep(), Ok(true));
    writer.publish();
    assert_eq!(reader.hear(), Heard::Silence, "nothing is new");
    write(&mut writer, 3, 60).unwrap();
    writer.publish();
    assert_eq!(reader.hear(), Heard::Ring);
}

/// Whoever begins first.
#[test]
fn a_reader_that_comes_late_is_woken() {
    let memory = create_with(SMALL).unwrap();
    let (a, b) = Doorbell::pair().unwrap();
    let mut writer = Writer::new(memory.try_clone().unwrap(), a).unwrap();
    write(&mut writer, 1, 60).unwrap();
    writer.publish();
    let mut reader = Reader::new(memory, b).unwrap();
    assert_eq!(reader.hear(), Heard::Ring);
    assert!(read(&mut reader).is_some());
}

#[test]
fn a_writer_waits_until_half_is_free() {
    let (mut writer, mut reader, _) = lane_of(SMALL);
    let written = (0..).take_while(|&n| write(&mut writer, n, 60_000).is_ok()).count();
    assert_eq!(written, 4);
    writer.publish();
    assert_eq!(writer.wait_for_room(60_000), Ok(true));
    for (taken, heard) in [(1, Heard::Silence), (2, Heard::Ring), (3, Heard::Silence)] {
        read(&mut reader).unwrap();
        reader.publish();
        assert_eq!(writer.hear(), heard, "{taken} taken");
    }
    assert_eq!(writer.wait_for_room(60_000), Ok(false));
    assert_eq!(writer.left(), 1);
    assert_eq!(writer.is_drained(), Ok(false));
    read(&mut reader).unwrap();
    reader.publish();
    assert_eq!(writer.is_drained(), Ok(true));
    assert_eq!(writer.left(), 0);
}

#[test]
fn frames_that_no_vif_sends_are_refused() {
    let (mut writer, ..) = lane_of(SMALL);
    assert_eq!(write(&mut writer, 0, frame::MAX_LEN), Ok(()));
    assert_eq!(write(&mut writer, 0, frame::MAX_LEN + 1), Err(Refused::Full));
    assert_eq!(write(&mut writer, 0, 13), Err(Refused::Full));
}

#[test]
fn indices_that_cannot_be_are_lies() {
    for head in [8, 1, SMALL as u32 + 16, u32::MAX - 15, 1 << 31] {
        let (_, mut reader, memory) = lane_of(SMALL);
        memory.word(HEAD).unwrap().store(head, Ordering::Relaxed);
        assert!(reader.peek().is_err(), "{head}");
        assert_eq!(reader.sleep(), Err(Lie), "{head}");
    }
    for tail in [8, 96, SMALL as u32, u32::MAX - 15] {
        let (mut writer, _, memory) = lane_of(SMALL);
        write(&mut writer, 1, 60).unwrap();
        writer.publish();
        memory.word(TAIL).unwrap().store(tail, Ordering::Relaxed);
        assert_eq!(writer.is_drained(), Err(Lie), "{tail}");
        assert_eq!(writer.wait_for_room(60), Err(Lie), "{tail}");
        // It is asked only when there seems to be no room. An index in the middle of an entry is as
        // good as any that is not beyond what was written.
        let refused = (0..SMALL).find_map(|n| write(&mut writer, n as u32, 60_000).err());
        assert_eq!(refused, Some(if tail == 96 { Refused::Full } else { Refused::Lie }), "{tail}");
        assert!(writer.left() <= SMALL as u64 / 32);
    }
}

#[test]
fn lengths_that_cannot_be_are_lies() {
    for len in [0, 13, 77, frame::MAX_LEN as u32 + 1, 1 << 31, u32::MAX - 1, u32::MAX] {
        let (mut writer, mut reader, memory) = lane_of(SMALL);
        write(&mut writer, 1, 60).unwrap();
        writer.publish();
        memory.word(ENTRIES).unwrap().store(len, Ordering::Relaxed);
        assert!(reader.peek().is_err(), "{len}");
    }
}

#[test]
fn other_memory_is_no_lane() {
    for len in [0, 4096, ENTRIES + (1 << 17), ENTRIES + SMALL + 4096, ENTRIES + (1 << 25)] {
        let memory = || SharedMemory::create(len).unwrap();
        let bell = || -> OwnedFd { Doorbell::pair().unwrap().0 };
        assert!(Writer::new(memory(), bell()).is_err(), "{len}");
        assert!(Reader::new(memory(), bell()).is_err(), "{len}");
    }
    assert_eq!(map(create().unwrap()).unwrap().1 as usize, CAPACITY);
}

#[test]
fn both_sides_at_once() {
    const FRAMES: u32 = 50_000;
    let (mut writer, mut reader, _) = lane_of(SMALL);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for number in 0..FRAMES {
                let len = 60 + number as usize * 7919 % 3000;
                while write(&mut writer, number, len).is_err() {
                    writer.publish();
                    std::thread::yield_now();
                }
                if number % 7 == 0 {
                    writer.publish();
                }
            }
            writer.publish();
        });
        for number in 0..FRAMES {
            let got = loop {
                if let Some(got) = read(&mut reader) {
                    break got;
                }
                reader.publish();
                std::thread::yield_now();
            };
            assert_eq!(got.0, header(number));
            assert_eq!(got.1, frame(number, 60 + number as usize * 7919 % 3000));
        }
    });
}
