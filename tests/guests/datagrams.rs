//! Runs in a guest: sends datagrams a run at a time, cut by whoever is good at it (UDP_SEGMENT), or takes
//! them in and says whether they are what was sent. Has nothing but the standard library; it is built
//! by tests/uso-guest.
//!
//! ```text
//!     datagrams send ADDRESS PORT RUNS LENGTH SEGMENT      RUNS of LENGTH bytes, in datagrams of SEGMENT
//!     datagrams receive PORT RUNS LENGTH SEGMENT           prints how many datagrams came
//! ```
//!
//! The last datagram of a run is shorter unless SEGMENT divides LENGTH. The receiver answers each run,
//! and the sender waits for that: nothing is lost for want of room. Both end with an error if there is
//! silence for seconds.

use std::ffi::{c_int, c_void};
use std::io::{self, Error, ErrorKind};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// Level and option of linux/udp.h.
const SOL_UDP: c_int = 17;
const UDP_SEGMENT: c_int = 103;
const SILENCE: Duration = Duration::from_secs(10);

unsafe extern "C" {
    fn setsockopt(fd: c_int, level: c_int, name: c_int, value: *const c_void, len: u32) -> c_int;
}

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let number = |word: &str| word.parse::<usize>().map_err(|_| wrong(&format!("number: {word}")));
    match words[..] {
        ["send", address, port, runs, len, segment] => {
            let any = if address.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
            let socket = UdpSocket::bind(any)?;
            socket.connect((address, port.parse().map_err(|_| wrong("port"))?))?;
            send(&socket, number(runs)?, number(len)?, number(segment)?)
        }
        ["receive", port, runs, len, segment] => {
            let socket = UdpSocket::bind(format!("[::]:{port}"))?;
            receive(&socket, number(runs)?, number(len)?, number(segment)?)
        }
        _ => Err(wrong("usage")),
    }
}

fn wrong(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, format!("datagrams: wrong {what}"))
}

/// A byte of a run; no two datagrams of some runs are the same.
fn byte(run: usize, at: usize) -> u8 {
    let place = (run as u64) << 32 | at as u64;
    (place.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

fn send(socket: &UdpSocket, runs: usize, len: usize, segment: usize) -> io::Result<()> {
    socket.set_read_timeout(Some(SILENCE))?;
    let size = u16::try_from(segment).map_err(|_| wrong("segment"))?;
    let option = c_int::from(size);
    let value = (&raw const option).cast();
    // SAFETY: the option is an int, which lives through the call.
    let status = unsafe {
        setsockopt(socket.as_raw_fd(), SOL_UDP, UDP_SEGMENT, value, size_of::<c_int>() as u32)
    };
    if status != 0 {
        return Err(Error::last_os_error());
    }
    for run in 0..runs {
        let bytes: Vec<u8> = (0..len).map(|at| byte(run, at)).collect();
        let sent = socket.send(&bytes)?;
        if sent != len {
            return Err(wrong("length sent"));
        }
        let mut answer = [0; 8];
        socket.recv(&mut answer)?;
        if answer != run.to_be_bytes() {
            return Err(wrong("answer"));
        }
    }
    println!("{runs}");
    Ok(())
}

fn receive(socket: &UdpSocket, runs: usize, len: usize, segment: usize) -> io::Result<()> {
    socket.set_read_timeout(Some(SILENCE))?;
    let mut buffer = vec![0; 1 << 16];
    let mut count = 0;
    for run in 0..runs {
        let mut start = 0;
        while start < len {
            let wanted = segment.min(len - start);
            let (got, from) = socket.recv_from(&mut buffer)?;
            if got != wanted {
                return Err(wrong(&format!("length at {start} of run {run}: {got}, not {wanted}")));
            }
            let bytes = (start..).map(|at| byte(run, at));
            if let Some(at) = buffer[..got].iter().zip(bytes).position(|(a, b)| *a != b) {
                return Err(wrong(&format!("byte {} of run {run}", start + at)));
            }
            start += got;
            count += 1;
            if start == len {
                socket.send_to(&run.to_be_bytes(), from)?;
            }
        }
    }
    println!("{count}");
    Ok(())
}
