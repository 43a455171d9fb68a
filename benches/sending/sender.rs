//! Sends large frames, staged or scattered, and says what that cost.

use std::io::{self, BufRead};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use etherparse::PacketBuilder;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vnet::offload::header::Request;
use vnet::offload::layout::Layout;
use vnet::sys::iovec::{self, IoVec};
use vnet::sys::mmsg::{self, BATCH, Message};
use vnet::sys::{clock, sockopt};
use vnet::tunnel::outgoing::{Batch, Outgoing, Route, Stager, Step};
use vnet::wire::{Capabilities, Longest, VnetId};

/// As a vif's socket.
const BUFFER: i32 = 16 << 20;
/// Payload of a frame, in bytes, and how long its pieces are: a Linux guest's socket memory comes
/// in pieces of 32 KiB.
const PAYLOAD: usize = 62_000;
const PIECE: usize = 32 << 10;
/// Frames that are sent at once: 256 KiB, as a worker does.
const FRAMES: usize = 4;
/// Longest datagram, as at an MTU of 9050.
const MAX_DATAGRAM: usize = 9022;

pub(crate) fn run(memory: usize) -> io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_nonblocking(true)?;
    sockopt::set(&socket, sockopt::SNDBUFFORCE, BUFFER)?;
    let memory: Vec<u8> = (0..memory.max(FRAMES * PAYLOAD)).map(|n| (n % 251) as u8).collect();
    let mut to = None;
    for line in io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let bad = || io::Error::other(format!("{line}?"));
        match (&words[..], to) {
            ([way @ ("staged" | "scattered"), size, time], Some(to)) => {
                let size = size.parse().map_err(|_| bad())?;
                let time = Duration::from_millis(time.parse().map_err(|_| bad())?);
                let from = if *way == "staged" { usize::MAX } else { 0 };
                let mut sender = Sender::new(&socket, to, &memory, size, from)?;
                println!("{}", sender.send_for(time)?);
            }
            _ => {
                let address = line.strip_prefix("to ").ok_or_else(bad)?;
                to = Some(address.parse().map_err(|_| bad())?);
                println!("ready");
            }
        }
    }
    Ok(())
}

struct Sender<'a> {
    socket: &'a UdpSocket,
    route: Route,
    memory: &'a [u8],
    /// Where in it the next payload begins.
    at: usize,
    headers: Vec<u8>,
    request: Request,
    stager: Stager,
}

impl<'a> Sender<'a> {
    fn new(
        socket: &'a UdpSocket,
        to: SocketAddr,
        memory: &'a [u8],
        size: u16,
        scatter_from: usize,
    ) -> io::Result<Self> {
        let mut headers = Vec::new();
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .tcp(1000, 2000, 1, 65_535)
            .write(&mut headers, &[])
            .map_err(io::Error::other)?;
        let layout = Layout::parse_gso(&headers, headers.len() + PAYLOAD)
            .map_err(|why| io::Error::other(format!("{why:?}")))?;
        let vnet = VnetId::new(42).ok_or_else(|| io::Error::other("42 is a vnet"))?;
        let mut stager = Stager::new(vnet);
        stager.scatter_from(scatter_from);
        let capabilities = Capabilities::PARTIAL_CHECKSUM;
        let longest = Longest::UNKNOWN;
        let route = Route { to, is_group: false, is_redirected: false, capabilities, longest };
        let request = Request::Segment { layout, size };
        Ok(Self { socket, route, memory, at: 0, headers, request, stager })
    }

    /// Sends for some time; returns payload, processor time in seconds and time in seconds.
    fn send_for(&mut self, time: Duration) -> io::Result<String> {
        let mut batch = Batch::default();
        let mut parts = Vec::new();
        let (begin, cpu) = (clock::mono(), processor_time()?);
        let mut bytes = 0;
        while clock::mono() - begin < time {
            let mut filled = batch.recycle();
            (0..FRAMES).for_each(|_| self.add_frame(&mut filled));
            parts = self.send(&filled, parts)?;
            bytes += FRAMES * PAYLOAD;
            batch = filled.recycle();
        }
        let (end, spent) = (clock::mono(), processor_time()? - cpu);
        Ok(format!("{bytes} {spent} {}", (end - begin).as_secs_f64()))
    }

    fn add_frame(&mut self, batch: &mut Batch<'a>) {
        if self.at + PAYLOAD > self.memory.len() {
            self.at = 0;
        }
        let payload = &self.memory[self.at..self.at + PAYLOAD];
        self.at += PAYLOAD;
        let start = batch.pieces.len();
        // The headers are read from the copy below only.
        batch.pieces.push(IoVec::from_slice(&payload[..self.headers.len()]));
        batch.pieces.extend(payload.chunks(PIECE).map(IoVec::from_slice));
        let mut lead = [0; vnet::offload::LEAD_LEN];
        lead[..self.headers.len()].copy_from_slice(&self.headers);
        batch.frames.push(Outgoing {
            route: self.route,
            addresses: [0; 12],
            request: self.request,
            len: self.headers.len() + PAYLOAD,
            pieces: start..batch.pieces.len(),
            skip: 0,
            lead: Some(batch.leads.len()),
        });
        batch.leads.push(lead);
    }

    /// Stages and sends a batch, as a worker does.
    fn send(
        &mut self,
        batch: &Batch<'_>,
        parts: Vec<IoVec<'static>>,
    ) -> io::Result<Vec<IoVec<'static>>> {
        let mut at = 0;
        let mut parts = parts;
        while at < batch.frames.len() {
            match self.stager.stage(batch, at, MAX_DATAGRAM) {
                Step::Done(count) => at += count,
                Step::Full => parts = self.flush(batch, parts)?,
                Step::Refused(counter) => return Err(io::Error::other(counter.name())),
            }
        }
        self.flush(batch, parts)
    }

    fn flush(
        &mut self,
        batch: &Batch<'_>,
        parts: Vec<IoVec<'static>>,
    ) -> io::Result<Vec<IoVec<'static>>> {
        let mut parts = iovec::recycle(parts);
        for staged in self.stager.staged().chunks(BATCH) {
            parts.clear();
            let mut ends = Vec::with_capacity(BATCH);
            for staged in staged {
                self.stager.parts(staged, batch, &mut parts);
                ends.push(parts.len());
            }
            let mut start = 0;
            let messages: Vec<Message<'_>> = staged
                .iter()
                .zip(ends)
                .map(|(staged, end)| {
                    let parts = &parts[start..end];
                    start = end;
                    Message { to: staged.route.to, parts, segment: staged.segment }
                })
                .collect();
            self.send_all(&messages)?;
        }
        let parts = iovec::recycle(parts);
        self.stager.clear();
        Ok(parts)
    }

    fn send_all(&self, mut messages: &[Message<'_>]) -> io::Result<()> {
        while !messages.is_empty() {
            match mmsg::send(self.socket.as_fd(), messages) {
                Ok(count) => messages = &messages[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut descriptors = [PollFd::new(self.socket.as_fd(), PollFlags::POLLOUT)];
                    poll(&mut descriptors, PollTimeout::NONE)?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// What this thread has spent on a processor, in seconds (the first number of schedstat, in ns).
fn processor_time() -> io::Result<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanos: Option<f64> = text.split(' ').next().and_then(|first| first.parse().ok());
    nanos.map(|nanos| nanos * 1e-9).ok_or_else(|| io::Error::other("no schedstat"))
}
