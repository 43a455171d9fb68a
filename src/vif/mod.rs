//! A guest's NIC: the data path in packet order, and its link to varpd.
//!
//! | File | What |
//! |---|---|
//! | [`guest`] | the trust boundary: descriptor chains become frames or named faults |
//! | [`ring`] | the rings themselves: chains taken, walked and given back, by the batch |
//! | [`tx`] | from the guest: whose frame it is, where it goes |
//! | [`guard`] | anti-spoofing: which addresses the guest may send from, if it is kept to a list |
//! | [`rx`] | from the underlay: whether a datagram holds a frame for this vif |
//! | [`outgoing`] | frames become datagrams |
//! | [`paths`] | how long those may be, by destination |
//! | [`too_big`], [`told`] | the ICMP answer to frames that are longer; which senders ignore it |
//! | [`incoming`], [`reassembly`] | frames that were received and accepted, whole or in pieces |
//! | [`direct`] | trains of long segments that go straight into the guest's buffers |
//! | [`protect`] | datagrams of a secured vnet are sealed and opened |
//! | [`arrival`] | a guest that has migrated here: its vnet is told by RARP |
//! | [`throttle`], [`alarm`] | rate limits: what waits, what is dropped; the timer that ends the wait |
//! | [`learnt`], [`learning`] | MACs behind the vif: a queue pair's table, and that of all of them together |
//! | [`stranger`] | a guest that sends from a MAC where nobody finds it |
//! | [`departed`], [`late`] | MACs that have left, whose late frames are sent on |
//! | [`lanes`], [`unpacked`] | frames to and from other vifs of this host, through shared memory |
//! | [`neighbors`], [`park`] | addresses learnt; frames that wait for one |
//! | [`worker`] | one queue pair's data path: all of the above, in the order of packets |
//! | [`nic`] | the workers of a NIC, and what they share |
//! | [`key_ends`] | when keys end that varpd, being away, does not end |
//! | `announcing` | how often varpd is told that the guest wants to be announced |
//! | [`link`], [`serve`] | the conversation with varpd; the process around it all |
//! | `registration` | the registration with varpd, and what follows from its answer |

pub mod alarm;
mod announcing;
pub mod arrival;
pub mod departed;
pub mod direct;
pub mod echo;
pub mod guard;
pub mod guest;
pub mod incoming;
pub mod key_ends;
pub mod lanes;
pub mod late;
pub mod learning;
pub mod learnt;
pub mod link;
pub mod neighbors;
pub mod nic;
pub mod outgoing;
pub mod park;
pub mod paths;
pub mod protect;
pub mod reassembly;
mod registration;
pub mod ring;
pub mod rx;
pub mod serve;
pub mod stranger;
pub mod throttle;
pub mod told;
pub mod too_big;
pub mod tx;
pub mod unpacked;
pub mod worker;
