//! See `targets::frontend`: messages of a vhost-user frontend.

#![no_main]

#[path = "../targets/mod.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::frontend::run(data));
