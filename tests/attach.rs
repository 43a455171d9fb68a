//! How frontends come and go, and what they may say; the control side without frames.

#[path = "support/driver.rs"]
mod driver;
#[path = "attach/frontends.rs"]
mod frontends;
#[path = "support/in_process.rs"]
mod in_process;
#[path = "support/loopback.rs"]
mod loopback;
#[path = "support/rig.rs"]
mod rig;

use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use driver::{Control, Driver, F_PROTOCOL_FEATURES, Memory, Options, Order, readable, request};
use in_process::InProcess;
use loopback::Loopback;
use rig::{PATIENCE, Rig, eventually, hang_up};
use tempfile::TempDir;
use vnet::sys::clock;
use vnet::vhost_user::attach::{Attach, AttachError, Endpoint, Frontends, User};

/// Descriptors and threads are counted for the whole process: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn entries(dir: &str) -> usize {
    fs::read_dir(dir).expect("a directory").count()
}

/// Open descriptors of this process, and threads of devices (the test harness has others).
fn resources() -> (usize, usize) {
    let tasks = fs::read_dir("/proc/self/task").expect("procfs");
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    let ours = names.filter(|name| matches!(name.trim(), "vhost-user" | "vring_worker"));
    (entries("/proc/self/fd"), ours.count())
}

fn file(data: &fs::File) -> i32 {
    data.as_raw_fd()
}

#[test]
fn connections_leave_nothing_behind() {
    let _alone = alone();
    let rig = InProcess::listening(2);
    let options = Options { pairs: 2, queue_size: 16, ..Options::default() };
    drop(rig.connect(options.clone()));
    let connected = |n: u64| rig.data_path.disconnects.load(Ordering::SeqCst) == n;
    eventually("the first connection ends", || connected(1));
    let before = resources();
    for n in 0..200 {
        let mut driver = rig.connect(options.clone());
        match n % 4 {
            0 => rig.assert_alive(&mut driver),
            // Not even the answer is read.
            1 => driver.control.send(request::GET_FEATURES, 0, &[], &[]).unwrap(),
            // In the middle of a message.
            2 => driver.control.send_raw(&[1, 0, 0, 0, 1], &[]).unwrap(),
            // With a descriptor that nobody asked for.
            _ => {
                let fd = driver.memory.file.as_raw_fd();
                driver.control.send(request::SET_OWNER, 0, &[], &[fd]).unwrap();
            }
        }
        drop(driver);
    }
    eventually("all connections end", || connected(201));
    eventually("nothing is left", || resources() == before);
    rig.assert_alive(&mut rig.connect(options));
}

/// A connection that says something, as a frontend's first message does.
fn speaking(rig: &InProcess) -> Control {
    let control = Control::connect(rig.path()).expect("the backend listens");
    control.send(request::GET_FEATURES, 0, &[], &[]).expect("there is room for a message");
    control
}

#[test]
fn a_frontend_is_served_until_its_connection_ends() {
    let _alone = alone();
    let rig = InProcess::listening(1);
    let mut first = rig.connect(Options::default());
    rig.assert_alive(&mut first);
    // Those that only look whether anybody listens, or say nothing, change nothing.
    drop(UnixStream::connect(rig.path()).unwrap());
    let silent = UnixStream::connect(rig.path()).unwrap();
    let mut waiting = speaking(&rig);
    // One waits; any others are turned away.
    assert!(speaking(&rig).is_closed(PATIENCE));
    rig.assert_alive(&mut first);
    assert!(!readable(&waiting.socket, Duration::ZERO), "it is not answered while it waits");
    assert_eq!(rig.data_path.disconnects.load(Ordering::SeqCst), 0);
    hang_up(&first);
    // Its turn: the question that it asked is answered.
    assert_eq!(waiting.reply().unwrap().0, request::GET_FEATURES);
    let mut second = Driver::new(waiting, Options::default());
    second.negotiate().and_then(|()| second.start()).unwrap();
    rig.assert_alive(&mut second);
    assert_eq!(rig.data_path.disconnects.load(Ordering::SeqCst), 1);
    drop(silent);
    rig.assert_alive(&mut second);
}

