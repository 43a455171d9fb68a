//! The dialect of frontends, and what comes of hostile messages.

use super::*;
use proptest::prelude::*;

fn header(request: u32, size: usize) -> Header {
    Header { request, flags: VERSION, size: size.try_into().unwrap() }
}

/// What a request without flags and descriptors leads to.
fn steps(filter: &mut Filter, request: u32, payload: &[u8]) -> Result<Vec<Step>, Refusal> {
    let steps = filter.request(&header(request, payload.len()), payload, 0);
    filter.awaited = None;
    steps
}

fn pair(index: u32, value: u32) -> Vec<u8> {
    [index, value].map(u32::to_ne_bytes).concat()
}

/// A filter that has negotiated acknowledgements.
fn negotiated() -> Filter {
    let mut filter = Filter::new(4);
    steps(&mut filter, code::GET_FEATURES, &[]).unwrap();
    let protocol = PROTOCOL_F_REPLY_ACK | PROTOCOL_F_LOG_SHMFD;
    steps(&mut filter, code::SET_PROTOCOL_FEATURES, &protocol.to_ne_bytes()).unwrap();
    filter
}

const QUIET: Step = Step::Forward { reply: false };

#[test]
fn an_early_enable_is_preceded_by_features_once() {
    let mut filter = Filter::new(2);
    let early = message(code::SET_FEATURES, 0, F_PROTOCOL_FEATURES.to_ne_bytes());
    let first = steps(&mut filter, code::SET_VRING_ENABLE, &pair(0, 1)).unwrap();
    assert_eq!(first, [Step::Inject(early), QUIET]);
    let second = steps(&mut filter, code::SET_VRING_ENABLE, &pair(1, 1)).unwrap();
    assert_eq!(second, [QUIET]);
}

#[test]
fn features_that_the_frontend_set_stay() {
    let mut filter = Filter::new(2);
    steps(&mut filter, code::SET_FEATURES, &(1_u64 << 32).to_ne_bytes()).unwrap();
    let enable = steps(&mut filter, code::SET_VRING_ENABLE, &pair(0, 1)).unwrap();
    assert_eq!(enable, [QUIET]);
}

#[test]
fn an_acknowledgement_is_awaited_only_where_one_comes() {
    let mut filter = Filter::new(2);
    let asking = Header { request: code::SET_OWNER, flags: VERSION | NEED_REPLY, size: 0 };
    assert_eq!(filter.request(&asking, &[], 0).unwrap(), [QUIET]);
    let mut filter = negotiated();
    assert_eq!(filter.request(&asking, &[], 0).unwrap(), [Step::Forward { reply: true }]);
    assert_eq!(filter.awaited(), Some(code::SET_OWNER));
    let mut zero = [0; 8];
    let wrong = Header { request: code::SET_FEATURES, flags: VERSION | REPLY, size: 8 };
    assert_eq!(filter.reply(&wrong, &mut zero), Err(Refusal::OutOfTurn(code::SET_FEATURES)));
}

#[test]
fn a_live_kick_is_replaced_while_the_ring_is_disabled() {
    let mut filter = negotiated();
    steps(&mut filter, code::SET_FEATURES, &F_PROTOCOL_FEATURES.to_ne_bytes()).unwrap();
    let kick = 2_u64.to_ne_bytes();
    assert_eq!(steps(&mut filter, code::SET_VRING_KICK, &kick).unwrap(), [QUIET]);
    steps(&mut filter, code::SET_VRING_ENABLE, &pair(2, 1)).unwrap();
    let toggle = |on| {
        let bytes = [pair(2, on)].concat().try_into().unwrap();
        Step::Inject(message(code::SET_VRING_ENABLE, 0, bytes))
    };
    let live = steps(&mut filter, code::SET_VRING_KICK, &kick).unwrap();
    assert_eq!(live, [toggle(0), QUIET, toggle(1)]);
    steps(&mut filter, code::GET_VRING_BASE, &pair(2, 0)).unwrap();
    assert_eq!(steps(&mut filter, code::SET_VRING_KICK, &kick).unwrap(), [QUIET]);
}

