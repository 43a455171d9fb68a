//! Forged, spoofed and replayed messages on a vnet without keys, by whoever is not of the segment: nothing moves.
//!
//! Normally there are [`USUALLY`] of each kind; `VNET_FORGERIES` says how many instead (`tests/run --forgeries N`).

use super::*;

const USUALLY: u64 = 10_000;

/// Random numbers, the same at each run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }

    fn host(&mut self) -> u8 {
        u8::try_from(2 + self.below(8)).unwrap()
    }
}

fn count() -> u64 {
    std::env::var("VNET_FORGERIES").map_or(USUALLY, |text| text.parse().expect("a number"))
}

/// A host that has a vif and knows two others, one of them behind a bridge, with all answers that it was given.
fn host_with_mappings() -> (Bench, Vec<(u8, Message)>) {
    let mut bench = Bench::hosting();
    let mut recorded = Vec::new();
    for (mac, claim) in [(2, claim(2, 0)), (3, Claim { behind: Some(mac(9)), ..claim(3, 0) })] {
        bench.resolve(VIF, mac);
        let nonce = bench.sent().last().unwrap().1.nonce;
        let answer = message(key(7, mac), nonce, reply(claim));
        let host = host_of(claim.coa);
        bench.hear(host, false, answer);
        recorded.push((host, by(host, answer)));
    }
    bench.outputs();
    (bench, recorded)
}

type Known = Vec<(VifKey, Option<Claim>)>;

fn known(bench: &Bench) -> Known {
    bench.mapper.rows(bench.now).into_iter().map(|row| (row.key, row.claim)).collect()
}

/// A message of one kind that says anything about anybody, but repeats no nonce that it could not have seen.
fn forged(dice: &mut Dice, kind: u64, wall_ms: u64) -> (u8, Message) {
    let author = dice.host();
    let owner = if dice.below(2) == 0 { author } else { dice.host() };
    let behind = (dice.below(3) == 0).then_some(mac(9));
    let claim = Claim { behind, ..claim(owner, wall_ms - WALL + dice.below(HOUR)) };
    let body = match kind {
        0 => request(owner, false),
        1 => request(owner, true),
        2 => reply(claim),
        3 => announce(claim),
        4 => correction(claim),
        _ => Body::Absent,
    };
    let nonce = dice.below(1 << 20);
    let mac = u8::try_from(1 + dice.below(4)).unwrap();
    (author, by(author, message(key(7, mac), nonce, body)))
}

/// Sends many of each kind by a way that an attacker has, and looks at what is known after each.
fn nothing_moves(way: impl Fn(&mut Bench, &mut Dice, u8, Message)) {
    let (mut bench, recorded) = host_with_mappings();
    let (before, mut dice) = (known(&bench), Dice(0x9e37_79b9_7f4a_7c15));
    for kind in 0..7 {
        for n in 0..count() {
            let wall_ms = bench.now.wall_ms;
            let (host, said) = match recorded.get(usize::try_from(n).unwrap() % 3) {
                Some(&answer) if kind == 6 => answer,
                _ => forged(&mut dice, kind % 6, wall_ms),
            };
            way(&mut bench, &mut dice, host, said);
            if n % 64 == 0 {
                bench.pass_ms(1);
            }
            answer_questions(&mut bench);
            if n % 16 == 0 {
                assert_eq!(known(&bench), before, "after message {n} of kind {kind}: {said:?}");
            }
        }
        assert_eq!(known(&bench), before, "after all of kind {kind}");
    }
}

/// The hosts that are asked are there, and say so.
fn answer_questions(bench: &mut Bench) {
    for (to, asked) in bench.sent() {
        let (Destination::Unicast(to), Body::Request { .. }) = (to, asked.body) else { continue };
        let rows = bench.mapper.rows(bench.now);
        let row = rows.iter().find(|row| row.key == asked.key).unwrap();
        let claim = row.claim.unwrap();
        assert_eq!(to, varp_of(host_of(claim.coa)));
        let answer = message(asked.key, asked.nonce, reply(claim));
        bench.hear(host_of(claim.coa), false, answer);
    }
    bench.outputs();
}

/// With any host's address as source; group datagrams do not reach the segment from outside.
#[test]
fn from_off_the_path_nothing_moves() {
    nothing_moves(|bench, _, host, said| {
        bench.mapper.handle_message(varp_of(host), false, &said, bench.now);
    });
}

/// A user without privileges sends from its host's address and any port but VARP's, to the group, too.
#[test]
fn by_a_local_user_nothing_moves() {
    nothing_moves(|bench, dice, host, said| {
        let port = 1 + u16::try_from(dice.below(60_000)).unwrap();
        let port = if port == varp::PORT { 5 } else { port };
        let via_group = dice.below(2) == 0;
        let from = SocketAddr::new(varp_of(host).ip(), port);
        bench.mapper.handle_message(from, via_group, &said, bench.now);
        let author = Author { addr: from, ..said.author };
        bench.mapper.handle_message(from, via_group, &Message { author, ..said }, bench.now);
    });
}

/// Whatever says that a relay has carried it.
#[test]
fn by_who_says_to_be_a_relay_nothing_moves() {
    nothing_moves(|bench, dice, host, said| {
        let via_group = dice.below(2) == 0;
        let said = Message { relayed: true, ..said };
        bench.mapper.handle_message(varp_of(host), via_group, &said, bench.now);
    });
}

/// The segment is trusted: a host of it can take any vif by an announcement from its own address.
#[test]
fn by_a_host_of_the_segment_a_vif_moves_by_an_announcement() {
    let (mut bench, _) = host_with_mappings();
    bench.hear_announce(key(7, 2), claim(8, 1000));
    assert_eq!(known(&bench)[1], (key(7, 2), Some(claim(8, 1000))));
}
