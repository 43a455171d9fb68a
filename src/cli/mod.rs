//! The command lines: one definition each feeds parsing, `--help` and the man page.

#![forbid(unsafe_code)]

pub mod backend;
pub mod values;
pub mod varpd;
pub mod vnet;

use clap::CommandFactory;

/// A program's manual page.
#[derive(Debug)]
pub struct Page {
    /// The program.
    pub command: clap::Command,
    /// Section of the manual.
    pub section: &'static str,
}

/// All manual pages that are made from command lines. `tests/man.rs` writes each to
/// `man/NAME.SECTION`, with the hand-written `man/NAME.SECTION.extra` at its end.
pub fn pages() -> Vec<Page> {
    vec![
        Page { command: backend::Backend::command(), section: "1" },
        Page { command: varpd::Args::command(), section: "8" },
        Page { command: vnet::Args::command(), section: "1" },
    ]
}

/// Starts logging to standard error; `RUST_LOG` overrides how much.
pub fn start_log(verbose: u8, quiet: bool) {
    let level = match (quiet, verbose) {
        (true, _) => "warn",
        (false, 0) => "info",
        (false, 1) => "debug",
        (false, _) => "trace",
    };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(level))
        .format_timestamp_millis()
        .format_target(false)
        .init();
}

#[cfg(test)]
mod tests {
    #[test]
    fn definitions_are_consistent() {
        for page in super::pages() {
            page.command.debug_assert();
        }
    }
}
