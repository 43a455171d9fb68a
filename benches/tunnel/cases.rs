//! What is measured, under which conditions.

use std::io;
use std::path::Path;
use std::time::Duration;

use crate::frames::Load;
use crate::measure::{self, Rate, Window};
use crate::options::Options;
use crate::report::{Row, Samples};
use crate::subject::{Conditions, KINDS, Kind, Place, Subject};
use crate::topology::{Hosts, Link};
use crate::wireguard;

/// What a case does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// A stream in segments as long as the subject allows.
    Bulk,
    /// Datagrams in frames of this many bytes.
    Frames(usize),
    /// Request and reply, alone.
    Idle,
    /// Request and reply beside a stream of other vifs.
    Beside,
}

impl Work {
    /// Name of the case.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Bulk => "bulk".to_owned(),
            Self::Frames(len) => format!("frames-{len}"),
            Self::Idle => "rtt-idle".to_owned(),
            Self::Beside => "rtt-beside-bulk".to_owned(),
        }
    }
}

/// Who is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    /// A vnet and the kernel's own tunnel.
    Plain,
    /// The policies of vnets, and WireGuard.
    Secured,
}

/// Conditions and what is done under them.
pub(crate) struct Group {
    pub(crate) comparison: Comparison,
    pub(crate) conditions: Conditions,
    pub(crate) works: Vec<Work>,
}

impl Group {
    /// A name for each case, for `--only`.
    pub(crate) fn case_name(&self, work: Work) -> String {
        let Conditions { place, mtu, link, queue_pairs } = self.conditions;
        let link = match place {
            Place::Across => format!("/{link:?}"),
            Place::Same => String::new(),
        };
        let secured = match self.comparison {
            Comparison::Plain => "",
            Comparison::Secured => "conf/",
        };
        let work = work.name();
        format!("{place:?}/{mtu}{link}/{queue_pairs}q/{secured}{work}").to_lowercase()
    }

    /// Who does some work: polling is for round trips, and what only authenticates for streams.
    pub(crate) fn subjects(&self, work: Work) -> Vec<Kind> {
        let mut kinds = match (self.comparison, work) {
            (Comparison::Plain, Work::Idle) => vec![Kind::Vnet, Kind::Polling, Kind::Kernel],
            (Comparison::Plain, _) => vec![Kind::Vnet, Kind::Kernel],
            (Comparison::Secured, Work::Bulk) => vec![Kind::Vnet, Kind::Auth, Kind::Conf],
            (Comparison::Secured, _) => vec![Kind::Vnet, Kind::Conf],
        };
        if self.comparison == Comparison::Secured {
            kinds.extend(wireguard::available());
        }
        kinds
    }
}

/// Everything that is measured.
pub(crate) fn all() -> Vec<Group> {
    const SMALL: Work = Work::Frames(64);
    const LARGE: Work = Work::Frames(1400);
    let group = |place, mtu, link, queue_pairs, works: &[Work]| Group {
        comparison: Comparison::Plain,
        conditions: Conditions { place, mtu, link, queue_pairs },
        works: works.to_vec(),
    };
    let secured = |group| Group { comparison: Comparison::Secured, ..group };
    use Link::{Cut, Whole};
    use Place::{Across, Same};
    use Work::{Beside, Bulk, Idle};
    vec![
        group(Across, 1500, Whole, 1, &[Bulk, SMALL, LARGE, Idle, Beside]),
        group(Across, 1500, Cut, 1, &[Bulk, SMALL, LARGE]),
        group(Across, 9000, Whole, 1, &[Bulk, LARGE]),
        group(Across, 9000, Cut, 1, &[Bulk]),
        group(Across, 1500, Whole, 2, &[Bulk, SMALL]),
        group(Across, 9000, Whole, 2, &[Bulk]),
        group(Same, 1500, Whole, 1, &[Bulk, SMALL, LARGE, Idle, Beside]),
        group(Same, 9000, Whole, 1, &[Bulk]),
        group(Same, 1500, Whole, 2, &[Bulk, SMALL]),
        secured(group(Across, 1500, Whole, 1, &[Bulk, SMALL, LARGE])),
    ]
}

/// Windows that are tried before a case is measured; the one with the highest rate is taken.
const WINDOWS: [Window; 5] = [
    Window { bytes: 64 << 10, frames: 32 },
    Window { bytes: 192 << 10, frames: 96 },
    Window { bytes: 512 << 10, frames: 256 },
    Window { bytes: 2 << 20, frames: 1024 },
    Window { bytes: 4 << 20, frames: 4096 },
];

