//! The other side: a virtio-net driver and vhost-user frontend in the test's own process.
//!
//! [`Driver`] owns guest memory (a memfd), the control connection and one receive and one transmit
//! ring per queue pair. Ordinary traffic goes through [`Driver::send_frame`], [`Driver::queue_frame`]
//! and [`Driver::recv_frame`]; abuse goes through the public fields: every descriptor, index and
//! message can be written as a hostile guest or frontend would.
//!
//! Include it with `#[path]`; it depends on nothing but the crates and `vnet::sys::clock`.

#![allow(dead_code, unreachable_pub, reason = "each test uses a part of it")]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering, fence};
use std::time::Duration;

use libc::{MAP_NORESERVE, MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;
use vnet::sys::clock;

/// Guest physical address of the first byte of guest memory.
pub const GUEST_BASE: u64 = 0x10_0000;
/// The frontend's own address of that byte: only a number that addresses are given in.
pub const USER_BASE: u64 = 0x5000_0000_0000;
/// Length of `struct virtio_net_hdr_v1`.
pub const HEADER_LEN: usize = 12;

/// Features, by bit.
pub const F_MRG_RXBUF: u64 = 1 << 15;
pub const F_LOG_ALL: u64 = 1 << 26;
pub const F_INDIRECT_DESC: u64 = 1 << 28;
pub const F_EVENT_IDX: u64 = 1 << 29;
pub const F_PROTOCOL_FEATURES: u64 = 1 << 30;
pub const F_VERSION_1: u64 = 1 << 32;

/// Protocol features, by bit.
pub const P_MQ: u64 = 1 << 0;
pub const P_LOG_SHMFD: u64 = 1 << 1;
pub const P_RARP: u64 = 1 << 2;
pub const P_REPLY_ACK: u64 = 1 << 3;
pub const P_MTU: u64 = 1 << 4;
pub const P_SLOTS: u64 = 1 << 15;

/// Descriptor flags.
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

#[path = "request.rs"]
pub mod request;

/// Waits until `fd` is readable; false at the deadline.
pub fn readable(fd: &impl AsRawFd, timeout: Duration) -> bool {
    let epoll = Epoll::new().expect("an epoll descriptor");
    let interest = EpollEvent::new(EventSet::IN, 0);
    epoll.ctl(ControlOperation::Add, fd.as_raw_fd(), interest).expect("a descriptor to wait for");
    let deadline = clock::mono() + timeout;
    loop {
        let left = deadline - clock::mono();
        let left = left.as_micros().div_ceil(1000).try_into().expect("a timeout in i32");
        match epoll.wait(left, &mut [EpollEvent::default()]) {
            // A process that was stopped and goes on is told so (epoll_wait(2)).
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome.is_ok_and(|n| n > 0),
        }
    }
}

/// Guest memory. Offsets count from [`GUEST_BASE`].
pub struct Memory {
    pub file: File,
    map: MmapRegion<()>,
}

impl Memory {
    pub fn new(len: usize) -> Self {
        Self::mapped(len, MAP_SHARED)
    }

    /// Memory that nobody else sees what is written to, though its file can be mapped.
    pub fn private(len: usize) -> Self {
        Self::mapped(len, MAP_PRIVATE)
    }

    fn mapped(len: usize, flags: i32) -> Self {
        let file = File::from(memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).expect("a memfd"));
        file.set_len(len as u64).expect("room for guest memory");
        let offset = FileOffset::new(file.try_clone().expect("a descriptor"), 0);
        let (protection, flags) = (PROT_READ | PROT_WRITE, MAP_NORESERVE | flags);
        let map = MmapRegion::build(Some(offset), len, protection, flags).expect("guest memory");
        Self { file, map }
    }

    pub fn len(&self) -> usize {
        self.map.size()
    }

    pub fn write(&self, offset: u64, bytes: &[u8]) {
        self.map.get_slice(offset as usize, bytes.len()).expect("in memory").copy_from(bytes);
    }

    pub fn read(&self, offset: u64, bytes: &mut [u8]) {
        self.map.get_slice(offset as usize, bytes.len()).expect("in memory").copy_to(bytes);
    }

    pub fn u16(&self, offset: u64) -> &AtomicU16 {
        self.map.get_atomic_ref(offset as usize).expect("in memory")
    }

    pub fn u32(&self, offset: u64) -> &AtomicU32 {
        self.map.get_atomic_ref(offset as usize).expect("in memory")
    }
}

