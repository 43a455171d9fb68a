//! The lanes between vifs of this host: keeps account of them, and offers them to backends.
//!
//! Before varpd sends a vif a mapping to another vif of this host, it hands the backends of both
//! lanes from the first to the second, one per queue pair of the first. varpd keeps only the number
//! of a lane: the lane works on while varpd is away, and ends with either backend. A vif loses its
//! lanes when its key is claimed elsewhere or its backend ends.
//!
//! varpd does not make ended lanes again at once, so that a backend that closes its lanes all the
//! time makes no work for others.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::Duration;

use crate::mapper::LocalVif;
use crate::metrics::VarpdCounter;
use crate::time::{Instant, Now};
use crate::wire::control::Event;
use crate::wire::{CareOf, Mac, VifKey};

use super::Host;
use super::output::{LaneEnd, Output};
use super::registry::{Owner, Vif};

/// Least time between two makings of lanes from one vif to another.
const REST: Duration = Duration::from_secs(5);
/// Lanes that no vif has asked for again during this time are closed where others need the room:
/// two lifetimes of a mapping.
const IDLE: Duration = Duration::from_secs(60);

/// The vif that sends, and the vif that receives.
type Way = (LocalVif, LocalVif);

/// The lanes of a way.
#[derive(Debug)]
struct OneWay {
    made: Instant,
    /// Time at which the first vif last asked for the second.
    used: Instant,
    /// Numbers of the lanes; empty after they ended.
    lanes: Vec<u32>,
}

/// All lanes.
#[derive(Debug)]
pub(super) struct Lanes {
    ways: BTreeMap<Way, OneWay>,
    next: u32,
}

/// Bounds on the number of lanes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) total: usize,
    pub(super) per_vif: usize,
}

/// Whether to make lanes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// No: there are some, or there were some a moment ago.
    None,
    /// No: a limit is reached.
    Refused,
    /// Yes: lanes with these numbers. The lanes in `ended` make room for them.
    Make { numbers: Vec<u32>, ended: Vec<(Way, Vec<u32>)> },
}

impl Lanes {
    /// No lanes. Their numbers follow `first`, which should differ from that of an earlier varpd.
    pub(super) fn new(first: u32) -> Self {
        Self { ways: BTreeMap::new(), next: first }
    }

    /// Number of lanes.
    pub(super) fn len(&self) -> usize {
        self.ways.values().map(|way| way.lanes.len()).sum()
    }

    fn len_of(&self, vif: LocalVif) -> usize {
        let of_vif = self.ways.iter().filter(|((from, to), _)| *from == vif || *to == vif);
        of_vif.map(|(_, way)| way.lanes.len()).sum()
    }

    /// Whether to make `count` lanes of a way, since its first vif asks for the second.
    pub(super) fn need(&mut self, way: Way, count: usize, limits: Limits, now: Instant) -> Need {
        if let Some(known) = self.ways.get_mut(&way) {
            known.used = now;
            if !known.lanes.is_empty() || now.saturating_since(known.made) < REST {
                return Need::None;
            }
        }
        let (from, to) = way;
        let mut ended = Vec::new();
        while let Some(crowded) = self.crowded(&[from, to], count, limits) {
            match self.idlest(crowded, now) {
                Some(idle) => ended.push((idle, self.end(idle))),
                None => return Need::Refused,
            }
        }
        self.ways.retain(|_, way| !way.lanes.is_empty() || now.saturating_since(way.made) < REST);
        let numbers: Vec<u32> = (0..count).map(|_| self.number()).collect();
        self.ways.insert(way, OneWay { made: now, used: now, lanes: numbers.clone() });
        Need::Make { numbers, ended }
    }

    fn number(&mut self) -> u32 {
        self.next = self.next.wrapping_add(1);
        self.next
    }

    /// The bound that `count` more lanes would exceed, if any: that of a vif, or (`None`) that of
    /// all.
    fn crowded(&self, vifs: &[LocalVif], count: usize, limits: Limits) -> Option<Option<LocalVif>> {
        let is_full = |vif: &&LocalVif| self.len_of(**vif) + count > limits.per_vif;
        match vifs.iter().find(is_full) {
            Some(vif) => Some(Some(*vif)),
            None => (self.len() + count > limits.total).then_some(None),
        }
    }

