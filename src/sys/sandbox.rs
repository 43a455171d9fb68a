//! Confines a process after its start, so that an attacker who takes it over (such as a
//! guest through a bug in its backend) gains as little as possible.
//!
//! | Layer | Remaining rights |
//! |---|---|
//! | a private view ([`view`]; backends) | the directories of its own socket and of varpd's, if the system permits namespaces |
//! | no-new-privs (prctl(2)) | no program that it starts gains privileges |
//! | capabilities (capabilities(7)) | none, also for root; [`Confinement::capabilities`] lists exceptions |
//! | Landlock (landlock(7)) | no file is opened, made or removed beyond [`Confinement::files`]; no TCP; no signal or abstract socket beyond this process |
//! | seccomp (seccomp(2)) | the system calls that are listed in `calls.rs`, and the socket options in `options.rs`; any other kills the process |
//!
//! The process's only thread applies the layers in this order; later threads inherit them. A kernel
//! without Landlock, or with an older one, causes a warning: seccomp forbids the same operations,
//! except connections to abstract sockets. But seccomp cannot distinguish files, so a process that
//! reads files needs Landlock unless that is waived ([`Confinement::needs_landlock`]). A kernel
//! without seccomp is an error.

mod calls;
mod options;
#[cfg(test)]
mod tests;
pub mod view;

use std::io;
use std::path::{Path, PathBuf};

pub use caps::Capability;
use caps::{CapSet, CapsHashSet};
use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
};
use seccompiler::BpfProgram;
use thiserror::Error;

pub use calls::Profile;

/// The newest known version of Landlock; an older kernel's is used as far as it goes.
const LANDLOCK: ABI = ABI::V7;

/// A file or directory that remains accessible, with its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Entries of this directory may be removed, such as the listening socket at the end.
    RemoveSocket(PathBuf),
    /// It may be read.
    Read(PathBuf),
}

impl Reach {
    /// The socket at `path` may be removed; Landlock has rights only on directories.
    pub fn remove_socket(path: &Path) -> Self {
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        Self::RemoveSocket(directory.unwrap_or(Path::new(".")).into())
    }
}

/// The rights that a process keeps.
#[derive(Clone, Debug)]
pub struct Confinement {
    /// Its system calls.
    pub profile: Profile,
    /// Its files.
    pub files: Vec<Reach>,
    /// Its capabilities, if it has them.
    pub capabilities: Vec<Capability>,
    /// Whether a kernel without Landlock is an error, if files remain readable.
    pub needs_landlock: bool,
}

/// Why a process cannot be confined. It must exit then.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// prctl(2) failed.
    #[error("cannot set no-new-privs: {0}")]
    NoNewPrivs(#[source] io::Error),
    /// Its memory remains accessible from outside.
    #[error("cannot protect the process's memory from other processes: {0}")]
    Secrets(#[source] io::Error),
    /// Capabilities remain.
    #[error("cannot drop capabilities: {0}")]
    Capabilities(String),
    /// Landlock exists but fails.
    #[error("cannot restrict access to files: {0}")]
    Landlock(String),
    /// The kernel has no Landlock.
    #[error("this kernel has no Landlock (Linux 5.13, lsm=landlock)")]
    NoLandlock,
    /// The kernel refuses the filter.
    #[error("cannot restrict system calls: {0}")]
    Seccomp(#[from] seccompiler::Error),
    /// The filter cannot be compiled.
    #[error("cannot build the system call filter: {0}")]
    Filter(#[from] seccompiler::BackendError),
}

impl Confinement {
    /// Confines this process, irrevocably. Call it while the process has one thread.
    ///
    /// # Errors
    /// The failed layer. Other layers may be in force already: the process should exit.
    pub fn enter(&self) -> Result<(), SandboxError> {
        super::process::keep_freed_memory();
        // The opener has no secrets: varpd forks it before it reads any.
        if self.profile != Profile::Opener {
            super::process::keep_secrets().map_err(SandboxError::Secrets)?;
        }
        nix::sys::prctl::set_no_new_privs().map_err(|e| SandboxError::NoNewPrivs(e.into()))?;
        self.drop_capabilities()?;
        self.restrict_files()?;
        for program in self.programs()? {
            seccompiler::apply_filter(&program)?;
        }
        Ok(())
    }

    fn drop_capabilities(&self) -> Result<(), SandboxError> {
        let failed = |error: caps::errors::CapsError| SandboxError::Capabilities(error.to_string());
        let held = caps::read(None, CapSet::Permitted).map_err(failed)?;
        // This needs the right to change the bounding set; otherwise no-new-privs still holds.
        if held.contains(&Capability::CAP_SETPCAP) {
            caps::clear(None, CapSet::Bounding).map_err(failed)?;
        }
        let kept: CapsHashSet =
            self.capabilities.iter().copied().filter(|cap| held.contains(cap)).collect();
        for set in [CapSet::Ambient, CapSet::Inheritable] {
            caps::clear(None, set).map_err(failed)?;
        }
        caps::set(None, CapSet::Effective, &kept).map_err(failed)?;
        caps::set(None, CapSet::Permitted, &kept).map_err(failed)
    }

    fn restrict_files(&self) -> Result<(), SandboxError> {
        match self.landlock() {
            Ok(RulesetStatus::NotEnforced) if self.reads() && self.needs_landlock => {
                Err(SandboxError::NoLandlock)
            }
            Ok(RulesetStatus::NotEnforced) if self.reads() => {
                log::warn!(
                    "this kernel has no Landlock: an attacker who takes over this process can read all files of its user"
                );
                Ok(())
            }
            Ok(RulesetStatus::NotEnforced) => {
                log::warn!(
                    "this kernel has no Landlock: only seccomp keeps this process from files"
                );
                Ok(())
            }
            Ok(status) => {
                log::debug!("Landlock: {status:?}");
                Ok(())
            }
            Err(error) => Err(SandboxError::Landlock(error)),
        }
    }

    fn landlock(&self) -> Result<RulesetStatus, String> {
        let describe = |error: &dyn std::error::Error| error.to_string();
        let mut rules = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(LANDLOCK))
            .and_then(|rules| rules.handle_access(AccessNet::from_all(LANDLOCK)))
            .and_then(|rules| rules.scope(Scope::from_all(LANDLOCK)))
            .and_then(Ruleset::create)
            .map_err(|error| describe(&error))?;
        for reach in &self.files {
            let (path, access) = match reach {
                Reach::RemoveSocket(path) => (path, AccessFs::RemoveFile),
                Reach::Read(path) => (path, AccessFs::ReadFile),
            };
            let opened = PathFd::new(path).map_err(|error| describe(&error))?;
            // Leave out rights that apply only to directories.
            rules = rules
                .add_rule(
                    PathBeneath::new(opened, access).set_compatibility(CompatLevel::BestEffort),
                )
                .map_err(|error| describe(&error))?;
        }
        rules.restrict_self().map(|status| status.ruleset).map_err(|error| describe(&error))
    }

    fn programs(&self) -> Result<[BpfProgram; 2], SandboxError> {
        let removes = self.files.iter().any(|reach| matches!(reach, Reach::RemoveSocket(_)));
        let files = calls::Files { removes, reads: self.reads() };
        Ok([calls::refused()?, calls::allowed(self.profile, files)?])
    }

    fn reads(&self) -> bool {
        self.files.iter().any(|reach| matches!(reach, Reach::Read(_)))
    }
}
