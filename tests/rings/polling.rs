//! A device that looks for frames before its workers sleep (`--busy-poll`).

use std::hint;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;
use vnet::sys::clock;
use vnet::vhost_user::attach::Attach;

use crate::driver::{Driver, Options};
use crate::in_process::InProcess;
use crate::loopback::Loopback;
use crate::rig::{PATIENCE, Rig, eventually, frame, hang_up};

/// Far longer than anything that is waited for here.
const FOR_EVER: Duration = Duration::from_secs(3600);
/// Looks at the ring, more than a worker needs from a frame to its rest.
const LOOKS: usize = 1000;

/// Lets the calling thread and those that it starts run before others, where that is allowed: on a
/// busy machine frames come slowly, and then they are rightly not looked for.
fn hurry() {
    let thread = nix::unistd::gettid().to_string();
    let _ = Command::new("chrt").args(["--rr", "--pid", "1", &thread]).output();
}

/// One test at a time: they would crowd each other out.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A device with one queue pair whose worker looks for at most so long.
fn listening(most: Duration) -> InProcess {
    hurry();
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().join("vif.sock");
    let attach = Attach::Listen { path: path.clone(), mode: 0o600, group: None };
    let mut loopback = Loopback::new(1, Some(1450));
    loopback.busy_poll = most;
    InProcess::serving(attach, loopback, dir, path)
}

/// Whether the device has told the driver not to kick its transmit ring: it is looking.
fn is_watched(driver: &Driver) -> bool {
    let ring = &driver.pairs[0].tx;
    if ring.event_idx {
        let event = ring.memory.u16(ring.used + 4 + 8 * u64::from(ring.size));
        event.load(Ordering::Acquire) == ring.next_avail.wrapping_sub(1)
    } else {
        ring.memory.u16(ring.used).load(Ordering::Acquire) == 1
    }
}

/// Sends a frame and takes it back without sleep, so that frames come quickly.
fn pass_quickly(driver: &mut Driver, sent: &[u8]) {
    driver.send_frame(sent);
    let deadline = clock::mono() + PATIENCE;
    let ring = &driver.pairs[0].rx;
    while ring.used_index() == ring.last_used {
        assert!(clock::mono() < deadline, "the frame comes back");
        thread::yield_now();
    }
    assert!(driver.recv_frame(PATIENCE).as_deref() == Some(sent), "it is unchanged");
}

/// Passes frames until the worker looks for more, which it may or may not after each.
fn until_watched(driver: &mut Driver) {
    eventually("the worker looks for frames", || {
        for n in 0..20 {
            pass_quickly(driver, &frame(60, n));
        }
        // Without event index it may also be the sign of work that is under way.
        (0..LOOKS).any(|_| is_watched(driver)) && (0..LOOKS).all(|_| is_watched(driver))
    });
}

fn options(event_idx: bool) -> Options {
    Options { event_idx, ..Options::default() }
}

#[test]
fn frames_pass_without_kicks_while_they_are_looked_for() {
    let _alone = alone();
    for event_idx in [false, true] {
        let rig = listening(FOR_EVER);
        let mut driver = rig.connect(options(event_idx));
        let mut unkicked = 0;
        eventually("many frames without a kick", || {
            until_watched(&mut driver);
            let before = driver.pairs[0].tx.kicks;
            pass_quickly(&mut driver, &frame(1000, 7));
            unkicked += u32::from(driver.pairs[0].tx.kicks == before);
            unkicked == 10
        });
        assert!(rig.data_path.looks[1].load(Ordering::SeqCst) >= 10, "found by looking");
    }
}

#[test]
fn who_looked_in_vain_asks_for_kicks() {
    let _alone = alone();
    for event_idx in [false, true] {
        let rig = listening(Duration::from_millis(1));
        let mut driver = rig.connect(options(event_idx));
        for _ in 0..5 {
            until_watched(&mut driver);
            eventually("the look ends", || !is_watched(&driver));
            let kicks = driver.pairs[0].tx.kicks;
            assert_eq!(rig.pass(&mut driver, &frame(60, 9)), Some(frame(60, 9)));
            assert_eq!(driver.pairs[0].tx.kicks, kicks + 1);
        }
        assert!(rig.data_path.looks[0].load(Ordering::SeqCst) > 0);
    }
}

/// What comes from the network ends a look; if it came so late that looking pays no more, the
/// worker sleeps, and the guest's next frame must wake it.
#[test]
fn a_late_frame_from_the_network_lets_the_worker_sleep() {
    let _alone = alone();
    for event_idx in [false, true] {
        let rig = listening(FOR_EVER);
        let mut driver = rig.connect(options(event_idx));
        for _ in 0..5 {
            until_watched(&mut driver);
            eventually("looking pays no more", || {
                let since = clock::mono();
                while clock::mono() - since < Duration::from_millis(2) {
                    hint::spin_loop();
                }
                rig.data_path.inject(0, &frame(70, 1));
                assert_eq!(driver.recv_frame(PATIENCE), Some(frame(70, 1)));
                !(0..LOOKS).any(|_| is_watched(&driver))
            });
            assert_eq!(rig.pass(&mut driver, &frame(60, 2)), Some(frame(60, 2)));
        }
    }
}

#[test]
fn a_look_holds_up_neither_frontend_nor_end() {
    let _alone = alone();
    let mut rig = listening(FOR_EVER);
    let mut driver = rig.connect(Options::default());
    until_watched(&mut driver);
    driver.stop_ring(0).unwrap();
    driver.stop_ring(1).unwrap();
    assert_eq!(rig.data_path.stops.load(Ordering::SeqCst), 1);
    driver.reset().unwrap();
    until_watched(&mut driver);
    driver.enable(false).unwrap();
    driver.enable(true).unwrap();
    until_watched(&mut driver);
    driver.send_memory().unwrap();
    driver.control.sync().unwrap();
    rig.assert_alive(&mut driver);
    until_watched(&mut driver);
    hang_up(&driver);
    let mut other = rig.connect(Options::default());
    until_watched(&mut other);
    let begin = clock::mono();
    rig.shut_down().unwrap();
    assert!(clock::mono() - begin < PATIENCE, "it ends while it looks");
}
