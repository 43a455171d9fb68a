//! Opens the UDP sockets of a host's vifs and of varpd itself, and filters what they receive.
//!
//! ```text
//!  socket        bound to                  receives
//!  VARP unicast  underlay address, 1798    VARP and handshakes, one socket for each class of
//!                                          them (see [`classes`]); taken by one varpd only
//!  VARP group    group, 1798               of the group's datagrams, hello, and VARP about vnets
//!                                          of this host
//!  beacons       a default group, 1798   of the group's datagrams, beacons; for the default groups
//!                                          that are not the group of VARP
//!  vif unicast   underlay address, own     the vif's frames: the port is the demultiplexer
//!  vif group     group, 1798               of the group's datagrams, frames of the vif's vnet; one
//!                                          socket for each group that the vif listens at
//!  vif sender    underlay address, other   nothing: see below
//!  reserved      all addresses, 1798       nothing: nobody else is to have the port
//! ```
//!
//! All sockets at VARP's port share it with `SO_REUSEPORT` and are of one user (`reserved.rs`). The
//! kernel hands each socket that is bound to the group a copy of each datagram; a classic BPF
//! filter on each lets pass what is meant for it. A filter is locked (`SO_LOCK_FILTER`) before the
//! socket is given to a backend.
//!
//! Group frames are sent from the vif's unicast socket: their source address is then its care-of
//! address, by which the sender recognises copies of its own. A vif with several queue pairs has a
//! unicast socket for each at one port, and for each another socket to send unicast frames from
//! (see [`super::steering`]). The filters of such unicast sockets are not locked, since the backend
//! says which of its pairs run; they filter nothing. `tokens.rs` says how a vif's sockets are told
//! apart when they come with a message.

#![forbid(unsafe_code)]

mod beacon;
mod filters;
mod moved;
mod reserved;
mod tokens;
mod vnet_search;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr, SocketAddrV6, UdpSocket};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use socket2::{Domain, InterfaceIndexOrAddress, Protocol, SockAddr, SockRef, Socket, Type};
use thiserror::Error;

pub use self::beacon::BeaconSockets;
use self::filters::{attach_filter, nothing_filter, varp_filter, vnet_filter};
use self::reserved::Reserved;
use self::tokens::{Role, mark};
pub use self::tokens::{SortError, Sorted, sort};
use super::bpf::MOST_INSTRUCTIONS;
use super::classes::{self, Class};
use super::opener::Privileged;
use super::{groups, steering};
use crate::security::handshake::token::TokenKey;
use crate::sys::process;
use crate::sys::sockopt::{self, Instruction};
use crate::wire::VnetId;

/// Asked for as send and receive buffer of a vif's sockets, in bytes: at 25 Gbit/s five
/// milliseconds without the CPU.
const VIF_BUFFER: u32 = super::opener::MOST_BYTES;
/// The same for VARP: some thousand messages. The kernel doubles it.
const VARP_BUFFER: u32 = 4 << 20;
/// The same for first messages of handshakes. What waits here may be a flood, and is old by the
/// time it is read: as much as varpd reads in some milliseconds is enough.
const NEWCOMER_BUFFER: u32 = 1 << 20;
/// The same for receiving while nobody reads: what comes meanwhile waits for the next backend,
/// which takes moments, and there may be many such vifs. The kernel doubles it.
const KEPT_BUFFER: i32 = 1 << 20;
/// Messages that are dropped at most when more than that waits already: more than it has room for.
const MOST_DISCARDED: usize = 1 << 16;
/// Attempts at an ephemeral port that isn't the VARP port.
const EPHEMERAL_TRIES: usize = 8;
/// Attempts at one for a queue pair to send from, of which every sixteenth is right: all fail once
/// in ten million times.
const SENDER_TRIES: usize = 256;

/// Number of sockets of a vif beside those of groups: one per queue pair, and if there are several
/// pairs one more for each.
pub fn own_count(queue_pairs: u8) -> usize {
    let pairs = usize::from(queue_pairs);
    if pairs > 1 { 2 * pairs } else { pairs }
}

