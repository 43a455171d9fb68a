//! The plot: bars, one for each subject of a case, in panels of one unit each. SVG, without a library.

use std::fmt::Write;

use crate::report::{Figure, Row};
use crate::subject::Kind;

/// Sizes in pixels.
const WIDTH: usize = 900;
const LABELS: usize = 260;
const BAR: usize = 13;
const GAP: usize = 10;
const TITLE: usize = 34;
const MARGIN: usize = 12;
/// Room for the figure behind the longest bar.
const VALUES: usize = 70;
/// Room for the lines that go beyond it.
const WHISKERS: usize = 60;

/// Names in a line of the legend, and the height of one.
const PER_LINE: usize = 3;
const LINE: usize = 18;

/// A panel: its title and the figure that it shows of a row.
type Panel = (&'static str, fn(&Row) -> Option<Figure>);

const PANELS: [Panel; 5] = [
    ("Goodput of a bulk stream, Gbit/s (more is better)", |row| {
        row.goodput_gbit_s.filter(|_| row.cpu_s_per_gb.is_some())
    }),
    ("Processor time of a bulk stream, s per GB (less is better)", |row| row.cpu_s_per_gb),
    ("Million frames per second (more is better)", |row| row.million_frames_s),
    ("Round trip, median, us (less is better)", |row| row.rtt_p50_us),
    ("Round trip, 99th percentile, us (less is better)", |row| row.rtt_p99_us),
];

fn colour(kind: Kind) -> &'static str {
    match kind {
        Kind::Vnet => "#2563a8",
        Kind::Polling => "#7fb2e5",
        Kind::Auth => "#3f8f6b",
        Kind::Conf => "#1d5c40",
        Kind::Kernel => "#b8b8b8",
        Kind::WireGuard | Kind::WireGuardGo => "#b5651d",
    }
}

/// The plot of all rows; `below` is written under it.
pub(crate) fn svg(rows: &[Row], below: &str) -> String {
    let mut body = String::new();
    let mut y = MARGIN;
    for (title, figure) in PANELS {
        let shown: Vec<(&Row, Figure)> =
            rows.iter().filter_map(|row| Some((row, figure(row)?))).collect();
        if !shown.is_empty() {
            y = panel(&mut body, y, title, &shown);
        }
    }
    y = legend(&mut body, y, below);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{y}\" \
         viewBox=\"0 0 {WIDTH} {y}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{body}</svg>\n"
    )
}

/// Draws a panel from `y` down; where it ends.
fn panel(body: &mut String, mut y: usize, title: &str, shown: &[(&Row, Figure)]) -> usize {
    text(body, MARGIN, y + 16, "font-size=\"14\" font-weight=\"bold\"", title);
    y += TITLE;
    let longest = shown.iter().map(|(_, figure)| figure.median).fold(f64::MIN_POSITIVE, f64::max);
    let scale = (WIDTH - LABELS - VALUES - WHISKERS - MARGIN) as f64 / longest;
    let mut previous = None;
    for (row, figure) in shown {
        if previous != Some(&row.case) {
            y += if previous.is_some() { GAP } else { 0 };
            text(body, LABELS - 8, y + BAR, "text-anchor=\"end\"", &row.case);
        }
        previous = Some(&row.case);
        bar(body, y, colour(row.subject), *figure, scale);
        y += BAR;
    }
    y + 2 * GAP
}

/// A bar as long as the median, a line from the least to the most; a line too long is cut.
fn bar(body: &mut String, y: usize, colour: &str, figure: Figure, scale: f64) {
    let end = (WIDTH - VALUES - MARGIN) as f64;
    let at = |value: f64| (LABELS as f64 + value * scale).min(end);
    let [least, median, most] = [figure.least, figure.median, figure.most].map(at);
    let (middle, height, width) = (y + BAR / 2, BAR - 2, median - LABELS as f64);
    // Writing into a String cannot fail.
    let _ = writeln!(
        body,
        "<rect x=\"{LABELS}\" y=\"{y}\" width=\"{width:.1}\" height=\"{height}\" fill=\"{colour}\"/>\n\
         <line x1=\"{least:.1}\" x2=\"{most:.1}\" y1=\"{middle}\" y2=\"{middle}\" stroke=\"black\"/>"
    );
    let value = figure.median;
    let value = if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") };
    text(body, most as usize + 5, y + BAR - 3, "", &value);
}

fn legend(body: &mut String, y: usize, below: &str) -> usize {
    for (n, (kind, name)) in [
        (Kind::Vnet, "vnet: vhost-user-vnet and varpd"),
        (Kind::Polling, "vnet-poll: the same with --busy-poll 50"),
        (Kind::Kernel, "kernel: taps and bridges, with VXLAN between hosts"),
        (Kind::Auth, "vnet-auth: vnet, authenticated"),
        (Kind::Conf, "vnet-conf: vnet, encrypted"),
        (Kind::WireGuard, "wireguard, wireguard-go: kernel, over WireGuard"),
    ]
    .into_iter()
    .enumerate()
    {
        let (x, y) = (MARGIN + n % PER_LINE * 270, y + n / PER_LINE * LINE);
        let fill = colour(kind);
        let _ = writeln!(
            body,
            "<rect x=\"{x}\" y=\"{y}\" width=\"11\" height=\"11\" fill=\"{fill}\"/>"
        );
        text(body, x + 16, y + 10, "", name);
    }
    text(body, MARGIN, y + LINE + 30, "fill=\"#555\"", below);
    y + LINE + 30 + MARGIN
}

fn text(body: &mut String, x: usize, y: usize, style: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(body, "<text x=\"{x}\" y=\"{y}\" {style}>{text}</text>");
}
