//! What a host was given, and what it did.

use vnet::host::{Host as Machine, Input, Output, Start};
use vnet::time::Now;

use crate::host::Host;
use crate::world::World;

/// From the start of varpd to its end.
#[derive(Debug)]
pub(crate) struct Recording {
    start: Start,
    began: Now,
    pub(crate) inputs: Vec<(Now, Input)>,
    pub(crate) outputs: Vec<Output>,
}

impl World {
    /// Starts varpd of the first host again, and records it from now on.
    fn record(&mut self) {
        let entropy = [self.random.next(), self.random.next()];
        let start = Host::setup(0, self.protection, entropy);
        let began = self.hosts[0].now(self.now);
        self.hosts[0].start(start.clone(), self.now);
        let (inputs, outputs) = Default::default();
        self.recording = Some(Recording { start, began, inputs, outputs });
    }
}

/// The same inputs give the same outputs, byte for byte, in a machine of its own.
#[test]
fn what_a_host_was_given_makes_it_do_the_same_again() {
    // Without restarts of varpd: of migrations, of routers, with keys.
    let mut total = 0;
    for seed in [1, 2, 5, 11, 15] {
        let mut world = World::new(seed, false);
        world.record();
        crate::script::play(&mut world).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let Recording { start, began, inputs, outputs } = world.recording.take().expect("recorded");
        let mut machine = Machine::new(start, began);
        let mut again = Vec::new();
        for (now, input) in inputs {
            machine.handle(input, now);
            again.extend(std::iter::from_fn(|| machine.poll_output()));
        }
        let differs = outputs.iter().zip(&again).find(|(first, second)| first != second);
        assert_eq!((differs, outputs.len()), (None, again.len()), "seed {seed}");
        assert_eq!(format!("{outputs:?}"), format!("{again:?}"), "seed {seed}");
        total += outputs.len();
    }
    assert!(total > 1000, "{total} outputs");
}