#[test]
fn one_that_waits_and_goes_makes_room_for_another() {
    let _alone = alone();
    let rig = InProcess::listening(1);
    let mut first = rig.connect(Options::default());
    for _ in 0..3 {
        let waiting = speaking(&rig);
        // It has been heard once a second one is turned away.
        assert!(speaking(&rig).is_closed(PATIENCE));
        drop(waiting);
        rig.assert_alive(&mut first);
        eventually("there is room for one that waits", || {
            let mut next = speaking(&rig);
            !next.is_closed(Duration::from_millis(100))
        });
    }
    drop(first);
    rig.assert_alive(&mut rig.connect(Options::default()));
}

#[test]
fn connections_that_say_nothing_keep_nobody_out() {
    let _alone = alone();
    let rig = InProcess::listening(1);
    let mut silent: Vec<_> = (0..100).map(|_| UnixStream::connect(rig.path()).unwrap()).collect();
    let mut driver = rig.connect(Options::default());
    silent.extend((0..100).map(|_| UnixStream::connect(rig.path()).unwrap()));
    rig.assert_alive(&mut driver);
    drop(driver);
    rig.assert_alive(&mut rig.connect(Options::default()));
    drop(silent);
}

/// A user who is not this one.
fn somebody_else() -> Frontends {
    let uid = nix::unistd::geteuid().as_raw() + 1;
    Frontends::only(vec![User { name: "somebody-else".into(), uid }])
}

fn this_user() -> Frontends {
    let uid = nix::unistd::geteuid().as_raw();
    Frontends::only(vec![User { name: uid.to_string(), uid }])
}

/// Root may always connect: such a test needs another user.
fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[test]
fn an_inherited_connection_of_another_user_is_refused() {
    let _alone = alone();
    let open = |frontends| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let endpoint = Endpoint::open(Attach::Fd(theirs.into())).unwrap();
        (endpoint.only_for(frontends).map(drop), ours)
    };
    assert!(open(this_user()).0.is_ok());
    let refused = open(somebody_else()).0;
    match is_root() {
        true => assert!(refused.is_ok(), "root may always connect"),
        false => {
            let why = refused.unwrap_err().to_string();
            let pid = std::process::id();
            assert!(why.starts_with(&format!("the frontend is process {pid} of user ")), "{why}");
            assert!(why.ends_with(", whom --frontend-user does not list"), "{why}");
        }
    }
}

#[test]
fn messages_that_cannot_be_obeyed_end_their_connection() {
    let _alone = alone();
    let rig = InProcess::listening(1);
    let null = fs::File::open("/dev/null").unwrap();
    let header =
        |code: u32, flags: u32, size: u32| [code, flags, size].map(u32::to_ne_bytes).concat();
    let bad: &[(&str, Vec<u8>, usize)] = &[
        ("version 2", header(1, 2, 0), 0),
        ("reserved flags", header(1, 0x101, 0), 0),
        ("a reply", header(1, 5, 0), 0),
        ("4097 bytes", header(2, 1, 4097), 0),
        ("4 GiB", header(2, 1, u32::MAX), 0),
        ("an unknown request", header(99, 1, 0), 0),
        ("request 0", header(0, 1, 0), 0),
        ("SET_FEATURES without payload", header(2, 1, 0), 0),
        ("SET_VRING_ENABLE without payload", header(18, 1, 0), 0),
        ("an in-band kick", [header(35, 1, 8), vec![0; 8]].concat(), 0),
        ("33 descriptors", [header(5, 1, 8), vec![0; 8]].concat(), 33),
        ("a descriptor with GET_FEATURES", header(1, 1, 0), 1),
        ("a memory table without regions", [header(5, 1, 8), vec![0; 8]].concat(), 0),
        ("memory without descriptor", [header(5, 1, 40), vec![1], vec![0; 39]].concat(), 0),
        ("a region without descriptor", [header(37, 1, 40), vec![0; 40]].concat(), 0),
        ("a kick for no ring", [header(12, 1, 8), vec![0xff], vec![0; 7]].concat(), 1),
        ("a kick that is a file", [header(12, 1, 8), vec![0; 8]].concat(), 1),
    ];
    let before = resources();
    for (name, bytes, descriptors) in bad {
        let mut control = Control::connect(rig.path()).unwrap();
        control.set_u64(request::SET_FEATURES, 0).unwrap();
        control.send_raw(bytes, &vec![file(&null); *descriptors]).unwrap();
        assert!(control.is_closed(PATIENCE), "{name}");
    }
    eventually("nothing is left", || resources() == before);
    rig.assert_alive(&mut rig.connect(Options::default()));
}

