//! Wall clocks that a test sets, each for some of the programs that it starts; the machine's own clock stays as
//! it is. Programs read theirs through a library that is loaded into them: see `clock.c`.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The library, in the directory of the programs' logs.
const LIBRARY: &str = "clock.so";

/// The clock of some programs.
pub(crate) struct Clock(File);

impl Clock {
    /// A clock for the programs of these names that are started later with this directory for their logs: it is
    /// so many seconds ahead of the machine's.
    pub(crate) fn new(directory: &Path, programs: &[&str], ahead: i64) -> Self {
        build(directory);
        let own = file_of(directory, programs[0]);
        let clock = Self(File::create(&own).expect("a clock file"));
        clock.set(ahead);
        for program in &programs[1..] {
            fs::hard_link(&own, file_of(directory, program)).expect("its other name");
        }
        clock
    }

    /// Sets it, also for programs that run.
    pub(crate) fn set(&self, ahead: i64) {
        self.0.write_all_at(&ahead.to_ne_bytes(), 0).expect("a clock that can be set");
    }
}

/// Has a program read its clock, if there is one for it.
pub(crate) fn give(command: &mut Command, name: &str, directory: &Path) {
    let clock = file_of(directory, name);
    if clock.exists() {
        command.env("LD_PRELOAD", directory.join(LIBRARY)).env("VNET_TEST_CLOCK", clock);
    }
}

fn file_of(directory: &Path, program: &str) -> PathBuf {
    directory.join(format!("{program}.clock"))
}

fn build(directory: &Path) {
    let library = directory.join(LIBRARY);
    if !library.exists() {
        let source = Path::new(super::ROOT).join("tests/support/clock.c");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O2", "-Wall", "-o"]).arg(&library).arg(source);
        assert!(compiler.status().is_ok_and(|status| status.success()), "{compiler:?}");
    }
}
