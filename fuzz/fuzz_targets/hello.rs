//! See `targets::hello`: what hosts say of themselves.

#![no_main]

#[path = "../targets/mod.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::hello::run(data));
