//! Frontends that are not QEMU: what each needs to be told, and how it sets its device up.
//!
//! | Frontend | Begins with | Asks for the MAC | Number of queues means |
//! |---|---|---|---|
//! | QEMU's vhost-user-net | `GET_FEATURES` | no, and warns if it could | pairs, at most |
//! | Linux's virtio_uml | `SET_OWNER` | yes | never asked |
//! | Cloud Hypervisor | `SET_OWNER` | no | rings |
//! | crosvm | `SET_OWNER` | yes | rings |

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;

use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::alone;
use crate::driver::{
    Control, Driver, F_EVENT_IDX, F_MRG_RXBUF, F_PROTOCOL_FEATURES, F_VERSION_1, GUEST_BASE,
    Options, Order, USER_BASE, request,
};
use crate::in_process::InProcess;
use crate::loopback::MAC;
use crate::rig::{PATIENCE, Rig, eventually};

const P_MQ: u64 = 1 << 0;
const P_REPLY_ACK: u64 = 1 << 3;
const P_BACKEND_REQ: u64 = 1 << 5;
const P_CROSS_ENDIAN: u64 = 1 << 6;
const P_CONFIG: u64 = 1 << 9;
const F_MAC: u64 = 1 << 5;
const MQ: u32 = 22;
const CTRL_VQ: u32 = 17;

/// Feature bits of virtio-net, and of which each needs one (virtio 1.2, 5.1.3.1).
const RULES: &[(u32, &[u32])] = &[
    (7, &[1]),
    (8, &[1]),
    (9, &[7, 8]),
    (10, &[1]),
    (11, &[0]),
    (12, &[0]),
    (13, &[11, 12]),
    (14, &[0]),
    (18, &[CTRL_VQ]),
    (19, &[CTRL_VQ]),
    (21, &[CTRL_VQ]),
    (MQ, &[CTRL_VQ]),
    (23, &[CTRL_VQ]),
    (52, &[7, 8, 54, 55]),
    (54, &[1]),
    (55, &[1]),
    (56, &[0]),
    (60, &[CTRL_VQ]),
    (61, &[7, 8]),
];

/// Drivers refuse a NIC that breaks them, and many frontends pass on to them all that they get.
#[test]
fn what_is_offered_obeys_the_rules_of_features() {
    let _alone = alone();
    for pairs in [1, 3] {
        let rig = InProcess::listening(pairs);
        for is_owned_first in [false, true] {
            let mut control = Control::connect(rig.path()).unwrap();
            if is_owned_first {
                control.set(request::SET_OWNER, &[], &[]).unwrap();
            }
            let offered = control.get_u64(request::GET_FEATURES).unwrap();
            for (feature, needs) in RULES.iter().filter(|(feature, _)| offered >> feature & 1 == 1)
            {
                let has_one = needs.iter().any(|need| offered >> need & 1 == 1);
                assert!(has_one, "{pairs} pairs: {feature} without any of {needs:?}");
            }
            // A frontend that does not serve a control queue has no use for one.
            assert_eq!(offered >> CTRL_VQ & 1 == 1, pairs > 1);
            assert_eq!(offered >> MQ & 1 == 1, pairs > 1);
            assert_eq!(offered & F_MAC != 0, is_owned_first);
        }
    }
}

/// The payload of GET_CONFIG.
fn config_question(offset: u32, size: u32) -> Vec<u8> {
    let head = [offset, size, 0].map(u32::to_ne_bytes).concat();
    [head, vec![0; size as usize]].concat()
}

#[test]
fn the_configuration_space_holds_mac_pairs_and_mtu() {
    let _alone = alone();
    let rig = InProcess::listening(3);
    let mut control = Control::connect(rig.path()).unwrap();
    control.set(request::SET_OWNER, &[], &[]).unwrap();
    control.get_u64(request::GET_FEATURES).unwrap();
    let protocol = control.get_u64(request::GET_PROTOCOL_FEATURES).unwrap();
    assert_ne!(protocol & P_CONFIG, 0);
    control.set_u64(request::SET_PROTOCOL_FEATURES, P_MQ | P_REPLY_ACK | P_CONFIG).unwrap();
    assert_eq!(control.get_u64(request::GET_QUEUE_NUM).unwrap(), 6);
    let whole = [&MAC[..], &[0, 0, 3, 0], &1450_u16.to_le_bytes(), &[0; 244]].concat();
    for (offset, size) in [(0, 6), (8, 2), (10, 2), (0, 12), (4, 20), (0, 256)] {
        let answer = control.get(request::GET_CONFIG, &config_question(offset, size)).unwrap();
        let (head, bytes) = answer.split_at(12);
        assert_eq!(head, [offset, size, 0].map(u32::to_ne_bytes).concat());
        let at = offset as usize;
        assert_eq!(bytes, &whole[at..at + size as usize], "{size} bytes at {offset}");
    }
    let write = config_question(0, 6);
    assert_eq!(control.set_acknowledged(request::SET_CONFIG, &write, &[]).unwrap(), 1);
    control.sync().unwrap();
}

