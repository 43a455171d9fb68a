//! What the tests of whole hosts are made of: hosts that are network namespaces, the project's
//! programs running on them, and guests with a real kernel in QEMU.
//!
//! Everything that is made here is removed again when it is dropped, also when a test panics. A
//! test that fails prints the logs of all its processes.

pub(crate) mod clocks;
pub(crate) mod guest;
pub(crate) mod netns;
pub(crate) mod process;
pub(crate) mod qmp;
pub(crate) mod routed;
pub(crate) mod vnet;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::vnet::sys::clock;

/// The repository.
pub(crate) const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Time between two looks at a condition, and at first.
const PAUSE: Duration = Duration::from_millis(5);
const SHORTEST_PAUSE: Duration = Duration::from_micros(50);
/// The longest that a look at a condition takes, the start of a program included, and a pause.
const LONGEST_TURN: Duration = Duration::from_secs(3);

/// Says that a test, or a part of one, is left out, and why; `tests/run` counts these.
///
/// It is said past the test runner, which shows nothing of tests that succeed, and once more, all
/// together, when the program ends.
pub(crate) fn skip(what: &str, why: &str) {
    let line = format!("{}: {what}: {why}\n", env!("CARGO_CRATE_NAME"));
    let mut reasons = SKIPPED.lock().unwrap_or_else(PoisonError::into_inner);
    if reasons.is_empty() {
        say_at_the_end();
    }
    *reasons.entry(why.to_owned()).or_default() += 1;
    drop(reasons);
    // The macros are what the test runner captures. In one piece: others write as well.
    let _ = std::io::stderr().write_all(format!("SKIPPED: {line}").as_bytes());
    let Some(list) = std::env::var_os("VNET_SKIPS") else { return };
    let file = OpenOptions::new().create(true).append(true).open(list);
    file.and_then(|mut file| file.write_all(line.as_bytes())).expect("VNET_SKIPS can be written");
}

/// How often something was left out, by reason.
static SKIPPED: Mutex<BTreeMap<String, usize>> = Mutex::new(BTreeMap::new());

/// The test runner's own last line counts what was left out as passed.
extern "C" fn say_what_was_skipped() {
    let reasons = SKIPPED.lock().unwrap_or_else(PoisonError::into_inner);
    let program = env!("CARGO_CRATE_NAME");
    let mut text =
        format!("\n*** {program}: NOT ALL OF THE TESTS ABOVE HAVE TESTED ANYTHING ***\n");
    for (why, count) in &*reasons {
        text += &format!("*** skipped {count} times: {why}\n");
    }
    let _ = std::io::stderr().write_all((text + "\n").as_bytes());
}

fn say_at_the_end() {
    // SAFETY: the function is one that C can call, takes nothing, does not unwind, and stays.
    let failed = unsafe { libc::atexit(say_what_was_skipped) };
    assert_eq!(failed, 0, "there is room for a function");
}

/// Says what a test does next, with the seconds since the first step.
pub(crate) fn step(what: &str) {
    println!("[{:6.2} s] {what}", clock::mono().as_micros() as f64 / 1e6);
}

/// One test of whole hosts of this process at a time: there are only so many processors, and deadlines
/// to keep. cargo-nextest runs each test in a process of its own: which run side by side, and which run
/// alone, is said in `.config/nextest.toml`.
pub(crate) fn take_turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether network namespaces can be made; if not, says that `what` is left out.
pub(crate) fn can_make_hosts(what: &str) -> bool {
    if !nix::unistd::geteuid().is_root() {
        skip(what, "network namespaces need root");
        return false;
    }
    if succeeds(Command::new("ip").arg("-V")) {
        return true;
    }
    skip(what, "there is no ip command (package iproute2)");
    false
}

/// Whether guests can be booted, which includes making their image; if not, says that `what` is
/// left out.
pub(crate) fn can_boot_guests(what: &str) -> bool {
    if !can_make_hosts(what) {
        return false;
    }
    if !succeeds(Command::new(guest::Qemu::Installed.program()).arg("--version")) {
        skip(what, "there is no qemu-system-x86_64 (package qemu-system-x86)");
        return false;
    }
    let image = Path::new(ROOT).join("qemu-examples/guest-image");
    assert!(succeeds(&mut Command::new(image)), "qemu-examples/guest-image failed");
    true
}

fn succeeds(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

/// Waits until `condition` holds; panics, naming `what`, if it does not within `limit`.
///
/// What has not come at once is looked for less and less often: most of what is waited for is a
/// matter of microseconds, and a look can cost the start of a program. The time between two looks
/// counts up to [`LONGEST_TURN`]: what is more, others had the processors.
pub(crate) fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let (mut waited, mut looked) = (Duration::ZERO, clock::mono());
    let mut pause = SHORTEST_PAUSE;
    while !condition() {
        let now = clock::mono();
        waited += LONGEST_TURN.min(now - looked);
        looked = now;
        assert!(waited < limit, "{what}: not within {limit:?}");
        std::thread::park_timeout(pause);
        pause = PAUSE.min(2 * pause);
    }
}

/// The time between two looks at a condition that cannot be waited for.
pub(crate) fn pause() {
    std::thread::park_timeout(PAUSE);
}
