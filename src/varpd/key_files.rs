//! The files of vnets' keys: read, and read again when they have changed.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use crate::metrics::{VarpdCounter, VarpdCounters};
use crate::security::keyfile::{self, KeyFile};
use crate::sys::process;
use crate::sys::secret_file::{self, Version};
use crate::wire::VnetId;

/// A file that is looked after.
#[derive(Debug)]
struct File {
    path: PathBuf,
    /// The one that was read last; none if that failed.
    version: Option<Version>,
}

/// All of them, by vnet.
#[derive(Debug, Default)]
pub(super) struct KeyFiles(BTreeMap<VnetId, File>);

impl KeyFiles {
    /// Looks after a vnet's file from now on, and reads it.
    ///
    /// # Errors
    /// The file's name and what is wrong with it.
    pub(super) fn read(
        &mut self,
        vnet: VnetId,
        path: PathBuf,
        counters: &VarpdCounters,
    ) -> Result<KeyFile, String> {
        let (version, file) = match read(&path, counters) {
            Ok((file, version)) => (Some(version), Ok(file)),
            Err(e) => (None, Err(format!("{}: {e}", path.display()))),
        };
        match file.is_ok() {
            true => self.0.insert(vnet, File { path, version }),
            false => self.0.remove(&vnet),
        };
        file
    }

    /// Looks after a vnet's file from now on, which was read already.
    pub(super) fn watch(&mut self, vnet: VnetId, path: PathBuf) {
        let version = secret_file::version(&path).ok();
        self.0.insert(vnet, File { path, version });
    }

    /// Reads the files that have changed.
    pub(super) fn read_changed(
        &mut self,
        counters: &VarpdCounters,
    ) -> Vec<(VnetId, Result<KeyFile, String>)> {
        let mut changed = Vec::new();
        for (&vnet, File { path, version }) in &mut self.0 {
            if version.is_some() && secret_file::version(path).ok() == *version {
                continue;
            }
            changed.push((
                vnet,
                match read(path, counters) {
                    Ok((file, new)) => {
                        *version = Some(new);
                        Ok(file)
                    }
                    Err(e) => Err(format!("{}: {e}", path.display())),
                },
            ));
        }
        changed
    }
}

fn read(path: &Path, counters: &VarpdCounters) -> io::Result<(KeyFile, Version)> {
    counters.inc(VarpdCounter::key_files_read);
    let read = || {
        let (bytes, version) = secret_file::read(path, keyfile::MAX_LEN)
            .map_err(|e| explained(e, process::own_user()))?;
        Ok((KeyFile::parse(&bytes).map_err(io::Error::other)?, version))
    };
    read().inspect_err(|_| counters.inc(VarpdCounter::key_files_failed))
}

/// What to do about a key that cannot be read by varpd's user.
fn explained(error: io::Error, user: u32) -> io::Error {
    match error.kind() {
        io::ErrorKind::PermissionDenied => io::Error::other(format!(
            "user {user}, as whom varpd runs, can't read it: the file and its directory must be that \
             user's (chown {user})"
        )),
        _ => error,
    }
}
