//! The cost of a group frame for a host that has no vif on the frame's vnet.
//!
//! ```text
//!   host a: sends group frames of vnet 1 ==== veth ==== host b: the sockets of N vifs on N other vnets
//! ```
//!
//! `cargo bench --bench groups` (as root, for the namespaces) opens on host b the sockets that varpd opens for its vifs
//! and for itself, and sends frames that none of them is for. Sending and all that host b does happen on one processor,
//! so the time of a frame contains both; without sockets it is what sending alone costs. The table has the least time of
//! all rounds. The kernel counts each frame that a filter refuses as a drop of that socket, so it also says how many
//! sockets a frame was handed to. No backend runs: frames that no filter passes wake none.

#[path = "../tunnel/topology.rs"]
#[expect(dead_code, reason = "the kernel's own tunnel is not measured here")]
mod topology;

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, setns};
use nix::unistd::Pid;

use topology::{Hosts, Link};
use vnet::config::{DEFAULT_GROUP_V4, DEFAULT_PORT};
use vnet::sys::iovec::IoVec;
use vnet::sys::{clock, mmsg, process, sockopt};
use vnet::underlay::sockets::{Frames, Opener, Site, VifSockets, hear_questions};
use vnet::wire::{VnetId, group};

/// The vnet of the frames.
const FOREIGN: u32 = 1;
/// The first vnet of host b.
const FIRST: u32 = 1000;
/// Length of a frame with its encapsulation header.
const LEN: usize = 68;
/// Frames per system call: few, so that the kernel works off all of them before it returns.
const BATCH: usize = 8;

/// Measures the cost of group frames of foreign vnets.
#[derive(Debug, Parser)]
struct Options {
    /// Numbers of vifs of the host, each on a vnet of its own
    #[arg(long, value_delimiter = ',', default_value = "1,30,300")]
    nics: Vec<u32>,
    /// Rounds per row; figures are the least of them
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// Frames per round
    #[arg(long, default_value_t = 2000)]
    frames: usize,
    /// cargo bench passes this
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("groups: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Where the frames of a vnet go.
#[derive(Clone, Copy, Debug)]
enum Groups {
    One,
    Vnet,
}

impl Groups {
    fn of(self, vnet: VnetId) -> IpAddr {
        match self {
            Self::One => DEFAULT_GROUP_V4.into(),
            Self::Vnet => group::of_vnet(vnet, DEFAULT_GROUP_V4.into()),
        }
    }
}

fn run(options: &Options) -> io::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return Err(io::Error::other("network namespaces need root"));
    }
    process::raise_file_limit()?;
    stay_on_a_processor()?;
    let prefix = format!("vnet-groups-{}", std::process::id());
    let hosts = Hosts::new(&prefix, 1500, Link::Whole)?;
    enter(&format!("{prefix}-a"))?;
    let sender = Sender::new(opener(hosts.a.address)?)?;
    enter(&format!("{prefix}-b"))?;
    println!("| NICs | groups | us per frame | more than without NICs | sockets it is handed to |");
    println!("|-----:|--------|-------------:|-----------------------:|------------------------:|");
    let least = |groups| measure(options, &sender, groups, &Listeners::default());
    for groups in [Groups::One, Groups::Vnet] {
        let alone = least(groups)?;
        println!("| 0 | {} | {:.2} | | |", word(groups), micros(alone));
        for &nics in &options.nics {
            let listeners = Listeners::open(nics, groups, opener(hosts.b.address)?)?;
            let before = listeners.drops()?;
            let time = measure(options, &sender, groups, &listeners)?;
            let dropped = f64::from(listeners.drops()?.wrapping_sub(before));
            let sent = (options.frames * (options.rounds + 1)) as f64;
            let more = micros(time.saturating_sub(alone));
            println!(
                "| {nics} | {} | {:.2} | {more:.2} | {:.0} |",
                word(groups),
                micros(time),
                dropped / sent
            );
        }
    }
    Ok(())
}

