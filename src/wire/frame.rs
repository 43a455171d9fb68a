//! The Ethernet header of guests frames.