/// Guest physical address of an offset in guest memory.
pub const fn gpa(offset: u64) -> u64 {
    GUEST_BASE + offset
}

/// A raw vhost-user connection.
pub struct Control {
    pub socket: UnixStream,
    /// Whether requests ask for an acknowledgement (after REPLY_ACK is negotiated).
    pub acknowledge: bool,
}

impl Control {
    pub fn connect(path: &Path) -> io::Result<Self> {
        Ok(Self::new(UnixStream::connect(path)?))
    }

    pub fn new(socket: UnixStream) -> Self {
        socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        socket.set_write_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        Self { socket, acknowledge: false }
    }

    /// Sends a message as it is given.
    pub fn send_raw(&self, bytes: &[u8], fds: &[RawFd]) -> io::Result<()> {
        let sent = self.socket.send_with_fds(&[bytes], fds).map_err(io::Error::from)?;
        if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Sends a request with these header flags besides the version.
    pub fn send(&self, code: u32, flags: u32, body: &[u8], fds: &[RawFd]) -> io::Result<()> {
        let size = body.len() as u32;
        let header = [code, 1 | flags, size].map(u32::to_ne_bytes).concat();
        self.send_raw(&[&header, body].concat(), fds)
    }

    /// Reads one reply: its request and body.
    pub fn reply(&mut self) -> io::Result<(u32, Vec<u8>)> {
        let mut header = [0; 12];
        self.socket.read_exact(&mut header)?;
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().expect("4 bytes"));
        assert_eq!(word(4), 1 | 4, "flags of a reply");
        let mut body = vec![0; word(8) as usize];
        self.socket.read_exact(&mut body)?;
        Ok((word(0), body))
    }

    /// A request that is always answered.
    pub fn get(&mut self, code: u32, body: &[u8]) -> io::Result<Vec<u8>> {
        self.send(code, 0, body, &[])?;
        let (answered, body) = self.reply()?;
        assert_eq!(answered, code);
        Ok(body)
    }

    pub fn get_u64(&mut self, code: u32) -> io::Result<u64> {
        Ok(u64::from_ne_bytes(self.get(code, &[])?.try_into().expect("8 bytes")))
    }

    /// A request that is acknowledged if that is negotiated; an error if the backend refused it.
    pub fn set(&mut self, code: u32, body: &[u8], fds: &[RawFd]) -> io::Result<()> {
        if !self.acknowledge {
            return self.send(code, 0, body, fds);
        }
        match self.set_acknowledged(code, body, fds)? {
            0 => Ok(()),
            n => Err(io::Error::other(format!("request {code} was refused with {n}"))),
        }
    }

    /// The value of a request's acknowledgement.
    pub fn set_acknowledged(&mut self, code: u32, body: &[u8], fds: &[RawFd]) -> io::Result<u64> {
        self.send(code, 8, body, fds)?;
        let (answered, body) = self.reply()?;
        assert_eq!(answered, code);
        Ok(u64::from_ne_bytes(body.try_into().expect("8 bytes")))
    }

    pub fn set_u64(&mut self, code: u32, value: u64) -> io::Result<()> {
        self.set(code, &value.to_ne_bytes(), &[])
    }

    /// A request about a ring: `struct vhost_vring_state`.
    pub fn set_ring(&mut self, code: u32, index: u32, value: u32) -> io::Result<()> {
        self.set(code, &[index, value].map(u32::to_ne_bytes).concat(), &[])
    }

    /// A request that hands a ring a descriptor.
    pub fn set_ring_fd(&mut self, code: u32, index: u32, fd: RawFd) -> io::Result<()> {
        self.set(code, &u64::from(index).to_ne_bytes(), &[fd])
    }

    /// Waits until everything sent so far was handled.
    pub fn sync(&mut self) -> io::Result<()> {
        self.get_u64(request::GET_FEATURES).map(drop)
    }

