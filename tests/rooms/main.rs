//! Each room of the data path by itself, driven through its public items: an endpoint without a guest, a
//! guest without an endpoint; and a port between the two.
//!
//! ```text
//!   endpoint ── Wire ── endpoint          driver ─ GuestSide ── Pipe ── GuestSide ─ driver
//! ```

mod driver;
mod endpoint;
mod guest;
mod port;

use std::net::SocketAddr;

use vnet::wire::Mac;

const FIRST: Mac = Mac([2, 0, 0, 0, 0, 1]);
const SECOND: Mac = Mac([2, 0, 0, 0, 0, 2]);

fn addr(host: u8) -> SocketAddr {
    ([192, 0, 2, host], 4000).into()
}

/// An Ethernet frame of an experimental EtherType with `len` bytes of payload.
fn frame(to: Mac, from: Mac, len: usize) -> Vec<u8> {
    let payload: Vec<u8> = (0_u8..=255).cycle().take(len).collect();
    [&to.0[..], &from.0, &[0x88, 0xb5], &payload].concat()
}
