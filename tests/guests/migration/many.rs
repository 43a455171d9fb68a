//! Many migrations, measured, beside as many of the same guest on the kernels' own tunnel.
//!
//! Both guests are there all the time, and move in turns. While one is looked at, the other stands still
//! and is sent nothing.

use std::time::Duration;

use vnet::sys::clock;

use crate::elapsed;
use crate::probe::{Echo, Pinger};
use crate::support::{can_boot_guests, step, take_turn, wait_until};

use super::figures::{Figures, Round, compare, judge};
use super::kernel::Kernel;
use super::network::{Kind, Network, Vnet};
use super::stage::Stage;
use super::{LIMIT, Loss, hosts};

/// From one migration to the next of many. Hosts are told of the moves of a guest that moves all the time
/// no more than once a second.
const SPACING: Duration = Duration::from_secs(3);

/// One of those that are compared.
struct Subject<N> {
    stage: Stage<N>,
    pings: Pinger,
    echo: Echo,
    rounds: Vec<Round>,
}

impl<N: Network> Subject<N> {
    /// Begins with a guest that was started.
    fn new(mut stage: Stage<N>) -> Self {
        stage.bring_up();
        let (pings, echo) = (stage.pings(), stage.echo());
        stage.rest(&echo);
        Self { stage, pings, echo, rounds: Vec::new() }
    }

    /// A migration, and a stop in place for as long as the guest's pause was.
    fn go(&mut self) {
        let Self { stage, pings, echo, .. } = self;
        stage.wake(pings, echo);
        let moved = stage.migrate(pings);
        let in_place = stage.halt(pings, moved.pause);
        stage.rest(echo);
        self.rounds.push(Round { moved, in_place });
    }

    /// Ends the connection, which is still the first, and looks at what is left.
    fn finish(self) {
        let Self { mut stage, pings, echo, .. } = self;
        stage.wake(&pings, &echo);
        let bytes = echo.finish();
        let (name, lost) = (N::NAME, pings.lost());
        step(&format!("  {name}: no TCP reset, {bytes} bytes there and back, lost pings: {lost}"));
        drop(pings);
        stage.assert_unharmed();
    }
}

/// As many migrations as VNET_MIGRATIONS says: `tests/run --migrations 50`.
#[test]
#[ignore = "takes minutes: tests/run --migrations N"]
fn many_migrations() {
    if !can_boot_guests("many migrations") {
        return;
    }
    let _turn = take_turn();
    let count = std::env::var("VNET_MIGRATIONS").ok().and_then(|count| count.parse().ok());
    let count: usize = count.unwrap_or(10);
    for loss in [Loss::None, Loss::Tenth] {
        let (vnet, kernel) = migrate_often(count, loss);
        judge(loss, &vnet, &kernel);
    }
}

/// A look at the same.
#[test]
fn migrations_beside_the_kernels() {
    if !can_boot_guests("migrations beside the kernels'") {
        return;
    }
    let _turn = take_turn();
    let (vnet, kernel) = migrate_often(2, Loss::None);
    judge(Loss::None, &vnet, &kernel);
}

/// Migrates guests `count` times on each of the networks. Returns the figures of the vnet, and those of the kernel's
/// tunnel.
fn migrate_often(count: usize, loss: Loss) -> (Vec<Figures>, Vec<Figures>) {
    let what = match loss {
        Loss::None => "without loss",
        Loss::Tenth => "with a tenth of all packets lost",
    };
    step(&format!("{count} migrations on each network, {what}"));
    let site = hosts(loss);
    let vnet = Stage::start(Vnet::new(&site, Kind::plain()));
    let kernel = Stage::start(Kernel::new(&site));
    let (mut vnet, mut kernel) = (Subject::new(vnet), Subject::new(kernel));
    let before = load();
    for _ in 0..count {
        let begin = clock::mono();
        vnet.go();
        kernel.go();
        wait_until("they may move again", LIMIT, || elapsed(begin) > SPACING);
    }
    step(&format!("  load average of the machine: {before} before, {} after", load()));
    compare([Vnet::NAME, Kernel::NAME], [&vnet.rounds, &kernel.rounds]);
    let figures = |rounds: &[Round]| rounds.iter().map(|round| round.moved).collect();
    let figures = (figures(&vnet.rounds), figures(&kernel.rounds));
    vnet.finish();
    kernel.finish();
    figures
}

/// How many processes wanted a processor in the last minute, on average (proc(5)).
fn load() -> String {
    let all = std::fs::read_to_string("/proc/loadavg").expect("the machine's load");
    all.split(' ').next().expect("a number").to_owned()
}