/// Those that a subject tries. The small ones are for WireGuard: wireguard-go loses most of what
/// comes faster than it takes it, and a stream that adapts would not send so much.
fn windows(kind: Kind) -> &'static [Window] {
    match kind {
        Kind::WireGuard | Kind::WireGuardGo => &WINDOWS,
        _ => &WINDOWS[2..],
    }
}

/// The window that a subject does a case with.
#[derive(Clone, Debug)]
pub(crate) struct Windows {
    pub(crate) best: Window,
    /// What was tried, and the goodput of the trial in Gbit/s.
    pub(crate) tried: Vec<(Window, f64)>,
}

/// Runs the cases of a group that are wanted, all subjects in turn.
pub(crate) fn run(
    group: &Group,
    options: &Options,
    prefix: &str,
    directory: &Path,
) -> io::Result<Vec<Row>> {
    let wanted = |work: &Work| options.wants(&group.case_name(*work));
    let works: Vec<Work> = group.works.iter().copied().filter(wanted).collect();
    if works.is_empty() {
        return Ok(Vec::new());
    }
    let conditions = group.conditions;
    let directory = tempfile::tempdir_in(directory)?;
    let hosts = Hosts::new(prefix, conditions.mtu, conditions.link)?;
    let mut subjects = Vec::new();
    for kind in KINDS {
        if !works.iter().any(|work| group.subjects(*work).contains(&kind)) {
            continue;
        }
        let mut subject = Subject::start(kind, conditions, &hosts, directory.path())?;
        measure::introduce(&mut subject)?;
        subjects.push(subject);
    }
    let mut rows = Vec::new();
    for work in works {
        let name = group.case_name(work);
        eprintln!("{name}");
        let kinds = group.subjects(work);
        let doing = subjects.iter_mut().filter(|subject| kinds.contains(&subject.kind));
        let more = run_case(work, &name, options, doing.collect());
        rows.extend(more.map_err(|error| io::Error::other(format!("{name}: {error}")))?);
    }
    Ok(rows)
}

fn run_case(
    work: Work,
    name: &str,
    options: &Options,
    mut subjects: Vec<&mut Subject>,
) -> io::Result<Vec<Row>> {
    let mut windows = Vec::new();
    for subject in &mut subjects {
        windows.push(try_windows(work, options, subject)?);
    }
    let mut samples = vec![Samples::default(); subjects.len()];
    for _ in 0..options.rounds() {
        for ((subject, samples), window) in subjects.iter_mut().zip(&mut samples).zip(&windows) {
            run_once(work, window.best, options.time(), subject, samples)?;
        }
    }
    let rows = subjects
        .iter()
        .zip(samples)
        .zip(windows)
        .map(|((subject, samples), window)| Row::new(name, work, subject, &window, &samples));
    Ok(rows.collect())
}

fn load(work: Work, subject: &Subject) -> Load {
    match work {
        Work::Frames(frame) => Load::Datagrams { frame },
        Work::Bulk | Work::Idle | Work::Beside => Load::Stream { mtu: subject.guest_mtu() },
    }
}

/// Tries the windows; the first trial also warms everything up.
fn try_windows(work: Work, options: &Options, subject: &mut Subject) -> io::Result<Windows> {
    let mut windows = Windows { best: WINDOWS[3], tried: Vec::new() };
    if work == Work::Idle || options.smoke {
        return Ok(windows);
    }
    let mut highest = 0.0;
    for &window in self::windows(subject.kind) {
        let load = load(work, subject);
        let Rate { gbit, .. } = measure::rate(subject, load, window, options.trial())?;
        windows.tried.push((window, gbit));
        if gbit > highest {
            highest = gbit;
            windows.best = window;
        }
    }
    Ok(windows)
}

fn run_once(
    work: Work,
    window: Window,
    time: Duration,
    subject: &mut Subject,
    samples: &mut Samples,
) -> io::Result<()> {
    let load = load(work, subject);
    match work {
        Work::Bulk | Work::Frames(_) => {
            samples.rates.push(measure::rate(subject, load, window, time)?);
        }
        Work::Idle => samples.trips.push(measure::idle_latency(subject, time)?),
        Work::Beside => {
            let (trips, rate) = measure::loaded_latency(subject, load, window, time)?;
            samples.rates.push(rate);
            samples.trips.push(trips);
        }
    }
    Ok(())
}
