//! A vif's port on its vnet: joins the guest to the tunnel and to the lanes, in the order of packets.
//!
//! | File | Content |
//! |---|---|
//! | [`worker`] | one queue pair's data path, in the order of packets |
//! | [`tx`] | from the guest: whose frame it is, where it goes |
//! | [`guard`] | anti-spoofing: which addresses the guest may send from, if it is kept to a list |
//! | [`throttle`] | rate limits: what waits, what is dropped |
//! | [`learned`] | MACs behind the vif |
//! | [`stranger`] | a guest that sends from a MAC at which nobody finds it |
//! | [`arrival`] | a guest that has migrated here: RARP tells its vnet |
//! | [`direct`] | trains of long segments that go straight into the guest's buffers |

pub mod arrival;
pub mod direct;
pub mod guard;
pub mod learned;
pub mod stranger;
pub mod throttle;
pub mod tx;
pub mod worker;
