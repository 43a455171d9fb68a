//! See `targets::receive`: datagrams before anything about them is known.

#![no_main]

#[path = "../targets/mod.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::receive::run(data));
