//! The command line of `vhost-user-vnet`.

use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::{ArgGroup, Parser};

use super::values::{SourceMacValue, ViewValue};
use crate::config::{DEFAULT_SOCKET, SocketMode};
use crate::limiter::units::{Rate, Size};
use crate::policy::Level;
use crate::port::guard::Prefix;
use crate::port::throttle::Limits;
use crate::wire::control::{MAX_MACS, MAX_QUEUE_PAIRS};
use crate::wire::{Mac, VnetId};

/// The forms of the command. clap's own usage line would show the required options as optional.
const USAGE: &str = "vhost-user-vnet --socket-path PATH [--client] --vnet ID --mac MAC [OPTIONS]
       vhost-user-vnet --fd N --vnet ID --mac MAC [OPTIONS]
       vhost-user-vnet --print-capabilities";

/// Serves a guest's NIC on a vnet to QEMU, over vhost-user.
///
/// Run one process per NIC. varpd must run on the same host. The process stays in the foreground, ends on
/// SIGTERM, and needs no privileges. Any user who may connect to varpd's socket can start it; if the vnet
/// has a list of users (allow-users, allow-groups), only users on the list and root can.
#[derive(Debug, Parser)]
#[command(name = "vhost-user-vnet", version, max_term_width = 100, override_usage = USAGE)]
#[command(group = ArgGroup::new("limits").args(["rate_out", "rate_in"]).multiple(true))]
#[command(group = ArgGroup::new("frontend").args(["socket_path", "fd", "print_capabilities"]).required(true))]
pub struct Backend {
    /// Listen on this Unix socket for QEMU (with --client: connect to it).
    #[arg(long, value_name = "PATH")]
    pub socket_path: Option<PathBuf>,

    /// Connect to --socket-path, where QEMU listens; reconnect whenever the connection ends.
    #[arg(long, requires = "socket_path", conflicts_with = "fd")]
    pub client: bool,

    /// Serve this inherited descriptor: a listening socket, or a connection; the backend ends with the connection.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(RawFd).range(0..))]
    pub fd: Option<RawFd>,

    /// Required. The NIC's vnet: 2 to 4294967295, decimal, or hexadecimal with 0x.
    #[arg(long, value_name = "ID", value_parser = nic_vnet, required_unless_present = "print_capabilities")]
    pub vnet: Option<VnetId>,

    /// Required. The NIC's MAC address, as in QEMU's -device option.
    #[arg(long, value_parser = nic_mac, required_unless_present = "print_capabilities")]
    pub mac: Option<Mac>,

    /// Control socket of this host's varpd.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub varpd: PathBuf,

