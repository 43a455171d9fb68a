//! VARP: what parses is written in one form, and a mapper that is fed with it keeps its bounds,
//! never ends up owning a key by somebody else's word, and never loses one to a MAC behind a vif.

use std::net::SocketAddr;
use std::time::Duration;

use vnet::mapper::{Config, LocalVif, Mapper};
use vnet::time::{Instant, Now};
use vnet::wire::varp::Message;
use vnet::wire::{Capabilities, CareOf, EncapKinds, Longest, Mac, VifKey, VnetId};

use super::Input;

const OWN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1798);
/// Wall clock of the simulated host, in milliseconds.
const EPOCH_MS: u64 = 1_700_000_000_000;

pub(crate) fn run(data: &[u8]) {
    if let Ok(message) = Message::parse(data) {
        let written = message.to_bytes();
        assert_eq!(Message::parse(&written), Ok(message), "one form for each message");
        assert!(written.len() <= data.len(), "but for flags and extensions that are ignored");
    }
    drive(Input(data));
}

/// Chunks of the input are messages and the time between them.
fn drive(mut input: Input<'_>) {
    let config = Config::default();
    let most = config.limits.entries + config.limits.pending;
    let mut mapper = Mapper::new(config, [7; 16], OWN);
    let mut mono = Instant::ZERO;
    let key = VifKey { vnet: VnetId::new(42).expect("not 0"), mac: Mac([2, 0, 0, 0, 0, 1]) };
    let coa = CareOf {
        addr: ([127, 0, 0, 1], 4000).into(),
        kinds: EncapKinds::UDP,
        capabilities: Capabilities::NONE,
        longest: Longest::UNKNOWN,
    };
    let vif = LocalVif(1);
    mapper.add_vif(vif, key, coa).expect("the first vif");
    mapper.set_active(vif, true, None, now(mono));
    while !input.0.is_empty() {
        let (what, wait) = (input.u8(), input.u16());
        mono += Duration::from_millis(wait.into());
        if mapper.poll_timeout().is_some_and(|at| at <= mono) {
            mapper.handle_timeout(now(mono));
        }
        let last = input.u8();
        let from = SocketAddr::from(([127, 0, 0, last], input.u16()));
        match what % 4 {
            0 => mapper.resolve(vif, Mac([2, 0, 0, 0, 0, last]), what & 8 != 0, now(mono)),
            _ => {
                let Some(bytes) = input.chunk() else { break };
                if let Ok(message) = Message::parse(bytes) {
                    mapper.handle_message(from, what & 4 != 0, &message, now(mono));
                }
            }
        }
        let mut outputs = 0;
        while mapper.poll_output().is_some() {
            outputs += 1;
            assert!(outputs <= most, "a message causes a bounded number of others");
        }
        match mapper.claim(vif) {
            Some(claim) => assert_eq!(claim.coa, coa, "its claim is to its own address"),
            None => {
                let moved = mapper.forwarding(key);
                assert!(moved.is_none_or(|moved| moved.is_own()), "not by a guest's frames");
            }
        }
    }
}

fn now(mono: Instant) -> Now {
    let elapsed = mono - Instant::ZERO;
    Now { mono, wall_ms: EPOCH_MS + u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX) }
}
