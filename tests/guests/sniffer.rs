//! When the frames for a guest reach a host: datagrams to the vif's port on the underlay.

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType, recvmsg,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use std::os::fd::AsFd;

use super::support::netns::Host;

/// Where the UDP destination port is in an Ethernet frame with IPv4 without options.
const PORT_AT: usize = 14 + 20 + 2;
/// Where the protocol is, and UDP's number.
const PROTOCOL_AT: usize = 14 + 9;
const UDP: u8 = 17;

/// Looks out for the first datagram to a port.
pub(crate) struct Sniffer {
    first: Arc<AtomicU64>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sniffer {
    /// Begins to look at what arrives at a host.
    pub(crate) fn start(host: &Host, port: u16) -> Self {
        let (first, end) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (seen, told) = (first.clone(), end.clone());
        let socket = std::thread::scope(|scope| {
            let opened = scope.spawn(|| {
                host.enter();
                open()
            });
            opened.join().expect("the thread has not panicked")
        });
        let thread = Some(std::thread::spawn(move || sniff(&socket, port, &seen, &told)));
        Self { first, end, thread }
    }

    /// When the first one arrived, in microseconds of wall-clock time.
    pub(crate) fn first(&self) -> Option<u64> {
        Some(self.first.load(Ordering::Acquire)).filter(|&time| time > 0)
    }
}

impl Drop for Sniffer {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the sniffer has panicked");
        }
    }
}

fn open() -> OwnedFd {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll);
    let socket = socket.expect("root may look at packets");
    setsockopt(&socket, sockopt::ReceiveTimestamp, &true).expect("the kernel's time stamps");
    socket
}

fn sniff(socket: &OwnedFd, port: u16, first: &AtomicU64, end: &AtomicBool) {
    let mut bytes = [0; 128];
    let mut control = nix::cmsg_space!(TimeVal);
    while !end.load(Ordering::Relaxed) {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::empty();
        let received = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags);
        let Ok(message) = received else {
            let _ = poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], 20_u8);
            continue;
        };
        let time = message.cmsgs().ok().and_then(|mut all| all.find_map(micros));
        let len = message.bytes;
        let to = bytes[PORT_AT..PORT_AT + 2] == port.to_be_bytes();
        if len > PORT_AT + 2 && bytes[PROTOCOL_AT] == UDP && to {
            first.store(time.expect("a time stamp"), Ordering::Release);
            return;
        }
    }
}

fn micros(message: ControlMessageOwned) -> Option<u64> {
    let ControlMessageOwned::ScmTimestamp(time) = message else { return None };
    Some(u64::try_from(time.tv_sec()).ok()? * 1_000_000 + u64::try_from(time.tv_usec()).ok()?)
}
