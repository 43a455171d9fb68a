//! After its start, a process gives up what it no longer needs, so that whoever takes it over (a
//! guest through a bug in its backend, say) gains nothing.
//!
//! | Layer | What is left |
//! |---|---|
//! | a private view ([`view`]; backends) | the directories of its own socket and of varpd's, where namespaces can be made |
//! | no-new-privs (prctl(2)) | no program started from here ever gains a privilege |
//! | capabilities (capabilities(7)) | none, also for root; the opener keeps what [`Confinement::capabilities`] says |
//! | Landlock (landlock(7)) | no file is opened, made or removed beyond [`Confinement::files`]; no TCP; no signal or abstract socket beyond this process |
//! | seccomp (seccomp(2)) | the system calls that are listed in `calls.rs`, and the socket options in `options.rs`; any other kills the process |
//!
//! The layers are put on in this order, by the only thread that there is; threads that are started
//! later inherit them. A kernel without Landlock, or with an older one, is told of and lived with: seccomp
//! forbids the same calls, but connections to abstract sockets. It can't tell one file from another, though, so
//! to who reads files Landlock is needed unless that is waived ([`Confinement::needs_landlock`]). A kernel
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

/// The newest Landlock that this knows; of an older kernel's, what there is.
const LANDLOCK: ABI = ABI::V7;

/// A file or directory that stays reachable, with all that is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// What is in this directory may be removed: the socket that is listened on, at the end.
    RemoveSocket(PathBuf),
    /// It may be read.
    Read(PathBuf),
}

impl Reach {
    /// The socket at `path` may be removed; Landlock knows rights on directories only.
    pub fn remove_socket(path: &Path) -> Self {
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        Self::RemoveSocket(directory.unwrap_or(Path::new(".")).into())
    }
}

/// What a process keeps.
#[derive(Clone, Debug)]
pub struct Confinement {
    /// Which system calls.
    pub profile: Profile,
    /// Which files.
    pub files: Vec<Reach>,
    /// Which capabilities, if it has them.
    pub capabilities: Vec<Capability>,
    /// Whether it is an error that the kernel has no Landlock, if files stay in reach to be read.
    pub needs_landlock: bool,
}

/// Why a process can't be confined. It must not go on then.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// prctl(2) failed.
    #[error("cannot set no-new-privs: {0}")]
    NoNewPrivs(#[source] io::Error),
    /// Its memory can be had from outside.
    #[error("cannot keep the process's memory to itself: {0}")]
    Secrets(#[source] io::Error),
    /// Capabilities stay.
    #[error("cannot drop capabilities: {0}")]
    Capabilities(String),
    /// Landlock is there but does not do it.
    #[error("cannot restrict the files in reach: {0}")]
    Landlock(String),
    /// The kernel has none.
    #[error("this kernel has no Landlock (Linux 5.13, lsm=landlock)")]
    NoLandlock,
    /// The kernel takes no filter.
    #[error("cannot restrict system calls: {0}")]
    Seccomp(#[from] seccompiler::Error),
    /// The filter can't be made.
    #[error("cannot make the filter of system calls: {0}")]
    Filter(#[from] seccompiler::BackendError),
}

impl Confinement {
    /// Confines this process, for ever. To be called while it has one thread.
    ///
    /// # Errors
    /// What stays open. Some of it may be closed already: the process should end.
    pub fn enter(&self) -> Result<(), SandboxError> {
        super::process::keep_freed_memory();
        // The opener has none: it is forked before any is read.
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
        // Only who may change the bounding set can do so; without it, no-new-privs still holds.
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
            // What means something for directories only is left out for a file.
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