    /// Whether the backend closed the connection within the time.
    pub fn is_closed(&mut self, timeout: Duration) -> bool {
        let deadline = clock::mono() + timeout;
        let mut sink = [0; 256];
        loop {
            let left = deadline - clock::mono();
            if left.is_zero() || !readable(&self.socket, left) {
                return false;
            }
            match self.socket.read(&mut sink) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() == io::ErrorKind::ConnectionReset,
            }
        }
    }
}

/// A split ring, as its driver sees it. Offsets count from [`GUEST_BASE`].
pub struct Queue {
    pub memory: Arc<Memory>,
    /// Its number at the device.
    pub index: u32,
    pub size: u16,
    pub table: u64,
    pub avail: u64,
    pub used: u64,
    /// Index of the next available entry; what the device may see is in memory.
    pub next_avail: u16,
    /// Index of the next used entry to be taken.
    pub last_used: u16,
    exposed: u16,
    pub event_idx: bool,
    pub kick: EventFd,
    pub call: EventFd,
    pub err: EventFd,
    /// Kicks that were written.
    pub kicks: u64,
}

impl Queue {
    /// Length of the three parts of a ring, with alignment.
    const fn len(size: u16) -> u64 {
        let size = size as u64;
        16 * size + (6 + 2 * size).next_multiple_of(64) + (6 + 8 * size).next_multiple_of(64)
    }

    fn new(memory: Arc<Memory>, index: u32, size: u16, at: u64, event_idx: bool) -> Self {
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).expect("an eventfd");
        let avail = at + 16 * u64::from(size);
        let used = avail + (6 + 2 * u64::from(size)).next_multiple_of(64);
        Self {
            memory,
            index,
            size,
            table: at,
            avail,
            used,
            next_avail: 0,
            last_used: 0,
            exposed: 0,
            event_idx,
            kick: event(),
            call: event(),
            err: event(),
            kicks: 0,
        }
    }

    /// Writes a descriptor: `address` is a guest physical address.
    pub fn descriptor(&self, slot: u16, address: u64, len: u32, flags: u16, next: u16) {
        self.memory
            .write(self.table + 16 * u64::from(slot), &raw_descriptor(address, len, flags, next));
    }

    /// Adds a chain to the available ring; [`Queue::expose`] shows it to the device.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.next_avail % self.size);
        self.memory.u16(self.avail + 4 + 2 * slot).store(head, Ordering::Relaxed);
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Shows offered chains to the device and kicks it if it wants that.
    pub fn expose(&mut self) {
        let (old, new) = (self.exposed, self.next_avail);
        if old == new {
            return;
        }
        self.memory.u16(self.avail + 2).store(new, Ordering::Release);
        self.exposed = new;
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let event = self.memory.u16(self.used + 4 + 8 * u64::from(self.size));
            let event = event.load(Ordering::Relaxed);
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.memory.u16(self.used).load(Ordering::Relaxed) & 1 == 0
        };
        if wanted {
            self.kick();
        }
    }

    pub fn kick(&mut self) {
        self.kicks += 1;
        self.kick.write(1).expect("a kick");
    }

    /// How many chains the device has marked used so far (wraps).
    pub fn used_index(&self) -> u16 {
        self.memory.u16(self.used + 2).load(Ordering::Acquire)
    }

    /// Whether all chains that were ever offered are taken back.
    pub fn is_settled(&self) -> bool {
        self.last_used == self.next_avail
    }

    /// Takes a used chain: its head and length.
    pub fn take_used(&mut self) -> Option<(u16, u32)> {
        if self.used_index() == self.last_used {
            return None;
        }
        let at = self.used + 4 + 8 * u64::from(self.last_used % self.size);
        let head = self.memory.u32(at).load(Ordering::Relaxed);
        let len = self.memory.u32(at + 4).load(Ordering::Relaxed);
        self.last_used = self.last_used.wrapping_add(1);
        Some((u16::try_from(head).expect("a head"), len))
    }

    /// Forgets what was used, without a look at the entries; how many they were.
    pub fn skip_used(&mut self) -> u16 {
        let index = self.used_index();
        let count = index.wrapping_sub(self.last_used);
        self.last_used = index;
        count
    }

    /// Asks to be called at the next used chain; false if there is one already.
    pub fn arm_call(&self) -> bool {
        if self.event_idx {
            let event = self.avail + 4 + 2 * u64::from(self.size);
            self.memory.u16(event).store(self.last_used, Ordering::Relaxed);
        } else {
            self.memory.u16(self.avail).store(0, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        self.used_index() == self.last_used
    }

    /// Asks not to be called (only a hint, and only without event index).
    pub fn disarm_call(&self) {
        if !self.event_idx {
            self.memory.u16(self.avail).store(1, Ordering::Relaxed);
        }
    }

    /// Waits for a used chain.
    pub fn wait_used(&mut self, timeout: Duration) -> Option<(u16, u32)> {
        let deadline = clock::mono() + timeout;
        loop {
            if let Some(used) = self.take_used() {
                return Some(used);
            }
            if self.arm_call() {
                let left = deadline - clock::mono();
                if left.is_zero() || !readable(&self.call, left) {
                    return self.take_used();
                }
                let _ = self.call.read();
            }
        }
    }

    /// Empties the ring, as a driver does that resets its device.
    pub fn reset(&mut self) {
        self.memory.write(self.table, &vec![0; Self::len(self.size) as usize]);
        (self.next_avail, self.last_used, self.exposed) = (0, 0, 0);
        for event in [&self.kick, &self.call, &self.err] {
            let _ = event.read();
        }
    }
}

pub fn raw_descriptor(address: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut raw = [0; 16];
    raw[..8].copy_from_slice(&address.to_le_bytes());
    raw[8..12].copy_from_slice(&len.to_le_bytes());
    raw[12..14].copy_from_slice(&flags.to_le_bytes());
    raw[14..].copy_from_slice(&next.to_le_bytes());
    raw
}

/// How frames are put into the transmit ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Header and frame in one descriptor.
    One,
    /// A descriptor for the header, one for the frame.
    Two,
    /// As [`Layout::Two`], in an indirect table.
    Indirect,
}

