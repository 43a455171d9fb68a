//! Collects counters from backends, without waiting for any.
//!
//! A run asks all backends at once. It ends when all have answered or its time is over; a backend
//! that has not answered by then is shown as stalled.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::mapper::LocalVif;
use crate::time::Instant;
use crate::wire::control::Sample;

use super::clients::ClientId;

/// Time that backends have to answer.
pub(super) const PATIENCE: Duration = Duration::from_millis(300);
/// Most runs at a time.
const MOST_RUNS: usize = 16;

/// Counters of a vif.
pub(super) type Counters = Vec<Sample>;

/// A run of collecting.
#[derive(Debug)]
pub(super) struct Run {
    /// The client that asked.
    pub(super) client: ClientId,
    /// The counters of each vif; `None` while its backend has not answered.
    pub(super) answers: BTreeMap<LocalVif, Option<Counters>>,
    deadline: Instant,
}

impl Run {
    fn complete(&self) -> bool {
        self.answers.values().all(Option::is_some)
    }
}

/// The runs under way, by their number on the wire.
#[derive(Debug, Default)]
pub(super) struct Runs {
    runs: BTreeMap<u32, Run>,
    next: u32,
}

impl Runs {
    /// Begins a run over these vifs; returns its number, or `None` if too many are under way or
    /// this client has one.
    pub(super) fn begin(
        &mut self,
        client: ClientId,
        vifs: impl Iterator<Item = LocalVif>,
        now: Instant,
    ) -> Option<u32> {
        if self.runs.len() >= MOST_RUNS || self.runs.values().any(|run| run.client == client) {
            return None;
        }
        let xid = self.next;
        self.next = self.next.wrapping_add(1);
        let answers = vifs.map(|vif| (vif, None)).collect();
        self.runs.insert(xid, Run { client, answers, deadline: now + PATIENCE });
        Some(xid)
    }

    /// Stores a vif's answer. Returns false if no run waits for it.
    pub(super) fn answer(&mut self, xid: u32, vif: LocalVif, values: Counters) -> bool {
        let asked = self.runs.get_mut(&xid).and_then(|run| run.answers.get_mut(&vif));
        let Some(slot @ None) = asked else { return false };
        *slot = Some(values);
        true
    }

    /// Ends the run of a client that is gone.
    pub(super) fn abandon(&mut self, client: ClientId) {
        self.runs.retain(|_, run| run.client != client);
    }

    /// The vif's backend is gone: no run waits for it.
    pub(super) fn forget(&mut self, vif: LocalVif) {
        for run in self.runs.values_mut() {
            run.answers.remove(&vif);
        }
    }

    /// Time at which the next run ends at the latest.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.runs.values().map(|run| run.deadline).min()
    }

    /// Takes out a run that is complete or whose time is over.
    pub(super) fn poll_done(&mut self, now: Instant) -> Option<Run> {
        let done = |run: &Run| run.complete() || run.deadline <= now;
        let (&xid, _) = self.runs.iter().find(|(_, run)| done(run))?;
        self.runs.remove(&xid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::control::Kind;

    const A: LocalVif = LocalVif(1);
    const B: LocalVif = LocalVif(2);
    const ME: ClientId = ClientId(9);

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    #[test]
    fn a_run_ends_with_the_last_answer() {
        let mut runs = Runs::default();
        let xid = runs.begin(ME, [A, B].into_iter(), at(0)).unwrap();
        assert!(runs.begin(ME, [A].into_iter(), at(0)).is_none(), "one at a time");
        let sample =
            |value| Sample { name: "x".into(), kind: Kind::Counter, unit: "frames".into(), value };
        assert!(runs.answer(xid, A, vec![sample(1)]));
        assert!(!runs.answer(xid, A, vec![]), "only once");
        assert!(!runs.answer(xid + 1, B, vec![]));
        assert!(!runs.answer(xid, LocalVif(3), vec![]));
        assert!(runs.poll_done(at(1)).is_none());
        assert!(runs.answer(xid, B, vec![]));
        let run = runs.poll_done(at(1)).unwrap();
        assert_eq!((run.client, run.answers.len()), (ME, 2));
        assert_eq!(run.answers[&A], Some(vec![sample(1)]));
        assert_eq!(runs.next_deadline(), None);
    }

    #[test]
    fn who_does_not_answer_does_not_hold_up() {
        let mut runs = Runs::default();
        let xid = runs.begin(ME, [A, B].into_iter(), at(0)).unwrap();
        assert!(runs.answer(xid, A, vec![]));
        assert_eq!(runs.next_deadline(), Some(at(300)));
        assert!(runs.poll_done(at(299)).is_none());
        let run = runs.poll_done(at(300)).unwrap();
        assert_eq!(run.answers[&B], None);
        assert!(!runs.answer(xid, B, vec![]), "too late");
    }

    #[test]
    fn the_gone_are_not_waited_for() {
        let mut runs = Runs::default();
        runs.begin(ME, [A].into_iter(), at(0)).unwrap();
        runs.forget(A);
        assert!(runs.poll_done(at(1)).unwrap().answers.is_empty());
        runs.begin(ME, [A].into_iter(), at(0)).unwrap();
        runs.abandon(ME);
        assert!(runs.poll_done(at(1000)).is_none());
    }

    #[test]
    fn there_are_few_runs() {
        let mut runs = Runs::default();
        let begun = (0..100).filter(|&n| runs.begin(ClientId(n), [A].into_iter(), at(0)).is_some());
        assert_eq!(begun.count(), MOST_RUNS);
    }
}
