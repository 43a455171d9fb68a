//! What migrations were like, in figures, and tables of them.

use std::time::Duration;

use crate::probe::{PING_INTERVAL, Pinger};
use crate::support::{skip, step};

use super::Loss;

/// If a thread that goes before all others had to wait longer than this, the machine stood still.
const QUIET: Duration = Duration::from_millis(10);

/// Of fewer migrations the median says little.
const ENOUGH: usize = 10;

/// What a migration was like, or a stop in place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Figures {
    /// QEMU's own figure for the pause.
    pub(super) downtime: Duration,
    /// From STOP to RESUME.
    pub(super) pause: Duration,
    /// From RESUME until frames for the guest arrive where it is.
    delay: Duration,
    /// From RESUME until the first answer to a ping.
    answer: Duration,
    /// The longest time without an answer to a ping.
    gap: Duration,
    /// How long the machine let a thread wait meanwhile that goes before all others.
    lateness: Duration,
}

impl Figures {
    /// Of what began then. Times are microseconds of wall-clock time: when the guest was stopped, when
    /// frames for it arrived and when it went on.
    pub(super) fn of(pings: &Pinger, begin: u64, stopped: u64, arrived: u64, resumed: u64) -> Self {
        let between = |from: u64, to: u64| Duration::from_micros(to.saturating_sub(from));
        let pause = between(stopped, resumed);
        let answered = pings.first_answer(resumed).expect("it answers again");
        Self {
            downtime: pause,
            pause,
            delay: between(resumed, arrived),
            answer: between(resumed, answered),
            gap: pings.longest_gap(begin),
            lateness: pings.lateness(begin),
        }
    }

    /// What is left of the gap without the guest's pause and an interval of the pings.
    fn added(&self) -> Duration {
        self.gap.saturating_sub(self.pause + PING_INTERVAL)
    }
}

/// A migration, and after it a stop in place for the same time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Round {
    pub(super) moved: Figures,
    pub(super) in_place: Figures,
}

/// A row of a table: its name, and where its values come from.
type Row<T> = (&'static str, fn(&T) -> Duration);

const FIGURES: &[Row<Figures>] = &[
    ("QEMU's downtime", |figures| figures.downtime),
    ("the guest's pause", |figures| figures.pause),
    ("the network's delay", |figures| figures.delay),
    ("first answer after RESUME", |figures| figures.answer),
    ("longest gap of the pings", |figures| figures.gap),
    ("  less pause and interval", Figures::added),
    ("the machine's own delay", |figures| figures.lateness),
];

const ROUNDS: &[Row<Round>] = &[
    ("QEMU's downtime", |round| round.moved.downtime),
    ("the guest's pause", |round| round.moved.pause),
    ("the network's delay", |round| round.moved.delay),
    ("first answer after RESUME", |round| round.moved.answer),
    ("  after the delay", |round| round.moved.answer.saturating_sub(round.moved.delay)),
    ("  stopped in place", |round| round.in_place.answer),
    ("longest gap of the pings", |round| round.moved.gap),
    ("  stopped in place", |round| round.in_place.gap),
    ("  what the move adds", |round| round.moved.gap.saturating_sub(round.in_place.gap)),
    ("the machine's own delay", |round| round.moved.lateness),
];

/// Of many values, in order of size.
#[derive(Clone, Copy, Debug)]
struct Percentiles {
    p50: Duration,
    p99: Duration,
    worst: Duration,
}

impl Percentiles {
    fn of(mut values: Vec<Duration>) -> Self {
        values.sort_unstable();
        let at = |percent: usize| values[(values.len() - 1) * percent / 100];
        Self { p50: at(50), p99: at(99), worst: at(100) }
    }

    /// In milliseconds.
    fn ms(self) -> [f64; 3] {
        [self.p50, self.p99, self.worst].map(|value| value.as_secs_f64() * 1e3)
    }
}

const COLUMNS: [&str; 3] = ["p50", "p99", "worst"];

/// Prints what migrations were like.
pub(super) fn report(what: &str, figures: &[Figures]) {
    step(&format!("{what}: {} times", figures.len()));
    let [p50, p99, worst] = COLUMNS;
    println!("    {:26} {p50:>8} {p99:>8} {worst:>8}", "in ms");
    for (name, figure) in FIGURES {
        let [p50, p99, worst] = Percentiles::of(figures.iter().map(figure).collect()).ms();
        println!("    {name:26} {p50:8.1} {p99:8.1} {worst:8.1}");
    }
}

/// Prints what migrations were like on two networks, side by side, and how the first compares with the
/// second (less than 1: it is better).
pub(super) fn compare(names: [&str; 2], rounds: [&[Round]; 2]) {
    let [one, other] = names;
    println!("    {:26}  {one:>24}   {other:>24}   {:>21}", "", "ratio");
    let head = COLUMNS.map(|name| format!("{name:>8}")).concat();
    let ratios = COLUMNS.map(|name| format!("{name:>7}")).concat();
    println!("    {:26}  {head}   {head}   {ratios}", "in ms");
    for (name, figure) in ROUNDS {
        let [one, other] =
            rounds.map(|rounds| Percentiles::of(rounds.iter().map(figure).collect()).ms());
        let cells = |values: [f64; 3]| values.map(|value| format!("{value:8.1}")).concat();
        let ratio = |at: usize| match other[at] {
            0.0 => format!("{:>7}", "-"),
            divisor => format!("{:7.2}", one[at] / divisor),
        };
        let ratios = [0, 1, 2].map(ratio).concat();
        println!("    {name:26}  {}   {}   {ratios}", cells(one), cells(other));
    }
}

/// Holds the figures against what is promised. Migrations during which the machine stood still say
/// nothing about the network, and are left out. A machine that is busy delays guests on every network: a figure that
/// the kernel's tunnel exceeds in the same run keeps the promise.
pub(super) fn judge(loss: Loss, figures: &[Figures], kernel: &[Figures]) {
    let is_quiet = |figures: &&Figures| figures.lateness <= QUIET;
    let judged: Vec<&Figures> = figures.iter().filter(is_quiet).collect();
    step(&format!("  judged: {} of {}", judged.len(), figures.len()));
    if judged.len() < figures.len().div_ceil(2) {
        return skip("the figures of migrations", "the machine stands still now and then");
    }
    let of = |figures: &[&Figures], figure: fn(&Figures) -> Duration| {
        Percentiles::of(figures.iter().map(|figures| figure(figures)).collect())
    };
    let kernel: Vec<&Figures> = kernel.iter().collect();
    let (delay, gap) = (of(&judged, |f| f.delay), of(&judged, |f| f.gap));
    let (kernel_delay, kernel_gap) = (of(&kernel, |f| f.delay), of(&kernel, |f| f.gap));
    let keeps = |value: Duration, promised: u64, kernel: Duration| {
        value <= Duration::from_millis(promised).max(kernel)
    };
    if loss == Loss::None {
        let is_short = keeps(delay.p50, 5, kernel_delay.p50);
        assert!(is_short || judged.len() < ENOUGH, "the network's delay: {delay:?}");
        assert!(keeps(delay.p99, 50, kernel_delay.p99), "the network's delay: {delay:?}");
    }
    assert!(keeps(gap.worst, 500, kernel_gap.worst), "the longest gap: {gap:?}");
}
