//! The timer of a worker that waits for credit, among the descriptors on which it waits.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use crate::sys::timer::Timer;
use crate::time::Instant;
use crate::underlay::Port;

/// A worker's timer. It costs a system call only when the time changes.
#[derive(Debug)]
pub struct Alarm {
    timer: Timer,
    at: Option<Instant>,
    group_first: bool,
}

impl Alarm {
    /// A timer that is not set.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn new() -> io::Result<Self> {
        Ok(Self { timer: Timer::new()?, at: None, group_first: false })
    }

    /// Readable when the time has come; [`Alarm::ring`] and then [`Alarm::set`] end that.
    pub fn descriptor(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    /// It was readable. Returns in which order the ports get their turn, so that what arrives at one
    /// can't take all credit from the other for ever.
    pub fn ring(&mut self) -> [Port; 2] {
        self.at = Some(Instant::ZERO);
        self.group_first = !self.group_first;
        if self.group_first { [Port::Group, Port::Own] } else { [Port::Own, Port::Group] }
    }

    /// Sets it to a time, or to none.
    pub fn set(&mut self, at: Option<Instant>, now: Instant) {
        if self.at == at {
            return;
        }
        self.at = at;
        if let Err(error) = self.timer.set(at.map(|at| at.saturating_since(now))) {
            log::error!("cannot set a worker's timer: {error}");
        }
    }
}