/// In which order the connection is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As QEMU does: rings are enabled, with acknowledgement, before features are set.
    Qemu,
    /// As the specification has it: features first, rings enabled last.
    Plain,
}

#[derive(Clone, Debug)]
pub struct Options {
    pub pairs: usize,
    pub queue_size: u16,
    pub layout: Layout,
    pub event_idx: bool,
    /// Length of a receive buffer; frames that are longer take several (mergeable buffers).
    pub rx_buffer: u32,
    /// Room for a frame that is sent.
    pub tx_buffer: u32,
    /// Whether guest memory is told region by region.
    pub slots: bool,
    /// Whether what is written to guest memory is the driver's own.
    pub is_private: bool,
    /// Features that are acknowledged besides the usual ones: offloads.
    pub offloads: u64,
    pub order: Order,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            pairs: 1,
            queue_size: 256,
            layout: Layout::Two,
            event_idx: true,
            rx_buffer: 2048,
            tx_buffer: 2048,
            slots: false,
            is_private: false,
            offloads: 0,
            order: Order::Qemu,
        }
    }
}

/// The rings of a queue pair and their buffers.
pub struct Pair {
    pub rx: Queue,
    pub tx: Queue,
    pub rx_buffers: u64,
    tx_buffers: u64,
    /// Indirect tables of two descriptors, one per slot.
    tables: u64,
    /// Heads that may be sent with.
    free: Vec<u16>,
}

/// A driver that is connected to a backend.
pub struct Driver {
    pub options: Options,
    pub memory: Arc<Memory>,
    pub control: Control,
    pub pairs: Vec<Pair>,
    pub features: u64,
    /// An unused page of guest memory, for abuse.
    pub scratch: u64,
}

const SCRATCH_LEN: u64 = 0x4000;

impl Driver {
    /// Connects and brings all rings up, receive buffers offered.
    pub fn connect(path: &Path, options: Options) -> io::Result<Self> {
        let mut driver = Self::new(Control::connect(path)?, options);
        driver.negotiate()?;
        driver.start()?;
        Ok(driver)
    }

