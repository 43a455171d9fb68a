//! The device in the test's own process, with a data path that hands frames back to their sender.

#![allow(dead_code, unreachable_pub, reason = "each test uses a part of it")]

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use nix::sys::eventfd::{EfdFlags, EventFd};
use tempfile::TempDir;
use vnet::vhost_user::attach::{Attach, AttachError, Endpoint};

use crate::driver::{Driver, Options};
use crate::loopback::Loopback;
use crate::rig::{PATIENCE, Rig, eventually};

/// The device in this process, with a data path that hands frames back to their sender.
pub struct InProcess {
    pub data_path: Arc<Loopback>,
    server: Option<JoinHandle<Result<(), AttachError>>>,
    shutdown: Arc<EventFd>,
    path: PathBuf,
    _dir: TempDir,
}

impl InProcess {
    pub fn listening(pairs: usize) -> Self {
        let dir = TempDir::new().expect("a directory");
        let path = dir.path().join("vif.sock");
        let attach = Attach::Listen { path: path.clone(), mode: 0o600, group: None };
        Self::serving(attach, Loopback::new(pairs, Some(1450)), dir, path)
    }

    pub fn serving(attach: Attach, loopback: Loopback, dir: TempDir, path: PathBuf) -> Self {
        let endpoint = Endpoint::open(attach).expect("the way is free");
        let data_path = Arc::new(loopback);
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let shutdown = Arc::new(EventFd::from_flags(flags).expect("an eventfd"));
        let (served, told) = (data_path.clone(), shutdown.clone());
        let server = std::thread::spawn(move || endpoint.serve(served, told.as_fd()));
        Self { data_path, server: Some(server), shutdown, path, _dir: dir }
    }

    /// Waits for the server to end by itself.
    pub fn join(&mut self) -> Result<(), AttachError> {
        self.server.take().expect("joined once").join().expect("the server did not panic")
    }

    /// Tells the server to end, and waits.
    pub fn shut_down(&mut self) -> Result<(), AttachError> {
        self.shutdown.write(1).expect("a full counter is no excuse");
        self.join()
    }
}

impl Rig for InProcess {
    fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until its rings run: what is injected before is not for it.
    fn connect(&self, options: Options) -> Driver {
        let starts = || self.data_path.starts.load(Ordering::SeqCst);
        let all = starts() + options.pairs as u64;
        let driver = Driver::connect(&self.path, options).expect("a well-behaved driver is served");
        eventually("the rings run", || starts() >= all);
        driver
    }

    fn pass(&self, driver: &mut Driver, frame: &[u8]) -> Option<Vec<u8>> {
        driver.send_frame(frame);
        driver.recv_frame(PATIENCE)
    }

    fn ring_failures(&self) -> u64 {
        self.data_path.ring_failures.load(Ordering::SeqCst)
    }

    fn malformed(&self) -> u64 {
        self.data_path.malformed.load(Ordering::SeqCst)
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        if self.server.is_some() {
            let result = self.shut_down();
            if !std::thread::panicking() {
                result.expect("the server ends in peace");
                assert_eq!(self.data_path.strays.load(Ordering::SeqCst), 0);
            }
        }
    }
}
