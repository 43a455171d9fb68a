//! The lanes between vifs of this host ([`crate::lane`]): which there are, and who is offered one.
//!
//! When a vif is told that another of its vnet is here, on this host, the backends of both are handed
//! lanes from the first to the second, one per queue pair of the first, before it is told. varpd
//! keeps nothing of a lane but its number: it works on while varpd is away, and ends with either
//! backend. A vif whose key is claimed elsewhere loses its lanes; so does one whose backend ends.
//!
//! Lanes that have ended are not made again at once, so that a backend that closes them all the time
//! makes no work for others.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use crate::lane;
use crate::mapper::LocalVif;
use crate::metrics::VarpdCounter;
use crate::sys::doorbell::Doorbell;
use crate::time::{Instant, Now};
use crate::wire::control::Event;
use crate::wire::{CareOf, Mac, VifKey};

use super::clients::ClientId;
use super::daemon::Daemon;
use super::registry::{Owner, Vif};

/// Lanes between two vifs are made no more often than this.
const REST: Duration = Duration::from_secs(5);
/// Lanes that nobody has asked for again for so long are closed where others need the room: two
/// lifetimes of a mapping.
const IDLE: Duration = Duration::from_secs(60);

/// From one vif to another.
type Way = (LocalVif, LocalVif);

/// The lanes of a way.
#[derive(Debug)]
struct OneWay {
    made: Instant,
    /// When the first vif last asked for the second.
    used: Instant,
    /// Their numbers; empty after they ended.
    lanes: Vec<u32>,
}

/// All lanes.
#[derive(Debug)]
pub(super) struct Lanes {
    ways: BTreeMap<Way, OneWay>,
    next: u32,
}

/// Bounds of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) total: usize,
    pub(super) per_vif: usize,
}

/// Whether lanes are to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// There are some, or have been a moment ago.
    None,
    /// There are too many.
    Refused,
    /// These, after those of the ways that are named have ended.
    Make { numbers: Vec<u32>, ended: Vec<(Way, Vec<u32>)> },
}

impl Lanes {
    /// None; numbers start at `first`, which should not be that of another varpd's.
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

    /// The first vif of a way asks for the second: whether to make `count` lanes.
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

    /// Which bound `count` more lanes would break: that of a vif, or of all.
    fn crowded(&self, vifs: &[LocalVif], count: usize, limits: Limits) -> Option<Option<LocalVif>> {
        let is_full = |vif: &&LocalVif| self.len_of(**vif) + count > limits.per_vif;
        match vifs.iter().find(is_full) {
            Some(vif) => Some(Some(*vif)),
            None => (self.len() + count > limits.total).then_some(None),
        }
    }

    /// The way that has been idle for longest, of a vif or of all.
    fn idlest(&self, of: Option<LocalVif>, now: Instant) -> Option<Way> {
        let counts = |(from, to): &Way| of.is_none_or(|vif| vif == *from || vif == *to);
        let idle = self.ways.iter().filter(|(way, known)| {
            counts(way) && !known.lanes.is_empty() && now.saturating_since(known.used) >= IDLE
        });
        idle.min_by_key(|(_, known)| known.used).map(|(way, _)| *way)
    }

    /// All lanes of a way have ended; returns their numbers.
    fn end(&mut self, way: Way) -> Vec<u32> {
        self.ways.get_mut(&way).map(|known| std::mem::take(&mut known.lanes)).unwrap_or_default()
    }

    /// One of a vif's lanes has ended. Returns its way.
    pub(super) fn ended(&mut self, vif: LocalVif, lane: u32) -> Option<Way> {
        let has = |(way, known): &(&Way, &mut OneWay)| {
            (way.0 == vif || way.1 == vif) && known.lanes.contains(&lane)
        };
        let (way, known) = self.ways.iter_mut().find(has)?;
        known.lanes.retain(|one| *one != lane);
        Some(*way)
    }

