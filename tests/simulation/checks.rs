//! What must hold, compared with the model.

use std::time::Duration;

use vnet::mapper::{MapperCounter, State};
use vnet::wire::control::Request;
use vnet::wire::varp::Claim;
use vnet::wire::{Mac, VifKey};

use crate::host::limits;
use crate::script::{Scenario, contested};
use crate::user::Neighbour;
use crate::world::World;

/// After peace has lasted long enough, everybody knows the truth or nothing, and learns it by
/// asking.
pub(crate) fn ends_at_the_truth(world: &mut World) -> Result<(), String> {
    for host in 0..world.hosts.len() {
        is_bounded(world, host);
        count(world, host);
    }
    if let Some(violation) = world.violation.take() {
        return Err(violation);
    }
    let keys: Vec<VifKey> = world.intended.keys().copied().collect();
    for &key in &keys {
        let truth = owner(world, key)?;
        caches_agree(world, key, truth)?;
    }
    answers_agree(world, &keys)
}

/// Who owns a key, by the model; and that its host, and no other, agrees.
fn owner(world: &World, key: VifKey) -> Result<Claim, String> {
    let owners: Vec<(usize, Claim)> = world
        .hosts
        .iter()
        .filter_map(|host| {
            let mapper = host.varpd.as_ref()?.machine.mapper();
            let claim = mapper.claim(mapper.owner(&key)?)?;
            Some((world.holders[&claim.coa.addr], claim))
        })
        .collect();
    let [(instance, claim)] = owners.as_slice() else {
        let intended = world.intended[&key];
        return Err(format!("{key} should be owned by {intended} and is owned by {owners:?}"));
    };
    let accepting: Vec<usize> = (0..world.users.len())
        .filter(|&i| world.users[i].key == key && world.users[i].accepts())
        .collect();
    if accepting != [*instance] {
        return Err(format!("{key} is owned by {instance}, and {accepting:?} take its frames"));
    }
    let two_guests = world.scenario == Scenario::Duplicates && key == contested();
    let highest = world.highest[&key];
    if two_guests && *claim != highest {
        return Err(format!("{key} is owned by {claim:?} and not by {highest:?}"));
    }
    if !two_guests && *instance != world.intended[&key] {
        let intended = world.intended[&key];
        return Err(format!("{key} should be owned by {intended} and is owned by {instance}"));
    }
    Ok(*claim)
}

/// No mapper and no user believes anything else.
fn caches_agree(world: &World, key: VifKey, truth: Claim) -> Result<(), String> {
    for host in &world.hosts {
        let Some(varpd) = &host.varpd else { continue };
        let mapper = varpd.machine.mapper();
        for row in mapper.rows(host.now(world.now)) {
            let known = matches!(row.state, State::Resolved | State::Confirming);
            if row.key == key && known && row.claim != Some(truth) {
                return Err(format!("host {} has {row:?}, truth {truth:?}", host.number));
            }
        }
    }
    for (number, user) in world.users.iter().enumerate() {
        let mapping = user.mapping(key.mac, world.now);
        let concerned = user.active && user.key.vnet == key.vnet;
        if concerned && mapping.is_some_and(|coa| coa != truth.coa) {
            return Err(format!("{number} has {key} at {mapping:?}, truth {truth:?}"));
        }
    }
    Ok(())
}

/// Everybody asks for everybody, and for somebody that there is not.
fn answers_agree(world: &mut World, keys: &[VifKey]) -> Result<(), String> {
    let nobody = Mac([2, 7, 7, 7, 7, 7]);
    let asks = |&i: &usize| world.users[i].active && world.users[i].behind.is_none();
    let asking: Vec<usize> = (0..world.users.len()).filter(asks).collect();
    for &from in &asking {
        let vnet = world.users[from].key.vnet;
        let macs = keys.iter().filter(|key| key.vnet == vnet).map(|key| key.mac);
        for mac in macs.chain([nobody]) {
            world.ask(from, &Request::Resolve { mac, refresh: false });
        }
    }
    // Questions to the network are answered within a round trip.
    world.run_for(Duration::from_millis(100))?;
    for &from in &asking {
        for key in keys.iter().filter(|key| key.vnet == world.users[from].key.vnet) {
            let truth = owner(world, *key)?;
            let answer = world.users[from].answer(key.mac);
            if answer != Some(truth.coa) {
                return Err(format!("{from} was told {answer:?} for {key}, truth {truth:?}"));
            }
            world.totals.answers_checked += 1;
        }
    }
    world.run_for(Duration::from_millis(15_000))?;
    for &from in &asking {
        let known = world.users[from].neighbours.get(&nobody);
        if !matches!(known, Some(Neighbour::Held { .. })) {
            return Err(format!("{from} believes {known:?} of a MAC that nobody has"));
        }
    }
    Ok(())
}

/// Everybody who had a mapping of a guest that has just migrated has the new one, or none.
pub(crate) fn is_found_again(world: &mut World, key: VifKey) {
    let coa = world.users[world.intended[&key]].coa;
    let stale: Vec<usize> = (0..world.users.len())
        .filter(|&i| world.users[i].active && world.users[i].key.vnet == key.vnet)
        .filter(|&i| world.users[i].mapping(key.mac, world.now).is_some_and(|known| known != coa))
        .collect();
    if !stale.is_empty() {
        world.violate(format!("{key} has migrated to {coa}, which {stale:?} have not heard"));
    }
}

/// How the MACs begin that a guest sprays.
pub(crate) const SPRAYED: [u8; 2] = [2, 9];

/// No table is larger than it may be.
pub(crate) fn is_bounded(world: &mut World, host: usize) {
    let Some(varpd) = &world.hosts[host].varpd else { return };
    let mapper = varpd.machine.mapper();
    let limits = limits().limits;
    let rows = mapper.rows(world.hosts[host].now(world.now));
    let count = |wanted: &[State]| rows.iter().filter(|row| wanted.contains(&row.state)).count();
    let cached = count(&[State::Resolved, State::Confirming, State::Unresolved]);
    // All of them are one vif's questions.
    let sprayed = rows.iter().filter(|row| row.key.mac.0.starts_with(&SPRAYED));
    let asked = sprayed.filter(|row| row.state == State::Resolving).count();
    let departed = count(&[State::Departed]);
    if cached > limits.entries || asked > limits.pending_per_vif || departed > limits.notes {
        world.violate(format!("host {host} has {cached} cached, {asked} asked, {departed} gone"));
    }
}

fn count(world: &mut World, host: usize) {
    let Some(varpd) = &world.hosts[host].varpd else { return };
    let mapper = varpd.machine.mapper();
    let get = |counter| mapper.counters().get(counter);
    let totals = &mut world.totals;
    totals.claims += get(MapperCounter::claims);
    totals.reclaims += get(MapperCounter::reclaims);
    totals.damped += get(MapperCounter::damped_claims);
    totals.deferred += get(MapperCounter::deferred_claims);
    totals.corrections += get(MapperCounter::tx_corrections);
}
