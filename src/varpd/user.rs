//! varpd's own user: if root starts varpd, it changes to another user, so that an attacker who
//! takes it over has access to neither root's files nor root's processes.

use std::io;

use crate::config::{Config, DEFAULT_USER};
use crate::sys::user::{self, NotChanged};

use super::VarpdError;

/// The decision about varpd's user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Keep the user: it is the right one, or another user started varpd.
    Stay,
    /// Change from root to the user.
    Become,
    /// Stay root, because there is no such user.
    StayRoot,
    /// Fail: the configured user does not exist.
    Unknown,
    /// Fail: only root can change to another user.
    NotRoot,
}

/// `own` is the current user's number, `known` that of the wanted user, if it exists.
fn decide(was_asked: bool, own: u32, known: Option<u32>) -> Step {
    match known {
        Some(known) if known == own => Step::Stay,
        Some(_) if own == 0 => Step::Become,
        Some(_) if was_asked => Step::NotRoot,
        None if was_asked => Step::Unknown,
        None if own == 0 => Step::StayRoot,
        Some(_) | None => Step::Stay,
    }
}

/// Changes to varpd's user, and keeps the capabilities until varpd is confined. Returns a warning
/// to log when varpd is ready, if any.
///
/// # Errors
/// The configuration names a user who does not exist, or to whom this process cannot change.
pub(super) fn become_own(config: &Config) -> Result<Option<String>, VarpdError> {
    if !config.sandbox {
        return Ok(None);
    }
    let (name, was_asked) = (config.user.as_deref().unwrap_or(DEFAULT_USER), config.user.is_some());
    let failed = |source| VarpdError::OwnUser { name: name.to_owned(), source };
    let found = user::find(name).map_err(failed)?;
    let step = decide(was_asked, user::own(), found.as_ref().map(|user| user.uid.as_raw()));
    let remedy = format!(
        "varpd runs as root, without capabilities; a user of its own would keep it from root's files: \
         useradd --system --no-create-home {name}"
    );
    match (step, found) {
        (Step::Become, Some(user)) => match user::become_user(&user) {
            Ok(()) => Ok(None),
            Err(NotChanged::AtAll(e)) if !was_asked => {
                Ok(Some(format!("varpd stays root: can't become user {name}: {e}")))
            }
            Err(NotChanged::AtAll(e)) => Err(failed(e)),
            Err(NotChanged::Wholly(e)) => Err(failed(io::Error::new(
                e.kind(),
                format!(
                    "{e}, after its groups were taken on; give varpd CAP_SETUID and CAP_SETGID, or neither"
                ),
            ))),
        },
        (Step::Unknown, _) => Err(failed(io::Error::new(io::ErrorKind::NotFound, "no such user"))),
        (Step::NotRoot, _) => {
            let why = "varpd must be started as root, or as that user";
            Err(failed(io::Error::new(io::ErrorKind::PermissionDenied, why)))
        }
        (Step::StayRoot, _) => Ok(Some(remedy)),
        (Step::Become | Step::Stay, _) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_becomes_the_user_if_there_is_one_and_others_stay_who_they_are() {
        for (was_asked, own, known, step) in [
            (false, 0, Some(7), Step::Become),
            (true, 0, Some(7), Step::Become),
            (false, 0, None, Step::StayRoot),
            (true, 0, None, Step::Unknown),
            (true, 0, Some(0), Step::Stay),
            (false, 7, Some(7), Step::Stay),
            (true, 7, Some(7), Step::Stay),
            (false, 8, Some(7), Step::Stay),
            (true, 8, Some(7), Step::NotRoot),
            (false, 8, None, Step::Stay),
            (true, 8, None, Step::Unknown),
        ] {
            assert_eq!(decide(was_asked, own, known), step, "{was_asked} {own} {known:?}");
        }
    }
}
