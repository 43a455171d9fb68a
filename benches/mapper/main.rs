//! What resolution costs as it grows, without a network: the shipped mapper and the shipped table of
//! a backend, in one process.
//!
//! ```text
//! cargo bench --bench mapper                 both parts; some minutes
//! cargo bench --bench mapper -- cost         time and memory per entry, vif, expiry, sprayed MAC
//! cargo bench --bench mapper -- traffic      VARP messages of many hosts, cold start and steady
//!                             --quick        small sizes only
//!                             --write        puts tables and plot into docs/scale.md, docs/varp.svg
//! ```
//!
//! Times are CPU times of this thread, the least of several rounds, so that other processes hardly
//! show in them; ratios are against the same at 10^3 entries.

mod cost;
mod plot;
mod report;
mod traffic;
mod world;

use std::process::ExitCode;

fn main() -> ExitCode {
    // Cargo adds --bench.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    // Of itself, for a process of its own.
    if let [mode, what, size] = args.as_slice()
        && mode == "memory"
    {
        println!("{:.0}", cost::memory(what, size.parse().expect("a number")));
        return ExitCode::SUCCESS;
    }
    let has = |name: &str| args.iter().any(|arg| arg == name);
    let known = ["cost", "traffic", "--quick", "--write"];
    if let Some(unknown) = args.iter().find(|arg| !known.contains(&arg.as_str())) {
        eprintln!("mapper: unknown argument {unknown}: cost, traffic, --quick, --write");
        return ExitCode::from(2);
    }
    let both = !has("cost") && !has("traffic");
    let quick = has("--quick");
    let mut sections = Vec::new();
    if both || has("cost") {
        sections.push(("cost", cost::run(quick)));
    }
    if both || has("traffic") {
        let (table, svg) = traffic::run(quick);
        sections.push(("traffic", table));
        if has("--write") && !quick {
            report::write_plot(&svg);
        }
    }
    for (name, text) in &sections {
        println!("{text}");
        if has("--write") && !quick {
            report::write_section(name, text);
        }
    }
    ExitCode::SUCCESS
}
