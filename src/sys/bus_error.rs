//! What becomes of a process when memory that another one shares with it fails (SIGBUS).
//!
//! Guest memory is a file of the frontend's. The frontend, or whoever has the file, can cut it while it
//! is mapped here, and then any access ends the process: by default with a signal, perhaps a copy of
//! its memory on disk, and no word of why. A backend serves one frontend, who harms nobody but
//! itself; what is left to do is to say so and end, without a copy of what was in memory. The kernel then
//! closes what was open: varpd sees that the vif is gone, the other ends of lanes see theirs end.
//!
//! To go on with other memory in place of what is missing would be possible; but then frames of zeros
//! would leave in the guest's name until somebody notices.

use std::io;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Exit status: the other side of the protocol is to blame (`EX_PROTOCOL` of sysexits.h).
pub const EXIT_STATUS: i32 = 76;

/// What is said when a mapped file has no such page.
const CUT: &str = "vhost-user-vnet: memory that is shared with the frontend is gone: its file was made \
    shorter, or there are no huge pages left; the process ends\n";
/// What is said for any other reason, as that the hardware has lost a page.
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
