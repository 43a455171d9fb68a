//! Rows of results, the table of them, and the file that holds them.

use std::io;
use std::path::Path;

use serde::Serialize;

use crate::cases::{Windows, Work};
use crate::measure::{Rate, Window};
use crate::subject::{Conditions, Kind, Subject};
use crate::traffic::RoundTrips;

/// The results of all rounds of a case for one subject.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples {
    pub(crate) rates: Vec<Rate>,
    pub(crate) trips: Vec<RoundTrips>,
}

/// A figure: the median of the rounds, and how far they lie apart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Figure {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Figure {
    fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.collect();
        values.sort_unstable_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let (lower, upper) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        Some(Self { median: f64::midpoint(lower, upper), least, most })
    }
}

/// A case, as one subject did it. What a case does not measure is absent.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) case: String,
    pub(crate) subject: Kind,
    #[serde(flatten)]
    pub(crate) conditions: Conditions,
    /// What the sender gave to the subject.
    pub(crate) frames: String,
    pub(crate) window: Window,
    /// Goodput in Gbit/s of the trials with all windows.
    pub(crate) trials: Vec<(Window, f64)>,
    pub(crate) goodput_gbit_s: Option<Figure>,
    pub(crate) cpu_s_per_gb: Option<Figure>,
    pub(crate) million_frames_s: Option<Figure>,
    pub(crate) cpu_us_per_frame: Option<Figure>,
    pub(crate) rtt_p50_us: Option<Figure>,
    pub(crate) rtt_p99_us: Option<Figure>,
    /// Share of payload (or requests) that was lost.
    pub(crate) loss: f64,
    /// How often a whole window was lost, in all rounds.
    pub(crate) stalls: u64,
    /// Frames of which the first buffer was used before the last, up to here.
    pub(crate) torn: u64,
    /// Share of the machine's processor time that other processes took meanwhile.
    pub(crate) others: f64,
}

impl Row {
    pub(crate) fn new(
        case: &str,
        work: Work,
        subject: &Subject,
        windows: &Windows,
        samples: &Samples,
    ) -> Self {
        let rate = |part: fn(&Rate) -> f64| Figure::of(samples.rates.iter().map(part));
        let trips =
            |share| Figure::of(samples.trips.iter().filter_map(|trips| trips.quantile(share)));
        let is_frames = matches!(work, Work::Frames(_));
        Self {
            case: case.to_owned(),
            subject: subject.kind,
            conditions: subject.conditions,
            frames: describe(work, subject),
            window: windows.best,
            trials: windows.tried.clone(),
            goodput_gbit_s: rate(|rate| rate.gbit),
            cpu_s_per_gb: rate(|rate| rate.cpu_per_gb).filter(|_| work == Work::Bulk),
            million_frames_s: rate(|rate| rate.mega_units).filter(|_| is_frames),
            cpu_us_per_frame: rate(|rate| rate.cpu_per_unit).filter(|_| is_frames),
            rtt_p50_us: trips(0.5),
            rtt_p99_us: trips(0.99),
            loss: loss(samples),
            stalls: samples.rates.iter().map(|rate| rate.stalls).sum(),
            torn: subject.torn,
            others: rate(|rate| rate.others)
                .or_else(|| Figure::of(samples.trips.iter().map(|trips| trips.others)))
                .map_or(0.0, |figure| figure.median),
        }
    }
}

fn loss(samples: &Samples) -> f64 {
    let lost: u64 = samples.trips.iter().map(|trips| trips.lost).sum();
    let came: usize = samples.trips.iter().map(|trips| trips.micros.len()).sum();
    let requests = if lost > 0 { lost as f64 / (lost as f64 + came as f64) } else { 0.0 };
    let rates = samples.rates.iter().map(|rate| rate.loss).sum::<f64>();
    requests.max(rates / samples.rates.len().max(1) as f64)
}

fn describe(work: Work, subject: &Subject) -> String {
    let offload = subject.offload();
    let frames = match work {
        Work::Bulk | Work::Beside if offload.tso => "64 KiB TSO",
        Work::Bulk | Work::Beside => "MTU-sized",
        Work::Frames(_) | Work::Idle => "single",
    };
    format!("{frames}, {} csum", if offload.checksum { "partial" } else { "full" })
}

