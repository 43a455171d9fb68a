//! Made-up group frames of a secured vnet, from ever other addresses, as fast as one processor can send:
//! what they cost each NIC of the vnet, and that it hears those whom it knows.
//!
//! ```text
//!     guest 1          floods            guest 2
//!     host a           host b            host c
//!                 10.0.0.0/8 behind it
//! ```

use std::net::SocketAddrV4;
use std::time::Duration;

use vnet::metrics::VifCounter;
use vnet::security::group::STRANGERS_PER_SECOND;
use vnet::sys::clock;
use vnet::wire::VnetId;
use vnet::wire::esp::{Head, Spi};
use vnet::wire::varp::{GROUP, PORT};

use crate::nic::{BROADCAST, Nic, mac, vif};
use crate::offpath::flooded;
use crate::secured::Keys;
use crate::support::{step, wait_until};
use crate::{Net, SOON};

/// Broadcasts of guest 2 that guest 1 has to hear during the flood.
const HEARD: u32 = 200;
/// Forged frames that guest 1's backend has to get meanwhile.
const FORGED: u64 = 60_000;

/// A group frame that no member has sealed, of a sender that starts now.
fn forged_frame() -> Vec<u8> {
    let start = u32::try_from(clock::now().wall_ms / 1000).unwrap().to_be_bytes();
    let sequence = 7_u32;
    let [s0, s1, s2, s3] = start;
    let [n0, n1, n2, n3] = sequence.to_be_bytes();
    let spi = Spi::of_group(VnetId::new(42).unwrap(), 5);
    let head = Head { spi, sequence, iv: [s0, s1, s2, s3, n0, n1, n2, n3] };
    [&head.emit()[..], &[0x5a; 64 + 16]].concat()
}

#[test]
fn a_flood_of_made_up_group_frames_silences_nobody_who_is_known() {
    let keys = Keys::new();
    let config = keys.config("conf", "k", &[("use", "a1")], "");
    let configs = [config.clone(), String::new(), config];
    let Some(net) = Net::with_configs("made-up group frames", &configs) else { return };
    let mut one = Nic::start("g1", vif(42, 1), &net.varpds[0]);
    let mut two = Nic::start("g2", vif(42, 2), &net.varpds[2]);
    wait_until("they know each other", SOON, || {
        two.send(BROADCAST, 0);
        one.try_receive(mac(2), Duration::from_millis(50)).is_some()
    });
    let refused = |net: &Net| {
        let counters = net.counters(0, vif(42, 1));
        [VifCounter::rx_drop_flood, VifCounter::rx_drop_auth].map(|name| counters.get(name))
    };
    let (before, ticks) = (refused(&net), one.backend.process.cpu_ticks());
    let (mut heard, mut tried) = (0, 0);
    let to = SocketAddrV4::new(GROUP, PORT);
    let (sent, took, ()) = flooded(net.underlay.host(1), to, &forged_frame(), || {
        wait_until("the flood has come, and guest 2 was heard", SOON * 6, || {
            tried += 1;
            two.send(BROADCAST, tried);
            while one.try_receive(mac(2), Duration::from_millis(1)).is_some() {
                heard += 1;
            }
            let come: u64 = refused(&net).iter().zip(before).map(|(now, was)| now - was).sum();
            heard >= HEARD && come >= FORGED
        });
    });
    let took = took.as_secs_f64();
    let ticks = one.backend.process.cpu_ticks() - ticks;
    let [flood, opened] = refused(&net).map(|count| count as f64);
    let sent = sent as f64;
    step(&format!(
        "  {:.0} thousand/s sent, {:.0} thousand/s received, {:.0} tried a second in {took:.1} s; g1's \
         backend: {:.0} % of a processor, {:.2} us each; {heard} of {tried} broadcasts heard",
        sent / took / 1e3,
        (flood + opened) / took / 1e3,
        opened / took,
        ticks as f64 / took,
        ticks as f64 * 1e4 / (flood + opened),
    ));
    let most = f64::from(STRANGERS_PER_SECOND) * (took + 2.0);
    assert!(opened <= most, "{opened} were tried in {took} s");
}
