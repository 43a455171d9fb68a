//! A filter between a frontend and the vhost-user crate: a pure state machine over messages.
//!
//! QEMU's vhost-user-net deviates from the protocol in ways for which the crate closes the
//! connection, and QEMU then continues without a network. Every message of the frontend therefore
//! passes [`Filter::request`], every reply of the device [`Filter::reply`]:
//!
//! | Message | Action |
//! |---|---|
//! | `SET_VRING_ENABLE` before `SET_FEATURES` | the filter sends `SET_FEATURES` with only bit 30 first |
//! | `SET_VRING_KICK` for a ring that runs | the filter disables the ring meanwhile, because the crate would continue to poll the old descriptor |
//! | `SEND_RARP`, `NET_SET_MTU` | consumed, passed to the data path, acknowledged |
//! | `GET_FEATURES`, `GET_PROTOCOL_FEATURES` | the filter hides the configuration space from a frontend that does not begin with `SET_OWNER`: see below |
//! | any request for a missing ring | refused, with the remedy: QEMU interprets the reply to `GET_QUEUE_NUM`, which counts rings, as queue pairs |
//! | a payload with unused room | cut to the used part, as libvhost-user reads it |
//! | `SET_LOG_BASE` | consumed, and the log mapped here, because the crate does not check its size |
//! | `SET_MEM_TABLE`, `ADD_MEM_REG`, `REM_MEM_REG` | checked, with the sizes of the files, because the crate maps any region |
//! | `SET_LOG_FD`, `GET_STATUS`, `SET_STATUS`, `SET_CONFIG` | consumed and answered |
//! | `SET_BACKEND_REQ_FD` | consumed, and the descriptor kept: the crate accepts only sockets, but virtio_uml passes a pipe |
//! | `SET_VRING_ENDIAN` | consumed; a ring in the other byte order never starts |
//! | other requests that the device does not offer | refused by the acknowledgement if there is one, otherwise by closing the connection |
//!
//! Most frontends begin with `SET_OWNER`, as the specification requires. QEMU's vhost-user-net asks
//! for the features first, configures MAC and MTU itself, and warns of a backend that offers them.
//! Linux's virtio_uml and crosvm need them from the backend: otherwise the guest has a random MAC.
//!
//! Use the filter in lock-step: after [`Step::Forward`] with `reply`, read nothing more
//! from the frontend until the device has answered. So answers keep the order of requests.

#![forbid(unsafe_code)]
#![warn(clippy::indexing_slicing, clippy::cast_possible_truncation)]

mod refusal;
mod requests;
#[cfg(test)]
mod tests;

pub use self::refusal::Refusal;
pub use self::requests::name;
use self::requests::{check_descriptors, code, ring_of, used_len};
#[cfg(test)]
use super::memory_table::TableError;
use super::memory_table::{Region, Table};

/// Length of a message's header, in bytes.
pub const HEADER_LEN: usize = 12;
/// Longest payload, in bytes: that of the crate.
pub const MAX_PAYLOAD: usize = 4096;
/// Limit on descriptors with one message: that of the crate.
pub const MAX_DESCRIPTORS: usize = 32;

/// The log line about guest memory that is not shared.
pub const UNSHARED: &str = "guest memory is not shared: start QEMU with \
    -object memory-backend-memfd,id=mem,size=...,share=on -machine memory-backend=mem \
    (libvirt: <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>)";

/// Bit 30 of the features: the vhost-user protocol features are negotiated.
const F_PROTOCOL_FEATURES: u64 = 1 << 30;
/// Bit of the protocol features: the frontend passes the dirty log as a file.
const PROTOCOL_F_LOG_SHMFD: u64 = 1 << 1;
/// Bit of the protocol features: the frontend can ask for an acknowledgement of any message.
const PROTOCOL_F_REPLY_ACK: u64 = 1 << 3;
/// Bit of the protocol features: the frontend adds memory region by region (`CONFIGURE_MEM_SLOTS`).
const PROTOCOL_F_SLOTS: u64 = 1 << 15;
/// Bit of the protocol features: the frontend passes a socket for requests of the backend
/// (`BACKEND_REQ`).
const PROTOCOL_F_BACKEND_REQ: u64 = 1 << 5;
/// Bit of the protocol features: the frontend sets the byte order of rings (`CROSS_ENDIAN`).
const PROTOCOL_F_CROSS_ENDIAN: u64 = 1 << 6;
/// Bit of the protocol features: the frontend asks for the configuration space (`CONFIG`).
const PROTOCOL_F_CONFIG: u64 = 1 << 9;
/// Bit of the features: the NIC's MAC is in the configuration space (`VIRTIO_NET_F_MAC`).
const F_MAC: u64 = 1 << 5;
/// Bit of the features: there is a control queue (`VIRTIO_NET_F_CTRL_VQ`).
const F_CTRL_VQ: u64 = 1 << 17;

