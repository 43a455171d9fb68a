//! A timer that is a descriptor (timerfd_create(2)), to be polled beside others.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

/// Readable from the time on that it was set to, until it is set again.
#[derive(Debug)]
pub struct Timer(TimerFd);

impl Timer {
    /// A timer that is not set.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        Ok(Self(TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?))
    }

    /// Expires after this time from now, once; `None`: never. What it was set to before is
    /// forgotten, and it is no longer readable.
    ///
    /// # Errors
    /// None that is known for times below 2^63 seconds.
    pub fn set(&self, after: Option<Duration>) -> io::Result<()> {
        match after {
            // A time of zero would stop it.
            Some(after) => {
                let after = TimeSpec::from_duration(after.max(Duration::from_nanos(1)));
                self.0.set(Expiration::OneShot(after), TimerSetTimeFlags::empty())?;
            }
            None => self.0.unset()?,
        }
        Ok(())
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::clock;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    fn is_readable(timer: &Timer, timeout: PollTimeout) -> bool {
        let mut fds = [PollFd::new(timer.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, timeout).unwrap() == 1
    }

    #[test]
    fn it_is_readable_after_its_time_until_it_is_set_again() {
        let timer = Timer::new().unwrap();
        assert!(!is_readable(&timer, PollTimeout::ZERO));
        let begin = clock::mono();
        timer.set(Some(Duration::from_millis(3))).unwrap();
        assert!(is_readable(&timer, PollTimeout::from(10_000_u16)));
        // The clock is read in whole microseconds.
        assert!(clock::mono() - begin >= Duration::from_micros(2999));
        assert!(is_readable(&timer, PollTimeout::ZERO), "still");
        timer.set(Some(Duration::from_secs(3600))).unwrap();
        assert!(!is_readable(&timer, PollTimeout::ZERO));
        timer.set(Some(Duration::ZERO)).unwrap();
        assert!(is_readable(&timer, PollTimeout::from(10_000_u16)));
        timer.set(None).unwrap();
        assert!(!is_readable(&timer, PollTimeout::ZERO));
    }
}
