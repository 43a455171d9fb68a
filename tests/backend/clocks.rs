//! Hosts of a secured vnet whose clocks are wrong at boot and are set right while programs are restarted: from
//! then on broadcasts are heard, whatever starts there were before.
//!
//! ```text
//!     guest 1        guest 2
//!        |              |
//!     host a         host b
//!     2 h ahead      right, or ahead like host a
//! ```

use std::cell::RefCell;
use std::time::Duration;

use vnet::metrics::VifCounter;
use vnet::security::group::RESTART;

use crate::nic::{BROADCAST, Nic, mac, vif};
use crate::secured::Keys;
use crate::support::clocks::Clock;
use crate::support::vnet::Varpd;
use crate::support::{step, wait_until};
use crate::{MTU, Net, SOON};

/// What the clock is ahead at boot, in seconds.
const AHEAD: i64 = 2 * 3600;
/// How long a frame may take before the next is sent.
const SHORT: Duration = Duration::from_millis(50);
/// Broadcasts of each guest of which none may be refused.
const HEARD: u32 = 20;

struct World {
    one: Nic,
    two: Nic,
    net: Net,
    /// Removed after the programs that read them have ended.
    _keys: Keys,
    /// Of the next frame.
    number: u32,
}

impl World {
    fn stale(&self, host: usize) -> u64 {
        let nic = [&self.one, &self.two][host];
        self.net.counters(host, nic.vif).get(VifCounter::rx_drop_stale)
    }

    /// Sends a broadcast from each guest; returns whether the other one heard it, or one before it.
    fn broadcast(&mut self) -> [bool; 2] {
        self.number += 1;
        self.one.send(BROADCAST, self.number);
        self.two.send(BROADCAST, self.number);
        let heard = [self.two.try_receive(mac(1), SHORT), self.one.try_receive(mac(2), SHORT)];
        heard.map(|number| number.is_some())
    }

    /// Broadcasts pass both ways before a start is over, and from then on none is refused.
    fn assert_heard(&mut self) {
        let mut heard = [false; 2];
        wait_until("broadcasts are heard both ways", RESTART, || {
            let now = self.broadcast();
            heard = [heard[0] || now[0], heard[1] || now[1]];
            heard == [true; 2]
        });
        let before = [0, 1].map(|host| self.stale(host));
        let mut count = 0;
        wait_until("more are heard", SOON * 3, || {
            count += u32::from(self.broadcast() == [true; 2]);
            count >= HEARD
        });
        assert_eq!([0, 1].map(|host| self.stale(host)), before, "none is refused as stale");
    }

    /// Host a's programs start anew, in this order.
    fn restart(&mut self) {
        self.net.varpds[0].kill();
        self.net.varpds[0].start_again();
        self.one.backend.process.kill();
        self.one.backend.start_again();
        self.one.reconnect();
        self.one.wait_state("active", &self.net.varpds[0]);
    }
}

fn assert_set_right(what: &str, ahead: [i64; 2]) -> Option<()> {
    let keys = Keys::new();
    let config = keys.config("conf", "k", &[("use", "a1")], "");
    let clocks = RefCell::new(Vec::new());
    let net = Net::build_with(what, 2, MTU, |host, directory| {
        let number = usize::from(host.ipv4.octets()[3]) - 1;
        let varpd = format!("varpd-{}", host.name);
        let backend = format!("backend-g{}", number + 1);
        let clock = Clock::new(directory, &[&varpd, &backend], ahead[number]);
        clocks.borrow_mut().push(clock);
        Varpd::start_with(host, host.ipv4.into(), &config, directory)
    })?;
    let one = Nic::start("g1", vif(42, 1), &net.varpds[0]);
    let two = Nic::start("g2", vif(42, 2), &net.varpds[1]);
    let mut world = World { one, two, net, _keys: keys, number: 0 };
    if ahead[0] == ahead[1] {
        world.assert_heard();
    } else {
        wait_until("broadcasts are refused both ways", SOON, || {
            world.broadcast();
            [0, 1].into_iter().all(|host| world.stale(host) > 0)
        });
    }
    world.restart();
    step("the clocks are set right");
    clocks.borrow().iter().for_each(|clock| clock.set(0));
    world.assert_heard();
    world.restart();
    world.assert_heard();
    Some(())
}

#[test]
fn a_clock_that_was_ahead_at_boot_keeps_no_broadcast_out_once_it_is_right() {
    let _ = assert_set_right("one host's clock is two hours ahead at boot", [AHEAD, 0])
        .and_then(|()| assert_set_right("both hosts' clocks are two hours ahead", [AHEAD, AHEAD]));
}