/// Asks for something that the device answers with 64 bits; what the frontend gets.
fn answered(filter: &mut Filter, request: u32, value: u64) -> u64 {
    let asked = filter.request(&header(request, 0), &[], 0).unwrap();
    assert_eq!(asked, [Step::Forward { reply: true }]);
    let mut payload = value.to_ne_bytes();
    let answer = Header { request, flags: VERSION | REPLY, size: 8 };
    filter.reply(&answer, &mut payload).unwrap();
    u64::from_ne_bytes(payload)
}

#[test]
fn rings_are_counted_and_one_beyond_is_refused_with_what_to_do() {
    let mut filter = negotiated();
    assert_eq!(answered(&mut filter, code::GET_QUEUE_NUM, 4), 4);
    let beyond: [(u32, Vec<u8>); 8] = [
        (code::SET_VRING_NUM, pair(4, 256)),
        (code::SET_VRING_ADDR, [pair(4, 0), vec![0; 32]].concat()),
        (code::SET_VRING_BASE, pair(4, 0)),
        (code::GET_VRING_BASE, pair(4, 0)),
        (code::SET_VRING_ENABLE, pair(4, 1)),
        (code::SET_VRING_KICK, 4_u64.to_ne_bytes().to_vec()),
        (code::SET_VRING_CALL, 0x104_u64.to_ne_bytes().to_vec()),
        (code::SET_VRING_ERR, 4_u64.to_ne_bytes().to_vec()),
    ];
    for (request, payload) in &beyond {
        let refused = steps(&mut filter, *request, payload).unwrap_err();
        let expected =
            Refusal::NoSuchRing { request: *request, ring: 4, rings: 4, is_control: false };
        assert_eq!(refused, expected);
    }
    let refused = steps(&mut filter, code::SET_VRING_CALL, &4_u64.to_ne_bytes()).unwrap_err();
    let said = "SET_VRING_CALL for ring 4, where 4 are served, those of 2 queue pair(s): give QEMU no more than \
        queues=2, or start the backend with more --queue-pairs";
    assert_eq!(refused.to_string(), said);
    steps(&mut filter, code::SET_FEATURES, &F_CTRL_VQ.to_ne_bytes()).unwrap();
    let refused = steps(&mut filter, code::SET_VRING_NUM, &pair(4, 64)).unwrap_err();
    assert!(refused.to_string().contains("control queue"), "{refused}");
}

/// QEMU, which keeps it itself, asks for the features first.
#[test]
fn the_configuration_space_is_told_to_who_begins_with_set_owner() {
    for is_owned_first in [false, true] {
        let mut filter = Filter::new(2);
        if is_owned_first {
            steps(&mut filter, code::SET_OWNER, &[]).unwrap();
        }
        let told = |value| if is_owned_first { value } else { 0 };
        let features = answered(&mut filter, code::GET_FEATURES, F_MAC | 1);
        assert_eq!(features, told(F_MAC) | 1);
        if !is_owned_first {
            steps(&mut filter, code::SET_OWNER, &[]).unwrap();
        }
        let offered = PROTOCOL_F_CONFIG | PROTOCOL_F_REPLY_ACK;
        let protocol = answered(&mut filter, code::GET_PROTOCOL_FEATURES, offered);
        assert_eq!(protocol, told(PROTOCOL_F_CONFIG) | PROTOCOL_F_REPLY_ACK);
        let question = [0_u32, 6, 0].map(u32::to_ne_bytes).concat();
        let question = [&question[..], &[0; 6]].concat();
        let ask = header(code::GET_CONFIG, question.len());
        let refused = Err(Refusal::Unsupported(code::GET_CONFIG));
        assert_eq!(filter.request(&ask, &question, 0), refused, "not negotiated yet");
        steps(&mut filter, code::SET_PROTOCOL_FEATURES, &protocol.to_ne_bytes()).unwrap();
        let answer = filter.request(&ask, &question, 0);
        let expected =
            if is_owned_first { Ok(vec![Step::Forward { reply: true }]) } else { refused };
        assert_eq!(answer, expected);
        filter.awaited = None;
        let write = Header { request: code::SET_CONFIG, flags: VERSION | NEED_REPLY, size: 18 };
        let refused = Step::Answer(acknowledgement(code::SET_CONFIG, 1));
        assert_eq!(filter.request(&write, &question, 0).unwrap(), [refused], "read-only");
    }
}

