//! Trailers of relays: what parses is written as it was, and names a locator that frames can be sent to, or none.

use vnet::wire::trailer::{self, HMAC_LEN, MAX_HOPS, Trailer};

pub(crate) fn run(data: &[u8]) {
    let Ok(trailer) = Trailer::parse(data) else { return };
    assert_eq!(trailer.to_bytes(), data, "one form for each trailer");
    assert_eq!(trailer.len(), data.len());
    assert_eq!(trailer::covered(data).len() + HMAC_LEN, data.len());
    assert!((1..=MAX_HOPS).contains(&trailer.hops) && trailer.key_number != 0);
    if let Some(locator) = trailer.locator {
        let ip = locator.addr.ip();
        assert!(!ip.is_unspecified() && !ip.is_multicast());
        assert!(locator.addr.port() != 0 && locator.control_port != 0);
    }
}
