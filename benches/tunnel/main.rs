//! How fast, at what cost: the project's programs beside the kernel's own tunnel.

#[path = "../../tests/support/driver.rs"]
mod driver;

mod arrivals;
mod board;
mod cases;
mod cpu;
mod frames;
mod lane;
mod measure;
mod memory;
mod nic;
mod options;
mod pattern;
mod plot;
mod process;
mod publish;
mod report;
mod ring;
mod station;
mod subject;
mod tap;
mod topology;
mod traffic;
mod wireguard;

use std::io;
use std::process::ExitCode;

use clap::Parser;
use serde_json::Value;

use cases::Group;
use options::Options;
use report::{Machine, Row};

fn main() -> ExitCode {
    let options = Options::parse();
    let done = match &options.station {
        Some(setup) => station::run(setup),
        None => run(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("benches/run: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> io::Result<()> {
    let groups = cases::all();
    if options.list {
        for group in &groups {
            group.works.iter().for_each(|&work| println!("{}", group.case_name(work)));
        }
        return Ok(());
    }
    if !nix::unistd::geteuid().is_root() {
        return Err(io::Error::other("network namespaces need root"));
    }
    let machine = Machine::this()?;
    let rows = measure(options, &groups)?;
    let mut expected = Vec::new();
    for group in &groups {
        for work in &group.works {
            let name = group.case_name(*work);
            if options.wants(&name) {
                let subjects = group.subjects(*work).into_iter();
                expected.extend(subjects.map(|kind| (name.clone(), kind.name())));
            }
        }
    }
    if expected.is_empty() {
        return Err(io::Error::other("there is no such case, see --list"));
    }
    println!("{}", machine.text());
    print!("{}", report::table(&rows));
    let json = publish::write(options, &machine, &rows)?;
    check(&expected, &serde_json::from_slice(&std::fs::read(json)?)?)
}

/// Runs all groups; what is under way goes to standard error.
fn measure(options: &Options, groups: &[Group]) -> io::Result<Vec<Row>> {
    let directory = tempfile::tempdir()?;
    let id = bench_id();
    let mut rows = Vec::new();
    for (number, group) in groups.iter().enumerate() {
        let prefix = format!("vnet-bench-{id}-{number}");
        rows.extend(cases::run(group, options, &prefix, directory.path())?);
    }
    Ok(rows)
}

/// What the names of this run's namespaces and devices have in common, and those of no other.
fn bench_id() -> String {
    std::env::var("VNET_BENCH_ID").unwrap_or_else(|_| std::process::id().to_string())
}

/// A case that has passed nothing, or that is missing in the file, is a failure, not a figure.
fn check(expected: &[(String, &str)], results: &Value) -> io::Result<()> {
    let rows = results["rows"].as_array().map_or(&[][..], Vec::as_slice);
    for (name, subject) in expected {
        let row = rows.iter().find(|row| row["case"] == **name && row["subject"] == *subject);
        let passed = row.is_some_and(|row| {
            let figures = [&row["goodput_gbit_s"]["median"], &row["rtt_p50_us"]["median"]];
            figures.iter().any(|figure| figure.as_f64().is_some_and(|figure| figure > 0.0))
        });
        if !passed {
            return Err(io::Error::other(format!("{name}: {subject} has passed nothing")));
        }
    }
    Ok(())
}