/// Header flags: version 1 in the two lowest bits.
const VERSION: u32 = 1;
const VERSION_MASK: u32 = 0x3;
const REPLY: u32 = 0x4;
const NEED_REPLY: u32 = 0x8;

/// The header of a message. All numbers are in the host's byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The request's number.
    pub request: u32,
    /// Version and flags.
    pub flags: u32,
    /// Length of the payload, in bytes; at most [`MAX_PAYLOAD`].
    pub size: u32,
}

impl Header {
    /// Parses a header, and refuses it if the rest of the message cannot be read.
    ///
    /// # Errors
    /// Another version, reserved flags, or a payload that is too long.
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Self, Refusal> {
        let word = |at| word(bytes, at).unwrap_or(0);
        let (request, flags, size) = (word(0), word(4), word(8));
        if flags & VERSION_MASK != VERSION || flags & !(VERSION_MASK | REPLY | NEED_REPLY) != 0 {
            return Err(Refusal::Flags { request, flags });
        }
        if usize::try_from(size).is_ok_and(|size| size > MAX_PAYLOAD) {
            return Err(Refusal::TooLong { request, size });
        }
        Ok(Self { request, flags, size })
    }

    fn needs_reply(&self) -> bool {
        self.flags & NEED_REPLY != 0
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_ne_bytes(*b))
}

fn double_word(bytes: &[u8]) -> Option<u64> {
    bytes.first_chunk().filter(|_| bytes.len() == 8).map(|b| u64::from_ne_bytes(*b))
}

fn message(request: u32, flags: u32, payload: [u8; 8]) -> Vec<u8> {
    [request.to_ne_bytes(), (VERSION | flags).to_ne_bytes(), 8_u32.to_ne_bytes()]
        .concat()
        .into_iter()
        .chain(payload)
        .collect()
}

/// The acknowledgement of a request, 0 for success.
pub fn acknowledgement(request: u32, value: u64) -> Vec<u8> {
    message(request, REPLY, value.to_ne_bytes())
}

/// An action of the shell for a message of the frontend; it carries them out in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Cut the message's payload to this length, in bytes.
    Shorten(usize),
    /// Keep the attached descriptor open: the frontend takes a closed one for a dead backend.
    KeepChannel,
    /// Log that the guest's driver has the other byte order, which is not supported.
    OtherByteOrder,
    /// Send these bytes to the device; it does not answer them.
    Inject(Vec<u8>),
    /// Send the message on to the device; if `reply`, take its answer before reading on.
    Forward {
        /// Whether the device answers.
        reply: bool,
    },
    /// Send these bytes to the frontend.
    Answer(Vec<u8>),
    /// The guest has arrived: announce it.
    Announce,
    /// Check that the attached files, one per region, contain these regions of guest memory.
    Measure {
        /// Number of the first.
        first: usize,
        /// They.
        regions: Vec<Region>,
    },
    /// Map the attached file and log writes there, then acknowledge.
    SetLog {
        /// Length of the log, in bytes.
        size: u64,
        /// Its offset in the file.
        offset: u64,
    },
    /// Pass the MTU to the data path; if `acknowledge`, reply whether it was accepted.
    SetMtu {
        /// In bytes.
        mtu: u16,
        /// Whether the frontend waits.
        acknowledge: bool,
    },
}

/// The state of a ring.
#[derive(Clone, Copy, Debug, Default)]
struct RingState {
    has_kick: bool,
    enabled: bool,
    /// It is in the other byte order.
    is_foreign: bool,
}

