//! Ends the process with a message if memory that another process shares with it fails (SIGBUS).
//!
//! Guest memory is a file of the frontend. The frontend, or any process that has the file, can
//! truncate it while the backend has it mapped, and then any access ends the backend: by default
//! with a signal, often with a core dump, and without a reason in the log. A backend serves one frontend,
//! which harms only itself. So the backend logs the reason and ends, without a core dump. The
//! kernel then closes its descriptors: varpd notices that the vif is gone, and the backends at the
//! other ends of its lanes notice that these have ended.
//!
//! The backend could continue with other memory in place of the missing one, but then frames of
//! zeros would leave in the guest's name until an operator notices.

use std::io;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Exit status: the other side of the protocol is to blame (`EX_PROTOCOL` of sysexits.h).
pub const EXIT_STATUS: i32 = 76;

/// The message if a mapped file has no such page.
const CUT: &str = "vhost-user-vnet: memory that is shared with the frontend is gone: its file was made \
    shorter, or there are no huge pages left; the process ends\n";
/// The message for any other reason, such as a page that the hardware has lost.
const FAILED: &str = "vhost-user-vnet: memory failed (SIGBUS); the process ends\n";

/// From now on, the process ends with a line of explanation when shared memory fails.
///
/// # Errors
/// The system refuses.
pub fn explain() -> io::Result<()> {
    let flags = SaFlags::SA_SIGINFO | SaFlags::SA_ONSTACK;
    let action = SigAction::new(SigHandler::SigAction(end), flags, SigSet::all());
    // SAFETY: the handler makes only calls that signal-safety(7) allows, and does not return.
    unsafe { sigaction(Signal::SIGBUS, &action) }?;
    Ok(())
}

/// The handler: it may run at any point of the program, so it allocates and locks nothing.
extern "C" fn end(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel hands a handler with SA_SIGINFO a valid siginfo_t.
    let code = unsafe { (*info).si_code };
    let text = if code == libc::BUS_ADRERR { CUT } else { FAILED };
    // SAFETY: the bytes are live and of this length. Whether they are read matters no more.
    unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
    // SAFETY: no argument is a pointer, and nothing of this process runs after it.
    unsafe { libc::_exit(EXIT_STATUS) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use nix::sys::memfd::{MFdFlags, memfd_create};
    use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

    /// Set for the process that is to end.
    const VICTIM: &str = "VNET_TEST_BUS_ERROR";

    /// Cuts a file that is mapped, and reads where it was.
    fn read_what_is_gone() {
        let file = File::from(memfd_create(c"test", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(8192).unwrap();
        let offset = FileOffset::new(file.try_clone().unwrap(), 0);
        let map: MmapRegion<()> = MmapRegion::from_file(offset, 8192).unwrap();
        file.set_len(4096).unwrap();
        let _: u32 = map.as_volatile_slice().read_obj(4096).unwrap();
    }

    #[test]
    fn a_process_whose_memory_is_cut_says_so_and_ends() {
        if std::env::var_os(VICTIM).is_some() {
            explain().unwrap();
            read_what_is_gone();
            unreachable!("nobody reads what is gone");
        }
        let name = "sys::bus_error::tests::a_process_whose_memory_is_cut_says_so_and_ends";
        let mut again = Command::new(std::env::current_exe().unwrap());
        let again = again.args(["--exact", name, "--nocapture"]).env(VICTIM, "1");
        let output = again.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(EXIT_STATUS), "{said}");
        assert_eq!(output.status.signal(), None);
        assert!(said.contains(CUT), "{said}");
    }
}
