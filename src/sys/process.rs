//! System calls of a daemon about its own process and others.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Group, User};

/// Another process; unlike its number, this never refers to a later one (pidfd_open(2)).
#[derive(Debug)]
pub struct Process(OwnedFd);

impl From<OwnedFd> for Process {
    fn from(pidfd: OwnedFd) -> Self {
        Self(pidfd)
    }
}

/// Readable when the process has ended.
impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Process {
    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }
}

/// Raises the limit of open descriptors to the hard limit; returns the new limit.
pub fn raise_file_limit() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// The user of this process.
pub fn own_user() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// The number of a group given by name or number.
pub fn group_id(name: &str) -> io::Result<u32> {
    if let Ok(id) = name.parse() {
        return Ok(id);
    }
    let group = Group::from_name(name)?;
    group.map(|group| group.gid.as_raw()).ok_or_else(|| unknown("group"))
}

/// Whether an error stays until somebody changes a file, a name or a permission: another attempt
/// fails as well.
pub fn is_lasting(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::PermissionDenied
            | io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::IsADirectory
            | io::ErrorKind::ReadOnlyFilesystem
            | io::ErrorKind::InvalidFilename
            | io::ErrorKind::InvalidInput
    )
}

fn unknown(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("no such {what}"))
}

/// The number of a user given by name or number.
pub fn user_id(name: &str) -> io::Result<u32> {
    if let Ok(id) = name.parse() {
        return Ok(id);
    }
    let user = User::from_name(name)?;
    user.map(|user| user.uid.as_raw()).ok_or_else(|| unknown("user"))
}

/// Takes over a descriptor that the process was started with.
pub fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: only asks about the number; nothing is owned by this borrow.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    fcntl(borrowed, FcntlArg::F_GETFD)?;
    // SAFETY: it is open, and it was named on the command line for us to own; no other part of
    // this process does, since this is called before any other descriptor is opened.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes the allocator keep memory that threads free. To return the end of a thread's heap, glibc
/// first reads /proc/sys/vm/overcommit_memory, which a confined process may not.
pub fn keep_freed_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number of the allocator, which takes its own lock; -1 is for never
    // (mallopt(3)).
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
    }
}

/// Raises the limit of locked memory, if this process may. Call it before changing to another user.
pub fn raise_lock_limit() {
    let unlimited = nix::sys::resource::RLIM_INFINITY;
    // On failure `keep_secrets` logs the limit.
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, unlimited, unlimited);
}

/// Protects this process's memory, and so its keys: no core dumps, no access by other processes of
/// the same user (`PR_SET_DUMPABLE`), and no swapping if it may lock enough memory. Exclude guest
/// memory that is mapped later: [`unlock`].
///
/// # Errors
/// The system refuses an operation that never fails otherwise.
pub fn keep_secrets() -> io::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    nix::sys::prctl::set_dumpable(false)?;
    raise_lock_limit();
    let (soft, _) = getrlimit(Resource::RLIMIT_MEMLOCK)?;
    if soft != nix::sys::resource::RLIM_INFINITY {
        log::info!(
            "memory is not locked (the limit is {} KiB, RLIMIT_MEMLOCK): keys could be swapped out",
            soft / 1024
        );
        return Ok(());
    }
    // Only used pages: stacks and heaps are larger than that.
    let on_fault = libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT;
    // SAFETY: changes where pages are kept, not what is in them.
    if unsafe { libc::mlockall(on_fault) } != 0 {
        log::warn!("cannot lock memory: {}", io::Error::last_os_error());
    }
    Ok(())
}

/// Unlocks these bytes, from `start` on, which another process owns and which are mapped here.
pub fn unlock(start: *const u8, len: usize) {
    // SAFETY: changes where pages are kept, not what is in them; an address that is not mapped is
    // an error.
    unsafe { libc::munlock(start.cast(), len) };
}

/// Secret randomness from the kernel (getrandom(2)).
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    const { assert!(N <= 256) };
    let mut bytes = [0; N];
    // SAFETY: the buffer is live and of the length given; up to 256 bytes come whole or not at all.
    let n = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if usize::try_from(n) == Ok(bytes.len()) { Ok(bytes) } else { Err(io::Error::last_os_error()) }
}
