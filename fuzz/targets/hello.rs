//! Hello: what parses is written as it was, is no longer than every path takes, and has its lists in order.

use vnet::wire::hello::{self, Body, Flags, HELLO_LEN, HMAC_LEN, MAX_LEN, Message};

pub(crate) fn run(data: &[u8]) {
    let Ok(message) = Message::parse(data) else { return };
    assert_eq!(message.to_bytes(), data, "one form for each message");
    assert_eq!(message.len(), data.len());
    assert!(data.len() <= MAX_LEN);
    assert_eq!(hello::covered(data).len() + HMAC_LEN, data.len());
    assert_eq!(message.sender.port(), 0, "a host speaks");
    message.extensions.iter().for_each(|extension| assert!(!extension.is_critical()));
    match message.body {
        Body::Hello(hello) => {
            let is_to_one = hello.nonce != 0;
            assert!(is_to_one || hello.answer == 0 && !message.flags.contains(Flags::ANSWER));
            assert!(!is_to_one || hello.relays.count() == 0);
            // All HELLOs to one host without extensions have one length, whoever has keys.
            let fixed = message.len() - message.extensions.bytes().len();
            assert!(!is_to_one || fixed == HELLO_LEN);
            assert_eq!(hello.relays.iter().count(), hello.relays.count());
        }
        Body::List(list) => {
            let vnets: Vec<_> = list.entries.iter().map(|entry| entry.vnet).collect();
            assert_eq!(vnets.len(), list.entries.count());
            assert!(vnets.is_sorted_by(|one, next| one < next));
            assert!(vnets.iter().all(|vnet| (list.first..=list.last).contains(vnet)));
        }
    }
}
