//! Processor time: what the machine has spent on the traffic.
//!
//! The cost of a path is the busy time of the whole machine (all processors; user, system, softirq
//! and interrupt time of /proc/stat) less two things: the *user* time of the generators, which is
//! the making and checking of payload, and all time of processes that have nothing to do with the
//! measurement. The generators' *system* time stays in: for a tap, `write` and `read` are the path;
//! for a virtio ring it is the kicks and the waiting for calls.

use std::collections::HashMap;
use std::io;

use nix::unistd::{SysconfVar, sysconf};

/// Times of all processes and processors at one moment.
pub(crate) struct Times {
    busy: u64,
    stolen: u64,
    processes: HashMap<u32, Usage>,
}

#[derive(Clone, Copy, Default)]
struct Usage {
    parent: u32,
    user: u64,
    system: u64,
    /// Of children that have ended.
    children: u64,
}

/// What was spent between two moments, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub(crate) struct Spent {
    /// The cost of the path, as defined above.
    pub(crate) path: f64,
    /// User time of the generators.
    pub(crate) generators: f64,
    /// Of other processes, and time that the machine itself was not given (steal).
    pub(crate) others: f64,
}

/// Process id of kthreadd, the parent of all kernel threads.
const KTHREADD: u32 = 2;

impl Times {
    pub(crate) fn now() -> io::Result<Self> {
        let stat = std::fs::read_to_string("/proc/stat")?;
        let line = stat.lines().next().unwrap_or_default();
        let fields: Vec<u64> =
            line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
        // proc(5): user nice system idle iowait irq softirq steal.
        let [user, nice, system, _, _, irq, softirq, steal, ..] = fields[..] else {
            return Err(io::Error::other("/proc/stat is not understood"));
        };
        let mut processes = HashMap::new();
        for entry in std::fs::read_dir("/proc")? {
            let entry = entry?;
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            // It may have ended meanwhile.
            let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
            if let Some(usage) = parse(&stat) {
                processes.insert(pid, usage);
            }
        }
        Ok(Self { busy: user + nice + system + irq + softirq, stolen: steal, processes })
    }

    /// What was spent since `earlier`, with the process ids of the generators and of the programs
    /// under test.
    pub(crate) fn since(&self, earlier: &Self, generators: &[u32], tested: &[u32]) -> Spent {
        let (mut generated, mut others) = (0, 0);
        for (pid, now) in &self.processes {
            let before = earlier.processes.get(pid).copied().unwrap_or_default();
            let is_kernel = *pid == KTHREADD || now.parent == KTHREADD;
            if generators.contains(pid) {
                generated += now.user.saturating_sub(before.user);
            } else if !is_kernel && !tested.contains(pid) {
                let now = now.user + now.system + now.children;
                others += now.saturating_sub(before.user + before.system + before.children);
            }
        }
        // Of those that have ended, all their time is in their parents' count by now, also what
        // was spent before.
        let ended = earlier.processes.iter().filter(|(pid, _)| !self.processes.contains_key(pid));
        let before: u64 = ended.map(|(_, usage)| usage.user + usage.system + usage.children).sum();
        others = others.saturating_sub(before);
        let busy = self.busy.saturating_sub(earlier.busy);
        let stolen = self.stolen.saturating_sub(earlier.stolen);
        Spent {
            path: seconds(busy.saturating_sub(generated + others)),
            generators: seconds(generated),
            others: seconds(others + stolen),
        }
    }
}

/// The line of /proc/PID/stat: after the name in parentheses, field 3 is the state (proc(5)).
fn parse(stat: &str) -> Option<Usage> {
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Usage {
        parent: u32::try_from(number(4)?).ok()?,
        user: number(14)?,
        system: number(15)?,
        children: number(16)? + number(17)?,
    })
}

fn seconds(ticks: u64) -> f64 {
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    ticks as f64 / per_second as f64
}
