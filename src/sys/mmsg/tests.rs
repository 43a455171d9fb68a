//! Real sockets on the loopback interface.

use super::*;
use std::net::UdpSocket;
use std::os::fd::AsFd;

fn pair() -> (UdpSocket, UdpSocket, SocketAddr) {
    let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = receiver.local_addr().unwrap();
    (sender, receiver, to)
}

fn single<'a>(to: SocketAddr, parts: &'a [IoVec<'a>]) -> Message<'a> {
    Message { to, parts, segment: 0 }
}

#[test]
fn a_batch_arrives_in_order_and_whole() {
    let (sender, receiver, to) = pair();
    let texts: Vec<String> = (0..10).map(|n| "x".repeat(n * 1000)).collect();
    let parts: Vec<[IoVec<'_>; 2]> = texts
        .iter()
        .map(|t| [IoVec::from_slice(b"head:"), IoVec::from_slice(t.as_bytes())])
        .collect();
    let messages: Vec<Message<'_>> = parts.iter().map(|parts| single(to, parts)).collect();
    assert_eq!(send(sender.as_fd(), &messages).unwrap(), 10);

    let mut batch = ReceiveBatch::default();
    batch.receive(receiver.as_fd()).unwrap();
    assert_eq!(batch.len(), 10);
    for (n, text) in texts.iter().enumerate() {
        let received = batch.get(n).unwrap();
        assert_eq!(received.bytes, format!("head:{text}").as_bytes());
        assert_eq!(received.datagrams().count(), 1);
        assert_eq!(received.from, sender.local_addr().unwrap());
    }
    batch.bound(3 << 16);
    send(sender.as_fd(), &messages).unwrap();
    batch.receive(receiver.as_fd()).unwrap();
    assert_eq!(batch.len(), 3, "no more than was wanted");
    batch.bound(u64::MAX);
    batch.receive(receiver.as_fd()).unwrap();
    assert_eq!(batch.len(), 7);
    let empty = batch.receive(receiver.as_fd()).unwrap_err();
    assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn an_empty_datagram_is_one() {
    let (sender, receiver, to) = pair();
    assert_eq!(send(sender.as_fd(), &[single(to, &[])]).unwrap(), 1);
    let mut batch = ReceiveBatch::default();
    batch.receive(receiver.as_fd()).unwrap();
    let datagrams: Vec<&[u8]> = batch.get(0).unwrap().datagrams().collect();
    assert_eq!(datagrams, [&[] as &[u8]]);
}

#[test]
fn segments_are_cut_by_the_kernel_and_put_together_again() {
    let (sender, receiver, to) = pair();
    let bytes: Vec<u8> = (0..4500).map(|n| (n / 100) as u8).collect();
    let parts = [IoVec::from_slice(&bytes)];
    let message = Message { to, parts: &parts, segment: 1000 };
    let plain = |batch: &ReceiveBatch| -> Vec<Vec<u8>> {
        let all = (0..batch.len()).filter_map(|n| batch.get(n));
        all.flat_map(|r| r.datagrams().map(<[u8]>::to_vec).collect::<Vec<_>>()).collect()
    };
    let expected: Vec<Vec<u8>> = bytes.chunks(1000).map(<[u8]>::to_vec).collect();
    let mut batch = ReceiveBatch::default();

    assert_eq!(send(sender.as_fd(), &[message]).unwrap(), 1);
    batch.receive(receiver.as_fd()).unwrap();
    assert_eq!(batch.len(), 5, "without GRO");
    assert_eq!(plain(&batch), expected);

    enable_gro(receiver.as_fd()).unwrap();
    assert_eq!(send(sender.as_fd(), &[message, message]).unwrap(), 2);
    batch.receive(receiver.as_fd()).unwrap();
    assert_eq!(batch.len(), 2, "with GRO");
    assert_eq!(plain(&batch), [expected.clone(), expected].concat());
}

#[test]
fn the_first_failure_is_reported() {
    let (sender, _receiver, to) = pair();
    let huge = vec![0; 70_000];
    let parts = [[IoVec::from_slice(b"small")], [IoVec::from_slice(&huge)]];
    let messages = parts.each_ref().map(|parts| single(to, parts));
    assert_eq!(send(sender.as_fd(), &messages).unwrap(), 1);
    let error = send(sender.as_fd(), &messages[1..]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
}

#[test]
fn overflow_of_the_socket_buffer_is_seen() {
    let (sender, receiver, to) = pair();
    let socket = socket2::SockRef::from(&receiver);
    socket.set_recv_buffer_size(4096).unwrap();
    nix::sys::socket::setsockopt(&receiver, nix::sys::socket::sockopt::RxqOvfl, &1).unwrap();
    let bytes = [0; 1000];
    let parts = [IoVec::from_slice(&bytes)];
    for _ in 0..50 {
        send(sender.as_fd(), &[single(to, &parts)]).unwrap();
    }
    let mut batch = ReceiveBatch::default();
    batch.receive(receiver.as_fd()).unwrap();
    let arrived = batch.len() as u32;
    assert!(arrived < 50);
    send(sender.as_fd(), &[single(to, &parts)]).unwrap();
    batch.receive(receiver.as_fd()).unwrap();
    assert_eq!(batch.overflow, Some(50 - arrived));
}
