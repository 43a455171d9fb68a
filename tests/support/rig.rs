//! What a driver is connected to in a test.

#![allow(dead_code, unreachable_pub, reason = "each test uses a part of it")]

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::poll::poll;
use nix::sys::eventfd::{EfdFlags, EventFd};
use tempfile::TempDir;
use vnet::sys::clock;
use vnet::vhost_user::attach::{Attach, AttachError, Endpoint};

use crate::driver::{Driver, Options};
use crate::loopback::Loopback;

/// How long anything may take before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Waits for a condition.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = clock::mono() + PATIENCE;
    while !condition() {
        assert!(clock::mono() < deadline, "in vain: {what}");
        let _ = poll(&mut [], 1_u8);
    }
}

/// A backend under test that a driver can connect to, and from which its frames come back.
///
/// The tests of `rings.rs` know their backend only by this trait.
pub trait Rig {
    /// The backend's socket.
    fn path(&self) -> &Path;

    /// Sends a frame on the driver's first pair and returns what arrived for it at its destination.
    fn pass(&self, driver: &mut Driver, frame: &[u8]) -> Option<Vec<u8>>;

    /// How many rings the backend has stopped as malformed.
    fn ring_failures(&self) -> u64;

    /// How many chains it has dropped as malformed.
    fn malformed(&self) -> u64;

    fn connect(&self, options: Options) -> Driver {
        Driver::connect(self.path(), options).expect("the backend serves a well-behaved driver")
    }

    /// Frames pass unchanged.
    fn assert_alive(&self, driver: &mut Driver) {
        for (n, len) in [60, 1514, 61].into_iter().enumerate() {
            let frame = frame(len, n as u8);
            let arrived = self.pass(driver, &frame);
            assert!(arrived.is_some(), "frame {n} of {len} bytes arrives");
            assert!(arrived == Some(frame), "frame {n} of {len} bytes is unchanged");
        }
    }
}

/// An Ethernet frame with recognisable content.
pub fn frame(len: usize, seed: u8) -> Vec<u8> {
    let payload = (0..len - 14).map(|n| (n as u8).wrapping_mul(31).wrapping_add(seed));
    [0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2, 0x88, 0xb5].into_iter().chain(payload).collect()
}

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
