//! See `targets::inbound`: datagrams on their whole way into a guest.

#![no_main]

#[path = "../targets/mod.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::inbound::run(data));
