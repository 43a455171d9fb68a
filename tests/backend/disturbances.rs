//! All that can happen to hosts, programs and guests, in random order, under traffic: whatever it was,
//! all guests of a vnet hear each other soon after, then nothing is lost, and none ever hears a frame
//! that is not for it.
//!
//! ```text
//!     vnet 42 (conf)     1     2     3
//!     vnet 43 (none)     1     2     3         guests that move, end, start, and are shut out; some with
//!     vnet 44 (auth)     1     2     3         two queue pairs, some with a MAC behind them, ...
//!     hosts              a     b     c         whose programs are killed, stopped and replaced
//!                        |     |     |         cables that are pulled, and lose, repeat and delay packets
//!                      [== the underlay ==]    IPv4 or IPv6, wide or narrow
//! ```
//!
//! | Where | What |
//! |---|---|
//! | [`shape`] | what differs from world to world |
//! | [`world`] | the hosts and what runs on them |
//! | [`programs`], [`moves`], [`cables`], [`keys`], [`hostile`] | what happens |
//! | [`observer`] | the underlay: nothing of a secured vnet is there in the clear |
//! | [`guests`], [`frames`] | guests, and what they say |
//! | [`hearing`] | who hears what, once and in order |
//! | [`growth`] | memory and descriptors of the programs |
//!
//! `VNET_SOAK_MINUTES` says how long ([`soak`], `tests/run --soak MINUTES`), or `VNET_SOAK_EVENTS` how many
//! events; `VNET_SOAK_SEED` with which random numbers. A run that fails leaves all logs in a directory
//! that it names; with `RUST_LOG=debug` they say more.

mod cables;
mod frames;
mod growth;
mod guests;
mod hearing;
mod hostile;
mod keys;
mod moves;
mod observer;
mod programs;
mod rough;
mod shape;
mod world;

use std::collections::BTreeMap;
use std::time::Duration;

use vnet::sys::clock;

use self::world::World;
use crate::support::step;

const HOSTS: usize = 3;
const VNETS: [u32; 3] = [42, 43, 44];
/// Of these, the one that anybody can send to: a packet that comes twice is two.
const OPEN: u32 = 43;
/// Guests of each vnet.
const GUESTS: u8 = 3;

/// For everything that should take milliseconds, on a machine that may be busy with other things.
const LONG: Duration = Duration::from_secs(60);

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A backend is killed and started again.
    BackendKilled,
    /// A backend is told to end, and a new one takes its place: an upgrade.
    BackendReplaced,
    /// A backend gets no processor for a while.
    BackendStopped,
    /// A mapper is killed and started again, at once or after a while.
    MapperKilled,
    /// A mapper gets no processor for a while.
    MapperStopped,
    /// All mappers are replaced, one after the other.
    MappersReplaced,
    /// A mapper and all backends of its host are killed and started again.
    HostFailed,
    /// None of a host's programs gets a processor for a while.
    HostStopped,
    /// The key files of a host are not there for a while.
    KeysAway,
    /// A mapper forgets what it has resolved.
    CacheFlushed,
    /// A guest migrates; its old backend ends at once or later.
    GuestMoved,
    /// A guest migrates, and back a moment later.
    GuestMovedAndBack,
    /// A migration fails at its end: the guest goes on where it was.
    MigrationFailed,
    /// A backend is killed, and its guest started on another host.
    GuestStartedElsewhere,
    /// A guest is started on two hosts at once; one of the two ends soon after.
    GuestStartedTwice,
    /// A host is cut off while one of its guests is started on another as well, and heals before that
    /// guest is ended.
    GuestRunsTwice,
    /// A guest says that it has arrived, though it was there all the time.
    GuestAnnounced,
    /// A guest boots: its driver starts from the beginning.
    GuestRebooted,
    /// A guest's driver resets its NIC.
    GuestReset,
    /// A guest ends, and another one starts somewhere.
    GuestReplaced,
    /// A host's interface goes down and up.
    InterfaceDown,
    /// A host's cable is pulled and put back.
    CablePulled,
    /// A host gets another address.
    HostRenumbered,
    /// A host's interface is deleted and made again.
    InterfaceRebuilt,
    /// A host's cable loses packets.
    CableLoses,
    /// A host's cable carries packets twice.
    CableRepeats,
    /// Packets overtake each other in a host's cable.
    CableReorders,
    /// The underlay becomes narrower, or as wide as before.
    UnderlayChanged,
    /// The keys of the secured vnets are replaced.
    KeysRotated,
    /// The same while a mapper is away.
    KeysRotatedUnseen,
    /// The same while a host's cable is pulled.
    KeysRotatedApart,
    /// A user of a host sends what only members of the secured vnets may.
    Forged,
    /// What members have sent comes again.
    Replayed,
    /// Another process connects to a NIC's socket, before its frontend or beside it.
    SocketGrabbed,
    /// A mapper is without its configuration for a while.
    ConfigLost,
}

