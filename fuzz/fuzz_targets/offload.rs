//! See `targets::offload`: frames of guests with their virtio-net headers.

#![no_main]

#[path = "../targets/mod.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::offload::run(data));
