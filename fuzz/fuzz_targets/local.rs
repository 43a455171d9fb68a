//! See `targets::local`: frames out of a lane on their way into a guest.

#![no_main]

#[path = "../targets/mod.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::local::run(data));
