//! When things happen, to some ten microseconds, also where processors are short: the kernel says when
//! packets arrived, and threads that have something to do at a set time go before all others.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use nix::sys::time::{TimeSpec, TimeVal};
use nix::time::ClockId;

/// Wall-clock time, in microseconds: what the kernel's stamps and QEMU's events are in.
pub(crate) fn wall() -> u64 {
    let time = ClockId::CLOCK_REALTIME.now().expect("the machine has a clock");
    u64::try_from(Duration::from(time).as_micros()).expect("a time of this age")
}

/// From now on the calling thread runs as soon as it has something to do. Where that is not allowed it
/// waits for its turn, and what it measures is less exact.
pub(crate) fn go_first() {
    // Above whole guests that go first (qemu-examples/vrrp).
    let parameters = libc::sched_param { sched_priority: 2 };
    // SAFETY: the parameters live through the call; 0 is the calling thread.
    let _ = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) };
}

/// Has the kernel stamp what a socket receives.
pub(crate) fn stamp(socket: &impl AsFd) {
    setsockopt(&socket.as_fd(), sockopt::ReceiveTimestamp, &true)
        .expect("the kernel's time stamps");
}

/// Takes the next packet from a socket whose packets are stamped, if there is one: its length, and when
/// it arrived.
pub(crate) fn receive(socket: &impl AsFd, bytes: &mut [u8]) -> Option<(usize, u64)> {
    let mut parts = [IoSliceMut::new(bytes)];
    let mut control = nix::cmsg_space!(TimeVal);
    let (socket, flags) = (socket.as_fd().as_raw_fd(), MsgFlags::MSG_DONTWAIT);
    // There is nothing, or the interface has gone: nothing more comes then.
    let message = recvmsg::<()>(socket, &mut parts, Some(&mut control), flags).ok()?;
    let time = message.cmsgs().ok()?.find_map(micros).expect("a time stamp");
    Some((message.bytes, time))
}

fn micros(message: ControlMessageOwned) -> Option<u64> {
    let ControlMessageOwned::ScmTimestamp(time) = message else { return None };
    Some(u64::try_from(time.tv_sec()).ok()? * 1_000_000 + u64::try_from(time.tv_usec()).ok()?)
}

/// Waits until a packet is there, or `limit` is over. (A socket's own time limit is rounded up to ticks
/// of the kernel.)
pub(crate) fn wait_packet(socket: &impl AsFd, limit: Duration) {
    let mut sockets = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    // An interrupted wait is a short one.
    let _ = ppoll(&mut sockets, Some(TimeSpec::from(limit)), None);
}