/// A region of guest memory: guest physical address, size, frontend's address, offset in its file.
type Region = [u64; 4];

const MIB: u64 = 1 << 20;
const LOW: Region = [0, MIB, 1 << 32, 0];
const HIGH: Region = [1 << 31, MIB, 1 << 33, 0];

/// The payload of SET_MEM_TABLE.
fn table(regions: &[Region]) -> Vec<u8> {
    let mut words = vec![regions.len() as u64];
    words.extend(regions.iter().flatten());
    words.into_iter().flat_map(u64::to_ne_bytes).collect()
}

#[test]
fn memory_that_is_not_what_is_said_of_it_is_refused() {
    let _alone = alone();
    let rig = InProcess::listening(1);
    let memory = Memory::new(MIB as usize);
    let (pipe, _writer) = nix::unistd::pipe().unwrap();
    let null = fs::File::open("/dev/null").unwrap();
    let (good, pipe, null) = (file(&memory.file), pipe.as_raw_fd(), file(&null));
    let [guest, size, user, offset] = HIGH;
    let wrap = u64::MAX - MIB + 1;
    let bad: &[(&str, &[Region], &[i32])] = &[
        ("a file that is too short", &[[0, MIB + 1, 1 << 32, 0]], &[good]),
        ("one that is too short behind the offset", &[[0, MIB, 1 << 32, 4096]], &[good]),
        ("a second one that is too short", &[LOW, [guest, 2 * MIB, user, 0]], &[good, good]),
        ("an offset behind the end", &[[0, 4096, 1 << 32, 1 << 62]], &[good]),
        ("a pipe", &[LOW], &[pipe]),
        ("a device", &[LOW], &[null]),
        ("a region of no bytes", &[LOW, [guest, 0, user, offset]], &[good, good]),
        ("one that wraps around", &[LOW, [wrap, size, user, offset]], &[good, good]),
        ("one that wraps around at the frontend", &[LOW, [guest, size, wrap, 0]], &[good, good]),
        ("one that wraps around in its file", &[LOW, [guest, size, user, wrap]], &[good, good]),
        ("an odd offset", &[[0, 4096, 1 << 32, 512]], &[good]),
        ("two in one place", &[LOW, [MIB - 1, size, user, offset]], &[good, good]),
        ("two in the wrong order", &[HIGH, LOW], &[good, good]),
        ("two in one place of the frontend", &[LOW, [guest, size, 1 << 32, 0]], &[good, good]),
        ("too few files", &[LOW, HIGH], &[good]),
        ("too many files", &[LOW], &[good, good]),
        ("too many regions", &[LOW; 33], &[good; 32]),
    ];
    let before = resources();
    for (name, regions, files) in bad {
        let mut control = Control::connect(rig.path()).unwrap();
        control.send(request::SET_MEM_TABLE, 0, &table(regions), files).unwrap();
        assert!(control.is_closed(PATIENCE), "{name}");
    }
    let mut control = Control::connect(rig.path()).unwrap();
    control.send(request::SET_MEM_TABLE, 0, &table(&[LOW, HIGH]), &[good, good]).unwrap();
    control.sync().unwrap();
    drop(control);
    eventually("nothing is left", || resources() == before);
    rig.assert_alive(&mut rig.connect(Options::default()));
}

/// The payload of ADD_MEM_REG and REM_MEM_REG.
fn alone_in_message(region: Region) -> Vec<u8> {
    [&[0], &region[..]].concat().into_iter().flat_map(u64::to_ne_bytes).collect()
}

