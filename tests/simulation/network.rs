//! The simulated underlay: what happens to a datagram on its way.

use crate::random::Random;

/// How bad the network is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Weather {
    /// Datagrams lost, of a thousand.
    pub(crate) loss: u64,
    /// Datagrams that arrive twice, of a thousand.
    pub(crate) copies: u64,
    /// Datagrams that are overtaken by later ones, of a thousand.
    pub(crate) late: u64,
}

impl Weather {
    pub(crate) const FAIR: Self = Self { loss: 0, copies: 0, late: 0 };

    /// After how many microseconds a datagram arrives, each time that it does.
    pub(crate) fn arrivals(&self, random: &mut Random) -> Vec<u64> {
        let copies = 1 + usize::from(random.per_mille(self.copies));
        let mut arrivals = Vec::with_capacity(copies);
        for _ in 0..copies {
            if random.per_mille(self.loss) {
                continue;
            }
            let late = random.per_mille(self.late);
            arrivals.push(if late { random.range(5000, 120_000) } else { random.range(50, 2000) });
        }
        arrivals
    }
}
