//! The thread that serves the frontend's control messages.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{ServeError, doing};
use crate::vhost_user::attach::{AttachError, Endpoint};
use crate::vif::nic::Nic;

/// The thread that serves the frontend.
pub(super) struct Frontend {
    shutdown: Arc<EventFd>,
    /// Readable when the thread has ended.
    pub(super) ended: Arc<EventFd>,
    thread: JoinHandle<Result<(), AttachError>>,
}

impl Frontend {
    pub(super) fn start(endpoint: Endpoint, nic: Arc<Nic>) -> Result<Self, ServeError> {
        let (shutdown, ended) = (Arc::new(new_event()?), Arc::new(new_event()?));
        let (told, tell) = (Arc::clone(&shutdown), Arc::clone(&ended));
        let run = move || {
            let result = endpoint.serve(nic, told.as_fd());
            // Fails only when the counter is full: then it is signalled already.
            let _ = tell.write(1);
            result
        };
        let thread = thread::Builder::new()
            .name("frontend".into())
            .spawn(run)
            .map_err(doing("cannot start a thread"))?;
        Ok(Self { shutdown, ended, thread })
    }

    pub(super) fn stop(self) -> Result<(), ServeError> {
        let _ = self.shutdown.write(1);
        match self.thread.join() {
            Ok(result) => Ok(result?),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

fn new_event() -> Result<EventFd, ServeError> {
    let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
    EventFd::from_flags(flags).map_err(io::Error::from).map_err(doing("cannot create an eventfd"))
}
