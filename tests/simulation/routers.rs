//! MACs behind bridges that move all the time, as virtual routers' do, and thefts of guests' own MACs; on a good network,
//! so that everything must be right soon.

use vnet::wire::VifKey;

use crate::script::{Action, MILLI, SECOND};
use crate::world::{Event, World};

/// How long after a MAC was sent from a new place it is there: within two seconds, and the time that a message takes.
pub(crate) const SETTLED: u64 = 2 * SECOND + 10 * MILLI;
/// When it is looked at after a theft.
pub(crate) const LOOKS: [u64; 4] = [10 * MILLI, 150 * MILLI, 700 * MILLI, 2 * SECOND];

/// A minute of it.
pub(crate) fn play(world: &mut World) {
    let keys: Vec<VifKey> = world.intended.keys().copied().collect();
    let learnt = |key: &VifKey| world.users[world.intended[key]].behind.is_some();
    for key in keys.into_iter().filter(learnt).collect::<Vec<_>>() {
        for _ in 0..world.random.range(1, 20) {
            let mut at = world.random.range(0, 60 * SECOND);
            for _ in 0..world.random.range(1, 6) {
                world.after(at, Event::Act(Action::Wander(key)));
                at += world.random.range(0, 600 * MILLI);
            }
        }
    }
    for _ in 0..world.random.range(0, 60) {
        let at = world.random.range(0, 60 * SECOND);
        let key = world.any_key();
        let host = world.random.index(world.hosts.len());
        world.after(at, Event::Act(Action::Steal(key, host)));
    }
}

/// A MAC that has not moved again is where it was sent from, for everybody.
pub(crate) fn is_settled(world: &mut World, key: VifKey, moves: u32) {
    if world.moves[&key] != moves {
        return;
    }
    let instance = world.intended[&key];
    let (host, coa) = (world.users[instance].host, world.users[instance].coa);
    let mapper = world.hosts[host].varpd.as_ref().expect("varpd runs").machine.mapper();
    let claim = mapper.owner(&key).and_then(|vif| mapper.claim(vif));
    if claim.is_none_or(|claim| claim.coa != coa) {
        world.violate(format!("{key} is not claimed where it was last sent from"));
    }
    is_nowhere_else(world, key, |known| known == coa);
    world.totals.settled += 1;
}

/// No frame to a guest's own MAC goes behind a bridge while the guest runs.
pub(crate) fn is_safe(world: &mut World, key: VifKey) {
    let instance = world.intended[&key];
    let (coa, accepts) = (world.users[instance].coa, world.users[instance].accepts());
    if !accepts {
        world.violate(format!("{key} has lost its own MAC"));
    }
    is_nowhere_else(world, key, |known| known == coa);
}

fn is_nowhere_else(world: &mut World, key: VifKey, is_right: impl Fn(vnet::wire::CareOf) -> bool) {
    let now = world.now;
    let wrong: Vec<usize> = (0..world.users.len())
        .filter(|&i| world.users[i].active && world.users[i].key.vnet == key.vnet)
        .filter(|&i| world.users[i].mapping(key.mac, now).is_some_and(|known| !is_right(known)))
        .collect();
    if !wrong.is_empty() {
        world.violate(format!("{wrong:?} have {key} at another place"));
    }
}
