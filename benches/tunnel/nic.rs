//! A guest's NIC: virtio rings served by a vhost-user backend in another process.
//!
//! As Linux does it: 1024 entries, mergeable receive buffers of 4 KiB, event index, a descriptor for
//! the headers and one for the payload of a frame (short frames are in one).

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use vnet::sys::clock;

use crate::driver::{self, Control, GUEST_BASE, USER_BASE, request};
use crate::frames::{HEAD_ROOM, Offload, Packet, VIRTIO_LEN};
use crate::lane::{Lane, PIECES};
use crate::memory::Shared;
use crate::pattern::{self, Pattern};
use crate::ring::Ring;

const RING_SIZE: u16 = 1024;
pub(crate) const RX_BUFFER: usize = 4096;
/// All receive buffers together, in bytes.
pub(crate) const RECEIVE_MEMORY: usize = RING_SIZE as usize * RX_BUFFER;
/// Bodies up to this length are copied behind their headers, in bytes.
const INLINE: usize = 128;
/// Room for headers and a short body.
const TX_ROOM: usize = 256;
/// Frames in flight: each may take two descriptors.
const TX_SLOTS: u16 = RING_SIZE / 2;

/// How long the further buffers of a frame are waited for.
const BUFFER_PATIENCE: Duration = Duration::from_millis(100);

const _: () = assert!(HEAD_ROOM + INLINE <= TX_ROOM);

/// Feature bits of virtio-net (virtio 1.2, 5.1.3; USO: 1.3).
const CSUM: u64 = 1 << 0;
const GUEST_CSUM: u64 = 1 << 1;
const GUEST_TSO4: u64 = 1 << 7;
const GUEST_TSO6: u64 = 1 << 8;
const GUEST_ECN: u64 = 1 << 9;
const HOST_TSO4: u64 = 1 << 11;
const HOST_TSO6: u64 = 1 << 12;
const HOST_ECN: u64 = 1 << 13;
const GUEST_USO4: u64 = 1 << 54;
const GUEST_USO6: u64 = 1 << 55;
const HOST_USO: u64 = 1 << 56;
const NEEDED: u64 =
    driver::F_MRG_RXBUF | driver::F_EVENT_IDX | driver::F_PROTOCOL_FEATURES | driver::F_VERSION_1;
const WANTED: u64 = NEEDED
    | driver::F_INDIRECT_DESC
    | CSUM
    | GUEST_CSUM
    | GUEST_TSO4
    | GUEST_TSO6
    | GUEST_ECN
    | GUEST_USO4
    | GUEST_USO6
    | HOST_TSO4
    | HOST_TSO6
    | HOST_ECN
    | HOST_USO;

/// A NIC whose rings run. The backend lets go of it when it is dropped.
pub(crate) struct Nic {
    pub(crate) offload: Offload,
    pub(crate) lanes: Vec<VirtioLane>,
    _control: Control,
}

/// One queue pair.
pub(crate) struct VirtioLane {
    memory: Arc<Shared>,
    rx: Ring,
    tx: Ring,
    rx_buffers: usize,
    tx_buffers: usize,
    free: Vec<u16>,
    torn: u64,
}

impl Nic {
    /// Connects to a backend and starts `pairs` queue pairs.
    pub(crate) fn connect(path: &Path, pairs: usize, pattern: &Pattern) -> io::Result<Self> {
        let mut control = Control::connect(path)?;
        let features = negotiate(&mut control, pairs)?;
        let ring = Ring::len(RING_SIZE).next_multiple_of(4096);
        let (rx_len, tx_len) = (RECEIVE_MEMORY, usize::from(TX_SLOTS) * TX_ROOM);
        let pair_len = 2 * ring + rx_len + tx_len;
        let first = pattern::LEN.next_multiple_of(4096);
        let memory = Arc::new(Shared::anonymous(first + pairs * pair_len)?);
        memory.write(0, pattern.bytes());
        let lanes = (0..pairs).map(|n| {
            let at = first + n * pair_len;
            VirtioLane {
                memory: memory.clone(),
                rx: Ring::new(memory.clone(), RING_SIZE, at),
                tx: Ring::new(memory.clone(), RING_SIZE, at + ring),
                rx_buffers: at + 2 * ring,
                tx_buffers: at + 2 * ring + rx_len,
                free: (0..TX_SLOTS).collect(),
                torn: 0,
            }
        });
        let mut lanes: Vec<_> = lanes.collect();
        control.set_u64(request::SET_FEATURES, features)?;
        send_memory(&mut control, &memory)?;
        for (n, lane) in lanes.iter_mut().enumerate() {
            lane.fill();
            start_ring(&mut control, 2 * n as u32, &lane.rx)?;
            start_ring(&mut control, 2 * n as u32 + 1, &lane.tx)?;
        }
        for index in 0..2 * pairs as u32 {
            control.set_ring(request::SET_VRING_ENABLE, index, 1)?;
        }
        let offload = Offload {
            checksum: features & CSUM != 0,
            tso: features & (CSUM | HOST_TSO4) == CSUM | HOST_TSO4,
        };
        Ok(Self { offload, lanes, _control: control })
    }
}

fn negotiate(control: &mut Control, pairs: usize) -> io::Result<u64> {
    let offered = control.get_u64(request::GET_FEATURES)?;
    let protocol = control.get_u64(request::GET_PROTOCOL_FEATURES)?;
    let wanted = driver::P_MQ | driver::P_RARP | driver::P_REPLY_ACK | driver::P_MTU;
    control.set_u64(request::SET_PROTOCOL_FEATURES, protocol & wanted)?;
    control.acknowledge = protocol & driver::P_REPLY_ACK != 0;
    if control.get_u64(request::GET_QUEUE_NUM)? < pairs as u64 {
        return Err(io::Error::other("the backend has too few queue pairs"));
    }
    control.set(request::SET_OWNER, &[], &[])?;
    if offered & NEEDED != NEEDED {
        return Err(io::Error::other(format!("the backend offers only {offered:#x}")));
    }
    Ok(offered & WANTED)
}

