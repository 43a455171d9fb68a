//! See `targets::parts`: names, extensions, payloads of handshakes.

#![no_main]

#[path = "../targets/mod.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::parts::run(data));
