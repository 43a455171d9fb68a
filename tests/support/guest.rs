//! Guests with a real kernel, in QEMU, and what to tell them (`qemu-examples/guest-init` describes
//! the lines that are exchanged).

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use ::vnet::sys::clock;

use super::netns::Host;
use super::process::Process;
use super::qmp::Qmp;
use super::vnet::{Backend, Listener};
use super::{ROOT, pause};

/// Time that a guest may take to boot, on a machine that is busy with other things.
const BOOT: Duration = Duration::from_secs(120);
/// Time that a command in a guest may take.
const COMMAND: Duration = Duration::from_secs(240);

/// QEMU options that give a guest memory which a backend can map: without them, none can serve it.
const SHARED_MEMORY: [&str; 4] = shared_memory("memory-backend-memfd,id=mem,size=128M,share=on");

const fn shared_memory(object: &str) -> [&str; 4] {
    ["-object", object, "-machine", "q35,memory-backend=mem"]
}

/// Which QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Qemu {
    /// The machine's own: 7.2 on Debian 12.
    Installed,
    /// QEMU 10, beside it; see `qemu-examples/qemu-10`.
    Ten,
}

impl Qemu {
    /// The command that runs it.
    pub(crate) fn program(self) -> &'static str {
        static TEN: OnceLock<String> = OnceLock::new();
        match self {
            Self::Installed => "qemu-system-x86_64",
            Self::Ten => {
                TEN.get_or_init(|| output_of("qemu-examples/qemu-10", &[]).unwrap_or_default())
            }
        }
    }

    /// Whether this machine has it, or can get it.
    pub(crate) fn is_available(self) -> bool {
        !self.program().is_empty()
    }
}

/// The guest's side of a vhost-user socket.
pub(crate) struct Nic<'a> {
    /// Its backend.
    pub(crate) backend: &'a Backend,
    /// MTU that QEMU tells the guest, in bytes, if any.
    pub(crate) mtu: Option<u32>,
    /// Further options of the device, ",name=value" each.
    pub(crate) options: &'a str,
    /// How many queue pairs it has; with several, the guest has as many processors.
    pub(crate) queue_pairs: u8,
}

/// An existing tap on a host, on which a guest's NIC can be instead; QEMU then runs on that host.
pub(crate) struct Tap<'a> {
    pub(crate) host: &'a Host,
    pub(crate) name: &'a str,
    /// The NIC's address.
    pub(crate) mac: String,
    /// MTU that QEMU tells the guest, in bytes.
    pub(crate) mtu: u32,
}

/// A running guest.
pub(crate) struct Guest {
    /// QEMU.
    pub(crate) process: Process,
    agent: Agent,
    name: String,
    boot_id: String,
    directory: PathBuf,
}

