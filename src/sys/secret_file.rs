//! Files with secrets: this module reads them only if no other user can read them, and writes them
//! so that no other user ever could. The same holds for their directories, because editors leave
//! copies there with other modes.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// Permission bits of group and others.
const OTHERS: u32 = 0o077;

/// Distinguishes versions of a file's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Version {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// The current version of the file at a path.
///
/// # Errors
/// There is no such file.
pub fn version(path: &Path) -> io::Result<Version> {
    Ok(Version::of(&fs::metadata(path)?))
}

/// Checks the directory of a file: it must belong to this process's user or to root, and be closed
/// to group and others. For root any owner will do. Returns its owner.
///
/// # Errors
/// The condition that it does not meet.
pub fn check_directory(path: &Path) -> io::Result<u32> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = parent.unwrap_or(Path::new("."));
    let metadata = fs::metadata(directory)?;
    let (mode, name) = (metadata.mode() & 0o7777, directory.display());
    if mode & OTHERS != 0 {
        let text = format!(
            "its directory {name} lets group or others in (mode {mode:04o}): chmod 700, or take one of \
             its own for keys"
        );
        return Err(io::Error::other(text));
    }
    let user = nix::unistd::geteuid().as_raw();
    if ![user, 0].contains(&metadata.uid()) && user != 0 {
        let text = format!("its directory {name} belongs to user {}", metadata.uid());
        return Err(io::Error::other(text));
    }
    Ok(metadata.uid())
}

/// Reads a regular file of at most `most` bytes that belongs to this process's user, to root or to
/// the owner of its directory, and is closed to group and others, as is its directory.
///
/// # Errors
/// The condition that it does not meet.
pub fn read(path: &Path, most: usize) -> io::Result<(Zeroizing<Vec<u8>>, Version)> {
    let owner = check_directory(path)?;
    let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mode = metadata.mode() & 0o7777;
    if mode & OTHERS != 0 {
        let text = format!("its mode {mode:04o} lets group or others in; it must be 0600 or 0400");
        return Err(io::Error::other(text));
    }
    let user = nix::unistd::geteuid().as_raw();
    if ![user, 0, owner].contains(&metadata.uid()) {
        return Err(io::Error::other(format!("it belongs to user {}", metadata.uid())));
    }
    // One byte more, to detect longer files; the buffer never grows, so no copy is left behind.
    let mut bytes = Zeroizing::new(vec![0; most + 1]);
    let mut len = 0;
    while len < bytes.len() {
        match file.read(bytes.get_mut(len..).unwrap_or_default())? {
            0 => break,
            n => len += n,
        }
    }
    bytes.truncate(len);
    Ok((bytes, Version::of(&metadata)))
}

/// Writes a new file for a user, by default the owner of its directory. Leaves no file on failure.
///
/// # Errors
/// The file exists, cannot be written or given to the user, or others may enter its directory.
pub fn create(path: &Path, text: &[u8], owner: Option<u32>) -> io::Result<()> {
    let owner = check_directory(path).map(|usual| owner.unwrap_or(usual))?;
    create_with(path, |file| give_to(file, owner).and_then(|file| finish(file, text)))
}

/// Replaces the content of a file in one step, and keeps its owner.
///
/// # Errors
/// The directory cannot be written to, the owner cannot be kept, or another process is replacing
/// the file.
pub fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    // For a link, replace the file that it leads to.
    let path = fs::canonicalize(path)?;
    let owner = fs::metadata(&path)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new: PathBuf = path.with_file_name(name);
    let write = |file| give_to(file, owner.uid()).and_then(|file| finish(file, text));
    create_with(&new, write).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => {
            let text =
                format!("{} exists: is it being replaced? If not, remove that", new.display());
            io::Error::other(text)
        }
        _ => error,
    })?;
    fs::rename(&new, &path).inspect_err(|_| {
        // Report the error of the renaming.
        let _ = fs::remove_file(&new);
    })
}

/// Makes a new file, and removes it if it cannot be written, because half a secret is useless
/// and would obstruct the next attempt.
fn create_with(path: &Path, write: impl FnOnce(File) -> io::Result<()>) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    write(file).inspect_err(|_| {
        // Report the error of writing.
        let _ = fs::remove_file(path);
    })
}

