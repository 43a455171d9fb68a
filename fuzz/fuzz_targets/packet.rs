//! See `targets::packet`: the headers of frames of guests.

#![no_main]

#[path = "../targets/mod.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::packet::run(data));
