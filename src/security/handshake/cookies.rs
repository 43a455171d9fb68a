//! Cookies: under load, a host answers an INIT only if its sender has proved that it receives at
//! its address.

use std::net::IpAddr;

use super::finish;
use super::token::TokenKey;
use crate::secret::Secret;
use crate::security::keys::{MAC_LEN, MacKey, MemberKeys};
use crate::security::noise::Entropy;
use crate::wire::handshake::{Body, Header, Message};
use crate::wire::name::mapped;

/// Makes cookies: what only somebody who receives at an address can know for a while. Needs no
/// memory of whom one was given to.
#[derive(Debug)]
pub struct Cookies {
    now: Secrets,
    before: Secrets,
}

/// What cookies and their tokens are made with for a while.
#[derive(Debug)]
struct Secrets {
    cookie: MacKey,
    token: TokenKey,
}

impl Secrets {
    fn new(entropy: &Entropy) -> Self {
        Self { cookie: MacKey::new(&entropy.secret()), token: TokenKey::new(entropy) }
    }

    /// What goes to an address in a COOKIE.
    fn cookie(&self, from: IpAddr) -> [u8; MAC_LEN] {
        self.cookie.sign(&[&mapped(from).octets()])
    }
}

impl Cookies {
    /// Fresh secrets.
    pub fn new(entropy: &Entropy) -> Self {
        Self { now: Secrets::new(entropy), before: Secrets::new(entropy) }
    }

    /// A new secret; cookies of the last one are still good.
    pub fn turn(&mut self, entropy: &Entropy) {
        self.before = std::mem::replace(&mut self.now, Secrets::new(entropy));
    }

    /// The secret of the tokens that come with cookies.
    pub const fn token_key(&self) -> TokenKey {
        self.now.token
    }

    /// Whether an INIT has a second MAC made with a cookie for this address. No MAC is computed for
    /// one without the token that goes with it: that of nearly all INITs in a flood.
    pub fn accepts(&self, from: IpAddr, message: &Message<'_>) -> bool {
        let Some(second) = message.second_mac else { return false };
        let token = message.header.receiver;
        let mut secrets = [&self.now, &self.before].into_iter();
        secrets.any(|secrets| {
            if secrets.token.token(from) != token {
                return false;
            }
            let init = [message.covered, message.first_mac].concat();
            let wanted = second_mac(secrets.cookie(from), &init);
            aws_lc_rs::constant_time::verify_slices_are_equal(&wanted, second).is_ok()
        })
    }

    /// The COOKIE that answers an INIT.
    pub fn message(&self, from: IpAddr, init: &Message<'_>, keys: &MemberKeys) -> Vec<u8> {
        let Header { vnet, key_id, sender, .. } = init.header;
        let token = self.now.token.token(from);
        let header = Header { vnet, key_id, sender: token, receiver: sender };
        let cookie = self.now.cookie(from);
        let body = Body::Cookie { cookie: &cookie, init_mac: init.first_mac };
        finish(&header, &body, &keys.first_mac)
    }
}

/// The second MAC of an INIT that ends with its first.
pub(super) fn second_mac(cookie: [u8; MAC_LEN], init: &[u8]) -> [u8; MAC_LEN] {
    let mut key = [0; 32];
    key[..MAC_LEN].copy_from_slice(&cookie);
    MacKey::new(&Secret::new(key)).sign(&[init])
}