    /// A driver that has not said anything yet.
    pub fn new(control: Control, options: Options) -> Self {
        let size = u64::from(options.queue_size);
        let ring = Queue::len(options.queue_size).next_multiple_of(4096);
        let rx_len = size * u64::from(options.rx_buffer);
        let tx_len = size * u64::from(options.tx_buffer);
        let pair_len = 2 * ring + rx_len + tx_len + 32 * size;
        let pair_len = pair_len.next_multiple_of(4096);
        let len = SCRATCH_LEN + pair_len * options.pairs as u64;
        let map = if options.is_private { Memory::private } else { Memory::new };
        let memory = Arc::new(map(len as usize));
        let pairs = (0..options.pairs).map(|n| {
            let at = SCRATCH_LEN + pair_len * n as u64;
            let queue = |index: usize, at| {
                let size = options.queue_size;
                Queue::new(memory.clone(), index as u32, size, at, options.event_idx)
            };
            Pair {
                rx: queue(2 * n, at),
                tx: queue(2 * n + 1, at + ring),
                rx_buffers: at + 2 * ring,
                tx_buffers: at + 2 * ring + rx_len,
                tables: at + 2 * ring + rx_len + tx_len,
                free: Vec::new(),
            }
        });
        let pairs = pairs.collect();
        Self { options, memory, control, pairs, features: 0, scratch: 0 }
    }

    /// What a frontend does once it is connected, up to the point where the guest's driver starts.
    pub fn negotiate(&mut self) -> io::Result<()> {
        let control = &mut self.control;
        let offered = control.get_u64(request::GET_FEATURES)?;
        let protocol = control.get_u64(request::GET_PROTOCOL_FEATURES)?;
        let slots = if self.options.slots { P_SLOTS } else { 0 };
        let wanted = P_MQ | P_LOG_SHMFD | P_RARP | P_REPLY_ACK | P_MTU | slots;
        control.set_u64(request::SET_PROTOCOL_FEATURES, protocol & wanted)?;
        control.acknowledge = protocol & P_REPLY_ACK != 0;
        let most = control.get_u64(request::GET_QUEUE_NUM)?;
        assert!(most >= 2 * self.options.pairs as u64, "the backend has {most} rings");
        control.set(request::SET_OWNER, &[], &[])?;
        let mut features = F_MRG_RXBUF | F_INDIRECT_DESC | F_PROTOCOL_FEATURES | F_VERSION_1;
        if self.options.event_idx {
            features |= F_EVENT_IDX;
        }
        features |= self.options.offloads;
        self.features = offered & features;
        assert_eq!(self.features, features, "the backend offers all that is needed");
        for queue in self.pairs.iter().flat_map(|pair| [&pair.rx, &pair.tx]) {
            let control = &mut self.control;
            control.set_ring_fd(request::SET_VRING_CALL, queue.index, queue.call.as_raw_fd())?;
            control.set_ring_fd(request::SET_VRING_ERR, queue.index, queue.err.as_raw_fd())?;
        }
        if self.options.order == Order::Qemu {
            self.enable(true)?;
        }
        Ok(())
    }

    /// What a frontend does when the guest's driver is ready: features, memory, rings.
    pub fn start(&mut self) -> io::Result<()> {
        self.control.set_u64(request::SET_FEATURES, self.features)?;
        self.send_memory()?;
        for n in 0..self.pairs.len() {
            self.fill_rx(n);
            self.start_ring(2 * n)?;
            self.start_ring(2 * n + 1)?;
        }
        self.enable(true)
    }

    /// Goes on with a new connection as QEMU does when its backend has come back: memory and rings
    /// are as they were, and the device goes on behind the last chain that is marked used.
    pub fn reconnect(&mut self, control: Control) -> io::Result<()> {
        self.control = control;
        self.negotiate()?;
        self.control.set_u64(request::SET_FEATURES, self.features)?;
        self.send_memory()?;
        for index in 0..2 * self.pairs.len() {
            let base = self.queue(index).used_index();
            self.start_ring_at(index, base)?;
        }
        self.enable(true)
    }

    pub fn send_memory(&mut self) -> io::Result<()> {
        let region = [GUEST_BASE, self.memory.len() as u64, USER_BASE, 0].map(u64::to_ne_bytes);
        let fd = self.memory.file.as_raw_fd();
        if self.options.slots {
            let body = [&[0; 8], &region.concat()[..]].concat();
            return self.control.set(request::ADD_MEM_REG, &body, &[fd]);
        }
        let body = [&[1_u32, 0].map(u32::to_ne_bytes).concat()[..], &region.concat()].concat();
        self.control.set(request::SET_MEM_TABLE, &body, &[fd])
    }

