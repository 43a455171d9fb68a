//! vnet: see `vnet::operator` and vnet(1).

use std::process::ExitCode;

use clap::Parser;
use vnet::cli::vnet::Args;
use vnet::operator;

fn main() -> ExitCode {
    match operator::run(&Args::parse(), &mut std::io::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("vnet: {e}");
            ExitCode::from(e.exit_code())
        }
    }
}
