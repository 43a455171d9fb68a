//! Echoes between care-of addresses: a running backend answers them, within limits, and its guest sees none.
//!
//! ```text
//!     guest 1        the test asks
//!        |              |
//!     host a ------- host b
//! ```

use std::net::{SocketAddr, UdpSocket};

use vnet::metrics::VifCounter;
use vnet::sys::clock;
use vnet::wire::VnetId;
use vnet::wire::echo::{Body, Message};
use vnet::wire::encap::{Flags, Header};

use crate::nic::{Nic, vif};
use crate::support::{step, wait_until};
use crate::{MTU, Net, SOON};

fn question(nonce: u64) -> Message {
    let asked_us = clock::now().wall_ms * 1000;
    let body = Body::Question { padding: 100 };
    Message { longest: 0, nonce, asked_us, proof: None, slots: 0, hops: Vec::new(), body }
}

fn datagram(message: &Message) -> Vec<u8> {
    let header = Header { flags: Flags::ECHO, vnet: VnetId::new(42).unwrap() };
    let mut bytes = header.emit().to_vec();
    message.emit(&mut bytes);
    bytes
}

#[test]
fn a_running_backend_answers_echoes_within_limits_and_shows_its_guest_none() {
    let Some(net) = Net::new("echoes between care-of addresses", 2) else { return };
    let mut one = Nic::start("g1", vif(42, 1), &net.varpds[0]);
    one.wait_state("active", &net.varpds[0]);
    let rows = net.varpds[0].show("vifs");
    let coa = rows[0]["coa"].as_str().unwrap().trim_start_matches("udp:");
    let coa: SocketAddr = coa.parse().unwrap();
    let host = net.underlay.host(1);
    let socket = std::thread::scope(|scope| {
        let open = || {
            host.enter();
            UdpSocket::bind((host.ipv4, 0)).unwrap()
        };
        scope.spawn(open).join().unwrap()
    });
    socket.set_read_timeout(Some(SOON)).unwrap();
    let asked = question(7);
    let sent = datagram(&asked);
    socket.send_to(&sent, coa).unwrap();
    let mut buffer = [0; 2048];
    let (len, from) = socket.recv_from(&mut buffer).unwrap();
    assert!(from == coa && len <= sent.len());
    let (header, rest) = Header::parse(&buffer[..len]).unwrap();
    assert_eq!(header.flags, Flags::ECHO);
    let answer = Message::parse(rest).unwrap();
    assert_eq!((answer.nonce, answer.asked_us), (7, asked.asked_us));
    assert_eq!(u32::from(answer.longest), MTU);
    let Body::Answer { question_len, arrived_us, .. } = answer.body else { panic!("{answer:?}") };
    assert_eq!(usize::from(question_len), asked.len());
    assert!(arrived_us.abs_diff(asked.asked_us) < 10_000_000, "one machine, one clock");
    // More than a host is answered in a second, and answers, which nobody waits for.
    let begin = clock::mono();
    for nonce in 100..200 {
        socket.send_to(&datagram(&question(nonce)), coa).unwrap();
    }
    let stray = asked.answer(1500, 1, 1).unwrap();
    socket.send_to(&datagram(&stray), coa).unwrap();
    let mut counters = one.counters(&net.varpds[0]);
    wait_until("all echoes are counted", SOON, || {
        counters = one.counters(&net.varpds[0]);
        counters.get(VifCounter::rx_echoes) + counters.get(VifCounter::tx_drop_echo) >= 102
            && counters.get(VifCounter::rx_drop_echo) == 1
    });
    let most = 1 + 10 + 10 * ((clock::mono() - begin).as_secs() + 1);
    let answered = counters.get(VifCounter::tx_echoes);
    assert!((10..=most).contains(&answered), "{answered} of {most}");
    assert_eq!(answered + counters.get(VifCounter::tx_drop_echo), 101);
    assert_eq!(counters.get(VifCounter::rx_drop_echo), 1);
    one.assert_silent();
    step("echoes between care-of addresses");
}
