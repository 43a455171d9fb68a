//! The comparator's way in and out: a queue of a tap, one system call per frame.
//!
//! `IFF_VNET_HDR` puts the same virtio-net header in front of frames as a NIC has, and TUNSETOFFLOAD
//! lets TCP segments and runs of UDP datagrams come up whole and without checksum, as QEMU sets it
//! up for a guest with all offloads.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::frames::{Offload, Packet, VIRTIO_LEN};
use crate::lane::Lane;
use crate::nic::{RECEIVE_MEMORY, RX_BUFFER};
use crate::pattern::Pattern;

/// Request numbers and flags of linux/if_tun.h.
mod tun {
    pub(super) const SET_IFF: u8 = 202;
    pub(super) const SET_OFFLOAD: u8 = 208;
    pub(super) const SET_VNET_HDR_SIZE: u8 = 216;
    pub(super) const TAP: u16 = 0x0002;
    pub(super) const MULTI_QUEUE: u16 = 0x0100;
    pub(super) const NO_PACKET_INFO: u16 = 0x1000;
    pub(super) const VNET_HDR: u16 = 0x4000;
    pub(super) const CSUM: i32 = 0x01;
    pub(super) const TSO4: i32 = 0x02;
    pub(super) const TSO6: i32 = 0x04;
    pub(super) const USO4: i32 = 0x20;
    pub(super) const USO6: i32 = 0x40;
}

nix::ioctl_write_ptr_bad!(
    set_interface,
    nix::request_code_write!(b'T', tun::SET_IFF, 4),
    [u8; INTERFACE_REQUEST_LEN]
);
nix::ioctl_write_int_bad!(set_offload, nix::request_code_write!(b'T', tun::SET_OFFLOAD, 4));
nix::ioctl_write_ptr_bad!(
    set_header_size,
    nix::request_code_write!(b'T', tun::SET_VNET_HDR_SIZE, 4),
    i32
);

/// Length of `struct ifreq`; the name is first, then the flags.
const INTERFACE_REQUEST_LEN: usize = 40;
const NAME_LEN: usize = 16;

/// Longest frame that comes up, and some.
const ROOM: usize = 1 << 17;

/// All queues of a tap.
pub(crate) struct Tap {
    pub(crate) offload: Offload,
    pub(crate) lanes: Vec<TapLane>,
}

/// One queue.
pub(crate) struct TapLane {
    file: File,
    /// As large as all receive buffers of a NIC, and used in turn as these are: frames that always
    /// landed in the same, cached place would be cheaper than any guest has them.
    rooms: Vec<u8>,
    next: usize,
}

impl Tap {
    /// Opens `pairs` queues of the tap `name` of this network namespace.
    pub(crate) fn open(name: &str, pairs: usize) -> io::Result<Self> {
        let lanes = (0..pairs).map(|_| TapLane::open(name, pairs > 1));
        Ok(Self {
            offload: Offload { checksum: true, tso: true },
            lanes: lanes.collect::<io::Result<_>>()?,
        })
    }
}

impl TapLane {
    fn open(name: &str, is_one_of_many: bool) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
        let file = options.open("/dev/net/tun")?;
        let mut flags = tun::TAP | tun::NO_PACKET_INFO | tun::VNET_HDR;
        if is_one_of_many {
            flags |= tun::MULTI_QUEUE;
        }
        let mut request = [0; INTERFACE_REQUEST_LEN];
        request[..name.len()].copy_from_slice(name.as_bytes());
        request[NAME_LEN..NAME_LEN + 2].copy_from_slice(&flags.to_ne_bytes());
        let fd = file.as_raw_fd();
        // SAFETY: the request is as long as the kernel's ifreq and lives through the call.
        unsafe { set_interface(fd, &raw const request) }?;
        // SAFETY: the argument is a number.
        let done =
            unsafe { set_offload(fd, tun::CSUM | tun::TSO4 | tun::TSO6 | tun::USO4 | tun::USO6) };
        // Kernels before 6.2 do not know USO.
        // SAFETY: as above.
        done.or_else(|_| unsafe { set_offload(fd, tun::CSUM | tun::TSO4 | tun::TSO6) })?;
        let size = VIRTIO_LEN as i32;
        // SAFETY: points to an int that lives through the call.
        unsafe { set_header_size(fd, &raw const size) }?;
        Ok(Self { file, rooms: vec![0; RECEIVE_MEMORY + ROOM], next: 0 })
    }

    fn poll(&self, events: PollFlags, timeout: Duration) -> io::Result<()> {
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        poll(&mut [PollFd::new(self.file.as_fd(), events)], timeout)?;
        Ok(())
    }
}

impl Lane for TapLane {
    fn send(&mut self, packet: &Packet<'_>, pattern: &Pattern) -> io::Result<bool> {
        let body = pattern.at(packet.place, packet.len);
        match self.file.write_vectored(&[IoSlice::new(packet.head), IoSlice::new(body)]) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn wait_room(&mut self, timeout: Duration) -> io::Result<()> {
        self.poll(PollFlags::POLLOUT, timeout)
    }

    fn receive(&mut self, most: usize, sink: &mut dyn FnMut(&[&[u8]])) -> io::Result<usize> {
        for count in 0..most {
            let room = &mut self.rooms[self.next..self.next + ROOM];
            match self.file.read(room) {
                Ok(len) => {
                    sink(&[&room[..len]]);
                    self.next = (self.next + len.next_multiple_of(RX_BUFFER)) % RECEIVE_MEMORY;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(count),
                Err(error) => return Err(error),
            }
        }
        Ok(most)
    }

    fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        self.poll(PollFlags::POLLIN, timeout)
    }
}
