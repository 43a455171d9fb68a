//! Whatever is lost or forged meanwhile, all hosts know all others some time after that has ended.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    /// A host gets these vnets.
    Change(u32, Vec<u32>),
    Restart(u32),
    /// A message with this content under a host's name.
    Forge(u32, Vec<u32>, u64, bool),
    Pass(u64),
}

const HOSTS: u32 = 5;

/// The longest datagram of host `n`.
fn takes(n: u32) -> u16 {
    1300 + 100 * u16::try_from(n).unwrap()
}

fn setups(n: u32, vnets: &[u32]) -> Setup {
    setup(vnets.iter().map(|id| {
        let longest = takes(n).into();
        let made = if id % 2 == 0 { open(longest) } else { secured(longest, 1) };
        (*id, made)
    }))
}

fn step() -> impl Strategy<Value = Step> {
    let vnets =
        || prop::collection::btree_set(1_u32..40, 0..30).prop_map(|set| set.into_iter().collect());
    prop_oneof![
        3 => (1..=HOSTS, vnets()).prop_map(|(n, vnets)| Step::Change(n, vnets)),
        1 => (1..=HOSTS).prop_map(Step::Restart),
        2 => (1..=HOSTS, vnets(), 0_u64..200_000, any::<bool>())
            .prop_map(|(n, vnets, ahead, leaves)| Step::Forge(n, vnets, ahead, leaves)),
        3 => (1_u64..40_000).prop_map(Step::Pass),
    ]
}

fn forge(segment: &mut Segment, n: u32, vnets: &[u32], ahead: u64, leaves: bool) {
    let at = now(segment.ms);
    let at = Now { wall_ms: at.wall_ms + ahead, ..at };
    let plain = vnets.iter().map(|id| (*id, open(1280)));
    let mut liar = host(n, setup(plain), at);
    let lifetime = if leaves { Duration::ZERO } else { secs(4000) };
    let hello = liar.own.hello(Addressing::default(), lifetime, at);
    let list = liar.own.list(own::ALL, at).0;
    for to in (1..=HOSTS).filter(|to| *to != n) {
        segment.deliver(n, to, true, &hello);
        segment.deliver(n, to, true, &list);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn tables_converge_after_loss_restarts_and_forged_messages(
        steps in prop::collection::vec(step(), 1..25),
    ) {
        let mut lists: Vec<Vec<u32>> = vec![vec![2]; HOSTS as usize];
        let mut segment = Segment::new((1..).zip(&lists).map(|(n, list)| setups(n, list)).collect());
        // A third of all messages.
        segment.lose = |from, to, n| n.wrapping_mul(0x9e37_79b9).wrapping_add((from * 7 + to).into()) >> 5 & 3 == 0;
        for step in steps {
            match step {
                Step::Change(n, vnets) => {
                    segment.set_up(n, setups(n, &vnets));
                    lists[n as usize - 1] = vnets;
                }
                Step::Restart(n) => segment.restart(n, setups(n, &lists[n as usize - 1])),
                Step::Forge(n, vnets, ahead, leaves) => forge(&mut segment, n, &vnets, ahead, leaves),
                Step::Pass(ms) => segment.pass(Duration::from_millis(ms)),
            }
            for host in segment.hosts.iter().flatten() {
                prop_assert!(host.table.len() <= HOSTS as usize);
            }
        }
        segment.lose = |_, _, _| false;
        // A forged time hides a host until its clock has come there, or its lifetime as it was forged has ended.
        segment.pass(secs(1800 + 400));
        prop_assert!(segment.has_converged());
        for n in 1..=HOSTS {
            for id in lists[n as usize - 1].clone() {
                let others = (1..=HOSTS).filter(|m| *m != n && lists[*m as usize - 1].contains(&id));
                let want = others.map(takes).min().filter(|least| *least < takes(n));
                prop_assert_eq!(segment.at(n).longest(vnet(id)).number(), want.unwrap_or(0));
            }
        }
    }
}