    /// Number of queue pairs, each with a thread of its own (QEMU: -netdev queues=N).
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_QUEUE_PAIRS)))]
    pub queue_pairs: u8,

    /// MTU offered to the guest, in bytes [default: the largest that fits the underlay].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(68..))]
    pub mtu: Option<u16>,

    /// Deliver only frames with complete checksums and one segment each.
    ///
    /// For guests that load an XDP program, see XDP. Restart the guest's QEMU after changing this option.
    #[arg(long)]
    pub no_receive_offloads: bool,

    /// Let the guest be a bridge: allow up to N other source MAC addresses, at most 256.
    ///
    /// Other hosts resolve each as if it had a NIC of its own. The backend forgets an address that is not used for
    /// 300 seconds. An address that appears behind another NIC moves there.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=MAX_MACS as i64))]
    pub learn: u16,

    /// How to treat frames whose source MAC address is neither the NIC's nor one that --learn allows.
    #[arg(long, value_name = "ACTION", value_enum, default_value_t)]
    pub source_mac: SourceMacValue,

    /// Let the guest send only from this IPv4 or IPv6 address or prefix, such as 192.0.2.7 or 2001:db8:0:1::/64; can be
    /// repeated, or take a list with commas [default: any].
    ///
    /// The backend drops frames from other addresses (IP, ARP, neighbour discovery), of DHCP servers and routers,
    /// and of other protocols; see ADDRESSES.
    #[arg(long, value_name = "ADDRESS[/BITS]", value_delimiter = ',')]
    pub allow_ip: Vec<Prefix>,

    /// Carry frames only while the vnet's policy in varpd.toml is at least this: none, auth or conf.
    ///
    /// Otherwise the backend serves QEMU, carries no frames, logs why, and checks again whenever varpd restarts.
    #[arg(long, value_name = "LEVEL", default_value_t, hide_default_value = true)]
    pub policy: Level,

    /// Limit for the guest's sending, in bits per second of Ethernet frames without FCS: a number
    /// with k, M or G (powers of 1000), such as 100M or 2.5gbit. Excess frames wait in the guest's ring
    /// [default: no limit].
    #[arg(long, value_name = "RATE")]
    pub rate_out: Option<Rate>,

    /// Limit for the guest's receiving, in the same form. Excess frames wait in the vif's sockets [default: no limit].
    #[arg(long, value_name = "RATE")]
    pub rate_in: Option<Rate>,

    /// Limit for the guest's sending, in frames per second; the burst is 15 ms at this rate, at least 32. A large frame
    /// counts as the frames into which it is cut. Excess frames wait in the guest's ring [default: no limit].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub frames_out: Option<u32>,

    /// Bytes to add to each frame's length in all bit rates. With 50 (70 over IPv6, 34 more on a secured vnet)
    /// the limits count the underlay's Ethernet frames. A frame counts as 128 bytes at least.
    #[arg(long, value_name = "BYTES", default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=1000))]
    pub rate_overhead: u16,

    /// Burst of --rate-out and --rate-in, in bytes: a number with k or M (powers of 1024)
    /// [default: 15 ms at the rate].
    #[arg(long, value_name = "SIZE", requires = "limits")]
    pub burst: Option<Size>,

    /// Limit for broadcast and multicast that the guest sends, in bits per second like --rate-out. Excess
    /// frames are dropped [default: no limit].
    #[arg(long, value_name = "RATE")]
    pub group_rate: Option<Rate>,

    /// Burst of --group-rate, in bytes [default: 100 ms at the rate, at least 16k].
    #[arg(long, value_name = "SIZE", requires = "group_rate")]
    pub group_burst: Option<Size>,

    /// Limit for broadcast and multicast that the guest sends, in frames per second; the burst is a tenth of it, at
    /// least 32. Excess frames are dropped [default: no limit].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub group_frames: Option<u32>,

    /// Poll for frames for up to this long before sleeping, while frames arrive in quick succession: 0 to 1000.
    ///
    /// This reduces latency at the cost of processor time; an idle NIC costs nothing. Try 50 first. See LATENCY.
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=1000))]
    pub busy_poll: u16,

    /// Permission bits of the listening socket, octal.
    #[arg(long, value_name = "MODE", default_value = "0660")]
    pub socket_mode: SocketMode,

    /// Group of the listening socket, by name or number; libvirt's QEMU needs kvm.
    #[arg(long, value_name = "GROUP")]
    pub socket_group: Option<String>,

    /// Serve only frontends of this user, by name or number; can be repeated, or take a list with commas [default:
    /// every user who may connect].
    ///
    /// Root may always connect. With --client: connect only to a QEMU of this user.
    #[arg(long, value_name = "USER", value_delimiter = ',')]
    pub frontend_user: Vec<String>,

    /// Print the backend's type as JSON and exit (QEMU's convention for vhost-user backends).
    #[arg(long)]
    pub print_capabilities: bool,

    /// Directories that the process can see after its start; see CONFINEMENT.
    #[arg(long, value_name = "VIEW", value_enum, default_value_t)]
    pub view: ViewValue,

    /// Do not confine the process, for debugging. Never use this with untrusted guests.
    #[arg(long)]
    pub no_sandbox: bool,

    /// Log more; given twice, log every message exchanged with QEMU. RUST_LOG overrides it.
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

impl Backend {
    /// The requested rate limits.
    pub fn limits(&self) -> Limits {
        Limits {
            rate_out: self.rate_out,
            rate_in: self.rate_in,
            frames_out: self.frames_out,
            overhead: self.rate_overhead,
            burst: self.burst,
            group_rate: self.group_rate,
            group_burst: self.group_burst,
            group_frames: self.group_frames,
        }
    }
}

/// A vnet that NICs can be on.
fn nic_vnet(text: &str) -> Result<VnetId, String> {
    let vnet: VnetId = text.parse()?;
    if vnet.is_physical() {
        return Err("vnet 1 is the physical network, which vnet does not serve".to_owned());
    }
    Ok(vnet)
}

