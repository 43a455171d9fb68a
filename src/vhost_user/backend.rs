//! The features and callbacks that the crate `vhost-user-backend` requires of a device.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::VhostUserBackend;
use virtio_bindings::virtio_config::{VIRTIO_F_IN_ORDER, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventNotifier};

use super::device::Device;
use super::dirty::DirtyBitmap;
use super::logging::F_LOG_ALL;
use super::vring::{MAX_QUEUE_SIZE, SharedMemory, Vring};

/// When a virtio feature is offered.
#[derive(Clone, Copy)]
enum Offered {
    Always,
    WithMac,
    WithMtu,
    WithQueuePairs,
}

/// The feature bits that are between frontend and device, and no business of the driver's.
const TRANSPORT: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() | F_LOG_ALL;

/// The virtio features of the device itself, in one place; the data path adds its offloads.
///
/// They obey the rules of virtio 1.2, 5.1.3.1, whatever a frontend takes of them: most frontends
/// pass what they don't know on to drivers, and these refuse a NIC that breaks the rules.
///
/// Not here, because nothing behind it would keep the promise: packed rings, ring reset, platform
/// IOMMU, RSS. Nor GUEST_ANNOUNCE, which needs a control queue: the backend notices itself that a
/// guest arrives ([`crate::port::arrival`]), and QEMU says so too then (SEND_RARP).
const FEATURES: &[(u32, Offered)] = &[
    (VIRTIO_F_VERSION_1, Offered::Always),
    // Chains are always given back in the order in which they came.
    (VIRTIO_F_IN_ORDER, Offered::Always),
    (VIRTIO_RING_F_EVENT_IDX, Offered::Always),
    (VIRTIO_RING_F_INDIRECT_DESC, Offered::Always),
    (VIRTIO_NET_F_MRG_RXBUF, Offered::Always),
    (VIRTIO_NET_F_MAC, Offered::WithMac),
    (VIRTIO_NET_F_MTU, Offered::WithMtu),
    // QEMU and Cloud Hypervisor serve the control queue themselves. Of frontends that leave it to
    // the backend none has more than one queue pair, and with one it is not needed: so it is not
    // served.
    (VIRTIO_NET_F_CTRL_VQ, Offered::WithQueuePairs),
    (VIRTIO_NET_F_MQ, Offered::WithQueuePairs),
];

/// The vhost-user protocol features on offer.
///
/// CONFIG is kept from QEMU, and CROSS_ENDIAN is only to be told of drivers that can't be served:
/// see [`super::filter`]. Linux's virtio_uml has no interrupts without BACKEND_REQ; nothing is said
/// there.
///
/// Not here: RESET_DEVICE, INFLIGHT_SHMFD (chains are completed in order, so a restarted device
/// resumes from the used index), STATUS.
const PROTOCOL_FEATURES: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
    .union(VhostUserProtocolFeatures::LOG_SHMFD)
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::RARP)
    .union(VhostUserProtocolFeatures::BACKEND_REQ)
    .union(VhostUserProtocolFeatures::CROSS_ENDIAN)
    .union(VhostUserProtocolFeatures::CONFIG)
    .union(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    .union(VhostUserProtocolFeatures::MTU);

impl VhostUserBackend for Device {
    type Bitmap = DirtyBitmap;
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        self.ring_count()
    }

    fn max_queue_size(&self) -> usize {
        MAX_QUEUE_SIZE.into()
    }

    fn features(&self) -> u64 {
        let mac = self.data_path().mac().is_some();
        let mtu = self.data_path().mtu().is_some();
        let pairs = self.data_path().queue_pairs() > 1;
        let offered = FEATURES.iter().filter(|(_, when)| match when {
            Offered::Always => true,
            Offered::WithMac => mac,
            Offered::WithMtu => mtu,
            Offered::WithQueuePairs => pairs,
        });
        offered.fold(TRANSPORT | self.data_path().offloads(), |all, (bit, _)| all | 1 << bit)
    }

    fn acked_features(&self, features: u64) {
        self.features_set(features, features & !TRANSPORT);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        PROTOCOL_FEATURES
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        self.config_space(offset, size)
    }

    /// Each ring was told already.
    fn set_event_idx(&self, _enabled: bool) {}

    fn update_memory(&self, _memory: SharedMemory) -> io::Result<()> {
        self.memory_changed().map_err(io::Error::other)
    }

    /// One worker per queue pair.
    fn queues_per_thread(&self) -> Vec<u64> {
        (0..self.data_path().queue_pairs()).map(|pair| 0b11 << (2 * pair)).collect()
    }

    fn exit_event(&self, thread_index: usize) -> Option<(EventConsumer, EventNotifier)> {
        self.lend_exit_event(thread_index)
    }

    /// An error or a panic here would end the worker in silence.
    fn handle_event(
        &self,
        event: u16,
        _events: EventSet,
        vrings: &[Vring],
        thread_id: usize,
    ) -> io::Result<()> {
        let done = catch_unwind(AssertUnwindSafe(|| self.wake(event, vrings, thread_id)));
        if done.is_err() {
            log::error!("the worker of queue pair {thread_id} panicked: the process ends");
            std::process::exit(EXIT_SOFTWARE);
        }
        Ok(())
    }
}

/// Exit status of a process that found a bug in itself (`EX_SOFTWARE` of sysexits.h).
const EXIT_SOFTWARE: i32 = 70;
