//! A station: the process that plays one guest. It takes orders from standard input, one line of
//! JSON each, and answers each with a line on standard output.

use std::io::{self, BufRead, Write};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::board::Board;
use crate::frames::{Flow, Offload};
use crate::lane::Lane;
use crate::nic::Nic;
use crate::pattern::Pattern;
use crate::tap::Tap;
use crate::traffic::{self, Plan, Receiver, Requests, RoundTrips, Sent};

/// What a station is attached to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Attachment {
    /// The vhost-user socket of a backend.
    Backend(PathBuf),
    /// A tap of this network namespace.
    Tap(String),
}

/// How a station is started: its only argument.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Setup {
    pub(crate) number: u8,
    pub(crate) attachment: Attachment,
    pub(crate) queue_pairs: usize,
}

/// What a station is to do. Flow n uses lane n for sending; boards are given by their paths.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Send flows until the board says stop.
    Send { board: PathBuf, flows: Vec<Flow>, plan: Plan },
    /// Receive flows with these ports until the board says stop.
    Receive { board: PathBuf, ports: Vec<u16>, limit_ms: u64 },
    /// Ask and await replies.
    Request { flow: Flow, requests: Requests },
    /// Reply to requests of a flow until the board says stop.
    Reply { board: PathBuf, flow: Flow, frame: usize, limit_ms: u64 },
}

/// What became of an order, or of the start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Outcome {
    Ready(Offload),
    Sent(Vec<Sent>),
    /// The first fault, and frames that were torn since the start, see [`Lane::torn`].
    Received {
        fault: Option<String>,
        torn: u64,
    },
    RoundTrips(RoundTrips),
    Replied(u64),
    Failed(String),
}

/// Runs a station until its standard input ends.
pub(crate) fn run(setup: &str) -> io::Result<()> {
    let setup: Setup = serde_json::from_str(setup)?;
    let pattern = Pattern::new();
    match &setup.attachment {
        Attachment::Backend(path) => {
            let mut nic = Nic::connect(path, setup.queue_pairs, &pattern)?;
            let lanes = nic.lanes.iter_mut().map(|lane| lane as &mut dyn Lane);
            serve(&setup, nic.offload, lanes.collect(), &pattern)
        }
        Attachment::Tap(name) => {
            let mut tap = Tap::open(name, setup.queue_pairs)?;
            let lanes = tap.lanes.iter_mut().map(|lane| lane as &mut dyn Lane);
            serve(&setup, tap.offload, lanes.collect(), &pattern)
        }
    }
}

fn serve(
    setup: &Setup,
    offload: Offload,
    mut lanes: Vec<&mut dyn Lane>,
    pattern: &Pattern,
) -> io::Result<()> {
    let answer = |outcome: &Outcome| -> io::Result<()> {
        let mut line = serde_json::to_vec(outcome)?;
        line.push(b'\n');
        let mut output = io::stdout().lock();
        output.write_all(&line)?;
        output.flush()
    };
    answer(&Outcome::Ready(offload))?;
    for line in io::stdin().lock().lines() {
        let order = serde_json::from_str(&line?)?;
        let outcome = obey(order, setup.number, offload, &mut lanes, pattern);
        answer(&outcome.unwrap_or_else(|error| Outcome::Failed(error.to_string())))?;
    }
    Ok(())
}

fn obey(
    order: Order,
    station: u8,
    offload: Offload,
    lanes: &mut [&mut dyn Lane],
    pattern: &Pattern,
) -> io::Result<Outcome> {
    match order {
        Order::Send { board, flows, plan } => {
            let board = Board::open(&board)?;
            let flows = flows.into_iter().enumerate();
            let sent = in_parallel(lanes, flows, |lane, flow| {
                traffic::send(lane, &board, flow, plan, offload, pattern)
            })?;
            Ok(Outcome::Sent(sent))
        }
        Order::Receive { board, ports, limit_ms } => {
            let board = Board::open(&board)?;
            let receiver = Receiver::new(station, ports, &board, pattern);
            let limit = Duration::from_millis(limit_ms);
            in_parallel(lanes, 0..lanes.len(), |lane, _| receiver.run(lane, limit))?;
            let torn = lanes.iter().map(|lane| lane.torn()).sum();
            Ok(Outcome::Received { fault: receiver.fault().map(str::to_owned), torn })
        }
        Order::Request { flow, requests } => {
            traffic::request(lanes, flow, requests, offload, pattern).map(Outcome::RoundTrips)
        }
        Order::Reply { board, flow, frame, limit_ms } => {
            let board = Board::open(&board)?;
            let limit = Duration::from_millis(limit_ms);
            let count = traffic::reply(lanes, &board, flow, frame, offload, pattern, limit)?;
            Ok(Outcome::Replied(count))
        }
    }
}

/// Gives each lane one of `parts` and runs `work` on all of them, each in a thread of its own.
fn in_parallel<P: Send, T: Send>(
    lanes: &mut [&mut dyn Lane],
    parts: impl Iterator<Item = P>,
    work: impl Fn(&mut dyn Lane, P) -> io::Result<T> + Sync,
) -> io::Result<Vec<T>> {
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> = lanes
            .iter_mut()
            .zip(parts)
            .map(|(lane, part)| scope.spawn(move || work(&mut **lane, part)))
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    })
}
