//! What a driver is connected to in a test.

#![allow(dead_code, unreachable_pub, reason = "each test uses a part of it")]

use std::net::Shutdown;
use std::path::Path;
use std::time::Duration;

use nix::poll::poll;
use vnet::sys::clock;

use crate::driver::{Driver, Options};

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

/// Ends a driver's connection: the backend serves the next only then.
pub fn hang_up(driver: &Driver) {
    driver.control.socket.shutdown(Shutdown::Both).expect("it is connected");
}

/// A backend under test that a driver can connect to, and from which its frames come back.
///
/// What is in `abuse.rs` knows its backend only by this trait.
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

/// An Ethernet frame with recognisable content, from the first of the tests' vifs to the second.
pub fn frame(len: usize, seed: u8) -> Vec<u8> {
    let payload = (0..len - 14).map(|n| (n as u8).wrapping_mul(31).wrapping_add(seed));
    let addresses = [0x52, 0x54, 0, 0, 0, 2, 0x52, 0x54, 0, 0, 0, 1];
    addresses.into_iter().chain([0x88, 0xb5]).chain(payload).collect()
}