impl Event {
    const ALL: [Self; 35] = [
        Self::BackendKilled,
        Self::BackendReplaced,
        Self::BackendStopped,
        Self::MapperKilled,
        Self::MapperStopped,
        Self::MappersReplaced,
        Self::HostFailed,
        Self::HostStopped,
        Self::KeysAway,
        Self::CacheFlushed,
        Self::GuestMoved,
        Self::GuestMovedAndBack,
        Self::MigrationFailed,
        Self::GuestStartedElsewhere,
        Self::GuestStartedTwice,
        Self::GuestRunsTwice,
        Self::GuestAnnounced,
        Self::GuestRebooted,
        Self::GuestReset,
        Self::GuestReplaced,
        Self::InterfaceDown,
        Self::CablePulled,
        Self::HostRenumbered,
        Self::InterfaceRebuilt,
        Self::CableLoses,
        Self::CableRepeats,
        Self::CableReorders,
        Self::UnderlayChanged,
        Self::KeysRotated,
        Self::KeysRotatedUnseen,
        Self::KeysRotatedApart,
        Self::Forged,
        Self::Replayed,
        Self::SocketGrabbed,
        Self::ConfigLost,
    ];

    /// Whether it may happen while a cable is bad: not if it waits for what is in order only then.
    fn bears_bad_cables(self) -> bool {
        !matches!(
            self,
            Self::CablePulled
                | Self::InterfaceRebuilt
                | Self::CableLoses
                | Self::CableRepeats
                | Self::CableReorders
                | Self::GuestRunsTwice
                | Self::KeysRotatedApart
        )
    }

    /// Whether a program may end.
    fn ends_programs(self) -> bool {
        matches!(
            self,
            Self::BackendKilled
                | Self::BackendReplaced
                | Self::MapperKilled
                | Self::MappersReplaced
                | Self::HostFailed
                | Self::KeysRotatedUnseen
                | Self::SocketGrabbed
                | Self::ConfigLost
        )
    }
}

impl World {
    /// Something happens while frames are under way, at times over a bad cable; in words.
    fn disturb_somewhere(&mut self, event: Event) -> String {
        let is_bad = event.bears_bad_cables() && self.random.per_mille(250);
        let host = self.random.index(HOSTS);
        let bad = is_bad.then(|| self.spoil_cable(host));
        self.disturb(event);
        let Some(bad) = bad else { return format!("{event:?}") };
        let duration = self.while_of(500);
        self.guests.chat(duration);
        drop(bad);
        self.guests.listen_until_silent();
        format!("{event:?}, with a bad cable")
    }

