//! What a station notices of a guest: answers to pings, and its bytes over TCP, sent back by the
//! guest and compared.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use vnet::sys::clock;
use vnet::time::Instant;

use super::station::Station;
use super::support::pause;
use super::timing;

/// Time between two pings.
pub(crate) const PING_INTERVAL: Duration = Duration::from_millis(10);

/// ICMP types (RFC 792).
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
/// Length of an IPv4 header without options, and of an ICMP echo header, in bytes.
const IP_LEN: usize = 20;
const ICMP_LEN: usize = 8;

/// When pings were sent and answered, in microseconds of wall-clock time.
#[derive(Default)]
struct Times {
    /// When the answers arrived, as the kernel says.
    answers: Vec<u64>,
    /// When one was sent, and how much later than it should have been.
    sent: Vec<(u64, Duration)>,
}

/// Pings under way, one each [`PING_INTERVAL`] whether or not those before are answered, but for the
/// times at which the station is told to be quiet.
pub(crate) struct Pinger {
    times: Arc<Mutex<Times>>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Pinger {
    pub(crate) fn start(station: &Station, to: Ipv4Addr) -> Self {
        let (times, end) = (Arc::<Mutex<Times>>::default(), Arc::<AtomicBool>::default());
        let (list, told, is_quiet) = (times.clone(), end.clone(), station.quiet());
        let thread = Some(station.spawn(move || ping(to, &list, &is_quiet, &told)));
        Self { times, end, thread }
    }

    fn times(&self) -> MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many have been answered.
    pub(crate) fn answered(&self) -> usize {
        self.times().answers.len()
    }

    /// How many have not.
    pub(crate) fn lost(&self) -> usize {
        let times = self.times();
        times.sent.len().saturating_sub(times.answers.len())
    }

    /// When the first answer since then arrived. Times are microseconds of wall-clock time.
    pub(crate) fn first_answer(&self, since: u64) -> Option<u64> {
        self.times().answers.iter().copied().find(|time| *time > since)
    }

    /// The longest time without an answer, of those that ended after `since`.
    pub(crate) fn longest_gap(&self, since: u64) -> Duration {
        let times = self.times();
        let pairs = times.answers.windows(2).filter(|pair| pair[1] > since);
        let longest = pairs.map(|pair| pair[1].saturating_sub(pair[0])).max();
        Duration::from_micros(longest.unwrap_or_default())
    }

    /// How much too late a ping was sent at most since then: how long this machine lets even a thread
    /// wait that goes before all others.
    pub(crate) fn lateness(&self, since: u64) -> Duration {
        let times = self.times();
        let late = times.sent.iter().rev().take_while(|(sent, _)| *sent > since);
        late.map(|(_, late)| *late).max().unwrap_or_default()
    }
}

impl Drop for Pinger {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the pinger has panicked");
        }
    }
}

fn ping(to: Ipv4Addr, times: &Mutex<Times>, is_quiet: &AtomicBool, end: &AtomicBool) {
    timing::go_first();
    let times = || times.lock().unwrap_or_else(PoisonError::into_inner);
    let mut number = 0_u16;
    let socket =
        Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).expect("a raw socket");
    socket.connect(&SocketAddr::from((to, 0)).into()).expect("a route");
    timing::stamp(&socket);
    let mut next = clock::mono();
    let mut buffer = [0; 256];
    while !end.load(Ordering::Relaxed) {
        let now = clock::mono();
        if is_quiet.load(Ordering::Relaxed) {
            next = now + PING_INTERVAL;
        } else if now >= next {
            times().sent.push((timing::wall(), now - next));
            number = number.wrapping_add(1);
            // While the guest's MAC is not known a send may fail: that ping is lost.
            let _ = socket.send(&echo_request(number));
            // After a late one the next comes in time, and none is sent twice as fast.
            next = (next + PING_INTERVAL).max(now);
        }
        timing::wait_packet(&socket, next.saturating_since(clock::mono()));
        while let Some((len, time)) = timing::receive(&socket, &mut buffer) {
            if len >= IP_LEN + ICMP_LEN && buffer[IP_LEN] == ECHO_REPLY {
                times().answers.push(time);
            }
        }
    }
}

