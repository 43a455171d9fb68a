//! The requests of vhost-user by number: their names, and how many descriptors each takes.

use super::{MAX_DESCRIPTORS, Refusal, word};

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

/// Refuses descriptors that nobody will take, and memory that has none. `has_slots`: whether memory
/// may be told region by region.
pub(super) fn check_descriptors(
    request: u32,
    payload: &[u8],
    count: usize,
    has_slots: bool,
) -> Result<(), Refusal> {
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
