//! A host's cable that loses packets, carries them twice, and lets them overtake each other.
//!
//! ```text
//!     host a                         the switch's namespace
//!      eth0 ---- to-a  [a thread]  rough-a ---- port-a ==bridge==
//! ```
//!
//! Instead of the host's own interface, another pair is joined to the bridge, and a thread carries packets
//! between the two. Packets that the kernel has not yet cut (UDP_SEGMENT) nor given a checksum pass as they
//! are, with what is to be done to them (`struct virtio_net_hdr`); hosts cut them before, so that
//! datagrams get lost one by one.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
    socket, sockopt,
};
use nix::sys::time::TimeSpec;
use vnet::sys::clock;
use vnet::time::Instant;

use crate::random::Random;
use crate::support::netns::{Underlay, enter, ip_inside};

/// Room for the longest packet that is not yet cut, in bytes.
const ROOM: usize = 1 << 17;
/// Room for packets in each socket, in bytes.
const BUFFER: usize = 16 << 20;
/// The time between two looks at whether it is over.
const LOOK: Duration = Duration::from_millis(20);
/// Segments that a message may have by itself (linux/netdevice.h, GSO_MAX_SEGS).
const SEGMENTS: u32 = 65_535;

/// What happens to packets, so many times in a thousand.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Trouble {
    pub(super) lost: u64,
    pub(super) repeated: u64,
    pub(super) delayed: u64,
    /// For how long, at most.
    pub(super) longest: Duration,
}

/// A bad cable; a good one when it is dropped, which then still carries what was delayed.
pub(super) struct Rough {
    /// What makes it a good one: namespaces, and arguments of `ip` there.
    repairs: [(String, String); 3],
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Rough {
    pub(super) fn new(underlay: &Underlay, host: usize, trouble: Trouble, seed: u64) -> Self {
        let (switch, name) = (underlay.switch(), &underlay.host(host).name);
        let inside = underlay.host(host).namespace();
        underlay.host(host).ip("link set eth0 gso_max_segs 1");
        switch.ip(&format!(
            "link add rough-{name} mtu 9216 type veth peer name port-{name} mtu 9216"
        ));
        switch.ip(&format!("link set rough-{name} promisc on up"));
        switch.ip(&format!("link set port-{name} master bridge up"));
        switch.ip(&format!("link set to-{name} promisc on nomaster"));
        let over = Arc::<AtomicBool>::default();
        let told = over.clone();
        let (ready, is_ready) = mpsc::channel();
        let ends = [format!("to-{name}"), format!("rough-{name}")];
        let namespace = switch.name().to_owned();
        let thread = std::thread::spawn(move || {
            enter(&namespace);
            let ends = ends.map(|name| open(&name));
            ready.send(()).expect("somebody waits");
            Cable { ends, trouble, random: Random::new(seed), delayed: BTreeMap::new(), count: 0 }
                .carry(&told);
        });
        is_ready.recv().expect("the cable is there");
        let at_switch = |arguments: String| (switch.name().to_owned(), arguments);
        let repairs = [
            at_switch(format!("link delete rough-{name}")),
            at_switch(format!("link set to-{name} promisc off master bridge")),
            (inside.to_owned(), format!("link set eth0 gso_max_segs {SEGMENTS}")),
        ];
        Self { repairs, over, thread: Some(thread) }
    }
}

impl Drop for Rough {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        if std::thread::panicking() {
            return;
        }
        assert!(ended.is_some_and(|ended| ended.is_ok()), "the cable has panicked");
        for (namespace, arguments) in &self.repairs {
            ip_inside(namespace, arguments);
        }
    }
}

/// A socket that takes what an interface receives and sends what it is given, each packet with its
/// `struct virtio_net_hdr`.
fn open(interface: &str) -> OwnedFd {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let opened = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll);
    let opened = opened.expect("root may look at packets");
    let mut addresses = getifaddrs().expect("the interfaces");
    let address = addresses.find_map(|found| {
        let link = found.address.as_ref()?.as_link_addr().copied()?;
        (found.interface_name == interface).then_some(link)
    });
    let on: libc::c_int = 1;
    // SAFETY: the option's value is an int that lives through the call.
    let set = unsafe {
        libc::setsockopt(
            opened.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_VNET_HDR,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    assert_eq!(set, 0, "packets have headers");
    setsockopt(&opened, sockopt::RcvBufForce, &BUFFER).expect("a large buffer");
    bind(opened.as_raw_fd(), &address.expect("the interface")).expect("a socket on the interface");
    opened
}

struct Cable {
    ends: [OwnedFd; 2],
    trouble: Trouble,
    random: Random,
    /// When which packet goes on, and to which end.
    delayed: BTreeMap<(Instant, u64), (usize, Vec<u8>)>,
    count: u64,
}

impl Cable {
    fn carry(mut self, over: &AtomicBool) {
        let mut bytes = vec![0; ROOM];
        while !over.load(Ordering::Relaxed) {
            self.wait();
            for end in 0..2 {
                while let Ok(len) = recv(self.ends[end].as_raw_fd(), &mut bytes, MsgFlags::empty())
                {
                    self.take(1 - end, &bytes[..len]);
                }
            }
            let now = clock::mono();
            while self.delayed.first_key_value().is_some_and(|((due, _), _)| *due <= now) {
                self.pass_first();
            }
        }
        while !self.delayed.is_empty() {
            self.pass_first();
        }
    }

    fn wait(&self) {
        let due = self.delayed.first_key_value().map(|((due, _), _)| *due);
        let limit = due.map_or(LOOK, |due| LOOK.min(due.saturating_since(clock::mono())));
        let mut ends = self.ends.each_ref().map(|end| PollFd::new(end.as_fd(), PollFlags::POLLIN));
        // An interrupted wait is a short one.
        let _ = ppoll(&mut ends, Some(TimeSpec::from(limit)), None);
    }

    fn take(&mut self, to: usize, packet: &[u8]) {
        let Trouble { lost, repeated, delayed, longest } = self.trouble;
        if self.random.per_mille(lost) {
            return;
        }
        let times = 1 + u64::from(self.random.per_mille(repeated));
        for _ in 0..times {
            if self.random.per_mille(delayed) {
                let micros = self.random.range(0, longest.as_micros() as u64);
                self.count += 1;
                let due = clock::mono() + Duration::from_micros(micros);
                self.delayed.insert((due, self.count), (to, packet.to_vec()));
            } else {
                self.pass(to, packet);
            }
        }
    }

    fn pass_first(&mut self) {
        if let Some((_, (to, packet))) = self.delayed.pop_first() {
            self.pass(to, &packet);
        }
    }

    /// What can't be sent is lost.
    fn pass(&self, to: usize, packet: &[u8]) {
        let _ = send(self.ends[to].as_raw_fd(), packet, MsgFlags::empty());
    }
}
