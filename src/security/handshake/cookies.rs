//! Cookies: under load, an INIT is answered only if its sender receives at its address.

use std::net::IpAddr;

use super::finish;
use crate::security::keys::{MAC_LEN, MacKey, MemberKeys, Secret};
use crate::security::noise::Entropy;
use crate::wire::handshake::{Header, Kind, Message};

/// Makes cookies: what only somebody who receives at an address can know for a while. Needs no
/// memory of whom one was given to.
#[derive(Debug)]
pub struct Cookies {
    now: MacKey,
    before: MacKey,
}

impl Cookies {
    /// Fresh secrets.
    pub fn new(entropy: &Entropy) -> Self {
        let key = || MacKey::new(&entropy.secret());
        Self { now: key(), before: key() }
    }

    /// A new secret; cookies of the last one are still good.
    pub fn turn(&mut self, entropy: &Entropy) {
        let now = MacKey::new(&entropy.secret());
        self.before = std::mem::replace(&mut self.now, now);
    }

    fn cookie(secret: &MacKey, from: IpAddr) -> [u8; MAC_LEN] {
        secret.sign(&[from.to_string().as_bytes()])
    }

    /// Whether an INIT has a second MAC made with a cookie for this address.
    pub fn accepts(&self, from: IpAddr, message: &Message<'_>) -> bool {
        let Some(second) = message.second_mac else { return false };
        let init = [message.covered, message.first_mac].concat();
        [&self.now, &self.before].into_iter().any(|secret| {
            let wanted = second_mac(Self::cookie(secret, from), &init);
            aws_lc_rs::constant_time::verify_slices_are_equal(&wanted, second).is_ok()
        })
    }

    /// The COOKIE that answers an INIT.
    pub fn message(&self, from: IpAddr, init: &Message<'_>, keys: &MemberKeys) -> Vec<u8> {
        let Header { vnet, key_id, sender, .. } = init.header;
        let header = Header { kind: Kind::Cookie, vnet, key_id, sender: 0, receiver: sender };
        let body = [Self::cookie(&self.now, from), *init.first_mac].concat();
        finish(&header, &body, &keys.first_mac)
    }
}

/// The second MAC of an INIT that ends with its first.
pub(super) fn second_mac(cookie: [u8; MAC_LEN], init: &[u8]) -> [u8; MAC_LEN] {
    let mut key = [0; 32];
    key[..MAC_LEN].copy_from_slice(&cookie);
    MacKey::new(&Secret::new(key)).sign(&[init])
}