/// A MAC address that a NIC can have.
fn nic_mac(text: &str) -> Result<Mac, String> {
    let mac: Mac = text.parse()?;
    if !mac.is_individual() {
        return Err("a group address or zero, which no NIC can have".to_owned());
    }
    Ok(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Backend, clap::Error> {
        Backend::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_promised_command_lines_parse() {
        let mac = "--vnet 0x2a --mac 52:54:00:00:00:01";
        let options = parse(&format!("b --socket-path /s {mac}")).unwrap();
        assert_eq!(options.vnet, VnetId::new(42));
        assert!(!options.client);
        assert_eq!(options.busy_poll, 0, "off unless asked for");
        assert_eq!(options.policy, Level::None, "any unless asked for");
        let kept = parse(&format!("b --socket-path /s --policy conf {mac}")).unwrap();
        assert_eq!(kept.policy, Level::Conf);
        assert!(parse(&format!("b --socket-path /s --client {mac}")).unwrap().client);
        assert_eq!(parse(&format!("b --fd 3 {mac}")).unwrap().fd, Some(3));
        assert!(parse("b --print-capabilities").unwrap().print_capabilities);
        let lists = "--allow-ip 192.0.2.7,2001:db8::/64 --allow-ip 198.51.100.0/24";
        let allowed = parse(&format!("b --socket-path /s {mac} {lists}")).unwrap().allow_ip;
        let shown: Vec<String> = allowed.iter().map(Prefix::to_string).collect();
        assert_eq!(shown, ["192.0.2.7", "2001:db8::/64", "198.51.100.0/24"]);
        let users = "--frontend-user libvirt-qemu,1000 --frontend-user qemu";
        let users = parse(&format!("b --socket-path /s {mac} {users}")).unwrap().frontend_user;
        assert_eq!(users, ["libvirt-qemu", "1000", "qemu"]);
        let rates = "--rate-out 100M --rate-in 1gbit --burst 2M --group-rate 5M --group-frames 500 \
                     --frames-out 9000 --rate-overhead 68";
        let limits = parse(&format!("b --socket-path /s {mac} {rates}")).unwrap().limits();
        let shown = "out 100Mbit/s, in 1Gbit/s, to groups 5Mbit/s, out 9000 frames/s, to groups 500 \
                     frames/s, 68 bytes more a frame";
        assert_eq!(limits.to_string(), shown);
    }

    #[test]
    fn contradictions_are_refused() {
        let mac = "--vnet 42 --mac 52:54:00:00:00:01";
        for line in [
            mac.to_owned(),
            format!("--fd 3 --socket-path /s {mac}"),
            format!("--fd 3 --client {mac}"),
            "--socket-path /s --mac 52:54:00:00:00:01".to_owned(),
            "--socket-path /s --vnet 42".to_owned(),
            "--socket-path /s --vnet 0 --mac 52:54:00:00:00:01".to_owned(),
            "--socket-path /s --vnet 1 --mac 52:54:00:00:00:01".to_owned(),
            "--socket-path /s --vnet 42 --mac 52:54:00:00:00".to_owned(),
            "--socket-path /s --vnet 42 --mac 53:54:00:00:00:01".to_owned(),
            format!("--socket-path /s --queue-pairs 0 {mac}"),
            format!("--socket-path /s --busy-poll 1001 {mac}"),
            format!("--socket-path /s --socket-mode 888 {mac}"),
            format!("--socket-path /s --policy secret {mac}"),
            format!("--socket-path /s --rate-in 10mbps {mac}"),
            format!("--socket-path /s --rate-out 0 {mac}"),
            format!("--socket-path /s --burst 64k {mac}"),
            format!("--socket-path /s --group-burst 64k {mac}"),
            format!("--socket-path /s --group-frames 0 {mac}"),
            format!("--socket-path /s --frames-out 0 {mac}"),
            format!("--socket-path /s --allow-ip 192.0.2.1/24 {mac}"),
            format!("--socket-path /s --allow-ip 192.0.2.1, {mac}"),
            format!("--socket-path /s --allow-ip 224.0.0.1 {mac}"),
            format!("--socket-path /s --allow-ip= {mac}"),
        ] {
            assert!(parse(&format!("b {line}")).is_err(), "{line}");
        }
    }
}
