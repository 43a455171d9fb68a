//! Time and memory of one mapper, and of one backend's table, as they grow.

use std::fs;
use std::hint::black_box;
use std::process::Command;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use vnet::mapper::{LocalVif, Mapper, MapperCounter};
use vnet::time::Instant;
use vnet::tunnel::neighbors::Neighbors;
use vnet::wire::Mac;

use crate::report::table;
use crate::world::{announce, coa, drain, key, mapper, now, reply, start, unbounded, varp};

/// The asking host, and the one that has everything else.
const HERE: usize = 0;
const THERE: usize = 1;
/// Vnets that the entries are spread over.
const VNETS: usize = 16;
const ROUNDS: usize = 5;
/// Steps of a measurement: long enough for a clock that counts in ticks.
const LEAST_STEPS: usize = 400_000;
/// The same for pages of rows.
const PAGES: usize = 5000;

/// All tables of this part.
pub(crate) fn run(quick: bool) -> String {
    let sizes: &[usize] = if quick { &[1000, 10_000] } else { &[1000, 10_000, 100_000, 1_000_000] };
    let vifs: &[usize] = if quick { &[1000, 10_000] } else { &[1000, 10_000, 100_000] };
    [entries(sizes), local(vifs), peers(), sprayed(if quick { 100_000 } else { 1_000_000 })]
        .join("\n")
}

/// CPU time of this thread.
fn cpu() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).expect("getrusage");
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(u64::try_from(micros).expect("time passes"))
}

/// Nanoseconds of each of `count` steps.
fn time(count: usize, step: impl FnOnce()) -> f64 {
    let begin = cpu();
    step();
    (cpu() - begin).as_nanos() as f64 / count as f64
}

/// The least of several rounds.
fn least(mut one: impl FnMut() -> f64) -> f64 {
    (0..ROUNDS).map(|_| one()).fold(f64::INFINITY, f64::min)
}

/// Resident memory of this process, in bytes.
fn resident() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").expect("statm");
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok());
    pages.expect("pages") * 4096
}

