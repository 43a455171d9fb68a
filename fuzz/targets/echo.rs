//! Echo and trace: what parses is written as it was, no answer is longer than its question, and nothing grows where relays
//! enter themselves.

use std::net::Ipv4Addr;

use vnet::wire::echo::{Hop, MAX_SLOTS, Message};
use vnet::wire::name::{Name, Realm};

pub(crate) fn run(data: &[u8]) {
    let Ok(message) = Message::parse(data) else { return };
    assert_eq!(message.to_bytes(), data, "one form for each message");
    assert_eq!(message.len(), data.len());
    let covered = message.covered();
    let mut passed = message.clone();
    let relay = Name::host(Realm(0), Ipv4Addr::LOCALHOST.into());
    let mut entered = message.hops.len();
    while passed.enter(Hop { relay, passed_us: 7 }) {
        entered += 1;
    }
    assert_eq!(entered, usize::from(message.slots));
    assert!(entered <= MAX_SLOTS);
    assert_eq!(passed.covered(), covered, "the HMAC holds all the way");
    assert_eq!(passed.to_bytes().len(), data.len());
    if let Some(answer) = passed.answer(1500, 1, 2) {
        assert!(answer.len() <= data.len(), "no answer is longer than its question");
        assert_eq!(answer.covered(), covered);
        assert_eq!(Message::parse(&answer.to_bytes()), Ok(answer));
    }
}
