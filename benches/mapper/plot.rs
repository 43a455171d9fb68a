//! The plot of VARP traffic: lines on logarithmic axes, a panel for what grows. SVG, by hand.

use std::fmt::Write;

/// Sizes in pixels.
const PANEL: f64 = 280.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 62.0;
const TOP: f64 = 34.0;
const GAP: f64 = 50.0;

/// What the lines are.
const LINES: [(&str, &str, &str); 4] = [
    ("first minute, to the group", "#2563a8", "6 3"),
    ("first minute, unicast", "#c0562b", "6 3"),
    ("steady, to the group, per second", "#2563a8", ""),
    ("steady, unicast, per second", "#c0562b", ""),
];

/// The points of one panel.
#[derive(Debug)]
pub(crate) struct Series {
    name: &'static str,
    points: Vec<(f64, [f64; 4])>,
}

impl Series {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, points: Vec::new() }
    }

    pub(crate) fn push(&mut self, x: f64, values: [f64; 4]) {
        self.points.push((x, values));
    }
}

/// The whole picture.
pub(crate) fn svg(panels: &[Series]) -> String {
    let values = || panels.iter().flat_map(|p| &p.points).flat_map(|(_, values)| values);
    let (low, high) = values()
        .filter(|v| **v > 0.0)
        .fold((f64::MAX, 1.0_f64), |(low, high), &v| (low.min(v), high.max(v)));
    let y_axis = (low.log10().floor(), high.log10().ceil());
    let mut body = String::new();
    for (n, panel) in panels.iter().enumerate() {
        draw(&mut body, LEFT + n as f64 * (PANEL + GAP), panel, y_axis);
    }
    for (n, (name, colour, dash)) in LINES.iter().enumerate() {
        let (x, y) = (LEFT + (n % 2) as f64 * 330.0, TOP + HEIGHT + 52.0 + (n / 2) as f64 * 18.0);
        line(&mut body, &[(x, y - 4.0), (x + 30.0, y - 4.0)], colour, dash);
        text(&mut body, x + 36.0, y, "start", name);
    }
    let width = LEFT + panels.len() as f64 * (PANEL + GAP);
    let height = TOP + HEIGHT + 84.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{body}</svg>\n"
    )
}

fn draw(body: &mut String, left: f64, panel: &Series, (low, high): (f64, f64)) {
    let xs = || panel.points.iter().map(|(x, _)| x.log10());
    let (first, last) = (xs().fold(f64::MAX, f64::min), xs().fold(f64::MIN, f64::max));
    let at_x = |x: f64| left + (x.log10() - first) / (last - first).max(0.1) * PANEL;
    let at_y = |y: f64| TOP + HEIGHT - (y.max(1e-9).log10() - low).max(0.0) / (high - low) * HEIGHT;
    text(
        body,
        left,
        TOP - 14.0,
        "start",
        &format!("messages received by a host, by {}", panel.name),
    );
    let mut power = low;
    while power <= high {
        let y = at_y(10_f64.powf(power));
        line(body, &[(left, y), (left + PANEL, y)], "#dddddd", "");
        text(body, left - 6.0, y + 4.0, "end", &label(10_f64.powf(power)));
        power += 1.0;
    }
    for (x, _) in &panel.points {
        text(body, at_x(*x), TOP + HEIGHT + 16.0, "middle", &label(*x));
    }
    text(body, left + PANEL / 2.0, TOP + HEIGHT + 32.0, "middle", panel.name);
    for (n, (_, colour, dash)) in LINES.iter().enumerate() {
        let points: Vec<(f64, f64)> = panel
            .points
            .iter()
            .filter(|(_, values)| values[n] > 0.0)
            .map(|(x, values)| (at_x(*x), at_y(values[n])))
            .collect();
        line(body, &points, colour, dash);
    }
}

fn label(value: f64) -> String {
    if value < 1.0 { format!("{value}") } else { format!("{value:.0}") }
}

fn line(body: &mut String, points: &[(f64, f64)], colour: &str, dash: &str) {
    let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    // Writing into a String cannot fail.
    let _ = writeln!(
        body,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" stroke-dasharray=\"{dash}\"/>",
        points.join(" ")
    );
}

fn text(body: &mut String, x: f64, y: f64, anchor: &str, text: &str) {
    let _ =
        writeln!(body, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>");
}
