//! When frames for a guest reach a host: packets on the underlay that carry them.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use super::support::netns::Host;
use super::timing;

/// Where the UDP destination port is in an Ethernet frame with IPv4 without options.
const PORT_AT: usize = 14 + 20 + 2;
/// Where the protocol is, and UDP's number.
const PROTOCOL_AT: usize = 14 + 9;
const UDP: u8 = 17;
/// Where a UDP datagram's payload begins.
const PAYLOAD_AT: usize = 14 + 20 + 8;
/// How much of a frame is looked at, in bytes.
const SEEN_LEN: usize = 128;
/// The time between two looks at whether it is over.
const LOOK: Duration = Duration::from_millis(20);

/// Looks out for UDP datagrams, in a thread of its own.
pub(crate) struct Sniffer {
    seen: Arc<Mutex<Vec<u64>>>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sniffer {
    /// Begins to look at datagrams to `port` that arrive at a host; those of which `is_wanted`, given
    /// the begin of the payload, says so are noted.
    pub(crate) fn start(
        host: &Host,
        port: u16,
        is_wanted: impl Fn(&[u8]) -> bool + Send + 'static,
    ) -> Self {
        let (seen, end) = (Arc::<Mutex<Vec<u64>>>::default(), Arc::<AtomicBool>::default());
        let (list, told) = (seen.clone(), end.clone());
        let socket = std::thread::scope(|scope| {
            let opened = scope.spawn(|| {
                host.enter();
                open()
            });
            opened.join().expect("the thread has not panicked")
        });
        let thread = std::thread::spawn(move || {
            let note = |time| list.lock().unwrap_or_else(PoisonError::into_inner).push(time);
            let mut bytes = [0; SEEN_LEN];
            while !told.load(Ordering::Relaxed) {
                timing::wait_packet(&socket, LOOK);
                while let Some((len, time)) = timing::receive(&socket, &mut bytes) {
                    if payload(&bytes[..len], port).is_some_and(&is_wanted) {
                        note(time);
                    }
                }
            }
        });
        Self { seen, end, thread: Some(thread) }
    }

    /// When the first one since `since` arrived, both in microseconds of wall-clock time.
    pub(crate) fn first_since(&self, since: u64) -> Option<u64> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().copied().find(|time| *time >= since)
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
    timing::stamp(&socket);
    socket
}

/// The begin of the payload of a UDP datagram to a port.
fn payload(frame: &[u8], port: u16) -> Option<&[u8]> {
    let payload = frame.get(PAYLOAD_AT..)?;
    let is_udp = frame[PROTOCOL_AT] == UDP && frame[PORT_AT..PORT_AT + 2] == port.to_be_bytes();
    is_udp.then_some(payload)
}
