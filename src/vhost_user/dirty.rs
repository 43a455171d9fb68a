//! Records the written pages of guest memory, as a frontend requests while it migrates a guest.
//!
//! Every write of this process into guest memory goes through `vm-memory`'s slices (see
//! [`crate::guest::ring::Piece`]), which report each write to a bitmap. The bitmap of a region is a
//! [`DirtyBitmap`]: a flag, false for nearly all of a guest's life, and the region's position in
//! the frontend's [`Log`]. While the flag is false, a write costs a load from a hot cache line: a
//! chain of a ring takes as many instructions as without (146 and 147; with a frame of 60 bytes
//! copied in, 420 and 408). While it is true, each write takes about 70 more.
//!
//! The crate has a bitmap of its own for this. This module replaces it because it takes a lock and
//! counts references for each slice even without logging, trusts the frontend about the length of
//! the log (a shorter file would end the process with SIGBUS), and loses the log with the next
//! memory table.

#![warn(clippy::indexing_slicing)]

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use thiserror::Error;
use vhost_user_backend::bitmap::{BitmapReplace, MemRegionBitmap, MmapLogReg};
use vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};
use vm_memory::mmap::NewBitmap;
use vm_memory::{
    Address, FileOffset, GuestMemoryBackend, GuestMemoryRegion, MmapRegion, VolatileMemory,
};

use super::vring::GuestMemory;

/// The bytes that a bit of the log stands for (vhost-user.rst, "Migration").
const PAGE: u64 = 4096;
/// Pages in a byte of the log.
const PAGES_PER_BYTE: u64 = 8;

/// Why a log can't be used.
#[derive(Debug, Error)]
pub enum LogError {
    /// It has no bytes, or more than an address space.
    #[error("a log of {0} bytes")]
    Size(u64),
    /// The file ends before the log does: to touch what is missing would end the process (SIGBUS).
    #[error("{size} bytes of log at offset {offset} of a file of {len}")]
    TooFar {
        /// Its length, in bytes.
        size: u64,
        /// Where it begins in the file.
        offset: u64,
        /// Length of the file, in bytes.
        len: u64,
    },
    /// It can't be mapped.
    #[error("{size} bytes of log at offset {offset} of its file, which can't be mapped: {why}")]
    Map {
        /// Its length, in bytes.
        size: u64,
        /// Where it begins in the file.
        offset: u64,
        /// The system's error.
        why: String,
    },
    /// A page of guest memory has no bit in it.
    #[error("a log of {size} bytes does not reach to the guest's memory at {address:#x}")]
    TooShort {
        /// Its length, in bytes.
        size: usize,
        /// The last address of a region.
        address: u64,
    },
}

/// The frontend's log: a bit for each page of guest memory, shared with the frontend.
#[derive(Debug)]
pub struct Log {
    map: MmapRegion<()>,
}

impl Log {
    /// Maps a log of `size` bytes that begins at `offset` of a file.
    ///
    /// # Errors
    /// The file does not fit its description.
    pub fn map(file: OwnedFd, size: u64, offset: u64) -> Result<Self, LogError> {
        let len = usize::try_from(size).ok().filter(|&len| len > 0 && isize::try_from(len).is_ok());
        let len = len.ok_or(LogError::Size(size))?;
        let failed = |why: String| LogError::Map { size, offset, why };
        let mut file = File::from(file);
        // Not by statx(2), which a confined process may lack.
        let held = file.seek(SeekFrom::End(0)).map_err(|error| failed(error.to_string()))?;
        if offset.checked_add(size).is_none_or(|end| end > held) {
            return Err(LogError::TooFar { size, offset, len: held });
        }
        let map = MmapRegion::from_file(FileOffset::new(file, offset), len);
        Ok(Self { map: map.map_err(|error| failed(error.to_string()))? })
    }

    /// Checks that every page of `memory` has its bit.
    ///
    /// # Errors
    /// One has none.
    pub fn check(&self, memory: &GuestMemory) -> Result<(), LogError> {
        let size = self.map.size();
        for region in memory.iter() {
            let address = region.last_addr().raw_value();
            let byte = usize::try_from(address / PAGE / PAGES_PER_BYTE);
            if byte.map_or(true, |byte| byte >= size) {
                return Err(LogError::TooShort { size, address });
            }
        }
        Ok(())
    }

    /// Sets the bits of the pages that `len` bytes from an address lie in.
    ///
    /// The bytes were written before: a frontend that takes the bits sees them.
    fn mark(&self, address: u64, len: usize) {
        let Some(last) = (len as u64).checked_sub(1) else { return };
        let (mut page, last) = (address / PAGE, address.saturating_add(last) / PAGE);
        while page <= last {
            let byte = usize::try_from(page / PAGES_PER_BYTE).unwrap_or(usize::MAX);
            // Absent only while a frontend that enlarged the memory but not the log is cut off.
            let Ok(byte) = self.map.get_atomic_ref::<AtomicU8>(byte) else { return };
            let upto = last.min(page | (PAGES_PER_BYTE - 1));
            let below = 0xff_u8 << (page % PAGES_PER_BYTE);
            let above = 0xff_u8 >> (PAGES_PER_BYTE - 1 - upto % PAGES_PER_BYTE);
            // No look whether they are set: the frontend could take them between that and now.
            byte.fetch_or(below & above, Ordering::AcqRel);
            page = upto + 1;
        }
    }