    /// A vif is gone: returns the lanes it had.
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

/// One side of a lane.
struct Side {
    client: ClientId,
    pairs: u8,
    mac: Mac,
    addr: SocketAddr,
}

impl Side {
    fn of<S>(vif: &Vif<S>) -> Option<Self> {
        let Owner::Live(client) = vif.owner else { return None };
        let (mac, addr) = (vif.key.mac, vif.coa.addr);
        vif.takes_lanes.then_some(Self { client, pairs: vif.queue_pairs.max(1), mac, addr })
    }
}

impl Daemon {
    /// A vif is about to be told that a MAC is at this address: if that is a vif of this host, it is
    /// given lanes to there.
    pub(super) fn offer_lanes(&mut self, id: LocalVif, mac: Mac, coa: CareOf, now: Now) {
        let Some(vif) = self.registry.get(id) else { return };
        let owner = self.mapper.owner(&VifKey { vnet: vif.key.vnet, mac });
        let Some(owner) = owner.filter(|owner| *owner != id) else { return };
        let Some(other) = self.registry.get(owner).filter(|v| v.coa == coa) else { return };
        let (Some(from), Some(to)) = (Side::of(vif), Side::of(other)) else { return };
        let limits = &self.config.limits;
        let limits = Limits { total: limits.lanes, per_vif: limits.lanes_per_vif };
        let way = (id, owner);
        match self.lanes.need(way, from.pairs.into(), limits, now.mono) {
            Need::None => {}
            Need::Refused => self.counters.inc(VarpdCounter::lanes_refused),
            Need::Make { numbers, ended } => {
                for (way, lanes) in ended {
                    self.tell_closed(way, &lanes, now);
                }
                for (pair, lane) in (0..).zip(numbers) {
                    if let Err(e) = self.make_lane(lane, pair, (&from, &to), now) {
                        let level = self.complaints.lanes.level(now.mono);
                        log::log!(level, "can't make a lane: {e}");
                        self.counters.inc(VarpdCounter::lanes_refused);
                        self.lanes.ended(id, lane);
                    }
                }
            }
        }
    }

    /// Makes a lane and hands it to both sides, first to the one that reads.
    fn make_lane(
        &mut self,
        lane: u32,
        pair: u8,
        (from, to): (&Side, &Side),
        now: Now,
    ) -> io::Result<()> {
        let memory = lane::create()?;
        let (write_end, read_end) = Doorbell::pair()?;
        let (is_read, at) = (true, pair % to.pairs);
        let (mac, addr) = (from.mac, from.addr);
        let event = Event::Lane { lane, pair: at, is_read, mac, addr };
        let sent = self.clients.send(to.client, &event, &[memory.as_fd(), read_end.as_fd()]);
        if !self.sent(to.client, sent, now) {
            return Ok(());
        }
        let (mac, addr) = (to.mac, to.addr);
        let event = Event::Lane { lane, pair, is_read: false, mac, addr };
        let sent = self.clients.send(from.client, &event, &[memory.as_fd(), write_end.as_fd()]);
        if self.sent(from.client, sent, now) {
            self.counters.inc(VarpdCounter::lanes_made);
        }
        Ok(())
    }

    /// A backend says that a lane of its vif has ended.
    pub(super) fn lane_closed(&mut self, vif: LocalVif, lane: u32, now: Now) {
        if let Some(way) = self.lanes.ended(vif, lane) {
            self.tell_closed(way, &[lane], now);
        }
    }

    /// A vif is not here any more, or its backend is not.
    pub(super) fn close_lanes_of(&mut self, vif: LocalVif, now: Now) {
        for (way, lanes) in self.lanes.remove(vif) {
            self.tell_closed(way, &lanes, now);
        }
    }

    /// Tells both sides, as far as they are there. Who knows already takes no harm.
    fn tell_closed(&mut self, (from, to): Way, lanes: &[u32], now: Now) {
        for vif in [from, to] {
            let Some(side) = self.registry.get(vif).and_then(Side::of) else { continue };
            for &lane in lanes {
                let sent = self.clients.send(side.client, &Event::CloseLane { lane }, &[]);
                if !self.sent(side.client, sent, now) {
                    break;
                }
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
        // It comes back under another number; this one is not remembered.
        assert_eq!(made(lanes.need((A, B), 1, LIMITS, at(0))), [4]);
    }

    #[test]
    fn only_what_is_idle_makes_room() {
        let mut lanes = Lanes::new(0);
        made(lanes.need((A, B), 2, LIMITS, at(0)));
        made(lanes.need((B, A), 1, LIMITS, at(10)));
        // Of a vif.
        assert_eq!(lanes.need((A, C), 1, LIMITS, at(59)), Need::Refused);
        let Need::Make { numbers, ended } = lanes.need((A, C), 1, LIMITS, at(60)) else { panic!() };
        assert_eq!((numbers, ended), (vec![4], vec![((A, B), vec![1, 2])]));
        // Of all.
        let tight = Limits { total: 2, per_vif: 9 };
        assert_eq!(lanes.need((C, B), 1, tight, at(69)), Need::Refused);
        assert_eq!(lanes.need((B, A), 1, tight, at(69)), Need::None, "in use");
        assert_eq!(lanes.need((C, B), 1, tight, at(119)), Need::Refused);
        let Need::Make { ended, .. } = lanes.need((C, B), 1, tight, at(120)) else { panic!() };
        assert_eq!(ended, [((A, C), vec![4])]);
        // None at all.
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
