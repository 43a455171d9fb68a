//! vnet: see `vnet::operator` and vnet(1).

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use vnet::cli::vnet::Args;
use vnet::operator;

fn main() -> ExitCode {
    match operator::run(&Args::parse()) {
        // A reader that has seen enough (`vnet show varp | head`) is no failure.
        Ok(text) => {
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("vnet: {e}");
            ExitCode::from(e.exit_code())
        }
    }
}