    /// A ring by its number at the device.
    pub fn queue(&mut self, index: usize) -> &mut Queue {
        let pair = &mut self.pairs[index / 2];
        if index.is_multiple_of(2) { &mut pair.rx } else { &mut pair.tx }
    }

    /// Size, base, addresses and descriptors of a ring: the device may use it from now on.
    pub fn start_ring(&mut self, index: usize) -> io::Result<()> {
        let base = self.queue(index).last_used;
        self.start_ring_at(index, base)
    }

    /// The same for a ring that goes on at index `base`.
    pub fn start_ring_at(&mut self, index: usize, base: u16) -> io::Result<()> {
        let queue = self.queue(index);
        let (number, size) = (queue.index, queue.size);
        let (kick, call) = (queue.kick.as_raw_fd(), queue.call.as_raw_fd());
        self.control.set_ring(request::SET_VRING_NUM, number, size.into())?;
        self.control.set_ring(request::SET_VRING_BASE, number, base.into())?;
        self.send_addresses(index)?;
        self.control.set_ring_fd(request::SET_VRING_KICK, number, kick)?;
        self.control.set_ring_fd(request::SET_VRING_CALL, number, call)
    }

    /// `SET_VRING_ADDR` of a ring, as its fields say.
    pub fn send_addresses(&mut self, index: usize) -> io::Result<()> {
        let queue = self.queue(index);
        let [table, used, avail] = [queue.table, queue.used, queue.avail].map(|at| USER_BASE + at);
        self.send_user_addresses(index, table, used, avail)
    }

    pub fn send_user_addresses(
        &mut self,
        index: usize,
        table: u64,
        used: u64,
        avail: u64,
    ) -> io::Result<()> {
        let head = [index as u32, 0].map(u32::to_ne_bytes).concat();
        let body = [head, [table, used, avail, 0].map(u64::to_ne_bytes).concat()].concat();
        self.control.set(request::SET_VRING_ADDR, &body, &[])
    }

    /// Enables or disables all rings.
    pub fn enable(&mut self, on: bool) -> io::Result<()> {
        for index in 0..2 * self.pairs.len() as u32 {
            self.control.set_ring(request::SET_VRING_ENABLE, index, on.into())?;
        }
        Ok(())
    }

    /// Stops a ring; the index that the device would go on with.
    pub fn stop_ring(&mut self, index: usize) -> io::Result<u16> {
        let body = [index as u32, 0].map(u32::to_ne_bytes).concat();
        let answer = self.control.get(request::GET_VRING_BASE, &body)?;
        Ok(u16::from_ne_bytes(answer[4..6].try_into().expect("an index")))
    }

    /// Stops all rings, empties them and starts them again, as a guest that resets its NIC.
    pub fn reset(&mut self) -> io::Result<()> {
        for index in 0..2 * self.pairs.len() {
            self.stop_ring(index)?;
            self.queue(index).reset();
        }
        for n in 0..self.pairs.len() {
            self.fill_rx(n);
            self.start_ring(2 * n)?;
            self.start_ring(2 * n + 1)?;
        }
        Ok(())
    }

    /// Offers all receive buffers and makes all heads free. Rings must be empty.
    pub fn fill_rx(&mut self, n: usize) {
        let (size, len) = (self.options.queue_size, self.options.rx_buffer);
        let pair = &mut self.pairs[n];
        for slot in 0..size {
            let address = gpa(pair.rx_buffers + u64::from(slot) * u64::from(len));
            pair.rx.descriptor(slot, address, len, WRITE, 0);
            pair.rx.offer(slot);
        }
        pair.rx.expose();
        let step = if self.options.layout == Layout::Two { 2 } else { 1 };
        pair.free = (0..size).step_by(step).collect();
    }

    /// Puts a frame into the transmit ring of pair `n`; false if there is no room.
    /// [`Driver::flush`] shows it to the device.
    pub fn queue_frame(&mut self, n: usize, frame: &[u8]) -> bool {
        self.queue_packet(n, &[0; HEADER_LEN], frame)
    }

