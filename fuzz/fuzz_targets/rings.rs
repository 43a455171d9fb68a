//! See `targets::rings`: descriptor chains of a guest that changes its memory meanwhile.

#![no_main]

#[path = "../targets/mod.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::rings::run(data));
