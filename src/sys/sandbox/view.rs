//! A private view of the file system: the directories that a process needs, and nothing else.
//!
//! Landlock and seccomp cannot distinguish Unix sockets by their paths, and a backend has to
//! reconnect whenever varpd, or a QEMU that listens, restarts. So the process gets a mount
//! namespace whose root is an empty, read-only tmpfs with the process's directories bound into it.
//! These are directories, not sockets, because a restart replaces the sockets. If a directory is
//! removed and made again, the process does not see the new one: see [`Directory`].
//!
//! ```text
//!     unshare(mounts)  -> bind directories below a tmpfs -> pivot_root to it -> unmount all else
//! ```
//! A process that may not mount enters a user namespace in which it may. This namespace maps only
//! its own user: other users' numbers read 65534. A kernel may forbid any of this and there is no
//! way back, so a child process tries it first.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use caps::{CapSet, Capability};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::unistd::{ForkResult, chdir, fork, getegid, geteuid, pipe, pivot_root};
use thiserror::Error;

/// Mount point for the new root during its construction. Any existing directory will do: the mount
/// covers it only in the new namespace, and only until the view is complete.
const STAGE: &str = "/usr";

/// Why there is no private view. The process is unchanged.
#[derive(Debug, Error)]
pub enum ViewError {
    /// The view needs a user namespace, in which users cannot be distinguished.
    #[error(
        "without root's rights it needs a user namespace, in which users cannot be distinguished"
    )]
    Users,
    /// A directory does not exist.
    #[error("{0}: {1}")]
    Directory(PathBuf, #[source] io::Error),
    /// The system refuses a step.
    #[error("{0}")]
    Refused(String),
}

/// How a process gets the view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// It may mount in its user namespace.
    Mounts,
    /// It may mount only in a user namespace of its own.
    Users,
}

/// Limits the paths of this process to these directories, irrevocably. Call it while the process
/// has one thread. Paths must be absolute and without links, see [`real`]. With `exact_users` the
/// process can still distinguish users afterwards.
///
/// # Errors
/// There is no view; the process is unchanged.
pub fn enter(directories: &[PathBuf], exact_users: bool) -> Result<(), ViewError> {
    let way = match caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_ADMIN) {
        Ok(true) => Way::Mounts,
        _ if exact_users => return Err(ViewError::Users),
        _ => Way::Users,
    };
    for directory in directories {
        fs::read_dir(directory).map_err(|error| ViewError::Directory(directory.clone(), error))?;
    }
    rehearse(|| build(way, directories)).map_err(ViewError::Refused)?;
    build(way, directories).map_err(ViewError::Refused)
}

/// The path of a file without links; the file itself need not exist.
///
/// # Errors
/// Its directory can't be found.
pub fn real(path: &Path) -> io::Result<PathBuf> {
    fs::canonicalize(path).or_else(|_| place(path))
}

/// The path of a file, without links among its directories; the file itself may be a link.
///
/// # Errors
/// Its directory can't be found.
pub fn place(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    Ok(fs::canonicalize(parent.unwrap_or(Path::new(".")))?.join(name))
}

/// Tries it in a child process, which then exits.
fn rehearse(act: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    let failed = |what: &'static str| move |error: Errno| format!("{what}: {error}");
    let (reader, writer) = pipe().map_err(failed("pipe"))?;
    // SAFETY: this process has one thread, as `enter` asks for, so that the child finds no lock
    // taken.
    match unsafe { fork() }.map_err(failed("fork"))? {
        ForkResult::Child => {
            let why = act().err().unwrap_or_default();
            let told = fs::File::from(writer).write_all(why.as_bytes());
            // SAFETY: ends the child at once, without the parent's exit handlers.
            unsafe { libc::_exit(i32::from(told.is_err() || !why.is_empty())) }
        }
        ForkResult::Parent { child } => {
            drop(writer);
            let mut why = String::new();
            let read = fs::File::from(reader).read_to_string(&mut why);
            let status = nix::sys::wait::waitpid(child, None).map_err(failed("wait"))?;
            let fine = status == nix::sys::wait::WaitStatus::Exited(child, 0) && read.is_ok();
            if fine { Ok(()) } else { Err(why) }
        }
    }
}