/// Where and how the host is on the underlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Its address.
    pub address: IpAddr,
    /// Index of the interface that has the address.
    pub interface: u32,
    /// UDP port of VARP and of all groups.
    pub port: u16,
    /// TTL or hop limit of group traffic: 1 stays on the link.
    pub hops: u8,
    /// Where the vifs' ports are taken from; `None`: the kernel's ephemeral range.
    pub ports: Option<RangeInclusive<u16>>,
}

/// Which group frames a vif receives.
///
/// Those of its vnet, whether they are plain or sealed, and sealed ones of the few vnets that have
/// the same 15 bits in their SPIs. Which of them are accepted is the backend's to say, by the
/// vnet's policy: that may change while the sockets are in use, and their filters can't.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frames(pub VnetId);

impl Frames {
    fn filter(self) -> Vec<Instruction> {
        vnet_filter(self.0).to_vec()
    }
}

/// The sockets of a vif.
#[derive(Debug)]
pub struct VifSockets {
    groups: Vec<Socket>,
    unicast: Vec<Socket>,
    senders: Vec<Socket>,
    address: SocketAddr,
}

impl VifSockets {
    /// Where the vif is reached; flow label and scope are zero.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Number of queue pairs that the sockets are for.
    pub fn queue_pairs(&self) -> usize {
        self.unicast.len()
    }

    /// All, in any order: [`sort`] tells them apart.
    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        let all = self.groups.iter().chain(&self.unicast).chain(&self.senders);
        all.map(AsFd::as_fd).collect()
    }

    /// Those of groups.
    pub fn group_fds(&self) -> Vec<BorrowedFd<'_>> {
        self.groups.iter().map(AsFd::as_fd).collect()
    }

    /// Those at the vif's own address.
    pub fn own(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.unicast.iter().map(AsFd::as_fd)
    }

    /// Nobody reads for a while: bounds what may wait. What waits already is dropped if it is more.
    ///
    /// # Errors
    /// The system's; none is known.
    pub fn bound(&self) -> io::Result<()> {
        for socket in self.unicast.iter().chain(&self.groups) {
            sockopt::set(socket, sockopt::RCVBUF, KEPT_BUFFER)?;
            if sockopt::waiting(socket)? > 2 * KEPT_BUFFER.unsigned_abs() {
                drop_unread(socket, MOST_DISCARDED);
            }
        }
        Ok(())
    }

    /// Drops unread what waits at the vif's own address, up to `budget` messages of each socket;
    /// returns who sent them.
    pub fn discard(&self, budget: usize) -> Vec<SocketAddr> {
        self.unicast.iter().flat_map(|socket| drop_unread(socket, budget)).collect()
    }
}

