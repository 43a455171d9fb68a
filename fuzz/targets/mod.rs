//! What is fuzzed: a function for each boundary at which bytes of somebody else come in.
//!
//! Each takes any bytes, drives the code behind the boundary with them and asserts what must hold
//! whatever they are. The fuzzers call them, and `tests/corpora` with everything in `fuzz/corpus`.

#![allow(dead_code, reason = "each fuzzer uses one of them")]

pub(crate) mod config;
pub(crate) mod control;
pub(crate) mod echo;
pub(crate) mod esp;
pub(crate) mod frontend;
pub(crate) mod guest;
pub(crate) mod handshake;
pub(crate) mod hello;
pub(crate) mod inbound;
pub(crate) mod keyfile;
pub(crate) mod lanes;
pub(crate) mod local;
pub(crate) mod offload;
pub(crate) mod packet;
pub(crate) mod parts;
pub(crate) mod receive;
pub(crate) mod relayed;
pub(crate) mod rings;
pub(crate) mod trailer;
pub(crate) mod varp;

/// Takes numbers from the front of the input; zeros when there is no more.
pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn take(&mut self, len: usize) -> &'a [u8] {
        let (front, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        front
    }

    pub(crate) fn u8(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_be_bytes([self.u8(), self.u8()])
    }

    pub(crate) fn u64(&mut self) -> u64 {
        (0..4).fold(0, |value, _| value << 16 | u64::from(self.u16()))
    }

    /// A length in front, then so many bytes.
    pub(crate) fn chunk(&mut self) -> Option<&'a [u8]> {
        if self.0.is_empty() {
            return None;
        }
        let len = self.u16().into();
        Some(self.take(len))
    }
}