/// Makes the view; after an error the process is unusable.
fn build(way: Way, directories: &[PathBuf]) -> Result<(), String> {
    let failed = |what: &'static str| move |error: Errno| format!("{what}: {error}");
    isolate(way)?;
    let none = None::<&str>;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(none, "/", none, private, none).map_err(failed("cannot make mounts private"))?;
    // Before the mount covers them.
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let open = |path: &PathBuf| open(path, flags, Mode::empty());
    let opened: Result<Vec<OwnedFd>, Errno> = directories.iter().map(open).collect();
    let opened = opened.map_err(failed("cannot open a directory"))?;
    let bare = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let options = Some("mode=0755,size=64k,nr_inodes=64");
    mount(Some("view"), STAGE, Some("tmpfs"), bare, options).map_err(failed("cannot mount"))?;
    let mut bound: Vec<&PathBuf> = Vec::new();
    for (path, directory) in directories.iter().zip(&opened) {
        if bound.iter().any(|other| path.starts_with(other)) {
            continue;
        }
        let target = Path::new(STAGE).join(path.strip_prefix("/").unwrap_or(path));
        fs::create_dir_all(&target).map_err(|error| format!("{}: {error}", target.display()))?;
        let source = format!("/proc/self/fd/{}", directory.as_raw_fd());
        let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
        mount(Some(source.as_str()), &target, none, bind, none).map_err(failed("cannot bind"))?;
        bound.push(path);
    }
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | bare;
    mount(none, STAGE, none, read_only, none).map_err(failed("cannot make it read-only"))?;
    chdir(STAGE).map_err(failed("chdir"))?;
    // pivot_root stacks the old root on the new one; unmount it.
    pivot_root(".", ".").map_err(failed("pivot_root"))?;
    let off = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
    umount2(".", off).map_err(failed("cannot unmount the rest"))?;
    chdir("/").map_err(failed("chdir"))
}

/// Enters the namespaces.
fn isolate(way: Way) -> Result<(), String> {
    let failed = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
    let (uid, gid) = (geteuid(), getegid());
    let flags = match way {
        Way::Mounts => CloneFlags::CLONE_NEWNS,
        Way::Users => CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUSER,
    };
    unshare(flags).map_err(|error| format!("cannot make namespaces: {error}"))?;
    if way == Way::Users {
        fs::write("/proc/self/setgroups", "deny").map_err(failed("setgroups"))?;
        fs::write("/proc/self/uid_map", format!("{uid} {uid} 1")).map_err(failed("uid_map"))?;
        fs::write("/proc/self/gid_map", format!("{gid} {gid} 1")).map_err(failed("gid_map"))?;
    }
    Ok(())
}

/// A directory that is examined later, when its path is out of reach.
#[derive(Debug)]
pub struct Directory(OwnedFd);

impl Directory {
    /// Opens the directory at this path.
    ///
    /// # Errors
    /// There is no such directory.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self(open(path, flags, Mode::empty())?))
    }

    /// Whether it has been removed, so that no new socket can appear in it.
    pub fn is_removed(&self) -> bool {
        // SAFETY: a structure of numbers, for which zeros are as good as any.
        let mut found: libc::stat = unsafe { std::mem::zeroed() };
        // The library's fstat(2) may be another call, which a confined process has not.
        // SAFETY: the descriptor is open, and the kernel writes one such structure.
        let done = unsafe { libc::syscall(libc::SYS_fstat, self.0.as_raw_fd(), &raw mut found) };
        done == 0 && found.st_nlink == 0
    }
}
