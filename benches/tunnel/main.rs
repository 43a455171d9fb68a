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

use std::io;
use std::process::ExitCode;

use clap::Parser;

use cases::Group;
use options::Options;
use report::{Machine, Row};
use subject::Kind;

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
    let expected = groups.iter().flat_map(|group| {
        group.works.iter().map(|&work| group.case_name(work)).filter(|name| options.wants(name))
    });
    let expected: Vec<String> = expected.collect();
    if expected.is_empty() {
        return Err(io::Error::other("there is no such case, see --list"));
    }
    check(&expected, &rows)?;
    println!("{}", machine.text());
    print!("{}", report::table(&rows));
    publish::write(options, &machine, &rows)
}

/// Runs all groups; prints progress to standard error.
fn measure(options: &Options, groups: &[Group]) -> io::Result<Vec<Row>> {
    let directory = tempfile::tempdir()?;
    let id = std::env::var("VNET_BENCH_ID").unwrap_or_else(|_| std::process::id().to_string());
    let mut rows = Vec::new();
    for (number, group) in groups.iter().enumerate() {
        let prefix = format!("vnet-bench-{id}-{number}");
        rows.extend(cases::run(group, options, &prefix, directory.path())?);
    }
    Ok(rows)
}

/// A case that has passed nothing, or has no row, is a failure, not a figure.
fn check(expected: &[String], rows: &[Row]) -> io::Result<()> {
    for name in expected {
        for kind in [Kind::Vnet, Kind::Kernel] {
            let row = rows.iter().find(|row| row.case == *name && row.subject == kind);
            let figure = row.and_then(|row| row.goodput_gbit_s.or(row.rtt_p50_us));
            if figure.is_none_or(|figure| figure.median <= 0.0) {
                return Err(io::Error::other(format!("{name}: {kind:?} has passed nothing")));
            }
        }
    }
    Ok(())
}
