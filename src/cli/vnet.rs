//! The command line of vnet, the operator's command.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

use crate::wire::control::Table;
use crate::wire::{Mac, VnetId};

/// Show and control the virtual networks of this host
///
/// vnet asks varpd, over its control socket, what it and this host's vifs know and do.
#[derive(Clone, Debug, Parser)]
#[command(name = "vnet", version, subcommand_value_name = "COMMAND")]
pub struct Args {
    /// varpd's socket for operators, or its control socket [default: /run/varpd/operator.sock if there is one,
    /// else /run/varpd/varpd.sock]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Print JSON: an array of objects; for monitor an object per line
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
        /// Which
        #[arg(value_name = "TABLE")]
        table: ShowTable,
        /// Only what belongs to this vnet or vif
        #[command(flatten)]
        filter: Filter,
    },
    /// Make and exchange the keys of secured vnets; needs no varpd but to give up an old key
    #[command(subcommand_value_name = "COMMAND")]
    Key {
        /// What to do
        #[command(subcommand)]
        action: KeyAction,
    },
    /// Print what happens to addresses, as it happens
    ///
    /// One line per event, until interrupted: resolved, unresolved, moved, expired, evicted (addresses of others), claimed, lost
    /// (vifs of this host), conflict, damped, implausible, unusable (look after these), missed (this monitor was too slow).
    Monitor {
        /// Only of this vnet or vif
        #[command(flatten)]
        filter: Filter,
    },
    /// Forget resolved addresses; they are asked for anew when next needed
    Flush {
        /// Only of this vnet or vif
        #[command(flatten)]
        filter: Filter,
    },
}

/// What to do with a key file.
#[derive(Clone, Debug, Subcommand)]
pub enum KeyAction {
    /// Write a new key to a file that does not exist yet, and print its fingerprint
    Generate {
        /// The file; group and others must not be able to enter its directory
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// User, by name or number, whose file it is to be: varpd's [default: the directory's owner]
        #[arg(long, value_name = "USER")]
        owner: Option<String>,
    },
    /// Print the fingerprints of the keys in a file
    ShowFingerprint {
        /// The file
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Take a file one of three steps further: accept a new key as well, use it, give up the old one
    ///
    /// The third step cuts off hosts that still use the old key. So varpd is asked first, and the step refused while
    /// it knows such hosts, or can't tell because it does not run here or has no vif on the vnet.
    Rotate {
        /// The file
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Give up the old key whoever still uses it
        #[arg(long)]
        force: bool,
    },
}

/// Selects rows or cache entries; without any, all.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct Filter {
    /// Only this vnet, decimal or 0x hex
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
    /// The hosts with which keys of secured vnets are agreed on
    Peers,
}

impl From<ShowTable> for Table {
    fn from(table: ShowTable) -> Self {
        match table {
            ShowTable::Vnets => Self::Vnets,
            ShowTable::Vifs => Self::Vifs,
            ShowTable::Varp => Self::Varp,
            ShowTable::Stats => Self::Stats,
            ShowTable::Peers => Self::Peers,
        }
    }
}
