//! The user of a process.

use std::ffi::CString;
use std::io;

use caps::CapSet;
use nix::sys::prctl;
use nix::unistd::{User, geteuid, initgroups, setresgid, setresuid};

/// As whom this process runs now.
pub fn own() -> u32 {
    geteuid().as_raw()
}

/// The user of this name or number; `None` if there is none.
///
/// # Errors
/// The list of users can't be read.
pub fn find(name: &str) -> io::Result<Option<User>> {
    Ok(match name.parse() {
        Ok(number) => User::from_uid(nix::unistd::Uid::from_raw(number))?,
        Err(_) => User::from_name(name)?,
    })
}

/// Why this process could not become another user's.
#[derive(Debug)]
pub enum NotChanged {
    /// It is as it was.
    AtAll(io::Error),
    /// It is of neither user: it has some of the other's groups or numbers, and must end.
    Wholly(io::Error),
}

/// Makes this process, which has one thread, one of another user, with all of that user's groups.
/// It keeps its capabilities: those it gives up by itself later.
///
/// # Errors
/// It lacks CAP_SETUID or CAP_SETGID.
pub fn become_user(user: &User) -> Result<(), NotChanged> {
    let name = CString::new(user.name.as_str()).map_err(|e| NotChanged::AtAll(e.into()))?;
    // The first change of the process itself: what fails up to here has changed nothing.
    initgroups(&name, user.gid).map_err(|e| NotChanged::AtAll(e.into()))?;
    change_the_rest(user).map_err(NotChanged::Wholly)
}

fn change_the_rest(user: &User) -> io::Result<()> {
    prctl::set_keepcaps(true)?;
    setresgid(user.gid, user.gid, user.gid)?;
    setresuid(user.uid, user.uid, user.uid)?;
    prctl::set_keepcaps(false)?;
    // The kernel took them out of effect with the user.
    let failed = |error: caps::errors::CapsError| io::Error::other(error.to_string());
    let held = caps::read(None, CapSet::Permitted).map_err(failed)?;
    caps::set(None, CapSet::Effective, &held).map_err(failed)
}
