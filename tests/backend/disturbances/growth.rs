//! Memory and descriptors of the programs: whatever happens, they need no more of them in the end.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use vnet::sys::clock;

use crate::support::pause;
use crate::support::process::Process;
use crate::support::vnet::Varpd;

/// Memory that a program may take in addition, in KiB, once all guests have heard each other.
const MEMORY: u64 = 3 << 10;
/// Descriptors of a backend in addition: its guest may have come to a host with others, to which lanes
/// lead (per queue pair, direction and neighbour: the memory and an eventfd each way).
const DESCRIPTORS: usize = 24;
/// How long they may be more: lanes that are replaced are read for two seconds more, and a host may get several
/// addresses in one event.
const LINGERS: Duration = Duration::from_secs(10);
/// Descriptors of varpd: its own, and for each vif.
const OWN: usize = 24;
const PER_VIF: usize = 8;

/// What a program had.
#[derive(Clone, Copy, Debug)]
struct Sample {
    kib: u64,
    descriptors: usize,
}

impl Sample {
    fn of(process: &Process) -> Self {
        Self { kib: process.private_kib(), descriptors: process.descriptors() }
    }
}

/// What each program had when it was first looked at, by its process id, and the most that any came to
/// have in addition.
#[derive(Default)]
pub(super) struct Growth {
    first: BTreeMap<u32, Sample>,
    kib: u64,
    descriptors: usize,
    of_varpd: usize,
}

impl Growth {
    /// A backend, which serves a guest.
    pub(super) fn look(&mut self, process: &Process, after: &str) {
        let mut sample = Sample::of(process);
        let first = *self.first.entry(process.pid()).or_insert(sample);
        self.memory(process, first, sample, after);
        let more = |sample: Sample| sample.descriptors.saturating_sub(first.descriptors);
        let begin = clock::mono();
        while more(sample) > DESCRIPTORS && clock::mono() - begin < LINGERS {
            pause();
            sample = Sample::of(process);
        }
        let more = more(sample);
        self.descriptors = self.descriptors.max(more);
        let name = process.name();
        assert!(more <= DESCRIPTORS, "{after}: {name} has {sample:?}, and had {first:?} at first");
    }

    /// A mapper.
    pub(super) fn look_at_varpd(&mut self, varpd: &Varpd, after: &str) {
        let process = &varpd.process;
        let mut sample = Sample::of(process);
        let first = *self.first.entry(process.pid()).or_insert(sample);
        self.memory(process, first, sample, after);
        self.of_varpd = self.of_varpd.max(sample.descriptors);
        let count = || varpd.show("vifs").as_array().map_or(0, Vec::len);
        let mut vifs = count();
        let begin = clock::mono();
        // A vif that was kept may be forgotten between the two looks.
        while sample.descriptors > OWN + PER_VIF * vifs && clock::mono() - begin < LINGERS {
            pause();
            (sample, vifs) = (Sample::of(process), count());
        }
        let most = OWN + PER_VIF * vifs;
        let name = process.name();
        assert!(sample.descriptors <= most, "{after}: {name} has {sample:?} for {vifs} vifs");
    }

    fn memory(&mut self, process: &Process, first: Sample, sample: Sample, after: &str) {
        let more = sample.kib.saturating_sub(first.kib);
        self.kib = self.kib.max(more);
        let name = process.name();
        assert!(more <= MEMORY, "{after}: {name} has {sample:?}, and had {first:?} at first");
    }
}

impl fmt::Display for Growth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kib, descriptors, of_varpd, .. } = self;
        write!(
            f,
            "no program has grown by more than {kib} KiB, no backend by more than {descriptors} "
        )?;
        write!(f, "descriptors, no mapper had more than {of_varpd}")
    }
}
