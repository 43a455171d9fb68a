//! Where results go: files of every run, and with `--write` those that are kept in the repository.

use std::io;
use std::path::Path;

use crate::options::Options;
use crate::plot;
use crate::report::{self, Machine, Row};

/// The repository.
const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// What `--write` replaces in BENCHMARKS.md is between these lines.
const BEGIN: &str = "<!-- benches/run --write: begin -->";
const END: &str = "<!-- benches/run --write: end -->";

/// Writes `tunnel.json` and `tunnel.svg`, and if it was asked for, updates the repository.
pub(crate) fn write(options: &Options, machine: &Machine, rows: &[Row]) -> io::Result<()> {
    let output = Path::new(ROOT).join(&options.output);
    files(&output, options, machine, rows)?;
    println!("figures and plot: {}", output.join("tunnel.{json,svg}").display());
    if options.write {
        files(&Path::new(ROOT).join("benches/results"), options, machine, rows)?;
        update(&Path::new(ROOT).join("BENCHMARKS.md"), &section(options, machine, rows))?;
        println!("BENCHMARKS.md and benches/results are up to date");
    }
    Ok(())
}

fn files(directory: &Path, options: &Options, machine: &Machine, rows: &[Row]) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    let rounds = (options.rounds(), options.time());
    report::write_json(&directory.join("tunnel.json"), machine, rounds, rows)?;
    let below = format!("{}; medians of {} rounds, line: all rounds", machine.text(), rounds.0);
    std::fs::write(directory.join("tunnel.svg"), plot::svg(rows, &below))
}

fn section(options: &Options, machine: &Machine, rows: &[Row]) -> String {
    let others = rows.iter().map(|row| row.others).fold(0.0, f64::max) * 100.0;
    format!(
        "Measured on {}; medians of {} rounds of {} ms each. Other processes took at most {others:.0} % of\n\
         the processors in a case.\n\n{}\n![plot](benches/results/tunnel.svg)\n",
        machine.text(),
        options.rounds(),
        options.time().as_millis(),
        report::table(rows),
    )
}

/// Replaces what is between the two lines of the file.
fn update(path: &Path, section: &str) -> io::Result<()> {
    let text = std::fs::read_to_string(path)?;
    let parts = text.split_once(BEGIN).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(END)?;
        Some((before, after))
    });
    let Some((before, after)) = parts else {
        let what = format!("{}: the lines {BEGIN} and {END} are missing", path.display());
        return Err(io::Error::other(what));
    };
    std::fs::write(path, format!("{before}{BEGIN}\n{section}{END}{after}"))
}
