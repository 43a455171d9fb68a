//! See `targets::esp`: datagrams of a secured vnet, before and after they are opened.

#![no_main]

#[path = "../targets/mod.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::esp::run(data));
