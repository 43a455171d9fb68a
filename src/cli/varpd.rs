//! The command line of varpd.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{ArgAction, Parser};

use crate::config::{Config, ConfigError, Group, Port, SocketMode};

/// Address resolution and registry of the virtual networks on this host
///
/// Run one varpd on each host. Together with the varpds of the other hosts on the underlay it finds the host
/// of each virtual interface (vif) of the virtual networks (vnets), and it opens the underlay sockets of this host's
/// vifs. The backends of the guests' NICs (vhost-user-vnet) and the operator's command (vnet) connect to its
/// control socket.
#[derive(Clone, Debug, Default, Parser)]
#[command(name = "varpd", version)]
pub struct Args {
    /// Configuration file [default: /etc/vnet/varpd.toml, if it exists]
    ///
    /// Options on the command line override it.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Path of the control socket [default: /run/varpd/varpd.sock]
    ///
    /// varpd replaces a socket that an earlier varpd has left.
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// User that varpd becomes if root starts it [default: varpd, if that user exists]
    ///
    /// varpd then has no capabilities. A process that it forks first, the opener, keeps CAP_NET_ADMIN, and uses it
    /// only to enlarge socket buffers.
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,
    /// Group, by name or number, of the control socket: backends must be in it [default: varpd's own group]
    #[arg(long, value_name = "GROUP")]
    pub socket_group: Option<String>,
    /// Path of a second socket, for operators: vnet show, monitor, flush
    ///
    /// Any user who can connect to it is an operator, but cannot register vifs through it. Its mode is 0660.
    #[arg(long, value_name = "PATH")]
    pub operator_socket: Option<PathBuf>,
    /// Group, by name or number, whose members are operators, as root always is; the operators' socket belongs to
    /// it [default: varpd's own group]
    #[arg(long, value_name = "GROUP")]
    pub operator_group: Option<String>,
    /// Permission bits of the control socket, octal [default: 0660]
    #[arg(long, value_name = "MODE")]
    pub socket_mode: Option<SocketMode>,
    /// Interface of the underlay
    ///
    /// varpd uses its first global IPv4 address, or IPv6 with --ipv6. Without --underlay and --address it chooses
    /// the only interface with such an address, or if there are several the one with the default route.
    /// It waits until there is one.
    #[arg(long, value_name = "IFACE", conflicts_with = "address")]
    pub underlay: Option<String>,
    /// Address on the underlay; varpd finds the interface that has it
    #[arg(long, value_name = "IP")]
    pub address: Option<IpAddr>,
    /// Use an IPv6 address of the underlay interface
    #[arg(short = '6', long)]
    pub ipv6: bool,
    /// Multicast group of VARP and of the vnets' broadcasts and multicasts [default: 224.10.0.1; ff15::e00a:1 on IPv6]
    #[arg(long, value_name = "ADDR")]
    pub group: Option<Group>,
    /// UDP port of VARP and of the multicast groups [default: 1798]
    #[arg(long, value_name = "PORT")]
    pub port: Option<Port>,
    /// Do not confine varpd, for debugging
    #[arg(long)]
    pub no_sandbox: bool,
    /// Log more; given twice, log every message
    #[arg(short, long, action = ArgAction::Count, conflicts_with = "quiet")]
    pub verbose: u8,
    /// Log only warnings and errors
    #[arg(short, long)]
    pub quiet: bool,
}

impl Args {
    /// The configuration: the file, overridden by the command line.
    pub fn config(&self) -> Result<Config, ConfigError> {
        let mut config = Config::load(self.config.as_deref())?;
        if let Some(socket) = &self.socket {
            config.socket.clone_from(socket);
        }
        if self.user.is_some() {
            config.user.clone_from(&self.user);
        }
        if self.socket_group.is_some() {
            config.socket_group.clone_from(&self.socket_group);
        }
        if self.operator_socket.is_some() {
            config.operator_socket.clone_from(&self.operator_socket);
        }
        if self.operator_group.is_some() {
            config.operator_group.clone_from(&self.operator_group);
        }
        // Either of the two stands for both.
        if self.underlay.is_some() || self.address.is_some() {
            config.underlay.clone_from(&self.underlay);
            config.address = self.address;
        }
        config.socket_mode = self.socket_mode.unwrap_or(config.socket_mode);
        config.sandbox &= !self.no_sandbox;
        config.ipv6 |= self.ipv6;
        config.group = self.group.or(config.group);
        config.port = self.port.unwrap_or(config.port);
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_overrides_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("varpd.toml");
        std::fs::write(&file, "socket = '/f'\nunderlay = 'eth0'\nport = 5\nttl = 7\n").unwrap();
        let file = file.to_str().unwrap();
        let args = ["varpd", "--config", file, "--address", "192.0.2.1", "--group", "224.9.9.9"];
        let config = Args::parse_from(args).config().unwrap();
        assert_eq!(config.socket, PathBuf::from("/f"));
        assert_eq!((config.underlay, config.address), (None, "192.0.2.1".parse().ok()));
        assert_eq!(config.group, "224.9.9.9".parse().ok());
        assert_eq!((config.port, config.ttl.0), (Port(5), 7));
    }

    #[test]
    fn wrong_values_are_named() {
        let complaint = |args: &[&str]| {
            Args::try_parse_from(["varpd"].iter().chain(args)).unwrap_err().to_string()
        };
        assert!(
            complaint(&["--group", "10.0.0.1"]).contains("10.0.0.1 is not a multicast address")
        );
        assert!(complaint(&["--port", "0"]).contains("0 is not a port"));
        assert!(
            complaint(&["--underlay", "a", "--address", "::1"]).contains("cannot be used with")
        );
        assert!(complaint(&["--socket-mode", "9"]).contains("not an octal mode"));
    }
}
