//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

/// Measures the project's programs, the kernel's bridge and VXLAN, and WireGuard, side by side.
///
/// Two hosts are made of network namespaces; all subjects carry the same frames between the same
/// stations, in turns. Every byte of payload is verified. See benches/run --help and BENCHMARKS.md.
#[derive(Debug, Parser)]
#[command(name = "benches/run", max_term_width = 100)]
pub(crate) struct Options {
    /// Shorter and fewer rounds: about three minutes
    #[arg(long)]
    pub(crate) quick: bool,
    /// One very short round per case, to see that everything works; its figures say nothing
    #[arg(long)]
    pub(crate) smoke: bool,
    /// Only cases whose name contains this; may be given several times
    #[arg(long, value_name = "CASE")]
    pub(crate) only: Vec<String>,
    /// Rounds per case; figures are the medians
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Print the names of the cases
    #[arg(long)]
    pub(crate) list: bool,
    /// Put the table into BENCHMARKS.md, and figures and plot into benches/results
    #[arg(long)]
    pub(crate) write: bool,
    /// Where figures and plot are put
    #[arg(long, value_name = "DIRECTORY", default_value = "target/bench")]
    pub(crate) output: PathBuf,
    /// Play one station (the program starts itself with this)
    #[arg(long, hide = true, value_name = "SETUP")]
    pub(crate) station: Option<String>,
    /// cargo bench passes this
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    /// Whether a case was asked for.
    pub(crate) fn wants(&self, case: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| case.contains(part.as_str()))
    }

    /// Rounds per case.
    pub(crate) fn rounds(&self) -> usize {
        let default = match (self.smoke, self.quick) {
            (true, _) => 1,
            (_, true) => 3,
            _ => 7,
        };
        self.rounds.unwrap_or(default).max(1)
    }

    /// Length of a round of one subject.
    pub(crate) fn time(&self) -> Duration {
        Duration::from_millis(match (self.smoke, self.quick) {
            (true, _) => 50,
            (_, true) => 500,
            _ => 1500,
        })
    }

    /// Length of a trial of a window.
    pub(crate) fn trial(&self) -> Duration {
        if self.quick { Duration::from_millis(200) } else { Duration::from_millis(500) }
    }
}
