//! The key files of vnets: reads them, and reads them again when they have changed.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use crate::metrics::{VarpdCounter, VarpdCounters};
use crate::security::keyfile::{self, KeyFile};
use crate::sys::process;
use crate::sys::secret_file::{self, Version};
use crate::wire::VnetId;

/// A key file that varpd checks for changes.
#[derive(Debug)]
struct File {
    path: PathBuf,
    /// The version last read; `None` if varpd could not determine it.
    version: Option<Version>,
}

/// All key files, by vnet.
#[derive(Debug, Default)]
pub(super) struct KeyFiles(BTreeMap<VnetId, File>);

impl KeyFiles {
    /// Reads a vnet's file. If that succeeds, checks the file for changes from now on.
    ///
    /// # Errors
    /// The file is unreadable or invalid; the text names it and the reason.
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

    /// Checks a vnet's file, which was read already, for changes from now on.
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

/// Adds advice to the error if varpd's user may not read the key.
fn explained(error: io::Error, user: u32) -> io::Error {
    match error.kind() {
        io::ErrorKind::PermissionDenied => io::Error::other(format!(
            "user {user}, as whom varpd runs, can't read it: the file and its directory must be that \
             user's (chown {user})"
        )),
        _ => error,
    }
}
