//! See `targets::trailer`: what a relay puts behind VARP.

#![no_main]

#[path = "../targets/mod.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::trailer::run(data));
