//! Confines the process once everything is open, and logs weaknesses of the set-up.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use super::ServeError;
use crate::sys::sandbox::view::{self, Directory};
use crate::sys::sandbox::{Confinement, Profile, Reach};
use crate::vhost_user::attach::Attach;

/// Most neighbours that are named.
const MOST_NAMED: usize = 3;

/// Which directories the process can see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum View {
    /// Those of its own socket and of varpd's. If the system does not permit hiding the others, the backend logs a
    /// warning and continues.
    #[default]
    Own,
    /// The same, but the backend exits if the system does not permit hiding the others.
    Required,
    /// All that it was started with: the service manager has hidden the others.
    Given,
}

/// The sockets that the process has to reach by their paths, without links.
pub(super) struct Sockets {
    /// The socket that it listens on, or connects to.
    own: Option<PathBuf>,
    /// It is removed at the end.
    listens: bool,
    varpd: PathBuf,
}

impl Sockets {
    /// Looks them up. varpd's is there.
    pub(super) fn find(attach: &Attach, varpd: &Path) -> Self {
        let real = |path: &Path| view::real(path).unwrap_or_else(|_| path.into());
        let (own, listens) = match attach {
            Attach::Listen { path, .. } => {
                (Some(view::place(path).unwrap_or_else(|_| path.clone())), true)
            }
            Attach::Connect { path } => (Some(real(path)), false),
            Attach::Fd(_) => (None, false),
        };
        Self { own, listens, varpd: real(varpd) }
    }

    /// varpd's, by which it is called again.
    pub(super) fn varpd(&self) -> &Path {
        &self.varpd
    }

    fn directories(&self) -> Vec<PathBuf> {
        let paths = self.own.iter().chain([&self.varpd]);
        let mut directories: Vec<_> =
            paths.filter_map(|path| path.parent()).map(PathBuf::from).collect();
        // One that holds another comes before it.
        directories.sort();
        directories.dedup();
        directories
    }

    /// Other sockets beside one's own, or below varpd's directory, which no view can hide.
    fn neighbours(&self) -> Vec<String> {
        let own = self.own.iter().filter_map(|path| path.parent());
        let beside = own.flat_map(fs::read_dir).flatten().flatten();
        let others = beside.filter(|entry| Some(&entry.path()) != self.own.as_ref());
        let sockets = others.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket()));
        sockets.take(MOST_NAMED).map(|entry| entry.file_name().display().to_string()).collect()
    }

    fn tell_neighbours(&self) {
        let Some(directory) = self.own.as_ref().and_then(|path| path.parent()) else { return };
        let neighbours = self.neighbours();
        if !neighbours.is_empty() {
            log::warn!(
                "{} holds other sockets, too ({}): a guest that takes over this process can remove or reach \
                 them; give each NIC a directory of its own",
                directory.display(),
                neighbours.join(", ")
            );
        }
        if let Some(varpds) = self.varpd.parent().filter(|varpds| directory != *varpds)
            && directory.starts_with(varpds)
        {
            log::warn!(
                "{} holds varpd's socket and directories of NICs: a guest that takes over this process can reach \
                 these; give varpd a directory of its own",
                varpds.display()
            );
        }
    }
}

/// Gives up what is not needed any more. Returns varpd's directory, to be looked at when varpd is not found.
pub(super) fn confine(
    sockets: &Sockets,
    view: View,
    exact_users: bool,
) -> Result<Option<Directory>, ServeError> {
    sockets.tell_neighbours();
    if view != View::Given {
        match view::enter(&sockets.directories(), exact_users) {
            Ok(()) => {}
            Err(error) if view == View::Required => return Err(ServeError::View(error)),
            Err(error) => log::warn!(
                "no private view of the file system ({error}): a guest that takes over this process can reach other \
                 sockets, as far as its user may connect to them"
            ),
        }
    }
    let directory = sockets.varpd.parent().and_then(|path| Directory::open(path).ok());
    let own = sockets.own.as_ref().filter(|_| sockets.listens);
    let files = own.map(|path| Reach::remove_socket(path)).into_iter().collect();
    let (profile, capabilities) = (Profile::Backend, Vec::new());
    Confinement { profile, files, capabilities, needs_landlock: false }.enter()?;
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn paths_are_without_links_and_neighbours_are_found() {
        let scratch = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(scratch.path()).unwrap();
        fs::create_dir(root.join("web1")).unwrap();
        std::os::unix::fs::symlink(root.join("web1"), root.join("link")).unwrap();
        let varpd = root.join("varpd.sock");
        let _sockets = [&varpd, &root.join("web1/nic.sock"), &root.join("web1/other")]
            .map(|path| UnixListener::bind(path).unwrap());
        let attach = Attach::Connect { path: root.join("link/nic.sock") };
        let found = Sockets::find(&attach, &varpd);
        assert_eq!(found.own, Some(root.join("web1/nic.sock")));
        assert_eq!(found.directories(), [root.clone(), root.join("web1")]);
        assert_eq!(found.neighbours(), ["other"]);
        // One that is not there yet.
        let attach = Attach::Connect { path: root.join("link/later") };
        assert_eq!(Sockets::find(&attach, &varpd).own, Some(root.join("web1/later")));
    }
}
