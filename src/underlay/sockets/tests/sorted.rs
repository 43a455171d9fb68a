//! What comes to varpd's address gets to the socket of its class, as the kernel sorts it.

use super::*;
use crate::secret::Secret;
use crate::security::noise::Entropy;
use crate::wire::handshake::{self, Kind};
use crate::wire::{hello, varp};

fn entropy() -> Entropy {
    Entropy::new(Secret::new([5; 32]))
}

fn handshake(kind: Kind, token: u32) -> Vec<u8> {
    let vnet = vnet(42);
    let header = handshake::Header { vnet, key_id: 1, sender: 2, receiver: token };
    let mut bytes = header.emit(kind).to_vec();
    bytes.resize(*kind.message_lens().end(), 0);
    bytes
}

fn message(opcode: u8, len: usize) -> Vec<u8> {
    let mut bytes = [&varp::MAGIC[..], &[varp::VERSION, opcode]].concat();
    bytes.resize(len, 0);
    bytes
}

/// Which class's socket has something to read, if any; it is read.
fn take_class(sockets: &VarpSockets) -> Option<Class> {
    let mut buffer = [0; varp::MAX_LEN + 1];
    let has = |class: &Class| sockets.of(*class).unwrap().recv_from(&mut buffer).is_ok();
    let found: Vec<Class> = Class::ALL.into_iter().filter(has).collect();
    assert!(found.len() < 2, "{found:?}");
    found.first().copied()
}

/// On the loopback interface a datagram has arrived when it has been sent.
#[test]
fn each_class_has_a_socket_of_its_own() {
    for (opener, _) in sites() {
        let (entropy, address) = (entropy(), opener.site().address);
        let mut key = TokenKey::new(&entropy);
        let sockets = opener.varp_unicast(key).unwrap();
        let to = SocketAddr::new(address, opener.site().port);
        let sender = UdpSocket::bind((address, 0)).unwrap();
        let class_of = |bytes: &[u8]| {
            sender.send_to(bytes, to).unwrap();
            take_class(&sockets)
        };
        for (opcode, class) in [
            (varp::REQUEST, Class::Question),
            (varp::REPLY, Class::Answer),
            (varp::ANNOUNCE, Class::Question),
            (varp::CORRECTION, Class::Answer),
            (varp::ABSENT, Class::Answer),
        ] {
            for len in [varp::LEN, varp::TAGGED_LEN, varp::MAX_LEN] {
                assert_eq!(class_of(&message(opcode, len)), Some(class), "{opcode}");
            }
            assert_eq!(class_of(&message(opcode, varp::LEN - 1)), None);
            assert_eq!(class_of(&message(opcode, varp::MAX_LEN + 1)), None);
            let mut older = message(opcode, 84);
            older[varp::VERSION_OFFSET] = 1;
            assert_eq!(class_of(&older), Some(Class::Question), "so that its sender is named");
        }
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Init) {
            let (longest, lens) = (handshake(kind, 0), kind.message_lens());
            for len in [*lens.start(), *lens.end()] {
                assert_eq!(class_of(&longest[..len]), Some(Class::Handshake), "{kind:?}");
            }
            assert_eq!(class_of(&longest[..lens.start() - 1]), None, "{kind:?}");
            assert_eq!(class_of(&[&longest[..], &[0]].concat()), None, "{kind:?}");
        }
        for version in [hello::VERSION, hello::VERSION + 1] {
            let mut longest = [&hello::MAGIC[..], &[version]].concat();
            longest.resize(hello::MAX_LEN, 0);
            for len in [hello::LIST_LEN, hello::HELLO_LEN, hello::MAX_LEN] {
                assert_eq!(class_of(&longest[..len]), Some(Class::Hello));
            }
            assert_eq!(class_of(&[&longest[..], &[0]].concat()), None);
        }
        let mut older = handshake(Kind::Ack, 0);
        older[handshake::VERSION_OFFSET] = 1;
        assert_eq!(class_of(&older), Some(Class::Newcomer));
        for _ in 0..20 {
            let right = key.token(address);
            assert_eq!(class_of(&handshake(Kind::Init, 0)), Some(Class::Newcomer));
            assert_eq!(class_of(&handshake(Kind::Init, right)), Some(Class::Handshake));
            assert_eq!(class_of(&handshake(Kind::Init, right ^ 0x100)), Some(Class::Newcomer));
            key = TokenKey::new(&entropy);
            assert_eq!(class_of(&handshake(Kind::Init, key.token(address))), Some(Class::Newcomer));
            sockets.sort(address, key).unwrap();
        }
    }
}

#[test]
fn what_is_of_no_class_is_dropped_and_counted() {
    for (opener, _) in sites() {
        let address = opener.site().address;
        let sockets = opener.varp_unicast(TokenKey::new(&entropy())).unwrap();
        let to = SocketAddr::new(address, opener.site().port);
        let sender = UdpSocket::bind((address, 0)).unwrap();
        let mut junk: Vec<Vec<u8>> = vec![
            Vec::new(),
            b"V".to_vec(),
            b"VK\x02\x01".to_vec(),
            [0; 84].to_vec(),
            message(0, varp::LEN),
            message(6, varp::LEN),
            frame(42, &[0; 100]),
            vec![0x56; 2000],
        ];
        // Not the version: messages of another one are of a class.
        for at in [0, 1, 3] {
            for mut wrong in [message(varp::REQUEST, varp::LEN), handshake(Kind::Init, 0)] {
                wrong[at] ^= 0x80;
                junk.push(wrong);
            }
        }
        let mut long = handshake(Kind::Init, 0);
        long.push(0);
        junk.push(long);
        for bytes in &junk {
            sender.send_to(bytes, to).unwrap();
            assert_eq!(take_class(&sockets), None, "{bytes:x?}");
        }
        assert_eq!(sockopt::drops(sockets.junk()).unwrap() as usize, junk.len());
    }
}

#[test]
fn a_class_that_is_flooded_takes_no_room_from_others() {
    let [(opener, _), _] = sites();
    let address = opener.site().address;
    let sockets = opener.varp_unicast(TokenKey::new(&entropy())).unwrap();
    let to = SocketAddr::new(address, opener.site().port);
    let sender = UdpSocket::bind((address, 0)).unwrap();
    let drops = || sockopt::drops(sockets.of(Class::Newcomer).unwrap()).unwrap();
    let init = handshake(Kind::Init, 0);
    while drops() == 0 {
        sender.send_to(&init, to).unwrap();
    }
    for bytes in [message(varp::REPLY, varp::LEN), handshake(Kind::Response, 7)] {
        sender.send_to(&bytes, to).unwrap();
    }
    let mut buffer = [0; 1024];
    for class in [Class::Answer, Class::Handshake] {
        assert!(sockets.of(class).unwrap().recv_from(&mut buffer).is_ok(), "{class:?}");
    }
    assert_eq!(sockopt::drops(sockets.of(Class::Answer).unwrap()).unwrap(), 0);
}