#[test]
fn a_region_that_cannot_join_the_others_ends_the_connection() {
    let _alone = alone();
    let rig = InProcess::listening(1);
    let memory = Memory::new(MIB as usize);
    let null = fs::File::open("/dev/null").unwrap();
    let (good, null) = (file(&memory.file), file(&null));
    let [guest, size, user, _] = HIGH;
    let (add, remove) = (request::ADD_MEM_REG, request::REM_MEM_REG);
    let bad: &[(&str, u32, Region, &[i32])] = &[
        ("without a file", add, HIGH, &[]),
        ("with two", add, HIGH, &[good, good]),
        ("in a file that is too short", add, [guest, 2 * MIB, user, 0], &[good]),
        ("in a device", add, HIGH, &[null]),
        ("in the place of another", add, [MIB / 2, size, user, 0], &[good]),
        ("within another", add, [4096, 4096, user, 0], &[good]),
        ("in another's place at the frontend", add, [guest, size, 1 << 32, 0], &[good]),
        ("at another place of its file", add, [0, MIB, 1 << 32, 4096], &[good]),
        ("that goes with two files", remove, LOW, &[good, good]),
    ];
    let before = resources();
    for (name, code, region, files) in bad {
        let options = Options { slots: true, ..Options::default() };
        let mut driver = Driver::new(Control::connect(rig.path()).unwrap(), options);
        driver.negotiate().unwrap();
        driver.control.set(add, &alone_in_message(LOW), &[good]).unwrap();
        driver.control.send(*code, 0, &alone_in_message(*region), files).unwrap();
        assert!(driver.control.is_closed(PATIENCE), "a region {name}");
    }
    eventually("nothing is left", || resources() == before);
    rig.assert_alive(&mut rig.connect(Options::default()));
}

#[test]
fn regions_that_come_and_go_leave_nothing_behind() {
    let _alone = alone();
    let rig = InProcess::listening(1);
    let memory = Memory::new(4096);
    let options = Options { slots: true, ..Options::default() };
    let mut driver = Driver::new(Control::connect(rig.path()).unwrap(), options);
    driver.negotiate().unwrap();
    let maps = || fs::read_to_string("/proc/self/maps").unwrap().lines().count();
    let before = (resources(), maps());
    let region = |n: u64| alone_in_message([2 * n * 4096, 4096, (1 << 40) + 2 * n * 4096, 0]);
    let control = &mut driver.control;
    for _ in 0..3 {
        // Twice, as QEMU does with two queue pairs.
        for n in (0..509).chain(0..509) {
            control.set(request::ADD_MEM_REG, &region(n), &[file(&memory.file)]).unwrap();
        }
        // The descriptor of one that goes is allowed, and closed.
        for n in (0..509).rev().chain(0..509) {
            control.set(request::REM_MEM_REG, &region(n), &[file(&memory.file)]).unwrap();
        }
    }
    assert_eq!((resources(), maps()), before);
    for n in 0..509 {
        control.set(request::ADD_MEM_REG, &region(n), &[file(&memory.file)]).unwrap();
    }
    control.send(request::ADD_MEM_REG, 0, &region(509), &[file(&memory.file)]).unwrap();
    assert!(control.is_closed(PATIENCE), "one more than there is room for");
}

