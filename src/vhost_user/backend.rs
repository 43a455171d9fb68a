//! What the crate `vhost-user-backend` asks of a device: the features on offer, and callbacks.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::VhostUserBackend;
use virtio_bindings::virtio_config::{VIRTIO_F_IN_ORDER, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF,
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
    WithMtu,
    WithQueuePairs,
}

/// The feature bits that are between frontend and device, and no business of the driver's.
const TRANSPORT: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() | F_LOG_ALL;

/// The virtio features of the device itself, in one place; the data path adds its offloads.
///
/// Not here, because nothing behind it would keep the promise: packed rings, ring reset, platform
/// IOMMU, RSS.
const FEATURES: &[(u32, Offered)] = &[
    (VIRTIO_F_VERSION_1, Offered::Always),
    // Chains are always given back in the order in which they came.
    (VIRTIO_F_IN_ORDER, Offered::Always),
    (VIRTIO_RING_F_EVENT_IDX, Offered::Always),
    (VIRTIO_RING_F_INDIRECT_DESC, Offered::Always),
    (VIRTIO_NET_F_MRG_RXBUF, Offered::Always),
    // With it the guest announces itself after a migration, and QEMU sends no SEND_RARP.
    (VIRTIO_NET_F_GUEST_ANNOUNCE, Offered::Always),
    (VIRTIO_NET_F_MTU, Offered::WithMtu),
    // QEMU serves the control queue itself, the device must only not forbid it.
    (VIRTIO_NET_F_CTRL_VQ, Offered::WithQueuePairs),
    (VIRTIO_NET_F_MQ, Offered::WithQueuePairs),
];

/// The vhost-user protocol features on offer.
///
/// Not here: RESET_DEVICE, INFLIGHT_SHMFD (chains are completed in order, so a restarted device
/// resumes from the used index), STATUS, CONFIG (QEMU keeps virtio-net's configuration space).
const PROTOCOL_FEATURES: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
    .union(VhostUserProtocolFeatures::LOG_SHMFD)
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::RARP)
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
        let mtu = self.data_path().mtu().is_some();
        let pairs = self.data_path().queue_pairs() > 1;
        let offered = FEATURES.iter().filter(|(_, when)| match when {
            Offered::Always => true,
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
