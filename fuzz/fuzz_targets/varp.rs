//! See `targets::varp`: VARP messages, to a parser and to a mapper.

#![no_main]

#[path = "../targets/mod.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::varp::run(data));
