//! A guest's NIC: the data path in packet order, and its link to varpd.
//!
//! | File | What |
//! |---|---|
//! | [`guest`] | the trust boundary: descriptor chains become frames or named faults |
//! | [`ring`] | the rings themselves: chains taken, walked and given back, by the batch |
//! | [`tx`] | from the guest: whose frame it is, where it goes |
//! | [`rx`] | from the underlay: whether a datagram holds a frame for this vif |
//! | [`outgoing`], [`too_big`] | frames become datagrams; the answer to those that can't |
//! | [`incoming`] | frames that were received and accepted |
//! | [`ring`] | split virtqueues by checked slices |
//! | [`lanes`], [`arrival`] | frames to and from other vifs of this host, through shared memory |
//! | [`neighbors`], [`park`] | addresses learnt; frames that wait for one |
//! | [`worker`] | one queue pair's data path: all of the above, in the order of packets |
//! | [`nic`] | the workers of a NIC, and what they share |
//! | [`link`], [`serve`] | the conversation with varpd; the process around it all |

pub mod arrival;
pub mod guest;
pub mod incoming;
pub mod lanes;
pub mod link;
pub mod neighbors;
pub mod nic;
pub mod outgoing;
pub mod park;
pub mod ring;
pub mod rx;
pub mod serve;
pub mod too_big;
pub mod tx;
pub mod worker;
