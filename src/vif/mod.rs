//! A guest's NIC as varpd knows it: its queue pairs, and its registration.
//!
//! The data path of a queue pair is in [`crate::port`].
//!
//! | File | Content |
//! |---|---|
//! | [`nic`] | the workers of a NIC, and what they share |
//! | [`alarm`] | the timer of a worker that waits for credit |
//! | [`learning`] | MACs behind the vif: the table of all queue pairs together |
//! | [`late`] | watches the sockets of a guest that has left, whose late frames are sent on |
//! | [`key_ends`] | when keys end that varpd, being away, does not end |
//! | `announcing` | how often varpd is told that the guest wants to be announced |
//! | [`link`], [`serve`] | the conversation with varpd; the process around it all |
//! | `registration` | the registration with varpd, and what follows from its answer |

pub mod alarm;
mod announcing;
pub mod key_ends;
pub mod late;
pub mod learning;
pub mod link;
pub mod nic;
mod registration;
pub mod serve;
