//! Takes what arrives and counts it.

use std::io::{self, BufRead};
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vnet::sys::mmsg::{ReceiveBatch, enable_gro};
use vnet::sys::sockopt;

/// As a vif's socket.
const BUFFER: i32 = 16 << 20;

pub(crate) fn run() -> io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    sockopt::set(&socket, sockopt::RCVBUFFORCE, BUFFER)?;
    enable_gro(socket.as_fd())?;
    let port = socket.local_addr()?.port();
    let bytes = Arc::new(AtomicU64::new(0));
    let counted = bytes.clone();
    // Ends with the process.
    std::thread::spawn(move || take(&socket, &bytes));
    for line in io::stdin().lock().lines() {
        match line?.as_str() {
            "port" => println!("{port}"),
            _ => println!("{}", counted.load(Ordering::Relaxed)),
        }
    }
    Ok(())
}

fn take(socket: &UdpSocket, bytes: &AtomicU64) -> io::Result<()> {
    let mut batch = ReceiveBatch::default();
    loop {
        match batch.receive(socket.as_fd()) {
            Ok(()) => {
                let lens = (0..batch.len()).filter_map(|n| batch.get(n)).map(|m| m.bytes.len());
                bytes.fetch_add(lens.sum::<usize>() as u64, Ordering::Relaxed);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut descriptors = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
                poll(&mut descriptors, PollTimeout::NONE)?;
            }
            Err(error) => return Err(error),
        }
    }
}