const fn word(groups: Groups) -> &'static str {
    match groups {
        Groups::One => "one",
        Groups::Vnet => "vnet",
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// The least time per frame of all rounds; the first warms up.
fn measure(
    options: &Options,
    sender: &Sender,
    groups: Groups,
    listeners: &Listeners,
) -> io::Result<Duration> {
    let mut least = Duration::MAX;
    for round in 0..=options.rounds {
        let before = packets_received()?;
        let time = sender.send(groups, options.frames)?;
        // Those that wait in the kernel's backlog would be work that was not measured.
        let arrived = packets_received()? - before;
        if arrived < options.frames as u64 {
            let text = format!("{arrived} of {} frames have arrived", options.frames);
            return Err(io::Error::other(text));
        }
        if round > 0 {
            least = least.min(time / u32::try_from(options.frames).unwrap_or(u32::MAX));
        }
    }
    if listeners.waiting()? != 0 {
        return Err(io::Error::other("a frame has passed the filter of a vif on another vnet"));
    }
    Ok(least)
}

/// Sends group frames of the foreign vnet.
struct Sender {
    sockets: VifSockets,
    frame: [u8; LEN],
}

impl Sender {
    fn new(mut opener: Opener) -> io::Result<Self> {
        let vnet = id(FOREIGN)?;
        let mut frame = [0; LEN];
        frame[0] = 0x40;
        frame[4..8].copy_from_slice(&FOREIGN.to_be_bytes());
        Ok(Self { sockets: opener.vif(&[], Frames(vnet), 1)?, frame })
    }

    /// Returns the time that sending so many takes.
    fn send(&self, groups: Groups, count: usize) -> io::Result<Duration> {
        let to = SocketAddr::new(groups.of(id(FOREIGN)?), DEFAULT_PORT);
        let parts = [IoVec::from_slice(&self.frame)];
        let message = mmsg::Message { to, parts: &parts, segment: 0 };
        let messages = [message; BATCH];
        let socket = self.sockets.own().next().ok_or_else(|| io::Error::other("no socket"))?;
        let begin = clock::mono();
        let mut sent = 0;
        while sent < count {
            sent += mmsg::send(socket, &messages[..BATCH.min(count - sent)])?;
        }
        Ok(clock::mono() - begin)
    }
}

/// The sockets of a host with vifs, as varpd opens them.
#[derive(Default)]
struct Listeners {
    vifs: Vec<VifSockets>,
    varp: Option<UdpSocket>,
}

impl Listeners {
    fn open(count: u32, groups: Groups, mut opener: Opener) -> io::Result<Self> {
        let vnets: BTreeSet<VnetId> = (FIRST..FIRST + count).filter_map(VnetId::new).collect();
        let varp = opener.varp_group(DEFAULT_GROUP_V4.into())?;
        hear_questions(&varp, &vnets)?;
        let mut open = |vnet: &VnetId| opener.vif(&[groups.of(*vnet)], Frames(*vnet), 1);
        let vifs = vnets.iter().map(&mut open).collect::<io::Result<_>>()?;
        Ok(Self { vifs, varp: Some(varp) })
    }

    /// Frames that the filters have refused.
    fn drops(&self) -> io::Result<u32> {
        let vifs = self.vifs.iter().flat_map(VifSockets::fds).map(|fd| sockopt::drops(&fd));
        let varp = self.varp.iter().map(sockopt::drops);
        vifs.chain(varp).try_fold(0_u32, |sum, drops| Ok(sum.wrapping_add(drops?)))
    }

    /// Bytes that wait in the receive queues.
    fn waiting(&self) -> io::Result<u32> {
        let vifs = self.vifs.iter().flat_map(VifSockets::fds).map(|fd| sockopt::waiting(&fd));
        let varp = self.varp.iter().map(sockopt::waiting);
        vifs.chain(varp).try_fold(0_u32, |sum, waiting| Ok(sum.saturating_add(waiting?)))
    }
}

fn id(vnet: u32) -> io::Result<VnetId> {
    VnetId::new(vnet).ok_or_else(|| io::Error::other("no vnet has this id"))
}

/// Opens sockets of the host in whose namespace this thread is.
fn opener(address: &str) -> io::Result<Opener> {
    let address = address.parse().map_err(io::Error::other)?;
    let interface = if_nametoindex("eth0")?;
    let site = Site { address, interface, port: DEFAULT_PORT, hops: 1, ports: None };
    Ok(Opener::new(site))
}

/// Packets that the IP layer of this thread's host has received, among them those that it then drops.
fn packets_received() -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/net/snmp")?;
    let mut lines = text.lines().filter(|line| line.starts_with("Ip:"));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let mut both = names.split_whitespace().zip(values.split_whitespace());
    let found = both.find(|(name, _)| *name == "InReceives").map(|(_, value)| value.parse());
    found.and_then(Result::ok).ok_or_else(|| io::Error::other("/proc/net/snmp is not understood"))
}

fn enter(namespace: &str) -> io::Result<()> {
    let file = File::open(format!("/run/netns/{namespace}"))?;
    Ok(setns(file, CloneFlags::CLONE_NEWNET)?)
}

/// What the kernel does with a frame is done on the processor that sends it.
fn stay_on_a_processor() -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(0)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}
