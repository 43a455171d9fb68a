//! Makes the files of listening Unix sockets, with their mode and group, in directories that others
//! may write to.
//!
//! System calls set a socket's mode and group by its name, and a user who may write to the
//! directory could put another file, or a link to one, in the socket's place before that. So the
//! process makes the socket in a new directory that only its user can enter, sets mode and group
//! there, and then moves the socket to its place. There it replaces an existing file, and has its
//! mode and group from the start.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstat, fstatat};
use nix::unistd::{Gid, fchownat, geteuid, mkdtemp};

/// See [`Failed`].
pub const CREATE: &str = "create the socket";

/// The step that failed, in words that follow "can't", and its error.
pub type Failed = (&'static str, io::Error);

/// For `map_err`.
fn failed<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> Failed {
    move |error| (doing, error.into())
}

/// Has `listen` make a socket at the path that it is given, and places it at `path` with these
/// permission bits and, if any, that group. Returns the socket, and the device and inode of its
/// file.
///
/// # Errors
/// The step that failed. It leaves nothing behind, and does not change a file at `path`.
pub fn place<T>(
    path: &Path,
    mode: u32,
    group: Option<u32>,
    listen: impl FnOnce(&Path) -> io::Result<T>,
) -> Result<(T, (u64, u64)), Failed> {
    let name = path.file_name().ok_or_else(|| {
        let error = io::Error::new(io::ErrorKind::InvalidInput, "it names no file");
        ("use it as a socket's path", error)
    })?;
    let private = Private::new(path)?;
    let socket = listen(&private.path.join(name)).map_err(failed(CREATE))?;
    let inode = dress(private.directory.as_fd(), name, mode, group)?;
    renameat(&private.directory, name, AT_FDCWD, path).map_err(failed("move it to its place"))?;
    Ok((socket, inode))
}

/// A directory for one file, which only this user can enter; removed when dropped.
struct Private {
    path: PathBuf,
    directory: OwnedFd,
}

impl Private {
    /// Beside `path`, so that a file in it can be moved there.
    fn new(path: &Path) -> Result<Self, Failed> {
        let path = mkdtemp(&path.with_file_name(".XXXXXX")).map_err(failed(CREATE))?;
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let directory = openat(AT_FDCWD, &path, flags, Mode::empty()).map_err(failed(CREATE))?;
        let private = Self { path, directory };
        let made = fstat(&private.directory).map_err(failed(CREATE))?;
        if made.st_uid != geteuid().as_raw() || made.st_mode & 0o077 != 0 {
            return Err((CREATE, io::Error::other("another process has put its own there")));
        }
        Ok(private)
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        // It is empty if all went well. If another process moved it away, it is not ours to find.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Sets mode and group of the socket with this name in a directory that only this user can enter.
fn dress(
    directory: BorrowedFd<'_>,
    name: &OsStr,
    mode: u32,
    group: Option<u32>,
) -> Result<(u64, u64), Failed> {
    let looking = "look at the socket";
    let made = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(failed(looking))?;
    if SFlag::from_bits_truncate(made.st_mode) & SFlag::S_IFMT != SFlag::S_IFSOCK {
        return Err((looking, io::Error::other("another process has put another file there")));
    }
    if let Some(group) = group {
        let group = Some(Gid::from_raw(group));
        fchownat(directory, name, None, group, AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(failed("set the socket's group"))?;
    }
    // It is no link, and nobody else can have made it one.
    fchmodat(directory, name, Mode::from_bits_truncate(mode), FchmodatFlags::FollowSymlink)
        .map_err(failed("set the socket's mode"))?;
    Ok((made.st_dev, made.st_ino))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    const PRECIOUS: u32 = 0o600;

    /// A directory with a file whose mode must not change.
    fn directory() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let precious = dir.path().join("precious");
        fs::write(&precious, "").unwrap();
        fs::set_permissions(&precious, fs::Permissions::from_mode(PRECIOUS)).unwrap();
        (dir, precious)
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    fn entries(path: &Path) -> usize {
        fs::read_dir(path).unwrap().count()
    }

    #[test]
    fn a_socket_has_its_mode_and_group_and_replaces_what_is_there() {
        let (dir, precious) = directory();
        let path = dir.path().join("s");
        symlink(&precious, &path).unwrap();
        let group = fs::metadata(dir.path()).unwrap().gid();
        let (_listener, inode) =
            place(&path, 0o622, Some(group), |path| UnixListener::bind(path)).unwrap();
        let made = fs::symlink_metadata(&path).unwrap();
        assert!(made.file_type().is_socket());
        assert_eq!((made.dev(), made.ino()), inode);
        assert_eq!((mode(&path), made.gid(), mode(&precious)), (0o622, group, PRECIOUS));
        UnixStream::connect(&path).unwrap();
        assert_eq!(entries(dir.path()), 2, "nothing else is left");
    }

    /// Whoever may write to the directory can do this between any two steps.
    #[test]
    fn a_link_in_the_sockets_place_is_not_followed() {
        let (dir, precious) = directory();
        let path = dir.path().join("s");
        let swap = |private: &Path| {
            let listener = UnixListener::bind(private)?;
            fs::remove_file(private)?;
            symlink(&precious, private)?;
            Ok(listener)
        };
        let (doing, error) = place(&path, 0o666, None, swap).unwrap_err();
        assert_eq!(doing, "look at the socket", "{error}");
        assert_eq!(mode(&precious), PRECIOUS);
        let swap = |private: &Path| {
            let (directory, elsewhere) = (private.parent().unwrap(), dir.path().join("moved"));
            fs::rename(directory, &elsewhere)?;
            fs::create_dir(directory)?;
            let listener = UnixListener::bind(private)?;
            symlink(&precious, elsewhere.join("s"))?;
            Ok(listener)
        };
        place(&path, 0o666, None, swap).unwrap_err();
        assert_eq!(mode(&precious), PRECIOUS);
        assert!(!path.exists());
    }

    #[test]
    fn a_failure_leaves_nothing_behind() {
        let (dir, _) = directory();
        let fail = |_: &Path| -> io::Result<()> { Err(io::Error::other("no")) };
        let (doing, _) = place(&dir.path().join("s"), 0o600, None, fail).unwrap_err();
        assert_eq!((doing, entries(dir.path())), (CREATE, 1));
        let (doing, error) = place(Path::new("/no/such/s"), 0o600, None, fail).unwrap_err();
        assert_eq!((doing, error.kind()), (CREATE, io::ErrorKind::NotFound));
    }
}
