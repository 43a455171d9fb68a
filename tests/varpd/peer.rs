//! The test's side of a control socket.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use vnet::policy::Floor;
use vnet::sys::seqpacket::Connection;
use vnet::underlay::sockets;
use vnet::wire::control::{ErrorCode, Event, Features, MAX_LEN, Request};
use vnet::wire::{Capabilities, CareOf, Mac, Stamp, VifKey};

use super::SOON;

/// A connection.
pub(crate) struct Peer(pub(crate) Connection);

impl Peer {
    pub(crate) fn connect(socket: &Path) -> Self {
        let this = Self::silent(socket);
        let hello = Request::Hello { features: Features::NONE, software: "a test".into() };
        // varpd may have refused the connection and closed it.
        let _ = this.0.send(&hello.emit(), &[]);
        this
    }

    /// One that has said nothing yet.
    pub(crate) fn silent(socket: &Path) -> Self {
        Self(Connection::open(socket).unwrap())
    }

    pub(crate) fn send(&self, request: &Request) {
        self.0.send(&request.emit(), &[]).unwrap();
    }

    /// The next event and its descriptors; `None` if the connection has ended.
    pub(crate) fn next(&self) -> Option<(Event, Vec<OwnedFd>)> {
        let mut buffer = vec![0; MAX_LEN];
        loop {
            assert!(self.0.wait_readable(SOON).unwrap(), "nothing from varpd");
            // varpd may have closed with messages of ours unread.
            let got = self.0.recv(&mut buffer).ok().filter(|got| got.len > 0)?;
            match Event::parse(&buffer[..got.len]).unwrap() {
                Event::Hello { software, .. } => {
                    assert!(software.starts_with("varpd "), "{software}")
                }
                event => return Some((event, got.fds)),
            }
        }
    }

    pub(crate) fn event(&self) -> Event {
        self.next().expect("the connection has ended").0
    }

    /// The next event that `wanted` takes; others before it are passed over.
    pub(crate) fn find<T>(&self, wanted: impl Fn(&Event) -> Option<T>) -> T {
        loop {
            if let Some(found) = wanted(&self.event()) {
                return found;
            }
        }
    }

    /// The error that comes next, after which the connection must end.
    pub(crate) fn refusal(&self) -> (ErrorCode, String) {
        let Event::Error { code, text } = self.event() else { panic!("no error") };
        assert!(self.next().is_none(), "the connection goes on after '{text}'");
        (code, text)
    }

    pub(crate) fn claimed(&self) -> Stamp {
        self.find(|event| match event {
            Event::Claimed { stamp, .. } => Some(*stamp),
            _ => None,
        })
    }

    pub(crate) fn lost(&self) -> (Stamp, CareOf) {
        self.find(|event| match event {
            Event::Lost { stamp, coa, .. } => Some((*stamp, *coa)),
            _ => None,
        })
    }

    pub(crate) fn resolve(&self, mac: Mac) {
        self.send(&Request::Resolve { mac, refresh: false });
    }

    /// The care-of address that the MAC is next told to have.
    pub(crate) fn mapping(&self, of: Mac) -> CareOf {
        self.find(|event| match event {
            Event::Mapping { mac, coa, .. } if *mac == of => Some(*coa),
            Event::Unresolved { mac, .. } if *mac == of => panic!("{mac} is unresolved"),
            _ => None,
        })
    }
}

/// How a backend registers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    pub(crate) queue_pairs: u8,
    pub(crate) active: bool,
    pub(crate) stamp: Option<Stamp>,
    pub(crate) learn: u16,
}

pub(crate) const ACTIVE: Way = Way { queue_pairs: 1, active: true, stamp: None, learn: u16::MAX };
pub(crate) const INACTIVE: Way = Way { active: false, ..ACTIVE };

pub(crate) fn register(key: VifKey, way: Way) -> Request {
    let Way { queue_pairs, active, stamp, learn } = way;
    let capabilities = Capabilities::NONE;
    let floor = Floor::default();
    Request::Register { key, capabilities, queue_pairs, active, stamp, learn, floor }
}

/// A backend whose vif is registered.
pub(crate) struct Backend {
    pub(crate) peer: Peer,
    pub(crate) coa: CareOf,
    pub(crate) group: SocketAddr,
    pub(crate) mtu: u32,
    /// The group socket first.
    pub(crate) sockets: Vec<UdpSocket>,
}

impl Backend {
    /// Registers, and is given sockets.
    pub(crate) fn register(socket: &Path, key: VifKey, way: Way) -> Self {
        Self::register_by(Peer::connect(socket), key, way)
    }

    /// The same by a connection that there is.
    pub(crate) fn register_by(peer: Peer, key: VifKey, way: Way) -> Self {
        peer.send(&register(key, way));
        let (registered, fds) = peer.next().expect("the connection has ended");
        assert_eq!(fds.len(), 1 + sockets::own_count(way.queue_pairs), "{registered:?}");
        Self::registered(peer, registered, fds.into_iter().map(UdpSocket::from).collect())
    }

    /// Registers with sockets of its own.
    pub(crate) fn return_with(
        socket: &Path,
        key: VifKey,
        way: Way,
        sockets: Vec<UdpSocket>,
    ) -> Self {
        let peer = Peer::connect(socket);
        let fds: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
        peer.0.send(&register(key, way).emit(), &fds).unwrap();
        let (registered, fds) = peer.next().expect("the connection has ended");
        assert!(fds.is_empty(), "it has sockets already");
        Self::registered(peer, registered, sockets)
    }

    fn registered(peer: Peer, event: Event, sockets: Vec<UdpSocket>) -> Self {
        let Event::Registered { coa, group, underlay_mtu, .. } = event else { panic!("{event:?}") };
        for socket in &sockets {
            socket.set_nonblocking(false).unwrap();
            socket.set_read_timeout(Some(SOON)).unwrap();
        }
        Self { peer, coa, group, mtu: underlay_mtu, sockets }
    }

    pub(crate) fn group_socket(&self) -> &UdpSocket {
        &self.sockets[0]
    }

    pub(crate) fn unicast(&self) -> &UdpSocket {
        &self.sockets[1]
    }
}

/// The next datagram and where it's from.
pub(crate) fn take(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 2048];
    let (n, from) = socket.recv_from(&mut buffer).unwrap();
    (buffer[..n].to_vec(), from)
}

/// A tunnelled frame, as far as filters look at it.
pub(crate) fn frame(vnet: u32, text: &str) -> Vec<u8> {
    [&[0x40, 0, 0, 0], &vnet.to_be_bytes()[..], text.as_bytes()].concat()
}