    /// The way that has been idle for longest, of a vif or (`None`) of all; none if all are in use.
    fn idlest(&self, of: Option<LocalVif>, now: Instant) -> Option<Way> {
        let counts = |(from, to): &Way| of.is_none_or(|vif| vif == *from || vif == *to);
        let idle = self.ways.iter().filter(|(way, known)| {
            counts(way) && !known.lanes.is_empty() && now.saturating_since(known.used) >= IDLE
        });
        idle.min_by_key(|(_, known)| known.used).map(|(way, _)| *way)
    }

    /// Ends all lanes of a way. Returns their numbers.
    fn end(&mut self, way: Way) -> Vec<u32> {
        self.ways.get_mut(&way).map(|known| std::mem::take(&mut known.lanes)).unwrap_or_default()
    }

    /// Removes a lane of a vif that has ended. Returns its way.
    pub(super) fn ended(&mut self, vif: LocalVif, lane: u32) -> Option<Way> {
        let has = |(way, known): &(&Way, &mut OneWay)| {
            (way.0 == vif || way.1 == vif) && known.lanes.contains(&lane)
        };
        let (way, known) = self.ways.iter_mut().find(has)?;
        known.lanes.retain(|one| *one != lane);
        Some(*way)
    }

    /// Removes the lanes of a vif. Returns them.
    pub(super) fn remove(&mut self, vif: LocalVif) -> Vec<(Way, Vec<u32>)> {
        let mut gone = Vec::new();
        self.ways.retain(|way, known| {
            let stays = way.0 != vif && way.1 != vif;
            if !stays {
                gone.push((*way, std::mem::take(&mut known.lanes)));
            }
            stays
        });
        gone
    }
}

/// The end of a lane at a vif, if the vif has a backend that takes lanes.
fn end_of(id: LocalVif, vif: &Vif) -> Option<LaneEnd> {
    let Owner::Live(client) = vif.owner else { return None };
    let (mac, addr) = (vif.key.mac, vif.coa.addr);
    vif.takes_lanes.then_some(LaneEnd { vif: id, client, pair: 0, mac, addr })
}

impl Host {
    /// Makes lanes from a vif to the owner of a MAC if that is another vif of this host. Call it
    /// before the vif gets its mapping.
    pub(super) fn offer_lanes(&mut self, id: LocalVif, mac: Mac, coa: CareOf, now: Now) {
        let Some(vif) = self.registry.get(id) else { return };
        let owner = self.mapper.owner(&VifKey { vnet: vif.key.vnet, mac });
        let Some(owner) = owner.filter(|owner| *owner != id) else { return };
        let Some(other) = self.registry.get(owner).filter(|v| v.coa == coa) else { return };
        let (Some(from), Some(to)) = (end_of(id, vif), end_of(owner, other)) else { return };
        let (pairs, to_pairs) = (vif.queue_pairs.max(1), other.queue_pairs.max(1));
        let limits = &self.config.limits;
        let limits = Limits { total: limits.lanes, per_vif: limits.lanes_per_vif };
        match self.lanes.need((id, owner), pairs.into(), limits, now.mono) {
            Need::None => {}
            Need::Refused => self.counters.inc(VarpdCounter::lanes_refused),
            Need::Make { numbers, ended } => {
                for (way, lanes) in ended {
                    self.tell_closed(way, &lanes);
                }
                for (pair, lane) in (0..).zip(numbers) {
                    let (from, to) =
                        (LaneEnd { pair, ..from }, LaneEnd { pair: pair % to_pairs, ..to });
                    self.outputs.push_back(Output::Lane { lane, from, to });
                }
            }
        }
    }

    /// A lane could not be made.
    pub(super) fn handle_lane_failed(&mut self, vif: LocalVif, lane: u32, error: &str, now: Now) {
        say!(self, self.complaints.lanes.level(now.mono), "can't make a lane: {error}");
        self.counters.inc(VarpdCounter::lanes_refused);
        self.lanes.ended(vif, lane);
    }

    /// A backend reports that a lane of its vif has ended.
    pub(super) fn lane_closed(&mut self, vif: LocalVif, lane: u32) {
        if let Some(way) = self.lanes.ended(vif, lane) {
            self.tell_closed(way, &[lane]);
        }
    }

    /// Closes the lanes of a vif that has moved, or whose backend is gone.
    pub(super) fn close_lanes_of(&mut self, vif: LocalVif) {
        for (way, lanes) in self.lanes.remove(vif) {
            self.tell_closed(way, &lanes);
        }
    }

