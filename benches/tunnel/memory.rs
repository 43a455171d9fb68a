//! Memory shared between processes: a guest's with its backend, the board with the other stations.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64};

use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

/// A mapping of a file or memfd.
pub(crate) struct Shared {
    file: File,
    map: MmapRegion<()>,
}

impl Shared {
    /// New memory, all zero, that only its descriptor leads to.
    pub(crate) fn anonymous(len: usize) -> io::Result<Self> {
        let file = File::from(memfd_create(c"guest", MFdFlags::MFD_CLOEXEC)?);
        Self::map(file, len)
    }

    /// The memory in the file at `path`, which is made if there is none.
    pub(crate) fn at(path: &Path, len: usize) -> io::Result<Self> {
        let file =
            File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        Self::map(file, len)
    }

    fn map(file: File, len: usize) -> io::Result<Self> {
        file.set_len(len as u64)?;
        let offset = FileOffset::new(file.try_clone()?, 0);
        let map = MmapRegion::from_file(offset, len).map_err(io::Error::other)?;
        Ok(Self { file, map })
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    pub(crate) fn len(&self) -> usize {
        self.map.size()
    }

    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) {
        self.map.get_slice(offset, bytes.len()).expect("in memory").copy_from(bytes);
    }

    pub(crate) fn u16(&self, offset: usize) -> &AtomicU16 {
        self.map.get_atomic_ref(offset).expect("in memory")
    }

    pub(crate) fn u32(&self, offset: usize) -> &AtomicU32 {
        self.map.get_atomic_ref(offset).expect("in memory")
    }

    pub(crate) fn u64(&self, offset: usize) -> &AtomicU64 {
        self.map.get_atomic_ref(offset).expect("in memory")
    }

    /// Bytes that no other process writes to at this time: a receive buffer that its device has
    /// marked used and that was not offered again.
    pub(crate) fn quiet(&self, offset: usize, len: usize) -> &[u8] {
        let end = offset.checked_add(len);
        assert!(end.is_some_and(|end| end <= self.len()), "in memory");
        // SAFETY: within the mapping, which lives as long as `self`; that nobody writes is what the
        // caller promises, of a backend whose payload is being verified.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().wrapping_add(offset), len) }
    }
}