impl Guest {
    /// Starts a guest with these NICs (eth0, eth1, ...). It boots meanwhile: see
    /// [`Guest::wait_boot`].
    pub(crate) fn start(name: &str, qemu: Qemu, nics: &[Nic<'_>], directory: &Path) -> Self {
        let mut command = machine(qemu, nics);
        command.args(SHARED_MEMORY);
        Self::start_command(name, &mut command, directory)
    }

    /// Starts a guest from the image that has what routers need, such as a ping that can set DF.
    pub(crate) fn start_router(name: &str, qemu: Qemu, nics: &[Nic<'_>], directory: &Path) -> Self {
        let mut command = machine(qemu, nics);
        command.args(SHARED_MEMORY);
        // Of several, QEMU takes the last.
        command.arg("-initrd").arg(image("initramfs-router.cpio.gz"));
        Self::start_command(name, &mut command, directory)
    }

    /// Starts a guest into which so many DIMMs can be plugged.
    pub(crate) fn start_with_slots(
        name: &str,
        qemu: Qemu,
        nics: &[Nic<'_>],
        slots: u32,
        directory: &Path,
    ) -> Self {
        let mut command = machine(qemu, nics);
        // Where there may be memory above 4 GiB the kernel takes 64 MiB for bounce buffers.
        command.args(shared_memory("memory-backend-memfd,id=mem,size=256M,share=on"));
        // Of several, QEMU takes the last.
        command.arg("-m").arg(format!("256M,slots={slots},maxmem=8G"));
        Self::start_command(name, &mut command, directory)
    }

    /// Starts a QEMU that waits for a guest to migrate to it, from one that was started with NICs
    /// in the same number.
    pub(crate) fn await_migration(
        name: &str,
        qemu: Qemu,
        nics: &[Nic<'_>],
        directory: &Path,
    ) -> Self {
        let mut command = machine(qemu, nics);
        command.args(SHARED_MEMORY);
        command.arg("-incoming").arg(format!("unix:{}", incoming(name, directory)));
        Self::start_command(name, &mut command, directory)
    }

    /// Starts a guest whose NIC (eth0) is on a tap, but is otherwise the same; or a QEMU that waits for
    /// such a guest to migrate to it.
    pub(crate) fn start_on_tap(
        name: &str,
        qemu: Qemu,
        tap: &Tap<'_>,
        awaits_migration: bool,
        directory: &Path,
    ) -> Self {
        let mut command = tap.host.command(qemu.program());
        command.args(machine(qemu, &[]).get_args());
        command.args(SHARED_MEMORY);
        let Tap { name: interface, mac, mtu, .. } = tap;
        let netdev = format!("tap,id=n0,ifname={interface},script=no,downscript=no");
        let device = format!("virtio-net-pci,netdev=n0,mac={mac},host_mtu={mtu}");
        command.args(["-netdev", &netdev, "-device", &device]);
        if awaits_migration {
            command.arg("-incoming").arg(format!("unix:{}", incoming(name, directory)));
        }
        Self::start_command(name, &mut command, directory)
    }

    /// Starts a guest out of what tests/uso-guest has made in `made`, whose NIC (eth0) is a vhost-user
    /// device of which QEMU knows nothing but its socket.
    pub(crate) fn start_generic(name: &str, made: &Path, socket: &Path, directory: &Path) -> Self {
        let qemu = made.join("qemu-system-x86_64").display().to_string();
        let mut command = Command::new(&qemu);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-m", "128M"]);
        command.args(accelerator(&qemu)).args(kernel()).args(["-serial", "stdio"]);
        command.args(SHARED_MEMORY);
        // Of several, QEMU takes the last.
        let base = Path::new(ROOT).join(".cache/guest/initramfs.cpio.gz");
        let parts =
            [base, made.join("overlay.cpio.gz")].map(|path| std::fs::read(path).expect("made"));
        let initramfs = directory.join(format!("{name}.initramfs"));
        std::fs::write(&initramfs, parts.concat()).expect("a file");
        command.arg("-kernel").arg(made.join("vmlinux")).arg("-initrd").arg(initramfs);
        command.arg("-chardev").arg(format!("socket,id=c0,path={}", socket.display()));
        let device = "vhost-user-test-device-pci,chardev=c0,virtio-id=1,num_vqs=2,vq_size=256";
        command.args(["-device", device]);
        Self::start_command(name, &mut command, directory)
    }

    /// Starts a guest under User-Mode Linux out of what tests/uml-guest has made in `made`; its agent is on
    /// a serial line.
    pub(crate) fn start_uml(name: &str, made: &Path, socket: &Path, directory: &Path) -> Self {
        let path = directory.join(format!("{name}.agent"));
        let listener = UnixListener::bind(&path).expect("the agent's socket");
        let line = UnixStream::connect(&path).expect("a listener");
        listener.set_nonblocking(true).expect("a listener that does not block");
        let mut command = Command::new("linux.uml");
        command.args(["mem=128M", "quiet", "con=null", "con0=null,fd:1", "ssl=null"]);
        command.args(["ssl0=fd:0,fd:0", &format!("umid={name}")]);
        command.arg(format!("uml_dir={}", directory.display()));
        command.arg(format!("initrd={}", made.join("initramfs.cpio.gz").display()));
        command.arg(format!("virtio_uml.device={}:1", socket.display()));
        let (program, line) = (format!("guest-{name}"), Stdio::from(OwnedFd::from(line)));
        let process = Process::start_reading(&program, directory, &mut command, line);
        let (agent, directory) = (Agent::new(listener), directory.to_owned());
        Self { process, agent, name: name.to_owned(), boot_id: String::new(), directory }
    }

    /// Where QEMU waits for the guest, in the form in which it is told so.
    pub(crate) fn incoming(&self) -> String {
        format!("unix:{}", incoming(&self.name, &self.directory))
    }

    /// Connects to QEMU's monitor.
    pub(crate) fn monitor(&self) -> Qmp {
        Qmp::connect(&monitor(&self.name, &self.directory))
    }

    /// The guest has migrated to `to`, where commands that run in it go on.
    pub(crate) fn hand_over(&mut self, to: &mut Self) {
        self.agent.drain();
        to.agent.take_over(&mut self.agent);
        to.boot_id.clone_from(&self.boot_id);
    }

    /// Starts a guest whose memory is not shared, which cannot work; `object` is what the memory is, if
    /// not QEMU's own.
    pub(crate) fn start_unshared(
        name: &str,
        qemu: Qemu,
        nics: &[Nic<'_>],
        object: Option<&str>,
        at: &Path,
    ) -> Self {
        let mut command = machine(qemu, nics);
        match object {
            Some(object) => command.args(shared_memory(object)),
            None => command.args(["-machine", "q35"]),
        };
        Self::start_command(name, &mut command, at)
    }

    /// Starts a guest with a command that ends in QEMU options: those for the agent are added.
    pub(crate) fn start_command(name: &str, command: &mut Command, directory: &Path) -> Self {
        let path = directory.join(format!("{name}.agent"));
        // Left over from a guest of this name that has ended.
        let _ = std::fs::remove_file(&path);
        let monitor = format!("unix:{},server=on,wait=off", monitor(name, directory).display());
        command.args(["-qmp", &monitor]);
        let listener = UnixListener::bind(&path).expect("the agent's socket");
        listener.set_nonblocking(true).expect("a listener that does not block");
        command.arg("-chardev").arg(format!("socket,id=agent,path={}", path.display()));
        command.args(["-device", "virtio-serial-pci"]);
        command.args(["-device", "virtserialport,chardev=agent,name=org.vnet.agent"]);
        let process = Process::start(&format!("guest-{name}"), directory, command);
        let (agent, directory) = (Agent::new(listener), directory.to_owned());
        Self { process, agent, name: name.to_owned(), boot_id: String::new(), directory }
    }

    /// Waits until the guest has booted, for the first time or once more.
    pub(crate) fn wait_boot(&mut self) {
        let begin = clock::mono();
        loop {
            self.process.assert_running();
            if let Some(boot_id) = self.agent.said.boots.pop() {
                self.boot_id = boot_id;
                return;
            }
            assert!(clock::mono() - begin < BOOT, "guest {} has not booted", self.name);
            self.agent.receive();
        }
    }

    /// Gives an interface an address and sets it up.
    pub(crate) fn configure(&mut self, interface: &str, address: &str) {
        self.run(&format!(
            "ip address add {address} dev {interface} && ip link set {interface} up"
        ));
    }

    /// Runs a command; returns what it printed. Panics if it fails.
    pub(crate) fn run(&mut self, command: &str) -> String {
        let (status, output) = self.try_run(command);
        assert_eq!(status, 0, "guest {}: {command}:\n{output}", self.name);
        output
    }

    /// Runs a command; returns its exit status and what it printed.
    pub(crate) fn try_run(&mut self, command: &str) -> (i32, String) {
        let running = self.spawn(command);
        self.wait(running)
    }

    /// Starts a command that runs while others do; to be given to [`Guest::wait`].
    pub(crate) fn spawn(&mut self, command: &str) -> Running {
        Running(self.agent.send(command))
    }

    /// Waits until a command has ended; returns its exit status and what it printed.
    pub(crate) fn wait(&mut self, running: Running) -> (i32, String) {
        let begin = clock::mono();
        loop {
            if let Some(status) = self.agent.status(running.0) {
                return (status, self.agent.take_output(running.0));
            }
            self.process.assert_running();
            let output = || self.agent.said.outputs.get(&running.0).cloned().unwrap_or_default();
            let late = clock::mono() - begin >= COMMAND;
            assert!(!late, "guest {}: a command has not ended:\n{}", self.name, output());
            self.agent.receive();
        }
    }

    /// A number that a command prints.
    pub(crate) fn number(&mut self, command: &str) -> u64 {
        let output = self.run(command);
        output.trim().parse().unwrap_or_else(|_| panic!("{command}: not a number: {output}"))
    }

    /// Frames that an interface has received.
    pub(crate) fn frames_received(&mut self, interface: &str) -> u64 {
        self.number(&format!("cat /sys/class/net/{interface}/statistics/rx_packets"))
    }

    /// Panics if QEMU has complained about anything, a backend for example.
    pub(crate) fn assert_no_complaints(&self) {
        let log = self.process.log();
        let is_complaint =
            |line: &&str| line.starts_with("qemu-system-x86_64: ") && !line.contains(": info: ");
        let complaint = log.lines().find(is_complaint);
        assert_eq!(complaint, None, "guest {}", self.name);
    }

    /// Differs from boot to boot.
    pub(crate) fn boot_id(&self) -> &str {
        &self.boot_id
    }

    /// Panics if the guest has booted again since [`Guest::wait_boot`].
    pub(crate) fn assert_not_rebooted(&mut self) {
        let now = self.run("cat /proc/sys/kernel/random/boot_id");
        assert_eq!(now.trim(), self.boot_id, "guest {} has rebooted", self.name);
    }
}

/// A command that was started in a guest.
pub(crate) struct Running(u64);

/// The host's end of the virtio-serial port.
struct Agent {
    listener: UnixListener,
    stream: Option<UnixStream>,
    said: Said,
}

/// What was said on the port so far.
#[derive(Default)]
struct Said {
    /// Received, and not yet a whole line.
    partial: Vec<u8>,
    /// Boot ids of boots that nobody has asked for yet.
    boots: Vec<String>,
    outputs: HashMap<u64, String>,
    statuses: HashMap<u64, i32>,
    last_id: u64,
}

impl Agent {
    fn new(listener: UnixListener) -> Self {
        Self { listener, stream: None, said: Said::default() }
    }

    fn send(&mut self, command: &str) -> u64 {
        assert!(!command.contains('\n'), "a command is one line: {command}");
        self.said.last_id += 1;
        let stream = self.stream.as_mut().expect("a guest that has booted");
        let line = format!("{}\t{command}\n", self.said.last_id);
        stream.write_all(line.as_bytes()).expect("the agent's socket");
        self.said.last_id
    }

    fn status(&mut self, id: u64) -> Option<i32> {
        self.said.statuses.remove(&id)
    }

    fn take_output(&mut self, id: u64) -> String {
        self.said.outputs.remove(&id).unwrap_or_default()
    }

    /// Takes in what the guest says, or returns after a short while if it says nothing.
    fn receive(&mut self) {
        let Some(stream) = &mut self.stream else { return self.accept() };
        let mut bytes = [0; 4096];
        match stream.read(&mut bytes) {
            // QEMU has ended; its process is looked at by the caller.
            Ok(0) => pause(),
            Ok(length) => self.said.partial.extend_from_slice(&bytes[..length]),
            // Interrupted: this process was stopped for a moment.
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => panic!("the agent's socket: {error}"),
        }
        while let Some(end) = self.said.partial.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.said.partial.drain(..=end).collect();
            self.take_line(String::from_utf8_lossy(&line).trim_end());
        }
    }

    /// Takes in what the guest has said so far.
    fn drain(&mut self) {
        let Some(stream) = &mut self.stream else { return };
        stream.set_nonblocking(true).expect("a stream that does not block");
        let mut rest = Vec::new();
        // It ends with "would block", or with QEMU.
        let _ = stream.read_to_end(&mut rest);
        self.said.partial.extend(rest);
    }

    /// Goes on where another was.
    fn take_over(&mut self, other: &mut Self) {
        while self.stream.is_none() {
            self.accept();
        }
        self.said = std::mem::take(&mut other.said);
    }

    fn accept(&mut self) {
        match self.listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).expect("a stream that blocks");
                let limit = Some(Duration::from_millis(50));
                stream.set_read_timeout(limit).expect("a stream with a time limit");
                self.stream = Some(stream);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => pause(),
            Err(error) => panic!("the agent's socket: {error}"),
        }
    }

    fn take_line(&mut self, line: &str) {
        let Some((id, rest)) = line.split_once('\t') else { return };
        if id == "READY" {
            self.said.boots.push(rest.to_owned());
            return;
        }
        let id: u64 = id.parse().unwrap_or_else(|_| panic!("the agent says: {line}"));
        if let Some(text) = rest.strip_prefix("out:") {
            let output = self.said.outputs.entry(id).or_default();
            output.push_str(text);
            output.push('\n');
        } else if let Some(status) = rest.strip_prefix("exit:") {
            self.said.statuses.insert(id, status.parse().expect("an exit status"));
        }
    }
}

/// The socket of a guest's monitor.
fn monitor(name: &str, directory: &Path) -> PathBuf {
    directory.join(format!("{name}.qmp"))
}

/// The socket at which a guest is awaited.
fn incoming(name: &str, directory: &Path) -> String {
    directory.join(format!("{name}.incoming")).display().to_string()
}

/// The command line of a guest, but for its memory.
fn machine(qemu: Qemu, nics: &[Nic<'_>]) -> Command {
    let mut command = Command::new(qemu.program());
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-m", "128M"]);
    command.args(accelerator(qemu.program())).args(kernel()).args(["-serial", "stdio"]);
    let queue_pairs = nics.iter().map(|nic| nic.queue_pairs).max().unwrap_or(1);
    if queue_pairs > 1 {
        command.arg("-smp").arg(queue_pairs.to_string());
    }
    for (number, nic) in nics.iter().enumerate() {
        command.args(nic_options(number, nic));
    }
    command
}

fn nic_options(number: usize, nic: &Nic<'_>) -> [String; 6] {
    let Backend { socket, listener, vif, .. } = nic.backend;
    let side = match listener {
        Listener::Backend => "reconnect=1",
        Listener::Qemu => "server=on",
    };
    let mac = vif.mac();
    let (queues, mq) = match nic.queue_pairs {
        1 => (String::new(), ""),
        count => (format!(",queues={count}"), ",mq=on"),
    };
    let mtu = nic.mtu.map(|mtu| format!(",host_mtu={mtu}")).unwrap_or_default();
    [
        "-chardev".to_owned(),
        format!("socket,id=c{number},path={},{side}", socket.display()),
        "-netdev".to_owned(),
        format!("vhost-user,id=n{number},chardev=c{number}{queues}"),
        "-device".to_owned(),
        format!("virtio-net-pci,netdev=n{number},mac={mac}{mtu}{mq}{}", nic.options),
    ]
}

/// The kernel's tests of itself take a third of the time that an emulated guest needs to boot.
const NO_SELF_TESTS: &str =
    "cryptomgr.notests initcall_blacklist=crypto_kdf108_init,init_kprobe_trace";

fn kernel() -> [String; 6] {
    [
        "-kernel".to_owned(),
        image("vmlinux"),
        "-initrd".to_owned(),
        image("initramfs.cpio.gz"),
        "-append".to_owned(),
        format!("console=ttyS0 quiet panic=-1 mitigations=off no_timer_check {NO_SELF_TESTS}"),
    ]
}

/// A file that `qemu-examples/guest-image` makes.
fn image(name: &str) -> String {
    Path::new(ROOT).join(".cache/guest").join(name).display().to_string()
}

/// QEMU options for the fastest way to run the guest here.
fn accelerator(qemu: &str) -> Vec<String> {
    let options = output_of("qemu-examples/accelerator", &[qemu]);
    let options = options.expect("qemu-examples/accelerator");
    options.split(' ').map(str::to_owned).collect()
}

/// What a script prints; the error if it fails.
fn output_of(script: &str, arguments: &[&str]) -> Result<String, String> {
    let path = Path::new(ROOT).join(script);
    let output = Command::new(path).args(arguments).output().expect(script);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}
