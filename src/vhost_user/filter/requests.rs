//! The requests of vhost-user by number: their names, and how many descriptors each takes.

use super::{MAX_DESCRIPTORS, PROTOCOL_F_BACKEND_REQ, PROTOCOL_F_SLOTS, Refusal, word};
use crate::vhost_user::memory_table;

/// Numbers of the requests, as in QEMU's docs/interop/vhost-user.rst.
pub(super) mod code {
    pub(in crate::vhost_user::filter) const GET_FEATURES: u32 = 1;
    pub(in crate::vhost_user::filter) const SET_FEATURES: u32 = 2;
    pub(in crate::vhost_user::filter) const SET_OWNER: u32 = 3;
    pub(in crate::vhost_user::filter) const RESET_OWNER: u32 = 4;
    pub(in crate::vhost_user::filter) const SET_MEM_TABLE: u32 = 5;
    pub(in crate::vhost_user::filter) const SET_LOG_BASE: u32 = 6;
    pub(in crate::vhost_user::filter) const SET_LOG_FD: u32 = 7;
    pub(in crate::vhost_user::filter) const SET_VRING_NUM: u32 = 8;
    pub(in crate::vhost_user::filter) const SET_VRING_ADDR: u32 = 9;
    pub(in crate::vhost_user::filter) const SET_VRING_BASE: u32 = 10;
    pub(in crate::vhost_user::filter) const GET_VRING_BASE: u32 = 11;
    pub(in crate::vhost_user::filter) const SET_VRING_KICK: u32 = 12;
    pub(in crate::vhost_user::filter) const SET_VRING_CALL: u32 = 13;
    pub(in crate::vhost_user::filter) const SET_VRING_ERR: u32 = 14;
    pub(in crate::vhost_user::filter) const GET_PROTOCOL_FEATURES: u32 = 15;
    pub(in crate::vhost_user::filter) const SET_PROTOCOL_FEATURES: u32 = 16;
    pub(in crate::vhost_user::filter) const GET_QUEUE_NUM: u32 = 17;
    pub(in crate::vhost_user::filter) const SET_VRING_ENABLE: u32 = 18;
    pub(in crate::vhost_user::filter) const SEND_RARP: u32 = 19;
    pub(in crate::vhost_user::filter) const NET_SET_MTU: u32 = 20;
    pub(in crate::vhost_user::filter) const SET_BACKEND_REQ_FD: u32 = 21;
    pub(in crate::vhost_user::filter) const SET_VRING_ENDIAN: u32 = 23;
    pub(in crate::vhost_user::filter) const GET_CONFIG: u32 = 24;
    pub(in crate::vhost_user::filter) const SET_CONFIG: u32 = 25;
    pub(in crate::vhost_user::filter) const GET_MAX_MEM_SLOTS: u32 = 36;
    pub(in crate::vhost_user::filter) const ADD_MEM_REG: u32 = 37;
    pub(in crate::vhost_user::filter) const REM_MEM_REG: u32 = 38;
    pub(in crate::vhost_user::filter) const SET_STATUS: u32 = 39;
    pub(in crate::vhost_user::filter) const GET_STATUS: u32 = 40;
}

/// Name of a request, for people.
pub fn name(request: u32) -> &'static str {
    const NAMES: [&str; 41] = [
        "NONE",
        "GET_FEATURES",
        "SET_FEATURES",
        "SET_OWNER",
        "RESET_OWNER",
        "SET_MEM_TABLE",
        "SET_LOG_BASE",
        "SET_LOG_FD",
        "SET_VRING_NUM",
        "SET_VRING_ADDR",
        "SET_VRING_BASE",
        "GET_VRING_BASE",
        "SET_VRING_KICK",
        "SET_VRING_CALL",
        "SET_VRING_ERR",
        "GET_PROTOCOL_FEATURES",
        "SET_PROTOCOL_FEATURES",
        "GET_QUEUE_NUM",
        "SET_VRING_ENABLE",
        "SEND_RARP",
        "NET_SET_MTU",
        "SET_BACKEND_REQ_FD",
        "IOTLB_MSG",
        "SET_VRING_ENDIAN",
        "GET_CONFIG",
        "SET_CONFIG",
        "CREATE_CRYPTO_SESSION",
        "CLOSE_CRYPTO_SESSION",
        "POSTCOPY_ADVISE",
        "POSTCOPY_LISTEN",
        "POSTCOPY_END",
        "GET_INFLIGHT_FD",
        "SET_INFLIGHT_FD",
        "GPU_SET_SOCKET",
        "RESET_DEVICE",
        "VRING_KICK",
        "GET_MAX_MEM_SLOTS",
        "ADD_MEM_REG",
        "REM_MEM_REG",
        "SET_STATUS",
        "GET_STATUS",
    ];
    usize::try_from(request).ok().and_then(|n| NAMES.get(n)).unwrap_or(&"unknown request")
}