/// The state of one connection.
#[derive(Debug, Default)]
pub struct Filter {
    asked_features: bool,
    /// The frontend began with `SET_OWNER`.
    is_owned_first: bool,
    /// Features in force at the device, whether the frontend set them or the filter.
    features: Option<u64>,
    protocol_features: u64,
    /// Rings by number: the payload of `SET_VRING_KICK` has 8 bits for it.
    rings: Vec<RingState>,
    memory: Table,
    status: u64,
    awaited: Option<u32>,
}

impl Filter {
    /// The filter of a new connection to a device with `rings` rings.
    pub fn new(rings: usize) -> Self {
        Self { rings: vec![RingState::default(); rings], ..Self::default() }
    }

    /// Decides about a message of the frontend, given the number of its descriptors.
    ///
    /// # Errors
    /// The shell must close the connection; the filter has passed nothing on.
    pub fn request(
        &mut self,
        header: &Header,
        payload: &[u8],
        descriptors: usize,
    ) -> Result<Vec<Step>, Refusal> {
        let request = header.request;
        if header.flags & REPLY != 0 {
            return Err(Refusal::Flags { request, flags: header.flags });
        }
        let has_slots = self.has(PROTOCOL_F_SLOTS);
        check_descriptors(request, payload, descriptors, self.protocol_features)?;
        self.check_ring(request, payload)?;
        let used = used_len(request, payload).and_then(|len| payload.get(..len));
        let (all, payload) = (payload, used.unwrap_or(payload));
        let mut steps = match request {
            code::SET_FEATURES => self.set_features(header, payload)?,
            code::RESET_OWNER => {
                self.features = None;
                vec![self.forward(header)]
            }
            code::SET_PROTOCOL_FEATURES => {
                let features = double_word(payload).ok_or(Refusal::Malformed(request))?;
                self.protocol_features = features;
                vec![self.forward(header)]
            }
            code::SET_VRING_ENABLE => self.enable(header, payload)?,
            code::SET_VRING_KICK => self.kick(header, payload)?,
            code::GET_VRING_BASE => {
                if let Some(ring) = self.ring(word(payload, 0)) {
                    (ring.has_kick, ring.is_foreign) = (false, false);
                }
                vec![self.forward(header)]
            }
            code::SET_OWNER => {
                self.is_owned_first |= !self.asked_features;
                vec![self.forward(header)]
            }
            code::GET_FEATURES => {
                self.asked_features = true;
                vec![self.forward(header)]
            }
            code::SET_MEM_TABLE => self.change_memory(header, payload)?,
            code::ADD_MEM_REG | code::REM_MEM_REG if has_slots => {
                self.change_memory(header, payload)?
            }
            code::GET_MAX_MEM_SLOTS if has_slots => vec![self.forward(header)],
            // QEMU sends no region that is not shared, and continues.
            code::SET_VRING_ADDR if has_slots && self.memory.is_empty() => {
                return Err(Refusal::MemoryNotShared);
            }
            code::SET_BACKEND_REQ_FD if self.has(PROTOCOL_F_BACKEND_REQ) => {
                [vec![Step::KeepChannel], self.acknowledge(header, 0)].concat()
            }
            code::GET_CONFIG if self.has(PROTOCOL_F_CONFIG) => vec![self.forward(header)],
            code::SET_VRING_ENDIAN if self.has(PROTOCOL_F_CROSS_ENDIAN) => {
                self.set_byte_order(header, payload)?
            }
            code::SET_VRING_NUM
            | code::SET_VRING_ADDR
            | code::SET_VRING_BASE
            | code::SET_VRING_CALL
            | code::SET_VRING_ERR
            | code::GET_PROTOCOL_FEATURES
            | code::GET_QUEUE_NUM => vec![self.forward(header)],
            _ => self.consume(header, payload)?,
        };
        if payload.len() < all.len() && steps.iter().any(|s| matches!(s, Step::Forward { .. })) {
            steps.insert(0, Step::Shorten(payload.len()));
        }
        Ok(steps)
    }

    /// Whether a protocol feature is negotiated.
    fn has(&self, protocol_feature: u64) -> bool {
        self.protocol_features & protocol_feature != 0
    }

