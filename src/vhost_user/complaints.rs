//! Limits on log messages about frontends and their guests' rings.
//!
//! Whoever may connect to a NIC's socket can provoke these messages, as often as it likes and on as
//! many connections as it likes. Therefore each kind of message has its limit, for the process and
//! not for a connection: a process has one NIC.

#![forbid(unsafe_code)]

use std::fmt::Arguments;
use std::sync::{Mutex, PoisonError};

use log::Level;

use crate::quiet::QuietEach;
use crate::sys::clock;

/// Messages of a kind in a minute.
const MOST: u32 = 5;

static SAID: Mutex<QuietEach<&'static str>> = Mutex::new(QuietEach::new(MOST));

/// Logs a message at this level, or, if its kind was logged often, at one that only debugging
/// shows.
pub(super) fn log(level: Level, kind: &'static str, message: Arguments<'_>) {
    log::log!(limited(level, kind), "{kind}{message}");
}

fn limited(level: Level, kind: &'static str) -> Level {
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    match said.level(kind, clock::mono()) {
        Level::Warn => level,
        suppressed => suppressed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_limited_by_itself() {
        let said = |kind| (0..1000).filter(|_| limited(Level::Error, kind) == Level::Error).count();
        assert_eq!(said("a kind"), MOST as usize);
        assert_eq!(said("another kind"), MOST as usize);
    }
}
