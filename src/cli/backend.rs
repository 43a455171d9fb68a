//! The command line of `vhost-user-vnet`.

use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::{ArgGroup, Parser};

use crate::config::SocketMode;
use crate::limiter::units::{Rate, Size};
use crate::security::Level;
use crate::vif::guard::Prefix;
use crate::vif::serve::View;
use crate::vif::throttle::Limits;
use crate::vif::tx::SourceMac;
use crate::wire::{Mac, VnetId};

/// The forms of the command; what clap would make of the options shows the required ones as optional.
const USAGE: &str = "vhost-user-vnet --socket-path PATH [--client] --vnet ID --mac MAC [OPTIONS]
       vhost-user-vnet --fd N --vnet ID --mac MAC [OPTIONS]
       vhost-user-vnet --print-capabilities";

/// Serves a guest's NIC on a vnet to QEMU, over vhost-user.
///
/// Run one per NIC. varpd must run on the same host. The process stays in the foreground, ends on
/// SIGTERM, and needs no privileges: any user who may connect to varpd's socket can start it, unless
/// varpd has a list of users for the vnet (allow-users) on which that user is not.
#[derive(Debug, Parser)]
#[command(name = "vhost-user-vnet", version, max_term_width = 100, override_usage = USAGE)]
#[command(group = ArgGroup::new("limits").args(["rate_out", "rate_in"]).multiple(true))]
#[command(group = ArgGroup::new("frontend").args(["socket_path", "fd", "print_capabilities"]).required(true))]
pub struct Backend {
    /// Listen on this Unix socket for QEMU (or connect to it, with --client).
    #[arg(long, value_name = "PATH")]
    pub socket_path: Option<PathBuf>,

    /// QEMU listens on --socket-path: connect to it, again and again for ever.
    #[arg(long, requires = "socket_path", conflicts_with = "fd")]
    pub client: bool,

    /// Serve the vhost-user connection on this inherited descriptor; end when it ends.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(RawFd).range(0..))]
    pub fd: Option<RawFd>,

    /// Required. The vnet that the NIC is on: 2 to 4294967295, decimal or 0x hex.
    #[arg(long, value_name = "ID", value_parser = nic_vnet, required_unless_present = "print_capabilities")]
    pub vnet: Option<VnetId>,

    /// Required. The NIC's MAC address, the same as in QEMU's -device option.
    #[arg(long, value_parser = nic_mac, required_unless_present = "print_capabilities")]
    pub mac: Option<Mac>,

    /// Socket of the host's varpd.
    #[arg(long, value_name = "PATH", default_value = "/run/varpd/varpd.sock")]
    pub varpd: PathBuf,

    /// Number of queue pairs, each with a thread of its own (QEMU: -netdev queues=N).
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub queue_pairs: u8,

    /// MTU in bytes that guests are told [default: what fits the underlay].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(68..))]
    pub mtu: Option<u16>,

    /// Give the guest plain frames only: with their checksums computed, and one segment in each.
    ///
    /// For guests that load an XDP program: see XDP. A guest whose QEMU runs must be started anew after a change of
    /// this option.
    #[arg(long)]
    pub no_receive_offloads: bool,

    /// Let the guest be a bridge or router: it may send from so many other MACs, at most 256, too.
    ///
    /// Each is found by the others as if it were a NIC of its own, as long as it is used; one that is not used for 300 seconds is
    /// forgotten. A MAC that is seen behind another NIC later, follows.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=256))]
    pub learn: u16,

    /// What happens to frames whose source MAC is not the NIC's, nor one of --learn.
    #[arg(long, value_name = "ACTION", value_enum, default_value_t)]
    pub source_mac: SourceMac,

    /// Keep the guest to this IPv4 or IPv6 address or prefix, as in 192.0.2.7 or 2001:db8:0:1::/64; may be given
    /// several times, or with commas [default: any].
    ///
    /// What it sends from another address (IP, ARP, neighbour discovery), as DHCP server or router, or in another
    /// protocol, is dropped; see ADDRESSES.
    #[arg(long, value_name = "ADDRESS[/BITS]", value_delimiter = ',')]
    pub allow_ip: Vec<Prefix>,