#[test]
fn of_a_payload_only_what_is_used_is_passed_on() {
    let region = [0_u64, 4096, 1 << 32, 0].map(u64::to_ne_bytes).concat();
    let table = [pair(1, 0), region.clone(), vec![0xff; 32]].concat();
    let mut filter = negotiated();
    let steps_of = filter.request(&header(code::SET_MEM_TABLE, table.len()), &table, 1).unwrap();
    let regions = Table::default().replace(&table[..40]).unwrap().to_vec();
    assert_eq!(steps_of, [Step::Shorten(40), Step::Measure { first: 0, regions }, QUIET]);
    let enable = [pair(1, 1), vec![7; 4]].concat();
    let enabled = steps(&mut filter, code::SET_VRING_ENABLE, &enable).unwrap();
    assert!(matches!(&enabled[..], [Step::Shorten(8), Step::Inject(_), QUIET]), "{enabled:?}");
    assert_eq!(steps(&mut filter, code::SEND_RARP, &[0; 64]).unwrap(), [Step::Announce]);
    // Less than is used stays malformed.
    for len in [0, 8, 39] {
        let refused = filter.request(&header(code::SET_MEM_TABLE, len), &table[..len], 1);
        assert!(refused.is_err(), "{len} bytes");
    }
}

#[test]
fn a_ring_in_the_other_byte_order_does_not_start() {
    let mut filter = Filter::new(2);
    steps(&mut filter, code::GET_FEATURES, &[]).unwrap();
    let unknown = Err(Refusal::Unsupported(code::SET_VRING_ENDIAN));
    assert_eq!(steps(&mut filter, code::SET_VRING_ENDIAN, &pair(0, 1)), unknown);
    let protocol = PROTOCOL_F_CROSS_ENDIAN | PROTOCOL_F_REPLY_ACK;
    steps(&mut filter, code::SET_PROTOCOL_FEATURES, &protocol.to_ne_bytes()).unwrap();
    assert_eq!(steps(&mut filter, code::SET_VRING_ENDIAN, &pair(0, 0)).unwrap(), []);
    let kick = 0_u64.to_ne_bytes();
    let foreign = steps(&mut filter, code::SET_VRING_ENDIAN, &pair(0, 1)).unwrap();
    assert_eq!(foreign, [Step::OtherByteOrder]);
    assert_eq!(steps(&mut filter, code::SET_VRING_KICK, &kick).unwrap(), []);
    let asking = Header { request: code::SET_VRING_ENDIAN, flags: VERSION | NEED_REPLY, size: 8 };
    let refused = Step::Answer(acknowledgement(code::SET_VRING_ENDIAN, 1));
    let asked = filter.request(&asking, &pair(1, 1), 0).unwrap();
    assert_eq!(asked, [Step::OtherByteOrder, refused]);
    // The next driver is another one.
    steps(&mut filter, code::GET_VRING_BASE, &pair(0, 0)).unwrap();
    assert_eq!(steps(&mut filter, code::SET_VRING_KICK, &kick).unwrap(), [QUIET]);
}

