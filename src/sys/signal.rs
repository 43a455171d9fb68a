//! Signals as a descriptor in the event loop.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Becomes readable when the process is asked to end (SIGTERM, SIGINT).
#[derive(Debug)]
pub struct Termination(SignalFd);

impl Termination {
    /// Blocks the signals in this thread (and those it starts later) and opens the descriptor.
    pub fn new() -> io::Result<Self> {
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
