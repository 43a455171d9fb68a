//! A simulated internet of many hosts around the shipped [`vnet::host::Host`], compared with a
//! model that knows everything.
//!
//! ```text
//!   host 0            host 1                      host n
//!   users (backends)  users                       users        what they send goes where their
//!     | connections     |                           |          mapping says, and is checked there
//!   Host              Host                        Host         the shipped code
//!     |                 |                           |
//!  ===+=================+===========================+======    loss, copies, delay, partitions
//! ```
//!
//! Every seed is a run of its own: some minutes of loss, partitions, migrations, restarts of varpd, backends that die,
//! lie, stall and come back, clocks that are up to an hour apart and jump; then peace; then everything must be as the
//! model says.
//!
//! `tests/simulate` is the long run, of 10^5 seeds.
//!
//! `VNET_SIM_SEEDS=n` runs so many seeds (500 unless set), `VNET_SIM_FIRST=s` those from `s` on, `VNET_SIM_SEED=s` one; a
//! failure prints the last `VNET_SIM_TRACE=n` lines of its trace (400 unless set).

mod checks;
mod host;
mod network;
#[path = "../support/random.rs"]
mod random;
mod recording;
mod regressions;
mod routers;
mod script;
mod shell;
mod user;
mod world;

use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};

use script::Scenario;
use world::World;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// Runs one seed to its end; what went wrong, if anything did.
fn run(seed: u64, traced: bool) -> Result<World, Box<(String, World)>> {
    let mut world = World::new(seed, traced);
    let outcome = script::play(&mut world);
    match outcome {
        Ok(()) => Ok(world),
        Err(violation) => Err(Box::new((violation, world))),
    }
}

/// Runs the seed again with a trace and fails with it.
fn fail(seed: u64, violation: &str) -> ! {
    let trace = match run(seed, true) {
        Ok(_) => vec!["the second run did not fail: the simulation is not deterministic".into()],
        Err(failed) => failed.1.trace,
    };
    let lines = number("VNET_SIM_TRACE").and_then(|n| usize::try_from(n).ok()).unwrap_or(400);
    let tail = trace.len().saturating_sub(lines);
    for line in &trace[tail..] {
        eprintln!("{line}");
    }
    panic!("seed {seed}: {violation} (VNET_SIM_SEED={seed} runs it alone)");
}

#[test]
fn every_seed_ends_at_the_truth() {
    if let Some(seed) = number("VNET_SIM_SEED") {
        let world = run(seed, true).unwrap_or_else(|failed| fail(seed, &failed.0));
        eprintln!("seed {seed}: {:?}, {}", world.scenario, world.summary());
        return;
    }
    let seeds = number("VNET_SIM_SEEDS").unwrap_or(500);
    let first = number("VNET_SIM_FIRST").unwrap_or(0);
    let next = AtomicU64::new(first);
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let totals: Vec<world::Totals> = std::thread::scope(|scope| {
        let work = || {
            let mut totals = world::Totals::default();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= first + seeds {
                    return totals;
                }
                if seed > first && seed.is_multiple_of(5000) {
                    eprintln!("{} of {seeds} seeds", seed - first);
                }
                let world = run(seed, false).unwrap_or_else(|failed| fail(seed, &failed.0));
                totals.add(&world.totals);
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(|worker| worker.join().expect("a seed failed")).collect()
    });
    let mut sum = world::Totals::default();
    totals.iter().for_each(|totals| sum.add(totals));
    eprintln!("{seeds} seeds: {sum:?}");
    if seeds >= 100 {
        sum.assert_that_things_happened();
    }
}

#[test]
fn a_seed_is_a_run() {
    for seed in [0, 1, 2, 3, 17] {
        let digest = |traced| run(seed, traced).unwrap_or_else(|f| fail(seed, &f.0)).digest;
        assert_eq!(digest(false), digest(true), "seed {seed}");
    }
    let digests: Vec<u64> = [4, 5].map(|seed| run(seed, false).map_or(0, |w| w.digest)).into();
    assert_ne!(digests[0], digests[1]);
}

#[test]
fn every_scenario_is_among_the_first_seeds() {
    for scenario in Scenario::ALL {
        assert!((0..10).any(|seed| World::new(seed, false).scenario == scenario), "{scenario:?}");
    }
}
