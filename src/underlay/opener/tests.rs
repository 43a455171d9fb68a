use super::*;

use std::fs::File;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::UnixDatagram;

use nix::errno::Errno;

/// The opener in a thread of this process, whose capabilities it has; what it is asked is what a varpd
/// that was taken over may write.
fn opener() -> Connection {
    let (own, other) = Connection::pair().unwrap();
    std::thread::spawn(move || serve(&other));
    own
}

fn answer(opener: &Connection, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> i32 {
    opener.send(bytes, fds).unwrap();
    assert!(opener.wait_readable(PATIENCE * 10).unwrap(), "no answer");
    let mut answer = [0; ANSWER_LEN];
    assert_eq!(opener.recv(&mut answer).unwrap().len, ANSWER_LEN, "it has ended");
    i32::from_be_bytes(answer)
}

fn may_enlarge(socket: &UdpSocket) -> bool {
    sockopt::set(socket, sockopt::RCVBUFFORCE, 4096).is_ok()
}

#[test]
fn udp_sockets_of_both_families_get_large_buffers() {
    let opener = opener();
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let socket = UdpSocket::bind(address).unwrap();
        let wanted = if may_enlarge(&socket) { 0 } else { libc::EPERM };
        let request = Request::Buffers { bytes: MOST_BYTES };
        assert_eq!(answer(&opener, &request.emit(), &[socket.as_fd()]), wanted);
        if wanted == 0 {
            for buffer in [sockopt::RCVBUF, sockopt::SNDBUF] {
                assert_eq!(sockopt::get(&socket, buffer).unwrap(), 32 << 20);
            }
        }
    }
}

#[test]
fn nothing_but_a_udp_socket_is_touched() {
    let opener = opener();
    let request = Request::Buffers { bytes: 1 << 20 }.emit();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let unix = UnixDatagram::unbound().unwrap();
    let kind = Type::from(libc::SOCK_RAW);
    let raw = socket2::Socket::new(Domain::IPV4, kind, Some(Protocol::UDP));
    let before = sockopt::get(&tcp, sockopt::RCVBUF).unwrap();
    for wrong in [Some(tcp.as_fd()), Some(unix.as_fd()), raw.as_ref().ok().map(AsFd::as_fd)] {
        let Some(wrong) = wrong else { continue };
        assert_eq!(answer(&opener, &request, &[wrong]), libc::EPROTOTYPE);
    }
    assert_eq!(sockopt::get(&tcp, sockopt::RCVBUF).unwrap(), before);
    let file = File::open("/dev/null").unwrap();
    assert_eq!(answer(&opener, &request, &[file.as_fd()]), Errno::ENOTSOCK as i32);
}

#[test]
fn what_is_no_request_is_refused_and_the_next_one_served() {
    let opener = opener();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let fd = socket.as_fd();
    let good = Request::Buffers { bytes: 1 << 20 }.emit();
    let [kind @ .., _, _, _, _] = good;
    let other_kind = |kind: u32| (u64::from(kind) << 32 | 4096).to_be_bytes();
    let too_much = Request::Buffers { bytes: MOST_BYTES + 1 }.emit();
    let wrong: [&[u8]; 7] = [
        &good[..7],
        &kind,
        &[&good[..], &[0]].concat(),
        &[0; 2000],
        &other_kind(0),
        &other_kind(2),
        &too_much,
    ];
    for bytes in wrong {
        assert_eq!(answer(&opener, bytes, &[fd]), libc::EBADMSG, "{bytes:?}");
    }
    for fds in [&[][..], &[fd, fd], &[fd; 253]] {
        assert_eq!(answer(&opener, &good, fds), libc::EBADMSG, "{} descriptors", fds.len());
    }
    let wanted = if may_enlarge(&socket) { 0 } else { libc::EPERM };
    assert_eq!(answer(&opener, &good, &[fd]), wanted);
}

#[test]
fn requests_are_what_they_were() {
    for bytes in [0, 1, 65_536, MOST_BYTES] {
        let request = Request::Buffers { bytes };
        assert_eq!(Request::parse(&request.emit()), Some(request));
    }
    assert_eq!(Request::parse(&[]), None);
}

#[test]
fn without_the_opener_varpd_goes_on() {
    let (own, other) = Connection::pair().unwrap();
    let privileged = Privileged { connection: RefCell::new(Some(own)) };
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    privileged.check();
    assert!(privileged.is_there(), "it is there");
    drop(other);
    privileged.check();
    assert!(!privileged.is_there());
    assert!(!privileged.enlarge(socket.as_fd(), 1 << 20));
}

#[test]
fn an_opener_that_does_not_answer_is_waited_for_once() {
    let (own, _silent) = Connection::pair().unwrap();
    let privileged = Privileged { connection: RefCell::new(Some(own)) };
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    assert!(!privileged.enlarge(socket.as_fd(), 1 << 20));
    assert!(!privileged.is_there(), "it is given up");
}
