//! Numbers of protocols (IANA).

/// EtherTypes.
pub mod ether_type {
    /// RFC 894.
    pub const IPV4: u16 = 0x0800;
    /// RFC 826.
    pub const ARP: u16 = 0x0806;
    /// RFC 903.
    pub const RARP: u16 = 0x8035;
    /// RFC 2464.
    pub const IPV6: u16 = 0x86dd;
    /// IEEE 802.3 annex 31A: PAUSE and its kin act on one link and are never forwarded.
    pub const MAC_CONTROL: u16 = 0x8808;
}

/// Protocols above IP.
pub mod ip {
    /// RFC 792.
    pub const ICMP: u8 = 1;
    /// RFC 3376.
    pub const IGMP: u8 = 2;
    /// RFC 9293.
    pub const TCP: u8 = 6;
    /// RFC 768.
    pub const UDP: u8 = 17;
    /// RFC 4443.
    pub const ICMPV6: u8 = 58;
    /// Multicast routers among themselves (RFC 7761).
    pub const PIM: u8 = 103;
}
