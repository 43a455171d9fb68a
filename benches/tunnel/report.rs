//! Rows of results, and the table of them.

use serde::Serialize;

use crate::cases::Work;
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
        let middle = values.len() / 2;
        let lower = values[(values.len() - 1) / 2];
        Some(Self { median: (lower + values[middle]) / 2.0, least, most })
    }
}

/// A case, as one subject did it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) case: String,
    pub(crate) subject: Kind,
    #[serde(flatten)]
    pub(crate) conditions: Conditions,
    /// What the subject took off the sender's hands.
    pub(crate) frames: String,
    pub(crate) window: Window,
    pub(crate) goodput_gbit_s: Option<Figure>,
    pub(crate) cpu_s_per_gb: Option<Figure>,
    pub(crate) million_frames_s: Option<Figure>,
    pub(crate) rtt_p50_us: Option<Figure>,
    pub(crate) rtt_p99_us: Option<Figure>,
    /// Share of frames (or requests) that were lost.
    pub(crate) loss: f64,
    /// Share of the machine's processor time that other processes took meanwhile.
    pub(crate) others: f64,
}

impl Row {
    pub(crate) fn new(
        case: &str,
        work: Work,
        subject: &Subject,
        window: Window,
        samples: &Samples,
    ) -> Self {
        let rate = |part: fn(&Rate) -> f64| Figure::of(samples.rates.iter().map(part));
        let trips =
            |share| Figure::of(samples.trips.iter().filter_map(|trips| trips.quantile(share)));
        let has_rate = work != Work::Idle;
        let is_frames = matches!(work, Work::Frames(_));
        let others = rate(|rate| rate.others).map_or(0.0, |figure| figure.median);
        Self {
            case: case.to_owned(),
            subject: subject.kind,
            conditions: subject.conditions,
            frames: describe(work, subject),
            window,
            goodput_gbit_s: rate(|rate| rate.gbit).filter(|_| has_rate),
            cpu_s_per_gb: rate(|rate| rate.cpu_per_gb).filter(|_| has_rate),
            million_frames_s: rate(|rate| rate.mega_units).filter(|_| is_frames),
            rtt_p50_us: trips(0.5),
            rtt_p99_us: trips(0.99),
            loss: loss(samples),
            others,
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
    let checksum = if offload.checksum { "partial" } else { "full" };
    format!("{frames}, {checksum} csum")
}

/// The table, as Markdown that also reads well as text.
pub(crate) fn table(rows: &[Row]) -> String {
    let titles = [
        "case",
        "subject",
        "frames",
        "Gbit/s",
        "CPU s/GB",
        "Mframes/s",
        "p50 us",
        "p99 us",
        "loss",
        "others",
    ];
    let mut lines = vec![titles.map(str::to_owned)];
    for row in rows {
        let show = |figure: Option<Figure>, digits: usize| {
            figure.map_or(String::new(), |figure| format!("{:.digits$}", figure.median))
        };
        lines.push([
            row.case.clone(),
            format!("{:?}", row.subject).to_lowercase(),
            row.frames.clone(),
            show(row.goodput_gbit_s, 2),
            show(row.cpu_s_per_gb, 2),
            show(row.million_frames_s, 3),
            show(row.rtt_p50_us, 0),
            show(row.rtt_p99_us, 0),
            format!("{:.2} %", row.loss * 100.0),
            format!("{:.0} %", row.others * 100.0),
        ]);
    }
    let width = |column: usize| lines.iter().map(|line| line[column].len()).max().unwrap_or(0);
    let widths: [usize; 10] = std::array::from_fn(width);
    let mut text = String::new();
    for (number, line) in lines.iter().enumerate() {
        let cells = line.iter().zip(widths).enumerate().map(|(column, (cell, width))| {
            if column < 3 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        text += &format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "));
        if number == 0 {
            let rule = |(column, width): (usize, usize)| {
                if column < 3 { "-".repeat(width) } else { "-".repeat(width - 1) + ":" }
            };
            let rules = widths.into_iter().enumerate().map(rule).collect::<Vec<_>>();
            text += &format!("| {} |\n", rules.join(" | "));
        }
    }
    text
}
