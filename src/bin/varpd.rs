//! varpd: see `vnet::varpd` and varpd(8).

use std::process::ExitCode;

use clap::Parser;
use vnet::cli::{self, varpd::Args};
use vnet::varpd::{VarpdError, run};

fn main() -> ExitCode {
    let args = Args::parse();
    cli::start_log(args.verbose, args.quiet);
    match args.config().map_err(VarpdError::from).and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("varpd: {e}");
            ExitCode::from(e.exit_status())
        }
    }
}
