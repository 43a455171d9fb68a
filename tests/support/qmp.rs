//! QEMU's monitor (docs/interop/qmp-spec.rst): commands and events, a JSON object a line.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::wait_until;

/// Time that QEMU may take for anything it is asked here; it does not answer while it is busy.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection to a monitor.
pub(crate) struct Qmp {
    stream: BufReader<UnixStream>,
    events: Vec<Value>,
}

impl Qmp {
    /// Connects to the monitor at `path` as soon as QEMU listens.
    pub(crate) fn connect(path: &Path) -> Self {
        let mut stream = None;
        wait_until("the monitor listens", PATIENCE, || {
            stream = UnixStream::connect(path).ok();
            stream.is_some()
        });
        let stream = stream.expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
        let mut qmp = Self { stream: BufReader::new(stream), events: Vec::new() };
        let greeting = qmp.read();
        assert!(greeting["QMP"].is_object(), "{greeting}");
        qmp.execute("qmp_capabilities", json!({}));
        qmp
    }

    fn read(&mut self) -> Value {
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("the monitor answers");
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("not a line of QMP: {line:?}"))
    }

    /// Runs a command; returns its result. Panics if QEMU refuses it.
    pub(crate) fn execute(&mut self, command: &str, arguments: Value) -> Value {
        let request = json!({ "execute": command, "arguments": arguments });
        let line = format!("{request}\n");
        self.stream.get_mut().write_all(line.as_bytes()).expect("the monitor reads");
        loop {
            let mut message = self.read();
            if message["event"].is_string() {
                self.events.push(message);
                continue;
            }
            assert!(message["error"].is_null(), "{command}: {}", message["error"]);
            return message["return"].take();
        }
    }

    /// When the event of this name came last, in microseconds of wall-clock time; it is forgotten.
    pub(crate) fn take_event(&mut self, name: &str) -> Option<u64> {
        // Events that have come meanwhile are read on the way to an answer.
        self.execute("query-status", json!({}));
        let at = self.events.iter().rposition(|event| event["event"] == name)?;
        let time = self.events.remove(at)["timestamp"].take();
        Some(time["seconds"].as_u64()? * 1_000_000 + time["microseconds"].as_u64()?)
    }
}