fn number(value: f64) -> String {
    if value < 10.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

/// A mapper with a vif on each vnet, and so many entries.
fn filled(entries: usize) -> Mapper {
    let mut mapper = mapper(HERE, unbounded());
    for vnet in 0..VNETS {
        start(&mut mapper, vnet, key(vnet, 0), coa(HERE, vnet), now(0));
    }
    drain(&mut mapper);
    for n in 0..entries {
        let (vnet, mac) = (n % VNETS, 1 + n / VNETS);
        mapper.resolve(LocalVif(vnet as u64), key(vnet, mac).mac, false, now(0));
        let nonce = drain(&mut mapper).expect("a request");
        mapper.handle_message(
            varp(THERE),
            false,
            &reply(key(vnet, mac), nonce, coa(THERE, n)),
            now(0),
        );
        drain(&mut mapper);
    }
    mapper
}

/// A walk over all entries in no order of theirs, again and again.
fn scattered(entries: usize) -> impl Iterator<Item = (usize, usize)> {
    // A prime larger than any size, so every entry is met once in a round.
    let all = move || (0..entries).map(move |n| n.wrapping_mul(7_368_787) % entries);
    std::iter::repeat_with(all).flatten().map(|n| (n % VNETS, 1 + n / VNETS))
}

fn entries(sizes: &[usize]) -> String {
    let mut rows = Vec::new();
    let mut first: Option<[f64; 5]> = None;
    for &size in sizes {
        // Small ones many times, so that the clock's ticks don't matter.
        let count = (LEAST_STEPS / size).max(1);
        let mut mappers = Vec::new();
        let insert = time(size * count, || mappers.extend((0..count).map(|_| filled(size))));
        let mapper = &mut mappers[0];
        let lookup = least(|| {
            time(LEAST_STEPS, || {
                for (vnet, mac) in scattered(size).take(LEAST_STEPS) {
                    mapper.resolve(LocalVif(vnet as u64), key(vnet, mac).mac, false, now(1));
                    black_box(drain(mapper));
                }
            })
        });
        let mut stamp = crate::world::WALL;
        let update = least(|| {
            time(LEAST_STEPS, || {
                for (vnet, mac) in scattered(size).take(LEAST_STEPS) {
                    stamp += 1;
                    let message = announce(key(vnet, mac), coa(THERE, mac), stamp);
                    mapper.handle_message(varp(THERE), true, &message, now(2));
                    black_box(drain(mapper));
                }
            })
        });
        let page = least(|| {
            time(PAGES, || {
                (0..PAGES).for_each(|_| drop(black_box(mapper.rows_after(None, 512, now(3)))))
            })
        });
        let expire = time(size * count, || mappers.iter_mut().for_each(expire_all));
        let values = [insert, lookup, update, expire, page / 1000.0];
        let base = *first.get_or_insert(values);
        let mut row = vec![size.to_string()];
        let cell = |(value, base): (f64, f64)| format!("{} ({:.1})", number(value), value / base);
        row.extend(values.into_iter().zip(base).map(cell));
        row.push(memory_in_child("entries", size));
        rows.push(row);
    }
    let head = [
        "entries",
        "insert, ns",
        "lookup, ns",
        "update, ns",
        "expiry, ns",
        "page of 512 rows, us",
        "bytes per entry",
    ];
    format!("One mapper, by its number of entries on {VNETS} vnets:\n\n{}", table(&head, &rows))
}

/// Lets the lifetimes of all entries end: those of one moment end in the order of their keys.
fn expire_all(mapper: &mut Mapper) {
    let over = now(40_000_000);
    while mapper.known_on(key(VNETS - 1, 0).vnet) > 0 {
        mapper.handle_timeout(over);
        drain(mapper);
    }
}

/// A mapper with so many vifs of its own.
fn hosting(vifs: usize) -> Mapper {
    let mut mapper = mapper(HERE, unbounded());
    for n in 0..vifs {
        start(&mut mapper, n, key(n / 100, n % 100), coa(HERE, n), now(n as u64));
        drain(&mut mapper);
    }
    mapper
}

/// Lets the announcements of the first second be made.
fn announce_all(mapper: &mut Mapper) {
    let over = now(2_000_000);
    while let Some(due) = mapper.poll_timeout().filter(|&due| due <= over.mono) {
        mapper.handle_timeout(now(due.as_micros()));
        drain(mapper);
    }
}

/// Local vifs: claims with their seven announcements, and the memory of each.
fn local(sizes: &[usize]) -> String {
    let mut rows = Vec::new();
    let mut first: Option<[f64; 2]> = None;
    for &size in sizes {
        let count = (LEAST_STEPS / size).max(1);
        let mut mappers = Vec::new();
        let claim = time(size * count, || mappers.extend((0..count).map(|_| hosting(size))));
        let announce = time(size * count, || mappers.iter_mut().for_each(announce_all));
        let base = *first.get_or_insert([claim, announce]);
        rows.push(vec![
            size.to_string(),
            format!("{} ({:.1})", number(claim), claim / base[0]),
            format!("{} ({:.1})", number(announce), announce / base[1]),
            memory_in_child("vifs", size),
        ]);
    }
    let head = ["vifs", "claim, ns", "its six later announcements, ns", "bytes per vif"];
    format!("One mapper, by its number of own vifs, 100 to a vnet:\n\n{}", table(&head, &rows))
}

/// Bytes per entry or vif, by the resident memory of a process that does nothing else.
pub(crate) fn memory(what: &str, size: usize) -> f64 {
    let before = resident();
    let mapper = if what == "vifs" { hosting(size) } else { filled(size) };
    let bytes = resident().saturating_sub(before) as f64 / size as f64;
    drop(black_box(mapper));
    bytes
}

fn memory_in_child(what: &str, size: usize) -> String {
    let program = std::env::current_exe().expect("this program");
    let args = ["memory", what, &size.to_string()];
    let output = Command::new(program).args(args).output().expect("a child");
    String::from_utf8(output.stdout).expect("a number").trim().to_owned()
}

/// The table of a backend: frames to one peer, and to each of many in turn.
fn peers() -> String {
    const FRAMES: usize = 2_000_000;
    let mac = |n: usize| Mac([2, 0, 0, 0, (n >> 8) as u8, n as u8]);
    let mut rows = Vec::new();
    let mut base = [0.0; 2];
    for peers in [1, 64, 4096, 16_384] {
        let mut table = Neighbors::default();
        for n in 0..peers {
            let lifetime = Duration::from_secs(30);
            let coa = coa(THERE, n);
            table.handle_mapping(mac(n), coa, coa.addr.ip(), lifetime, Instant::ZERO);
        }
        let at = Instant::from_millis(1);
        let mut one = |run: usize| {
            least(|| {
                time(FRAMES, || {
                    for n in 0..FRAMES {
                        black_box(table.lookup(black_box(mac(n / run * 31 % peers)), at));
                    }
                })
            })
        };
        // Frames come in runs to one destination, or, at worst, each to another.
        let values = [one(32), one(1)];
        if peers == 1 {
            base = values;
        }
        let mut row = vec![peers.to_string()];
        let cell =
            |(value, base): (f64, f64)| format!("{value:.1} (+{:.1})", (value - base).max(0.0));
        row.extend(values.into_iter().zip(base).map(cell));
        rows.push(row);
    }
    let head = ["peers", "runs of 32 frames, ns per frame", "each to another peer, ns per frame"];
    format!(
        "The table of a backend, by its number of peers (in brackets: more than with one):\n\n{}",
        table(&head, &rows)
    )
}

/// A guest sends to random MACs, a hundred a millisecond, beside a quiet vnet with 1000 entries.
fn sprayed(macs: usize) -> String {
    let mut mapper = mapper(HERE, vnet::mapper::Config::default());
    start(&mut mapper, 0, key(0, 0), coa(HERE, 0), now(0));
    start(&mut mapper, 1, key(1, 0), coa(HERE, 1), now(0));
    drain(&mut mapper);
    let mut clock = 0;
    for n in 1..=1000 {
        clock += 10_100;
        mapper.resolve(LocalVif(1), key(1, n).mac, false, now(clock));
        let nonce = drain(&mut mapper).expect("a request");
        mapper.handle_message(
            varp(THERE),
            false,
            &reply(key(1, n), nonce, coa(THERE, n)),
            now(clock),
        );
        drain(&mut mapper);
    }
    let get = |mapper: &Mapper, counter| mapper.counters().get(counter);
    let before = get(&mapper, MapperCounter::tx_requests);
    let memory = resident();
    let cost = time(macs, || {
        for n in 0..macs {
            mapper.resolve(LocalVif(0), key(0, 10_000 + n).mac, false, now(clock));
            if n % 100 == 0 {
                clock += 1000;
                mapper.handle_timeout(now(clock));
            }
            drain(&mut mapper);
        }
    });
    let requests = get(&mapper, MapperCounter::tx_requests) - before;
    format!(
        "A guest that sprays {macs} random MACs within {} s costs {requests} requests, {} ns each MAC and {} KiB; of the 1000 entries of another \
         vnet {} are left, {} were evicted.\n",
        macs / 100_000,
        number(cost),
        resident().saturating_sub(memory) / 1024,
        mapper.known_on(key(1, 0).vnet),
        get(&mapper, MapperCounter::evicted),
    )
}