/// Whatever a frontend sends along, again and again, is closed or takes the place of what was before.
#[test]
fn a_flood_of_descriptors_fills_nothing() {
    let _alone = alone();
    let rig = InProcess::listening(1);
    let memory = Memory::new(2 * MIB as usize);
    let null = fs::File::open("/dev/null").unwrap();
    let (memory, many) = (file(&memory.file), [file(&null); 32]);
    let mut driver = rig.connect(Options { order: Order::Plain, ..Options::default() });
    rig.assert_alive(&mut driver);
    let event = driver.pairs[0].tx.err.try_clone().unwrap();
    let maps = || fs::read_to_string("/proc/self/maps").unwrap().lines().count();
    let control = &mut driver.control;
    let flood = |control: &mut Control| {
        for code in [request::SET_VRING_CALL, request::SET_VRING_ERR] {
            control.set_ring_fd(code, 0, event.as_raw_fd()).unwrap();
        }
        // GET_INFLIGHT_FD, SET_INFLIGHT_FD, ADD_MEM_REG and one that nobody knows: not on offer.
        for code in [31, 32, 37, 99] {
            assert_eq!(control.set_acknowledged(code, &[0; 40], &many).unwrap(), 1);
        }
        let table = table(&[[1 << 40, MIB, 1 << 45, 0], [1 << 41, MIB, 1 << 46, MIB]]);
        control.set(request::SET_MEM_TABLE, &table, &[memory, memory]).unwrap();
    };
    flood(control);
    let before = (resources(), maps());
    (0..1000).for_each(|_| flood(control));
    assert_eq!((resources(), maps()), before);
    drop(driver);
    rig.assert_alive(&mut rig.connect(Options::default()));
}

#[test]
fn a_message_may_arrive_in_pieces() {
    let _alone = alone();
    let rig = InProcess::listening(1);
    let mut control = Control::connect(rig.path()).unwrap();
    let message =
        [[2_u32, 1, 8].map(u32::to_ne_bytes).concat(), F_PROTOCOL_FEATURES.to_ne_bytes().to_vec()];
    for byte in message.concat() {
        (&control.socket).write_all(&[byte]).unwrap();
    }
    control.sync().unwrap();
    eventually("features arrive", || rig.data_path.connects.load(Ordering::SeqCst) == 1);
    assert_eq!(rig.data_path.features.load(Ordering::SeqCst), 0);
}

#[test]
fn the_frontends_dialect_is_understood() {
    let _alone = alone();
    let rig = InProcess::listening(3);
    let options = Options { pairs: 3, queue_size: 16, ..Options::default() };
    let mut driver = Driver::new(Control::connect(rig.path()).unwrap(), options);
    driver.negotiate().unwrap();
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::SeqCst);
    let control = &mut driver.control;
    assert_eq!(control.get_u64(request::GET_QUEUE_NUM).unwrap(), 6, "rings");
    // The first SEND_RARP of a migration comes before features and memory.
    assert_eq!(control.set_acknowledged(request::SEND_RARP, &[0; 8], &[]).unwrap(), 0);
    assert_eq!(count(&rig.data_path.announced), 1);
    control.send(request::SEND_RARP, 0, &[0; 8], &[]).unwrap();
    control.sync().unwrap();
    assert_eq!(count(&rig.data_path.announced), 2);
    let mtu = |value: u64| value.to_ne_bytes();
    assert_eq!(control.set_acknowledged(request::NET_SET_MTU, &mtu(1400), &[]).unwrap(), 0);
    assert_eq!(rig.data_path.mtu_set.load(Ordering::SeqCst), 1400);
    assert_eq!(control.set_acknowledged(request::NET_SET_MTU, &mtu(9000), &[]).unwrap(), 1);
    assert_eq!(control.set_acknowledged(request::SET_STATUS, &mtu(15), &[]).unwrap(), 0);
    assert_eq!(control.get_u64(request::GET_STATUS).unwrap(), 15);
    let null = fs::File::open("/dev/null").unwrap();
    assert_eq!(control.set_acknowledged(request::SET_LOG_FD, &[], &[file(&null)]).unwrap(), 0);
    assert_eq!(control.set_acknowledged(request::VRING_KICK, &[0; 8], &[]).unwrap(), 1);
    assert_eq!(control.set_acknowledged(77, &[0; 8], &[]).unwrap(), 1);
    driver.start().unwrap();
    rig.assert_alive(&mut driver);
    eventually("all three pairs run", || count(&rig.data_path.starts) == 3);
    assert_eq!(count(&rig.data_path.features), driver.features & !F_PROTOCOL_FEATURES);
}

