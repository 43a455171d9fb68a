//! One side of a lane, and a process at the other end that writes what it likes into the memory: what is
//! read lies within the ring and is as long as a frame can be, what is written lies within it,
//! nothing else is touched, and a side that was lied to does not go on for ever.

use std::cell::OnceCell;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use vnet::lane::{Entry, Lie, Reader, SHORT, Writer};
use vnet::sys::doorbell::Doorbell;
use vnet::sys::iovec::{Gather, IoVec};
use vnet::sys::shared_memory::SharedMemory;
use vnet::wire::frame;

use super::Input;

/// The smallest ring that is accepted, in bytes.
const CAPACITY: usize = 1 << 18;
/// Offsets in the memory, as [`vnet::lane`] draws it.
pub(crate) const HEAD: usize = 0;
const TAIL: usize = 128;
const TAKEN: usize = 132;
const SLEEPS: usize = 256;
const WAITS: usize = 384;
const ENTRIES: usize = 4096;
const WORDS: [usize; 5] = [HEAD, TAIL, TAKEN, SLEEPS, WAITS];
/// Length of what precedes a frame, in bytes.
const ENTRY_LEN: usize = 16;
/// Frames taken at a time.
const MOST_TAKEN: usize = 64;

/// The memory of a lane and its two bells.
pub(crate) struct Shared {
    memory: OwnedFd,
    bells: [OwnedFd; 2],
    pub(crate) map: SharedMemory,
}

thread_local! {
    /// One for all runs: to make it takes longer than to use it.
    static SHARED: OnceCell<Shared> = const { OnceCell::new() };
}

impl Shared {
    fn new() -> Self {
        let memory = SharedMemory::create(ENTRIES + CAPACITY).expect("memory");
        let (one, two) = Doorbell::pair().expect("descriptors");
        let map = SharedMemory::map(memory.try_clone().expect("a descriptor"), |_| true);
        Self { memory, bells: [one, two], map: map.expect("a lane") }
    }

    /// Lends it, as new but for the bytes of the entries.
    pub(crate) fn lend(use_it: impl FnOnce(&Self)) {
        SHARED.with(|shared| {
            let shared = shared.get_or_init(Self::new);
            WORDS.iter().for_each(|at| shared.store(*at, 0));
            shared.bells.iter().for_each(|bell| {
                let clone = bell.try_clone().expect("a descriptor");
                let _ = Doorbell::new(clone).hear();
            });
            use_it(shared);
        });
    }

    /// The descriptors of a side.
    pub(crate) fn side(&self, side: usize) -> [OwnedFd; 2] {
        [&self.memory, &self.bells[side]].map(|fd| fd.try_clone().expect("a descriptor"))
    }

    /// A side rings the other's bell.
    pub(crate) fn ring(&self, side: usize) {
        Doorbell::new(self.bells[side].try_clone().expect("a descriptor")).ring();
    }

    fn load(&self, at: usize) -> u32 {
        self.map.word(at).expect("within").load(Ordering::Relaxed)
    }

    pub(crate) fn store(&self, at: usize, value: u32) {
        self.map.word(at).expect("within").store(value, Ordering::Relaxed);
    }

    /// Writes bytes into the ring, as far as there is place.
    pub(crate) fn write(&self, at: usize, bytes: &[u8]) {
        let at = ENTRIES + at % CAPACITY;
        let len = bytes.len().min(ENTRIES + CAPACITY - at);
        self.map.slice(at, len).expect("within").copy_from(&bytes[..len]);
    }

    /// What the peer does to the memory.
    fn change(&self, head: u32, input: &mut Input<'_>) {
        match input.u8() % 4 {
            0 => {
                let at = WORDS[usize::from(input.u8()) % WORDS.len()];
                self.store(at, (input.u64() & 0xffff_ffff) as u32);
            }
            1 => {
                let by = u32::from(input.u16());
                self.store(HEAD, head.wrapping_add(by.wrapping_mul(16)));
            }
            2 => {
                let by = u32::from(input.u16());
                self.store(TAIL, head.wrapping_sub(by.wrapping_mul(16)));
            }
            _ => {
                let at = usize::from(input.u16()) * 4;
                let bytes = input.chunk().unwrap_or_default();
                self.write(at, bytes);
            }
        }
    }
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Input(data);
    let is_reader = input.u8() % 2 == 0;
    Shared::lend(|shared| {
        let [memory, bell] = shared.side(usize::from(is_reader));
        if is_reader {
            let mut reader = Reader::new(memory, bell).expect("a lane");
            while !input.0.is_empty() && read(shared, &mut reader, &mut input).is_ok() {}
        } else {
            let mut writer = Writer::new(memory, bell).expect("a lane");
            let mut head = 0;
            while !input.0.is_empty() && write(shared, &mut writer, &mut head, &mut input).is_ok() {
            }
        }
    });
}

