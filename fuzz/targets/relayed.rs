//! Relayed group frames: what parses is written as it was, and has a part of a datagram and a vif that sent it.

use vnet::wire::relayed::{self, HMAC_LEN, MAX_HOPS, MAX_PARTS, Relayed};

pub(crate) fn run(data: &[u8]) {
    let Ok(relayed) = Relayed::parse(data) else { return };
    assert_eq!(relayed.to_bytes(), data, "one form for each");
    assert_eq!(relayed.len(), data.len());
    let [before, after] = relayed::covered(data);
    assert_eq!(before.len() + HMAC_LEN + after.len(), data.len());
    assert!(after.ends_with(relayed.bytes) && !relayed.bytes.is_empty());
    assert!(relayed.part < relayed.parts && relayed.parts <= MAX_PARTS);
    assert!((1..=MAX_HOPS).contains(&relayed.hops) && relayed.key_number != 0);
    assert_ne!(relayed.sender.port(), 0, "a vif sent it");
}