fn send_memory(control: &mut Control, memory: &Shared) -> io::Result<()> {
    let region = [GUEST_BASE, memory.len() as u64, USER_BASE, 0].map(u64::to_ne_bytes).concat();
    let head = [1_u32, 0].map(u32::to_ne_bytes).concat();
    control.set(request::SET_MEM_TABLE, &[head, region].concat(), &[memory.fd()])
}

fn start_ring(control: &mut Control, index: u32, ring: &Ring) -> io::Result<()> {
    let (kick, call) = ring.fds();
    control.set_ring(request::SET_VRING_NUM, index, ring.size.into())?;
    control.set_ring(request::SET_VRING_BASE, index, 0)?;
    let places = [ring.table, ring.used, ring.avail].map(|at| USER_BASE + at as u64);
    let body = [index, 0].map(u32::to_ne_bytes).concat();
    let [table, used, avail] = places;
    let body = [body, [table, used, avail, 0].map(u64::to_ne_bytes).concat()].concat();
    control.set(request::SET_VRING_ADDR, &body, &[])?;
    control.set_ring_fd(request::SET_VRING_KICK, index, kick)?;
    control.set_ring_fd(request::SET_VRING_CALL, index, call)
}

impl VirtioLane {
    /// Offers all receive buffers.
    fn fill(&mut self) {
        for slot in 0..RING_SIZE {
            let at = self.rx_buffers + usize::from(slot) * RX_BUFFER;
            self.rx.describe(slot, at, RX_BUFFER, driver::WRITE, 0);
            self.rx.offer(slot);
        }
        self.rx.expose();
    }

    /// Takes back the buffers of frames that were sent.
    fn reclaim(&mut self) {
        while let Some((head, _)) = self.tx.take_used() {
            self.free.push(head / 2);
        }
    }
}

/// Takes a further buffer of a frame whose first one is there.
fn next_buffer(rx: &mut Ring, torn: &mut bool) -> io::Result<(u16, usize)> {
    let mut deadline = None;
    loop {
        if let Some(used) = rx.take_used() {
            return Ok(used);
        }
        *torn = true;
        let now = clock::mono();
        if now >= *deadline.get_or_insert(now + BUFFER_PATIENCE) {
            return Err(io::Error::other("num_buffers counts buffers that never come"));
        }
        std::hint::spin_loop();
    }
}

impl Lane for VirtioLane {
    fn torn(&self) -> u64 {
        self.torn
    }

    fn send(&mut self, packet: &Packet<'_>, pattern: &Pattern) -> io::Result<bool> {
        if self.free.is_empty() {
            self.reclaim();
        }
        let Some(slot) = self.free.pop() else { return Ok(false) };
        let at = self.tx_buffers + usize::from(slot) * TX_ROOM;
        self.memory.write(at, packet.head);
        let (head, len) = (2 * slot, packet.head.len());
        if packet.len <= INLINE {
            self.memory.write(at + len, pattern.at(packet.place, packet.len));
            self.tx.describe(head, at, len + packet.len, 0, 0);
        } else {
            self.tx.describe(head, at, len, driver::NEXT, head + 1);
            self.tx.describe(head + 1, packet.place, packet.len, 0, 0);
        }
        self.tx.offer(head);
        Ok(true)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.tx.expose();
        Ok(())
    }

    fn wait_room(&mut self, timeout: Duration) -> io::Result<()> {
        self.flush()?;
        self.reclaim();
        // As Linux does: come back when most of what is out is done.
        let out = TX_SLOTS - self.free.len() as u16;
        if self.free.is_empty() && self.tx.arm(out * 3 / 4) {
            self.tx.wait(timeout);
        }
        Ok(())
    }

    fn receive(&mut self, most: usize, sink: &mut dyn FnMut(&[&[u8]])) -> io::Result<usize> {
        let mut count = 0;
        while count < most {
            let Some((head, used)) = self.rx.take_used() else { break };
            let mut heads = [head; PIECES];
            let mut pieces: [&[u8]; PIECES] = [&[]; PIECES];
            pieces[0] = self.memory.quiet(self.rx_buffers + usize::from(head) * RX_BUFFER, used);
            let Some(&[low, high]) = pieces[0].get(10..VIRTIO_LEN) else {
                return Err(io::Error::other("a frame without a virtio-net header"));
            };
            let buffers = usize::from(u16::from_le_bytes([low, high]));
            if buffers == 0 || buffers > PIECES {
                return Err(io::Error::other(format!("num_buffers is {buffers}")));
            }
            let mut torn = false;
            for n in 1..buffers {
                let (head, used) = next_buffer(&mut self.rx, &mut torn)?;
                heads[n] = head;
                let at = self.rx_buffers + usize::from(head) * RX_BUFFER;
                pieces[n] = self.memory.quiet(at, used);
            }
            self.torn += u64::from(torn);
            sink(&pieces[..buffers]);
            heads[..buffers].iter().for_each(|&head| self.rx.offer(head));
            count += 1;
        }
        self.rx.expose();
        Ok(count)
    }

    fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        if self.rx.arm(1) {
            self.rx.wait(timeout);
        }
        Ok(())
    }
}
