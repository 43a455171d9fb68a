//! The processes of backends. The kernel reports the end of each, even if another process has its
//! process id by now.

use std::collections::BTreeMap;

use crate::sys::process::Process;
use crate::sys::seqpacket::Connection;

/// Least number of processes at which varpd looks for those that have ended.
const FEW: usize = 64;

/// A process, or a test's substitute.
pub(super) trait Mortal {
    /// Whether it has ended.
    fn has_ended(&self) -> bool;
}

impl Mortal for Process {
    fn has_ended(&self) -> bool {
        Self::has_ended(self)
    }
}

/// The processes that vifs are bound to, by their numbers.
#[derive(Debug)]
pub(super) struct Processes<P = Process> {
    by_pid: BTreeMap<i32, P>,
    /// Number of processes at which varpd next forgets those that have ended.
    sweep_at: usize,
}

impl<P> Default for Processes<P> {
    fn default() -> Self {
        Self { by_pid: BTreeMap::new(), sweep_at: FEW }
    }
}

impl Processes {
    /// Remembers the process at the other end of a connection. Returns the process ids of processes
    /// that have ended, or that varpd cannot tell from their successors (before Linux 6.5).
    pub(super) fn remember(&mut self, pid: i32, connection: Option<&Connection>) -> Vec<i32> {
        match connection.map(Connection::process) {
            Some(Ok(process)) => self.insert(pid, process),
            Some(Err(e)) => {
                log::debug!("process {pid} can't be watched: {e}");
                vec![pid]
            }
            None => vec![pid],
        }
    }
}

impl<P: Mortal> Processes<P> {
    fn insert(&mut self, pid: i32, process: P) -> Vec<i32> {
        self.by_pid.insert(pid, process);
        if self.by_pid.len() < self.sweep_at {
            return Vec::new();
        }
        let ended = self.by_pid.iter().filter(|(_, process)| process.has_ended());
        let ended: Vec<i32> = ended.map(|(pid, _)| *pid).collect();
        ended.iter().for_each(|pid| drop(self.by_pid.remove(pid)));
        self.sweep_at = FEW.max(2 * self.by_pid.len());
        ended
    }

    /// Whether the remembered process with this id has ended; if so, forgets it.
    pub(super) fn take_ended(&mut self, pid: i32) -> bool {
        let has_ended = self.by_pid.get(&pid).is_some_and(Mortal::has_ended);
        if has_ended {
            self.by_pid.remove(&pid);
        }
        has_ended
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;

    impl Mortal for Rc<Cell<bool>> {
        fn has_ended(&self) -> bool {
            self.get()
        }
    }

    #[test]
    fn a_process_is_known_until_it_ends_and_its_end_is_told_once() {
        let (mut processes, ended) = (Processes::default(), Rc::new(Cell::new(false)));
        assert!(processes.insert(7, Rc::clone(&ended)).is_empty());
        assert!(!processes.take_ended(7));
        assert!(!processes.take_ended(8));
        ended.set(true);
        assert!(processes.take_ended(7));
        assert!(!processes.take_ended(7));
    }

    #[test]
    fn processes_that_have_ended_are_forgotten_and_told() {
        let mut processes = Processes::default();
        let mut told = Vec::new();
        for pid in 1..10_000 {
            let lives = pid % 100 == 0;
            told.extend(processes.insert(pid, Rc::new(Cell::new(!lives))));
        }
        assert!(processes.by_pid.len() < 99 + 2 * FEW + 99, "{}", processes.by_pid.len());
        assert!((1..100).all(|n| processes.by_pid.contains_key(&(n * 100))));
        assert!(told.iter().all(|pid| pid % 100 != 0));
        assert_eq!(told.len() + processes.by_pid.len(), 9999);
    }
}