    fn disturb(&mut self, event: Event) {
        let guest = self.random.index(self.guests.running.len());
        let host = self.random.index(HOSTS);
        self.guests.speak();
        match event {
            Event::BackendKilled => self.kill_backend(guest),
            Event::BackendReplaced => self.replace_backend(guest),
            Event::BackendStopped => self.stop_backend(guest),
            Event::MapperKilled => self.kill_mapper(host),
            Event::MapperStopped => self.stop_mapper(host),
            Event::MappersReplaced => self.replace_mappers(),
            Event::HostFailed => self.fail_host(host),
            Event::HostStopped => self.stop_host(host),
            Event::KeysAway => self.hide_keys(host),
            Event::CacheFlushed => self.net.varpds[host].flush(),
            Event::GuestMoved => self.move_guest(guest),
            Event::GuestMovedAndBack => self.move_and_back(guest),
            Event::MigrationFailed => self.fail_migration(guest),
            Event::GuestStartedElsewhere => self.start_elsewhere(guest),
            Event::GuestStartedTwice => self.start_twice(guest),
            Event::GuestRunsTwice => self.run_twice(guest),
            Event::GuestAnnounced => self.guests.running[guest].announce(),
            Event::GuestRebooted => self.guests.running[guest].reboot(),
            Event::GuestReset => self.guests.running[guest].nic.driver.reset().unwrap(),
            Event::GuestReplaced => self.replace(guest),
            Event::InterfaceDown => self.take_down(host),
            Event::CablePulled => self.pull_cable(host),
            Event::HostRenumbered => self.renumber(host),
            Event::InterfaceRebuilt => self.rebuild_interface(host),
            Event::CableLoses => self.lose(host),
            Event::CableRepeats => self.repeat(host),
            Event::CableReorders => self.reorder(host),
            Event::UnderlayChanged => self.change_width(),
            Event::KeysRotated => self.rotate_keys(),
            Event::KeysRotatedUnseen => self.rotate_unseen(host),
            Event::KeysRotatedApart => self.rotate_apart(host),
            Event::Forged => self.forge(host),
            Event::Replayed => self.replay(host),
            Event::SocketGrabbed => self.grab_socket(guest),
            Event::ConfigLost => self.lose_config(host),
        }
    }
}

/// How long it took until all was well, by what had happened.
#[derive(Default)]
struct Times(BTreeMap<Event, Vec<Duration>>);

impl Times {
    fn print(self) {
        for (event, mut times) in self.0 {
            times.sort_unstable();
            let (count, longest) = (times.len(), times[times.len() - 1]);
            let median = times[count / 2];
            println!("    {event:?}: {count} times, heard after {median:?} (median), {longest:?}");
        }
    }
}

/// Disturbs until told to stop; prints how long each kind of event took until all was well.
fn run(what: &str, seed: u64, mut goes_on: impl FnMut(usize) -> bool) {
    let Some(mut world) = World::new(&format!("{what} (VNET_SOAK_SEED={seed})"), seed) else {
        return;
    };
    world.guests.wait_all_hear("the start");
    let mut times = Times::default();
    let mut events = 0;
    while goes_on(events) {
        let event = world.next_event();
        let begin = clock::mono();
        let what = world.disturb_somewhere(event);
        let disturbed = clock::mono() - begin;
        let recovered = world.recover(&what);
        println!(
            "    {events}: {what} took {disturbed:?}, all heard each other after {recovered:?}"
        );
        times.0.entry(event).or_default().push(recovered);
        events += 1;
    }
    world.assert_observed();
    times.print();
    step(&format!(
        "{events} events; {} frames sent, {} arrived twice, after a backend was killed or packets were repeated; {}",
        world.guests.spoken(),
        world.guests.repeated,
        world.growth,
    ));
    world.end();
}

#[test]
fn whatever_happens_all_hear_each_other_soon() {
    run("whatever happens", 402, |events| events < 24);
}

/// `tests/run --soak 30`.
#[test]
#[ignore = "takes as many minutes as VNET_SOAK_MINUTES says"]
fn soak() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("VNET_SOAK_SEED").unwrap_or_else(|| clock::now().wall_ms);
    if let Some(most) = number("VNET_SOAK_EVENTS") {
        return run(&format!("{most} disturbances"), seed, |events| (events as u64) < most);
    }
    let minutes = number("VNET_SOAK_MINUTES").expect("VNET_SOAK_MINUTES is a number of minutes");
    let end = clock::mono() + Duration::from_secs(60 * minutes);
    run(&format!("disturbances for {minutes} minutes"), seed, |_| clock::mono() < end);
}
