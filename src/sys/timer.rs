//! A timer that is waited for like any descriptor (timerfd_create(2)).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

/// A timer; readable once its time has come, until it is set or cleared.
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

    /// Sets it; it is no longer readable before that.
    ///
    /// # Errors
    /// Only for times that the kernel can't count.
    pub fn set(&self, after: Duration) -> io::Result<()> {
        // Zero would clear it.
        let after = after.max(Duration::from_nanos(1));
        Ok(self.0.set(Expiration::OneShot(after.into()), TimerSetTimeFlags::empty())?)
    }

    /// Clears it.
    ///
    /// # Errors
    /// None that is known.
    pub fn clear(&self) -> io::Result<()> {
        Ok(self.0.unset()?)
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::event::{Interest, Poller};

    #[test]
    fn is_readable_when_its_time_has_come() {
        let (timer, mut poller) = (Timer::new().unwrap(), Poller::new(1).unwrap());
        poller.add(&timer, 5, Interest::Read).unwrap();
        assert!(poller.wait(Some(Duration::ZERO)).unwrap().is_empty());
        timer.set(Duration::ZERO).unwrap();
        assert_eq!(poller.wait(None).unwrap()[0].token, 5);
        timer.set(Duration::from_secs(3600)).unwrap();
        assert!(poller.wait(Some(Duration::ZERO)).unwrap().is_empty());
        timer.set(Duration::from_millis(1)).unwrap();
        assert_eq!(poller.wait(None).unwrap()[0].token, 5);
        timer.clear().unwrap();
        assert!(poller.wait(Some(Duration::ZERO)).unwrap().is_empty());
    }
}