    fn check_ring(&self, request: u32, payload: &[u8]) -> Result<(), Refusal> {
        let rings = self.rings.len();
        match ring_of(request, payload) {
            Some(ring) if usize::try_from(ring).is_ok_and(|ring| ring >= rings) => {
                let is_last = usize::try_from(ring).is_ok_and(|ring| ring == rings);
                let is_control = is_last && self.features.is_some_and(|f| f & F_CTRL_VQ != 0);
                Err(Refusal::NoSuchRing { request, ring, rings, is_control })
            }
            _ => Ok(()),
        }
    }

    /// Checks a reply of the device and rewrites its payload if the frontend expects another.
    ///
    /// # Errors
    /// The reply matches no request: a bug of this program.
    pub fn reply(&mut self, header: &Header, payload: &mut [u8]) -> Result<(), Refusal> {
        if self.awaited.take() != Some(header.request) || header.flags & REPLY == 0 {
            return Err(Refusal::OutOfTurn(header.request));
        }
        let hidden = match header.request {
            code::GET_FEATURES => F_MAC,
            code::GET_PROTOCOL_FEATURES => PROTOCOL_F_CONFIG,
            _ => 0,
        };
        if hidden != 0
            && !self.is_owned_first
            && let Some(features) = double_word(payload)
        {
            payload.copy_from_slice(&(features & !hidden).to_ne_bytes());
        }
        Ok(())
    }

    /// The request for whose reply the frontend waits.
    pub fn awaited(&self) -> Option<u32> {
        self.awaited
    }

    fn ring(&mut self, number: Option<u32>) -> Option<&mut RingState> {
        self.rings.get_mut(usize::try_from(number?).ok()?)
    }

    fn acknowledges(&self, header: &Header) -> bool {
        self.asked_features && self.has(PROTOCOL_F_REPLY_ACK) && header.needs_reply()
    }

    /// Passes a message on. The prediction of a reply follows the crate: it always answers these
    /// requests, and others if asked to, or closes the connection.
    fn forward(&mut self, header: &Header) -> Step {
        let always = matches!(
            header.request,
            code::GET_FEATURES
                | code::GET_PROTOCOL_FEATURES
                | code::GET_QUEUE_NUM
                | code::GET_MAX_MEM_SLOTS
                | code::GET_VRING_BASE
                | code::GET_CONFIG
        );
        let reply = always || self.acknowledges(header);
        if reply {
            self.awaited = Some(header.request);
        }
        Step::Forward { reply }
    }

    fn set_features(&mut self, header: &Header, payload: &[u8]) -> Result<Vec<Step>, Refusal> {
        let features = double_word(payload).ok_or(Refusal::Malformed(header.request))?;
        self.features = Some(features);
        if features & F_PROTOCOL_FEATURES == 0 {
            // "the ring is initialized in an enabled state"
            self.rings.iter_mut().for_each(|ring| ring.enabled = true);
        }
        Ok(vec![self.forward(header)])
    }

    /// What the device refuses of this nevertheless ends the connection, and the table with it.
    fn change_memory(&mut self, header: &Header, payload: &[u8]) -> Result<Vec<Step>, Refusal> {
        let request = header.request;
        let refused = |error| Refusal::Memory { request, error };
        let measure = match request {
            code::REM_MEM_REG => {
                if !self.memory.remove(payload).map_err(refused)? {
                    return Ok(self.acknowledge(header, 0));
                }
                None
            }
            code::ADD_MEM_REG => match self.memory.add(payload).map_err(refused)? {
                Some((first, region)) => Some(Step::Measure { first, regions: vec![region] }),
                None => return Ok(self.acknowledge(header, 0)),
            },
            _ => {
                let regions = self.memory.replace(payload).map_err(refused)?.to_vec();
                Some(Step::Measure { first: 0, regions })
            }
        };
        Ok(measure.into_iter().chain([self.forward(header)]).collect())
    }

    /// Answers a message that is not passed on, if the frontend waits for that; 0 for success.
    fn acknowledge(&self, header: &Header, value: u64) -> Vec<Step> {
        if !self.acknowledges(header) {
            return Vec::new();
        }
        vec![Step::Answer(acknowledgement(header.request, value))]
    }

