//! Child processes that log to a file and end with the test.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::{clocks, wait_until};

/// How much of a log is shown when a test fails, in lines.
const SHOWN_LINES: usize = 40;

/// A running program, in a process group of its own.
pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`, whose output goes to `NAME.log` in `directory`.
    pub(crate) fn start(name: &str, directory: &Path, command: &mut Command) -> Self {
        Self::start_reading(name, directory, command, Stdio::null())
    }

    /// The same with something to read on its standard input.
    pub(crate) fn start_reading(
        name: &str,
        directory: &Path,
        command: &mut Command,
        input: Stdio,
    ) -> Self {
        let log = directory.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log).expect("a log file");
        let other = file.try_clone().expect("a second handle of the log file");
        clocks::give(command, name, directory);
        let child = command
            .stdin(input)
            .stdout(file)
            .stderr(other)
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} cannot be started: {error}: {command:?}"));
        Self { name: name.to_owned(), child, log }
    }

    /// What it is called.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything that it has printed.
    pub(crate) fn log(&self) -> String {
        std::fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child that can be waited for")
    }

    /// Panics if it has ended.
    pub(crate) fn assert_running(&mut self) {
        if let Some(status) = self.ended() {
            panic!("{} has ended: {status}", self.name);
        }
    }

    /// Waits until it ends by itself.
    pub(crate) fn wait_end(&mut self, limit: Duration) -> ExitStatus {
        let what = format!("the end of {}", self.name);
        wait_until(&what, limit, || self.ended().is_some());
        self.ended().expect("it has ended")
    }

    /// Ends it without a chance to clean up (SIGKILL).
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.wait_end(Duration::from_secs(10));
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    pub(crate) fn terminate(&mut self, limit: Duration) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait_end(limit)
    }

    /// Takes the processor from it until [`Process::go_on`].
    pub(crate) fn stop(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets it run again.
    pub(crate) fn go_on(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// To the whole process group: what it started ends with it.
    fn signal(&self, signal: Signal) {
        let group = Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"));
        // Fails only if all of the group have already ended.
        let _ = killpg(group, signal);
    }

    /// Processor time that it has used so far, in clock ticks (proc(5): fields 14 and 15 of stat).
    pub(crate) fn cpu_ticks(&self) -> u64 {
        let path = format!("/proc/{}/stat", self.pid());
        let stat = std::fs::read_to_string(path).expect("the state of a running process");
        let (_, fields) = stat.rsplit_once(')').expect("a name in parentheses");
        let number = |field: &str| field.parse::<u64>().expect("a number of ticks");
        fields.split_whitespace().skip(11).take(2).map(number).sum()
    }

    /// Memory that only this process has mapped, in KiB (proc(5): Private_* of smaps_rollup).
    pub(crate) fn private_kib(&self) -> u64 {
        let path = format!("/proc/{}/smaps_rollup", self.pid());
        let rollup = std::fs::read_to_string(path).expect("the memory of a running process");
        let kib = |line: &str| -> Option<u64> {
            let (_, value) = line.strip_prefix("Private_")?.split_once(':')?;
            value.split_whitespace().next()?.parse().ok()
        };
        rollup.lines().filter_map(kib).sum()
    }

    /// How many descriptors it has open.
    pub(crate) fn descriptors(&self) -> usize {
        let path = format!("/proc/{}/fd", self.pid());
        std::fs::read_dir(path).expect("the descriptors of a running process").count()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let skipped = log.lines().count().saturating_sub(SHOWN_LINES);
            println!("--- {}, the end of its output:", self.name);
            log.lines().skip(skipped).for_each(|line| println!("    {line}"));
        }
    }
}
