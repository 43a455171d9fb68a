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
//! | [`key_ends`] | expiry of keys while varpd is away |
//! | `announcing` | limits the guest's requests to varpd to announce it |
//! | [`link`], [`serve`] | the backend's side of the control protocol; the process |
//! | `registration` | the registration with varpd, and the consequences of its answer |

pub mod alarm;
mod announcing;
pub mod key_ends;
pub mod late;
pub mod learning;
pub mod link;
pub mod nic;
mod registration;
pub mod serve;