    fn is_marked(&self, address: u64) -> bool {
        let page = address / PAGE;
        let byte = usize::try_from(page / PAGES_PER_BYTE).unwrap_or(usize::MAX);
        let byte = self.map.get_atomic_ref::<AtomicU8>(byte);
        byte.is_ok_and(|byte| byte.load(Ordering::Relaxed) >> (page % PAGES_PER_BYTE) & 1 == 1)
    }
}

/// The bitmap of a region of guest memory.
#[derive(Clone, Debug, Default)]
pub struct DirtyBitmap(Arc<State>);

#[derive(Debug, Default)]
struct State {
    on: AtomicBool,
    /// The region's first address, and the log.
    place: RwLock<Option<(u64, Arc<Log>)>>,
}

impl State {
    /// Tells the log of `len` bytes written at an offset of the region.
    #[cold]
    fn mark(&self, offset: usize, len: usize) {
        let place = self.place.read().unwrap_or_else(PoisonError::into_inner);
        if let Some((start, log)) = &*place {
            log.mark(start.saturating_add(offset as u64), len);
        }
    }

    fn is_marked(&self, offset: usize) -> bool {
        let place = self.place.read().unwrap_or_else(PoisonError::into_inner);
        place.as_ref().is_some_and(|(start, log)| log.is_marked(start + offset as u64))
    }
}

impl DirtyBitmap {
    /// From now on, writes are told to `log`, or to nobody.
    fn attach(&self, start: u64, log: Option<&Arc<Log>>) {
        let place = log.map(|log| (start, Arc::clone(log)));
        self.0.on.store(place.is_some(), Ordering::Release);
        *self.0.place.write().unwrap_or_else(PoisonError::into_inner) = place;
    }
}

/// From now on, writes into `memory` are told to `log`, or to nobody. A batch that is under way may
/// still have its last write told to whom it was before.
pub fn attach(memory: &GuestMemory, log: Option<&Arc<Log>>) {
    for region in memory.iter() {
        let map: &MmapRegion<DirtyBitmap> = region;
        map.bitmap().attach(region.start_addr().raw_value(), log);
    }
}

/// Marks all of `memory`, as if every page had been written to.
pub fn mark_all(memory: &GuestMemory) {
    for region in memory.iter() {
        let map: &MmapRegion<DirtyBitmap> = region;
        map.bitmap().mark_dirty(0, map.size());
    }
}

/// A bitmap from an offset on.
#[derive(Clone, Copy, Debug)]
pub struct DirtySlice<'a> {
    state: &'a State,
    offset: usize,
}

impl WithBitmapSlice<'_> for DirtySlice<'_> {
    type S = Self;
}

impl BitmapSlice for DirtySlice<'_> {}

impl Bitmap for DirtySlice<'_> {
    #[inline]
    fn mark_dirty(&self, offset: usize, len: usize) {
        if self.state.on.load(Ordering::Relaxed) {
            self.state.mark(self.offset.saturating_add(offset), len);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.state.is_marked(self.offset.saturating_add(offset))
    }

    #[inline]
    fn slice_at(&self, offset: usize) -> Self {
        Self { state: self.state, offset: self.offset.wrapping_add(offset) }
    }
}

impl<'a> WithBitmapSlice<'a> for DirtyBitmap {
    type S = DirtySlice<'a>;
}

impl Bitmap for DirtyBitmap {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.slice_at(0).mark_dirty(offset, len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.0.is_marked(offset)
    }

    #[inline]
    fn slice_at(&self, offset: usize) -> DirtySlice<'_> {
        DirtySlice { state: &self.0, offset }
    }
}

impl NewBitmap for DirtyBitmap {
    fn with_len(_len: usize) -> Self {
        Self::default()
    }
}

/// The log that the crate would put into a [`DirtyBitmap`]; there is none, as [`super::filter`]
/// keeps `SET_LOG_BASE` from it.
#[derive(Debug)]
pub enum NeverMade {}

