//! A change of the host's own name.

use super::{Output, Sadb, SadbCounter};
use crate::time::Now;
use crate::wire::name::Name;

impl Sadb {
    /// From now on this is the host's name: it has another address. All that was agreed on under
    /// the old one is over: whoever wants to send is told that no key serves.
    ///
    /// It may be an address that the host has had before. Which INITs were answered then is not
    /// known any more, so all need a cookie for a while, as after the start.
    pub fn move_to(&mut self, own: Name, now: Now) {
        self.own = own;
        self.start = self.start.map(|_| now.mono);
        self.timers.clear();
        for ((vnet, peer), state) in std::mem::take(&mut self.peers) {
            let ended = u64::try_from(state.sessions.len()).unwrap_or(0);
            self.counters.add(SadbCounter::sa_ended, ended);
            self.outputs.push_back(Output::Down { vnet, peer });
        }
        for (number, (vnet, _)) in std::mem::take(&mut self.numbers) {
            self.outputs.push_back(Output::Ended { vnet, number });
        }
    }
}