/// How much of a payload is read, in bytes: frontends may send more, as Linux's virtio_uml does for
/// a memory table. `None` where that is not known.
pub(super) fn used_len(request: u32, payload: &[u8]) -> Option<usize> {
    let counted = |at, head: usize, each: usize| {
        let count = usize::try_from(word(payload, at)?).ok()?;
        head.checked_add(each.checked_mul(count)?)
    };
    match request {
        code::GET_FEATURES
        | code::SET_OWNER
        | code::RESET_OWNER
        | code::GET_PROTOCOL_FEATURES
        | code::GET_QUEUE_NUM
        | code::SET_BACKEND_REQ_FD
        | code::GET_MAX_MEM_SLOTS => Some(0),
        code::SET_FEATURES
        | code::SET_PROTOCOL_FEATURES
        | code::SET_VRING_NUM
        | code::SET_VRING_BASE
        | code::GET_VRING_BASE
        | code::SET_VRING_KICK
        | code::SET_VRING_CALL
        | code::SET_VRING_ERR
        | code::SET_VRING_ENABLE
        | code::SET_VRING_ENDIAN
        | code::SEND_RARP
        | code::NET_SET_MTU
        | code::SET_STATUS => Some(8),
        code::SET_LOG_BASE => Some(16),
        code::SET_VRING_ADDR => Some(40),
        code::ADD_MEM_REG | code::REM_MEM_REG => {
            Some(memory_table::HEAD_LEN + memory_table::REGION_LEN)
        }
        code::SET_MEM_TABLE => counted(0, memory_table::HEAD_LEN, memory_table::REGION_LEN),
        // Offset, size, flags, and as many bytes as the size says.
        code::GET_CONFIG | code::SET_CONFIG => counted(4, 12, 1),
        _ => None,
    }
}

/// The number of the ring that a request is about.
pub(super) fn ring_of(request: u32, payload: &[u8]) -> Option<u32> {
    let number = word(payload, 0)?;
    match request {
        code::SET_VRING_NUM
        | code::SET_VRING_ADDR
        | code::SET_VRING_BASE
        | code::GET_VRING_BASE
        | code::SET_VRING_ENABLE
        | code::SET_VRING_ENDIAN => Some(number),
        // Bits above say whether there is a descriptor.
        code::SET_VRING_KICK | code::SET_VRING_CALL | code::SET_VRING_ERR => Some(number & 0xff),
        _ => None,
    }
}

/// Refuses descriptors that nobody will take, and memory that has none.
pub(super) fn check_descriptors(
    request: u32,
    payload: &[u8],
    count: usize,
    protocol_features: u64,
) -> Result<(), Refusal> {
    let has_slots = protocol_features & PROTOCOL_F_SLOTS != 0;
    let has_backend_req = protocol_features & PROTOCOL_F_BACKEND_REQ != 0;
    let most = match request {
        code::SET_MEM_TABLE => {
            let regions = word(payload, 0).ok_or(Refusal::Malformed(request))?;
            let regions = usize::try_from(regions).unwrap_or(usize::MAX);
            if count < regions && regions <= MAX_DESCRIPTORS {
                return Err(Refusal::MemoryNotShared);
            }
            regions
        }
        code::ADD_MEM_REG if has_slots && count == 0 => return Err(Refusal::MemoryNotShared),
        // That of a region that goes is closed: some frontends send it.
        code::ADD_MEM_REG | code::REM_MEM_REG if has_slots => 1,
        code::GET_MAX_MEM_SLOTS if has_slots => 0,
        code::SET_BACKEND_REQ_FD if has_backend_req && count != 1 => {
            return Err(Refusal::Descriptors { request, count });
        }
        code::SET_BACKEND_REQ_FD if has_backend_req => 1,
        code::SET_LOG_BASE if count == 0 => return Err(Refusal::Descriptors { request, count }),
        code::SET_LOG_BASE
        | code::SET_LOG_FD
        | code::SET_VRING_KICK
        | code::SET_VRING_CALL
        | code::SET_VRING_ERR => 1,
        // Closed when the message is refused.
        _ if is_unknown(request) => MAX_DESCRIPTORS,
        _ => 0,
    };
    if count > most { Err(Refusal::Descriptors { request, count }) } else { Ok(()) }
}

/// Whether the filter refuses the request whatever it says.
fn is_unknown(request: u32) -> bool {
    !matches!(
        request,
        code::GET_FEATURES..=code::NET_SET_MTU
            | code::SET_STATUS..=code::GET_STATUS
    )
}