#[test]
fn the_frontends_channel_is_taken_with_its_descriptor() {
    let mut filter = negotiated();
    let take = header(code::SET_BACKEND_REQ_FD, 0);
    let unknown = Err(Refusal::Unsupported(take.request));
    assert_eq!(filter.request(&take, &[], 1), unknown);
    steps(&mut filter, code::SET_PROTOCOL_FEATURES, &PROTOCOL_F_BACKEND_REQ.to_ne_bytes()).unwrap();
    assert_eq!(filter.request(&take, &[], 1).unwrap(), [Step::KeepChannel]);
    for count in [0, 2] {
        let refused = Err(Refusal::Descriptors { request: take.request, count });
        assert_eq!(filter.request(&take, &[], count), refused);
    }
}

#[test]
fn memory_without_descriptors_is_explained() {
    let mut filter = negotiated();
    let region = |n: u64| [n, 1, n, 0].map(|word| (word << 12).to_ne_bytes()).concat();
    let table = [pair(2, 0), region(0), region(1)].concat();
    let header = header(code::SET_MEM_TABLE, table.len());
    let refused = filter.request(&header, &table, 1).unwrap_err();
    assert_eq!(refused, Refusal::MemoryNotShared);
    assert!(refused.to_string().contains("share=on"));
    let steps = filter.request(&header, &table, 2).unwrap();
    let regions = Table::default().replace(&table).unwrap().to_vec();
    assert_eq!(steps, [Step::Measure { first: 0, regions }, QUIET]);
    let refused = Refusal::Descriptors { request: code::SET_MEM_TABLE, count: 3 };
    assert_eq!(filter.request(&header, &table, 3), Err(refused));
}

#[test]
fn memory_that_cannot_be_is_refused() {
    let region = [0_u64, 0, 0, 0].map(u64::to_ne_bytes).concat();
    let table = [pair(1, 0), region].concat();
    let refused = negotiated().request(&header(code::SET_MEM_TABLE, table.len()), &table, 1);
    let refused = refused.unwrap_err();
    let error = TableError::Empty(0);
    assert_eq!(refused, Refusal::Memory { request: code::SET_MEM_TABLE, error });
    assert_eq!(refused.to_string(), "SET_MEM_TABLE with region 0 of no bytes");
}

#[test]
fn memory_comes_in_regions_if_that_was_negotiated() {
    let bytes = |n: u64| [0, n << 20, 4096, 1 << (30 + n), 0].map(u64::to_ne_bytes).concat();
    let (add, remove) = (header(code::ADD_MEM_REG, 40), header(code::REM_MEM_REG, 40));
    let ask = header(code::GET_MAX_MEM_SLOTS, 0);
    let mut filter = negotiated();
    for (header, payload) in [(add, &bytes(1)[..]), (remove, &bytes(1)), (ask, &[])] {
        let refused = Refusal::Unsupported(header.request);
        assert_eq!(filter.request(&header, payload, 0), Err(refused));
    }
    let protocol = PROTOCOL_F_REPLY_ACK | PROTOCOL_F_SLOTS;
    steps(&mut filter, code::SET_PROTOCOL_FEATURES, &protocol.to_ne_bytes()).unwrap();
    assert_eq!(filter.request(&ask, &[], 0).unwrap(), [Step::Forward { reply: true }]);
    filter.awaited = None;

    assert_eq!(filter.request(&add, &bytes(1), 0), Err(Refusal::MemoryNotShared));
    let ring = header(code::SET_VRING_ADDR, 40);
    assert_eq!(filter.request(&ring, &[0; 40], 0), Err(Refusal::MemoryNotShared));
    for (first, n) in [(0, 1), (1, 2)] {
        let measured = match &filter.request(&add, &bytes(n), 1).unwrap()[..] {
            [Step::Measure { first, regions }, QUIET] => (*first, regions.len()),
            other => panic!("{other:?}"),
        };
        assert_eq!(measured, (first, 1));
    }
    assert_eq!(filter.request(&ring, &[0; 40], 0).unwrap(), [QUIET]);
    let two = Refusal::Descriptors { request: code::ADD_MEM_REG, count: 2 };
    assert_eq!(filter.request(&add, &bytes(3), 2), Err(two));
    let elsewhere = [0, 2 << 20, 4096, 1 << 32, 4096_u64].map(u64::to_ne_bytes).concat();
    let refused = filter.request(&add, &elsewhere, 1).unwrap_err();
    let why =
        "ADD_MEM_REG with regions 1 and 2, which overlap at the frontend's address 0x100000000";
    assert_eq!(refused.to_string(), why);
    // Again, as QEMU does for another queue pair.
    assert_eq!(filter.request(&add, &bytes(1), 1).unwrap(), []);
    let asking = Header { flags: VERSION | NEED_REPLY, ..add };
    let done = Step::Answer(acknowledgement(code::ADD_MEM_REG, 0));
    assert_eq!(filter.request(&asking, &bytes(1), 1).unwrap(), [done]);
    // With a descriptor or without.
    assert_eq!(filter.request(&remove, &bytes(1), 1).unwrap(), [QUIET]);
    assert_eq!(filter.request(&remove, &bytes(2), 0).unwrap(), [QUIET]);
    let asking = Header { flags: VERSION | NEED_REPLY, ..remove };
    let done = Step::Answer(acknowledgement(code::REM_MEM_REG, 0));
    assert_eq!(filter.request(&asking, &bytes(2), 0).unwrap(), [done]);
}

