//! The same done by the kernels of the hosts, to compare with: a tap, a bridge, and VXLAN (RFC 7348)
//! that floods to a group and learns from what comes back, on the same hosts and the same underlay.
//!
//! ```text
//!    station             guest  <------------>  guest
//!      |                   |                      |              virtio-net, served by QEMU itself
//!    eth0, veth           tap0                   tap0
//!      |                   |                      |
//!     br0                 br0                    br0
//!      |                   |                      |
//!    vxlan0               vxlan0                 vxlan0          VNI 42, group 239.42.0.1
//!      |                   |                      |
//!     eth0 of host c      eth0 of host a         eth0 of host b
//! ```
//!
//! Who moves is learnt from the frames that QEMU (RARP) and the guest (gratuitous ARP) send on arrival.

use std::process::Command;

use serde_json::Value;

use crate::sniffer::Sniffer;
use crate::station::Station;
use crate::support::guest::{Guest, Qemu, Tap};
use crate::support::netns::Host;
use crate::support::wait_until;
use crate::{Site, newest_qemu};

use super::network::Network;
use super::{GUEST, LIMIT, PART, STATION_HOST};

/// VXLAN's UDP port.
const PORT: u16 = 4789;
/// Length of its header, behind which is the inner frame.
const HEADER_LEN: usize = 8;
/// MTU inside, in bytes.
const MTU: u32 = 1450;

/// The kernels' own tunnel between all hosts of a site.
pub(super) struct Kernel<'a> {
    qemu: Qemu,
    site: &'a Site,
}

impl<'a> Kernel<'a> {
    pub(super) fn new(site: &'a Site) -> Self {
        for host in 0..=STATION_HOST {
            add_bridge(site.underlay.host(host));
        }
        for host in [0, 1] {
            let host = site.underlay.host(host);
            host.ip("tuntap add tap0 mode tap vnet_hdr");
            host.ip(&format!("link set tap0 mtu {MTU} master br0 up"));
        }
        Self { qemu: newest_qemu(), site }
    }

    /// Where a host sends frames for the guest: the address of another host, if it has learnt one.
    fn learnt(&self, host: usize) -> Option<String> {
        let host = self.site.underlay.host(host);
        let output = output(host.command("bridge").args(["-j", "fdb", "show", "dev", "vxlan0"]));
        let table: Value = serde_json::from_str(&output).expect("JSON of the bridge command");
        let mut rows = table.as_array().expect("rows").iter();
        let row = rows.find(|row| row["mac"] == GUEST.mac() && row["dst"].is_string());
        Some(row?["dst"].as_str()?.to_owned())
    }
}

impl Network for Kernel<'_> {
    const NAME: &'static str = "kernel VXLAN";

    fn station(&self) -> Station {
        let underlay = &self.site.underlay;
        Station::on_bridge(underlay, underlay.host(STATION_HOST), "br0", PART)
    }

    fn start_guest(&self, name: &str, host: usize, awaits_migration: bool) -> Guest {
        let host = self.site.underlay.host(host);
        let tap = Tap { host, name: "tap0", mac: GUEST.mac(), mtu: MTU };
        let name = format!("kernel-{name}");
        Guest::start_on_tap(&name, self.qemu, &tap, awaits_migration, self.site.path())
    }

    /// All vifs of all vnets share a port: the inner frame tells for whom it is.
    fn look_out(&self, host: usize) -> Sniffer {
        let to = GUEST.mac_bytes();
        Sniffer::start(self.site.underlay.host(host), PORT, move |payload| {
            payload.get(HEADER_LEN..).is_some_and(|inner| inner.starts_with(&to))
        })
    }

    fn assert_at_home(&self, host: usize) {
        let address = self.site.underlay.host(host).ipv4.to_string();
        wait_until("the station's kernel has learnt where the guest is", LIMIT, || {
            self.learnt(STATION_HOST).as_ref() == Some(&address)
        });
    }

    /// Kernels do not complain.
    fn assert_unharmed(&mut self) {}
}

fn add_bridge(host: &Host) {
    host.ip(&format!("link add br0 mtu {MTU} type bridge"));
    host.ip(&format!(
        "link add vxlan0 mtu {MTU} type vxlan id 42 dstport {PORT} local {} group 239.42.0.1 dev eth0",
        host.ipv4
    ));
    host.ip("link set vxlan0 master br0 up");
    host.ip("link set br0 up");
}

fn output(command: &mut Command) -> String {
    let output = command.output().expect("a bridge command");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