impl MemRegionBitmap for NeverMade {
    fn new<R: GuestMemoryRegion>(_region: &R, _log: Arc<MmapLogReg>) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl BitmapReplace for DirtyBitmap {
    type InnerBitmap = NeverMade;

    fn replace(&self, bitmap: NeverMade) {
        match bitmap {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use vm_memory::{Bytes, GuestAddress};

    const MIB: u64 = 1 << 20;

    fn file(len: u64) -> OwnedFd {
        let file = File::from(memfd_create(c"log", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(len).unwrap();
        file.into()
    }

    /// Two regions with a hole between them, and a log that just covers them.
    fn bed() -> (GuestMemory, Arc<Log>) {
        let ranges = [(GuestAddress(0), 0x5000), (GuestAddress(MIB), 0x1_0000)];
        let memory = GuestMemory::from_ranges(&ranges).unwrap();
        let size = (MIB + 0x1_0000) / PAGE / PAGES_PER_BYTE;
        let log = Log::map(file(size), size, 0).unwrap();
        log.check(&memory).unwrap();
        (memory, Arc::new(log))
    }

    /// Addresses of all pages that are marked, and of none twice.
    fn marked(log: &Log) -> Vec<u64> {
        let pages = 0..log.map.size() as u64 * PAGES_PER_BYTE;
        pages.map(|page| page * PAGE).filter(|&address| log.is_marked(address)).collect()
    }

    #[test]
    fn writes_are_told_while_a_log_is_attached() {
        let (memory, log) = bed();
        memory.write_slice(&[1; 10], GuestAddress(0)).unwrap();
        assert!(marked(&log).is_empty());
        attach(&memory, Some(&log));
        memory.write_slice(&[1; 10], GuestAddress(0x1ffb)).unwrap();
        memory.store(1_u16, GuestAddress(MIB + 0x7002), Ordering::Release).unwrap();
        memory.write_obj(1_u64, GuestAddress(MIB + 0xfff8)).unwrap();
        memory.read_obj::<u64>(GuestAddress(0x4000)).unwrap();
        assert_eq!(marked(&log), [0x1000, 0x2000, MIB + 0x7000, MIB + 0xf000]);
        attach(&memory, None);
        memory.write_slice(&[1; 10], GuestAddress(0x4000)).unwrap();
        assert_eq!(marked(&log).len(), 4);
    }

    #[test]
    fn slices_of_slices_keep_their_place() {
        let (memory, log) = bed();
        attach(&memory, Some(&log));
        let slice = memory.get_slice(GuestAddress(MIB + 0x800), 0x8000).unwrap();
        let part = slice.subslice(0x2000, 0x4000).unwrap().offset(0x1000).unwrap();
        part.get_ref::<u32>(0x7fe).unwrap().store(1);
        assert_eq!(marked(&log), [MIB + 0x3000, MIB + 0x4000]);
        assert!(slice.bitmap().dirty_at(0x3000) && !slice.bitmap().dirty_at(0x5000));
        part.copy_from(&[0_u8; 0x2000]);
        assert_eq!(marked(&log), [0x3000, 0x4000, 0x5000].map(|at| MIB + at));
    }

    #[test]
    fn a_range_is_marked_to_its_last_page_and_no_further() {
        let (_, log) = bed();
        for first in 0..20 {
            for count in 1..20 {
                log.map.as_volatile_slice().copy_from(&vec![0_u8; log.map.size()]);
                log.mark(first * PAGE + 5, (count * PAGE) as usize - 5);
                let expected: Vec<u64> = (first..first + count).map(|page| page * PAGE).collect();
                assert_eq!(marked(&log), expected, "{count} pages from {first}");
            }
        }
        log.map.as_volatile_slice().copy_from(&vec![0_u8; log.map.size()]);
        log.mark(0, 0);
        log.mark(1 << 40, 4096);
        log.mark(u64::MAX, usize::MAX);
        assert!(marked(&log).is_empty());
    }

    #[test]
    fn everything_can_be_marked() {
        let (memory, log) = bed();
        attach(&memory, Some(&log));
        mark_all(&memory);
        assert_eq!(marked(&log).len(), 5 + 16);
    }

    #[test]
    fn a_log_that_is_not_what_was_said_is_refused() {
        assert!(matches!(Log::map(file(4096), 0, 0), Err(LogError::Size(0))));
        assert!(matches!(Log::map(file(4096), u64::MAX, 0), Err(LogError::Size(_))));
        for (size, offset) in [(4097, 0), (4096, 1), (1, 4096), (1, 1 << 40), (64, u64::MAX)] {
            let refused = Log::map(file(4096), size, offset);
            assert!(matches!(refused, Err(LogError::TooFar { .. })), "{size} bytes at {offset}");
        }
        let within_a_page = Log::map(file(4096), 64, 8);
        assert!(matches!(within_a_page, Err(LogError::Map { .. })));
        let (pipe, _) = nix::unistd::pipe().unwrap();
        assert!(matches!(Log::map(pipe, 64, 0), Err(LogError::Map { .. })));
        assert!(Log::map(file(8192), 4096, 4096).is_ok());
        let (memory, _) = bed();
        let log = Log::map(file(64), 33, 0).unwrap();
        let refused = log.check(&memory).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "a log of 33 bytes does not reach to the guest's memory at 0x10ffff"
        );
    }
}
