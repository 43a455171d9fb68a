//! The command line of vnet, the operator's command.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

use crate::wire::control::Table;
use crate::wire::{Mac, VnetId};

/// Show and control the virtual networks of this host
///
/// vnet asks varpd over its control socket. Root and operators may use it, see varpd(8).
#[derive(Clone, Debug, Parser)]
#[command(name = "vnet", version, subcommand_value_name = "COMMAND")]
pub struct Args {
    /// varpd's socket for operators, or its control socket [default: /run/varpd/operator.sock if there is one,
    /// else /run/varpd/varpd.sock]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Print JSON: show prints an array of objects, monitor an object per line
    #[arg(short, long)]
    pub json: bool,
    /// What to do
    #[command(subcommand)]
    pub action: Action,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Action {
    /// Print a table
    #[command(arg_required_else_help = true)]
    Show {
        /// Table to print
        #[arg(value_name = "TABLE")]
        table: ShowTable,
        /// Only rows of this vnet or vif
        #[command(flatten)]
        filter: Filter,
    },
    /// Make and replace the keys of secured vnets
    #[command(subcommand_value_name = "COMMAND")]
    Key {
        /// What to do
        #[command(subcommand)]
        action: KeyAction,
    },
    /// Print events of address resolution as they happen
    ///
    /// Prints one line per event until interrupted. Addresses on other hosts: resolved, unresolved, moved, expired, evicted.
    /// Vifs of this host: claimed, lost. Problems: conflict, damped, implausible, unusable. If this monitor reads too
    /// slowly: missed. See EVENTS.
    Monitor {
        /// Only events of this vnet or vif
        #[command(flatten)]
        filter: Filter,
    },
    /// Forget resolved addresses; varpd resolves them again when they are needed
    Flush {
        /// Only addresses of this vnet or vif
        #[command(flatten)]
        filter: Filter,
    },
}

/// What to do with a key file.
#[derive(Clone, Debug, Subcommand)]
pub enum KeyAction {
    /// Make a key in a new file, and print its fingerprint
    Generate {
        /// File that does not exist yet; group and others must not be able to enter its directory
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Owner of the file, by name or number: the user that varpd runs as [default: the directory's owner]
        #[arg(long, value_name = "USER")]
        owner: Option<String>,
    },
    /// Print the fingerprints of the keys in a file
    ShowFingerprint {
        /// The file
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Replace the key, one of three steps at a time: accept a new key as well, use it, give up the old one
    ///
    /// The third step cuts off hosts that still use the old key. The command therefore asks varpd first, and refuses the
    /// step while varpd knows such hosts, does not run here, or has no vif on the vnet. See KEYS.
    Rotate {
        /// The file
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Take the third step without asking varpd
        #[arg(long)]
        force: bool,
    },
}

/// Selects rows or cache entries; all if empty.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct Filter {
    /// Only this vnet, decimal, or hexadecimal with 0x
    #[arg(long, value_name = "ID")]
    pub vnet: Option<VnetId>,
    /// Only this MAC address
    #[arg(long, value_name = "MAC")]
    pub mac: Option<Mac>,
}

/// The tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ShowTable {
    /// The vnets that have vifs on this host
    Vnets,
    /// The vifs on this host
    Vifs,
    /// The cache of resolved addresses
    Varp,
    /// Counters of varpd and of the vifs
    Stats,
    /// The hosts with which this host has agreed on keys of secured vnets
    Peers,
    /// The other hosts, and whether they have set up the vnets of this host as this one has
    Hosts,
}

impl From<ShowTable> for Table {
    fn from(table: ShowTable) -> Self {
        match table {
            ShowTable::Vnets => Self::Vnets,
            ShowTable::Vifs => Self::Vifs,
            ShowTable::Varp => Self::Varp,
            ShowTable::Stats => Self::Stats,
            ShowTable::Peers => Self::Peers,
            ShowTable::Hosts => Self::Hosts,
        }
    }
}
