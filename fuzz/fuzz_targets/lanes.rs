//! See `targets::lanes`: one side of a lane against a lying peer.

#![no_main]

#[path = "../targets/mod.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::lanes::run(data));
