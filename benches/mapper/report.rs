//! Tables as Markdown, and where they are written.

use std::fs;
use std::path::{Path, PathBuf};

/// The document that holds the tables, between comments that name their section.
const DOCUMENT: &str = "docs/scale.md";
/// The plot in it.
const PLOT: &str = "docs/varp.svg";

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// A table with aligned columns; all but the first are numbers.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |at: usize| {
        let cells = rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count());
        cells.chain([head[at].chars().count(), 3]).max().unwrap_or(3)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &[String]| {
        let padded = cells.iter().zip(&widths).enumerate().map(|(at, (cell, width))| match at {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        format!("| {} |\n", padded.collect::<Vec<_>>().join(" | "))
    };
    let rule = widths.iter().enumerate().map(|(at, &width)| match at {
        0 => "-".repeat(width),
        _ => format!("{}:", "-".repeat(width - 1)),
    });
    let rule = format!("| {} |\n", rule.collect::<Vec<_>>().join(" | "));
    let head: Vec<String> = head.iter().map(|&cell| cell.to_owned()).collect();
    line(&head) + &rule + &rows.iter().map(|row| line(row)).collect::<String>()
}

/// Replaces a section of the document.
pub(crate) fn write_section(name: &str, text: &str) {
    let (begin, end) = (format!("<!-- {name}: begin -->\n"), format!("<!-- {name}: end -->\n"));
    let file = path(DOCUMENT);
    let document = fs::read_to_string(&file).expect(DOCUMENT);
    let (before, rest) = document.split_once(&begin).expect("the section's begin");
    let (_, after) = rest.split_once(&end).expect("the section's end");
    fs::write(file, format!("{before}{begin}{text}{end}{after}")).expect(DOCUMENT);
}

/// Replaces the plot.
pub(crate) fn write_plot(svg: &str) {
    fs::write(path(PLOT), svg).expect(PLOT);
}
