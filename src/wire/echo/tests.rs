//! Echo and trace against committed vectors, their truncations and changes, and round trips.
use proptest::prelude::*;

use super::*;
use crate::wire::name::{self, Realm};
use crate::wire::vectors::{self, unhex};

const QUESTION_HEX: &str = include_str!("../../../tests/vectors/echo/question.hex");
const TRACE_HEX: &str = include_str!("../../../tests/vectors/echo/trace.hex");
const NONCE: u64 = 0x1122_3344_5566_7788;
const ASKED_US: u64 = 0x0006_473d_044f_8800;

fn question() -> Message {
    Message {
        longest: 1500,
        nonce: NONCE,
        asked_us: ASKED_US,
        proof: None,
        slots: 0,
        hops: Vec::new(),
        body: Body::Question { padding: 3 },
    }
}

fn relay() -> Name {
    Name::host(Realm(7), "2001:db8::7".parse().unwrap())
}

fn trace() -> Message {
    Message {
        proof: Some(Proof { key_number: 9, hmac: *b"0123456789abcdef" }),
        slots: 2,
        body: Body::Question { padding: 8 },
        ..question()
    }
}

fn trace_answer() -> Message {
    let mut question = trace();
    assert!(question.enter(Hop { relay: relay(), passed_us: ASKED_US + 0x20 }));
    question.answer(9000, ASKED_US + 0x40, ASKED_US + 0x41).unwrap()
}

fn emitted_again(bytes: &[u8]) -> Result<Vec<u8>, ParseError> {
    Message::parse(bytes).map(|message| message.to_bytes())
}

#[test]
fn vectors_mean_what_they_say_and_are_emitted_again() {
    for (text, message) in [(QUESTION_HEX, question()), (TRACE_HEX, trace_answer())] {
        let bytes = unhex(text);
        assert_eq!(Message::parse(&bytes).as_ref(), Ok(&message));
        assert_eq!(message.to_bytes(), bytes);
        assert_eq!(message.len(), bytes.len());
        vectors::changed(&bytes, emitted_again);
    }
}

/// A question ends anywhere in its zeros.
#[test]
fn every_truncation_is_refused() {
    for (bytes, least) in [(question().to_bytes(), LEN), (trace_answer().to_bytes(), 120)] {
        for end in 0..least {
            assert_eq!(Message::parse(&bytes[..end]), Err(ParseError::Truncated), "{end}");
        }
    }
    let longer = [trace_answer().to_bytes(), vec![0]].concat();
    assert_eq!(Message::parse(&longer), Err(ParseError::Trailing));
}

#[test]
fn no_answer_is_longer_than_its_question() {
    for question in
        [question(), trace(), Message { body: Body::Question { padding: 0 }, ..trace() }]
    {
        let answer = question.answer(0, 1, 2).unwrap();
        assert!(answer.len() <= question.len());
        assert_eq!(answer.nonce, question.nonce);
        assert_eq!(answer.answer(0, 1, 2), None, "an answer is not answered");
        // Nor is one believed that says so.
        let mut bytes = answer.to_bytes();
        bytes[6..8].copy_from_slice(&[0, 39]);
        assert_eq!(Message::parse(&bytes), Err(ParseError::Value));
    }
}

#[test]
fn the_hmac_of_a_trace_is_the_same_all_the_way() {
    let mut passed = trace();
    let covered = passed.covered();
    assert!(passed.enter(Hop { relay: relay(), passed_us: 5 }));
    assert_eq!(passed.covered(), covered);
    assert_eq!(passed.answer(9000, 6, 7).unwrap().covered(), covered);
    let other = Message { nonce: 1, ..trace() };
    assert_ne!(other.covered(), covered);
    let roomier = Message { slots: 3, ..trace() };
    assert_ne!(roomier.covered(), covered);
}

#[test]
fn relays_enter_themselves_while_there_is_room() {
    let mut passed = trace();
    let hop = Hop { relay: relay(), passed_us: 5 };
    assert!(passed.enter(hop) && passed.enter(hop));
    assert!(!passed.enter(hop));
    assert_eq!(passed.len(), trace().len(), "nothing grows on the way");
    assert_eq!(Message::parse(&passed.to_bytes()), Ok(passed));
}

#[test]
fn what_is_not_defined_is_refused_by_name() {
    let with = |message: &Message, changes: &[(usize, u8)]| {
        let mut bytes = message.to_bytes();
        changes.iter().for_each(|(at, value)| bytes[*at] = *value);
        Message::parse(&bytes).unwrap_err()
    };
    assert_eq!(with(&question(), &[(0, 3)]), ParseError::Type);
    assert_eq!(with(&question(), &[(2, 1)]), ParseError::Value, "slots without a key");
    assert_eq!(with(&trace(), &[(2, 17)]), ParseError::Value, "too many slots");
    assert_eq!(with(&trace(), &[(3, 3)]), ParseError::Value, "more hops than slots");
    assert_eq!(with(&question(), &[(4, 0), (5, 1)]), ParseError::Value, "too short to be true");
    assert_eq!(with(&question(), &[(7, 1)]), ParseError::Reserved, "a length in a question");
    assert_eq!(with(&question(), &[(31, 1)]), ParseError::Reserved, "it has not arrived yet");
    assert_eq!(with(&question(), &[(42, 1)]), ParseError::Reserved, "no zero");
    assert_eq!(with(&trace(), &[(60, 1)]), ParseError::Reserved, "a free slot in use");
    assert_eq!(with(&trace_answer(), &[(77, 1)]), ParseError::Value, "a vif is no relay");
    let nonce: Vec<(usize, u8)> = (8..16).map(|at| (at, 0)).collect();
    assert_eq!(with(&question(), &nonce), ParseError::Value);
}

prop_compose! {
    fn any_message()(
        (longest, question_len) in any::<(u16, u16)>(), nonce in 1..=u64::MAX, asked_us: u64,
        times in prop::option::of(any::<(u64, u64)>()), key_number: u8, hmac: [u8; 16],
        hops in prop::collection::vec((name::tests::any_name(), any::<u64>()), 0..5),
        free in 0..5_u8, padding in 0..50_usize,
    ) -> Message {
        let proof = (key_number != 0).then_some(Proof { key_number, hmac });
        let hops: Vec<Hop> = match proof {
            Some(_) => hops.iter().map(|(name, passed_us)| {
                Hop { relay: name.of_host(), passed_us: *passed_us }
            }).collect(),
            None => Vec::new(),
        };
        let slots = if proof.is_some() { hops.len() as u8 + free } else { 0 };
        let body = match times {
            Some((arrived_us, answered_us)) => {
                // At least as long as the answer.
                let question_len = question_len.max(400);
                Body::Answer { question_len, arrived_us, answered_us }
            }
            None => Body::Question { padding },
        };
        let longest = if longest < 552 { 0 } else { longest };
        Message { longest, nonce, asked_us, proof, slots, hops, body }
    }
}

proptest! {
    #[test]
    fn what_is_emitted_is_parsed(message in any_message()) {
        prop_assert_eq!(message.to_bytes().len(), message.len());
        prop_assert_eq!(Message::parse(&message.to_bytes()), Ok(message));
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..150), code in 1..3_u8) {
        for input in [[&[code, 1, 2][..], &bytes].concat(), bytes] {
            if let Ok(message) = Message::parse(&input) {
                prop_assert_eq!(message.to_bytes(), input);
            }
        }
    }
}
