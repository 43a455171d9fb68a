//! Everything in `fuzz/corpus`, once and with small changes: a fuzzer's finds stay found.
//!
//! The same functions as the fuzzers', see `fuzz/targets`; new input is looked for by `fuzz/run`.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a failed test may panic")]

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use proptest::test_runner::{RngAlgorithm, TestRng};

#[path = "../../fuzz/targets/mod.rs"]
mod targets;

/// Changed copies of each input that are tried, too.
const CHANGED: u32 = 200;

/// Replays the corpus of a target.
fn replay(name: &str, run: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut count = 0;
    for entry in fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        let input = fs::read(&path).unwrap();
        run(&input);
        change(&path, &input, run);
        count += 1;
    }
    assert!(count > 0, "a corpus for {name}");
    println!("{name}: {count} inputs, each with {CHANGED} changed copies");
}

/// The same changes in each run: a test that fails today fails tomorrow.
fn change(path: &Path, input: &[u8], run: fn(&[u8])) {
    use proptest::prelude::Rng;
    let mut random = TestRng::from_seed(RngAlgorithm::XorShift, &[7; 16]);
    for _ in 0..CHANGED {
        let mut changed = input.to_vec();
        for _ in 0..=random.next_u32() % 4 {
            let at = random.next_u32() as usize % (changed.len() + 1);
            match random.next_u32() % 3 {
                0 => changed.truncate(at),
                1 => changed.insert(at, random.next_u32() as u8),
                _ => {
                    if let Some(byte) = changed.get_mut(at) {
                        *byte ^= 1 << (random.next_u32() % 8);
                    }
                }
            }
        }
        let done = catch_unwind(AssertUnwindSafe(|| run(&changed)));
        assert!(done.is_ok(), "{} changed to {changed:02x?}", path.display());
    }
}

macro_rules! replayed {
    ($($target:ident),+ $(,)?) => {
        $(#[test]
        fn $target() {
            replay(stringify!($target), targets::$target::run);
        })+

        /// Every directory of the corpus has a test, and every fuzzer.
        #[test]
        fn every_target_is_replayed() {
            let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
            let names = |directory: &str| -> Vec<String> {
                let entries = fs::read_dir(root.join(directory)).unwrap();
                let stem = |path: &Path| path.file_stem().unwrap().to_str().unwrap().to_owned();
                let mut names: Vec<String> = entries.map(|e| stem(&e.unwrap().path())).collect();
                names.sort();
                names
            };
            let mut replayed = vec![$(stringify!($target).to_owned()),+];
            replayed.sort();
            assert_eq!(names("corpus"), replayed);
            assert_eq!(names("fuzz_targets"), replayed);
        }
    };
}

replayed!(
    config, control, echo, esp, frontend, handshake, hello, inbound, keyfile, lanes, local,
    offload, packet, parts, receive, relayed, rings, trailer, varp,
);
