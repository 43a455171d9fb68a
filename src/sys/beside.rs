//! A second process of the same program, which keeps rights that this one gives up.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::unistd::{ForkResult, Pid, fork, getpid, getppid};

use super::seqpacket::Connection;

/// Starts a process that runs `serve` with one end of a connection and then exits. Returns the
/// other end and the process's number. It exits with this process and leaves no core dump. It
/// ignores signals for the whole service, and exits when the connection ends. The caller need not
/// wait for it (SIGCHLD is ignored from now on).
///
/// # Errors
/// This process has several threads, or the system refuses it.
pub fn start(name: &CStr, serve: impl FnOnce(Connection)) -> io::Result<(Connection, Pid)> {
    // Without /proc, assume one thread.
    if fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() > 1) {
        return Err(io::Error::other("a process with threads can't be forked"));
    }
    let (own, other) = Connection::pair()?;
    let parent = getpid();
    ignore(Signal::SIGCHLD)?;
    // SAFETY: there is no other thread that could hold a lock.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok((own, child)),
        ForkResult::Child => {
            drop(own);
            // No code of the parent runs after this point.
            let served =
                catch_unwind(AssertUnwindSafe(|| settle(name, parent).map(|()| serve(other))));
            let code = i32::from(!matches!(served, Ok(Ok(()))));
            // SAFETY: ends this process, without the parent's exit handlers.
            unsafe { libc::_exit(code) }
        }
    }
}

/// In the child.
fn settle(name: &CStr, parent: Pid) -> io::Result<()> {
    prctl::set_name(name)?;
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    if getppid() != parent {
        return Err(io::Error::other("the process that started this one has ended"));
    }
    prctl::set_dumpable(false)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    for meant_for_all in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
    ] {
        ignore(meant_for_all)?;
    }
    SigSet::all().thread_unblock()?;
    Ok(())
}

fn ignore(number: Signal) -> io::Result<()> {
    // SAFETY: no code of ours runs for an ignored signal.
    unsafe { signal(number, SigHandler::SigIgn) }?;
    Ok(())
}
