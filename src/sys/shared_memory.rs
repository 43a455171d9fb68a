//! Memory that two processes share without trusting each other.
//!
//! It is a memfd whose length is sealed: no process can truncate it, so no access faults (SIGBUS).
//! A process that maps memory made by another checks this first. The bytes may change at any time:
//! code accesses them only by [`VolatileSlice`]s and atomics, and never makes a reference to them.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::AtomicU32;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

/// Seals without which memory is not mapped: its length stays what it is.
const SEALS: SealFlag =
    SealFlag::F_SEAL_SHRINK.union(SealFlag::F_SEAL_GROW).union(SealFlag::F_SEAL_SEAL);

/// A mapped memfd.
#[derive(Debug)]
pub struct SharedMemory {
    map: MmapRegion<()>,
}

impl SharedMemory {
    /// Memory of so many bytes, all zero, to be sent to those that will share it. None of it is
    /// occupied before it is used.
    ///
    /// # Errors
    /// No descriptors left, or no memory.
    pub fn create(len: usize) -> io::Result<OwnedFd> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(memfd_create(c"vnet", flags)?);
        file.set_len(len as u64)?;
        fcntl(&file, FcntlArg::F_ADD_SEALS(SEALS))?;
        Ok(file.into())
    }

    /// Maps memory that another process has sent, if it has the length of one of `lens` and nobody
    /// can change that.
    ///
    /// # Errors
    /// It is something else (`InvalidData`), or can't be mapped.
    pub fn map(file: OwnedFd, lens: impl FnOnce(usize) -> bool) -> io::Result<Self> {
        let no = |why| Err(io::Error::new(io::ErrorKind::InvalidData, why));
        // Large pages (hugetlbfs) can run out when they are first used, which faults.
        if fstatfs(file.as_fd())?.filesystem_type() != TMPFS_MAGIC {
            return no("not a memfd of ordinary pages");
        }
        // What is no memfd has no seals, and that is an error.
        let seals = fcntl(&file, FcntlArg::F_GET_SEALS).map(SealFlag::from_bits_retain);
        if !seals.is_ok_and(|seals| seals.contains(SEALS)) {
            return no("a memfd that can still be cut");
        }
        let mut file = File::from(file);
        // Not by statx(2), which a confined process may lack.
        let len = usize::try_from(file.seek(SeekFrom::End(0))?).unwrap_or(usize::MAX);
        if !lens(len) {
            return no("a memfd of another length");
        }
        let map = MmapRegion::from_file(FileOffset::new(file, 0), len).map_err(io::Error::other)?;
        Ok(Self { map })
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.map.size()
    }

    /// Whether it has no bytes; never so.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A part of it; `None` beyond its end.
    pub fn slice(&self, at: usize, len: usize) -> Option<VolatileSlice<'_>> {
        self.map.get_slice(at, len).ok()
    }

    /// A number in it, at a multiple of 4; `None` elsewhere.
    pub fn word(&self, at: usize) -> Option<&AtomicU32> {
        self.map.get_atomic_ref(at).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    const LEN: usize = 8192;

    fn kind(result: io::Result<SharedMemory>) -> io::ErrorKind {
        result.unwrap_err().kind()
    }

    #[test]
    fn both_sides_see_the_same_bytes_and_none_beyond() {
        let file = SharedMemory::create(LEN).unwrap();
        let other = file.try_clone().unwrap();
        let [a, b] = [file, other].map(|file| SharedMemory::map(file, |len| len == LEN).unwrap());
        a.slice(100, 5).unwrap().copy_from(b"hello");
        let mut copy = [0; 5];
        b.slice(100, 5).unwrap().copy_to(&mut copy);
        assert_eq!(&copy, b"hello");
        a.word(8188).unwrap().store(7, Ordering::Relaxed);
        assert_eq!(b.word(8188).unwrap().load(Ordering::Relaxed), 7);
        assert!(a.word(8192).is_none() && a.word(2).is_none());
        assert!(a.slice(8000, 193).is_none() && a.slice(usize::MAX, 2).is_none());
    }

    #[test]
    fn nobody_can_cut_it() {
        let file = File::from(SharedMemory::create(LEN).unwrap());
        for len in [0, 4096, 16_384] {
            assert_eq!(file.set_len(len).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        }
        let seal = FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE);
        assert!(fcntl(&file, seal).is_err());
    }

    #[test]
    fn what_could_fault_is_not_mapped() {
        let unsealed = memfd_create(c"test", MFdFlags::MFD_ALLOW_SEALING).unwrap();
        File::from(unsealed.try_clone().unwrap()).set_len(LEN as u64).unwrap();
        let shrinkable = FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL);
        let map = |file: OwnedFd| SharedMemory::map(file, |len| len == LEN);
        assert_eq!(kind(map(unsealed.try_clone().unwrap())), io::ErrorKind::InvalidData);
        fcntl(&unsealed, shrinkable).unwrap();
        assert_eq!(kind(map(unsealed)), io::ErrorKind::InvalidData);
        let short = SharedMemory::create(LEN / 2).unwrap();
        assert_eq!(kind(map(short)), io::ErrorKind::InvalidData);
        assert_eq!(kind(map(File::open("/dev/zero").unwrap().into())), io::ErrorKind::InvalidData);
        let (pipe, _) = nix::unistd::pipe().unwrap();
        assert_eq!(kind(map(pipe)), io::ErrorKind::InvalidData);
    }
}