/// Queues that a frontend asks for beyond those that are served are no silent loss.
#[test]
fn a_frontend_that_uses_more_rings_than_are_served_is_disconnected() {
    let _alone = alone();
    let rig = InProcess::listening(1);
    let options = Options { pairs: 1, order: Order::Plain, ..Options::default() };
    let mut driver = Driver::new(Control::connect(rig.path()).unwrap(), options);
    driver.negotiate().unwrap();
    let call = driver.pairs[0].rx.call.as_raw_fd();
    driver.control.send(request::SET_VRING_CALL, 0, &2_u64.to_ne_bytes(), &[call]).unwrap();
    assert!(driver.control.is_closed(PATIENCE));
    rig.assert_alive(&mut rig.connect(Options::default()));
}

/// Sends a memory table that has room for another region, as virtio_uml does.
fn send_roomy_memory(driver: &mut Driver) {
    let region = [GUEST_BASE, driver.memory.len() as u64, USER_BASE, 0].map(u64::to_ne_bytes);
    let head = [1_u32, 0].map(u32::to_ne_bytes).concat();
    let body = [head, region.concat(), vec![0; 32]].concat();
    let memory = driver.memory.file.as_raw_fd();
    driver.control.set(request::SET_MEM_TABLE, &body, &[memory]).expect("a table that is taken");
}

/// All that virtio_uml says and does, a driver that is unloaded and loaded again included: it only
/// disables rings, and its calls are pipes.
#[test]
fn user_mode_linux_is_served_and_its_driver_can_be_loaded_again() {
    let _alone = alone();
    let rig = InProcess::listening(1);
    let options = Options { order: Order::Plain, ..Options::default() };
    let mut driver = Driver::new(Control::connect(rig.path()).unwrap(), options);
    let control = &mut driver.control;
    control.set(request::SET_OWNER, &[], &[]).unwrap();
    let offered = control.get_u64(request::GET_FEATURES).unwrap();
    let protocol = control.get_u64(request::GET_PROTOCOL_FEATURES).unwrap();
    let wanted = P_REPLY_ACK | P_BACKEND_REQ | P_CONFIG;
    assert_eq!(protocol & wanted, wanted);
    control.set_u64(request::SET_PROTOCOL_FEATURES, wanted).unwrap();
    control.acknowledge = true;
    let (channel, theirs) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).unwrap();
    control.set(request::SET_BACKEND_REQ_FD, &[], &[theirs.as_raw_fd()]).unwrap();
    drop(theirs);
    let features = F_VERSION_1 | F_MRG_RXBUF | F_EVENT_IDX | F_PROTOCOL_FEATURES | F_MAC;
    assert_eq!(offered & features, features);
    for round in 0..3 {
        driver.control.set_u64(request::SET_FEATURES, features).unwrap();
        send_roomy_memory(&mut driver);
        driver.fill_rx(0);
        for index in 0..2 {
            driver.start_ring(index).unwrap();
        }
        driver.enable(true).unwrap();
        let runs = || rig.data_path.starts.load(Ordering::SeqCst) == round + 1;
        driver.queue(0).kick();
        eventually("the rings run", runs);
        rig.assert_alive(&mut driver);
        let alive = File::from(channel.try_clone().unwrap()).read(&mut [0; 1]);
        assert_eq!(alive.unwrap_err().kind(), ErrorKind::WouldBlock, "the channel is open");

        driver.enable(false).unwrap();
        driver.control.sync().unwrap();
        for index in 0..2 {
            let queue = driver.queue(index);
            queue.reset();
            queue.kick = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap();
        }
    }
}

/// Such a driver has no network; the one that comes after it has, on the same connection.
#[test]
fn a_big_endian_driver_from_before_virtio_1_leaves_the_nic_to_the_next_one() {
    let _alone = alone();
    let rig = InProcess::listening(1);
    let options = Options { order: Order::Plain, ..Options::default() };
    let mut driver = Driver::new(Control::connect(rig.path()).unwrap(), options);
    driver.negotiate().unwrap();
    let protocol = P_MQ | P_REPLY_ACK | P_CROSS_ENDIAN;
    driver.control.set_u64(request::SET_PROTOCOL_FEATURES, protocol).unwrap();
    let modern = driver.features;
    driver.control.set_u64(request::SET_FEATURES, modern & !F_VERSION_1).unwrap();
    driver.send_memory().unwrap();
    for index in 0..2 {
        let big = [index, 1_u32].map(u32::to_ne_bytes).concat();
        let refused = driver.control.set_acknowledged(request::SET_VRING_ENDIAN, &big, &[]);
        assert_eq!(refused.unwrap(), 1);
        driver.start_ring(index as usize).unwrap();
    }
    driver.enable(true).unwrap();
    driver.queue(1).kick();
    for index in 0..2 {
        driver.stop_ring(index).unwrap();
    }
    assert_eq!(rig.data_path.starts.load(Ordering::SeqCst), 0);
    driver.start().unwrap();
    rig.assert_alive(&mut driver);
}
