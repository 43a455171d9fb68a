//! Signals: as a descriptor in the event loop, or ignored.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Signals that would end a process that says nothing of them, and that are sent to daemons in the
/// belief that they do something else: read their configuration, open their log anew.
pub const IGNORED: [Signal; 3] = [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2];

/// Becomes readable when the process is asked to end (SIGTERM, SIGINT).
#[derive(Debug)]
pub struct Termination(SignalFd);

impl Termination {
    /// Blocks the signals in this thread (and those it starts later) and opens the descriptor. What
    /// others mean by a signal that has no meaning here ([`IGNORED`]) ends no network from now on.
    pub fn new() -> io::Result<Self> {
        for ignored in IGNORED {
            // SAFETY: no code of ours runs for an ignored signal.
            unsafe { signal(ignored, SigHandler::SigIgn) }?;
        }
        let mut set = SigSet::empty();
        set.add(Signal::SIGTERM);
        set.add(Signal::SIGINT);
        set.thread_block()?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        Ok(Self(SignalFd::with_flags(&set, flags)?))
    }

    /// The name of a signal that has arrived, if any.
    pub fn take(&self) -> io::Result<Option<&'static str>> {
        let info = self.0.read_signal()?;
        let signal = info.and_then(|info| i32::try_from(info.ssi_signo).ok());
        Ok(signal.map(|n| Signal::try_from(n).map_or("signal", Signal::as_str)))
    }
}

impl AsFd for Termination {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