    /// Tells both backends, if there, that lanes have ended. A backend that knows already ignores
    /// it.
    fn tell_closed(&mut self, (from, to): Way, lanes: &[u32]) {
        for vif in [from, to] {
            let takes_lanes = self.registry.get(vif).is_some_and(|vif| vif.takes_lanes);
            if !takes_lanes {
                continue;
            }
            for &lane in lanes {
                self.tell_vif(vif, Event::CloseLane { lane });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: LocalVif = LocalVif(1);
    const B: LocalVif = LocalVif(2);
    const C: LocalVif = LocalVif(3);
    const LIMITS: Limits = Limits { total: 4, per_vif: 3 };

    fn at(secs: u64) -> Instant {
        Instant::from_millis(secs * 1000)
    }

    fn made(need: Need) -> Vec<u32> {
        match need {
            Need::Make { numbers, ended } if ended.is_empty() => numbers,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn lanes_are_made_once_and_not_at_once_again() {
        let mut lanes = Lanes::new(u32::MAX - 1);
        assert_eq!(made(lanes.need((A, B), 2, LIMITS, at(0))), [u32::MAX, 0]);
        assert_eq!(lanes.need((A, B), 2, LIMITS, at(9)), Need::None);
        assert_eq!(lanes.ended(A, u32::MAX), Some((A, B)));
        assert_eq!(lanes.ended(C, 0), None, "not its own");
        assert_eq!(lanes.need((A, B), 2, LIMITS, at(10)), Need::None, "there is one");
        assert_eq!(lanes.ended(B, 0), Some((A, B)));
        assert_eq!(lanes.ended(B, 0), None, "only once");
        assert_eq!(lanes.len(), 0);
        assert_eq!(made(lanes.need((A, B), 1, LIMITS, at(10))), [1]);
        lanes.ended(A, 1);
        assert_eq!(lanes.need((A, B), 1, LIMITS, at(14)), Need::None);
        assert_eq!(made(lanes.need((A, B), 1, LIMITS, at(15))), [2]);
    }

    #[test]
    fn a_vif_that_goes_takes_its_lanes_along() {
        let mut lanes = Lanes::new(0);
        made(lanes.need((A, B), 1, LIMITS, at(0)));
        made(lanes.need((B, A), 1, LIMITS, at(0)));
        made(lanes.need((B, C), 1, LIMITS, at(0)));
        assert_eq!(lanes.remove(A), [((A, B), vec![1]), ((B, A), vec![2])]);
        assert_eq!(lanes.len(), 1);
        // The vif registers again under another number, so its old number is forgotten.
        assert_eq!(made(lanes.need((A, B), 1, LIMITS, at(0))), [4]);
    }

    #[test]
    fn only_what_is_idle_makes_room() {
        let mut lanes = Lanes::new(0);
        made(lanes.need((A, B), 2, LIMITS, at(0)));
        made(lanes.need((B, A), 1, LIMITS, at(10)));
        // The limit of a vif.
        assert_eq!(lanes.need((A, C), 1, LIMITS, at(59)), Need::Refused);
        let Need::Make { numbers, ended } = lanes.need((A, C), 1, LIMITS, at(60)) else { panic!() };
        assert_eq!((numbers, ended), (vec![4], vec![((A, B), vec![1, 2])]));
        // The limit of all vifs.
        let tight = Limits { total: 2, per_vif: 9 };
        assert_eq!(lanes.need((C, B), 1, tight, at(69)), Need::Refused);
        assert_eq!(lanes.need((B, A), 1, tight, at(69)), Need::None, "in use");
        assert_eq!(lanes.need((C, B), 1, tight, at(119)), Need::Refused);
        let Need::Make { ended, .. } = lanes.need((C, B), 1, tight, at(120)) else { panic!() };
        assert_eq!(ended, [((A, C), vec![4])]);
        // No lanes at all.
        let none = Limits { total: 0, per_vif: 9 };
        assert_eq!(Lanes::new(0).need((A, B), 1, none, at(0)), Need::Refused);
    }

    #[test]
    fn what_has_ended_is_forgotten() {
        let mut lanes = Lanes::new(0);
        let wide = Limits { total: 9, per_vif: 9 };
        for n in 0..100 {
            let way = (LocalVif(n), LocalVif(n + 1));
            let [lane] = made(lanes.need(way, 1, wide, at(n)))[..] else { panic!() };
            lanes.ended(LocalVif(n), lane);
        }
        assert!(lanes.ways.len() < 10);
    }
}
