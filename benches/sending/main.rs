//! What a large frame costs its sender: staged in one buffer, or scattered from guest memory.
//!
//! ```text
//!   sender: guest memory - Stager - sendmmsg, UDP_SEGMENT ==== veth ==== recvmmsg, UDP_GRO: receiver
//! ```
//!
//! `cargo bench --bench sending` (as root, for the namespaces) sends the same frames both ways in
//! turns, at several segment sizes, and prints medians of processor time and of what arrived. From
//! these figures comes the constant in `src/tunnel/outgoing/scatter.rs`. The sender's time has all that
//! the kernel does up to the receiver's socket; nothing is verified, tests do that.

#[path = "../tunnel/topology.rs"]
#[expect(dead_code, reason = "the kernel's own tunnel is not measured here")]
mod topology;

mod receiver;
mod sender;

use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};

use clap::Parser;

use topology::{Host, Hosts, Link};

/// Payload of a segment, in bytes: the first is that of an MTU of 1500.
const SIZES: [u16; 8] = [1448, 2000, 3000, 4000, 5000, 6000, 7500, 8848];
/// MTU of the link.
const MTU: usize = 9050;

/// Measures two ways to send large frames.
#[derive(Debug, Parser)]
struct Options {
    /// Rounds per segment size; figures are medians
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Length of a round, in milliseconds
    #[arg(long, default_value_t = 100)]
    time: u64,
    /// Bytes of guest memory that frames are taken from, in turns
    #[arg(long, default_value_t = 4 << 20)]
    memory: usize,
    /// The link has large segments cut by the kernel
    #[arg(long)]
    cut: bool,
    /// Play a part (the program starts itself with this)
    #[arg(long, hide = true)]
    part: Option<Part>,
    /// cargo bench passes this
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Part {
    Sender,
    Receiver,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let done = match options.part {
        Some(Part::Sender) => sender::run(options.memory),
        Some(Part::Receiver) => receiver::run(),
        None => run(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sending: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A part in a process of its own; it ends with its standard input.
struct Player {
    child: Child,
    input: ChildStdin,
    output: io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Player {
    fn start(host: &Host, part: &str, memory: usize) -> io::Result<Self> {
        let program = std::env::current_exe()?;
        let mut command: Command = host.command(&program.to_string_lossy());
        command.args(["--part", part, "--memory", &memory.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let missing = || io::Error::other("a pipe is missing");
        let input = child.stdin.take().ok_or_else(missing)?;
        let output = BufReader::new(child.stdout.take().ok_or_else(missing)?).lines();
        Ok(Self { child, input, output })
    }

    fn ask(&mut self, question: &str) -> io::Result<String> {
        writeln!(self.input, "{question}")?;
        self.output.next().ok_or_else(|| io::Error::other("a part of the bench has ended"))?
    }

    fn numbers(&mut self, question: &str) -> io::Result<Vec<f64>> {
        let answer = self.ask(question)?;
        let numbers: Result<Vec<f64>, _> = answer.split_whitespace().map(str::parse).collect();
        numbers.map_err(|error| io::Error::other(format!("{answer}: {error}")))
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a way has made in a round.
#[derive(Clone, Copy, Debug, Default)]
struct Round {
    /// Processor time of the sender per gigabyte of payload, in seconds.
    cost: f64,
    /// Payload that was sent, and that arrived, in Gbit/s.
    sent: f64,
    arrived: f64,
}

fn run(options: &Options) -> io::Result<()> {
    let link = if options.cut { Link::Cut } else { Link::Whole };
    let prefix = format!("vnet-sending-{}", std::process::id());
    let hosts = Hosts::new(&prefix, MTU, link)?;
    let mut receiver = Player::start(&hosts.b, "receiver", 0)?;
    let mut sender = Player::start(&hosts.a, "sender", options.memory)?;
    let port = receiver.ask("port")?;
    sender.ask(&format!("to {}:{port}", hosts.b.address))?;
    println!(
        "| payload | staged s/GB | scattered s/GB | scattered costs | staged Gbit/s | scattered Gbit/s |"
    );
    println!(
        "|--------:|------------:|---------------:|----------------:|--------------:|-----------------:|"
    );
    for size in SIZES {
        let mut rounds = [const { Vec::new() }; 2];
        for number in 0..=options.rounds {
            for (way, rounds) in ["staged", "scattered"].into_iter().zip(&mut rounds) {
                let order = format!("{way} {size} {}", options.time);
                let round = play(&mut sender, &mut receiver, &order)?;
                // The first warms up.
                if number > 0 {
                    rounds.push(round);
                }
            }
        }
        let median = |way: usize, field: fn(&Round) -> f64| {
            let mut values: Vec<f64> = rounds[way].iter().map(field).collect();
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied().unwrap_or_default()
        };
        let costs = [median(0, |r| r.cost), median(1, |r| r.cost)];
        println!(
            "| {size} | {:.3} | {:.3} | {:+.0} % | {:.1} ({:.1}) | {:.1} ({:.1}) |",
            costs[0],
            costs[1],
            (costs[1] / costs[0] - 1.0) * 100.0,
            median(0, |r| r.sent),
            median(0, |r| r.arrived),
            median(1, |r| r.sent),
            median(1, |r| r.arrived),
        );
    }
    println!("(in brackets: what arrived)");
    Ok(())
}

fn play(sender: &mut Player, receiver: &mut Player, order: &str) -> io::Result<Round> {
    let before = receiver.numbers("count")?;
    let sent = sender.numbers(order)?;
    let after = receiver.numbers("count")?;
    let ([bytes, cpu, seconds], [before], [after]) = (&sent[..], &before[..], &after[..]) else {
        return Err(io::Error::other("a part of the bench answers nonsense"));
    };
    let gbit = |bytes: f64| bytes * 8e-9 / seconds;
    Ok(Round { cost: cpu / (bytes * 1e-9), sent: gbit(*bytes), arrived: gbit(after - before) })
}
