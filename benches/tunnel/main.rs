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
mod process;
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

use options::Options;

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
    std::fs::create_dir_all(&options.output)?;
    let directory = tempfile::tempdir()?;
    let id = std::env::var("VNET_BENCH_ID").unwrap_or_else(|_| std::process::id().to_string());
    let mut rows = Vec::new();
    for (number, group) in groups.iter().enumerate() {
        let prefix = format!("vnet-bench-{id}-{number}");
        let more = cases::run(group, options, &prefix, directory.path())?;
        if !more.is_empty() {
            print!("{}", report::table(&more));
        }
        rows.extend(more);
    }
    let json = serde_json::to_vec_pretty(&rows)?;
    std::fs::write(options.output.join("tunnel.json"), json)?;
    print!("\n{}", report::table(&rows));
    Ok(())
}