fn give_to(file: File, owner: u32) -> io::Result<File> {
    if owner != nix::unistd::geteuid().as_raw() {
        fchown(&file, Some(owner), None).map_err(|error| {
            io::Error::new(error.kind(), format!("can't be given to user {owner}: {error}"))
        })?;
    }
    Ok(file)
}

fn finish(mut file: File, text: &[u8]) -> io::Result<()> {
    file.write_all(text)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A directory that only its owner may enter.
    fn closed() -> tempfile::TempDir {
        let mode = fs::Permissions::from_mode(0o700);
        tempfile::Builder::new().permissions(mode).tempdir().unwrap()
    }

    #[test]
    fn only_closed_files_are_read() {
        let dir = closed();
        let path = dir.path().join("k");
        create(&path, b"secret", None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(create(&path, b"x", None).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        let (bytes, first) = read(&path, 100).unwrap();
        assert_eq!(&bytes[..], b"secret");
        assert_eq!(read(&path, 3).unwrap().0.len(), 4, "shows that it is too long");
        for mode in [0o640, 0o604, 0o620, 0o601] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = read(&path, 100).unwrap_err().to_string();
            assert!(error.contains(&format!("{mode:04o}")), "{error}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        assert!(read(&path, 100).is_ok());
        let inner = dir.path().join("directory");
        fs::create_dir(&inner).unwrap();
        assert_eq!(read(&inner, 100).unwrap_err().to_string(), "not a regular file");
        fs::remove_dir(&inner).unwrap();
        replace(&path, b"other").unwrap();
        assert_eq!(&read(&path, 100).unwrap().0[..], b"other");
        assert_ne!(version(&path).unwrap(), first);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_replaced_stays_its_owners_and_a_link_one() {
        let dir = closed();
        let (path, link) = (dir.path().join("k"), dir.path().join("link"));
        create(&path, b"one", None).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
        }
        let owner = fs::metadata(&path).unwrap().uid();
        replace(&link, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        let after = fs::metadata(&path).unwrap();
        assert_eq!((after.uid(), after.mode() & 0o777), (owner, 0o600));
        create(&dir.path().join("k.new"), b"another is at it", None).unwrap();
        let refused = replace(&path, b"three").unwrap_err().to_string();
        assert!(refused.contains("k.new exists"), "{refused}");
    }

    #[test]
    fn what_can_not_be_written_leaves_nothing_behind() {
        let dir = closed();
        let path = dir.path().join("k");
        let full = |mut file: File| {
            file.write_all(b"hal")?;
            Err(io::Error::from_raw_os_error(libc::ENOSPC))
        };
        let error = create_with(&path, full).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        assert!(!path.exists());
        create(&path, b"whole", None).unwrap();
    }

    #[test]
    fn a_directory_that_others_may_enter_holds_no_secrets() {
        let dir = closed();
        let (path, new) = (dir.path().join("k"), dir.path().join("n"));
        create(&path, b"secret", None).unwrap();
        for mode in [0o755, 0o710, 0o701, 0o1777, 0o750] {
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
            for refused in [read(&path, 100).unwrap_err(), create(&new, b"x", None).unwrap_err()] {
                let text = refused.to_string();
                assert!(text.contains(&format!("(mode {mode:04o}): chmod 700")), "{text}");
            }
            assert!(!new.exists());
        }
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        assert!(read(&path, 100).is_ok());
    }

    /// varpd has a user of its own, to whom the directory belongs; root makes and exchanges the
    /// keys.
    #[test]
    fn what_root_writes_is_its_directorys_owners() {
        if !nix::unistd::geteuid().is_root() {
            println!("not root: nothing is given away");
            return;
        }
        let dir = closed();
        std::os::unix::fs::chown(dir.path(), Some(65534), None).unwrap();
        let (path, named) = (dir.path().join("k"), dir.path().join("named"));
        create(&path, b"one", None).unwrap();
        create(&named, b"one", Some(1)).unwrap();
        let owner = |path: &Path| fs::metadata(path).unwrap().uid();
        assert_eq!((owner(&path), owner(&named)), (65534, 1));
        assert_eq!(&read(&path, 100).unwrap().0[..], b"one", "root reads it, too");
        replace(&path, b"two").unwrap();
        assert_eq!(owner(&path), 65534);
        let foreign = read(&named, 100).unwrap_err().to_string();
        assert_eq!(foreign, "it belongs to user 1");
    }
}