    fn enable(&mut self, header: &Header, payload: &[u8]) -> Result<Vec<Step>, Refusal> {
        let (Some(index), Some(on), 8) = (word(payload, 0), word(payload, 4), payload.len()) else {
            return Err(Refusal::Malformed(header.request));
        };
        if let Some(ring) = self.ring(Some(index)) {
            ring.enabled = on != 0;
        }
        let mut steps = Vec::new();
        if self.features.is_none() {
            self.features = Some(F_PROTOCOL_FEATURES);
            let early = F_PROTOCOL_FEATURES.to_ne_bytes();
            steps.push(Step::Inject(message(code::SET_FEATURES, 0, early)));
        }
        steps.push(self.forward(header));
        Ok(steps)
    }

    fn kick(&mut self, header: &Header, payload: &[u8]) -> Result<Vec<Step>, Refusal> {
        let value = double_word(payload).ok_or(Refusal::Malformed(header.request))?;
        // Bits 0-7 are the ring, bit 8 says that no descriptor came along: the driver wants
        // polling.
        let [index, no_descriptor, ..] = value.to_le_bytes();
        let index = u32::from(index);
        let Some(ring) = self.ring(Some(index)) else { return Ok(vec![self.forward(header)]) };
        if ring.is_foreign {
            return Ok(self.acknowledge(header, 0));
        }
        let live = ring.has_kick && ring.enabled;
        ring.has_kick = no_descriptor & 1 == 0;
        if !live {
            return Ok(vec![self.forward(header)]);
        }
        if self.features.is_none_or(|f| f & F_PROTOCOL_FEATURES == 0) {
            return Err(Refusal::Unsupported(header.request));
        }
        let enable = |on: u32| {
            let [[a, b, c, d], [e, f, g, h]] = [index.to_ne_bytes(), on.to_ne_bytes()];
            Step::Inject(message(code::SET_VRING_ENABLE, 0, [a, b, c, d, e, f, g, h]))
        };
        Ok(vec![enable(0), self.forward(header), enable(1)])
    }

    /// Rings are read in one byte order, which is that of all drivers since virtio 1. A legacy
    /// driver has its guest's: where that is another, its rings do not start, and it is said why.
    fn set_byte_order(&mut self, header: &Header, payload: &[u8]) -> Result<Vec<Step>, Refusal> {
        let (Some(index), Some(is_big)) = (word(payload, 0), word(payload, 4)) else {
            return Err(Refusal::Malformed(header.request));
        };
        let is_foreign = is_big != 0;
        if let Some(ring) = self.ring(Some(index)) {
            ring.is_foreign = is_foreign;
        }
        let said = is_foreign.then_some(Step::OtherByteOrder);
        Ok(said.into_iter().chain(self.acknowledge(header, is_foreign.into())).collect())
    }

    fn consume(&mut self, header: &Header, payload: &[u8]) -> Result<Vec<Step>, Refusal> {
        let request = header.request;
        let acknowledge = self.acknowledges(header);
        let value = || double_word(payload).ok_or(Refusal::Malformed(request));
        Ok(match request {
            code::SEND_RARP => {
                // The payload is the guest's MAC; the vif's own is announced whatever it says.
                value()?;
                [vec![Step::Announce], self.acknowledge(header, 0)].concat()
            }
            code::NET_SET_MTU => {
                let mtu = u16::try_from(value()?).map_err(|_| Refusal::Malformed(request))?;
                vec![Step::SetMtu { mtu, acknowledge }]
            }
            code::SET_LOG_BASE if self.has(PROTOCOL_F_LOG_SHMFD) => {
                let halves = payload.split_at_checked(8);
                let halves = halves.and_then(|(a, b)| Some((double_word(a)?, double_word(b)?)));
                let (size, offset) = halves.ok_or(Refusal::Malformed(request))?;
                vec![Step::SetLog { size, offset }]
            }
            // An eventfd for news in the log, of which QEMU has no use.
            code::SET_LOG_FD => self.acknowledge(header, 0),
            // Nothing in there is the driver's to write.
            code::SET_CONFIG if self.has(PROTOCOL_F_CONFIG) => self.acknowledge(header, 1),
            code::SET_STATUS => {
                self.status = value()?;
                self.acknowledge(header, 0)
            }
            code::GET_STATUS => vec![Step::Answer(acknowledgement(request, self.status))],
            _ if acknowledge => self.acknowledge(header, 1),
            _ => return Err(Refusal::Unsupported(request)),
        })
    }
}