/// Many requests in one go are answered in their order, whoever answers them.
#[test]
fn answers_keep_the_order_of_requests() {
    let _alone = alone();
    let rig = InProcess::listening(1);
    let mut driver = rig.connect(Options { order: Order::Plain, ..Options::default() });
    let codes =
        [request::GET_FEATURES, request::SEND_RARP, request::GET_STATUS, request::SET_VRING_ENABLE];
    for n in 0..100 {
        let code = codes[n % codes.len()];
        let body: &[u8] = match code {
            request::SEND_RARP => &[0; 8],
            request::SET_VRING_ENABLE => &[0, 0, 0, 0, 1, 0, 0, 0],
            _ => &[],
        };
        driver.control.send(code, 8, body, &[]).unwrap();
    }
    for n in 0..100 {
        assert_eq!(driver.control.reply().unwrap().0, codes[n % codes.len()]);
    }
    rig.assert_alive(&mut driver);
}

/// More messages in one go than are handled at once, and some that become several.
#[test]
fn a_burst_of_messages_is_handled() {
    let _alone = alone();
    let rig = InProcess::listening(1);
    for extra in 0..3 {
        let mut control = Control::connect(rig.path()).unwrap();
        for n in 0..300 + extra {
            control.set_ring(request::SET_VRING_ENABLE, n % 2, n / 2 % 2).unwrap();
        }
        for _ in 0..100 {
            control.send(request::SEND_RARP, 0, &[0; 8], &[]).unwrap();
        }
        control.sync().unwrap();
    }
    assert_eq!(rig.data_path.announced.load(Ordering::SeqCst), 300);
}

#[test]
fn a_listening_socket_has_its_permissions_and_its_file_goes_with_it() {
    let _alone = alone();
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("s");
    let attach = || Attach::Listen { path: path.clone(), mode: 0o620, group: None };
    // Left behind by a process that is gone.
    drop(UnixListener::bind(&path).unwrap());
    let endpoint = Endpoint::open(attach()).unwrap();
    let metadata = fs::symlink_metadata(&path).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o620);
    assert_eq!(entries(dir.path().to_str().unwrap()), 1);
    assert!(matches!(Endpoint::open(attach()), Err(AttachError::InUse(p)) if p == path));
    drop(endpoint);
    assert_eq!(entries(dir.path().to_str().unwrap()), 0);
    fs::write(&path, "precious").unwrap();
    assert!(matches!(Endpoint::open(attach()), Err(AttachError::NotASocket(_))));
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    let absent = Attach::Listen { path: dir.path().join("no/s"), mode: 0o600, group: None };
    let error = Endpoint::open(absent).err().unwrap().to_string();
    assert!(error.starts_with("can't listen on") && error.contains("no/s"), "{error}");
}

#[test]
fn a_client_connects_as_soon_as_the_frontend_listens_and_again() {
    let _alone = alone();
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("qemu.sock");
    let attach = Attach::Connect { path: path.clone() };
    let mut rig = InProcess::serving(attach, Loopback::new(1, None), dir, path.clone());
    for round in 0..3 {
        let listener = UnixListener::bind(&path).unwrap();
        for _ in 0..3 {
            let start = clock::mono();
            let (stream, _) = listener.accept().unwrap();
            assert!(clock::mono() - start < Duration::from_secs(2), "round {round}");
            let mut driver = Driver::new(Control::new(stream), Options::default());
            driver.negotiate().unwrap();
            driver.start().unwrap();
            rig.assert_alive(&mut driver);
        }
        drop(listener);
        fs::remove_file(&path).unwrap();
    }
    rig.shut_down().unwrap();
}

#[test]
fn an_inherited_connection_ends_with_its_frontend() {
    let _alone = alone();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("unused");
    let attach = Attach::Fd(theirs.into());
    let mut rig = InProcess::serving(attach, Loopback::new(1, None), dir, path);
    let mut driver = Driver::new(Control::new(ours), Options::default());
    driver.negotiate().unwrap();
    driver.start().unwrap();
    rig.assert_alive(&mut driver);
    drop(driver);
    rig.join().unwrap();
}

#[test]
fn an_inherited_listener_serves_many() {
    let _alone = alone();
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let attach = Attach::Fd(listener.into());
    let mut rig = InProcess::serving(attach, Loopback::new(1, None), dir, path.clone());
    for _ in 0..3 {
        rig.assert_alive(&mut rig.connect(Options::default()));
    }
    rig.shut_down().unwrap();
    assert!(path.exists(), "a file that somebody else made stays");
}