    /// The same with a virtio-net header.
    pub fn queue_packet(&mut self, n: usize, header: &[u8; HEADER_LEN], frame: &[u8]) -> bool {
        let (layout, room) = (self.options.layout, u64::from(self.options.tx_buffer));
        assert!(frame.len() + HEADER_LEN <= room as usize, "the frame fits its buffer");
        let pair = &mut self.pairs[n];
        if pair.free.is_empty() {
            pair.reclaim();
        }
        let Some(head) = pair.free.pop() else { return false };
        let at = pair.tx_buffers + u64::from(head) * room;
        let len = frame.len() as u32;
        let body = at + HEADER_LEN as u64;
        self.memory.write(at, header);
        self.memory.write(body, frame);
        match layout {
            Layout::One => pair.tx.descriptor(head, gpa(at), HEADER_LEN as u32 + len, 0, 0),
            Layout::Two => {
                pair.tx.descriptor(head, gpa(at), HEADER_LEN as u32, NEXT, head + 1);
                pair.tx.descriptor(head + 1, gpa(body), len, 0, 0);
            }
            Layout::Indirect => {
                let table = pair.tables + 32 * u64::from(head);
                let first = raw_descriptor(gpa(at), HEADER_LEN as u32, NEXT, 1);
                self.memory.write(table, &first);
                self.memory.write(table + 16, &raw_descriptor(gpa(body), len, 0, 0));
                pair.tx.descriptor(head, gpa(table), 32, INDIRECT, 0);
            }
        }
        pair.tx.offer(head);
        true
    }

    /// Waits until there is room in the transmit ring of pair `n`; false at the deadline.
    pub fn wait_room(&mut self, n: usize, timeout: Duration) -> bool {
        let pair = &mut self.pairs[n];
        if pair.free.is_empty() {
            pair.free.extend(pair.tx.wait_used(timeout).map(|(head, _)| head));
        }
        !pair.free.is_empty()
    }

    /// Shows queued frames of pair `n` to the device.
    pub fn flush(&mut self, n: usize) {
        self.pairs[n].tx.expose();
    }

    /// Sends one frame on the first pair.
    pub fn send_frame(&mut self, frame: &[u8]) {
        assert!(self.queue_frame(0, frame), "there is room in the transmit ring");
        self.flush(0);
    }

    /// Where the first pair's packets are put that are sent: offsets in guest memory.
    pub fn tx_buffers(&self) -> Vec<u64> {
        let room = u64::from(self.options.tx_buffer);
        let at = self.pairs[0].tx_buffers;
        (0..self.options.queue_size).map(|n| at + u64::from(n) * room).collect()
    }

    /// Takes the next frame that the first pair received.
    pub fn recv_frame(&mut self, timeout: Duration) -> Option<Vec<u8>> {
        self.recv_packet(0, timeout).map(|(_, frame)| frame)
    }

    /// The next frame of pair `n` with its virtio-net header. Its buffers are offered again.
    pub fn recv_packet(
        &mut self,
        n: usize,
        timeout: Duration,
    ) -> Option<([u8; HEADER_LEN], Vec<u8>)> {
        let len = u64::from(self.options.rx_buffer);
        let pair = &mut self.pairs[n];
        let mut bytes = Vec::new();
        let mut left = 1;
        while left > 0 {
            let (head, used) = pair.rx.wait_used(timeout)?;
            assert!(u64::from(used) <= len, "the device wrote within the buffer");
            let start = bytes.len();
            bytes.resize(start + used as usize, 0);
            self.memory.read(pair.rx_buffers + u64::from(head) * len, &mut bytes[start..]);
            if start == 0 {
                left = u16::from_le_bytes(bytes[10..12].try_into().expect("num_buffers"));
                assert_ne!(left, 0, "num_buffers counts the first buffer");
            }
            left -= 1;
            pair.rx.offer(head);
        }
        pair.rx.expose();
        let frame = bytes.split_off(HEADER_LEN);
        Some((bytes.try_into().expect("a header"), frame))
    }
}

impl Pair {
    /// Takes used chains of the transmit ring back.
    pub fn reclaim(&mut self) -> usize {
        let mut count = 0;
        while let Some((head, _)) = self.tx.take_used() {
            self.free.push(head);
            count += 1;
        }
        count
    }
}
