//! Child processes: programs under test, and stations. All end when their handle is dropped.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use vnet::sys::clock;

use crate::frames::Offload;
use crate::station::{Order, Outcome, Setup};
use crate::topology::Host;

/// Time that a program may take to start, or a station to answer when it should.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks at something that cannot be waited for.
const LOOK: Duration = Duration::from_millis(5);

/// A running program whose output goes to a log.
pub(crate) struct Process {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Process {
    pub(crate) fn start(name: &str, directory: &Path, command: &mut Command) -> io::Result<Self> {
        let log = directory.join(format!("{name}.log"));
        let file = File::create(&log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        Ok(Self { child: command.spawn()?, name: name.to_owned(), log })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the program has made the socket at `path`.
    pub(crate) fn wait_socket(&mut self, path: &Path) -> io::Result<()> {
        let begin = clock::mono();
        while !path.exists() {
            if let Some(status) = self.child.try_wait()? {
                return Err(self.complaint(&format!("has ended: {status}")));
            }
            if clock::mono() - begin > PATIENCE {
                return Err(self.complaint("does not listen"));
            }
            std::thread::park_timeout(LOOK);
        }
        Ok(())
    }

    fn complaint(&self, what: &str) -> io::Error {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        io::Error::other(format!("{} {what}\n{log}", self.name))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A station process, see [`crate::station`].
pub(crate) struct Station {
    process: Process,
    input: ChildStdin,
    answers: Receiver<Outcome>,
    pub(crate) offload: Offload,
}

impl Station {
    pub(crate) fn start(
        name: &str,
        directory: &Path,
        host: &Host,
        setup: &Setup,
    ) -> io::Result<Self> {
        let log = directory.join(format!("{name}.log"));
        let program = std::env::current_exe()?;
        let mut child = host
            .command(&program.to_string_lossy())
            .arg("--station")
            .arg(serde_json::to_string(setup)?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&log)?)
            .spawn()?;
        let piped = || io::Error::other("a station without pipes");
        let input = child.stdin.take().ok_or_else(piped)?;
        let output = BufReader::new(child.stdout.take().ok_or_else(piped)?);
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            let lines = output.lines().map_while(Result::ok);
            let outcomes = lines.map_while(|line| serde_json::from_str(&line).ok());
            for outcome in outcomes {
                if sender.send(outcome).is_err() {
                    break;
                }
            }
        });
        let process = Process { child, name: name.to_owned(), log };
        let mut station = Self { process, input, answers, offload: Offload::default() };
        match station.answer()? {
            Outcome::Ready(offload) => station.offload = offload,
            other => return Err(station.process.complaint(&format!("started with {other:?}"))),
        }
        Ok(station)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub(crate) fn order(&mut self, order: &Order) -> io::Result<()> {
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        self.input.write_all(&line).map_err(|error| self.process.complaint(&error.to_string()))
    }

    /// Its answer to the order.
    pub(crate) fn answer(&self) -> io::Result<Outcome> {
        match self.answer_within(PATIENCE)? {
            Some(outcome) => Ok(outcome),
            None => Err(self.process.complaint("does not answer")),
        }
    }

    /// The same, if it comes within the time.
    pub(crate) fn answer_within(&self, time: Duration) -> io::Result<Option<Outcome>> {
        match self.answers.recv_timeout(time) {
            Ok(Outcome::Failed(why)) => Err(self.process.complaint(&why)),
            Ok(outcome) => Ok(Some(outcome)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(self.process.complaint("has ended")),
        }
    }
}
