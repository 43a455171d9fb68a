//! Watches the sockets of a vif whose guest has left: no ring runs any more, so the device doesn't
//! poll them, but frames still come and have to be sent on.

use std::io;
use std::os::fd::OwnedFd;

use crate::sys::event::{Interest, Poller};
use crate::time::Instant;
use crate::vif::nic::Nic;

/// The sockets that are watched; none most of the time.
#[derive(Debug, Default)]
pub struct LateWatch {
    sockets: Vec<OwnedFd>,
    until: Option<Instant>,
}

impl LateWatch {
    /// Begins or ends watching, as the NIC's state has it. To be called in each turn of the loop.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn update(
        &mut self,
        nic: &Nic,
        poller: &Poller,
        token: u64,
        now: Instant,
    ) -> io::Result<()> {
        self.until = nic.forwards_alone_until(now);
        match (self.until, self.sockets.is_empty()) {
            (Some(_), true) => {
                for socket in nic.own_sockets()? {
                    poller.add(&socket, token, Interest::Read)?;
                    self.sockets.push(socket);
                }
                Ok(())
            }
            (None, false) => self.end(poller),
            _ => Ok(()),
        }
    }

    /// Ends watching; also when the sockets are replaced.
    ///
    /// # Errors
    /// The poller's.
    pub fn end(&mut self, poller: &Poller) -> io::Result<()> {
        self.until = None;
        self.sockets.drain(..).try_for_each(|socket| poller.remove(&socket))
    }

    /// When watching ends by itself.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.until
    }
}