/// Drops up to `budget` messages unread; returns who sent them.
fn drop_unread(socket: &Socket, budget: usize) -> Vec<SocketAddr> {
    let mut senders = Vec::new();
    for _ in 0..budget {
        let mut nothing: [MaybeUninit<u8>; 0] = [];
        match socket.recv_from_with_flags(&mut nothing, libc::MSG_DONTWAIT) {
            Ok((_, from)) => senders.extend(from.as_socket()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
            // An ICMP error for something sent before: the next message may be fine.
            Err(_) => {}
        }
    }
    senders
}

/// The sockets at varpd's own address and port.
#[derive(Debug)]
pub struct VarpSockets {
    /// In the order of [`Class::ALL`].
    classes: Vec<UdpSocket>,
    /// Gets what is of no class, and drops it.
    junk: UdpSocket,
    _reserved: Reserved,
}

impl VarpSockets {
    /// That of a class. Messages are sent from any.
    pub fn of(&self, class: Class) -> Option<&UdpSocket> {
        self.classes.get(class as usize)
    }

    /// That which drops all.
    pub fn junk(&self) -> &UdpSocket {
        &self.junk
    }

    /// INITs with tokens of this key are worth more than others from now on.
    pub fn sort(&self, address: IpAddr, key: TokenKey) -> io::Result<()> {
        sockopt::attach_reuseport(&self.junk, &classes::program(address, key))
    }
}

/// Sockets that a backend brought.
#[derive(Debug)]
pub struct Adopted {
    /// Those of the vif now.
    pub sockets: VifSockets,
    /// Whether the backend has to be given those of groups: it brought others.
    pub has_new_groups: bool,
}

/// Why sockets that a backend brought can't be taken for those of a vif.
#[derive(Debug, Error)]
pub enum AdoptError {
    /// One is not what its token says, or has none.
    #[error(transparent)]
    Sort(#[from] SortError),
    /// Another number than the queue pairs ask for.
    #[error("{got} sockets instead of {want}")]
    Count {
        /// That came.
        got: usize,
        /// What the queue pairs and groups ask for.
        want: usize,
    },
    /// Not a socket, or not for UDP on this underlay.
    #[error("a descriptor is not a UDP socket of the underlay's address family and namespace")]
    Kind,
    /// A group socket is bound elsewhere.
    #[error("a group socket is bound to {got} instead of a group and port {port}")]
    Group {
        /// Its address.
        got: SocketAddr,
        /// The port of groups.
        port: u16,
    },
    /// A group socket lets other things pass than the vnet's frames, or a socket to send from lets
    /// anything pass.
    #[error("the filter of a group socket, or of one to send from, is not the vnet's")]
    Filter,
    /// A socket to send from is bound elsewhere, or connected, or the same as another.
    #[error("a socket at {got} can't be one to send from at {want}")]
    Sender {
        /// Its address.
        got: SocketAddr,
        /// The underlay's address.
        want: IpAddr,
    },
    /// A unicast socket is bound elsewhere, or connected, or the same twice.
    #[error("a unicast socket at {got} can't be a care-of address at {want}")]
    Unicast {
        /// Its address.
        got: SocketAddr,
        /// The underlay's address.
        want: IpAddr,
    },
    /// A system call failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Opens sockets at a site.
#[derive(Debug)]
pub struct Opener {
    site: Site,
    /// This process's user.
    user: u32,
    /// Where in the range of ports the next search starts, so that a port rests after use.
    next: u16,
    /// Who makes large buffers; `None`: this process, if it may.
    privileged: Option<Privileged>,
    /// Sockets whose buffers are smaller than they should be, since that was last asked.
    small: Cell<u64>,
}

impl Opener {
    /// For this site.
    pub fn new(site: Site) -> Self {
        let user = process::own_user();
        Self { site, user, next: 0, privileged: None, small: Cell::new(0) }
    }

    /// Has somebody else make large buffers.
    #[must_use]
    pub fn with(self, privileged: Option<Privileged>) -> Self {
        Self { privileged, ..self }
    }

    /// Who makes large buffers, if that is another process.
    pub fn privileged(&self) -> Option<&Privileged> {
        self.privileged.as_ref()
    }

    /// How many sockets have smaller buffers than they should, of those opened or adopted since
    /// this was last asked.
    pub fn take_small(&self) -> u64 {
        self.small.take()
    }

    /// The site.
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// Whether sockets of vifs get the buffers that they should have.
    pub fn has_room(&self) -> io::Result<bool> {
        let counted = self.small.get();
        self.socket(VIF_BUFFER)?;
        Ok(self.small.replace(counted) == counted)
    }

    /// The sockets that VARP and handshakes are sent from and answered to.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`]: another varpd has the address and port.
    /// [`io::ErrorKind::ResourceBusy`]: a process of another user has the port.
    pub fn varp_unicast(&self, key: TokenKey) -> io::Result<VarpSockets> {
        let at = self.local(self.site.address, self.site.port).into();
        let [first, others @ ..] = Class::ALL.map(|class| match class {
            Class::Newcomer => self.socket(NEWCOMER_BUFFER),
            _ => self.socket(VARP_BUFFER),
        });
        let reserved = self.reserve()?;
        let first = first?;
        self.sends(&first)?;
        let mut classes = vec![shared(first, &at)?];
        for socket in others {
            classes.push(shared(socket?, &at)?);
        }
        let junk = self.socket(0)?;
        attach_filter(&junk, &nothing_filter())?;
        let junk = shared(junk, &at)?;
        let sockets = VarpSockets {
            classes: classes.into_iter().map(UdpSocket::from).collect(),
            junk: junk.into(),
            _reserved: reserved,
        };
        sockets.sort(self.site.address, key)?;
        Ok(sockets)
    }

    /// The socket that receives hello sent to the group, and VARP about the vnets that
    /// [`hear_questions`] names.
    pub fn varp_group(&self, group: IpAddr) -> io::Result<UdpSocket> {
        let socket = self.group_socket(group, VARP_BUFFER, &varp_filter(&[], MOST_INSTRUCTIONS))?;
        Ok(socket.into())
    }

    /// The sockets of a new vif.
    pub fn vif(
        &mut self,
        groups: &[IpAddr],
        frames: Frames,
        queue_pairs: u8,
    ) -> io::Result<VifSockets> {
        let listen = |group: &IpAddr| self.frames_socket(*group, frames);
        let groups = groups.iter().map(listen).collect::<io::Result<_>>()?;
        let first = self.alone(|_| true, EPHEMERAL_TRIES)?;
        let address = local_address(&first)?;
        let mut unicast = vec![first];
        for _ in 1..queue_pairs {
            // The first was bound alone, so its port is nobody else's; now it is shared.
            let socket = self.socket(VIF_BUFFER)?;
            for s in unicast.first().into_iter().chain([&socket]) {
                s.set_reuse_port(true)?;
            }
            socket.bind(&self.local(address.ip(), address.port()).into())?;
            unicast.push(socket);
        }
        let mut senders = Vec::new();
        for pair in (0..queue_pairs).filter(|_| queue_pairs > 1) {
            senders.push(self.sender(pair)?);
        }
        for (pair, socket) in (0..).zip(&unicast) {
            mark(socket, Role::Own(pair))?;
            self.sends(socket)?;
            lock_unless_steered(socket, queue_pairs)?;
        }
        Ok(VifSockets { groups, unicast, senders, address })
    }

    /// The socket of a vif at one of its groups.
    fn frames_socket(&self, group: IpAddr, frames: Frames) -> io::Result<Socket> {
        let socket = self.group_socket(group, VIF_BUFFER, &frames.filter())?;
        sockopt::set(&socket, sockopt::LOCK_FILTER, 1)?;
        Ok(socket)
    }

    /// The sockets of a vif are read again, after [`VifSockets::bound`].
    ///
    /// # Errors
    /// The system's.
    pub fn widen(&self, sockets: &VifSockets) -> io::Result<()> {
        let all = sockets.unicast.iter().chain(&sockets.groups);
        all.into_iter().try_for_each(|socket| self.common(socket, VIF_BUFFER))
    }

    /// The socket that a queue pair sends from; nothing is received by it.
    fn sender(&mut self, pair: u8) -> io::Result<Socket> {
        let suits = |port| steering::suits(port, pair);
        let socket = match self.alone(suits, SENDER_TRIES) {
            // None of the right ports is free: flows are spread less well.
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => self.alone(|_| true, EPHEMERAL_TRIES),
            found => found,
        }?;
        mark(&socket, Role::Sender(pair))?;
        attach_filter(&socket, &nothing_filter())?;
        sockopt::set(&socket, sockopt::LOCK_FILTER, 1)?;
        self.sends(&socket)?;
        Ok(socket)
    }

    /// Takes sockets that a backend brought for those of its vif, if that is what they are,
    /// whatever their order. In the place of those of other groups than these, new ones are opened.
    pub fn adopt(
        &self,
        groups: &[IpAddr],
        frames: Frames,
        queue_pairs: u8,
        fds: Vec<OwnedFd>,
    ) -> Result<Adopted, AdoptError> {
        let (got, own) = (fds.len(), own_count(queue_pairs));
        let group_count = got.checked_sub(own).filter(|n| (1..=groups::MOST).contains(n));
        let group_count = group_count.ok_or(AdoptError::Count { got, want: 1 + own })?;
        fds.iter().try_for_each(|fd| self.check_kind(&SockRef::from(fd)))?;
        let Sorted { groups: brought, own: unicast, senders } = sort(fds, queue_pairs)?;
        if brought.len() != group_count {
            return Err(SortError::Pairs.into());
        }
        let (groups, has_new_groups) = self.adopt_groups(groups, brought, frames)?;
        let address = self.check_unicast(&unicast)?;
        self.check_senders(&senders, address)?;
        let sockets = VifSockets { groups, unicast, senders, address };
        Ok(Adopted { sockets, has_new_groups })
    }

    /// The sockets at these groups, brought or new, and whether they are others than those that
    /// were brought.
    fn adopt_groups(
        &self,
        groups: &[IpAddr],
        brought: Vec<Socket>,
        frames: Frames,
    ) -> Result<(Vec<Socket>, bool), AdoptError> {
        let mut has_new = brought.len() != groups.len();
        let mut known = Vec::new();
        for socket in brought {
            known.push((self.check_group(&socket, frames)?, socket));
        }
        let mut taken = Vec::new();
        for group in groups {
            let found = known.iter().position(|(at, _)| at == group);
            taken.push(match found.map(|at| known.swap_remove(at).1) {
                Some(socket) => {
                    self.receives_group(&socket, *group)?;
                    take_for_itself(&socket);
                    self.common(&socket, VIF_BUFFER)?;
                    socket
                }
                None => {
                    has_new = true;
                    self.frames_socket(*group, frames)?
                }
            });
        }
        Ok((taken, has_new))
    }

    /// At which group the socket is.
    fn check_group(&self, socket: &Socket, frames: Frames) -> Result<IpAddr, AdoptError> {
        let got = local_address(socket)?;
        if !got.ip().is_multicast() || got.port() != self.site.port {
            return Err(AdoptError::Group { got, port: self.site.port });
        }
        if sockopt::get(socket, sockopt::LOCK_FILTER)? == 0
            || sockopt::filter(socket)? != frames.filter()
        {
            return Err(AdoptError::Filter);
        }
        Ok(got.ip())
    }

    fn check_unicast(&self, sockets: &[Socket]) -> Result<SocketAddr, AdoptError> {
        let queue_pairs = u8::try_from(sockets.len()).unwrap_or(u8::MAX);
        let mut address = None;
        let mut cookies = Vec::new();
        for socket in sockets {
            let (got, cookie) = (local_address(socket)?, socket.cookie()?);
            let wrong = got.ip() != self.site.address
                || got.port() == self.site.port
                || got.port() == 0
                || *address.get_or_insert(got) != got
                || cookies.contains(&cookie)
                || socket.peer_addr().is_ok();
            if wrong {
                return Err(AdoptError::Unicast { got, want: self.site.address });
            }
            cookies.push(cookie);
            self.common(socket, VIF_BUFFER)?;
            self.sends(socket)?;
            lock_unless_steered(socket, queue_pairs)?;
        }
        address.ok_or(AdoptError::Count { got: 1, want: 2 })
    }

    fn check_senders(&self, sockets: &[Socket], unicast: SocketAddr) -> Result<(), AdoptError> {
        let mut ports = vec![unicast.port(), self.site.port, 0];
        for socket in sockets {
            let got = local_address(socket)?;
            let is_at = got.ip() == self.site.address && !ports.contains(&got.port());
            if !is_at || socket.peer_addr().is_ok() {
                return Err(AdoptError::Sender { got, want: self.site.address });
            }
            if sockopt::get(socket, sockopt::LOCK_FILTER)? == 0
                || sockopt::filter(socket)? != nothing_filter()
            {
                return Err(AdoptError::Filter);
            }
            ports.push(got.port());
            self.common(socket, VIF_BUFFER)?;
            self.sends(socket)?;
        }
        Ok(())
    }

    fn check_kind(&self, socket: &Socket) -> Result<(), AdoptError> {
        let is = |kind: io::Result<bool>| kind.unwrap_or(false);
        let ours = is(socket.r#type().map(|t| t == Type::DGRAM))
            && is(socket.domain().map(|d| d == self.domain()))
            && is(socket.protocol().map(|p| p == Some(Protocol::UDP)));
        let here = Socket::new(self.domain(), Type::DGRAM, None)?;
        if ours && sockopt::netns_cookie(socket) == sockopt::netns_cookie(&here) {
            Ok(())
        } else {
            Err(AdoptError::Kind)
        }
    }

    /// A socket at the site's address and a port that suits and that no other socket has, with so
    /// many tries where the kernel chooses it.
    fn alone(&mut self, suits: impl Fn(u16) -> bool, tries: usize) -> io::Result<Socket> {
        let Some(ports) = self.site.ports.clone() else {
            for _ in 0..tries {
                let socket = self.socket(VIF_BUFFER)?;
                socket.bind(&self.local(self.site.address, 0).into())?;
                let port = local_address(&socket)?.port();
                if port != self.site.port && suits(port) {
                    return Ok(socket);
                }
            }
            return Err(io::ErrorKind::AddrInUse.into());
        };
        let (first, last) = (*ports.start(), *ports.end());
        let start = self.next.clamp(first, last);
        let socket = self.socket(VIF_BUFFER)?;
        let all = (start..=last).chain(first..start);
        for port in all.filter(|&port| port != self.site.port && suits(port)) {
            match socket.bind(&self.local(self.site.address, port).into()) {
                Err(e) if e.kind() == io::ErrorKind::AddrInUse => {}
                bound => {
                    bound?;
                    self.next = if port == last { first } else { port + 1 };
                    return Ok(socket);
                }
            }
        }
        Err(io::ErrorKind::AddrInUse.into())
    }

    /// Filtered before it's bound: nothing else ever gets in.
    fn group_socket(
        &self,
        group: IpAddr,
        buffer: u32,
        filter: &[Instruction],
    ) -> io::Result<Socket> {
        let socket = self.socket(buffer)?;
        attach_filter(&socket, filter)?;
        self.at_group(socket, self.local(group, self.site.port))
    }

    /// Binds a socket to a group that it has joined. Joined before: a datagram never finds it a stranger there.
    fn at_group(&self, socket: Socket, at: SocketAddr) -> io::Result<Socket> {
        self.receives_group(&socket, at.ip())?;
        let socket = shared(socket, &at.into())?;
        take_for_itself(&socket);
        Ok(socket)
    }

    fn socket(&self, buffer: u32) -> io::Result<Socket> {
        let socket = Socket::new(self.domain(), Type::DGRAM, Some(Protocol::UDP))?;
        if self.site.address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        self.common(&socket, buffer)?;
        Ok(socket)
    }

    /// What all sockets have: never block, never fragment, large buffers, and the kernel's own
    /// drops are reported.
    fn common(&self, socket: &Socket, buffer: u32) -> io::Result<()> {
        socket.set_nonblocking(true)?;
        let discover = match self.site.address {
            IpAddr::V4(_) => sockopt::MTU_DISCOVER_V4,
            IpAddr::V6(_) => sockopt::MTU_DISCOVER_V6,
        };
        sockopt::set(socket, discover, sockopt::PMTUDISC_DO)?;
        sockopt::set(socket, sockopt::RXQ_OVFL, 1)?;
        self.set_buffers(socket, buffer)
    }

    /// Within the kernel's limits (net.core.rmem_max, wmem_max) anybody has them; beyond, only who
    /// has CAP_NET_ADMIN.
    fn set_buffers(&self, socket: &Socket, bytes: u32) -> io::Result<()> {
        let wanted = i32::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut is_large = true;
        for buffer in [sockopt::RCVBUF, sockopt::SNDBUF] {
            // The kernel doubles what it is asked for. An adopted socket has it already.
            if sockopt::get(socket, buffer)? / 2 != wanted {
                sockopt::set(socket, buffer, wanted)?;
                is_large &= sockopt::get(socket, buffer)? / 2 >= wanted;
            }
        }
        let enlarge = || match &self.privileged {
            Some(privileged) => privileged.enlarge(socket.as_fd(), bytes),
            None => [sockopt::RCVBUFFORCE, sockopt::SNDBUFFORCE]
                .into_iter()
                .all(|buffer| sockopt::set(socket, buffer, wanted).is_ok()),
        };
        if !is_large && !enlarge() {
            self.small.set(self.small.get() + 1);
        }
        Ok(())
    }

    /// Group datagrams sent from here leave by the site's interface, and reach the other vifs and
    /// the varpd of this host too.
    fn sends(&self, socket: &Socket) -> io::Result<()> {
        match self.site.address {
            IpAddr::V4(_) => {
                sockopt::set_multicast_interface_v4(socket, self.site.interface)?;
                socket.set_multicast_ttl_v4(self.site.hops.into())?;
                socket.set_multicast_loop_v4(true)
            }
            IpAddr::V6(_) => {
                socket.set_multicast_if_v6(self.site.interface)?;
                socket.set_multicast_hops_v6(self.site.hops.into())?;
                socket.set_multicast_loop_v6(true)
            }
        }
    }

    /// Joined on the site's interface, and deaf to what others on this host have joined.
    fn receives_group(&self, socket: &Socket, group: IpAddr) -> io::Result<()> {
        let joined = match group {
            IpAddr::V4(group) => {
                socket.set_multicast_all_v4(false)?;
                let on = InterfaceIndexOrAddress::Index(self.site.interface);
                socket.join_multicast_v4_n(&group, &on)
            }
            IpAddr::V6(group) => {
                socket.set_multicast_all_v6(false)?;
                socket.join_multicast_v6(&group, self.site.interface)
            }
        };
        match joined {
            // An adopted socket is a member already.
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => Ok(()),
            joined => joined,
        }
    }

    fn domain(&self) -> Domain {
        if self.site.address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 }
    }

    /// The scope matters to link-local addresses and groups only.
    fn local(&self, ip: IpAddr, port: u16) -> SocketAddr {
        match ip {
            IpAddr::V4(_) => SocketAddr::new(ip, port),
            IpAddr::V6(ip) => SocketAddrV6::new(ip, port, 0, self.site.interface).into(),
        }
    }
}

/// The socket of [`Opener::varp_group`] passes VARP about these vnets, and no others, from now on.
/// Some 3,300 vnets with scattered ids fit into the filter, and as many as there are with
/// consecutive ones; beyond that messages about some vnets between them pass, too.
///
/// # Errors
/// The system's. The filter from before is in use then, or one that passes more than these vnets.
pub fn hear_questions(socket: &UdpSocket, vnets: &BTreeSet<VnetId>) -> io::Result<()> {
    let vnets: Vec<VnetId> = vnets.iter().copied().collect();
    let socket = SockRef::from(socket);
    let mut most = MOST_INSTRUCTIONS;
    loop {
        match attach_filter(&socket, &varp_filter(&vnets, most)) {
            // The kernel bounds the memory of a socket's options (net.core.optmem_max), the filter
            // before and the new one together: the shortest filter makes room for a longer one.
            Err(e) if e.kind() == io::ErrorKind::OutOfMemory && most > 0 => {
                attach_filter(&socket, &varp_filter(&vnets, 0))?;
                most /= 2;
            }
            attached => return attached,
        }
    }
}

/// Binds a socket to an address at VARP's port.
fn shared(socket: Socket, at: &SockAddr) -> io::Result<Socket> {
    socket.set_reuse_port(true)?;
    socket.bind(at).map_err(|e| match e.kind() {
        // Those of this user share it.
        io::ErrorKind::AddrInUse => io::ErrorKind::ResourceBusy.into(),
        _ => e,
    })?;
    Ok(socket)
}

/// The kernel shall not choose between this group socket and others at the address.
///
/// Where exactly one socket is a member, Linux (since 6.6) looks it up early, for IPv4, and then chooses one of all that
/// share the address by `SO_REUSEPORT`, members or not. One that is being closed has left the group, but shares the
/// address for a while yet: it would get datagrams of the other, and drop them. A socket that is (re)bound to an
/// interface, or to none as here, ceases to be one of those to choose from, and goes on to share the address.
fn take_for_itself(socket: &Socket) {
    // Kernels before 5.7 refuse it, where nothing is chosen. So do all for IPv6 sockets with a scope, where it is
    // the same.
    let _ = sockopt::set(socket, sockopt::INTERFACE, 0);
}

/// Where one socket has the port there is nothing that its user need say.
fn lock_unless_steered(socket: &Socket, queue_pairs: u8) -> io::Result<()> {
    if queue_pairs > 1 { Ok(()) } else { sockopt::set(socket, sockopt::LOCK_FILTER, 1) }
}

/// The address a socket is bound to, without its scope.
fn local_address(socket: &Socket) -> io::Result<SocketAddr> {
    let address = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::InvalidInput)?;
    Ok(SocketAddr::new(address.ip(), address.port()))
}

#[cfg(test)]
mod tests;
