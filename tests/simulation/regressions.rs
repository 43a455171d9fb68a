//! Histories that once ended wrong, found by long soaks of the programs: each is played again, over several times and
//! places.

use std::time::Duration;

use vnet::wire::control::Request;
use vnet::wire::{Mac, VifKey, VnetId};

use crate::script::{Action, MILLI, SECOND};
use crate::world::{Event, World};

/// The key of a guest.
fn key(mac: u8) -> VifKey {
    VifKey { vnet: VnetId::new(100).expect("not 0"), mac: Mac([2, 0, 0, 0, 0, mac]) }
}

/// A quiet world of at least three hosts without guests.
fn world(seed: u64) -> World {
    World::new(seed, false)
}

/// A guest that runs on a host and asks for the others.
fn guest(world: &mut World, mac: u8, host: usize) -> usize {
    let instance = world.enter(key(mac), host, None);
    world.act(Action::Activate(instance));
    instance
}

/// Every guest that runs talks to every other one.
fn talk(world: &mut World) {
    let running = |i: &usize| world.users[*i].active;
    let all: Vec<usize> = (0..world.users.len()).filter(running).collect();
    let every = Duration::from_millis(200);
    for &from in &all {
        for &to in all.iter().filter(|to| **to != from) {
            let to = world.users[to].key.mac;
            world.after(MILLI, Event::Frame { from, to, every });
        }
    }
}

/// After this time all is as it should be: one place for each guest, known to all others.
fn ends_well(mut world: World, after: Duration, what: &str) {
    world.run_for(after).unwrap_or_else(|e| panic!("{what}: {e}"));
    crate::checks::ends_at_the_truth(&mut world).unwrap_or_else(|e| panic!("{what}: {e}"));
}

/// A guest is started on two hosts within moments, one of which has kept the sockets of its last backend; the copy that
/// was last is killed. Those beside the dead copy find the living one.
#[test]
fn the_copy_of_a_guest_that_lives_is_found_when_the_other_is_killed() {
    for seed in 0..40 {
        let mut world = world(seed);
        let (here, there) = (0, 1);
        let first = guest(&mut world, 1, here);
        for (mac, host) in [(2, here), (3, here), (4, there), (5, 2)] {
            guest(&mut world, mac, host);
        }
        talk(&mut world);
        world.run_for(Duration::from_secs(3)).expect("nothing happens");
        // The backend dies, and the guest is started elsewhere; then here as well, with the sockets that were kept.
        world.act(Action::Die(first));
        let living = world.enter(key(1), there, None);
        let dying = world.enter(key(1), here, None);
        let (one, other) = (world.random.range(0, 40 * MILLI), world.random.range(0, 40 * MILLI));
        world.after(one, Event::Act(Action::Activate(living)));
        world.after(other, Event::Act(Action::Activate(dying)));
        let end = other + world.random.range(5 * MILLI, 400 * MILLI);
        world.after(end, Event::Act(Action::Die(dying)));
        world.run_for(Duration::from_millis(500)).expect("all are there");
        talk(&mut world);
        ends_well(world, Duration::from_secs(20), &format!("seed {seed}"));
    }
}

/// A guest migrates within a host: the new backend waits beside the old one. The old one is killed before it stops.
#[test]
fn a_guest_that_migrates_within_a_host_is_found_at_its_new_backend() {
    for seed in 0..20 {
        let mut world = world(seed);
        let old = guest(&mut world, 1, 0);
        guest(&mut world, 2, 0);
        guest(&mut world, 3, 1);
        talk(&mut world);
        world.run_for(Duration::from_secs(2)).expect("nothing happens");
        let new = world.enter(key(1), 0, None);
        let runs = world.random.range(0, 100 * MILLI);
        world.after(runs, Event::Act(Action::Activate(new)));
        let dies = world.random.range(0, 200 * MILLI);
        world.after(dies, Event::Act(Action::Die(old)));
        world.run_for(Duration::from_millis(300)).expect("it has moved");
        talk(&mut world);
        ends_well(world, Duration::from_secs(20), &format!("seed {seed}"));
    }
}

/// A backend that does not read loses its connection, and nothing else: it is back soon, at the same address.
#[test]
fn a_backend_that_does_not_read_for_a_moment_keeps_its_vif() {
    for seed in 0..10 {
        let mut world = world(seed);
        let stalled = guest(&mut world, 1, 0);
        guest(&mut world, 2, 1);
        talk(&mut world);
        world.run_for(Duration::from_secs(2)).expect("nothing happens");
        let before = world.users[stalled].coa;
        world.act(Action::Stall(key(1)));
        // The answer is a refusal, at once: it did not say that it learns.
        world.ask(stalled, &Request::Learn { macs: vec![(Mac([2, 0, 0, 0, 0, 77]), None)] });
        world.run_for(Duration::from_secs(5)).expect("it comes back");
        assert_eq!(world.users[stalled].coa, before, "seed {seed}");
        assert!(world.totals.ended > 0, "seed {seed}: the connection was not lost");
        ends_well(world, Duration::from_secs(2), &format!("seed {seed}"));
    }
}

/// Whoever is killed while varpd is away too is forgotten: nobody comes for it, and it runs elsewhere.
#[test]
fn a_guest_that_is_killed_while_varpd_is_away_runs_elsewhere() {
    for seed in 0..20 {
        let mut world = world(seed);
        let old = guest(&mut world, 1, 0);
        guest(&mut world, 2, 0);
        guest(&mut world, 3, 1);
        talk(&mut world);
        world.run_for(Duration::from_secs(2)).expect("nothing happens");
        world.act(Action::Stop(0));
        world.act(Action::Die(old));
        let new = world.enter(key(1), 1, None);
        let runs = world.random.range(0, 2 * SECOND);
        world.after(runs, Event::Act(Action::Activate(new)));
        world.run_for(Duration::from_secs(5)).expect("varpd is back");
        talk(&mut world);
        ends_well(world, Duration::from_secs(45), &format!("seed {seed}"));
    }
}