    /// Carry frames only while the vnet's policy in varpd.toml is at least this: none, auth or conf.
    ///
    /// Otherwise the backend serves QEMU, carries nothing, says so, and looks again whenever varpd was started anew.
    #[arg(long, value_name = "LEVEL", default_value_t, hide_default_value = true)]
    pub policy: Level,

    /// Most that the guest may send, in bits per second of its Ethernet frames without FCS: a number
    /// with k, M or G (powers of 1000), as in 100M or 2.5gbit. What is more waits in its ring
    /// [default: no limit].
    #[arg(long, value_name = "RATE")]
    pub rate_out: Option<Rate>,

    /// Most that the guest is given, likewise. What is more waits in the vif's sockets.
    #[arg(long, value_name = "RATE")]
    pub rate_in: Option<Rate>,

    /// Most frames that the guest may send per second; at once 15 ms' worth, at least 32. A large frame that is cut
    /// counts as what it becomes. What is more waits in its ring [default: no limit].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub frames_out: Option<u32>,

    /// Bytes that each frame counts besides its own, in all rates: with 50 (70 over IPv6, 34 more on a secured vnet)
    /// they are those of the underlay's Ethernet frames. However short, a frame counts as 128 bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=1000))]
    pub rate_overhead: u16,

    /// Bytes that may pass at once after a pause, in each direction that is limited: a number with k or
    /// M (powers of 1024) [default: 15 ms at the rate].
    #[arg(long, value_name = "SIZE", requires = "limits")]
    pub burst: Option<Size>,

    /// Most that the guest may send to groups (broadcast, multicast), in bits per second like
    /// --rate-out. What is more is dropped [default: no limit].
    #[arg(long, value_name = "RATE")]
    pub group_rate: Option<Rate>,

    /// Bytes that may pass to groups at once [default: 100 ms at --group-rate, at least 16k].
    #[arg(long, value_name = "SIZE", requires = "group_rate")]
    pub group_burst: Option<Size>,

    /// Most frames per second to groups; at once a tenth of them, at least 32. What is more is
    /// dropped [default: no limit].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub group_frames: Option<u32>,

    /// Look for frames for up to this long before sleeping, while they come quickly: 0 to 1000.
    ///
    /// Saves wake-ups at the price of processor time; an idle NIC costs nothing. 50 is a good start.
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=1000))]
    pub busy_poll: u16,

    /// Permission bits of the socket that is listened on, octal.
    #[arg(long, value_name = "MODE", default_value = "0660")]
    pub socket_mode: SocketMode,

    /// Group of the socket that is listened on, by name or number; libvirt's QEMU needs kvm.
    #[arg(long, value_name = "GROUP")]
    pub socket_group: Option<String>,

    /// Serve only frontends of this user, by name or number; may be given several times, or with commas [default:
    /// whoever may connect].
    ///
    /// Root may connect always. With --client: serve only a QEMU of this user that listens there.
    #[arg(long, value_name = "USER", value_delimiter = ',')]
    pub frontend_user: Vec<String>,

    /// Print what this backend is, as JSON, and exit (QEMU's convention for backends).
    #[arg(long)]
    pub print_capabilities: bool,

    /// Which directories the process sees once it has started; see CONFINEMENT.
    #[arg(long, value_name = "VIEW", value_enum, default_value_t)]
    pub view: View,

    /// Keep all rights of the user who starts it, for debugging. Never with guests that you don't
    /// trust.
    #[arg(long)]
    pub no_sandbox: bool,

    /// Log more; twice for every message exchanged with QEMU. RUST_LOG overrides it.
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

impl Backend {
    /// The rate limits that are asked for.
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
        return Err("vnet 1 is the physical network, which this version does not serve".to_owned());
    }
    Ok(vnet)
}

/// A MAC address that a NIC can have.
fn nic_mac(text: &str) -> Result<Mac, String> {
    let mac: Mac = text.parse()?;
    if !mac.is_individual() {
        return Err("a group address or zero, not the address of a NIC".to_owned());
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