#[test]
fn a_log_is_mapped_here_if_it_was_negotiated() {
    let log = [4096_u64, 8192].map(u64::to_ne_bytes).concat();
    let header = header(code::SET_LOG_BASE, log.len());
    let mut filter = negotiated();
    let mapped = filter.request(&header, &log, 1).unwrap();
    assert_eq!(mapped, [Step::SetLog { size: 4096, offset: 8192 }]);
    for count in [0, 2] {
        let refused = Refusal::Descriptors { request: code::SET_LOG_BASE, count };
        assert_eq!(filter.request(&header, &log, count), Err(refused));
    }
    for len in [0, 8, 15] {
        let refused = Err(Refusal::Malformed(code::SET_LOG_BASE));
        assert_eq!(filter.request(&header, &log[..len], 1), refused);
    }
    let refused = Err(Refusal::Unsupported(code::SET_LOG_BASE));
    assert_eq!(Filter::new(2).request(&header, &log, 1), refused);
}

proptest! {
    /// No message leads to a panic, a step out of bounds, or an answer nobody waits for.
    #[test]
    fn any_message_is_decided(
        messages in prop::collection::vec(
            (0_u32..50, prop::bool::ANY, prop::collection::vec(any::<u8>(), 0..20), 0_usize..3),
            1..60,
        )
    ) {
        let mut filter = negotiated();
        for (request, asks, payload, descriptors) in messages {
            let flags = if asks { VERSION | NEED_REPLY } else { VERSION };
            let header = Header { request, flags, size: payload.len().try_into().unwrap() };
            let Ok(steps) = filter.request(&header, &payload, descriptors) else { continue };
            let forwards = steps.iter().filter(|s| matches!(s, Step::Forward { .. })).count();
            prop_assert!(forwards <= 1);
            let answers = steps.iter().filter(|step| match step {
                Step::Forward { reply } => *reply,
                Step::Answer(_) | Step::SetLog { .. } => true,
                Step::SetMtu { acknowledge, .. } => *acknowledge,
                _ => false,
            });
            let always = matches!(request, code::GET_STATUS | code::SET_LOG_BASE);
            if filter.acknowledges(&header) {
                prop_assert_eq!(answers.count(), 1);
            } else {
                prop_assert!(answers.count() <= usize::from(always) + 1);
            }
            prop_assert_eq!(filter.awaited().is_some(),
                steps.contains(&Step::Forward { reply: true }));
            filter.awaited = None;
        }
    }

    #[test]
    fn any_header_is_decided(bytes: [u8; HEADER_LEN]) {
        if let Ok(header) = Header::parse(&bytes) {
            prop_assert!(usize::try_from(header.size).unwrap() <= MAX_PAYLOAD);
            prop_assert_eq!(header.flags & VERSION_MASK, VERSION);
        }
    }
}