#[test]
fn a_descriptor_that_is_no_stream_is_refused() {
    let _alone = alone();
    let null = fs::File::open("/dev/null").unwrap();
    assert!(matches!(Endpoint::open(Attach::Fd(null.into())), Err(AttachError::NotAStream(_))));
    let datagram = std::os::unix::net::UnixDatagram::unbound().unwrap();
    assert!(matches!(Endpoint::open(Attach::Fd(datagram.into())), Err(AttachError::NotAStream(_))));
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    assert!(matches!(Endpoint::open(Attach::Fd(udp.into())), Err(AttachError::NotAStream(_))));
}

#[test]
fn shutdown_is_quick_whatever_goes_on() {
    let _alone = alone();
    let before = resources();
    for busy in [false, true] {
        let mut rig = InProcess::listening(1);
        let mut driver = rig.connect(Options::default());
        if busy {
            for n in 0..100 {
                driver.queue_frame(0, &rig::frame(200, n));
            }
            driver.flush(0);
        }
        let start = clock::mono();
        rig.shut_down().unwrap();
        assert!(clock::mono() - start < Duration::from_secs(1));
        assert!(driver.control.is_closed(PATIENCE));
        let counts =
            [&rig.data_path.starts, &rig.data_path.stops].map(|c| c.load(Ordering::SeqCst));
        assert_eq!(counts, [1, 1]);
    }
    eventually("nothing is left", || resources() == before);
}

/// CPU time that the process used, in clock ticks.
fn cpu_ticks() -> u64 {
    let stat = fs::read_to_string("/proc/self/stat").expect("procfs");
    let after_name = stat.rsplit_once(')').expect("a name").1;
    // utime and stime, fields 14 and 15 of proc_pid_stat(5).
    let fields = after_name.split_whitespace().skip(11).take(2);
    fields.map(|field| field.parse::<u64>().expect("a number")).sum()
}

/// Nobody spins: not on a kick descriptor that was replaced, not on a ring that is stopped, not on a
/// client that waits for its frontend.
#[test]
fn an_idle_backend_uses_no_cpu() {
    let _alone = alone();
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("absent");
    let attach = Attach::Connect { path: path.clone() };
    let _waiting = InProcess::serving(attach, Loopback::new(1, None), dir, path);
    let rig = InProcess::listening(2);
    let mut driver = rig.connect(Options { pairs: 2, ..Options::default() });
    // A kick descriptor that was replaced, and is raised.
    let event = driver.pairs[0].rx.call.try_clone().unwrap();
    let old = std::mem::replace(&mut driver.pairs[0].tx.kick, event);
    let new = driver.pairs[0].tx.kick.as_raw_fd();
    driver.control.set_ring_fd(request::SET_VRING_KICK, 1, new).unwrap();
    old.write(1).unwrap();
    // A ring that is stopped, with frames waiting and kicks pending.
    driver.pairs[1].tx.next_avail = 5000;
    driver.pairs[1].tx.expose();
    driver.pairs[1].tx.kick();
    eventually("the ring stops", || rig.ring_failures() == 1);
    driver.pairs[1].tx.kick();
    rig.data_path.inject(1, &rig::frame(60, 0));
    // A kick descriptor that can't be read: the end of a pipe whose other end is closed.
    let unreadable = InProcess::listening(2);
    let mut third = unreadable.connect(Options { pairs: 2, ..Options::default() });
    let (reader, writer) = nix::unistd::pipe().unwrap();
    drop(writer);
    third.control.set_ring_fd(request::SET_VRING_KICK, 1, reader.as_raw_fd()).unwrap();
    eventually("the ring stops", || unreadable.ring_failures() == 1);
    let before = cpu_ticks();
    // Nothing will come: this is how long is watched.
    assert!(!readable(&third.pairs[1].rx.call, Duration::from_millis(700)));
    let used = cpu_ticks() - before;
    assert!(used <= 5, "{used} ticks of CPU in 0.7 s");
}