const TITLES: [&str; 12] = [
    "case",
    "subject",
    "frames",
    "Gbit/s",
    "CPU s/GB",
    "Mframe/s",
    "CPU us/frame",
    "p50 us",
    "p99 us",
    "window KiB",
    "loss",
    "others",
];
/// Columns of text, before those of numbers.
const TEXTS: usize = 3;

fn cells(row: &Row) -> [String; TITLES.len()] {
    let show = |figure: Option<Figure>, digits: usize| {
        figure.map_or(String::new(), |figure| format!("{:.digits$}", figure.median))
    };
    // A median says little where the rounds lie far apart.
    let show_range = |figure: Option<Figure>, digits: usize| {
        figure.map_or(String::new(), |Figure { median, least, most }| {
            format!("{median:.digits$} ({least:.digits$}-{most:.digits$})")
        })
    };
    let has_window = row.goodput_gbit_s.is_some();
    [
        row.case.clone(),
        row.subject.name().to_owned(),
        row.frames.clone(),
        show_range(row.goodput_gbit_s, 1),
        show(row.cpu_s_per_gb, 2),
        show_range(row.million_frames_s, 2),
        show(row.cpu_us_per_frame, 2),
        show(row.rtt_p50_us, 0),
        show(row.rtt_p99_us, 0),
        if has_window { (row.window.bytes >> 10).to_string() } else { String::new() },
        format!("{:.2} %", row.loss * 100.0),
        format!("{:.0} %", row.others * 100.0),
    ]
}

/// The table, as Markdown that also reads well as text.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut lines = vec![TITLES.map(str::to_owned)];
    lines.extend(rows.iter().map(cells));
    let width = |column: usize| lines.iter().map(|line| line[column].len()).max().unwrap_or(0);
    let widths: [usize; TITLES.len()] = std::array::from_fn(width);
    let mut text = String::new();
    for (number, line) in lines.iter().enumerate() {
        let cells = line.iter().zip(widths).enumerate().map(|(column, (cell, width))| {
            if column < TEXTS { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        text += &format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "));
        if number == 0 {
            let rules = widths.into_iter().enumerate().map(|(column, width)| {
                if column < TEXTS { "-".repeat(width) } else { "-".repeat(width - 1) + ":" }
            });
            text += &format!("| {} |\n", rules.collect::<Vec<_>>().join(" | "));
        }
    }
    let torn = rows.iter().map(|row| row.torn).max().unwrap_or(0);
    if torn > 0 {
        text += &format!(
            "\n{torn} frames in several receive buffers were shown to the guest before all of these \
             were there; Linux drops such frames.\n"
        );
    }
    text
}

/// What the figures were made with and on.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) kernel: String,
    pub(crate) processor: String,
    pub(crate) processors: usize,
}

impl Machine {
    pub(crate) fn this() -> io::Result<Self> {
        // What follows the version names a build.
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
        let kernel = release.trim().split('-').next().unwrap_or_default().to_owned();
        let info = std::fs::read_to_string("/proc/cpuinfo")?;
        let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let processor = model.map_or("unknown", |(_, name)| name).trim().to_owned();
        Ok(Self { kernel, processor, processors: std::thread::available_parallelism()?.get() })
    }

    /// A line about it.
    pub(crate) fn text(&self) -> String {
        let Self { kernel, processor, processors } = self;
        format!("{processors} processors ({processor}), Linux {kernel}")
    }
}

/// Everything, for other programs.
#[derive(Debug, Serialize)]
struct Results<'a> {
    machine: &'a Machine,
    rounds: usize,
    round_ms: u128,
    rows: &'a [Row],
}

/// Writes all figures as JSON.
pub(crate) fn write_json(
    path: &Path,
    machine: &Machine,
    rounds: (usize, std::time::Duration),
    rows: &[Row],
) -> io::Result<()> {
    let results = Results { machine, rounds: rounds.0, round_ms: rounds.1.as_millis(), rows };
    let mut json = serde_json::to_vec_pretty(&results)?;
    json.push(b'\n');
    std::fs::write(path, json)
}
