//! A vif's port on its vnet: joins the guest to the tunnel and to the lanes, in the order of packets.
//!
//! | File | Content |
//! |---|---|
//! | [`worker`] | one queue pair's data path, in the order of packets |
//! | `identity` | the MACs and addresses from which the guest may send |
//! | `presence` | whether the guest is here: its rings, its frontend's connection, its announcements |
//! | [`tx`] | from the guest: checks the source of a frame, and decides where it goes |
//! | [`guard`] | anti-spoofing: the addresses from which the guest may send, if it has a list |
//! | [`throttle`] | rate limits: frames wait or are dropped |
//! | [`learned`] | MACs behind the vif |
//! | [`stranger`] | a guest that sends from a MAC at which other guests cannot reach it |
//! | [`arrival`] | a guest that has migrated here: RARP tells its vnet |
//! | [`direct`] | trains of long segments that go straight into the guest's buffers |

pub mod arrival;
pub mod direct;
pub mod guard;
mod identity;
pub mod learned;
mod presence;
pub mod stranger;
pub mod throttle;
pub mod tx;
pub mod worker;