fn echo_request(number: u16) -> [u8; ICMP_LEN] {
    let [high, low] = number.to_be_bytes();
    // Type and number are all that is not zero; the checksum makes the sum of the words ones.
    let sum = u32::from(ECHO_REQUEST) * 256 + u32::from(number);
    let [c, d] = (!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes();
    [ECHO_REQUEST, 0, c, d, 0, 0, high, low]
}

/// Bytes sent at a time, and how far ahead of those that came back the sender runs at most.
const CHUNK: usize = 8 << 10;
const AHEAD: u64 = 128 << 10;
/// How long the last of them may take to come back; a guest that has crashed sends none.
const LAST_BYTES: Duration = Duration::from_secs(20);

/// A TCP connection to an echo server, in use in both directions all the time, but for the times at which
/// the station is told to be quiet.
pub(crate) struct Echo {
    counts: Arc<Counts>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<u64, String>>>,
}

/// Bytes that were sent, and that came back.
#[derive(Default)]
struct Counts {
    sent: AtomicU64,
    back: AtomicU64,
}

impl Echo {
    /// Sends a known sequence of bytes, and compares what comes back.
    pub(crate) fn start(station: &Station, to: SocketAddr) -> Self {
        let (counts, end) = (Arc::<Counts>::default(), Arc::<AtomicBool>::default());
        let (count, told, is_quiet) = (counts.clone(), end.clone(), station.quiet());
        let thread = Some(station.spawn(move || echo(to, &count, &is_quiet, &told)));
        Self { counts, end, thread }
    }

    /// How many bytes have come back.
    pub(crate) fn bytes(&self) -> u64 {
        self.counts.back.load(Ordering::Relaxed)
    }

    /// Whether all that was sent has come back.
    pub(crate) fn is_idle(&self) -> bool {
        self.counts.sent.load(Ordering::Acquire) == self.bytes()
    }

    /// Ends the connection in order; returns how many bytes went there and back. Panics if it was reset,
    /// if a byte was changed, or if one is missing.
    pub(crate) fn finish(mut self) -> u64 {
        self.end.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("finished once");
        match thread.join().expect("the thread has not panicked") {
            Ok(count) => count,
            Err(why) => panic!("the TCP connection to the guest: {why}"),
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A test that panics does not care how.
            let _ = thread.join();
        }
    }
}

/// Bytes of an upload that leave at a time, and the pause after them.
const PART: u64 = 32 << 10;
const PART_PAUSE: Duration = Duration::from_millis(20);

/// A file that is sent to a guest, in no hurry.
pub(crate) struct Upload(JoinHandle<()>);

impl Upload {
    /// Sends `len` bytes of the known sequence.
    pub(crate) fn start(station: &Station, to: SocketAddr, len: u64) -> Self {
        Self(station.spawn(move || {
            let mut stream = TcpStream::connect(to).expect("the guest listens");
            for start in (0..len).step_by(PART as usize) {
                let part: Vec<u8> = (start..len.min(start + PART)).map(byte).collect();
                stream.write_all(&part).expect("the guest reads");
                std::thread::park_timeout(PART_PAUSE);
            }
            stream.shutdown(Shutdown::Write).expect("an open connection");
            // The guest closes when it has written all.
            let rest = stream.read(&mut [0]).expect("the connection ends in order");
            assert_eq!(rest, 0);
        }))
    }

    /// Waits until it is there.
    pub(crate) fn finish(self) {
        self.0.join().expect("the upload has not failed");
    }
}

/// Reads what a guest sends until it ends; panics unless it is `len` bytes of the known sequence.
pub(crate) fn assert_download(station: &Station, from: SocketAddr, len: u64) {
    let bytes = station.spawn(move || {
        let mut stream = TcpStream::connect(from).expect("the guest listens");
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).expect("the connection ends in order");
        bytes
    });
    let bytes = bytes.join().expect("the thread has not panicked");
    assert_eq!(bytes.len() as u64, len, "length of what the guest has");
    let wrong = (0..len).zip(&bytes).find(|(place, found)| byte(*place) != **found);
    assert_eq!(wrong, None, "the first byte that is wrong");
}

/// The byte at a place of the sequence.
fn byte(place: u64) -> u8 {
    (place.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

fn echo(
    to: SocketAddr,
    counts: &Counts,
    is_quiet: &AtomicBool,
    end: &AtomicBool,
) -> Result<u64, String> {
    let mut stream = TcpStream::connect(to).map_err(|error| format!("connect: {error}"))?;
    stream.set_nonblocking(true).map_err(|error| error.to_string())?;
    let (mut sent, mut came) = (0, 0);
    let mut is_open = true;
    let mut ended: Option<Instant> = None;
    let mut buffer = vec![0; 64 << 10];
    loop {
        if is_open && end.load(Ordering::Relaxed) {
            is_open = false;
            ended = Some(clock::mono());
            stream.shutdown(Shutdown::Write).map_err(|error| format!("shutdown: {error}"))?;
        }
        if is_open && sent < came + AHEAD && !is_quiet.load(Ordering::Relaxed) {
            let chunk: Vec<u8> = (sent..sent + CHUNK as u64).map(byte).collect();
            match stream.write(&chunk) {
                Ok(count) => {
                    sent += count as u64;
                    counts.sent.store(sent, Ordering::Release);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(format!("write after {sent} bytes: {error}")),
            }
        }
        match stream.read(&mut buffer) {
            Ok(0) if came == sent && !is_open => return Ok(came),
            Ok(0) => return Err(format!("closed when {came} of {sent} bytes had come back")),
            Ok(count) => {
                let expected = (came..).map(byte);
                if let Some(n) = buffer[..count].iter().zip(expected).position(|(a, b)| *a != b) {
                    return Err(format!("byte {} is wrong", came + n as u64));
                }
                came += count as u64;
                counts.back.store(came, Ordering::Relaxed);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if ended.is_some_and(|at| clock::mono() - at > LAST_BYTES) {
                    return Err(format!(
                        "{came} of {sent} bytes had come back after {LAST_BYTES:?}"
                    ));
                }
                pause();
            }
            Err(error) => return Err(format!("read after {came} bytes: {error}")),
        }
    }
}