/// A step of the reader, or of who lies to it.
fn read(shared: &Shared, reader: &mut Reader, input: &mut Input<'_>) -> Result<(), Lie> {
    let what = input.u8();
    let head = shared.load(HEAD);
    match what % 8 {
        0 | 1 => return honest(shared, head, input),
        2 => {
            shared.change(head, input);
            return Ok(());
        }
        3 => {
            // It changes between the look at it and the copy.
            let entry = reader.peek()?;
            shared.change(head, input);
            entry.iter().for_each(|entry| take(reader, entry));
            return Ok(());
        }
        4 => reader.peek()?.iter().for_each(|entry| take(reader, entry)),
        5 => take_short(reader)?,
        6 => {
            reader.publish();
            assert_eq!(shared.load(TAIL) % 16, 0);
        }
        _ => {
            reader.sleep()?;
            let _ = reader.hear();
        }
    }
    assert_eq!(shared.load(HEAD), head, "the writer's word");
    Ok(())
}

/// A well-formed entry, and the head behind it.
fn honest(shared: &Shared, head: u32, input: &mut Input<'_>) -> Result<(), Lie> {
    let header = input.take(12);
    let Some(frame) = input.chunk() else { return Err(Lie) };
    let mut entry = u32::try_from(frame.len()).map_err(|_| Lie)?.to_ne_bytes().to_vec();
    entry.extend_from_slice(header);
    entry.resize(ENTRY_LEN, 0);
    entry.extend_from_slice(frame);
    shared.write(head as usize, &entry);
    let span = entry.len().next_multiple_of(16);
    shared.store(HEAD, head.wrapping_add(u32::try_from(span).map_err(|_| Lie)?));
    Ok(())
}

fn take(reader: &mut Reader, entry: &Entry) {
    assert!((14..=frame::MAX_LEN).contains(&entry.len()));
    let mut lead = [0; 160];
    let copied = reader.copy(entry, &mut lead);
    assert_eq!(copied, entry.len().min(lead.len()));
    let rest = reader.bytes(entry, copied);
    assert_eq!(copied + rest.len(), entry.len());
    let mut bytes = Vec::new();
    rest.append_to(&mut bytes);
    assert_eq!(bytes.len(), rest.len());
    reader.take(entry);
}

fn take_short(reader: &mut Reader) -> Result<(), Lie> {
    let (mut chunk, mut taken) = (Vec::new(), 0);
    let count = reader.take_short(&mut chunk, |_, frame, _| {
        assert!((14..=SHORT).contains(&frame.len()));
        taken += 1;
        taken <= MOST_TAKEN
    })?;
    assert_eq!(count, taken.min(MOST_TAKEN));
    Ok(())
}

/// A step of the writer, or of who lies to it.
fn write(
    shared: &Shared,
    writer: &mut Writer,
    head: &mut u32,
    input: &mut Input<'_>,
) -> Result<(), Lie> {
    static FRAME: [u8; frame::MAX_LEN + 8] = [0x5a; frame::MAX_LEN + 8];
    let what = input.u8();
    match what % 8 {
        0..=2 => {
            let len = usize::from(input.u16()) + usize::from(what >> 7) * 10;
            let bytes = &FRAME[..len.max(12)];
            let pieces = [IoVec::from_slice(&bytes[..12]), IoVec::from_slice(&bytes[12..])];
            let (header, addresses) = ([0; 12], [0x5a; 12]);
            // Refused if there is no room, no such frame, or a lie.
            let _ = writer.write(&header, &addresses, bytes.len(), Gather::new(&pieces, 12));
        }
        3 => shared.change(*head, input),
        4 => {
            let [before, tail, taken] = [HEAD, TAIL, TAKEN].map(|at| shared.load(at));
            writer.publish();
            *head = shared.load(HEAD);
            // It may be what the other side has written there.
            assert!(*head == before || head.is_multiple_of(16));
            let words = [TAIL, TAKEN].map(|at| shared.load(at));
            assert_eq!(words, [tail, taken], "the reader's words");
        }
        5 => _ = writer.wait_for_room(input.u16().into())?,
        6 => _ = writer.wait_until_drained()?,
        _ => {
            assert!(writer.left() <= (CAPACITY / 32) as u64);
            let _ = writer.hear();
        }
    }
    Ok(())
}
